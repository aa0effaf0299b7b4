// solutions/2_loss.cu - a solution of exercise 2. smoothing.cu computes the loss besides.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { BLOCK = 64 };

static __device__ float smoothed(float smoothing, int label, int j) {
  return j == label ? 1 - smoothing : smoothing / (CLASSES - 1);
}

// softmax does not change when all logits lose the same amount. Without the largest, none is above 0.
static __global__ void loss(int batch, float smoothing, float *dlogits, const float *logits,
                            const uint8_t *labels, const sample *samples, const step_values *step) {
  const int b = blockIdx.x * BLOCK + threadIdx.x;
  if (b >= batch) return;
  const int own = labels[samples[b].image], other = labels[samples[samples[b].partner].image];
  const float lambda = step->lambda, *logit = logits + b * CLASSES;
  float power[CLASSES], largest = logit[0], sum = 0;
  for (int j = 1; j < CLASSES; j++) largest = logit[j] > largest ? logit[j] : largest;
  for (int j = 0; j < CLASSES; j++) sum += power[j] = expf(logit[j] - largest);
  for (int j = 0; j < CLASSES; j++) {
    const float target =
        lambda * smoothed(smoothing, own, j) + (1 - lambda) * smoothed(smoothing, other, j);
    dlogits[b * CLASSES + j] = (power[j] / sum - target) / batch;
  }
}

void run_2(const task *t) {
  launch("loss", loss, {divide_up(t->rows, BLOCK), BLOCK, 0}, t->rows, t->smoothing, t->out[0],
         t->in[0], t->in[1], t->in[2], t->in[3]);
}

} // namespace solution
} // namespace GPU
