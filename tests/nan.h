// tests/nan.h - what nan_test.c has to work with: a NaN, arrays on the device, and the rows that ask for NaNs
// in them.
#ifndef NAN_H
#define NAN_H

#include "../reference/reference.h"
#include "inputs.h"

static const device *d; // at work

// A GPU's NaN, all bits set but the sign: rounded to bf16 by an addition, it would become -0.
static real a_nan(void) {
  const uint32_t bits = 0x7fffffff;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// What convolutions and the linear layer read as weights has the format of activations where it is
// rounded, and is floats where it is not.
typedef enum { ACTIVATIONS, WEIGHTS, REALS } format;

typedef struct {
  bool converted;         // from and to floats, on its way
  activation_shape shape; // of ACTIVATIONS; of others, all elements in a line
  size_t count;
  real *host;
  void *there;
} array;

static void *held[60];
static int held_count;

static void *hold(const void *host, size_t bytes) {
  if (held_count == sizeof held / sizeof *held) abort();
  void *there = held[held_count++] = d->allocate(bytes);
  d->upload(there, host, bytes);
  return there;
}

static void let_go(void) {
  while (held_count) d->release(held[--held_count]);
}

static array put_shaped(format f, real *host, activation_shape shape) {
  const bool converted = f == ACTIVATIONS || (f == WEIGHTS && d->rounded_weight_bytes);
  array a = {converted, shape, activation_count(shape), host, NULL};
  const size_t bytes = f == ACTIVATIONS ? activation_size(d, shape)
                       : converted      ? a.count * d->rounded_weight_bytes
                                        : a.count * sizeof(real);
  if (!converted) {
    a.there = hold(host, bytes);
  } else {
    a.there = hold(take(bytes), bytes);
    d->upload_activations(a.there, host, shape);
  }
  return a;
}

static array put(format f, real *host, size_t count) {
  return put_shaped(f, host, (activation_shape){1, 1, (int)count});
}

static array put_activations(real *host, activation_shape shape) {
  return put_shaped(ACTIVATIONS, host, shape);
}

// Outputs: zeros before.
static array zeros(format f, size_t count) {
  return put(f, take(count * sizeof(real)), count);
}

static array zero_activations(activation_shape shape) {
  return put_activations(take(activation_count(shape) * sizeof(real)), shape);
}

static void fetch(const array *out) {
  if (out->converted)
    d->download_activations(out->host, out->there, out->shape);
  else
    d->download(out->host, out->there, out->count * sizeof(real));
}

// A row: of those elements of `out` for which `depends` is not 0, none may be a number.
static void expect(const array *out, const real *depends, const char *what) {
  int all = 0, numbers = 0;
  fetch(out);
  for (size_t i = 0; i < out->count; i++)
    if (depends[i] != 0) {
      all++;
      numbers += !isnan(out->host[i]);
    }
  check(all && !numbers, "%s, %s: of %d, %d stay numbers", d->name, what, all, numbers);
}

// A row: those are NaNs, and the others, which may be all, are numbers.
static void expect_just(const array *out, const real *depends, const char *what) {
  int numbers = 0, lost = 0;
  fetch(out);
  for (size_t i = 0; i < out->count; i++) {
    numbers += depends[i] != 0 && !isnan(out->host[i]);
    lost += depends[i] == 0 && isnan(out->host[i]);
  }
  check(!numbers && !lost, "%s, %s: %d stay numbers; of what does not depend on it, %d are NaN",
        d->name, what, numbers, lost);
}

static real *ones(size_t count) {
  real *values = take(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = 1;
  return values;
}

// 1 at i where i = at, counted modulo `period`, if there is one; else 0.
static real *only(size_t count, size_t at, size_t period) {
  real *values = take(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = (period ? i % period : i) == at;
  return values;
}

static size_t somewhere(size_t count) {
  return random_below(&stream, (uint32_t)count);
}

static bool any(const real *marks, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (marks[i] != 0) return true;
  return false;
}

// 1 for each channel of which [n][C] has a mark.
static real *channels_of(const real *marks, size_t count, size_t channels) {
  real *values = take(channels * sizeof *values);
  for (size_t i = 0; i < count; i++)
    if (marks[i] != 0) values[i % channels] = 1;
  return values;
}

// -- What depends on what in a convolution ----------------------------------------------------------

typedef enum { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT } pass;
typedef enum { FIRST, SECOND, RESULT } operand;

typedef struct {
  size_t x, w, z;
  activation_shape x_shape, z_shape;
} conv_sizes;

static conv_sizes sizes_of(const conv_shape *s) {
  const activation_shape x = {s->batch, s->in_height * s->in_width, s->in_channels};
  const activation_shape z = {s->batch, s->out_height * s->out_width, s->out_channels};
  const size_t w = (size_t)s->out_channels * s->kernel * s->kernel * s->in_channels;
  return (conv_sizes){activation_count(x), w, activation_count(z), x, z};
}

static size_t operand_count(const conv_shape *s, pass p, operand of) {
  const conv_sizes n = sizes_of(s);
  const size_t counts[3][3] = {{n.x, n.w, n.z}, {n.z, n.w, n.x}, {n.z, n.x, n.w}};
  return counts[p][of];
}

static void convolve(const device *by, const conv_shape *s, pass p, void *out, const void *a,
                     const void *b, double *sums) {
  if (p == FORWARD) by->conv_forward(s, out, a, b, sums);
  if (p == BACKWARD_INPUT) by->conv_backward_input(s, out, a, b, false);
  if (p == BACKWARD_WEIGHT) by->conv_backward_weight(s, out, a, b);
}

// What of the result depends on the marked elements of one operand.
static real *seen_from(const conv_shape *s, pass p, operand of, const real *marks) {
  const real *others = ones(operand_count(s, p, of == FIRST ? SECOND : FIRST));
  real *depends = poison(operand_count(s, p, RESULT));
  convolve(&reference_device, s, p, depends, of == FIRST ? marks : others,
           of == FIRST ? others : marks, NULL);
  return depends;
}

// Draws an element, and finds what depends on it. Not every pixel is seen by a 1x1 convolution with stride 2:
// one is drawn that is.
static size_t draw_seen(const conv_shape *s, pass p, operand of, real **depends) {
  const size_t count = operand_count(s, p, of);
  size_t at;
  do {
    at = somewhere(count);
    *depends = seen_from(s, p, of, only(count, at, 0));
  } while (!any(*depends, operand_count(s, p, RESULT)));
  return at;
}

#endif
