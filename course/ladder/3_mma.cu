// 3_mma.cu - rung 3 of the ladder: tensor cores multiply.
//
// One instruction of a warp, mma, adds the product of a 16 x 16 and a 16 x 8 matrix of bf16 to a 16
// x 8 matrix of floats: 2,048 multiplications. The matrices lie spread over the registers of the
// warp's 32 lanes (gpu/tile.h has the drawing): a lane holds pairs of neighbours, of a in rows lane
// / 4 and lane / 4 + 8, of b in column lane / 4, both at terms 2 (lane % 4) and 8 further on.
//
// The tile grows with it. A block of 4 warps computes 64 x 64 results, each warp 32 x 32 of them as
// 2 x 4 products, for 32 terms at a time. A thread loads 16 bytes, a *piece*, at once.
//
// What it wastes: a lane takes its pairs one by one from shared memory, 4 bytes each. A line there
// is 32 bf16, which is 16 of the 32 banks. So rows 0, 2, 4 and 6 of what a warp reads at once lie
// in the same banks, and it takes four turns.
#include "course/ladder/ladder.h"

namespace GPU {

enum { TILE = 64, BLOCK = 128, PIECES = DEPTH / EIGHT, PART = 32 };

// 64 rows of a matrix from row `first` on, terms k0 .. k0 + 31; zeroes beyond its last row.
static __device__ void load(bf16 *to, const bf16 *from, int first, int rows, int depth, int k0) {
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, row = first + line;
    const uint4 zeroes = {0, 0, 0, 0};
    *(uint4 *)(to + line * DEPTH + piece * EIGHT) =
        row < rows ? *(const uint4 *)(from + (size_t)row * depth + k0 + piece * EIGHT) : zeroes;
  }
}

static __device__ uint32_t pair_at(const bf16 *tile, int line, int k) {
  return *(const uint32_t *)(tile + line * DEPTH + k);
}

// sum += the product of the tiles' terms k .. k + 15, for this warp's part.
static __device__ void multiply(float sum[2][4][4], const bf16 *a, const bf16 *b, int k) {
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int row = warp / 2 * PART + lane / 4, column = warp % 2 * PART + lane / 4;
  const int term = k + lane % 4 * 2;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      const int m = row + i * 16, n = column + j * 8;
      const uint32_t a_pairs[4] = {pair_at(a, m, term), pair_at(a, m + 8, term),
                                   pair_at(a, m, term + 8), pair_at(a, m + 8, term + 8)};
      const uint32_t b_pairs[2] = {pair_at(b, n, term), pair_at(b, n, term + 8)};
      mma_16x8x16(sum[i][j], a_pairs, b_pairs);
    }
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

static __global__ void mma(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
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

void run_mma(const conv_shape *s, void *z, const void *x, const void *w) {
  const dim3 grid(divide_up(rows_of(*s), TILE), divide_up(s->out_channels, TILE));
  launch("ladder_mma", mma, {grid, BLOCK, 0}, *s, (bf16 *)z, (const bf16 *)x, (const bf16 *)w);
}

} // namespace GPU
