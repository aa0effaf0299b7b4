// course/exercises/tasks.h - what the ten exercises are given, and what has to come out: inputs at
// random, the plain reference, and how far a result may be off.
//
// Tolerances are those of tests/kernels_test.c, which derives them: 64 sqrt(K) 2^-24 R for a sum of
// K products, R the root of the sum of their squares; 9 K 2^-24 R besides for tensor cores; half the
// distance between bf16 numbers at the result where that is bf16.
#ifndef TASKS_H
#define TASKS_H

#include "course/exercises/exercises.h"
#include "reference/reference.h"
#include "tests/inputs.h"

#define EPSILON 0x1p-24 // float's rounding to nearest, relative

typedef struct {
  const void *values;
  size_t count;
  enum { BYTES, FLOATS, BF16 } format; // on the GPU; here a bf16 is a float too
} input;

typedef struct {
  const char *name;
  int dims[4]; // unused ones, at the end, are 0
  bool bf16;
  const real *before, *expected; // before: NULL is NaN
  double *tolerance;
} output;

typedef struct {
  char shape[80];
  task t; // without the pointers
  input in[MOST_INPUTS];
  output out[MOST_OUTPUTS];
} problem;

static size_t count_of(const output *o) {
  size_t count = 1;
  for (int i = 0; i < 4 && o->dims[i]; i++) count *= (size_t)o->dims[i];
  return count;
}

static real *round_to_bf16(real *values, size_t count) {
  for (size_t i = 0; i < count; i++) values[i] = to_nearest_bf16(values[i]);
  return values;
}

static real *bf16_normals(size_t count) {
  return round_to_bf16(normals(count, 0, 1), count);
}

static double *zeroes(size_t count) {
  return take(count * sizeof(double));
}

// Of a sum of k products, their squares' sum given.
static double of_sum(double k, double squares) {
  return 64 * sqrt(k) * EPSILON * sqrt(squares);
}

// Rounding the result to bf16 may change half the distance of two neighbours.
static void add_rounding(output *o) {
  for (size_t i = 0, count = count_of(o); i < count; i++) {
    const double size = fabs((double)o->expected[i]) + o->tolerance[i];
    int exponent = -125; // of the smallest numbers, and of 0, which frexp would call 0
    if (size >= 0x1p-126) frexp(size, &exponent);
    o->tolerance[i] += ldexp(1, exponent - 9);
  }
}

// -- 1 and 2: a batch ------------------------------------------------------------------------------

enum { IMAGES = 23 };

static sample *draw_samples(int batch) {
  static const int corner[][3] = {{0, 0, 0}, {8, 8, 1}, {0, 8, 1}, {8, 0, 0}};
  sample *drawn = take((size_t)batch * sizeof *drawn);
  for (int b = 0; b < batch; b++)
    drawn[b] = (sample){.image = (int32_t)random_below(&stream, IMAGES),
                        .partner = batch - 1 - b,
                        .crop_y = b < 4 ? corner[b][0] : (int32_t)random_below(&stream, 9),
                        .crop_x = b < 4 ? corner[b][1] : (int32_t)random_below(&stream, 9),
                        .flip = b < 4 ? corner[b][2] : (int32_t)random_below(&stream, 2)};
  return drawn;
}

static step_values *make_step(real lambda) {
  step_values *step = take(sizeof *step);
  *step = (step_values){.lambda = lambda, .learning_rate = 0.1f};
  return step;
}

// Five roundings here, five there: 1 - lambda, / 255, products and sum, all terms positive.
static void mixed_value(problem *p, const int size[4]) {
  static const real lambdas[] = {0.3f, 1, 0};
  const int batch = size[0];
  uint8_t *bytes = take(IMAGES * IMAGE_BYTES);
  output *x = &p->out[0];
  const sample *samples = draw_samples(batch);
  const step_values *step = make_step(lambdas[size[1]]);
  for (int i = 0; i < IMAGES * IMAGE_BYTES; i++) bytes[i] = (uint8_t)random_below(&stream, 256);
  *x = (output){.name = "x", .dims = {batch, IMAGE_SIDE, IMAGE_SIDE, IMAGE_CHANNELS}, .bf16 = true};
  real *expected = poison(count_of(x));
  reference_mix_images(batch, expected, bytes, samples, step);
  x->expected = expected;
  x->tolerance = zeroes(count_of(x));
  for (size_t i = 0; i < count_of(x); i++) x->tolerance[i] = 10 * EPSILON * (double)expected[i];
  add_rounding(x);
  p->in[0] = (input){bytes, IMAGES * IMAGE_BYTES, BYTES};
  p->in[1] = (input){samples, (size_t)batch * sizeof *samples, BYTES};
  p->in[2] = (input){step, sizeof *step, BYTES};
  snprintf(p->shape, sizeof p->shape, "batch %d, lambda %g", batch, (double)step->lambda);
}

// p is off by (20 + d) 2^-24 of itself, d its logit's distance from the largest (smoothing.cu), and
// p d is at most 1/e; t and the difference by 8 roundings of 1 at most.
static void loss_gradient(problem *p, const int size[4]) {
  const int batch = size[0];
  output *dlogits = &p->out[0];
  uint8_t *labels = take(IMAGES);
  const sample *samples = draw_samples(batch);
  const step_values *step = make_step(0.3f);
  real *logits = normals((size_t)batch * CLASSES, 0, 2);
  step_result unused;
  for (int i = 0; i < IMAGES; i++) labels[i] = (uint8_t)random_below(&stream, CLASSES);
  for (int i = 0; i < batch * CLASSES; i += 3) logits[i] *= i % 2 ? 50 : 1;
  logits[0] = 500;
  *dlogits = (output){.name = "dlogits", .dims = {batch, CLASSES}};
  p->t.smoothing = size[1] ? 0.1f : 0;
  real *expected = poison(count_of(dlogits));
  reference_cross_entropy(batch, p->t.smoothing, expected, &unused, logits, labels, samples, step);
  dlogits->expected = expected;
  dlogits->tolerance = zeroes(count_of(dlogits));
  for (size_t i = 0; i < count_of(dlogits); i++) dlogits->tolerance[i] = 34 * EPSILON / batch;
  p->in[0] = (input){logits, (size_t)batch * CLASSES, FLOATS};
  p->in[1] = (input){labels, IMAGES, BYTES};
  p->in[2] = (input){samples, (size_t)batch * sizeof *samples, BYTES};
  p->in[3] = (input){step, sizeof *step, BYTES};
  snprintf(p->shape, sizeof p->shape, "batch %d, smoothing %g", batch, (double)p->t.smoothing);
}

// -- 3 and 4: sums ---------------------------------------------------------------------------------

static void row_sums(problem *p, const int size[4]) {
  const int rows = size[0], columns = size[1];
  const real *x = normals((size_t)rows * (size_t)columns, 0, 1);
  real *expected = take((size_t)rows * sizeof *expected);
  double *tolerance = zeroes((size_t)rows);
  for (int row = 0; row < rows; row++) {
    double sum = 0, squares = 0;
    for (int i = 0; i < columns; i++) {
      const double value = x[row * columns + i];
      sum += value;
      squares += value * value;
    }
    expected[row] = (real)sum;
    tolerance[row] = of_sum(columns, squares);
  }
  p->in[0] = (input){x, (size_t)rows * (size_t)columns, FLOATS};
  p->out[0] =
      (output){.name = "sums", .dims = {rows}, .expected = expected, .tolerance = tolerance};
  snprintf(p->shape, sizeof p->shape, "%d x %d, rows x columns", rows, columns);
}

// xhat's own four roundings are the same for all terms of a channel and may add up.
static void norm_tolerances(problem *p, const real *dy, const real *y, const real *z,
                            const real *mean, const real *inverse_std) {
  const int pixels = p->t.rows, channels = p->t.columns;
  for (int c = 0; c < channels; c++) {
    double sum = 0, squares = 0, squares_xhat = 0;
    for (int i = c; i < pixels * channels; i += channels) {
      const double g = y[i] > 0 ? dy[i] : 0, g_xhat = g * (z[i] - mean[c]) * inverse_std[c];
      squares += g * g;
      squares_xhat += g_xhat * g_xhat;
      sum += fabs(g) * (fabs((double)z[i]) + fabs((double)mean[c])) * inverse_std[c];
    }
    p->out[0].tolerance[c] = of_sum(pixels, squares_xhat) + 4 * EPSILON * sum;
    p->out[1].tolerance[c] = of_sum(pixels, squares);
  }
}

static void norm_sums(problem *p, const int size[4]) {
  const norm_shape s = {size[0], size[1], 1};
  const size_t count = (size_t)s.pixels * (size_t)s.channels, channels = (size_t)s.channels;
  const real *dy = bf16_normals(count), *z = bf16_normals(count), *mean = normals(channels, 0, 1);
  const real *inverse_std = normals(channels, 1, 0.1);
  real *y = bf16_normals(count), *dgamma = poison(channels), *dbeta = poison(channels);
  for (size_t i = 0; i < count; i++) y[i] = y[i] > 0 ? y[i] : 0;
  reference_norm_backward(&s, poison(count), NULL, dgamma, dbeta, dy, y, z, mean, mean, inverse_std,
                          true);
  const real *in[] = {dy, y, z, mean, inverse_std};
  for (int i = 0; i < 5; i++)
    p->in[i] = (input){in[i], i < 3 ? count : channels, i < 3 ? BF16 : FLOATS};
  p->out[0] = (output){"dgamma", {s.channels}, false, NULL, dgamma, zeroes(channels)};
  p->out[1] = (output){"dbeta", {s.channels}, false, NULL, dbeta, zeroes(channels)};
  norm_tolerances(p, dy, y, z, mean, inverse_std);
  snprintf(p->shape, sizeof p->shape, "%d x %d, pixels x channels", s.pixels, s.channels);
}

// -- 5: SGD ----------------------------------------------------------------------------------------

static real *copy_of(const real *values, size_t count) {
  return memcpy(take(count * sizeof *values), values, count * sizeof *values);
}

// Few roundings: four of v's terms, and two more of w.
static void sgd_step(problem *p, const int size[4]) {
  const size_t count = (size_t)size[0];
  const real *w = normals(count, 0, 1), *v = normals(count, 0, 1), *g = normals(count, 0, 1);
  real *new_w = copy_of(w, count), *new_v = copy_of(v, count);
  double *off_v = zeroes(count), *off_w = zeroes(count), *off_rounded = zeroes(count);
  const step_values *step = make_step(0);
  const parameters all = {
      .count = count, .weight = new_w, .momentum = new_v, .gradient = (real *)g};
  p->t.momentum = 0.9f;
  p->t.weight_decay = 2e-4f;
  reference_sgd_update(&all, step, p->t.momentum, p->t.weight_decay);
  for (size_t i = 0; i < count; i++) {
    off_v[i] = 8 * EPSILON * (fabs((double)v[i]) + fabs((double)g[i]) + fabs((double)w[i]));
    off_w[i] = off_rounded[i] = off_v[i] + 2 * EPSILON * fabs((double)new_w[i]);
  }
  p->in[0] = (input){g, count, FLOATS};
  p->in[1] = (input){step, sizeof *step, BYTES};
  p->out[0] = (output){"w", {size[0]}, false, w, new_w, off_w};
  p->out[1] = (output){"v", {size[0]}, false, v, new_v, off_v};
  p->out[2] = (output){"rounded", {size[0]}, true, NULL, new_w, off_rounded};
  add_rounding(&p->out[2]);
  snprintf(p->shape, sizeof p->shape, "%d weights", size[0]);
}

// -- 6 and 7: matrix products ----------------------------------------------------------------------

// along: b is [columns][depth], in place of [depth][columns].
static output product(const char *name, const int size[4], const real *a, const real *b, bool along,
                      bool tensor_cores) {
  const int rows = size[0], columns = size[1], depth = size[2];
  output o = {.name = name, .dims = {rows, columns}};
  real *expected = take(count_of(&o) * sizeof *expected);
  o.expected = expected;
  o.tolerance = zeroes(count_of(&o));
  for (int m = 0; m < rows; m++)
    for (int n = 0; n < columns; n++) {
      double sum = 0, squares = 0;
      for (int k = 0; k < depth; k++) {
        const double term =
            (double)a[m * depth + k] * (double)b[along ? n * depth + k : k * columns + n];
        sum += term;
        squares += term * term;
      }
      expected[m * columns + n] = (real)sum;
      o.tolerance[m * columns + n] =
          of_sum(depth, squares) + (tensor_cores ? 9 * depth * EPSILON * sqrt(squares) : 0);
    }
  return o;
}

static void tile_product(problem *p, const int size[4]) {
  const size_t of_a = (size_t)(size[0] * size[2]), of_b = (size_t)(size[2] * size[1]);
  const real *a = normals(of_a, 0, 1), *b = normals(of_b, 0, 1);
  p->in[0] = (input){a, of_a, FLOATS};
  p->in[1] = (input){b, of_b, FLOATS};
  p->out[0] = product("c", size, a, b, false, false);
  snprintf(p->shape, sizeof p->shape, "%d x %d, depth %d", size[0], size[1], size[2]);
}

static void mma_product(problem *p, const int size[4]) {
  const size_t of_x = (size_t)(size[0] * size[2]), of_w = (size_t)(size[2] * size[1]);
  const real *x = bf16_normals(of_x), *w = bf16_normals(of_w);
  p->in[0] = (input){x, of_x, BF16};
  p->in[1] = (input){w, of_w, BF16};
  p->out[0] = product("z", size, x, w, true, true);
  snprintf(p->shape, sizeof p->shape, "%d x %d, depth %d", size[0], size[1], size[2]);
}

// -- 8 and 9: through shared memory ----------------------------------------------------------------

// Divisions by 2 and 4 are exact; two additions here, two there, and a fused one is none less.
static void smoothed_lines(problem *p, const int size[4]) {
  enum { WIDTH = 512 };
  const size_t count = (size_t)size[0] * WIDTH;
  const real *x = normals(count, 0, 1);
  real *y = take(count * sizeof *y);
  double *tolerance = zeroes(count);
  for (size_t i = 0; i < count; i++) {
    const double left = i % WIDTH ? x[i - 1] : 0, right = i % WIDTH < WIDTH - 1 ? x[i + 1] : 0;
    y[i] = (real)(left / 4 + x[i] / 2.0 + right / 4);
    tolerance[i] = 4 * EPSILON * (fabs(left) + fabs((double)x[i]) + fabs(right));
  }
  p->in[0] = (input){x, count, FLOATS};
  p->out[0] = (output){"y", {size[0], WIDTH}, false, NULL, y, tolerance};
  snprintf(p->shape, sizeof p->shape, "%d lines", size[0]);
}

// Exactly: nothing is computed.
static void transposed(problem *p, const int size[4]) {
  const int rows = size[0], columns = size[1];
  const size_t count = (size_t)rows * (size_t)columns;
  const real *x = bf16_normals(count);
  real *y = take(count * sizeof *y);
  for (int m = 0; m < rows; m++)
    for (int n = 0; n < columns; n++) y[n * rows + m] = x[m * columns + n];
  p->in[0] = (input){x, count, BF16};
  p->out[0] = (output){"y", {columns, rows}, true, NULL, y, zeroes(count)};
  snprintf(p->shape, sizeof p->shape, "%d x %d", rows, columns);
}

// -- 10: a convolution -----------------------------------------------------------------------------

static real *squares_of(const real *values, size_t count) {
  real *result = take(count * sizeof *result);
  for (size_t i = 0; i < count; i++) result[i] = values[i] * values[i];
  return result;
}

static void stride_two(problem *p, const int size[4]) {
  const conv_shape s = make_conv_shape(2, size[0], size[1], size[2], size[3], 3, 2);
  const size_t of_dz = (size_t)(s.batch * s.out_height * s.out_width * s.out_channels);
  const size_t of_w = (size_t)(s.out_channels * 9 * s.in_channels);
  const real *dz = bf16_normals(of_dz), *w = bf16_normals(of_w);
  output *dx = &p->out[0];
  *dx = (output){"dx", {s.batch, s.in_height, s.in_width, s.in_channels}, .bf16 = true};
  const size_t count = count_of(dx);
  real *expected = poison(count), *squares = poison(count);
  reference_conv_backward_input(&s, expected, dz, w, false);
  reference_conv_backward_input(&s, squares, squares_of(dz, of_dz), squares_of(w, of_w), false);
  dx->expected = expected;
  dx->tolerance = zeroes(count);
  for (size_t i = 0; i < count; i++)
    dx->tolerance[i] = of_sum(9 * s.out_channels, (double)squares[i]);
  add_rounding(dx);
  p->t.conv = s;
  p->in[0] = (input){dz, of_dz, BF16};
  p->in[1] = (input){w, of_w, BF16};
  snprintf(p->shape, sizeof p->shape, "%d x %d, %d -> %d channels", size[0], size[1], size[2],
           size[3]);
}

#endif
