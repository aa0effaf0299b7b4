// tests/evaluate_test.c - what --eval says of a network, from its logits: confidence, calibration, bins, and
// how many images of each class are right.
//
// The logits are chosen here: the device is the reference, but for the operations that lead to them. What
// has to come out is computed from the formulas at the top of run/evaluate.c, a second time. Most logits are
// random; some put a confidence at the very edge of a bin, or make several classes equally likely. That a
// network's own logits get there, wiring_test.c shows, by losses and accuracies of whole runs.
//
//     make build/gcc/tests/evaluate_test && build/gcc/tests/evaluate_test
#define _POSIX_C_SOURCE 200809L
#include "../run/checkpoint.h"
#include "../run/trainer.h"
#include "check.h"
#include "scratch.h"
#include <fcntl.h>
#include <string.h>

enum { TRAIN = 5, TEST = 233, IMAGES = TRAIN + TEST }; // three batches, the last of 33 images
enum { BINS = 15, ABSENT = 7 };                        // a class of which there is no image

static random_stream stream;
static real chosen[IMAGES][CLASSES]; // logits
static uint8_t labels[IMAGES];

// -- A network of chosen logits --------------------------------------------------------------------

static const sample *batch_of; // the images at work

static void note_images(int batch, void *x, const uint8_t *images, const sample *samples,
                        const step_values *step) {
  (void)batch, (void)x, (void)images, (void)step;
  batch_of = samples;
}

static void no_conv(const conv_shape *shape, void *y, const void *x, const void *w,
                    const real *gamma, const real *beta, const void *residual, bool relu,
                    const real *running_mean, const real *running_var) {
  (void)shape, (void)y, (void)x, (void)w, (void)gamma, (void)beta, (void)residual, (void)relu;
  (void)running_mean, (void)running_var;
}

static void no_pool(int batch, int pixels, int channels, void *y, const void *x) {
  (void)batch, (void)pixels, (void)channels, (void)y, (void)x;
}

static void give_logits(int batch, int channels, real *logits, const void *x, const void *w,
                        const real *bias) {
  (void)channels, (void)x, (void)w, (void)bias;
  for (int b = 0; b < batch; b++)
    memcpy(logits + b * CLASSES, chosen[batch_of[b].image], sizeof *chosen);
}

static int largest_of(const real *logits) {
  int best = 0;
  for (int j = 1; j < CLASSES; j++)
    if (logits[j] > logits[best]) best = j;
  return best;
}

// The more an image's logits differ, the surer the network is of it. Two in three are right.
static void choose_at_random(int i) {
  const double spread = 6 * random_double(&stream);
  for (int j = 0; j < CLASSES; j++) chosen[i][j] = (real)(spread * random_normal(&stream));
  chosen[i][ABSENT] = -1000;
  labels[i] = (uint8_t)largest_of(chosen[i]);
  while (labels[i] == ABSENT || random_below(&stream, 3) == 0)
    labels[i] = (uint8_t)random_below(&stream, CLASSES);
}

// So many classes are equally likely, and no other: the confidence is 1 / equal. 1/5 and 1/3 are edges.
static void choose_equal(int i, int equal) {
  for (int j = 0; j < CLASSES; j++) chosen[i][j] = j < equal ? 3 : -1000;
  labels[i] =
      (uint8_t)(i % 2 && equal > 1); // the first of them, which is what is guessed, or the second
}

static void choose_logits(void) {
  static const int equal[] = {5, 5, 3, 3, 1, 2, 6, 10};
  for (int i = 0; i < IMAGES; i++) choose_at_random(i);
  for (int i = 0; i < 8; i++) choose_equal(IMAGES - 1 - 29 * i, equal[i]);
}

// -- What has to come out --------------------------------------------------------------------------

typedef struct {
  double accuracy, nll, criterion, confidence, error;
  int all[CLASSES], right[CLASSES];                            // of each class
  double bin_all[BINS], bin_right[BINS], bin_confidence[BINS]; // sums over images
} figures;

static void add_image(figures *f, int i) {
  const int guess = largest_of(chosen[i]), label = labels[i];
  const double smoothing = 0.1f; // as the device has it
  double sum = 0, p[CLASSES];
  int bin = 0;
  for (int j = 0; j < CLASSES; j++) sum += p[j] = exp((double)chosen[i][j]);
  for (int j = 0; j < CLASSES; j++) {
    const double target = j == label ? 1 - smoothing : smoothing / 9,
                 log_p = chosen[i][j] - log(sum);
    f->criterion -= target * log_p / TEST;
    f->nll -= (j == label) * log_p / TEST;
  }
  const double confidence = p[guess] / sum;
  while (confidence > (bin + 1) / (double)BINS) bin++;
  f->confidence += confidence / TEST;
  f->accuracy += (guess == label) / (double)TEST;
  f->all[label]++, f->right[label] += guess == label;
  f->bin_all[bin]++, f->bin_right[bin] += guess == label, f->bin_confidence[bin] += confidence;
}

static figures expect_figures(void) {
  figures f = {0};
  for (int i = TRAIN; i < IMAGES; i++) add_image(&f, i);
  for (int b = 0; b < BINS; b++)
    if (f.bin_all[b])
      f.error += f.bin_all[b] / TEST *
                 fabs(f.bin_right[b] / f.bin_all[b] - f.bin_confidence[b] / f.bin_all[b]);
  return f;
}

// -- What comes out --------------------------------------------------------------------------------

static void write_data(void) {
  static uint8_t bytes[TEST * RECORD_BYTES];
  for (int i = 0; i < TRAIN; i++) {
    char name[40];
    snprintf(name, sizeof name, "data_batch_%d.bin", i + 1);
    bytes[0] = labels[i];
    scratch_write(scratch_path(name), bytes, RECORD_BYTES);
  }
  for (int i = 0; i < TEST; i++) bytes[i * RECORD_BYTES] = labels[TRAIN + i];
  scratch_write(scratch_path("test_batch.bin"), bytes, sizeof bytes);
}

static bool set_up_and_evaluate(trainer *t, error *e) {
  const metadata none = {"", ""};
  return trainer_set_up(t, e) &&
         checkpoint_save(&t->network, scratch_directory, "weights", &none, 0, e) && evaluate(t, e);
}

// ./train --eval, with what it prints in the file "out".
static bool run_evaluation(error *e) {
  static trainer t;
  static char *arguments[] = {"train", "--width", "8"};
  device d = reference_device;
  d.mix_images = note_images;
  d.conv_norm_inference = no_conv;
  d.pool_forward = no_pool;
  d.linear_forward = give_logits;
  if (!options_parse(3, arguments, &t.options, e)) return false;
  t.device = &d;
  snprintf(t.options.data, PATH_ROOM, "%s", scratch_directory);
  snprintf(t.options.eval, PATH_ROOM, "%s", scratch_path("weights.safetensors"));
  snprintf(t.options.bins, PATH_ROOM, "%s", scratch_path("bins"));
  snprintf(t.options.log, PATH_ROOM, "%s", scratch_path("figures"));
  fflush(stdout);
  const int usual = dup(STDOUT_FILENO);
  const int out = open(scratch_path("out"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
  dup2(out, STDOUT_FILENO);
  const bool ok = set_up_and_evaluate(&t, e);
  fflush(stdout);
  dup2(usual, STDOUT_FILENO);
  close(usual), close(out);
  trainer_free(&t);
  return ok;
}

// The next line of a file; false, with "" in it, at its end.
static bool next_line(FILE *file, char line[200]) {
  line[0] = 0;
  return file && fgets(line, 200, file);
}

// Files have nine digits.
static bool same(double said, double expected) {
  return fabs(said - expected) <= 5e-9 * fabs(expected);
}

static void check_figures(const figures *f) {
  double said[6] = {NAN, NAN, NAN, NAN, NAN, NAN};
  char line[200];
  int images = 0;
  FILE *file = fopen(scratch_path("figures"), "r");
  next_line(file, line);
  if (next_line(file, line))
    sscanf(line, "test,%d,%lf,%lf,%lf,%lf,%lf,%lf,", &images, &said[0], &said[1], &said[2],
           &said[3], &said[4], &said[5]);
  if (file) fclose(file);
  check(images == TEST && same(said[0], f->accuracy), "accuracy %g", said[0]);
  check(same(said[1], f->nll), "negative log likelihood %g", said[1]);
  check(same(said[2], f->criterion) && said[3] == 0.1, "training criterion %g", said[2]);
  check(same(said[4], f->confidence), "mean confidence %g", said[4]);
  check(same(said[5], f->error), "expected calibration error %g", said[5]);
}

static void check_bins(const figures *f) {
  int right = 0;
  char line[200];
  FILE *file = fopen(scratch_path("bins"), "r");
  next_line(file, line);
  for (int b = 0; b < BINS && next_line(file, line); b++) {
    double from, to, images, confidence = 0, accuracy = 0;
    const int numbers =
        sscanf(line, "%lf,%lf,%lf,%lf,%lf", &from, &to, &images, &confidence, &accuracy);
    const bool edges =
        fabs(from - b / 15.0) <= 5e-7 && fabs(to - (b + 1) / 15.0) <= 5e-7; // six digits
    const bool means = images ? same(confidence, f->bin_confidence[b] / images) &&
                                    same(accuracy, f->bin_right[b] / images)
                              : numbers == 3;
    right += numbers >= 3 && edges && images == f->bin_all[b] && means;
  }
  if (file) fclose(file);
  check(right == BINS, "of %d bins, %d have their images, confidence and accuracy", BINS, right);
}

static void check_classes(const figures *f) {
  int right = 0;
  char line[200];
  FILE *file = fopen(scratch_path("out"), "r");
  while (next_line(file, line)) {
    int class, hits, all;
    if (sscanf(line, " class %d %*f %% (%d of %d)", &class, &hits, &all) == 3)
      right += class >= 0 && class < CLASSES && hits == f->right[class] && all == f->all[class];
    else if (sscanf(line, " class %d", &class) == 1)
      right += class == ABSENT && strstr(line, " -   (no image)");
  }
  if (file) fclose(file);
  check(right == CLASSES && !f->all[ABSENT],
        "of %d classes, %d have their images, and how many are right", CLASSES, right);
}

int main(void) {
  error e = {""};
  stream = random_open(check_seed("evaluate_test"), RANDOM_TEST, 0, 0);
  scratch_make();
  choose_logits();
  write_data();
  check(run_evaluation(&e), "a network is evaluated %s", e.text);
  const figures f = expect_figures();
  check_figures(&f);
  check_bins(&f);
  check_classes(&f);
  scratch_remove();
  return check_summary();
}
