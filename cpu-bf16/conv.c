// cpu-bf16/conv.c - convolution on a CPU's tensor cores: its output and its input gradient; the weight
// gradient is in conv_weight.c.
//
// conv.cu makes a matrix product of a convolution by gathering patches. Here the product is one of
// blocks (blocks.h), and, but for the stem, nothing is gathered. Take one pixel of the output, 32 images and 32
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
// Weights are packed into blocks at each call, and the stem's patches are gathered (pack.c).
//
// Much is done to 32 x 32 results while they are in the first cache, 4 KB of floats: they are rounded, the
// sums that batch normalisation needs are added up, in evaluation they are normalised, on the way back
// ReLU's mask is applied and the sums that the norm below needs are added up (`ending`, below). Tile
// instructions leave most of a core idle, so all that is done aside: a few rows after each pair of blocks
// of the next pixel's product.
//
// Chunks of rows, and slices of their channels where chunks are few, go to threads. What a chunk adds up,
// and the order in which chunks' sums are added, follow from the shape alone, so the bits do not depend on
// the number of threads.
//
// Checked by `make check`: tests/kernels_test.c, on every layer shape of the network.
#include "conv.h"

#include "cpu/conv.h"
#include "reference/reference.h"
#include "resnet18.h"
#include "run/error.h"
#include <omp.h>

const multiplier *bf16_multiplier = &plain_multiplier;

// -- Output and input gradient -------------------------------------------------------------------

// What becomes of a block of results before it is stored.
typedef enum {
  END_PLAIN, // nothing; or what was there is added
  END_SUMS,  // its sums, for the norm above, are added up
  END_NORM,  // evaluation's norm, residual sum and ReLU
  END_MASK,  // ReLU's mask of the layer below, and that layer's sums (norm_below in device.h)
} ending;

enum {
  FACTORS = 3,        // a channel: scale, shift, mean
  TASKS_A_THREAD = 4, // so that none waits long for the last
  MOST_KERNEL = 3,
  MOST_TAPS = MOST_KERNEL * MOST_KERNEL,
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

// Rows (or columns) of `from` that the taps of a row (or column) of `to` meet, or -1.
static void find_met(const gather_job *j, int met[MOST_KERNEL], int position, int size) {
  for (int tap = 0; tap < j->kernel; tap++) {
    const int padding = j->kernel / 2;
    int at = j->backward ? position + padding - tap : j->stride * position + tap - padding;
    const bool between = j->backward && j->stride > 1 && at % j->stride;
    if (j->backward && j->stride > 1) at /= j->stride;
    met[tap] = between || at < 0 || at >= size ? -1 : at;
  }
}

// The pixel's taps: met_rows are those of `from` that they meet.
static int find_taps(const gather_job *j, block_run runs[MOST_TAPS], int group,
                     const int met_rows[MOST_KERNEL], int column, int block) {
  const int pixels = j->from_height * j->from_width, taps = j->kernel * j->kernel;
  const size_t first = (size_t)block * taps; // of the block's filters in w
  int count = 0, columns[MOST_KERNEL];
  find_met(j, columns, column, j->from_width);
  for (int r = 0; r < j->kernel; r++)
    for (int s = 0; met_rows[r] >= 0 && s < j->kernel; s++)
      if (columns[s] >= 0)
        runs[count++] = (block_run){
            j->from +
                block_at(group, pixels, met_rows[r] * j->from_width + columns[s], j->from_blocks),
            j->w + (first + r * j->kernel + s) * j->from_blocks * BLOCK, j->from_blocks};
  return count;
}

// A block of results on its way to memory.
typedef struct {
  side_work work; // the first member: a pointer to it can be cast to one to the whole
  const gather_job *j;
  const float *c; // [32][32]
  size_t at;      // where it goes
  int images;     // of the group
  int block;      // which 32 channels
  pair sum;       // over the images, in float
  pair other;     // the same, of squares (END_SUMS) or of g (z - mean) (END_MASK)
} result;

// Rounds and stores z; adds up what was stored, and its squares.
static void store_with_sums(side_work *work, int first, int end) {
  result *r = (result *)work;
  pair sum = r->sum, square = r->other; // in registers meanwhile
  for (int i = first; i < end; i++) {
    const pair z = store_row(r->j->to + r->at + i * SIDE, load_pair(r->c + i * SIDE));
    for (int h = 0; h < HALVES; h++) {
      sum.of[h] += z.of[h];
      square.of[h] += z.of[h] * z.of[h];
    }
  }
  r->sum = sum, r->other = square;
}

static void store_normalised(side_work *work, int first, int end) {
  const result *r = (result *)work;
  const gather_job *j = r->j;
  const pair scale = load_pair(scale_of(j) + r->block * SIDE);
  const pair shift = load_pair(shift_of(j) + r->block * SIDE);
  for (int i = first; i < end; i++) {
    pair y = load_pair(r->c + i * SIDE);
    for (int h = 0; h < HALVES; h++) {
      y.of[h] = normalised(y.of[h], scale.of[h], shift.of[h]);
      if (j->residual) y.of[h] += load_half(j->residual + r->at + i * SIDE + h * WORDS);
      if (j->relu) y.of[h] = relu(y.of[h]);
    }
    store_row(j->to + r->at + i * SIDE, y);
  }
}

static void store_plainly(side_work *work, int first, int end) {
  const result *r = (result *)work;
  for (int i = first; i < end; i++) {
    bf16 *to = r->j->to + r->at + i * SIDE;
    pair row = load_pair(r->c + i * SIDE);
    for (int h = 0; r->j->accumulate && h < HALVES; h++) row.of[h] += load_half(to + h * WORDS);
    store_row(to, row);
  }
}

// g, the gradient where ReLU let its input through, else 0; adds up the g that was stored, and
// g (z - mean). A ReLU without residual let through what scale z + shift makes positive: the y of
// bf16_norm_apply, computed again.
static void store_masked(side_work *work, int first, int end) {
  result *r = (result *)work;
  const gather_job *j = r->j;
  const pair scale = load_pair(scale_of(j) + r->block * SIDE);
  const pair shift = load_pair(shift_of(j) + r->block * SIDE);
  const pair mean = load_pair(mean_of(j) + r->block * SIDE);
  pair sum = r->sum, product = r->other;
  for (int i = first; i < end; i++) {
    const size_t row = r->at + i * SIDE;
    pair g = load_pair(r->c + i * SIDE), z;
    for (int h = 0; h < HALVES; h++) {
      const size_t here = row + h * WORDS;
      z.of[h] = load_half(j->z_below + here);
      const floats y =
          j->y_below ? load_half(j->y_below + here) : normalised(z.of[h], scale.of[h], shift.of[h]);
      if (j->accumulate) g.of[h] += load_half(j->to + here);
      g.of[h] = masked(g.of[h], y);
    }
    g = store_row(j->to + row, g);
    for (int h = 0; h < HALVES; h++) {
      sum.of[h] += g.of[h];
      product.of[h] += g.of[h] * (z.of[h] - mean.of[h]);
    }
  }
  r->sum = sum, r->other = product;
}

static void store_rows(side_work *work, int first, int end) {
  static void (*const endings[])(side_work *, int, int) = {
      [END_PLAIN] = store_plainly,
      [END_SUMS] = store_with_sums,
      [END_NORM] = store_normalised,
      [END_MASK] = store_masked,
  };
  const result *r = (result *)work;
  endings[r->j->end](work, first, MIN(end, r->images));
  clear_rows(r->j->to + r->at, MAX(first, r->images), end);
}

// Adds a stored block's sums to sums.
static void add_result(const result *r, double *sums) {
  add_sums(sums, &r->sum);
  add_sums(sums + SIDE, &r->other);
}

// Asks for what the result at this place will be combined with.
static void fetch_operands(const gather_job *j, size_t at) {
  if (j->z_below) fetch_block(j->z_below + at);
  if (j->y_below) fetch_block(j->y_below + at);
  if (j->residual) fetch_block(j->residual + at);
  if (j->accumulate) fetch_block(j->to + at);
}

// One row of pixels, the 32 channels of number `block`. While one pixel is multiplied, the one before is
// stored. All blocks of w, and of `from` those of two columns of taps in three, were used by the pixel
// before. In reverse, the ones used last come first, while the first cache has them.
static void gather_row(const gather_job *j, int group, int row, int block, double *sums) {
  _Alignas(64) float c[BLOCK];
  const int images = images_of(j->images, group);
  int met_rows[MOST_KERNEL];
  result last = {.work = {.next = SIDE}}; // none yet: nothing to store, and sums of zero
  find_met(j, met_rows, row, j->from_height);
  for (int column = 0; column < j->to_width; column++) {
    block_run runs[MOST_TAPS];
    const int count = find_taps(j, runs, group, met_rows, column, block);
    const size_t at =
        block_at(group, j->to_height * j->to_width, row * j->to_width + column, j->to_blocks) +
        (size_t)block * BLOCK;
    // No tap meets this pixel (1x1, stride 2), so nothing is added to it: it stays as it is.
    if (!count && j->accumulate && j->end == END_PLAIN) continue;
    fetch_operands(j, at);
    bf16_multiplier->product(c, &(block_sum){.runs = runs,
                                             .run_count = count,
                                             .b_step = BLOCK,
                                             .reverse = column % 2,
                                             .rows = images,
                                             .terms = j->terms,
                                             .aside = &last.work});
    add_result(&last, sums);
    last = (result){.work = {.do_some = store_rows},
                    .j = j,
                    .c = c,
                    .at = at,
                    .images = images,
                    .block = block};
  }
  do_rows(&last.work, SIDE);
  add_result(&last, sums);
}

// Some channels of a chunk of rows: those of blocks first_block to end_block - 1. One block after another,
// each for all rows: its filters, at most 295 KB, stay in the second cache.
static void gather_chunk(const gather_job *j, int chunk, int first_block, int end_block) {
  const int first = chunk * j->chunk_rows, all_rows = blocks_of(j->images) * j->to_height;
  const int end = MIN(first + j->chunk_rows, all_rows);
  for (int block = first_block; block < end_block; block++) {
    double *sums = j->sums + ((size_t)chunk * j->to_blocks + block) * 2 * SIDE;
    memset(sums, 0, 2 * SIDE * sizeof *sums);
    for (int row = first; row < end; row++)
      gather_row(j, row / j->to_height, row % j->to_height, block, sums);
  }
}

// Tasks are slices of a chunk's channels. A processor takes a few neighbouring ones at a time: they share
// rows of `from`, which it then has in its own cache.
static void gather(const gather_job *j) {
  const int tasks = TASKS_A_THREAD * omp_get_max_threads();
  const int slices = MIN(j->to_blocks, DIVIDE_UP(tasks, j->chunks));
  const int at_once = MAX(1, j->chunks * slices / tasks);
#pragma omp parallel
  {
    bf16_multiplier->open();
#pragma omp for collapse(2) schedule(dynamic, at_once)
    for (int chunk = 0; chunk < j->chunks; chunk++)
      for (int k = 0; k < slices; k++)
        gather_chunk(j, chunk, j->to_blocks * k / slices, j->to_blocks * (k + 1) / slices);
    finish_stores();
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
  bf16_pack_filters(packed, w, &s, backward);
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
