// bench/bench.h - what operations.c and bench.c measure: a network with a batch in it, on one device.
#ifndef BENCH_H
#define BENCH_H

#include "cards.h"
#include "network.h"
#include "peaks.h"
#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 128, IMAGES = 1024 };

extern FILE *json;        // what is printed, for programs
extern const device *d;   // that is measured
extern const card *gpu;   // what cards.h knows of it; NULL: nothing, or it is no GPU
extern double peak_flops; // GFLOP/s, of this machine's processor or GPU; 0 for an unknown GPU
extern double peak_bytes; // GB/s
extern int below_bound;   // operations that seem to have been faster than can be

// Prints a line for each operation and shape of a training step and of a test at this width, and puts the same into
// json. operations.c
void report_operations(int width);

__attribute__((noreturn)) static inline void stop(const char *what) {
  fprintf(stderr, "bench: %s\n", what);
  exit(1);
}

typedef struct {
  network n;
  uint8_t *images, *labels;
  sample *samples;
  step_values *step;
  step_result *result;
  recording *recorded[2]; // of testing, of training
} bench;

static inline void *on_device(const void *host, size_t bytes) {
  void *memory = d->allocate(bytes);
  d->upload(memory, host, bytes);
  return memory;
}

static inline void bench_open(bench *b, int width) {
  error e;
  *b = (bench){0};
  if (!network_create(&b->n, d, width, BATCH, &e)) stop(e.text);
  network_initialise(&b->n, 1);
  static uint8_t images[IMAGES * IMAGE_BYTES], labels[IMAGES];
  sample samples[BATCH];
  const step_values step = {.lambda = 0.3f, .learning_rate = 0.1f};
  for (int i = 0; i < IMAGES * IMAGE_BYTES; i++) images[i] = (uint8_t)(i * 2654435761u >> 24);
  for (int i = 0; i < IMAGES; i++) labels[i] = (uint8_t)(i % CLASSES);
  for (int i = 0; i < BATCH; i++)
    samples[i] = (sample){i * 7 % IMAGES, (i + 1) % BATCH, i % 9, i % 8, i % 2};
  b->images = on_device(images, sizeof images);
  b->labels = on_device(labels, sizeof labels);
  b->samples = on_device(samples, sizeof samples);
  b->step = on_device(&step, sizeof step);
  b->result = d->allocate(sizeof *b->result);
}

static inline void bench_close(bench *b) {
  void *const arrays[] = {b->images, b->labels, b->samples, b->step, b->result};
  for (int i = 0; i < 2; i++)
    if (b->recorded[i]) d->recorder->forget(b->recorded[i]);
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) d->release(arrays[i]);
  network_free(&b->n);
}

static inline void mix(bench *b) {
  d->mix_images(BATCH, b->n.input, b->images, b->samples, b->step);
}

static inline void loss(bench *b) {
  d->cross_entropy(BATCH, 0.1f, b->n.dlogits, b->result, b->n.logits, b->labels, b->samples,
                   b->step);
}

static inline void update(bench *b) {
  d->sgd_update(&b->n.parameters, b->step, 0.9f, 2e-4f);
}

static inline void training_operations(void *b) {
  mix(b);
  network_forward(&((bench *)b)->n, BATCH, true);
  loss(b);
  network_backward(&((bench *)b)->n);
  update(b);
}

static inline void testing_operations(void *b) {
  mix(b);
  network_forward(&((bench *)b)->n, BATCH, false);
  loss(b);
}

// As the trainer does it: recorded the first time, where the device records (run/set_up.c).
static inline void step(bench *b, bool training) {
  void (*operations)(void *) = training ? training_operations : testing_operations;
  if (!d->recorder) {
    operations(b);
    return;
  }
  if (!b->recorded[training]) b->recorded[training] = d->recorder->record(operations, b);
  d->recorder->replay(b->recorded[training]);
}

static inline void wait_for_device(bench *b) {
  step_result result;
  d->download(&result, b->result, sizeof result);
}

#endif
