// tests/recording_test.c - a step that is recorded and replayed (gpu/recording.cu) beside the same operations
// called one by one: the same bits in weights, momenta, statistics and results, after several steps with
// full and short batches, on `simt` and, where a GPU answers, on `cuda` and `cuda-plain`.
//
// On the simulator a recording is replayed twice, with its side branch as early and as late as its edges
// allow: simt/recording.cpp. This program is linked with watched kernels (SAN=1: with others), so that
// two accesses to the same bytes with no edge between are reported, whatever order they came in. All
// steps have the same edges, so the first one is watched, and the others are quicker.
//
// The recordings are kept as the trainer keeps them, by run/set_up.c's do_operations.
//
//     make build/gcc/watched/recording_test && build/gcc/watched/recording_test
#include "../run/inspect.h"
#include "../run/trainer.h"
#include "inputs.h"

extern bool simt_side_late, simt_watching; // simt/simt.h

enum { WIDTH = 8, BATCH = 2, IMAGES = 8, STEPS = 2 };
// Images of each step's batch. The second one wants more workspace than the first, whose recording is
// replayed in the second run.
static const int counts[STEPS] = {1, BATCH};

static uint8_t pixels[IMAGES * IMAGE_BYTES], classes[IMAGES];

// -- A run of a few steps -------------------------------------------------------------------------

typedef struct {
  real *weight, *momentum, *statistics; // after the last step
  real logits[BATCH * CLASSES];         // of a test batch after it
  step_result results[STEPS + 1];       // of each step, and of that batch
} outcome;

static void *on_device(const device *d, const void *host, size_t bytes) {
  void *there = d->allocate(bytes);
  d->upload(there, host, bytes);
  return there;
}

static void open_trainer(trainer *t, const device *d) {
  const step_result nothing[STEPS + 1] = {{0}};
  error e;
  t->device = d;
  if (!network_create(&t->network, d, WIDTH, BATCH, &e)) {
    fprintf(stderr, "%s\n", e.text);
    exit(1);
  }
  t->images = on_device(d, pixels, sizeof pixels);
  t->labels = on_device(d, classes, sizeof classes);
  t->samples = d->allocate(BATCH * sizeof(sample));
  t->step = d->allocate(sizeof *t->step);
  t->results = on_device(d, nothing, sizeof nothing);
}

static void look(trainer *t, bool training) {
  const device *d = t->device;
  network *n = &t->network;
  d->mix_images(t->count, n->input, t->images, t->samples, t->step);
  network_forward(n, t->count, training);
  d->cross_entropy(t->count, training ? 0.1f : 0, training ? n->dlogits : NULL, t->results,
                   n->logits, t->labels, t->samples, t->step);
}

static void train_batch(void *of) {
  trainer *t = of;
  look(t, true);
  network_backward(&t->network);
  t->device->sgd_update(&t->network.parameters, t->step, 0.9f, 2e-4f);
}

static void evaluate_batch(void *of) {
  look(of, false);
}

// Other images, another lambda, rate and slot for each step.
static void send(trainer *t, uint64_t seed, int step) {
  random_stream s = random_open(seed, RANDOM_TEST, 1, (uint32_t)step);
  sample samples[BATCH];
  for (int b = 0; b < BATCH; b++)
    samples[b] = (sample){.image = (int32_t)random_below(&s, IMAGES),
                          .partner = counts[step % STEPS] - 1 - b,
                          .crop_y = (int32_t)random_below(&s, 9),
                          .crop_x = (int32_t)random_below(&s, 9),
                          .flip = (int32_t)random_below(&s, 2)};
  send_step(t, samples, counts[step % STEPS], (float)random_double(&s), 0.1 / (step + 1), step);
}

static outcome run_steps(trainer *t, uint64_t seed, bool recorded) {
  const device *d = t->device;
  network *n = &t->network;
  const size_t parameters = n->parameters.count, statistics = n->statistics_size;
  outcome o = {.weight = take(parameters * sizeof(real)),
               .momentum = take(parameters * sizeof(real)),
               .statistics = take(statistics * sizeof(real))};
  network_initialise(n, seed);
  for (int i = 0; i <= STEPS; i++) {
    void (*operations)(void *) = i < STEPS ? train_batch : evaluate_batch;
    t->count = counts[i % STEPS];
    send(t, seed, i);
    if (recorded)
      do_operations(t, operations, t->count);
    else
      operations(t);
    simt_watching = false; // a step is enough, see the head of the file
  }
  d->download(o.weight, n->parameters.weight, parameters * sizeof(real));
  d->download(o.momentum, n->parameters.momentum, parameters * sizeof(real));
  d->download(o.statistics, n->statistics, statistics * sizeof(real));
  d->download(o.logits, n->logits, sizeof o.logits);
  d->download(o.results, t->results, sizeof o.results);
  return o;
}

// -- With and without recording ---------------------------------------------------------------------

static void check_same(const trainer *t, const outcome *a, const outcome *b, const char *how) {
  const size_t bytes = t->network.parameters.count * sizeof(real);
  check(!memcmp(a->weight, b->weight, bytes) && !memcmp(a->momentum, b->momentum, bytes) &&
            !memcmp(a->statistics, b->statistics, t->network.statistics_size * sizeof(real)),
        "%s, %s: the weights, momenta and statistics of the same operations at once",
        t->device->name, how);
  check(!memcmp(a->results, b->results, sizeof a->results) &&
            !memcmp(a->logits, b->logits, sizeof a->logits),
        "%s, %s: each step's results, and a test batch's logits", t->device->name, how);
}

// A test came last, of fewer images, and then a step is replayed. What the step left is finite, and the
// search for a bad value must not look at what it did not store.
static void check_search(trainer *t, uint64_t seed) {
  send(t, seed, STEPS - 1);
  do_operations(t, train_batch, counts[STEPS - 1]);
  const char *bad = network_bad_activation(&t->network);
  check(!bad, "%s: no bad value in a step's activations%s%s", t->device->name,
        bad ? ", but in " : "", bad ? bad : "");
}

// With the fast kernels, training stores no output but the blocks'.
static void check_left_out(const trainer *t) {
  const network *n = &t->network;
  int left_out = 0;
  for (int i = 0; i < UNITS; i++) left_out += n->units[i].y_left_out;
  check(left_out == (t->device->fused ? UNITS - BLOCKS : 0),
        "%s: %d of %d units leave out an output", t->device->name, left_out, UNITS);
}

static void test_device(const device *d, uint64_t seed) {
  trainer t = {0};
  open_trainer(&t, d);
  check_left_out(&t);
  const outcome recorded = run_steps(&t, seed, true);
  check_search(&t, seed);
  const outcome at_once = run_steps(&t, seed, false);
  bool finite = true;
  for (int i = 0; i <= STEPS; i++) finite &= isfinite(at_once.results[i].loss);
  check(finite && at_once.results[0].loss != at_once.results[1].loss,
        "%s: finite losses, other ones for other images", d->name);
  check_same(&t, &at_once, &recorded, "recorded");
  simt_side_late = true;
  const outcome again = run_steps(&t, seed, true);
  simt_side_late = false;
  check_same(&t, &at_once, &again,
             strcmp(d->name, "simt") ? "replayed again" : "replayed, the side branch late");
  check(t.recorded_count == 3, "%s: three recordings serve for all steps", d->name);
  trainer_free(&t);
}

int main(void) {
  static const char *const names[] = {"simt", "cuda", "cuda-plain"};
  const uint64_t seed = check_seed("recording_test");
  error e;
  stream = random_open(seed, RANDOM_TEST, 0, 0);
  for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (uint8_t)random_below(&stream, 256);
  for (int i = 0; i < IMAGES; i++) classes[i] = (uint8_t)random_below(&stream, CLASSES);
  for (int i = 0; i < 3; i++) {
    const device *d = device_by_name(names[i], &e);
    if (d)
      test_device(d, seed);
    else
      no_rows_for_cuda(e.text);
    release();
  }
  return check_summary();
}
