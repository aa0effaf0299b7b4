// conv.h - convolution in three passes, as device.h states them, in its CPU versions.
//
//     reference/conv.c   seven plain loops, sums in double: the definition
//     cpu/conv.c         the same up to rounding, as fast as a CPU can make it
//
// Checked by `make check`: finite differences, PyTorch's numbers, and one against the other on every
// layer shape of the network and on ragged ones (tests/devices_test.c).
#ifndef CONV_H
#define CONV_H

#include "device.h"

// The shape of a kernel x kernel convolution with padding kernel / 2.
static inline conv_shape make_conv_shape(int batch, int height, int width, int in_channels,
                                         int out_channels, int kernel, int stride) {
  const int padding = kernel / 2;
  return (conv_shape){.batch = batch,
                      .in_height = height,
                      .in_width = width,
                      .in_channels = in_channels,
                      .out_height = (height + 2 * padding - kernel) / stride + 1,
                      .out_width = (width + 2 * padding - kernel) / stride + 1,
                      .out_channels = out_channels,
                      .kernel = kernel,
                      .stride = stride};
}

void reference_conv_forward(const conv_shape *shape, void *y, const void *x, const void *w,
                            double *sums);
void reference_conv_backward_input(const conv_shape *shape, void *dx, const void *dy, const void *w,
                                   bool accumulate);
void reference_conv_backward_weight(const conv_shape *shape, real *dw, const void *dy,
                                    const void *x);

// Whether cpu/ takes Winograd's method.
bool cpu_conv_is_winograd(const conv_shape *shape);
void cpu_conv_forward(const conv_shape *shape, void *y, const void *x, const void *w, double *sums);
void cpu_conv_norm_inference(const conv_shape *shape, void *y, const void *x, const void *w,
                             const real *gamma, const real *beta, const void *residual, bool relu,
                             const real *running_mean, const real *running_var);
void cpu_conv_backward_input(const conv_shape *shape, void *dx, const void *dy, const void *w,
                             bool accumulate);
void cpu_conv_backward_weight(const conv_shape *shape, real *dw, const void *dy, const void *x);

#endif
