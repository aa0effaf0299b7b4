// network.c - the way through ResNet-18's units and blocks, forward and backward.
// network.h has the picture; every operation called here is explained in device.h. Which units there are,
// run/layers.c says.
//
// Memory. Training keeps two activations a unit: z, which the norm's backward pass needs, and y,
// which ReLU's mask and the next convolution's weight gradient need; a device may want the mask by
// itself, too. (A device may also compute a y that has no residual in it from z, where it is read:
// device.h, takes_norm. Then training stores only the blocks' outputs, and evaluation all.) Gradients of
// activations are needed only until the layer before has used them, so three buffers serve for all of them;
// they are drawn beside block_backward.
#include "network.h"

// -- Where things are ------------------------------------------------------------------------------

static real *weight_of(const network *n, int position) {
  return n->parameters.weight + n->parameters.list[position].offset;
}

static real *gradient_of(const network *n, int position) {
  return n->parameters.gradient + n->parameters.list[position].offset;
}

static real *statistic_of(const network *n, int position) {
  return n->statistics + n->statistics_list[position].offset;
}

// What a convolution or the linear layer reads in place of the weights; see parameters.rounded_weight.
static const void *rounded_weight_of(const network *n, int position) {
  const device *d = n->device;
  const size_t element = d->rounded_weight_bytes ? d->rounded_weight_bytes : sizeof(real);
  return (const char *)n->parameters.rounded_weight + n->parameters.list[position].offset * element;
}

static norm_arrays arrays_of(const network *n, const unit *u) {
  return (norm_arrays){.gamma = weight_of(n, u->gamma),
                       .beta = weight_of(n, u->beta),
                       .running_mean = statistic_of(n, u->running_mean),
                       .running_var = statistic_of(n, u->running_var),
                       .mean = u->saved_mean,
                       .inverse_std = u->saved_inverse_std};
}

static norm_shape norm_shape_of(const unit *u) {
  const conv_shape *s = &u->shape;
  return (norm_shape){s->batch * s->out_height * s->out_width, s->out_channels, s->batch};
}

// What a convolution that reads u's output may want to know of u. shortcut: where the same of u's paired
// shortcut goes; NULL where u is no block's b.
static norm_below below_of(const network *n, const unit *u, norm_below *shortcut) {
  if (u->paired_shortcut) *shortcut = below_of(n, u->paired_shortcut, NULL);
  return (norm_below){.norm = arrays_of(n, u),
                      .z = u->z,
                      .y = u->has_residual ? u->y : NULL,
                      .mask = u->mask,
                      .dgamma = gradient_of(n, u->gamma),
                      .dbeta = gradient_of(n, u->beta),
                      .shortcut = u->paired_shortcut ? shortcut : NULL};
}

// -- Forward ---------------------------------------------------------------------------------------

// y = act(norm(conv(x)) + residual), with the running statistics.
static void unit_inference(network *n, unit *u, const void *x, const void *residual) {
  const device *d = n->device;
  const norm_arrays a = arrays_of(n, u);
  const norm_shape shape = norm_shape_of(u);
  const void *w = rounded_weight_of(n, u->weight);
  if (d->conv_norm_inference) {
    d->conv_norm_inference(&u->shape, u->y, x, w, a.gamma, a.beta, residual, u->relu,
                           a.running_mean, a.running_var);
    return;
  }
  d->conv_forward(&u->shape, u->z, x, w, NULL);
  d->norm_inference(&shape, u->y, u->z, a.gamma, a.beta, residual, u->relu, a.running_mean,
                    a.running_var);
}

// A unit's norm in training, with what the block adds.
static void apply_norm(const network *n, unit *u, const norm_arrays *a, const void *residual) {
  const norm_shape shape = norm_shape_of(u);
  const unit *from = u->residual_from;
  addend add = {.values = residual};
  norm_arrays of_residual;
  if (from) {
    of_residual = arrays_of(n, from);
    add = (addend){.values = from->z, .norm = &of_residual, .relu = from->relu};
  }
  n->device->fused->norm_apply(&shape, u->y, u->mask, u->z, a, u->has_residual ? &add : NULL,
                               u->relu);
}

// The convolution of training, and its statistics; then the norm.
static void unit_forward_fused(network *n, unit *u, const void *residual) {
  const fusions *f = n->device->fused;
  const norm_arrays a = arrays_of(n, u);
  const void *w = rounded_weight_of(n, u->weight);
  if (u->x_from) {
    const norm_below below = below_of(n, u->x_from, NULL);
    f->norm_conv_statistics(&u->shape, u->z, &below, w, &a);
  } else {
    f->conv_statistics(&u->shape, u->z, u->x, w, &a);
  }
  if (!u->y_left_out) apply_norm(n, u, &a, residual);
}

// A unit forward: for evaluation as above; in training with the batch's statistics.
static void unit_forward(network *n, unit *u, const void *x, const void *residual, bool training) {
  const device *d = n->device;
  u->shape.batch = n->batch;
  u->x = x;
  if (!training) {
    unit_inference(n, u, x, residual);
    return;
  }
  if (d->fused) {
    unit_forward_fused(n, u, residual);
    return;
  }
  const norm_shape shape = norm_shape_of(u);
  const norm_arrays a = arrays_of(n, u);
  const void *w = rounded_weight_of(n, u->weight);
  d->conv_forward(&u->shape, u->z, x, w, u->sums);
  d->norm_forward(&shape, u->y, u->z, u->sums, a.gamma, a.beta, residual, u->relu, a.running_mean,
                  a.running_var, a.mean, a.inverse_std);
}

void network_forward(network *n, int batch, bool training) {
  const device *d = n->device;
  n->batch = batch;
  unit_forward(n, &n->units[0], n->input, NULL, training);
  const void *x = n->units[0].y;
  for (int i = 0; i < BLOCKS; i++) {
    unit *a = &n->units[n->blocks[i].a], *b = &n->units[n->blocks[i].b];
    const void *residual = x;
    unit_forward(n, a, x, NULL, training);
    if (n->blocks[i].shortcut >= 0) {
      unit *shortcut = &n->units[n->blocks[i].shortcut];
      unit_forward(n, shortcut, x, NULL, training);
      residual = shortcut->y;
    }
    unit_forward(n, b, a->y, residual, training);
    x = b->y;
  }
  const int channels = 8 * n->width, pixels = norm_shape_of(&n->units[UNITS - 1]).pixels / batch;
  d->pool_forward(batch, pixels, channels, n->pooled, x);
  d->linear_forward(batch, channels, n->logits, n->pooled, rounded_weight_of(n, PARAMETERS - 2),
                    weight_of(n, PARAMETERS - 1));
}

// -- Backward --------------------------------------------------------------------------------------

// Before a buffer is overwritten: the weight gradient that reads it comes first.
static void wait_for_reader(const network *n, gradient_buffer *b) {
  if (n->device->recorder) n->device->recorder->wait_for_side(b->reader);
  b->reader = 0;
}

// The gradient of u's filters. Nobody needs it before the step's end, so it goes to the side branch.
static void unit_backward_weight(network *n, unit *u, gradient_buffer *dz) {
  const device *d = n->device;
  const recording_table *r = d->recorder;
  real *dw = gradient_of(n, u->weight);
  if (r) r->side_begins();
  if (u->x_from) {
    const norm_below below = below_of(n, u->x_from, NULL);
    d->fused->norm_conv_backward_weight(&u->shape, dw, dz->data, &below);
  } else {
    d->conv_backward_weight(&u->shape, dw, dz->data, u->x);
  }
  if (r) dz->reader = r->side_ends();
}

// The gradient of u's convolution output (dz, may be dy) and of gamma and beta, from that of its
// output (dy); then that of its filters. dresidual as in device.h. masked: dy has been through ReLU's
// mask already, and gamma's and beta's gradients are there; then dy itself is the residual's. Where a
// shortcut is paired with u, the gradient of its convolution's output is stored in place of the residual's.
static void unit_backward(network *n, unit *u, gradient_buffer *dz, gradient_buffer *dresidual,
                          gradient_buffer *dy, bool masked) {
  const device *d = n->device;
  const norm_shape shape = norm_shape_of(u);
  norm_below of_shortcut;
  const norm_below of = below_of(n, u, &of_shortcut);
  wait_for_reader(n, dz);
  if (dresidual) wait_for_reader(n, dresidual);
  if (masked)
    d->fused->norm_spread(&shape, dz->data, u->paired_shortcut ? dresidual->data : NULL, dy->data,
                          &of);
  else
    d->norm_backward(&shape, dz->data, dresidual ? dresidual->data : NULL, of.dgamma, of.dbeta,
                     dy->data, u->y, u->z, of.norm.gamma, of.norm.mean, of.norm.inverse_std,
                     u->relu);
  unit_backward_weight(n, u, dz);
}

// The gradient of u's input. below: the unit whose output that is, if this completes its gradient;
// then, with a device that can, ReLU's mask is applied to dx, and the first part of below's norm
// is done: true.
static bool unit_backward_input(network *n, unit *u, gradient_buffer *dx, const gradient_buffer *dz,
                                bool accumulate, const unit *below) {
  const device *d = n->device;
  const void *w = rounded_weight_of(n, u->weight);
  wait_for_reader(n, dx);
  if (!d->fused || !below) {
    d->conv_backward_input(&u->shape, dx->data, dz->data, w, accumulate);
    return false;
  }
  norm_below shortcut;
  const norm_below b = below_of(n, below, &shortcut);
  d->fused->conv_backward_masked(&u->shape, dx->data, dz->data, w, accumulate, &b);
  return true;
}

// The gradient of the x that a block's a and its shortcut read, from that of their outputs.
static bool pair_backward_input(network *n, unit *a, unit *shortcut, gradient_buffer *dx,
                                const gradient_buffer *da, const gradient_buffer *ds,
                                const unit *below) {
  const fusions *f = n->device->fused;
  if (!f || !f->block_backward_masked) {
    unit_backward_input(n, shortcut, dx, ds, false, NULL);
    return unit_backward_input(n, a, dx, da, true, below);
  }
  norm_below of_below;
  const norm_below b = below_of(n, below, &of_below);
  const shortcut_gradient s = {&shortcut->shape, ds->data, rounded_weight_of(n, shortcut->weight)};
  wait_for_reader(n, dx);
  f->block_backward_masked(&a->shape, dx->data, da->data, rounded_weight_of(n, a->weight), &s, &b);
  return true;
}

// From the gradient of a block's output, in gradient[0], to that of its input x, there again. The
// three buffers as time goes by, an arrow where a buffer's contents change:
//
//                                gradient[0]                  [1]               [2]
//     on entry                   dy                            .                 .
//     b's norm                   -> g, the residual's gradient .                 -> dz of b
//       (with the shortcut's     -> dz of the shortcut         .                 -> dz of b)
//     b's convolution            the same                      -> dy of a        dz of b
//     a's norm                   the same                      -> dz of a        .
//
//     x itself is the residual: g is a part of dx
//     a's convolution            + its part, -> dx             dz of a           .
//
//     the shortcut's y is the residual: g is its dy
//     its norm, if not with b's  -> dz of the shortcut         dz of a           .
//     its convolution            dz of the shortcut            dz of a           -> a part of dx
//     a's convolution            .                             dz of a           + its part, -> dx
//       (or both at once         dz of the shortcut            dz of a           -> dx)
//     gradient[0] and gradient[2] exchange their names
//
// The weight gradients of b, a and the shortcut read their dz on the side branch, while the main branch
// goes on. Before the main branch overwrites one of them, it waits for its reader. dz of b: overwritten by x's
// gradient if there is a shortcut, else by dz of b of the next block (on the way back). dz of the shortcut: by dz
// of b of the next block. dz of a: by the gradient of a's output in the next block.
//
// below: the unit whose output x is. masked: dy is g already. Returns whether x's gradient is.
static bool block_backward(network *n, const block *k, const unit *below, bool masked) {
  unit *a = &n->units[k->a], *b = &n->units[k->b];
  gradient_buffer *dy = &n->gradient[0], *da = &n->gradient[1], *dz = &n->gradient[2];
  unit_backward(n, b, dz, dy, dy, masked); // dy is now the residual's gradient
  const bool a_masked = unit_backward_input(n, b, da, dz, false, a);
  unit_backward(n, a, da, NULL, da, a_masked);
  if (k->shortcut < 0) // the residual was x itself, so its gradient is already x's, in part
    return unit_backward_input(n, a, dy, da, true, below);
  unit *shortcut = &n->units[k->shortcut];
  if (masked && b->paired_shortcut)
    unit_backward_weight(n, shortcut, dy); // the rest was done with b's norm
  else
    unit_backward(n, shortcut, dy, NULL, dy, false);
  const bool x_masked = pair_backward_input(n, a, shortcut, dz, da, dy, below);
  const gradient_buffer of_shortcut = *dy;
  *dy = *dz;
  *dz = of_shortcut;
  return x_masked;
}

void network_backward(network *n) {
  const device *d = n->device;
  const int channels = 8 * n->width, pixels = norm_shape_of(&n->units[UNITS - 1]).pixels / n->batch;
  bool masked = false;
  d->linear_backward(n->batch, channels, n->gradient[1].data, gradient_of(n, PARAMETERS - 2),
                     gradient_of(n, PARAMETERS - 1), n->dlogits, n->pooled,
                     rounded_weight_of(n, PARAMETERS - 2));
  d->pool_backward(n->batch, pixels, channels, n->gradient[0].data, n->gradient[1].data);
  for (int i = BLOCKS - 1; i >= 0; i--)
    masked = block_backward(n, &n->blocks[i], &n->units[i ? n->blocks[i - 1].b : 0], masked);
  unit_backward(n, &n->units[0], &n->gradient[0], NULL, &n->gradient[0], masked);
  for (int i = 0; i < 3; i++) wait_for_reader(n, &n->gradient[i]); // all weight gradients are there
}
