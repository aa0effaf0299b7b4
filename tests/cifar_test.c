// tests/cifar_test.c - the reader of CIFAR-10's files, and the batches of an epoch.
//
// A small set in CIFAR-10's format, five files of 10 records and one of 7, is written into a
// directory of its own and read back. Then it is damaged in one way after another; each time the
// reader must say no, in one line that names the file, and where it can the record and the byte.
//
//     make build/gcc/tests/cifar_test && build/gcc/tests/cifar_test
#define _POSIX_C_SOURCE 200809L
#include "../cifar.h"
#include "check.h"
#include "scratch.h"
#include <sys/stat.h>

enum {
  FILES = 6,
  LAST_FILE = 5,      // the test images
  TRAIN_RECORDS = 10, // in each training file
  TEST_RECORDS = 7,
  TRAIN_IMAGES = 5 * TRAIN_RECORDS,
  IMAGES = TRAIN_IMAGES + TEST_RECORDS,
  FILE_BYTES = TRAIN_RECORDS * RECORD_BYTES,
  SET_BYTES = IMAGES * RECORD_BYTES
};

static const char *const names[FILES] = {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin",
                                         "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

static uint64_t seed;
static random_stream numbers;
static uint8_t set[SET_BYTES + 1]; // the six files one after another, and a byte too many

static size_t size_of(int file) {
  return file == LAST_FILE ? TEST_RECORDS * RECORD_BYTES : FILE_BYTES;
}

static void write_set(void) {
  scratch_empty(scratch_directory);
  for (int i = 0; i < FILES; i++)
    scratch_write(scratch_path(names[i]), set + (size_t)i * FILE_BYTES, size_of(i));
}

static void draw_set(void) {
  for (int i = 0; i < SET_BYTES; i++) set[i] = (uint8_t)random_bits(&numbers);
  for (int i = 0; i < IMAGES; i++) set[i * RECORD_BYTES] = (uint8_t)random_below(&numbers, CLASSES);
}

// -- A sound set -------------------------------------------------------------------------------------

// Does image `at` of the data hold the pixels and the label of record `record` of the set?
static bool holds(const dataset *data, int at, int record) {
  const uint8_t *bytes = set + record * RECORD_BYTES;
  return data->labels[at] == bytes[0] &&
         !memcmp(data->images + (size_t)at * IMAGE_BYTES, bytes + 1, IMAGE_BYTES);
}

static void test_whole_set(void) {
  dataset data;
  error e = {""};
  int wrong = 0;
  if (!check(cifar_read(scratch_directory, 0, 0, &data, &e), "a sound set is read %s", e.text))
    return;
  check(data.train_count == TRAIN_IMAGES && data.test_count == TEST_RECORDS, "its counts");
  for (int i = 0; i < IMAGES; i++) wrong += !holds(&data, i, i);
  check(wrong == 0, "every pixel and label, files in order, test images last");
  check(!data.is_cifar10 && strstr(data.description, "unknown set"), "it is not called CIFAR-10");
  check(!strcmp(data.class_names[0], "class 0") && !strcmp(data.class_names[9], "class 9"),
        "classes without names go by their numbers");
  cifar_free(&data);
  check(!data.images && !data.labels, "cifar_free leaves nothing to be freed twice");
}

static void test_names(void) {
  static const char text[] =
      "air\x1bplane\r\n\nbird\na name that is longer than there is room for\n";
  dataset data;
  error e;
  scratch_write(scratch_path("batches.meta.txt"), text, sizeof text - 1);
  scratch_write(scratch_path("STAND-IN.txt"), "", 0);
  if (check(cifar_read(scratch_directory, 0, 0, &data, &e), "a set with class names"))
    check(!strcmp(data.class_names[0], "airplane") && !strcmp(data.class_names[1], "class 1") &&
              !strcmp(data.class_names[2], "bird") &&
              !strcmp(data.class_names[3], "a name that is longer t") &&
              !strcmp(data.class_names[9], "class 9"),
          "names from batches.meta.txt: a control character, an empty line, a long one, too few");
  check(strstr(data.description, "STAND-IN") != NULL, "a stand-in is called one");
  cifar_free(&data);
  write_set();
}

// open() of a pipe that nobody writes to would wait for ever; main's alarm would end it.
static void test_pipes(void) {
  static const char *const files[] = {"batches.meta.txt", "data_batch_3.bin"};
  for (int i = 0; i < 2; i++) {
    dataset data;
    error e;
    remove(scratch_path(files[i]));
    if (!check(mkfifo(scratch_path(files[i]), 0666) == 0, "a pipe as %s", files[i])) continue;
    check_refused(cifar_read(scratch_directory, 0, 0, &data, &e), &e, "it", scratch_path(files[i]),
                  "not a file");
    remove(scratch_path(files[i]));
    write_set();
  }
}

// What cannot be looked for is not the same as what is not there: a link to itself is ELOOP.
static void test_loops(void) {
  static const char *const files[] = {"batches.meta.txt", "STAND-IN.txt"};
  for (int i = 0; i < 2; i++) {
    dataset data;
    error e;
    remove(scratch_path(files[i]));
    if (!check(symlink(files[i], scratch_path(files[i])) == 0, "a loop as %s", files[i])) continue;
    check_refused(cifar_read(scratch_directory, 0, 0, &data, &e), &e, "it", scratch_path(files[i]),
                  "Too many levels");
    remove(scratch_path(files[i]));
    write_set();
  }
}

// --train-images and --test-images
static void test_limits(void) {
  dataset data, all;
  error e;
  int wrong = 0;
  if (!check(cifar_read(scratch_directory, 23, 3, &data, &e), "a set with limits 23 and 3")) return;
  check(data.train_count == 23 && data.test_count == 3 && strstr(data.description, "of it"),
        "its counts, and the description says so");
  for (int i = 0; i < 23 + 3; i++) wrong += !holds(&data, i, i < 23 ? i : TRAIN_IMAGES + i - 23);
  check(wrong == 0, "the first images of each kind");
  const uint64_t limited = data.fingerprint;
  cifar_free(&data);
  if (!check(cifar_read(scratch_directory, TRAIN_IMAGES, TEST_RECORDS, &data, &e) &&
                 cifar_read(scratch_directory, 0, 0, &all, &e),
             "limits of all there is"))
    return;
  check(data.fingerprint == all.fingerprint && data.fingerprint != limited,
        "are no limits; smaller ones give another fingerprint");
  cifar_free(&data);
  cifar_free(&all);
}

static uint64_t fingerprint_of(int train_limit, int test_limit) {
  dataset data;
  error e;
  if (!cifar_read(scratch_directory, train_limit, test_limit, &data, &e)) return 0;
  const uint64_t result = data.fingerprint;
  cifar_free(&data);
  return result;
}

static void put_byte(int position, uint8_t value) {
  const int file = position / FILE_BYTES;
  FILE *out = fopen(scratch_path(names[file]), "r+b");
  const bool ok = out && fseek(out, position - file * FILE_BYTES, SEEK_SET) == 0 &&
                  fputc(value, out) == value && fclose(out) == 0;
  if (!ok) check(false, "%s: could not be changed", names[file]);
}

// With another byte at `position`; a label becomes another label.
static uint64_t fingerprint_after_change(int position, int train_limit, int test_limit) {
  const uint8_t before = set[position];
  put_byte(position, position % RECORD_BYTES ? before ^ (uint8_t)(1 + random_below(&numbers, 255))
                                             : (before + 1) % CLASSES);
  const uint64_t result = fingerprint_of(train_limit, test_limit);
  put_byte(position, before);
  return result;
}

static void test_fingerprint(void) {
  const uint64_t whole = fingerprint_of(0, 0), part = fingerprint_of(1, 1);
  int missed = 0, touched = 0;
  check(whole && whole == fingerprint_of(0, 0), "the same bytes give the same fingerprint");
  for (int i = 0; i < 300; i++) {
    int position = (int)random_below(&numbers, SET_BYTES);
    if (i < IMAGES) position = i * RECORD_BYTES; // each label
    if (i == IMAGES) position = SET_BYTES - 1;
    missed += fingerprint_after_change(position, 0, 0) == whole;
  }
  check(missed == 0, "any byte that changes, changes the fingerprint (%d missed)", missed);
  for (int i = 0; i < 20; i++)
    touched += fingerprint_after_change(RECORD_BYTES + i * 997, 1, 1) != part;
  check(touched == 0, "a byte beyond the limits does not");
}

// -- Damaged sets --------------------------------------------------------------------------------------

static void expect_refusal(const char *what, const char *named, const char *phrase) {
  dataset data;
  error e = {""};
  check_refused(cifar_read(scratch_directory, 0, 0, &data, &e), &e, what, named, phrase);
  if (data.images) check(false, "%s: memory is left behind", what);
  write_set();
}

// The set with `size` bytes in place of one file's.
static void expect_size_refused(const char *what, int file, size_t size, const char *phrase) {
  scratch_write(scratch_path(names[file]), set + (size_t)file * FILE_BYTES, size);
  expect_refusal(what, scratch_path(names[file]), phrase);
}

static void test_missing_and_short_files(void) {
  for (int i = 0; i < FILES; i++) {
    char what[80], phrase[80];
    remove(scratch_path(names[i]));
    snprintf(what, sizeof what, "%s is missing", names[i]);
    expect_refusal(what, scratch_path(names[i]), "No such file");
    snprintf(what, sizeof what, "%s is empty", names[i]);
    expect_size_refused(what, i, 0, "empty");
    const int records = i == LAST_FILE ? TEST_RECORDS : TRAIN_RECORDS;
    snprintf(what, sizeof what, "%s has a byte more", names[i]);
    snprintf(phrase, sizeof phrase, "record %d at its byte 1 of 3073", records);
    expect_size_refused(what, i, size_of(i) + 1, phrase);
    snprintf(what, sizeof what, "%s has a byte less", names[i]);
    snprintf(phrase, sizeof phrase, "record %d at its byte 3072 of 3073", records - 1);
    expect_size_refused(what, i, size_of(i) - 1, phrase);
    if (i == LAST_FILE) continue; // its size is its own
    snprintf(what, sizeof what, "%s is a record shorter than the others", names[i]);
    expect_size_refused(what, i, size_of(i) - RECORD_BYTES, "ends after 9 records");
  }
  expect_size_refused("a training file of half the size", 2, FILE_BYTES / 2,
                      "ends after 5 records");
  expect_size_refused("a test file of half the size", LAST_FILE, size_of(LAST_FILE) / 2,
                      "record 3 at its byte 1536");
  expect_size_refused("a file of one byte", 1, 1, "record 0 at its byte 1");
}

static void expect_label_refused(int file, int record, uint8_t label) {
  char what[80], phrase[120];
  const size_t byte = (size_t)record * RECORD_BYTES;
  uint8_t *place = set + (size_t)file * FILE_BYTES + byte, before = *place;
  *place = label;
  scratch_write(scratch_path(names[file]), set + (size_t)file * FILE_BYTES, size_of(file));
  *place = before; // expect_refusal writes the sound set again
  snprintf(what, sizeof what, "label %d in record %d of %s", label, record, names[file]);
  snprintf(phrase, sizeof phrase, "record %d (byte %zu of the file) has label %d,", record, byte,
           label);
  expect_refusal(what, scratch_path(names[file]), phrase);
}

// A file of 4,096 bytes by its size, of which only a few can be read.
static const char short_file[] = "/sys/devices/system/cpu/online";

static void test_other_damage(void) {
  struct stat status;
  dataset data;
  error e;
  expect_label_refused(0, 0, 10);
  expect_label_refused(1, 3, 10);
  expect_label_refused(4, TRAIN_RECORDS - 1, 255);
  expect_label_refused(LAST_FILE, TEST_RECORDS - 1, 128);
  remove(scratch_path(names[3]));
  mkdir(scratch_path(names[3]), 0777);
  expect_refusal("a directory in a file's place", scratch_path(names[3]), "not a file");
  if (stat(short_file, &status) == 0 && status.st_size == 4096) {
    remove(scratch_path(names[0]));
    if (symlink(short_file, scratch_path(names[0])) == 0)
      expect_refusal("a file that cannot be read to its end", scratch_path(names[0]), "short read");
  } else {
    printf("skip a file that cannot be read to its end: no %s here\n", short_file);
  }
  check_refused(cifar_read(scratch_directory, TRAIN_IMAGES + 1, 0, &data, &e), &e,
                "more training images than there are", scratch_directory, "--train-images 51");
  check_refused(cifar_read(scratch_directory, 0, TEST_RECORDS + 1, &data, &e), &e,
                "more test images than there are", scratch_directory, "--test-images 8");
  check_refused(cifar_read(scratch_path("nowhere"), 0, 0, &data, &e), &e,
                "a directory that is not there", scratch_path("nowhere/data_batch_1.bin"),
                "No such file");
}

// Every length up to two records, from memory that ends where the file does, so that the sanitizers
// see a read beyond it.
static void test_every_length(void) {
  uint8_t *images = allocate(2 * IMAGE_BYTES), *labels = allocate(2);
  int accepted = 0, wrong = 0;
  for (size_t size = 0; size <= 2 * RECORD_BYTES; size++) {
    error e;
    uint8_t *bytes = allocate(size);
    memcpy(bytes, set, size);
    const bool ok = cifar_parse(bytes, size, "a file", images, labels, &e);
    accepted += ok;
    wrong += ok != (size == RECORD_BYTES || size == 2 * RECORD_BYTES);
    free(bytes);
  }
  check(wrong == 0 && accepted == 2, "of all lengths up to two records, only whole records pass");
  free(images);
  free(labels);
}

// -- Batches -------------------------------------------------------------------------------------------

// Places that hold the same image in both orders.
static int same_places(const int32_t *a, const int32_t *b, int count) {
  int same = 0;
  for (int i = 0; i < count; i++) same += a[i] == b[i];
  return same;
}

// Two random permutations agree in a Poisson number of places, mean 1: 20 or more of them happen
// less than once in 10^18 times.
static void test_shuffle(void) {
  enum { COUNT = 50000 };
  int32_t *first = allocate(COUNT * sizeof *first), *other = allocate(COUNT * sizeof *other);
  uint8_t *seen = allocate(COUNT);
  int32_t missing = 0;
  cifar_shuffle(first, COUNT, seed, 1);
  for (int i = 0; i < COUNT; i++)
    if (first[i] >= 0 && first[i] < COUNT) seen[first[i]]++;
  for (int i = 0; i < COUNT; i++) missing += seen[i] != 1;
  check(missing == 0, "an epoch's order has each image once");
  for (int i = 0; i < COUNT; i++) other[i] = i;
  check(same_places(first, other, COUNT) < 20, "it is not the files' order");
  cifar_shuffle(other, COUNT, seed, 2);
  check(same_places(first, other, COUNT) < 20, "the next epoch's is another");
  cifar_shuffle(other, COUNT, seed + 1, 1);
  check(same_places(first, other, COUNT) < 20, "another seed's is another");
  cifar_shuffle(other, COUNT, seed, 1);
  check(same_places(first, other, COUNT) == COUNT, "the same seed and epoch give the same");
  free(first);
  free(other);
  free(seen);
}

// Each image once an epoch, batches full but for the last, which has `last`.
static void expect_coverage(int train_count, int batch, int steps, int last) {
  int32_t *order = allocate((size_t)train_count * sizeof *order);
  uint8_t *seen = allocate((size_t)train_count);
  sample *samples = allocate((size_t)batch * sizeof *samples);
  int wrong = 0;
  cifar_shuffle(order, train_count, seed, 7);
  for (int step = 1; step <= steps; step++) {
    const int count = cifar_training_batch(samples, order, train_count, batch, seed, 7, step);
    wrong += count != (step < steps ? batch : last);
    for (int b = 0; b < count; b++) {
      wrong += samples[b].partner != b || samples[b].image != order[(step - 1) * batch + b];
      seen[samples[b].image]++;
    }
  }
  for (int i = 0; i < train_count; i++) wrong += seen[i] != 1;
  check(wrong == 0, "%d images in batches of %d: each once in %d steps, the last of %d",
        train_count, batch, steps, last);
  free(order);
  free(seen);
  free(samples);
}

// Corner and flip are 9 x 9 x 2 cells, all equally likely. Chi-square with 161 degrees of freedom
// exceeds 294 once in 10^9 runs.
static void test_crops(void) {
  enum { COUNT = 50000, BATCH = 128, CELLS = 9 * 9 * 2 };
  int32_t *order = allocate(COUNT * sizeof *order);
  sample samples[BATCH];
  int cells[CELLS] = {0}, total = 0, outside = 0;
  double distance = 0;
  for (int step = 1; step <= (COUNT + BATCH - 1) / BATCH; step++) {
    const int count = cifar_training_batch(samples, order, COUNT, BATCH, seed, 3, step);
    for (int b = 0; b < count; b++, total++) {
      const sample *s = &samples[b];
      const bool inside = s->crop_y >= 0 && s->crop_y <= 8 && s->crop_x >= 0 && s->crop_x <= 8 &&
                          (s->flip == 0 || s->flip == 1);
      outside += !inside;
      if (inside) cells[(s->crop_y * 9 + s->crop_x) * 2 + s->flip]++;
    }
  }
  const double expected = (double)total / CELLS;
  for (int i = 0; i < CELLS; i++)
    distance += (cells[i] - expected) * (cells[i] - expected) / expected;
  check(outside == 0 && total == COUNT, "corners are in 0 .. 8, flips 0 or 1");
  check(distance <= 294, "corners and flips are uniform: chi-square %.1f, at most 294", distance);
  free(order);
}

static bool same_batch(const int32_t *order, const sample *wanted, uint64_t a_seed, int epoch,
                       int step) {
  sample samples[64];
  const int count = cifar_training_batch(samples, order, 640, 64, a_seed, epoch, step);
  for (int b = 0; b < count; b++) samples[b].image = wanted[b].image; // compare what is drawn
  return !memcmp(samples, wanted, sizeof samples);
}

static void test_dependence(void) {
  int32_t order[640];
  sample wanted[64];
  cifar_shuffle(order, 640, seed, 2);
  cifar_training_batch(wanted, order, 640, 64, seed, 2, 5);
  for (int step = 1; step <= 10; step++) same_batch(order, wanted, seed, 1, step);
  check(same_batch(order, wanted, seed, 2, 5), "a batch does not depend on those drawn before it");
  check(!same_batch(order, wanted, seed, 2, 6), "another step draws other crops");
  check(!same_batch(order, wanted, seed, 3, 5), "another epoch draws other crops");
  check(!same_batch(order, wanted, seed + 1, 2, 5), "another seed draws other crops");
}

static void test_test_batch(void) {
  sample samples[100];
  int wrong = 0;
  cifar_test_batch(samples, 1300, 100);
  for (int b = 0; b < 100; b++)
    wrong += samples[b].image != 1300 + b || samples[b].partner != b || samples[b].crop_y != 4 ||
             samples[b].crop_x != 4 || samples[b].flip != 0;
  check(wrong == 0, "a test batch: images in order, not cropped, flipped or mixed");
}

int main(void) {
  alarm(100); // seconds, of which this test takes one
  seed = check_seed("cifar_test");
  numbers = random_open(seed, RANDOM_TEST, 0, 0);
  scratch_make();
  draw_set();
  write_set();
  test_whole_set();
  test_names();
  test_pipes();
  test_loops();
  test_limits();
  test_fingerprint();
  test_missing_and_short_files();
  test_other_damage();
  test_every_length();
  scratch_remove();
  test_shuffle();
  expect_coverage(50000, 128, 391, 80);
  expect_coverage(256, 128, 2, 128);
  expect_coverage(257, 128, 3, 1);
  expect_coverage(5, 128, 1, 5);
  test_crops();
  test_dependence();
  test_test_batch();
  return check_summary();
}
