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
// Weights are packed into blocks at each call, as cpu/conv.c does it. That is 2 per cent of a step at width
// 64. (SGD could write both packings, and save a part of that: they would then come from memory, where
// here they have just been written. Not tried.)
//
// What is done to 32 x 32 results while they are in the first cache, 4 KB of floats, is free: to
// round them, to add up the sums that batch normalisation needs, in evaluation to normalise them, on
// the way back to apply ReLU's mask and add up the sums that the norm below needs (`ending`, below).
//
// The stem has 3 channels and would pay for 32 at each of 9 taps. Its patches of 27 numbers are gathered
// after all, one block a pixel, and then it is a 1x1 convolution of 27 channels: a ninth of the products.
//
// Chunks of rows go to threads. What a chunk adds up, and the order in which chunks' sums are added,
// follow from the shape alone, so the bits do not depend on the number of threads.
//
// Checked by `make check`: tests/kernels_test.c, on every layer shape of the network.
#include "conv.h"

#include "cpu/conv.h"
#include "reference/reference.h"
#include "resnet18.h"
#include "run/error.h"

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
#pragma omp parallel for schedule(dynamic, 16)
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

// -- Patches of few channels ----------------------------------------------------------------------
//
// A block's row holds an image's patch: [taps][channels] as in a filter, so w needs no other order.
// Four channels are copied at once. The fourth of 3, a zero, is written over by the next tap's first.

enum { COPIED = 4 };

bool bf16_takes_patches(const conv_shape *s) {
  const int taps = s->kernel * s->kernel;
  return taps > 1 &&
         (taps - 1) * s->in_channels + DIVIDE_UP(s->in_channels, COPIED) * COPIED <= SIDE;
}

conv_shape bf16_patch_shape(const conv_shape *s) {
  conv_shape flat = *s;
  flat.in_height = s->out_height, flat.in_width = s->out_width;
  flat.in_channels = s->kernel * s->kernel * s->in_channels;
  flat.kernel = flat.stride = 1;
  return flat;
}

size_t bf16_patch_count(const conv_shape *s) {
  return (size_t)blocks_of(s->batch) * s->out_height * s->out_width * BLOCK;
}

// Tap (r, s) of pixel (p, q), which meets pixel (h, v) of x, for 32 images.
static void gather_tap(bf16 *patch, const conv_shape *shape, const bf16 *x, int r, int s) {
  bf16 *to = patch + (r * shape->kernel + s) * shape->in_channels;
  for (int i = 0; i < SIDE; i++)
    for (int c = 0; c < shape->in_channels; c += COPIED)
      memcpy(to + i * SIDE + c, x + i * SIDE + c, COPIED * sizeof *to);
}

void bf16_gather_patches(bf16 *to, const conv_shape *shape, const bf16 *x) {
  const int padding = shape->kernel / 2, in_pixels = shape->in_height * shape->in_width;
#pragma omp parallel for schedule(dynamic, 64)
  for (int i = 0; i < blocks_of(shape->batch) * shape->out_height * shape->out_width; i++) {
    const int q = i % shape->out_width, p = i / shape->out_width % shape->out_height;
    const int group = i / shape->out_width / shape->out_height;
    bf16 *patch = to + (size_t)i * BLOCK;
    memset(patch, 0, BLOCK * sizeof *patch);
    for (int r = 0; r < shape->kernel; r++)
      for (int s = 0; s < shape->kernel; s++) {
        const int h = shape->stride * p + r - padding, v = shape->stride * q + s - padding;
        if (h >= 0 && h < shape->in_height && v >= 0 && v < shape->in_width)
          gather_tap(patch, shape, x + block_at(group, in_pixels, h * shape->in_width + v, 1), r,
                     s);
      }
  }
}

// -- Output and input gradient -------------------------------------------------------------------

// What becomes of a block of results before it is stored.
typedef enum {
  END_PLAIN, // nothing; or what was there is added
  END_SUMS,  // its sums, for the norm above, are added up
  END_NORM,  // evaluation's norm, residual sum and ReLU
  END_MASK,  // ReLU's mask of the layer below, and that layer's sums (norm_below in device.h)
} ending;

enum {
  FACTORS = 3,    // a channel: scale, shift, mean
  NEIGHBOURS = 2, // blocks of a pixel done one after another, as they lie: a page
};

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
  ending end;
  bool accumulate;               // END_PLAIN, END_MASK: to += in place of to =
  bool relu;                     // END_NORM
  const bf16 *residual;          // END_NORM: added; or NULL
  const bf16 *z_below, *y_below; // END_MASK; y_below: or NULL, then z tells
  double *sums;                  // [chunk][channel block][2][32]
  float *factors;                // [FACTORS][channels of `to`, whole blocks]
} gather_job;

static float *scale_of(const gather_job *j) {
  return j->factors;
}

static float *shift_of(const gather_job *j) {
  return j->factors + (size_t)j->to_blocks * SIDE;
}

static float *mean_of(const gather_job *j) {
  return j->factors + (size_t)2 * j->to_blocks * SIDE;
}

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

// Half of a row of results.
static inline floats results(const float *c, int row, int half) {
  return load_floats(c + c_at(row, half * WORDS));
}

// Rounds and stores z; adds up what was stored, and its squares.
static void store_with_sums(bf16 *to, const float *c, int images, double *sums) {
  pair sum = {0}, square = {0};
  for (int i = 0; i < images; i++)
    for (int h = 0; h < HALVES; h++) {
      const floats stored = store_half(to + i * SIDE + h * WORDS, results(c, i, h));
      sum.of[h] += stored;
      square.of[h] += stored * stored;
    }
  add_sums(sums, &sum, &square);
}

static void store_normalised(const gather_job *j, size_t at, const float *c, int images,
                             int block) {
  const pair scale = load_pair(scale_of(j) + block * SIDE);
  const pair shift = load_pair(shift_of(j) + block * SIDE);
  for (int i = 0; i < images; i++)
    for (int h = 0; h < HALVES; h++) {
      const size_t here = at + i * SIDE + h * WORDS;
      floats y = results(c, i, h) * scale.of[h] + shift.of[h];
      if (j->residual) y += load_half(j->residual + here);
      store_half(j->to + here, j->relu ? relu(y) : y);
    }
}

static void store_plainly(const gather_job *j, size_t at, const float *c, int images) {
  for (int i = 0; i < images; i++)
    for (int h = 0; h < HALVES; h++) {
      bf16 *to = j->to + at + i * SIDE + h * WORDS;
      store_half(to, j->accumulate ? results(c, i, h) + load_half(to) : results(c, i, h));
    }
}

// g, the gradient where ReLU let its input through, else 0; adds up the g that was stored, and
// g (z - mean). A ReLU without residual let through what scale z + shift makes positive: the y of
// bf16_norm_apply, computed again.
static void store_masked(const gather_job *j, size_t at, const float *c, int images, int block,
                         double *sums) {
  const pair scale = load_pair(scale_of(j) + block * SIDE);
  const pair shift = load_pair(shift_of(j) + block * SIDE);
  const pair mean = load_pair(mean_of(j) + block * SIDE);
  pair sum = {0}, product = {0};
  for (int i = 0; i < images; i++)
    for (int h = 0; h < HALVES; h++) {
      const size_t here = at + i * SIDE + h * WORDS;
      const floats z = load_half(j->z_below + here);
      const floats y = j->y_below ? load_half(j->y_below + here) : z * scale.of[h] + shift.of[h];
      const floats dy =
          j->accumulate ? results(c, i, h) + load_half(j->to + here) : results(c, i, h);
      const floats g = store_half(j->to + here, masked(dy, y));
      sum.of[h] += g;
      product.of[h] += g * (z - mean.of[h]);
    }
  add_sums(sums, &sum, &product);
}

static void store_block(const gather_job *j, size_t at, const float *c, int images, int block,
                        double *sums) {
  switch (j->end) {
  case END_PLAIN:
    store_plainly(j, at, c, images);
    break;
  case END_SUMS:
    store_with_sums(j->to + at, c, images, sums);
    break;
  case END_NORM:
    store_normalised(j, at, c, images, block);
    break;
  case END_MASK:
    store_masked(j, at, c, images, block, sums);
    break;
  }
  clear_rows(j->to + at, images);
}

// 32 channels (`block` of them) of one pixel; i counts them through.
static void gather_block(const gather_job *j, int i, int block, double *sums) {
  _Alignas(64) float c[BLOCK];
  const int column = i % j->to_width, row = i / j->to_width % j->to_height;
  const int group = i / j->to_width / j->to_height, images = images_of(j->images, group);
  block_run runs[9];
  const int count = find_taps(j, runs, group, row, column, block);
  const size_t at = ((size_t)i * j->to_blocks + block) * BLOCK;
  // Pixels that no tap meets (1x1, stride 2): + 0
  if (!count && j->accumulate && j->end == END_PLAIN) return;
  bf16_multiplier->product(c, false, runs, count, BLOCK, images, j->terms);
  store_block(j, at, c, images, block, sums);
}

// So many channels of a chunk of rows.
static void gather_chunk(const gather_job *j, int chunk, int first_block) {
  const int first = chunk * j->chunk_rows, rows = blocks_of(j->images) * j->to_height;
  const int end = MIN(first + j->chunk_rows, rows);
  const int end_block = MIN(first_block + NEIGHBOURS, j->to_blocks);
  double *sums = j->sums + (size_t)chunk * j->to_blocks * 2 * SIDE;
  memset(sums + first_block * 2 * SIDE, 0, (end_block - first_block) * 2 * SIDE * sizeof *sums);
  for (int i = first * j->to_width; i < end * j->to_width; i++)
    for (int block = first_block; block < end_block; block++)
      gather_block(j, i, block, sums + block * 2 * SIDE);
}

static void gather(const gather_job *j) {
#pragma omp parallel
  {
    bf16_multiplier->open();
#pragma omp for collapse(2) schedule(dynamic)
    for (int chunk = 0; chunk < j->chunks; chunk++)
      for (int block = 0; block < j->to_blocks; block += NEIGHBOURS) gather_chunk(j, chunk, block);
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

// What a pass needs besides its arguments: packed filters, patches, and sums or factors.
static gather_job prepare(const conv_shape *shape, void *to, const void *from, const float *w,
                          bool backward) {
  const bool gathered = !backward && bf16_takes_patches(shape);
  const conv_shape s = gathered ? bf16_patch_shape(shape) : *shape;
  gather_job j = make_gather(&s, to, from, backward);
  const size_t filters = (size_t)s.kernel * s.kernel * j.from_blocks * j.to_blocks * BLOCK;
  const size_t patches = gathered ? bf16_patch_count(shape) : 0;
  const size_t sums = (size_t)j.chunks * j.to_blocks * 2 * SIDE;
  const size_t factors = (size_t)FACTORS * j.to_blocks * SIDE;
  bf16 *packed = cpu_scratch((filters + patches) * sizeof *packed + sums * sizeof *j.sums +
                             factors * sizeof *j.factors);
  j.sums = (double *)(packed + filters + patches);
  j.factors = (float *)(j.sums + sums);
  if (gathered) {
    bf16_gather_patches(packed + filters, shape, from);
    j.from = packed + filters;
  }
  pack_filters(packed, w, &s, backward);
  j.w = packed;
  return j;
}

// The chunks' sums, in their order. sums: [2][channels]
static void add_chunks(double *sums, const gather_job *j, int channels) {
  for (int k = 0; k < channels; k++) {
    sums[k] = sums[channels + k] = 0;
    for (int chunk = 0; chunk < j->chunks; chunk++) {
      const double *of = j->sums + ((size_t)chunk * j->to_blocks + k / SIDE) * 2 * SIDE + k % SIDE;
      sums[k] += of[0];
      sums[channels + k] += of[SIDE];
    }
  }
}

void bf16_conv_forward(const conv_shape *s, void *z, const void *x, const void *w, double *sums) {
  gather_job j = prepare(s, z, x, w, false);
  j.end = sums ? END_SUMS : END_PLAIN;
  gather(&j);
  if (sums) add_chunks(sums, &j, s->out_channels);
}

void bf16_conv_statistics(const conv_shape *s, void *z, const void *x, const void *w,
                          const norm_arrays *n) {
  const norm_shape shape = {s->batch * s->out_height * s->out_width, s->out_channels, s->batch};
  double *sums = allocate(2 * (size_t)s->out_channels * sizeof *sums);
  bf16_conv_forward(s, z, x, w, sums);
  reference_norm_statistics(&shape, sums, n->running_mean, n->running_var, n->mean, n->inverse_std);
  free(sums);
}

void bf16_conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                              const real *gamma, const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var) {
  gather_job j = prepare(s, y, x, w, false);
  bf16_inference_factors(s->out_channels, scale_of(&j), shift_of(&j), gamma, beta, running_mean,
                         running_var);
  j.end = END_NORM;
  j.residual = residual;
  j.relu = relu;
  gather(&j);
}

void bf16_conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                              bool accumulate) {
  gather_job j = prepare(s, dx, dz, w, true);
  j.accumulate = accumulate;
  gather(&j);
}

void bf16_conv_backward_masked(const conv_shape *s, void *g, const void *dz, const void *w,
                               bool accumulate, const norm_below *below) {
  const int channels = s->in_channels;
  const norm_arrays *n = &below->norm;
  double *sums = allocate(2 * (size_t)channels * sizeof *sums);
  gather_job j = prepare(s, g, dz, w, true);
  bf16_norm_factors(channels, scale_of(&j), shift_of(&j), n->gamma, n->beta, n->mean,
                    n->inverse_std);
  memset(mean_of(&j), 0, (size_t)j.to_blocks * SIDE * sizeof(float));
  memcpy(mean_of(&j), n->mean, channels * sizeof(float));
  j.end = END_MASK;
  j.accumulate = accumulate;
  j.z_below = below->z;
  j.y_below = below->y;
  gather(&j);
  add_chunks(sums, &j, channels);
  for (int k = 0; k < channels; k++) {
    below->dbeta[k] = (real)sums[k];
    below->dgamma[k] = (real)(sums[channels + k] * n->inverse_std[k]);
  }
  free(sums);
}
