// cpu-bf16/multiplier.h - what multiplies blocks: AMX, or plain C in its place.
#ifndef MULTIPLIER_H
#define MULTIPLIER_H

#include "blocks.h"

// `count` blocks of A, one behind the other, and as many of B.
typedef struct {
  const bf16 *a, *b;
  int count;
} block_run;

// Work for the rest of a core while its tiles multiply: 32 rows of something, done a few at a time and in
// order. do_some does those from `first` to `end` - 1.
typedef struct side_work {
  void (*do_some)(struct side_work *work, int first, int end);
  int next; // the first row not done yet; 32: all are done
} side_work;

static inline void do_rows(side_work *work, int count) {
  const int first = work->next;
  if (first == SIDE) return;
  work->next = MIN(SIDE, first + count);
  work->do_some(work, first, work->next);
}

// A sum of products of blocks, c (+)= sum of a b over all pairs of blocks of all runs.
//     c    [32 rows][32 columns] floats
//     a    [32 rows][32 terms]     b    [32 terms][32 columns] in pair_rows' order
// From one pair of a run to the next, a moves on by a block, b by b_step elements. Of the rows of a and
// c, `rows` matter; the others may be computed or not. Of the terms, those behind the first `terms` are
// zeros in a and b.
typedef struct {
  bool add; // to what c holds
  const block_run *runs;
  int run_count;
  ptrdiff_t b_step;
  bool reverse; // the last pair of the last run first
  int rows, terms;
  // Or NULL. All of it is done before the new sums are stored in c, so it may read what c held (without add).
  side_work *aside;
} block_sum;

typedef struct {
  const char *name;
  // Each thread's, before its first product and behind its last.
  void (*open)(void), (*close)(void);
  void (*product)(float *c, const block_sum *sum);
} multiplier;

extern const multiplier plain_multiplier; // plain.c
extern const multiplier amx_multiplier;   // amx.c, where the processor is of Intel's architecture

// Whether this process may use AMX. False, with the reason in e: the processor has none, or the
// kernel does not let programs have it.
bool amx_permitted(error *e); // amx.c

#endif
