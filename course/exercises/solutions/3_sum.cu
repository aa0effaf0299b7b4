// solutions/3_sum.cu - a solution of exercise 3. gpu/sums.h has the second part as sum_over_warp.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { BLOCK = 256 };

static __global__ void sum(int columns, float *sums, const float *x) {
  __shared__ float of_warp[BLOCK / LANES];
  const float *row = x + (size_t)blockIdx.x * columns;
  float own = 0;
  for (int i = threadIdx.x; i < columns; i += BLOCK) own += row[i];
  for (int bits = LANES / 2; bits; bits /= 2) own += __shfl_xor_sync(0xffffffff, own, bits);
  if (threadIdx.x % LANES == 0) of_warp[threadIdx.x / LANES] = own;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int warp = 1; warp < BLOCK / LANES; warp++) own += of_warp[warp];
  sums[blockIdx.x] = own;
}

void run_3(const task *t) {
  launch("sum", sum, {t->rows, BLOCK, 0}, t->columns, t->out[0], t->in[0]);
}

} // namespace solution
} // namespace GPU
