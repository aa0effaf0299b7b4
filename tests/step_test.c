// step_test.c - whole training steps on the CUDA kernels (simulated, and on a GPU where one answers)
// beside the reference, from equal states at several places of a run: loss, logits, every gradient,
// running statistics, and the weights and momenta after the step. kernels_test.c holds each kernel
// against the reference by itself; this is about all of them together, in the network's order and
// memory.
//
// What to compare with. A GPU keeps activations and the weights that convolutions read as bf16, 2^-9
// to 2^-8 coarse, and 20 batch normalisations of a few pixels make much of that. The reference can be
// given the same coarseness: the device `rounded` below is the reference with every activation and
// compute weight rounded to bf16 where a GPU would store it. It and a GPU still differ in the last
// bits of their float sums, so now and then a value close to a tie rounds to its other neighbour: a
// whole spacing. That moves values downstream, where more fall to their other side, and after a few
// layers the roundings of the two are as good as independent, although every formula is the same.
//
// So the yardstick is a crowd: SAMPLES runs of `rounded` from the same state, each with all values
// shaken by a relative 2^-20 (16 roundings of float) before they are rounded. A correct device is one
// more of this crowd. For each tensor, with m the crowd's mean and s^2 that of |sample - m|^2 (divided
// by SAMPLES - 1),
//
//     |device - m| <= limit s sqrt(1 + 1/SAMPLES) + 2^-20 |m|       the latter where nothing is rounded
//
// If the device is one of them, the left side is s on average, and (|device - m| / s)^2 is a ratio of
// variances with d and (SAMPLES - 1) d degrees of freedom, d the number of independent directions in
// which rounding moves the tensor. From how little it varies among tensors, d is about 12 for
// gradients and 4 for statistics of 8 channels. A limit of 3, of 4, and, for a single number, of 10 are
// exceeded with probabilities of about 1e-9, 1e-6 and 1e-6 (Fisher's F and Student's t).
//
// At the first steps, roundings move gradients by a tenth and more, later by a few per cent: the column
// `tolerance` shows it, relative to |m|. What is wrong by less than that, kernels_test.c has to find.
// The loss and the running statistics show some thousandths.
//
// The optimiser's step amplifies nothing. It is held against the reference's formula on the device's
// own gradients, in float: 5 roundings.
//
//     make build/gcc/tests/step_test && build/gcc/tests/step_test
#define _POSIX_C_SOURCE 200809L
#include "../checkpoint.h"
#include "../mixup.h"
#include "inputs.h"
#include "scratch.h"

extern bool simt_reversed; // simt/simt.h: the last warp and lane first

enum { WIDTH = 8, BATCH = 4, IMAGES = 64, SAMPLES = 12 };
enum { LIMIT_OF_GRADIENT = 3, LIMIT = 4, LIMIT_OF_ONE = 10 };
static const float MOMENTUM = 0.9f, DECAY = 2e-4f, SMOOTHING = 0.1f, RATE = 0.1f;

// -- The device `rounded`: the reference, as coarse as a GPU ------------------------------------------

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
  reference_device.conv_forward(s, y, x, w, NULL);
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
  reference_device.conv_backward_input(s, dx, dy, w, accumulate);
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
    ((real *)p->compute)[i] = to_nearest_bf16((float)p->weight[i]);
}

static void make_rounded(void) {
  rounded = reference_device;
  rounded.name = "rounded";
  rounded.compute_bytes = sizeof(real);
  rounded.mix_images = rounded_mix_images;
  rounded.conv_forward = rounded_conv_forward;
  rounded.conv_backward_input = rounded_conv_backward_input;
  rounded.norm_forward = rounded_norm_forward;
  rounded.norm_backward = rounded_norm_backward;
  rounded.pool_forward = rounded_pool_forward;
  rounded.pool_backward = rounded_pool_backward;
  rounded.linear_backward = rounded_linear_backward;
  rounded.refresh_compute = rounded_refresh_compute;
}

// -- Data, states, steps --------------------------------------------------------------------------------

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
  real loss, logits[BATCH * CLASSES];
  real *gradient, *statistics, *weight, *momentum;
} outcome;

static network shape; // the same for all devices

static void put_state(network *n, const state *s) {
  const device *d = n->device;
  d->upload(n->parameters.weight, s->weight, shape.parameters.count * sizeof(real));
  d->upload(n->parameters.momentum, s->momentum, shape.parameters.count * sizeof(real));
  d->upload(n->statistics, s->statistics, shape.statistics_size * sizeof(real));
  d->refresh_compute(&n->parameters);
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

// One training step of the state that n is in. o: NULL, or what comes out.
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

// -- One device against the crowd -------------------------------------------------------------------------

// Elements first .. first + count - 1 of one array in all samples and on the device.
static void compare_with_crowd(const real *const crowd[SAMPLES], const real *device, size_t first,
                               size_t count, double limit, const char *what) {
  double spread = 0, distance = 0, norm = 0;
  for (size_t i = first; i < first + count; i++) {
    double mean = 0;
    for (int k = 0; k < SAMPLES; k++) mean += crowd[k][i] / SAMPLES;
    for (int k = 0; k < SAMPLES; k++) spread += pow(crowd[k][i] - mean, 2) / (SAMPLES - 1);
    distance += pow(device[i] - mean, 2);
    norm += mean * mean;
  }
  check_error(sqrt(distance / norm), limit * sqrt(spread * (1 + 1.0 / SAMPLES) / norm) + 0x1p-20,
              "%s", what);
}

#define ARRAY_OF(samples, member)                                                                  \
  for (int k = 0; k < SAMPLES; k++) one[k] = (samples)[k].member

static void compare_outcomes(const outcome crowd[SAMPLES], const outcome *o,
                             const char *device_name, int number) {
  const real *one[SAMPLES];
  char what[120];
  for (int k = 0; k < SAMPLES; k++) one[k] = &crowd[k].loss;
  snprintf(what, sizeof what, "step %d, %s: loss", number, device_name);
  compare_with_crowd(one, &o->loss, 0, 1, LIMIT_OF_ONE, what);
  ARRAY_OF(crowd, logits);
  snprintf(what, sizeof what, "step %d, %s: logits", number, device_name);
  compare_with_crowd(one, o->logits, 0, BATCH * CLASSES, LIMIT, what);
  ARRAY_OF(crowd, gradient);
  for (int i = 0; i < PARAMETERS; i++) {
    const parameter *p = &shape.parameters.list[i];
    snprintf(what, sizeof what, "step %d, %s: gradient of %s", number, device_name, p->name);
    compare_with_crowd(one, o->gradient, p->offset, p->count, LIMIT_OF_GRADIENT, what);
  }
  ARRAY_OF(crowd, statistics);
  for (int i = 0; i < STATISTICS; i++) {
    const parameter *p = &shape.statistics_list[i];
    snprintf(what, sizeof what, "step %d, %s: %s after it", number, device_name, p->name);
    compare_with_crowd(one, o->statistics, p->offset, p->count, LIMIT, what);
  }
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

// -- The test ---------------------------------------------------------------------------------------------

static const device *gpus[4];
static network on_gpu[4];
static int gpu_count;

static void open_gpus(void) {
  static const char *const names[] = {"simt-plain", "simt", "cuda-plain", "cuda"};
  error e;
  for (int i = 0; i < 4; i++) {
    const device *d = device_by_name(names[i], &e);
    if (!d && i == 3) printf("no rows for cuda: %s\n", e.text);
    if (!d) continue;
    gpus[gpu_count] = d;
    create(&on_gpu[gpu_count++], d);
  }
}

// Step `number` from one state: the crowd, then every device, in one state once more.
static void test_state(const state *s, uint64_t seed, int number, bool repeat) {
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
    if (!repeat && strstr(gpus[i]->name, "plain"))
      continue; // slow, and one state is enough for them
    outcome o = new_outcome(), again = new_outcome();
    put_state(&on_gpu[i], s);
    train_step(&on_gpu[i], seed, number, &o);
    compare_outcomes(crowd, &o, gpus[i]->name, number);
    check_update(s, &o, gpus[i]->name, number);
    if (!repeat) continue;
    simt_reversed = true;
    put_state(&on_gpu[i], s);
    train_step(&on_gpu[i], seed, number, &again);
    simt_reversed = false;
    check(same_outcome(&o, &again), "step %d, %s: the same bits reversed", number, gpus[i]->name);
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
static void test_checkpoints(network *n, uint64_t seed, int number) {
  state saved = new_state(), there = new_state(), back = new_state();
  outcome expected = new_outcome(), actual = new_outcome();
  network other;
  error e = {{0}};
  create(&other, &reference_device);
  get_state(n, &saved);
  bool ok = hand_over(n, &other, &e);
  get_state(&other, &there);
  network_initialise(n, seed); // so that nothing is there by itself
  ok = ok && hand_over(&other, n, &e);
  get_state(n, &back);
  check(ok && same_state(&saved, &there) && same_state(&saved, &back),
        "a checkpoint of %s, to the reference and back, to the bit%s%s", n->device->name,
        *e.text ? ": " : "", e.text);
  train_step(n, seed, number, &actual);
  put_state(n, &saved);
  train_step(n, seed, number, &expected);
  check(same_outcome(&expected, &actual), "%s goes on from it as if nothing had been",
        n->device->name);
  network_free(&other);
}

int main(void) {
  const uint64_t seed = check_seed("step_test");
  const int steps[] = {0, 3, 20};
  error e;
  stream = random_open(seed, RANDOM_TEST, 1, 0);
  if (!network_describe(&shape, &reference_device, WIDTH, BATCH, &e)) return 1;
  make_rounded();
  draw_images();
  open_gpus();
  network run;
  create(&run, &reference_device);
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
    if (!strstr(gpus[i]->name, "plain")) test_checkpoints(&on_gpu[i], seed, 21);
    network_free(&on_gpu[i]);
    release();
  }
  scratch_remove();
  network_free(&run);
  return check_summary();
}
