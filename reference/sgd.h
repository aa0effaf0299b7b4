// sgd.h - the optimiser: one step for all parameters; what it computes stands in device.h.
#ifndef SGD_H
#define SGD_H

#include "device.h"

void reference_sgd_update(const parameters *p, const step_values *step, float momentum,
                          float weight_decay);

#endif
