// cpu/conv.c - convolution in three passes as matrix products, as fast as a CPU can do it.
//
// reference/conv.c says what is computed. Here all three passes are products of the same matrices:
//
//     forward  Z = X W       input gradient  dX = dZ W^T       weight gradient  dW = X^T dZ
//
// Directly, there is one of each: a row of Z is an output pixel's channels, the same row of X the
// patch [R][S][Cin] of the image that the pixel sees, zeros outside. By Winograd's method, for 3x3,
// there are 36 products or, with stride 2, 81. Each has a row of Z for a transformed tile of 4x4
// pixels, and a row of X for the window of 6x6 or 9x9 that the tile sees: 1/4 or 9/16 of the
// multiplications (winograd.h). The methods differ only in how pixels become rows, and rows pixels.
// Gradients go the same way back: what a row of dX gets is added to every pixel that the row was
// made of.
//
// Memory. Rows are made a group at a time, multiplied while they are in the cache, and written
// back: the matrices never exist as a whole. Groups of images go to threads. What a task adds up,
// and the order in which tasks' partial sums are added, follow from the shape alone, so the bits do
// not depend on the number of threads.
//
// Checked by `make check` (tests/devices_test.c): against reference/conv.c, on every layer shape.
#include "conv.h"
#include "reference/reference.h"
#include "run/error.h"
#include "winograd.h"

#include <omp.h>
#include <string.h>

enum {
  TASKS = 64,             // parts of a batch, and so the most threads that can help
  WEIGHT_TASKS = 16,      // parts in the weight gradient, where each has sums as large as W
  MAX_PARTIALS = 2500000, // floats in all those together; above it, fewer parts
  TILES = 32,             // rows of a group: more would push the filters' points out of the cache
  PATCHES = 256,          // the same, directly
  PAD = 16, // floats left empty behind a row: powers of two apart, rows would share few cache lines
  AHEAD = 2,           // tiles, whose pixels are fetched into the cache
  MAX_CHANNELS = 8192, // of `outside`, a pixel of zeros that stands for all beyond the border
};
static const float outside[MAX_CHANNELS];

// One of the two activations that a convolution connects, x or z, and the matrices made from it:
// matrix t's row m starts at t * step + m * row.
typedef struct {
  int height, width, channels; // of an image
  int size;                    // a row sees size x size pixels,
  int stride, padding;         // the next one so much further on, the first so far outside
  bool add;                    // rows see overlapping pixels: they are written back by adding
  int columns;                 // floats of a row
  size_t row, step;
} matrix_side;

typedef struct {
  int points;        // values in a dimension after the transform, so points^2 products; 1: directly
  int filter_points; // of these, those at which the filters differ, which come first
  int across, down;  // rows of X and Z from one image: tiles, or output pixels
  int group;         // rows at a time
  matrix_side x, z;
  size_t w_step; // floats of W at one point
  size_t buffer; // floats of X and Z of one group
} conv_plan;

bool cpu_conv_is_winograd(const conv_shape *s) {
  return s->kernel == 3 && s->in_channels % LANES == 0 && s->out_channels % LANES == 0 &&
         MAX(s->in_channels, s->out_channels) <= MAX_CHANNELS;
}

static void lay_out(matrix_side *s, const conv_plan *p) {
  s->columns = s->channels * (p->points > 1 ? 1 : s->size * s->size);
  s->row = ROUND_UP(s->columns, LANES) + PAD;
  s->step = p->group * s->row + PAD;
}

static conv_plan make_plan(const conv_shape *s) {
  conv_plan p = {.points = 1,
                 .filter_points = 1,
                 .group = PATCHES,
                 .across = s->out_width,
                 .down = s->out_height};
  p.x = (matrix_side){.height = s->in_height, .width = s->in_width, .channels = s->in_channels};
  p.z = (matrix_side){.height = s->out_height, .width = s->out_width, .channels = s->out_channels};
  p.x.size = s->kernel, p.x.stride = s->stride, p.x.padding = s->kernel / 2, p.x.add = true;
  p.z.size = p.z.stride = 1;
  if (cpu_conv_is_winograd(s)) {
    p.points = s->stride == 1 ? POINTS_1 : POINTS_2, p.filter_points = FILTER_POINTS;
    p.group = TILES;
    p.across = DIVIDE_UP(s->out_width, TILE), p.down = DIVIDE_UP(s->out_height, TILE);
    p.x.size = p.points, p.x.stride = TILE * s->stride, p.z.size = p.z.stride = TILE;
  }
  lay_out(&p.x, &p), lay_out(&p.z, &p);
  p.w_step = (size_t)ROUND_UP(p.x.columns, PANEL) * ROUND_UP(p.z.columns, PANEL) + PAD;
  p.buffer = p.points * p.points * (p.x.step + p.z.step);
  return p;
}

void *cpu_scratch(size_t bytes) {
  static void *memory;
  static size_t size;
  if (bytes <= size) return memory;
  if (memory) reference_device.release(memory);
  size = bytes;
  return memory = reference_device.allocate(bytes);
}

// The corner of what row i sees, outside the image perhaps.
typedef struct {
  int top, left;
  ptrdiff_t first; // the float of all images that would be there
} corner;

ALWAYS_INLINE corner find_corner(const conv_plan *p, const matrix_side *s, int i) {
  const int top = i / p->across % p->down * s->stride - s->padding;
  const int left = i % p->across * s->stride - s->padding, image = i / p->across / p->down;
  return (corner){top, left,
                  (((ptrdiff_t)image * s->height + top) * s->width + left) * s->channels};
}

// Directly: row i is a pixel of z, or the patch of x that this pixel sees.
static void move_patches(const conv_plan *p, const matrix_side *s, float *rows, float *images,
                         int first, int count, bool write) {
  for (int i = first; i < first + count; i++, rows += s->row) {
    const corner at = find_corner(p, s, i);
    const int begin = MAX(0, -at.left), end = MIN(s->size, s->width - at.left);
    const int length = (end - begin) * s->columns / (s->size * s->size);
    if (!write && s->padding) memset(rows, 0, s->columns * sizeof *rows); // what lies outside
    for (int r = MAX(0, -at.top); r < MIN(s->size, s->height - at.top); r++) {
      float *row = rows + (r * s->size + begin) * s->channels;
      float *pixels = images + (at.first + (r * s->width + begin) * s->channels);
      if (!write)
        memcpy(row, pixels, length * sizeof *row);
      else
        for (int c = 0; c < length; c++) pixels[c] = s->add ? pixels[c] + row[c] : row[c];
    }
  }
}

// Where the n x n pixels of each tile (n = 4) or window (6 or 9) lie; beyond the border, `outside`.
ALWAYS_INLINE void find_pixels(float **pixel, int n, const conv_plan *p, const matrix_side *s,
                               float *images, int first, int count) {
  for (int i = first; i < first + count; i++) {
    const corner at = find_corner(p, s, i);
    for (int h = 0; h < n; h++) {
      const bool inside = at.top + h >= 0 && at.top + h < s->height;
      for (int v = 0; v < n; v++)
        *pixel++ = inside && at.left + v >= 0 && at.left + v < s->width
                       ? images + (at.first + (h * s->width + v) * s->channels)
                       : (float *)outside;
    }
  }
}

ALWAYS_INLINE void move_tiles(const conv_plan *p, const matrix_side *s, matrix m, int points, int n,
                              float *rows, float *images, int first, int count, bool write) {
  float *pixels[TILES * POINTS_2 * POINTS_2], **pixel = pixels;
  find_pixels(pixels, n, p, s, images, first, count);
  for (int tile = 0; tile < count; tile++, rows += s->row, pixel += n * n)
    for (int c = 0; c < s->columns; c += LANES) {
      vector window[POINTS_2 * POINTS_2];
      if (write) {
        from_points(window, m, points, n, rows + c, s->step);
#pragma GCC unroll 81
        for (int i = 0; i < n * n; i++)
          if (pixel[i] != outside)
            store(pixel[i] + c, s->add ? load(pixel[i] + c) + window[i] : window[i]);
      } else {
#pragma GCC unroll 81
        for (int i = 0; i < n * n; i++) window[i] = load(pixel[i] + c);
        // No processor foresees this order. What the window shares with those above and to the
        // left was read for them.
        float *const *next = pixel + MIN(AHEAD, count - 1 - tile) * n * n;
        for (int i = n - s->stride; i < n; i++)
          for (int j = n - s->stride; j < n; j++) __builtin_prefetch(next[i * n + j] + c);
        to_points(rows + c, s->step, m, points, n, window);
      }
    }
}

// Makes `count` rows, from number `first` on, counted through all images, or writes them back: z is
// overwritten, x added to.
static void move_rows(const conv_plan *p, const matrix_side *s, float *rows, float *images,
                      int first, int count, bool write) {
  if (p->points == 1)
    move_patches(p, s, rows, images, first, count, write);
  else if (p->points == POINTS_1 && s->size == POINTS_1)
    move_tiles(p, s, B_1, POINTS_1, POINTS_1, rows, images, first, count, write);
  else if (p->points == POINTS_1)
    move_tiles(p, s, A_1, POINTS_1, TILE, rows, images, first, count, write);
  else if (s->size == POINTS_2)
    move_tiles(p, s, B_2, POINTS_2, POINTS_2, rows, images, first, count, write);
  else
    move_tiles(p, s, A_2, POINTS_2, TILE, rows, images, first, count, write);
}

// Which of the filters' points goes with point t of x and z.
static int filter_point(const conv_plan *p, int t) {
  return MIN(t / p->points, p->filter_points - 1) * p->filter_points +
         MIN(t % p->points, p->filter_points - 1);
}

// W, packed, for X W, or for Z W^T, from w: [Cout][R S][Cin]. A block of filters and channels is
// copied first: in w its rows lie powers of two apart, which share few cache lines.
static void read_filters(const conv_plan *p, float *W, const float *w, bool transposed) {
  const int C = p->x.columns, K = p->z.columns, taps = p->points > 1 ? 9 : 1;
  const int length = transposed ? K : C;
  const size_t n_step = transposed ? taps * PANEL : 1, j_step = transposed ? 1 : taps * PANEL;
#pragma omp parallel for
  for (int k = 0; k < K; k += PANEL)
    for (int c = 0; c < C; c += PANEL) {
      float block[PANEL * 9 * PANEL]; // [filter][tap][channel]
      const int filters = MIN(PANEL, K - k), channels = MIN(PANEL, C - c);
      const int deep = transposed ? filters : channels, wide = transposed ? channels : filters;
      for (int i = 0; i < filters * taps; i++)
        memcpy(block + i * PANEL, w + ((size_t)k * taps + i) * C + c, channels * sizeof *w);
      for (int n = 0; n < deep; n++)
        for (int j = 0; j < wide; j += LANES) {
          vector g[9];
          float *to = W + packed((transposed ? k : c) + n, (transposed ? c : k) + j, length);
          for (int i = 0; i < taps; i++)
            g[i] = load_strided(block + n * n_step + j * j_step + i * PANEL, j_step, wide - j);
          if (p->points == POINTS_1)
            to_points(to, p->w_step, G_1, FILTER_POINTS, 3, g);
          else if (p->points == POINTS_2)
            to_points(to, p->w_step, G_2, FILTER_POINTS, 3, g);
          else
            store(to, g[0]);
        }
    }
}

// Adds the sums of z and of z * z over pixels begin .. end - 1 to sums: [2][channels].
static void sum_pixels(double *sums, const float *z, size_t begin, size_t end, int channels) {
  for (size_t i = begin * channels; i < end * channels; i += channels)
#pragma omp simd
    for (int k = 0; k < channels; k++) {
      sums[k] += z[i + k];
      sums[channels + k] += (double)z[i + k] * z[i + k];
    }
}

// What norm_inference takes beside y.
typedef struct {
  const real *gamma, *beta, *residual, *mean, *variance;
  bool relu;
} norm;

static void normalise(const norm *m, float *y, size_t begin, size_t end, int channels) {
  const norm_shape shape = {.pixels = (int)(end - begin), .channels = channels};
  const real *residual = m->residual ? m->residual + begin * channels : NULL;
  y += begin * channels;
  reference_norm_inference(&shape, y, y, m->gamma, m->beta, residual, m->relu, m->mean,
                           m->variance);
}

// to = from W: the output, with its sums or its norm; or backward the input gradient, added to.
static void gather(const conv_shape *s, float *to, const float *from, const float *w, bool backward,
                   bool accumulate, double *sums, const norm *m) {
  const conv_plan p = make_plan(s);
  const matrix_side *in = backward ? &p.z : &p.x, *out = backward ? &p.x : &p.z;
  const int rows = p.across * p.down;
  const int parts = MIN(MIN(TASKS, s->batch), MAX(1, s->batch * rows / p.group));
  const size_t pixels = out->height * out->width, sums_size = 2 * out->channels;
  const size_t w_size = p.filter_points * p.filter_points * p.w_step,
               threads = omp_get_max_threads();
  double *partial =
      cpu_scratch((2 * parts * sums_size + w_size + threads * p.buffer) * sizeof(float));
  float *W = (float *)(partial + parts * sums_size), *buffers = W + w_size;
  memset(partial, 0, parts * sums_size * sizeof *partial);
  read_filters(&p, W, w, backward);
#pragma omp parallel for schedule(dynamic)
  for (int part = 0; part < parts; part++) {
    float *a = buffers + omp_get_thread_num() * p.buffer, *c = a + p.points * p.points * in->step;
    const size_t begin = part * s->batch / parts, end = (part + 1) * s->batch / parts;
    if (backward && !accumulate)
      memset(to + begin * pixels * out->channels, 0,
             (end - begin) * pixels * out->channels * sizeof *to);
    for (int row = begin * rows; row < (int)end * rows; row += p.group) {
      const int count = MIN(p.group, (int)end * rows - row);
      move_rows(&p, in, a, (float *)from, row, count, false);
      for (int t = 0; t < p.points * p.points; t++)
        product(c + t * out->step, out->row, a + t * in->step, in->row, 1,
                W + filter_point(&p, t) * p.w_step, PANEL, in->columns * PANEL, count,
                ROUND_UP(out->columns, LANES), in->columns, false);
      move_rows(&p, out, c, to, row, count, true);
    }
    if (sums)
      sum_pixels(partial + part * sums_size, to, begin * pixels, end * pixels, out->channels);
    if (m) normalise(m, to, begin * pixels, end * pixels, out->channels);
  }
  for (size_t i = 0; sums && i < sums_size; i++) {
    sums[i] = 0;
    for (int part = 0; part < parts; part++) sums[i] += partial[part * sums_size + i];
  }
}

void cpu_conv_forward(const conv_shape *s, void *z, const void *x, const void *w, double *sums) {
  gather(s, z, x, w, false, false, sums, NULL);
}

void cpu_conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                             const real *gamma, const real *beta, const void *residual, bool relu,
                             const real *running_mean, const real *running_var) {
  const norm m = {gamma, beta, residual, running_mean, running_var, relu};
  gather(s, y, x, w, false, false, NULL, &m);
}

void cpu_conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                             bool accumulate) {
  gather(s, dx, dz, w, true, accumulate, NULL, NULL);
}

// dw: [Cout][R S][Cin] from sums: [parts][points][Cout][x.row]
static void write_filters(const conv_plan *p, float *dw, const float *sums, int parts,
                          size_t step) {
  const int taps = p->points > 1 ? 9 : 1, points = p->filter_points * p->filter_points;
#pragma omp parallel for collapse(2)
  for (int k = 0; k < p->z.channels; k++)
    for (int c = 0; c < p->x.columns; c += LANES) {
      const float *from = sums + k * p->x.row + c;
      float total[FILTER_POINTS * FILTER_POINTS * LANES],
          *to = dw + (size_t)k * taps * p->x.columns + c;
      vector g[9];
      for (int t = 0; t < points; t++) {
        vector sum = load(from + t * step);
        for (int part = 1; part < parts; part++) sum += load(from + (part * points + t) * step);
        store(total + t * LANES, sum);
      }
      if (taps == 1) {
        memcpy(to, total, MIN(LANES, p->x.columns - c) * sizeof *to);
        continue;
      }
      if (p->points == POINTS_1)
        from_points(g, G_1, FILTER_POINTS, 3, total, LANES);
      else
        from_points(g, G_2, FILTER_POINTS, 3, total, LANES);
      for (int i = 0; i < taps; i++) store(to + i * p->x.columns, g[i]);
    }
}

void cpu_conv_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
  const conv_plan p = make_plan(s);
  const int rows = s->batch * p.across * p.down, filters = ROUND_UP(s->out_channels, ROWS);
  const size_t step = filters * p.x.row + PAD, size = p.filter_points * p.filter_points * step;
  const int affordable = MAX(1, MAX_PARTIALS / size);
  const int parts = MIN(MIN(WEIGHT_TASKS, affordable), DIVIDE_UP(rows, 4 * p.group));
  const int slices = MIN(DIVIDE_UP(filters, 64), DIVIDE_UP(WEIGHT_TASKS, parts));
  const int slice = ROUND_UP(DIVIDE_UP(filters, slices), 16);
  float *partials =
      cpu_scratch((parts * size + omp_get_max_threads() * p.buffer) * sizeof *partials);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int part = 0; part < parts; part++)
    for (int k = 0; k < filters; k += slice) {
      float *X = partials + parts * size + omp_get_thread_num() * p.buffer;
      float *Z = X + p.points * p.points * p.x.step, *sum = partials + part * size + k * p.x.row;
      const int begin = (int)((long)part * rows / parts), end = (int)((part + 1L) * rows / parts);
      matrix_side z = p.z; // the slice of it
      z.columns = MIN(slice, s->out_channels - k);
      for (int row = begin; row < end; row += p.group) {
        const int count = MIN(p.group, end - row);
        move_rows(&p, &p.x, X, (float *)x, row, count, false);
        move_rows(&p, &z, Z, (float *)dz + k, row, count, false);
        for (int t = 0; t < p.points * p.points; t++) {
          const bool again = t / p.points >= p.filter_points || t % p.points >= p.filter_points;
          product(sum + filter_point(&p, t) * step, p.x.row, Z + t * z.step, 1, z.row,
                  X + t * p.x.step, p.x.row, PANEL, z.columns, ROUND_UP(p.x.columns, LANES), count,
                  row > begin || again);
        }
      }
    }
  write_filters(&p, dw, partials, parts, step);
}
