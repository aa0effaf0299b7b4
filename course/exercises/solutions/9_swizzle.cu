// solutions/9_swizzle.cu - a solution of exercise 9; gpu/tile.h's piece_of has the same key.
//
// For any key, p ^ key takes each value from 0 to 7 once while p does: the pieces of one line always
// lie in different banks. For one p and 8 lines that follow each other, line % 8 takes each value
// once, and so does p ^ (line % 8).
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { TILE = 64, PIECES = TILE / EIGHT, BLOCK = 128 };

static __device__ int key(int line) {
  return line % PIECES;
}

static __device__ bf16 *piece_at(bf16 *tile, int line, int piece) {
  return tile + line * TILE + (piece ^ key(line)) * EIGHT;
}

// Four lines a warp, 8 pieces of each: 8 lanes write one line.
static __device__ void load(bf16 *tile, const bf16 *x, int row, int rows, int column, int columns) {
  for (int i = threadIdx.x; i < TILE * PIECES; i += BLOCK) {
    const int line = i / PIECES, piece = i % PIECES, at = column + piece * EIGHT;
    uint4 numbers = {0, 0, 0, 0};
    if (row + line < rows && at < columns)
      numbers = *(const uint4 *)(x + (size_t)(row + line) * columns + at);
    *(uint4 *)piece_at(tile, line, piece) = numbers;
  }
}

// A warp has two of the 8 pieces: 16 columns of x, which become rows of y. ldmatrix, transposed,
// leaves in lane l numbers 2 (l % 4) and the next of a column, number l / 4 of the piece.
static __global__ void swizzle(int rows, int columns, bf16 *y, const bf16 *x) {
  __shared__ uint4 shared[TILE * PIECES];
  bf16 *tile = (bf16 *)shared;
  const int row = blockIdx.x * TILE, column = blockIdx.y * TILE;
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  load(tile, x, row, rows, column, columns);
  __syncthreads();
  for (int i = 0; i < 4; i++) {
    const int piece = 2 * warp + i / 2, line = i % 2 * 32; // four matrices: 32 lines
    uint32_t pairs[4];
    load_matrices_transposed(pairs, piece_at(tile, line + lane, piece));
    for (int j = 0; j < 4; j++) {
      const int m = row + line + 8 * j + 2 * (lane % 4), n = column + piece * EIGHT + lane / 4;
      if (m < rows && n < columns) *(uint32_t *)(y + (size_t)n * rows + m) = pairs[j];
    }
  }
}

void run_9(const task *t) {
  launch("swizzle", swizzle,
         {dim3(divide_up(t->rows, TILE), divide_up(t->columns, TILE)), BLOCK, 0}, t->rows,
         t->columns, t->out[0], t->in[0]);
}

} // namespace solution
} // namespace GPU
