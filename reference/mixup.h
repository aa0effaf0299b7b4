// mixup.h - turning image bytes into a batch of mixed activations; what it computes stands in
// device.h, under "a batch of images".
#ifndef MIXUP_H
#define MIXUP_H

#include "device.h"

// Mixup's random part, the same on every device: a permutation of the batch gives each of the
// `batch` samples its partner, and one lambda ~ Beta(alpha, alpha), which is returned, all of them
// their weight. alpha = 0 turns mixup off: lambda 1, and every sample its own partner. Both are
// functions of seed, epoch and step.
float mixup_draw(int batch, sample *samples, double alpha, uint64_t seed, int epoch, int step);

void reference_mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                          const step_values *step);

#endif
