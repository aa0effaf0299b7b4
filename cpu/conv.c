// cpu/conv.c - convolution in three passes, as fast as a CPU can do it tap by tap.
//
// reference/conv.c says what is computed. A core can do one or two vector multiply-adds a cycle;
// the plain loops use one lane of one, then wait some cycles for its result before the next. Here a
// tile of independent sums stays in registers (microkernel.h) while its operands stream past.
//
// Output and input gradient ("gather"). The rows of a tile are the SAME pixel of ROWS images, its
// columns a block of 1 or 2 vectors of output channels:
//
//     sum[image][k] += from[image][h][v][c] * w[r][s][c][k]   for each r, for each (s, c)
//
// * All images of a tile meet the same filter taps, so a tap that falls on padding is left out, not
//   multiplied by zero: 44 of 144 in a 4x4 image, 92 of 576 in an 8x8. No im2col matrix, no
//   zero-bordered copy: the activations are read where they lie.
// * Channels lie last, so the filter columns that a pixel meets are neighbours: (s, c) is one
//   stretch of up to 3 Cin floats. The weights are packed to match, in the order that a tile reads
//   them: [block][R][S][Cin][the block's channels], zeros behind the last channel.
// * The input gradient is the same loop from dy to dx with the weights transposed. Of a stride of 2
//   an input pixel meets only the taps of its parity, 1, 2, 2 or 4 of them; with S packed in the
//   order 2, 0, 1 the taps of one parity are neighbours again.
// The price: a batch that is no multiple of ROWS computes its last image more than once.
//
// Weight gradient. A tile is input channels x a block of output channels, of one tap:
//
//     sum[c][k] += x[h][v][c] * dy[p][q][k]   over the pixels of a group of images
//
// x and dy are copied first, a group of images and a chunk of channels at a time, to [row][column]
// [image][channel], for stride 2 with the columns of one parity together, so that one row of all
// images is one loop. Copied pixels are at most 256 bytes apart. In place they would be 2048 apart
// at 512 channels: at such powers of two they share few lines of the cache and evict each other.
// For a 1x1 convolution, and for the stem's 3 channels, which would leave most of a tile empty, the
// copy holds what each output pixel sees, [R][S][Cin], and a 1x1 convolution works on that.
//
// The same bits on any number of threads: what a task adds up, and the order in which the tasks'
// partial sums are added, follow from the shape alone.
// Checked by `make check` (tests/devices_test.c).
#define _DEFAULT_SOURCE // madvise
#include "conv.h"
#include "microkernel.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
  STRIP_ROWS = 4,         // image rows in a task of a gather
  GROUP_PIXELS = 256,     // a weight gradient's tile adds up so many pixels, then goes to memory
  CHUNK = 64,             // input channels copied at once; a multiple of 2 ROWS
  WEIGHT_TASKS = 16,      // parts of the batch x slices of output channels
  MAX_PARTIALS = 1 << 21, // floats in all parts' sums together, where there is more than one part
};

static int min(int a, int b) {
  return a < b ? a : b;
}
static int max(int a, int b) {
  return a > b ? a : b;
}
static int divide_up(int a, int b) {
  return (a + b - 1) / b;
}
static int vectors_for(int channels) {
  return channels > LANES ? 2 : 1;
}
// Floats, rounded up to whole lines of 64 bytes.
static size_t whole_lines(size_t floats) {
  return (floats + 15) / 16 * 16;
}

// Working memory that only grows, kept from call to call until the process ends: fresh memory costs
// a page fault every 4 KiB. One convolution runs at a time, so one piece is enough.
static void *scratch(size_t bytes) {
  static void *memory;
  static size_t size;
  if (bytes > size) {
    const size_t huge_page = 1 << 21;
    free(memory);
    size = (bytes + huge_page - 1) / huge_page * huge_page;
    memory = aligned_alloc(huge_page, size);
    if (!memory) {
      fprintf(stderr, "out of memory: a convolution needs %zu bytes; try a smaller --width\n",
              size);
      exit(1);
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE); // advice only: what it returns changes nothing
#endif
  }
  return memory;
}

// -- output and input gradient ------------------------------------------------------------------

typedef struct {
  conv_shape shape; // from "in" to "out": for the input gradient, dy is in and dx is out
  bool backward;    // the input gradient
  bool accumulate;  // add to `to`
  int columns[3];   // the filter columns in the order in which they are packed
  int vectors;      // of a block of channels
  int blocks;
  float *to;         // [batch][out_height][out_width][out_channels]
  const float *from; // [batch][in_height][in_width][in_channels]
  float *weights;    // [blocks][R][S][in_channels][vectors * LANES]
} gather;

// The row (or column) of `from` that row (or column) i of `to` meets in filter row r, or -1.
static int source(const gather *g, int i, int r, int size) {
  const int stride = g->shape.stride, padding = g->shape.kernel / 2;
  int j = i + padding - r;
  if (!g->backward)
    j = i * stride - padding + r;
  else if (stride == 2)
    j = j & 1 ? -1 : j / 2;
  return j >= 0 && j < size ? j : -1;
}

// The filter columns that one column of `to` meets.
typedef struct {
  int first, count; // in packed order
  int source;       // the column of `from` that the first one meets
} stretch;

static stretch find_stretch(const gather *g, int q) {
  stretch found = {0, 0, -1};
  for (int j = 0; j < g->shape.kernel; j++) {
    const int v = source(g, q, g->columns[j], g->shape.in_width);
    if (v < 0) continue;
    if (!found.count++) found.first = j, found.source = v;
  }
  return found;
}

// w: [Cout][R][S][Cin], of which the gather's in_channels are Cin, or backward Cout.
static void pack_weights(const gather *g, const float *w) {
  const conv_shape *s = &g->shape;
  const int taps = s->kernel * s->kernel, block = g->vectors * LANES, channels = s->in_channels;
  const size_t cin = g->backward ? s->out_channels : s->in_channels, filter = taps * cin;
  const size_t out_step = g->backward ? 1 : filter, in_step = g->backward ? filter : 1;
#pragma omp parallel for collapse(2)
  for (int b = 0; b < g->blocks; b++)
    for (int tap = 0; tap < taps; tap++) {
      const int r = tap / s->kernel, t = g->columns[tap % s->kernel];
      const int valid = min(block, s->out_channels - b * block);
      const float *in = w + (r * s->kernel + t) * cin + b * block * out_step;
      float *out = g->weights + (size_t)(b * taps + tap) * channels * block;
      for (int c0 = 0; c0 < channels; c0 += 16) // a line of w at a time
        for (int k = 0; k < block; k++)
          for (int c = c0; c < min(c0 + 16, channels); c++)
            out[c * block + k] = k < valid ? in[k * out_step + c * in_step] : 0;
    }
}

// Stores the first `valid` channels of the first `images` rows of a tile.
ALWAYS_INLINE void store_tile(vector sum[ROWS][2], float *const to[ROWS], size_t offset, int images,
                              int valid, bool accumulate, int vectors) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; i++)
    if (i < images) {
      const bool whole = valid == vectors * LANES;
      float edge[2 * LANES], *out = whole ? to[i] + offset : edge;
      if (accumulate && !whole) memcpy(edge, to[i] + offset, valid * sizeof *edge);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; v++) {
        if (accumulate) sum[i][v] += load(out + v * LANES);
        store(out + v * LANES, sum[i][v]);
      }
      if (!whole) memcpy(to[i] + offset, edge, valid * sizeof *edge);
    }
}

// The tile's values and squares, summed over its images in float (ROWS values: that rounds no worse
// than each value was rounded) and from there on in double.
ALWAYS_INLINE void add_sums(double *sums, double *squares, vector sum[ROWS][2], int images,
                            int vectors) {
#pragma GCC unroll 2
  for (int v = 0; v < vectors; v++) {
    vector total = sum[0][v], square = sum[0][v] * sum[0][v];
#pragma GCC unroll 8
    for (int i = 1; i < ROWS; i++)
      if (i < images) total += sum[i][v], square += sum[i][v] * sum[i][v];
    for (int l = 0; l < LANES; l++) {
      sums[v * LANES + l] += (double)total[l];
      squares[v * LANES + l] += (double)square[l];
    }
  }
}

// Computes the block of channels from k on, in STRIP_ROWS rows of ROWS images. sums: may be NULL.
ALWAYS_INLINE void gather_strip(const gather *g, int first_image, int first_row, int k,
                                double *sums, double *squares, int vectors) {
  const conv_shape *s = &g->shape;
  const int images = min(ROWS, s->batch - first_image), channels = s->in_channels;
  const size_t in_size = (size_t)s->in_height * s->in_width * channels;
  const size_t out_size = (size_t)s->out_height * s->out_width * s->out_channels;
  const float *w = g->weights + (size_t)k * s->kernel * s->kernel * channels;
  const float *from[ROWS], *row[ROWS];
  float *to[ROWS];
  for (int i = 0; i < ROWS; i++) {
    const size_t image = first_image + min(i, images - 1); // a missing one: the last once more
    from[i] = g->from + image * in_size;
    to[i] = g->to + image * out_size + k;
  }
  for (int p = first_row; p < min(s->out_height, first_row + STRIP_ROWS); p++)
    for (int q = 0; q < s->out_width; q++) {
      const stretch columns = find_stretch(g, q);
      vector sum[ROWS][2] = {{{0}}};
      for (int r = 0; columns.count && r < s->kernel; r++) {
        const int h = source(g, p, r, s->in_height);
        if (h < 0) continue;
        for (int i = 0; i < ROWS; i++)
          row[i] = from[i] + ((size_t)h * s->in_width + columns.source) * channels;
        const size_t tap = r * s->kernel + columns.first;
        multiply_rows(sum, row, w + tap * channels * vectors * LANES, columns.count * channels,
                      vectors);
      }
      store_tile(sum, to, ((size_t)p * s->out_width + q) * s->out_channels, images,
                 min(vectors * LANES, s->out_channels - k), g->accumulate, vectors);
      if (sums) add_sums(sums, squares, sum, images, vectors);
    }
}

static void gather_all(gather *g, const float *w, double *sums) {
  const conv_shape *s = &g->shape;
  g->vectors = vectors_for(s->out_channels);
  g->blocks = divide_up(s->out_channels, g->vectors * LANES);
  const int strips = divide_up(s->out_height, STRIP_ROWS), block = g->vectors * LANES;
  const int tasks = divide_up(s->batch, ROWS) * strips;
  const size_t channels = g->blocks * block, sums_size = sums ? tasks * 2 * channels : 0;
  const size_t weights_size = channels * s->kernel * s->kernel * s->in_channels;
  double *partial = scratch(sums_size * sizeof(double) + weights_size * sizeof(float));
  g->weights = (float *)(partial + sums_size);
  pack_weights(g, w);
  memset(partial, 0, sums_size * sizeof(double)); // [tasks][2][channels]
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int task = 0; task < tasks; task++)
    for (int b = 0; b < g->blocks; b++) {
      const int image = task / strips * ROWS, row = task % strips * STRIP_ROWS, k = b * block;
      double *total = sums ? partial + task * 2 * channels + k : NULL;
      double *squares = sums ? total + channels : NULL;
      if (g->vectors == 2)
        gather_strip(g, image, row, k, total, squares, 2);
      else
        gather_strip(g, image, row, k, total, squares, 1);
    }
  for (int k = 0; sums && k < s->out_channels; k++) {
    sums[k] = sums[s->out_channels + k] = 0;
    for (int task = 0; task < tasks; task++) {
      sums[k] += partial[task * 2 * channels + k];
      sums[s->out_channels + k] += partial[(task * 2 + 1) * channels + k];
    }
  }
}

void cpu_conv_forward(const conv_shape *s, void *y, const void *x, const void *w, double *sums) {
  gather g = {.shape = *s, .columns = {0, 1, 2}, .to = y, .from = x};
  gather_all(&g, w, sums);
}

void cpu_conv_backward_input(const conv_shape *s, void *dx, const void *dy, const void *w,
                             bool accumulate) {
  gather g = {.shape = *s, .backward = true, .accumulate = accumulate, .to = dx, .from = dy};
  g.shape.in_height = s->out_height, g.shape.out_height = s->in_height;
  g.shape.in_width = s->out_width, g.shape.out_width = s->in_width;
  g.shape.in_channels = s->out_channels, g.shape.out_channels = s->in_channels;
  // Of two taps the one further right meets the pixel further left.
  static const int columns[2][3] = {{2, 1, 0}, {2, 0, 1}};
  if (s->kernel == 3) memcpy(g.columns, columns[s->stride - 1], sizeof g.columns);
  gather_all(&g, w, NULL);
}

// -- weight gradient ----------------------------------------------------------------------------

typedef struct {
  const conv_shape *given;
  conv_shape shape;    // what works on the copies: given, or a 1x1 convolution over its patches
  bool patches;        // which of the two
  int images;          // of a group
  int vectors, blocks; // output channels = blocks of `vectors` vectors, with zeros behind the last
  int chunk, chunks;   // input channels = chunks of `chunk`, likewise
} weight_pass;

// Where column v of an image stands in its copy: the columns of one parity together for stride 2.
static int column_position(int v, int width, int stride) {
  return stride == 1 ? v : v % 2 * ((width + 1) / 2) + v / 2;
}

// to: [height][column_position][images][chunk], from channel `first` of from on.
static void copy_images(float *to, int chunk, const float *from, int images, int height, int width,
                        int stride, int channels, int first) {
  const int valid = min(chunk, channels - first);
  from += first;
  for (int b = 0; b < images; b++)
    for (int h = 0; h < height; h++)
      for (int v = 0; v < width; v++, from += channels) {
        const size_t pixel = (size_t)h * width + column_position(v, width, stride);
        float *out = to + (pixel * images + b) * chunk;
        int c = 0;
        for (; c + LANES <= valid; c += LANES) store(out + c, load(from + c));
        for (; c < valid; c++) out[c] = from[c];
        for (; c < chunk; c++) out[c] = 0;
      }
}

// to: [out_height][out_width][images][chunk]: the patch [R][S][Cin] that an output pixel sees, or
// of a 1x1 convolution its channels from `first` on.
static void copy_patches(float *to, int chunk, const float *from, int images, const conv_shape *s,
                         int first) {
  const int c = s->in_channels, padding = s->kernel / 2;
  for (int p = 0; p < s->out_height; p++)
    for (int q = 0; q < s->out_width; q++)
      for (int b = 0; b < images; b++, to += chunk) {
        const int h = p * s->stride - padding, v = q * s->stride - padding;
        const int t = max(0, -v), columns = min(s->kernel, s->in_width - v) - t;
        const int count = s->kernel == 1 ? min(chunk, c - first) : columns * c;
        for (int i = 0; i < chunk; i++) to[i] = 0;
        for (int r = max(0, -h); r < min(s->kernel, s->in_height - h); r++) {
          const size_t pixel = ((size_t)b * s->in_height + h + r) * s->in_width + v + t;
          memcpy(to + (r * s->kernel + t) * c, from + pixel * c + first, count * sizeof *to);
        }
      }
}

// partial: [chunk][vectors * LANES] += the products of filter tap (r, t) over a group of images.
ALWAYS_INLINE void add_tap(const weight_pass *o, float *partial, const float *x, const float *dy,
                           int images, int r, int t, int vectors) {
  const conv_shape *s = &o->shape;
  const int rows = vectors == 2 ? ROWS : 2 * ROWS, block = vectors * LANES;
  const int down = r - s->kernel / 2, right = t - s->kernel / 2;
  // Outputs from p0 to p1 and q0 to q1 have this tap inside the image.
  const int p0 = down < 0, p1 = min(s->out_height, divide_up(s->in_height - down, s->stride));
  const int q0 = right < 0, q1 = min(s->out_width, divide_up(s->in_width - right, s->stride));
  const int column = column_position(q0 * s->stride + right, s->in_width, s->stride);
  for (int c = 0; c < o->chunk; c += rows) {
    vector sum[2 * ROWS] = {{0}};
    for (int p = p0; p < p1; p++) {
      const size_t in = (size_t)(p * s->stride + down) * s->in_width + column;
      const size_t out = (size_t)p * s->out_width + q0;
      multiply_columns(sum, x + in * images * o->chunk + c, o->chunk, dy + out * images * block,
                       (q1 - q0) * images, vectors);
    }
    float *to = partial + c * block;
#pragma GCC unroll 16
    for (int i = 0; i < 2 * ROWS; i++) store(to + i * LANES, load(to + i * LANES) + sum[i]);
  }
}

// Adds the group of images from `image` on to partial: [blocks][chunks][R][S][chunk][block's
// channels], for `blocks` blocks from first_block on.
static void add_group(const weight_pass *o, float *partial, const float *x, const float *dy,
                      int image, int first_block, int blocks, float *x_copy, float *dy_copy) {
  const conv_shape *s = &o->shape, *given = o->given;
  const int images = min(o->images, s->batch - image), lanes = o->vectors * LANES;
  const int taps = s->kernel * s->kernel;
  const size_t dy_size = (size_t)images * s->out_height * s->out_width * lanes;
  x += (size_t)image * given->in_height * given->in_width * given->in_channels;
  dy += (size_t)image * s->out_height * s->out_width * s->out_channels;
  for (int b = 0; b < blocks; b++)
    copy_images(dy_copy + b * dy_size, lanes, dy, images, s->out_height, s->out_width, 1,
                s->out_channels, (first_block + b) * lanes);
  for (int chunk = 0; chunk < o->chunks; chunk++) {
    const int first = chunk * o->chunk;
    if (o->patches)
      copy_patches(x_copy, o->chunk, x, images, given, first);
    else
      copy_images(x_copy, o->chunk, x, images, s->in_height, s->in_width, s->stride, s->in_channels,
                  first);
    for (int i = 0; i < blocks * taps; i++) {
      const int b = i / taps, tap = i % taps, r = tap / s->kernel, t = tap % s->kernel;
      const size_t tile = (size_t)(b * o->chunks + chunk) * taps + tap;
      float *to = partial + tile * o->chunk * lanes, *g = dy_copy + b * dy_size;
      if (o->vectors == 2)
        add_tap(o, to, x_copy, g, images, r, t, 2);
      else
        add_tap(o, to, x_copy, g, images, r, t, 1);
    }
  }
}

// dw: [Cout][R][S][Cin] from partials: [parts][blocks][chunks][R][S][chunk][block's channels].
static void add_partials(const weight_pass *o, float *dw, const float *partials, int parts) {
  const conv_shape *s = &o->shape;
  const int taps = s->kernel * s->kernel, lanes = o->vectors * LANES;
  const int tiles = o->blocks * o->chunks * taps;
  const size_t tile_size = (size_t)o->chunk * lanes;
#pragma omp parallel for
  for (int tile = 0; tile < tiles; tile++) {
    const int tap = tile % taps, c0 = tile / taps % o->chunks * o->chunk;
    const int k0 = tile / taps / o->chunks * lanes;
    for (int k = 0; k < min(lanes, s->out_channels - k0); k++)
      for (int c = 0; c < min(o->chunk, s->in_channels - c0); c++) {
        const float *from = partials + tile * tile_size + c * lanes + k;
        float total = 0;
        for (int part = 0; part < parts; part++) total += from[part * tiles * tile_size];
        dw[((size_t)(k0 + k) * taps + tap) * s->in_channels + c0 + c] = total;
      }
  }
}

static weight_pass plan_weight_pass(const conv_shape *s) {
  weight_pass o = {.given = s, .shape = *s, .vectors = vectors_for(s->out_channels)};
  const int taps = s->kernel * s->kernel, rows = o.vectors == 2 ? ROWS : 2 * ROWS;
  o.patches = s->kernel == 1 || taps * s->in_channels <= CHUNK;
  if (o.patches)
    o.shape = make_conv_shape(s->batch, s->out_height, s->out_width, taps * s->in_channels,
                              s->out_channels, 1, 1);
  o.images = min(s->batch, divide_up(GROUP_PIXELS, s->out_height * s->out_width));
  o.blocks = divide_up(s->out_channels, o.vectors * LANES);
  o.chunk = min(CHUNK, divide_up(o.shape.in_channels, rows) * rows);
  o.chunks = divide_up(o.shape.in_channels, o.chunk);
  return o;
}

void cpu_conv_backward_weight(const conv_shape *shape, real *dw, const void *dy, const void *x) {
  const weight_pass o = plan_weight_pass(shape);
  const conv_shape *s = &o.shape;
  const int groups = divide_up(s->batch, o.images), lanes = o.vectors * LANES;
  const size_t block_size = (size_t)s->kernel * s->kernel * o.chunks * o.chunk * lanes;
  const int affordable = max(1, MAX_PARTIALS / (o.blocks * block_size));
  const int parts = min(min(groups, WEIGHT_TASKS), affordable);
  const int slices = min(o.blocks, divide_up(WEIGHT_TASKS, parts));
  const size_t x_size = whole_lines((size_t)o.images * s->in_height * s->in_width * o.chunk);
  const size_t dy_size = whole_lines((size_t)o.images * s->out_height * s->out_width * lanes *
                                     divide_up(o.blocks, slices));
  const size_t partials_size = whole_lines(parts * o.blocks * block_size);
  const size_t copies_size = omp_get_max_threads() * (x_size + dy_size);
  float *partials = scratch((partials_size + copies_size) * sizeof(float));
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (int part = 0; part < parts; part++)
    for (int slice = 0; slice < slices; slice++) {
      const int block = slice * o.blocks / slices, end = (slice + 1) * o.blocks / slices;
      float *partial = partials + (part * o.blocks + block) * block_size;
      float *x_copy = partials + partials_size + omp_get_thread_num() * (x_size + dy_size);
      float *dy_copy = x_copy + x_size;
      memset(partial, 0, (end - block) * block_size * sizeof *partial);
      for (int i = part * groups / parts; i < (part + 1) * groups / parts; i++)
        add_group(&o, partial, x, dy, i * o.images, block, end - block, x_copy, dy_copy);
    }
  add_partials(&o, dw, partials, parts);
}
