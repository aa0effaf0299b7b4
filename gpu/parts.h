// gpu/parts.h - a long sum with a small result, in parts: the weight gradient's.
//
// In stage 1 of the network (network.h) dw has 64 x 576 numbers, and each is the sum of 131,072 terms, one
// for each pixel. The numbers make a few tiles, work for a few of a GPU's 132 processors. So the sum is
// cut into parts, for about as many blocks as a large GPU has processors. Each block stores its part, and a second
// kernel adds the parts up, in order:
//
//     part 0      the first pixels      -> partials[0][filter][column]
//     part 1      the next ones         -> partials[1][filter][column]     -> dw[filter][column]
//      ..
//
// More parts keep more processors busy, and cost more: each is stored, and read again. How the sum is cut
// depends on the shape alone, not on how many processors a GPU has. (The bits may still differ between a
// generation of GPUs and the next, whose tensor cores cut off sums elsewhere: see gpu/tile.h.)
//
// Checked by `make check`, through conv.cu's operations.
#ifndef GPU_PARTS_H
#define GPU_PARTS_H

#include "gpu/gpu.h"

namespace GPU {

// dw: the sums over all parts, without the columns of padding. They are added in float: there are
// 128 parts at most, each a sum in float itself.
static __global__ void add_parts(float *dw, const float *partials, int parts, int filters,
                                 int columns, int pitch) {
  const int i = (int)thread_number(), row = i / pitch, column = i % pitch;
  if (row >= filters || column >= columns) return;
  float sum = 0;
  for (int part = 0; part < parts; part++) sum += partials[(size_t)part * filters * pitch + i];
  dw[(size_t)row * columns + column] = sum;
}

// Of a large GPU, about: an A100 has 108, an H100 132. There are so many parts that each processor has
// about one block, not two: the parts are stored, and read again to be added, and by `make cost` that takes
// an H100 as long as the products themselves, or longer.
enum { PROCESSORS = 128 };

// How many of the sum's steps a part has, so that all parts together are about a block for each processor,
// and none has fewer steps than `least`.
static int steps_of_part(int steps, int least, int blocks_of_part) {
  return divide_up(steps, min_of(divide_up(PROCESSORS, blocks_of_part), divide_up(steps, least)));
}

// Where the parts go: to dw itself, where there is one part without padding.
static float *place_of_parts(real *dw, int parts, int filters, int columns, int pitch) {
  if (parts == 1 && pitch == columns) return dw;
  return (float *)workspace((size_t)parts * filters * pitch * sizeof(float));
}

static void launch_add_parts(real *dw, const float *partials, int parts, int filters, int columns,
                             int pitch) {
  if (partials != dw)
    launch("add_parts", add_parts, {blocks_for((size_t)filters * pitch), THREADS, 0}, dw, partials,
           parts, filters, columns, pitch);
}

} // namespace GPU

#endif
