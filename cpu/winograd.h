// cpu/winograd.h - Winograd's method: a 3x3 convolution with a quarter of the products, or, with stride
// 2, with 9/16 of them.
//
// F(4x4, 3x3). In one dimension, 4 outputs y of a filter g of 3 taps over a window d of 6 inputs
// take 12 products. Read g and y as polynomials of degree 2 and 3: their product has degree 5, so
// its values at 6 points determine it, and at a point a product of polynomials is a product of two
// numbers. Multiplying so (Toom and Cook's method) takes three matrices. A filter is the transpose
// of a multiplication: it takes the same three in other roles, and so do its gradients (the dot
// multiplies element by element; dy is the gradient of y, and so on):
//
//     y = A^T [(G g) . (B^T d)]       dg = G^T [(A dy) . (B^T d)]       dd = B [(A dy) . (G g)]
//
// 6 products for 12, in two dimensions 36 for 144, and summed over channels 36 matrix products.
// With the points 0, 1, -1, 2, -2 and infinity, row t of A and G is 1, t, t^2 (, t^3), of infinity
// the highest power alone; row t of B^T has the coefficients of the product of (z - u) over the
// other points u, which is 0 at every one of them, and G is divided by its value at t. Small whole
// numbers, so little is lost: tests/winograd_bound.h derives how much. Memory and the transforms'
// additions (some 15 a pixel and channel) take much of the gain: at width 64, outputs are computed
// 1.8 to 3 times as fast as directly, with stride 2 1.3 to 1.5 times (bench/RESULTS.md).
//
// Stride 2. Of a window's 9 pixels, taps 0 and 2 meet 0, 2, 4, 6 and 8, tap 1 meets 1, 3, 5 and 7.
// The former is a filter of 2 taps over 5 pixels with stride 1: the points 0, 1, -1, 2 and infinity
// will do. The latter are 4 plain products, which stay as they are; call them points, too. That is
// 9 products for 12, in two dimensions 81 for 144. At the last four points filters have the same
// value, tap 1, so G needs a row for one of them only.
//
// Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for
// convolutional neural networks", 2016. Here are the transforms of LANES channels at a time,
// unrolled completely, which is why they are in a header. conv.c says what is transformed, when.
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "microkernel.h"

// Along one dimension: outputs; points with stride 1 and 2, as many as a window's pixels; points at
// which filters differ.
enum { TILE = 4, POINTS_1 = 6, POINTS_2 = 9, FILTER_POINTS = 6 };

// A row for each point: a column for each pixel of a window (B^T) or tile (A), or each tap (G).
typedef const float matrix[][POINTS_2];

// The points 0, 1, -1, 2, -2, infinity.
static matrix B_1 = {{4, 0, -5, 0, 1},  {0, -4, -4, 1, 1}, {0, 4, -4, -1, 1},
                     {0, -2, -1, 2, 1}, {0, 2, -1, -2, 1}, {0, 4, 0, -5, 0, 1}};
static matrix A_1 = {{1}, {1, 1, 1, 1}, {1, -1, 1, -1}, {1, 2, 4, 8}, {1, -2, 4, -8}, {0, 0, 0, 1}};
static matrix G_1 = {{1 / 4.f},
                     {-1 / 6.f, -1 / 6.f, -1 / 6.f},
                     {-1 / 6.f, 1 / 6.f, -1 / 6.f},
                     {1 / 24.f, 1 / 12.f, 1 / 6.f},
                     {1 / 24.f, -1 / 12.f, 1 / 6.f},
                     {0, 0, 1}};

// The points 0, 1, -1, 2, infinity, and the four products of tap 1.
static matrix B_2 = {{2, 0, -1, 0, -2, 0, 1},
                     {0, 0, -2, 0, -1, 0, 1},
                     {0, 0, 2, 0, -3, 0, 1},
                     {0, 0, -1, 0, 0, 0, 1},
                     {0, 0, 2, 0, -1, 0, -2, 0, 1},
                     {0, 1},
                     {0, 0, 0, 1},
                     {0, 0, 0, 0, 0, 1},
                     {0, 0, 0, 0, 0, 0, 0, 1}};
static matrix A_2 = {{1}, {1, 1, 1, 1}, {1, -1, 1, -1}, {1, 2, 4, 8}, {0, 0, 0, 1},
                     {1}, {0, 1},       {0, 0, 1},      {0, 0, 0, 1}};
static matrix G_2 = {
    {1 / 2.f}, {-1 / 2.f, 0, -1 / 2.f}, {-1 / 6.f, 0, 1 / 6.f}, {1 / 6.f, 0, 1 / 3.f}, {0, 0, 1},
    {0, 1}};

// Whether row r + 1 is row r with the odd columns negated, as the rows of a point and its negative
// are: then the even and the odd part of a row serve both. Everything about a matrix is a constant
// where it is used, so the compiler decides every `if` here and in what follows.
ALWAYS_INLINE bool is_pair(matrix m, int points, int r) {
  bool pair = r >= 0 && r + 1 < points;
#pragma GCC unroll 9
  for (int j = 0; j < POINTS_2; j++) pair = pair && m[r + 1][j] == (j % 2 ? -m[r][j] : m[r][j]);
  return pair;
}

// sum + factor v; *started is false while the sum is empty. Factors are constants, so that of the
// unrolled loops only the terms remain that are not zero.
ALWAYS_INLINE vector add_term(vector sum, bool *started, float factor, vector v) {
  if (factor == 0) return sum;
  sum = *started ? sum + factor * v : factor * v;
  *started = true;
  return sum;
}

// The sum of row[j] v[j * step] over j = first, first + by .. < n.
ALWAYS_INLINE vector combine(const float *row, const vector *v, int step, int first, int by,
                             int n) {
  vector sum = {0};
  bool started = false;
#pragma GCC unroll 9
  for (int j = first; j < n; j += by) sum = add_term(sum, &started, row[j], v[j * step]);
  return sum;
}

// to[points] = m from[n]
ALWAYS_INLINE void multiply(vector *to, matrix m, int points, int n, const vector *from, int step) {
#pragma GCC unroll 9
  for (int r = 0; r < points; r++)
    if (is_pair(m, points, r))
      to[r] = combine(m[r], from, step, 0, 2, n) + combine(m[r], from, step, 1, 2, n);
    else if (is_pair(m, points, r - 1))
      to[r] = combine(m[r - 1], from, step, 0, 2, n) - combine(m[r - 1], from, step, 1, 2, n);
    else
      to[r] = combine(m[r], from, step, 0, 1, n);
}

// to[n] = m^T v[points]
ALWAYS_INLINE void multiply_transposed(vector *to, int step, matrix m, int points, int n,
                                       const vector *v) {
#pragma GCC unroll 9
  for (int j = 0; j < n; j++) {
    vector sum = {0};
    bool started = false;
#pragma GCC unroll 9
    for (int r = 0; r < points; r++)
      if (is_pair(m, points, r))
        sum = add_term(sum, &started, m[r][j], j % 2 ? v[r] - v[r + 1] : v[r] + v[r + 1]);
      else if (!is_pair(m, points, r - 1))
        sum = add_term(sum, &started, m[r][j], v[r]);
    to[j * step] = sum;
  }
}

// m V m^T of V[n][n]: [points][points], `step` floats apart.
ALWAYS_INLINE void to_points(float *to, size_t step, matrix m, int points, int n, const vector *V) {
  vector half[POINTS_2][POINTS_2], row[POINTS_2]; // half = (m V)^T: [n][points]
#pragma GCC unroll 9
  for (int j = 0; j < n; j++) multiply(half[j], m, points, n, V + j, n);
#pragma GCC unroll 9
  for (int i = 0; i < points; i++) {
    multiply(row, m, points, n, &half[0][i], POINTS_2);
#pragma GCC unroll 9
    for (int j = 0; j < points; j++) store(to + (i * points + j) * step, row[j]);
  }
}

// V[n][n] = m^T P m of P[points][points], `step` floats apart.
ALWAYS_INLINE void from_points(vector *V, matrix m, int points, int n, const float *from,
                               size_t step) {
  vector half[POINTS_2][POINTS_2], column[POINTS_2]; // half = m^T P: [n][points]
#pragma GCC unroll 9
  for (int j = 0; j < points; j++) {
#pragma GCC unroll 9
    for (int i = 0; i < points; i++) column[i] = load(from + (i * points + j) * step);
    multiply_transposed(&half[0][j], POINTS_2, m, points, n, column);
  }
#pragma GCC unroll 9
  for (int i = 0; i < n; i++) multiply_transposed(V + i * n, 1, m, points, n, half[i]);
}

#endif
