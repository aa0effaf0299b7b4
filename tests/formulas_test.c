// tests/formulas_test.c - the reference device's small operations against their formulas in device.h,
// written down a second time, in another way and in double precision: mixing images, batch
// normalisation with its running statistics, the loss, the optimiser.
//
// Finite differences (gradients_test.c) show that a backward pass belongs to its forward pass. They
// cannot show that the forward pass is the right one, nor say anything about what has no gradient.
//
// Tolerances count roundings. A float operation is off by at most 2^-24 of its result, so a value
// that is a sum of terms, made with k roundings, is off by at most k 2^-24 times the sum of the
// terms' absolute values. Errors below are relative to that sum.
//
//     make build/gcc/tests/formulas_test && build/gcc/tests/formulas_test
#include "inputs.h"
#include <string.h>

static const device *const d = &reference_device; // its memory is host memory: no copies needed
static const double ROUNDING = 0x1p-24;

static double relative(double value, double expected, double magnitude) {
  return value == expected ? 0 : fabs(value - expected) / magnitude;
}

// -- A batch of images ---------------------------------------------------------------------------

enum { IMAGES = 7, CORNERS = 2 * CROP_PADDING + 1, BATCH = CORNERS * CORNERS * 2 };

// Step by step: the image in a 40x40 frame of zeros, the crop out of it, the crop turned around.
static void augment(float result[IMAGE_SIDE][IMAGE_SIDE][IMAGE_CHANNELS], const uint8_t *image,
                    const sample *s) {
  enum { FRAME = IMAGE_SIDE + 2 * CROP_PADDING };
  uint8_t frame[IMAGE_CHANNELS][FRAME][FRAME] = {0};
  for (int c = 0; c < IMAGE_CHANNELS; c++)
    for (int y = 0; y < IMAGE_SIDE; y++, image += IMAGE_SIDE)
      memcpy(&frame[c][CROP_PADDING + y][CROP_PADDING], image, IMAGE_SIDE);
  for (int c = 0; c < IMAGE_CHANNELS; c++)
    for (int y = 0; y < IMAGE_SIDE; y++) {
      const uint8_t *row = &frame[c][s->crop_y + y][s->crop_x];
      for (int x = 0; x < IMAGE_SIDE; x++)
        result[y][s->flip ? IMAGE_SIDE - 1 - x : x][c] = (float)row[x] / 255;
    }
}

// Every corner with and without flip in one batch, partners at random. With lambda 1, 0 and 1/2 the
// products are exact, so every order of operations has to give the same bits; with others there are
// four roundings: a quotient, 1 - lambda, a product, the sum.
static void test_mixing(float lambda, double tolerance) {
  uint8_t *images = take(IMAGES * IMAGE_BYTES);
  sample *samples = take(BATCH * sizeof *samples);
  float(*a)[IMAGE_BYTES] = take(BATCH * sizeof *a);
  real *x = poison(BATCH * IMAGE_BYTES);
  const step_values step = {.lambda = lambda};
  for (int i = 0; i < IMAGES * IMAGE_BYTES; i++) images[i] = (uint8_t)random_bits(&stream);
  for (int b = 0; b < BATCH; b++) {
    samples[b] = (sample){.image = (int32_t)random_below(&stream, IMAGES),
                          .partner = (int32_t)random_below(&stream, BATCH),
                          .crop_y = b / 2 / CORNERS,
                          .crop_x = b / 2 % CORNERS,
                          .flip = b % 2};
    augment((void *)a[b], images + samples[b].image * IMAGE_BYTES, &samples[b]);
  }
  d->mix_images(BATCH, x, images, samples, &step);
  double worst = 0;
  for (int b = 0; b < BATCH; b++)
    for (int i = 0; i < IMAGE_BYTES; i++) {
      const float own = a[b][i], other = a[samples[b].partner][i];
      const float expected = (float)((double)lambda * own + (1 - (double)lambda) * other);
      worst = larger(worst, relative(x[b * IMAGE_BYTES + i], expected, 1));
    }
  check_error(worst, tolerance, "mixed images, lambda %.3f", lambda);
  release();
}

// -- Batch normalisation -------------------------------------------------------------------------

typedef struct {
  norm_shape shape;
  bool relu;
  real *x, *gamma, *beta, *residual; // residual: NULL where there is none
} norm_inputs;

// The error of channel c of y: at most seven roundings, of mean, x - mean, inverse_std, the
// two products and the two sums.
static double norm_error(const norm_inputs *p, const real *y, int c, double mean, double variance) {
  double worst = 0;
  const double gamma = p->gamma[c], beta = p->beta[c], deviation = sqrt(variance + 1e-5);
  for (int i = c; i < p->shape.pixels * p->shape.channels; i += p->shape.channels) {
    const double x = p->x[i], residual = p->residual ? p->residual[i] : 0;
    const double sum = gamma * (x - mean) / deviation + beta + residual;
    const double magnitude =
        fabs(gamma) * (fabs(x) + fabs(mean)) / deviation + fabs(beta) + fabs(residual);
    worst = larger(worst, relative(y[i], p->relu ? fmax(0, sum) : sum, magnitude));
  }
  return worst;
}

// Mean and variance of channel c, the variance in a second pass over the data; and the two sums
// that a convolution would hand over.
static void measure(const norm_inputs *p, int c, double *mean, double *variance, double *sums) {
  const int n = p->shape.pixels, channels = p->shape.channels;
  *mean = *variance = sums[c] = sums[channels + c] = 0;
  for (int i = 0; i < n; i++) *mean += (double)p->x[i * channels + c] / n;
  for (int i = 0; i < n; i++) {
    const double x = p->x[i * channels + c];
    *variance += (x - *mean) * (x - *mean) / n;
    sums[c] += x;
    sums[channels + c] += x * x;
  }
}

// Channel 0 is constant and channel 1 varies by 0.003, so that epsilon counts.
static norm_inputs draw_norm(int pixels, int channels, bool residual, bool relu) {
  const size_t count = (size_t)pixels * channels;
  const norm_inputs p = {.shape = {pixels, channels, 1},
                         .relu = relu,
                         .x = normals(count, 0.5, 1.5),
                         .gamma = normals(channels, 1, 0.3),
                         .beta = normals(channels, 0, 0.5),
                         .residual = residual ? normals(count, 0, 1) : NULL};
  for (int i = 0; i < pixels; i++) {
    p.x[i * channels] = 0.7f;
    p.x[i * channels + 1] *= 0.002f;
  }
  return p;
}

static void test_norm(int pixels, int channels, bool residual, bool relu) {
  const norm_inputs p = draw_norm(pixels, channels, residual, relu);
  const size_t count = (size_t)pixels * channels;
  real *old_mean = normals(channels, 0, 1), *old_var = absolute(normals(channels, 0, 1), channels);
  real *new_mean = poison(channels), *new_var = poison(channels);
  real *saved_mean = poison(channels), *saved_inverse_std = poison(channels);
  real *y = poison(count), *inference = poison(count);
  double *sums = take(2 * channels * sizeof *sums), *mean = take(channels * sizeof *mean);
  double *variance = take(channels * sizeof *variance);
  old_var[0] = 0;
  for (int c = 0; c < channels; c++) measure(&p, c, &mean[c], &variance[c], sums);
  memcpy(new_mean, old_mean, channels * sizeof(real));
  memcpy(new_var, old_var, channels * sizeof(real));
  d->norm_forward(&p.shape, y, p.x, sums, p.gamma, p.beta, p.residual, relu, new_mean, new_var,
                  saved_mean, saved_inverse_std);
  d->norm_inference(&p.shape, inference, p.x, p.gamma, p.beta, p.residual, relu, old_mean, old_var);
  double worst[4] = {0};
  for (int c = 0; c < channels; c++) {
    const double sample_variance = variance[c] * pixels / (pixels - 1);
    worst[0] = larger(worst[0], norm_error(&p, y, c, mean[c], variance[c]));
    worst[1] = larger(worst[1], norm_error(&p, inference, c, old_mean[c], old_var[c]));
    worst[2] = larger(worst[2], relative(new_mean[c], 0.9 * old_mean[c] + 0.1 * mean[c],
                                         fabs(old_mean[c]) + fabs(mean[c])));
    // The sums leave 2^-52 mean^2 of a variance of 0; next to epsilon that is nothing.
    worst[3] = larger(worst[3], relative(new_var[c], 0.9 * old_var[c] + 0.1 * sample_variance,
                                         old_var[c] + sample_variance + 1e-5));
  }
  const char *variant = residual ? relu ? "residual, relu" : "residual" : relu ? "relu" : "plain";
  check_error(worst[0], 8 * ROUNDING, "norm %dx%d %s: y", pixels, channels, variant);
  check_error(worst[1], 8 * ROUNDING, "norm %dx%d %s: y, inference", pixels, channels, variant);
  check_error(worst[2], ROUNDING, "norm %dx%d %s: running mean", pixels, channels, variant);
  check_error(worst[3], ROUNDING, "norm %dx%d %s: running variance", pixels, channels, variant);
  release();
}

// -- The loss ------------------------------------------------------------------------------------

// -sum_j smooth(label)[j] log softmax(logits)[j], without any care for overflow.
static double smoothed_cross_entropy(const double *logits, int label, double smoothing) {
  double total = 0, loss = 0;
  for (int j = 0; j < CLASSES; j++) total += exp(logits[j]);
  for (int j = 0; j < CLASSES; j++)
    loss -= (j == label ? 1 - smoothing : smoothing / 9) * log(exp(logits[j]) / total);
  return loss;
}

// Whether the largest logit is the label's.
static bool correct(const double *logits, int label) {
  for (int j = 0; j < CLASSES; j++)
    if (logits[j] > logits[label]) return false;
  return true;
}

// Image 0's logits are 900 higher than drawn and image 1's 900 lower, which must not matter:
// exp(900) is beyond double. Everything in the loss is double, so its tolerance is some roundings
// of 2^-53; its results go to a slot of an array, and nowhere else.
static void test_loss(float smoothing, float lambda) {
  enum { N = 23, SLOT = 2 };
  uint8_t labels[N];
  sample samples[N] = {{0}};
  step_result results[4] = {{0}}, without_gradient[4] = {{0}};
  const step_values step = {.lambda = lambda, .slot = SLOT};
  real *logits = normals(N * CLASSES, 0, 2), *dlogits = poison(N * CLASSES);
  double loss = 0, right = 0, worst = 0;
  for (int b = 0; b < N; b++) {
    labels[b] = (uint8_t)random_below(&stream, CLASSES);
    samples[b].image = N - 1 - b;
    samples[b].partner = (int32_t)random_below(&stream, N);
  }
  for (int b = 0; b < N; b++) {
    const double shift = b == 0 ? 900 : b == 1 ? -900 : 0;
    const int own = labels[N - 1 - b], other = labels[N - 1 - samples[b].partner];
    double z[CLASSES];
    for (int j = 0; j < CLASSES; j++) {
      logits[b * CLASSES + j] += (real)shift;
      z[j] = logits[b * CLASSES + j] - shift;
    }
    loss += lambda * smoothed_cross_entropy(z, own, smoothing) +
            (1 - (double)lambda) * smoothed_cross_entropy(z, other, smoothing);
    right += lambda * correct(z, own) + (1 - (double)lambda) * correct(z, other);
  }
  d->cross_entropy(N, smoothing, dlogits, results, logits, labels, samples, &step);
  d->cross_entropy(N, smoothing, NULL, without_gradient, logits, labels, samples, &step);
  check_error(relative(results[SLOT].loss, loss, loss), 1e-13, "loss, smoothing %.1f lambda %.2f",
              smoothing, lambda);
  check_error(relative(results[SLOT].correct, right, N), 1e-13, "its count of correct answers");
  for (int b = 0; b < N; b++) { // the target's sum is 1, so the gradient's is 0
    double sum = 0;
    for (int j = 0; j < CLASSES; j++) sum += dlogits[b * CLASSES + j];
    worst = larger(worst, fabs(sum) * N);
  }
  check_error(worst, 2 * ROUNDING, "its gradient's sum over the classes, times batch");
  check_error(relative(without_gradient[SLOT].loss, loss, loss), 1e-13, "loss without a gradient");
  check(!results[SLOT - 1].loss && !results[SLOT + 1].loss, "its neighbours are untouched");
  release();
}

// -- The optimiser -------------------------------------------------------------------------------

// With G_i = g_i + decay w_i, the definition v_t = mu v_(t-1) + G_t solves to v_t = sum over i <= t
// of mu^(t - i) G_i, and w_t = w_0 - sum of rate_i v_i. Four steps with four learning rates. A step
// has five roundings of numbers which stay below 16.
static void test_sgd(void) {
  enum { STEPS = 4, COUNT = 1003 };
  static const float rates[STEPS] = {0.5f, 0.5f, 0.05f, 0.25f}, mu = 0.9f, decay = 0.1f;
  const real *w0 = normals(COUNT, 0, 1);
  parameters p = {.count = COUNT, .weight = take((COUNT + 1) * sizeof(real))};
  p.momentum = take((COUNT + 1) * sizeof(real));
  memcpy(p.weight, w0, COUNT * sizeof(real));
  p.weight[COUNT] = p.momentum[COUNT] = 77; // behind the last one
  double(*G)[COUNT] = take(STEPS * sizeof *G), *total = take(COUNT * sizeof *total);
  double worst_v = 0, worst_w = 0;
  for (int t = 0; t < STEPS; t++) {
    const step_values step = {.learning_rate = rates[t]};
    p.gradient = normals(COUNT, 0, 1);
    for (int i = 0; i < COUNT; i++) G[t][i] = p.gradient[i] + (double)decay * p.weight[i];
    d->sgd_update(&p, &step, mu, decay);
    for (int i = 0; i < COUNT; i++) {
      double v = 0;
      for (int s = 0; s <= t; s++) v += pow(mu, t - s) * G[s][i];
      total[i] += rates[t] * v;
      worst_v = larger(worst_v, fabs(p.momentum[i] - v));
      worst_w = larger(worst_w, fabs(p.weight[i] - (w0[i] - total[i])));
    }
  }
  check_error(worst_v, STEPS * 5 * 16 * ROUNDING, "sgd, momentum after each of %d steps", STEPS);
  check_error(worst_w, STEPS * 5 * 16 * ROUNDING, "sgd, weights after each of %d steps", STEPS);
  check(p.weight[COUNT] == 77 && p.momentum[COUNT] == 77, "sgd, nothing behind the last weight");
  release();
}

int main(void) {
  stream = random_open(check_seed("formulas_test"), RANDOM_TEST, 0, 0);
  test_mixing(1, 0);
  test_mixing(0, 0);
  test_mixing(0.5f, 0);
  test_mixing(random_float(&stream), 4 * ROUNDING);
  for (int variant = 0; variant < 4; variant++) test_norm(37, 5, variant & 1, variant & 2);
  test_norm(2, 3, true, true);
  test_loss(0, 1);
  test_loss(0.1f, 1);
  test_loss(0, 0.3f);
  test_loss(0.1f, 0.3f);
  test_sgd();
  return check_summary();
}
