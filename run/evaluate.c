// run/evaluate.c - how good a network is: on all test images, with the running statistics, neither
// augmented nor mixed. --eval-train asks the same of the training images: how much of them the network
// has memorised.
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
// Checked by `make check`: figures that follow from the logits (tests/evaluate_test.c), and that agree with
// each other and with the run that they come from (tests/train_test.sh).
#include "trainer.h"

#include "checkpoint.h"
#include "process.h"
#include "reference/reference.h"
#include <math.h>
#include <string.h>

enum { TEST_BATCH = 100, BINS = 15 };

// What --eval prints beyond a score.
typedef struct {
  int right[CLASSES], all[CLASSES];        // images of each true class
  int bin_right[BINS], bin_all[BINS];      // images in each bin of confidence
  double confidence, bin_confidence[BINS]; // sums over images
} detail;

// Logits, and the sums of two losses: the training criterion's go to results[slot], the NLL's to
// results[queue_length + slot].
static void test_operations(void *of) {
  trainer *t = of;
  const device *d = t->device;
  network *n = &t->network;
  d->mix_images(t->count, n->input, t->images, t->samples, t->step); // lambda 1: the image itself
  network_forward(n, t->count, false);
  d->cross_entropy(t->count, (float)t->options.smoothing, NULL, t->results, n->logits, t->labels,
                   t->samples, t->step);
  d->cross_entropy(t->count, 0, NULL, t->results + t->queue_length, n->logits, t->labels,
                   t->samples, t->step);
}

// Of images first .. first + count - 1 of the data set.
static void test_batch(trainer *t, int first, int count, int slot) {
  cifar_test_batch(t->test_samples, first, count);
  send_step(t, t->test_samples, count, 1, 0, slot);
  do_operations(t, test_operations, count);
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
  score s = {0};
  double correct = 0;
  int queued = 0;
  while (s.images < images && !process_is_to_stop()) {
    const int left = images - s.images, count = left < batch ? left : batch;
    test_batch(t, begin + s.images, count, queued++);
    s.images += count;
    if (sums) add_detail(t, count, sums);
    if (queued < t->queue_length && left > count) continue;
    add_results(t, queued, &s, &correct);
    queued = 0;
  }
  if (s.images < images) return s;
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

static const char bins_headings[] = "from,to,images,confidence,accuracy\n";
static const char figures_headings[] =
    "set,images,accuracy,nll,criterion,smoothing,confidence,calibration_error,data\n";

// A bin's mean confidence and accuracy are left empty where it holds no image.
static bool write_bins(log_file *f, const detail *sums, error *e) {
  const position beginning = {0};
  if (!log_file_begin(f, &beginning, NULL, e)) return false;
  fputs(bins_headings, f->stream);
  for (int i = 0; i < BINS; i++) {
    const int images = sums->bin_all[i];
    fprintf(f->stream, "%.6f,%.6f,%d,", (double)i / BINS, (double)(i + 1) / BINS, images);
    if (images)
      fprintf(f->stream, "%.9g,%.9g", sums->bin_confidence[i] / images,
              (double)sums->bin_right[i] / images);
    fprintf(f->stream, images ? "\n" : ",\n");
  }
  return log_file_sync(f, e);
}

static const char *name_of_set(const options *o) {
  return o->eval_train ? "train" : "test";
}

// The same figures as print_evaluation's, for a program to read.
static bool write_figures(log_file *f, const trainer *t, const score *s, const detail *sums,
                          error *e) {
  const position beginning = {0};
  if (!log_file_begin(f, &beginning, NULL, e)) return false;
  fputs(figures_headings, f->stream);
  fprintf(f->stream, "%s,%d,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g,%s\n", name_of_set(&t->options),
          s->images, s->accuracy, s->nll, s->loss, t->options.smoothing,
          sums->confidence / s->images, calibration_error(sums, s->images),
          report_kind_of_data(&t->data));
  return log_file_sync(f, e);
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

static bool test_and_print(trainer *t, log_file *bins, log_file *figures, error *e) {
  const options *o = &t->options;
  const int train = t->data.train_count, images = o->eval_train ? train : t->data.test_count;
  detail sums = {0};
  const char *whose_smoothing = settle_smoothing(&t->options);
  const score s = score_images(t, o->eval_train ? 0 : train, images, &sums);
  if (s.images < images) return true; // stopped: process_end says why
  if (!isfinite(s.loss) || !isfinite(s.nll))
    return fail(e, "%s: the %s loss is %g: weights so large that the logits overflow", o->eval,
                name_of_set(o), isfinite(s.loss) ? s.nll : s.loss);
  print_evaluation(t, &s, &sums, whose_smoothing);
  return (!o->bins[0] || write_bins(bins, &sums, e)) &&
         (!o->log[0] || write_figures(figures, t, &s, &sums, e));
}

bool evaluate(trainer *t, error *e) {
  const options *o = &t->options;
  log_file bins = {0}, figures = {0};
  if (!load_weights(t, o->eval, e)) return false;
  // Before the test, which may take long, but an earlier file moves only when there is a new one.
  const bool ok =
      (!o->bins[0] || log_file_find(&bins, "--bins", o->bins, bins_headings, o, e)) &&
      (!o->log[0] || log_file_find(&figures, "--log", o->log, figures_headings, o, e)) &&
      (!o->bins[0] || !o->log[0] || log_files_differ(&bins, &figures, e)) &&
      test_and_print(t, &bins, &figures, e);
  log_file_close(&bins);
  log_file_close(&figures);
  return ok;
}
