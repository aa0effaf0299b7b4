// cpu/conv.h - convolution on a CPU, as fast as it can be made: the `cpu` device's share of the table.
//
// Each function computes what device.h says under the name without `cpu_`, up to rounding: sums are
// added up in float, in another order than reference/conv.c's, and Winograd's method
// (cpu/winograd.h) replaces multiplications by additions. The same bits on any number of threads.
//
// Checked by `make check`: against reference/conv.c on every layer shape of the network and on
// ragged ones, within bounds derived from how rounding errors grow (tests/devices_test.c).
#ifndef CPU_CONV_H
#define CPU_CONV_H

#include "device.h"

// Working memory that only grows, kept from call to call until the process ends: fresh memory costs
// page faults. One operation of a CPU's device runs at a time, so one piece is enough.
// Aligned as a device's memory is (reference/device.c); its contents are undefined.
void *cpu_scratch(size_t bytes);

// Whether cpu/ takes Winograd's method.
bool cpu_conv_is_winograd(const conv_shape *shape);
void cpu_conv_forward(const conv_shape *shape, void *z, const void *x, const void *w, double *sums);
void cpu_conv_norm_inference(const conv_shape *shape, void *y, const void *x, const void *w,
                             const real *gamma, const real *beta, const void *residual, bool relu,
                             const real *running_mean, const real *running_var);
void cpu_conv_backward_input(const conv_shape *shape, void *dx, const void *dz, const void *w,
                             bool accumulate);
void cpu_conv_backward_weight(const conv_shape *shape, real *dw, const void *dz, const void *x);

#endif
