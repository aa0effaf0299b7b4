// cpu/conv.c - convolution in three passes as matrix products, as fast as a CPU can do it.
//
// reference/conv.c says what is computed. Here all three passes are products of the same matrices:
//
//     forward  Y = X W        input gradient  X = Y W^T        weight gradient  W = X^T Y
//
// Directly, there is one of each: a row of Y is an output pixel's channels, the same row of X the
// patch [R][S][Cin] of the image that it sees, zeros outside. By Winograd's method, for 3x3 filters
// with stride 1, there are 36, and rows are tiles of 4x4 pixels: a quarter of the multiplications
// (winograd.c). Only how pixels become rows and rows pixels differs between the two, and gradients
// go the same way back: what a row of X gets is added to every pixel that the row was made of.
//
// Memory. Rows are made a group at a time, multiplied while they are in the cache, and written back:
// the matrices never exist as a whole. Groups of images go to threads. What a task adds up, and the
// order in which tasks' partial sums are added, follow from the shape alone, so the bits do not
// depend on the number of threads. Checked by `make check` (tests/devices_test.c).
#define _DEFAULT_SOURCE // madvise
#include "conv.h"
#include "error.h"
#include "microkernel.h"
#include "winograd.h"

#include <omp.h>
#include <string.h>
#include <sys/mman.h>

enum {
  TASKS = 64,             // parts of a batch: more than any CPU here has threads
  WEIGHT_TASKS = 16,      // the same where each part has a W of its own
  MAX_PARTIALS = 2500000, // floats in all those together, where there is more than one
  GROUP_FLOATS = 1 << 16, // patches at a time: as many as make so many floats,
  MAX_ROWS = 256,         // but GROUP to MAX_ROWS of them
  PAD = 16,               // floats behind a row: strides of a power of two share few cache lines
};

// Working memory that only grows, kept from call to call until the process ends: fresh memory costs
// a page fault every 4 KiB. One convolution runs at a time, so one piece is enough.
static float *scratch(size_t floats) {
  static float *memory;
  static size_t size;
  const size_t huge_page = 1 << 21, bytes = floats * sizeof(float);
  if (bytes <= size) return memory;
  free(memory);
  size = ROUND_UP(bytes, huge_page);
  memory = aligned_alloc(huge_page, size);
  if (!memory) out_of_memory(size);
#ifdef MADV_HUGEPAGE
  madvise(memory, size, MADV_HUGEPAGE); // advice only: what it returns changes nothing
#endif
  return memory;
}

typedef struct {
  bool winograd;
  int points; // products: 36, or 1
  int rows;   // of X and Y from one image: tiles, or output pixels
  int group;  // rows at a time
  side x, y;
  size_t w_step; // floats of W at one point
  size_t buffer; // floats of X and Y of one group
} plan;

static void lay_out(side *s, const plan *p) {
  s->columns = s->channels * (p->winograd ? 1 : s->size * s->size);
  s->row = ROUND_UP(s->columns, LANES) + PAD;
  s->step = p->group * s->row + PAD;
}

static plan make_plan(const conv_shape *s) {
  plan p = {.winograd = winograd_takes(s), .points = 1, .group = GROUP};
  p.rows = s->out_height * s->out_width;
  p.x = (side){s->in_height, s->in_width, s->in_channels, s->kernel, s->stride, true, 0, 0, 0};
  p.y = (side){s->out_height, s->out_width, s->out_channels, 1, 1, false, 0, 0, 0};
  if (p.winograd) {
    p.points = POINTS;
    p.rows = DIVIDE_UP(s->out_height, TILE) * DIVIDE_UP(s->out_width, TILE);
    p.x.size = WINDOW, p.y.size = TILE;
  } else {
    const int fit = GROUP_FLOATS / (s->kernel * s->kernel * s->in_channels) / ROWS * ROWS;
    p.group = MIN(MAX_ROWS, MAX(GROUP, fit));
  }
  lay_out(&p.x, &p), lay_out(&p.y, &p);
  p.w_step = ROUND_UP(p.x.columns, LANES) * ROUND_UP(p.y.columns, LANES) + PAD;
  p.buffer = p.points * (p.x.step + p.y.step);
  return p;
}

// Makes `count` rows, from number `first` on, of the images, or writes them back (y is overwritten, x
// added to). Directly, a row is what an output pixel sees, [size][size][channels], zeros outside.
static void move_rows(const plan *p, const side *s, float *rows, float *images, int first,
                      int count, bool write) {
  if (p->winograd) {
    (write ? winograd_write : winograd_read)(s, rows, images, first, count);
    return;
  }
  const int padding = s->size / 2, across = p->y.width, down = p->y.height, c = s->channels;
  for (int n = first; n < first + count; n++, rows += s->row) {
    const int image = n / across / down, h = n / across % down * s->stride - padding;
    const int v = n % across * s->stride - padding, left = MAX(0, -v);
    const int top = MAX(0, -h), bottom = MIN(s->size, s->height - h);
    const int right = MIN(s->size, s->width - v),
              length = s->size == 1 ? s->columns : (right - left) * c;
    if (!write && (bottom - top) * (right - left) < s->size * s->size)
      memset(rows, 0, s->columns * sizeof *rows);
    for (int r = top; r < bottom; r++) {
      float *pixels = images + (((size_t)image * s->height + h + r) * s->width + v + left) * c;
      float *row = rows + (r * s->size + left) * c;
      if (!write)
        memcpy(row, pixels, length * sizeof *row);
      else
        for (int i = 0; i < length; i++) pixels[i] = s->add ? pixels[i] + row[i] : row[i];
    }
  }
}

// W, packed, for X W, or for Y W^T.
static void read_filters(const plan *p, float *to, const float *w, bool transposed) {
  const int length = transposed ? p->y.columns : p->x.columns;
  const int columns = transposed ? p->x.columns : p->y.columns, padded = ROUND_UP(columns, LANES);
  const size_t filter = p->x.columns * (p->winograd ? 9 : 1);
  const size_t n_step = transposed ? filter : 1, j_step = transposed ? 1 : filter;
#pragma omp parallel for collapse(2)
  for (int j = 0; j < columns; j += LANES)
    for (int n = 0; n < length; n++) {
      const float *from = w + n * n_step + j * j_step;
      if (p->winograd)
        winograd_read_filters(to + packed(n, j, length, padded), p->w_step, from, p->x.columns,
                              j_step);
      else
        store(to + packed(n, j, length, padded), load_strided(from, j_step, columns - j));
    }
}

// Adds the sums of y and of y * y over pixels begin .. end - 1 to sums: [2][channels]. 16 pixels in
// float, which rounds no worse than each pixel was rounded, and from there on in double.
static void sum_pixels(double *sums, const float *y, size_t begin, size_t end, int channels) {
  for (size_t i = begin; i < end; i += 16)
    for (int k = 0; k < channels; k += LANES) {
      const int lanes = MIN(LANES, channels - k);
      vector total = {0}, squares = {0};
      for (size_t n = i; n < MIN(i + 16, end); n++) {
        const float *from = y + n * channels + k;
        const vector v = lanes == LANES ? load(from) : load_strided(from, 1, lanes);
        total += v;
        squares += v * v;
      }
      for (int l = 0; l < lanes; l++) {
        sums[k + l] += (double)total[l];
        sums[channels + k + l] += (double)squares[l];
      }
    }
}

// to = from W: the output, with its sums, or backward the input gradient, added to.
static void gather(const conv_shape *s, float *to, const float *from, const float *w, bool backward,
                   bool accumulate, double *sums) {
  const plan p = make_plan(s);
  const side *in = backward ? &p.y : &p.x, *out = backward ? &p.x : &p.y;
  const int parts = MIN(MIN(TASKS, s->batch), MAX(1, s->batch * p.rows / p.group));
  const size_t pixels = out->height * out->width, sums_size = 2 * out->channels;
  const size_t w_size = p.points * p.w_step, threads = omp_get_max_threads();
  double *partial = (double *)scratch(2 * parts * sums_size + w_size + threads * p.buffer);
  float *W = (float *)(partial + parts * sums_size), *buffers = W + w_size;
  memset(partial, 0, parts * sums_size * sizeof *partial);
  read_filters(&p, W, w, backward);
#pragma omp parallel for schedule(dynamic)
  for (int part = 0; part < parts; part++) {
    float *a = buffers + omp_get_thread_num() * p.buffer, *c = a + p.points * in->step;
    const int begin = part * s->batch / parts, end = (part + 1) * s->batch / parts;
    if (backward && !accumulate)
      memset(to + begin * pixels * out->channels, 0,
             (end - begin) * pixels * out->channels * sizeof *to);
    for (int row = begin * p.rows; row < end * p.rows; row += p.group) {
      const int count = MIN(p.group, end * p.rows - row);
      move_rows(&p, in, a, (float *)from, row, count, false);
      for (int t = 0; t < p.points; t++)
        product(c + t * out->step, out->row, a + t * in->step, in->row, 1, W + t * p.w_step, 0,
                count, ROUND_UP(out->columns, LANES), in->columns, false);
      move_rows(&p, out, c, to, row, count, true);
    }
    if (sums)
      sum_pixels(partial + part * sums_size, to, begin * pixels, end * pixels, out->channels);
  }
  for (size_t i = 0; sums && i < sums_size; i++) {
    sums[i] = 0;
    for (int part = 0; part < parts; part++) sums[i] += partial[part * sums_size + i];
  }
}

void cpu_conv_forward(const conv_shape *s, void *y, const void *x, const void *w, double *sums) {
  gather(s, y, x, w, false, false, sums);
}

void cpu_conv_backward_input(const conv_shape *s, void *dx, const void *dy, const void *w,
                             bool accumulate) {
  gather(s, dx, dy, w, true, accumulate, NULL);
}

// dw: [Cout][R S][Cin] from sums: [parts][points][Cout][x.row]
static void write_filters(const plan *p, float *dw, const float *sums, int parts, size_t step) {
#pragma omp parallel for collapse(2)
  for (int k = 0; k < p->y.channels; k++)
    for (int c = 0; c < p->x.columns; c += LANES) {
      const float *from = sums + k * p->x.row + c;
      float total[POINTS * LANES];
      for (int t = 0; t < p->points; t++) {
        vector sum = load(from + t * step);
        for (int part = 1; part < parts; part++) sum += load(from + (part * p->points + t) * step);
        store(total + t * LANES, sum);
      }
      if (p->winograd)
        winograd_write_filters(dw + (size_t)k * 9 * p->x.columns + c, p->x.columns, total, LANES);
      else
        memcpy(dw + (size_t)k * p->x.columns + c, total, MIN(LANES, p->x.columns - c) * sizeof *dw);
    }
}

void cpu_conv_backward_weight(const conv_shape *s, real *dw, const void *dy, const void *x) {
  const plan p = make_plan(s);
  const int rows = s->batch * p.rows, filters = ROUND_UP(s->out_channels, ROWS);
  const size_t step = filters * p.x.row + PAD, size = p.points * step;
  const int affordable = MAX(1, MAX_PARTIALS / size);
  const int parts = MIN(MIN(WEIGHT_TASKS, affordable), DIVIDE_UP(rows, 4 * p.group));
  const int slices = MIN(DIVIDE_UP(filters, 64), DIVIDE_UP(WEIGHT_TASKS, parts));
  const int slice = ROUND_UP(DIVIDE_UP(filters, slices), 16);
  float *partials = scratch(parts * size + omp_get_max_threads() * p.buffer);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int part = 0; part < parts; part++)
    for (int k = 0; k < filters; k += slice) {
      float *X = partials + parts * size + omp_get_thread_num() * p.buffer;
      float *Y = X + p.points * p.x.step, *sum = partials + part * size + k * p.x.row;
      const int begin = (int)((long)part * rows / parts), end = (int)((part + 1L) * rows / parts);
      side y = p.y; // the slice of it
      y.columns = MIN(slice, s->out_channels - k);
      for (int row = begin; row < end; row += p.group) {
        const int count = MIN(p.group, end - row);
        move_rows(&p, &p.x, X, (float *)x, row, count, false);
        move_rows(&p, &y, Y, (float *)dy + k, row, count, false);
        for (int t = 0; t < p.points; t++)
          product(sum + t * step, p.x.row, Y + t * y.step, 1, y.row, X + t * p.x.step, p.x.row,
                  y.columns, ROUND_UP(p.x.columns, LANES), count, row > begin);
      }
    }
  write_filters(&p, dw, partials, parts, step);
}
