// solutions/6_tile.cu - a solution of exercise 6. course/ladder/2_tile.cu does it for a convolution.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { TILE = 16 };

static __global__ void tile(int rows, int columns, int depth, float *c, const float *a,
                            const float *b) {
  __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
  const int y = threadIdx.y, x = threadIdx.x;
  const int row = blockIdx.x * TILE + y, column = blockIdx.y * TILE + x;
  float sum = 0;
  for (int k0 = 0; k0 < depth; k0 += TILE) {
    a_tile[y][x] = row < rows && k0 + x < depth ? a[row * depth + k0 + x] : 0;
    b_tile[y][x] = column < columns && k0 + y < depth ? b[(k0 + y) * columns + column] : 0;
    __syncthreads(); // both tiles are there
    for (int k = 0; k < TILE; k++) sum += a_tile[y][k] * b_tile[k][x];
    __syncthreads(); // all are done with them
  }
  if (row < rows && column < columns) c[row * columns + column] = sum;
}

void run_6(const task *t) {
  const dim3 grid(divide_up(t->rows, TILE), divide_up(t->columns, TILE));
  launch("tile", tile, {grid, dim3(TILE, TILE), 0}, t->rows, t->columns, t->depth, t->out[0],
         t->in[0], t->in[1]);
}

} // namespace solution
} // namespace GPU
