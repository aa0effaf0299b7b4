// tests/winograd_bound.h - how far rounding may take an element that Winograd's method computed.
//
// An element is a sum over the points of its tile and over N products at each point,
//
//     y_ij = sum over t, u of A_ti A_uj  sum over n of (G_t g_n G_u^T) (B_t d_n B_u^T)
//
// and the gradients are the same with the three matrices in other roles (cpu/winograd.h). The terms
// of this sum are larger than the result, which they mostly cancel to, and so are its rounding
// errors: each is at most 2^-24 of the partial sum it rounds. The inputs have independent signs, so
// a partial sum is about as large as the root of the sum of its terms' squares, and all of them
// together about as large as the root of
//
//     Q_ij = sum over t, u of A_ti^2 A_uj^2  sum over n of (G_t^2 g_n^2 G_u^2T) (B_t^2 d_n^2 B_u^2T)
//
// with every matrix and every input squared element by element. There are N roundings at a point,
// and some 16 more in the transforms, four of four terms. If they are independent, their sum has a
// variance of at most (N + 16) 2^-48 Q, and exceeds 8 standard deviations with probability 3 10^-14
// (devices_test.c):
//
//     |cpu - reference| <= 8 sqrt(N + 16) 2^-24 sqrt(Q)
//
// Q belongs to the element: a measure for the whole output would not do. In a weight gradient with
// two tiles (N = 2), an element's errors are as large as its two tiles' values are by chance, and
// among 100,000 elements some have several times the usual.
#ifndef WINOGRAD_BOUND_H
#define WINOGRAD_BOUND_H

#include "../cpu/winograd.h"
#include "inputs.h"

typedef enum { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT } pass;

// One of the three arrays: x, y (or dy) or the weights, cut into tiles. A filter is a tile, too.
typedef struct {
  const float (*matrix)[POINTS_2];
  int rows;                  // of the matrix: points beyond the last are like the last
  int size, stride, padding; // of a tile, in pixels
  int tiles, down, across;   // of the whole array, of an image
  int height, width, channels;
  double *at_point; // [tiles][channels]: the squares at one point
} tiled;

// Where pixel (i, j) of a tile begins in the array, or -1 beyond the border.
static inline ptrdiff_t pixel_of(const tiled *a, int tile, int i, int j) {
  const int image = tile / (a->down * a->across);
  const int row = tile / a->across % a->down * a->stride - a->padding + i;
  const int column = tile % a->across * a->stride - a->padding + j;
  if (row < 0 || row >= a->height || column < 0 || column >= a->width) return -1;
  return (((ptrdiff_t)image * a->height + row) * a->width + column) * a->channels;
}

// The factor with which pixel (i, j) goes into point (t, u), squared.
static inline double factor_of(const tiled *a, int t, int u, int i, int j) {
  const float *down = a->matrix[MIN(t, a->rows - 1)], *across = a->matrix[MIN(u, a->rows - 1)];
  return (double)down[i] * down[i] * across[j] * across[j];
}

// at_point from the values of the array, squared; or Q from at_point, the same way back.
static inline void squares_at_point(tiled *a, int t, int u, const float *values, double *Q) {
  const size_t count = (size_t)a->tiles * a->channels;
  for (size_t k = 0; values && k < count; k++) a->at_point[k] = 0;
  for (int tile = 0; tile < a->tiles; tile++)
    for (int i = 0; i < a->size; i++)
      for (int j = 0; j < a->size; j++) {
        const double factor = factor_of(a, t, u, i, j);
        const ptrdiff_t pixel = pixel_of(a, tile, i, j);
        double *at = &a->at_point[(size_t)tile * a->channels];
        if (factor == 0 || pixel < 0) continue;
        for (int c = 0; c < a->channels; c++)
          if (values)
            at[c] += factor * values[pixel + c] * values[pixel + c];
          else
            Q[pixel + c] += factor * at[c];
      }
}

// Of X[tiles][C], W[K][C], Y[tiles][K] the one that pass p computes, from the two others.
static inline void multiply_at_point(pass p, tiled *x, tiled *w, tiled *y) {
  const int K = y->channels, C = x->channels;
  tiled *result = p == FORWARD ? y : p == BACKWARD_INPUT ? x : w;
  memset(result->at_point, 0, (size_t)result->tiles * result->channels * sizeof(double));
  for (int tile = 0; tile < x->tiles; tile++)
    for (int k = 0; k < K; k++) {
      double *X = &x->at_point[(size_t)tile * C], *W = &w->at_point[(size_t)k * C];
      double *Y = &y->at_point[(size_t)tile * K + k];
      for (int c = 0; c < C; c++)
        if (p == FORWARD)
          *Y += X[c] * W[c];
        else if (p == BACKWARD_INPUT)
          X[c] += *Y * W[c];
        else
          W[c] += *Y * X[c];
    }
}

// root[] = sqrt(Q) of each of the `count` elements that pass p of the convolution computes.
static inline void winograd_root(const conv_shape *s, pass p, const float *x, const float *w,
                                 const float *dy, float *root, size_t count) {
  const bool one = s->stride == 1;
  const int down = DIVIDE_UP(s->out_height, TILE), across = DIVIDE_UP(s->out_width, TILE);
  const int points = one ? POINTS_1 : POINTS_2, tiles = s->batch * down * across;
  tiled X = {.matrix = one ? B_1 : B_2, .rows = points, .size = points, .stride = TILE * s->stride};
  tiled Y = {.matrix = one ? A_1 : A_2, .rows = points, .size = TILE, .stride = TILE};
  tiled W = {.matrix = one ? G_1 : G_2, .rows = FILTER_POINTS, .size = 3};
  X.padding = 1, X.height = s->in_height, X.width = s->in_width, X.channels = s->in_channels;
  Y.height = s->out_height, Y.width = s->out_width, Y.channels = s->out_channels;
  W.height = W.width = 3, W.channels = s->in_channels, W.tiles = s->out_channels;
  X.tiles = Y.tiles = tiles, X.down = Y.down = down, X.across = Y.across = across;
  W.down = W.across = 1;
  tiled *all[] = {&X, &W, &Y}, *result = p == FORWARD ? &Y : p == BACKWARD_INPUT ? &X : &W;
  const float *values[] = {x, w, dy};
  double *Q = take(count * sizeof *Q);
  for (int i = 0; i < 3; i++)
    all[i]->at_point = take((size_t)all[i]->tiles * all[i]->channels * sizeof(double));
  for (int t = 0; t < points; t++)
    for (int u = 0; u < points; u++) {
      for (int i = 0; i < 3; i++)
        if (all[i] != result) squares_at_point(all[i], t, u, values[i], NULL);
      multiply_at_point(p, &X, &W, &Y);
      squares_at_point(result, t, u, NULL, Q);
    }
  for (size_t i = 0; i < count; i++) root[i] = (float)sqrt(Q[i]);
}

// The products that Winograd's method adds up at a point: N.
static inline int winograd_products(const conv_shape *s, pass p) {
  if (p == FORWARD) return s->in_channels;
  if (p == BACKWARD_INPUT) return s->out_channels;
  return s->batch * DIVIDE_UP(s->out_height, TILE) * DIVIDE_UP(s->out_width, TILE);
}

#endif
