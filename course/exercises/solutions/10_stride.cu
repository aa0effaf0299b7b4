// solutions/10_stride.cu - a solution of exercise 10, as conv.cu's plain kernel does it. Its fast one
// makes four products of it, one for each parity of h and v (gpu/patches.h).
//
//     h = 0    r = 1 meets p = 0                          h = 2    r = 1 meets p = 1
//     h = 1    r = 0 meets p = 1, r = 2 meets p = 0       h = 3    r = 0 meets p = 2, r = 2 meets p = 1
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

static __global__ void stride(conv_shape shape, bf16 *dx, const bf16 *dz, const bf16 *w) {
  const int C = shape.in_channels, K = shape.out_channels;
  const int i = (int)thread_number(), c = i % C, v = i / C % shape.in_width;
  const int h = i / C / shape.in_width % shape.in_height;
  const int b = i / C / shape.in_width / shape.in_height;
  if (b >= shape.batch) return;
  float sum = 0;
  for (int r = 0; r < 3; r++)
    for (int s = 0; s < 3; s++) {
      const int down = h + 1 - r, right = v + 1 - s; // 2 p and 2 q
      if (down < 0 || down % 2 || right < 0 || right % 2) continue;
      const int p = down / 2, q = right / 2;
      if (p >= shape.out_height || q >= shape.out_width) continue;
      const bf16 *pixel = dz + ((b * shape.out_height + p) * shape.out_width + q) * K;
      for (int k = 0; k < K; k++)
        sum += to_float(pixel[k]) * to_float(w[((k * 3 + r) * 3 + s) * C + c]);
    }
  dx[i] = to_bf16(sum);
}

void run_10(const task *t) {
  const conv_shape &s = t->conv;
  const size_t count = (size_t)s.batch * s.in_height * s.in_width * s.in_channels;
  launch("stride", stride, {blocks_for(count), THREADS, 0}, s, t->out[0], t->in[0], t->in[1]);
}

} // namespace solution
} // namespace GPU
