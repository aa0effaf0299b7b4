// reference/resnet18.c - the network's operations besides convolution, plainly: batch normalisation
// with the residual sum and ReLU, average pool, linear layer.
//
// Batch normalisation gives each channel mean 0 and variance 1 over a batch, then lets the network
// choose another mean (beta) and spread (gamma):
//
//     xhat = (z - mean) / sqrt(variance + epsilon)        y = act(gamma xhat + beta + residual)
//
// The residual sum and ReLU that follow are done in the same pass, because each pass over the
// activations is a trip through all of memory and arithmetic on the way is free.
//
// Backward (Ioffe and Szegedy 2015, section 3). A channel has n pixels, z[1] .. z[n]. Let g[i] be
// the gradient of the loss with respect to gamma xhat[i] + beta, and r = 1 / sqrt(variance +
// epsilon). beta is added to each pixel and gamma multiplies each xhat, so
//
//     dbeta = sum over i of g[i]        dgamma = sum over i of g[i] xhat[i]
//
// z[j] moves xhat[j] itself, and through mean and variance every xhat[i]. Piece by piece:
//
//     d mean / d z[j] = 1 / n
//     d variance / d z[j] = 2 / n (z[j] - mean)       (the part through the mean is 0, because the
//                                                      deviations from a mean add up to 0)
//     d r / d z[j] = - r^3 / 2 (d variance / d z[j]) = - r^2 xhat[j] / n
//     d xhat[i] / d z[j] = r ([i = j] - 1 / n) + (z[i] - mean) (d r / d z[j])
//                        = r ([i = j] - 1 / n - xhat[i] xhat[j] / n)
//
// The loss changes by gamma g[i] for each xhat[i], and the sum over i is
//
//     dz[j] = gamma r (g[j] - dbeta / n - xhat[j] dgamma / n)
//
// The two subtracted terms take out of g what changing mean and variance would undo: the rest has a
// mean of 0 and, but for epsilon, no part along xhat.
//
// The variance comes from two sums, as mean of squares - mean^2, so that one walk over z is enough.
// Where the mean is large beside the deviation, two nearly equal numbers are subtracted: with a
// mean of 100 deviations, mean^2 is 10,000 times the variance, and a float's rounding error of
// 2^-24 becomes 6e-4 of the variance. In double it is 1e-12. So the finished sums are doubles, on
// every device. (The fast convolution of a GPU adds up the rows of a tile in float; sum_columns in
// gpu/epilogue.h says why that is safe.)
//
// Sums run over fixed chunks of pixels, each added up by one thread and the chunks then in order,
// so the bits do not depend on the number of threads. The inner loops walk over channels, which are
// neighbours in memory; `omp simd` says what a compiler cannot know: where two arrays are the same
// one, they meet only at the same index.
#include "reference.h"

#include "run/error.h"
#include <math.h>

enum { CHUNKS = 64 }; // of pixels, in sums over all of them, and so the most threads that can help

// y = act(gamma (z - mean) inverse_std + beta + residual). z, y, residual: [pixels][channels]
static void normalise(const norm_shape *shape, void *y, const void *z, const real *gamma,
                      const real *beta, const void *residual, bool relu, const real *mean,
                      const real *inverse_std) {
  const int channels = shape->channels;
#pragma omp parallel for
  for (int i = 0; i < shape->pixels; i++) {
    const size_t row = (size_t)i * channels;
    const real *in = (const real *)z + row, *add = residual ? (const real *)residual + row : NULL;
    real *out = (real *)y + row;
#pragma omp simd
    for (int c = 0; c < channels; c++) {
      const real normal = gamma[c] * ((in[c] - mean[c]) * inverse_std[c]) + beta[c];
      const real value = add ? normal + add[c] : normal;
      out[c] = relu && value < 0 ? 0 : value; // this way round, a NaN stays one and is noticed
    }
  }
}

void reference_norm_statistics(const norm_shape *shape, const double *sums, real *running_mean,
                               real *running_var, real *saved_mean, real *saved_inverse_std) {
  const double n = shape->pixels;
  for (int c = 0; c < shape->channels; c++) {
    const double mean = sums[c] / n;
    const double difference = sums[shape->channels + c] / n - mean * mean;
    const double variance = difference < 0 ? 0 : difference; // by rounding; fmax would lose a NaN
    saved_mean[c] = (real)mean;
    saved_inverse_std[c] = (real)(1 / sqrt(variance + NORM_EPSILON));
    running_mean[c] = (real)((1 - NEW_BATCH_SHARE) * running_mean[c] + NEW_BATCH_SHARE * mean);
    // The batch's own variance divides by n; the unbiased estimate for all images, by n - 1.
    running_var[c] =
        (real)((1 - NEW_BATCH_SHARE) * running_var[c] + NEW_BATCH_SHARE * variance * n / (n - 1));
  }
}

void reference_norm_forward(const norm_shape *shape, void *y, const void *z, const double *sums,
                            const real *gamma, const real *beta, const void *residual, bool relu,
                            real *running_mean, real *running_var, real *saved_mean,
                            real *saved_inverse_std) {
  reference_norm_statistics(shape, sums, running_mean, running_var, saved_mean, saved_inverse_std);
  normalise(shape, y, z, gamma, beta, residual, relu, saved_mean, saved_inverse_std);
}

void reference_norm_inference(const norm_shape *shape, void *y, const void *z, const real *gamma,
                              const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var) {
  real *inverse_std = allocate(shape->channels * sizeof(real));
  for (int c = 0; c < shape->channels; c++)
    inverse_std[c] = (real)(1 / sqrt(running_var[c] + NORM_EPSILON));
  normalise(shape, y, z, gamma, beta, residual, relu, running_mean, inverse_std);
  free(inverse_std);
}

// sums[0][c] = sum of g and sums[1][c] = sum of g xhat over pixels first .. end - 1.
static void sum_gradients(double *sums, const norm_shape *shape, size_t first, size_t end,
                          const real *dy, const real *y, const real *z, const real *mean,
                          const real *inverse_std, bool relu) {
  const int channels = shape->channels;
  double *restrict sum_g = sums, *restrict sum_g_xhat = sums + channels;
  for (int c = 0; c < channels; c++) sum_g[c] = sum_g_xhat[c] = 0;
  for (size_t i = first * channels; i < end * channels; i += channels)
#pragma omp simd
    for (int c = 0; c < channels; c++) {
      const real upstream = dy[i + c], g = relu && y[i + c] <= 0 ? 0 : upstream;
      sum_g[c] += g;
      sum_g_xhat[c] += g * ((z[i + c] - mean[c]) * inverse_std[c]);
    }
}

// dz = gamma inverse_std (g - dbeta / n - xhat dgamma / n) and dresidual = g.
static void spread_gradients(const norm_shape *shape, real *dz, real *dresidual, const real *dgamma,
                             const real *dbeta, const real *dy, const real *y, const real *z,
                             const real *gamma, const real *mean, const real *inverse_std,
                             bool relu) {
  const int channels = shape->channels;
  const real one_nth = (real)(1.0 / shape->pixels);
#pragma omp parallel for
  for (size_t i = 0; i < (size_t)shape->pixels * channels; i += channels)
#pragma omp simd
    for (int c = 0; c < channels; c++) {
      const real upstream = dy[i + c], g = relu && y[i + c] <= 0 ? 0 : upstream;
      const real xhat = (z[i + c] - mean[c]) * inverse_std[c];
      if (dresidual) dresidual[i + c] = g;
      dz[i + c] = gamma[c] * inverse_std[c] * (g - one_nth * (dbeta[c] + xhat * dgamma[c]));
    }
}

void reference_norm_backward(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                             real *dbeta, const void *dy, const void *y, const void *z,
                             const real *gamma, const real *saved_mean,
                             const real *saved_inverse_std, bool relu) {
  const int channels = shape->channels;
  const size_t pixels = shape->pixels;
  double *partial = allocate((size_t)CHUNKS * 2 * channels * sizeof(double));
#pragma omp parallel for
  for (size_t chunk = 0; chunk < CHUNKS; chunk++)
    sum_gradients(partial + chunk * 2 * channels, shape, pixels * chunk / CHUNKS,
                  pixels * (chunk + 1) / CHUNKS, dy, y, z, saved_mean, saved_inverse_std, relu);
  for (int c = 0; c < channels; c++) {
    double sum_g = 0, sum_g_xhat = 0;
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
      sum_g += partial[chunk * 2 * channels + c];
      sum_g_xhat += partial[(chunk * 2 + 1) * channels + c];
    }
    dbeta[c] = (real)sum_g;
    dgamma[c] = (real)sum_g_xhat;
  }
  free(partial);
  spread_gradients(shape, dz, dresidual, dgamma, dbeta, dy, y, z, gamma, saved_mean,
                   saved_inverse_std, relu);
}

// x: [batch][pixels][channels], y: [batch][channels]
void reference_pool_forward(int batch, int pixels, int channels, void *y, const void *x) {
  for (int b = 0; b < batch; b++)
    for (int c = 0; c < channels; c++) {
      double sum = 0;
      for (int i = 0; i < pixels; i++)
        sum += ((const real *)x)[((size_t)b * pixels + i) * channels + c];
      ((real *)y)[b * channels + c] = (real)(sum / pixels);
    }
}

void reference_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy) {
  for (int b = 0; b < batch; b++)
    for (int i = 0; i < pixels; i++)
      for (int c = 0; c < channels; c++)
        ((real *)dx)[((size_t)b * pixels + i) * channels + c] =
            ((const real *)dy)[b * channels + c] / pixels;
}

// x: [batch][channels], w: [10][channels], logits: [batch][10]
void reference_linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                              const real *bias) {
  for (int b = 0; b < batch; b++)
    for (int o = 0; o < CLASSES; o++) {
      double sum = bias[o];
      for (int c = 0; c < channels; c++)
        sum += (double)((const real *)x)[b * channels + c] * ((const real *)w)[o * channels + c];
      logits[b * CLASSES + o] = (real)sum;
    }
}

void reference_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                               const real *dlogits, const void *x, const void *w) {
  for (int b = 0; b < batch; b++)
    for (int c = 0; c < channels; c++) {
      double sum = 0;
      for (int o = 0; o < CLASSES; o++)
        sum += (double)dlogits[b * CLASSES + o] * ((const real *)w)[o * channels + c];
      ((real *)dx)[b * channels + c] = (real)sum;
    }
  for (int o = 0; o < CLASSES; o++) {
    for (int c = 0; c < channels; c++) {
      double sum = 0;
      for (int b = 0; b < batch; b++)
        sum += (double)dlogits[b * CLASSES + o] * ((const real *)x)[b * channels + c];
      dw[o * channels + c] = (real)sum;
    }
    double sum = 0;
    for (int b = 0; b < batch; b++) sum += dlogits[b * CLASSES + o];
    dbias[o] = (real)sum;
  }
}
