// gpu/norm.h - batch normalisation's arithmetic for one channel, which resnet18.cu applies to what
// lies in memory and a convolution to what it holds in registers or has just loaded; and the end of
// every sum that batch normalisation needs.
//
//     y = act(z scale + shift + residual)         scale = gamma inverse_std, shift = beta - mean scale
//
// One multiply-add a number, and two constants a channel in registers. The sum cancels where the mean is
// large beside the deviation, and carries over what shift was rounded by, 2^-24 |mean scale|. But z itself
// was rounded by up to 2^-8 |z|, and |z| is about |mean| there: up to 2^16 times as much.
//
// fmaf(a, b, c) is a b + c, rounded once. A compiler may turn a product and a sum into that one
// operation, in one place and not in another; fmaf leaves it no choice. So the output and, later, ReLU's
// mask agree on what is above zero. And from equal statistics, the simulator and a GPU round alike.
//
// scale and shift stay floats. Rounded to bf16, an error of up to 2^-8 in them would be the same for all
// pixels of a channel, and would not average out as the errors of single activations do. All kernels
// compute them in this one way.
#ifndef GPU_NORM_H
#define GPU_NORM_H

#include "gpu/gpu.h"
#include "gpu/sums.h"

#include <math.h>

namespace GPU {

// What channels are normalised with; passed to the kernels by value. Each array: [channels]
typedef struct {
  const float *gamma, *beta, *mean;
  const float *inverse_std; // training; NULL: computed from variance
  const float *variance;    // evaluation; else NULL
} normal;

static inline normal training_normal(const norm_arrays *n) {
  return {n->gamma, n->beta, n->mean, n->inverse_std, NULL};
}

static inline __device__ float inverse_std_from(float variance) {
  return 1 / sqrtf(variance + (float)NORM_EPSILON);
}

// Written this way round, a NaN stays a NaN and is noticed: no comparison with one is true.
static inline __device__ float relu_of(float value) {
  return value < 0 ? 0 : value;
}

// to_pair(relu_of(first), relu_of(second)), in one instruction.
static inline __device__ uint32_t to_pair_of_relu(float first, float second) {
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return to_pair(relu_of(first), relu_of(second));
#endif
}

typedef struct {
  float scale, shift;
} channel_normal;

static inline __device__ channel_normal normal_from(float gamma, float beta, float mean,
                                                    float inverse_std) {
  const float scale = gamma * inverse_std;
  return {scale, fmaf(-mean, scale, beta)};
}

static inline __device__ channel_normal normal_of(const normal &of, int c) {
  return normal_from(of.gamma[c], of.beta[c], of.mean[c],
                     of.inverse_std ? of.inverse_std[c] : inverse_std_from(of.variance[c]));
}

static inline __device__ float normalised(const channel_normal &n, float z) {
  return fmaf(z, n.scale, n.shift);
}

// -- On the way: z is normalised where it has been loaded to, in shared memory --------------------

// table: [2][size], scale and shift of the channels from `first` on. All threads of a block fill it;
// beyond the last channel it stays as it is.
static inline __device__ void fill_table(float *table, int size, const normal &of, int first,
                                         int channels) {
#pragma unroll 1
  for (int i = threadIdx.x; i < min_of(size, channels - first); i += THREADS) {
    const int c = first + i;
    const channel_normal n = normal_from(of.gamma[c], of.beta[c], of.mean[c], of.inverse_std[c]);
    table[i] = n.scale;
    table[size + i] = n.shift;
  }
}

// Eight numbers z become ReLU of the norm, with the table's entries from `channel` on.
static inline __device__ void normalise_eight(bf16 *at, const float *table, int size, int channel) {
  uint32_t pair[EIGHT / 2];
  uint4 raw = *(const uint4 *)at;
  pair[0] = raw.x, pair[1] = raw.y, pair[2] = raw.z, pair[3] = raw.w;
#pragma unroll
  for (int i = 0; i < EIGHT / 2; i += 2) {
    const float4 scale = *(const float4 *)(table + channel + 2 * i);
    const float4 shift = *(const float4 *)(table + size + channel + 2 * i);
    pair[i] = to_pair_of_relu(normalised({scale.x, shift.x}, first_of(pair[i])),
                              normalised({scale.y, shift.y}, second_of(pair[i])));
    pair[i + 1] = to_pair_of_relu(normalised({scale.z, shift.z}, first_of(pair[i + 1])),
                                  normalised({scale.w, shift.w}, second_of(pair[i + 1])));
  }
  raw.x = pair[0], raw.y = pair[1], raw.z = pair[2], raw.w = pair[3];
  *(uint4 *)at = raw;
}

// -- The ends of sums -----------------------------------------------------------------------------

// A channel's mean, inverse_std and running statistics, from its sums of z and z z.
//
// The finished sums are doubles, because variance = sum of squares / n - mean^2 subtracts two
// numbers that may be nearly equal. Where the mean is 100 times the standard deviation, both are
// 10^4 times their difference. Each is off by its rounding, 2^-24 = 6e-8 of itself in float, so the
// difference would be off by 6e-4 of itself, more with each rounding in a sum of 131,072 numbers.
// In double, a rounding is 2^-53 = 1e-16, and as many digits may cancel without harm. (Within a
// tile the fast convolution adds in float; gpu/epilogue.h says why that is safe.)
static inline __device__ void find_statistics(const norm_arrays &of, int c, int pixels, double sum,
                                              double sum_of_squares) {
  const double n = pixels, mean = sum / n;
  const double difference = sum_of_squares / n - mean * mean;
  const double variance = difference < 0 ? 0 : difference; // by rounding; fmax would lose a NaN
  of.mean[c] = (float)mean;
  of.inverse_std[c] = (float)(1 / sqrt(variance + NORM_EPSILON));
  of.running_mean[c] = (float)((1 - NEW_BATCH_SHARE) * of.running_mean[c] + NEW_BATCH_SHARE * mean);
  of.running_var[c] =
      (float)((1 - NEW_BATCH_SHARE) * of.running_var[c] + NEW_BATCH_SHARE * variance * n / (n - 1));
}

// What becomes of two sums for each channel, the first of three that is given.
typedef struct {
  double *sums;          // [2][channels]: they are stored
  float *dgamma, *dbeta; // the first is dbeta; the second, times inverse_std, is dgamma
  const float *inverse_std;
  norm_arrays norm; // of `pixels` pixels: sums of z and z z become its statistics
  int pixels;
} use_of_sums;

static __device__ void finish_sums(const use_of_sums &use, int channels, int c, double first,
                                   double second) {
  if (use.sums) {
    use.sums[c] = first;
    use.sums[channels + c] = second;
  } else if (use.dgamma) {
    use.dbeta[c] = (float)first;
    use.dgamma[c] = (float)(second * use.inverse_std[c]);
  } else {
    find_statistics(use.norm, c, use.pixels, first, second);
  }
}

} // namespace GPU

#endif
