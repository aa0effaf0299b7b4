// cpu-bf16/product.h - the loop that nearly all of a step's time is spent in: a sum of products of
// blocks, over the tiles of tiles.h. Included where they are defined, by amx.c and plain.c.
//
// Eight tiles: four hold the 32 x 32 sums, two a block of A, two one of B. So four loads serve four
// multiplications, each of which takes the unit 16 cycles, and loads (8 cycles each from the first
// cache) hide behind them. With fewer sums a multiplication would need two loads.
//
//                                     B    tile 6 | tile 7
//                            A   tile 4    tile 0 | tile 1     c: four tiles of [16][16] floats,
//                                tile 5    tile 2 | tile 3        in this order
#ifndef PRODUCT_H
#define PRODUCT_H

#include "multiplier.h"
#include "tiles.h"

// See multiplier.h. The empty asm statements tell the compiler that memory is read and written
// between them: GCC's tile intrinsics do not say so.
WITH_TILES static void block_product(float *c, bool add, const block_run *runs, int run_count,
                                     size_t b_step, int rows, int terms) {
  const int top = rows < TILE_ROWS ? rows : TILE_ROWS, bottom = rows - top;
  const int pairs = (terms + 1) / 2;
  __asm__ volatile("" ::: "memory");
  if (add) {
    tile_load(0, c);
    tile_load(1, c + TILE_FLOATS);
    tile_load(2, c + 2 * TILE_FLOATS);
    tile_load(3, c + 3 * TILE_FLOATS);
  } else {
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
  }
  for (const block_run *run = runs; run < runs + run_count; run++) {
    const bf16 *a = run->a, *b = run->b;
    for (int i = 0; i < run->count; i++, a += BLOCK, b += b_step) {
      tile_load(6, b);
      tile_load(4, a);
      tile_multiply(0, 4, 6, top, pairs);
      tile_load(7, b + HALF);
      tile_multiply(1, 4, 7, top, pairs);
      tile_load(5, a + HALF);
      tile_multiply(2, 5, 6, bottom, pairs);
      tile_multiply(3, 5, 7, bottom, pairs);
    }
  }
  tile_store(0, c);
  tile_store(1, c + TILE_FLOATS);
  tile_store(2, c + 2 * TILE_FLOATS);
  tile_store(3, c + 3 * TILE_FLOATS);
  __asm__ volatile("" ::: "memory");
}

#endif
