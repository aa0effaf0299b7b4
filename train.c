// train.c - the recipe: from the command line to a trained network.
//
//     for each epoch:
//         shuffle the training images
//         for each batch: crop, flip, mix -> forward -> loss -> backward -> SGD
//         test, report, save
//
// The numbers of the recipe are run/options.c's defaults; what an operation computes stands in device.h;
// which layer follows which, in network.h. This file holds them together, and sees to it that a run
// can be stopped at any step and resumed as if it had not been: everything random is a function of
// seed, epoch and step (random.h), and everything else that a step depends on is in the checkpoint.
//
//     ./train --help
#define _POSIX_C_SOURCE 200809L
#include "cifar.h"
#include "network.h"
#include "run/checkpoint.h"
#include "run/files.h"
#include "run/options.h"
#include "run/report.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { TEST_BATCH = 100, MOST_QUEUED = 50 };

// A step that the device has been told to do. What it gave is read later, many steps at once: a GPU
// works through its queue while the CPU prepares the next steps, and every question would empty it.
typedef struct {
  int count; // images
  float lambda;
  double learning_rate;
  sample *samples; // [count]
} queued_step;

typedef struct {
  options options;
  const device *device;
  dataset data;
  network network;
  position at;
  report report;
  score last_score; // of the last epoch's test; images is 0 before the first
  bool saved;       // has this process saved a checkpoint, or resumed one?

  int32_t *order;       // [train_count]: the images in the order of this epoch
  sample *host_samples; // [batch]
  queued_step queue[MOST_QUEUED];
  int queued;        // steps whose results are still with the device
  int queue_length;  // how many there may be
  double read_until; // when the last results were read

  // Device memory.
  uint8_t *images, *labels; // the whole data set
  sample *samples;          // [batch]
  step_values *step;
  step_result *results; // [queue_length]
} trainer;

// -- Signals -------------------------------------------------------------------------------------

static volatile sig_atomic_t stop_signal; // SIGINT or SIGTERM, once it came

static void ask_to_stop(int signal) {
  stop_signal = signal;
}

// The first signal asks the loop to stop after its step; a second one of its kind ends the process at once.
static void catch_signals(void) {
  struct sigaction action = {.sa_handler = ask_to_stop, .sa_flags = (int)SA_RESETHAND};
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
}

// -- One batch ------------------------------------------------------------------------------------

// The samples become the network's input; their loss will go to results[slot].
static void load_batch(trainer *t, const sample *samples, int count, float lambda,
                       double learning_rate, int slot) {
  const device *d = t->device;
  const step_values values = {
      .lambda = lambda, .learning_rate = (float)learning_rate, .slot = slot};
  d->upload(t->samples, samples, (size_t)count * sizeof(sample));
  d->upload(t->step, &values, sizeof values);
  d->mix_images(count, t->network.input, t->images, t->samples, t->step);
}

// Begins to compute the loss and the number of right answers of the last forward pass.
static void measure(trainer *t, bool with_gradient) {
  network *n = &t->network;
  t->device->cross_entropy(n->batch, (float)t->options.smoothing, with_gradient ? n->dlogits : NULL,
                           t->results, n->logits, t->labels, t->samples, t->step);
}

static bool report_bad_loss(const trainer *t, double loss, error *e) {
  const char *tensor = network_bad_weight(&t->network);
  if (!tensor) tensor = network_bad_activation(&t->network); // before they spoil the statistics
  if (!tensor) tensor = network_bad_statistic(&t->network);
  return fail(
      e,
      "the loss is %g at epoch %d, step %lld; the first tensor with a bad value is %s; try a "
      "smaller --lr (it was %g). The last checkpoint stays as it is",
      loss, t->at.epoch, (long long)t->at.step + 1, tensor ? tensor : "the loss itself",
      options_learning_rate(&t->options, t->at.epoch));
}

// Reads the results of all queued steps; the position moves on by as many.
static bool read_results(trainer *t, error *e) {
  const options *o = &t->options;
  position *at = &t->at;
  step_result results[MOST_QUEUED];
  const int steps = t->queued;
  if (!steps) return true;
  t->queued = 0;
  t->device->download(results, t->results, (size_t)steps * sizeof *results);
  at->seconds += clock_seconds() - t->read_until;
  t->read_until = clock_seconds();
  for (int i = 0; i < steps; i++) {
    const queued_step *q = &t->queue[i];
    if (!isfinite(results[i].loss)) return report_bad_loss(t, results[i].loss, e);
    at->step_in_epoch++;
    at->step++;
    at->images += q->count;
    at->loss += results[i].loss;
    at->correct += results[i].correct;
    report_step(&t->report, o, &t->data, at, q->samples, q->count, q->lambda, q->learning_rate,
                results[i].loss, results[i].correct);
  }
  return true;
}

// One step of training. Where results are read after each step, that is before the weights change:
// after a bad loss everything is still there to see where it comes from.
static bool train_step(trainer *t, error *e) {
  const options *o = &t->options;
  const position *at = &t->at;
  const int number = at->step_in_epoch + t->queued + 1;
  queued_step *q = &t->queue[t->queued];
  q->learning_rate = options_learning_rate(o, at->epoch);
  q->count = cifar_training_batch(q->samples, t->order, t->data.train_count, o->batch, o->seed,
                                  at->epoch, number);
  q->lambda = mixup_draw(q->count, q->samples, o->mixup_alpha, o->seed, at->epoch, number);
  load_batch(t, q->samples, q->count, q->lambda, q->learning_rate, t->queued++);
  network_forward(&t->network, q->count, true);
  measure(t, true);
  if (t->queued == t->queue_length && !read_results(t, e)) return false;
  network_backward(&t->network);
  t->device->sgd_update(&t->network.parameters, t->step, (float)o->momentum,
                        (float)o->weight_decay);
  return true;
}

// -- Testing --------------------------------------------------------------------------------------

// Adds the last batch's right answers to those of each class, and its images to their number.
static void count_classes(const trainer *t, int count, int right[CLASSES], int all[CLASSES]) {
  real *logits = allocate((size_t)count * CLASSES * sizeof *logits);
  t->device->download(logits, t->network.logits, (size_t)count * CLASSES * sizeof *logits);
  for (int b = 0; b < count; b++) {
    const int label = t->data.labels[t->host_samples[b].image];
    int guess = 0;
    for (int j = 1; j < CLASSES; j++)
      if (logits[b * CLASSES + j] > logits[b * CLASSES + guess]) guess = j;
    right[label] += guess == label;
    all[label]++;
  }
  free(logits);
}

// All test images, with the running statistics, neither augmented nor mixed. The loss is the one
// that training uses, smoothing included. right, all: a count for each class, or NULL.
static score test(trainer *t, int *right, int *all) {
  const int batch = t->options.batch < TEST_BATCH ? t->options.batch : TEST_BATCH;
  step_result sum = {0, 0}, results[MOST_QUEUED];
  int queued = 0;
  for (int first = 0; first < t->data.test_count; first += batch) {
    const int left = t->data.test_count - first, count = left < batch ? left : batch;
    cifar_test_batch(t->host_samples, &t->data, first, count);
    load_batch(t, t->host_samples, count, 1, 0, queued++);
    network_forward(&t->network, count, false);
    measure(t, false);
    if (all) count_classes(t, count, right, all);
    if (queued < t->queue_length && left > count) continue;
    t->device->download(results, t->results, (size_t)queued * sizeof *results);
    for (int i = 0; i < queued; i++) {
      sum.loss += results[i].loss;
      sum.correct += results[i].correct;
    }
    queued = 0;
  }
  return (score){.loss = sum.loss / t->data.test_count,
                 .accuracy = sum.correct / t->data.test_count,
                 .correct = (int)sum.correct,
                 .images = t->data.test_count};
}

// --eval: loss, accuracy, accuracy per class.
static bool evaluate(trainer *t, error *e) {
  int right[CLASSES] = {0}, all[CLASSES] = {0};
  if (!checkpoint_load(&t->network, t->options.eval, e)) return false;
  const score s = test(t, right, all);
  printf("%s: test loss %.6f, accuracy %.2f %% (%d of %d)\n", t->options.eval, s.loss,
         100 * s.accuracy, s.correct, s.images);
  for (int i = 0; i < CLASSES; i++)
    printf("  %-12s %6.2f %% (%d of %d)\n", t->data.class_names[i],
           all[i] ? 100.0 * right[i] / all[i] : 0.0, right[i], all[i]);
  return true;
}

// -- Saving and resuming ---------------------------------------------------------------------------

enum { POSITION_VALUES = 8 };

static int position_to_metadata(const trainer *t, metadata *m) {
  const position *at = &t->at;
  metadata values[POSITION_VALUES] = {
      {.key = "epoch"}, {.key = "step_in_epoch"}, {.key = "step"},    {.key = "images"},
      {.key = "loss"},  {.key = "correct"},       {.key = "seconds"}, {.key = "data"}};
  snprintf(values[0].value, METADATA_VALUE, "%d", at->epoch);
  snprintf(values[1].value, METADATA_VALUE, "%d", at->step_in_epoch);
  snprintf(values[2].value, METADATA_VALUE, "%" PRId64, at->step);
  snprintf(values[3].value, METADATA_VALUE, "%" PRId64, at->images);
  snprintf(values[4].value, METADATA_VALUE, "%.17g", at->loss);
  snprintf(values[5].value, METADATA_VALUE, "%.17g", at->correct);
  snprintf(values[6].value, METADATA_VALUE, "%.17g", at->seconds);
  snprintf(values[7].value, METADATA_VALUE, "%016" PRIx64, t->data.fingerprint);
  memcpy(m, values, sizeof values);
  return POSITION_VALUES;
}

static bool position_from_metadata(trainer *t, const safetensors *resume, error *e) {
  position *at = &t->at;
  const struct {
    const char *key, *format;
    void *value;
  } fields[] = {{"epoch", "%d", &at->epoch},     {"step_in_epoch", "%d", &at->step_in_epoch},
                {"step", "%" SCNd64, &at->step}, {"images", "%" SCNd64, &at->images},
                {"loss", "%lf", &at->loss},      {"correct", "%lf", &at->correct},
                {"seconds", "%lf", &at->seconds}};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    const char *text = safetensors_value(resume, fields[i].key);
    if (!text || sscanf(text, fields[i].format, fields[i].value) != 1)
      return fail(e, "the resume file does not say \"%s\"; it is damaged", fields[i].key);
  }
  if (at->epoch >= 0 && at->step_in_epoch >= 0 && at->step >= at->step_in_epoch &&
      at->images >= 0 && at->images <= INT32_MAX && at->step_in_epoch <= at->images)
    return true;
  return fail(e, "the resume file names a step that cannot be; it is damaged");
}

// Saves under `name` in the checkpoint directory. Weights that are not finite are never saved.
static bool save(trainer *t, const char *name, error *e) {
  metadata state[SAVED_OPTIONS + POSITION_VALUES];
  const char *bad = network_bad_weight(&t->network);
  if (!bad) bad = network_bad_statistic(&t->network);
  if (bad)
    return fail(e,
                "%s is not finite after epoch %d, step %lld: not saved, the last checkpoint stays "
                "as it is; try a smaller --lr",
                bad, t->at.epoch, (long long)t->at.step);
  int count = options_to_metadata(&t->options, state);
  count += position_to_metadata(t, state + count);
  return checkpoint_save(&t->network, t->options.checkpoint, name, state, count, e);
}

// The run's checkpoint. A new run first moves an earlier run's out of its way.
static bool save_run(trainer *t, error *e) {
  int number = 0;
  if (!t->saved && !checkpoint_set_aside(t->options.checkpoint, &number, e)) return false;
  if (number)
    printf("%s held an earlier run's checkpoint: its files now end in .%d\n", t->options.checkpoint,
           number);
  if (!save(t, CHECKPOINT_NAME, e)) return false;
  t->saved = true;
  return true;
}

static bool keep_step(trainer *t, error *e) {
  char name[40];
  const int every = t->options.keep_every;
  if (!every || (t->at.step + t->queued) % every) return true;
  if (!read_results(t, e)) return false;
  snprintf(name, sizeof name, "step-%06lld", (long long)t->at.step);
  return save(t, name, e);
}

// -- The loop ---------------------------------------------------------------------------------------

static bool train_epoch(trainer *t, error *e) {
  const int batch = t->options.batch, steps = (t->data.train_count + batch - 1) / batch;
  cifar_shuffle(t->order, t->data.train_count, t->options.seed, t->at.epoch);
  t->read_until = clock_seconds();
  while (t->at.step_in_epoch + t->queued < steps && !stop_signal)
    if (!train_step(t, e) || !keep_step(t, e)) return false;
  if (!read_results(t, e)) return false;
  if (t->at.step_in_epoch < steps) return true; // stopped
  t->last_score = test(t, NULL, NULL);
  report_epoch(&t->report, &t->options, &t->data, &t->at, &t->last_score);
  t->at = (position){.epoch = t->at.epoch + 1, .step = t->at.step};
  return save_run(t, e);
}

static void say_how_to_go_on(const trainer *t) {
  if (t->at.step == 0) {
    printf("\nstopped before the first step; nothing was saved\n");
    return;
  }
  printf(
      "\nstopped after step %lld and saved in %s; to go on, give the same command with --resume\n",
      (long long)t->at.step, t->options.checkpoint);
}

static void say_what_next(trainer *t, double seconds) {
  const options *o = &t->options;
  if (!t->last_score.images) t->last_score = test(t, NULL, NULL); // resumed at its end
  const score *s = &t->last_score;
  printf("\ndone: test accuracy %.2f %% (%d of %d) after %d epochs, seed %" PRIu64 ", on %s\n",
         100 * s->accuracy, s->correct, s->images, t->at.epoch, o->seed, t->data.description);
  printf("this took %.0f s; the weights are in %s/" CHECKPOINT_NAME ".safetensors\n", seconds,
         o->checkpoint);
  printf("next:  ./train --data %s --eval %s/" CHECKPOINT_NAME ".safetensors\n", o->data,
         o->checkpoint);
  if (options_given(o, "preset") && o->width < 64)
    printf("       ./train --data %s --preset quick --epochs %d    # longer, and better\n", o->data,
           3 * o->epochs);
  if (o->width < 64)
    printf("       ./train --data %s    # the whole recipe: width 64, 150 epochs\n", o->data);
}

static bool train(trainer *t, error *e) {
  const double begun = clock_seconds();
  catch_signals();
  while (t->at.epoch < t->options.epochs && !stop_signal)
    if (!train_epoch(t, e)) return false;
  if (t->at.epoch >= t->options.epochs) {
    say_what_next(t, clock_seconds() - begun);
    return true;
  }
  if (t->at.step_in_epoch && !save_run(t, e)) return false;
  say_how_to_go_on(t);
  return true;
}

// -- Before the first step -----------------------------------------------------------------------------

// An option that names a file of weights need not be given the width besides.
static bool take_width_from(const char *path, options *o, error *e) {
  safetensors s;
  if (!path[0] || options_given(o, "width")) return true;
  if (!safetensors_read(path, &s, e)) return false;
  const tensor *stem = safetensors_find(&s, "conv1.weight");
  if (stem && stem->rank == 4 && stem->shape[0] <= 1024) o->width = (int)stem->shape[0];
  safetensors_free(&s);
  return true;
}

// Before anything is allocated, so that the answer can be a batch that fits.
static bool enough_memory(const network *n, size_t data_bytes, error *e) {
  const device *d = n->device;
  const double have = d->free_bytes
                          ? (double)d->free_bytes()
                          : (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  const char *where = d->free_bytes ? "the GPU has free" : "this machine has";
  const double fixed = (double)(network_bytes(n) + data_bytes) -
                       (double)n->max_batch * (double)network_bytes_per_image(n);
  const double fits = (have - fixed) / (double)network_bytes_per_image(n);
  if (fits >= n->max_batch) return true;
  if (fits < 1)
    return fail(e, "--width %d does not fit, at any --batch, into the %.1f GiB that %s", n->width,
                have / 0x1p30, where);
  return fail(e, "--batch %d needs %.1f GiB and %s %.1f GiB; --batch %.0f would fit", n->max_batch,
              (double)(network_bytes(n) + data_bytes) / 0x1p30, where, have / 0x1p30, floor(fits));
}

// The network, the data set in the device's memory, and the arrays of a batch.
static bool set_up(trainer *t, error *e) {
  const options *o = &t->options;
  const device *d = t->device;
  network planned;
  if (!cifar_read(o->data, o->train_images, o->test_images, &t->data, e)) return false;
  const size_t images = (size_t)(t->data.train_count + t->data.test_count);
  if (!network_describe(&planned, d, o->width, o->batch, e)) return false;
  if (!enough_memory(&planned, images * RECORD_BYTES, e)) return false;
  printf("device     %s (%s), %d threads\n", d->name, d->description, omp_get_max_threads());
  printf("data       %s: %s\n", o->data, t->data.description);
  printf("network    ResNet-18, width %d: %zu parameters\n", o->width, planned.parameters.count);
  printf("memory     %.0f MiB for the network at batch %d, %.0f MiB for the images\n",
         (double)network_bytes(&planned) / 0x1p20, o->batch,
         (double)images * RECORD_BYTES / 0x1p20);
  fflush(stdout);
  if (!network_create(&t->network, d, o->width, o->batch, e)) return false;
  network_initialise(&t->network, o->seed);
  t->images = d->allocate(images * IMAGE_BYTES);
  t->labels = d->allocate(images);
  d->upload(t->images, t->data.images, images * IMAGE_BYTES);
  d->upload(t->labels, t->data.labels, images);
  free(t->data.images); // the device has them now
  t->data.images = NULL;
  t->order = allocate((size_t)t->data.train_count * sizeof *t->order);
  t->host_samples = allocate((size_t)o->batch * sizeof *t->host_samples);
  t->samples = d->allocate((size_t)o->batch * sizeof *t->samples);
  t->step = d->allocate(sizeof *t->step);
  t->queue_length = d->asynchronous ? MOST_QUEUED : 1;
  t->results = d->allocate((size_t)t->queue_length * sizeof *t->results);
  for (int i = 0; i < t->queue_length; i++)
    t->queue[i].samples = allocate((size_t)o->batch * sizeof(sample));
  return true;
}

// The saved settings and position; the weights follow when there is a network to put them in.
static bool read_resume(trainer *t, safetensors *resume, error *e) {
  return checkpoint_read_resume(t->options.checkpoint, resume, e) &&
         options_from_metadata(&t->options, resume, stdout, e) &&
         position_from_metadata(t, resume, e);
}

static bool resume_run(trainer *t, const safetensors *resume, error *e) {
  char now[METADATA_VALUE];
  const char *saved = safetensors_value(resume, "data");
  snprintf(now, sizeof now, "%016" PRIx64, t->data.fingerprint);
  if (!saved || strcmp(saved, now))
    return fail(e, "%s: not the data that this run was begun with", t->options.data);
  if (!checkpoint_resume(&t->network, t->options.checkpoint, resume, e)) return false;
  t->saved = true;
  printf("resumed    after step %lld, in epoch %d of %d\n", (long long)t->at.step, t->at.epoch,
         t->options.epochs);
  return true;
}

static void print_recipe(const options *o) {
  metadata settings[SAVED_OPTIONS];
  const int count = options_to_metadata(o, settings);
  printf("recipe    ");
  for (int i = 0; i < count; i++)
    if (strcmp(settings[i].value, "0") || strstr(settings[i].key, "images") == NULL)
      printf("%s %s %s", i ? "," : "", settings[i].key, settings[i].value);
  printf("\n");
}

// Everything up to the first step: settings, data, network, weights.
static bool prepare(trainer *t, safetensors *resume, error *e) {
  options *o = &t->options;
  if (o->resume) return read_resume(t, resume, e) && set_up(t, e) && resume_run(t, resume, e);
  if (!take_width_from(o->eval, o, e) || !take_width_from(o->init, o, e) || !set_up(t, e))
    return false;
  return !o->init[0] || checkpoint_load(&t->network, o->init, e);
}

static bool run(trainer *t, error *e) {
  safetensors resume = {0};
  const options *o = &t->options;
  bool ok = prepare(t, &resume, e);
  safetensors_free(&resume);
  if (ok && o->eval[0]) return evaluate(t, e);
  if (!ok || !report_open(&t->report, o, &t->data, t->device->name, &t->at, e)) return false;
  print_recipe(o);
  error closing;
  ok = train(t, e);
  if (report_close(&t->report, ok ? e : &closing)) return ok;
  return false;
}

static bool print_plan(const trainer *t, error *e) {
  network planned;
  if (!network_describe(&planned, t->device, t->options.width, t->options.batch, e)) return false;
  network_print_plan(&planned, stdout);
  return true;
}

static void tear_down(trainer *t) {
  const device *d = t->device;
  if (t->network.device) network_free(&t->network);
  d->release(t->images);
  d->release(t->labels);
  d->release(t->samples);
  d->release(t->step);
  d->release(t->results);
  for (int i = 0; i < t->queue_length; i++) free(t->queue[i].samples);
  free(t->order);
  free(t->host_samples);
  cifar_free(&t->data);
}

// OpenMP's threads wait for each other several hundred times a step. By default they do so by running
// in circles, and where another process wants the processor too, every wait then costs a whole turn
// of the scheduler: ten times slower was seen. Asleep, they cost nothing. The OpenMP library reads
// this setting before main() begins, hence the second start.
static void have_threads_sleep(char **argv) {
  if (!getenv("OMP_WAIT_POLICY") && setenv("OMP_WAIT_POLICY", "passive", 1) == 0)
    execvp(argv[0], argv); // returns only where that is not possible; then all goes on
}

int main(int argc, char **argv) {
  static trainer t; // zeroes
  error e;
  options *o = &t.options;
  have_threads_sleep(argv);
  if (!options_parse(argc, argv, o, &e)) {
    fprintf(stderr, "train: %s\n", e.text);
    return 2;
  }
  if (o->help) {
    options_print_help(stdout);
    return 0;
  }
  t.device = device_by_name(o->device, &e);
  if (!t.device) {
    fprintf(stderr, "train: --device %s: %s\n", o->device, e.text);
    return 1;
  }
  if (o->threads) omp_set_num_threads(o->threads);
  const bool ok = o->plan ? print_plan(&t, &e) : run(&t, &e);
  if (!ok) fprintf(stderr, "train: %s\n", e.text);
  tear_down(&t);
  if (!ok) return 1;
  return stop_signal && t.at.epoch < o->epochs ? 128 + stop_signal : 0;
}
