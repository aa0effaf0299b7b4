// smoothing.h - cross-entropy of a mixed batch against smoothed labels; what it computes stands in
// device.h, under "the loss".
#ifndef SMOOTHING_H
#define SMOOTHING_H

#include "device.h"

void reference_cross_entropy(int batch, float smoothing, real *dlogits, step_result *results,
                             const real *logits, const uint8_t *labels, const sample *samples,
                             const step_values *step);

#endif
