// cpu-bf16/product.h - the loop that nearly all of a step's time is spent in: a sum of products of
// blocks, over the tiles of tiles.h. Included where they are defined, by amx.c and plain.c.
//
// Eight tiles: four hold the 32 x 32 sums, two a block of A, two one of B. So four loads serve four
// multiplications, each of which takes the unit 16 cycles, and loads (8 cycles each from the first
// cache) hide behind them. With one tile of sums, each multiplication would need two loads.
//
//                                     B    tile 6 | tile 7
//                            A   tile 4    tile 0 | tile 1     c: [32][32] floats
//                                tile 5    tile 2 | tile 3
#ifndef PRODUCT_H
#define PRODUCT_H

#include "multiplier.h"
#include "tiles.h"

enum { C_BYTES = SIDE * sizeof(float) };

// Rows of the work aside that go with each pair, so that they are done by the last.
static inline int rows_a_pair(const block_sum *sum) {
  int pairs = 0;
  for (int k = 0; k < sum->run_count; k++) pairs += sum->runs[k].count;
  return pairs ? DIVIDE_UP(SIDE, pairs) : 0;
}

// See multiplier.h. The empty asm statements tell the compiler that memory is read and written between
// them, which it does not learn from GCC's tile intrinsics. do_rows calls code that uses no tiles, so the
// sums stay in theirs.
WITH_TILES static void block_product(float *c, const block_sum *sum) {
  const int top = MIN(sum->rows, TILE_ROWS), bottom = sum->rows - top;
  const int pairs = (sum->terms + 1) / 2, aside = sum->aside ? rows_a_pair(sum) : 0;
  float *lower = c + TILE_ROWS * SIDE;
  __asm__ volatile("" ::: "memory");
  if (sum->add) {
    tile_load(0, c, C_BYTES);
    tile_load(1, c + WORDS, C_BYTES);
    tile_load(2, lower, C_BYTES);
    tile_load(3, lower + WORDS, C_BYTES);
  } else {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
  }
  for (int k = 0; k < sum->run_count; k++) {
    const block_run *run = sum->runs + (sum->reverse ? sum->run_count - 1 - k : k);
    for (int i = 0; i < run->count; i++) {
      const ptrdiff_t at = sum->reverse ? run->count - 1 - i : i;
      const bf16 *a = run->a + at * BLOCK, *b = run->b + at * sum->b_step;
      tile_load(6, b, ROW_BYTES);
      tile_load(4, a, ROW_BYTES);
      tile_multiply(0, 4, 6, top, pairs);
      tile_load(7, b + HALF, ROW_BYTES);
      tile_multiply(1, 4, 7, top, pairs);
      tile_load(5, a + HALF, ROW_BYTES);
      tile_multiply(2, 5, 6, bottom, pairs);
      tile_multiply(3, 5, 7, bottom, pairs);
      if (sum->aside) do_rows(sum->aside, aside);
    }
  }
  if (sum->aside) do_rows(sum->aside, SIDE);
  __asm__ volatile("" ::: "memory");
  tile_store(0, c, C_BYTES);
  tile_store(1, c + WORDS, C_BYTES);
  tile_store(2, lower, C_BYTES);
  tile_store(3, lower + WORDS, C_BYTES);
  __asm__ volatile("" ::: "memory");
}

#endif
