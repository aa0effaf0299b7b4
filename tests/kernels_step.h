// tests/kernels_step.h - the cases of mixup.cu, smoothing.cu and sgd.cu for kernels_test.c: what stands
// at the beginning and the end of a step.
#ifndef KERNELS_STEP_H
#define KERNELS_STEP_H

#include "../network.h"
#include "../reference/reference.h"
#include "kernels.h"

#define SMALLEST 0x1p-149 // float above zero: down there, that is the rounding

enum { IMAGES = 23, RESULTS = 3, SLOT = 1 };
static array *images, *labels, *samples, *step, *results_array;

// A batch's images, corners, flips and partners at random, but the crop's extremes first.
static sample *draw_samples(int batch) {
  static const int corner[][3] = {{0, 0, 0}, {8, 8, 1}, {0, 8, 1}, {8, 0, 0}, {4, 4, 1}, {0, 4, 1}};
  sample *drawn = take((size_t)batch * sizeof *drawn);
  int32_t *partners = take((size_t)batch * sizeof *partners);
  random_permutation(&stream, partners, (uint32_t)batch);
  for (int b = 0; b < batch; b++) {
    sample *s = &drawn[b];
    s->image = (int32_t)random_below(&stream, IMAGES);
    s->partner = partners[b];
    s->crop_y = b < 6 ? corner[b][0] : (int32_t)random_below(&stream, 9);
    s->crop_x = b < 6 ? corner[b][1] : (int32_t)random_below(&stream, 9);
    s->flip = b < 6 ? corner[b][2] : (int32_t)random_below(&stream, 2);
  }
  return drawn;
}

// 1 and 0, where one of the two images must not be seen, and between.
static const float lambdas[] = {0.3f, 1, 0, 0.8125f};

static step_values make_step(const test_case *c) {
  return (step_values){.lambda = lambdas[c->lambda], .learning_rate = 0.1f, .slot = SLOT};
}

// -- mix_images -----------------------------------------------------------------------------------

static void launch_mix_images(const test_case *c, const device *d) {
  d->mix_images(c->batch, x->data, images->data, samples->data, step->data);
}

// Every term is positive and rounded five times at most: 1 - lambda, / 255, product and sum.
static void test_mix_images(const test_case *c, const devices *on) {
  const size_t count = (size_t)c->batch * IMAGE_BYTES;
  const step_values values = make_step(c);
  const sample *drawn = draw_samples(c->batch);
  uint8_t *bytes = take(IMAGES * IMAGE_BYTES);
  real *expected = poison(count);
  for (int i = 0; i < IMAGES * IMAGE_BYTES; i++) bytes[i] = 1 + random_below(&stream, 255);
  reference_mix_images(c->batch, expected, bytes, drawn, &values);
  const double *slack = few_roundings(count, expected, 10); // five here, five there
  for (int i = 0; i < on->count; i++) {
    images = input(on->of[i], BYTES, bytes, IMAGES * IMAGE_BYTES);
    samples = input(on->of[i], BYTES, drawn, (size_t)c->batch * sizeof *drawn);
    step = input(on->of[i], BYTES, &values, sizeof values);
    x = output_activations(
        on->of[i], (activation_shape){c->batch, IMAGE_BYTES / IMAGE_CHANNELS, IMAGE_CHANNELS});
    run(c, on->of[i], launch_mix_images);
    compare(c, x, "", expected, slack);
    free_arrays();
  }
}

// -- cross_entropy --------------------------------------------------------------------------------

typedef struct {
  uint8_t labels[IMAGES];
  sample *samples;
  step_values step;
  real *logits, *dlogits; // the latter expected
  double *slack_of_dlogits;
  step_result expected, slack;
} loss_inputs;

// Every fourth row is large enough for exp() to overflow; every fourth is equal but for two, the
// largest, of which the first counts.
static real *draw_logits(int batch) {
  real *drawn = normals((size_t)batch * CLASSES, 0, 2);
  for (int b = 0; b < batch; b++)
    for (int j = 0; j < CLASSES; j++) {
      real *one = &drawn[b * CLASSES + j];
      if (b % 4 == 1) *one *= b % 8 == 1 ? 50 : 5000;
      if (b % 4 == 2) *one = j == b % 10 || j == (b + 3) % 10 ? 1.5f : -0.25f;
    }
  return drawn;
}

// With a = log p: in float, a is wrong by a few 2^-24 of the logits' distance from the largest, and
// of log(sum), and by the errors of exp() and log(), 4 x 2^-24 each at most; p by as much,
// relative.
static void loss_slack(int batch, float smoothing, loss_inputs *in) {
  const double lambda = in->step.lambda;
  for (int b = 0; b < batch; b++) {
    const real *logits = in->logits + b * CLASSES;
    const int own = in->labels[in->samples[b].image];
    const int partner = in->labels[in->samples[in->samples[b].partner].image];
    double largest = logits[0], sum = 0;
    for (int j = 1; j < CLASSES; j++) largest = fmax(largest, logits[j]);
    for (int j = 0; j < CLASSES; j++) sum += exp(logits[j] - largest);
    for (int j = 0; j < CLASSES; j++) {
      const double other = smoothing / (CLASSES - 1), p = exp(logits[j] - largest) / sum;
      const double t = lambda * (j == own ? 1 - smoothing : other) +
                       (1 - lambda) * (j == partner ? 1 - smoothing : other);
      const double size = largest - logits[j] + log(sum);
      in->slack.loss += EPSILON * t * (16 * size + 32);
      in->slack_of_dlogits[b * CLASSES + j] =
          EPSILON * (p * (3 * size + 24) + 4 * t + 4 * fabs(p - t)) / batch + 4 * SMALLEST;
    }
  }
  in->slack.loss += batch * EPSILON * in->expected.loss; // the images' losses added in float
  in->slack.correct = batch * EPSILON * (1 + in->expected.correct);
}

static loss_inputs draw_loss(const test_case *c, float smoothing) {
  loss_inputs in = {.samples = draw_samples(c->batch), .step = make_step(c)};
  const size_t count = (size_t)c->batch * CLASSES;
  step_result reported[RESULTS];
  for (int i = 0; i < IMAGES; i++) in.labels[i] = (uint8_t)random_below(&stream, CLASSES);
  in.logits = draw_logits(c->batch);
  in.dlogits = poison(count);
  in.slack_of_dlogits = constant(count, 0);
  reference_cross_entropy(c->batch, smoothing, in.dlogits, reported, in.logits, in.labels,
                          in.samples, &in.step);
  in.expected = reported[SLOT];
  loss_slack(c->batch, smoothing, &in);
  return in;
}

static array *ce_logits, *ce_dlogits;

static float smoothing_of(const test_case *c) {
  return c->smoothed ? 0.1f : 0;
}

static void launch_cross_entropy(const test_case *c, const device *d) {
  d->cross_entropy(c->batch, smoothing_of(c), c->with_dlogits ? ce_dlogits->data : NULL,
                   results_array->data, ce_logits->data, labels->data, samples->data, step->data);
}

static void test_cross_entropy(const test_case *c, const devices *on) {
  const loss_inputs in = draw_loss(c, smoothing_of(c));
  const size_t count = (size_t)c->batch * CLASSES;
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    ce_logits = input(d, REALS, in.logits, count);
    labels = input(d, BYTES, in.labels, IMAGES);
    samples = input(d, BYTES, in.samples, (size_t)c->batch * sizeof(sample));
    step = input(d, BYTES, &in.step, sizeof in.step);
    results_array = output(d, BYTES, RESULTS * sizeof(step_result));
    if (c->with_dlogits) ce_dlogits = output(d, REALS, count);
    run(c, d, launch_cross_entropy);
    const uint8_t *before = results_array->before + results_array->guard;
    const uint8_t *after = results_array->after + results_array->guard;
    const step_result *r = (const step_result *)after + SLOT;
    const size_t one = sizeof(step_result);
    add_row(c, d->name, "loss", fabs(r->loss - in.expected.loss), in.slack.loss);
    add_row(c, d->name, "correct", fabs(r->correct - in.expected.correct), in.slack.correct);
    add_row(c, d->name, "other results intact",
            memcmp(before, after, one) || memcmp(before + 2 * one, after + 2 * one, one), 0);
    if (c->with_dlogits) compare(c, ce_dlogits, "dlogits", in.dlogits, in.slack_of_dlogits);
    free_arrays();
  }
}

// -- sgd_update and refresh_rounded_weights ---------------------------------------------------------------

static array *weight, *gradient, *velocity, *rounded_weight;
static parameters flat;

// All tensors of the network at c->channels; 0: a few odd ones.
static void choose_parameters(const test_case *c) {
  static network n;
  static parameter odd[4] = {
      {.name = "a.weight", .dims = {3, 3, 3, 8}, .rank = 4, .count = 216},
      {.name = "b.weight", .dims = {8, 1, 1, 1}, .rank = 1, .count = 8},
      {.name = "linear.weight", .dims = {10, 40, 1, 1}, .rank = 2, .count = 400},
      {.name = "linear.bias", .dims = {10, 1, 1, 1}, .rank = 1, .count = 10}};
  error e;
  if (c->channels) {
    if (!network_describe(&n, &reference_device, c->channels, 1, &e)) abort();
    flat = n.parameters;
    return;
  }
  flat = (parameters){.list = odd, .list_count = 4};
  for (int i = 0; i < 4; i++) {
    odd[i].offset = flat.count;
    flat.count += odd[i].count;
  }
}

static const parameters *on_device(void) {
  flat.weight = weight->data;
  flat.gradient = gradient ? gradient->data : NULL;
  flat.momentum = velocity ? velocity->data : NULL;
  flat.rounded_weight = rounded_weight ? rounded_weight->data : flat.weight;
  return &flat;
}

// The weights that convolutions read are the device's own float weights, rounded: to the bit.
static void compare_compute(const test_case *c, const device *d) {
  if (!d->rounded_weight_bytes) return;
  real *rounded = memcpy(take(weight->bytes), weight->values, weight->bytes);
  compare_exactly(c, rounded_weight, "rounded_weight", round_all(rounded, weight->count));
}

static float decay_of(const test_case *c) {
  return c->usual_decay ? 2e-4f : 0.05f;
}

static void launch_sgd_update(const test_case *c, const device *d) {
  d->sgd_update(on_device(), step->data, 0.9f, decay_of(c));
}

// Three roundings make v, two more w; the reference has as many.
static void test_sgd_update(const test_case *c, const devices *on) {
  choose_parameters(c);
  const step_values values = make_step(c);
  const size_t count = flat.count, bytes = count * sizeof(real);
  const real *w0 = normals(count, 0, 0.1), *g = normals(count, 0, 1);
  const real *v0 = c->with_momentum ? normals(count, 0, 1) : take(bytes); // zeros: the first step
  double *slack_of_v = take(count * sizeof(double)), *slack_of_w = take(count * sizeof(double));
  parameters expected = flat;
  expected.weight = memcpy(take(bytes), w0, bytes);
  expected.momentum = memcpy(take(bytes), v0, bytes);
  expected.gradient = memcpy(take(bytes), g, bytes);
  reference_sgd_update(&expected, &values, 0.9f, decay_of(c));
  for (size_t i = 0; i < count; i++) {
    slack_of_v[i] = 6 * EPSILON * (fabs((double)v0[i]) + fabs((double)g[i]) + fabs((double)w0[i]));
    slack_of_w[i] = values.learning_rate * slack_of_v[i] +
                    4 * EPSILON * (fabs((double)w0[i]) + fabs((double)expected.weight[i]));
  }
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    weight = changed(d, REALS, w0, count);
    velocity = changed(d, REALS, v0, count);
    gradient = input(d, REALS, g, count);
    rounded_weight = d->rounded_weight_bytes ? output(d, WEIGHTS, count) : NULL;
    step = input(d, BYTES, &values, sizeof values);
    run(c, d, launch_sgd_update);
    compare(c, velocity, "v", expected.momentum, slack_of_v);
    compare(c, weight, "w", expected.weight, slack_of_w);
    compare_compute(c, d);
    free_arrays();
  }
}

static void launch_refresh_compute(const test_case *c, const device *d) {
  (void)c;
  d->refresh_rounded_weights(on_device());
}

static void test_refresh_compute(const test_case *c, const devices *on) {
  choose_parameters(c);
  const real *w0 = normals(flat.count, 0, 1);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    weight = input(d, REALS, w0, flat.count);
    gradient = velocity = NULL;
    rounded_weight = d->rounded_weight_bytes ? output(d, WEIGHTS, flat.count) : NULL;
    run(c, d, launch_refresh_compute);
    compare_compute(c, d);
    free_arrays();
  }
}

#endif
