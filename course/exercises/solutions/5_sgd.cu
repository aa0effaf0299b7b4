// solutions/5_sgd.cu - a solution of exercise 5, as sgd.cu does it.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

struct alignas(8) four_bf16 {
  uint32_t first_pair, second_pair;
};

typedef struct {
  float learning_rate, momentum, weight_decay;
} rates;

static __device__ void step_one(const rates &r, float *w, float *v, float g) {
  *v = r.momentum * *v + (g + r.weight_decay * *w);
  *w -= r.learning_rate * *v;
}

static __global__ void sgd(int count, float *w, float *v, const float *g, bf16 *rounded,
                           const step_values *step, float momentum, float weight_decay) {
  const rates r = {step->learning_rate, momentum, weight_decay};
  const int first = 4 * (int)thread_number();
  if (first + 4 > count) {
    for (int i = first; i < count; i++) {
      step_one(r, &w[i], &v[i], g[i]);
      rounded[i] = to_bf16(w[i]);
    }
    return;
  }
  float4 weights = *(float4 *)(w + first), velocities = *(float4 *)(v + first);
  const float4 gradients = *(const float4 *)(g + first);
  step_one(r, &weights.x, &velocities.x, gradients.x);
  step_one(r, &weights.y, &velocities.y, gradients.y);
  step_one(r, &weights.z, &velocities.z, gradients.z);
  step_one(r, &weights.w, &velocities.w, gradients.w);
  *(float4 *)(w + first) = weights;
  *(float4 *)(v + first) = velocities;
  *(four_bf16 *)(rounded + first) = {to_pair(weights.x, weights.y), to_pair(weights.z, weights.w)};
}

void run_5(const task *t) {
  launch("sgd", sgd, {divide_up(divide_up(t->rows, 4), THREADS), THREADS, 0}, t->rows, t->out[0],
         t->out[1], t->in[0], t->out[2], t->in[1], t->momentum, t->weight_decay);
}

} // namespace solution
} // namespace GPU
