// tests/kernels_fused.h - the cases of device.h's fusions for kernels_test.c: each against the reference's
// operations that it replaces, one after another.
//
// What a fusion adds up, it adds up from the bf16 numbers that it stores; so sums are held against
// those numbers, in double, as the plain sums are.
#ifndef KERNELS_FUSED_H
#define KERNELS_FUSED_H

#include "kernels_conv.h"
#include "kernels_resnet18.h"

// A batch normalisation's arrays on the host; gamma of either sign.
typedef struct {
  real *gamma, *beta, *running_mean, *running_var, *mean, *inverse_std;
} host_norm;

static host_norm draw_host_norm(size_t channels) {
  return (host_norm){.gamma = normals(channels, 0, 1),
                     .beta = normals(channels, 0, 0.5),
                     .running_mean = normals(channels, 0, 1),
                     .running_var = squares(normals(channels, 1, 0.3), channels),
                     .mean = normals(channels, 0, 1),
                     .inverse_std = squares(normals(channels, 1, 0.2), channels)};
}

static size_t pixels_of_output(const conv_shape *s) {
  return (size_t)s->batch * s->out_height * s->out_width;
}

static norm_arrays arrays_at_work(void) {
  return (norm_arrays){.gamma = gammas->data,
                       .beta = betas->data,
                       .running_mean = running_mean->data,
                       .running_var = running_var->data,
                       .mean = mean->data,
                       .inverse_std = inverse_std->data};
}

// statistics: mean and inverse_std are what the operation has to find.
static void put_norm(const device *d, const host_norm *h, size_t channels, bool statistics) {
  gammas = input(d, REALS, h->gamma, channels);
  betas = input(d, REALS, h->beta, channels);
  running_mean = changed(d, REALS, h->running_mean, channels);
  running_var = changed(d, REALS, h->running_var, channels);
  mean = statistics ? output(d, REALS, channels) : input(d, REALS, h->mean, channels);
  inverse_std = statistics ? output(d, REALS, channels) : input(d, REALS, h->inverse_std, channels);
}

// -- conv_norm_inference --------------------------------------------------------------------------

static void launch_conv_norm_inference(const test_case *c, const device *d) {
  d->conv_norm_inference(&c->conv, y->data, x->data, w->data, gammas->data, betas->data,
                         c->with_residual ? residual->data : NULL, c->relu, running_mean->data,
                         running_var->data);
}

// The convolution's slack, multiplied by gamma inverse_std, and the norm's.
static void test_conv_norm_inference(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const size_t channels = (size_t)s->out_channels;
  const norm_shape shape = {(int)pixels_of_output(s), s->out_channels, s->batch};
  const conv_inputs in = draw_conv(s);
  const host_norm h = draw_host_norm(channels);
  norm_inputs n = {.count = in.out, .residual = in.dy, .gamma = h.gamma, .beta = h.beta};
  real *r_squared = poison(in.out), *expected = poison(in.out), *inverse = poison(channels);
  n.x = poison(in.out);
  reference_conv_forward(s, n.x, in.x, in.w, NULL);
  cpu_conv_forward(s, r_squared, squares(in.x, in.in), squares(in.w, in.filters), NULL);
  reference_norm_inference(&shape, expected, n.x, h.gamma, h.beta, c->with_residual ? in.dy : NULL,
                           c->relu, h.running_mean, h.running_var);
  for (size_t k = 0; k < channels; k++)
    inverse[k] = (real)(1 / sqrt(h.running_var[k] + NORM_EPSILON));
  const double *of_z = conv_slack(in.out, r_squared, s->kernel * s->kernel * s->in_channels, NULL);
  double *slack = norm_slack(&shape, &n, h.running_mean, inverse, c->with_residual);
  for (size_t i = 0; i < in.out; i++)
    slack[i] += of_z[i] * fabs((double)h.gamma[i % channels]) * inverse[i % channels];
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->conv_norm_inference) continue;
    x = input_activations(d, in.x, in.x_shape);
    w = input(d, WEIGHTS, in.w, in.filters);
    y = output_activations(d, in.y_shape);
    residual = input_activations(d, in.dy, in.y_shape);
    put_norm(d, &h, channels, false);
    run(c, d, launch_conv_norm_inference);
    compare(c, y, "", expected, slack);
    free_arrays();
  }
}

// -- conv_statistics and norm_apply ---------------------------------------------------------------

static void launch_conv_statistics(const test_case *c, const device *d) {
  const norm_arrays n = arrays_at_work();
  d->fused->conv_statistics(&c->conv, y->data, x->data, w->data, &n);
}

// Of the z in y->values. With sums wrong by 256 x 2^-24 (compare_sums), the mean is wrong by that
// times the mean of |z|, and the variance by that times the mean of z z, and by twice |mean| times
// the mean's error; half of the variance's relative error is inverse_std's.
static void compare_statistics(const test_case *c, const host_norm *h) {
  const size_t channels = (size_t)c->conv.out_channels;
  const double n = (double)(y->count / channels);
  real *expected[4];
  double *slack[4];
  for (int i = 0; i < 4; i++) expected[i] = poison(channels), slack[i] = constant(channels, 0);
  for (size_t k = 0; k < channels; k++) {
    double sum = 0, magnitude = 0, squared = 0;
    for (size_t i = k; i < y->count; i += channels) {
      sum += y->values[i];
      magnitude += fabs(y->values[i]);
      squared += (double)y->values[i] * y->values[i];
    }
    const double m = sum / n, variance = fmax(0, squared / n - m * m);
    const double of_mean = 256 * EPSILON * magnitude / n;
    const double of_variance = 256 * EPSILON * squared / n + 2 * fabs(m) * of_mean;
    const double inverse = 1 / sqrt(variance + NORM_EPSILON), unbiased = n / (n - 1);
    expected[0][k] = (real)m, slack[0][k] = of_mean;
    expected[1][k] = (real)inverse;
    slack[1][k] = inverse * (of_variance / (variance + NORM_EPSILON) + 4 * EPSILON);
    expected[2][k] = (real)(0.9 * h->running_mean[k] + 0.1 * m);
    slack[2][k] = 0.1 * of_mean + 4 * EPSILON * (fabs((double)h->running_mean[k]) + fabs(m));
    expected[3][k] = (real)(0.9 * h->running_var[k] + 0.1 * variance * unbiased);
    slack[3][k] = 0.1 * of_variance * unbiased + 4 * EPSILON * (h->running_var[k] + variance);
  }
  compare(c, mean, "mean", expected[0], slack[0]);
  compare(c, inverse_std, "inverse_std", expected[1], slack[1]);
  compare(c, running_mean, "running_mean", expected[2], slack[2]);
  if (n > 1) compare(c, running_var, "running_var", expected[3], slack[3]); // else 0 / 0
}

static void test_conv_statistics(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs in = draw_conv(s);
  const host_norm h = draw_host_norm((size_t)s->out_channels);
  const expectation e = expect_forward(s, &in);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused) continue;
    x = input_activations(d, in.x, in.x_shape);
    w = input(d, WEIGHTS, in.w, in.filters);
    y = output_activations(d, in.y_shape);
    put_norm(d, &h, (size_t)s->out_channels, true);
    run(c, d, launch_conv_statistics);
    compare(c, y, "", e.values, e.slack);
    compare_statistics(c, &h);
    free_arrays();
  }
}

static norm_arrays arrays_below; // of another norm than the one at work

// What a norm makes of a z of channel k; and 16 roundings of float, of the terms' sizes.
static double norm_of(const host_norm *h, size_t k, double z, double *roundings) {
  const double scale = (double)h->gamma[k] * h->inverse_std[k], beta = h->beta[k];
  *roundings = 16 * EPSILON * (fabs(scale) * (fabs(z) + fabs((double)h->mean[k])) + fabs(beta));
  return scale * (z - (double)h->mean[k]) + beta;
}

// In values, which an activation can hold, what a norm makes of the z that are returned. A z whose normalised
// value could fall to either side of zero, or of the middle between two bf16, by 16 roundings, is not drawn:
// then the values are certain, and the tolerance is that of what is done with them.
static real *draw_z_of(real *values, size_t count, const host_norm *h, size_t channels, bool relu) {
  real *z = poison(count);
  for (size_t i = 0; i < count; i++) {
    double value, slack;
    do {
      z[i] = to_nearest_bf16((float)random_normal(&stream));
      value = norm_of(h, i % channels, z[i], &slack);
    } while (to_nearest_bf16((float)(value - slack)) != to_nearest_bf16((float)(value + slack)));
    values[i] = to_nearest_bf16((float)(relu ? fmax(0, value) : value));
  }
  return z;
}

static array *mask;

static void launch_norm_apply(const test_case *c, const device *d) {
  const norm_arrays n = arrays_at_work();
  const addend add = {.values = residual->data,
                      .norm = c->added_norm ? &arrays_below : NULL,
                      .relu = c->added_norm == NORM_AND_RELU};
  d->fused->norm_apply(&c->norm, y->data, d->fused->keeps_masks ? mask->data : NULL, x->data, &n,
                       c->with_residual ? &add : NULL, c->relu);
}

// A bit for each of these numbers: is it above zero?
static uint8_t *mask_of(const real *values, size_t count) {
  uint8_t *bits = take((count + 7) / 8);
  for (size_t i = 0; i < count; i++) bits[i / 8] |= (values[i] > 0) << i % 8;
  return bits;
}

// The mask of the y that the device stored.
static void compare_mask(const test_case *c) {
  const uint8_t *expected = mask_of(y->values, y->count), *stored = mask->after + mask->guard;
  int wrong = 0;
  for (size_t i = 0; i < mask->bytes; i++) wrong += stored[i] != expected[i];
  if (c->relu) add_row(c, y->device->name, "mask", wrong, 0);
}

static void test_norm_apply(const test_case *c, const devices *on) {
  const norm_inputs n = draw_norm(&c->norm);
  const size_t channels = (size_t)c->norm.channels;
  host_norm h = draw_host_norm(channels);
  const host_norm below = draw_host_norm(channels);
  real *expected = poison(n.count), *added = n.residual;
  if (c->added_norm)
    added = draw_z_of(n.residual, n.count, &below, channels, c->added_norm == NORM_AND_RELU);
  reference_norm_forward(&c->norm, expected, n.x, n.sums, n.gamma, n.beta,
                         c->with_residual ? n.residual : NULL, c->relu, n.mean, n.variance, h.mean,
                         h.inverse_std);
  h.gamma = n.gamma, h.beta = n.beta;
  const double *slack = norm_slack(&c->norm, &n, h.mean, h.inverse_std, c->with_residual);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused || (c->added_norm && !d->fused->takes_norm)) continue;
    x = input_activations(d, n.x, n.shape);
    y = output_activations(d, n.shape);
    residual = input_activations(d, added, n.shape);
    put_norm(d, &below, channels, false);
    arrays_below = arrays_at_work();
    put_norm(d, &h, channels, false);
    mask = output(d, BYTES, (n.count + 7) / 8);
    run(c, d, launch_norm_apply);
    compare(c, y, "", expected, slack);
    if (d->fused->keeps_masks) compare_mask(c);
    free_arrays();
  }
}

// -- norm_conv_statistics and norm_conv_backward_weight ---------------------------------------------

static array *z_below;
static norm_below norm_and_z_below(void) {
  return (norm_below){.norm = arrays_below, .z = z_below->data};
}

static void put_below(const device *d, const conv_inputs *n, const host_norm *h, const real *z) {
  z_below = input_activations(d, z, n->x_shape);
  put_norm(d, h, (size_t)n->x_shape.channels, false);
  arrays_below = arrays_at_work();
}

static void launch_norm_conv_statistics(const test_case *c, const device *d) {
  const norm_arrays n = arrays_at_work();
  const norm_below below = norm_and_z_below();
  d->fused->norm_conv_statistics(&c->conv, y->data, &below, w->data, &n);
}

static void test_norm_conv_statistics(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs in = draw_conv(s);
  const host_norm h = draw_host_norm((size_t)s->out_channels);
  const host_norm below = draw_host_norm((size_t)s->in_channels);
  const real *z = draw_z_of(in.x, in.in, &below, (size_t)s->in_channels, true);
  const expectation e = expect_forward(s, &in);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused || !d->fused->takes_norm || !d->fused->takes_norm(s)) continue;
    put_below(d, &in, &below, z);
    w = input(d, WEIGHTS, in.w, in.filters);
    y = output_activations(d, in.y_shape);
    put_norm(d, &h, (size_t)s->out_channels, true);
    run(c, d, launch_norm_conv_statistics);
    compare(c, y, "", e.values, e.slack);
    compare_statistics(c, &h);
    free_arrays();
  }
}

static void launch_norm_conv_backward_weight(const test_case *c, const device *d) {
  const norm_below below = norm_and_z_below();
  d->fused->norm_conv_backward_weight(&c->conv, dw->data, dy->data, &below);
}

static void test_norm_conv_backward_weight(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs n = draw_conv(s);
  const host_norm below = draw_host_norm((size_t)s->in_channels);
  const real *z = draw_z_of(n.x, n.in, &below, (size_t)s->in_channels, true);
  const expectation e = expect_backward_weight(s, &n);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused || !d->fused->takes_norm || !d->fused->takes_norm(s)) continue;
    put_below(d, &n, &below, z);
    dy = input_activations(d, n.dy, n.y_shape);
    dw = output(d, REALS, n.filters);
    run(c, d, launch_norm_conv_backward_weight);
    compare(c, dw, "", e.values, e.slack);
    free_arrays();
  }
}

// -- conv_backward_masked and norm_spread ---------------------------------------------------------

static array *y_below;

static norm_below shortcut_below; // whose sums or dz come second

static bool gives_shortcut(const test_case *c, const device *d) {
  return c->y_given && d->fused->block_backward_masked;
}

static norm_below below_at_work(const test_case *c, const device *d) {
  return (norm_below){.norm = arrays_at_work(),
                      .z = z_below->data,
                      .y = c->y_given ? y_below->data : NULL,
                      .mask = c->y_given && d->fused->keeps_masks ? mask->data : NULL,
                      .dgamma = dgamma->data,
                      .dbeta = dbeta->data,
                      .shortcut = gives_shortcut(c, d) ? &shortcut_below : NULL};
}

static void launch_conv_backward_masked(const test_case *c, const device *d) {
  const norm_below below = below_at_work(c, d);
  d->fused->conv_backward_masked(&c->conv, dx->data, dy->data, w->data, c->accumulate, &below);
}

// z and y of the layer below, y as it follows from z, or, where it is given, unrelated to it. A z
// whose normalised value could be on either side of zero, by 16 roundings, is not drawn.
static void draw_below(const test_case *c, const host_norm *h, size_t count, real *z, real *y_of) {
  const size_t channels = (size_t)c->conv.in_channels;
  for (size_t i = 0; i < count; i++) {
    double value, slack;
    do {
      z[i] = to_nearest_bf16((float)random_normal(&stream));
      value = norm_of(h, i % channels, z[i], &slack);
    } while (fabs(value) <= slack);
    y_of[i] = to_nearest_bf16((float)fmax(0, c->y_given ? random_normal(&stream) : value));
  }
}

// dbeta and dgamma, the given arrays, from the g that the device stored.
static void compare_sums_of_g(const test_case *c, const host_norm *h, const real *z,
                              const array *beta, const array *gamma, const char *of) {
  const size_t channels = (size_t)c->conv.in_channels;
  real *sum_g = poison(channels), *sum_g_xhat = poison(channels);
  double *slack_of_g = constant(channels, 0), *slack_of_g_xhat = constant(channels, 0);
  const double n = (double)(dx->count / channels);
  for (size_t k = 0; k < channels; k++) {
    double sum = 0, product = 0, squared = 0, product_squared = 0;
    for (size_t i = k; i < dx->count; i += channels) {
      const double g = dx->values[i], p = g * (z[i] - (double)h->mean[k]) * h->inverse_std[k];
      sum += g, product += p;
      squared += g * g, product_squared += p * p;
      slack_of_g_xhat[k] += 4 * EPSILON * fabs(p); // the term's own roundings
    }
    sum_g[k] = (real)sum, sum_g_xhat[k] = (real)product;
    slack_of_g[k] = sum_slack(n, squared);
    slack_of_g_xhat[k] += sum_slack(n, product_squared);
  }
  char what[40];
  snprintf(what, sizeof what, "%sdbeta", of);
  compare(c, beta, what, sum_g, slack_of_g);
  snprintf(what, sizeof what, "%sdgamma", of);
  compare(c, gamma, what, sum_g_xhat, slack_of_g_xhat);
}

static conv_shape shortcut_shape;
static array *shortcut_dz, *shortcut_w;

static void launch_block_backward_masked(const test_case *c, const device *d) {
  const norm_below below = below_at_work(c, d);
  const shortcut_gradient of = {&shortcut_shape, shortcut_dz->data, shortcut_w->data};
  d->fused->block_backward_masked(&c->conv, dx->data, dy->data, w->data, &of, &below);
}

// dx's expected values, not masked yet. of_shortcut: its dz and weights, or NULL.
static void compare_masked(const test_case *c, const devices *on, const conv_inputs *n,
                           const conv_inputs *of_shortcut, expectation e) {
  const size_t channels = (size_t)c->conv.in_channels;
  const host_norm h = draw_host_norm(channels), beside = draw_host_norm(channels);
  real *z = poison(n->in), *y_of = poison(n->in), *z_beside = bf16_normals(n->in, 0, 1);
  draw_below(c, &h, n->in, z, y_of);
  for (size_t i = 0; i < n->in; i++)
    if (y_of[i] <= 0) e.values[i] = 0, e.slack[i] = 0;
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused || (of_shortcut && !d->fused->block_backward_masked)) continue;
    dy = input_activations(d, n->dy, n->y_shape);
    w = input(d, WEIGHTS, n->w, n->filters);
    if (of_shortcut) {
      shortcut_dz = input_activations(d, of_shortcut->dy, n->y_shape);
      shortcut_w = input(d, WEIGHTS, of_shortcut->w, of_shortcut->filters);
    }
    dx = c->accumulate ? changed_activations(d, n->before, n->x_shape)
                       : output_activations(d, n->x_shape);
    z_below = input_activations(d, z, n->x_shape);
    y_below = input_activations(d, y_of, n->x_shape);
    mask = input(d, BYTES, mask_of(y_of, n->in), (n->in + 7) / 8);
    put_norm(d, &beside, channels, false);
    array *gamma_beside = output(d, REALS, channels), *beta_beside = output(d, REALS, channels);
    shortcut_below = (norm_below){.norm = arrays_at_work(),
                                  .z = input_activations(d, z_beside, n->x_shape)->data,
                                  .dgamma = gamma_beside->data,
                                  .dbeta = beta_beside->data};
    put_norm(d, &h, channels, false);
    dgamma = output(d, REALS, channels);
    dbeta = output(d, REALS, channels);
    run(c, d, of_shortcut ? launch_block_backward_masked : launch_conv_backward_masked);
    compare(c, dx, "g", e.values, e.slack);
    compare_sums_of_g(c, &h, z, dbeta, dgamma, "");
    if (gives_shortcut(c, d))
      compare_sums_of_g(c, &beside, z_beside, beta_beside, gamma_beside, "shortcut's ");
    free_arrays();
  }
}

static void test_conv_backward_masked(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs n = draw_conv(s);
  real *expected = take(n.in * sizeof *expected), *r_squared = poison(n.in);
  memcpy(expected, n.before, n.in * sizeof *expected);
  reference_conv_backward_input(s, expected, n.dy, n.w, c->accumulate);
  cpu_conv_backward_input(s, r_squared, squares(n.dy, n.out), squares(n.w, n.filters), false);
  double *slack = conv_slack(n.in, r_squared, s->kernel * s->kernel * s->out_channels,
                             c->accumulate ? n.before : NULL);
  compare_masked(c, on, &n, NULL, (expectation){expected, slack});
}

// The sum of two convolutions has the terms of both.
static void test_block_backward_masked(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv, *t = &shortcut_shape;
  shortcut_shape = make_conv_shape(s->batch, s->in_height, s->in_width, s->in_channels,
                                   s->out_channels, 1, s->stride);
  const conv_inputs n = draw_conv(s), m = draw_conv(t);
  real *expected = poison(n.in), *r_squared = poison(n.in);
  reference_conv_backward_input(s, expected, n.dy, n.w, false);
  reference_conv_backward_input(t, expected, m.dy, m.w, true);
  cpu_conv_backward_input(s, r_squared, squares(n.dy, n.out), squares(n.w, n.filters), false);
  cpu_conv_backward_input(t, r_squared, squares(m.dy, m.out), squares(m.w, m.filters), true);
  double *slack = conv_slack(n.in, r_squared, (s->kernel * s->kernel + 1) * s->out_channels, NULL);
  compare_masked(c, on, &n, &m, (expectation){expected, slack});
}

static void launch_norm_spread(const test_case *c, const device *d) {
  const norm_below of = {.norm = arrays_at_work(),
                         .z = x->data,
                         .dgamma = dgamma->data,
                         .dbeta = dbeta->data,
                         .shortcut = c->with_shortcut ? &shortcut_below : NULL};
  d->fused->norm_spread(&c->norm, dx->data, c->with_shortcut ? shortcut_dz->data : NULL, dy->data,
                        &of);
}

// A norm's arrays and gradients, at work.
static void put_spread(const device *d, const norm_inputs *n, const norm_gradients *g,
                       size_t channels) {
  host_norm h = draw_host_norm(channels);
  h.gamma = n->gamma, h.mean = g->mean, h.inverse_std = g->inverse_std;
  x = input_activations(d, n->x, n->shape);
  put_norm(d, &h, channels, false);
  dgamma = input(d, REALS, g->dgamma, channels);
  dbeta = input(d, REALS, g->dbeta, channels);
}

// DX_IS_DY: what is written last is dy itself.
static void test_norm_spread(const test_case *c, const devices *on) {
  const norm_inputs n = draw_norm(&c->norm), m = draw_norm(&c->norm);
  const norm_gradients g = draw_norm_gradients(c, &n, NULL);
  const norm_gradients of_shortcut = draw_norm_gradients(c, &m, g.dy);
  const size_t channels = (size_t)c->norm.channels;
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    if (!d->fused || (c->with_shortcut && !d->fused->block_backward_masked)) continue;
    put_spread(d, &m, &of_shortcut, channels);
    shortcut_below = (norm_below){
        .norm = arrays_at_work(), .z = x->data, .dgamma = dgamma->data, .dbeta = dbeta->data};
    put_spread(d, &n, &g, channels);
    dy = c->alias == DX_IS_DY ? changed_activations(d, g.dy, n.shape)
                              : input_activations(d, g.dy, n.shape);
    array *last = c->alias == DX_IS_DY ? dy : output_activations(d, n.shape);
    shortcut_dz = last;
    dx = c->with_shortcut ? output_activations(d, n.shape) : last;
    run(c, d, launch_norm_spread);
    compare(c, dx, "dz", g.dx, g.slack_of_dx);
    if (c->with_shortcut)
      compare(c, shortcut_dz, "shortcut's dz", of_shortcut.dx, of_shortcut.slack_of_dx);
    free_arrays();
  }
}

#endif
