// fuzz.c - random bytes against the two readers of files from elsewhere, by libFuzzer, which changes
// inputs so that they reach code that no input reached before.
//
// The first byte of an input chooses what the rest is:
//
//     c    a file of CIFAR-10
//     s    a safetensors file
//     h    a safetensors file without the 8 bytes of its header's length: the header ends at the first
//          zero byte, the data begins behind it. So a header can grow without being cut off.
//
// A reader may refuse or accept; it must not read or write outside its memory, overflow or leak (the
// sanitizers see to that), and what it accepts must be as its header file promises, or abort() ends it.
//
//     make fuzz                          a minute of it, from three sound files
//     build/fuzz/fuzz crash-...          one input again
#include "../cifar.h"
#include "../run/files.h"
#include "../run/safetensors.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void require(bool ok) {
  if (!ok) abort();
}

// A line without a line end, that begins with the file's name.
static void require_line(const error *e) {
  require(strlen(e->text) < sizeof e->text && !strncmp(e->text, "file: ", 6) &&
          !strchr(e->text, '\n'));
}

static void read_cifar(const uint8_t *bytes, size_t size) {
  const size_t records = size / RECORD_BYTES;
  uint8_t *images = allocate(records * IMAGE_BYTES), *labels = allocate(records);
  error e;
  if (cifar_parse(bytes, size, "file", images, labels, &e)) {
    require(size > 0 && size % RECORD_BYTES == 0);
    for (size_t i = 0; i < records; i++)
      require(labels[i] < CLASSES &&
              !memcmp(images + i * IMAGE_BYTES, bytes + i * RECORD_BYTES + 1, IMAGE_BYTES));
  } else {
    require_line(&e);
  }
  free(images);
  free(labels);
}

// Everything that checkpoint.c takes from a file: names, shapes, all the bytes, metadata.
static void walk(const safetensors *s) {
  uint64_t header = 0;
  size_t bytes = 0;
  for (int i = 0; i < 8; i++) header |= (uint64_t)s->file[i] << (8 * i);
  for (int i = 0; i < s->tensor_count; i++) {
    const tensor *t = &s->tensors[i];
    require(safetensors_find(s, t->name) == t && t->rank >= 0);
    for (int j = 0; j < t->rank && j < TENSOR_RANK; j++) require(t->shape[j] >= 0);
    fingerprint(FINGERPRINT_OF_NOTHING, t->data, t->bytes); // reads each byte
    bytes += t->bytes;
  }
  require(8 + header + bytes == s->file_bytes); // each byte belongs to one tensor
  for (int i = 0; i < s->metadata_count; i++)
    require(safetensors_value(s, s->metadata[i].key) == s->metadata[i].value);
}

// The reader frees `bytes`.
static void read_safetensors(uint8_t *bytes, size_t size) {
  safetensors s;
  error e;
  if (safetensors_parse(bytes, size, "file", &s, &e)) {
    walk(&s);
    safetensors_free(&s);
  } else {
    require_line(&e);
  }
}

static void read_header_and_data(const uint8_t *bytes, size_t size) {
  const uint8_t *zero = memchr(bytes, 0, size);
  const size_t header = zero ? (size_t)(zero - bytes) : size;
  const size_t data = zero ? size - header - 1 : 0;
  uint8_t *file = allocate(8 + header + data);
  for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)header >> (8 * i));
  memcpy(file + 8, bytes, header);
  if (zero) memcpy(file + 8 + header, zero + 1, data);
  read_safetensors(file, 8 + header + data);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  if (size == 0) return 0;
  if (bytes[0] == 'c') read_cifar(bytes + 1, size - 1);
  if (bytes[0] == 'h') read_header_and_data(bytes + 1, size - 1);
  if (bytes[0] == 's') {
    uint8_t *file = allocate(size - 1);
    memcpy(file, bytes + 1, size - 1);
    read_safetensors(file, size - 1);
  }
  return 0;
}
