// tests/safetensors_test.c - the reader and the writer of safetensors files, on files in memory.
//
// What the format allows must be read, whoever wrote it: names and values of any length, escapes, every
// dtype, 200,000 tensors. Everything else must be refused in one line. A table holds
// the damages that somebody thought of; then a small file is cut at every length, each bit of its
// header is turned over, and random bytes are written into it: whatever is not refused must be sound.
// Under SAN=1 a read outside the file ends the test, because each file ends where its memory does.
//
//     make build/gcc/tests/safetensors_test && build/gcc/tests/safetensors_test
#define _POSIX_C_SOURCE 200809L
#include "../run/files.h"
#include "../run/safetensors.h"
#include "check.h"
#include "safetensors_files.h"
#include "scratch.h"

#include <sys/stat.h>

static random_stream numbers;

// -- Files in memory -----------------------------------------------------------------------------

typedef struct {
  uint8_t *bytes; // from malloc, exactly `size` of them
  size_t size;
} image;

// The length of the header, the header, and `data_bytes` bytes of data: 0, 1, 2, ...
static image make_image(const char *header, size_t length, size_t data_bytes) {
  image f = {.size = 8 + length + data_bytes};
  f.bytes = allocate(f.size);
  for (int i = 0; i < 8; i++) f.bytes[i] = (uint8_t)((uint64_t)length >> (8 * i));
  memcpy(f.bytes + 8, header, length);
  for (size_t i = 0; i < data_bytes; i++) f.bytes[8 + length + i] = (uint8_t)i;
  return f;
}

static image copy_image(const image *f, size_t size) {
  image copy = {allocate(size), size};
  memcpy(copy.bytes, f->bytes, size);
  return copy;
}

// safetensors_parse takes the bytes over.
static bool parse(image f, safetensors *s, error *e) {
  e->text[0] = 0;
  return safetensors_parse(f.bytes, f.size, "file", s, e);
}

// What must hold for every file that is not refused.
static bool is_sound(const safetensors *s) {
  const uint8_t *end = s->file + s->file_bytes;
  size_t total = 0;
  for (int i = 0; i < s->tensor_count; i++) {
    const tensor *t = &s->tensors[i];
    if (t->data < s->file + 8 || t->data > end || t->bytes > (size_t)(end - t->data)) return false;
    if (strlen(t->name) > s->file_bytes || strlen(t->dtype) > 11) return false;
    if (t->rank < 0 || safetensors_find(s, t->name) != t) return false;
    fingerprint(FINGERPRINT_OF_NOTHING, t->data, t->bytes); // reads each byte
    total += t->bytes;
  }
  for (int i = 0; i < s->metadata_count; i++)
    if (safetensors_value(s, s->metadata[i].key) != s->metadata[i].value) return false;
  return total + 8 <= s->file_bytes;
}

// Refused in one line, or sound.
static bool refused_or_sound(image f, int *accepted) {
  safetensors s;
  error e;
  if (!parse(f, &s, &e)) return !strncmp(e.text, "file: ", 6) && !strchr(e.text, '\n');
  const bool sound = is_sound(&s);
  *accepted += 1;
  safetensors_free(&s);
  return sound;
}

// -- What is read --------------------------------------------------------------------------------------

static void test_sound_files(void) {
  for (size_t i = 0; i < sizeof sound_files / sizeof *sound_files; i++) {
    const sound_file *f = &sound_files[i];
    safetensors s;
    error e;
    const bool ok = parse(make_image(f->header, strlen(f->header), f->data_bytes), &s, &e);
    check(ok && is_sound(&s), "read: %s %s", f->what, e.text);
    safetensors_free(&s);
  }
}

// Every dtype that the format has, as the reader of its authors (version 0.8) takes them, with bits.
static void test_dtypes(void) {
  static const struct {
    const char *dtype;
    int bits;
  } dtypes[] = {{"BOOL", 8},        {"U8", 8},      {"I8", 8},   {"I16", 16},    {"U16", 16},
                {"F16", 16},        {"BF16", 16},   {"I32", 32}, {"U32", 32},    {"F32", 32},
                {"I64", 64},        {"U64", 64},    {"F64", 64}, {"C64", 64},    {"F8_E5M2", 8},
                {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F8_E4M3FNUZ", 8},
                {"F8_E5M2FNUZ", 8}, {"F6_E3M2", 6}};
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
    char text[120];
    safetensors s;
    error e;
    snprintf(text, sizeof text,
             "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}", dtypes[i].dtype,
             dtypes[i].bits);
    const size_t bytes = (size_t)dtypes[i].bits;
    check(parse(make_image(text, strlen(text), bytes), &s, &e) && is_sound(&s), "read: %s %s",
          dtypes[i].dtype, e.text);
    safetensors_free(&s);
    snprintf(text, sizeof text,
             "{\"a\":{\"dtype\":\"%s\",\"shape\":[2,5],\"data_offsets\":[0,%d]}}", dtypes[i].dtype,
             dtypes[i].bits);
    check_refused(parse(make_image(text, strlen(text), bytes), &s, &e), &e, "ten of them",
                  "file: damaged", "agree with dtype and shape");
  }
}

// Escapes in names and values, each with the UTF-8 that it stands for.
static void test_escapes(void) {
  static const struct {
    const char *written, *meant;
  } escapes[] = {{"\\\"\\\\\\/", "\"\\/"},
                 {"a\\b\\f\\n\\r\\tz", "a\b\f\n\r\tz"},
                 {"\\u0061\\u007f", "a\x7f"},
                 {"\\u0080\\u00e9\\u07FF", "\xC2\x80\xC3\xA9\xDF\xBF"},
                 {"\\u0800\\u20aC\\uffff", "\xE0\xA0\x80\xE2\x82\xAC\xEF\xBF\xBF"},
                 {"\\ud7ff\\ue000", "\xED\x9F\xBF\xEE\x80\x80"},
                 {"\\ud800\\udc00\\uD83D\\uDE00", "\xF0\x90\x80\x80\xF0\x9F\x98\x80"},
                 {"\\udbff\\udfff!", "\xF4\x8F\xBF\xBF!"},
                 {"a\\u0000b", "a\xC0\x80"
                               "b"},
                 {"\xC3\xA9", "\xC3\xA9"}};
  for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
    const char *meant = escapes[i].meant, *written = escapes[i].written;
    char text[400];
    safetensors s;
    error e;
    snprintf(text, sizeof text,
             "{\"__metadata__\":{\"%s\":\"<%s>\"},\"%s\":{\"dtype\":\"U8\",\"shape\":[1],"
             "\"data_offsets\":[0,1]}}",
             written, written, written);
    const bool ok = parse(make_image(text, strlen(text), 1), &s, &e);
    const char *value = ok ? safetensors_value(&s, meant) : NULL;
    const size_t length = strlen(meant);
    check(ok && safetensors_find(&s, meant) && value && value[0] == '<' &&
              !strncmp(value + 1, meant, length) && !strcmp(value + 1 + length, ">"),
          "escapes undone, in a name, a key and a value: %s %s", written, e.text);
    safetensors_free(&s);
  }
}

// Names, shapes, dtypes, bytes and metadata, of tensors listed in another order than their data.
static void test_contents(void) {
  static const char text[] =
      "{\"one\":{\"dtype\":\"I16\",\"shape\":[2,3],\"data_offsets\":[4,16]},\"__metadata__\":"
      "{\"key\":\"value\",\"\\\"\":\"\\/\"},\"two\":{\"dtype\":\"F32\",\"shape\":[],"
      "\"data_offsets\":[0,4]}}";
  safetensors s;
  error e;
  if (!check(parse(make_image(text, sizeof text - 1, 16), &s, &e), "read: %s", e.text)) return;
  const tensor *one = safetensors_find(&s, "one"), *two = safetensors_find(&s, "two");
  check(s.tensor_count == 2 && one && two && !safetensors_find(&s, "on"), "tensors by name");
  check(one->rank == 2 && one->shape[0] == 2 && one->shape[1] == 3 && !strcmp(one->dtype, "I16") &&
            one->bytes == 12 && one->data[0] == 4 && one->data[11] == 15,
        "shape, dtype and bytes of one");
  check(two->rank == 0 && !strcmp(two->dtype, "F32") && two->bytes == 4 && two->data[3] == 3,
        "and of the other, a single number");
  check(s.metadata_count == 2 && !strcmp(safetensors_value(&s, "key"), "value") &&
            !strcmp(safetensors_value(&s, "\""), "/") && !safetensors_value(&s, "value"),
        "metadata by key, escapes undone");
  safetensors_free(&s);
}

// -- What is refused -----------------------------------------------------------------------------------

static void test_bad_files(void) {
  for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
    const bad_file *f = &bad_files[i];
    safetensors s;
    error e;
    check_refused(parse(make_image(f->header, strlen(f->header), f->data_bytes), &s, &e), &e,
                  f->what, "file: damaged", f->phrase);
    safetensors_free(&s);
  }
}

// "{", `front`, `count` times `letter`, `back`, "}" and 8 bytes of data
static image long_file(const char *front, char letter, size_t count, const char *back) {
  char *text = allocate(count + 200);
  const int at = snprintf(text, 100, "{%s", front);
  memset(text + at, letter, count);
  snprintf(text + at + count, 100, "%s}", back);
  const image f = make_image(text, strlen(text), 8);
  free(text);
  return f;
}

static void expect_long_read(const char *what, image f, size_t name, size_t value) {
  safetensors s;
  error e;
  bool ok = parse(f, &s, &e) && is_sound(&s) && s.tensor_count == 1;
  ok = ok && strlen(s.tensors[0].name) == name;
  if (ok && value) ok = s.metadata_count == 1 && strlen(s.metadata[0].value) == value;
  check(ok, "read: %s %s", what, e.text);
  safetensors_free(&s);
}

static void test_long_texts(void) {
  static const char tensor_a[] = "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}";
  const char *front = "\"__metadata__\":{\"k\":\"", *back = "\"}," A;
  safetensors s;
  error e;
  expect_long_read("a name of 200 letters", long_file("\"", 'n', 200, tensor_a), 200, 0);
  expect_long_read("a name of 1 MB", long_file("\"", 'n', 1000000, tensor_a), 1000000, 0);
  expect_long_read("a value of 1,000 letters", long_file(front, 'v', 1000, back), 1, 1000);
  expect_long_read("a value of 1 MB", long_file(front, 'v', 1000000, back), 1, 1000000);
  check_refused(parse(long_file("\"a\":", '[', 1000000, ""), &s, &e), &e,
                "arrays nested a million deep", "file: damaged", "a tensor's description");
  check_refused(parse(long_file("\"a\":", '{', 1000000, ""), &s, &e), &e,
                "objects nested a million deep", "file: damaged", "a string");
  check_refused(parse(make_image("{\"a\0b\":{}}", 10, 0), &s, &e), &e, "a zero byte in a name",
                "file: damaged", "no control character");
  check_refused(parse(make_image("{\0}", 3, 0), &s, &e), &e, "a zero byte between", "file: damaged",
                "a string");
  check_refused(parse(make_image("{\"a\\\0\":{}}", 10, 0), &s, &e), &e, "an escaped zero byte",
                "file: damaged", "an escape that JSON has");
}

// Tensors in the order of their data, named in reverse. Were each name compared with all before it, this
// would take minutes, and main's alarm would end the test.
static void test_many_tensors(void) {
  enum { MANY = 200000, LINE = 80 };
  char *text = allocate((size_t)MANY * LINE);
  size_t at = 0;
  text[at++] = '{';
  for (int i = 0; i < MANY; i++)
    at += (size_t)sprintf(text + at,
                          "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                          i ? "," : "", MANY - i, i, i + 1);
  text[at++] = '}';
  safetensors s;
  error e;
  const bool ok = parse(make_image(text, at, MANY), &s, &e) && is_sound(&s);
  const tensor *last = ok ? safetensors_find(&s, "t1") : NULL;
  check(last && last->data == s.file + s.file_bytes - 1, "read: %d tensors %s", MANY, e.text);
  safetensors_free(&s);
  char *second = strstr(text, "\"t199999\"");
  memcpy(second, "\"t200000\"", 9);
  check_refused(parse(make_image(text, at, MANY), &s, &e), &e, "one of their names twice",
                "file: damaged", "each name and key once");
  free(text);
}

// A file of `size` bytes whose header claims `length` bytes.
static void expect_length_refused(const char *what, size_t size, uint64_t length) {
  safetensors s;
  error e;
  image f = {allocate(size), size};
  for (size_t i = 0; i < 8 && i < size; i++) f.bytes[i] = (uint8_t)(length >> (8 * i));
  check_refused(parse(f, &s, &e), &e, what, "file: damaged", "and a header that claims");
}

static void test_header_lengths(void) {
  expect_length_refused("an empty file", 0, 0);
  expect_length_refused("a file of 7 bytes", 7, 0);
  expect_length_refused("a header one byte longer than the file", 20, 13);
  expect_length_refused("a header of 2^63 bytes", 20, (uint64_t)1 << 63);
  expect_length_refused("a header of 2^64 - 1 bytes", 20, UINT64_MAX);
  expect_length_refused("a header of 2^64 - 8 bytes", 20, UINT64_MAX - 7);
  expect_length_refused("a header longer than the format allows", 100000100, 100000001);
}

// -- Systematic damage -----------------------------------------------------------------------------------

static image small_file(void) {
  static const char text[] = "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"F32\","
                             "\"shape\":[2,3],\"data_offsets\":[0,24]},"
                             "\"n\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]},"
                             "\"e\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[32,32]}}  ";
  return make_image(text, sizeof text - 1, 32);
}

static void test_every_length(void) {
  const image whole = small_file();
  const size_t header = whole.size - 8 - 32;
  int accepted = 0, wrong = 0;
  for (size_t size = 0; size < whole.size; size++)
    wrong += !refused_or_sound(copy_image(&whole, size), &accepted);
  check(wrong == 0 && accepted == 0, "refused: a file cut at any of its %zu bytes", whole.size);
  for (size_t length = 0; length < header; length++)
    wrong += !refused_or_sound(make_image((char *)whole.bytes + 8, length, 0), &accepted);
  check(wrong == 0 && accepted == 0, "refused: a header that ends at any of its %zu bytes", header);
  check(refused_or_sound(copy_image(&whole, whole.size), &accepted) && accepted == 1,
        "read: the whole file");
  free(whole.bytes);
}

static void test_every_bit(void) {
  const image whole = small_file();
  int accepted = 0, wrong = 0, bits = (int)(whole.size - 32) * 8;
  for (int bit = 0; bit < bits; bit++) {
    image f = copy_image(&whole, whole.size);
    f.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    wrong += !refused_or_sound(f, &accepted);
  }
  check(wrong == 0, "each bit of the header turned over: refused, or read and sound");
  // What may pass: a letter of a name or of the metadata, a space that becomes another kind of it,
  // and a dtype of the same size. A digit, a bracket or a quote never.
  check(accepted > 0 && accepted < bits / 10, "%d of %d are read: other letters in a name",
        accepted, bits);
  free(whole.bytes);
}

static void test_random_damage(void) {
  const image whole = small_file();
  static const char letters[] = "{}[]\",:\\0123456789 \n-.eF_a";
  int accepted = 0, wrong = 0;
  for (int i = 0; i < 20000; i++) {
    image f = copy_image(&whole, whole.size);
    for (uint32_t j = 0, count = 1 + random_below(&numbers, 4); j < count; j++) {
      const size_t at = random_below(&numbers, (uint32_t)(f.size - 32));
      f.bytes[at] = at < 8 ? (uint8_t)random_bits(&numbers)
                           : (uint8_t)letters[random_below(&numbers, sizeof letters)];
    }
    wrong += !refused_or_sound(f, &accepted);
  }
  check(wrong == 0, "20,000 headers with random bytes: refused, or read and sound");
  free(whole.bytes);
}

// -- Writing ---------------------------------------------------------------------------------------------

static bool same_tensor(const tensor *a, const tensor *b) {
  bool same = b && a->rank == b->rank && !strcmp(a->dtype, b->dtype) && a->bytes == b->bytes &&
              !memcmp(a->data, b->data, a->bytes);
  for (int i = 0; same && i < a->rank; i++) same = a->shape[i] == b->shape[i];
  return same;
}

static void test_writing(void) {
  static const uint8_t bytes[] = "twenty-four bytes of it, and an odd number of them";
  const tensor tensors[] = {
      {.name = "w", .dtype = "F32", .rank = 2, .shape = {2, 3}, .bytes = 24, .data = bytes},
      {.name = "one", .dtype = "U8", .bytes = 1, .data = bytes + 24},
      {.name = "odd", .dtype = "I16", .rank = 1, .shape = {5}, .bytes = 10, .data = bytes + 25}};
  const metadata m[] = {{"format", "pt"}, {"epoch", "7"}};
  safetensors s;
  error e;
  uint64_t written = 0;
  const char *path = scratch_path("file");
  for (int metadata_count = 0; metadata_count <= 2; metadata_count++)
    for (int count = 0; count <= 3; count++) {
      bool ok = safetensors_write(path, tensors, count, m, metadata_count, &written, &e) &&
                safetensors_read(path, &s, &e);
      if (!check(ok, "%d tensors, %d metadata: written and read", count, metadata_count)) continue;
      ok = s.tensor_count == count && s.metadata_count == metadata_count && s.file[0] % 8 == 0 &&
           written == fingerprint(FINGERPRINT_OF_NOTHING, s.file, s.file_bytes);
      for (int i = 0; i < count; i++)
        ok = ok && same_tensor(&tensors[i], safetensors_find(&s, tensors[i].name));
      for (int i = 0; i < metadata_count; i++)
        ok = ok && !strcmp(m[i].value, safetensors_value(&s, m[i].key));
      check(ok, "the same, data at a multiple of 8 bytes, the right fingerprint");
      safetensors_free(&s);
    }
}

static void test_failing_writes(void) {
  static const uint8_t bytes[100000];
  const tensor t = {.name = "w",
                    .dtype = "U8",
                    .rank = 1,
                    .shape = {sizeof bytes},
                    .bytes = sizeof bytes,
                    .data = bytes};
  safetensors s;
  error e;
  const char *path = scratch_path("nowhere/file");
  check_refused(safetensors_write(path, &t, 1, NULL, 0, NULL, &e), &e,
                "writing into a directory that is not there", path, "No such file");
  check_refused(safetensors_read(path, &s, &e), &e, "reading a file that is not there", path,
                "No such file");
  check_refused(safetensors_read(scratch_directory, &s, &e), &e, "reading a directory",
                scratch_directory, "not a file");
  path = scratch_path("pipe");
  if (check(mkfifo(path, 0666) == 0,
            "a pipe that nobody writes to")) { // open() would wait for ever
    check_refused(safetensors_read(path, &s, &e), &e, "reading it", path, "not a file");
    check_refused(safetensors_write(path, &t, 1, NULL, 0, NULL, &e), &e, "writing to it", path, "");
  }
  path = scratch_path("full");
  if (!file_exists("/dev/full") || symlink("/dev/full", path) != 0) {
    printf("skip writing to a full disk: no /dev/full here\n");
    return;
  }
  check_refused(safetensors_write(path, &t, 1, NULL, 0, NULL, &e), &e, "writing to a full disk",
                path, "No space left");
  check(!file_exists(path), "and the file is gone");
}

int main(void) {
  alarm(100); // seconds; this test takes two, and what it tests for may take for ever
  numbers = random_open(check_seed("safetensors_test"), RANDOM_TEST, 0, 0);
  scratch_make();
  test_sound_files();
  test_dtypes();
  test_escapes();
  test_contents();
  test_bad_files();
  test_long_texts();
  test_many_tensors();
  test_header_lengths();
  test_every_length();
  test_every_bit();
  test_random_damage();
  test_writing();
  test_failing_writes();
  scratch_remove();
  return check_summary();
}
