// course/ladder/ladder.c - runs the rungs of the ladder, holds each against the reference, and
// prints what each costs: `make ladder`. ladder.h says what the rungs are.
//
// A rung's *rows* are shapes on which its result has to be the reference's, element by element. The
// tolerance is tests/kernels_test.c's, which derives it: half the distance between bf16 numbers at
// the result, and (9 K + 64 sqrt(K)) 2^-24 R for a sum of K products, R the root of the sum of
// their squares.
//
// On the simulator the costs are counts, for each result of a 1x1 convolution of 256 pixels, 128 to
// 128 channels: sectors of 32 bytes to and from global memory; turns of shared memory (wavefronts),
// and how few it could be; and for each thousand results the mma instructions. On a GPU they are
// times of 64 images of 32x32 pixels, 256 to 256 channels, the mean of 20 launches.
#include "ladder.h"

#include "reference/reference.h"
#include "run/report.h"
#include "tests/inputs.h"

extern bool simt_counting; // simt/simt.h

#ifndef HAVE_CUDA
#define cuda_ladder() NULL // nor is there a device of that name
#endif

enum { ROWS = 5 };
static conv_shape rows[ROWS];

static void make_rows(void) {
  rows[0] = make_conv_shape(4, 8, 8, 128, 128, 1, 1); // whole tiles: the costs are counted here
  rows[1] = make_conv_shape(3, 5, 7, 96, 72, 1, 1);   // ragged ones
  rows[2] = make_conv_shape(1, 1, 1, 32, 8, 1, 1);    // less than one
  rows[3] = make_conv_shape(2, 7, 9, 32, 40, 3, 1);
  rows[4] = make_conv_shape(1, 9, 6, 64, 72, 3, 2);
}

static size_t in_count(const conv_shape *s) {
  return (size_t)s->batch * (size_t)s->in_height * (size_t)s->in_width * (size_t)s->in_channels;
}
static size_t filter_count(const conv_shape *s) {
  return (size_t)s->out_channels * (size_t)(s->kernel * s->kernel) * (size_t)s->in_channels;
}
static size_t out_count(const conv_shape *s) {
  return (size_t)s->batch * (size_t)s->out_height * (size_t)s->out_width * (size_t)s->out_channels;
}

// -- Held against the reference -------------------------------------------------------------------

typedef struct {
  real *x, *w, *expected, *r_squared;
} problem;

static real *bf16_numbers(size_t count) {
  real *values = normals(count, 0, 1);
  for (size_t i = 0; i < count; i++) values[i] = to_nearest_bf16(values[i]);
  return values;
}

static real *squares(const real *values, size_t count) {
  real *result = take(count * sizeof *result);
  for (size_t i = 0; i < count; i++) result[i] = values[i] * values[i];
  return result;
}

static problem make_problem(const conv_shape *s) {
  problem p = {bf16_numbers(in_count(s)), bf16_numbers(filter_count(s)), poison(out_count(s)),
               poison(out_count(s))};
  reference_conv_forward(s, p.expected, p.x, p.w, NULL);
  reference_conv_forward(s, p.r_squared, squares(p.x, in_count(s)), squares(p.w, filter_count(s)),
                         NULL);
  return p;
}

static void *upload(const device *d, const real *values, size_t count) {
  void *there = d->allocate(count * d->activation_bytes);
  d->upload_activations(there, values, in_a_line(count));
  return there;
}

// The largest error, as a multiple of what it may be there.
static double worst_error(const conv_shape *s, const problem *p, const real *z) {
  const double terms = s->kernel * s->kernel * s->in_channels, unit = 0x1p-24;
  double worst = 0;
  for (size_t i = 0; i < out_count(s); i++) {
    const double slack = (9 * terms + 64 * sqrt(terms)) * unit * sqrt((double)p->r_squared[i]);
    const double size = fabs((double)p->expected[i]) + slack;
    int exponent = -125; // size < 2^exponent: neighbours are 2^(exponent - 8) apart
    if (size >= 0x1p-126) frexp(size, &exponent);
    worst = larger(worst,
                   fabs((double)z[i] - (double)p->expected[i]) / (slack + ldexp(1, exponent - 9)));
  }
  return worst;
}

// One row. NaN before, so that a result left out is one still.
static bool run_row(const device *d, const rung *r, const conv_shape *s, const problem *p) {
  const size_t count = out_count(s);
  real *z = poison(count);
  void *x = upload(d, p->x, in_count(s)), *w = upload(d, p->w, filter_count(s));
  void *result = upload(d, z, count);
  r->run(s, result, x, w);
  d->download_activations(z, result, in_a_line(count));
  d->release(x);
  d->release(w);
  d->release(result);
  const double worst = worst_error(s, p, z);
  if (worst <= 1) return true;
  printf("FAIL %s on %s: %dx%d/%d %dx%dx%dx%d -> %d: %.3g times the tolerance\n", r->name, d->name,
         s->kernel, s->kernel, s->stride, s->batch, s->in_height, s->in_width, s->in_channels,
         s->out_channels, worst);
  return false;
}

// -- What it costs --------------------------------------------------------------------------------

// Of the first row, for each result. From rung 4 on nothing in shared memory may collide.
static void print_counts(const rung *r, const ladder_cost *before, const ladder_cost *after,
                         bool no_conflicts) {
  const double results = (double)out_count(&rows[0]);
  const double wavefronts = (double)(after->wavefronts - before->wavefronts) / results;
  const double least = (double)(after->least - before->least) / results;
  printf("%-14s  %10.3f  %10.3f  %7.3f  %14.1f\n", r->name,
         (double)(after->sectors - before->sectors) / results, wavefronts, least,
         1000 * (double)(after->products - before->products) / results);
  if (no_conflicts) checks_passed += wavefronts == least, checks_failed += wavefronts != least;
  if (no_conflicts && wavefronts != least)
    printf("FAIL %s: pieces lie in the same banks of shared memory\n", r->name);
}

// Milliseconds of one launch. Of zeroes it would be less: they take less power, and the clock can be higher (Horace
// He, "Strangely, Matrix Multiplications on GPUs Run Faster When Given 'Predictable' Data!", 2024).
static double time_of(const device *d, const rung *r) {
  enum { LAUNCHES = 20 };
  const conv_shape s = make_conv_shape(64, 32, 32, 256, 256, 1, 1);
  real one;
  void *x = upload(d, bf16_numbers(in_count(&s)), in_count(&s));
  void *w = upload(d, bf16_numbers(filter_count(&s)), filter_count(&s));
  void *z = d->allocate(out_count(&s) * d->activation_bytes);
  double begun = 0;
  for (int i = -2; i < LAUNCHES; i++) {                         // the first two warm up
    if (i <= 0) d->download_activations(&one, z, in_a_line(1)); // waits
    if (i == 0) begun = clock_seconds();
    r->run(&s, z, x, w);
  }
  d->download_activations(&one, z, in_a_line(1));
  const double seconds = clock_seconds() - begun;
  d->release(x);
  d->release(w);
  d->release(z);
  return 1000 * seconds / LAUNCHES;
}

// -- The table ------------------------------------------------------------------------------------

// Runs a rung's rows and prints how many are right. before and after: the counts around the first.
static void run_rows(const device *d, const rung *r, const problem problems[ROWS],
                     ladder_cost *before, ladder_cost *after) {
  const bool simulated = !strcmp(d->name, "simt");
  int passed = 0, all = 0;
  for (int i = 0; i < ROWS; i++) {
    if (rows[i].kernel > 1 && !r->convolves) continue;
    simt_counting = simulated && i == 0;
    if (simt_counting) *before = simt_ladder_cost(r->kernel);
    passed += run_row(d, r, &rows[i], &problems[i]);
    if (simt_counting) *after = simt_ladder_cost(r->kernel);
    all++;
  }
  checks_passed += passed, checks_failed += all - passed;
  printf("%d of %d  ", passed, all);
}

static void climb_simulated(const device *d, const rung *ladder, const problem problems[ROWS]) {
  printf("%-6s  %-14s  %10s  %10s  %7s  %14s\n", "right", "simulated", "sectors", "wavefronts",
         "least", "mma a thousand");
  for (int i = 0; i < RUNGS; i++) {
    ladder_cost before = {0}, after = {0};
    run_rows(d, &ladder[i], problems, &before, &after);
    print_counts(&ladder[i], &before, &after, i >= 3);
  }
}

static void climb_gpu(const device *d, const rung *ladder, const problem problems[ROWS]) {
  const double last = time_of(d, &ladder[RUNGS - 1]);
  printf("%-6s  %-14s  %10s  %12s\n", "right", "GPU", "ms", "of the last's");
  for (int i = 0; i < RUNGS; i++) {
    ladder_cost unused;
    run_rows(d, &ladder[i], problems, &unused, &unused);
    const double time = time_of(d, &ladder[i]);
    printf("%-14s  %10.3f  %10.2f x\n", ladder[i].name, time, time / last);
  }
}

int main(void) {
  problem problems[ROWS];
  error e;
  stream = random_open(check_seed("ladder"), RANDOM_TEST, 0, 0);
  make_rows();
  for (int i = 0; i < ROWS; i++) problems[i] = make_problem(&rows[i]);
  climb_simulated(device_by_name("simt", &e), simt_ladder(), problems);
  const device *gpu = device_by_name("cuda", &e);
  if (gpu && gpu->fused)
    climb_gpu(gpu, cuda_ladder(), problems);
  else if (gpu)
    printf("not climbed on this GPU: rungs 3 to 6 take sm_80 or newer\n");
  release();
  return check_summary();
}
