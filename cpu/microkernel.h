// microkernel.h - the two innermost loops of the CPU's convolutions, in GCC's portable vectors.
//
// A vector holds LANES floats. A tile is ROWS x 2 vectors of running sums that stay in registers: a
// step loads 2 vectors and ROWS single floats (which the multiply-add spreads over its lanes) and
// does 2 ROWS multiply-adds. So there is more to multiply than to load, and the multiply-adds set
// the pace. ROWS is what the register file holds: 16 sums and 3 operands of 32 registers, 8 and 3
// of 16. Every loop over a tile is unrolled completely, or its sums would live in memory.
//
// The width has to be the machine's own: 64-byte vectors without AVX-512 run 30 times slower.
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
enum { LANES = VECTOR_BYTES / sizeof(float) };

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
// The same inside an array of floats: at any float's address.
typedef float unaligned_vector
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(float)), may_alias));

static inline vector load(const float *p) {
  return *(const unaligned_vector *)p;
}
static inline void store(float *p, vector v) {
  *(unaligned_vector *)p = v;
}

// `vectors` below is 1 or 2 and must be a constant where the function is used.
#define ALWAYS_INLINE static inline __attribute__((always_inline))

// sum[i][.] += over n < length: row[i][n] * w[n][.], with w: [length][vectors * LANES].
ALWAYS_INLINE void multiply_rows(vector sum[ROWS][2], const float *const row[ROWS], const float *w,
                                 int length, int vectors) {
  for (int n = 0; n < length; n++, w += vectors * LANES) {
    const vector w0 = load(w), w1 = vectors > 1 ? load(w + LANES) : w0;
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      sum[i][0] += row[i][n] * w0;
      if (vectors > 1) sum[i][1] += row[i][n] * w1;
    }
  }
}

// 1 vector: sum[i] += over n < length: x[n * x_step + i] * g[n], for 2 ROWS values of i.
// 2 vectors: sum[2 i + v] += x[n * x_step + i] * g[n][v], for ROWS. g: [length][vectors * LANES].
ALWAYS_INLINE void multiply_columns(vector sum[2 * ROWS], const float *x, ptrdiff_t x_step,
                                    const float *g, int length, int vectors) {
  for (int n = 0; n < length; n++, x += x_step, g += vectors * LANES) {
    const vector g0 = load(g), g1 = vectors > 1 ? load(g + LANES) : g0;
#pragma GCC unroll 16
    for (int i = 0; i < 2 * ROWS; i++)
      sum[i] += vectors > 1 ? x[i / 2] * (i % 2 ? g1 : g0) : x[i] * g0;
  }
}

#endif
