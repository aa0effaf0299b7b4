// run/layers.c - which tensors and units the network has, their memory, and their initial weights.
// network.h has the picture; network.c goes through them, forward and backward.
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
  u->running_mean = add_statistic(n, norm, "running_mean", channels);
  u->running_var = add_statistic(n, norm, "running_var", channels);
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
  if (width < 8 || width > MOST_WIDTH || width % 8)
    return fail(e, "width %d: must be a multiple of 8 from 8 to %d", width, MOST_WIDTH);
  if (batch < 1 || batch > MOST_BATCH)
    return fail(e, "batch %d: must be from 1 to %d", batch, MOST_BATCH);
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

// Training leaves out u's y if `reader`, the only convolution that reads it, can make it of z. Whether so.
static bool let_reader_normalise(const network *n, unit *u, unit *reader) {
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
    let_reader_normalise(n, &n->units[k->a], b);
    if (k->shortcut < 0) continue;
    n->units[k->shortcut].y_left_out = true;
    b->residual_from = &n->units[k->shortcut];
  }
  unit *stem = &n->units[0];
  if (let_reader_normalise(n, stem, &n->units[n->blocks[0].a]))
    n->units[n->blocks[0].b].residual_from = stem;
}

// A shortcut's norm goes back together with that of its block's b, on a device that does both at once.
static void pair_shortcuts(network *n) {
  const fusions *f = n->device->fused;
  for (int i = 0; f && f->block_backward_masked && i < BLOCKS; i++)
    if (n->blocks[i].shortcut >= 0)
      n->units[n->blocks[i].b].paired_shortcut = &n->units[n->blocks[i].shortcut];
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
  pair_shortcuts(n);
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
