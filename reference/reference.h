// reference/reference.h - the `reference` device's operations, by name: the definitions that every
// other version is held against. What each computes stands in device.h, under the same name.
//
//     conv.c        convolution in three passes, seven plain loops each
//     mixup.c       a batch of mixed images
//     resnet18.c    batch normalisation with the residual sum and ReLU, average pool, linear layer
//     smoothing.c   cross-entropy of a mixed batch against smoothed labels
//     sgd.c         the optimiser
//
// device.c puts them into the table. Programs call them through it; the functions have names here
// so that another device can take over some of them, and so that a check can call one by itself.
//
// Checked by `make check`: finite differences in double precision (tests/gradients_test.c),
// PyTorch's numbers (tests/golden_test.c), formulas written down a second time
// (tests/formulas_test.c).
#ifndef REFERENCE_H
#define REFERENCE_H

#include "device.h"

// -- mixup.c
void reference_mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                          const step_values *step);

// -- conv.c
void reference_conv_forward(const conv_shape *shape, void *z, const void *x, const void *w,
                            double *sums);
void reference_conv_backward_input(const conv_shape *shape, void *dx, const void *dz, const void *w,
                                   bool accumulate);
void reference_conv_backward_weight(const conv_shape *shape, real *dw, const void *dz,
                                    const void *x);

// -- resnet18.c
// norm_forward's part that is done once a channel.
void reference_norm_statistics(const norm_shape *shape, const double *sums, real *running_mean,
                               real *running_var, real *saved_mean, real *saved_inverse_std);
void reference_norm_forward(const norm_shape *shape, void *y, const void *z, const double *sums,
                            const real *gamma, const real *beta, const void *residual, bool relu,
                            real *running_mean, real *running_var, real *saved_mean,
                            real *saved_inverse_std);
// y may be z.
void reference_norm_inference(const norm_shape *shape, void *y, const void *z, const real *gamma,
                              const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var);
void reference_norm_backward(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                             real *dbeta, const void *dy, const void *y, const void *z,
                             const real *gamma, const real *saved_mean,
                             const real *saved_inverse_std, bool relu);
void reference_pool_forward(int batch, int pixels, int channels, void *y, const void *x);
void reference_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy);
void reference_linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                              const real *bias);
void reference_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                               const real *dlogits, const void *x, const void *w);

// -- smoothing.c
// The class of the largest of ten logits; of equal ones the first.
int reference_arg_max(const real *logits);
void reference_cross_entropy(int batch, float smoothing, real *dlogits, step_result *results,
                             const real *logits, const uint8_t *labels, const sample *samples,
                             const step_values *step);

// -- sgd.c
void reference_sgd_update(const parameters *p, const step_values *step, float momentum,
                          float weight_decay);

#endif
