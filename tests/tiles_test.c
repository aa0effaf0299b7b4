// tests/tiles_test.c - the CPU's tensor cores: the product of blocks by AMX's instructions against the plain
// one, and what the layout in blocks promises.
//
// The instructions. Where the processor has them and the kernel permits them, they run; elsewhere
// each is carried out by amx_emulator.h, which reads it as the compiler left it. Either way the
// plain product and AMX's have to give the same bits, a NaN for a NaN: both do what the manual says
// (cpu-bf16/tiles.h). A processor might round in another order than its manual; then the line says
// how far the two are apart, and it has to be less than what the roundings can add up to: a product
// of blocks rounds a sum 18 times at most (16 pairs, the two halves together, and onto the sum), each time
// by 2^-24 of the sum of the absolute values at most. 19 leaves room for what these errors do to each other.
//
// The layout. Every operation leaves zeros behind the last image and the last channel. Outputs are
// NaN before.
//
// Rounding. A row is rounded number by number to the nearest bf16, zero where nearer to 0 than 2^-126, in plain C and by the
// processor's instruction, where it has one. Weights are rounded as they are packed.
//
// Threads. Training steps and a test leave the same bits with 1, 2 and 3 threads.
//
//     make build/gcc/tests/tiles_test && build/gcc/tests/tiles_test [quick]
//
// quick: with a smaller batch, for sanitizers, under which the larger one took nine minutes.
#define _GNU_SOURCE // REG_RIP
#include "../cpu-bf16/conv.h"
#include "../network.h"
#include "amx_emulator.h"
#include "inputs.h"
#include <omp.h>

static const device *d;

// -- The product ----------------------------------------------------------------------------------

enum { RUNS = 3, MOST_BLOCKS = 4, A_BLOCKS = RUNS * MOST_BLOCKS, B_BLOCKS = 2 * A_BLOCKS };

typedef struct {
  const char *name;
  int runs, count, step; // step: blocks of B from one to the next
  bool add, reverse;
  int rows, terms;
} product_case;

static const product_case products[] = {
    {"one pair", 1, 1, 1, false, false, 32, 32},
    {"no pair", 0, 0, 1, false, false, 32, 32},
    {"no pair, added", 0, 0, 1, true, false, 32, 32},
    {"runs", RUNS, MOST_BLOCKS, 1, false, false, 32, 32},
    {"runs, added", RUNS, 2, 2, true, false, 32, 32},
    {"runs, reversed", RUNS, 2, 2, true, true, 32, 32},
    {"16 rows", 2, 1, 1, false, false, 16, 32},
    {"5 rows", 2, 1, 1, true, true, 5, 32},
    {"21 rows, 7 terms", 2, 2, 1, false, false, 21, 7},
};

typedef enum { NORMALS, SMALL, EXTREMES, KINDS } numbers;
static const char *const number_names[KINDS] = {"normal numbers", "denormal sums",
                                                "all kinds of numbers"};

// One bf16 of a kind: for sums near 2^-126, 2^-63 and less; of all kinds, any bits at all.
static bf16 draw(numbers kind) {
  const double normal = random_normal(&stream);
  if (kind == NORMALS) return to_bf16((float)normal);
  if (kind == SMALL) return to_bf16((float)ldexp(normal, -63 - (int)random_below(&stream, 4)));
  return random_below(&stream, 4) ? to_bf16((float)normal) : (bf16)random_bits(&stream);
}

// a and b with zeros behind the terms; c, what is added to.
static void draw_blocks(const product_case *p, numbers kind, bf16 *a, bf16 *b, float *c) {
  for (int i = 0; i < A_BLOCKS * BLOCK; i++) a[i] = i % SIDE < p->terms ? draw(kind) : 0;
  for (int block = 0; block < B_BLOCKS; block++) {
    bf16 rows[BLOCK];
    for (int i = 0; i < BLOCK; i++) rows[i] = i / SIDE < p->terms ? draw(kind) : 0;
    pair_rows(b + block * BLOCK, rows);
  }
  for (int i = 0; i < BLOCK; i++)
    c[i] = kind == SMALL ? ldexpf((float)random_normal(&stream), -126) : to_float(draw(kind));
}

static void list_runs(const product_case *p, block_run runs[RUNS], const bf16 *a, const bf16 *b) {
  for (int i = 0; i < p->runs; i++)
    runs[i] = (block_run){a + i * MOST_BLOCKS * BLOCK, b + i * 2 * MOST_BLOCKS * BLOCK, p->count};
}

// Work aside that writes down which rows it was asked for, in order.
typedef struct {
  side_work work;
  int count, rows[2 * SIDE];
} witness;

static void note_rows(side_work *work, int first, int end) {
  witness *w = (witness *)work;
  for (int row = first; row < end && w->count < 2 * SIDE; row++) w->rows[w->count++] = row;
}

// The product, and its work aside: each row once, one after another.
static void multiply(const multiplier *m, const product_case *p, const block_run *runs, float *c) {
  witness w = {.work = {.do_some = note_rows}};
  m->open();
  m->product(c, &(block_sum){.add = p->add,
                             .runs = runs,
                             .run_count = p->runs,
                             .b_step = p->step * BLOCK,
                             .reverse = p->reverse,
                             .rows = p->rows,
                             .terms = p->terms,
                             .aside = &w.work});
  m->close();
  bool in_order = w.count == SIDE;
  for (int row = 0; row < SIDE; row++) in_order &= w.rows[row] == row;
  check(in_order, "%s, %s: the work aside is done, row by row", m->name, p->name);
}

static bool same_number(float x, float y) {
  return !memcmp(&x, &y, sizeof x) || (isnan(x) && isnan(y));
}

// Row by row, term by term in double: is that what a product of blocks is? In float roundings, the
// most that an element is off by.
static double worst_rounding(const product_case *p, const block_run *runs, const float *before,
                             const float *c) {
  double worst = 0;
  for (int m = 0; m < p->rows; m++)
    for (int n = 0; n < SIDE; n++) {
      double sum = p->add ? before[m * SIDE + n] : 0, size = fabs(sum);
      for (int i = 0; i < p->runs * p->count; i++)
        for (int k = 0; k < SIDE; k++) {
          const bf16 *b = runs[i / p->count].b + i % p->count * p->step * BLOCK;
          const double term =
              (double)to_float(runs[i / p->count].a[i % p->count * BLOCK + m * SIDE + k]) *
              to_float(b[n / 16 * 512 + k / 2 * 32 + n % 16 * 2 + k % 2]);
          sum += term;
          size += fabs(term);
        }
      const double error = fabs(c[m * SIDE + n] - sum);
      worst = larger(worst, error == 0 ? 0 : error / (0x1p-24 * size));
    }
  return worst;
}

static void test_plain_product(const product_case *p) {
  bf16 *a = take(A_BLOCKS * BLOCK * sizeof *a), *b = take(B_BLOCKS * BLOCK * sizeof *b);
  float *before = take(BLOCK * sizeof *before), *c = take(BLOCK * sizeof *c);
  block_run runs[RUNS];
  draw_blocks(p, NORMALS, a, b, before);
  memcpy(c, before, BLOCK * sizeof *c);
  list_runs(p, runs, a, b);
  multiply(&plain_multiplier, p, runs, c);
  check_error(worst_rounding(p, runs, before, c), 19 * fmax(1, p->runs * p->count),
              "plain product, %s: against double, in roundings", p->name);
  release();
}

#if defined __x86_64__ && defined __linux__

static bool native;

static void test_amx_product(const product_case *p, numbers kind) {
  bf16 *a = take(A_BLOCKS * BLOCK * sizeof *a), *b = take(B_BLOCKS * BLOCK * sizeof *b);
  float *plain = take(BLOCK * sizeof *plain), *amx = take(BLOCK * sizeof *amx);
  float *before = take(BLOCK * sizeof *before);
  block_run runs[RUNS];
  int differ = 0;
  draw_blocks(p, kind, a, b, before);
  memcpy(plain, before, BLOCK * sizeof *plain);
  memcpy(amx, before, BLOCK * sizeof *amx);
  list_runs(p, runs, a, b);
  multiply(&plain_multiplier, p, runs, plain);
  multiply(&amx_multiplier, p, runs, amx);
  for (int m = 0; m < p->rows; m++)
    for (int n = 0; n < SIDE; n++) differ += !same_number(plain[m * SIDE + n], amx[m * SIDE + n]);
  if (!native || !differ || kind != NORMALS)
    check(!differ, "AMX's product, %s, %s: the plain one's bits (%d of %d differ)", p->name,
          number_names[kind], differ, p->rows * SIDE);
  else
    check_error(worst_rounding(p, runs, before, amx), 19 * fmax(1, p->runs * p->count),
                "AMX's product, %s: %d bits differ; in roundings", p->name, differ);
  release();
}

// A layer through all three passes, with either product: the same bits.
static void test_amx_convolution(conv_shape s) {
  enum { PASSES = 3 };
  const activation_shape x_shape = {s.batch, s.in_height * s.in_width, s.in_channels};
  const activation_shape z_shape = {s.batch, s.out_height * s.out_width, s.out_channels};
  const size_t filters = (size_t)s.out_channels * s.kernel * s.kernel * s.in_channels;
  const size_t bytes[PASSES] = {activation_size(d, z_shape), activation_size(d, x_shape),
                                filters * sizeof(real)};
  void *x = take(bytes[0] + bytes[1]), *dz = take(bytes[0]), *out[2][PASSES];
  const multiplier *ways[2] = {&plain_multiplier, &amx_multiplier}, *usual = bf16_multiplier;
  const real *w = normals(filters, 0, 1);
  d->upload_activations(x, normals(activation_count(x_shape), 0, 1), x_shape);
  d->upload_activations(dz, normals(activation_count(z_shape), 0, 1), z_shape);
  for (int way = 0; way < 2; way++) {
    for (int i = 0; i < PASSES; i++) out[way][i] = take(bytes[i]);
    bf16_multiplier = ways[way];
    d->conv_forward(&s, out[way][0], x, w, NULL);
    d->conv_backward_input(&s, out[way][1], dz, w, false);
    d->conv_backward_weight(&s, out[way][2], dz, x);
  }
  bf16_multiplier = usual;
  bool same = true;
  for (int i = 0; i < PASSES; i++) same &= !memcmp(out[0][i], out[1][i], bytes[i]);
  check(same, "3 passes of %dx%d/%d, %d -> %d, by AMX: the plain tiles' bits", s.kernel, s.kernel,
        s.stride, s.in_channels, s.out_channels);
  release();
}

static void test_amx(void) {
  error why_not = {""};
  native = amx_permitted(&why_not);
  if (strstr(why_not.text, "refuses it") &&
      !native) { // then LDTILECFG works, and the rest does not
    printf("no rows for AMX: %s\n", why_not.text);
    return;
  }
  if (!native) {
    printf("AMX's instructions are emulated: %s\n", why_not.text);
    emulate_amx();
  }
  for (size_t i = 0; i < sizeof products / sizeof *products; i++)
    for (numbers kind = NORMALS; kind < KINDS; kind++) test_amx_product(&products[i], kind);
  test_amx_convolution(make_conv_shape(3, 3, 2, 5, 40, 3, 1));
  test_amx_convolution(make_conv_shape(33, 3, 3, 8, 3, 3, 2));
  if (!native) check(emulated_products > 1000, "AMX's instructions were carried out");
}

#else
static void test_amx(void) {
  printf("no rows for AMX: not a processor of Intel's architecture, or not Linux\n");
}
#endif

// -- Zeros beyond the batch and the channels --------------------------------------------------------

// Elements of an activation that no image or channel has, and that are not zero.
static long stray(const bf16 *blocks, activation_shape s) {
  const long channels = blocks_of(s.channels) * SIDE, groups = blocks_of(s.images);
  long count = 0;
  for (long i = 0; i < groups * SIDE * s.pixels * channels; i++) {
    const long place = i / (SIDE * channels), row = i / SIDE % SIDE;
    const long channel = i / BLOCK % (channels / SIDE) * SIDE + i % SIDE;
    const bool inside = place / s.pixels * SIDE + row < s.images && channel < s.channels;
    count += !inside && blocks[i];
  }
  return count;
}

static void *full_of_nan(activation_shape s) {
  void *memory = take(activation_size(d, s));
  return memset(memory, 0xff, activation_size(d, s));
}

static void *uploaded(activation_shape s) {
  void *memory = full_of_nan(s);
  d->upload_activations(memory, normals(activation_count(s), 0.5, 1), s);
  return memory;
}

static void expect_zeros(const void *activations, activation_shape s, const char *operation) {
  const long count = stray(activations, s);
  check(!count, "%s, %d images, %d channels: zeros beyond them (%ld are not)", operation, s.images,
        s.channels, count);
}

static void test_conv_zeros(int images, int in, int out) {
  const conv_shape s = make_conv_shape(images, 3, 4, in, out, 3, 1);
  const activation_shape x = {images, 12, in}, z = {images, 12, out};
  const real *w = normals((size_t)out * in * 9, 0, 1);
  const real *of = absolute(normals(4 * out, 1, 1), 4 * out);
  void *on_x = uploaded(x), *on_z = full_of_nan(z), *y = full_of_nan(z), *dx = full_of_nan(x);
  double *sums = take(2 * out * sizeof *sums);
  expect_zeros(on_x, x, "upload_activations");
  d->conv_forward(&s, on_z, on_x, w, sums);
  expect_zeros(on_z, z, "conv_forward");
  d->conv_norm_inference(&s, y, on_x, w, of, of + out, on_z, true, of + 2 * out, of + 3 * out);
  expect_zeros(y, z, "conv_norm_inference");
  d->conv_backward_input(&s, dx, on_z, w, false);
  expect_zeros(dx, x, "conv_backward_input");
  d->conv_backward_input(&s, dx, on_z, w, true);
  expect_zeros(dx, x, "conv_backward_input, added");
  release();
}

// The input gradient with the mask of a norm below whose channels all let through, or none.
static void test_masked_zeros(int images, int in, int out) {
  const conv_shape s = make_conv_shape(images, 3, 4, in, out, 1, 2);
  const activation_shape x = {images, 12, in}, z = {images, s.out_height * s.out_width, out};
  real *of = normals(6 * in, 0, 1), *w = normals((size_t)out * in, 0, 1);
  const norm_arrays n = {
      .gamma = of, .beta = of + in, .mean = of + 2 * in, .inverse_std = of + 3 * in};
  const norm_below below = {
      .norm = n, .z = uploaded(x), .dgamma = of + 4 * in, .dbeta = of + 5 * in};
  void *dx = uploaded(x);
  d->fused->conv_backward_masked(&s, dx, uploaded(z), w, true, &below);
  expect_zeros(dx, x, "conv_backward_masked, added");
  release();
}

// Weights are rounded as they are packed: the same bits from weights that had been rounded before.
static void test_weights_are_rounded(int in, int out) {
  enum { PASSES = 2 };
  const conv_shape s = make_conv_shape(3, 5, 4, in, out, 3, 1);
  const activation_shape x = {3, 20, in}, z = {3, 20, out};
  const size_t filters = (size_t)out * in * 9;
  const size_t bytes[PASSES] = {activation_size(d, z), activation_size(d, x)};
  const real *exact = normals(filters, 0, 1);
  real *rounded = take(filters * sizeof *rounded);
  for (size_t i = 0; i < filters; i++) rounded[i] = to_nearest_bf16(exact[i]);
  void *on_x = uploaded(x), *on_z = uploaded(z), *result[2][PASSES];
  for (int i = 0; i < 2; i++) {
    for (int pass = 0; pass < PASSES; pass++) result[i][pass] = take(bytes[pass]);
    d->conv_forward(&s, result[i][0], on_x, i ? rounded : exact, NULL);
    d->conv_backward_input(&s, result[i][1], on_z, i ? rounded : exact, false);
  }
  for (int pass = 0; pass < PASSES; pass++)
    check(!memcmp(result[0][pass], result[1][pass], bytes[pass]),
          "%s, %d -> %d: weights are rounded to the nearest bf16",
          pass ? "conv_backward_input" : "conv_forward", in, out);
  release();
}

// Ties, denormals, infinities, NaNs, and any bits at all.
static void test_rows_are_rounded(void) {
  enum { ROWS = 2000, WAYS = 2 };
  static const uint32_t special[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x007fffff, 0x80412345,
                                     0x00800000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0xffc00000};
  _Alignas(64) bf16 got[WAYS][SIDE];
  int wrong[WAYS] = {0};
  for (int row = 0; row < ROWS; row++) {
    uint32_t bits[SIDE];
    pair values, returned[WAYS];
    for (int k = 0; k < SIDE; k++) bits[k] = random_bits(&stream);
    if (row == 0) memcpy(bits, special, sizeof special);
    memcpy(&values, bits, sizeof values);
    returned[0] = round_row(got[0], values);
    returned[1] = store_row(got[1], values);
    finish_stores();
    for (int k = 0; k < SIDE; k++) {
      float value;
      const uint32_t kept = bits[k] & 0x7f800000 ? bits[k] : bits[k] & 0x80000000;
      memcpy(&value, &kept, sizeof value);
      for (int way = 0; way < WAYS; way++)
        wrong[way] += got[way][k] != to_bf16(value) ||
                      !same_number(returned[way].of[k / WORDS][k % WORDS], to_float(got[way][k]));
    }
  }
  check(!wrong[0], "rows rounded in plain C: to the nearest, zero below 2^-126 (%d wrong)",
        wrong[0]);
  check(!wrong[1], "rows rounded and stored: the same (%d wrong)", wrong[1]);
}

static void test_norm_zeros(int images, int channels) {
  const norm_shape s = {images * 6, channels, images};
  const activation_shape all = {images, 6, channels}, one = {images, 1, channels};
  real *of = absolute(normals(8 * channels, 1, 1), 8 * channels), *rest = of + 4 * channels;
  const size_t c = (size_t)channels;
  double *sums = take(2 * c * sizeof *sums);
  for (size_t k = 0; k < 2 * c; k++) sums[k] = s.pixels * (k < c ? 0.5 : 1.25);
  void *z = uploaded(all), *y = full_of_nan(all), *dz = full_of_nan(all), *g = full_of_nan(all);
  d->norm_forward(&s, y, z, sums, of, of + c, z, true, of + 2 * c, of + 3 * c, rest, rest + c);
  expect_zeros(y, all, "norm_forward");
  d->norm_inference(&s, dz, z, of, of + c, NULL, false, of + 2 * c, of + 3 * c);
  expect_zeros(dz, all, "norm_inference");
  d->norm_backward(&s, dz, g, rest + 2 * c, rest + 3 * c, uploaded(all), y, z, of, rest, rest + c,
                   true);
  expect_zeros(dz, all, "norm_backward, dz");
  expect_zeros(g, all, "norm_backward, dresidual");
  void *pooled = full_of_nan(one), *dx = full_of_nan(all), *dy = full_of_nan(one);
  d->pool_forward(images, 6, channels, pooled, y);
  expect_zeros(pooled, one, "pool_forward");
  const real *w = normals(CLASSES * c, 0, 1), *dlogits = normals((size_t)images * CLASSES, 0, 1);
  d->linear_backward(images, channels, dy, take(CLASSES * c * sizeof(real)), rest, dlogits, pooled,
                     w);
  expect_zeros(dy, one, "linear_backward");
  d->pool_backward(images, 6, channels, dx, dy);
  expect_zeros(dx, all, "pool_backward");
  release();
}

static void test_mix_zeros(int images) {
  const activation_shape s = {images, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS};
  sample *samples = take(images * sizeof *samples);
  const step_values step = {.lambda = 0.5f};
  uint8_t *bytes = take(IMAGE_BYTES);
  void *x = full_of_nan(s);
  memset(bytes, 200, IMAGE_BYTES);
  d->mix_images(images, x, bytes, samples, &step);
  expect_zeros(x, s, "mix_images");
  release();
}

// -- Threads ----------------------------------------------------------------------------------------

// Two training steps and a test, from initial weights: what they leave.
static real *train_steps(int width, int batch, size_t *count) {
  static uint8_t images[4 * IMAGE_BYTES], labels[4] = {3, 1, 4, 1};
  network n;
  error e;
  step_result result;
  if (!network_create(&n, d, width, batch, &e)) exit(1);
  const parameters *p = &n.parameters;
  const size_t logits = (size_t)batch * CLASSES;
  sample *samples = take(batch * sizeof *samples);
  const step_values step = {.lambda = 0.3f, .learning_rate = 0.1f};
  for (int i = 0; i < 4 * IMAGE_BYTES; i++) images[i] = (uint8_t)(i * 2654435761u >> 24);
  for (int i = 0; i < batch; i++) samples[i] = (sample){i % 4, (i + 1) % batch, i % 9, 4, i % 2};
  network_initialise(&n, 1);
  for (int i = 0; i < 3; i++) {
    d->mix_images(batch, n.input, images, samples, &step);
    network_forward(&n, batch, i < 2);
    if (i == 2) break;
    d->cross_entropy(batch, 0.1f, n.dlogits, &result, n.logits, labels, samples, &step);
    network_backward(&n);
    d->sgd_update(p, &step, 0.9f, 2e-4f);
  }
  *count = 2 * p->count + n.statistics_size + logits;
  real *left = take(*count * sizeof *left), *at = left;
  memcpy(at, p->weight, p->count * sizeof *at), at += p->count;
  memcpy(at, p->momentum, p->count * sizeof *at), at += p->count;
  memcpy(at, n.statistics, n.statistics_size * sizeof *at), at += n.statistics_size;
  memcpy(at, n.logits, logits * sizeof *at);
  network_free(&n);
  return left;
}

static void test_threads(int width, int batch) {
  const real *with_one = NULL;
  bool same = true, finite = true;
  for (int threads = 1; threads <= 3; threads++) {
    size_t count;
    omp_set_num_threads(threads);
    const real *left = train_steps(width, batch, &count);
    if (!with_one) with_one = left;
    same &= !memcmp(with_one, left, count * sizeof *left);
    for (size_t i = 0; i < count; i++) finite &= isfinite(left[i]);
  }
  check(same && finite,
        "two training steps and a test, width %d, batch %d: same bits with 1, 2, 3 threads", width,
        batch);
  release();
}

int main(int argc, char **argv) {
  error e;
  const bool quick = argc == 2 && !strcmp(argv[1], "quick");
  if (argc > 1 && !quick) {
    fprintf(stderr, "usage: %s [quick]\n", argv[0]);
    return 2;
  }
  stream = random_open(check_seed("tiles_test"), RANDOM_TEST, 0, 0);
  d = device_by_name("cpu-bf16", &e);
  omp_set_num_threads(2);
  for (size_t i = 0; i < sizeof products / sizeof *products; i++) test_plain_product(&products[i]);
  test_rows_are_rounded();
  for (int images = 1; images <= 40; images += 39) {
    test_conv_zeros(images, 5, 40);
    test_conv_zeros(images, 3, 40);
    test_masked_zeros(images, 40, 5);
    test_norm_zeros(images, 40);
    test_mix_zeros(images);
  }
  test_weights_are_rounded(40, 33);
  test_weights_are_rounded(3, 8);
  test_threads(8, 3);
  test_threads(32, quick ? 3 : 40); // filters enough that their slices depend on the threads
  omp_set_num_threads(2);
  test_amx();
  return check_summary();
}
