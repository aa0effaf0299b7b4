// gpu/walk.h - how the threads of a grid walk over an activation, [pixels][channels], where each number is
// needed once: the norm's kernels (resnet18.cu).
//
// A thread owns eight neighbouring channels for good, keeps their constants in registers, and walks down
// the pixels. Blocks are two-dimensional, with channels along x and pixels along y.
// Threads of a warp are numbered along x first, so a warp reads one unbroken stretch:
//
//                  channels / 8 -->
//                  0    1    2    3    ..  `across` threads, then the next tile, blockIdx.y
//     pixel 0    | tx0, ty0 | tx1, ty0 | ..
//           1    | tx0, ty1 | tx1, ty1 | ..        `down` rows of threads
//           ..                                      one strip, blockIdx.x
//        down    | tx0, ty0 | ..                   the same threads again,
//     down + 1   | tx0, ty1 | ..                   `run` times in all
//
// Where the number of channels is no multiple of 8, eight neighbours would belong to two pixels:
// plain kernels take those shapes.
//
// Checked by `make check`, through resnet18.cu's kernels.
#ifndef GPU_WALK_H
#define GPU_WALK_H

#include "gpu/gpu.h"

namespace GPU {

enum {
  MOST_ACROSS = 32, // 512 unbroken bytes are all that a warp can ask for at once
  RUN = 4,          // pixels a thread: enough to pay for the constants, few enough for many blocks
};

// How threads lie over [pixels][channels].
typedef struct {
  dim3 grid, block; // strips x tiles, across x down
  int run;          // pixels a thread
} tiling;

// run: pixels a thread. If it is 0, as many as leave `most_blocks` blocks, at least RUN, at most
// 64.
static inline tiling tiling_of(const norm_shape *shape, int run, int most_blocks) {
  const int eights = shape->channels / EIGHT, across = min_of(eights, MOST_ACROSS);
  const int down = THREADS / across, tiles = divide_up(eights, across);
  if (!run) {
    const int strips = divide_up(most_blocks, tiles);
    run = min_of(64, divide_up(shape->pixels, down * strips));
    if (run < RUN) run = RUN;
  }
  return {dim3(divide_up(shape->pixels, down * run), tiles), dim3(across, down), run};
}

// This thread's first channel, and its first pixel of `run`; the others follow `down` apart.
static inline __device__ int first_channel() {
  return EIGHT * (blockIdx.y * blockDim.x + threadIdx.x);
}
static inline __device__ int first_pixel(int run) {
  return blockIdx.x * blockDim.y * run + threadIdx.y;
}

} // namespace GPU

#endif
