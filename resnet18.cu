// resnet18.cu - the network's operations besides convolution: batch normalisation with the residual
// sum and ReLU, average pool, linear layer. reference/resnet18.c derives the formulas.
//
//     forward    y = act(gamma (x - mean) inverse_std + beta + residual)
//     backward   g = dy where y > 0, else 0 (without ReLU: dy)        xhat = (x - mean) inverse_std
//                dbeta = sum g        dgamma = sum g xhat
//                dx = gamma inverse_std (g - dbeta / n - xhat dgamma / n)        dresidual = g
//
//     x, y, residual and their gradients   bf16 [pixels][channels], pixels = n = B H W
//     gamma, beta, mean, inverse_std ..    float [channels]
//
// The arithmetic is next to nothing. The largest activation, 128 x 32 x 32 x 64 numbers of 2 bytes,
// is 16.8 MB, and a step makes nine to eleven trips through each of the 20 layers' arrays, of that
// size or a half, a quarter, an eighth of it. An H100 reads 3 TB a second; in the 6 microseconds of
// such a trip its tensor cores could have used each number for hundreds of operations. So the
// question for each operation is how often it walks through all of memory ("passes"), and whether
// memory is busy while it does:
//
//     forward      sums of x and x x        none: the convolution before adds them up as it goes
//                  mean, inverse_std        one thread a channel, no walk at all
//                  the rest                 1 pass: x (and residual) in, y out
//     backward     dbeta, dgamma            1 pass: dy, y, x in
//                  dx, dresidual            1 pass: dy, y, x in, dx (and dresidual) out
//
// Backward cannot do with one: every dx needs the sums over all pixels.
//
// Checked by `make check`: all kernels against reference/resnet18.c, which defines the operations.
#include "gpu/gpu.h"

#include <math.h>

namespace GPU {

// What a channel is normalised with; passed to the kernels by value. Each array: [channels]
typedef struct {
  const float *gamma, *beta, *mean;
  const float *inverse_std; // training; NULL: computed from variance
  const float *variance;    // evaluation; else NULL
} normal;

// -- Batch normalisation, forward, plain: a thread a value ---------------------------------------

// From the convolution's sums, what the reference computes, in double as there: mean^2 is
// subtracted from the mean of squares. A thread a channel, for plain and fast alike.
static __global__ void finish_statistics(norm_shape shape, const double *sums, float *running_mean,
                                         float *running_var, float *saved_mean,
                                         float *saved_inverse_std) {
  const int c = (int)thread_number();
  if (c >= shape.channels) return;
  const double n = shape.pixels, mean = sums[c] / n;
  const double variance = fmax(0.0, sums[shape.channels + c] / n - mean * mean);
  saved_mean[c] = (float)mean;
  saved_inverse_std[c] = (float)(1 / sqrt(variance + NORM_EPSILON));
  running_mean[c] = (float)((1 - NEW_BATCH_SHARE) * running_mean[c] + NEW_BATCH_SHARE * mean);
  running_var[c] =
      (float)((1 - NEW_BATCH_SHARE) * running_var[c] + NEW_BATCH_SHARE * variance * n / (n - 1));
}

static __device__ float inverse_std_from(float variance) {
  return 1 / sqrtf(variance + (float)NORM_EPSILON);
}

// This way round, a NaN stays one and is noticed.
static __device__ float relu_of(float value) {
  return value < 0 ? 0 : value;
}

static __global__ void normalise_value(norm_shape shape, bf16 *y, const bf16 *x,
                                       const bf16 *residual, normal of, bool relu) {
  const size_t i = thread_number();
  if (i >= (size_t)shape.pixels * shape.channels) return;
  const int c = (int)(i % shape.channels);
  const float inverse_std = of.inverse_std ? of.inverse_std[c] : inverse_std_from(of.variance[c]);
  float value = of.gamma[c] * ((to_float(x[i]) - of.mean[c]) * inverse_std) + of.beta[c];
  if (residual) value += to_float(residual[i]);
  y[i] = to_bf16(relu ? relu_of(value) : value);
}

static void normalise_plain(const norm_shape *shape, void *y, const void *x, const void *residual,
                            const normal &of, bool relu) {
  launch("normalise_value", normalise_value,
         {blocks_for((size_t)shape->pixels * shape->channels), THREADS, 0}, *shape, y, x, residual,
         of, relu);
}

static void norm_forward_plain(const norm_shape *shape, void *y, const void *x, const double *sums,
                               const real *gamma, const real *beta, const void *residual, bool relu,
                               real *running_mean, real *running_var, real *saved_mean,
                               real *saved_inverse_std) {
  launch("finish_statistics", finish_statistics, {blocks_for(shape->channels), THREADS, 0}, *shape,
         sums, running_mean, running_var, saved_mean, saved_inverse_std);
  normalise_plain(shape, y, x, residual, {gamma, beta, saved_mean, saved_inverse_std, NULL}, relu);
}

static void norm_inference_plain(const norm_shape *shape, void *y, const void *x, const real *gamma,
                                 const real *beta, const void *residual, bool relu,
                                 const real *running_mean, const real *running_var) {
  normalise_plain(shape, y, x, residual, {gamma, beta, running_mean, NULL, running_var}, relu);
}

// -- Batch normalisation, forward, fast ----------------------------------------------------------
//
// What the plain kernel wastes: a thread moves 2 bytes at a time where it could move 16, and for
// each value it divides to find its channel and loads four constants, 16 bytes, twice what x and y
// take.
//
// Below, a thread owns eight neighbouring channels for good, keeps their constants in registers,
// and walks down the pixels. Blocks are two-dimensional, with channels along x (threads of a warp
// are numbered along x first, so a warp reads one unbroken stretch) and pixels along y:
//
//                  channels / 8 -->
//                  0    1    2    3    ..  `across` threads, then the next tile, blockIdx.y
//     pixel 0    | tx0, ty0 | tx1, ty0 | ..
//           1    | tx0, ty1 | tx1, ty1 | ..        `down` rows of threads
//           ..                                      one strip, blockIdx.x
//        down    | tx0, ty0 | ..                   the same threads again,
//     down + 1   | tx0, ty1 | ..                   `run` times in all
//
// With channels that are no multiple of 8, eights would straddle pixels: the plain kernels
// take those.

enum {
  MOST_ACROSS = 32, // 512 unbroken bytes are all that a warp can ask for at once
  RUN = 4,          // pixels a thread: enough to pay for the constants, few enough for many blocks
};

// How threads lie over [pixels][channels].
typedef struct {
  dim3 grid, block; // strips x tiles, across x down
  int run;          // pixels a thread
} tiling;

// run: pixels a thread; 0: as many as leave `most_blocks` blocks, but at least RUN and at most 64.
static tiling tile(const norm_shape *shape, int run, int most_blocks) {
  const int eights = shape->channels / EIGHT, across = min_of(eights, MOST_ACROSS);
  const int down = THREADS / across, tiles = divide_up(eights, across);
  if (!run) {
    const int strips = divide_up(most_blocks, tiles);
    run = min_of(64, divide_up(shape->pixels, down * strips));
    if (run < RUN) run = RUN;
  }
  return {dim3(divide_up(shape->pixels, down * run), tiles), dim3(across, down), run};
}

// This thread's first channel, and its first pixel of `run`; the others follow `down` apart.
static __device__ int first_channel() {
  return EIGHT * (blockIdx.y * blockDim.x + threadIdx.x);
}
static __device__ int first_pixel(int run) {
  return blockIdx.x * blockDim.y * run + threadIdx.y;
}

static __device__ float8 load_floats(const float *from) {
  const float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

static __global__ void __launch_bounds__(THREADS)
    normalise_eights(norm_shape shape, bf16 *__restrict__ y, const bf16 *__restrict__ x,
                     const bf16 *__restrict__ residual, normal of, bool relu) {
  const int c = first_channel();
  if (c >= shape.channels) return;
  const float8 mean = load_floats(of.mean + c), shift = load_floats(of.beta + c);
  float8 scale = load_floats((of.inverse_std ? of.inverse_std : of.variance) + c);
  const float8 gamma = load_floats(of.gamma + c);
  for (int j = 0; j < EIGHT; j++)
    scale.value[j] =
        gamma.value[j] * (of.inverse_std ? scale.value[j] : inverse_std_from(scale.value[j]));
  for (int i = 0; i < RUN; i++) {
    const int pixel = first_pixel(RUN) + i * blockDim.y;
    if (pixel >= shape.pixels) return;
    const size_t at = (size_t)pixel * shape.channels + c;
    float8 value = load_bf16x8(x + at), add = {};
    if (residual) add = load_bf16x8(residual + at);
    for (int j = 0; j < EIGHT; j++) {
      const float sum =
          (value.value[j] - mean.value[j]) * scale.value[j] + shift.value[j] + add.value[j];
      value.value[j] = relu ? relu_of(sum) : sum;
    }
    store_bf16x8(y + at, value);
  }
}

static void normalise(const norm_shape *shape, void *y, const void *x, const void *residual,
                      const normal &of, bool relu) {
  if (shape->channels % EIGHT) {
    normalise_plain(shape, y, x, residual, of, relu);
    return;
  }
  const tiling t = tile(shape, RUN, 0);
  launch("normalise_eights", normalise_eights, {t.grid, t.block, 0}, *shape, y, x, residual, of,
         relu);
}

static void norm_forward(const norm_shape *shape, void *y, const void *x, const double *sums,
                         const real *gamma, const real *beta, const void *residual, bool relu,
                         real *running_mean, real *running_var, real *saved_mean,
                         real *saved_inverse_std) {
  launch("finish_statistics", finish_statistics, {blocks_for(shape->channels), THREADS, 0}, *shape,
         sums, running_mean, running_var, saved_mean, saved_inverse_std);
  normalise(shape, y, x, residual, {gamma, beta, saved_mean, saved_inverse_std, NULL}, relu);
}

static void norm_inference(const norm_shape *shape, void *y, const void *x, const real *gamma,
                           const real *beta, const void *residual, bool relu,
                           const real *running_mean, const real *running_var) {
  normalise(shape, y, x, residual, {gamma, beta, running_mean, NULL, running_var}, relu);
}

// -- Batch normalisation, backward, plain --------------------------------------------------------

// What the backward kernels read; passed by value.
typedef struct {
  const bf16 *dy, *y, *x;                  // y is read only where relu is set
  const float *gamma, *mean, *inverse_std; // [channels]
  bool relu;
} upstream;

// Value i of g.
static __device__ float gradient_at(const upstream &u, size_t i) {
  return u.relu && to_float(u.y[i]) <= 0 ? 0 : to_float(u.dy[i]);
}

// Thread c adds up channel c.
static __global__ void sum_channel(norm_shape shape, upstream u, float *dgamma, float *dbeta) {
  const int c = (int)thread_number();
  if (c >= shape.channels) return;
  double sum_g = 0, sum_g_xhat = 0;
  for (int pixel = 0; pixel < shape.pixels; pixel++) {
    const size_t i = (size_t)pixel * shape.channels + c;
    const float g = gradient_at(u, i);
    sum_g += g;
    sum_g_xhat += g * ((to_float(u.x[i]) - u.mean[c]) * u.inverse_std[c]);
  }
  dbeta[c] = (float)sum_g;
  dgamma[c] = (float)sum_g_xhat;
}

// Reads value i of dy before it writes value i, and no other: dx or dresidual may be dy.
static __global__ void spread_value(norm_shape shape, upstream u, bf16 *dx, bf16 *dresidual,
                                    const float *dgamma, const float *dbeta) {
  const size_t i = thread_number();
  if (i >= (size_t)shape.pixels * shape.channels) return;
  const int c = (int)(i % shape.channels);
  const float g = gradient_at(u, i), one_nth = 1.0f / shape.pixels;
  const float xhat = (to_float(u.x[i]) - u.mean[c]) * u.inverse_std[c];
  if (dresidual) dresidual[i] = to_bf16(g);
  dx[i] = to_bf16(u.gamma[c] * u.inverse_std[c] * (g - one_nth * (dbeta[c] + xhat * dgamma[c])));
}

static void norm_backward_plain(const norm_shape *shape, void *dx, void *dresidual, real *dgamma,
                                real *dbeta, const void *dy, const void *y, const void *x,
                                const real *gamma, const real *saved_mean,
                                const real *saved_inverse_std, bool relu) {
  const upstream u = {(const bf16 *)dy,
                      (const bf16 *)y,
                      (const bf16 *)x,
                      gamma,
                      saved_mean,
                      saved_inverse_std,
                      relu};
  launch("sum_channel", sum_channel, {blocks_for(shape->channels), THREADS, 0}, *shape, u, dgamma,
         dbeta);
  launch("spread_value", spread_value,
         {blocks_for((size_t)shape->pixels * shape->channels), THREADS, 0}, *shape, u, dx,
         dresidual, dgamma, dbeta);
}

// -- Batch normalisation, backward, fast ---------------------------------------------------------
//
// What the plain sums waste is nearly the whole GPU: 64 channels are 64 threads, two warps on one
// of 132 processors, each with a chain of 131,072 additions. Sums over pixels have to be cut into
// many partial ones, and the partial ones added, in an order that does not depend on who is first:
//
//     a thread    eight channels, at most 64 pixels            in registers, float
//     a block     its `down` threads of the same channels      in shared memory, in order, double
//     the strips  partial[strip][2][channels] in workspace     by the next kernel, in order, double
//
// Only the first 64 additions are in float: an error of at most 64 x 2^-24 = 4e-6 of the sum of the
// terms' sizes, usually ten times less, below what rounding each dy to bf16 (2^-8) has cost before.
// How pixels are cut depends on the shape alone, not on the GPU: the same bits on each.

// Strips for the sums: about four blocks for each processor of an H100. More would take no less
// time and leave more partial sums to be added.
enum { SUM_BLOCKS = 512, ROWS = 32, COLUMNS = 32 };

static __device__ float8 load_gradient(const upstream &u, size_t at) {
  float8 g = load_bf16x8(u.dy + at);
  if (!u.relu) return g;
  const float8 y = load_bf16x8(u.y + at);
  for (int j = 0; j < EIGHT; j++) g.value[j] = y.value[j] <= 0 ? 0 : g.value[j];
  return g;
}

// Sums of a block's threads, in shared memory: [g or g (x - mean)][which of a thread's channels],
// then the thread. Shared memory consists of 32 banks, a float each in turn, and a bank serves one
// address at a time. The threads of a warp store to neighbouring floats: all banks, no waiting.
// When they read below, every 8 of them step through the channels of one thread: the 4 floats that
// make a row longer than its threads put those 8 into different banks, with room for 4 threads in
// between.
enum { SUMS = 2 * EIGHT, PITCH = THREADS + 4 };

// Adds up the rows of threads and stores the block's part of partial[strip][2][channels].
static __device__ void store_strip(const norm_shape &shape, const float (*shared)[PITCH],
                                   double *partial) {
  const int across = blockDim.x, down = blockDim.y;
  for (int i = threadIdx.y * across + threadIdx.x; i < SUMS * across; i += across * down) {
    const int which = i / (EIGHT * across), column = i % (EIGHT * across);
    const int channel = blockIdx.y * across * EIGHT + column;
    const float *sums = &shared[which * EIGHT + column % EIGHT][column / EIGHT];
    double sum = 0;
    for (int row = 0; row < down; row++) sum += sums[row * across];
    if (channel < shape.channels)
      partial[((size_t)blockIdx.x * 2 + which) * shape.channels + channel] = sum;
  }
}

// partial[strip][0][c] = sum of g, partial[strip][1][c] = sum of g (x - mean), over a strip.
static __global__ void __launch_bounds__(THREADS)
    sum_strip(norm_shape shape, upstream u, int run, double *partial) {
  __shared__ float shared[SUMS][PITCH];
  const int c = first_channel(), thread = threadIdx.y * blockDim.x + threadIdx.x;
  float8 sum_g = {}, sum_g_x = {};
  if (c < shape.channels) {
    const float8 mean = load_floats(u.mean + c);
    const int first = first_pixel(run), end = min_of(shape.pixels, first + run * blockDim.y);
    for (int pixel = first; pixel < end; pixel += blockDim.y) {
      const size_t at = (size_t)pixel * shape.channels + c;
      const float8 g = load_gradient(u, at), x = load_bf16x8(u.x + at);
      for (int j = 0; j < EIGHT; j++) {
        sum_g.value[j] += g.value[j];
        sum_g_x.value[j] += g.value[j] * (x.value[j] - mean.value[j]);
      }
    }
  }
  for (int j = 0; j < EIGHT; j++) {
    shared[j][thread] = sum_g.value[j];
    shared[EIGHT + j][thread] = sum_g_x.value[j];
  }
  __syncthreads();
  store_strip(shape, shared, partial);
}

// dbeta and dgamma from the strips' sums: a block takes 32 of the 2 x channels columns, each of its
// rows of threads every 32nd strip. inverse_std, left out above, is multiplied in here.
static __global__ void __launch_bounds__(ROWS *COLUMNS)
    add_strips(norm_shape shape, int strips, const double *partial, const float *inverse_std,
               float *dgamma, float *dbeta) {
  __shared__ double shared[ROWS][COLUMNS];
  const int column = blockIdx.x * COLUMNS + threadIdx.x;
  double sum = 0;
  if (column < 2 * shape.channels)
    for (int strip = threadIdx.y; strip < strips; strip += ROWS)
      sum += partial[(size_t)strip * 2 * shape.channels + column];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= 2 * shape.channels) return;
  for (int row = 1; row < ROWS; row++) sum += shared[row][threadIdx.x];
  if (column < shape.channels)
    dbeta[column] = (float)sum;
  else
    dgamma[column - shape.channels] = (float)(sum * inverse_std[column - shape.channels]);
}

// As spread_value, with (dbeta + xhat dgamma) / n = offset + (x - mean) slope.
static __global__ void __launch_bounds__(THREADS)
    spread_eights(norm_shape shape, upstream u, bf16 *dx, bf16 *dresidual, const float *dgamma,
                  const float *dbeta) {
  const int c = first_channel();
  if (c >= shape.channels) return;
  const float one_nth = 1.0f / shape.pixels;
  const float8 mean = load_floats(u.mean + c), inverse_std = load_floats(u.inverse_std + c);
  float8 scale = load_floats(u.gamma + c), offset = load_floats(dbeta + c);
  float8 slope = load_floats(dgamma + c);
  for (int j = 0; j < EIGHT; j++) {
    scale.value[j] *= inverse_std.value[j];
    offset.value[j] *= one_nth;
    slope.value[j] *= one_nth * inverse_std.value[j];
  }
  for (int i = 0; i < RUN; i++) {
    const int pixel = first_pixel(RUN) + i * blockDim.y;
    if (pixel >= shape.pixels) return;
    const size_t at = (size_t)pixel * shape.channels + c;
    const float8 g = load_gradient(u, at);
    float8 x = load_bf16x8(u.x + at);
    if (dresidual) store_bf16x8(dresidual + at, g);
    for (int j = 0; j < EIGHT; j++)
      x.value[j] = scale.value[j] *
                   (g.value[j] - offset.value[j] - (x.value[j] - mean.value[j]) * slope.value[j]);
    store_bf16x8(dx + at, x);
  }
}

static void norm_backward(const norm_shape *shape, void *dx, void *dresidual, real *dgamma,
                          real *dbeta, const void *dy, const void *y, const void *x,
                          const real *gamma, const real *saved_mean, const real *saved_inverse_std,
                          bool relu) {
  if (shape->channels % EIGHT) {
    norm_backward_plain(shape, dx, dresidual, dgamma, dbeta, dy, y, x, gamma, saved_mean,
                        saved_inverse_std, relu);
    return;
  }
  const upstream u = {(const bf16 *)dy,
                      (const bf16 *)y,
                      (const bf16 *)x,
                      gamma,
                      saved_mean,
                      saved_inverse_std,
                      relu};
  const int columns = 2 * shape->channels;
  const tiling sums = tile(shape, 0, SUM_BLOCKS), all = tile(shape, RUN, 0);
  const int strips = (int)sums.grid.x;
  double *partial = (double *)workspace((size_t)strips * columns * sizeof *partial);
  launch("sum_strip", sum_strip, {sums.grid, sums.block, 0}, *shape, u, sums.run, partial);
  launch("add_strips", add_strips, {divide_up(columns, COLUMNS), dim3(COLUMNS, ROWS), 0}, *shape,
         strips, partial, saved_inverse_std, dgamma, dbeta);
  launch("spread_eights", spread_eights, {all.grid, all.block, 0}, *shape, u, dx, dresidual, dgamma,
         dbeta);
}

// -- Average pool: plain and fast are the same ---------------------------------------------------
//
// x is the network's smallest activation, [batch][4][4][512], 2 MB. A thread a value of y, or of
// dx, keeps a warp's requests unbroken; wider ones would save a microsecond in two thousand.

static __global__ void average(int batch, int pixels, int channels, bf16 *y, const bf16 *x) {
  const int i = (int)thread_number();
  if (i >= batch * channels) return;
  const bf16 *first = x + (size_t)(i / channels) * pixels * channels + i % channels;
  float sum = 0;
  for (int pixel = 0; pixel < pixels; pixel++) sum += to_float(first[(size_t)pixel * channels]);
  y[i] = to_bf16(sum / pixels);
}

static void pool_forward(int batch, int pixels, int channels, void *y, const void *x) {
  launch("average", average, {blocks_for((size_t)batch * channels), THREADS, 0}, batch, pixels,
         channels, y, x);
}

static __global__ void spread_average(int batch, int pixels, int channels, bf16 *dx,
                                      const bf16 *dy) {
  const size_t i = thread_number(), image = (size_t)pixels * channels;
  if (i >= batch * image) return;
  dx[i] = to_bf16(to_float(dy[i / image * channels + i % channels]) / pixels);
}

static void pool_backward(int batch, int pixels, int channels, void *dx, const void *dy) {
  launch("spread_average", spread_average,
         {blocks_for((size_t)batch * pixels * channels), THREADS, 0}, batch, pixels, channels, dx,
         dy);
}

// -- Linear layer, plain: a thread an output -----------------------------------------------------
//
// x: [batch][channels], w: [10][channels], logits: [batch][10]

static __global__ void multiply_logit(int batch, int channels, float *logits, const bf16 *x,
                                      const bf16 *w, const float *bias) {
  const int i = (int)thread_number(), b = i / CLASSES, o = i % CLASSES;
  if (b >= batch) return;
  float sum = 0;
  for (int c = 0; c < channels; c++)
    sum += to_float(x[(size_t)b * channels + c]) * to_float(w[(size_t)o * channels + c]);
  logits[i] = sum + bias[o];
}

static void linear_forward_plain(int batch, int channels, real *logits, const void *x,
                                 const void *w, const real *bias) {
  launch("multiply_logit", multiply_logit, {blocks_for((size_t)batch * CLASSES), THREADS, 0}, batch,
         channels, logits, x, w, bias);
}

// dx[b][c]. The fast device's as well: ten loads a thread, all unbroken.
static __global__ void linear_input(int batch, int channels, bf16 *dx, const float *dlogits,
                                    const bf16 *w) {
  const int i = (int)thread_number(), b = i / channels, c = i % channels;
  if (b >= batch) return;
  float sum = 0;
  for (int o = 0; o < CLASSES; o++)
    sum += dlogits[b * CLASSES + o] * to_float(w[(size_t)o * channels + c]);
  dx[i] = to_bf16(sum);
}

// dw[o][c], and dbias[o] as the column of an input that is always 1: c = channels.
static __global__ void linear_weight(int batch, int channels, float *dw, float *dbias,
                                     const float *dlogits, const bf16 *x) {
  const int i = (int)thread_number(), o = i / (channels + 1), c = i % (channels + 1);
  if (o >= CLASSES) return;
  float sum = 0;
  for (int b = 0; b < batch; b++)
    sum += dlogits[b * CLASSES + o] * (c < channels ? to_float(x[(size_t)b * channels + c]) : 1);
  if (c < channels)
    dw[(size_t)o * channels + c] = sum;
  else
    dbias[o] = sum;
}

static void linear_backward_plain(int batch, int channels, void *dx, real *dw, real *dbias,
                                  const real *dlogits, const void *x, const void *w) {
  launch("linear_input", linear_input, {blocks_for((size_t)batch * channels), THREADS, 0}, batch,
         channels, dx, dlogits, w);
  launch("linear_weight", linear_weight, {blocks_for((size_t)CLASSES * (channels + 1)), THREADS, 0},
         batch, channels, dw, dbias, dlogits, x);
}

// -- Linear layer, fast --------------------------------------------------------------------------
//
// 1.3 million multiplications are little work, but in the plain kernels few threads do it, each in
// a long chain: 1,280 threads of 512 steps forward, whose neighbours moreover read different rows
// of w, and 5,130 of 128 steps for dw. Only many short chains keep a GPU busy.
//
//     forward     a warp a logit. Lanes take eights of x and w in turn, then add up by shuffles as
//                 in smoothing.cu.
//     dw, dbias   a block takes 32 channels. Its 16 rows of threads share the images, each thread
//                 holds all ten sums of a channel, so that x is read once; then the rows are added
//                 in order, through shared memory.

enum { LANES = 32, IMAGE_ROWS = 16 };

// Block: 32 lanes x 8 logits.
static __global__ void __launch_bounds__(THREADS)
    multiply_logit_warp(int batch, int channels, float *logits, const bf16 *x, const bf16 *w,
                        const float *bias) {
  const int i = blockIdx.x * blockDim.y + threadIdx.y, b = i / CLASSES, o = i % CLASSES;
  if (b >= batch) return; // a warp's lanes together
  float sum = 0;
  for (int c = EIGHT * threadIdx.x; c < channels; c += EIGHT * LANES) {
    const float8 value = load_bf16x8(x + (size_t)b * channels + c);
    const float8 weight = load_bf16x8(w + (size_t)o * channels + c);
    for (int j = 0; j < EIGHT; j++) sum += value.value[j] * weight.value[j];
  }
  for (int bits = LANES / 2; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffff, sum, bits);
  if (threadIdx.x == 0) logits[i] = sum + bias[o];
}

static void linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                           const real *bias) {
  const int warps = THREADS / LANES;
  if (channels % EIGHT)
    linear_forward_plain(batch, channels, logits, x, w, bias);
  else
    launch("multiply_logit_warp", multiply_logit_warp,
           {divide_up(batch * CLASSES, warps), dim3(LANES, warps), 0}, batch, channels, logits, x,
           w, bias);
}

// Block: 32 channels x 16 rows.
static __global__ void __launch_bounds__(LANES *IMAGE_ROWS)
    linear_weight_rows(int batch, int channels, float *dw, float *dbias, const float *dlogits,
                       const bf16 *x) {
  __shared__ float shared[CLASSES][IMAGE_ROWS][LANES];
  const int c = blockIdx.x * LANES + threadIdx.x;
  float sums[CLASSES] = {};
  for (int b = threadIdx.y; b < batch; b += IMAGE_ROWS) {
    const float value = c < channels ? to_float(x[(size_t)b * channels + c]) : 1;
    for (int o = 0; o < CLASSES; o++) sums[o] += dlogits[b * CLASSES + o] * value;
  }
  for (int o = 0; o < CLASSES; o++) shared[o][threadIdx.y][threadIdx.x] = sums[o];
  __syncthreads();
  const int o = threadIdx.y; // a row of threads for each output
  if (o >= CLASSES || c > channels) return;
  float sum = 0;
  for (int row = 0; row < IMAGE_ROWS; row++) sum += shared[o][row][threadIdx.x];
  if (c < channels)
    dw[(size_t)o * channels + c] = sum;
  else
    dbias[o] = sum;
}

static void linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                            const real *dlogits, const void *x, const void *w) {
  launch("linear_input", linear_input, {blocks_for((size_t)batch * channels), THREADS, 0}, batch,
         channels, dx, dlogits, w);
  launch("linear_weight_rows", linear_weight_rows,
         {divide_up(channels + 1, LANES), dim3(LANES, IMAGE_ROWS), 0}, batch, channels, dw, dbias,
         dlogits, x);
}

void fill_resnet18(device *d, bool plain) {
  d->norm_forward = plain ? norm_forward_plain : norm_forward;
  d->norm_inference = plain ? norm_inference_plain : norm_inference;
  d->norm_backward = plain ? norm_backward_plain : norm_backward;
  d->pool_forward = pool_forward;
  d->pool_backward = pool_backward;
  d->linear_forward = plain ? linear_forward_plain : linear_forward;
  d->linear_backward = plain ? linear_backward_plain : linear_backward;
}

} // namespace GPU
