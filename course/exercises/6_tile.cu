// 6_tile.cu - exercise 6: a tile in shared memory. About 15 lines. Belongs to course/3-ladder.md,
// before rung 2.
//
//     c[row][column] = sum over k of a[row][k] b[k][column]
//
//     a   float [rows][depth]       b   float [depth][columns]       c   float [rows][columns]
//
// The kernel below is right: a thread makes one result. But it reads two numbers for each
// multiplication, and the 16 threads of one row of a block all read the same a[row][k], those of one
// column the same b[k][column].
//
// A block is 16 x 16 threads and makes a tile of 16 x 16 results. Let it load what it needs once. For
// k0 = 0, 16, 32, ..: each thread loads one number of a and one of b into two arrays of 16 x 16 in
// shared memory (the *tiles*, `__shared__ float a_tile[16][16], ..`), all wait at a barrier,
// __syncthreads(), each adds 16 products from the tiles to its sum, all wait once more. Why twice?
// Sizes need not be multiples of 16: what lies outside a or b is loaded as 0. A thread whose result
// lies outside c still loads, and still comes to the barriers.
//
// Who calls it: nobody in this form; convolutions are such products, with larger tiles.
//
// The check looks at: every result, for c of 64 x 48 with depth 64, 17 x 33 with 40, 5 x 3 with 7 and
// 1 x 1 with 1; races; at most 1.5 sectors for each result (the kernel below: 8.1).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { TILE = 16 };

static __global__ void tile(int rows, int columns, int depth, float *c, const float *a,
                            const float *b) {
  const int row = blockIdx.x * TILE + threadIdx.y, column = blockIdx.y * TILE + threadIdx.x;
  float sum = 0;
  if (row >= rows || column >= columns) return;
  for (int k = 0; k < depth; k++) sum += a[row * depth + k] * b[k * columns + column];
  c[row * columns + column] = sum;
}

void run_6(const task *t) {
  const dim3 grid(divide_up(t->rows, TILE), divide_up(t->columns, TILE));
  launch("tile", tile, {grid, dim3(TILE, TILE), 0}, t->rows, t->columns, t->depth, t->out[0],
         t->in[0], t->in[1]);
}

} // namespace exercise
} // namespace GPU
