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

// A row: of those elements of `out` for which `depends` is not 0, none may be a number.
static void expect(const array *out, const real *depends, const char *what) {
  int all = 0, numbers = 0;
  if (out->converted)
    d->download_activations(out->host, out->there, out->shape);
  else
    d->download(out->host, out->there, out->count * sizeof(real));
  for (size_t i = 0; i < out->count; i++)
    if (depends[i] != 0) {
      all++;
      numbers += !isnan(out->host[i]);
    }
  check(all && !numbers, "%s, %s: of %d, %d stay numbers", d->name, what, all, numbers);
}

// A row behind expect's: the others are numbers.
static void expect_numbers(const array *out, const real *depends, const char *what) {
  int lost = 0;
  for (size_t i = 0; i < out->count; i++) lost += depends[i] == 0 && isnan(out->host[i]);
  check(!lost, "%s, %s: of what does not depend on it, %d are NaN", d->name, what, lost);
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

// What a batch normalisation reads.
enum { Z, RESIDUAL, GAMMA, BETA, MEAN, VARIANCE, PLACES };
static const char *const places[PLACES] = {"z",    "the residual", "gamma",
                                           "beta", "mean",         "variance"};

#endif
