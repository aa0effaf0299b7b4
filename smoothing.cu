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
// and into waiting for its first loads. So one thread takes a whole image, and the rest is adding
// up what the threads found: the first *reduction* of the course. gpu/sums.h says how threads add
// up, and why always in the same order; read it before the fast version below.
//
// How exact are floats here? Let u = 2^-24, half a float's spacing: an operation is off by u of its
// result at most. expf and logf are off by 4 u at most (CUDA C++ Programming Guide, "Mathematical
// Functions": 2 units in the last place). Let d[j] = logit[j] - largest, and spread the largest
// -d[j].
//
//     d[j]          one subtraction: off by u spread
//     expf(d[j])    4 u of itself, and u |d[j]| of itself, since d[j] is off by that
//     their sum     9 u for 9 additions that round, 4 u and, since the sum of p[j] |d[j]| over ten
//                   classes is below 1.2 however the logits lie, 1.2 u: below 15 u of itself
//     logf of it    at most log 10 = 2.3: 15 u, and 4 u of 2.3: below 25 u
//     log p[j]      d[j] - log sum: u spread, 25 u, and u (spread + 2.3) for the subtraction
//     t[j]          4 roundings at most: 4 u of itself
//     loss          sum of t[j] |log p[j]|, where t[j] add up to 1: what log p[j] is off by, and
//                   (4 + 10) u (spread + 2.3) for t[j] and for 10 additions that round (the compiler
//                   makes product and sum one operation with one rounding)
//
// Together 16 u spread + 61 u: an image's loss is off by less than 2^-20 (4 + spread), and p[j],
// which is expf(d[j]) / sum, by (20 + spread) u of itself. Doubles, as in the reference, would cost
// nothing on an H100, but many GPUs compute them 32 or 64 times slower. Sums over images are
// doubles: a handful.
//
// Checked by `make check`, against reference/smoothing.c.
#include "gpu/gpu.h"
#include "gpu/sums.h"

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

enum { PLAIN_THREADS = 64 }; // of a block: a batch is too small for THREADS

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
  const loss_arguments a = {batch, smoothing, dlogits, results, logits, labels, samples, step};
  step_result *each = (step_result *)workspace(batch * sizeof *each);
  launch("each_image", each_image, {divide_up(batch, PLAIN_THREADS), PLAIN_THREADS, 0}, a, each);
  launch("add_images", add_images, {1, 1, 0}, a, each);
}

// -- Fast: one launch ----------------------------------------------------------------------------
//
// What the plain version wastes: a second launch, some microseconds, most of them spent by a single
// thread that fetches number after number from memory while the rest of the GPU stands by.
//
// The threads of one block can do better. First each warp adds up its lanes' sums by shuffles, then
// one thread adds up the warps' sums, which lie in shared memory. A barrier, __syncthreads(),
// stands between the two: behind it, each thread sees what all threads of the block stored before
// it.
//
//     image        0  1  2 ...  31 | 32 33  ...  63 | 64  ...     thread t: images t, t + threads..
//     warp              0          |       1        |  ...
//     shuffles       \  |  /            \  |  /                      a sum for each warp
//     shared          [ 0 ]              [ 1 ]        ...            thread 0 adds them in order
//
// One block means one processor of the GPU. Up to 1024 images, that is one image for each thread,
// and more processors would only wait for the same loads. Beyond that, threads take several images
// each. The logits of neighbouring images lie 40 bytes apart, so a request of a warp touches 32
// sectors where 4 would hold as many bytes. That does not matter here: the ten requests of a warp
// touch the same 40 sectors, which are in the processor's cache after the first.

enum { MOST_THREADS = 1024 };

static __global__ void __launch_bounds__(MOST_THREADS) all_images(loss_arguments a) {
  // Aligned, so that one store of 16 bytes writes a result.
  alignas(16) __shared__ step_result of_warp[MOST_THREADS / LANES];
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
