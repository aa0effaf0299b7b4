// cifar.h - CIFAR-10 from its files to the batches of an epoch.
//
// Krizhevsky, "Learning multiple layers of features from tiny images", 2009. The binary version is
// six files of records, 3,073 bytes each, with nothing before, between or after them:
//
//     byte 0            the label, 0 .. 9
//     bytes 1 .. 1024   red,   32 rows of 32 pixels
//     1025 .. 2048      green
//     2049 .. 3072      blue
//
// data_batch_1.bin .. data_batch_5.bin hold 10,000 training images each, test_batch.bin 10,000 test
// images. A set with fewer records a file (tools/shapes.c writes one) is read in the same way; what the
// program says of a set depends on what is in it, not on its directory's name.
#ifndef CIFAR_H
#define CIFAR_H

#include "device.h"
#include "run/error.h"

enum { RECORD_BYTES = 1 + IMAGE_BYTES };

// Training images come first, test images behind them, so one number names an image of either kind.
typedef struct {
  int train_count, test_count;
  uint8_t *images;               // [train_count + test_count][3][32][32]
  uint8_t *labels;               // [train_count + test_count]
  char class_names[CLASSES][24]; // from batches.meta.txt, if it is there
  char description[160];         // for the first lines of a run: "CIFAR-10 (...)"
  bool is_cifar10;               // the labels are those of all of CIFAR-10, in order
  uint64_t fingerprint;          // of every byte used: a resumed run must see the same data
} dataset;

// The names of its files: the mark of a set that tools/shapes.c has made and the class names, which may both be
// missing, and the files of records.
enum {
  TRAIN_FILES = 5,
  MARK_FILE = 0,
  NAMES_FILE,
  FIRST_FILE,
  TEST_FILE = FIRST_FILE + TRAIN_FILES,
  ALL_FILES
};
extern const char *const cifar_files[ALL_FILES];
bool cifar_owns(const char *file); // is it one of these?

// Checks `size` bytes of one file and copies its records: label i to labels[i], image i to
// images[i]. `name` is for the message. False, with a line naming record and byte, unless size is a
// positive multiple of 3,073 and every label is below 10.
bool cifar_parse(const uint8_t *bytes, size_t size, const char *name, uint8_t *images,
                 uint8_t *labels, error *e);

// Reads the six files of a directory and keeps the first train_limit training and test_limit test
// images (0: all). False, with a line naming file, record and byte, for a file that is missing, of
// the wrong size, cut short or damaged, and for limits beyond what is there.
bool cifar_read(const char *directory, int train_limit, int test_limit, dataset *data, error *e);
void cifar_free(dataset *data);

// -- Batches. Everything is a function of seed, epoch (from 0) and step (from 1, in the epoch). -----

// The order of an epoch: a new permutation of the training images.
void cifar_shuffle(int32_t *order, int train_count, uint64_t seed, int epoch);

// Batch `step` of an epoch: images from `order`, each with its random crop (a corner in 0 .. 8,
// either way) and flip (one time in two), its own position as partner. Returns how many samples were
// written: `batch`, or what is left for the last one.
int cifar_training_batch(sample *samples, const int32_t *order, int train_count, int batch,
                         uint64_t seed, int epoch, int step);

// Mixup's random part, the same on every device. A permutation of the batch gives each of the `batch`
// samples its partner. One lambda ~ Beta(alpha, alpha), the same for all of them, is drawn and
// returned. alpha = 0 turns mixup off: lambda 1, and every sample its own partner.
float mixup_draw(int batch, sample *samples, double alpha, uint64_t seed, int epoch, int step);

// Images first .. first + count - 1 of the data set (the test images begin at train_count) as a network
// is tested with them: neither cropped nor flipped nor mixed.
void cifar_test_batch(sample *samples, int first, int count);

#endif
