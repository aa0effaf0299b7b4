// solutions/4_norm.cu - a solution of exercise 4. resnet18.cu cuts the pixels into strips as well,
// and gives a thread eight channels.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { ACROSS = 32, DOWN = 8 };

static __global__ void norm(int pixels, int channels, float *dgamma, float *dbeta, const bf16 *dy,
                            const bf16 *y, const bf16 *z, const float *mean,
                            const float *inverse_std) {
  __shared__ float of_g[DOWN][ACROSS], of_g_xhat[DOWN][ACROSS];
  const int c = blockIdx.x * ACROSS + threadIdx.x;
  float sum_g = 0, sum_g_xhat = 0, of_mean = 0, scale = 0;
  if (c < channels) of_mean = mean[c], scale = inverse_std[c]; // once, not at each pixel
  for (int pixel = threadIdx.y; c < channels && pixel < pixels; pixel += DOWN) {
    const size_t i = (size_t)pixel * channels + c;
    const float upstream = to_float(dy[i]), g = to_float(y[i]) > 0 ? upstream : 0;
    sum_g += g;
    sum_g_xhat += g * ((to_float(z[i]) - of_mean) * scale);
  }
  of_g[threadIdx.y][threadIdx.x] = sum_g;
  of_g_xhat[threadIdx.y][threadIdx.x] = sum_g_xhat;
  __syncthreads();
  if (threadIdx.y > 0 || c >= channels) return;
  for (int row = 1; row < DOWN; row++) {
    sum_g += of_g[row][threadIdx.x];
    sum_g_xhat += of_g_xhat[row][threadIdx.x];
  }
  dbeta[c] = sum_g;
  dgamma[c] = sum_g_xhat;
}

void run_4(const task *t) {
  launch("norm", norm, {divide_up(t->columns, ACROSS), dim3(ACROSS, DOWN), 0}, t->rows, t->columns,
         t->out[0], t->out[1], t->in[0], t->in[1], t->in[2], t->in[3], t->in[4]);
}

} // namespace solution
} // namespace GPU
