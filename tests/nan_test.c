// tests/nan_test.c - a NaN must not get lost: in every operation of every device, one NaN among the inputs
// makes each output that depends on it a NaN.
//
// A run that diverges is stopped because its loss is no number, and the message names the first
// tensor that holds a NaN. Both fail where an operation swallows it, and that is easily written: a
// comparison with a NaN is false, so `value > 0 ? value : 0` is a ReLU that turns a NaN into 0,
// while `value < 0 ? 0 : value` passes it on. fmax(0, NaN) is 0, too.
//
// Which outputs depend on an input is written down beside each operation; for the linear ones, the
// reference says it: with 1 in the place of the NaN, 0 elsewhere in that input, and 1 everywhere in
// the other one, those outputs are not 0. Outputs are 0 before. For a NaN in x or dz, outputs whose filter
// does not meet it have to stay numbers: a kernel that multiplies more than it needs to, by zeroes, makes
// NaNs of them. That is not asked of weight gradients, of NaNs in w, and of `cpu`, whose method, Winograd's,
// works on tiles of 4x4 pixels at once. The fusions' cases are in tests/nan_fused.h.
//
//     make build/gcc/tests/nan_test && build/gcc/tests/nan_test
#include "nan_fused.h"
#include <omp.h>

// -- Batch normalisation ----------------------------------------------------------------------------

enum { Z, RESIDUAL, GAMMA, BETA, MEAN, VARIANCE, PLACES };
static const char *const places[PLACES] = {"z",    "the residual", "gamma",
                                           "beta", "mean",         "variance"};

typedef struct {
  norm_shape shape;
  bool relu, training;
} norm_case;

static void run_norm(const norm_case *c, const array on[PLACES], const void *sums, const array *y,
                     const array *mean, const array *inverse_std, bool with_residual) {
  const void *residual = with_residual ? on[RESIDUAL].there : NULL;
  if (c->training)
    d->norm_forward(&c->shape, y->there, on[Z].there, sums, on[GAMMA].there, on[BETA].there,
                    residual, c->relu, on[MEAN].there, on[VARIANCE].there, mean->there,
                    inverse_std->there);
  else
    d->norm_inference(&c->shape, y->there, on[Z].there, on[GAMMA].there, on[BETA].there, residual,
                      c->relu, on[MEAN].there, on[VARIANCE].there);
}

// A NaN in one place; in training, in place of mean and variance, in the sum that each is made of.
static void test_norm_place(const norm_case *c, int place, bool with_residual) {
  const size_t channels = (size_t)c->shape.channels, count = channels * (size_t)c->shape.pixels;
  const activation_shape shape = {1, c->shape.pixels, c->shape.channels};
  const bool each = place <= RESIDUAL, in_sum = c->training && place >= MEAN;
  const size_t at = somewhere(each ? count : channels), sums_bytes = 2 * channels * sizeof(double);
  static const char *const sums_of[] = {"the sum", "the sum of squares"};
  real *values[PLACES];
  array on[PLACES];
  char what[100];
  double *sums = take(sums_bytes);
  for (int i = 0; i < PLACES; i++) values[i] = normals(i <= RESIDUAL ? count : channels, 0, 1);
  values[VARIANCE] = absolute(values[VARIANCE], channels);
  for (size_t k = 0; k < 2 * channels; k++) sums[k] = c->shape.pixels * (k < channels ? 0.1 : 1);
  if (in_sum)
    sums[(place == VARIANCE) * channels + at] = a_nan();
  else
    values[place][at] = a_nan();
  for (int i = 0; i < PLACES; i++)
    on[i] = i <= RESIDUAL ? put_activations(values[i], shape) : put(REALS, values[i], channels);
  array y = zero_activations(shape), mean = zeros(REALS, channels), std = zeros(REALS, channels);
  run_norm(c, on, hold(sums, sums_bytes), &y, &mean, &std, with_residual);
  snprintf(what, sizeof what, "%s %dx%d%s%s, y from %s",
           c->training ? "norm_forward" : "norm_inference", c->shape.pixels, c->shape.channels,
           c->relu ? ", ReLU" : "", with_residual ? ", residual" : "",
           in_sum ? sums_of[place - MEAN] : places[place]);
  expect(&y, only(count, at, each ? 0 : channels), what);
  if (in_sum) {
    const real *there = only(channels, at, 0);
    if (place == MEAN) {
      expect(&mean, there, "norm_forward, the saved mean");
      expect(&on[MEAN], there, "norm_forward, the running mean");
    }
    expect(&std, there, "norm_forward, the saved deviation");
    expect(&on[VARIANCE], there, "norm_forward, the running variance");
  }
  let_go();
}

static void test_norm(int pixels, int channels) {
  for (int variant = 0; variant < 8; variant++) {
    const norm_case c = {{pixels, channels, 1}, variant & 1, variant & 2};
    const bool with_residual = variant & 4;
    for (int place = 0; place < PLACES; place++)
      if (place != RESIDUAL || with_residual) test_norm_place(&c, place, with_residual);
    release();
  }
}

// From dy, where y lets it through, above zero or itself a NaN: dresidual there, and through the sums the whole
// channel.
static void test_norm_backward(int pixels, int channels, bool relu, bool in_dy, real y_there) {
  const norm_shape s = {pixels, channels, 1};
  const activation_shape shape = {1, pixels, channels};
  const size_t count = (size_t)pixels * channels, at = somewhere(count), k = at % channels;
  real *dy = normals(count, 0, 1), *z = normals(count, 0, 1), *y = normals(count, 0, 1);
  char what[100];
  y[at] = y_there;
  (in_dy ? dy : z)[at] = a_nan();
  array dz = zero_activations(shape), dresidual = zero_activations(shape);
  array dgamma = zeros(REALS, channels), dbeta = zeros(REALS, channels);
  real *gamma = ones(channels), *mean = normals(channels, 0, 1), *inverse_std = ones(channels);
  d->norm_backward(&s, dz.there, dresidual.there, dgamma.there, dbeta.there,
                   put_activations(dy, shape).there, put_activations(y, shape).there,
                   put_activations(z, shape).there, put(REALS, gamma, channels).there,
                   put(REALS, mean, channels).there, put(REALS, inverse_std, channels).there, relu);
  snprintf(what, sizeof what, "norm_backward %dx%d%s, from %s: dz", pixels, channels,
           relu ? ", ReLU" : "",
           !in_dy           ? "z"
           : isnan(y_there) ? "dy and y"
                            : "dy");
  expect(&dz, only(count, k, channels), what);
  expect(&dgamma, only(channels, k, 0), "its dgamma");
  if (in_dy) {
    expect(&dbeta, only(channels, k, 0), "its dbeta");
    expect(&dresidual, only(count, at, 0), "its dresidual");
  }
  let_go();
  release();
}

// -- Convolution ------------------------------------------------------------------------------------

static const char *const pass_names[] = {"conv_forward", "conv_backward_input",
                                         "conv_backward_weight"};

static const char *const inputs[][2] = {{"x", "w"}, {"dz", "w"}, {"dz", "x"}};

// Both sums of each channel that has one of those outputs.
static void expect_sums(const real *depends, size_t count, const double *sums, int channels) {
  int numbers = 0;
  for (size_t i = 0; i < count; i++)
    if (depends[i] != 0)
      numbers += !isnan(sums[i % channels]) + !isnan(sums[channels + i % channels]);
  check(!numbers, "%s, conv_forward, the sums: %d stay numbers", d->name, numbers);
}

static void test_conv(conv_shape s, pass p, operand from) {
  const conv_sizes n = sizes_of(&s);
  const activation_shape first_shape = p == FORWARD ? n.x_shape : n.z_shape;
  const size_t sums_bytes = 2 * s.out_channels * sizeof(double);
  real *values[2], *depends;
  char what[100];
  double *sums = take(sums_bytes);
  const size_t at = draw_seen(&s, p, from, &depends);
  for (int i = FIRST; i <= SECOND; i++) values[i] = normals(operand_count(&s, p, i), 0, 1);
  values[from][at] = a_nan();
  const array out = p == BACKWARD_WEIGHT ? zeros(REALS, n.w)
                                         : zero_activations(p == FORWARD ? n.z_shape : n.x_shape);
  const array a = put_activations(values[FIRST], first_shape);
  const array b = p == BACKWARD_WEIGHT ? put_activations(values[SECOND], n.x_shape)
                                       : put(WEIGHTS, values[SECOND], n.w);
  void *there = hold(sums, sums_bytes);
  convolve(d, &s, p, out.there, a.there, b.there, p == FORWARD ? there : NULL);
  snprintf(what, sizeof what, "%s %dx%d/%d, %d -> %d, from %s", pass_names[p], s.kernel, s.kernel,
           s.stride, s.in_channels, s.out_channels, inputs[p][from]);
  if (p != BACKWARD_WEIGHT && from == FIRST && strcmp(d->name, "cpu"))
    expect_just(&out, depends, what);
  else
    expect(&out, depends, what);
  d->download(sums, there, sums_bytes);
  if (p == FORWARD) expect_sums(depends, n.z, sums, s.out_channels);
  let_go();
  release();
}

// A NaN in what was there stays one, also where no tap meets it, and stays there, in `cpu`, too.
static void test_accumulate(conv_shape s) {
  const conv_sizes n = sizes_of(&s);
  const size_t at = somewhere(n.x);
  real *before = normals(n.x, 0, 1);
  before[at] = a_nan();
  const array dx = put_activations(before, n.x_shape);
  d->conv_backward_input(&s, dx.there, put_activations(normals(n.z, 0, 1), n.z_shape).there,
                         put(WEIGHTS, normals(n.w, 0, 1), n.w).there, true);
  char what[100];
  snprintf(what, sizeof what, "conv_backward_input %dx%d/%d, %d -> %d, from what was there",
           s.kernel, s.kernel, s.stride, s.in_channels, s.out_channels);
  expect_just(&dx, only(n.x, at, 0), what);
  let_go();
  release();
}

static void test_convs(void) {
  static const int channels[][2] = {{16, 32}, {5, 3}, {3, 8}};
  // gpu/stem.h: eight for each pass and input, in any channel, at borders and not
  for (int run = 0; run < 48; run++)
    test_conv(make_conv_shape(1, 8, 32, 3, 16, 3, 1), run / 2 % 3, run % 2);
  for (int i = 0; i < 3; i++)
    for (int shape = 0; shape < 4; shape++) {
      const conv_shape s = make_conv_shape(2, 7, 6, channels[i][0], channels[i][1],
                                           shape & 1 ? 1 : 3, shape & 2 ? 2 : 1);
      for (int run = 0; run < 6; run++) test_conv(s, run / 2, run % 2);
      test_accumulate(s);
    }
}

// Evaluation's convolution and norm as one, where the device has it. Z stands for x here, W comes last.
static void test_conv_norm(int place, bool relu, bool with_residual) {
  enum { W = PLACES, CHANNELS = 32 };
  const conv_shape s = make_conv_shape(2, 7, 6, 16, CHANNELS, 3, 1);
  const conv_sizes n = sizes_of(&s);
  const size_t count[] = {n.x, n.z, CHANNELS, CHANNELS, CHANNELS, CHANNELS, n.w};
  real *values[PLACES + 1], *depends;
  size_t at = somewhere(count[place]);
  if (place == Z || place == W)
    at = draw_seen(&s, FORWARD, place == Z ? FIRST : SECOND, &depends);
  else
    depends = only(n.z, at, place == RESIDUAL ? 0 : CHANNELS);
  for (int i = 0; i <= PLACES; i++) values[i] = normals(count[i], 0, 1);
  values[VARIANCE] = absolute(values[VARIANCE], CHANNELS);
  values[place][at] = a_nan();
  array y = zero_activations(n.z_shape), on[PLACES];
  for (int i = GAMMA; i < PLACES; i++) on[i] = put(REALS, values[i], CHANNELS);
  on[RESIDUAL] = put_activations(values[RESIDUAL], n.z_shape);
  d->conv_norm_inference(&s, y.there, put_activations(values[Z], n.x_shape).there,
                         put(WEIGHTS, values[W], n.w).there, on[GAMMA].there, on[BETA].there,
                         with_residual ? on[RESIDUAL].there : NULL, relu, on[MEAN].there,
                         on[VARIANCE].there);
  char what[100];
  snprintf(what, sizeof what, "conv_norm_inference%s%s, from %s", relu ? ", ReLU" : "",
           with_residual ? ", residual" : "",
           place == Z   ? "x"
           : place == W ? "w"
                        : places[place]);
  expect(&y, depends, what);
  let_go();
  release();
}

static void test_conv_norms(void) {
  for (int variant = 0; variant < 4; variant++)
    for (int place = 0; place <= PLACES; place++)
      if (place != RESIDUAL || variant & 2) test_conv_norm(place, variant & 1, variant & 2);
}

// -- Pool and linear --------------------------------------------------------------------------------

static void test_pool(int batch, int pixels, int channels) {
  const size_t out = (size_t)batch * channels, in = out * pixels;
  const size_t at = somewhere(in), from = somewhere(out);
  real *x = normals(in, 0, 1), *dy = normals(out, 0, 1), *mean = poison(out), *spread = poison(in);
  x[at] = dy[from] = a_nan();
  reference_pool_forward(batch, pixels, channels, mean, only(in, at, 0));
  reference_pool_backward(batch, pixels, channels, spread, only(out, from, 0));
  const activation_shape all = {batch, pixels, channels}, one = {batch, 1, channels};
  array y = zero_activations(one), dx = zero_activations(all);
  d->pool_forward(batch, pixels, channels, y.there, put_activations(x, all).there);
  d->pool_backward(batch, pixels, channels, dx.there, put_activations(dy, one).there);
  expect(&y, mean, "pool_forward");
  expect(&dx, spread, "pool_backward");
  let_go();
  release();
}

// A NaN in x, w, or the bias (forward) or dlogits (backward).
static void test_linear(int batch, int channels, int place) {
  const size_t in = (size_t)batch * channels, filters = (size_t)CLASSES * channels;
  const size_t out = (size_t)batch * CLASSES, sizes[4] = {in, filters, CLASSES, out};
  real *values[4], *marks[4], *l = poison(out), *x = poison(in), *w = poison(filters);
  real bias[CLASSES];
  for (int i = 0; i < 4; i++) values[i] = normals(sizes[i], 0, 1), marks[i] = ones(sizes[i]);
  const size_t at = somewhere(sizes[place]);
  values[place][at] = a_nan();
  marks[place] = only(sizes[place], at, 0);
  if (place < 2) marks[2] = take(CLASSES * sizeof(real)); // no bias
  if (place == 2) marks[0] = take(in * sizeof(real));     // nothing but the bias
  const activation_shape shape = {batch, 1, channels};
  array logits = zeros(REALS, out), dx = zero_activations(shape), dw = zeros(REALS, filters);
  array dbias = zeros(REALS, CLASSES), on_x = put_activations(values[0], shape);
  array on_w = put(WEIGHTS, values[1], filters), on_dlogits = put(REALS, values[3], out);
  reference_linear_forward(batch, channels, l, marks[0], marks[1], marks[2]);
  reference_linear_backward(batch, channels, x, w, bias, marks[3], marks[0], marks[1]);
  d->linear_forward(batch, channels, logits.there, on_x.there, on_w.there,
                    put(REALS, values[2], CLASSES).there);
  d->linear_backward(batch, channels, dx.there, dw.there, dbias.there, on_dlogits.there, on_x.there,
                     on_w.there);
  if (place < 3) expect(&logits, l, "linear_forward");
  if (place == 1 || place == 3) expect(&dx, x, "linear_backward, dx");
  if (place == 0 || place == 3) expect(&dw, w, "linear_backward, dw");
  if (place == 3) expect(&dbias, bias, "linear_backward, dbias");
  let_go();
  release();
}

// -- The two ends of a step -------------------------------------------------------------------------

// Class j's logit of one image: the loss, and that image's gradients.
static void test_loss(int batch, int j) {
  const size_t b = somewhere(batch), count = (size_t)batch * CLASSES;
  uint8_t *labels = take(batch);
  sample *samples = take(batch * sizeof *samples);
  const step_values step = {.lambda = 0.3f};
  step_result result = {0, 0};
  real *logits = normals(count, 0, 1), *depends = take(count * sizeof(real));
  for (int i = 0; i < batch; i++) samples[i] = (sample){.image = i, .partner = i};
  for (int i = 0; i < CLASSES; i++) depends[b * CLASSES + i] = 1;
  logits[b * CLASSES + j] = a_nan();
  array dlogits = zeros(REALS, count);
  void *there = hold(&result, sizeof result);
  d->cross_entropy(batch, 0.1f, dlogits.there, there, put(REALS, logits, count).there,
                   hold(labels, batch), hold(samples, batch * sizeof *samples),
                   hold(&step, sizeof step));
  d->download(&result, there, sizeof result);
  check(isnan(result.loss), "%s, cross_entropy of %d images, logit %d: the loss", d->name, batch,
        j);
  expect(&dlogits, depends, "cross_entropy, dlogits");
  let_go();
  release();
}

// A NaN in w, g or v of one parameter, or, for place 3, the learning rate.
static void test_sgd(size_t count, int place) {
  const size_t at = somewhere(count);
  const step_values step = {.learning_rate = place == 3 ? a_nan() : 0.1f};
  real *values[3], *depends = place == 3 ? ones(count) : only(count, at, 0);
  for (int i = 0; i < 3; i++) values[i] = normals(count, 0, 1);
  if (place < 3) values[place][at] = a_nan();
  array w = put(REALS, values[0], count), g = put(REALS, values[1], count);
  array v = put(REALS, values[2], count), rounded = zeros(WEIGHTS, count);
  const parameters p = {.count = count,
                        .weight = w.there,
                        .gradient = g.there,
                        .momentum = v.there,
                        .rounded_weight = d->rounded_weight_bytes ? rounded.there : w.there};
  d->sgd_update(&p, hold(&step, sizeof step), 0.9f, 2e-4f);
  expect(&w, depends, "sgd_update, w");
  if (place < 3) expect(&v, depends, "sgd_update, v");
  if (d->rounded_weight_bytes) expect(&rounded, depends, "sgd_update, the rounded weights");
  let_go();
  release();
}

// lambda is in every pixel, also in those that are 0.
static void test_mixing(void) {
  uint8_t *images = take(IMAGE_BYTES);
  const sample one = {.crop_y = 2, .crop_x = 5};
  const step_values step = {.lambda = a_nan()};
  array x = zero_activations((activation_shape){1, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS});
  d->mix_images(1, x.there, hold(images, IMAGE_BYTES), hold(&one, sizeof one),
                hold(&step, sizeof step));
  expect(&x, ones(IMAGE_BYTES), "mix_images, from lambda");
  let_go();
  release();
}

// With channels in eights, as fast kernels want them, and others.
static void test_device(void) {
  static const int channels[] = {24, 5};
  test_mixing();
  test_convs();
  for (int i = 0; i < 2; i++) {
    test_norm(35, channels[i]);
    for (int variant = 0; variant < 4; variant++)
      test_norm_backward(35, channels[i], variant & 1, variant & 2, 1);
    test_norm_backward(35, channels[i], true, true, a_nan());
    test_pool(3, 16, channels[i]);
    for (int place = 0; place < 4; place++) test_linear(3, channels[i], place);
  }
  if (d->conv_norm_inference) test_conv_norms();
  if (d->fused) test_fusions();
  for (int j = 0; j < CLASSES; j++) test_loss(j % 2 ? 37 : 3, j);
  for (int place = 0; place < 4; place++) test_sgd(1003, place);
}

int main(void) {
  static const char *const names[] = {"reference", "cpu",        "cpu-bf16", "simt-plain",
                                      "simt",      "cuda-plain", "cuda"};
  stream = random_open(check_seed("nan_test"), RANDOM_TEST, 0, 0);
  omp_set_num_threads(1); // small shapes
  for (int i = 0; i < 7; i++) {
    error e;
    d = device_by_name(names[i], &e);
    if (d) test_device();
    if (!d && i == 6) no_rows_for_cuda(e.text);
  }
  return check_summary();
}
