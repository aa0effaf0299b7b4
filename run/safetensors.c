// run/safetensors.c - a reader and a writer of safetensors files; safetensors.h has the format.
#define _POSIX_C_SOURCE 200809L
#include "safetensors.h"

#include "files.h"
#include "json.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

enum { HEADER_LIMIT = 100000000 }; // bytes; the format's own limit

// -- From header to tensors --------------------------------------------------------------------------

// Of an element; 0 for a dtype that the format does not have. Two of F4, four of F6 fill whole bytes.
static size_t dtype_bits(const char *dtype) {
  static const struct {
    const char *name;
    size_t bits;
  } known[] = {{"F64", 64},        {"F32", 32},       {"F16", 16},    {"BF16", 16},
               {"I64", 64},        {"I32", 32},       {"I16", 16},    {"I8", 8},
               {"U64", 64},        {"U32", 32},       {"U16", 16},    {"U8", 8},
               {"BOOL", 8},        {"C64", 64},       {"F8_E4M3", 8}, {"F8_E5M2", 8},
               {"F8_E8M0", 8},     {"F6_E2M3", 6},    {"F6_E3M2", 6}, {"F4", 4},
               {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(dtype, known[i].name)) return known[i].bits;
  return 0;
}

// A tensor's description, as it is read.
typedef struct {
  tensor t;
  size_t elements; // the product of its shape,
  bool fits;       // unless that is too large a number
  int64_t offsets[2];
  int offset_count;
} description;

static bool read_member(cursor *c, description *d) {
  const char *key;
  size_t product;
  bool fits;
  if (!read_key(c, &key)) return false;
  if (!strcmp(key, "dtype") && !d->t.dtype) return read_string(c, &d->t.dtype);
  if (!strcmp(key, "shape") && d->t.rank < 0)
    return read_numbers(c, d->t.shape, TENSOR_RANK, &d->t.rank, &d->elements, &d->fits);
  if (!strcmp(key, "data_offsets") && !d->offset_count)
    return read_numbers(c, d->offsets, 2, &d->offset_count, &product, &fits) &&
           (d->offset_count == 2 || expect(c, "two numbers in data_offsets"));
  return expect(c, "dtype, shape and data_offsets, once each");
}

// {"dtype": .., "shape": .., "data_offsets": ..} in any order, each once; the data has `room` bytes.
static bool read_tensor(cursor *c, const char *name, size_t room, tensor *t) {
  description d = {.t = {.name = name, .rank = -1}};
  size_t bits;
  if (!next_is(c, '{')) return expect(c, "'{' and a tensor's description");
  do
    if (!read_member(c, &d)) return false;
  while (next_is(c, ','));
  if (!d.t.dtype || d.t.rank < 0 || !d.offset_count)
    return expect(c, "a tensor's dtype, shape and data_offsets");
  if (!next_is(c, '}')) return expect(c, "'}'");
  if (!dtype_bits(d.t.dtype)) return expect(c, "a known dtype");
  if (d.offsets[0] > d.offsets[1] || (uint64_t)d.offsets[1] > room)
    return expect(c, "data_offsets inside the file");
  *t = d.t;
  t->offset = (size_t)d.offsets[0];
  t->bytes = (size_t)(d.offsets[1] - d.offsets[0]);
  const bool fits = d.fits && !__builtin_mul_overflow(d.elements, dtype_bits(t->dtype), &bits);
  return (fits && bits % 8 == 0 && bits / 8 == t->bytes) ||
         expect(c, "data_offsets that agree with dtype and shape");
}

static const char no_memory[] = "more memory"; // in `expected`, where there was none

// Makes room for one more element of an array of `count`: doubled where that is a power of two.
static bool grow(cursor *c, void *array, int count, size_t element) {
  void **elements = array;
  if (count & (count - 1)) return true;
  void *larger = realloc(*elements, (count ? 2 * (size_t)count : 1) * element);
  if (!larger) return expect(c, no_memory);
  *elements = larger;
  return true;
}

static bool read_metadata(cursor *c, safetensors *s) {
  if (!next_is(c, '{')) return expect(c, "'{' and the metadata");
  if (next_is(c, '}')) return true;
  do {
    metadata_read m;
    if (!read_key(c, &m.key) || !read_string(c, &m.value)) return false;
    if (!grow(c, &s->metadata, s->metadata_count, sizeof m)) return false;
    s->metadata[s->metadata_count++] = m;
  } while (next_is(c, ','));
  return next_is(c, '}') || expect(c, "'}'");
}

// A member of the header's top level: a tensor, or the metadata.
static bool read_entry(cursor *c, safetensors *s, size_t data_bytes, bool *metadata_seen) {
  const char *name;
  tensor t;
  if (!read_key(c, &name)) return false;
  if (!strcmp(name, "__metadata__")) {
    if (*metadata_seen) return expect(c, "__metadata__ once");
    *metadata_seen = true;
    return read_metadata(c, s);
  }
  if (!read_tensor(c, name, data_bytes, &t)) return false;
  if (!grow(c, &s->tensors, s->tensor_count, sizeof t)) return false;
  s->tensors[s->tensor_count++] = t;
  return true;
}

static bool read_header(cursor *c, safetensors *s, size_t data_bytes) {
  bool metadata_seen = false;
  if (!next_is(c, '{')) return expect(c, "'{'");
  if (!next_is(c, '}')) {
    do
      if (!read_entry(c, s, data_bytes, &metadata_seen)) return false;
    while (next_is(c, ','));
    if (!next_is(c, '}')) return expect(c, "'}'");
  }
  skip_space(c);
  return c->at == c->end || expect(c, "nothing after the last '}'");
}

static int by_position(const void *a, const void *b) {
  const tensor *left = a, *right = b;
  if (left->offset != right->offset) return left->offset < right->offset ? -1 : 1;
  return left->bytes < right->bytes ? -1 : left->bytes > right->bytes;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static int by_key(const void *a, const void *b) {
  return strcmp(((const metadata_read *)a)->key, ((const metadata_read *)b)->key);
}

// Sorted by position, the tensors must cover the data exactly once.
static bool covers_exactly(safetensors *s, size_t data_bytes) {
  size_t end = 0;
  if (s->tensor_count) qsort(s->tensors, s->tensor_count, sizeof *s->tensors, by_position);
  for (int i = 0; i < s->tensor_count; i++) {
    if (s->tensors[i].offset != end) return false;
    end += s->tensors[i].bytes;
  }
  return end == data_bytes;
}

// Sorts by name, so that what is there twice stands side by side, and the rest is found quickly.
static bool names_differ(safetensors *s) {
  if (s->tensor_count) qsort(s->tensors, s->tensor_count, sizeof *s->tensors, by_name);
  if (s->metadata_count) qsort(s->metadata, s->metadata_count, sizeof *s->metadata, by_key);
  for (int i = 1; i < s->tensor_count; i++)
    if (!by_name(&s->tensors[i - 1], &s->tensors[i])) return false;
  for (int i = 1; i < s->metadata_count; i++)
    if (!by_key(&s->metadata[i - 1], &s->metadata[i])) return false;
  return true;
}

// The text of a header, without the data that it describes.
static bool parse_header(const uint8_t *header, size_t length, size_t data_bytes, const char *name,
                         safetensors *s, error *e) {
  if (!(s->text = allocate_or_fail(length, name, e))) return false;
  memcpy(s->text, header, length);
  cursor c = {s->text, s->text + length, ""};
  if (!read_header(&c, s, data_bytes))
    return c.expected == no_memory
               ? fail(e, "%s: out of memory: its header lists too much", name)
               : fail(e, "%s: damaged or not a safetensors file: byte %zu: expected %s", name,
                      (size_t)(c.at - s->text) + 8, c.expected);
  if (!covers_exactly(s, data_bytes))
    return fail(e,
                "%s: damaged or cut short: its tensors overlap, leave gaps, or end before or "
                "after the file's %zu bytes",
                name, 8 + length + data_bytes);
  return names_differ(s) ||
         fail(e, "%s: damaged or not a safetensors file: expected each name and key once", name);
}

bool safetensors_parse(uint8_t *bytes, size_t size, const char *name, safetensors *s, error *e) {
  *s = (safetensors){.file = bytes, .file_bytes = size};
  uint64_t header = 0;
  for (size_t i = 0; i < 8 && i < size; i++) header |= (uint64_t)bytes[i] << (8 * i);
  bool ok;
  if (size < 8 || header > size - 8 || header > HEADER_LIMIT)
    ok = fail(e,
              "%s: damaged, cut short or not a safetensors file: %zu bytes, and a header that "
              "claims %llu",
              name, size, (unsigned long long)header);
  else
    ok = parse_header(bytes + 8, (size_t)header, size - 8 - (size_t)header, name, s, e);
  for (int i = 0; ok && i < s->tensor_count; i++)
    s->tensors[i].data = bytes + 8 + header + s->tensors[i].offset;
  if (!ok) safetensors_free(s);
  return ok;
}

bool safetensors_read(const char *path, safetensors *s, error *e) {
  size_t size;
  uint8_t *bytes = file_read(path, &size, e);
  return bytes && safetensors_parse(bytes, size, path, s, e);
}

void safetensors_free(safetensors *s) {
  free(s->file);
  free(s->text);
  free(s->tensors);
  free(s->metadata);
  *s = (safetensors){0};
}

const tensor *safetensors_find(const safetensors *s, const char *name) {
  const tensor wanted = {.name = name};
  if (!s->tensor_count) return NULL;
  return bsearch(&wanted, s->tensors, s->tensor_count, sizeof wanted, by_name);
}

const char *safetensors_value(const safetensors *s, const char *key) {
  const metadata_read wanted = {.key = key};
  if (!s->metadata_count) return NULL;
  const metadata_read *found =
      bsearch(&wanted, s->metadata, s->metadata_count, sizeof wanted, by_key);
  return found ? found->value : NULL;
}

// -- From numbers to floats --------------------------------------------------------------------------

// IEEE 754's binary16: a sign, 5 bits of exponent + 15, 10 bits behind the leading 1, which the smallest
// numbers (exponent bits 0) do not have. Every one of them is a float as well.
static float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float size = exponent == 31  ? fraction ? NAN : INFINITY
                     : exponent == 0 ? ldexpf((float)fraction, -24)
                                     : ldexpf((float)(1024 + fraction), exponent - 25);
  return half & 0x8000 ? -size : size;
}

// memcpy, because the file's bytes may not be aligned.
void safetensors_to_floats(const tensor *t, float *floats, size_t count) {
  const size_t bytes = t->bytes / count;
  for (size_t i = 0; i < count; i++) {
    const uint8_t *from = t->data + i * bytes;
    uint16_t half;
    double number;
    if (bytes == 4) {
      memcpy(&floats[i], from, 4);
    } else if (bytes == 8) {
      memcpy(&number, from, 8);
      floats[i] = (float)number;
    } else {
      memcpy(&half, from, 2);
      const uint32_t upper = (uint32_t)half << 16; // bfloat16 is a float's upper half
      if (t->dtype[0] == 'B')
        memcpy(&floats[i], &upper, 4);
      else
        floats[i] = half_to_float(half);
    }
  }
}

// -- Writing ---------------------------------------------------------------------------------------

// Text that is composed twice: once for its length, without memory, and once into memory of that size.
typedef struct {
  char *bytes; // NULL the first time
  size_t room, length;
} text;

__attribute__((format(printf, 2, 3))) static void add(text *t, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int more = vsnprintf(t->bytes ? t->bytes + t->length : NULL,
                             t->bytes ? t->room - t->length : 0, format, arguments);
  va_end(arguments);
  if (more > 0) t->length += (size_t)more;
}

// The JSON, padded with spaces so that the data begins at a multiple of 8 bytes.
static void add_header(text *out, const tensor *tensors, int tensor_count, const metadata *m,
                       int m_count) {
  size_t offset = 0;
  add(out, "{");
  for (int i = 0; i < m_count; i++)
    add(out, "%s\"%s\":\"%s\"%s", i ? "," : "\"__metadata__\":{", m[i].key, m[i].value,
        i + 1 < m_count ? ""
        : tensor_count  ? "},"
                        : "}");
  for (int i = 0; i < tensor_count; i++) {
    const tensor *t = &tensors[i];
    add(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name, t->dtype);
    for (int j = 0; j < t->rank; j++) add(out, "%s%lld", j ? "," : "", (long long)t->shape[j]);
    add(out, "],\"data_offsets\":[%zu,%zu]}", offset, offset + t->bytes);
    offset += t->bytes;
  }
  add(out, "}");
  while (out->length % 8) add(out, " ");
}

// The file up to the data: the header behind its length. To be freed; NULL with a line in e.
static uint8_t *make_header(const tensor *tensors, int tensor_count, const metadata *m, int m_count,
                            const char *path, size_t *length, error *e) {
  text t = {0};
  add_header(&t, tensors, tensor_count, m, m_count);
  *length = t.length;
  uint8_t *bytes = allocate_or_fail(8 + t.length + 1, path, e);
  if (!bytes) return NULL;
  for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)t.length >> (8 * i));
  t = (text){.bytes = (char *)bytes + 8, .room = t.length + 1};
  add_header(&t, tensors, tensor_count, m, m_count);
  return bytes;
}

// What a file is made of: the header with its length, then the data of each tensor.
typedef struct {
  const uint8_t *header;
  size_t header_bytes; // with the 8 bytes of its length
  const tensor *tensors;
  int tensor_count;
  size_t bytes;         // of it all
  uint64_t fingerprint; // likewise
} content;

static content describe(const uint8_t *header, size_t length, const tensor *tensors, int count) {
  content c = {header, 8 + length, tensors, count, 8 + length, FINGERPRINT_OF_NOTHING};
  c.fingerprint = fingerprint(c.fingerprint, header, c.header_bytes);
  for (int i = 0; i < count; i++) {
    c.bytes += tensors[i].bytes;
    c.fingerprint = fingerprint(c.fingerprint, tensors[i].data, tensors[i].bytes);
  }
  return c;
}

static bool put(const char *path, const content *c, error *e) {
  const int handle = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0666);
  if (handle < 0) return fail(e, "%s: %s", path, strerror(errno));
  bool ok = file_write(handle, c->header, c->header_bytes);
  for (int i = 0; ok && i < c->tensor_count; i++)
    ok = file_write(handle, c->tensors[i].data, c->tensors[i].bytes);
  ok = ok && fsync(handle) == 0;
  const int why = errno;
  if (close(handle) == 0 && ok) return true;
  remove(path);
  return fail(e, "%s: could not be written: %s", path, strerror(ok ? errno : why));
}

// Has the file what was to be written, and can it be read? It is read in pieces, mostly from the memory in
// which the system keeps it after writing: 0.07 s of processor time for the 45 MB of width 64, beside
// 0.08 for writing them. The fingerprint says that the header is the one in memory, so that one is parsed.
static bool reads_back(const char *path, const content *c, error *e) {
  size_t bytes;
  uint64_t found;
  safetensors s = {0};
  if (!file_fingerprint(path, &found, &bytes, e)) return false;
  if (bytes != c->bytes || found != c->fingerprint)
    return fail(e, "%s: reads back other than it was written; is the disk failing?", path);
  const bool ok =
      parse_header(c->header + 8, c->header_bytes - 8, c->bytes - c->header_bytes, path, &s, e) &&
      (s.tensor_count == c->tensor_count || fail(e, "%s: lacks tensors", path));
  safetensors_free(&s);
  return ok;
}

bool safetensors_write(const char *path, const tensor *tensors, int tensor_count, const metadata *m,
                       int m_count, uint64_t *file_fingerprint, error *e) {
  size_t length;
  uint8_t *header = make_header(tensors, tensor_count, m, m_count, path, &length, e);
  if (!header) return false;
  const content c = describe(header, length, tensors, tensor_count);
  bool ok = put(path, &c, e);
  if (ok && !reads_back(path, &c, e)) {
    remove(path);
    ok = false;
  }
  free(header);
  if (file_fingerprint) *file_fingerprint = c.fingerprint;
  return ok;
}
