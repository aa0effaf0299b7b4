// 1_mix.cu - exercise 1: a mixed value. About 15 lines. Belongs to course/1-step.md, "Images".
//
//     x[b] = lambda a(b) + (1 - lambda) a(partner of b)        a(b) = flip(crop(pad(image))) / 255
//
//     images    bytes  [N][3][32][32]       the data set: one plane a colour, rows from the top
//     samples   sample [batch]              device.h: image, partner, crop_y, crop_x, flip
//     x         bf16   [batch][32][32][3]   a pixel's three colours are neighbours
//
// An image is padded with CROP_PADDING = 4 zeroes on each side, to 40 x 40 pixels. Of these the crop
// takes the 32 x 32 whose first pixel is row crop_y, column crop_x. Where flip is 1, the crop's
// columns are exchanged: column 0 and column 31, and so on. (So pad first, crop then, flip last; to
// find a value of x you walk back.) The partner has a crop and a flip of its own.
//
// Who calls it: a training step, once for each batch. A thread makes one value: thread i makes value
// i of x, counted as x lies in memory. Blocks have 160 threads, so the last one has some to spare.
//
// The check looks at: every value, for batches of 1, 2, 3 and 10, lambda 0.3, 1 and 0; crops in all four
// corners; reads beyond the images. Useful: IMAGE_SIDE 32, IMAGE_CHANNELS 3, IMAGE_BYTES 3 * 32 * 32,
// to_bf16(float).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { BLOCK = 160 };

// count: values of x, batch * IMAGE_BYTES
static __global__ void mix(int count, bf16 *x, const uint8_t *images, const sample *samples,
                           const step_values *step) {
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (i >= count) return;
  x[i] = to_bf16(0); // fill in, with step->lambda
}

void run_1(const task *t) {
  const int count = t->rows * IMAGE_BYTES;
  launch("mix", mix, {divide_up(count, BLOCK), BLOCK, 0}, count, t->out[0], t->in[0], t->in[1],
         t->in[2]);
}

} // namespace exercise
} // namespace GPU
