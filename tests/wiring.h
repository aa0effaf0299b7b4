// tests/wiring.h - for wiring_test.c: a small data set, a run of ./train on it, what the run left (its trace,
// its log and the states it kept), and what random.h says that it had to draw. What a step computes
// stands in wiring_test.c.
#ifndef WIRING_H
#define WIRING_H

#include "../cifar.h"
#include "../network.h"
#include "../run/files.h"
#include "../run/safetensors.h"
#include "inputs.h"
#include "scratch.h"
#include <fcntl.h>
#include <sys/wait.h>

enum { FILES = 6, A_FILE = 9, TRAIN = 5 * A_FILE, TEST = A_FILE, IMAGES = TRAIN + TEST };
enum { MOST_STEPS = 12, MOST_EPOCHS = 4, BATCH_ROOM = 20 };

static uint8_t images[IMAGES][IMAGE_BYTES], labels[IMAGES]; // training images first
static const char *train;                                   // the program's path

// What a run is asked for.
typedef struct {
  const char *name, *device, *init; // init: a file to start from, or NULL
  const char *given;                // what stands on the command line; NULL: all that follows
  unsigned seed;
  int width, batch, epochs, train_images, milestones[2];
  double lr, momentum, weight_decay, gamma, alpha, smoothing;
} recipe;

typedef struct {
  real *weight, *momentum, *statistics;
  int64_t batches; // that the statistics have seen
} state;

// A line of the trace for a step.
typedef struct {
  int epoch, step, count;
  double rate, momentum, weight_decay, smoothing, lambda, loss, correct; // loss: the mean
  bool in_bf16;                                                          // activations
  sample samples[BATCH_ROOM];
} record;

// A run, read back from its trace and the states that it kept.
typedef struct {
  recipe asked;
  network network;
  int steps, epochs;
  record record[MOST_STEPS + 1];   // [1] is step 1
  char of_epoch[MOST_EPOCHS][400]; // the lines of the trace for an epoch
  char heading[600];               // and for the run
  state state[MOST_STEPS + 1];     // [0]: before step 1
} trial;

__attribute__((noreturn)) static void give_up(const char *what, const char *why) {
  check(false, "%s: %s", what, why);
  scratch_remove();
  exit(check_summary());
}

// -- Data, and a run ------------------------------------------------------------------------------

// CIFAR-10's six files, with A_FILE images each.
static void write_data(void) {
  static uint8_t bytes[A_FILE * RECORD_BYTES];
  char name[64];
  for (int i = 0; i < IMAGES; i++) {
    labels[i] = (uint8_t)random_below(&stream, CLASSES);
    for (int j = 0; j < IMAGE_BYTES; j++) images[i][j] = (uint8_t)random_bits(&stream);
  }
  for (int file = 0; file < FILES; file++) {
    for (int i = 0; i < A_FILE; i++) {
      bytes[i * RECORD_BYTES] = labels[file * A_FILE + i];
      memcpy(bytes + i * RECORD_BYTES + 1, images[file * A_FILE + i], IMAGE_BYTES);
    }
    if (file < FILES - 1)
      snprintf(name, sizeof name, "data_batch_%d.bin", file + 1);
    else
      snprintf(name, sizeof name, "test_batch.bin");
    scratch_write(scratch_path(name), bytes, sizeof bytes);
  }
}

// Runs the program with arguments that a space separates; whether it ended well.
static bool run_program(char *arguments) {
  char *list[80] = {(char *)train};
  int count = 1, status = 1;
  for (char *one = strtok(arguments, " "); one; one = strtok(NULL, " ")) list[count++] = one;
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const int out = chdir(scratch_directory) ? -1 : open("out", O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (out < 0 || dup2(out, STDOUT_FILENO) < 0) _exit(126);
    execv(train, list);
    perror(train);
    _exit(127);
  }
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

static void copy_file(const char *from, const char *to) {
  size_t size;
  error e;
  uint8_t *bytes = file_read(scratch_path(from), &size, &e);
  if (!bytes) give_up("a copy", e.text);
  scratch_write(scratch_path(to), bytes, size);
  free(bytes);
}

static void run_recipe(const recipe *r) {
  char text[1000], milestones[30] = "none";
  if (r->milestones[0]) snprintf(milestones, sizeof milestones, "%d", r->milestones[0]);
  if (r->milestones[1])
    snprintf(milestones, sizeof milestones, "%d,%d", r->milestones[0], r->milestones[1]);
  snprintf(text, sizeof text,
           "--data . --checkpoint run --trace trace --log log --keep-every 1 --device %s ",
           r->device);
  const size_t length = strlen(text);
  if (r->given)
    snprintf(text + length, sizeof text - length, "%s", r->given);
  else
    snprintf(text + length, sizeof text - length,
             "--width %d --epochs %d --train-images %d --seed %u --batch %d --lr %.17g "
             "--momentum %.17g --weight-decay %.17g --milestones %s --gamma %.17g "
             "--mixup-alpha %.17g --smoothing %.17g %s %s",
             r->width, r->epochs, r->train_images, r->seed, r->batch, r->lr, r->momentum,
             r->weight_decay, milestones, r->gamma, r->alpha, r->smoothing, r->init ? "--init" : "",
             r->init ? r->init : "");
  scratch_empty(scratch_path("run"));
  remove(scratch_path("trace"));
  remove(scratch_path("log"));
  if (!run_program(text)) give_up(r->name, "./train failed");
}

// -- Reading what it left ---------------------------------------------------------------------------

// The number or the numbers behind "key": in a line of JSON, as [1,2] or [[1,2],[3,4]]. Returns how
// many.
static int numbers_of(const char *line, const char *key, double *numbers, int room) {
  char name[40], *end;
  int count = 0, depth = 0;
  snprintf(name, sizeof name, "\"%s\":", key);
  const char *at = strstr(line, name);
  if (!at) return 0;
  at += strlen(name);
  do {
    depth += (*at == '[') - (*at == ']');
    if (*at == '[' || *at == ']' || *at == ',') {
      at++;
      continue;
    }
    numbers[count++] = strtod(at, &end);
    if (end == at) return 0;
    at = end;
  } while (depth > 0 && count < room);
  return count;
}

// NaN where it is not there.
static double number_of(const char *line, const char *key) {
  double number;
  return numbers_of(line, key, &number, 1) ? number : NAN;
}

static void read_step(trial *t, const char *line) {
  double index[BATCH_ROOM], partner[BATCH_ROOM], crop[2 * BATCH_ROOM], flip[BATCH_ROOM];
  if (t->steps == MOST_STEPS) give_up(t->asked.name, "more steps than asked for");
  record *r = &t->record[++t->steps];
  r->epoch = (int)number_of(line, "epoch");
  r->step = (int)number_of(line, "step");
  r->in_bf16 = strstr(line, "\"activations\":\"bf16\"");
  r->rate = number_of(line, "lr");
  r->momentum = number_of(line, "momentum");
  r->weight_decay = number_of(line, "weight_decay");
  r->smoothing = number_of(line, "smoothing");
  r->lambda = number_of(line, "lambda");
  r->loss = number_of(line, "loss");
  r->correct = number_of(line, "correct");
  r->count = numbers_of(line, "index", index, BATCH_ROOM);
  if (numbers_of(line, "partner", partner, BATCH_ROOM) != r->count ||
      numbers_of(line, "crop", crop, 2 * BATCH_ROOM) != 2 * r->count ||
      numbers_of(line, "flip", flip, BATCH_ROOM) != r->count)
    give_up(t->asked.name, "the trace's lists are not equally long");
  for (int b = 0; b < r->count; b++) {
    r->samples[b] = (sample){(int)index[b], (int)partner[b], (int)crop[2 * b], (int)crop[2 * b + 1],
                             (int)flip[b]};
    if (index[b] < 0 || index[b] >= IMAGES || partner[b] < 0 || partner[b] >= r->count)
      give_up(t->asked.name, "the trace names an image that is not there");
  }
}

static void read_trace(trial *t) {
  char *line = NULL;
  size_t room = 0;
  FILE *file = fopen(scratch_path("trace"), "r");
  while (file && getline(&line, &room, file) > 0)
    if (strstr(line, "\"trace\":"))
      snprintf(t->heading, sizeof t->heading, "%s", line);
    else if (strstr(line, "\"step\":"))
      read_step(t, line);
    else if (t->epochs < MOST_EPOCHS)
      snprintf(t->of_epoch[t->epochs++], sizeof t->of_epoch[0], "%s", line);
  free(line);
  if (file) fclose(file);
}

// The column of row `epoch` of the log; NaN where there is none.
static double logged(int epoch, const char *column) {
  char *line = NULL, *rest, heading[300] = "";
  double value = NAN;
  size_t room = 0;
  FILE *file = fopen(scratch_path("log"), "r");
  for (int row = -1; file && getline(&line, &room, file) > 0; row++) {
    if (row < 0) snprintf(heading, sizeof heading, "%s", line);
    char *name = heading, *field = line, *name_end;
    for (; row == epoch && name && field; name = name_end ? name_end + 1 : NULL) {
      name_end = strpbrk(name, ",\n");
      if (name_end && !strncmp(name, column, strlen(column)) && name + strlen(column) == name_end)
        value = strtod(field, NULL);
      rest = strchr(field, ',');
      field = rest ? rest + 1 : NULL;
    }
  }
  free(line);
  if (file) fclose(file);
  return value;
}

// Tensors of `list`, in PyTorch's order [K][C][R][S], into an array in memory's, [K][R][S][C].
static real *read_tensors(const char *path, const char *prefix, const parameter *list, int count,
                          size_t size) {
  real *all = allocate(size * sizeof *all);
  safetensors file;
  error e;
  if (!safetensors_read(path, &file, &e)) give_up("a kept state", e.text);
  for (int i = 0; i < count; i++) {
    const parameter *p = &list[i];
    const size_t taps = p->rank < 4 ? 1 : (size_t)p->dims[1] * p->dims[2];
    const size_t channels = p->rank < 4 ? 1 : (size_t)p->dims[3];
    char name[TENSOR_NAME];
    snprintf(name, sizeof name, "%s%s", prefix, p->name);
    const tensor *t = safetensors_find(&file, name);
    if (!t || t->bytes != p->count * sizeof(float)) give_up(path, name);
    for (size_t j = 0; j < p->count; j++) {
      const size_t k = j / (taps * channels), c = j / taps % channels, tap = j % taps;
      memcpy(&all[p->offset + (k * taps + tap) * channels + c], t->data + j * sizeof(float),
             sizeof(float));
    }
  }
  safetensors_free(&file);
  return all;
}

// PyTorch's num_batches_tracked; -1 where it is not there.
static int64_t read_batches(const char *path) {
  int64_t batches = -1;
  safetensors file;
  error e;
  if (!safetensors_read(path, &file, &e)) give_up("a kept state", e.text);
  const tensor *t = safetensors_find(&file, "bn1.num_batches_tracked");
  if (t && t->bytes == sizeof batches) memcpy(&batches, t->data, sizeof batches);
  safetensors_free(&file);
  return batches;
}

static state read_state(const network *n, const char *name) {
  char weights[64], resume[64];
  snprintf(weights, sizeof weights, "run/%s.safetensors", name);
  snprintf(resume, sizeof resume, "run/%s.resume.safetensors", name);
  const parameters *p = &n->parameters;
  return (state){
      read_tensors(scratch_path(weights), "", p->list, PARAMETERS, p->count),
      read_tensors(scratch_path(resume), "momentum.", p->list, PARAMETERS, p->count),
      read_tensors(scratch_path(weights), "", n->statistics_list, STATISTICS, n->statistics_size),
      read_batches(scratch_path(weights))};
}

static void put_state(network *n, const state *s) {
  memcpy(n->parameters.weight, s->weight, n->parameters.count * sizeof(real));
  memcpy(n->parameters.momentum, s->momentum, n->parameters.count * sizeof(real));
  memcpy(n->statistics, s->statistics, n->statistics_size * sizeof(real));
}

static state copy_state(const network *n) {
  const size_t count = n->parameters.count, size = n->statistics_size;
  return (state){
      memcpy(allocate(count * sizeof(real)), n->parameters.weight, count * sizeof(real)),
      memcpy(allocate(count * sizeof(real)), n->parameters.momentum, count * sizeof(real)),
      memcpy(allocate(size * sizeof(real)), n->statistics, size * sizeof(real)), 0};
}

static void free_state(state *s) {
  free(s->weight), free(s->momentum), free(s->statistics);
}

static void free_trial(trial *t) {
  for (int k = 0; k <= t->steps; k++) free_state(&t->state[k]);
  network_free(&t->network);
  free(t);
}

static bool same(const real *a, const real *b, size_t count) {
  return !memcmp(a, b, count * sizeof *a);
}

static bool same_state(const network *n, const state *a, const state *b) {
  return same(a->weight, b->weight, n->parameters.count) &&
         same(a->momentum, b->momentum, n->parameters.count) &&
         same(a->statistics, b->statistics, n->statistics_size) && a->batches == b->batches;
}

// -- The draws: random.h's numbers for (seed, purpose, epoch, step) ----------------------------------

static int steps_an_epoch(const recipe *r) {
  return (r->train_images + r->batch - 1) / r->batch;
}

// Step `number` of the run, from 1, as the command line and random.h have it.
static record draw_step(const recipe *r, int number) {
  const int epoch = (number - 1) / steps_an_epoch(r), step = (number - 1) % steps_an_epoch(r) + 1;
  const int first = (step - 1) * r->batch, left = r->train_images - first;
  int32_t order[TRAIN], partners[BATCH_ROOM];
  record d = {.epoch = epoch, .step = number, .rate = r->lr, .lambda = 1};
  d.count = left < r->batch ? left : r->batch;
  for (int i = 0; i < 2; i++)
    if (r->milestones[i] && epoch >= r->milestones[i]) d.rate *= r->gamma;
  random_stream s = random_open(r->seed, RANDOM_SHUFFLE, (uint32_t)epoch, 0);
  random_permutation(&s, order, (uint32_t)r->train_images);
  s = random_open(r->seed, RANDOM_PARTNER, (uint32_t)epoch, (uint32_t)step);
  random_permutation(&s, partners, (uint32_t)d.count);
  s = random_open(r->seed, RANDOM_LAMBDA, (uint32_t)epoch, (uint32_t)step);
  if (r->alpha > 0) d.lambda = (float)random_beta(&s, r->alpha);
  s = random_open(r->seed, RANDOM_CROP, (uint32_t)epoch, (uint32_t)step);
  for (int b = 0; b < d.count; b++) {
    sample *one = &d.samples[b];
    one->image = order[first + b];
    one->partner = r->alpha > 0 ? partners[b] : b;
    one->crop_y = (int32_t)random_below(&s, 9);
    one->crop_x = (int32_t)random_below(&s, 9);
    one->flip = (int32_t)random_below(&s, 2);
  }
  return d;
}

static bool same_images(const record *a, const record *b) {
  bool good = a->count == b->count;
  for (int i = 0; good && i < a->count; i++) good = a->samples[i].image == b->samples[i].image;
  return good;
}

static bool same_crops(const record *a, const record *b) {
  bool good = a->count == b->count;
  for (int i = 0; good && i < a->count; i++)
    good = a->samples[i].crop_y == b->samples[i].crop_y &&
           a->samples[i].crop_x == b->samples[i].crop_x && a->samples[i].flip == b->samples[i].flip;
  return good;
}

static bool same_partners(const record *a, const record *b) {
  bool good = a->count == b->count;
  for (int i = 0; good && i < a->count; i++) good = a->samples[i].partner == b->samples[i].partner;
  return good;
}

#endif
