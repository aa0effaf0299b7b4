// run/inspect.c - a network's plan, and the search for a bad value in it; see run/inspect.h.
#include "inspect.h"

#include <math.h>
#include <string.h>

// -- The plan ----------------------------------------------------------------------------------------

static double unit_flops(const unit *u) {
  const conv_shape *s = &u->shape;
  return 2.0 * s->out_height * s->out_width * s->out_channels * s->kernel * s->kernel *
         s->in_channels;
}

static double linear_flops(const network *n) {
  return 2.0 * CLASSES * 8 * n->width;
}

double network_flops(const network *n) {
  double flops = linear_flops(n);
  for (int i = 0; i < UNITS; i++) flops += unit_flops(&n->units[i]);
  return flops;
}

void network_print_plan(const network *n, FILE *out) {
  const size_t activation = n->device->activation_bytes;
  fprintf(out, "%-24s %-14s %-14s %12s %12s %14s\n", "layer (with its norm)", "input", "output",
          "parameters", "MFLOP/image", "KiB/image");
  for (int i = 0; i < UNITS; i++) {
    const unit *u = &n->units[i];
    const conv_shape *s = &u->shape;
    char module[40], in[32], shape[32];
    snprintf(module, sizeof module, "%s", n->parameter_list[u->weight].name);
    *strrchr(module, '.') = 0; // without ".weight"
    snprintf(in, sizeof in, "%dx%dx%d", s->in_height, s->in_width, s->in_channels);
    snprintf(shape, sizeof shape, "%dx%dx%d", s->out_height, s->out_width, s->out_channels);
    fprintf(out, "%-24s %-14s %-14s %12zu %12.2f %14.1f\n", module, in, shape,
            n->parameter_list[u->weight].count + 2 * (size_t)s->out_channels, unit_flops(u) / 1e6,
            2.0 * activation_count(unit_output_shape(u, 1)) * activation / 1024);
  }
  fprintf(out, "%-24s %-14d %-14d %12d %12.2f %14.1f\n", "linear", 8 * n->width, CLASSES,
          CLASSES * (8 * n->width + 1), linear_flops(n) / 1e6,
          (8.0 * n->width * activation + 2 * CLASSES * sizeof(real)) / 1024);
  fprintf(out,
          "total: %zu parameters, %.2f MFLOP an image forward, about three times that to train\n",
          n->parameters.count, network_flops(n) / 1e6);
  fprintf(out, "memory: %.1f MiB for weights, gradients and momentum, %.2f MiB an image; ",
          n->parameters.count * (3 * sizeof(real) + n->device->rounded_weight_bytes) / 1048576.0,
          network_bytes_per_image(n) / 1048576.0);
  fprintf(out, "%.1f MiB at batch %d\n", network_bytes(n) / 1048576.0, n->max_batch);
}

// -- A bad value --------------------------------------------------------------------------------------

static bool all_finite(const real *values, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!isfinite(values[i])) return false;
  return true;
}

static const char *first_bad(const device *d, const parameter *list, int count,
                             const real *device_array, size_t size) {
  real *host = allocate(size * sizeof(real));
  const char *bad = NULL;
  d->download(host, device_array, size * sizeof(real));
  for (int i = 0; i < count && !bad; i++)
    if (!all_finite(host + list[i].offset, list[i].count)) bad = list[i].name;
  free(host);
  return bad;
}

const char *network_bad_tensor(const network *n) {
  const parameters *p = &n->parameters;
  const char *weight = first_bad(n->device, p->list, p->list_count, p->weight, p->count);
  return weight ? weight
                : first_bad(n->device, n->statistics_list, n->statistics_count, n->statistics,
                            n->statistics_size);
}

static bool activations_finite(const network *n, const void *activations, activation_shape shape) {
  real *host = allocate(activation_count(shape) * sizeof(real));
  n->device->download_activations(host, activations, shape);
  const bool finite = all_finite(host, activation_count(shape));
  free(host);
  return finite;
}

// "the output of layer1.0.conv1": the module to whose weight the name belongs.
static char *output_of(const parameter *weight) {
  static char text[120];
  snprintf(text, sizeof text, "the output of %s", weight->name);
  *strrchr(text, '.') = 0;
  return text;
}

static const char *bad_output(const network *n, const unit *u) {
  const activation_shape shape = unit_output_shape(u, n->batch);
  if (!activations_finite(n, u->z, shape)) {
    char *text = output_of(&n->parameter_list[u->weight]);
    return u->x_from ? strcat(text, " or of the norm below it") : text;
  }
  if (!u->y_left_out && !activations_finite(n, u->y, shape)) {
    char *text = output_of(&n->parameter_list[u->gamma]);
    return u->residual_from ? strcat(text, " or of the norm that is added to it") : text;
  }
  return NULL;
}

const char *network_bad_activation(const network *n) {
  real logits[CLASSES];
  const activation_shape input = {n->batch, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS};
  if (!activations_finite(n, n->input, input)) return "the input";
  const char *bad = bad_output(n, &n->units[0]);
  for (int i = 0; i < BLOCKS && !bad; i++) {
    const block *k = &n->blocks[i];
    bad = bad_output(n, &n->units[k->a]);
    if (!bad && k->shortcut >= 0) bad = bad_output(n, &n->units[k->shortcut]);
    if (!bad) bad = bad_output(n, &n->units[k->b]);
  }
  for (int b = 0; b < n->batch && !bad; b++) {
    n->device->download(logits, n->logits + (size_t)b * CLASSES, sizeof logits);
    if (!all_finite(logits, CLASSES)) bad = "the logits";
  }
  return bad;
}
