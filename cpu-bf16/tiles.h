// cpu-bf16/tiles.h - the tensor cores of a CPU: what can be done with a tile, by AMX and in plain C.
//
// AMX ("advanced matrix extensions", Intel's server processors since 2023) gives each core eight
// registers of 1 KB, *tiles*: 16 rows of 64 bytes. A row is 16 floats, or 16 pairs of bf16. There is
// little that one can do with them:
//
//     load, store     16 rows from or to memory, each as far behind the one before, however far
//     zero
//     multiply        C += A B, TDPBF16PS: 16 x 16 sums of 32 products each, 8,192 multiply-adds
//
//                              column n of B, a pair each
//                              k  0 | b0 b1 | ..
//                   A             1 | b2 b3 |
//     row m  a0 a1 | a2 a3 | ..   ..               C[m][n] += a0 b0 + a1 b1 + a2 b2 + a3 b3 + ..
//
// The pairs make rows of A what they are in memory: 32 neighbouring channels. In B two neighbouring
// terms of a sum share a word, so B has to be put into that order first (pair_rows in blocks.h).
//
// Exactly what? The manual says (Intel 64 and IA-32 Architectures Software Developer's Manual,
// volume 2, TDPBF16PS, "Operation"): the first numbers of all pairs are added up separately and
// the second separately, k by k, each time by one fused multiply-add; then
//
//     C[m][n] = C[m][n] + (sum of the first + sum of the second)
//
// Every operation rounds to the nearest float, ties to even. Operands too small for an exponent
// (*denormals*, below 2^-126) count as zero, and results as small become zero, whatever the program
// has set; no exception is raised. The plain tiles below do the same, operation by operation, so
// both give the same bits, with two exceptions that no training notices: which of the many NaNs a
// NaN is; and a result less than 2^-150 below 2^-126, before it is rounded, which C rounds up to
// 2^-126 and the processor may make zero.
//
// This file is included twice: by amx.c, with TILES_AMX, and by plain.c. product.h is the loop over
// tiles, the same for both, as tile numbers have to be constants in the program's text.
//
// Checked by `make check` (tests/tiles_test.c): the AMX instructions against the plain tiles; where
// the processor has none, each is carried out by the test, from the bytes that the compiler made.
#ifndef TILES_H
#define TILES_H

#include "blocks.h"
#include <math.h>

enum { TILE_ROWS = 16, ROW_BYTES = 64 };

#ifdef TILES_AMX

#include <immintrin.h>

#define WITH_TILES __attribute__((target("amx-tile,amx-bf16")))
#define tile_zero(t) _tile_zero(t)
// step: bytes from one row in memory to the next
#define tile_load(t, from, step) _tile_loadd(t, from, step)
#define tile_store(t, to, step) _tile_stored(t, to, step)
#define tile_multiply(c, a, b, rows, pairs)                                                        \
  do {                                                                                             \
    (void)(rows), (void)(pairs);                                                                   \
    _tile_dpbf16ps(c, a, b);                                                                       \
  } while (0)

#else

#define WITH_TILES
static _Thread_local uint32_t tiles[8][TILE_ROWS][WORDS];

static inline void tile_zero(int t) {
  memset(tiles[t], 0, sizeof tiles[t]);
}

static inline void tile_load(int t, const void *from, int step) {
  for (int m = 0; m < TILE_ROWS; m++) memcpy(tiles[t][m], (const char *)from + m * step, ROW_BYTES);
}

static inline void tile_store(int t, void *to, int step) {
  for (int m = 0; m < TILE_ROWS; m++) memcpy((char *)to + m * step, tiles[t][m], ROW_BYTES);
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// A denormal becomes zero, of the same sign.
static inline float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return float_of(bits & 0x7f800000 ? bits : bits & 0x80000000);
}

// rows: how many rows of A and C matter; pairs: behind so many, A and B hold zeros. AMX takes 16 of
// both in any case; here the others would cost time, and change nothing.
static inline void tile_multiply(int c, int a, int b, int rows, int pairs) {
  float first[TILE_ROWS][WORDS], second[TILE_ROWS][WORDS]; // of the pairs of B
  if (rows == 0) return;
  for (int k = 0; k < pairs; k++)
#pragma omp simd
    for (int n = 0; n < WORDS; n++) {
      first[k][n] = flushed(float_of(tiles[b][k][n] << 16));
      second[k][n] = flushed(float_of(tiles[b][k][n] & 0xffff0000));
    }
  for (int m = 0; m < rows; m++) {
    float sum[WORDS] = {0}, other_sum[WORDS] = {0}, result[WORDS];
    memcpy(result, tiles[c][m], sizeof result);
    for (int k = 0; k < pairs; k++) {
      const float a0 = flushed(float_of(tiles[a][m][k] << 16));
      const float a1 = flushed(float_of(tiles[a][m][k] & 0xffff0000));
#pragma omp simd
      for (int n = 0; n < WORDS; n++) {
        sum[n] = flushed(fmaf(a0, first[k][n], sum[n]));
        other_sum[n] = flushed(fmaf(a1, second[k][n], other_sum[n]));
      }
    }
#pragma omp simd
    for (int n = 0; n < WORDS; n++)
      result[n] = flushed(flushed(result[n]) + flushed(sum[n] + other_sum[n]));
    memcpy(tiles[c][m], result, sizeof result);
  }
}

#endif
#endif
