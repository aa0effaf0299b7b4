// tests/fuzz.c - random bytes against what reads data sets, weights, a run's settings and command
// lines; by libFuzzer, which changes inputs so that they reach code that no input reached before.
//
// The first byte of an input chooses what the rest is:
//
//     c    a file of CIFAR-10
//     s    a safetensors file
//     h    a safetensors file without the 8 bytes of its header's length: the header ends at the first
//          zero byte, the data begins behind it. So a header can grow without being cut off.
//     r    the same, as a run's resume file in a directory, from which --resume reads it
//     m    "name=value", each ended by a zero byte: these of a sound resume file's settings are other
//          ones ("name" alone: not there); a "--name=value" is the resuming command line
//     o    the arguments of a command line, each ended by a zero byte
//
// A reader may refuse or accept; it must not read or write outside its memory, overflow or leak (the
// sanitizers see to that), a refusal must be one line, and what it accepts must be as its header file
// promises: abort() ends it otherwise.
//
//     make fuzz                          a minute of it, from the inputs in tests/corpus
//     build/gcc/fuzz/fuzz crash-...      one input again
#define _POSIX_C_SOURCE 200809L
#include "../cifar.h"
#include "../run/checkpoint.h"
#include "../run/files.h"
#include "../run/options.h"
#include "../run/progress.h"

#include <ctype.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

// Nothing is computed here: of the devices the names are enough.
const device reference_device;

const device *cpu_device(void) {
  return &reference_device;
}

const device *simt_device(bool plain) {
  (void)plain;
  return &reference_device;
}

const device *cpu_bf16_device(bool *fast) {
  *fast = false;
  return &reference_device;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void require(bool ok) {
  if (!ok) abort();
}

// A line, not empty, of printable characters: nothing in it can end it or move the cursor.
static void require_line(const error *e) {
  require(*e->text && strlen(e->text) < sizeof e->text);
  for (const char *c = e->text; *c; c++) require(!iscntrl((unsigned char)*c));
}

static void require_line_about(const char *file, const error *e) {
  require_line(e);
  require(!strncmp(e->text, file, strlen(file)) && !strncmp(e->text + strlen(file), ": ", 2));
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
    require_line_about("file", &e);
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
    require_line_about("file", &e);
  }
}

// A whole file from an input of the kinds h and r; to be freed.
static uint8_t *with_length(const uint8_t *bytes, size_t size, size_t *file_size) {
  const uint8_t *zero = memchr(bytes, 0, size);
  const size_t header = zero ? (size_t)(zero - bytes) : size;
  const size_t data = zero ? size - header - 1 : 0;
  uint8_t *file = allocate(8 + header + data);
  for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)header >> (8 * i));
  memcpy(file + 8, bytes, header);
  if (zero) memcpy(file + 8 + header, zero + 1, data);
  *file_size = 8 + header + data;
  return file;
}

// -- Settings ------------------------------------------------------------------------------------

static void parse_defaults(options *o) {
  char *none[] = {"train", NULL};
  error e;
  require(options_parse(1, none, o, &e));
}

enum { STATE_VALUES = SAVED_OPTIONS + POSITION_VALUES };

static int by_key(const void *a, const void *b) {
  return strcmp(((const metadata_read *)a)->key, ((const metadata_read *)b)->key);
}

// `written` as the reader would hand it over, sorted by key; `read` has room for `count`.
static safetensors as_read(const metadata *written, int count, metadata_read *read) {
  for (int i = 0; i < count; i++) read[i] = (metadata_read){written[i].key, written[i].value};
  qsort(read, (size_t)count, sizeof *read, by_key);
  return (safetensors){.metadata = read, .metadata_count = count};
}

// The settings of `o`, written and read again, are the same.
static void require_round_trip(const options *o) {
  metadata written[SAVED_OPTIONS], again[SAVED_OPTIONS];
  metadata_read as_written[SAVED_OPTIONS];
  const int count = options_to_metadata(o, written);
  const safetensors file = as_read(written, count, as_written);
  options read;
  error e;
  parse_defaults(&read);
  require(count == SAVED_OPTIONS && options_from_metadata(&read, &file, stderr, &e));
  options_to_metadata(&read, again);
  for (int i = 0; i < count; i++) require(!strcmp(written[i].value, again[i].value));
}

// What a resumed run, with the options `o` of its command line, takes from its resume file. It says
// what it changes, in lines.
static void read_state(options *o, const safetensors *resume) {
  position at = {0};
  error e;
  char *said = NULL;
  size_t length = 0;
  FILE *out = open_memstream(&said, &length);
  require(out != NULL);
  if (options_from_metadata(o, resume, out, &e))
    require_round_trip(o);
  else
    require_line(&e);
  fclose(out);
  for (size_t i = 0; i < length; i++) require(said[i] == '\n' || !iscntrl((unsigned char)said[i]));
  free(said);
  if (position_from_metadata(&at, resume, &e))
    require(at.epoch >= 0 && at.step >= at.step_in_epoch && at.step_in_epoch >= 0 &&
            at.images >= at.step_in_epoch && isfinite(at.loss) && at.seconds >= 0 &&
            at.correct <= (double)at.images * (1 + 1e-6));
  else
    require_line(&e);
}

// The next text of the input, ended by a zero byte or the input's end; to be freed. NULL: no more.
static char *next_text(const uint8_t **bytes, size_t *size) {
  if (!*size) return NULL;
  const uint8_t *zero = memchr(*bytes, 0, *size);
  const size_t length = zero ? (size_t)(zero - *bytes) : *size, step = length + (zero ? 1 : 0);
  char *text = allocate(length + 1);
  memcpy(text, *bytes, length);
  *bytes += step;
  *size -= step;
  return text;
}

static void read_metadata(const uint8_t *bytes, size_t size) {
  metadata state[STATE_VALUES];
  metadata_read resume[STATE_VALUES];
  const position at = {.epoch = 1, .step = 5, .step_in_epoch = 2, .images = 40};
  options o;
  error e;
  parse_defaults(&o);
  int count = options_to_metadata(&o, state);
  count += position_to_metadata(&at, state + count);
  for (char *text; (text = next_text(&bytes, &size));) {
    char *equals = strchr(text, '='), *arguments[] = {"train", text, NULL};
    if (!strncmp(text, "--", 2)) {
      if (!options_parse(2, arguments, &o, &e)) parse_defaults(&o);
      free(text);
      continue;
    }
    if (equals) *equals = 0;
    for (int i = 0; i < count; i++) {
      if (strcmp(state[i].key, text)) continue;
      if (equals)
        snprintf(state[i].value, sizeof state[i].value, "%s", equals + 1);
      else
        state[i].key[0] = 0;
    }
    free(text);
  }
  const safetensors file = as_read(state, count, resume);
  read_state(&o, &file);
}

static void read_options(const uint8_t *bytes, size_t size) {
  enum { MOST = 64 };
  char *arguments[MOST + 2] = {"train"};
  int count = 1;
  options o;
  error e;
  while (count <= MOST && (arguments[count] = next_text(&bytes, &size))) count++;
  arguments[count] = NULL;
  if (options_parse(count, arguments, &o, &e))
    require_round_trip(&o);
  else
    require_line(&e);
  for (int i = 1; i < count; i++) free(arguments[i]);
}

// -- A resume file -------------------------------------------------------------------------------

static char directory[64];

static void remove_directory(void) {
  char path[160];
  snprintf(path, sizeof path, "%s/" CHECKPOINT_NAME ".resume.safetensors", directory);
  unlink(path);
  rmdir(directory);
}

static void read_resume(const uint8_t *bytes, size_t size) {
  char path[160];
  safetensors resume;
  options o;
  error e;
  if (!directory[0]) {
    snprintf(directory, sizeof directory, "%s/fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    require(mkdtemp(directory) != NULL && atexit(remove_directory) == 0);
  }
  snprintf(path, sizeof path, "%s/" CHECKPOINT_NAME ".resume.safetensors", directory);
  size_t file_size;
  uint8_t *file = with_length(bytes, size, &file_size);
  FILE *out = fopen(path, "wb");
  require(out && fwrite(file, 1, file_size, out) == file_size && fclose(out) == 0);
  free(file);
  if (checkpoint_read_resume(directory, &resume, &e)) {
    walk(&resume);
    require(safetensors_value(&resume, "weights") != NULL);
    parse_defaults(&o);
    read_state(&o, &resume);
    safetensors_free(&resume);
  } else {
    require_line_about(path, &e);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  size_t file_size;
  if (size == 0) return 0;
  const uint8_t kind = *bytes++;
  size--;
  if (kind == 'c') read_cifar(bytes, size);
  if (kind == 'h') {
    uint8_t *file = with_length(bytes, size, &file_size);
    read_safetensors(file, file_size);
  }
  if (kind == 'r') read_resume(bytes, size);
  if (kind == 'm') read_metadata(bytes, size);
  if (kind == 'o') read_options(bytes, size);
  if (kind == 's') {
    uint8_t *file = allocate(size);
    memcpy(file, bytes, size);
    read_safetensors(file, size);
  }
  return 0;
}
