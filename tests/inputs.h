// tests/inputs.h - what the numerical tests share: arrays that go away by themselves, random inputs,
// poisoned outputs, and the largest difference.
#ifndef INPUTS_H
#define INPUTS_H

#include "../device.h"
#include "../run/error.h"
#include "check.h"
#include <string.h>

static random_stream stream; // of all random inputs; main() opens it with check_seed()

static void *taken[400];
static int taken_count;

// Zeroed memory, aligned as a device's own, that lasts until the next release(): a test calls that
// once, at its end.
static inline void *take(size_t bytes) {
  const size_t rounded = (bytes + 63) / 64 * 64 + 64;
  void *memory = aligned_alloc(64, rounded);
  if (!memory) out_of_memory(rounded);
  if (taken_count == sizeof taken / sizeof *taken) abort();
  memset(memory, 0, rounded);
  return taken[taken_count++] = memory;
}

static inline void release(void) {
  while (taken_count) free(taken[--taken_count]);
}

static inline real *normals(size_t count, double mean, double deviation) {
  real *values = take(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = (real)(mean + deviation * random_normal(&stream));
  return values;
}

// An output before it is written. What an operation leaves out stays NaN and fails its check.
static inline real *poison(size_t count) {
  real *values = take(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = (real)NAN;
  return values;
}

static inline real *absolute(const real *values, size_t count) {
  real *result = take(count * sizeof *result);
  for (size_t i = 0; i < count; i++) result[i] = (real)fabs(values[i]);
  return result;
}

// bf16 is the upper half of a float; ties to even. For finite values.
static inline float to_nearest_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  memcpy(&value, &bits, sizeof bits);
  return value;
}

// So many numbers, whatever they are, for a device that lays them out as the host does.
static inline activation_shape in_a_line(size_t count) {
  return (activation_shape){1, 1, (int)count};
}

static inline double worst_difference(const real *a, const real *b, size_t count) {
  double worst = 0;
  for (size_t i = 0; i < count; i++) worst = larger(worst, fabs((double)a[i] - b[i]));
  return worst;
}

#endif
