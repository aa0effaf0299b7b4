// 4_norm.cu - exercise 4: dgamma and dbeta of batch normalisation. About 20 lines. Belongs to
// course/1-step.md, "The network".
//
//     dbeta[c] = sum over pixels of g          g = dy where y > 0, else 0 (ReLU's gradient)
//     dgamma[c] = sum over pixels of g xhat    xhat = (z - mean[c]) inverse_std[c]
//
//     dy, y, z            bf16  [pixels][channels]
//     mean, inverse_std, dgamma, dbeta   float [channels]
//
// Who calls it: the backward pass, for each of the 17 batch normalisations that ReLU follows. (The
// three of the shortcuts have none: there g = dy.)
//
// A thread a channel, walking down the pixels, would be right, and slow: 64 threads would have all the
// work. Here a block of 32 x 8 threads has 32 channels: threadIdx.x is the channel, counted from 32
// blockIdx.x on, and threadIdx.y takes pixels threadIdx.y, threadIdx.y + 8, .. . The 32 lanes of a
// warp are the 32 threads of one threadIdx.y, so at each pixel they read 64 bytes side by side. At
// the end the eight sums of a channel are added up through shared memory. The last block may have
// channels to spare; threads that return early do not come to a barrier.
//
// The check looks at: both sums, for 256 x 64, 35 x 24, 5 x 40 and 1 x 8 (pixels x channels); the same
// bits when warps and lanes run in reverse; races; at most 56 sectors for each channel of the first.
// (A warp's three loads are 6 sectors for 32 channels and a pixel, so 256 pixels are 48 for each
// channel. mean[c] and inverse_std[c] loaded at every pixel would be 8 more each time, unless the compiler
// sees that they stay the same: load them once.
// Load dy where y is 0 as well: its sector comes for the neighbours anyway, and lanes that skip a load
// are out of step with the others.) And at most 200 accesses to memory by one thread: a thread a channel
// would have 772.
// Useful: to_float(bf16).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { ACROSS = 32, DOWN = 8 };

static __global__ void norm(int pixels, int channels, float *dgamma, float *dbeta, const bf16 *dy,
                            const bf16 *y, const bf16 *z, const float *mean,
                            const float *inverse_std) {
  const int c = blockIdx.x * ACROSS + threadIdx.x;
  if (c < channels && threadIdx.y == 0) dgamma[c] = dbeta[c] = 0; // fill in
}

void run_4(const task *t) {
  launch("norm", norm, {divide_up(t->columns, ACROSS), dim3(ACROSS, DOWN), 0}, t->rows, t->columns,
         t->out[0], t->out[1], t->in[0], t->in[1], t->in[2], t->in[3], t->in[4]);
}

} // namespace exercise
} // namespace GPU
