// smoothing.cu - cross-entropy of a mixed batch against smoothed labels: loss, gradient, accuracy.
//
// The target of an image is a distribution over the classes (why: reference/smoothing.c):
//
//     q_l[j] = 1 - s for j = l, s / 9 for each other class        t = lambda q_a + (1 - lambda) q_b
//
//     p = softmax(logits)       loss = - sum_j t[j] log p[j]      dlogits = (p - t) / batch
//
//     logits, dlogits   float [batch][10]        results[slot]   double: sums over the batch
//
// A batch is small: 128 images of 10 logits are 5 KB, and the time goes into starting the kernel
// and into waiting for its first loads. So one thread takes a whole image, and all is about adding
// up what the threads found: the first *reduction* of the course. Its order is fixed, because
// floating point addition is not associative: the same batch must give the same bits whatever runs
// first.
//
// An image's numbers are floats: each operation is off by 2^-24 of its result, expf and logf by up
// to 2^-22, which makes p exact to 2^-19 of itself and an image's loss to 2^-20 (3 + spread), where
// spread is the largest logit minus the smallest. Doubles, as in the reference, would cost nothing
// on an H100, but many GPUs compute them 32 or 64 times slower. Sums over images are doubles: a
// handful.
//
// Checked by `make check`, against reference/smoothing.c.
#include "gpu/gpu.h"

#include <math.h>

namespace GPU {

// -- One image, in one thread --------------------------------------------------------------------

// What the loss needs besides the logits; passed to the kernels by value.
typedef struct {
  int batch;
  float smoothing;
  float *dlogits; // NULL: not wanted
  step_result *results;
  const float *logits;
  const uint8_t *labels;
  const sample *samples;
  const step_values *step;
} loss_arguments;

static __device__ float smoothed(float smoothing, int label, int j) {
  return j == label ? 1 - smoothing : smoothing / (CLASSES - 1);
}

// Loss and accuracy of image b; stores its gradient. The largest logit is taken out before expf can
// overflow. A NaN among the logits makes the sum NaN, and with it the loss.
static __device__ step_result one_image(const loss_arguments &a, int b) {
  const float lambda = a.step->lambda;
  const int own = a.labels[a.samples[b].image];
  const int other = a.labels[a.samples[a.samples[b].partner].image];
  float logit[CLASSES], power[CLASSES], largest = a.logits[b * CLASSES], sum = 0, loss = 0;
  int guess = 0;
  for (int j = 0; j < CLASSES; j++) {
    logit[j] = a.logits[b * CLASSES + j];
    if (logit[j] > largest) {
      largest = logit[j];
      guess = j;
    }
  }
  for (int j = 0; j < CLASSES; j++) sum += power[j] = expf(logit[j] - largest);
  const float log_sum = logf(sum);
  for (int j = 0; j < CLASSES; j++) {
    const float target =
        lambda * smoothed(a.smoothing, own, j) + (1 - lambda) * smoothed(a.smoothing, other, j);
    loss -= target * (logit[j] - largest - log_sum);
    if (a.dlogits) a.dlogits[b * CLASSES + j] = (power[j] / sum - target) / a.batch;
  }
  const step_result result = {loss, lambda * (guess == own) + (1.0 - lambda) * (guess == other)};
  return result;
}

// -- Plain: a thread an image, then one thread that adds up --------------------------------------

static __global__ void each_image(loss_arguments a, step_result *each) {
  const int b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b < a.batch) each[b] = one_image(a, b);
}

// Runs in a single thread. each: [batch]
static __global__ void add_images(loss_arguments a, const step_result *each) {
  step_result total = {0, 0};
  for (int b = 0; b < a.batch; b++) {
    total.loss += each[b].loss;
    total.correct += each[b].correct;
  }
  a.results[a.step->slot] = total;
}

// A kernel sees all that the launches before it stored: the boundary between the two is what makes
// the second wait for every thread of the first.
static void cross_entropy_plain(int batch, float smoothing, real *dlogits, step_result *results,
                                const real *logits, const uint8_t *labels, const sample *samples,
                                const step_values *step) {
  enum { THREADS = 64 };
  const loss_arguments a = {batch, smoothing, dlogits, results, logits, labels, samples, step};
  step_result *each = (step_result *)workspace(batch * sizeof *each);
  launch("each_image", each_image, {divide_up(batch, THREADS), THREADS, 0}, a, each);
  launch("add_images", add_images, {1, 1, 0}, a, each);
}

// -- Fast: one launch ----------------------------------------------------------------------------
//
// What the plain version wastes: a second launch, some microseconds, most of them spent by a single
// thread that fetches number after number from memory while the rest of the GPU stands by.
//
// The threads of one block can do better, because they can talk to each other in two ways:
//
//     within a warp    __shfl_xor_sync(mask, value, bits): take the value of the lane (thread of
//                      the warp) whose number differs in `bits`. Five rounds, 16, 8, 4, 2, 1, and
//                      each of the 32 lanes holds the sum of all, registers only.
//     within a block   __shared__ memory: small, as fast as a cache, seen by the block's threads.
//                      __syncthreads() waits until all of them have come there, with their stores.
//
//     image        0  1  2 ...  31 | 32 33  ...  63 | 64  ...     thread t: images t, t + threads..
//     warp              0          |       1        |  ...
//     shuffles       \  |  /            \  |  /                      a sum a warp
//     shared          [ 0 ]              [ 1 ]        ...            thread 0 adds them in order
//
// One block means one processor of the GPU; up to 1024 images, that is one image a thread, and more
// processors would only wait for the same loads. Beyond, threads take several. Threads whose rows
// lie 40 bytes apart make ragged requests, 7 times as many pieces as the bytes need; of 5 KB, let
// them.

enum { LANES = 32, MOST_THREADS = 1024 };

// The sum of all lanes' values, in every lane. Each round adds the same two numbers on both sides
// of an exchange, so all lanes hold the same bits.
static __device__ double sum_over_warp(double value) {
  for (int bits = LANES / 2; bits; bits /= 2) value += __shfl_xor_sync(0xffffffff, value, bits);
  return value;
}

static __global__ void __launch_bounds__(MOST_THREADS) all_images(loss_arguments a) {
  __shared__ step_result of_warp[MOST_THREADS / LANES];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  step_result sum = {0, 0};
  for (int b = threadIdx.x; b < a.batch; b += blockDim.x) {
    const step_result one = one_image(a, b);
    sum.loss += one.loss;
    sum.correct += one.correct;
  }
  sum.loss = sum_over_warp(sum.loss);
  sum.correct = sum_over_warp(sum.correct);
  if (lane == 0) of_warp[warp] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < (int)blockDim.x / LANES; i++) {
    sum.loss += of_warp[i].loss;
    sum.correct += of_warp[i].correct;
  }
  a.results[a.step->slot] = sum;
}

static void cross_entropy(int batch, float smoothing, real *dlogits, step_result *results,
                          const real *logits, const uint8_t *labels, const sample *samples,
                          const step_values *step) {
  const loss_arguments a = {batch, smoothing, dlogits, results, logits, labels, samples, step};
  const int threads = min_of(MOST_THREADS, divide_up(batch, LANES) * LANES); // whole warps
  launch("all_images", all_images, {1, threads, 0}, a);
}

void fill_smoothing(device *d, bool plain) {
  d->cross_entropy = plain ? cross_entropy_plain : cross_entropy;
}

} // namespace GPU
