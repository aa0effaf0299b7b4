// 6_convolution.cu - rung 6 of the ladder: the same product, with the addresses of a convolution.
//
// z[m][n] of a 3x3 convolution adds up 9 taps, each a product over the input channels: row m is an
// output pixel, and tap (r, s) of the filter lies on one of x. So x is read as a matrix [rows][taps
// x channels] that is never built (gpu/patches.h draws it); w lies like that anyway. A tile's 32
// terms are of one tap: only the address of a copy changes, and zeroes come where the tap is
// outside. What it wastes: divisions for each piece. gpu/gather.h finds each pixel once and
// then adds; where it has to divide, it multiplies by reciprocals (gpu/divide.h).
#include "course/ladder/ladder.h"

namespace GPU {

enum { TILE = 64, BLOCK = 128, PIECES = DEPTH / EIGHT, PART = 32 };

static __device__ bf16 *piece_at(bf16 *tile, int line, int piece) {
  return tile + line * DEPTH + (piece ^ (line / 2 % PIECES)) * EIGHT;
}

// As in rung 5.
static __device__ void load(bf16 *to, const bf16 *from, int first, int rows, int depth, int k0) {
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, row = first + line;
    copy_async(piece_at(to, line, piece),
               from + (size_t)min_of(row, rows - 1) * depth + k0 + piece * EIGHT, row < rows);
  }
}

// The same for 64 rows of patches: what the filter covers at 64 output pixels.
static __device__ void load_patches(bf16 *to, const bf16 *x, const conv_shape &s, int k0) {
  const int tap = k0 / s.in_channels, c0 = k0 % s.in_channels, padding = s.kernel / 2;
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, m = blockIdx.x * TILE + line;
    const int q = m % s.out_width, p = m / s.out_width % s.out_height;
    const int b = m / s.out_width / s.out_height, h = s.stride * p + tap / s.kernel - padding;
    const int v = s.stride * q + tap % s.kernel - padding;
    const bool there = b < s.batch && h >= 0 && h < s.in_height && v >= 0 && v < s.in_width;
    const size_t pixel = there ? ((size_t)b * s.in_height + h) * s.in_width + v : 0;
    copy_async(piece_at(to, line, piece), x + pixel * s.in_channels + c0 + piece * EIGHT, there);
  }
}

// As in rung 4.
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

static __global__ void convolution(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
  __shared__ uint4 shared[STAGES * 2 * TILE * PIECES];
  const int rows = rows_of(s), columns = s.out_channels;
  const int depth = s.kernel * s.kernel * s.in_channels;
  const int steps = depth / DEPTH;
  float sum[2][4][4] = {};
  for (int step = 1 - STAGES; step < steps; step++) {
    if (step >= 0) {
      wait_for_copies<STAGES - 2>();
      __syncthreads();
    }
    const int next = step + STAGES - 1;
    bf16 *filled = (bf16 *)shared + next % STAGES * 2 * TILE * DEPTH;
    if (next < steps) {
      load_patches(filled, x, s, next * DEPTH);
      load(filled + TILE * DEPTH, w, blockIdx.y * TILE, columns, depth, next * DEPTH);
    }
    commit_copies(); // an empty group counts as well, so that the wait always means the same
    if (step < 0) continue;
    bf16 *a = (bf16 *)shared + step % STAGES * 2 * TILE * DEPTH;
    for (int k = 0; k < DEPTH; k += 16) multiply(sum, a, a + TILE * DEPTH, k);
  }
  store(sum, z, rows, columns);
}

void run_convolution(const conv_shape *s, void *z, const void *x, const void *w) {
  const dim3 grid(divide_up(rows_of(*s), TILE), divide_up(s->out_channels, TILE));
  launch("ladder_convolution", convolution, {grid, BLOCK, 0}, *s, (bf16 *)z, (const bf16 *)x,
         (const bf16 *)w);
}

} // namespace GPU
