// microkernel.h - the two innermost loops of the CPU's convolutions, in GCC's
// portable vectors.
//
// A vector holds LANES floats. A tile is ROWS x 2 vectors of running sums which
// stay in registers: per step it loads 2 vectors and ROWS single floats and
// does 2 ROWS multiply-adds, so the multiply-adds, not the loads, set the pace.
// ROWS is what the register file holds: 16 sums and 3 operands of 32 registers,
// 8 sums and 3 operands of 16. Every loop over a tile must be unrolled
// completely, or the sums live in memory instead.
//
// The width has to be the machine's own: 64-byte vectors without AVX-512 are 30
// times slower.
#ifndef MICROKERNEL_H
#define MICROKERNEL_H

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
enum { LANES = VECTOR_BYTES / sizeof(float), BLOCK = 2 * LANES };

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
// The same where it lies in an array: at any float's address.
typedef float vector_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

static inline vector load(const float *p) {
  return *(const vector_in_memory *)p;
}
static inline void store(float *p, vector v) { *(vector_in_memory *)p = v; }

#define ALWAYS_INLINE static inline __attribute__((always_inline))

// sum[i][.] += over n < length: row[i][n] * w[n][.], w: [length][vectors *
// LANES].
ALWAYS_INLINE void multiply_rows(vector sum[ROWS][2],
                                 const float *const row[ROWS], const float *w,
                                 int length, int vectors) {
  for (int n = 0; n < length; n++, w += vectors * LANES) {
    const vector w0 = load(w), w1 = vectors > 1 ? load(w + LANES) : w0;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      sum[i][0] += row[i][n] * w0;
      if (vectors > 1)
        sum[i][1] += row[i][n] * w1;
    }
  }
}

// sum[i][.] += over n < length: x[n * x_step + i] * g[n][.], g:
// [length][vectors * LANES].
ALWAYS_INLINE void multiply_columns(vector *sum, int rows, const float *x,
                                    ptrdiff_t x_step, const float *g,
                                    int length, int vectors) {
  for (int n = 0; n < length; n++, x += x_step, g += vectors * LANES) {
    const vector g0 = load(g), g1 = vectors > 1 ? load(g + LANES) : g0;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      sum[i * vectors] += x[i] * g0;
      if (vectors > 1)
        sum[i * vectors + 1] += x[i] * g1;
    }
  }
}

#endif
