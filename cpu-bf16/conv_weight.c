// cpu-bf16/conv_weight.c - a convolution's weight gradient on a CPU's tensor cores.
//
// The gradient of one tap (r, s), for 32 filters and 32 channels, is a block: a sum over all pixels
// (p, q) of z, in all groups of 32 images,
//
//     dw[filters][r][s][channels]  =  sum over groups, p, q of
//                                       dz[group][p][q][filters]^T  x[group][h][v][channels]
//
// with h and v as in conv.c. Each product is one of blocks with images as its terms: dz transposed has
// filters as rows, and x already has images as rows. Both are put into the orders that products want
// (blocks.h), a chunk of rows at a time: dz once, x once in each slice of the filters. They stay in the
// second cache and serve all nine taps and all filters of the slice: a tap only starts its list of pixels
// at another place of x.
//
// A chunk is `groups` x `rows` rows of z. Chunks are cut into `parts`, each with sums of its own; a
// task is a part and a slice of the filters. How many parts is a question of memory: at width 64 a
// part's sums take up to 9.4 MB. How many slices follows from the number of threads, which changes no
// bits, as a filter's sums are the same in whatever slice they are. In the end the parts' sums are
// added in the parts' order, and written in dw's. With one part only, as with 512 filters, a block is
// written when its sum is complete: the first cache still has it then, and 9 MB need not be read again.
//
// Checked by `make check`: tests/kernels_test.c, on every layer shape of the network, and
// tests/tiles_test.c (the same bits on any number of threads).
#include "conv.h"

#include "cpu/conv.h"
#include <omp.h>

enum {
  PARTS = 16,      // parts x blocks of filters are about so many; slices make more tasks of them
  FEW_PIXELS = 32, // of a group, below which a chunk has several groups
  MOST_RUNS = CHUNK_PIXELS,
  TASKS_A_THREAD = 2, // so that none waits long for the last
};

typedef struct {
  const conv_shape *s;
  const bf16 *dz, *x;
  real *dw;              // [Cout][R S][Cin]
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
        const bf16 *from =
            j->dz + block_at(g, s->out_height * s->out_width, i, j->filters) + (size_t)f * BLOCK;
        fetch_block(from + (size_t)j->filters * BLOCK);
        pair_rows(paired, from);
        transpose_halves(to, paired);
      }
}

// 32 channels of x with pairs of images: [groups][in_rows][columns]
static void pair_chunk(bf16 *to, const weight_job *j, chunk_place p, int channel) {
  const conv_shape *s = j->s;
  for (int g = p.group; g < p.group + p.groups; g++)
    for (int i = p.first_row * s->in_width; i < (p.first_row + p.in_rows) * s->in_width;
         i++, to += BLOCK) {
      const bf16 *from =
          j->x + block_at(g, s->in_height * s->in_width, i, j->channels) + (size_t)channel * BLOCK;
      fetch_block(from + (size_t)j->channels * BLOCK);
      pair_rows(to, from);
    }
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

// A block of dw, 32 filters x 32 channels of one tap, from the parts' sums, in the parts' order.
static void write_block(const weight_job *j, int filter, int channel, int tap) {
  const conv_shape *s = j->s;
  const int taps = s->kernel * s->kernel, filters = MIN(SIDE, s->out_channels - filter * SIDE);
  const int channels = MIN(SIDE, s->in_channels - channel * SIDE);
  const size_t part_size = (size_t)j->filters * j->channels * taps * BLOCK;
  const float *from = j->sums + (((size_t)filter * j->channels + channel) * taps + tap) * BLOCK;
  real *to = j->dw + ((size_t)filter * SIDE * taps + tap) * s->in_channels + channel * SIDE;
  for (int k = 0; k < filters; k++, to += (size_t)taps * s->in_channels)
    for (int c = 0; c < channels; c += WORDS) {
      floats sum = load_floats(from + k * SIDE + c);
      for (int part = 1; part < j->parts; part++)
        sum += load_floats(from + part * part_size + k * SIDE + c);
      store_floats(to + c, sum, MIN(WORDS, channels - c));
    }
}

// A task's filters, and its memory.
typedef struct {
  int filter, end;
  float *sums;  // of its part
  bf16 *dz, *x; // of a chunk, in the orders for products
} weight_task;

// add: to the part's sums; last: of the part's chunks.
static void add_chunk(const weight_job *j, const weight_task *t, int chunk, bool add, bool last) {
  const conv_shape *s = j->s;
  const int taps = s->kernel * s->kernel;
  const chunk_place p = place_of(j, chunk);
  const size_t of_filter = (size_t)p.groups * p.rows * s->out_width * BLOCK;
  transpose_chunk(t->dz, j, p, t->filter, t->end);
  for (int channel = 0; channel < j->channels; channel++) {
    pair_chunk(t->x, j, p, channel);
    for (int f = t->filter; f < t->end; f++)
      for (int tap = 0; tap < taps; tap++) {
        block_run runs[MOST_RUNS];
        const int count = find_pixels(runs, j, p, t->dz + (f - t->filter) * of_filter, t->x, tap);
        float *c = t->sums + (((size_t)f * j->channels + channel) * taps + tap) * BLOCK;
        bf16_multiplier->product(c, &(block_sum){.add = add,
                                                 .runs = runs,
                                                 .run_count = count,
                                                 .b_step = s->stride * BLOCK,
                                                 .rows = MIN(SIDE, s->out_channels - f * SIDE),
                                                 .terms = MIN(SIDE, s->batch)});
        if (last && j->parts == 1) write_block(j, f, channel, tap); // while the cache has it
      }
  }
}

// A part's share of the chunks.
static void add_chunks_of(const weight_job *j, const weight_task *t, int part) {
  const int first = (int)((long)part * j->chunks / j->parts);
  const int end = (int)((part + 1L) * j->chunks / j->parts);
  for (int chunk = first; chunk < end; chunk++)
    add_chunk(j, t, chunk, chunk > first, chunk == end - 1);
  finish_stores();
}

static void write_gradient(const weight_job *j) {
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(dynamic)
    for (int filter = 0; filter < j->filters; filter++)
      for (int channel = 0; channel < j->channels; channel++)
        for (int tap = 0; tap < j->s->kernel * j->s->kernel; tap++)
          write_block(j, filter, channel, tap);
    finish_stores();
  }
}

static weight_job make_weight_job(const conv_shape *s, real *dw, const void *dz, const void *x) {
  const int pixels = s->out_height * s->out_width, all_groups = blocks_of(s->batch);
  weight_job j = {.s = s,
                  .dz = dz,
                  .x = x,
                  .dw = dw,
                  .filters = blocks_of(s->out_channels),
                  .channels = blocks_of(s->in_channels),
                  .rows = MAX(1, MIN(s->out_height, CHUNK_PIXELS / s->out_width)),
                  .groups = MAX(1, MIN(all_groups, FEW_PIXELS / pixels))};
  j.down = DIVIDE_UP(s->out_height, j.rows);
  j.chunks = DIVIDE_UP(all_groups, j.groups) * j.down;
  j.parts = MIN(j.chunks, MAX(1, PARTS / j.filters));
  return j;
}

void bf16_conv_backward_weight(const conv_shape *shape, real *dw, const void *dz, const void *x) {
  const bool gathered = bf16_takes_patches(shape);
  const conv_shape flat = gathered ? bf16_patch_shape(shape) : *shape, *s = &flat;
  const size_t patches = gathered ? bf16_patch_count(shape) : 0;
  weight_job j = make_weight_job(s, dw, dz, x);
  const int taps = s->kernel * s->kernel, threads = omp_get_max_threads();
  const int slices = MIN(j.filters, DIVIDE_UP(TASKS_A_THREAD * threads, j.parts));
  const int slice = DIVIDE_UP(j.filters, slices);
  const size_t part_size = (size_t)j.filters * j.channels * taps * BLOCK;
  const size_t dz_size = (size_t)slice * j.groups * j.rows * s->out_width * BLOCK;
  const int in_rows = MIN(s->in_height, (j.rows - 1) * s->stride + s->kernel);
  const size_t x_size = (size_t)j.groups * in_rows * s->in_width * BLOCK;
  j.sums = cpu_scratch(j.parts * part_size * sizeof *j.sums +
                       (threads * (dz_size + x_size) + patches) * sizeof(bf16));
  bf16 *buffers = (bf16 *)(j.sums + j.parts * part_size);
  if (gathered) {
    j.x = buffers + threads * (dz_size + x_size);
    bf16_gather_patches((bf16 *)j.x, shape, x);
  }
#pragma omp parallel
  {
    bf16 *buffer = buffers + omp_get_thread_num() * (dz_size + x_size);
    bf16_multiplier->open();
#pragma omp for collapse(2) schedule(dynamic)
    for (int part = 0; part < j.parts; part++)
      for (int f = 0; f < slices; f++) {
        const weight_task task = {j.filters * f / slices, j.filters * (f + 1) / slices,
                                  j.sums + part * part_size, buffer, buffer + dz_size};
        add_chunks_of(&j, &task, part);
      }
    bf16_multiplier->close();
  }
  if (j.parts > 1) write_gradient(&j);
}
