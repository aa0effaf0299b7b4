// tests/golden_test.c - one training step of the whole network against PyTorch's numbers.
//
// tests/golden.safetensors holds three steps as PyTorch does them in double precision (tests/golden.py
// says what exactly, and made it): from initial weights at width 8 and 16, and from a state with
// momentum in the middle of a run, on a short batch. Each is done here from the same state, and the
// logits, the loss, every gradient, and every weight, momentum and running statistic after the step
// are compared; then the logits in evaluation mode.
//
// Tensors are compared by digests: 7 weighted sums that every element takes part in, and 32 elements.
// An error is relative to the norm |t| of PyTorch's tensor, and has to stay below
//
//     2^-24 |digest|       because the file's numbers are rounded to float
//     + tolerance |t|      what the arithmetic here may add:
//
// in double (this file compiled with REAL=double) 1e-9, which leaves no room for a different formula:
// it is what NORM_EPSILON or the 4th digit of momentum being off would exceed a hundred times. In
// float, the network itself amplifies each rounding, 2^-24, by some hundred on its way through 20
// batch normalisations of a few pixels: PyTorch's own float32 is up to FLOAT_NOISE away from its
// float64 (tests/golden.py prints it), and ours may be four times as far.
#include "check.h"

#include "../network.h"
#include "../run/safetensors.h"
#include <string.h>

#define FLOAT_NOISE 1e-5

enum { DIGEST = 40, SUMS = 7 };

typedef struct {
  const safetensors *file;
  const char *prefix; // "initial8."
  const device *device;
  network network;
  int batch;
  float settings[6]; // lambda, learning rate, momentum, weight decay, smoothing, seed
  sample samples[16];
  double tolerance;
} golden;

static const tensor *look_up(const golden *g, const char *kind, const char *name) {
  char full[TENSOR_NAME];
  snprintf(full, sizeof full, "%s%s%s", g->prefix, kind, name);
  const tensor *t = safetensors_find(g->file, full);
  if (!t) {
    printf("FAIL tests/golden.safetensors has no %s\n", full);
    exit(1);
  }
  return t;
}

static float float_at(const tensor *t, size_t i) {
  float value = 0;
  uint32_t bits = 0;
  if (!strcmp(t->dtype, "BF16")) { // the upper half of a float
    memcpy((char *)&bits + 2, t->data + 2 * i, 2);
    memcpy(&value, &bits, 4);
  } else {
    memcpy(&value, t->data + 4 * i, 4);
  }
  return value;
}

// Where element i, in PyTorch's order [K][C][R][S], lies in memory, [K][R][S][C].
static size_t place_in_memory(const parameter *p, size_t i) {
  if (p->rank < 4) return i;
  const size_t taps = (size_t)p->dims[1] * p->dims[2], channels = p->dims[3];
  const size_t k = i / (channels * taps), c = i / taps % channels, tap = i % taps;
  return (k * taps + tap) * channels + c;
}

static void digest(double result[DIGEST], const parameter *p, const real *memory) {
  for (int k = 0; k < DIGEST; k++) result[k] = 0;
  for (size_t i = 0; i < p->count; i++) {
    const double value = memory[p->offset + place_in_memory(p, i)];
    result[0] += value * value;
    for (int k = 1; k <= SUMS; k++) result[k] += value * cos(k * ((double)i + 0.5));
  }
  result[0] = sqrt(result[0]);
  for (int j = 0; j < DIGEST - SUMS - 1; j++)
    result[SUMS + 1 + j] =
        memory[p->offset + place_in_memory(p, j * p->count / (DIGEST - SUMS - 1))];
}

// The largest excess over the file's own rounding, relative to the norm, of all tensors of a kind.
static void check_digests(const golden *g, const char *kind, const parameter *list, int count,
                          const real *device_memory, size_t size, double tolerance) {
  double worst = 0;
  const char *where = list[0].name;
  real *memory = allocate(size * sizeof *memory);
  g->device->download(memory, device_memory, size * sizeof *memory);
  for (int i = 0; i < count; i++) {
    const tensor *expected = look_up(g, kind, list[i].name);
    double actual[DIGEST];
    const double norm = float_at(expected, 0);
    digest(actual, &list[i], memory);
    for (int k = 0; k < DIGEST; k++) {
      const double wanted = float_at(expected, k);
      const double difference = fabs(actual[k] - wanted) - 0x1p-24 * fabs(wanted);
      const double error = difference == 0 ? 0 : difference / norm; // betas begin at zero
      if (isnan(worst) || error <= worst) continue;
      worst = error; // a NaN comes here too, and stays
      where = list[i].name;
    }
  }
  free(memory);
  check_error(worst, tolerance, "golden %s %s%s (worst: %s)", g->device->name, g->prefix, kind,
              where);
}

static void check_logits(const golden *g, const char *kind) {
  const tensor *expected = look_up(g, kind, "");
  real logits[16 * CLASSES];
  double error = 0, largest = 0;
  g->device->download(logits, g->network.logits, (size_t)g->batch * CLASSES * sizeof *logits);
  for (int i = 0; i < g->batch * CLASSES; i++)
    largest = fmax(largest, fabsf(float_at(expected, i)));
  for (int i = 0; i < g->batch * CLASSES; i++) {
    error = larger(error, fabs(logits[i] - float_at(expected, i)) / largest);
  }
  check_error(error, 0x1p-24 + g->tolerance, "golden %s %s%s", g->device->name, g->prefix, kind);
}

static double double_of(const golden *g, const char *name) {
  double value;
  memcpy(&value, look_up(g, name, "")->data, sizeof value);
  return value;
}

static void read_stored(const golden *g, const char *kind, const parameter *list, int count,
                        real *memory) {
  for (int i = 0; i < count; i++) {
    const tensor *stored = look_up(g, kind, list[i].name);
    for (size_t j = 0; j < list[i].count; j++)
      memory[list[i].offset + place_in_memory(&list[i], j)] = float_at(stored, j);
  }
}

// The state before the step: drawn from the seed, or as stored.
static void load_state(golden *g) {
  network *n = &g->network;
  const parameters *p = &n->parameters;
  network_initialise(n, (uint64_t)g->settings[5]);
  char name[TENSOR_NAME];
  snprintf(name, sizeof name, "%sbefore.conv1.weight", g->prefix);
  if (safetensors_find(g->file, name)) {
    check_digests(g, "before.", p->list, PARAMETERS, p->weight, p->count, 0x1p-24);
    return;
  }
  real *weights = allocate(p->count * sizeof *weights);
  real *momentum = allocate(p->count * sizeof *momentum);
  real *statistics = allocate(n->statistics_size * sizeof *statistics);
  read_stored(g, "weight.", p->list, PARAMETERS, weights);
  read_stored(g, "momentum.", p->list, PARAMETERS, momentum);
  read_stored(g, "statistics.", n->statistics_list, STATISTICS, statistics);
  g->device->upload(p->weight, weights, p->count * sizeof *weights);
  g->device->upload(p->momentum, momentum, p->count * sizeof *momentum);
  g->device->upload(n->statistics, statistics, n->statistics_size * sizeof *statistics);
  g->device->refresh_rounded_weights(p);
  free(weights);
  free(momentum);
  free(statistics);
}

typedef struct {
  uint8_t *images, *labels;
  sample *samples;
  step_values *step;
  step_result *result;
} inputs;

static inputs upload_inputs(const golden *g) {
  const device *d = g->device;
  const tensor *images = safetensors_find(g->file, "images");
  const tensor *labels = safetensors_find(g->file, "labels");
  inputs in = {d->allocate(images->bytes), d->allocate(labels->bytes),
               d->allocate(sizeof g->samples), d->allocate(sizeof *in.step),
               d->allocate(sizeof *in.result)};
  d->upload(in.images, images->data, images->bytes);
  d->upload(in.labels, labels->data, labels->bytes);
  return in;
}

static void forward(golden *g, const inputs *in, float lambda, bool training) {
  const device *d = g->device;
  const step_values step = {.lambda = lambda, .learning_rate = g->settings[1]};
  d->upload(in->samples, g->samples, sizeof g->samples);
  d->upload(in->step, &step, sizeof step);
  d->mix_images(g->batch, g->network.input, in->images, in->samples, in->step);
  network_forward(&g->network, g->batch, training);
}

static void step_and_compare(golden *g, const inputs *in) {
  const device *d = g->device;
  network *n = &g->network;
  const parameters *p = &n->parameters;
  step_result result;
  forward(g, in, g->settings[0], true);
  d->cross_entropy(g->batch, g->settings[4], n->dlogits, in->result, n->logits, in->labels,
                   in->samples, in->step);
  network_backward(n);
  d->sgd_update(p, in->step, g->settings[2], g->settings[3]);
  d->download(&result, in->result, sizeof result);
  const double loss = double_of(g, "loss"), correct = double_of(g, "correct");
  check_logits(g, "logits");
  check_error(fabs(result.loss / g->batch - loss) / loss, g->tolerance, "golden %s %sloss", d->name,
              g->prefix);
  // Exactly: lambda has a float's 24 bits, so in double all sums of lambda and 1 - lambda are exact.
  check_error(fabs(result.correct - correct), 0, "golden %s %scorrect", d->name, g->prefix);
  check_digests(g, "gradient.", p->list, PARAMETERS, p->gradient, p->count, g->tolerance);
  check_digests(g, "after.", p->list, PARAMETERS, p->weight, p->count, g->tolerance);
  check_digests(g, "momentum_after.", p->list, PARAMETERS, p->momentum, p->count, g->tolerance);
  check_digests(g, "statistics_after.", n->statistics_list, STATISTICS, n->statistics,
                n->statistics_size, g->tolerance);
  for (int b = 0; b < g->batch; b++)
    g->samples[b] = (sample){g->samples[b].image, b, CROP_PADDING, CROP_PADDING, 0};
  forward(g, in, 1, false);
  check_logits(g, "evaluation");
}

static void run_case(const safetensors *file, const char *prefix, const device *d, int width) {
  static golden g;
  error e;
  g = (golden){.file = file, .prefix = prefix, .device = d};
  g.tolerance = sizeof(real) == sizeof(double) ? 1e-9 : 4 * FLOAT_NOISE;
  const tensor *samples = look_up(&g, "samples", "");
  g.batch = (int)samples->shape[0];
  memcpy(g.samples, samples->data, samples->bytes); // five I32 each, as in the struct
  memcpy(g.settings, look_up(&g, "settings", "")->data, sizeof g.settings);
  if (!network_create(&g.network, d, width, g.batch, &e)) exit(1);
  inputs in = upload_inputs(&g);
  load_state(&g);
  step_and_compare(&g, &in);
  d->release(in.images);
  d->release(in.labels);
  d->release(in.samples);
  d->release(in.step);
  d->release(in.result);
  network_free(&g.network);
}

int main(void) {
  safetensors file;
  error e;
  if (!safetensors_read("tests/golden.safetensors", &file, &e)) {
    printf("FAIL %s\n0 passed, 1 failed\n", e.text);
    return 1;
  }
#ifdef DOUBLE
  const device *devices[] = {&reference_device};
#else
  const device *devices[] = {&reference_device, cpu_device()};
#endif
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
    run_case(&file, "initial8.", devices[i], 8);
    run_case(&file, "initial16.", devices[i], 16);
    run_case(&file, "midrun8.", devices[i], 8);
  }
  safetensors_free(&file);
  return check_summary();
}
