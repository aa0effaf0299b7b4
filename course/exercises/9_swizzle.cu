// 9_swizzle.cu - exercise 9: a swizzle key without bank conflicts. 1 line. Belongs to
// course/3-ladder.md, before rung 4.
//
//     y[column][row] = x[row][column]
//
//     x   bf16 [rows][columns]       y   bf16 [columns][rows]
//
// A block brings 64 x 64 numbers of x into shared memory as 64 lines of 8 *pieces*, each piece 8
// numbers or 16 bytes. It reads them there with ldmatrix, whose lanes name 8 x 8 matrices: the same
// piece of 8 lines that follow each other, first line a multiple of 8.
//
// Shared memory has 32 banks, each 4 bytes wide; the byte at address i lies in bank i / 4 % 32. A
// bank serves one address at a time, so 8 pieces come in one turn (a *wavefront*) if they lie in 32
// different banks, and in 8 turns if they lie in the same 4. A line has 128 bytes, so it spans all
// banks once, and piece p of every line would begin in bank 4 p.
//
// So piece p of a line stands not at position p there but at p ^ key(line), where ^ is C's exclusive
// or. Writer and reader both ask piece_at. Choose key(line), from 0 to 7, so that
//  * the 8 pieces of one line, written together, lie in different banks;
//  * the same piece of 8 lines that follow each other, read together, does as well.
// Which of the two is true for every key, and why?
//
// Who calls it: nobody. Tiles of convolutions lie in shared memory like this (gpu/tile.h).
//
// The check looks at: every number, for x of 128 x 64, 72 x 40 and 8 x 8; and that shared memory
// takes no more turns than it must.
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { TILE = 64, PIECES = TILE / EIGHT, BLOCK = 128 };

static __device__ int key(int line) {
  return 0; // fill in
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

} // namespace exercise
} // namespace GPU
