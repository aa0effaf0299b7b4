// 5_sgd.cu - exercise 5: SGD, four weights at a time. About 20 lines. Belongs to course/1-step.md,
// "The step".
//
//     v = momentum v + (g + weight_decay w)         w = w - learning_rate v
//
//     w, v      float [count]    read and written
//     g         float [count]    the gradient
//     rounded   bf16  [count]    w once more, rounded, for the convolutions
//
// Who calls it: the end of each training step, once for all weights.
//
// The kernel below is right. But its threads load and store 4 bytes at a time, and 2 of `rounded`. A
// thread can move 16 bytes with one instruction: a float4 has four floats, x, y, z and w, and
// *(float4 *)(v + i) loads or stores v[i] .. v[i + 3], where i is a multiple of 4. Let thread i have
// weights 4 i .. 4 i + 3. Their four bf16 are 8 bytes; store them at once too, as a struct of two
// pairs, four_bf16: to_pair(first, second) makes a pair of bf16 from two floats. count need not be a
// multiple of 4: the last thread does the rest one by one. The launch at the bottom starts a thread
// for each weight; with a quarter of them none comes for nothing.
//
// The check looks at: w, v and rounded, for counts of 4096, 1003, 5 and 1; accesses beyond the arrays;
// at most 0.07 requests for each weight. A *request* is one load or store of a warp: the kernel below
// makes 8 for 32 weights, 0.25.
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

struct alignas(8) four_bf16 {
  uint32_t first_pair, second_pair;
};

static __global__ void sgd(int count, float *w, float *v, const float *g, bf16 *rounded,
                           const step_values *step, float momentum, float weight_decay) {
  const int i = (int)thread_number();
  if (i >= count) return;
  v[i] = momentum * v[i] + (g[i] + weight_decay * w[i]); // make it four at a time
  w[i] -= step->learning_rate * v[i];
  rounded[i] = to_bf16(w[i]);
}

void run_5(const task *t) {
  launch("sgd", sgd, {divide_up(t->rows, THREADS), THREADS, 0}, t->rows, t->out[0], t->out[1],
         t->in[0], t->out[2], t->in[1], t->momentum, t->weight_decay);
}

} // namespace exercise
} // namespace GPU
