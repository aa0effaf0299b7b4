// tests/devices_test.c - one device against another, through the table that both fill: the cpu device,
// which is made to be fast, against the reference, which is made to be read.
//
// Shapes: every distinct convolution of the network at widths 64, 16 and 8, taken from the network
// itself, and ragged ones, whose sizes are multiples of nothing.
//
// Outputs are NaN before, so a value left out is seen; they lie between guard zones, so a write
// beyond them is seen; inputs lie between NaNs, so a read beyond them that matters is seen.
//
// Tolerance. An element is a sum of K products. Both devices get the same floats; the reference
// adds in double and rounds once, the cpu device rounds K times, in whatever order, each time by at
// most 2^-24 of the sum so far. With S the sum of the products' absolute values, that makes K 2^-24
// S if all roundings conspire, and about sqrt(K) 2^-24 S if they are independent (Higham and Mary,
// "A new approach to probabilistic rounding error analysis", 2019: lambda sqrt(K) 2^-24 S is
// exceeded with probability 2 exp(-lambda^2 / 2) at most). So:
//
//     |cpu - reference| <= 8 sqrt(K) 2^-24 S        lambda = 8: probability 3 10^-14
//
// Where cpu/ takes Winograd's method, another sum is rounded, and winograd_bound.h says how far. The
// bound has the same form, with N + 16 in place of K and a root of squares in place of S.
//
// S comes from the reference too, run on absolute values. One product left out or taken twice is
// S / K on average, 2^21 / K^1.5 times the tolerance: 150 times for K = 576, 23 for 2048, and less
// than one for the 73,872 of the widest; but such a mistake is never made in one element only.
//
// Threads. With 1, 2 and 3 threads every operation gives the same bits, and so do training steps; the
// reference's convolutions, too.
//
//     make build/gcc/tests/devices_test && build/gcc/tests/devices_test
#include "../cpu/conv.h"
#include "../network.h"
#include "../reference/reference.h"
#include "winograd_bound.h"
#include <omp.h>
#include <string.h>

static const device *const reference = &reference_device;
static const device *cpu;

// -- Guarded arrays ------------------------------------------------------------------------------

// Floats on either side: whole cache lines around activations, which a device allocates one by one;
// one more around weights, which lie anywhere in a flat array.
enum { GUARD = 64, WEIGHT_GUARD = 65 };

static const float SENTINEL = -12345.678f;

typedef struct {
  float *data; // `count` floats, with `guard` more before and as many behind them
  size_t count, guard;
} guarded;

static guarded guarded_array(size_t count, size_t guard, float value) {
  float *memory = take((count + 2 * guard) * sizeof *memory);
  for (size_t i = 0; i < count + 2 * guard; i++) memory[i] = value;
  return (guarded){.data = memory + guard, .count = count, .guard = guard};
}

static guarded guarded_input(size_t count, size_t guard) {
  guarded g = guarded_array(count, guard, NAN);
  for (size_t i = 0; i < count; i++) g.data[i] = (float)random_normal(&stream);
  return g;
}

static bool guards_intact(const guarded *g) {
  for (size_t i = 1; i <= g->guard; i++)
    if (*(g->data - i) != SENTINEL || g->data[g->count + i - 1] != SENTINEL) return false;
  return true;
}

// All bits set: a NaN as float and as double.
static void poison_bytes(void *memory, size_t bytes) {
  memset(memory, 0xff, bytes);
}

// -- Convolution ---------------------------------------------------------------------------------

typedef struct {
  conv_shape shape;
  guarded x, w, dy;
  char name[60];
} layer;

static void run_pass(const device *d, const layer *l, pass p, void *out, double *sums,
                     bool accumulate) {
  if (p == FORWARD) d->conv_forward(&l->shape, out, l->x.data, l->w.data, sums);
  if (p == BACKWARD_INPUT)
    d->conv_backward_input(&l->shape, out, l->dy.data, l->w.data, accumulate);
  if (p == BACKWARD_WEIGHT) d->conv_backward_weight(&l->shape, out, l->dy.data, l->x.data);
}

// The most products that one element of a pass's output sums up: K.
static int products(const conv_shape *s, pass p) {
  if (p == BACKWARD_WEIGHT) return s->batch * s->out_height * s->out_width;
  return s->kernel * s->kernel * (p == FORWARD ? s->in_channels : s->out_channels);
}

// The largest |out - expected| / S. added, or NULL: what stood in `out` before, with accumulate.
static double worst_relative(const float *out, const float *expected, const float *S,
                             const float *added, size_t count) {
  double worst = 0;
  for (size_t i = 0; i < count; i++) {
    const double before = added ? added[i] : 0, difference = out[i] - (before + expected[i]);
    worst = larger(worst, difference == 0 ? 0 : fabs(difference) / (fabs(before) + S[i]));
  }
  return worst;
}

// sums: [2][channels], of y: [pixels][channels]. The error, relative to sum |y| and sum y^2.
static double sums_error(const double *sums, const float *y, size_t pixels, int channels) {
  double worst = 0;
  for (int c = 0; c < channels; c++) {
    double sum = 0, magnitude = 0, squares = 0;
    for (size_t i = c; i < pixels * channels; i += channels) {
      sum += y[i];
      magnitude += fabs(y[i]);
      squares += (double)y[i] * y[i];
    }
    worst = larger(worst, fabs(sums[c] - sum) / magnitude);
    worst = larger(worst, fabs(sums[channels + c] - squares) / squares);
  }
  return worst;
}

// Both devices add in double throughout, in an order of their own.
static void check_sums(const layer *l, const device *d, const double *sums, const float *y) {
  const conv_shape *s = &l->shape;
  const size_t pixels = (size_t)s->batch * s->out_height * s->out_width;
  check_error(sums_error(sums, y, pixels, s->out_channels), 0x1p-40, "%s sums of y, %s", l->name,
              d->name);
}

// One pass of the cpu device with 1, 2 and 3 threads into `out`: NaN before, or `before`. Whether
// all gave the same bits and wrote nowhere else.
static bool run_with_threads(const layer *l, pass p, guarded *out, guarded *sums,
                             const float *before) {
  const size_t bytes = out->count * sizeof(float), sums_bytes = sums ? 4 * sums->count : 0;
  const int usual = omp_get_max_threads();
  float *first = take(bytes), *first_sums = take(sums_bytes);
  bool good = true;
  for (int threads = 1; threads <= 3; threads++) {
    omp_set_num_threads(threads);
    if (before)
      memcpy(out->data, before, bytes);
    else
      poison_bytes(out->data, bytes);
    if (sums) poison_bytes(sums->data, sums_bytes);
    run_pass(cpu, l, p, out->data, sums ? (double *)sums->data : NULL, before != NULL);
    if (threads == 1) memcpy(first, out->data, bytes);
    if (threads == 1 && sums) memcpy(first_sums, sums->data, sums_bytes);
    good &= !memcmp(first, out->data, bytes) && guards_intact(out);
    good &= !sums || (!memcmp(first_sums, sums->data, sums_bytes) && guards_intact(sums));
  }
  omp_set_num_threads(usual);
  return good;
}

// `option`: in the forward pass, sums; in the input gradient, accumulate. S: what the tolerance is
// relative to, above.
static bool compare_pass(const layer *l, pass p, bool option, const float *expected, const float *S,
                         size_t count, const char *what) {
  guarded out = guarded_array(count, p == BACKWARD_WEIGHT ? WEIGHT_GUARD : GUARD, SENTINEL);
  guarded sums = guarded_array(4 * (size_t)l->shape.out_channels, GUARD, SENTINEL);
  const float *before = p == BACKWARD_INPUT && option ? normals(count, 0, 1) : NULL;
  const bool good = run_with_threads(l, p, &out, p == FORWARD && option ? &sums : NULL, before);
  const bool winograd = cpu_conv_is_winograd(&l->shape);
  const int roundings = winograd ? winograd_products(&l->shape, p) + 16 : products(&l->shape, p);
  check_error(worst_relative(out.data, expected, S, before, count), 8 * sqrt(roundings) * 0x1p-24,
              "%s %s%s", l->name, what, winograd ? ", Winograd" : "");
  if (p == FORWARD && option) check_sums(l, cpu, (double *)sums.data, out.data);
  return good;
}

static bool test_pass(const layer *l, const layer *absolutes, pass p) {
  const conv_shape *s = &l->shape;
  const size_t count = p == FORWARD ? l->dy.count : p == BACKWARD_INPUT ? l->x.count : l->w.count;
  float *expected = poison(count), *S = poison(count);
  double *sums = take(2 * s->out_channels * sizeof *sums);
  bool good;
  run_pass(reference, l, p, expected, sums, false);
  if (cpu_conv_is_winograd(s))
    winograd_root(s, p, l->x.data, l->w.data, l->dy.data, S, count);
  else
    run_pass(reference, absolutes, p, S, NULL, false);
  if (p == FORWARD) {
    check_sums(l, reference, sums, expected);
    good = compare_pass(l, p, true, expected, S, count, "y");
    good &= compare_pass(l, p, false, expected, S, count, "y, without sums");
  } else if (p == BACKWARD_INPUT) {
    good = compare_pass(l, p, false, expected, S, count, "dx");
    good &= compare_pass(l, p, true, expected, S, count, "dx, added");
  } else {
    good = compare_pass(l, p, false, expected, S, count, "dw");
  }
  return good;
}

// The two operations of evaluation done as one, against the two: the same bits, on any number of
// threads.
static bool test_inference(const layer *l, bool with_residual, bool relu) {
  const conv_shape *s = &l->shape;
  const int channels = s->out_channels;
  const norm_shape shape = {s->batch * s->out_height * s->out_width, channels, s->batch};
  const guarded n = guarded_input(4 * channels, WEIGHT_GUARD); // gamma, beta, mean, variance
  const guarded residual = guarded_input(l->dy.count, GUARD);
  const float *gamma = n.data, *beta = gamma + channels, *mean = beta + channels;
  const float *variance = absolute(mean + channels, channels);
  const float *added = with_residual ? residual.data : NULL;
  float *z = poison(l->dy.count), *expected = poison(l->dy.count);
  const int usual = omp_get_max_threads();
  bool good = true;
  cpu->conv_forward(s, z, l->x.data, l->w.data, NULL);
  cpu->norm_inference(&shape, expected, z, gamma, beta, added, relu, mean, variance);
  for (int threads = 1; threads <= 3; threads++) {
    guarded y = guarded_array(l->dy.count, GUARD, SENTINEL);
    omp_set_num_threads(threads);
    cpu->conv_norm_inference(s, y.data, l->x.data, l->w.data, gamma, beta, added, relu, mean,
                             variance);
    good &= !memcmp(expected, y.data, y.count * sizeof(float)) && guards_intact(&y);
  }
  omp_set_num_threads(usual);
  return good;
}

static void test_conv(conv_shape s) {
  const size_t in_pixels = (size_t)s.batch * s.in_height * s.in_width;
  const size_t out_pixels = (size_t)s.batch * s.out_height * s.out_width;
  const size_t filter = (size_t)s.kernel * s.kernel * s.in_channels;
  layer l = {.shape = s,
             .x = guarded_input(in_pixels * s.in_channels, GUARD),
             .w = guarded_input(s.out_channels * filter, WEIGHT_GUARD),
             .dy = guarded_input(out_pixels * s.out_channels, GUARD)};
  snprintf(l.name, sizeof l.name, "%dx%d/%d %dx%dx%dx%d -> %d:", s.kernel, s.kernel, s.stride,
           s.batch, s.in_height, s.in_width, s.in_channels, s.out_channels);
  layer absolutes = l;
  absolutes.x.data = absolute(l.x.data, l.x.count);
  absolutes.w.data = absolute(l.w.data, l.w.count);
  absolutes.dy.data = absolute(l.dy.data, l.dy.count);
  bool good = test_pass(&l, &absolutes, FORWARD);
  good &= test_pass(&l, &absolutes, BACKWARD_INPUT);
  good &= test_pass(&l, &absolutes, BACKWARD_WEIGHT);
  check(good, "%s same bits with 1, 2, 3 threads; nothing written outside", l.name);
  good = test_inference(&l, false, false); // as the network asks for a block's shortcut
  good &= test_inference(&l, false, true); // for its first convolution, and the stem
  good &= test_inference(&l, true, true);  // for its second
  check(good, "%s with the norm of evaluation: the same bits as one after the other", l.name);
  release();
}

static void test_network_shapes(int width, int batch) {
  network n;
  error e;
  if (!network_describe(&n, cpu, width, batch, &e)) exit(1);
  for (int i = 0; i < UNITS; i++) {
    bool seen = false;
    for (int j = 0; j < i; j++)
      seen |= !memcmp(&n.units[j].shape, &n.units[i].shape, sizeof(conv_shape));
    if (!seen) test_conv(n.units[i].shape);
  }
}

// Every size with every kernel, stride and batch; the channels at random. Then more images, pixels
// and channels than a device would take at once, with a remainder of each.
static void test_ragged_shapes(void) {
  static const int sizes[][2] = {{5, 7}, {1, 1}, {9, 4}}, batches[] = {1, 3, 11},
                   channels[] = {3, 5, 8, 12, 24, 40};
  for (int kernel = 1; kernel <= 3; kernel += 2)
    for (int stride = 1; stride <= 2; stride++)
      for (int size = 0; size < 3; size++)
        for (int batch = 0; batch < 3; batch++)
          test_conv(make_conv_shape(batches[batch], sizes[size][0], sizes[size][1],
                                    channels[random_below(&stream, 6)],
                                    channels[random_below(&stream, 6)], kernel, stride));
  test_conv(make_conv_shape(19, 17, 17, 5, 12, 3, 1));
  test_conv(make_conv_shape(19, 17, 17, 70, 36, 3, 2));
  test_conv(make_conv_shape(37, 3, 5, 70, 36, 1, 1));
  // Tiles that hang over the border, more than one group and part of them, a panel of one vector.
  for (int batch = 0; batch < 3; batch++)
    for (int size = 0; size < 3; size++)
      for (int stride = 1; stride <= 2; stride++)
        test_conv(
            make_conv_shape(batches[batch], sizes[size][0], sizes[size][1], 48, 80, 3, stride));
  test_conv(make_conv_shape(37, 10, 15, 16, 48, 3, 1));
  test_conv(make_conv_shape(37, 10, 15, 16, 48, 3, 2));
  test_conv(make_conv_shape(1, 2, 3, 8208, 16, 3, 1)); // more channels than Winograd's method takes
}

// -- Threads -------------------------------------------------------------------------------------

// Inputs and outputs of one operation after another: large enough for each, multiples of nothing. Each writes
// the first numbers of `out`, and says how many.
enum { PIXELS = 1001, CHANNELS = 13, COUNT = PIXELS * CHANNELS, IMAGES = 23, OUTPUT = 1 << 19 };
static float *a, *b, *per_channel, *out;
static uint8_t *images, *labels;
static sample *samples;
static const step_values step = {.lambda = 0.3f, .learning_rate = 0.1f};
static const norm_shape shape = {PIXELS, CHANNELS, 7};

static size_t run_mix_images(void) {
  cpu->mix_images(IMAGES, out, images, samples, &step);
  return IMAGES * IMAGE_BYTES;
}

static size_t run_norm_forward(void) {
  double sums[2 * CHANNELS];
  for (int c = 0; c < 2 * CHANNELS; c++) sums[c] = PIXELS * (1.0 + c);
  float *statistics = out + COUNT;
  memcpy(statistics, per_channel, 2 * CHANNELS * sizeof(float));
  cpu->norm_forward(&shape, out, a, sums, per_channel, per_channel + CHANNELS, b, true, statistics,
                    statistics + CHANNELS, statistics + 2 * CHANNELS, statistics + 3 * CHANNELS);
  return COUNT + 4 * CHANNELS;
}

static size_t run_norm_inference(void) {
  cpu->norm_inference(&shape, out, a, per_channel, per_channel + CHANNELS, b, true, per_channel,
                      per_channel + CHANNELS);
  return COUNT;
}

static size_t run_norm_backward(void) {
  float *dgamma = out + 2 * COUNT;
  cpu->norm_backward(&shape, out, out + COUNT, dgamma, dgamma + CHANNELS, a, b, a, per_channel,
                     per_channel, per_channel + CHANNELS, true);
  return 2 * COUNT + 2 * CHANNELS;
}

static size_t run_pool(void) {
  float *dx = out + 7 * CHANNELS;
  cpu->pool_forward(7, PIXELS / 7, CHANNELS, out, a);
  cpu->pool_backward(7, PIXELS / 7, CHANNELS, dx, b);
  return 7 * CHANNELS + COUNT;
}

static size_t run_linear(void) {
  float *dx = out + IMAGES * CLASSES, *dw = dx + IMAGES * CHANNELS,
        *dbias = dw + CLASSES * CHANNELS;
  cpu->linear_forward(IMAGES, CHANNELS, out, a, b, per_channel);
  cpu->linear_backward(IMAGES, CHANNELS, dx, dw, dbias, a, b, b + CLASSES * CHANNELS);
  return IMAGES * CLASSES + IMAGES * CHANNELS + CLASSES * CHANNELS + CLASSES;
}

// The two sums are doubles, and half of one, as a float, can be anything; so they stand there as floats, too.
static size_t run_cross_entropy(void) {
  enum { LOGITS = IMAGES * CLASSES };
  step_result *result = (step_result *)(out + LOGITS + 2);
  cpu->cross_entropy(IMAGES, 0.1f, out, result, a, labels, samples, &step);
  out[LOGITS] = (float)result->loss;
  out[LOGITS + 1] = (float)result->correct;
  return LOGITS + 2;
}

static size_t run_sgd_update(void) {
  const parameters p = {.count = COUNT, .weight = out, .gradient = a, .momentum = out + COUNT};
  memcpy(out, b, COUNT * sizeof(float));
  memcpy(out + COUNT, a, COUNT * sizeof(float));
  cpu->sgd_update(&p, &step, 0.9f, 2e-4f);
  return 2 * COUNT;
}

// The reference's three passes. The sums of y stand at the end, as doubles, and as floats behind dw.
static size_t run_reference(const conv_shape *s) {
  const size_t x_count = (size_t)s->batch * s->in_height * s->in_width * s->in_channels;
  const size_t y_count = (size_t)s->batch * s->out_height * s->out_width * s->out_channels;
  const size_t w_count = (size_t)s->out_channels * s->kernel * s->kernel * s->in_channels;
  float *dx = out + y_count, *added = dx + x_count, *dw = added + x_count, *first = dw + w_count;
  double *sums = (double *)(out + OUTPUT) - 2 * s->out_channels;
  memcpy(added, a, x_count * sizeof *added);
  reference->conv_forward(s, out, a, b, sums);
  reference->conv_backward_input(s, dx, a, b, false);
  reference->conv_backward_input(s, added, b, a, true);
  reference->conv_backward_weight(s, dw, a, b);
  for (int c = 0; c < 2 * s->out_channels; c++) first[c] = (float)sums[c];
  return (size_t)(first - out) + 2 * s->out_channels;
}

static size_t run_reference_3x3(void) {
  const conv_shape s = make_conv_shape(5, 7, 9, 6, 11, 3, 1);
  return run_reference(&s);
}

static size_t run_reference_1x1(void) {
  const conv_shape s = make_conv_shape(5, 7, 9, 6, 11, 1, 2);
  return run_reference(&s);
}

// Two training steps at width 8 from initial weights; out: all weights, momenta, statistics.
static size_t train_steps(int batch) {
  network n;
  error e;
  step_result result;
  if (!network_create(&n, cpu, 8, batch, &e)) exit(1);
  network_initialise(&n, 1);
  for (int i = 0; i < 2; i++) {
    cpu->mix_images(batch, n.input, images, samples, &step);
    network_forward(&n, batch, true);
    cpu->cross_entropy(batch, 0.1f, n.dlogits, &result, n.logits, labels, samples, &step);
    network_backward(&n);
    cpu->sgd_update(&n.parameters, &step, 0.9f, 2e-4f);
  }
  const size_t count = n.parameters.count;
  cpu->download(out, n.parameters.weight, count * sizeof(float));
  cpu->download(out + count, n.parameters.momentum, count * sizeof(float));
  cpu->download(out + 2 * count, n.statistics, n.statistics_size * sizeof(float));
  network_free(&n);
  return 2 * count + n.statistics_size;
}

static size_t train_5(void) {
  return train_steps(5);
}

static size_t train_11(void) {
  return train_steps(11);
}

static void test_threads(const char *name, size_t (*run)(void)) {
  const int usual = omp_get_max_threads();
  float *with_one = take(OUTPUT * sizeof *with_one);
  bool same = true;
  size_t missing = 0;
  out = take(OUTPUT * sizeof *out);
  for (int threads = 1; threads <= 3; threads++) {
    omp_set_num_threads(threads);
    poison_bytes(out, OUTPUT * sizeof *out);
    const size_t count = run();
    if (threads == 1) memcpy(with_one, out, OUTPUT * sizeof *out);
    same &= !memcmp(with_one, out, OUTPUT * sizeof *out);
    for (size_t i = 0; i < count; i++) missing += !isfinite(out[i]);
  }
  omp_set_num_threads(usual);
  check(same && !missing, "%s: same bits with 1, 2, 3 threads, each of them a number (%zu are not)",
        name, missing);
}

static void test_all_threads(void) {
  a = normals(COUNT, 0, 1);
  b = normals(COUNT, 0, 1);
  per_channel = absolute(normals(2 * CHANNELS, 1, 0.3), 2 * CHANNELS);
  images = take(IMAGES * IMAGE_BYTES);
  labels = take(IMAGES);
  samples = take(IMAGES * sizeof *samples);
  for (int i = 0; i < IMAGES * IMAGE_BYTES; i++) images[i] = (uint8_t)random_bits(&stream);
  for (int i = 0; i < IMAGES; i++) {
    labels[i] = (uint8_t)(i % CLASSES);
    samples[i] = (sample){i, (3 * i + 1) % 5, i % 9, 4, i % 2}; // partners for batches of 5 on
  }
  test_threads("mix_images", run_mix_images);
  test_threads("norm_forward", run_norm_forward);
  test_threads("norm_inference", run_norm_inference);
  test_threads("norm_backward", run_norm_backward);
  test_threads("pool", run_pool);
  test_threads("linear", run_linear);
  test_threads("cross_entropy", run_cross_entropy);
  test_threads("sgd_update", run_sgd_update);
  test_threads("the reference's convolution 3x3", run_reference_3x3);
  test_threads("the reference's convolution 1x1/2", run_reference_1x1);
  test_threads("two training steps, width 8, batch 5", train_5);
  test_threads("two training steps, width 8, batch 11", train_11);
  release();
}

int main(void) {
  stream = random_open(check_seed("devices_test"), RANDOM_TEST, 0, 0);
  cpu = cpu_device();
  test_network_shapes(64, 2);
  test_network_shapes(16, 2);
  test_network_shapes(8, 3);
  test_ragged_shapes();
  test_all_threads();
  return check_summary();
}
