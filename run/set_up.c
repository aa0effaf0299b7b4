// run/set_up.c - what stands before the first step of a run: the data set in the device's memory, a
// network that fits beside it, and the arrays of a batch; see run/trainer.h.
#define _POSIX_C_SOURCE 200809L
#include "trainer.h"

#include "checkpoint.h"
#include "safetensors.h"
#include <math.h>
#include <omp.h>
#include <unistd.h>

bool take_width_from(const char *path, options *o, error *e) {
  safetensors s;
  if (!path[0] || options_given(o, "width")) return true;
  if (!safetensors_read(path, &s, e)) return false;
  char text[16];
  const int width = checkpoint_width(&s);
  safetensors_free(&s);
  snprintf(text, sizeof text, "%d", width);
  return !width || options_set(o, "width", text) ||
         fail(e, "%s: a network of width %d; this program's are multiples of 8 up to %d", path,
              width, MOST_WIDTH);
}

// How much memory there is, and where: the device's; else the machine's, or what a container leaves of it. (Linux'
// control groups say that, version 2 or 1. Without a limit the file holds a word, or a number beyond everything.)
static double memory_of(const device *d, const char **where) {
  static const char *const limits[] = {"/sys/fs/cgroup/memory.max",
                                       "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
  double have, limit;
  *where = d->free_bytes ? "the GPU has free" : "this machine has";
  if (d->free_bytes) return (double)d->free_bytes();
  have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  for (int i = 0; i < 2; i++) {
    FILE *file = fopen(limits[i], "r");
    if (file && fscanf(file, "%lf", &limit) == 1 && limit < have) {
      *where = "this container may use";
      have = limit;
    }
    if (file) fclose(file);
  }
  return have;
}

// Before anything is allocated, so that the answer can be a batch that fits. Images take memory in whole
// blocks (device.h).
static bool enough_memory(const network *n, size_t data_bytes, error *e) {
  const device *d = n->device;
  const char *where;
  const double have = memory_of(d, &where);
  const double block = d->block, block_bytes = block * (double)network_bytes_per_image(n);
  const double fixed =
      (double)(network_bytes(n) + data_bytes) - ceil(n->max_batch / block) * block_bytes;
  const double fits = floor((have - fixed) / block_bytes) * block;
  if (fits >= n->max_batch) return true;
  if (fits < 1)
    return fail(e, "--width %d does not fit, at any --batch, into the %.1f GiB that %s", n->width,
                have / 0x1p30, where);
  return fail(e, "--batch %d needs %.1f GiB and %s %.1f GiB; --batch %.0f would fit", n->max_batch,
              (double)(network_bytes(n) + data_bytes) / 0x1p30, where, have / 0x1p30, fits);
}

static void print_heading(const trainer *t, const network *planned, size_t data_bytes) {
  const options *o = &t->options;
  const device *d = t->device;
  printf("device     %s (%s), %d threads\n", d->name, d->description, omp_get_max_threads());
  printf("data       %s: %s\n", o->data, t->data.description);
  printf("network    ResNet-18, width %d: %zu parameters\n", o->width, planned->parameters.count);
  printf("memory     %.0f MiB for the network at batch %d, %.0f MiB for the images\n",
         (double)network_bytes(planned) / 0x1p20, o->batch, (double)data_bytes / 0x1p20);
  fflush(stdout);
}

// The whole data set goes to the device, once: a step then names its images by number.
static void send_data(trainer *t, size_t images) {
  const device *d = t->device;
  t->images = d->allocate(images * IMAGE_BYTES);
  t->labels = d->allocate(images);
  d->upload(t->images, t->data.images, images * IMAGE_BYTES);
  d->upload(t->labels, t->data.labels, images);
  free(t->data.images); // the device has them now
  t->data.images = NULL;
}

static void allocate_batches(trainer *t) {
  const device *d = t->device;
  const size_t batch = (size_t)t->options.batch;
  t->order = allocate((size_t)t->data.train_count * sizeof *t->order);
  t->test_samples = allocate(batch * sizeof *t->test_samples);
  t->samples = d->allocate(batch * sizeof *t->samples);
  t->step = d->allocate(sizeof *t->step);
  t->queue_length = d->asynchronous ? MOST_QUEUED : 1;
  t->results = d->allocate(2 * (size_t)t->queue_length * sizeof *t->results);
  for (int i = 0; i < t->queue_length; i++) t->queue[i].samples = allocate(batch * sizeof(sample));
}

bool trainer_set_up(trainer *t, error *e) {
  const options *o = &t->options;
  network planned;
  if (!cifar_read(o->data, o->train_images, o->test_images, &t->data, e)) return false;
  const size_t images = (size_t)(t->data.train_count + t->data.test_count);
  if (!network_describe(&planned, t->device, o->width, o->batch, e)) return false;
  if (!enough_memory(&planned, images * RECORD_BYTES, e)) return false;
  print_heading(t, &planned, images * RECORD_BYTES);
  if (!network_create(&t->network, t->device, o->width, o->batch, e)) return false;
  network_initialise(&t->network, o->seed);
  send_data(t, images);
  allocate_batches(t);
  return true;
}

void trainer_free(trainer *t) {
  const device *d = t->device;
  for (int i = 0; i < t->recorded_count; i++) d->recorder->forget(t->recorded[i].of);
  if (t->network.device) network_free(&t->network);
  d->release(t->images);
  d->release(t->labels);
  d->release(t->samples);
  d->release(t->step);
  d->release(t->results);
  for (int i = 0; i < t->queue_length; i++) free(t->queue[i].samples);
  free(t->order);
  free(t->test_samples);
  cifar_free(&t->data);
}

void send_step(trainer *t, const sample *samples, int count, float lambda, double learning_rate,
               int slot) {
  const step_values values = {
      .lambda = lambda, .learning_rate = (float)learning_rate, .slot = slot};
  t->device->upload(t->samples, samples, (size_t)count * sizeof(sample));
  t->device->upload(t->step, &values, sizeof values);
}

void do_operations(trainer *t, void (*operations)(void *trainer), int count) {
  const recording_table *r = t->device->recorder;
  t->count = t->network.batch = count;
  recorded *it = t->recorded, *end = it + t->recorded_count;
  while (it < end && (it->operations != operations || it->count != count)) it++;
  if (!r || it == t->recorded + MOST_RECORDED) {
    operations(t);
    return;
  }
  if (it == end) {
    *it = (recorded){operations, count, r->record(operations, t)};
    t->recorded_count++;
  }
  r->replay(it->of);
}
