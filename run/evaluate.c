// run/evaluate.c - how good a network is: on all test images, with the running statistics, neither
// augmented nor mixed. --eval-train asks the same of the training images: how much of them the network
// knows by heart.
//
// Accuracy asks only which class has the largest probability. What mixup and label smoothing change
// is how large: the *confidence*. With p = softmax(logits) of an image and y its true class,
//
//     negative log likelihood (NLL)   mean of - log p[y]
//     training criterion              the same against the smoothed label: training's loss, unmixed
//     confidence                      max over j of p[j]
//     calibration error (ECE)         sum over bins of (images / all) |accuracy - mean confidence|
//
// A network is *calibrated* when of the images on which it is 80 % sure 80 % are right. To see how
// far it is from that, the images go into 15 bins by their confidence, bin i holding those in
// (i / 15, (i + 1) / 15]. Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks",
// ICML 2017, section 2.
//
// Checked by `make check` (tests/train_test.sh): figures that agree with each other and with the
// run that they come from.
#include "trainer.h"

#include "checkpoint.h"
#include "files.h"
#include "reference/reference.h"
#include <errno.h>
#include <math.h>
#include <string.h>

enum { TEST_BATCH = 100, BINS = 15 };

// What --eval prints beyond a score.
typedef struct {
  int right[CLASSES], all[CLASSES];        // images of each true class
  int bin_right[BINS], bin_all[BINS];      // images in each bin of confidence
  double confidence, bin_confidence[BINS]; // sums over images
} detail;

// Computes logits and the two losses of images first .. first + count - 1 of the data set: the
// training criterion's sums go to results[slot], the NLL's to results[queue_length + slot].
static void test_batch(trainer *t, int first, int count, int slot) {
  const device *d = t->device;
  network *n = &t->network;
  cifar_test_batch(t->test_samples, first, count);
  send_step(t, t->test_samples, count, 1, 0, slot);
  d->mix_images(count, n->input, t->images, t->samples, t->step); // lambda 1: the image itself
  network_forward(n, count, false);
  d->cross_entropy(count, (float)t->options.smoothing, NULL, t->results, n->logits, t->labels,
                   t->samples, t->step);
  d->cross_entropy(count, 0, NULL, t->results + t->queue_length, n->logits, t->labels, t->samples,
                   t->step);
}

// Adds the first `queued` slots of both losses to the sums in s.
static void add_results(const trainer *t, int queued, score *s, double *correct) {
  step_result results[2 * MOST_QUEUED];
  t->device->download(results, t->results, 2 * (size_t)t->queue_length * sizeof *results);
  for (int i = 0; i < queued; i++) {
    s->loss += results[i].loss;
    s->nll += results[t->queue_length + i].loss;
    *correct += results[i].correct;
  }
}

// Adds the images of the last batch to the counts.
static void add_detail(const trainer *t, int count, detail *sums) {
  real *logits = allocate((size_t)count * CLASSES * sizeof *logits);
  t->device->download(logits, t->network.logits, (size_t)count * CLASSES * sizeof *logits);
  for (int b = 0; b < count; b++) {
    const real *own = logits + b * CLASSES;
    const int label = t->data.labels[t->test_samples[b].image], guess = reference_arg_max(own);
    double sum = 0; // of e^(logit - largest): the largest class's own term is 1
    for (int j = 0; j < CLASSES; j++) sum += exp((double)own[j] - own[guess]);
    const double confidence = 1 / sum;
    int bin = isfinite(confidence) ? (int)ceil(confidence * BINS) - 1 : 0; // NaN: refused below
    if (bin > BINS - 1) bin = BINS - 1;
    sums->all[label]++, sums->bin_all[bin]++;
    sums->right[label] += guess == label, sums->bin_right[bin] += guess == label;
    sums->confidence += confidence, sums->bin_confidence[bin] += confidence;
  }
  free(logits);
}

// Of images begin .. begin + images - 1 of the data set. sums: NULL where only the score is wanted.
static score score_images(trainer *t, int begin, int images, detail *sums) {
  const int batch = t->options.batch < TEST_BATCH ? t->options.batch : TEST_BATCH;
  score s = {.images = images};
  double correct = 0;
  int queued = 0;
  for (int first = 0; first < images; first += batch) {
    const int left = images - first, count = left < batch ? left : batch;
    test_batch(t, begin + first, count, queued++);
    if (sums) add_detail(t, count, sums);
    if (queued < t->queue_length && left > count) continue;
    add_results(t, queued, &s, &correct);
    queued = 0;
  }
  s.loss /= images;
  s.nll /= images;
  s.accuracy = correct / images;
  s.correct = (int)correct;
  return s;
}

score score_test_set(trainer *t) {
  return score_images(t, t->data.train_count, t->data.test_count, NULL);
}

// -- --eval -------------------------------------------------------------------------------------------

static double calibration_error(const detail *sums, int images) {
  double error = 0;
  for (int i = 0; i < BINS; i++) error += fabs(sums->bin_right[i] - sums->bin_confidence[i]);
  return error / images; // the bins' own counts cancel
}

// The file of --bins or --log. An earlier one is set aside; to what is no file of its own, a pipe or
// /dev/stdout, the lines are appended. NULL, with a line in e, where it cannot be had.
static FILE *open_table(const char *option, const char *path, error *e) {
  int number;
  if (file_is_regular(path) && !files_set_aside(&path, 1, &number, e)) return NULL;
  fflush(stdout);
  FILE *out = fopen(path, "a");
  if (!out) fail(e, "%s %s: %s", option, path, strerror(errno));
  return out;
}

static bool close_table(FILE *out, const char *option, const char *path, error *e) {
  const bool failed = ferror(out);
  return (fclose(out) == 0 && !failed) ||
         fail(e, "%s %s: could not be written: disk full?", option, path);
}

// A bin's mean confidence and accuracy are left empty where it holds no image.
static bool write_bins(const char *path, const detail *sums, error *e) {
  FILE *out = open_table("--bins", path, e);
  if (!out) return false;
  fprintf(out, "from,to,images,confidence,accuracy\n");
  for (int i = 0; i < BINS; i++) {
    const int images = sums->bin_all[i];
    fprintf(out, "%.6f,%.6f,%d,", (double)i / BINS, (double)(i + 1) / BINS, images);
    if (images)
      fprintf(out, "%.9g,%.9g", sums->bin_confidence[i] / images,
              (double)sums->bin_right[i] / images);
    fprintf(out, images ? "\n" : ",\n");
  }
  return close_table(out, "--bins", path, e);
}

static const char *name_of_set(const options *o) {
  return o->eval_train ? "train" : "test";
}

// The same figures as print_evaluation's, for a program to read.
static bool write_figures(const trainer *t, const score *s, const detail *sums, error *e) {
  const options *o = &t->options;
  FILE *out = open_table("--log", o->log, e);
  if (!out) return false;
  fprintf(out, "set,images,accuracy,nll,criterion,smoothing,confidence,calibration_error,data\n");
  fprintf(out, "%s,%d,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g,%s\n", name_of_set(o), s->images, s->accuracy,
          s->nll, s->loss, o->smoothing, sums->confidence / s->images,
          calibration_error(sums, s->images), report_kind_of_data(&t->data));
  return close_table(out, "--log", o->log, e);
}

// The smoothing of the criterion: the command line's; else that of the run which saved the weights,
// if its resume file lies beside them; else the recipe's. Returns where it comes from.
static const char *settle_smoothing(options *o) {
  char saved[METADATA_VALUE];
  if (options_given(o, "smoothing")) return "as given";
  return checkpoint_setting_beside(o->eval, "smoothing", saved) &&
                 options_set(o, "smoothing", saved)
             ? "as in its training"
             : "the recipe's";
}

static void print_evaluation(const trainer *t, const score *s, const detail *sums,
                             const char *whose_smoothing) {
  printf("%s: %s accuracy %.2f %% (%d of %d)\n", t->options.eval, name_of_set(&t->options),
         100 * s->accuracy, s->correct, s->images);
  printf("  negative log likelihood      %.6f\n", s->nll);
  printf("  training criterion           %.6f   smoothing %g, %s\n", s->loss, t->options.smoothing,
         whose_smoothing);
  printf("  mean confidence              %.6f\n", sums->confidence / s->images);
  printf("  expected calibration error   %.6f   %d bins\n", calibration_error(sums, s->images),
         BINS);
  for (int i = 0; i < CLASSES; i++)
    if (sums->all[i])
      printf("  %-12s %6.2f %% (%d of %d)\n", t->data.class_names[i],
             100.0 * sums->right[i] / sums->all[i], sums->right[i], sums->all[i]);
    else
      printf("  %-12s      -   (no image)\n", t->data.class_names[i]);
}

bool evaluate(trainer *t, error *e) {
  const options *o = &t->options;
  const int train = t->data.train_count, test = t->data.test_count;
  detail sums = {0};
  if (!load_weights(t, o->eval, e)) return false;
  const char *whose_smoothing = settle_smoothing(&t->options);
  const score s =
      o->eval_train ? score_images(t, 0, train, &sums) : score_images(t, train, test, &sums);
  if (!isfinite(s.nll)) return fail(e, "%s: gives logits that are not finite", o->eval);
  print_evaluation(t, &s, &sums, whose_smoothing);
  return (!o->bins[0] || write_bins(o->bins, &sums, e)) &&
         (!o->log[0] || write_figures(t, &s, &sums, e));
}
