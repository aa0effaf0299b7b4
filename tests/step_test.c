// tests/step_test.c - whole training steps on the CUDA kernels (simulated, and on a GPU where one
// answers) and on cpu-bf16, beside the reference, from equal states at several places of a run: the logits of
// evaluation; loss, logits, every gradient, running statistics, and the weights and momenta after the step. kernels_test.c holds
// each kernel against the reference by itself; this is about all of them together, in the network's
// order and memory.
//
// What to compare with. A GPU keeps activations and the weights that convolutions read as bf16,
// 2^-9 to 2^-8 coarse, and 20 batch normalisations of a few pixels make much of that. The reference
// can be given the same coarseness: the device `rounded` below is the reference with every
// activation and rounded weight rounded to bf16 where a GPU would store it (and, for the time it
// takes, with the cpu device's convolutions: devices_test.c holds them against the reference's). It
// and a GPU still differ in the last bits of their float sums, so now and then a value close to a
// tie rounds to its other neighbour: a whole spacing. That moves values downstream, where more fall
// to their other side, and after a few layers the roundings of the two are as good as independent,
// although every formula is the same.
//
// So the yardstick is a crowd: SAMPLES runs of `rounded` from the same state, each with all values
// shaken by a relative 2^-20 (16 roundings of float) before they are rounded. A correct device is
// one more of this crowd. For each tensor, with m the crowd's mean and s^2 that of |sample - m|^2
// (divided by SAMPLES - 1),
//
//     |device - m| <= limit s sqrt(1 + 1/SAMPLES) + 2^-20 |m|     the last where nothing is rounded
//
// If the device is one of them, the left side is s on average, and (|device - m| / s)^2 is a ratio
// of variances with d and (SAMPLES - 1) d degrees of freedom, d the number of independent
// directions in which rounding moves the tensor. From how little it varies among tensors, d is
// about 12 for gradients and 4 for logits. The statistics of an early layer of 8 channels hang on a
// few values near a tie, so for them d may be as small as 1, as for a single number. Limits of 3, 4
// and 10 are exceeded with probabilities of about 1e-9, 1e-6 and 1e-6 (Fisher's F and Student's t).
//
// What this leaves out are jumps. ReLU's mask is a step function, and where few pixels carry most
// of a gradient, one of them at the threshold moves it by far more than all roundings do; the crowd
// shows that only if it happened in it. So a device that lies outside is given four more trials,
// from weights shaken by a relative 2^-20, and for each tensor the best one counts. A jump, seen in
// one run of ten, will not come five times; a wrong kernel is wrong each time.
//
// At the first steps, roundings move gradients by a tenth and more, later by a few per cent: the
// column `tolerance` shows it, relative to |m|. What is wrong by less than that, kernels_test.c has
// to find. The loss and the running statistics show some thousandths.
//
// The optimiser's step amplifies nothing. It is held against the reference's formula on the
// device's own gradients, in float: 5 roundings.
//
//     make build/gcc/tests/step_test && build/gcc/tests/step_test
#define _POSIX_C_SOURCE 200809L
#include "../cifar.h"
#include "../run/checkpoint.h"
#include "inputs.h"
#include "scratch.h"

extern bool simt_reversed; // simt/simt.h: the last warp and lane first

enum { WIDTH = 8, BATCH = 4, IMAGES = 64, SAMPLES = 12, TRIALS = 5 };
enum { LIMIT_OF_GRADIENT = 3, LIMIT_OF_LOGITS = 4, LIMIT_OF_ONE = 10 };
static const float MOMENTUM = 0.9f, DECAY = 2e-4f, SMOOTHING = 0.1f, RATE = 0.1f;

// -- The device `rounded`: the reference, as coarse as a GPU --------------------------------------

#define SHAKE 0x1p-20
static device rounded;
static random_stream shaking;

static void shake_and_round(void *activations, size_t count) {
  real *values = activations;
  for (size_t i = 0; i < count; i++)
    values[i] =
        to_nearest_bf16((float)(values[i] * (1 + SHAKE * (2 * random_float(&shaking) - 1))));
}

static void rounded_mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                               const step_values *step) {
  reference_device.mix_images(batch, x, images, samples, step);
  shake_and_round(x, (size_t)batch * IMAGE_BYTES);
}

static void rounded_conv_forward(const conv_shape *s, void *y, const void *x, const void *w,
                                 double *sums) {
  const size_t channels = (size_t)s->out_channels;
  const size_t count = (size_t)s->batch * s->out_height * s->out_width * channels;
  cpu_device()->conv_forward(s, y, x, w, NULL);
  shake_and_round(y, count);
  for (size_t k = 0; sums && k < 2 * channels; k++) sums[k] = 0;
  for (size_t i = 0; sums && i < count; i++) {
    const double value = ((real *)y)[i];
    sums[i % channels] += value;
    sums[channels + i % channels] += value * value;
  }
}

static void rounded_conv_backward_input(const conv_shape *s, void *dx, const void *dy,
                                        const void *w, bool accumulate) {
  cpu_device()->conv_backward_input(s, dx, dy, w, accumulate);
  shake_and_round(dx, (size_t)s->batch * s->in_height * s->in_width * s->in_channels);
}

static void rounded_norm_forward(const norm_shape *s, void *y, const void *x, const double *sums,
                                 const real *gamma, const real *beta, const void *residual,
                                 bool relu, real *running_mean, real *running_var, real *saved_mean,
                                 real *saved_inverse_std) {
  reference_device.norm_forward(s, y, x, sums, gamma, beta, residual, relu, running_mean,
                                running_var, saved_mean, saved_inverse_std);
  shake_and_round(y, (size_t)s->pixels * s->channels);
}

// dresidual is dy, or zero: rounded already.
static void rounded_norm_backward(const norm_shape *s, void *dx, void *dresidual, real *dgamma,
                                  real *dbeta, const void *dy, const void *y, const void *x,
                                  const real *gamma, const real *mean, const real *inverse_std,
                                  bool relu) {
  reference_device.norm_backward(s, dx, dresidual, dgamma, dbeta, dy, y, x, gamma, mean,
                                 inverse_std, relu);
  shake_and_round(dx, (size_t)s->pixels * s->channels);
}

// Nothing is stored between the two, nor rounded.
static void rounded_conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                                        const real *gamma, const real *beta, const void *residual,
                                        bool relu, const real *running_mean,
                                        const real *running_var) {
  cpu_device()->conv_norm_inference(s, y, x, w, gamma, beta, residual, relu, running_mean,
                                    running_var);
  shake_and_round(y, (size_t)s->batch * s->out_height * s->out_width * s->out_channels);
}

static void rounded_pool_forward(int batch, int pixels, int channels, void *y, const void *x) {
  reference_device.pool_forward(batch, pixels, channels, y, x);
  shake_and_round(y, (size_t)batch * channels);
}

static void rounded_pool_backward(int batch, int pixels, int channels, void *dx, const void *dy) {
  reference_device.pool_backward(batch, pixels, channels, dx, dy);
  shake_and_round(dx, (size_t)batch * pixels * channels);
}

static void rounded_linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                                    const real *dlogits, const void *x, const void *w) {
  reference_device.linear_backward(batch, channels, dx, dw, dbias, dlogits, x, w);
  shake_and_round(dx, (size_t)batch * channels);
}

static void rounded_refresh_compute(const parameters *p) {
  for (size_t i = 0; i < p->count; i++)
    ((real *)p->rounded_weight)[i] = to_nearest_bf16((float)p->weight[i]);
}

static void make_rounded(void) {
  rounded = *cpu_device();
  rounded.name = "rounded";
  rounded.rounded_weight_bytes = sizeof(real);
  rounded.mix_images = rounded_mix_images;
  rounded.conv_forward = rounded_conv_forward;
  rounded.conv_backward_input = rounded_conv_backward_input;
  rounded.norm_forward = rounded_norm_forward;
  rounded.norm_backward = rounded_norm_backward;
  rounded.conv_norm_inference = rounded_conv_norm_inference;
  rounded.pool_forward = rounded_pool_forward;
  rounded.pool_backward = rounded_pool_backward;
  rounded.linear_backward = rounded_linear_backward;
  rounded.refresh_rounded_weights = rounded_refresh_compute;
}

// -- Data, states, steps --------------------------------------------------------------------------

static uint8_t pixels[IMAGES][IMAGE_CHANNELS][IMAGE_SIDE][IMAGE_SIDE], classes[IMAGES];

// Stripes, a direction and colour for each class, at a phase of each image's own, and noise.
static void draw_images(void) {
  for (int i = 0; i < IMAGES; i++) {
    const double phase = 6.28 * random_double(&stream);
    const int class = classes[i] = (uint8_t)random_below(&stream, CLASSES);
    for (int c = 0; c < IMAGE_CHANNELS; c++)
      for (int row = 0; row < IMAGE_SIDE; row++)
        for (int column = 0; column < IMAGE_SIDE; column++)
          pixels[i][c][row][column] =
              (uint8_t)(128 +
                        60 * sin(phase + 0.1 * (class * row + (9 - class) * column) + c * class) +
                        60 * random_double(&stream));
  }
}

// What a step starts from, and what it leaves behind. On the host.
typedef struct {
  real *weight, *momentum, *statistics;
} state;

typedef struct {
  real loss, logits[BATCH * CLASSES], evaluated[BATCH * CLASSES]; // in training, in evaluation
  real *gradient, *statistics, *weight, *momentum;
} outcome;

static network shape; // the same for all devices

static void put_state(network *n, const state *s) {
  const device *d = n->device;
  d->upload(n->parameters.weight, s->weight, shape.parameters.count * sizeof(real));
  d->upload(n->parameters.momentum, s->momentum, shape.parameters.count * sizeof(real));
  d->upload(n->statistics, s->statistics, shape.statistics_size * sizeof(real));
  d->refresh_rounded_weights(&n->parameters);
}

static void get_state(const network *n, state *s) {
  const device *d = n->device;
  d->download(s->weight, n->parameters.weight, shape.parameters.count * sizeof(real));
  d->download(s->momentum, n->parameters.momentum, shape.parameters.count * sizeof(real));
  d->download(s->statistics, n->statistics, shape.statistics_size * sizeof(real));
}

static state new_state(void) {
  return (state){take(shape.parameters.count * sizeof(real)),
                 take(shape.parameters.count * sizeof(real)),
                 take(shape.statistics_size * sizeof(real))};
}

static outcome new_outcome(void) {
  return (outcome){.gradient = take(shape.parameters.count * sizeof(real)),
                   .statistics = take(shape.statistics_size * sizeof(real)),
                   .weight = take(shape.parameters.count * sizeof(real)),
                   .momentum = take(shape.parameters.count * sizeof(real))};
}

// Images, crops, flips, partners and lambda of step `number`.
static step_values draw_batch(uint64_t seed, int number, sample samples[BATCH]) {
  random_stream s = random_open(seed, RANDOM_TEST, 2, (uint32_t)number);
  for (int b = 0; b < BATCH; b++)
    samples[b] = (sample){.image = (int32_t)random_below(&s, IMAGES),
                          .crop_y = (int32_t)random_below(&s, 9),
                          .crop_x = (int32_t)random_below(&s, 9),
                          .flip = (int32_t)random_below(&s, 2)};
  return (step_values){.lambda = mixup_draw(BATCH, samples, 1, seed, 0, number),
                       .learning_rate = RATE};
}

static void *on_device(const device *d, const void *host, size_t bytes) {
  void *there = d->allocate(bytes);
  d->upload(there, host, bytes);
  return there;
}

static void evaluate(network *n, real logits[BATCH * CLASSES]) {
  network_forward(n, BATCH, false);
  n->device->download(logits, n->logits, BATCH * CLASSES * sizeof *logits);
}

// One training step of the state that n is in. o: NULL, or what comes out, and before it of an evaluation.
static void train_step(network *n, uint64_t seed, int number, outcome *o) {
  const device *d = n->device;
  sample samples[BATCH];
  step_result result = {NAN, NAN};
  const step_values values = draw_batch(seed, number, samples);
  void *images = on_device(d, pixels, sizeof pixels),
       *labels = on_device(d, classes, sizeof classes);
  void *list = on_device(d, samples, sizeof samples), *step = on_device(d, &values, sizeof values);
  void *there = on_device(d, &result, sizeof result);
  d->mix_images(BATCH, n->input, images, list, step);
  if (o) evaluate(n, o->evaluated);
  network_forward(n, BATCH, true);
  d->cross_entropy(BATCH, SMOOTHING, n->dlogits, there, n->logits, labels, list, step);
  network_backward(n);
  if (o) d->download(o->gradient, n->parameters.gradient, shape.parameters.count * sizeof(real));
  d->sgd_update(&n->parameters, step, MOMENTUM, DECAY);
  d->download(&result, there, sizeof result);
  if (o) {
    state after = {o->weight, o->momentum, o->statistics};
    get_state(n, &after);
    d->download(o->logits, n->logits, sizeof o->logits);
    o->loss = (real)(result.loss / BATCH);
  }
  d->release(images), d->release(labels), d->release(list), d->release(step), d->release(there);
}

// -- One device against the crowd -----------------------------------------------------------------

// Some elements of one array, in all samples and in each of the device's trials.
typedef struct {
  const real *crowd[SAMPLES], *device[TRIALS];
  int trials;
  size_t first, count;
} arrays;

// The device's best trial. what: NULL, or this check's text.
static bool compare_arrays(const arrays *a, double limit, const char *what) {
  double spread = 0, norm = 0, distance[TRIALS] = {0}, least = INFINITY;
  for (size_t i = a->first; i < a->first + a->count; i++) {
    double mean = 0;
    for (int k = 0; k < SAMPLES; k++) mean += a->crowd[k][i] / SAMPLES;
    for (int k = 0; k < SAMPLES; k++) spread += pow(a->crowd[k][i] - mean, 2) / (SAMPLES - 1);
    for (int t = 0; t < a->trials; t++) distance[t] += pow(a->device[t][i] - mean, 2);
    norm += mean * mean;
  }
  for (int t = 0; t < a->trials; t++) // a NaN in any trial stays: no jump makes one
    if (isnan(distance[t]) || distance[t] < least) least = distance[t];
  const double error = sqrt(least / norm);
  const double tolerance = limit * sqrt(spread * (1 + 1.0 / SAMPLES) / norm) + 0x1p-20;
  return what ? check_error(error, tolerance, "%s", what) : error <= tolerance;
}

// label: NULL, or what the texts of the checks begin with.
static bool compare_tensors(arrays *a, const parameter *list, int count, double limit,
                            const char *label, const char *kind) {
  bool good = true;
  char what[160];
  for (int i = 0; i < count; i++) {
    a->first = list[i].offset;
    a->count = list[i].count;
    snprintf(what, sizeof what, "%s: %s %s", label, kind, list[i].name);
    good &= compare_arrays(a, limit, label ? what : NULL);
  }
  return good;
}

#define ARRAYS_OF(member)                                                                          \
  for (int k = 0; k < SAMPLES; k++) a.crowd[k] = crowd[k].member;                                  \
  for (int t = 0; t < trials; t++) a.device[t] = o[t].member

static bool compare_outcomes(const outcome crowd[SAMPLES], const outcome o[TRIALS], int trials,
                             const char *label) {
  static const parameter loss[] = {{.name = "loss", .count = 1}};
  static const parameter logits[] = {{.name = "logits", .count = BATCH * CLASSES}};
  static const parameter evaluated[] = {{.name = "evaluation's logits", .count = BATCH * CLASSES}};
  arrays a = {.trials = trials};
  bool good = true;
  for (int k = 0; k < SAMPLES; k++) a.crowd[k] = &crowd[k].loss;
  for (int t = 0; t < trials; t++) a.device[t] = &o[t].loss;
  good &= compare_tensors(&a, loss, 1, LIMIT_OF_ONE, label, "the");
  ARRAYS_OF(logits);
  good &= compare_tensors(&a, logits, 1, LIMIT_OF_LOGITS, label, "the");
  ARRAYS_OF(evaluated);
  good &= compare_tensors(&a, evaluated, 1, LIMIT_OF_LOGITS, label, "the");
  ARRAYS_OF(gradient);
  good &= compare_tensors(&a, shape.parameters.list, PARAMETERS, LIMIT_OF_GRADIENT, label,
                          "gradient of");
  ARRAYS_OF(statistics);
  good &= compare_tensors(&a, shape.statistics_list, STATISTICS, LIMIT_OF_ONE, label, "after it,");
  return good;
}

// v = mu v + (g + decay w), w -= rate v, from the device's own g: what it may be off by, and is.
static void check_update(const state *before, const outcome *o, const char *device_name,
                         int number) {
  double worst_momentum = 0, worst_weight = 0;
  for (size_t i = 0; i < shape.parameters.count; i++) {
    const double v = before->momentum[i], g = o->gradient[i], w = before->weight[i];
    const double new_v = MOMENTUM * v + g + DECAY * w, new_w = w - RATE * new_v;
    const double size = fabs(MOMENTUM * v) + fabs(g) + fabs(DECAY * w);
    const double slack_v = 3 * 0x1p-24 * size + 0x1p-149;
    const double slack_w = RATE * slack_v + 2 * 0x1p-24 * (fabs(w) + RATE * size) + 0x1p-149;
    worst_momentum = larger(worst_momentum, fabs(o->momentum[i] - new_v) / slack_v);
    worst_weight = larger(worst_weight, fabs(o->weight[i] - new_w) / slack_w);
  }
  check_error(worst_momentum, 1, "step %d, %s: momenta, in roundings", number, device_name);
  check_error(worst_weight, 1, "step %d, %s: weights, in roundings", number, device_name);
}

static bool same_outcome(const outcome *a, const outcome *b) {
  const size_t bytes = shape.parameters.count * sizeof(real);
  return !memcmp(&a->loss, &b->loss, sizeof a->loss) &&
         !memcmp(a->logits, b->logits, sizeof a->logits) &&
         !memcmp(a->evaluated, b->evaluated, sizeof a->evaluated) &&
         !memcmp(a->gradient, b->gradient, bytes) && !memcmp(a->weight, b->weight, bytes) &&
         !memcmp(a->momentum, b->momentum, bytes) &&
         !memcmp(a->statistics, b->statistics, shape.statistics_size * sizeof(real));
}

static void create(network *n, const device *d) {
  error e;
  if (network_create(n, d, WIDTH, BATCH, &e)) return;
  fprintf(stderr, "%s\n", e.text);
  exit(1);
}

// -- The test -------------------------------------------------------------------------------------

static const device *gpus[5]; // and the CPU's device that rounds as they do
static network on_gpu[5];
static int gpu_count;

static void open_gpus(void) {
  static const char *const names[] = {"cpu-bf16", "simt-plain", "simt", "cuda-plain", "cuda"};
  error e;
  for (int i = 0; i < 5; i++) {
    const device *d = device_by_name(names[i], &e);
    if (!d && i == 4) no_rows_for_cuda(e.text);
    if (!d) continue;
    for (int j = 0; j < gpu_count; j++)
      check(gpus[j] != d, "%s and %s are not the same table", names[i], gpus[j]->name);
    gpus[gpu_count] = d;
    create(&on_gpu[gpu_count++], d);
  }
}

// The state with its weights shaken, as the crowd's values are.
static state shaken(const state *s) {
  state result = *s;
  result.weight = take(shape.parameters.count * sizeof(real));
  for (size_t i = 0; i < shape.parameters.count; i++)
    result.weight[i] = s->weight[i] * (real)(1 + SHAKE * (2 * random_float(&shaking) - 1));
  return result;
}

// The slow ones: for them, one state is enough.
static bool is_plain(const device *d) {
  return strstr(d->name, "-plain");
}

// Step `number` from one state: the crowd, then every device; in one state, plain and reversed too.
static void test_state(const state *s, uint64_t seed, int number, bool thoroughly) {
  static outcome crowd[SAMPLES];
  network n;
  create(&n, &rounded);
  for (int k = 0; k < SAMPLES; k++) {
    crowd[k] = new_outcome();
    shaking = random_open(seed, RANDOM_TEST, 3, (uint32_t)(number * SAMPLES + k));
    put_state(&n, s);
    train_step(&n, seed, number, &crowd[k]);
  }
  network_free(&n);
  for (int i = 0; i < gpu_count; i++) {
    const device *d = gpus[i];
    if (is_plain(d) && !thoroughly) continue;
    outcome o[TRIALS], again = new_outcome();
    char label[60];
    int trials = 0;
    do {
      const state start = trials ? shaken(s) : *s;
      o[trials] = new_outcome();
      put_state(&on_gpu[i], &start);
      train_step(&on_gpu[i], seed, number, &o[trials++]);
    } while (trials < TRIALS && !compare_outcomes(crowd, o, trials, NULL));
    snprintf(label, sizeof label, "step %d, %s", number, d->name);
    compare_outcomes(crowd, o, trials, label);
    check_update(s, &o[0], d->name, number);
    if (is_plain(d) || !thoroughly) continue;
    simt_reversed = true;
    put_state(&on_gpu[i], s);
    train_step(&on_gpu[i], seed, number, &again);
    simt_reversed = false;
    check(same_outcome(&o[0], &again), "step %d, %s: the same bits reversed", number, d->name);
  }
}

static bool same_state(const state *a, const state *b) {
  const size_t bytes = shape.parameters.count * sizeof(real);
  return !memcmp(a->weight, b->weight, bytes) && !memcmp(a->momentum, b->momentum, bytes) &&
         !memcmp(a->statistics, b->statistics, shape.statistics_size * sizeof(real));
}

static bool hand_over(const network *from, network *to, error *e) {
  safetensors resume;
  const metadata nothing[1] = {{"step", "1"}};
  if (!checkpoint_save(from, scratch_directory, CHECKPOINT_NAME, nothing, 1, e) ||
      !checkpoint_read_resume(scratch_directory, &resume, e))
    return false;
  const bool ok = checkpoint_resume(to, scratch_directory, &resume, e);
  safetensors_free(&resume);
  return ok;
}

// A checkpoint of one device, taken up by the reference, and its checkpoint by the device again.
// What convolutions read has to come along: the logits of the last batch tell.
static void test_checkpoints(network *n, uint64_t seed) {
  state saved = new_state(), there = new_state(), back = new_state();
  real expected[BATCH * CLASSES], actual[BATCH * CLASSES];
  network other;
  error e = {{0}};
  create(&other, &reference_device);
  evaluate(n, expected);
  get_state(n, &saved);
  bool ok = hand_over(n, &other, &e);
  get_state(&other, &there);
  network_initialise(n, seed); // so that nothing is there by itself
  ok = ok && hand_over(&other, n, &e);
  get_state(n, &back);
  evaluate(n, actual);
  check(ok && same_state(&saved, &there) && same_state(&saved, &back),
        "a checkpoint of %s, to the reference and back, to the bit%s%s", n->device->name,
        *e.text ? ": " : "", e.text);
  check(!memcmp(expected, actual, sizeof actual), "%s goes on from it as if nothing had been",
        n->device->name);
  network_free(&other);
}

int main(void) {
  const uint64_t seed = check_seed("step_test");
  const int steps[] = {0, 3, 10};
  error e;
  stream = random_open(seed, RANDOM_TEST, 1, 0);
  if (!network_describe(&shape, &reference_device, WIDTH, BATCH, &e)) return 1;
  make_rounded();
  draw_images();
  open_gpus();
  network run;
  create(&run, cpu_device());
  network_initialise(&run, seed);
  for (int number = 0, i = 0; i < 3; number++) {
    if (number == steps[i]) {
      state s = new_state();
      get_state(&run, &s);
      test_state(&s, seed, number, i++ == 1);
      release();
    }
    train_step(&run, seed, number, NULL);
  }
  scratch_make();
  for (int i = 0; i < gpu_count; i++) {
    if (!is_plain(gpus[i])) test_checkpoints(&on_gpu[i], seed);
    network_free(&on_gpu[i]);
    release();
  }
  scratch_remove();
  network_free(&run);
  return check_summary();
}
