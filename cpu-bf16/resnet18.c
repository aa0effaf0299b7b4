// cpu-bf16/resnet18.c - the network's operations besides convolution, on blocks of bf16: batch
// normalisation with the residual sum and ReLU, average pool, linear layer.
//
// reference/resnet18.c derives the formulas. Per channel they are linear in what is stored, and that
// is how they are computed here, one or two multiply-adds a number:
//
//     y  = act(scale z + shift + residual)     scale = gamma inverse_std, shift = beta - scale mean
//     dz = a g + b z + c                       a = gamma inverse_std, b = - a inverse_std dgamma / n,
//                                              c = - a dbeta / n - b mean
//
// Where the mean is large beside the deviation, scale z and shift nearly cancel; what float loses
// then, 2^-24 of |scale z|, is little beside what the bf16 z has lost already, up to 2^-8 of it.
//
// A block's 32 rows have the same 32 channels, so its factors stay in registers. Images beyond the
// batch get zeros, and so do channels beyond the last, because their factors are zero.
//
// Checked by `make check`: tests/kernels_test.c.
#include "resnet18.h"

#include "cpu/conv.h"
#include "reference/reference.h"
#include "run/error.h"
#include <math.h>

enum { CHUNKS = 64 }; // of pixels, in sums over all of them, and so the most threads that can help

// What the operations walk over: all groups' pixels, counted through.
typedef struct {
  int images, pixels, blocks; // pixels: of an image; blocks: of channels
  int places;                 // groups x pixels
} walk;

static walk make_walk(int images, int pixels, int channels) {
  return (walk){images, pixels, blocks_of(channels), blocks_of(images) * pixels};
}

static walk walk_of(const norm_shape *s) {
  return make_walk(s->images, s->pixels / s->images, s->channels);
}

static size_t at(const walk *w, int place, int block) {
  return ((size_t)place * w->blocks + block) * BLOCK;
}

// `count` arrays with a number for each channel, zeros in all of them.
static float *new_factors(int channels, int count) {
  return allocate((size_t)count * blocks_of(channels) * SIDE * sizeof(float));
}

// -- Batch normalisation, forward ----------------------------------------------------------------

static void normalise_block(bf16 *y, const bf16 *z, const bf16 *residual, int images,
                            const float *scale, const float *shift, bool with_relu) {
  const pair a = load_pair(scale), b = load_pair(shift);
  for (int i = 0; i < images; i++) {
    pair row;
    for (int h = 0; h < HALVES; h++) {
      const int here = i * SIDE + h * WORDS;
      row.of[h] = normalised(load_half(z + here), a.of[h], b.of[h]);
      if (residual) row.of[h] += load_half(residual + here);
      if (with_relu) row.of[h] = relu(row.of[h]);
    }
    store_row(y + i * SIDE, row);
  }
  clear_rows(y, images, SIDE);
}

static void normalise(const norm_shape *shape, bf16 *y, const bf16 *z, const bf16 *residual,
                      const float *scale, const float *shift, bool relu) {
  const walk w = walk_of(shape);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 16)
    for (int place = 0; place < w.places; place++)
      for (int block = 0; block < w.blocks; block++)
        normalise_block(y + at(&w, place, block), z + at(&w, place, block),
                        residual ? residual + at(&w, place, block) : NULL,
                        images_of(w.images, place / w.pixels), scale + block * SIDE,
                        shift + block * SIDE, relu);
    finish_stores();
  }
}

// For conv.c, whose arrays hold what was there before.
static void clear_factors(int channels, float *scale, float *shift) {
  const size_t room = (size_t)blocks_of(channels) * SIDE * sizeof *scale;
  memset(scale, 0, room);
  memset(shift, 0, room);
}

static void make_factor(float *scale, float *shift, real gamma, real beta, real mean,
                        real inverse_std) {
  *scale = gamma * inverse_std;
  *shift = beta - *scale * mean;
}

void bf16_norm_factors(int channels, float *scale, float *shift, const real *gamma,
                       const real *beta, const real *mean, const real *inverse_std) {
  clear_factors(channels, scale, shift);
  for (int k = 0; k < channels; k++)
    make_factor(scale + k, shift + k, gamma[k], beta[k], mean[k], inverse_std[k]);
}

void bf16_norm_apply(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                     const norm_arrays *n, const addend *residual, bool relu) {
  (void)mask; // this device keeps none
  float *scale = new_factors(shape->channels, 2);
  float *shift = scale + blocks_of(shape->channels) * SIDE;
  bf16_norm_factors(shape->channels, scale, shift, n->gamma, n->beta, n->mean, n->inverse_std);
  normalise(shape, y, z, residual ? residual->values : NULL, scale, shift, relu);
  free(scale);
}

void bf16_norm_forward(const norm_shape *shape, void *y, const void *z, const double *sums,
                       const real *gamma, const real *beta, const void *residual, bool relu,
                       real *running_mean, real *running_var, real *saved_mean,
                       real *saved_inverse_std) {
  const norm_arrays n = {gamma, beta, running_mean, running_var, saved_mean, saved_inverse_std};
  reference_norm_statistics(shape, sums, running_mean, running_var, saved_mean, saved_inverse_std);
  const addend add = {.values = residual};
  bf16_norm_apply(shape, y, NULL, z, &n, residual ? &add : NULL, relu);
}

void bf16_inference_factors(int channels, float *scale, float *shift, const real *gamma,
                            const real *beta, const real *mean, const real *variance) {
  clear_factors(channels, scale, shift);
  for (int k = 0; k < channels; k++) {
    const float inverse_std = (float)(1 / sqrt(variance[k] + NORM_EPSILON));
    make_factor(scale + k, shift + k, gamma[k], beta[k], mean[k], inverse_std);
  }
}

void bf16_norm_inference(const norm_shape *shape, void *y, const void *z, const real *gamma,
                         const real *beta, const void *residual, bool relu,
                         const real *running_mean, const real *running_var) {
  float *scale = new_factors(shape->channels, 2);
  float *shift = scale + blocks_of(shape->channels) * SIDE;
  bf16_inference_factors(shape->channels, scale, shift, gamma, beta, running_mean, running_var);
  normalise(shape, y, z, residual, scale, shift, relu);
  free(scale);
}

// -- Batch normalisation, backward ---------------------------------------------------------------

// What both passes read.
typedef struct {
  const bf16 *dy, *y, *z; // y: NULL without ReLU, whose mask it is
} upstream;

// g = dy where y > 0, else 0
static inline floats load_gradient(const upstream *u, size_t at) {
  const floats dy = load_half(u->dy + at);
  return u->y ? masked(dy, load_half(u->y + at)) : dy;
}

// Adds the sums of g and of g xhat over a block's images, in float, to sums: [2][32]
static void sum_block(double *sums, const upstream *u, size_t block, int images, const float *mean,
                      const float *inverse_std) {
  const pair m = load_pair(mean), inverse = load_pair(inverse_std);
  pair sum = {0}, product = {0};
  for (int i = 0; i < images; i++)
    for (int h = 0; h < HALVES; h++) {
      const size_t here = block + i * SIDE + h * WORDS;
      const floats g = load_gradient(u, here);
      sum.of[h] += g;
      product.of[h] += g * ((load_half(u->z + here) - m.of[h]) * inverse.of[h]);
    }
  add_sums(sums, &sum);
  add_sums(sums + SIDE, &product);
}

// Chunks of places are added up each by one thread, then the chunks in their order.
static void sum_gradients(const norm_shape *shape, const upstream *u, real *dgamma, real *dbeta,
                          const float *mean, const float *inverse_std) {
  const walk w = walk_of(shape);
  const size_t of_chunk = (size_t)w.blocks * 2 * SIDE;
  double *partial = allocate(CHUNKS * of_chunk * sizeof *partial);
#pragma omp parallel for schedule(dynamic)
  for (int chunk = 0; chunk < CHUNKS; chunk++) {
    const int first = (int)((long)w.places * chunk / CHUNKS);
    const int end = (int)((long)w.places * (chunk + 1) / CHUNKS);
    for (int place = first; place < end; place++)
      for (int block = 0; block < w.blocks; block++)
        sum_block(partial + chunk * of_chunk + (size_t)block * 2 * SIDE, u, at(&w, place, block),
                  images_of(w.images, place / w.pixels), mean + block * SIDE,
                  inverse_std + block * SIDE);
  }
  for (int k = 0; k < shape->channels; k++) {
    double sum = 0, product = 0;
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      const double *of = partial + chunk * of_chunk + (size_t)(k / SIDE) * 2 * SIDE + k % SIDE;
      sum += of[0];
      product += of[SIDE];
    }
    dbeta[k] = (real)sum;
    dgamma[k] = (real)product;
  }
  free(partial);
}

// dz = a g + b z + c and dresidual = g, of a block. factors: a, b, c for each channel.
static void spread_block(bf16 *dz, bf16 *dresidual, const upstream *u, size_t block, int images,
                         const float *const factors[3], int channel) {
  const pair a = load_pair(factors[0] + channel), b = load_pair(factors[1] + channel);
  const pair c = load_pair(factors[2] + channel);
  for (int i = 0; i < images; i++) {
    const size_t row = block + i * SIDE;
    pair g, spread;
    for (int h = 0; h < HALVES; h++) { // all is read before dz is written, which may be dy
      g.of[h] = load_gradient(u, row + h * WORDS);
      spread.of[h] = a.of[h] * g.of[h] + (b.of[h] * load_half(u->z + row + h * WORDS) + c.of[h]);
    }
    if (dresidual) store_row(dresidual + row, g);
    store_row(dz + row, spread);
  }
  if (dresidual) clear_rows(dresidual + block, images, SIDE);
  clear_rows(dz + block, images, SIDE);
}

static void spread_gradients(const norm_shape *shape, bf16 *dz, bf16 *dresidual, const upstream *u,
                             const float *const factors[3]) {
  const walk w = walk_of(shape);
#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 16)
    for (int place = 0; place < w.places; place++)
      for (int block = 0; block < w.blocks; block++)
        spread_block(dz, dresidual, u, at(&w, place, block), images_of(w.images, place / w.pixels),
                     factors, block * SIDE);
    finish_stores();
  }
}

// dz = a g + b z + c, and dresidual = g, from the finished sums.
static void spread(const norm_shape *shape, bf16 *dz, bf16 *dresidual, const upstream *u,
                   const real *dgamma, const real *dbeta, const norm_arrays *n) {
  float *a = new_factors(shape->channels, 3), *b = a + blocks_of(shape->channels) * SIDE;
  float *c = b + blocks_of(shape->channels) * SIDE;
  for (int k = 0; k < shape->channels; k++) {
    const double scale = (double)n->gamma[k] * n->inverse_std[k];
    const double slope = -scale * n->inverse_std[k] * dgamma[k] / shape->pixels;
    a[k] = (float)scale;
    b[k] = (float)slope;
    c[k] = (float)(-scale * dbeta[k] / shape->pixels - slope * n->mean[k]);
  }
  spread_gradients(shape, dz, dresidual, u, (const float *const[]){a, b, c});
  free(a);
}

void bf16_norm_spread(const norm_shape *shape, void *dz, void *shortcut_dz, const void *g,
                      const norm_below *of) {
  const upstream u = {g, NULL, of->z};
  (void)shortcut_dz; // this device wants no shortcuts here
  spread(shape, dz, NULL, &u, of->dgamma, of->dbeta, &of->norm);
}

void bf16_norm_backward(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                        real *dbeta, const void *dy, const void *y, const void *z,
                        const real *gamma, const real *saved_mean, const real *saved_inverse_std,
                        bool relu) {
  const upstream u = {dy, relu ? y : NULL, z};
  const norm_arrays n = {
      .gamma = gamma, .mean = (real *)saved_mean, .inverse_std = (real *)saved_inverse_std};
  float *mean = new_factors(shape->channels, 2);
  float *inverse_std = mean + blocks_of(shape->channels) * SIDE;
  memcpy(mean, saved_mean, shape->channels * sizeof *mean);
  memcpy(inverse_std, saved_inverse_std, shape->channels * sizeof *inverse_std);
  sum_gradients(shape, &u, dgamma, dbeta, mean, inverse_std);
  spread(shape, dz, dresidual, &u, dgamma, dbeta, &n);
  free(mean);
}

// -- Average pool --------------------------------------------------------------------------------

// x: [batch][pixels][channels], y: [batch][channels], in blocks.
void bf16_pool_forward(int batch, int pixels, int channels, void *y, const void *x) {
  const walk w = make_walk(batch, pixels, channels);
#pragma omp parallel for collapse(2)
  for (int group = 0; group < blocks_of(batch); group++)
    for (int block = 0; block < w.blocks; block++) {
      bf16 *to = (bf16 *)y + at(&w, group, block);
      const int images = images_of(batch, group);
      for (int i = 0; i < images; i++) {
        pair sum = {0};
        for (int pixel = 0; pixel < pixels; pixel++)
          for (int h = 0; h < HALVES; h++)
            sum.of[h] += load_half((const bf16 *)x + at(&w, group * pixels + pixel, block) +
                                   i * SIDE + h * WORDS);
        for (int h = 0; h < HALVES; h++) sum.of[h] /= (float)pixels;
        store_row(to + i * SIDE, sum);
      }
      clear_rows(to, images, SIDE);
      finish_stores();
    }
}

void bf16_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy) {
  const walk w = make_walk(batch, pixels, channels);
#pragma omp parallel
  {
#pragma omp for
    for (int place = 0; place < w.places; place++)
      for (int block = 0; block < w.blocks; block++)
        for (int i = 0; i < BLOCK; i += SIDE) { // zeros stay zeros
          const bf16 *from = (const bf16 *)dy + at(&w, place / pixels, block) + i;
          store_row(
              (bf16 *)dx + at(&w, place, block) + i,
              (pair){{load_half(from) / (float)pixels, load_half(from + WORDS) / (float)pixels}});
        }
    finish_stores();
  }
}

// -- Linear --------------------------------------------------------------------------------------
//
// A thousandth of a step's arithmetic: the reference does it, on floats, with w rounded as a GPU
// keeps it.

static real *rounded(const real *w, size_t count) {
  real *values = allocate(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = to_float(to_bf16(w[i]));
  return values;
}

void bf16_linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                         const real *bias) {
  const activation_shape shape = {batch, 1, channels};
  real *values = allocate(activation_count(shape) * sizeof *values);
  real *weights = rounded(w, (size_t)CLASSES * channels);
  blocks_to_floats(values, x, shape);
  reference_linear_forward(batch, channels, logits, values, weights, bias);
  free(values);
  free(weights);
}

void bf16_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                          const real *dlogits, const void *x, const void *w) {
  const activation_shape shape = {batch, 1, channels};
  const size_t count = activation_count(shape);
  real *values = allocate(2 * count * sizeof *values), *gradients = values + count;
  real *weights = rounded(w, (size_t)CLASSES * channels);
  blocks_to_floats(values, x, shape);
  reference_linear_backward(batch, channels, gradients, dw, dbias, dlogits, values, weights);
  blocks_from_floats(dx, gradients, shape);
  free(values);
  free(weights);
}
