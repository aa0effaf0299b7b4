// run/safetensors.c - a reader and a writer of safetensors files; safetensors.h has the format.
#define _POSIX_C_SOURCE 200809L
#include "safetensors.h"

#include "files.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { HEADER_LIMIT = 100000000 }; // bytes; the format's own limit

// -- The JSON of a header ------------------------------------------------------------------------
//
// A header needs only objects, strings, arrays of whole numbers. Each function below reads one thing
// at the cursor and steps over it, or returns false and leaves what it expected in `expected`.

typedef struct {
  const char *at, *end;
  const char *expected;
} cursor;

static bool expect(cursor *c, const char *what) {
  c->expected = what;
  return false;
}

static void skip_space(cursor *c) {
  while (c->at < c->end && strchr(" \t\r\n", *c->at) && *c->at) c->at++;
}

static bool next_is(cursor *c, char wanted) {
  skip_space(c);
  if (c->at >= c->end || *c->at != wanted) return false;
  c->at++;
  return true;
}

// A string without the quotes; at most `room` bytes with the final zero.
static bool read_string(cursor *c, char *text, size_t room) {
  if (!next_is(c, '"')) return expect(c, "a string");
  size_t length = 0;
  while (c->at < c->end && *c->at != '"') {
    char letter = *c->at++;
    if (letter == '\\') { // the escapes that a name or a comment may hold
      if (c->at >= c->end || !strchr("\"\\/", *c->at) || !*c->at)
        return expect(c, "no escape but \\\" \\\\ \\/ in a string");
      letter = *c->at++;
    }
    if ((unsigned char)letter < 0x20) return expect(c, "no control character in a string");
    if (length + 1 >= room) return expect(c, "a shorter string");
    text[length++] = letter;
  }
  text[length] = 0;
  return next_is(c, '"') || expect(c, "the end of a string");
}

static bool read_number(cursor *c, int64_t *number) {
  skip_space(c);
  *number = 0;
  const char *first = c->at;
  for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
    if (*number > INT64_MAX / 10 - 1) return expect(c, "a smaller number");
    *number = *number * 10 + (*c->at - '0');
  }
  return c->at > first || expect(c, "a whole number, not negative");
}

// [n, n, ...], at most `room` of them
static bool read_numbers(cursor *c, int64_t *numbers, int room, int *count) {
  *count = 0;
  if (!next_is(c, '[')) return expect(c, "an array");
  if (next_is(c, ']')) return true;
  do {
    if (*count == room) return expect(c, "fewer numbers in an array");
    if (!read_number(c, &numbers[(*count)++])) return false;
  } while (next_is(c, ','));
  return next_is(c, ']') || expect(c, "']'");
}

// "key" : in front of a value
static bool read_key(cursor *c, char *key, size_t room) {
  return read_string(c, key, room) && (next_is(c, ':') || expect(c, "':'"));
}

// -- From header to tensors --------------------------------------------------------------------------

static size_t dtype_bytes(const char *dtype) {
  static const struct {
    const char *name;
    size_t bytes;
  } known[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
               {"I32", 4}, {"I16", 2}, {"I8", 1},  {"U8", 1},   {"BOOL", 1}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(dtype, known[i].name)) return known[i].bytes;
  return 0;
}

// Bytes of a tensor by its dtype and shape; false if that is more than a size_t or a file can hold.
static bool shape_bytes(const tensor *t, size_t *bytes) {
  *bytes = dtype_bytes(t->dtype);
  for (int i = 0; i < t->rank; i++)
    if (__builtin_mul_overflow(*bytes, (size_t)t->shape[i], bytes)) return false;
  return true;
}

// {"dtype": .., "shape": .., "data_offsets": ..} in any order, each once
static bool read_tensor(cursor *c, tensor *t, int64_t offsets[2]) {
  bool dtype = false, shape = false, data = false, ok;
  int count = 0;
  if (!next_is(c, '{')) return expect(c, "'{' and a tensor's description");
  do {
    char key[16];
    if (!read_key(c, key, sizeof key)) return false;
    if (!strcmp(key, "dtype") && !dtype)
      ok = dtype = read_string(c, t->dtype, sizeof t->dtype);
    else if (!strcmp(key, "shape") && !shape)
      ok = shape = read_numbers(c, t->shape, TENSOR_RANK, &t->rank);
    else if (!strcmp(key, "data_offsets") && !data)
      ok = data = read_numbers(c, offsets, 2, &count) &&
                  (count == 2 || expect(c, "two numbers in data_offsets"));
    else
      ok = expect(c, "dtype, shape and data_offsets, once each");
    if (!ok) return false;
  } while (next_is(c, ','));
  if (!dtype || !shape || !data) return expect(c, "a tensor's dtype, shape and data_offsets");
  return next_is(c, '}') || expect(c, "'}'");
}

static bool read_metadata(cursor *c, safetensors *s) {
  if (!next_is(c, '{')) return expect(c, "'{' and the metadata");
  if (next_is(c, '}')) return true;
  do {
    metadata m;
    if (!read_key(c, m.key, sizeof m.key) || !read_string(c, m.value, sizeof m.value)) return false;
    if (safetensors_value(s, m.key)) return expect(c, "each key once");
    s->metadata = realloc(s->metadata, (s->metadata_count + 1) * sizeof m);
    if (!s->metadata) out_of_memory(sizeof m);
    s->metadata[s->metadata_count++] = m;
  } while (next_is(c, ','));
  return next_is(c, '}') || expect(c, "'}'");
}

static tensor *add_tensor(safetensors *s, const char *name) {
  s->tensors = realloc(s->tensors, (s->tensor_count + 1) * sizeof *s->tensors);
  if (!s->tensors) out_of_memory(sizeof *s->tensors);
  tensor *t = &s->tensors[s->tensor_count++];
  memset(t, 0, sizeof *t);
  snprintf(t->name, sizeof t->name, "%s", name);
  return t;
}

// The header's top level. data: where the tensors' bytes begin, and how many there are.
static bool read_header(cursor *c, safetensors *s, const uint8_t *data, size_t data_bytes) {
  if (!next_is(c, '{')) return expect(c, "'{'");
  if (next_is(c, '}')) return true;
  do {
    char name[TENSOR_NAME];
    int64_t offsets[2];
    size_t bytes;
    if (!read_key(c, name, sizeof name)) return false;
    if (!strcmp(name, "__metadata__")) {
      if (!read_metadata(c, s)) return false;
      continue;
    }
    if (safetensors_find(s, name)) return expect(c, "each name once");
    tensor *t = add_tensor(s, name);
    if (!read_tensor(c, t, offsets)) return false;
    if (!dtype_bytes(t->dtype)) return expect(c, "a known dtype");
    if (offsets[0] > offsets[1] || (uint64_t)offsets[1] > data_bytes)
      return expect(c, "data_offsets inside the file");
    t->data = data + offsets[0];
    t->bytes = (size_t)(offsets[1] - offsets[0]);
    if (!shape_bytes(t, &bytes) || bytes != t->bytes)
      return expect(c, "data_offsets that agree with dtype and shape");
  } while (next_is(c, ','));
  if (!next_is(c, '}')) return expect(c, "'}'");
  skip_space(c);
  return c->at == c->end || expect(c, "nothing after the last '}'");
}

static int by_position(const void *a, const void *b) {
  const tensor *left = a, *right = b;
  if (left->data != right->data) return left->data < right->data ? -1 : 1;
  return left->bytes < right->bytes ? -1 : left->bytes > right->bytes;
}

// Sorted by position, the tensors must cover the data exactly once.
static bool covers_exactly(safetensors *s, const uint8_t *data, size_t data_bytes) {
  if (s->tensor_count) qsort(s->tensors, s->tensor_count, sizeof *s->tensors, by_position);
  const uint8_t *end = data;
  for (int i = 0; i < s->tensor_count; i++) {
    if (s->tensors[i].data != end) return false;
    end += s->tensors[i].bytes;
  }
  return end == data + data_bytes;
}

bool safetensors_parse(uint8_t *bytes, size_t size, const char *name, safetensors *s, error *e) {
  *s = (safetensors){.file = bytes, .file_bytes = size};
  uint64_t header = 0;
  for (size_t i = 0; i < 8 && i < size; i++) header |= (uint64_t)bytes[i] << (8 * i);
  bool ok = true;
  if (size < 8 || header > size - 8 || header > HEADER_LIMIT) {
    ok = fail(e,
              "%s: damaged, cut short or not a safetensors file: %zu bytes, and a header that "
              "claims %llu",
              name, size, (unsigned long long)header);
  } else {
    const uint8_t *data = bytes + 8 + header;
    const size_t data_bytes = size - 8 - (size_t)header;
    cursor c = {(const char *)bytes + 8, (const char *)data, ""};
    if (!read_header(&c, s, data, data_bytes))
      ok = fail(e, "%s: damaged or not a safetensors file: byte %zu: expected %s", name,
                (size_t)((const uint8_t *)c.at - bytes), c.expected);
    else if (!covers_exactly(s, data, data_bytes))
      ok = fail(e,
                "%s: damaged or cut short: its tensors overlap, leave gaps, or end before or "
                "after the file's %zu bytes",
                name, size);
  }
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
  free(s->tensors);
  free(s->metadata);
  *s = (safetensors){0};
}

const tensor *safetensors_find(const safetensors *s, const char *name) {
  for (int i = 0; i < s->tensor_count; i++)
    if (!strcmp(s->tensors[i].name, name)) return &s->tensors[i];
  return NULL;
}

const char *safetensors_value(const safetensors *s, const char *key) {
  for (int i = 0; i < s->metadata_count; i++)
    if (!strcmp(s->metadata[i].key, key)) return s->metadata[i].value;
  return NULL;
}

// -- Writing ---------------------------------------------------------------------------------------

// The JSON, padded with spaces so that the data begins at a multiple of 8 bytes; to be freed.
static char *make_header(const tensor *tensors, int tensor_count, const metadata *m, int m_count,
                         size_t *length) {
  char *text = NULL;
  size_t offset = 0;
  FILE *out = open_memstream(&text, length);
  if (!out) out_of_memory(1);
  fprintf(out, "{");
  for (int i = 0; i < m_count; i++)
    fprintf(out, "%s\"%s\":\"%s\"%s", i ? "," : "\"__metadata__\":{", m[i].key, m[i].value,
            i + 1 < m_count ? ""
            : tensor_count  ? "},"
                            : "}");
  for (int i = 0; i < tensor_count; i++) {
    const tensor *t = &tensors[i];
    fprintf(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "", t->name, t->dtype);
    for (int j = 0; j < t->rank; j++) fprintf(out, "%s%lld", j ? "," : "", (long long)t->shape[j]);
    fprintf(out, "],\"data_offsets\":[%zu,%zu]}", offset, offset + t->bytes);
    offset += t->bytes;
  }
  fprintf(out, "}");
  while (ftell(out) % 8) fputc(' ', out);
  if (fclose(out) != 0) out_of_memory(1);
  return text;
}

typedef struct {
  FILE *file;
  uint64_t fingerprint;
  bool ok;
} sink;

static void put(sink *out, const void *bytes, size_t count) {
  out->fingerprint = fingerprint(out->fingerprint, bytes, count);
  out->ok = out->ok && fwrite(bytes, 1, count, out->file) == count;
}

bool safetensors_write(const char *path, const tensor *tensors, int tensor_count, const metadata *m,
                       int m_count, uint64_t *file_fingerprint, error *e) {
  sink out = {.file = fopen(path, "wb"), .fingerprint = FINGERPRINT_OF_NOTHING, .ok = true};
  if (!out.file) return fail(e, "%s: %s", path, strerror(errno));
  size_t length;
  char *header = make_header(tensors, tensor_count, m, m_count, &length);
  uint8_t prefix[8];
  for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)length >> (8 * i));
  put(&out, prefix, sizeof prefix);
  put(&out, header, length);
  for (int i = 0; i < tensor_count; i++) put(&out, tensors[i].data, tensors[i].bytes);
  free(header);
  out.ok = out.ok && fflush(out.file) == 0 && fsync(fileno(out.file)) == 0;
  const int why = errno;
  if (fclose(out.file) != 0 || !out.ok) {
    remove(path);
    return fail(e, "%s: could not be written: %s", path, strerror(out.ok ? errno : why));
  }
  if (file_fingerprint) *file_fingerprint = out.fingerprint;
  return true;
}
