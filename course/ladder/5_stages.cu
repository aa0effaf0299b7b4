// 5_stages.cu - rung 5 of the ladder: while one tile is multiplied, the next two are on their way.
//
// cp.async begins to copy 16 bytes into shared memory and does not wait for them, nor does it need
// a register. Shared memory has room for three tiles of x and w each, three *stages*:
//
//     step            0          1          2          3
//     multiplied      stage 0    stage 1    stage 2    stage 0 ..
//     filled for      step 2     step 3     step 4     step 5
//     which is        stage 2    stage 0    stage 1    stage 2
//
// The copies of a step are a *group*. When a step begins, two groups may be under way, its own and
// the next; wait_for_copies<1> waits until only the newer one is. The barrier behind it says two
// things: everyone's copies have come, and everyone is done with the stage multiplied in the step
// before, so that it can be filled again. One barrier a step is enough; rung 4 had two.
//
// What it wastes: with tiles of this size, nothing that one more rung could save. conv.cu has larger ones, 128
// x 128, which halve the sectors once more, and stores whole pieces in place of pairs.
#include "course/ladder/ladder.h"

namespace GPU {

enum { TILE = 64, BLOCK = 128, PIECES = DEPTH / EIGHT, PART = 32 };

static __device__ bf16 *piece_at(bf16 *tile, int line, int piece) {
  return tile + line * DEPTH + (piece ^ (line / 2 % PIECES)) * EIGHT;
}

// Begins to copy 64 rows of a matrix, terms k0 .. k0 + 31; zeroes beyond its last row.
static __device__ void load(bf16 *to, const bf16 *from, int first, int rows, int depth, int k0) {
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, row = first + line;
    copy_async(piece_at(to, line, piece),
               from + (size_t)min_of(row, rows - 1) * depth + k0 + piece * EIGHT, row < rows);
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

static __global__ void stages(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
  __shared__ uint4 shared[STAGES * 2 * TILE * PIECES];
  const int rows = rows_of(s), columns = s.out_channels, depth = s.in_channels;
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
      load(filled, x, blockIdx.x * TILE, rows, depth, next * DEPTH);
      load(filled + TILE * DEPTH, w, blockIdx.y * TILE, columns, depth, next * DEPTH);
    }
    commit_copies(); // an empty group counts as well, so that the wait always means the same
    if (step < 0) continue;
    bf16 *a = (bf16 *)shared + step % STAGES * 2 * TILE * DEPTH;
    for (int k = 0; k < DEPTH; k += 16) multiply(sum, a, a + TILE * DEPTH, k);
  }
  store(sum, z, rows, columns);
}

void run_stages(const conv_shape *s, void *z, const void *x, const void *w) {
  const dim3 grid(divide_up(rows_of(*s), TILE), divide_up(s->out_channels, TILE));
  launch("ladder_stages", stages, {grid, BLOCK, 0}, *s, (bf16 *)z, (const bf16 *)x,
         (const bf16 *)w);
}

} // namespace GPU
