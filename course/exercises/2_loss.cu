// 2_loss.cu - exercise 2: the gradient of a smoothed, mixed loss. About 15 lines. Belongs to
// course/1-step.md, "The loss".
//
//     dlogits[b][j] = (p[j] - t[j]) / batch            p = softmax(logits[b])
//
//     t[j] = lambda q_own[j] + (1 - lambda) q_other[j]
//     q_l[j] = 1 - smoothing for j = l, smoothing / 9 for each of the other classes
//
//     logits, dlogits   float  [batch][10]
//     labels            bytes  [N]           a class for each image of the data set
//     samples           sample [batch]       image b of the batch is number samples[b].image of the
//                                            data set; its partner is number samples[b].partner of
//                                            the batch
//
// own is the label of image b, other that of its partner; the two can be the same class.
//
// Who calls it: each training step, between forward and backward. A thread takes a whole image, all
// ten classes. Blocks have 64 threads.
//
// The check looks at: every value, for batches of 64, 37 and 1, with smoothing 0.1 and 0. Some logits
// are as large as 500: e^500 is no float. Useful: CLASSES 10, expf(float).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { BLOCK = 64 };

static __global__ void loss(int batch, float smoothing, float *dlogits, const float *logits,
                            const uint8_t *labels, const sample *samples, const step_values *step) {
  const int b = blockIdx.x * BLOCK + threadIdx.x;
  if (b >= batch) return;
  for (int j = 0; j < CLASSES; j++) dlogits[b * CLASSES + j] = 0; // fill in, with step->lambda
}

void run_2(const task *t) {
  launch("loss", loss, {divide_up(t->rows, BLOCK), BLOCK, 0}, t->rows, t->smoothing, t->out[0],
         t->in[0], t->in[1], t->in[2], t->in[3]);
}

} // namespace exercise
} // namespace GPU
