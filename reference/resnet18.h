// resnet18.h - the network's operations besides convolution: batch normalisation with the residual
// sum and ReLU, average pool, linear layer. What they compute stands in device.h.
#ifndef RESNET18_H
#define RESNET18_H

#include "device.h"

// Batch normalisation's two constants, PyTorch's defaults.
#define NORM_EPSILON 1e-5 // added to the variance, so that a constant channel can be divided by it
#define NORM_MOMENTUM 0.1 // weight of the newest batch in the running statistics

void reference_norm_forward(const norm_shape *shape, void *y, const void *x, const double *sums,
                            const real *gamma, const real *beta, const void *residual, bool relu,
                            real *running_mean, real *running_var, real *saved_mean,
                            real *saved_inverse_std);
// y may be x.
void reference_norm_inference(const norm_shape *shape, void *y, const void *x, const real *gamma,
                              const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var);
void reference_norm_backward(const norm_shape *shape, void *dx, void *dresidual, real *dgamma,
                             real *dbeta, const void *dy, const void *y, const void *x,
                             const real *gamma, const real *saved_mean,
                             const real *saved_inverse_std, bool relu);
void reference_pool_forward(int batch, int pixels, int channels, void *y, const void *x);
void reference_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy);
void reference_linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                              const real *bias);
void reference_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                               const real *dlogits, const void *x, const void *w);

#endif
