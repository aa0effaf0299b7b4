// tests/kernels_conv.h - the cases of conv.cu for kernels_test.c, which derives the tolerances.
#ifndef KERNELS_CONV_H
#define KERNELS_CONV_H

#include "../cpu/conv.h"
#include "../reference/reference.h"
#include "kernels.h"

typedef struct {
  size_t in, filters, out; // elements of x, w, y
  activation_shape x_shape, y_shape;
  real *x, *w, *dy, *before;
} conv_inputs;

static conv_inputs draw_conv(const conv_shape *s) {
  conv_inputs n = {.in = (size_t)s->batch * s->in_height * s->in_width * s->in_channels,
                   .filters = (size_t)s->out_channels * s->kernel * s->kernel * s->in_channels,
                   .out = (size_t)s->batch * s->out_height * s->out_width * s->out_channels,
                   .x_shape = {s->batch, s->in_height * s->in_width, s->in_channels},
                   .y_shape = {s->batch, s->out_height * s->out_width, s->out_channels}};
  n.x = bf16_normals(n.in, 0, 1);
  n.w = bf16_normals(n.filters, 0, 1);
  n.dy = bf16_normals(n.out, 0, 1);
  n.before = bf16_normals(n.in, 0, 1);
  return n;
}

// kernels_test.c's formula from K and R^2. before, or NULL: what is added to the sum in one more
// addition. Winograd's method adds up terms of both signs: where R^2 is small beside its neighbours, or 0, the
// result may be far too small, or below 0. It is off by less than 2^-15 of the largest (seen: 1.1e-5, a third of it).
static double *conv_slack(size_t count, const real *r_squared, double k, const real *before) {
  double *slack = take(count * sizeof *slack), most = 0;
  for (size_t i = 0; i < count; i++) most = larger(most, r_squared[i]);
  for (size_t i = 0; i < count; i++) {
    const double R = sqrt((r_squared[i] < 0 ? 0 : r_squared[i]) + 0x1p-15 * most);
    slack[i] = 9 * k * EPSILON * R + sum_slack(k, R * R);
    if (before) slack[i] += EPSILON * (fabs(before[i]) + 8 * R);
  }
  return slack;
}

// What a convolution of these inputs has to give, and how far it may be off.
typedef struct {
  real *values;
  double *slack;
} expectation;

static expectation expect_forward(const conv_shape *s, const conv_inputs *n) {
  real *expected = poison(n->out), *r_squared = poison(n->out);
  reference_conv_forward(s, expected, n->x, n->w, NULL);
  cpu_conv_forward(s, r_squared, squares(n->x, n->in), squares(n->w, n->filters), NULL);
  return (expectation){expected,
                       conv_slack(n->out, r_squared, s->kernel * s->kernel * s->in_channels, NULL)};
}

static expectation expect_backward_weight(const conv_shape *s, const conv_inputs *n) {
  real *expected = poison(n->filters), *r_squared = poison(n->filters);
  reference_conv_backward_weight(s, expected, n->dy, n->x);
  cpu_conv_backward_weight(s, r_squared, squares(n->dy, n->out), squares(n->x, n->in));
  return (expectation){
      expected, conv_slack(n->filters, r_squared, s->batch * s->out_height * s->out_width, NULL)};
}

static void launch_conv_forward(const test_case *c, const device *d) {
  d->conv_forward(&c->conv, y->data, x->data, w->data, c->with_sums ? sums->data : NULL);
}

// Of the values that the device itself stored. Up to 256 of them may have been added in float
// before the sum went on in double.
static void compare_sums(const test_case *c, const device *d) {
  const int channels = c->conv.out_channels;
  const double *actual = (const double *)(sums->after + sums->guard);
  double worst[2] = {0, 0};
  for (int k = 0; k < channels; k++) {
    double sum = 0, magnitude = 0, sum_of_squares = 0;
    for (size_t i = (size_t)k; i < y->count; i += (size_t)channels) {
      sum += y->values[i];
      magnitude += fabs(y->values[i]);
      sum_of_squares += (double)y->values[i] * y->values[i];
    }
    worst[0] = larger(worst[0], fabs(actual[k] - sum) / magnitude);
    worst[1] = larger(worst[1], fabs(actual[channels + k] - sum_of_squares) / sum_of_squares);
  }
  add_row(c, d->name, "sum / sum |y|", worst[0], 256 * EPSILON);
  add_row(c, d->name, "sum of squares, relative", worst[1], 256 * EPSILON);
}

static void test_conv_forward(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs n = draw_conv(s);
  const expectation e = expect_forward(s, &n);
  for (int i = 0; i < on->count; i++) {
    x = input_activations(on->of[i], n.x, n.x_shape);
    w = input(on->of[i], WEIGHTS, n.w, n.filters);
    y = output_activations(on->of[i], n.y_shape);
    if (c->with_sums) sums = output(on->of[i], BYTES, 2 * sizeof(double) * (size_t)s->out_channels);
    run(c, on->of[i], launch_conv_forward);
    compare(c, y, "", e.values, e.slack);
    if (c->with_sums) compare_sums(c, on->of[i]);
    free_arrays();
  }
}

static void launch_conv_backward_input(const test_case *c, const device *d) {
  d->conv_backward_input(&c->conv, dx->data, dy->data, w->data, c->accumulate);
}

static void test_conv_backward_input(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs n = draw_conv(s);
  real *expected = take(n.in * sizeof *expected), *r_squared = poison(n.in);
  memcpy(expected, n.before, n.in * sizeof *expected);
  reference_conv_backward_input(s, expected, n.dy, n.w, c->accumulate);
  cpu_conv_backward_input(s, r_squared, squares(n.dy, n.out), squares(n.w, n.filters), false);
  const double *slack = conv_slack(n.in, r_squared, s->kernel * s->kernel * s->out_channels,
                                   c->accumulate ? n.before : NULL);
  for (int i = 0; i < on->count; i++) {
    dy = input_activations(on->of[i], n.dy, n.y_shape);
    w = input(on->of[i], WEIGHTS, n.w, n.filters);
    dx = c->accumulate ? changed_activations(on->of[i], n.before, n.x_shape)
                       : output_activations(on->of[i], n.x_shape);
    run(c, on->of[i], launch_conv_backward_input);
    compare(c, dx, "", expected, slack);
    free_arrays();
  }
}

static void launch_conv_backward_weight(const test_case *c, const device *d) {
  d->conv_backward_weight(&c->conv, dw->data, dy->data, x->data);
}

static void test_conv_backward_weight(const test_case *c, const devices *on) {
  const conv_shape *s = &c->conv;
  const conv_inputs n = draw_conv(s);
  const expectation e = expect_backward_weight(s, &n);
  for (int i = 0; i < on->count; i++) {
    x = input_activations(on->of[i], n.x, n.x_shape);
    dy = input_activations(on->of[i], n.dy, n.y_shape);
    dw = output(on->of[i], REALS, n.filters);
    run(c, on->of[i], launch_conv_backward_weight);
    compare(c, dw, "", e.values, e.slack);
    free_arrays();
  }
}

#endif
