// cpu/winograd.c - Winograd's method F(4x4, 3x3): a 3x3 convolution with a quarter of the products.
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
// convolutional neural networks", 2016.
#include "winograd.h"
#include "microkernel.h"

enum { AHEAD = 2, MAX_CHANNELS = 8192 };

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
ALWAYS_INLINE void multiply(vector *to, int to_step, matrix m, int n, const vector *from,
                            int step) {
  to[0] = combine(m[0], 1, from, step, 0, 1, n);
#pragma GCC unroll 2
  for (int r = 1; r <= 2; r++) {
    const vector even = combine(m[r], 1, from, step, 0, 2, n);
    const vector odd = combine(m[r], 1, from, step, 1, 2, n);
    to[(2 * r - 1) * to_step] = even + odd;
    to[2 * r * to_step] = even - odd;
  }
  to[5 * to_step] = combine(m[3], 1, from, step, 0, 1, n);
}

// to[n] = m^T from[6]
ALWAYS_INLINE void multiply_transposed(vector *to, matrix m, int n, const vector *v, int step) {
  const vector even[4] = {v[0], v[step] + v[2 * step], v[3 * step] + v[4 * step], v[5 * step]};
  const vector odd[4] = {v[0], v[step] - v[2 * step], v[3 * step] - v[4 * step], v[5 * step]};
#pragma GCC unroll 6
  for (int j = 0; j < n; j++) to[j] = combine(&m[0][j], 6, j % 2 ? odd : even, 1, 0, 1, 4);
}

// m V m^T of V[n][n]: 36 points, `step` floats apart.
ALWAYS_INLINE void to_points(float *to, size_t step, matrix m, int n, const vector *V) {
  vector half[WINDOW * WINDOW], row[WINDOW];
#pragma GCC unroll 6
  for (int j = 0; j < n; j++) multiply(half + j, n, m, n, V + j, n);
#pragma GCC unroll 6
  for (int i = 0; i < WINDOW; i++) {
    multiply(row, 1, m, n, half + i * n, 1);
#pragma GCC unroll 6
    for (int j = 0; j < WINDOW; j++) store(to + (i * WINDOW + j) * step, row[j]);
  }
}

// V[n][n] = m^T P m of 36 points P.
ALWAYS_INLINE void from_points(vector *V, matrix m, int n, const float *from, size_t step) {
  vector half[WINDOW * WINDOW], row[WINDOW]; // half: [WINDOW][n]
#pragma GCC unroll 6
  for (int i = 0; i < WINDOW; i++) {
#pragma GCC unroll 6
    for (int j = 0; j < WINDOW; j++) row[j] = load(from + (i * WINDOW + j) * step);
    multiply_transposed(half + i * n, m, n, row, 1);
  }
#pragma GCC unroll 6
  for (int j = 0; j < n; j++) {
    multiply_transposed(row, m, n, half + j, n);
#pragma GCC unroll 6
    for (int i = 0; i < n; i++) V[i * n + j] = row[i];
  }
}

bool winograd_takes(const conv_shape *s) {
  return s->kernel == 3 && s->stride == 1 && s->in_channels % LANES == 0 &&
         s->out_channels % LANES == 0 && MAX(s->in_channels, s->out_channels) <= MAX_CHANNELS;
}

// Where the n x n pixels of each tile (n = 4) or window (6) lie; outside the image, `outside`.
ALWAYS_INLINE void find_pixels(const float *pixel[][POINTS], int n, const side *s,
                               const float *images, int first, int count, const float *outside) {
  const int across = DIVIDE_UP(s->width, TILE), down = DIVIDE_UP(s->height, TILE);
  for (int tile = first; tile < first + count; tile++, pixel++) {
    const int top = tile / across % down * TILE - (n - TILE) / 2;
    const int left = tile % across * TILE - (n - TILE) / 2;
    for (int i = 0; i < n; i++) {
      const bool inside = top + i >= 0 && top + i < s->height;
      const ptrdiff_t row = (ptrdiff_t)(tile / across / down) * s->height + top + i;
      for (int j = 0; j < n; j++)
        (*pixel)[i * n + j] = inside && left + j >= 0 && left + j < s->width
                                  ? images + (row * s->width + left + j) * s->channels
                                  : outside;
    }
  }
}

ALWAYS_INLINE void read_tiles(const side *s, matrix m, int n, float *to, const float *images,
                              int first, int count) {
  static const float zeros[MAX_CHANNELS];
  const float *pixel[GROUP][POINTS];
  find_pixels(pixel, n, s, images, first, count, zeros);
  for (int tile = 0; tile < count; tile++, to += s->row)
    for (int c = 0; c < s->columns; c += LANES) {
      vector window[POINTS];
#pragma GCC unroll 36
      for (int i = 0; i < n * n; i++) window[i] = load(pixel[tile][i] + c);
      // The processor does not guess this order. What is left and above was read before.
      for (int i = n - TILE; i < n; i++)
        for (int j = n - TILE; j < n; j++)
          __builtin_prefetch(pixel[MIN(tile + AHEAD, count - 1)][i * n + j] + c);
      to_points(to + c, s->step, m, n, window);
    }
}

ALWAYS_INLINE void write_tiles(const side *s, matrix m, int n, float *images, const float *from,
                               int first, int count) {
  const float *pixel[GROUP][POINTS];
  find_pixels(pixel, n, s, images, first, count, NULL);
  for (int tile = 0; tile < count; tile++, from += s->row)
    for (int c = 0; c < s->columns; c += LANES) {
      vector window[POINTS];
      from_points(window, m, n, from + c, s->step);
#pragma GCC unroll 36
      for (int i = 0; i < n * n; i++)
        if (pixel[tile][i]) {
          float *to = (float *)pixel[tile][i] + c;
          store(to, s->add ? load(to) + window[i] : window[i]);
        }
    }
}

void winograd_read(const side *s, float *to, float *images, int first, int count) {
  if (s->size == WINDOW)
    read_tiles(s, B, WINDOW, to, images, first, count);
  else
    read_tiles(s, A, TILE, to, images, first, count);
}

void winograd_write(const side *s, float *from, float *images, int first, int count) {
  if (s->size == WINDOW)
    write_tiles(s, B, WINDOW, images, from, first, count);
  else
    write_tiles(s, A, TILE, images, from, first, count);
}

void winograd_read_filters(float *to, size_t step, const float *w, size_t tap, size_t lane) {
  vector g[9];
  for (int i = 0; i < 9; i++) g[i] = load_strided(w + i * tap, lane, LANES);
  to_points(to, step, G, 3, g);
}

void winograd_write_filters(float *dw, size_t tap, const float *from, size_t step) {
  vector g[9];
  from_points(g, G, 3, from, step);
  for (int i = 0; i < 9; i++) store(dw + i * tap, g[i]);
}
