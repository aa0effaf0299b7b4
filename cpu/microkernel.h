// cpu/microkernel.h - matrix products in GCC's portable vectors: where a convolution spends its time.
//
// A vector holds LANES floats. A block is ROWS x 2 vectors of sums that stay in registers: a
// step loads 2 vectors and ROWS single floats (which the multiply-add spreads over its lanes) and
// does 2 ROWS multiply-adds. So there is more to multiply than to load, and the multiply-adds set
// the pace. ROWS is the largest power of two, which divides every group of rows, that fits the
// registers: 16 sums and 3 operands of 32, or 8 and 3 of 16. Every loop over a block is unrolled
// completely, or its sums would live in memory.
//
// The width has to be one the machine has: 64-byte vectors without AVX-512 run 30 times slower.
#ifndef MICROKERNEL_H
#define MICROKERNEL_H

#include <stdbool.h>
#include <stddef.h>

#if defined __AVX512F__
enum { VECTOR_BYTES = 64, ROWS = 8 };
#elif defined __AVX__
enum { VECTOR_BYTES = 32, ROWS = 4 };
#elif defined __aarch64__
enum { VECTOR_BYTES = 16, ROWS = 8 };
#else
enum { VECTOR_BYTES = 16, ROWS = 4 };
#endif
enum { LANES = VECTOR_BYTES / sizeof(float), PANEL = 2 * LANES };

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
// The same inside an array of floats: at any float's address.
typedef float unaligned_vector
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(float)), may_alias));

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIVIDE_UP(a, b) (((a) + (b)-1) / (b))
#define ROUND_UP(a, b) (DIVIDE_UP(a, b) * (b))

ALWAYS_INLINE vector load(const float *p) {
  return *(const unaligned_vector *)p;
}
ALWAYS_INLINE void store(float *p, vector v) {
  *(unaligned_vector *)p = v;
}
// p[0], p[step], p[2 step] ..: `count` of them, then zeros.
ALWAYS_INLINE vector load_strided(const float *p, size_t step, int count) {
  vector v = {0};
  for (int l = 0; l < MIN(LANES, count); l++) v[l] = p[l * step];
  return v;
}

// One block of a product, 1 or 2 vectors wide; `vectors` must be a constant where this is used.
ALWAYS_INLINE void block_product(float *c, size_t c_row, const float *a, size_t a_row,
                                 size_t a_step, const float *b, size_t b_row, int length, bool add,
                                 int vectors) {
  vector sum[ROWS][2] = {{{0}}};
  const float *row[ROWS];
  for (int i = 0; i < ROWS; i++) row[i] = a + i * a_row;
  for (size_t n = 0; n < length * a_step; n += a_step, b += b_row) {
    const vector b0 = load(b), b1 = vectors > 1 ? load(b + LANES) : b0;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      sum[i][0] += row[i][n] * b0;
      if (vectors > 1) sum[i][1] += row[i][n] * b1;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
      float *to = c + i * c_row + v * LANES;
      store(to, add ? load(to) + sum[i][v] : sum[i][v]);
    }
}

// Where b[n][j] lies when b is packed: in panels as wide as a block, [length][PANEL] each. A block
// reads its panel from one end to the other.
static inline size_t packed(int n, int j, int length) {
  return (size_t)(j / PANEL * length + n) * PANEL + j % PANEL;
}

// c[m][j] = (add ? c[m][j] : 0) + sum over n < length of a[m * a_row + n * a_step] * b[n][j]
// for m < rows, rounded up to whole blocks, and j < columns, a multiple of LANES. b_row: floats from
// b[n] to b[n + 1]; b_panel: from one panel of b to the next.
static inline void product(float *c, size_t c_row, const float *a, size_t a_row, size_t a_step,
                           const float *b, size_t b_row, size_t b_panel, int rows, int columns,
                           int length, bool add) {
  for (int j = 0; j < columns; j += PANEL, b += b_panel)
    for (int m = 0; m < rows; m += ROWS) {
      const float *from = a + m * a_row;
      float *to = c + m * c_row + j;
      if (columns - j > LANES)
        block_product(to, c_row, from, a_row, a_step, b, b_row, length, add, 2);
      else
        block_product(to, c_row, from, a_row, a_step, b, b_row, length, add, 1);
    }
}

#endif
