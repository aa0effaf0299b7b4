// tests/precisions.h - for checkpoint_test.c: files of weights that are not F32, and what they are worth.
#ifndef PRECISIONS_H
#define PRECISIONS_H

#include "states.h"

enum { TENSORS = 122 }; // 62 parameters, 40 running statistics, 20 counters

static const char bad[] = "bad.safetensors"; // or an odd one

static inline void write_bad(const tensor *tensors, int count) {
  error e;
  if (!safetensors_write(scratch_path(bad), tensors, count, NULL, 0, NULL, &e))
    check(false, "%s", e.text);
}

// A number of each precision, as its bytes stand in a file, and the float that it is.
typedef struct {
  const char *dtype;
  uint64_t bits;
  float value;
} precise;

static const precise numbers_of[] = {{"F16", 0x3C00, 1},
                                     {"F16", 0xC000, -2},
                                     {"F16", 0x3555, 0x1.554p-2f},
                                     {"F16", 0x7BFF, 65504},
                                     {"F16", 0x0400, 0x1p-14f},
                                     {"F16", 0x03FF, 0x3FFp-24f},
                                     {"F16", 0x0001, 0x1p-24f},
                                     {"F16", 0x8001, -0x1p-24f},
                                     {"F16", 0x8000, -0.0f},
                                     {"F16", 0x7C00, INFINITY},
                                     {"F16", 0xFC00, -INFINITY},
                                     {"BF16", 0x3F80, 1},
                                     {"BF16", 0xC049, -3.140625},
                                     {"BF16", 0x0001, 0x1p-133f},
                                     {"BF16", 0x8000, -0.0f},
                                     {"BF16", 0x7F80, INFINITY},
                                     {"F64", 0x3FF0000000000000u, 1},
                                     {"F64", 0xBFD5555555555555u, -1.0f / 3},
                                     {"F64", 0x8000000000000000u, -0.0f},
                                     {"F64", 0x3FB999999999999Au, 0.1f}};

// The weights of state a with every float tensor as `dtype`: number i of each is the table's i-th one
// of that dtype, over and over. `rest` further tensors are of kinds that no network's weights have.
static inline void write_precision(const safetensors *s, const char *dtype, size_t bytes,
                                   int rest) {
  static const char *const others[] = {"U16", "F8_E4M3", "U64", "C64", "BOOL", "I64", "U32"};
  static uint8_t data[40000 * 8]; // the largest tensor has 36,864 numbers
  tensor list[TENSORS + 7];
  size_t at = 0, first = 0, count = 0;
  while (strcmp(numbers_of[first].dtype, dtype)) first++;
  for (size_t i = 0; i < sizeof numbers_of / sizeof *numbers_of; i++)
    count += !strcmp(numbers_of[i].dtype, dtype);
  for (; at < sizeof data; at += bytes)
    memcpy(data + at, &numbers_of[first + at / bytes % count].bits, bytes);
  memcpy(list, s->tensors, TENSORS * sizeof *list);
  for (int i = 0; i < TENSORS; i++)
    if (!strcmp(list[i].dtype, "F32"))
      list[i].dtype = dtype, list[i].bytes = list[i].bytes / 4 * bytes, list[i].data = data;
  for (int i = 0; i < rest; i++)
    list[TENSORS + i] = (tensor){others[i], others[i], .rank = 1, .shape = {0}, .data = data};
  write_bad(list, TENSORS + rest);
}

// Every weight and statistic is the table's number of that dtype, in the file's order.
static inline bool has_numbers(const network *n, const char *dtype) {
  float wanted[20];
  int count = 0, wrong = 0;
  for (size_t i = 0; i < sizeof numbers_of / sizeof *numbers_of; i++)
    if (!strcmp(numbers_of[i].dtype, dtype)) wanted[count++] = numbers_of[i].value;
  for (int i = 0; i < PARAMETERS + STATISTICS; i++) {
    const bool weight = i < PARAMETERS;
    const parameter *p = weight ? &n->parameter_list[i] : &n->statistics_list[i - PARAMETERS];
    const real *own = (weight ? n->parameters.weight : n->statistics) + p->offset;
    const size_t channels = p->rank == 4 ? p->dims[3] : 1;
    const size_t taps = p->rank == 4 ? (size_t)p->dims[1] * p->dims[2] : 1;
    for (size_t j = 0; j < p->count; j++) { // [k][c][tap] in the file, [k][tap][c] in memory
      const size_t k = j / (channels * taps), c = j / taps % channels, tap = j % taps;
      wrong += memcmp(&own[(k * taps + tap) * channels + c], &wanted[j % count], 4) != 0;
    }
  }
  return wrong == 0;
}

#endif
