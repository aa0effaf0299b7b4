// 4_swizzle.cu - rung 4 of the ladder: ldmatrix, and pieces that lie where they do not collide.
//
// ldmatrix loads four 8 x 8 matrices at once and leaves each lane the pairs that mma wants. Each of
// its 32 lanes names a row of 8 numbers, a piece of 16 bytes, and shared memory delivers the 8
// pieces of a matrix in one turn if they lie in different banks. They are the same piece of 8
// lines. A line has 4 pieces, half of the banks; in their natural order the pieces of lines 0, 2, 4
// and 6 would collide. So piece p of a line stands at position p ^ (line / 2 % 4) there, its
// *swizzle*:
//
//     banks     0-3  4-7 8-11 12-15         16-19 20-23 24-27 28-31
//     line 0     0    1    2    3    line 1    0     1     2     3     piece 2, say, of all
//     line 2     1    0    3    2    line 3    1     0     3     2     8 lines: no two are in
//     line 4     2    3    0    1    line 5    2     3     0     1     the same banks
//     line 6     3    2    1    0    line 7    3     2     1     0
//
// A warp also loads each matrix once now: rung 3 loaded those of b for both i, those of a for all
// j.
//
// What it wastes: time. A thread asks for its pieces, waits for them 290 clocks and longer,
// and only then does any thread of the block multiply.
#include "course/ladder/ladder.h"

namespace GPU {

enum { TILE = 64, BLOCK = 128, PIECES = DEPTH / EIGHT, PART = 32 };

static __device__ bf16 *piece_at(bf16 *tile, int line, int piece) {
  return tile + line * DEPTH + (piece ^ (line / 2 % PIECES)) * EIGHT;
}

// 64 rows of a matrix from row `first` on, terms k0 .. k0 + 31; zeroes beyond its last row.
static __device__ void load(bf16 *to, const bf16 *from, int first, int rows, int depth, int k0) {
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, row = first + line;
    const uint4 zeroes = {0, 0, 0, 0};
    *(uint4 *)piece_at(to, line, piece) =
        row < rows ? *(const uint4 *)(from + (size_t)row * depth + k0 + piece * EIGHT) : zeroes;
  }
}

// sum += the product of the tiles' terms k .. k + 15, for this warp's part. Lane l names row l % 8
// of matrix l / 8. Those of a: upper and lower rows, then both again 8 terms further on; of b: 8
// columns, the same 8 terms further on, then both for the next 8 columns.
static __device__ void multiply(float sum[2][4][4], bf16 *a, bf16 *b, int k) {
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, piece = k / EIGHT;
  const int row = warp / 2 * PART + lane % 16, column = warp % 2 * PART + lane / 16 * 8 + lane % 8;
  uint32_t a_pairs[2][4], b_pairs[2][4];
  for (int i = 0; i < 2; i++)
    load_matrices(a_pairs[i], piece_at(a, row + i * 16, piece + lane / 16));
  for (int j = 0; j < 2; j++)
    load_matrices(b_pairs[j], piece_at(b, column + j * 16, piece + lane / 8 % 2));
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) mma_16x8x16(sum[i][j], a_pairs[i], b_pairs[j / 2] + j % 2 * 2);
}

// A lane has pairs of results, too: of row lane / 4 and of the eighth row below.
static __device__ void store(const float sum[2][4][4], bf16 *z, int rows, int columns) {
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int half = 0; half < 2; half++) {
        const int m = blockIdx.x * TILE + warp / 2 * PART + i * 16 + half * 8 + lane / 4;
        const int n = blockIdx.y * TILE + warp % 2 * PART + j * 8 + lane % 4 * 2;
        if (m < rows && n < columns)
          *(uint32_t *)(z + (size_t)m * columns + n) =
              to_pair(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
      }
}

static __global__ void swizzle(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
  __shared__ uint4 shared[2 * TILE * PIECES];
  bf16 *a = (bf16 *)shared, *b = a + TILE * DEPTH;
  const int rows = rows_of(s), columns = s.out_channels, depth = s.in_channels;
  float sum[2][4][4] = {};
  for (int k0 = 0; k0 < depth; k0 += DEPTH) {
    load(a, x, blockIdx.x * TILE, rows, depth, k0);
    load(b, w, blockIdx.y * TILE, columns, depth, k0);
    __syncthreads();
    for (int k = 0; k < DEPTH; k += 16) multiply(sum, a, b, k);
    __syncthreads();
  }
  store(sum, z, rows, columns);
}

void run_swizzle(const conv_shape *s, void *z, const void *x, const void *w) {
  const dim3 grid(divide_up(rows_of(*s), TILE), divide_up(s->out_channels, TILE));
  launch("ladder_swizzle", swizzle, {grid, BLOCK, 0}, *s, (bf16 *)z, (const bf16 *)x,
         (const bf16 *)w);
}

} // namespace GPU
