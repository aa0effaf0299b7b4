// sgd.cu - stochastic gradient descent with momentum and weight decay, for all parameters at once.
//
//     v = momentum v + (g + weight_decay w)
//     w = w - learning_rate v                      (reference/sgd.c says where this comes from)
//
// Weights exist twice. A bf16 has 8 bits of precision: two neighbours are at least 1/256 of their
// size apart, and a step of less than half of that, 1/512 of a weight, rounds to no step at all.
// Late in training most steps are that small. So w, g and v are floats; the w are called *master
// weights*. Each update also writes `rounded`, w rounded to bf16, with which convolutions and the
// linear layer multiply. Only gamma, beta and the linear layer's bias are read from w itself.
//
//     w, g, v   float [count]      rounded   bf16 [count]      count: 11,173,962 at width 64
//
// The arithmetic is nothing: three multiply-adds and a rounding for 22 bytes that have to move
// (three floats in, two floats and a bf16 out). A step moves 246 MB, which takes 73 microseconds at
// an H100's 3.35 TB/s. A kernel like that is *memory-bound*. What counts is that memory stays busy:
// enough loads under way at any time, each as wide as it can be. All parameters lie one after
// another, so one launch updates all.
//
// Checked by `make check`, against reference/sgd.c.
#include "gpu/gpu.h"

namespace GPU {

typedef struct {
  float learning_rate, momentum, weight_decay;
} rates;

static __device__ void step_one(const rates &r, float *w, float *v, float g) {
  *v = r.momentum * *v + (g + r.weight_decay * *w);
  *w -= r.learning_rate * *v;
}

// -- Plain: a thread a parameter -----------------------------------------------------------------

static __global__ void update_one(size_t count, float *w, float *v, const float *g, bf16 *rounded,
                                  const step_values *step, float momentum, float weight_decay) {
  const size_t i = thread_number();
  if (i >= count) return;
  step_one({step->learning_rate, momentum, weight_decay}, &w[i], &v[i], g[i]);
  rounded[i] = to_bf16(w[i]);
}

static void sgd_update_plain(const parameters *p, const step_values *step, float momentum,
                             float weight_decay) {
  launch("update_one", update_one, {blocks_for(p->count), THREADS, 0}, p->count, p->weight,
         p->momentum, p->gradient, p->rounded_weight, step, momentum, weight_decay);
}

// -- Fast: a thread four parameters --------------------------------------------------------------
//
// The plain kernel is nearly right: threads of a warp touch neighbouring addresses, so a request
// has no sector more than it needs (it is *coalesced*). But it moves 4 bytes for a thread, 128 for
// a warp. The processors could move the same bytes with a quarter of the instructions, and with a
// quarter of the requests under way. A float4 is four floats that a thread loads or stores with one
// instruction: 16 bytes, the most there is, at an address that must be a multiple of 16.
//
// Why not eight parameters for each thread? The bf16 store would then have 16 bytes as well. But
// eight floats are two float4, and each of the two requests would leave out every other 16 bytes.
// With four, each request of a warp covers one unbroken stretch of memory (512 bytes of floats, 256
// of bf16).
//
//     w    | 0  1  2  3 | 4  5  6  7 | ... | 124 .. 127 |      one warp, one request
//            thread 0     thread 1           thread 31
//
// Where count is no multiple of four, the last thread walks through the rest one by one.

enum { FOUR = 4 };

struct alignas(8) four_bf16 {
  uint32_t first_pair, second_pair;
};

static __global__ void update_four(size_t count, float *w, float *v, const float *g, bf16 *rounded,
                                   const step_values *step, float momentum, float weight_decay) {
  const rates r = {step->learning_rate, momentum, weight_decay};
  const size_t first = FOUR * thread_number();
  if (first + FOUR > count) {
    for (size_t i = first; i < count; i++) {
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

static void sgd_update(const parameters *p, const step_values *step, float momentum,
                       float weight_decay) {
  launch("update_four", update_four, {blocks_for((p->count + FOUR - 1) / FOUR), THREADS, 0},
         p->count, p->weight, p->momentum, p->gradient, p->rounded_weight, step, momentum,
         weight_decay);
}

// -- The copies alone, after new weights came from the host ---------------------------------------
//
// This happens once a run: the plain way is enough.

static __global__ void copy_weights(size_t count, bf16 *rounded, const float *w) {
  const size_t i = thread_number();
  if (i < count) rounded[i] = to_bf16(w[i]);
}

static void refresh_rounded_weights(const parameters *p) {
  launch("copy_weights", copy_weights, {blocks_for(p->count), THREADS, 0}, p->count,
         p->rounded_weight, p->weight);
}

void fill_sgd(device *d, bool plain) {
  d->sgd_update = plain ? sgd_update_plain : sgd_update;
  d->refresh_rounded_weights = refresh_rounded_weights;
}

} // namespace GPU
