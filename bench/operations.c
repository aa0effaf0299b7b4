// bench/operations.c - the operations of a training step, one by one, beside what the machine could do at most.
//
// Time is the least of several runs, each of several calls, as the peaks are the most of several. GFLOP/s
// counts a multiplication and an addition for each weight that meets a pixel inside or outside the image,
// as if convolution were done directly: Winograd's method can be above the machine's peak. cpu-bf16 leaves
// out what meets a pixel outside, and there it is not counted (of 3x3 on 4x4 pixels it would be 31 %). GB/s
// counts each operand once, as if caches were perfect. The peaks are measured first: multiply-adds in
// registers, and c = a + b on arrays that fit no cache; of cpu-bf16, products of blocks from the first
// cache. "of peak" is the larger of the two shares.
// A device that does several operations at once (fusions in device.h) has kernels that are not measured here
// by themselves: of these, whole steps tell.
// On a GPU that cards.h knows, a time below nine tenths of its bound there is an error of measurement, and a
// failure. (Its maker's peak is at a clock that the card may exceed while it is cool.)
//
//     make bench
#define _POSIX_C_SOURCE 200809L // the clock, in peaks.h
#include "bench.h"

#include <string.h>

int below_bound;

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
  const double bound = gpu ? 0.9 * bound_of(gpu, flops, surely_moved(gpu, bytes)) : 0;
  below_bound += took < bound;
  printf("%-21s %-21s %3d x %8.3f ms %8.0f %8.1f %6.0f %%%s\n", names[o], shape, times, 1e3 * took,
         gflops, gbytes, share, took < bound ? "  below the bound: measured wrongly" : "");
  fprintf(json,
          "%s\n    {\"operation\": \"%s\", \"shape\": \"%s\", \"times\": %d, \"ms\": %.4f, "
          "\"gflops\": %.1f, \"gbytes\": %.2f, \"share\": %.1f}",
          *total > 0 ? "," : "", names[o], shape, times, 1e3 * took, gflops, gbytes, share);
  if (o != NORM_INFERENCE && o != CONV_NORM_INFERENCE) *total += took * times; // in training
}

void report_operations(int width) {
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
