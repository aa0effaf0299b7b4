// bench/cost.cpp - what a step costs before any GPU has run it: `make cost`.
//
// One step of training and one batch of testing, as the trainer does them, on the simulated GPU:
// every launch, its arithmetic and its traffic, counted and not derived (simt/cost.cpp). Then what
// that takes at least on some cards: cards.h has their numbers and the formula of the bound.
//
//     GFLOP       of the tensor cores: 4,096 for each mma of 16 x 8 x 16, padding included
//     MB once     sectors (32 bytes) that the launch reads, each once, and that it writes, each
//                 once: what would move if the caches were perfect within a launch and empty
//                 between launches
//     MB asked    sectors, each as often as a warp asks for it: what the caches have to deliver. No
//                 least is given, since it depends on the tiles; gpu/halo.h says what its tiles ask for
//     M turns     millions of turns of shared memory (of 128 bytes at most), and how many times the
//                 least possible they are: more than 1.00 is bank conflicts
//     us          the bound of each launch, summed: max(FLOP / peak, bytes once / bandwidth)
//
// The work is that of `batch` images and needs no scaling. But values do not matter to addresses,
// so the tensor cores compute nothing, and of a large launch only the first columns of blocks run:
// what is printed is exact for launches of one or two columns, and else as exact as blocks are alike
// (borders of images make a difference of a few per cent in `MB asked`). What the last blocks of a launch
// read to add up partial sums (gpu/sums.h) is left out: they are not like the others. It is 7 MB of a
// step at width 64 and batch 128.
//
// "the least possible": the arithmetic without padding; and each array moved as often as it has to
// be where no two passes share a trip. z is written, read forward and read backward; the blocks'
// outputs likewise; gradients are written and read; a parameter is read in bf16 forward
// and backward, its gradient written and read, weight and momentum read and written, 30 bytes.
//
// Checked by `make check`: the counts of one launch, by hand (tests/simt_test.cpp).
//
//     build/gcc/bench/cost [WIDTH [BATCH]]
#include "simt/simt.h"

#include "cards.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "network.h"
}

enum { IMAGES = 512, MOST_ROWS = 64, TEST_BATCH = 100 };

// -- Rows -------------------------------------------------------------------------------------------

struct row {
  const char *kernel, *layer;
  int launches;
  simt_launch sum; // of all its launches
  double bound[COLUMNS];
};

static row rows[MOST_ROWS];
static int row_count;
static const char *layer = ""; // what convolution is at work

static double bytes_of(const simt_launch &c) {
  return 32 * (c.read + c.written);
}

static double flops_of(const simt_launch &c) {
  return 2.0 * 16 * 8 * 16 * c.mma;
}

static void add(row *r, const simt_launch &c, int launches) {
  r->launches += launches;
  r->sum = {r->kernel,
            r->sum.mma + c.mma,
            r->sum.read + c.read,
            r->sum.written + c.written,
            r->sum.requested + c.requested,
            r->sum.turns + c.turns,
            r->sum.least + c.least};
}

static void note_launch(const simt_launch *c) {
  int i = 0;
  while (i < row_count && (strcmp(rows[i].kernel, c->kernel) || strcmp(rows[i].layer, layer))) i++;
  if (i == MOST_ROWS) {
    fprintf(stderr, "cost: more than %d kinds of launches\n", (int)MOST_ROWS);
    exit(1);
  }
  if (i == row_count) rows[row_count++] = {c->kernel, layer, 0, {}, {}};
  add(&rows[i], *c, 1);
  for (int k = 0; k < COLUMNS; k++)
    rows[i].bound[k] += bound_of(&cards[k], flops_of(*c), bytes_of(*c));
}

static void print_row(const row *r) {
  const simt_launch &c = r->sum;
  printf("%-29s %-7s %4d %8.1f %8.1f %9.1f %8.1f %5.2f", r->kernel, r->layer, r->launches,
         1e-9 * flops_of(c), 1e-6 * bytes_of(c), 32e-6 * c.requested, 1e-6 * c.turns,
         c.least > 0 ? c.turns / c.least : 1);
  for (int k = 0; k < COLUMNS; k++) printf(" %7.1f", 1e6 * r->bound[k]);
  printf("\n");
}

// -- The device, with a name for each layer -------------------------------------------------------

static device counted;
static const device *d = &counted, *inner;

static const char *layer_of(const conv_shape *s) {
  if (s->in_channels == IMAGE_CHANNELS) return "stem";
  return s->kernel == 1 ? "1x1/2" : s->stride == 1 ? "3x3/1" : "3x3/2";
}

static void conv_statistics(const conv_shape *s, void *z, const void *x, const void *w,
                            const norm_arrays *n) {
  layer = layer_of(s);
  inner->fused->conv_statistics(s, z, x, w, n);
  layer = "";
}

static void norm_conv_statistics(const conv_shape *s, void *z, const norm_below *below,
                                 const void *w, const norm_arrays *n) {
  layer = layer_of(s);
  inner->fused->norm_conv_statistics(s, z, below, w, n);
  layer = "";
}

static void conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                                const real *gamma, const real *beta, const void *residual,
                                bool relu, const real *mean, const real *variance) {
  layer = layer_of(s);
  inner->conv_norm_inference(s, y, x, w, gamma, beta, residual, relu, mean, variance);
  layer = "";
}

static void conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                                bool accumulate) {
  layer = layer_of(s);
  inner->conv_backward_input(s, dx, dz, w, accumulate);
  layer = "";
}

static void conv_backward_masked(const conv_shape *s, void *g, const void *dz, const void *w,
                                 bool accumulate, const norm_below *below) {
  layer = layer_of(s);
  inner->fused->conv_backward_masked(s, g, dz, w, accumulate, below);
  layer = "";
}

static void block_backward_masked(const conv_shape *s, void *g, const void *dz, const void *w,
                                  const shortcut_gradient *shortcut, const norm_below *below) {
  layer = "3x3+1x1";
  inner->fused->block_backward_masked(s, g, dz, w, shortcut, below);
  layer = "";
}

static void conv_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
  layer = layer_of(s);
  inner->conv_backward_weight(s, dw, dz, x);
  layer = "";
}

static void norm_conv_backward_weight(const conv_shape *s, real *dw, const void *dz,
                                      const norm_below *below) {
  layer = layer_of(s);
  inner->fused->norm_conv_backward_weight(s, dw, dz, below);
  layer = "";
}

static void open_device() {
  static fusions fused;
  inner = simt_device(false);
  counted = *inner;
  fused = *inner->fused;
  counted.fused = &fused;
  fused.conv_statistics = conv_statistics;
  fused.conv_backward_masked = conv_backward_masked;
  fused.block_backward_masked = block_backward_masked;
  fused.norm_conv_statistics = norm_conv_statistics;
  fused.norm_conv_backward_weight = norm_conv_backward_weight;
  counted.conv_norm_inference = conv_norm_inference;
  counted.conv_backward_input = conv_backward_input;
  counted.conv_backward_weight = conv_backward_weight;
}

// -- A step, and a batch of testing -----------------------------------------------------------------

static void *on_device(const void *host, size_t bytes) {
  void *memory = d->allocate(bytes);
  d->upload(memory, host, bytes);
  return memory;
}

// The operations of a step of training (train.c) and of a batch of testing (run/evaluate.c).
static void run_step(network *n, int batch, bool training) {
  static uint8_t bytes[IMAGES * IMAGE_BYTES], classes[IMAGES];
  sample *drawn = (sample *)allocate(batch * sizeof *drawn);
  const step_values values = {0.3f, 0.1f, 0};
  for (int b = 0; b < batch; b++) {
    const sample crop = {b * 7 % IMAGES, (b + 1) % batch, b % 9, b % 8, b % 2};
    const sample whole = {b % IMAGES, b, CROP_PADDING, CROP_PADDING, 0};
    drawn[b] = training ? crop : whole;
  }
  uint8_t *images = (uint8_t *)on_device(bytes, sizeof bytes);
  uint8_t *labels = (uint8_t *)on_device(classes, sizeof classes);
  sample *samples = (sample *)on_device(drawn, batch * sizeof *drawn);
  step_values *step = (step_values *)on_device(&values, sizeof values);
  step_result *result = (step_result *)d->allocate(sizeof *result);
  row_count = 0;
  simt_on_launch = note_launch;
  d->mix_images(batch, n->input, images, samples, step);
  network_forward(n, batch, training);
  d->cross_entropy(batch, 0.1f, training ? n->dlogits : NULL, result, n->logits, labels, samples,
                   step);
  if (training) {
    network_backward(n);
    d->sgd_update(&n->parameters, step, 0.9f, 2e-4f);
  } else {
    d->cross_entropy(batch, 0, NULL, result, n->logits, labels, samples, step);
  }
  simt_on_launch = NULL;
  void *const all[] = {images, labels, samples, step, result};
  for (void *memory : all) d->release(memory);
  free(drawn);
}

// -- The sheet ------------------------------------------------------------------------------------------

// See the head of the file.
static void find_least(const network *n, double *flops, double *bytes) {
  *flops = 0;
  *bytes = 30.0 * n->parameters.count + 3 * 2.0 * n->batch * IMAGE_BYTES;
  for (int i = 0; i < UNITS; i++) {
    const conv_shape *s = &n->units[i].shape;
    const double z = (double)activation_count(unit_output_shape(&n->units[i], n->batch));
    *flops += (i ? 3 : 2) * 2 * z * s->kernel * s->kernel * s->in_channels;
    *bytes += 2 * z * (3 + 2);                         // z, dz
    if (s->kernel == 3) *bytes += 2 * z * 2;           // dy
    if (n->units[i].has_residual) *bytes += 2 * z * 3; // y
  }
}

static int by_bytes(const void *a, const void *b) {
  const double x = bytes_of(((const row *)a)->sum), y = bytes_of(((const row *)b)->sum);
  return (x < y) - (x > y);
}

static void print_sheet(const char *what, int width, int batch) {
  row total = {"together", "", 0, {}, {}};
  printf("\n%s, width %d, batch %d\n%-29s %-7s %4s %8s %8s %9s %8s %5s", what, width, batch,
         "kernel", "layer", "x", "GFLOP", "MB once", "MB asked", "M turns", "x");
  for (int k = 0; k < COLUMNS; k++) printf(" us %s", cards[k].column);
  printf("\n");
  qsort(rows, row_count, sizeof *rows, by_bytes);
  for (int i = 0; i < row_count; i++) {
    print_row(&rows[i]);
    add(&total, rows[i].sum, rows[i].launches);
    for (int k = 0; k < COLUMNS; k++) total.bound[k] += rows[i].bound[k];
  }
  print_row(&total);
  printf("\n%-24s %9s %9s %9s %12s\n", "at least, ms", "kernels", "launches", "together",
         "images/s");
  for (int k = 0; k < COLUMNS; k++) {
    const double gaps = LAUNCH_GAP * total.launches, all = total.bound[k] + gaps;
    printf("%-24s %9.3f %9.3f %9.3f %12.0f   %s\n", cards[k].name, 1e3 * total.bound[k], 1e3 * gaps,
           1e3 * all, batch / all, cards[k].source);
  }
}

int main(int argc, char **argv) {
  const int width = argc > 1 ? atoi(argv[1]) : 64, batch = argc > 2 ? atoi(argv[2]) : 128;
  const int test_batch = batch < TEST_BATCH ? batch : TEST_BATCH;
  static network n;
  error e;
  double flops, bytes;
  open_device();
  if (!network_create(&n, d, width, batch, &e)) {
    fprintf(stderr, "cost: %s\n", e.text);
    return 2;
  }
  printf(
      "What a step costs at least: a bound, not a measurement. bench/cost.cpp says what counts.\n");
  run_step(&n, batch, true);
  print_sheet("a step of training", width, batch);
  find_least(&n, &flops, &bytes);
  printf("the least possible: %.1f GFLOP, %.1f MB\n", 1e-9 * flops, 1e-6 * bytes);
  run_step(&n, test_batch, false);
  print_sheet("a batch of testing", width, test_batch);
  network_free(&n);
  return 0;
}
