// network.c - ResNet-18 as a list of units and blocks, its memory, its forward and backward pass.
// network.h has the picture; every operation called here is explained in device.h.
//
// Memory. Training keeps two activations a unit: z, which the norm's backward pass needs, and y,
// which ReLU's mask and the next convolution's weight gradient need; a device may want the mask by
// itself, too. (A device may also compute a y that has no residual in it from z, where it is read:
// device.h, takes_norm. Then training stores only the blocks' outputs, and evaluation all.) Gradients of
// activations are needed only until the layer before has used them, so three buffers serve for all of them;
// they are drawn beside block_backward.
#include "network.h"

#include "run/random.h"
#include <math.h>
#include <string.h>

// -- Which tensors and layers there are ----------------------------------------------------------

// A tensor of the given shape at the end of a flat array of *size elements, which grows by it.
static parameter append_tensor(size_t *size, const char *module, const char *name, int rank,
                               const int dims[4]) {
  parameter t = {.rank = rank, .offset = *size, .count = 1};
  snprintf(t.name, sizeof t.name, "%s.%s", module, name);
  for (int i = 0; i < 4; i++) {
    t.dims[i] = dims[i];
    t.count *= (size_t)dims[i];
  }
  *size += t.count;
  return t;
}

static int add_parameter(network *n, const char *module, const char *name, int rank,
                         const int dims[4]) {
  parameters *p = &n->parameters;
  n->parameter_list[p->list_count] = append_tensor(&p->count, module, name, rank, dims);
  return p->list_count++;
}

static int add_statistic(network *n, const char *module, const char *name, const int dims[4]) {
  n->statistics_list[n->statistics_count] =
      append_tensor(&n->statistics_size, module, name, 1, dims);
  return n->statistics_count++;
}

// conv and norm are PyTorch's names of the two modules: "layer1.0.conv1", "layer1.0.bn1".
static int add_unit(network *n, const char *conv, const char *norm, conv_shape s) {
  const int filters[4] = {s.out_channels, s.kernel, s.kernel, s.in_channels};
  const int channels[4] = {s.out_channels, 1, 1, 1};
  unit *u = &n->units[n->unit_count];
  u->shape = s;
  u->relu = true;
  u->weight = add_parameter(n, conv, "weight", 4, filters);
  u->gamma = add_parameter(n, norm, "weight", 1, channels);
  u->beta = add_parameter(n, norm, "bias", 1, channels);
  u->mean = add_statistic(n, norm, "running_mean", channels);
  u->variance = add_statistic(n, norm, "running_var", channels);
  return n->unit_count++;
}

// Block j of a stage, from an image of side x side pixels; a first block has the stride.
static void add_block(network *n, int stage, int j, int side, int in_channels, int out_channels,
                      int stride) {
  char conv[32], norm[32];
  block *k = &n->blocks[2 * (stage - 1) + j];
  const conv_shape a =
      make_conv_shape(n->max_batch, side, side, in_channels, out_channels, 3, stride);
  const conv_shape b =
      make_conv_shape(n->max_batch, a.out_height, a.out_width, out_channels, out_channels, 3, 1);
  snprintf(conv, sizeof conv, "layer%d.%d.conv1", stage, j);
  snprintf(norm, sizeof norm, "layer%d.%d.bn1", stage, j);
  k->a = add_unit(n, conv, norm, a);
  snprintf(conv, sizeof conv, "layer%d.%d.conv2", stage, j);
  snprintf(norm, sizeof norm, "layer%d.%d.bn2", stage, j);
  k->b = add_unit(n, conv, norm, b);
  n->units[k->b].has_residual = true;
  k->shortcut = -1;
  if (stride == 1 && in_channels == out_channels) return;
  snprintf(conv, sizeof conv, "layer%d.%d.shortcut.0", stage, j);
  snprintf(norm, sizeof norm, "layer%d.%d.shortcut.1", stage, j);
  k->shortcut =
      add_unit(n, conv, norm,
               make_conv_shape(n->max_batch, side, side, in_channels, out_channels, 1, stride));
  n->units[k->shortcut].relu = false;
}

bool network_describe(network *n, const device *d, int width, int batch, error *e) {
  memset(n, 0, sizeof *n);
  if (width < 8 || width > 1024 || width % 8)
    return fail(e, "width %d: must be a multiple of 8 from 8 to 1024", width);
  if (batch < 1 || batch > 65536) return fail(e, "batch %d: must be from 1 to 65536", batch);
  n->device = d;
  n->width = width;
  n->max_batch = batch;
  n->parameters.list = n->parameter_list;
  add_unit(n, "conv1", "bn1",
           make_conv_shape(batch, IMAGE_SIDE, IMAGE_SIDE, IMAGE_CHANNELS, width, 3, 1));
  int side = IMAGE_SIDE, channels = width;
  for (int stage = 1; stage <= 4; stage++) {
    const int stride = stage == 1 ? 1 : 2, out_channels = width << (stage - 1);
    add_block(n, stage, 0, side, channels, out_channels, stride);
    side /= stride;
    channels = out_channels;
    add_block(n, stage, 1, side, channels, channels, 1);
  }
  add_parameter(n, "linear", "weight", 2, (const int[4]){CLASSES, channels, 1, 1});
  add_parameter(n, "linear", "bias", 1, (const int[4]){CLASSES, 1, 1, 1});
  return true;
}

// -- Memory ----------------------------------------------------------------------------------------

activation_shape unit_output_shape(const unit *u, int images) {
  const conv_shape *s = &u->shape;
  return (activation_shape){images, s->out_height * s->out_width, s->out_channels};
}

static activation_shape input_shape(int images) {
  return (activation_shape){images, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS};
}

static activation_shape pooled_shape(const network *n, int images) {
  return (activation_shape){images, 1, 8 * n->width};
}

static bool keeps_mask(const device *d, const unit *u) {
  return d->fused && d->fused->keeps_masks && u->has_residual;
}

static void allocate_unit(network *n, unit *u) {
  const device *d = n->device;
  const size_t channels = (size_t)u->shape.out_channels;
  const size_t bytes = activation_size(d, unit_output_shape(u, n->max_batch));
  u->z = d->allocate(bytes);
  u->y = d->allocate(bytes);
  if (keeps_mask(d, u))
    u->mask = d->allocate((activation_count(unit_output_shape(u, n->max_batch)) + 7) / 8);
  u->sums = d->allocate(2 * channels * sizeof(double));
  u->saved_mean = d->allocate(channels * sizeof(real));
  u->saved_inverse_std = d->allocate(channels * sizeof(real));
}

// Does `reader`, the only convolution that reads u's y, let training not store it?
static bool leave_out_output(const network *n, unit *u, unit *reader) {
  u->y_left_out = n->device->fused->takes_norm(&reader->shape);
  if (u->y_left_out) reader->x_from = u;
  return u->y_left_out;
}

// Who reads an output without a residual: a's, the block's second convolution; the stem's, the first
// block's first convolution, and as its residual, that block's norm; a shortcut's, only its block's norm.
static void leave_out_outputs(network *n) {
  const fusions *f = n->device->fused;
  if (!f || !f->takes_norm) return;
  for (int i = 0; i < BLOCKS; i++) {
    const block *k = &n->blocks[i];
    unit *b = &n->units[k->b];
    leave_out_output(n, &n->units[k->a], b);
    if (k->shortcut < 0) continue;
    n->units[k->shortcut].y_left_out = true;
    b->residual_from = &n->units[k->shortcut];
  }
  unit *stem = &n->units[0];
  if (leave_out_output(n, stem, &n->units[n->blocks[0].a]))
    n->units[n->blocks[0].b].residual_from = stem;
}

bool network_create(network *n, const device *d, int width, int batch, error *e) {
  if (!network_describe(n, d, width, batch, e)) return false;
  parameters *p = &n->parameters;
  p->weight = d->allocate(p->count * sizeof(real));
  p->gradient = d->allocate(p->count * sizeof(real));
  p->momentum = d->allocate(p->count * sizeof(real));
  p->rounded_weight =
      d->rounded_weight_bytes ? d->allocate(p->count * d->rounded_weight_bytes) : p->weight;
  n->statistics = d->allocate(n->statistics_size * sizeof(real));
  for (int i = 0; i < UNITS; i++) allocate_unit(n, &n->units[i]);
  leave_out_outputs(n);
  n->input = d->allocate(activation_size(d, input_shape(batch)));
  n->pooled = d->allocate(activation_size(d, pooled_shape(n, batch)));
  n->logits = d->allocate((size_t)batch * CLASSES * sizeof(real));
  n->dlogits = d->allocate((size_t)batch * CLASSES * sizeof(real));
  for (int i = 0; i < 3; i++)
    n->gradient[i].data = d->allocate(activation_size(d, unit_output_shape(&n->units[0], batch)));
  return true;
}

void network_free(network *n) {
  const device *d = n->device;
  parameters *p = &n->parameters;
  if (d->rounded_weight_bytes) d->release(p->rounded_weight);
  d->release(p->weight);
  d->release(p->gradient);
  d->release(p->momentum);
  d->release(n->statistics);
  for (int i = 0; i < UNITS; i++) {
    unit *u = &n->units[i];
    d->release(u->z);
    d->release(u->y);
    d->release(u->mask);
    d->release(u->sums);
    d->release(u->saved_mean);
    d->release(u->saved_inverse_std);
  }
  d->release(n->input);
  d->release(n->pooled);
  d->release(n->logits);
  d->release(n->dlogits);
  for (int i = 0; i < 3; i++) d->release(n->gradient[i].data);
}

size_t network_bytes_per_image(const network *n) {
  const device *d = n->device;
  const int block = d->block; // of images: one takes its share of a whole one
  size_t bytes = activation_size(d, input_shape(block)) +
                 activation_size(d, pooled_shape(n, block)) +
                 3 * activation_size(d, unit_output_shape(&n->units[0], block));
  for (int i = 0; i < UNITS; i++) {
    const activation_shape shape = unit_output_shape(&n->units[i], block);
    bytes += 2 * activation_size(d, shape);
    if (keeps_mask(d, &n->units[i])) bytes += activation_count(shape) / 8;
  }
  return bytes / block + 2 * CLASSES * sizeof(real);
}

size_t network_bytes(const network *n) {
  const size_t block = n->device->block, images = (n->max_batch + block - 1) / block * block;
  return n->parameters.count * (3 * sizeof(real) + n->device->rounded_weight_bytes) +
         n->statistics_size * (2 * sizeof(real) + sizeof(double)) +
         images * network_bytes_per_image(n);
}

// -- Initial weights ---------------------------------------------------------------------------

// PyTorch calls it kaiming_uniform with a = sqrt(5): uniform within 1 / sqrt(fan_in) either way.
static void draw_uniform(real *weights, size_t count, int fan_in, uint64_t seed, int position) {
  random_stream stream = random_open(seed, RANDOM_WEIGHTS, 0, (uint32_t)position);
  const float bound = (float)(1 / sqrt(fan_in));
  for (size_t i = 0; i < count; i++) weights[i] = bound * (2 * random_float(&stream) - 1);
}

void network_initialise(network *n, uint64_t seed) {
  const device *d = n->device;
  parameters *p = &n->parameters;
  real *host = allocate(p->count * sizeof(real));
  d->upload(p->momentum, host, p->count * sizeof(real)); // host memory comes zeroed (run/error.h)
  for (int i = 0; i < p->list_count; i++) {
    const parameter *t = &p->list[i];
    if (t->rank > 1)
      draw_uniform(host + t->offset, t->count, (int)(t->count / t->dims[0]), seed, i);
    else if (!strcmp(t->name, "linear.bias"))
      draw_uniform(host + t->offset, t->count, 8 * n->width, seed, i);
    else if (strstr(t->name, ".weight")) // gamma 1; beta stays 0
      for (size_t j = 0; j < t->count; j++) host[t->offset + j] = 1;
  }
  d->upload(p->weight, host, p->count * sizeof(real));
  d->refresh_rounded_weights(p);
  for (int i = 0; i < n->statistics_count; i++) {
    const parameter *t = &n->statistics_list[i];
    const bool variance = strstr(t->name, "running_var");
    for (size_t j = 0; j < t->count; j++) host[t->offset + j] = variance ? 1 : 0;
  }
  d->upload(n->statistics, host, n->statistics_size * sizeof(real));
  free(host);
  n->batches_tracked = 0;
}

// -- Forward and backward ------------------------------------------------------------------------

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
                       .running_mean = statistic_of(n, u->mean),
                       .running_var = statistic_of(n, u->variance),
                       .mean = u->saved_mean,
                       .inverse_std = u->saved_inverse_std};
}

static norm_shape norm_shape_of(const unit *u) {
  const conv_shape *s = &u->shape;
  return (norm_shape){s->batch * s->out_height * s->out_width, s->out_channels, s->batch};
}

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

// What a convolution that reads u's output may want to know of u.
static norm_below below_of(const network *n, const unit *u) {
  return (norm_below){.norm = arrays_of(n, u),
                      .z = u->z,
                      .y = u->has_residual ? u->y : NULL,
                      .mask = u->mask,
                      .dgamma = gradient_of(n, u->gamma),
                      .dbeta = gradient_of(n, u->beta)};
}

// The norm behind them, with what the block adds.
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
    const norm_below below = below_of(n, u->x_from);
    f->norm_conv_statistics(&u->shape, u->z, &below, w, &a);
  } else {
    f->conv_statistics(&u->shape, u->z, u->x, w, &a);
  }
  if (!u->y_left_out) apply_norm(n, u, &a, residual);
}

// The same; in training with the batch's statistics.
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
    const norm_below below = below_of(n, u->x_from);
    d->fused->norm_conv_backward_weight(&u->shape, dw, dz->data, &below);
  } else {
    d->conv_backward_weight(&u->shape, dw, dz->data, u->x);
  }
  if (r) dz->reader = r->side_ends();
}

// The gradient of u's convolution output (dz, may be dy) and of gamma and beta, from that of its
// output (dy); then that of its filters. dresidual as in device.h. masked: dy has been through ReLU's
// mask already, and gamma's and beta's gradients are there; then dy itself is the residual's.
static void unit_backward(network *n, unit *u, gradient_buffer *dz, gradient_buffer *dresidual,
                          gradient_buffer *dy, bool masked) {
  const device *d = n->device;
  const norm_shape shape = norm_shape_of(u);
  const norm_arrays a = arrays_of(n, u);
  real *dgamma = gradient_of(n, u->gamma), *dbeta = gradient_of(n, u->beta);
  wait_for_reader(n, dz);
  if (masked) {
    d->fused->norm_spread(&shape, dz->data, dy->data, u->z, dgamma, dbeta, &a);
  } else {
    if (dresidual) wait_for_reader(n, dresidual);
    d->norm_backward(&shape, dz->data, dresidual ? dresidual->data : NULL, dgamma, dbeta, dy->data,
                     u->y, u->z, a.gamma, a.mean, a.inverse_std, u->relu);
  }
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
  const norm_below b = below_of(n, below);
  d->fused->conv_backward_masked(&u->shape, dx->data, dz->data, w, accumulate, &b);
  return true;
}

// The gradient of the x that a block's a and its shortcut read, from that of their outputs.
static bool add_shortcut(network *n, unit *a, unit *shortcut, gradient_buffer *dx,
                         const gradient_buffer *da, const gradient_buffer *ds, const unit *below) {
  const fusions *f = n->device->fused;
  if (!f || !f->block_backward_masked) {
    unit_backward_input(n, shortcut, dx, ds, false, NULL);
    return unit_backward_input(n, a, dx, da, true, below);
  }
  const norm_below b = below_of(n, below);
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
//     b's convolution            g                             -> dy of a        dz of b
//     a's norm                   g                             -> dz of a        .
//
//     x itself is the residual: g is a part of dx
//     a's convolution            + its part, -> dx             dz of a           .
//
//     the shortcut's y is the residual: g is its dy
//     its norm                   -> dz of the shortcut         dz of a           .
//     its convolution            dz of the shortcut            dz of a           -> a part of dx
//     a's convolution            .                             dz of a           + its part, -> dx
//       (or both at once         dz of the shortcut            dz of a           -> dx)
//     gradient[0] and gradient[2] exchange their names
//
// The weight gradients of b, a and the shortcut read their dz on the side branch, while the main branch
// goes on. A buffer that it overwrites next it first waits for: dz of b in the block below, or for the
// shortcut; dz of a where the next block's b has its dx.
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
  unit_backward(n, shortcut, dy, NULL, dy, false);
  const bool x_masked = add_shortcut(n, a, shortcut, dz, da, dy, below);
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
