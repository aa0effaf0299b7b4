// cpu/device.c - the `cpu` device.
//
// Nine tenths of a training step are convolutions. So the fast device is the plain one with the three
// convolutions of its table exchanged, and conv_norm_inference added. A test of it has to compare just these four.
#include "conv.h"
#include "reference/reference.h"

const device *cpu_device(void) {
  static device d;
  d = reference_device;
  d.name = "cpu";
  d.description = "fp32, Winograd and direct convolution";
  d.conv_forward = cpu_conv_forward;
  d.conv_norm_inference = cpu_conv_norm_inference;
  d.conv_backward_input = cpu_conv_backward_input;
  d.conv_backward_weight = cpu_conv_backward_weight;
  return &d;
}
