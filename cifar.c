// cifar.c - reading CIFAR-10's files, and drawing the batches of an epoch. cifar.h has the format.
//
// A reader of files from elsewhere believes nothing: each size is checked before it is used, each
// label before it indexes anything, and a message says at which byte of which record of which file
// the trouble is.
#include "cifar.h"

#include "run/files.h"
#include "run/random.h"
#include <ctype.h>
#include <string.h>

const char *const cifar_files[ALL_FILES] = {
    "STAND-IN.txt",     "batches.meta.txt", "data_batch_1.bin", "data_batch_2.bin",
    "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

// Those with records, the test images' last.
enum { FILES = TRAIN_FILES + 1 };
static const char *const *const file_names = cifar_files + FIRST_FILE;

bool cifar_owns(const char *file) {
  for (int i = 0; i < ALL_FILES; i++)
    if (!strcmp(file, cifar_files[i])) return true;
  return false;
}

bool cifar_parse(const uint8_t *bytes, size_t size, const char *name, uint8_t *images,
                 uint8_t *labels, error *e) {
  if (size == 0) return fail(e, "%s: the file is empty; CIFAR-10's has 30,730,000 bytes", name);
  if (size % RECORD_BYTES)
    return fail(e,
                "%s: wrong size: %zu bytes end in record %zu at its byte %zu of %d; get the file "
                "again (make data)",
                name, size, size / RECORD_BYTES, size % RECORD_BYTES, RECORD_BYTES);
  for (size_t i = 0; i < size / RECORD_BYTES; i++) {
    const uint8_t *record = bytes + i * RECORD_BYTES;
    if (record[0] >= CLASSES)
      return fail(e,
                  "%s: record %zu (byte %zu of the file) has label %d, but labels go from 0 to "
                  "%d; get the file again (make data)",
                  name, i, i * RECORD_BYTES, record[0], CLASSES - 1);
    labels[i] = record[0];
    memcpy(images + i * IMAGE_BYTES, record + 1, IMAGE_BYTES);
  }
  return true;
}

// All 60,000 labels of CIFAR-10 in order. A set is called CIFAR-10 for its labels, not for its
// place; a change of the pixels alone (a copy that went through JPEG, say) cannot be told from here.
static const uint64_t CIFAR10_LABELS = 0xB4B601CC8E12CF5Fu;

// batches.meta.txt holds ten names, a line each; without it, and for a line that is empty or missing, the
// classes go by their numbers. False, with a line in e, where it is there and cannot be read.
static bool read_class_names(const char *directory, dataset *data, error *e) {
  char path[4096];
  uint8_t *bytes = NULL;
  size_t size = 0;
  snprintf(path, sizeof path, "%s/%s", directory, cifar_files[NAMES_FILE]);
  if (file_exists(path) && !(bytes = file_read(path, &size, e))) return false;
  const char *text = bytes ? (const char *)bytes : "", *end = text + size;
  for (int i = 0; i < CLASSES; i++) {
    enum { ROOM = sizeof data->class_names[0] };
    int length = 0;
    for (; text < end && *text != '\n'; text++)
      if (!iscntrl((unsigned char)*text) && length < ROOM - 1)
        data->class_names[i][length++] = *text;
    if (text < end) text++;
    data->class_names[i][length] = 0;
    if (!data->class_names[i][0]) snprintf(data->class_names[i], ROOM, "class %d", i);
  }
  free(bytes);
  return true;
}

// False, with a line in e, where the file that would say so is there and cannot be read.
static bool describe(const char *directory, dataset *data, int all_train, int all_test, error *e) {
  const char *kind = "an unknown set in CIFAR-10's format";
  char marker[4096];
  uint8_t *text = NULL;
  size_t size;
  snprintf(marker, sizeof marker, "%s/%s", directory, cifar_files[MARK_FILE]);
  data->is_cifar10 = fingerprint(FINGERPRINT_OF_NOTHING, data->labels,
                                 (size_t)(all_train + all_test)) == CIFAR10_LABELS;
  if (data->is_cifar10)
    kind = "CIFAR-10";
  else if (file_exists(marker) && !(text = file_read(marker, &size, e)))
    return false;
  if (text) kind = "STAND-IN SHAPES, not CIFAR-10";
  free(text);
  snprintf(data->description, sizeof data->description, "%s (%d training and %d test images%s)",
           kind, data->train_count, data->test_count,
           data->train_count < all_train || data->test_count < all_test ? " of it" : "");
  return true;
}

// Closes the gap between the training images that are kept and the test images behind them.
static void close_gap(dataset *data, int train_count, int test_count, int all_train) {
  memmove(data->images + (size_t)train_count * IMAGE_BYTES,
          data->images + (size_t)all_train * IMAGE_BYTES, (size_t)test_count * IMAGE_BYTES);
  memmove(data->labels + train_count, data->labels + all_train, (size_t)test_count);
}

// All six files into memory, sizes in bytes; false with a line in e, everything freed.
static bool read_files(const char *directory, uint8_t *bytes[FILES], size_t sizes[FILES],
                       error *e) {
  char path[4096];
  for (int i = 0; i < FILES; i++) {
    snprintf(path, sizeof path, "%s/%s", directory, file_names[i]);
    bytes[i] = file_read(path, &sizes[i], e);
    if (bytes[i]) continue;
    for (int j = 0; j < i; j++) free(bytes[j]);
    return fail_also(e, "; `make data` gets CIFAR-10, --data DIR names another place");
  }
  return true;
}

// A download that broke off at the end of a record looks sound, but is shorter than its siblings.
static bool same_sizes(const char *directory, const size_t sizes[FILES], error *e) {
  int longest = 0;
  for (int i = 1; i < TRAIN_FILES; i++)
    if (sizes[i] > sizes[longest]) longest = i;
  for (int i = 0; i < TRAIN_FILES; i++)
    if (sizes[i] != sizes[longest])
      return fail(e,
                  "%s/%s: wrong size: it ends after %zu records, %s after %zu; get the file again "
                  "(make data)",
                  directory, file_names[i], sizes[i] / RECORD_BYTES, file_names[longest],
                  sizes[longest] / RECORD_BYTES);
  return true;
}

bool cifar_read(const char *directory, int train_limit, int test_limit, dataset *data, error *e) {
  uint8_t *bytes[FILES];
  size_t sizes[FILES], total = 0;
  memset(data, 0, sizeof *data);
  if (!read_files(directory, bytes, sizes, e)) return false;
  for (int i = 0; i < FILES; i++) total += sizes[i] / RECORD_BYTES;
  const int all_test = (int)(sizes[TRAIN_FILES] / RECORD_BYTES), all_train = (int)total - all_test;
  data->images = allocate(total * IMAGE_BYTES);
  data->labels = allocate(total);
  size_t done = 0;
  bool ok = true;
  for (int i = 0; i < FILES; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, file_names[i]);
    ok = ok && cifar_parse(bytes[i], sizes[i], path, data->images + done * IMAGE_BYTES,
                           data->labels + done, e);
    done += sizes[i] / RECORD_BYTES;
    free(bytes[i]);
  }
  ok = ok && same_sizes(directory, sizes, e);
  if (ok && (train_limit > all_train || test_limit > all_test))
    ok = fail(e,
              "%s: holds %d training and %d test images, fewer than --train-images %d or "
              "--test-images %d asks for",
              directory, all_train, all_test, train_limit, test_limit);
  data->train_count = train_limit ? train_limit : all_train;
  data->test_count = test_limit ? test_limit : all_test;
  ok = ok && read_class_names(directory, data, e) &&
       describe(directory, data, all_train, all_test, e);
  if (!ok) {
    cifar_free(data);
    return false;
  }
  close_gap(data, data->train_count, data->test_count, all_train);
  const size_t kept = (size_t)(data->train_count + data->test_count);
  data->fingerprint = fingerprint(FINGERPRINT_OF_NOTHING, data->labels, kept);
  data->fingerprint = fingerprint(data->fingerprint, data->images, kept * IMAGE_BYTES);
  return true;
}

void cifar_free(dataset *data) {
  free(data->images);
  free(data->labels);
  memset(data, 0, sizeof *data);
}

// -- Batches ----------------------------------------------------------------------------------------

void cifar_shuffle(int32_t *order, int train_count, uint64_t seed, int epoch) {
  random_stream stream = random_open(seed, RANDOM_SHUFFLE, (uint32_t)epoch, 0);
  random_permutation(&stream, order, (uint32_t)train_count);
}

int cifar_training_batch(sample *samples, const int32_t *order, int train_count, int batch,
                         uint64_t seed, int epoch, int step) {
  const int first = (step - 1) * batch;
  const int count = train_count - first < batch ? train_count - first : batch;
  random_stream stream = random_open(seed, RANDOM_CROP, (uint32_t)epoch, (uint32_t)step);
  for (int b = 0; b < count; b++) {
    samples[b] = (sample){.image = order[first + b], .partner = b};
    samples[b].crop_y = (int32_t)random_below(&stream, 2 * CROP_PADDING + 1);
    samples[b].crop_x = (int32_t)random_below(&stream, 2 * CROP_PADDING + 1);
    samples[b].flip = (int32_t)random_below(&stream, 2);
  }
  return count;
}

float mixup_draw(int batch, sample *samples, double alpha, uint64_t seed, int epoch, int step) {
  for (int b = 0; b < batch; b++) samples[b].partner = b;
  if (alpha == 0) return 1;
  random_stream stream = random_open(seed, RANDOM_LAMBDA, (uint32_t)epoch, (uint32_t)step);
  const float lambda = (float)random_beta(&stream, alpha);
  int32_t *partners = allocate((size_t)batch * sizeof *partners);
  stream = random_open(seed, RANDOM_PARTNER, (uint32_t)epoch, (uint32_t)step);
  random_permutation(&stream, partners, (uint32_t)batch);
  for (int b = 0; b < batch; b++) samples[b].partner = partners[b];
  free(partners);
  return lambda;
}

void cifar_test_batch(sample *samples, int first, int count) {
  for (int b = 0; b < count; b++)
    samples[b] =
        (sample){.image = first + b, .partner = b, .crop_y = CROP_PADDING, .crop_x = CROP_PADDING};
}
