// reference/smoothing.c - cross-entropy of a mixed batch against smoothed labels, and its gradient.
//
// The target of an image is no longer a class but a distribution over classes, made in two steps:
//
//     smoothing   q_l[j] = 1 - s for j = l, s / (C - 1) for each other class j
//     mixup       t[j]   = lambda q_a[j] + (1 - lambda) q_b[j]
//
// Cross-entropy is linear in its target, so lambda CE(q_a) + (1 - lambda) CE(q_b) = CE(t): one pass
// over the logits is enough. With logits l, S = sum over k of e^l[k] and p = softmax(l) = e^l / S,
//
//     loss = - sum over j of t[j] log p[j]        log p[j] = l[j] - log S
//
// The gradient. Logit i appears in log p[i] itself and in log S, whose derivative is e^l[i] / S = p[i]:
//
//     d log p[j] / d l[i] = [i = j] - p[i]
//     d loss / d l[i] = - sum over j of t[j] ([i = j] - p[i]) = p[i] (sum over j of t[j]) - t[i]
//
// and a target sums up to 1, since 1 - s + (C - 1) s / (C - 1) = 1. So the gradient is p[i] - t[i]:
// what the network says, minus what it should say. With smoothing the loss is least at p = t, that
// is at finite logits; without, the logit of the true class would have to grow for ever.
//
// Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: "Rethinking the Inception architecture", CVPR 2016,
// section 7. (There, and in torch.nn.CrossEntropyLoss(label_smoothing=s), s is spread over all C
// classes, the true one included; this recipe spreads it over the C - 1 others.)
#include "reference.h"

#include <math.h>

// log softmax; the largest logit is taken out first so that exp() cannot overflow.
static void log_softmax(double result[CLASSES], const real *logits) {
  double largest = logits[0], sum = 0;
  for (int j = 1; j < CLASSES; j++) largest = fmax(largest, logits[j]);
  for (int j = 0; j < CLASSES; j++) sum += exp(logits[j] - largest);
  for (int j = 0; j < CLASSES; j++) result[j] = logits[j] - largest - log(sum);
}

static double smoothed(double smoothing, int label, int class) {
  return class == label ? 1 - smoothing : smoothing / (CLASSES - 1);
}

int reference_arg_max(const real *logits) {
  int best = 0;
  for (int j = 1; j < CLASSES; j++)
    if (logits[j] > logits[best]) best = j;
  return best;
}

// logits, dlogits: [batch][10]; labels: [N]; samples: [batch]
void reference_cross_entropy(int batch, float smoothing, real *dlogits, step_result *results,
                             const real *logits, const uint8_t *labels, const sample *samples,
                             const step_values *step) {
  const double lambda = step->lambda;
  step_result total = {0, 0};
  for (int b = 0; b < batch; b++) {
    const int label = labels[samples[b].image];
    const int partner_label = labels[samples[samples[b].partner].image];
    double log_p[CLASSES];
    log_softmax(log_p, logits + b * CLASSES);
    for (int j = 0; j < CLASSES; j++) {
      const double target = lambda * smoothed(smoothing, label, j) +
                            (1 - lambda) * smoothed(smoothing, partner_label, j);
      total.loss -= target * log_p[j];
      if (dlogits) dlogits[b * CLASSES + j] = (real)((exp(log_p[j]) - target) / batch);
    }
    const int guess = reference_arg_max(logits + b * CLASSES);
    total.correct += lambda * (guess == label) + (1 - lambda) * (guess == partner_label);
  }
  results[step->slot] = total;
}
