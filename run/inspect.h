// run/inspect.h - looking inside a network: what its layers cost, and where a bad value is.
//
// Checked by `make check`: tests/inspect_test.c.
#ifndef INSPECT_H
#define INSPECT_H

#include "network.h"

// Floating point operations of one image's forward pass: a multiplication and an addition for each
// weight of a convolution or the linear layer at each output pixel. Training takes about three times
// as many: each of the two gradients is a convolution of the same size.
double network_flops(const network *n);

// The plan (--plan): a line a layer with shape, parameters, FLOPs and activation bytes, and the
// totals. The network may be described only.
void network_print_plan(const network *n, FILE *out);

// Each names the first tensor that holds a NaN or an infinity: among what is saved, the weights and then the
// running statistics, or, in the order in which they are computed, the input, each activation that the last
// step of training stored, and the logits. NULL: all are finite. The text stays valid until the next call.
const char *network_bad_tensor(const network *n);
const char *network_bad_activation(const network *n);

#endif
