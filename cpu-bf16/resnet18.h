// cpu-bf16/resnet18.h - the network's operations besides convolution on blocks of bf16: the device
// `cpu-bf16`'s share of the table. Each function computes what device.h says under the name without
// `bf16_`.
#ifndef BF16_RESNET18_H
#define BF16_RESNET18_H

#include "blocks.h"

void bf16_norm_forward(const norm_shape *shape, void *y, const void *z, const double *sums,
                       const real *gamma, const real *beta, const void *residual, bool relu,
                       real *running_mean, real *running_var, real *saved_mean,
                       real *saved_inverse_std);
void bf16_norm_inference(const norm_shape *shape, void *y, const void *z, const real *gamma,
                         const real *beta, const void *residual, bool relu,
                         const real *running_mean, const real *running_var);
void bf16_norm_backward(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                        real *dbeta, const void *dy, const void *y, const void *z,
                        const real *gamma, const real *saved_mean, const real *saved_inverse_std,
                        bool relu);
void bf16_pool_forward(int batch, int pixels, int channels, void *y, const void *x);
void bf16_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy);
void bf16_linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                         const real *bias);
void bf16_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                          const real *dlogits, const void *x, const void *w);

// Of device.h's fusions.
void bf16_norm_apply(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                     const norm_arrays *n, const addend *residual, bool relu);
void bf16_norm_spread(const norm_shape *shape, void *dz, void *shortcut_dz, const void *g,
                      const norm_below *of);

// The norm as y = scale z + shift, from a batch's statistics and in evaluation; both have room for whole
// blocks of channels, and get zeros behind the last one.
void bf16_norm_factors(int channels, float *scale, float *shift, const real *gamma,
                       const real *beta, const real *mean, const real *inverse_std);
void bf16_inference_factors(int channels, float *scale, float *shift, const real *gamma,
                            const real *beta, const real *mean, const real *variance);

#endif
