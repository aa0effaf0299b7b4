// safetensors_test.c - the reader and the writer of safetensors files, on files in memory.
//
// What the format allows must be read; everything else must be refused in one line. A table holds
// the damages that somebody thought of; then a small file is cut at every length, each bit of its
// header is turned over, and random bytes are written into it: whatever is not refused must be sound.
// Under SAN=1 a read outside the file ends the test, because each file ends where its memory does.
//
//     make build/gcc/tests/safetensors_test && build/gcc/tests/safetensors_test
#define _POSIX_C_SOURCE 200809L
#include "../run/files.h"
#include "../run/safetensors.h"
#include "check.h"
#include "scratch.h"

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
    if (!memchr(t->name, 0, sizeof t->name) || !memchr(t->dtype, 0, sizeof t->dtype)) return false;
    if (t->rank < 0 || t->rank > TENSOR_RANK || safetensors_find(s, t->name) != t) return false;
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

typedef struct {
  const char *what, *header;
  size_t data_bytes;
} sound_file;

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}"

static const sound_file sound_files[] = {
    {"two tensors", "{" A "," B "}", 16},
    {"in another order than their data", "{" B "," A "}", 16},
    {"metadata in front", "{\"__metadata__\":{\"k\":\"v\"}," A "," B "}", 16},
    {"metadata between", "{" A ",\"__metadata__\":{\"k\":\"v\"}," B "}", 16},
    {"metadata at the end", "{" A "," B ",\"__metadata__\":{\"k\":\"v\",\"l\":\"\"}}", 16},
    {"empty metadata", "{\"__metadata__\":{}," A "}", 8},
    {"spaces, tabs and line ends everywhere",
     " {\r\n\t\"a\" : { \"dtype\" : \"F32\" , \"shape\" : [ 2 ] , \"data_offsets\" : [ 0 , 8 ] } } "
     "\n  ",
     8},
    {"keys in another order", "{\"a\":{\"data_offsets\":[0,8],\"shape\":[2],\"dtype\":\"F32\"}}",
     8},
    {"no tensors", "{}", 0},
    {"a tensor without elements",
     "{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[3,0],\"data_offsets\":[8,8]}}", 8},
    {"tensors without elements at the beginning",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}," A
     ",\"c\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     8},
    {"escapes in strings", "{\"__metadata__\":{\"a \\\"k\\\"\":\"\\\\ \\/\"}," A "}", 8},
    {"eight dimensions",
     "{\"a\":{\"dtype\":\"BF16\",\"shape\":[1,1,2,1,1,1,1,2],\"data_offsets\":[0,8]}}", 8},
};

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

typedef struct {
  const char *what, *header;
  size_t data_bytes;
  const char *phrase;
} bad_file;

// A tensor "a" with 8 bytes of data of which one thing is not as it should be.
#define DTYPE(text) "{\"a\":{\"dtype\":" text ",\"shape\":[2],\"data_offsets\":[0,8]}}", 8
#define SHAPE(text) "{\"a\":{\"dtype\":\"F32\",\"shape\":" text ",\"data_offsets\":[0,8]}}", 8
#define OFFSETS(text) "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" text "}}", 8
#define TENSOR(text) "{\"a\":" text "}", 8
#define SECOND(from, to)                                                                           \
  "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[" from "," to "]}}"

static const bad_file bad_files[] = {
    {"no header", "", 0, "expected '{'"},
    {"not JSON", "PK\003\004 a zip file, as torch.save writes", 8, "expected '{'"},
    {"an array", "[" A "]", 8, "expected '{'"},
    {"cut off after '{'", "{", 0, "a string"},
    {"cut off in a name", "{\"conv1.wei", 0, "the end of a string"},
    {"a comma too many", "{" A ",}", 8, "a string"},
    {"a comma missing", "{" A " " B "}", 16, "'}'"},
    {"a colon missing", "{\"a\" {}}", 8, "':'"},
    {"text after the end", "{" A "} {}", 8, "nothing after"},
    {"a bare name", "{a:1}", 8, "a string"},
    {"a number in a tensor's place", TENSOR("1"), "a tensor's description"},
    {"null in a tensor's place", TENSOR("null"), "a tensor's description"},
    {"an empty description", TENSOR("{}"), "a string"},
    {"no dtype", TENSOR("{\"shape\":[2],\"data_offsets\":[0,8]}"), "a tensor's dtype, shape and"},
    {"no shape", TENSOR("{\"dtype\":\"F32\",\"data_offsets\":[0,8]}"),
     "a tensor's dtype, shape and"},
    {"no offsets", TENSOR("{\"dtype\":\"F32\",\"shape\":[2]}"), "a tensor's dtype, shape and"},
    {"a key too many", TENSOR("{\"dtype\":\"F32\",\"strides\":[1]}"), "once each"},
    {"a key twice", TENSOR("{\"shape\":[2],\"shape\":[2]}"), "once each"},
    {"a long key", TENSOR("{\"a key of the description\":[2]}"), "a shorter string"},
    {"an unknown dtype", DTYPE("\"F33\""), "a known dtype"},
    {"an empty dtype", DTYPE("\"\""), "a known dtype"},
    {"a long dtype", DTYPE("\"F32F32F32\""), "a shorter string"},
    {"a dtype without end, then another", DTYPE("\"F32F32F3,\"dtype\":\"F32\""),
     "a shorter string"},
    {"a number as dtype", DTYPE("32"), "a string"},
    {"a string as shape", SHAPE("\"2\""), "an array"},
    {"a negative dimension", SHAPE("[-2]"), "not negative"},
    {"a fractional dimension", SHAPE("[2.0]"), "']'"},
    {"a dimension with an exponent", SHAPE("[2e0]"), "']'"},
    {"a dimension in quotes", SHAPE("[\"2\"]"), "a whole number"},
    {"an empty dimension, then another shape", SHAPE("[1,,\"shape\":[2]"), "a whole number"},
    {"a comma too many in a shape", SHAPE("[2,]"), "a whole number"},
    {"a shape without end", SHAPE("[2"), "a whole number"},
    {"a dimension of 2^63", SHAPE("[9223372036854775808]"), "a smaller number"},
    {"a dimension of 2^64 + 2", SHAPE("[18446744073709551618]"), "a smaller number"},
    {"a dimension of 40 digits", SHAPE("[1000000000000000000000000000000000000000]"),
     "a smaller number"},
    {"nine dimensions", SHAPE("[1,1,1,1,1,1,1,1,2]"), "fewer numbers"},
    {"a shape inside a shape", SHAPE("[[2]]"), "a whole number"},
    {"a shape too small", SHAPE("[1]"), "agree with dtype and shape"},
    {"a shape too large", SHAPE("[2,2]"), "agree with dtype and shape"},
    {"a dtype too large", DTYPE("\"F64\""), "agree with dtype and shape"},
    {"a shape whose bytes are 2^64 + 8", SHAPE("[2147483649,2147483648,1]"),
     "agree with dtype and shape"},
    {"a shape whose bytes are 8 modulo 2^64", SHAPE("[4611686018427387906]"),
     "agree with dtype and shape"},
    {"a shape whose bytes are 0 modulo 2^64",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "agree with dtype and shape"},
    {"offsets in quotes", OFFSETS("[\"0\",\"8\"]"), "a whole number"},
    {"one offset", OFFSETS("[8]"), "two numbers in data_offsets"},
    {"no offset", OFFSETS("[]"), "two numbers in data_offsets"},
    {"three offsets", OFFSETS("[0,8,8]"), "fewer numbers"},
    {"a negative offset", OFFSETS("[-8,0]"), "not negative"},
    {"a fractional offset", OFFSETS("[0,8.5]"), "']'"},
    {"begin behind end", OFFSETS("[8,0]"), "inside the file"},
    {"an end beyond the file", OFFSETS("[0,9]"), "inside the file"},
    {"begin and end beyond the file", OFFSETS("[8,16]"), "inside the file"},
    {"an end of 2^62", OFFSETS("[0,4611686018427387904]"), "inside the file"},
    {"data behind the last tensor", "{" A "}", 9, "overlap, leave gaps, or end"},
    {"data without a tensor", "{}", 1, "overlap, leave gaps, or end"},
    {"the same data twice", SECOND("0", "8"), 8, "overlap, leave gaps, or end"},
    {"overlapping tensors", SECOND("4", "12"), 12, "overlap, leave gaps, or end"},
    {"a gap between tensors", SECOND("12", "20"), 20, "overlap, leave gaps, or end"},
    {"an overlap and as large a gap", SECOND("4", "12"), 16, "overlap, leave gaps, or end"},
    {"a gap and as large an overlap",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]},"
     "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
     16, "overlap, leave gaps, or end"},
    {"a gap in front", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}", 9,
     "overlap, leave gaps, or end"},
    {"a name twice", "{" A ",\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16,
     "each name once"},
    {"a metadata key twice", "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}," A "}", 8,
     "each key once"},
    {"a number as metadata", "{\"__metadata__\":{\"epoch\":1}," A "}", 8, "a string"},
    {"an object as metadata", "{\"__metadata__\":{\"k\":{\"l\":\"m\"}}," A "}", 8, "a string"},
    {"metadata that is not an object", "{\"__metadata__\":\"pt\"," A "}", 8, "the metadata"},
    {"a line end in a name", "{\"a\nb\":{}}", 8, "no control character"},
    {"an escaped line end in a name", "{\"a\\nb\":{}}", 8, "no escape"},
    {"an escape sequence for a terminal", "{\"\033[2J\":{}}", 8, "no control character"},
    {"a \\u escape", "{\"\\u0061\":{}}", 8, "no escape"},
    {"a backslash at the end", "{\"a\\", 0, "no escape"},
};

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

static void test_long_texts(void) {
  static const char tensor_a[] = "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}";
  safetensors s;
  error e;
  check(parse(long_file("\"", 'n', TENSOR_NAME - 1, tensor_a), &s, &e), "read: the longest name");
  safetensors_free(&s);
  check_refused(parse(long_file("\"", 'n', TENSOR_NAME, tensor_a), &s, &e), &e, "a longer name",
                "file: damaged", "a shorter string");
  check_refused(parse(long_file("\"", 'n', 1000000, tensor_a), &s, &e), &e, "a name of 1 MB",
                "file: damaged", "a shorter string");
  const char *front = "\"__metadata__\":{\"k\":\"", *back = "\"}," A;
  check(parse(long_file(front, 'v', METADATA_VALUE - 1, back), &s, &e), "read: the longest value");
  safetensors_free(&s);
  check_refused(parse(long_file(front, 'v', METADATA_VALUE, back), &s, &e), &e, "a longer value",
                "file: damaged", "a shorter string");
  check_refused(parse(long_file("\"a\":", '[', 1000000, ""), &s, &e), &e,
                "arrays nested a million deep", "file: damaged", "a tensor's description");
  check_refused(parse(long_file("\"a\":", '{', 1000000, ""), &s, &e), &e,
                "objects nested a million deep", "file: damaged", "a string");
  check_refused(parse(make_image("{\"a\0b\":{}}", 10, 0), &s, &e), &e, "a zero byte in a name",
                "file: damaged", "no control character");
  check_refused(parse(make_image("{\0}", 3, 0), &s, &e), &e, "a zero byte between", "file: damaged",
                "a string");
  check_refused(parse(make_image("{\"a\\\0\":{}}", 10, 0), &s, &e), &e, "an escaped zero byte",
                "file: damaged", "no escape");
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
  numbers = random_open(check_seed("safetensors_test"), RANDOM_TEST, 0, 0);
  scratch_make();
  test_sound_files();
  test_contents();
  test_bad_files();
  test_long_texts();
  test_header_lengths();
  test_every_length();
  test_every_bit();
  test_random_damage();
  test_writing();
  test_failing_writes();
  scratch_remove();
  return check_summary();
}
