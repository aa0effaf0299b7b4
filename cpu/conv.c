#define _DEFAULT_SOURCE // madvise
#include "conv.h"
#include "microkernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
#endif

enum {
  MAX_KERNEL = 3,
  STRIP_ROWS = 8,
  GRADIENT_PIXELS = 256,
  GRADIENT_CHUNK = 64,
  PARTIALS_SIZE = 1 << 21,
  GRADIENT_TASKS = 16
};

static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int divide_up(int a, int b) { return (a + b - 1) / b; }

static size_t whole_lines(size_t floats) { return (floats + 15) / 16 * 16; }

static void *scratch(size_t bytes) {
  static void *memory;
  static size_t size;
  if (bytes > size) {
    const size_t huge_page = 1 << 21;
    free(memory);
    size = (bytes + huge_page - 1) / huge_page * huge_page;
    memory = aligned_alloc(huge_page, size);
    if (!memory) {
      fprintf(stderr,
              "out of memory: a convolution could not get %zu bytes; try a "
              "smaller --width\n",
              size);
      exit(1);
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);
#endif
  }
  return memory;
}

typedef struct {
  int batch, kernel, stride;
  bool backward, accumulate;
  int height, width, channels, vectors, blocks;
  int from_height, from_width, from_channels;
  int tap_order[MAX_KERNEL];
  float *to;
  const float *from;
  float *weights;
  double *sums;
} gather;

// The row (or column) of `from` that meets row (or column) i of `to` in filter
// row r, or -1.
static int source(const gather *g, int i, int r, int size) {
  int j = i + g->kernel / 2 - r;
  if (!g->backward)
    j = i * g->stride - g->kernel / 2 + r;
  else if (g->stride == 2)
    j = j & 1 ? -1 : j / 2;
  return j >= 0 && j < size ? j : -1;
}

static void pack_weights(const gather *g, const float *w) {
  const int taps = g->kernel * g->kernel, block = g->vectors * LANES;
  const size_t cin = g->backward ? g->channels : g->from_channels;
  const size_t to_step = g->backward ? 1 : taps * cin,
               from_step = g->backward ? taps * cin : 1;
#pragma omp parallel for collapse(2)
  for (int b = 0; b < g->blocks; b++)
    for (int tap = 0; tap < taps; tap++) {
      const int r = tap / g->kernel, s = g->tap_order[tap % g->kernel];
      const float *in = w + (r * g->kernel + s) * cin + b * block * to_step;
      float *out =
          g->weights + (size_t)(b * taps + tap) * g->from_channels * block;
      const int valid = min(block, g->channels - b * block);
      for (int c0 = 0; c0 < g->from_channels; c0 += 16)
        for (int k = 0; k < block; k++)
          for (int c = c0; c < min(c0 + 16, g->from_channels); c++)
            out[c * block + k] =
                k < valid ? in[k * to_step + c * from_step] : 0;
    }
}

ALWAYS_INLINE void store_tile(const gather *g, vector sum[ROWS][2],
                              float *const to[ROWS], int images, int valid,
                              int vectors) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
    if (i < images) {
      float edge[BLOCK], *out = valid < vectors * LANES ? edge : to[i];
      if (g->accumulate) {
        if (out == edge)
          memcpy(edge, to[i], valid * sizeof *edge);
        for (int v = 0; v < vectors; v++)
          sum[i][v] += load(out + v * LANES);
      }
      for (int v = 0; v < vectors; v++)
        store(out + v * LANES, sum[i][v]);
      if (out == edge)
        memcpy(to[i], edge, valid * sizeof *edge);
    }
}

ALWAYS_INLINE void add_sums(double *sums, vector sum[ROWS][2], int images,
                            int vectors) {
  for (int v = 0; v < vectors; v++) {
    vector total = sum[0][v], squares = sum[0][v] * sum[0][v];
#pragma GCC unroll 8
    for (int i = 1; i < ROWS; i++)
      if (i < images)
        total += sum[i][v], squares += sum[i][v] * sum[i][v];
    for (int l = 0; l < LANES; l++) {
      sums[v * LANES + l] += (double)total[l];
      sums[BLOCK + v * LANES + l] += (double)squares[l];
    }
  }
}

ALWAYS_INLINE void gather_strip(const gather *g, int group, int strip,
                                int block, int vectors, double *sums) {
  const int images = min(ROWS, g->batch - group * ROWS),
            k = block * vectors * LANES;
  const int valid = min(vectors * LANES, g->channels - k), c = g->from_channels;
  const size_t from_image = (size_t)g->from_height * g->from_width * c;
  const size_t to_image = (size_t)g->height * g->width * g->channels;
  const float *from = g->from + group * ROWS * from_image;
  const float *w = g->weights + (size_t)k * g->kernel * g->kernel * c;
  float *to = g->to + group * ROWS * to_image + k;
  for (int p = strip * STRIP_ROWS; p < min(g->height, (strip + 1) * STRIP_ROWS);
       p++)
    for (int q = 0; q < g->width; q++) {
      int first = 0, column = -1, run = 0;
      for (int j = 0; j < g->kernel; j++) {
        const int v = source(g, q, g->tap_order[j], g->from_width);
        if (v < 0)
          continue;
        if (!run)
          first = j, column = v;
        run++;
      }
      vector sum[ROWS][2] = {{{0}}};
      for (int r = 0; run && r < g->kernel; r++) {
        const int h = source(g, p, r, g->from_height);
        if (h < 0)
          continue;
        const float *row[ROWS];
        for (int i = 0; i < ROWS; i++)
          row[i] = from + min(i, images - 1) * from_image +
                   ((size_t)h * g->from_width + column) * c;
        multiply_rows(sum, row,
                      w + (size_t)(r * g->kernel + first) * c * vectors * LANES,
                      run * c, vectors);
      }
      float *out[ROWS];
      for (int i = 0; i < ROWS; i++)
        out[i] = to + i * to_image + ((size_t)p * g->width + q) * g->channels;
      store_tile(g, sum, out, images, valid, vectors);
      if (sums)
        add_sums(sums, sum, images, vectors);
    }
}

static void gather_strip_1(const gather *g, int group, int strip, int block,
                           double *sums) {
  gather_strip(g, group, strip, block, 1, sums);
}

static void gather_strip_2(const gather *g, int group, int strip, int block,
                           double *sums) {
  gather_strip(g, group, strip, block, 2, sums);
}

static void gather_all(gather *g, const float *w, double *sums) {
  g->vectors = g->channels > LANES ? 2 : 1;
  g->blocks = divide_up(g->channels, g->vectors * LANES);
  const int groups = divide_up(g->batch, ROWS),
            strips = divide_up(g->height, STRIP_ROWS);
  const size_t sums_count =
      sums ? (size_t)groups * strips * g->blocks * 2 * BLOCK : 0;
  const size_t weights_count = (size_t)g->blocks * g->vectors * LANES *
                               g->kernel * g->kernel * g->from_channels;
  double *partial =
      scratch(sums_count * sizeof(double) + weights_count * sizeof(float));
  g->weights = (float *)(partial + sums_count);
  pack_weights(g, w);
  memset(partial, 0, sums_count * sizeof(double));
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (int group = 0; group < groups; group++)
    for (int strip = 0; strip < strips; strip++)
      for (int block = 0; block < g->blocks; block++) {
        double *part =
            sums ? partial +
                       ((size_t)(group * strips + strip) * g->blocks + block) *
                           2 * BLOCK
                 : NULL;
        if (g->vectors == 2)
          gather_strip_2(g, group, strip, block, part);
        else
          gather_strip_1(g, group, strip, block, part);
      }
  if (!sums)
    return;
  for (int k = 0; k < g->channels; k++) {
    const int block = k / (g->vectors * LANES), lane = k % (g->vectors * LANES);
    double total = 0, squares = 0;
    for (int i = 0; i < groups * strips; i++) {
      const double *part =
          partial + ((size_t)i * g->blocks + block) * 2 * BLOCK;
      total += part[lane], squares += part[BLOCK + lane];
    }
    sums[k] = total, sums[g->channels + k] = squares;
  }
}

void cpu_conv_forward(const conv_shape *s, void *y, const void *x,
                      const void *w, double *sums) {
  gather g = {.batch = s->batch,
              .kernel = s->kernel,
              .stride = s->stride,
              .height = s->out_height,
              .width = s->out_width,
              .channels = s->out_channels,
              .from_height = s->in_height,
              .from_width = s->in_width,
              .from_channels = s->in_channels,
              .tap_order = {0, 1, 2},
              .to = y,
              .from = x};
  gather_all(&g, w, sums);
}

void cpu_conv_backward_input(const conv_shape *s, void *dx, const void *dy,
                             const void *w, bool accumulate) {
  gather g = {.batch = s->batch,
              .kernel = s->kernel,
              .stride = s->stride,
              .backward = true,
              .accumulate = accumulate,
              .height = s->in_height,
              .width = s->in_width,
              .channels = s->in_channels,
              .from_height = s->out_height,
              .from_width = s->out_width,
              .from_channels = s->out_channels,
              .to = dx,
              .from = dy};
  if (s->kernel == 3) {
    g.tap_order[0] = 2;
    g.tap_order[1] = s->stride == 1 ? 1 : 0;
    g.tap_order[2] = s->stride == 1 ? 0 : 1;
  }
  gather_all(&g, w, NULL);
}

// What every task of a weight gradient knows.
typedef struct {
  conv_shape shape;
  bool patches;        // x is copied as patches, and `shape` is that of the 1x1
                       // convolution over them
  int vectors, blocks; // of output channels
  int chunk, chunks;   // of input channels
  int images;          // of a group
} weight_pass;

// Where column v of an image stands in a copy: columns that one filter column
// visits are neighbours.
static int column_position(int v, int width, int stride) {
  return stride == 1 ? v : v % stride * ((width + 1) / 2) + v / stride;
}

static void copy_floats(float *to, const float *from, int count) {
  int i = 0;
  for (; i + LANES <= count; i += LANES)
    store(to + i, load(from + i));
  for (; i < count; i++)
    to[i] = from[i];
}

// to: [height][position of column][images][chunk], zeros where there is no such
// channel.
static void copy_images(float *to, int chunk, const float *from, int images,
                        int height, int width, int stride, int channels,
                        int first_channel) {
  const int valid = min(chunk, channels - first_channel);
  from += first_channel;
  for (int b = 0; b < images; b++)
    for (int h = 0; h < height; h++)
      for (int v = 0; v < width; v++, from += channels) {
        float *pixel =
            to +
            (size_t)((h * width + column_position(v, width, stride)) * images +
                     b) *
                chunk;
        copy_floats(pixel, from, valid);
        for (int c = valid; c < chunk; c++)
          pixel[c] = 0;
      }
}

// to: [out_height][out_width][images][chunk]: what one output pixel sees,
// [R][S][Cin].
static void copy_patches(const conv_shape *s, float *to, int chunk,
                         const float *from, int images, int first_channel) {
  const int c = s->in_channels, padding = s->kernel / 2;
  for (int p = 0; p < s->out_height; p++)
    for (int q = 0; q < s->out_width; q++)
      for (int b = 0; b < images; b++, to += chunk) {
        const int h0 = p * s->stride - padding, v0 = q * s->stride - padding;
        const int t0 = max(0, -v0), t1 = min(s->kernel, s->in_width - v0);
        for (int i = 0; i < chunk; i++)
          to[i] = 0;
        for (int r = max(0, -h0); r < min(s->kernel, s->in_height - h0); r++)
          memcpy(
              to + (r * s->kernel + t0) * c,
              from +
                  (((size_t)b * s->in_height + h0 + r) * s->in_width + v0 +
                   t0) *
                      c +
                  first_channel,
              (s->kernel == 1 ? min(chunk, c - first_channel) : (t1 - t0) * c) *
                  sizeof(float));
      }
}

// partial[chunk][block] += the products of one filter tap over a group of
// images.
ALWAYS_INLINE void add_tap(const weight_pass *o, float *partial, const float *x,
                           const float *dy, int images, int r, int t,
                           int vectors) {
  const conv_shape *s = &o->shape;
  const int rows = vectors == 2 ? ROWS : 2 * ROWS, block = vectors * LANES;
  const int dr = r - s->kernel / 2, dt = t - s->kernel / 2;
  const int p0 = dr < 0,
            p1 = min(s->out_height, divide_up(s->in_height - dr, s->stride));
  const int q0 = dt < 0,
            q1 = min(s->out_width, divide_up(s->in_width - dt, s->stride));
  const int column =
      column_position(q0 * s->stride + dt, s->in_width, s->stride);
  for (int c = 0; c < o->chunk; c += rows) {
    vector sum[2 * ROWS] = {{0}};
    for (int p = p0; p < p1; p++)
      multiply_columns(
          sum, rows,
          x +
              (size_t)((p * s->stride + dr) * s->in_width + column) * images *
                  o->chunk +
              c,
          o->chunk, dy + (size_t)(p * s->out_width + q0) * images * block,
          (q1 - q0) * images, vectors);
    float *to = partial + c * block;
#pragma GCC unroll 16
    for (int i = 0; i < 2 * ROWS; i++)
      store(to + i * LANES, load(to + i * LANES) + sum[i]);
  }
}

static void add_tap_1(const weight_pass *o, float *partial, const float *x,
                      const float *dy, int images, int r, int t) {
  add_tap(o, partial, x, dy, images, r, t, 1);
}

static void add_tap_2(const weight_pass *o, float *partial, const float *x,
                      const float *dy, int images, int r, int t) {
  add_tap(o, partial, x, dy, images, r, t, 2);
}

// Adds images `first` on to partial: [blocks][chunks][taps][chunk][block], for
// `blocks` blocks of output channels from first_block on.
static void add_group(const weight_pass *o, const conv_shape *shape,
                      float *partial, int first, int first_block, int blocks,
                      const float *x, const float *dy, float *x_copy,
                      float *dy_copy) {
  const conv_shape *s = &o->shape;
  const int images = min(o->images, s->batch - first),
            lanes = o->vectors * LANES;
  const int taps = s->kernel * s->kernel;
  const size_t dy_size = (size_t)images * s->out_height * s->out_width * lanes;
  x += (size_t)first * shape->in_height * shape->in_width * shape->in_channels;
  dy += (size_t)first * s->out_height * s->out_width * s->out_channels;
  for (int block = 0; block < blocks; block++)
    copy_images(dy_copy + block * dy_size, lanes, dy, images, s->out_height,
                s->out_width, 1, s->out_channels,
                (first_block + block) * lanes);
  for (int chunk = 0; chunk < o->chunks; chunk++) {
    if (o->patches)
      copy_patches(shape, x_copy, o->chunk, x, images, chunk * o->chunk);
    else
      copy_images(x_copy, o->chunk, x, images, s->in_height, s->in_width,
                  s->stride, s->in_channels, chunk * o->chunk);
    for (int block = 0; block < blocks; block++)
      for (int tap = 0; tap < taps; tap++) {
        float *to =
            partial + (size_t)((block * o->chunks + chunk) * taps + tap) *
                          o->chunk * lanes;
        const float *g = dy_copy + block * dy_size;
        if (o->vectors == 2)
          add_tap_2(o, to, x_copy, g, images, tap / s->kernel, tap % s->kernel);
        else
          add_tap_1(o, to, x_copy, g, images, tap / s->kernel, tap % s->kernel);
      }
  }
}

// partials: [parts][blocks][chunks][taps][chunk][block]
static void add_partials(const weight_pass *o, float *dw, const float *partials,
                         int parts) {
  const int taps = o->shape.kernel * o->shape.kernel,
            lanes = o->vectors * LANES;
  const int channels = o->shape.in_channels;
  const size_t tile_size = (size_t)o->chunk * lanes;
  const size_t part_size = o->blocks * o->chunks * taps * tile_size;
#pragma omp parallel for
  for (int tile = 0; tile < o->blocks * o->chunks * taps; tile++) {
    const int tap = tile % taps, c0 = tile / taps % o->chunks * o->chunk;
    const int k0 = tile / taps / o->chunks * lanes;
    for (int k = 0; k < min(lanes, o->shape.out_channels - k0); k++)
      for (int c = 0; c < min(o->chunk, channels - c0); c++) {
        const float *from = partials + tile * tile_size + c * lanes + k;
        float total = 0;
        for (int part = 0; part < parts; part++)
          total += from[part * part_size];
        dw[((size_t)(k0 + k) * taps + tap) * channels + c0 + c] = total;
      }
  }
}

void cpu_conv_backward_weight(const conv_shape *s, real *dw, const void *dy,
                              const void *x) {
  weight_pass o = {.shape = *s, .vectors = s->out_channels > LANES ? 2 : 1};
  const int lanes = o.vectors * LANES, threads = omp_get_max_threads();
  const int rows = o.vectors == 2 ? ROWS : 2 * ROWS;
  o.patches = s->kernel == 1 ||
              s->kernel * s->kernel * s->in_channels <= GRADIENT_CHUNK;
  if (o.patches) {
    o.shape.in_channels *= s->kernel * s->kernel;
    o.shape.in_height = s->out_height;
    o.shape.in_width = s->out_width;
    o.shape.kernel = o.shape.stride = 1;
  }
  o.blocks = divide_up(s->out_channels, lanes);
  o.chunk = min(GRADIENT_CHUNK, divide_up(o.shape.in_channels, rows) * rows);
  o.chunks = divide_up(o.shape.in_channels, o.chunk);
  o.images =
      min(s->batch, max(1, GRADIENT_PIXELS / (s->out_height * s->out_width)));
  const int groups = divide_up(s->batch, o.images);
  const size_t block_size =
      (size_t)o.shape.kernel * o.shape.kernel * o.chunks * o.chunk * lanes;
  const int parts = max(1, min(min(groups, GRADIENT_TASKS),
                               PARTIALS_SIZE / (o.blocks * block_size)));
  const int slices = min(o.blocks, divide_up(GRADIENT_TASKS, parts));
  const size_t x_size = whole_lines((size_t)o.images * o.shape.in_height *
                                    o.shape.in_width * o.chunk);
  const size_t dy_size =
      whole_lines((size_t)o.images * s->out_height * s->out_width * lanes) *
      divide_up(o.blocks, slices);
  const size_t partials_size = parts * o.blocks * block_size;
  float *partials =
      scratch((partials_size + threads * (x_size + dy_size)) * sizeof(float));
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int part = 0; part < parts; part++)
    for (int slice = 0; slice < slices; slice++) {
      float *x_copy =
          partials + partials_size + omp_get_thread_num() * (x_size + dy_size);
      const int first_block = slice * o.blocks / slices,
                blocks = (slice + 1) * o.blocks / slices - first_block;
      float *partial = partials + (part * o.blocks + first_block) * block_size;
      memset(partial, 0, blocks * block_size * sizeof(float));
      for (int group = part * groups / parts;
           group < (part + 1) * groups / parts; group++)
        add_group(&o, s, partial, group * o.images, first_block, blocks, x, dy,
                  x_copy, x_copy + x_size);
    }
  add_partials(&o, dw, partials, parts);
}
