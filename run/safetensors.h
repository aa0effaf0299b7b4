// run/safetensors.h - the file format of the checkpoints, read and written.
//
// A safetensors file (https://github.com/huggingface/safetensors) is the simplest format that
// PyTorch's world agrees on, and loading one cannot run code, as unpickling a .pth can:
//
//     8 bytes       n, the header's length, little-endian
//     n bytes       JSON: {"__metadata__": {"key": "value", ...},
//                          "conv1.weight": {"dtype": "F32", "shape": [64, 3, 3, 3],
//                                           "data_offsets": [0, 6912]}, ...}
//     the rest      the tensors' bytes, little-endian, at those offsets, without gaps or overlaps
//
// A checkpoint may come from anywhere, so the reader checks everything before it believes anything.
// What the format allows is read, whoever wrote it: names and metadata of any length, JSON's escapes,
// every dtype, any rank.
//
// Checked by `make check` (tests/safetensors_test.c), `make check SAN=1` and `make fuzz`.
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include "error.h"
#include <stdint.h>

// Room for a name, a key and a value that this program writes; those that it reads have no limit.
enum { TENSOR_NAME = 96, METADATA_VALUE = 256, TENSOR_RANK = 8 };

typedef struct {
  const char *name;  // UTF-8
  const char *dtype; // "F32", "I64", "BF16", ...
  int rank;
  int64_t shape[TENSOR_RANK]; // of a tensor with more dimensions, the first eight
  size_t bytes;               // of its data
  size_t offset;              // from the first tensor's data to its own; the writer sets its own
  const uint8_t *data;        // in the file's memory, or the caller's when writing; not aligned
} tensor;

typedef struct {
  char key[TENSOR_NAME];
  char value[METADATA_VALUE];
} metadata; // to be written

typedef struct {
  const char *key, *value;
} metadata_read;

typedef struct {
  uint8_t *file; // the whole file, owned
  size_t file_bytes;
  char *text;      // a copy of the header, in which the strings below lie, decoded
  tensor *tensors; // sorted by name
  int tensor_count;
  metadata_read *metadata; // sorted by key
  int metadata_count;
} safetensors;

// Reads a file of `size` bytes that lies in memory; `s` takes `bytes` over, which came from malloc,
// and frees it when the call fails. `name` is for the message. False, with a line in e, unless the
// whole file is sound: header length, JSON, known dtypes, sizes that agree with shapes, names used
// once, offsets that cover the data exactly once. A zero in a string (\u0000) becomes the bytes C0 80,
// so that the string still ends at its zero byte.
bool safetensors_parse(uint8_t *bytes, size_t size, const char *name, safetensors *s, error *e);
bool safetensors_read(const char *path, safetensors *s, error *e);
void safetensors_free(safetensors *s);

// NULL when there is none.
const tensor *safetensors_find(const safetensors *s, const char *name);
const char *safetensors_value(const safetensors *s, const char *key);

// The tensor's `count` elements, of F32, F16, BF16 or F64, as floats: an F64 is rounded, the others are floats.
void safetensors_to_floats(const tensor *t, float *floats, size_t count);

// Writes the file, has it reach the disk (fsync), and reads it back: it must have the size and the
// fingerprint of what was written, and a header that safetensors_parse takes. On failure (a full disk,
// no memory) the file is removed, and e says why. Names, keys and values must need no escapes in JSON.
// If file_fingerprint is not NULL it receives that of the file's bytes (files.h).
bool safetensors_write(const char *path, const tensor *tensors, int tensor_count,
                       const metadata *metadata, int metadata_count, uint64_t *file_fingerprint,
                       error *e);

#endif
