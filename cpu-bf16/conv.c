// cpu-bf16/conv.c - convolution in three passes on a CPU's tensor cores.
//
// conv.cu makes a matrix product of a convolution by gathering patches. Here the product is one of
// blocks (blocks.h), and nothing is gathered. Take one pixel of the output, 32 images and 32
// filters: a block of z. It is a sum of products of blocks, one for each tap of the filter that lies
// within the image and each 32 input channels:
//
//     z[group][p][q][filters]  =  sum over taps (r, s), channels  of
//                                   x[group][h][v][channels]  W[filters][r][s][channels]
//
// with h = stride p - padding + r and v = stride q - padding + s, as ever. The block of x has images
// as rows and channels as terms, that of W channels as terms and filters as columns. So a list of
// block addresses is all that a pixel needs, and one loop (product.h) serves all passes:
//
//     output            pixel of z: list of taps, x times W
//     input gradient    pixel of x: list of taps, dz times W with filters as terms
//     weight gradient   tap: list of pixels, dz transposed (filters as rows, images as terms) times
//                       x (images as terms)
//
// Weights are packed into blocks at each call, as cpu/conv.c does it: reading 45 MB of floats at
// width 64 is some 2 per cent of a step. (To keep both packings beside the weights would save them.)
// dz and x of the weight gradient are put into their two orders once per chunk of rows, into memory
// that stays in the second cache, and then serve all nine taps and up to all filters.
//
// What is done to 32 x 32 results while they are in the first cache, 4 KB of floats, is free: to
// round them, to add up the sums that batch normalisation needs, in evaluation to normalise them.
//
// The stem has 3 channels and pays for 32. Patches of 27 numbers in place of 9 taps of 3 would save
// eight ninths of its products, 3 per cent of a step's, and cost about as much to gather.
//
// Chunks of rows go to threads. What a chunk adds up, and the order in which chunks' sums are added,
// follow from the shape alone, so the bits do not depend on the number of threads.
//
// Checked by `make check`: tests/kernels_test.c, on every layer shape of the network.
#include "conv.h"

#include "cpu/conv.h"
#include "resnet18.h"
#include <omp.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIVIDE_UP(a, b) (((a) + (b)-1) / (b))

const multiplier *bf16_multiplier = &plain_multiplier;

// -- Weights in blocks ---------------------------------------------------------------------------

// 32 filters x 32 channels of one tap, rounded; zeros behind the last of either.
static void read_filters(bf16 *block, const float *w, const conv_shape *s, int first_filter,
                         int first_channel, int tap) {
  const int taps = s->kernel * s->kernel, filters = MIN(SIDE, s->out_channels - first_filter);
  const int channels = MIN(SIDE, s->in_channels - first_channel);
  memset(block, 0, BLOCK * sizeof *block);
  for (int f = 0; f < filters; f++) {
    const float *from = w + ((size_t)(first_filter + f) * taps + tap) * s->in_channels;
#pragma omp simd
    for (int c = 0; c < channels; c++) block[f * SIDE + c] = to_bf16(from[first_channel + c]);
  }
}

// Every filter as blocks, in the order in which a pixel of the result meets them: [32 columns of the
// result][tap][32 terms]. Forward, filters are columns and channels terms; backward the other way.
static void pack_filters(bf16 *packed, const float *w, const conv_shape *s, bool backward) {
  const int taps = s->kernel * s->kernel;
  const int columns = blocks_of(backward ? s->in_channels : s->out_channels);
  const int terms = blocks_of(backward ? s->out_channels : s->in_channels);
#pragma omp parallel for
  for (int i = 0; i < columns * taps * terms; i++) {
    _Alignas(64) bf16 block[BLOCK];
    const int column = i / terms / taps * SIDE, tap = i / terms % taps, term = i % terms * SIDE;
    read_filters(block, w, s, backward ? term : column, backward ? column : term, tap);
    if (backward)
      pair_rows(packed + (size_t)i * BLOCK, block);
    else
      transpose_halves(packed + (size_t)i * BLOCK, block);
  }
}

// -- Output and input gradient -------------------------------------------------------------------

// What becomes of a block of results before it is stored.
typedef struct {
  double *sums;               // of a chunk: [2][32], of z and of z * z; or NULL
  const float *scale, *shift; // evaluation's norm; or NULL
  const bf16 *residual;       // added then; or NULL
  bool relu;
  bool accumulate; // to += in place of to =
} finish;

// Both gather: a block of `to` is a sum over the taps of its pixel.
typedef struct {
  int images;
  int from_height, from_width, from_blocks, to_height, to_width, to_blocks;
  int terms; // of a block: 32, or the channels of `from`
  int kernel, stride;
  bool backward;
  const bf16 *from, *w; // w: packed
  bf16 *to;
  int chunk_rows, chunks; // rows of all groups, counted through
  finish end;
} gather_job;

// The row or column of `from` that a tap meets from `position` in `to`; -1: none.
static int meets(const gather_job *j, int position, int tap, int size) {
  const int padding = j->kernel / 2;
  int at = j->backward ? position + padding - tap : j->stride * position + tap - padding;
  if (j->backward && at % j->stride) return -1;
  if (j->backward) at /= j->stride;
  return at < 0 || at >= size ? -1 : at;
}

static int find_taps(const gather_job *j, block_run runs[9], int group, int row, int column,
                     int block) {
  const int pixels = j->from_height * j->from_width, taps = j->kernel * j->kernel;
  int count = 0;
  for (int r = 0; r < j->kernel; r++) {
    const int h = meets(j, row, r, j->from_height);
    for (int s = 0; h >= 0 && s < j->kernel; s++) {
      const int v = meets(j, column, s, j->from_width);
      if (v < 0) continue;
      const size_t filter = ((size_t)block * taps + r * j->kernel + s) * j->from_blocks;
      runs[count++] =
          (block_run){j->from + block_at(group, pixels, h * j->from_width + v, j->from_blocks),
                      j->w + filter * BLOCK, j->from_blocks};
    }
  }
  return count;
}

static void read_results(float values[SIDE], const float *c, int row) {
  memcpy(values, c + c_at(row, 0), 16 * sizeof *c);
  memcpy(values + 16, c + c_at(row, 16), 16 * sizeof *c);
}

// Rounds and stores; adds what was stored to sums, 32 images in float, then in double. (No more
// terms than that are added in float, far fewer than sum_columns in gpu/tile.h allows for.)
static void store_with_sums(bf16 *to, const float *c, int images, double *sums) {
  float sum[SIDE] = {0}, square[SIDE] = {0};
  for (int i = 0; i < images; i++) {
    float value[SIDE];
    bf16 rounded[SIDE];
    read_results(value, c, i);
#pragma omp simd
    for (int k = 0; k < SIDE; k++) {
      rounded[k] = to_bf16(value[k]);
      const float stored = to_float(rounded[k]);
      sum[k] += stored;
      square[k] += stored * stored;
    }
    write_row(to + i * SIDE, rounded);
  }
#pragma omp simd
  for (int k = 0; k < SIDE; k++) {
    sums[k] += (double)sum[k];
    sums[SIDE + k] += (double)square[k];
  }
}

static void store_normalised(bf16 *to, const float *c, int images, const finish *f, int block,
                             const bf16 *residual) {
  const float *scale = f->scale + block * SIDE, *shift = f->shift + block * SIDE;
  for (int i = 0; i < images; i++) {
    float value[SIDE], added[SIDE] = {0};
    read_results(value, c, i);
    if (residual) load_row(added, residual + i * SIDE);
#pragma omp simd
    for (int k = 0; k < SIDE; k++) {
      const float normal = value[k] * scale[k] + shift[k] + added[k];
      value[k] = f->relu && normal < 0 ? 0 : normal; // this way round, a NaN stays one
    }
    store_row(to + i * SIDE, value);
  }
}

static void store_plainly(bf16 *to, const float *c, int images, bool accumulate) {
  for (int i = 0; i < images; i++) {
    float value[SIDE], before[SIDE] = {0};
    read_results(value, c, i);
    if (accumulate) load_row(before, to + i * SIDE);
#pragma omp simd
    for (int k = 0; k < SIDE; k++) value[k] += before[k];
    store_row(to + i * SIDE, value);
  }
}

// 32 channels (`block` of them) of a chunk of rows.
static void gather_chunk(const gather_job *j, int chunk, int block) {
  _Alignas(64) float c[BLOCK];
  const int first = chunk * j->chunk_rows, rows = blocks_of(j->images) * j->to_height;
  const int end = MIN(first + j->chunk_rows, rows);
  double *sums =
      j->end.sums ? j->end.sums + ((size_t)chunk * j->to_blocks + block) * 2 * SIDE : NULL;
  if (sums) memset(sums, 0, 2 * SIDE * sizeof *sums);
  for (int i = first * j->to_width; i < end * j->to_width; i++) { // pixels
    const int column = i % j->to_width, row = i / j->to_width % j->to_height;
    const int group = i / j->to_width / j->to_height, images = images_of(j->images, group);
    block_run runs[9];
    const int count = find_taps(j, runs, group, row, column, block);
    const size_t at = ((size_t)i * j->to_blocks + block) * BLOCK;
    if (j->end.accumulate && !count) continue; // pixels that no tap meets (1x1, stride 2): + 0
    bf16_multiplier->product(c, false, runs, count, BLOCK, images, j->terms);
    if (sums)
      store_with_sums(j->to + at, c, images, sums);
    else if (j->end.scale)
      store_normalised(j->to + at, c, images, &j->end, block,
                       j->end.residual ? j->end.residual + at : NULL);
    else
      store_plainly(j->to + at, c, images, j->end.accumulate);
    clear_rows(j->to + at, images);
  }
}

static void gather(const gather_job *j) {
#pragma omp parallel
  {
    bf16_multiplier->open();
#pragma omp for collapse(2) schedule(static)
    for (int chunk = 0; chunk < j->chunks; chunk++)
      for (int block = 0; block < j->to_blocks; block++) gather_chunk(j, chunk, block);
    finish_rows();
    bf16_multiplier->close();
  }
}

enum { CHUNK_PIXELS = 128 }; // of each of 32 images: their input and filters fit the second cache

static gather_job make_gather(const conv_shape *s, void *to, const void *from, bool backward) {
  gather_job j = {.images = s->batch,
                  .from_height = s->in_height,
                  .from_width = s->in_width,
                  .from_blocks = blocks_of(s->in_channels),
                  .to_height = s->out_height,
                  .to_width = s->out_width,
                  .to_blocks = blocks_of(s->out_channels),
                  .terms = MIN(SIDE, backward ? s->out_channels : s->in_channels),
                  .kernel = s->kernel,
                  .stride = s->stride,
                  .backward = backward,
                  .from = from,
                  .to = to};
  if (backward) {
    j.from_height = s->out_height, j.from_width = s->out_width, j.from_blocks = j.to_blocks;
    j.to_height = s->in_height, j.to_width = s->in_width, j.to_blocks = blocks_of(s->in_channels);
  }
  j.chunk_rows = MAX(1, MIN(8, CHUNK_PIXELS / j.to_width));
  j.chunks = DIVIDE_UP(blocks_of(s->batch) * j.to_height, j.chunk_rows);
  return j;
}

// Working memory: the packed filters, and behind them `more` bytes.
static void *working_memory(const conv_shape *s, size_t more, bf16 **packed) {
  const size_t taps = (size_t)s->kernel * s->kernel;
  const size_t bytes =
      taps * blocks_of(s->in_channels) * blocks_of(s->out_channels) * BLOCK * sizeof(bf16);
  *packed = cpu_scratch(bytes + more);
  return (char *)*packed + bytes;
}

// The chunks' sums, in their order. sums: [2][channels]
static void add_chunks(double *sums, const gather_job *j, int channels) {
  for (int k = 0; k < channels; k++) {
    sums[k] = sums[channels + k] = 0;
    for (int chunk = 0; chunk < j->chunks; chunk++) {
      const double *of =
          j->end.sums + ((size_t)chunk * j->to_blocks + k / SIDE) * 2 * SIDE + k % SIDE;
      sums[k] += of[0];
      sums[channels + k] += of[SIDE];
    }
  }
}

void bf16_conv_forward(const conv_shape *s, void *z, const void *x, const void *w, double *sums) {
  gather_job j = make_gather(s, z, x, false);
  bf16 *packed;
  double *partials =
      working_memory(s, (size_t)j.chunks * j.to_blocks * 2 * SIDE * sizeof *partials, &packed);
  pack_filters(packed, w, s, false);
  j.w = packed;
  if (sums) j.end.sums = partials;
  gather(&j);
  if (sums) add_chunks(sums, &j, s->out_channels);
}

void bf16_conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                              const real *gamma, const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var) {
  gather_job j = make_gather(s, y, x, false);
  const size_t channels = (size_t)j.to_blocks * SIDE;
  bf16 *packed;
  float *scale = working_memory(s, 2 * channels * sizeof *scale, &packed);
  bf16_inference_factors(s->out_channels, scale, scale + channels, gamma, beta, running_mean,
                         running_var);
  pack_filters(packed, w, s, false);
  j.w = packed;
  j.end = (finish){.scale = scale, .shift = scale + channels, .residual = residual, .relu = relu};
  gather(&j);
}

void bf16_conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                              bool accumulate) {
  gather_job j = make_gather(s, dx, dz, true);
  bf16 *packed;
  working_memory(s, 0, &packed);
  pack_filters(packed, w, s, true);
  j.w = packed;
  j.end.accumulate = accumulate;
  gather(&j);
}

// -- Weight gradient -----------------------------------------------------------------------------
//
// dw of a tap, 32 filters and 32 channels: the sum over pixels of dz^T x, each product with images
// as its terms. The pixels are cut into chunks: `groups` x `rows` rows of z, so that dz and x of a
// chunk stay in the second cache in the orders that products need. Chunks are cut into `parts`, each
// with sums of its own; a task is a part and a slice of the filters.
//
// How many parts is a question of memory: at width 64 a part's sums take up to 9.4 MB. How many
// slices follows from the number of threads, which changes no bits, as a filter's sums are the same
// in whatever slice they are.

enum {
  PARTS = 16,      // x 32 filters: the most tasks that can help
  FEW_PIXELS = 32, // of a group, below which a chunk has several groups
  MOST_RUNS = CHUNK_PIXELS,
};

typedef struct {
  const conv_shape *s;
  const bf16 *dz, *x;
  int filters, channels; // blocks of them
  int groups, rows;      // of a chunk
  int down, chunks;      // chunks of a group, in all
  int parts;
  float *sums; // [parts][filters][channels][taps] blocks c
} weight_job;

// A chunk's place.
typedef struct {
  int group, groups, row, rows; // of z
  int first_row, in_rows;       // of x, that its pixels meet
} chunk_place;

static chunk_place place_of(const weight_job *j, int chunk) {
  const conv_shape *s = j->s;
  chunk_place p = {.group = chunk / j->down * j->groups, .row = chunk % j->down * j->rows};
  p.groups = MIN(j->groups, blocks_of(s->batch) - p.group);
  p.rows = MIN(j->rows, s->out_height - p.row);
  p.first_row = MAX(0, p.row * s->stride - s->kernel / 2);
  const int last = (p.row + p.rows - 1) * s->stride - s->kernel / 2 + s->kernel - 1;
  p.in_rows = MIN(s->in_height - 1, last) - p.first_row + 1;
  return p;
}

// dz with filters as rows: [filter blocks of the slice][groups][rows][columns]
static void transpose_chunk(bf16 *to, const weight_job *j, chunk_place p, int filter, int end) {
  const conv_shape *s = j->s;
  for (int f = filter; f < end; f++)
    for (int g = p.group; g < p.group + p.groups; g++)
      for (int i = p.row * s->out_width; i < (p.row + p.rows) * s->out_width; i++, to += BLOCK) {
        _Alignas(64) bf16 paired[BLOCK];
        pair_rows(paired, j->dz + block_at(g, s->out_height * s->out_width, i, j->filters) +
                              (size_t)f * BLOCK);
        transpose_halves(to, paired);
      }
}

// 32 channels of x with pairs of images: [groups][in_rows][columns]
static void pair_chunk(bf16 *to, const weight_job *j, chunk_place p, int channel) {
  const conv_shape *s = j->s;
  for (int g = p.group; g < p.group + p.groups; g++)
    for (int i = p.first_row * s->in_width; i < (p.first_row + p.in_rows) * s->in_width;
         i++, to += BLOCK)
      pair_rows(to, j->x + block_at(g, s->in_height * s->in_width, i, j->channels) +
                        (size_t)channel * BLOCK);
}

// Runs along the rows of z, of the pixels that a tap meets within the image.
static int find_pixels(block_run runs[MOST_RUNS], const weight_job *j, chunk_place p,
                       const bf16 *dz, const bf16 *x, int tap) {
  const conv_shape *s = j->s;
  const int padding = s->kernel / 2, down = tap / s->kernel - padding;
  const int right = tap % s->kernel - padding; // of the pixel (stride p, stride q)
  const int begin = right < 0 ? DIVIDE_UP(-right, s->stride) : 0;
  const int end = MIN(s->out_width, (s->in_width - 1 - right) / s->stride + 1);
  int count = 0;
  if (s->in_width - 1 - right < 0) return 0;
  for (int g = 0; g < p.groups; g++)
    for (int row = 0; row < p.rows; row++) {
      const int h = (p.row + row) * s->stride + down;
      if (h < 0 || h >= s->in_height || end <= begin) continue;
      const int in_row = g * p.in_rows + h - p.first_row;
      runs[count++] = (block_run){
          dz + ((size_t)(g * p.rows + row) * s->out_width + begin) * BLOCK,
          x + ((size_t)in_row * s->in_width + begin * s->stride + right) * BLOCK, end - begin};
    }
  return count;
}

static void add_chunk(const weight_job *j, int chunk, bool add, float *sums, int filter, int end,
                      bf16 *dz, bf16 *x) {
  const conv_shape *s = j->s;
  const int taps = s->kernel * s->kernel;
  const chunk_place p = place_of(j, chunk);
  const size_t of_filter = (size_t)p.groups * p.rows * s->out_width * BLOCK;
  transpose_chunk(dz, j, p, filter, end);
  for (int channel = 0; channel < j->channels; channel++) {
    pair_chunk(x, j, p, channel);
    for (int f = filter; f < end; f++)
      for (int tap = 0; tap < taps; tap++) {
        block_run runs[MOST_RUNS];
        const int count = find_pixels(runs, j, p, dz + (f - filter) * of_filter, x, tap);
        float *c = sums + (((size_t)f * j->channels + channel) * taps + tap) * BLOCK;
        bf16_multiplier->product(c, add, runs, count, (size_t)s->stride * BLOCK,
                                 MIN(SIDE, s->out_channels - f * SIDE), MIN(SIDE, s->batch));
      }
  }
}

// dw: [Cout][R S][Cin] from the parts' sums, in the parts' order.
static void write_gradient(real *dw, const weight_job *j) {
  const conv_shape *s = j->s;
  const int taps = s->kernel * s->kernel;
  const size_t part_size = (size_t)j->filters * j->channels * taps * BLOCK;
#pragma omp parallel for collapse(2)
  for (int k = 0; k < s->out_channels; k++)
    for (int tap = 0; tap < taps; tap++)
      for (int c = 0; c < s->in_channels; c++) {
        const size_t block = ((size_t)(k / SIDE) * j->channels + c / SIDE) * taps + tap;
        const float *from = j->sums + block * BLOCK + c_at(k % SIDE, c % SIDE);
        float sum = from[0];
        for (int part = 1; part < j->parts; part++) sum += from[part * part_size];
        dw[((size_t)k * taps + tap) * s->in_channels + c] = sum;
      }
}

static weight_job make_weight_job(const conv_shape *s, const void *dz, const void *x) {
  const int pixels = s->out_height * s->out_width, all_groups = blocks_of(s->batch);
  weight_job j = {.s = s,
                  .dz = dz,
                  .x = x,
                  .filters = blocks_of(s->out_channels),
                  .channels = blocks_of(s->in_channels),
                  .rows = MAX(1, MIN(s->out_height, CHUNK_PIXELS / s->out_width)),
                  .groups = MAX(1, MIN(all_groups, FEW_PIXELS / pixels))};
  j.down = DIVIDE_UP(s->out_height, j.rows);
  j.chunks = DIVIDE_UP(all_groups, j.groups) * j.down;
  j.parts = MIN(j.chunks, MAX(1, PARTS / j.filters));
  return j;
}

void bf16_conv_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
  weight_job j = make_weight_job(s, dz, x);
  const int taps = s->kernel * s->kernel, threads = omp_get_max_threads();
  const int slices = MIN(j.filters, DIVIDE_UP(threads, j.parts));
  const int slice = DIVIDE_UP(j.filters, slices);
  const size_t part_size = (size_t)j.filters * j.channels * taps * BLOCK;
  const size_t dz_size = (size_t)slice * j.groups * j.rows * s->out_width * BLOCK;
  const int in_rows = MIN(s->in_height, (j.rows - 1) * s->stride + s->kernel);
  const size_t x_size = (size_t)j.groups * in_rows * s->in_width * BLOCK;
  j.sums = cpu_scratch(j.parts * part_size * sizeof *j.sums +
                       threads * (dz_size + x_size) * sizeof(bf16));
  bf16 *buffers = (bf16 *)(j.sums + j.parts * part_size);
#pragma omp parallel
  {
    bf16 *buffer = buffers + omp_get_thread_num() * (dz_size + x_size);
    bf16_multiplier->open();
#pragma omp for collapse(2) schedule(dynamic)
    for (int part = 0; part < j.parts; part++)
      for (int f = 0; f < slices; f++) {
        const int first = (int)((long)part * j.chunks / j.parts);
        const int end = (int)((part + 1L) * j.chunks / j.parts);
        for (int chunk = first; chunk < end; chunk++)
          add_chunk(&j, chunk, chunk > first, j.sums + part * part_size, f * slice,
                    MIN(j.filters, (f + 1) * slice), buffer, buffer + dz_size);
      }
    bf16_multiplier->close();
  }
  write_gradient(dw, &j);
}
