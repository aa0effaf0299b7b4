// 2_tile.cu - rung 2 of the ladder: a block computes a square of 16 x 16 results, and loads what
// they need once for all of them.
//
// The rows of x that 16 results in a column need are the same for all 16 columns. So the block's
// 256 threads load 16 x 16 numbers of x and of w into shared memory, one of each a thread, wait for
// each other, and take them from there 16 times. Then the next 16 terms of the sum.
//
//           k ->                  a: 16 rows of x, b: 16 rows of w, terms k0 .. k0 + 15;
//     a   +-----+    b  +-----+   thread (row, column) adds up a[row][k] b[column][k]
//     row |     |    col|     |
//         +-----+       +-----+
//
// Why TILE + 1: shared memory has 32 banks of 4 bytes, and a bank serves one word at a time. In a
// warp column goes from 0 to 15. With lines of 16 words b[column][k] would be at bank 16 column + k
// mod 32, two banks for all; with 17, 16 different ones.
//
// What it wastes: each multiplication still takes two loads from shared memory and an instruction
// of its own. A GPU's tensor cores multiply 16 x 16 by 16 x 8 numbers with one.
#include "course/ladder/ladder.h"

namespace GPU {

enum { TILE = 16 };

static __global__ void tile(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
  __shared__ float a[TILE][TILE + 1], b[TILE][TILE + 1];
  const int rows = rows_of(s), columns = s.out_channels, depth = s.in_channels;
  const int row = threadIdx.x / TILE, column = threadIdx.x % TILE;
  const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE; // the tile's corner
  float sum = 0;
  for (int k0 = 0; k0 < depth; k0 += TILE) {
    const int m = m0 + row, n = n0 + row, k = k0 + column; // of the numbers this thread loads
    a[row][column] = m < rows ? to_float(x[m * depth + k]) : 0;
    b[row][column] = n < columns ? to_float(w[n * depth + k]) : 0;
    __syncthreads(); // all of both are there
    for (int i = 0; i < TILE; i++) sum += a[row][i] * b[column][i];
    __syncthreads(); // all are done with them
  }
  if (m0 + row < rows && n0 + column < columns)
    z[(m0 + row) * columns + n0 + column] = to_bf16(sum);
}

void run_tile(const conv_shape *s, void *z, const void *x, const void *w) {
  const dim3 grid(divide_up(rows_of(*s), TILE), divide_up(s->out_channels, TILE));
  launch("ladder_tile", tile, {grid, TILE * TILE, 0}, *s, (bf16 *)z, (const bf16 *)x,
         (const bf16 *)w);
}

} // namespace GPU
