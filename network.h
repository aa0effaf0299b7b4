// network.h - ResNet-18 for 32x32 images: which layer follows which, forward and backward.
//
// He, Zhang, Ren, Sun: "Deep residual learning for image recognition", CVPR 2016, in the form that
// is usual for CIFAR-10: a 3x3 stem instead of the 7x7 one and no max pool, so that 32x32 pixels
// last through four stages.
//
//     input            [B][32][32][3]
//     stem             3x3 convolution, batch norm, ReLU        [B][32][32][ 1 width]
//     stage 1          two basic blocks                         [B][32][32][ 1 width]
//     stage 2          two basic blocks, the first stride 2     [B][16][16][ 2 width]
//     stage 3          two basic blocks, the first stride 2     [B][ 8][ 8][ 4 width]
//     stage 4          two basic blocks, the first stride 2     [B][ 4][ 4][ 8 width]
//     average pool     over 4x4 pixels                          [B][ 8 width]
//     linear           with bias                                [B][10]
//
// With width 64 these are the published 11,173,962 parameters. A basic block is
//
//     x --> a: conv 3x3, norm, ReLU --> b: conv 3x3, norm --> (+) --> ReLU --> y
//      \                                                      /
//       `--- x itself, or conv 1x1 + norm where the shape --'
//            changes ("shortcut")
//
// A convolution with the batch normalisation after it is one `unit` here; there are 20 of them.
// Batch norm gives each channel mean 0 and variance 1 over the batch, then multiplies by gamma and
// adds beta, both learned (reference/resnet18.c). For tests, where there may be no batch, it keeps
// running averages of mean and variance. The *stem* is the convolution before the first stage.
//
// x, z, y, masks and `real` in the structures below are explained in device.h. On a first reading, stop
// here and come back after it.
#ifndef NETWORK_H
#define NETWORK_H

#include "device.h"
#include "run/error.h"

enum { UNITS = 20, BLOCKS = 8, PARAMETERS = 3 * UNITS + 2, STATISTICS = 2 * UNITS };
enum { MOST_WIDTH = 1024, MOST_BATCH = 65536 };

// A convolution and the batch normalisation behind it. Arrays live on the device.
typedef struct unit {
  conv_shape shape;              // its batch is that of the last network_forward
  bool has_residual;             // one is added behind the norm: in each block's b
  bool relu;                     // behind all this: everywhere but in a shortcut
  int weight, gamma, beta;       // positions in the network's parameters.list
  int running_mean, running_var; // positions in statistics_list
  const void *x;                 // what the convolution read: the input or another unit's y
  // Training need not store every y (device.h). x_from: the unit whose output is x, if that y is not stored;
  // the convolution then computes x from that unit's z. residual_from: the same of the residual. NULL: stored.
  const struct unit *x_from, *residual_from;
  void *z;       // the convolution's output, in training  [B][out_height][out_width][Cout]
  void *y;       // after norm, residual sum and ReLU, same shape
  uint8_t *mask; // where a y with a residual is above zero, if the device keeps masks; else NULL
  // Of a block's b: the block's shortcut, where the device takes both norms back together; else NULL.
  const struct unit *paired_shortcut;
  bool y_left_out; // training does not store y: who reads it computes it from z
  double *sums;    // [2][Cout], of z, for the norm
  real *saved_mean, *saved_inverse_std; // [Cout], kept for the backward pass
} unit;

typedef struct {
  int a, b;     // positions in units
  int shortcut; // the same, or -1 where x itself is added
} block;

// One of three buffers for gradients of activations.
typedef struct {
  void *data;
  int reader; // the side branch's mark behind the weight gradient that reads it, or 0 (device.h)
} gradient_buffer;

typedef struct {
  const device *device;
  int width;     // channels of stage 1, a multiple of 8
  int max_batch; // images that the buffers have room for
  int batch;     // images in the last forward pass

  unit units[UNITS]; // in PyTorch's order of names: stem, then each block's a, b, shortcut
  block blocks[BLOCKS];
  int unit_count;

  parameter parameter_list[PARAMETERS];  // in PyTorch's order
  parameters parameters;                 // .list is parameter_list
  parameter statistics_list[STATISTICS]; // running_mean and running_var of each unit
  int statistics_count;
  size_t statistics_size;  // elements in `statistics`
  real *statistics;        // running means and variances, flat
  int64_t batches_tracked; // training steps done: PyTorch's num_batches_tracked. train.c counts

  void *input;                 // activations [B][32][32][3]
  void *pooled;                // activations [B][8 width]
  real *logits;                // [B][10]
  real *dlogits;               // [B][10]
  gradient_buffer gradient[3]; // on their way back; room for the largest activation
} network;

// The network itself is made in run/layers.c, and gone through in network.c.

// Which tensors and units a network of this width has, without any memory for them. False, with a
// line in e, unless width is a positive multiple of 8 and batch is positive, both within reason.
bool network_describe(network *n, const device *d, int width, int batch, error *e);

// Describes and allocates; weights are undefined until network_initialise or a checkpoint is
// loaded.
bool network_create(network *n, const device *d, int width, int batch, error *e);
void network_free(network *n);

// PyTorch's defaults: convolutions, the linear weight and its bias uniform on (-1/sqrt(fan_in),
// 1/sqrt(fan_in)); gamma 1, beta 0; running mean 0 and variance 1; momentum 0. fan_in: how many
// numbers an output sums up, Cin R S for a convolution, C for the linear layer. Why divide by its root?
// A sum of fan_in terms with random signs grows like that root; so logits begin as numbers of the size of one or
// less. Behind a batch norm the scale of the filters does not change the output (but for its epsilon): it
// decides how large a step of SGD is beside the weight that it moves.
void network_initialise(network *n, uint64_t seed);

// input[0 .. batch-1] -> logits. Training normalises with the batch's statistics, moves the running
// ones and keeps what network_backward needs; otherwise the running statistics are used.
void network_forward(network *n, int batch, bool training);

// dlogits -> parameters.gradient, after a forward pass in training mode.
void network_backward(network *n);

// A unit's output, for so many images.
activation_shape unit_output_shape(const unit *u, int images);

// Bytes of device memory that network_create takes, and the part of them that grows with the batch.
size_t network_bytes(const network *n);
size_t network_bytes_per_image(const network *n);

#endif
