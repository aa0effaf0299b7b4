// reference/sgd.c - stochastic gradient descent with momentum and weight decay.
//
//     v = momentum v + (g + weight_decay w)
//     w = w - learning_rate v
//
// Two things differ between textbooks and matter here. Weight decay joins the gradient *before* the
// momentum, and the learning rate multiplies v when it is used, not when it is collected: after the
// rate drops, old gradients count with the new rate. This is torch.optim.SGD's definition, without
// dampening and Nesterov. (Sutskever et al., "On the importance of initialization and momentum", 2013, have
// the rate inside v. As long as it stays the same, both take the same steps.)
#include "reference.h"

void reference_sgd_update(const parameters *p, const step_values *step, float momentum,
                          float weight_decay) {
  const real mu = momentum, decay = weight_decay, rate = step->learning_rate;
#pragma omp parallel for
  for (size_t i = 0; i < p->count; i++) {
    const real v = mu * p->momentum[i] + (p->gradient[i] + decay * p->weight[i]);
    p->momentum[i] = v;
    p->weight[i] -= rate * v;
  }
}
