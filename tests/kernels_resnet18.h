// tests/kernels_resnet18.h - the cases of resnet18.cu for kernels_test.c: batch normalisation, pool,
// linear. A formula of a few operations gets 2^-24 of its largest term for each of them; sums, what
// kernels_test.c derives.
#ifndef KERNELS_RESNET18_H
#define KERNELS_RESNET18_H

#include "../reference/reference.h"
#include "kernels.h"

// -- Batch normalisation --------------------------------------------------------------------------

typedef struct {
  size_t count;
  activation_shape shape;                              // of x
  real *x, *residual, *gamma, *beta, *mean, *variance; // running statistics, the last two
  double *sums;
} norm_inputs;

// Channel 1 lies far from zero, where sum of squares / n - mean^2 in float would be wrong in the
// third digit; channel 2 is constant, where nothing but epsilon keeps the division finite.
static norm_inputs draw_norm(const norm_shape *s) {
  const size_t channels = (size_t)s->channels;
  norm_inputs n = {.count = (size_t)s->pixels * channels,
                   .shape = {s->images, s->pixels / s->images, s->channels}};
  n.x = normals(n.count, 0.5, 2);
  for (size_t i = 0; i < n.count; i++) {
    if (i % channels == 1) n.x[i] += 100;
    if (i % channels == 2) n.x[i] = 0.375f;
  }
  round_all(n.x, n.count);
  n.residual = bf16_normals(n.count, 0, 1);
  n.gamma = normals(channels, 1, 0.3);
  n.beta = normals(channels, 0, 0.3);
  n.mean = normals(channels, 0, 1);
  n.variance = squares(normals(channels, 1, 0.3), channels);
  n.sums = take(2 * channels * sizeof *n.sums);
  for (size_t i = 0; i < n.count; i++) {
    n.sums[i % channels] += n.x[i];
    n.sums[channels + i % channels] += (double)n.x[i] * n.x[i];
  }
  return n;
}

// y has 8 roundings on its way: of the mean, the square root, its inverse, gamma's product with it,
// and the four operations on x; each of up to 2^-24 of the largest term. The reference has as many.
static double *norm_slack(const norm_shape *s, const norm_inputs *n, const real *mean,
                          const real *inverse_std, bool residual) {
  double *slack = take(n->count * sizeof *slack);
  for (size_t i = 0; i < n->count; i++) {
    const size_t k = i % (size_t)s->channels;
    slack[i] = 16 * EPSILON *
               (fabs((double)n->gamma[k]) * inverse_std[k] *
                    (fabs((double)n->x[i]) + fabs((double)mean[k])) +
                fabs((double)n->beta[k]) + (residual ? fabs((double)n->residual[i]) : 0));
  }
  return slack;
}

static array *residual, *gammas, *betas, *running_mean, *running_var, *mean, *inverse_std, *dgamma,
    *dbeta, *dresidual;

static void launch_norm_forward(const test_case *c, const device *d) {
  d->norm_forward(&c->norm, y->data, x->data, sums->data, gammas->data, betas->data,
                  c->with_residual ? residual->data : NULL, c->relu, running_mean->data,
                  running_var->data, mean->data, inverse_std->data);
}

static void put_norm_inputs(const test_case *c, const device *d, const norm_inputs *n) {
  const size_t channels = (size_t)c->norm.channels;
  x = input_activations(d, n->x, n->shape);
  gammas = input(d, REALS, n->gamma, channels);
  betas = input(d, REALS, n->beta, channels);
  y = output_activations(d, n->shape);
  if (c->with_residual) residual = input_activations(d, n->residual, n->shape);
}

static void test_norm_forward(const test_case *c, const devices *on) {
  const norm_inputs n = draw_norm(&c->norm);
  const size_t channels = (size_t)c->norm.channels, bytes = channels * sizeof(real);
  real *expected = poison(n.count), *m = poison(channels), *inverse = poison(channels);
  real *moved_mean = memcpy(take(bytes), n.mean, bytes);
  real *moved_var = memcpy(take(bytes), n.variance, bytes);
  reference_norm_forward(&c->norm, expected, n.x, n.sums, n.gamma, n.beta,
                         c->with_residual ? n.residual : NULL, c->relu, moved_mean, moved_var, m,
                         inverse);
  // 0.9 running + 0.1 mean can cancel; the terms cannot.
  double *slack_of_mean = take(channels * sizeof(double));
  for (size_t k = 0; k < channels; k++)
    slack_of_mean[k] = 4 * EPSILON * (fabs((double)n.mean[k]) + 0.1 * fabs((double)m[k]));
  const double *slack = norm_slack(&c->norm, &n, m, inverse, c->with_residual);
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    put_norm_inputs(c, d, &n);
    sums = input(d, BYTES, n.sums, 2 * channels * sizeof(double));
    running_mean = changed(d, REALS, n.mean, channels);
    running_var = changed(d, REALS, n.variance, channels);
    mean = output(d, REALS, channels);
    inverse_std = output(d, REALS, channels);
    run(c, d, launch_norm_forward);
    compare(c, y, "y", expected, slack);
    compare(c, mean, "mean", m, few_roundings(channels, m, 1));
    compare(c, inverse_std, "inverse_std", inverse, few_roundings(channels, inverse, 4));
    compare(c, running_mean, "running_mean", moved_mean, slack_of_mean);
    compare(c, running_var, "running_var", moved_var, few_roundings(channels, moved_var, 4));
    free_arrays();
  }
}

static void launch_norm_inference(const test_case *c, const device *d) {
  d->norm_inference(&c->norm, y->data, x->data, gammas->data, betas->data,
                    c->with_residual ? residual->data : NULL, c->relu, running_mean->data,
                    running_var->data);
}

static void test_norm_inference(const test_case *c, const devices *on) {
  const norm_inputs n = draw_norm(&c->norm);
  const size_t channels = (size_t)c->norm.channels;
  real *expected = poison(n.count), *inverse = poison(channels);
  reference_norm_inference(&c->norm, expected, n.x, n.gamma, n.beta,
                           c->with_residual ? n.residual : NULL, c->relu, n.mean, n.variance);
  for (size_t k = 0; k < channels; k++) inverse[k] = (real)(1 / sqrt(n.variance[k] + NORM_EPSILON));
  const double *slack = norm_slack(&c->norm, &n, n.mean, inverse, c->with_residual);
  for (int i = 0; i < on->count; i++) {
    put_norm_inputs(c, on->of[i], &n);
    running_mean = input(on->of[i], REALS, n.mean, channels);
    running_var = input(on->of[i], REALS, n.variance, channels);
    run(c, on->of[i], launch_norm_inference);
    compare(c, y, "", expected, slack);
    free_arrays();
  }
}

// What device.h allows: which of dx, dresidual and dy are one array.
enum { NO_RESIDUAL, DX_IS_DY, SEPARATE, DRESIDUAL_IS_DY, DX_IS_DY_AND_DRESIDUAL, ALIASES };
static const char *const alias_names[] = {"", ", dx = dy", ", dresidual", ", dresidual = dy",
                                          ", dx = dy, dresidual"};

static void launch_norm_backward(const test_case *c, const device *d) {
  d->norm_backward(&c->norm, dx->data, dresidual ? dresidual->data : NULL, dgamma->data,
                   dbeta->data, dy->data, y->data, x->data, gammas->data, mean->data,
                   inverse_std->data, c->relu);
}

typedef struct {
  real *dy, *y, *mean, *inverse_std;                      // inputs besides norm_inputs
  real *dx, *dresidual, *dgamma, *dbeta;                  // expected
  double *slack_of_dx, *slack_of_dgamma, *slack_of_dbeta; // see device.h for the formulas
} norm_gradients;

// dbeta and dgamma are sums of n terms; xhat's own roundings, 4, are the same for all terms of a
// channel and may add up. dx: what these two may be wrong, and 8 roundings, the reference's as
// well.
static void norm_gradient_slacks(const test_case *c, const norm_inputs *n, norm_gradients *g) {
  const size_t channels = (size_t)c->norm.channels;
  const double pixels = c->norm.pixels;
  double *squares_of_g = constant(channels, 0), *squares_of_product = constant(channels, 0);
  double *xhat = take(n->count * sizeof *xhat), *sum = constant(channels, 0);
  for (size_t i = 0; i < n->count; i++) {
    const size_t k = i % channels;
    xhat[i] = (fabs((double)n->x[i]) + fabs((double)g->mean[k])) * g->inverse_std[k]; // its size
    const double product = g->dresidual[i] * (n->x[i] - (double)g->mean[k]) * g->inverse_std[k];
    squares_of_g[k] += (double)g->dresidual[i] * g->dresidual[i];
    squares_of_product[k] += product * product;
    sum[k] += fabs((double)g->dresidual[i]) * xhat[i];
  }
  for (size_t k = 0; k < channels; k++) {
    g->slack_of_dbeta[k] = sum_slack(pixels, squares_of_g[k]);
    g->slack_of_dgamma[k] = sum_slack(pixels, squares_of_product[k]) + 4 * EPSILON * sum[k];
  }
  for (size_t i = 0; i < n->count; i++) {
    const size_t k = i % channels;
    const double scale = fabs((double)n->gamma[k]) * g->inverse_std[k];
    g->slack_of_dx[i] =
        scale * (g->slack_of_dbeta[k] + xhat[i] * g->slack_of_dgamma[k]) / pixels +
        16 * EPSILON * scale *
            (fabs((double)g->dresidual[i]) +
             (fabs((double)g->dbeta[k]) + xhat[i] * fabs((double)g->dgamma[k])) / pixels);
  }
}

// dy: NULL, one is drawn.
static norm_gradients draw_norm_gradients(const test_case *c, const norm_inputs *n,
                                          real *dy_given) {
  const size_t channels = (size_t)c->norm.channels, pixels = (size_t)c->norm.pixels;
  norm_gradients g = {.dy = dy_given ? dy_given : bf16_normals(n->count, 0, 1),
                      .y = bf16_normals(n->count, 0, 1)};
  for (size_t i = 0; i < n->count; i++)
    if (!c->relu) // not read
      g.y[i] = NAN;
    else if (g.y[i] < 0)
      g.y[i] = 0;
  g.mean = take(channels * sizeof(real));
  g.inverse_std = take(channels * sizeof(real));
  for (size_t k = 0; k < channels; k++) {
    const double m = n->sums[k] / (double)pixels;
    const double variance = fmax(0, n->sums[channels + k] / (double)pixels - m * m);
    g.mean[k] = (real)m;
    g.inverse_std[k] = (real)(1 / sqrt(variance + NORM_EPSILON));
  }
  g.dx = poison(n->count);
  g.dresidual = poison(n->count);
  g.dgamma = poison(channels);
  g.dbeta = poison(channels);
  g.slack_of_dx = take(n->count * sizeof(double));
  g.slack_of_dgamma = take(channels * sizeof(double));
  g.slack_of_dbeta = take(channels * sizeof(double));
  reference_norm_backward(&c->norm, g.dx, g.dresidual, g.dgamma, g.dbeta, g.dy, g.y, n->x, n->gamma,
                          g.mean, g.inverse_std, c->relu);
  norm_gradient_slacks(c, n, &g);
  return g;
}

static void put_norm_gradients(const test_case *c, const device *d, const norm_inputs *n,
                               const norm_gradients *g) {
  const size_t channels = (size_t)c->norm.channels;
  const bool dx_is_dy = c->alias == DX_IS_DY || c->alias == DX_IS_DY_AND_DRESIDUAL;
  const bool dy_changes = dx_is_dy || c->alias == DRESIDUAL_IS_DY;
  x = input_activations(d, n->x, n->shape);
  y = input_activations(d, g->y, n->shape);
  dy = dy_changes ? changed_activations(d, g->dy, n->shape) : input_activations(d, g->dy, n->shape);
  dx = dx_is_dy ? dy : output_activations(d, n->shape);
  dresidual = c->alias == DRESIDUAL_IS_DY ? dy
              : c->alias == SEPARATE || c->alias == DX_IS_DY_AND_DRESIDUAL
                  ? output_activations(d, n->shape)
                  : NULL;
  gammas = input(d, REALS, n->gamma, channels);
  mean = input(d, REALS, g->mean, channels);
  inverse_std = input(d, REALS, g->inverse_std, channels);
  dgamma = output(d, REALS, channels);
  dbeta = output(d, REALS, channels);
}

static void test_norm_backward(const test_case *c, const devices *on) {
  const norm_inputs n = draw_norm(&c->norm);
  const norm_gradients g = draw_norm_gradients(c, &n, NULL);
  for (int i = 0; i < on->count; i++) {
    put_norm_gradients(c, on->of[i], &n, &g);
    run(c, on->of[i], launch_norm_backward);
    compare(c, dbeta, "dbeta", g.dbeta, g.slack_of_dbeta);
    compare(c, dgamma, "dgamma", g.dgamma, g.slack_of_dgamma);
    compare(c, dx, "dx", g.dx, g.slack_of_dx);
    if (dresidual) compare_exactly(c, dresidual, "dresidual", g.dresidual);
    free_arrays();
  }
}

// -- Pool -----------------------------------------------------------------------------------------

static void launch_pool_forward(const test_case *c, const device *d) {
  d->pool_forward(c->batch, c->pixels, c->channels, y->data, x->data);
}

static void launch_pool_backward(const test_case *c, const device *d) {
  d->pool_backward(c->batch, c->pixels, c->channels, dx->data, dy->data);
}

static void test_pool_forward(const test_case *c, const devices *on) {
  const size_t count = (size_t)c->batch * c->channels, in = count * c->pixels;
  const real *values = bf16_normals(in, 0, 1);
  real *expected = poison(count);
  double *slack = constant(count, 0);
  reference_pool_forward(c->batch, c->pixels, c->channels, expected, values);
  for (size_t i = 0; i < in; i++) // the sum's size, / pixels; one more rounding for the division
    slack[i / ((size_t)c->pixels * c->channels) * c->channels + i % (size_t)c->channels] +=
        (c->pixels + 1) * EPSILON * fabs((double)values[i]) / c->pixels;
  for (int i = 0; i < on->count; i++) {
    x = input_activations(on->of[i], values, (activation_shape){c->batch, c->pixels, c->channels});
    y = output_activations(on->of[i], (activation_shape){c->batch, 1, c->channels});
    run(c, on->of[i], launch_pool_forward);
    compare(c, y, "", expected, slack);
    free_arrays();
  }
}

static void test_pool_backward(const test_case *c, const devices *on) {
  const size_t count = (size_t)c->batch * c->channels, in = count * c->pixels;
  const real *values = bf16_normals(count, 0, 1);
  real *expected = poison(in);
  reference_pool_backward(c->batch, c->pixels, c->channels, expected, values);
  const double *slack = few_roundings(in, expected, 3);
  for (int i = 0; i < on->count; i++) {
    dy = input_activations(on->of[i], values, (activation_shape){c->batch, 1, c->channels});
    dx = output_activations(on->of[i], (activation_shape){c->batch, c->pixels, c->channels});
    run(c, on->of[i], launch_pool_backward);
    compare(c, dx, "", expected, slack);
    free_arrays();
  }
}

// -- Linear ---------------------------------------------------------------------------------------

static array *logits, *bias, *dlogits, *dbias;

// a: [rows][k], b: [k][columns], each as (pointer, distance between rows, between columns).
typedef struct {
  const real *at;
  int row, column;
} matrix;

// Of the sums in a matrix product.
static double *product_slack(int rows, int columns, int k, matrix a, matrix b) {
  double *slack = constant((size_t)rows * columns, 0);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) {
      double squares_of_products = 0;
      for (int l = 0; l < k; l++) {
        const double p = (double)a.at[i * a.row + l * a.column] * b.at[l * b.row + j * b.column];
        squares_of_products += p * p;
      }
      slack[i * columns + j] = sum_slack(k, squares_of_products);
    }
  return slack;
}

static void launch_linear_forward(const test_case *c, const device *d) {
  d->linear_forward(c->batch, c->channels, logits->data, x->data, w->data, bias->data);
}

static void test_linear_forward(const test_case *c, const devices *on) {
  const int in = c->batch * c->channels, filters = CLASSES * c->channels, out = c->batch * CLASSES;
  const real *values = bf16_normals(in, 0, 1), *weights = bf16_normals(filters, 0, 1);
  const real *biases = normals(CLASSES, 0, 1);
  real *expected = poison(out);
  reference_linear_forward(c->batch, c->channels, expected, values, weights, biases);
  double *slack = product_slack(c->batch, CLASSES, c->channels, (matrix){values, c->channels, 1},
                                (matrix){weights, 1, c->channels});
  for (int i = 0; i < out; i++) slack[i] += 2 * EPSILON * fabs((double)biases[i % CLASSES]);
  for (int i = 0; i < on->count; i++) {
    x = input_activations(on->of[i], values, (activation_shape){c->batch, 1, c->channels});
    w = input(on->of[i], WEIGHTS, weights, filters);
    bias = input(on->of[i], REALS, biases, CLASSES);
    logits = output(on->of[i], REALS, out);
    run(c, on->of[i], launch_linear_forward);
    compare(c, logits, "", expected, slack);
    free_arrays();
  }
}

static void launch_linear_backward(const test_case *c, const device *d) {
  d->linear_backward(c->batch, c->channels, dx->data, dw->data, dbias->data, dlogits->data, x->data,
                     w->data);
}

static void test_linear_backward(const test_case *c, const devices *on) {
  const int in = c->batch * c->channels, filters = CLASSES * c->channels, out = c->batch * CLASSES;
  const real *values = bf16_normals(in, 0, 1), *weights = bf16_normals(filters, 0, 1);
  const real *gradients = normals(out, 0, 1), one = 1; // floats, not bf16
  real *dx_expected = poison(in), *dw_expected = poison(filters), *dbias_expected = poison(CLASSES);
  reference_linear_backward(c->batch, c->channels, dx_expected, dw_expected, dbias_expected,
                            gradients, values, weights);
  const matrix transposed = {gradients, 1, CLASSES};
  const double *slack_of_dx =
      product_slack(c->batch, c->channels, CLASSES, (matrix){gradients, CLASSES, 1},
                    (matrix){weights, c->channels, 1});
  const double *slack_of_dw =
      product_slack(CLASSES, c->channels, c->batch, transposed, (matrix){values, c->channels, 1});
  const double *slack_of_dbias =
      product_slack(CLASSES, 1, c->batch, transposed, (matrix){&one, 0, 0});
  for (int i = 0; i < on->count; i++) {
    x = input_activations(on->of[i], values, (activation_shape){c->batch, 1, c->channels});
    w = input(on->of[i], WEIGHTS, weights, filters);
    dlogits = input(on->of[i], REALS, gradients, out);
    dx = output_activations(on->of[i], (activation_shape){c->batch, 1, c->channels});
    dw = output(on->of[i], REALS, filters);
    dbias = output(on->of[i], REALS, CLASSES);
    run(c, on->of[i], launch_linear_backward);
    compare(c, dx, "dx", dx_expected, slack_of_dx);
    compare(c, dw, "dw", dw_expected, slack_of_dw);
    compare(c, dbias, "dbias", dbias_expected, slack_of_dbias);
    free_arrays();
  }
}

#endif
