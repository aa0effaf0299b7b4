// winograd.h - Winograd's method F(4x4, 3x3): a 3x3 convolution with a quarter of the products.
//
// In one dimension, 4 outputs y of a filter g of 3 taps over a window d of 6 inputs take 12 products.
// Read g and y as polynomials of degree 2 and 3: their product has degree 5, so its values at 6
// points determine it, and at a point a product of polynomials is a product of two numbers. Filtering
// is the transpose of that multiplication (Toom and Cook's), with the same three matrices:
//
//     y = A^T [(G g) . (B^T d)]       dg = G^T [(A dy) . (B^T d)]       dd = B [(A dy) . (G g)]
//
// 6 products for 12, in two dimensions 36 for 144, and summed over channels 36 matrix products. With
// the points 0, 1, -1, 2, -2 and infinity, row t of A and G is 1, t, t^2 (, t^3), of infinity the
// highest power alone; row t of B^T has the coefficients of the product of (z - u) over the other
// points u, which is 0 at all of these, and G is divided by its value at t. Small whole numbers, so
// little is lost: devices_test.c derives how much. Memory and the transforms' additions, some 16 a
// pixel and channel, take most of the rest of the gain: 2 to 2.8 of the 4 arrive.
//
// Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for
// convolutional neural networks", 2016. Here are the transforms of LANES channels at a time, unrolled
// completely, which is why they are in a header; what is transformed, and when, is in conv.c.
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "microkernel.h"

enum { TILE = 4, WINDOW = 6, POINTS = WINDOW * WINDOW };

// Rows: the points 0, 1, 2 and infinity. The rows of -1 and -2 are those of 1 and 2 with the odd
// columns negated, so the even and the odd part of a row serve two points.
typedef const float matrix[4][6];
static matrix B = {{4, 0, -5, 0, 1, 0}, // B^T [point][pixel of a window]
                   {0, -4, -4, 1, 1, 0},
                   {0, -2, -1, 2, 1, 0},
                   {0, 4, 0, -5, 0, 1}};
static matrix A = {{1, 0, 0, 0}, // [point][pixel of a tile]
                   {1, 1, 1, 1},
                   {1, 2, 4, 8},
                   {0, 0, 0, 1}};
static matrix G = {{1 / 4.f, 0, 0}, // [point][filter tap]
                   {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                   {1 / 24.f, 1 / 12.f, 1 / 6.f},
                   {0, 0, 1}};

// The sum of m[i * m_step] v[i * v_step] over i = first, first + by .. < n. All but v are constants,
// so that of the unrolled loop only the terms remain that are not zero.
ALWAYS_INLINE vector combine(const float *m, int m_step, const vector *v, int v_step, int first,
                             int by, int n) {
  vector sum = {0};
  bool started = false;
#pragma GCC unroll 6
  for (int i = first; i < n; i += by)
    if (m[i * m_step] != 0) {
      const vector term = m[i * m_step] * v[i * v_step];
      sum = started ? sum + term : term;
      started = true;
    }
  return sum;
}

// to[6] = m from[n]
ALWAYS_INLINE void multiply(vector *to, matrix m, int n, const vector *from, int step) {
  to[0] = combine(m[0], 1, from, step, 0, 1, n);
#pragma GCC unroll 2
  for (int r = 1; r <= 2; r++) {
    const vector even = combine(m[r], 1, from, step, 0, 2, n);
    const vector odd = combine(m[r], 1, from, step, 1, 2, n);
    to[2 * r - 1] = even + odd;
    to[2 * r] = even - odd;
  }
  to[5] = combine(m[3], 1, from, step, 0, 1, n);
}

// to[n] = m^T v[6]
ALWAYS_INLINE void multiply_transposed(vector *to, matrix m, int n, const vector *v) {
  const vector even[4] = {v[0], v[1] + v[2], v[3] + v[4], v[5]};
  const vector odd[4] = {v[0], v[1] - v[2], v[3] - v[4], v[5]};
#pragma GCC unroll 6
  for (int j = 0; j < n; j++) to[j] = combine(&m[0][j], 6, j % 2 ? odd : even, 1, 0, 1, 4);
}

// m V m^T of V[n][n]: 36 points, `step` floats apart.
ALWAYS_INLINE void to_points(float *to, size_t step, matrix m, int n, const vector *V) {
  vector half[WINDOW][WINDOW], row[WINDOW]; // half: [n][6], transposed
#pragma GCC unroll 6
  for (int j = 0; j < n; j++) multiply(half[j], m, n, V + j, n);
#pragma GCC unroll 6
  for (int i = 0; i < WINDOW; i++) {
    multiply(row, m, n, &half[0][i], WINDOW);
#pragma GCC unroll 6
    for (int j = 0; j < WINDOW; j++) store(to + (i * WINDOW + j) * step, row[j]);
  }
}

// V[n][n] = m^T P m of 36 points P, `step` floats apart.
ALWAYS_INLINE void from_points(vector *V, matrix m, int n, const float *from, size_t step) {
  vector half[WINDOW][WINDOW], column[WINDOW]; // half: [n][6], transposed
#pragma GCC unroll 6
  for (int j = 0; j < WINDOW; j++) {
#pragma GCC unroll 6
    for (int i = 0; i < WINDOW; i++) column[i] = load(from + (i * WINDOW + j) * step);
    multiply_transposed(column, m, n, column);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) half[i][j] = column[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; i++) multiply_transposed(V + i * n, m, n, half[i]);
}

#endif
