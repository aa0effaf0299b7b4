// 10_stride.cu - exercise 10: the input gradient of a convolution with stride 2. About 15 lines.
// Belongs to reference/conv.c and gpu/patches.h; do the exercise first.
//
// Forward, a 3x3 filter with stride 2 and a padding of 1 is
//
//     z[b][p][q][k] = sum over r, s, c of x[b][2 p - 1 + r][2 q - 1 + s][c] w[k][r][s][c]
//
// where x outside the image is 0. The gradient of x collects, from every z that an element of x went
// into, that z's gradient times the weight it was multiplied by:
//
//     dx[b][h][v][c] = sum over r, s, k of dz[b][p][q][k] w[k][r][s][c]
//                      with p and q such that h = 2 p - 1 + r and v = 2 q - 1 + s, where there are any
//
//     dx   bf16 [batch][in_height][in_width][C]       dz   bf16 [batch][out_height][out_width][K]
//     w    bf16 [K][3][3][C]
//
// Which r meet an even h, which an odd one, and at which p? Make a table for h = 0 .. 3 first. An
// image of odd size ends differently from one of even size.
//
// Who calls it: the backward pass, for the first convolution of stages 2 to 4.
//
// The check looks at: every element, for images of 8 x 8 with C = 16 and K = 32, 5 x 7 with 8 and 16,
// 6 x 9 with 3 and 5, 1 x 1 with 8 and 8, batches of 2; reads beyond dz. A thread makes one element of
// dx, with a float for the sum. Useful: to_float(bf16), to_bf16(float).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

static __global__ void stride(conv_shape s, bf16 *dx, const bf16 *dz, const bf16 *w) {
  const int C = s.in_channels, K = s.out_channels;
  const int i = (int)thread_number(), c = i % C, v = i / C % s.in_width;
  const int h = i / C / s.in_width % s.in_height, b = i / C / s.in_width / s.in_height;
  if (b >= s.batch) return;
  float sum = 0;
  if (h < s.out_height && v < s.out_width) // fill in: this is the middle tap of a stride of 1
    for (int k = 0; k < K; k++)
      sum += to_float(dz[((b * s.out_height + h) * s.out_width + v) * K + k]) *
             to_float(w[((k * 3 + 1) * 3 + 1) * C + c]);
  dx[i] = to_bf16(sum);
}

void run_10(const task *t) {
  const conv_shape &s = t->conv;
  const size_t count = (size_t)s.batch * s.in_height * s.in_width * s.in_channels;
  launch("stride", stride, {blocks_for(count), THREADS, 0}, s, t->out[0], t->in[0], t->in[1]);
}

} // namespace exercise
} // namespace GPU
