// cpu-bf16/conv.h - convolution in three passes on blocks of bf16: the device `cpu-bf16`'s share of
// the table. Each function computes what device.h says under the name without `bf16_`; w is the
// float weights, rounded on the way.
#ifndef BF16_CONV_H
#define BF16_CONV_H

#include "multiplier.h"

// A task's chunk of rows has about so many pixels, of 32 images each: few enough that the input it reads and
// 32 filters fit the second-level cache.
enum { CHUNK_PIXELS = 128 };

// What multiplies: the device sets it, a test may exchange it.
extern const multiplier *bf16_multiplier;

void bf16_conv_forward(const conv_shape *shape, void *z, const void *x, const void *w,
                       double *sums);
void bf16_conv_norm_inference(const conv_shape *shape, void *y, const void *x, const void *w,
                              const real *gamma, const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var);
void bf16_conv_backward_input(const conv_shape *shape, void *dx, const void *dz, const void *w,
                              bool accumulate);
void bf16_conv_backward_weight(const conv_shape *shape, real *dw, const void *dz, const void *x);

// Of device.h's fusions.
void bf16_conv_statistics(const conv_shape *shape, void *z, const void *x, const void *w,
                          const norm_arrays *n);
void bf16_conv_backward_masked(const conv_shape *shape, void *g, const void *dz, const void *w,
                               bool accumulate, const norm_below *below);

// Every filter, rounded, as blocks in pair_rows' order (blocks.h). The blocks lie in the order in which one
// pixel's product reads them: [32 columns of the result][tap][32 terms]. Forward, filters are columns and channels
// terms; backward the other way. Zeros behind the last of either.
void bf16_pack_filters(bf16 *packed, const float *w, const conv_shape *shape, bool backward);

// Whether all taps of a pixel fit one block, as the stem's do. Then the output and the weight gradient
// are those of a 1x1 convolution, bf16_patch_shape, of patches, bf16_patch_count numbers.
bool bf16_takes_patches(const conv_shape *shape);
conv_shape bf16_patch_shape(const conv_shape *shape);
size_t bf16_patch_count(const conv_shape *shape);
void bf16_gather_patches(bf16 *to, const conv_shape *shape, const bf16 *x);

#endif
