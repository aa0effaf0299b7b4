// resnet18.cu - batch normalisation, with the residual sum and ReLU that follow it in a residual
// block. reference/resnet18.c derives the formulas; the rest of the network is in gpu/head.cu and
// conv.cu.
//
//     forward    y = act(gamma (z - mean) inverse_std + beta + residual)
//     backward   g = dy where y > 0 or NaN, else 0 (without ReLU: dy)       xhat = (z - mean) inverse_std
//                dbeta = sum g        dgamma = sum g xhat
//                dz = gamma inverse_std (g - dbeta / n - xhat dgamma / n)        dresidual = g
//
//     z, y, residual and their gradients   bf16 [pixels][channels], pixels = n = B H W
//     gamma, beta, mean, inverse_std ..    float [channels]
//
// The arithmetic is next to nothing; the memory is not. The largest activation, 128 x 32 x 32 x 64
// numbers of 2 bytes, is 16.8 MB. An H100 reads 3.35 TB a second, so one trip through it takes 5
// microseconds, in which the tensor cores could have used each number for hundreds of operations.
// By itself, batch normalisation makes seven (shortcuts), nine, or eleven (with a residual) such
// trips in a step, for each of the 20 units, whose arrays have that size, or a half, a quarter or an
// eighth of it. So two questions decide: how often does an operation walk through all of memory
// (its *passes*), and is memory busy while it does?
//
//     forward      sums of z and z z        none: the convolution before adds them up as it goes
//                  mean, inverse_std        a thread for each channel, no walk at all
//                  the rest                 1 pass: z (and residual) in, y out
//     backward     dbeta, dgamma            1 pass: dy, y, z in
//                  dz, dresidual            1 pass: dy, y, z in, dz (and dresidual) out
//
// Backward takes two passes and cannot do with one: every dz needs the sums over all pixels. But the
// first of them can be shared. Whoever computes dy, the input gradient of the convolution above, has
// each of its tiles at hand: there the mask and the sums cost only the trip of z and, with a
// residual, of y (the `fusions` of device.h; gpu/epilogue.h). What is stored then is g, so that the
// last pass needs no y and the residual's gradient is there already. Of nine trips six are left, of
// eleven eight. `make cost` counted it, for a step at width 64 and batch 128: 3,420 MB in 207 launches
// with a kernel for each operation, 445 MB and 36 launches less with these fusions; in a batch of testing
// 558 MB in 45 and 314 MB in 25, where the convolution normalises what it stores. (Another 40 launches went
// when the last block of a launch came to add up the partial sums: gpu/sums.h.)
//
// A y without a residual is a multiply-add away from z. So whoever reads such a y can read z instead, and
// make y of it on the way (gpu/norm.h, normalise_eight). There are three kinds. That of a block's first
// convolution is read by the second one and by its weight gradient. That of a shortcut is read by the kernel
// below that adds it. That of the stem is read by all three. Then z is not read to be normalised
// and y is not written: of six trips four are left, and 189 MB and 12 launches less in a step. Of the y,
// training still stores those of the blocks' outputs; of the z, all.
//
// Of those, the mask wants one bit each, not the 16 of y. So the kernel that stores y stores its bits beside
// it, and the trip of y on the way back is a trip of a sixteenth of it: 53 MB less. And a shortcut's norm has
// the same g as the norm that it is added to: one walk finds the sums for both, and one their two dz.
// That saves 32 MB and 6 launches.
//
// Checked by `make check`: all kernels against reference/resnet18.c, which defines the operations.
#include "gpu/norm.h"
#include "gpu/walk.h"

namespace GPU {

// -- Batch normalisation, forward, plain: a thread a value ---------------------------------------

// Mean and variance of a channel, from the sums of z and z z that the convolution added up: a thread
// for each channel.
static __global__ void finish_statistics(norm_shape shape, const double *sums, norm_arrays of) {
  const int c = (int)thread_number();
  if (c < shape.channels) find_statistics(of, c, shape.pixels, sums[c], sums[shape.channels + c]);
}

// What is added before ReLU: `addend` of device.h, for a kernel.
typedef struct {
  const bf16 *values; // NULL: nothing is
  normal norm;        // of the values; no gamma: they are added as they are
  bool relu;          // behind that norm
} summand;

// What norm_apply would have stored.
static __device__ float output_of(const channel_normal &n, float z, bool relu) {
  const float y = normalised(n, z);
  return first_of(to_pair(relu ? relu_of(y) : y, 0)); // rounded, in one instruction
}

static __global__ void normalise_value(norm_shape shape, bf16 *y, const bf16 *z, summand add,
                                       normal of, bool relu) {
  const size_t i = thread_number();
  if (i >= (size_t)shape.pixels * shape.channels) return;
  const int c = (int)(i % shape.channels);
  float value = normalised(normal_of(of, c), to_float(z[i]));
  if (add.values) {
    const float added = to_float(add.values[i]);
    value += add.norm.gamma ? output_of(normal_of(add.norm, c), added, add.relu) : added;
  }
  y[i] = to_bf16(relu ? relu_of(value) : value);
}

// A thread a byte.
static __global__ void find_mask(size_t count, uint8_t *mask, const bf16 *y) {
  const size_t byte = thread_number();
  if (byte >= (count + 7) / 8) return;
  unsigned bits = 0;
  for (size_t i = 8 * byte; i < count && i < 8 * byte + 8; i++)
    bits |= (to_float(y[i]) <= 0 ? 0 : 1u) << i % 8;
  mask[byte] = bits;
}

static void normalise_values(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                             const summand &add, const normal &of, bool relu) {
  const size_t count = (size_t)shape->pixels * shape->channels;
  launch("normalise_value", normalise_value, {blocks_for(count), THREADS, 0}, *shape, y, z, add, of,
         relu);
  if (mask)
    launch("find_mask", find_mask, {blocks_for((count + 7) / 8), THREADS, 0}, count, mask, y);
}

// -- Batch normalisation, forward, fast ----------------------------------------------------------
//
// What the plain kernel wastes: a thread moves 2 bytes at a time where it could move 16, and for
// each value it divides to find its channel and loads four constants, 16 bytes, four times what z
// and y take.
//
// Below, a thread has eight channels and several pixels, as gpu/walk.h lays them out.

// The constants of eight channels, from c on.
static __device__ void load_normals(channel_normal *normals, const normal &of, int c) {
  const float8 mean = load_floats(of.mean + c), beta = load_floats(of.beta + c);
  const float8 gamma = load_floats(of.gamma + c);
  const float8 spread = load_floats((of.inverse_std ? of.inverse_std : of.variance) + c);
  for (int j = 0; j < EIGHT; j++)
    normals[j] = normal_from(gamma.value[j], beta.value[j], mean.value[j],
                             of.inverse_std ? spread.value[j] : inverse_std_from(spread.value[j]));
}

static __global__ void __launch_bounds__(THREADS)
    normalise_eights(norm_shape shape, bf16 *__restrict__ y, uint8_t *mask,
                     const bf16 *__restrict__ z, summand add, normal of, bool relu) {
  const int c = first_channel();
  if (c >= shape.channels) return;
  channel_normal normals[EIGHT], of_added[EIGHT] = {};
  load_normals(normals, of, c);
  if (add.norm.gamma) load_normals(of_added, add.norm, c);
  for (int i = 0; i < RUN; i++) {
    const int pixel = first_pixel(RUN) + i * blockDim.y;
    if (pixel >= shape.pixels) return;
    const size_t at = (size_t)pixel * shape.channels + c;
    float8 value = load_bf16x8(z + at), added = {};
    if (add.values) added = load_bf16x8(add.values + at);
    for (int j = 0; add.norm.gamma && j < EIGHT; j++)
      added.value[j] = output_of(of_added[j], added.value[j], add.relu);
    unsigned bits = 0;
    for (int j = 0; j < EIGHT; j++) {
      const float sum = normalised(normals[j], value.value[j]) + added.value[j];
      value.value[j] = relu ? relu_of(sum) : sum;
      bits |= (sum <= 0 ? 0 : 1u) << j;
    }
    store_bf16x8(y + at, value);
    if (mask) mask[at / 8] = bits;
  }
}

static summand stored_summand(const void *residual) {
  summand add = {};
  add.values = (const bf16 *)residual;
  return add;
}

// PLAIN: the plain kernel for every shape.
template <bool PLAIN>
static void normalise(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                      const summand &add, const normal &of, bool relu) {
  if (PLAIN || shape->channels % EIGHT) {
    normalise_values(shape, y, mask, z, add, of, relu);
    return;
  }
  const tiling t = tiling_of(shape, RUN, 0);
  launch("normalise_eights", normalise_eights, {t.grid, t.block, 0}, *shape, y, mask, z, add, of,
         relu);
}

template <bool PLAIN>
static void norm_forward(const norm_shape *shape, void *y, const void *z, const double *sums,
                         const real *gamma, const real *beta, const void *residual, bool relu,
                         real *running_mean, real *running_var, real *saved_mean,
                         real *saved_inverse_std) {
  const norm_arrays n = {gamma, beta, running_mean, running_var, saved_mean, saved_inverse_std};
  launch("finish_statistics", finish_statistics, {blocks_for(shape->channels), THREADS, 0}, *shape,
         sums, n);
  normalise<PLAIN>(shape, y, NULL, z, stored_summand(residual), training_normal(&n), relu);
}

// The same, where the convolution has found the statistics as well.
static void norm_apply(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                       const norm_arrays *n, const addend *residual, bool relu) {
  summand add = stored_summand(residual ? residual->values : NULL);
  if (residual && residual->norm) {
    add.norm = training_normal(residual->norm);
    add.relu = residual->relu;
  }
  normalise<false>(shape, y, mask, z, add, training_normal(n), relu);
}

template <bool PLAIN>
static void norm_inference(const norm_shape *shape, void *y, const void *z, const real *gamma,
                           const real *beta, const void *residual, bool relu,
                           const real *running_mean, const real *running_var) {
  normalise<PLAIN>(shape, y, NULL, z, stored_summand(residual),
                   {gamma, beta, running_mean, NULL, running_var}, relu);
}

// -- Batch normalisation, backward, plain --------------------------------------------------------

// What g is made of; passed to the kernels by value.
typedef struct {
  const bf16 *dy, *y; // y is read only where relu is set
  bool relu;
} upstream;

// And a norm that it goes back through, to its dz.
typedef struct {
  bf16 *dz;
  const bf16 *z;
  const float *gamma, *mean, *inverse_std, *dgamma, *dbeta; // [channels]
} way_back;

static way_back way_through(void *dz, const norm_below *of) {
  return {(bf16 *)dz,           (const bf16 *)of->z, of->norm.gamma, of->norm.mean,
          of->norm.inverse_std, of->dgamma,          of->dbeta};
}

// Value i of g.
static __device__ float gradient_at(const upstream &u, size_t i) {
  return u.relu && to_float(u.y[i]) <= 0 ? 0 : to_float(u.dy[i]);
}

// Thread c adds up channel c.
static __global__ void sum_channel(norm_shape shape, upstream u, way_back w, float *dgamma,
                                   float *dbeta) {
  const int c = (int)thread_number();
  if (c >= shape.channels) return;
  double sum_g = 0, sum_g_xhat = 0;
  for (int pixel = 0; pixel < shape.pixels; pixel++) {
    const size_t i = (size_t)pixel * shape.channels + c;
    const float g = gradient_at(u, i);
    sum_g += g;
    sum_g_xhat += g * ((to_float(w.z[i]) - w.mean[c]) * w.inverse_std[c]);
  }
  dbeta[c] = (float)sum_g;
  dgamma[c] = (float)sum_g_xhat;
}

// A thread reads value i of dy before it writes value i, and no other: dz or dresidual may be dy.
static __global__ void spread_value(norm_shape shape, upstream u, way_back w, bf16 *dresidual) {
  const size_t i = thread_number();
  if (i >= (size_t)shape.pixels * shape.channels) return;
  const int c = (int)(i % shape.channels);
  const float g = gradient_at(u, i), one_nth = 1.0f / shape.pixels;
  const float xhat = (to_float(w.z[i]) - w.mean[c]) * w.inverse_std[c];
  if (dresidual) dresidual[i] = to_bf16(g);
  w.dz[i] =
      to_bf16(w.gamma[c] * w.inverse_std[c] * (g - one_nth * (w.dbeta[c] + xhat * w.dgamma[c])));
}

static void spread_values(const norm_shape *shape, const upstream &u, const way_back &w,
                          void *dresidual) {
  launch("spread_value", spread_value,
         {blocks_for((size_t)shape->pixels * shape->channels), THREADS, 0}, *shape, u, w,
         dresidual);
}

// -- Batch normalisation, backward, fast ---------------------------------------------------------
//
// What the plain sums waste is nearly the whole GPU: 64 channels are 64 threads, two warps on one
// of 132 processors, each with a chain of 131,072 additions. Sums over pixels have to be cut into
// many partial ones, and the partial ones added, in an order that does not depend on who is first:
//
//     a thread    eight channels, at most 64 pixels            in registers, float
//     a block     its `down` threads of the same channels      in shared memory, in order, double
//     the strips  partial[strip][2][channels] in workspace     by the last block, in order, double
//
// Only the first 64 additions are in float: an error of at most 64 x 2^-24 = 4e-6 of the sum of the
// terms' sizes, usually ten times less, and less than the up to 2^-8 that rounding each dy to bf16
// has cost before. How pixels are cut depends on the shape alone, not on the GPU: every GPU gets the
// same bits.

enum {
  // Strips for the sums: about four blocks for each processor of an H100. More would take no less
  // time and leave more partial sums to be added.
  SUM_BLOCKS = 512,
};

static __device__ float8 load_gradient(const upstream &u, size_t at) {
  float8 g = load_bf16x8(u.dy + at);
  if (!u.relu) return g;
  const float8 y = load_bf16x8(u.y + at);
  for (int j = 0; j < EIGHT; j++) g.value[j] = y.value[j] <= 0 ? 0 : g.value[j];
  return g;
}

// Sums of a block's threads, in shared memory: shared[which * 8 + j][thread], which = 0 for g and 1
// for g (z - mean), j one of the thread's 8 channels. Shared memory has 32 *banks*: float i lies in
// bank i % 32, and a bank serves one address at a time. In sum_strip, a warp stores to 32
// neighbouring floats: 32 banks. In store_strip, its lanes read 8 rows j of 4 neighbouring threads.
// With rows of 256 floats, all 8 rows would begin in one bank. With 260, row j begins in bank 4 j,
// and 8 rows of 4 threads fill all 32 banks.
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

// partial[strip][0][c] = sum of g, partial[strip][1][c] = sum of g (z - mean), over a strip.
static __global__ void __launch_bounds__(THREADS)
    sum_strip(norm_shape shape, upstream u, way_back w, int run, double *partial,
              parts_of_sums parts, use_of_sums use) {
  __shared__ float shared[SUMS][PITCH];
  const int c = first_channel(), thread = threadIdx.y * blockDim.x + threadIdx.x;
  float8 sum_g = {}, sum_g_z = {};
  if (c < shape.channels) {
    const float8 mean = load_floats(w.mean + c);
    const int first = first_pixel(run), end = min_of(shape.pixels, first + run * blockDim.y);
    for (int pixel = first; pixel < end; pixel += blockDim.y) {
      const size_t at = (size_t)pixel * shape.channels + c;
      const float8 g = load_gradient(u, at), z = load_bf16x8(w.z + at);
      for (int j = 0; j < EIGHT; j++) {
        sum_g.value[j] += g.value[j];
        sum_g_z.value[j] = fmaf(g.value[j], z.value[j] - mean.value[j], sum_g_z.value[j]);
      }
    }
  }
  for (int j = 0; j < EIGHT; j++) {
    shared[j][thread] = sum_g.value[j];
    shared[EIGHT + j][thread] = sum_g_z.value[j];
  }
  __syncthreads();
  store_strip(shape, shared, partial);
  const int channels = EIGHT * blockDim.x; // of the block
  add_partials(
      partial, parts, blockIdx.x, blockIdx.y, blockIdx.y * channels, channels,
      [&](int c, double sum, double second) { finish_sums(use, shape.channels, c, sum, second); });
}

// Of eight channels: dz = scale (g - offset - (z - mean) slope), as spread_value has it.
typedef struct {
  float8 scale, offset, mean, slope;
} spread_constants;

static __device__ spread_constants load_constants(const way_back &of, int c, int pixels) {
  const float one_nth = 1.0f / pixels;
  const float8 inverse_std = load_floats(of.inverse_std + c);
  spread_constants k = {load_floats(of.gamma + c), load_floats(of.dbeta + c),
                        load_floats(of.mean + c), load_floats(of.dgamma + c)};
  for (int j = 0; j < EIGHT; j++) {
    k.scale.value[j] *= inverse_std.value[j];
    k.offset.value[j] *= one_nth;
    k.slope.value[j] *= one_nth * inverse_std.value[j];
  }
  return k;
}

static __device__ void spread_eight(const way_back &of, const spread_constants &k, size_t at,
                                    const float8 &g, float8 z) {
  for (int j = 0; j < EIGHT; j++)
    z.value[j] = k.scale.value[j] * fmaf(k.mean.value[j] - z.value[j], k.slope.value[j],
                                         g.value[j] - k.offset.value[j]);
  store_bf16x8(of.dz + at, z);
}

// TWO: a shortcut's norm as well, from the same g. What is stored may replace g: a thread has read it.
template <bool TWO>
static __global__ void __launch_bounds__(THREADS)
    spread_eights(norm_shape shape, upstream u, way_back of, way_back shortcut, bf16 *dresidual) {
  const int c = first_channel();
  if (c >= shape.channels) return;
  const spread_constants k = load_constants(of, c, shape.pixels);
  const spread_constants l = TWO ? load_constants(shortcut, c, shape.pixels) : k;
  for (int i = 0; i < RUN; i++) {
    const int pixel = first_pixel(RUN) + i * blockDim.y;
    if (pixel >= shape.pixels) return;
    const size_t at = (size_t)pixel * shape.channels + c;
    // First all that is loaded, and g last, which has a condition: so all is under way at once.
    const float8 z = load_bf16x8(of.z + at);
    const float8 shortcut_z = TWO ? load_bf16x8(shortcut.z + at) : z;
    const float8 g = load_gradient(u, at);
    if (dresidual) store_bf16x8(dresidual + at, g);
    spread_eight(of, k, at, g, z);
    if (TWO) spread_eight(shortcut, l, at, g, shortcut_z);
  }
}

// shortcut: NULL where there is none.
static void spread(const norm_shape *shape, const upstream &u, const way_back &of,
                   const way_back *shortcut, void *dresidual) {
  const tiling t = tiling_of(shape, RUN, 0);
  if (shortcut)
    launch("spread_eights", spread_eights<true>, {t.grid, t.block, 0}, *shape, u, of, *shortcut,
           dresidual);
  else
    launch("spread_eights", spread_eights<false>, {t.grid, t.block, 0}, *shape, u, of, of,
           dresidual);
}

// The sums of g and g xhat, and with them dz.
static void backward_eights(const norm_shape *shape, const upstream &u, const way_back &of,
                            void *dresidual, float *dgamma, float *dbeta) {
  const tiling t = tiling_of(shape, 0, SUM_BLOCKS);
  const int strips = (int)t.grid.x;
  use_of_sums use = {};
  parts_of_sums parts;
  use.dgamma = dgamma, use.dbeta = dbeta;
  use.inverse_std = of.inverse_std;
  double *partial = place_partials<double>(&parts, strips, shape->channels, (int)t.grid.y);
  launch("sum_strip", sum_strip, {t.grid, t.block, 0}, *shape, u, of, t.run, partial, parts, use);
  spread(shape, u, of, NULL, dresidual);
}

template <bool PLAIN>
static void norm_backward(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                          real *dbeta, const void *dy, const void *y, const void *z,
                          const real *gamma, const real *saved_mean, const real *saved_inverse_std,
                          bool relu) {
  const upstream u = {(const bf16 *)dy, (const bf16 *)y, relu};
  const way_back w = {(bf16 *)dz,        (const bf16 *)z, gamma, saved_mean,
                      saved_inverse_std, dgamma,          dbeta};
  if (!PLAIN && shape->channels % EIGHT == 0) {
    backward_eights(shape, u, w, dresidual, dgamma, dbeta);
    return;
  }
  launch("sum_channel", sum_channel, {blocks_for(shape->channels), THREADS, 0}, *shape, u, w,
         dgamma, dbeta);
  spread_values(shape, u, w, dresidual);
}

// What is left where the convolution has masked the gradient and added it up.
static void norm_spread(const norm_shape *shape, void *dz, void *shortcut_dz, const void *g,
                        const norm_below *of) {
  const upstream u = {(const bf16 *)g, NULL, false};
  const way_back w = way_through(dz, of);
  way_back of_shortcut = {};
  if (of->shortcut) of_shortcut = way_through(shortcut_dz, of->shortcut);
  if (shape->channels % EIGHT == 0) {
    spread(shape, u, w, of->shortcut ? &of_shortcut : NULL, NULL);
    return;
  }
  spread_values(shape, u, w, NULL);
  if (of->shortcut) spread_values(shape, u, of_shortcut, NULL); // last: it may replace g
}

void fill_resnet18(device *d, fusions *fused, bool plain) {
  d->norm_forward = plain ? norm_forward<true> : norm_forward<false>;
  d->norm_inference = plain ? norm_inference<true> : norm_inference<false>;
  d->norm_backward = plain ? norm_backward<true> : norm_backward<false>;
  fused->norm_apply = norm_apply;
  fused->keeps_masks = true;
  fused->norm_spread = norm_spread;
}

} // namespace GPU
