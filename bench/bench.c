// bench/bench.c - how fast a device is: the operations of a training step, one by one, beside what the machine
// could do at most, and whole steps beside PyTorch's.
//
//     make bench                     the `cpu` device; PYTHON=python3: one that can import torch;
//                                    BENCH_DEVICE=cpu-bf16 or cuda: beside PyTorch in bf16
//     build/gcc/bench/bench cpu python3 out.json
//
// Operations. Time is the least of several runs, each of several calls, as the peaks are the most of several. GFLOP/s counts
// a multiplication and an addition for each weight that meets a pixel inside or outside the image,
// as if convolution were done directly: Winograd's method can be above the machine's peak. cpu-bf16 leaves
// out what meets a pixel outside, and there it is not counted (of 3x3 on 4x4 pixels it would be 31 %). GB/s
// counts each operand once, as if caches were perfect. The peaks are measured first: multiply-adds in
// registers, and c = a + b on arrays that fit no cache; of cpu-bf16, products of blocks from the first
// cache. "of peak" is the larger of the two shares.
// A device that does several operations at once (fusions in device.h) has kernels that are not measured here
// by themselves: of these, whole steps tell.
// On a GPU that cards.h knows, a time below its bound there is an error of measurement, and a failure.
//
// Whole steps. Ours and PyTorch's run in processes of their own (workers) that answer "train 3" or
// "eval 3" with the seconds it took, on the clock and of the processors. They are asked in turn, so
// that both see the same machine, and each round gives one ratio of each: the clock's is what
// counts; the processors' is less disturbed by other programs. PyTorch trains and tests in a process each,
// with the setting that was fastest at that (torch_bench.py). The threads of both sleep while they
// wait (OMP_WAIT_POLICY=passive, set by make): spinning threads are a little faster on an idle
// machine and ten times slower on a busy one. Peak memory is the largest resident size of the process that
// trains, PyTorch's libraries included; ours tests as well.
#define _GNU_SOURCE // pipe2, in worker.h
#include "cards.h"
#include "cpu/conv.h"
#include "network.h"
#include "peaks.h"
#include "worker.h"

#include <math.h>
#include <omp.h>
#include <signal.h>
#include <string.h>

enum { BATCH = 128, IMAGES = 1024, ROUNDS = 7 };

static FILE *json;
static const device *d;
static const card *gpu; // that is measured; NULL: none, or not in cards.h
static int below_bound; // operations that seem to have been faster than can be

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, by_value);
  return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

// -- A network with a batch in it ------------------------------------------------------------------

typedef struct {
  network n;
  uint8_t *images, *labels;
  sample *samples;
  step_values *step;
  step_result *result;
  recording *recorded[2]; // of testing, of training
} bench;

static void *on_device(const void *host, size_t bytes) {
  void *memory = d->allocate(bytes);
  d->upload(memory, host, bytes);
  return memory;
}

static void bench_open(bench *b, int width) {
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

static void bench_close(bench *b) {
  void *const arrays[] = {b->images, b->labels, b->samples, b->step, b->result};
  for (int i = 0; i < 2; i++)
    if (b->recorded[i]) d->recorder->forget(b->recorded[i]);
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) d->release(arrays[i]);
  network_free(&b->n);
}

static void mix(bench *b) {
  d->mix_images(BATCH, b->n.input, b->images, b->samples, b->step);
}

static void loss(bench *b) {
  d->cross_entropy(BATCH, 0.1f, b->n.dlogits, b->result, b->n.logits, b->labels, b->samples,
                   b->step);
}

static void update(bench *b) {
  d->sgd_update(&b->n.parameters, b->step, 0.9f, 2e-4f);
}

static void training_operations(void *b) {
  mix(b);
  network_forward(&((bench *)b)->n, BATCH, true);
  loss(b);
  network_backward(&((bench *)b)->n);
  update(b);
}

static void testing_operations(void *b) {
  mix(b);
  network_forward(&((bench *)b)->n, BATCH, false);
  loss(b);
}

// As the trainer does it: recorded the first time, where the device records (run/set_up.c).
static void step(bench *b, bool training) {
  void (*operations)(void *) = training ? training_operations : testing_operations;
  if (!d->recorder) {
    operations(b);
    return;
  }
  if (!b->recorded[training]) b->recorded[training] = d->recorder->record(operations, b);
  d->recorder->replay(b->recorded[training]);
}

static void wait_for_device(bench *b) {
  step_result result;
  d->download(&result, b->result, sizeof result);
}

static double peak_flops; // GFLOP/s, of this machine's processor or GPU; 0 for an unknown GPU
static double peak_bytes; // GB/s

// -- Operations --------------------------------------------------------------------------------------

typedef enum {
  CONV_FORWARD,
  CONV_INPUT,
  CONV_WEIGHT,
  CONV_NORM_INFERENCE,
  NORM_FORWARD,
  NORM_BACKWARD,
  NORM_INFERENCE,
  MIX,
  LOSS,
  UPDATE
} operation;

static const char *const names[] = {
    "conv_forward",  "conv_backward_input", "conv_backward_weight", "conv_norm_inference",
    "norm_forward",  "norm_backward",       "norm_inference",       "mix_images",
    "cross_entropy", "sgd_update",
};

static void run(bench *b, operation o, unit *u) {
  const parameters *p = &b->n.parameters;
  real *dw = u ? p->gradient + p->list[u->weight].offset : NULL;
  real *dgamma = u ? p->gradient + p->list[u->gamma].offset : NULL;
  real *dbeta = u ? p->gradient + p->list[u->beta].offset : NULL;
  const real *gamma = u ? p->weight + p->list[u->gamma].offset : NULL;
  const real *beta = u ? p->weight + p->list[u->beta].offset : NULL;
  real *mean = u ? b->n.statistics + b->n.statistics_list[u->running_mean].offset : NULL;
  real *variance = u ? b->n.statistics + b->n.statistics_list[u->running_var].offset : NULL;
  const size_t element = d->rounded_weight_bytes ? d->rounded_weight_bytes : sizeof(real);
  const void *w = u ? (char *)p->rounded_weight + p->list[u->weight].offset * element : NULL;
  void *const g[] = {b->n.gradient[0].data, b->n.gradient[1].data};
  const conv_shape *s = u ? &u->shape : NULL;
  const norm_shape norm = {u ? s->batch * s->out_height * s->out_width : 0, u ? s->out_channels : 0,
                           BATCH};
  if (o == CONV_FORWARD) d->conv_forward(s, u->z, u->x, w, u->sums);
  if (o == CONV_INPUT) d->conv_backward_input(s, g[0], g[1], w, false);
  if (o == CONV_WEIGHT) d->conv_backward_weight(s, dw, g[1], u->x);
  if (o == CONV_NORM_INFERENCE)
    d->conv_norm_inference(s, u->y, u->x, w, gamma, beta, g[0], true, mean, variance);
  if (o == NORM_FORWARD)
    d->norm_forward(&norm, u->y, u->z, u->sums, gamma, beta, g[0], true, mean, variance,
                    u->saved_mean, u->saved_inverse_std);
  if (o == NORM_BACKWARD)
    d->norm_backward(&norm, g[0], g[1], dgamma, dbeta, g[1], u->y, u->z, gamma, u->saved_mean,
                     u->saved_inverse_std, true);
  if (o == NORM_INFERENCE)
    d->norm_inference(&norm, u->y, u->z, gamma, beta, g[0], true, mean, variance);
  if (o == MIX) mix(b);
  if (o == LOSS) loss(b);
  if (o == UPDATE) update(b);
}

// Of the taps of a convolution's pixels, the share that meets a pixel inside the image. Rows and columns are
// alike.
static double share_inside(const conv_shape *s) {
  int inside = 0;
  for (int out = 0; out < s->out_height; out++)
    for (int tap = 0; tap < s->kernel; tap++) {
      const int in = out * s->stride + tap - s->kernel / 2;
      inside += in >= 0 && in < s->in_height;
    }
  const double share = (double)inside / (s->out_height * s->kernel);
  return share * share;
}

// Floating-point operations, as if done directly, and bytes, each operand once.
static void count_work(const bench *b, operation o, const unit *u, double *flops, double *bytes) {
  const double parameters = (double)b->n.parameters.count, activation = (double)d->activation_bytes;
  *flops = *bytes = 0;
  if (u) {
    const conv_shape *s = &u->shape;
    const double x = (double)s->batch * s->in_height * s->in_width * s->in_channels;
    const double y = (double)s->batch * s->out_height * s->out_width * s->out_channels;
    const double filter = (double)s->kernel * s->kernel * s->in_channels;
    const double taps = strcmp(d->name, "cpu-bf16") ? 1 : share_inside(s); // that it does
    if (o <= CONV_NORM_INFERENCE) *flops = 2 * y * filter * taps, *bytes = (x + y) * activation;
    const double element =
        d->rounded_weight_bytes && o != CONV_WEIGHT ? d->rounded_weight_bytes : sizeof(real);
    if (o <= CONV_NORM_INFERENCE) *bytes += filter * s->out_channels * element;
    if (o == CONV_NORM_INFERENCE) *bytes += y * activation;
    if (o == NORM_FORWARD || o == NORM_INFERENCE) *bytes = 3 * y * activation;
    if (o == NORM_BACKWARD) *bytes = 5 * y * activation;
  }
  if (o == MIX) *bytes = BATCH * IMAGE_BYTES * (2 + activation);
  if (o == UPDATE) *bytes = parameters * (5 * sizeof(real) + d->rounded_weight_bytes);
}

typedef struct {
  bench *b;
  operation o;
  unit *u;
  int calls;
} repeated;

static void run_calls(void *of) {
  const repeated *r = of;
  for (int call = 0; call < r->calls; call++) run(r->b, r->o, r->u);
}

// Seconds of one call among several, which are replayed where the device records: a GPU does a small operation
// faster than the host can ask for it.
static double time_calls(repeated *r, const recording *recorded) {
  const double start = now();
  if (recorded)
    d->recorder->replay(recorded);
  else
    run_calls(r);
  wait_for_device(r->b);
  return (now() - start) / r->calls;
}

static double seconds_of(bench *b, operation o, unit *u) {
  repeated r = {b, o, u, 1};
  time_calls(&r, NULL); // loads a kernel, which takes longer than it does
  r.calls = (int)fmax(1, fmin(100, 0.02 / time_calls(&r, NULL)));
  recording *recorded = d->recorder ? d->recorder->record(run_calls, &r) : NULL;
  double least = INFINITY;
  time_calls(&r, recorded); // the first replay does not count either
  for (int i = 0; i < 7; i++) least = fmin(least, time_calls(&r, recorded));
  if (recorded) d->recorder->forget(recorded);
  return least;
}

static void report_operation(bench *b, operation o, unit *u, int times, double *total) {
  char shape[64] = "";
  double flops, bytes;
  const double took = seconds_of(b, o, u);
  count_work(b, o, u, &flops, &bytes);
  if (u && o <= CONV_NORM_INFERENCE)
    snprintf(shape, sizeof shape, "%dx%d/%d %dx%dx%d -> %d", u->shape.kernel, u->shape.kernel,
             u->shape.stride, u->shape.in_height, u->shape.in_width, u->shape.in_channels,
             u->shape.out_channels);
  else if (u)
    snprintf(shape, sizeof shape, "%dx%dx%d", u->shape.out_height, u->shape.out_width,
             u->shape.out_channels);
  const double gflops = 1e-9 * flops / took, gbytes = 1e-9 * bytes / took;
  double share = 0;
  if (peak_flops > 0) share = 100 * fmax(gflops / peak_flops, gbytes / peak_bytes);
  const double bound = gpu ? bound_of(gpu, flops, surely_moved(gpu, bytes)) : 0;
  below_bound += took < bound;
  printf("%-21s %-21s %3d x %8.3f ms %8.0f %8.1f %6.0f %%%s\n", names[o], shape, times, 1e3 * took,
         gflops, gbytes, share, took < bound ? "  below the bound: measured wrongly" : "");
  fprintf(json,
          "%s\n    {\"operation\": \"%s\", \"shape\": \"%s\", \"times\": %d, \"ms\": %.4f, "
          "\"gflops\": %.1f, \"gbytes\": %.2f, \"share\": %.1f}",
          *total > 0 ? "," : "", names[o], shape, times, 1e3 * took, gflops, gbytes, share);
  if (o != NORM_INFERENCE && o != CONV_NORM_INFERENCE) *total += took * times; // in training
}

static void report_operations(int width) {
  bench b;
  double total = 0;
  bench_open(&b, width);
  step(&b, true);
  step(&b, false); // stores all activations; zeroes in fresh memory would be multiplied faster
  printf("\nwidth %d, batch %d\n%-21s %-21s %14s %12s %8s %8s\n", width, BATCH, "operation",
         "shape", "in a step", "GFLOP/s", "GB/s", "of peak");
  fprintf(json, "  \"operations_width_%d\": [", width);
  for (operation o = CONV_FORWARD; o <= NORM_INFERENCE; o++)
    for (int i = 0; i < UNITS; i++) {
      unit *u = &b.n.units[i];
      const conv_shape *s = &u->shape;
      int times = 0;
      bool seen = o == CONV_INPUT && i == 0; // nobody asks for the gradient of the images
      seen |= o == CONV_NORM_INFERENCE && !d->conv_norm_inference;
      for (int j = 0; j < UNITS; j++) {
        const conv_shape *t = &b.n.units[j].shape;
        const bool same = o <= CONV_NORM_INFERENCE ? !memcmp(s, t, sizeof *s)
                                                   : s->out_channels == t->out_channels &&
                                                         s->out_height == t->out_height;
        seen |= same && j < i;
        times += same;
      }
      if (!seen) report_operation(&b, o, u, times, &total);
    }
  for (operation o = MIX; o <= UPDATE; o++) report_operation(&b, o, NULL, 1, &total);
  printf("together %.1f ms a training step, one by one: %.0f images/s%s\n", 1e3 * total,
         BATCH / total, d->fused ? "; a step does several at once" : "");
  fprintf(json, "\n  ],\n");
  bench_close(&b);
}

// -- Whole steps ----------------------------------------------------------------------------------------

// Our side of the conversation.
static void work(int width) {
  bench b;
  char mode[16];
  int steps;
  bench_open(&b, width);
  printf("%s, compiled by %s\n", d->name, __VERSION__);
  fflush(stdout);
  while (scanf("%15s %d", mode, &steps) == 2) {
    const double start = now(), start_cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < steps; i++) step(&b, !strcmp(mode, "train"));
    wait_for_device(&b);
    printf("%.6f %.6f\n", now() - start, read_clock(CLOCK_PROCESS_CPUTIME_ID) - start_cpu);
    fflush(stdout);
  }
  bench_close(&b);
}

// `theirs` without a process: there is no PyTorch.
static void compare(worker *ours, worker *theirs, int width, const char *mode, int steps) {
  const bool alone = !theirs->process;
  double us[ROUNDS], them[ROUNDS], ratio[ROUNDS], cpu[ROUNDS];
  for (int round = -1; round < ROUNDS; round++) { // the first is not counted
    const duration a = ask(ours, mode, steps), b = alone ? a : ask(theirs, mode, steps);
    if (round < 0) continue;
    us[round] = BATCH * steps / a.clock, them[round] = BATCH * steps / b.clock;
    ratio[round] = b.clock / a.clock, cpu[round] = b.cpu / a.cpu;
  }
  const double mine = median(us, ROUNDS), other = alone ? 0 : median(them, ROUNDS);
  const double r = median(ratio, ROUNDS), c = median(cpu, ROUNDS); // which also sorts them
  printf("%5d  %-5s %8.1f", width, mode, mine);
  if (!alone)
    printf(" %8.1f  %5.2f (%.2f to %.2f)  %5.2f (%.2f to %.2f)", other, r, ratio[0],
           ratio[ROUNDS - 1], c, cpu[0], cpu[ROUNDS - 1]);
  printf("\n");
  fflush(stdout);
  fprintf(json,
          "    {\"width\": %d, \"mode\": \"%s\", \"images_per_s\": %.1f, \"pytorch\": %.1f, "
          "\"ratio\": [%.3f, %.3f, %.3f], \"cpu_ratio\": [%.3f, %.3f, %.3f]},\n",
          width, mode, mine, other, ratio[0], r, ratio[ROUNDS - 1], cpu[0], c, cpu[ROUNDS - 1]);
}

// What a worker is called with: --choose, or a setting.
static worker start_pytorch(const char *python, const char *width, const char *const rest[2]) {
  char threads[16];
  snprintf(threads, sizeof threads, "%d", omp_get_max_threads());
  const bool bf16 = !strcmp(d->name, "cuda") || !strcmp(d->name, "cpu-bf16");
  return start_worker((const char *[]){python, "bench/torch_bench.py", "--device",
                                       bf16 ? d->name : "cpu", "--width", width, "--threads",
                                       threads, rest[0], rest[1], NULL});
}

// PyTorch for a mode, with the setting that is fastest there.
static worker start_fastest(const char *python, const char *width, const char *mode) {
  char setting[100];
  worker choice = start_pytorch(python, width, (const char *[]){"--choose", mode});
  snprintf(setting, sizeof setting, "%.90s", choice.name);
  stop_worker(&choice);
  if (!setting[0]) stop("no setting of PyTorch works here; see above");
  worker w = start_pytorch(python, width, (const char *[]){"--setting", setting});
  printf("%5s  %-5s beside %s, %s\n", width, mode, w.name, setting);
  fprintf(json, "    {\"width\": %s, \"mode\": \"%s\", \"setting\": \"%s\"},\n", width, mode,
          setting);
  return w;
}

static void report_steps(const char *self, const char *python, int width, int steps) {
  static const char *const modes[] = {"train", "eval"};
  const bool is_gpu = !strcmp(d->name, "cuda");
  char w[16];
  double theirs_mib = 0;
  snprintf(w, sizeof w, "%d", width);
  worker ours = start_worker((const char *[]){self, "--worker", d->name, w, NULL});
  for (int i = 0; i < 2; i++) {
    worker theirs = {0};
    if (*python) theirs = start_fastest(python, w, modes[i]);
    // A few of a GPU's steps take less time than it takes to wait for the last of them.
    compare(&ours, &theirs, width, modes[i], (is_gpu ? 100 : 1) * steps << i);
    if (!*python) continue;
    if (i == 0) theirs_mib = peak_memory(&theirs);
    stop_worker(&theirs);
  }
  const double mib = peak_memory(&ours);
  stop_worker(&ours);
  printf("%5d  peak memory%s: %.0f MiB", width, is_gpu ? " of the host" : "", mib);
  if (*python) printf(", PyTorch %.0f MiB", theirs_mib);
  printf("\n");
  fprintf(json,
          "    {\"width\": %d, \"mode\": \"memory\", \"mib\": %.0f, \"pytorch_mib\": %.0f}%s\n",
          width, mib, theirs_mib, width == 64 ? "," : "");
}

static void report_roofs(void) {
  double most[ROOFS];
  measure_roofs(most);
  printf("products of blocks (%s), GFLOP/s: %.0f from the first cache, %.0f from the second, %.0f "
         "from "
         "memory\n",
         bf16_multiplier->name, most[0], most[1], most[2]);
  peak_flops = most[0];
}

static void report_machine(void) {
  char line[300] = "", model[200] = "unknown processor", date[40];
  const time_t t = time(NULL);
  FILE *file = fopen("/proc/cpuinfo", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "model name : %199[^\n]", model) == 1) break;
  if (file) fclose(file);
  strftime(date, sizeof date, "%Y-%m-%d", localtime(&t));
  if (strcmp(d->name, "cuda")) peak_flops = measure_flops(), peak_bytes = measure_bytes();
  if (!strcmp(d->name, "cpu-bf16")) report_roofs();
  printf("%s  %s, %d threads; %s; gcc or clang %s\n", date, model, omp_get_max_threads(),
         d->description, __VERSION__);
  printf("this machine's peak: %.0f GFLOP/s, %.1f GB/s\n", peak_flops, peak_bytes);
  fprintf(json,
          "  \"date\": \"%s\", \"machine\": \"%s\", \"threads\": %d, \"device\": \"%s\", "
          "\"compiler\": \"%s\",\n  \"peak_gflops\": %.1f, \"peak_gbytes\": %.2f,\n",
          date, model, omp_get_max_threads(), d->name, __VERSION__, peak_flops, peak_bytes);
}

// bench DEVICE PYTHON JSON, with PYTHON empty where there is no PyTorch
int main(int argc, char **argv) {
  const bool worker = argc == 4 && !strcmp(argv[1], "--worker");
  error e;
  const char *name = argc == 4 ? argv[worker ? 2 : 1] : "";
  if (!device_name_is_known(name)) {
    fprintf(stderr, "usage: bench DEVICE PYTHON JSON; ./train --help lists the devices\n");
    return 2;
  }
  d = device_by_name(name, &e);
  if (!d) stop(e.text);
  if (!strcmp(d->name, "cuda") && (gpu = card_of(d->description)))
    peak_flops = 1e3 * gpu->peak, peak_bytes = gpu->bandwidth;
  if (worker) {
    work(atoi(argv[3]));
    return 0;
  }
  signal(SIGPIPE, SIG_IGN);
  json = fopen(argv[3], "w");
  if (!json) stop("cannot write the JSON file");
  fprintf(json, "{\n");
  printf("batch %d, medians of %d rounds (least to most)\nwidth  steps images/s  PyTorch  ratio"
         "                 ratio of processor time\n",
         BATCH, ROUNDS);
  fprintf(json, "  \"steps\": [\n");
  report_steps(argv[0], argv[2], 64, 1);
  report_steps(argv[0], argv[2], 16, 5);
  fprintf(json, "  ],\n");
  report_machine();
  report_operations(64);
  report_operations(16);
  fprintf(json, "  \"end\": true\n}\n");
  const bool failed = ferror(json);
  if (fclose(json) || failed) stop("cannot write the JSON file");
  if (below_bound) stop("times below the bound are errors of measurement");
  return 0;
}
