// tests/gradients_test.c - every gradient of the reference device, one operation at a time and the whole
// network, against finite differences in double precision.
//
// A backward pass is a claim about its forward pass: "this is your derivative". The forward pass
// can be asked itself, with nothing but two evaluations (Taylor's theorem; the even terms cancel):
//
//     dL/dw = (L(w + h) - L(w - h)) / 2h + truncation + rounding
//     |truncation| <= h^2 / 6 |L'''|        |rounding| <= 64 2^-52 M / h
//
// where M is the sum of the absolute values of all terms in L, and 64 stands for the hundred or so
// roundings that L passes through, which partly cancel. The tolerance is the sum of the two.
//
// An operation's output y is an array, and L has to be a number: L = sum of r_i y_i with random r,
// so that r is L's gradient with respect to y. Given dy = r, the backward operation has to return
// what moving each input, one by one, by +h and -h shows.
//
// * Convolution, pool and linear layer are linear in each argument: L''' = 0. There h = 1, and the
//   tolerance is rounding alone.
// * Elsewhere h = 2^-17, near the cube root of 2^-52, where the two errors are of a size.
//
// Kinks. ReLU has no derivative at 0, and a step across 0 measures neither slope. The inputs of
// single operations are drawn again until no activation is so near 0 that a step could reach it. In
// the whole network some of its 2 10^5 activations will always be near 0, so there h is smaller,
// 2^-24, and a step counts only if no activation changed sides; if one did (one step in 60),
// another batch is drawn, and another direction.
//
// That the forward passes are the right ones is shown by formulas_test.c and golden_test.c.
//
//     make build/gcc/double/gradients_test && build/gcc/double/gradients_test
#include "../network.h"
#include "../reference/reference.h"
#include "inputs.h"
#include <omp.h>
#include <string.h>

static const device *const d = &reference_device; // its memory is host memory: no copies needed
static const double STEP = 0x1p-17, NETWORK_STEP = 0x1p-24;

// -- Tools ---------------------------------------------------------------------------------------

static double dot(const real *a, const real *b, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}

typedef double objective(const void *problem);

// The largest |finite difference - gradient[i]| over all elements of `at`, which L reads.
static double worst_slope(objective *L, const void *problem, real *at, const real *gradient,
                          size_t count, double h) {
  double worst = 0;
  for (size_t i = 0; i < count; i++) {
    const real here = at[i];
    at[i] = here + h;
    const double above = L(problem);
    at[i] = here - h;
    const double below = L(problem);
    at[i] = here;
    worst = larger(worst, fabs((above - below) / (2 * h) - gradient[i]));
  }
  return worst;
}

// third: a bound for |L'''|; magnitude: M, the sum of the absolute values of L's terms.
static double slope_tolerance(double h, double third, double magnitude) {
  return h * h / 6 * third + 64 * 0x1p-52 * magnitude / h;
}

// -- Convolution ---------------------------------------------------------------------------------

typedef struct {
  conv_shape shape;
  size_t x_count, w_count, y_count;
  real *x, *w, *y, *r;
} conv_problem;

static double conv_objective(const void *problem) {
  const conv_problem *c = problem;
  d->conv_forward(&c->shape, c->y, c->x, c->w, NULL);
  return dot(c->r, c->y, c->y_count);
}

static double conv_magnitude(conv_problem c) {
  c.x = absolute(c.x, c.x_count);
  c.w = absolute(c.w, c.w_count);
  c.r = absolute(c.r, c.y_count);
  return conv_objective(&c);
}

static void test_conv(int batch, int height, int width, int in, int out, int kernel, int stride) {
  const conv_shape s = make_conv_shape(batch, height, width, in, out, kernel, stride);
  conv_problem c = {.shape = s,
                    .x_count = (size_t)batch * height * width * in,
                    .w_count = (size_t)out * kernel * kernel * in,
                    .y_count = (size_t)batch * s.out_height * s.out_width * out};
  c.x = normals(c.x_count, 0, 1);
  c.w = normals(c.w_count, 0, 1);
  c.r = normals(c.y_count, 0, 1);
  c.y = poison(c.y_count);
  real *dx = poison(c.x_count), *dw = poison(c.w_count);
  d->conv_backward_input(&s, dx, c.r, c.w, false);
  d->conv_backward_weight(&s, dw, c.r, c.x);
  const double tolerance = slope_tolerance(1, 0, conv_magnitude(c));
  char name[80];
  snprintf(name, sizeof name, "conv %dx%d/%d %dx%dx%dx%d -> %d", kernel, kernel, stride, batch,
           height, width, in, out);
  check_error(worst_slope(conv_objective, &c, c.x, dx, c.x_count, 1), tolerance, "%s, dx", name);
  check_error(worst_slope(conv_objective, &c, c.w, dw, c.w_count, 1), tolerance, "%s, dw", name);
  real *sum = normals(c.x_count, 0, 1), *expected = take(c.x_count * sizeof(real));
  for (size_t i = 0; i < c.x_count; i++) expected[i] = sum[i] + dx[i];
  d->conv_backward_input(&s, sum, c.r, c.w, true);
  check_error(worst_difference(sum, expected, c.x_count), 0, "%s, dx added to another", name);
  release();
}

static void test_convs(void) {
  test_conv(2, 5, 7, 3, 4, 3, 1);
  test_conv(2, 5, 7, 3, 4, 3, 2);
  test_conv(1, 6, 4, 5, 2, 3, 2); // even sizes: the last row looks at no padding
  test_conv(3, 1, 1, 3, 5, 3, 1); // nothing but padding around it
  test_conv(1, 2, 1, 4, 3, 3, 2);
  test_conv(2, 4, 5, 3, 5, 1, 1);
  test_conv(2, 5, 7, 4, 3, 1, 2);
  test_conv(1, 6, 6, 2, 3, 1, 2);
}

// -- Batch normalisation -------------------------------------------------------------------------

typedef struct {
  norm_shape shape;
  bool relu;
  real *x, *gamma, *beta, *residual, *y, *r; // residual: NULL where there is none
  real *running_mean, *running_var, *saved_mean, *saved_inverse_std;
} norm_problem;

static void norm_forward(const norm_problem *p, bool relu) {
  const int channels = p->shape.channels;
  double *sums = allocate(2 * channels * sizeof *sums);
  for (int i = 0; i < p->shape.pixels; i++)
    for (int c = 0; c < channels; c++) {
      const double x = p->x[i * channels + c];
      sums[c] += x;
      sums[channels + c] += x * x;
    }
  d->norm_forward(&p->shape, p->y, p->x, sums, p->gamma, p->beta, p->residual, relu,
                  p->running_mean, p->running_var, p->saved_mean, p->saved_inverse_std);
  free(sums);
}

static double norm_objective(const void *problem) {
  const norm_problem *p = problem;
  norm_forward(p, p->relu);
  return dot(p->r, p->y, (size_t)p->shape.pixels * p->shape.channels);
}

// Random inputs with no activation within 64 STEP of 0. Moving one x by h moves activation j by
// |gamma / std (delta_ij - 1/n - xhat_i xhat_j / n)| h, gamma by |xhat_j| h: at most 16 h for
// numbers like these (gamma < 4, std > 0.5, |xhat| < 6).
static norm_problem draw_norm(int pixels, int channels, bool residual, bool relu) {
  const size_t count = (size_t)pixels * channels;
  for (;; release()) {
    const norm_problem p = {.shape = {pixels, channels, 1},
                            .relu = relu,
                            .x = normals(count, 0.5, 1.5),
                            .gamma = normals(channels, 1, 0.3),
                            .beta = normals(channels, 0, 0.5),
                            .residual = residual ? normals(count, 0, 1) : NULL,
                            .y = poison(count),
                            .r = normals(count, 0, 1),
                            .running_mean = normals(channels, 0, 1),
                            .running_var = absolute(normals(channels, 1, 0.1), channels),
                            .saved_mean = poison(channels),
                            .saved_inverse_std = poison(channels)};
    double nearest = INFINITY;
    norm_forward(&p, false);
    for (size_t i = 0; i < count; i++) nearest = fmin(nearest, fabs(p.y[i]));
    if (nearest > 64 * STEP) return p;
  }
}

static void norm_backward(const norm_problem *p, real *dx, real *dresidual, real *dgamma,
                          real *dbeta, const real *dy) {
  d->norm_backward(&p->shape, dx, dresidual, dgamma, dbeta, dy, p->relu ? p->y : NULL, p->x,
                   p->gamma, p->saved_mean, p->saved_inverse_std, p->relu);
}

// device.h allows dresidual to be dy, or else dx to be dy. Tolerance: eight roundings of numbers
// below 16, for a compiler may make two versions of a loop, which fuse different multiply-adds.
static void test_norm_in_place(const norm_problem *p, const real *dx, const real *dresidual,
                               const char *name) {
  const size_t channels = p->shape.channels, count = p->shape.pixels * channels;
  real *dy = take(count * sizeof *dy), *other = poison(count);
  real *dgamma = poison(channels), *dbeta = poison(channels);
  memcpy(dy, p->r, count * sizeof *dy);
  norm_backward(p, other, dy, dgamma, dbeta, dy);
  double worst = larger(worst_difference(other, dx, count), worst_difference(dy, dresidual, count));
  memcpy(dy, p->r, count * sizeof *dy);
  norm_backward(p, dy, other, dgamma, dbeta, dy);
  worst = larger(worst, worst_difference(dy, dx, count));
  worst = larger(worst, worst_difference(other, dresidual, count));
  memcpy(dy, p->r, count * sizeof *dy);
  norm_backward(p, dy, NULL, dgamma, dbeta, dy);
  worst = larger(worst, worst_difference(dy, dx, count));
  check_error(worst, 8 * 16 * 0x1p-53, "%s, in place of dy", name);
}

static void test_norm_gradients(int pixels, int channels, bool residual, bool relu) {
  norm_problem p = draw_norm(pixels, channels, residual, relu);
  const size_t count = (size_t)pixels * channels;
  real *dx = poison(count), *dresidual = poison(count);
  real *dgamma = poison(channels), *dbeta = poison(channels);
  const double L = norm_objective(&p);
  norm_backward(&p, dx, dresidual, dgamma, dbeta, p.r);
  // Differentiating dx twice more gives a handful of terms of size gamma r xhat^2 / (n std^3),
  // below 10 each for numbers like these; L is linear in the other three. M: y is the sum of up to
  // three numbers of size 1 before ReLU takes part of them away, so four a value, with |r| about 1.
  const double tolerance = slope_tolerance(STEP, 100, 4.0 * count + fabs(L));
  char name[80];
  snprintf(name, sizeof name, "norm %dx%d%s%s", pixels, channels, residual ? ", residual" : "",
           relu ? ", relu" : "");
  check_error(worst_slope(norm_objective, &p, p.x, dx, count, STEP), tolerance, "%s, dx", name);
  check_error(worst_slope(norm_objective, &p, p.gamma, dgamma, channels, STEP), tolerance,
              "%s, dgamma", name);
  check_error(worst_slope(norm_objective, &p, p.beta, dbeta, channels, STEP), tolerance,
              "%s, dbeta", name);
  if (residual)
    check_error(worst_slope(norm_objective, &p, p.residual, dresidual, count, STEP), tolerance,
                "%s, dresidual", name);
  norm_objective(&p);
  test_norm_in_place(&p, dx, dresidual, name);
  release();
}

static void test_norms(void) {
  for (int variant = 0; variant < 4; variant++)
    test_norm_gradients(37, 5, variant & 1, variant & 2);
  test_norm_gradients(150, 3, true, true); // more pixels than partial sums
}

// -- Pool and linear layer -----------------------------------------------------------------------

typedef struct {
  int batch, pixels, channels;
  real *x, *w, *bias, *y, *r; // w and bias: of the linear layer
} head_problem;

static double pool_objective(const void *problem) {
  const head_problem *p = problem;
  d->pool_forward(p->batch, p->pixels, p->channels, p->y, p->x);
  return dot(p->r, p->y, (size_t)p->batch * p->channels);
}

static double linear_objective(const void *problem) {
  const head_problem *p = problem;
  d->linear_forward(p->batch, p->channels, p->y, p->x, p->w, p->bias);
  return dot(p->r, p->y, (size_t)p->batch * CLASSES);
}

// Sizes this small make M (about 10^3) a matter of counting terms: 3 for each product |x w r|.
static void test_head(void) {
  enum { BATCH = 3, PIXELS = 6, CHANNELS = 7, X = BATCH * PIXELS * CHANNELS };
  head_problem p = {.batch = BATCH,
                    .pixels = PIXELS,
                    .channels = CHANNELS,
                    .x = normals(X, 0, 1),
                    .y = poison(BATCH * CHANNELS),
                    .r = normals(BATCH * CHANNELS, 0, 1)};
  real *dx = poison(X);
  d->pool_backward(BATCH, PIXELS, CHANNELS, dx, p.r);
  check_error(worst_slope(pool_objective, &p, p.x, dx, X, 1), slope_tolerance(1, 0, 3 * X),
              "pool, dx");
  p.y = poison(BATCH * CLASSES);
  p.r = normals(BATCH * CLASSES, 0, 1);
  p.w = normals(CLASSES * CHANNELS, 0, 1);
  p.bias = normals(CLASSES, 0, 1);
  real *dw = poison(CLASSES * CHANNELS), *dbias = poison(CLASSES);
  const double tolerance = slope_tolerance(1, 0, 3 * BATCH * CLASSES * (CHANNELS + 1));
  d->linear_backward(BATCH, CHANNELS, dx, dw, dbias, p.r, p.x, p.w);
  check_error(worst_slope(linear_objective, &p, p.x, dx, BATCH * CHANNELS, 1), tolerance,
              "linear, dx");
  check_error(worst_slope(linear_objective, &p, p.w, dw, CLASSES * CHANNELS, 1), tolerance,
              "linear, dw");
  check_error(worst_slope(linear_objective, &p, p.bias, dbias, CLASSES, 1), tolerance,
              "linear, dbias");
  release();
}

// -- Cross-entropy -------------------------------------------------------------------------------

typedef struct {
  int batch;
  float smoothing;
  real *logits;
  const uint8_t *labels;
  const sample *samples;
  step_values step;
} loss_problem;

// The mean loss. Without dlogits, as in a test run of the trainer.
static double loss_objective(const void *problem) {
  const loss_problem *p = problem;
  step_result result;
  d->cross_entropy(p->batch, p->smoothing, NULL, &result, p->logits, p->labels, p->samples,
                   &p->step);
  return result.loss / p->batch;
}

static void draw_samples(sample *samples, uint8_t *labels, int batch) {
  for (int b = 0; b < batch; b++) {
    labels[b] = (uint8_t)random_below(&stream, CLASSES);
    samples[b] = (sample){.image = b,
                          .partner = (int32_t)random_below(&stream, (uint32_t)batch),
                          .crop_y = (int32_t)random_below(&stream, 9),
                          .crop_x = (int32_t)random_below(&stream, 9),
                          .flip = (int32_t)random_below(&stream, 2)};
  }
}

// The third derivative of log(sum of exp) is the third moment of a number between 0 and 1.
static void test_loss(float smoothing, float lambda) {
  enum { BATCH = 6 };
  uint8_t labels[BATCH];
  sample samples[BATCH];
  draw_samples(samples, labels, BATCH);
  loss_problem p = {.batch = BATCH,
                    .smoothing = smoothing,
                    .logits = normals(BATCH * CLASSES, 0, 2),
                    .labels = labels,
                    .samples = samples,
                    .step = {.lambda = lambda}};
  real *dlogits = poison(BATCH * CLASSES);
  step_result result;
  d->cross_entropy(BATCH, smoothing, dlogits, &result, p.logits, labels, samples, &p.step);
  check_error(worst_slope(loss_objective, &p, p.logits, dlogits, BATCH * CLASSES, STEP),
              slope_tolerance(STEP, 1, loss_objective(&p)), "loss, smoothing %.1f lambda %.2f",
              smoothing, lambda);
  release();
}

// -- The whole network ---------------------------------------------------------------------------

enum { BATCH = 3, WIDTH = 8, TRIES = 16 };

typedef struct {
  network n;
  uint8_t images[BATCH * IMAGE_BYTES], labels[BATCH];
  sample samples[BATCH];
  step_values step;
  double loss;    // of this batch, and its gradient is the network's
  uint64_t sides; // sides_of_zero
} training;

static double training_loss(training *t) {
  step_result result;
  network_forward(&t->n, BATCH, true);
  d->cross_entropy(BATCH, 0.1f, t->n.dlogits, &result, t->n.logits, t->labels, t->samples,
                   &t->step);
  return result.loss / BATCH;
}

// A hash (FNV-1a) of which activations behind a ReLU are positive.
static uint64_t sides_of_zero(const network *n) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (int i = 0; i < UNITS; i++) {
    const conv_shape *s = &n->units[i].shape;
    const size_t count = (size_t)BATCH * s->out_height * s->out_width * s->out_channels;
    bool relu = true;
    for (int k = 0; k < BLOCKS; k++) relu &= n->blocks[k].shortcut != i;
    for (size_t j = 0; relu && j < count; j++)
      hash = (hash ^ (((const real *)n->units[i].y)[j] > 0)) * 0x100000001b3u;
  }
  return hash;
}

// The loss after moving w by h along `direction`.
static double loss_beside(training *t, real *w, const real *direction, size_t count, double h) {
  real *kept = allocate(count * sizeof *kept);
  memcpy(kept, w, count * sizeof *kept);
  for (size_t i = 0; i < count; i++) w[i] += h * direction[i];
  const double loss = training_loss(t);
  memcpy(w, kept, count * sizeof *kept);
  free(kept);
  return loss;
}

static void draw_batch(training *t) {
  network *n = &t->n;
  for (size_t i = 0; i < sizeof t->images; i++) t->images[i] = (uint8_t)random_bits(&stream);
  draw_samples(t->samples, t->labels, BATCH);
  t->step.lambda = 0.25f + 0.5f * random_float(&stream);
  d->mix_images(BATCH, n->input, t->images, t->samples, &t->step);
  t->loss = training_loss(t);
  t->sides = sides_of_zero(n);
  for (size_t i = 0; i < n->parameters.count; i++) n->parameters.gradient[i] = NAN;
  network_backward(n);
}

// The slope of the loss along a random direction against that direction times the gradient. False if
// a ReLU changed sides, so that nothing was measured.
//
// L''': a filter with K weights, moved by h, moves what comes out of its norm by up to sqrt(3 K) h,
// 40 h for the largest; 40^3, and a factor of 1500 for the layers behind, is 10^8. |gradient| is the
// slope's standard deviation over directions: the error has to be small beside it, too, or the tolerance
// would let any gradient pass. In 40 runs a thousandth of it was over 20 times the tolerance.
static bool test_direction(training *t, const parameter *p) {
  const double h = NETWORK_STEP;
  const real *gradient = t->n.parameters.gradient + p->offset, *direction = normals(p->count, 0, 1);
  real *w = t->n.parameters.weight + p->offset;
  const double size = sqrt(dot(gradient, gradient, p->count));
  const double expected = dot(gradient, direction, p->count);
  const double above = loss_beside(t, w, direction, p->count, h);
  bool measured = sides_of_zero(&t->n) == t->sides;
  const double below = loss_beside(t, w, direction, p->count, -h);
  measured = measured && sides_of_zero(&t->n) == t->sides;
  if (measured)
    check_error(fabs((above - below) / (2 * h) - expected),
                fmin(slope_tolerance(h, 1e8, t->loss), 1e-3 * size), "network, %s, |gradient| %.3f",
                p->name, size);
  release();
  return measured;
}

static void test_network(uint64_t seed) {
  training *t = allocate(sizeof *t);
  network *n = &t->n;
  error e;
  if (!network_create(n, d, WIDTH, BATCH, &e)) exit(1);
  network_initialise(n, seed);
  for (int i = 0; i < PARAMETERS - 2; i++) // gamma 1 and beta 0 could hide a factor
    for (size_t j = 0; n->parameter_list[i].rank == 1 && j < n->parameter_list[i].count; j++)
      n->parameters.weight[n->parameter_list[i].offset + j] += 0.3 * random_normal(&stream);
  draw_batch(t);
  for (int i = 0; i < PARAMETERS; i++) {
    const parameter *p = &n->parameter_list[i];
    bool measured = test_direction(t, p);
    for (int tries = 1; !measured && tries < TRIES; tries++) {
      draw_batch(t);
      measured = test_direction(t, p);
    }
    if (!measured)
      check(false, "network, %s: a ReLU changes sides in each of %d steps", p->name, TRIES);
  }
  network_free(n);
  free(t);
}

int main(void) {
  const uint64_t seed = check_seed("gradients_test");
  stream = random_open(seed, RANDOM_TEST, 0, 0);
  omp_set_num_threads(1); // many small evaluations: sharing them costs more than it saves
  test_convs();
  test_norms();
  test_head();
  test_loss(0, 1);
  test_loss(0, 0.3f);
  test_loss(0.1f, 0.3f);
  test_network(seed);
  return check_summary();
}
