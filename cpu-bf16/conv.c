// cpu-bf16/conv.c - convolution on a CPU's tensor cores: its output and its input gradient; the weight
// gradient is in conv_weight.c.
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
//     weight gradient   tap: list of pixels, dz transposed times x    (conv_weight.c)
//
// Weights are packed into blocks at each call, as cpu/conv.c does it: reading 45 MB of floats at
// width 64 is some 2 per cent of a step. (To keep both packings beside the weights would save them.)
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
