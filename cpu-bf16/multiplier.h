// cpu-bf16/multiplier.h - what multiplies blocks: AMX, or plain C in its place.
#ifndef MULTIPLIER_H
#define MULTIPLIER_H

#include "blocks.h"

// `count` blocks of A, one behind the other, and as many of B.
typedef struct {
  const bf16 *a, *b;
  int count;
} block_run;

typedef struct {
  const char *name;
  // Each thread's, before its first product and behind its last.
  void (*open)(void), (*close)(void);
  // c = (add ? c : 0) + the sum of a b over all pairs of blocks of all runs.
  //     c    [32][32] floats as four tiles [2][2][16][16]: c_at() below
  //     a    [32 rows][32 terms]     b    [32 terms][32 columns] in pair_rows' order
  // From one pair of a run to the next, a moves on by a block, b by b_step elements. Of the
  // rows of a and c, `rows` matter; the others may be computed or not. Of the terms, those behind
  // the first `terms` are zeros in a and b.
  void (*product)(float *c, bool add, const block_run *runs, int run_count, size_t b_step, int rows,
                  int terms);
} multiplier;

// Where element (row, column) is in c; 16 columns are neighbours.
static inline int c_at(int row, int column) {
  return row / 16 * 512 + column / 16 * 256 + row % 16 * 16 + column % 16;
}

extern const multiplier plain_multiplier; // plain.c
extern const multiplier amx_multiplier;   // amx.c, where the processor is of Intel's architecture

// Whether this process may use AMX. False, with the reason in e: the processor has none, or the
// kernel does not let programs have it.
bool amx_permitted(error *e); // amx.c

#endif
