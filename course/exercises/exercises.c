// course/exercises/exercises.c - checks an exercise: `make exercise N=..` calls it.
//
//     exercises list                    the ten: number, file, title
//     exercises N yours|ours [cuda]     checks exercise N, the student's file or our solution
//
// Inputs are random, but the same each time, so that a report can be compared with the one before;
// SEED=N in the environment draws others.
//
// An exercise has up to four tasks, a *row* each (tasks.h). On the simulator every row runs twice,
// once with the last warp and lane first, and has to give the same bits. Each access to
// memory is watched: a race, or a read beyond the end, stops the program with a line that names it.
// The first row's costs are counted, beside those of our solution and of the program's own kernel
// where there is one; some exercises have a limit there. Exit status 0: everything is right.
#include "course/exercises/exercises.h"

#include "course/exercises/tasks.h"

extern bool simt_counting, simt_reversed; // simt/simt.h

#ifndef HAVE_CUDA
#define cuda_exercises() NULL // nor is there a device of that name
#endif

// -- The program's own kernels ---------------------------------------------------------------------

static void own_mix(const device *d, const task *t) {
  d->mix_images(t->rows, t->out[0], t->in[0], t->in[1], t->in[2]);
}

static void own_loss(const device *d, const task *t) {
  step_result *results = d->allocate(sizeof *results);
  d->cross_entropy(t->rows, t->smoothing, t->out[0], results, t->in[0], t->in[1], t->in[2],
                   t->in[3]);
  d->release(results);
}

static void own_norm(const device *d, const task *t) {
  const norm_shape s = {t->rows, t->columns, 1};
  void *dz = d->allocate((size_t)(s.pixels * s.channels) * d->activation_bytes);
  d->norm_backward(&s, dz, NULL, t->out[0], t->out[1], t->in[0], t->in[1], t->in[2], t->in[3],
                   t->in[3], t->in[4], true);
  d->release(dz);
}

static void own_sgd(const device *d, const task *t) {
  const parameters p = {.count = (size_t)t->rows,
                        .weight = t->out[0],
                        .gradient = (real *)t->in[0],
                        .momentum = t->out[1],
                        .rounded_weight = t->out[2]};
  d->sgd_update(&p, t->in[1], t->momentum, t->weight_decay);
}

static void own_stride(const device *d, const task *t) {
  d->conv_backward_input(&t->conv, t->out[0], t->in[0], t->in[1], false);
}

// The one that run_own runs, so that it can be counted as a student's is.
static void (*own)(const device *d, const task *t);
static const device *own_device;

static void run_own(const task *t) {
  own(own_device, t);
}

// -- The ten ---------------------------------------------------------------------------------------

enum { ROWS = 4 };

typedef struct {
  const char *file, *title, *kernel; // kernel: the name in its launch
  void (*make)(problem *p, const int size[4]);
  int rows[ROWS][4];                              // a size of 0 first: no row
  double most_sectors, most_requests, most_turns; // for each result; 0: no limit
  bool no_conflicts;
  int copies;        // cp.async of a thread that have to be under way
  int most_accesses; // of one thread; 0: no limit
  void (*own)(const device *d, const task *t);
  const char *own_kernel, *own_file;
} exercise;

static const exercise exercises[EXERCISES] = {
    {.file = "1_mix",
     .title = "a mixed value",
     .kernel = "mix",
     .make = mixed_value,
     .rows = {{1, 0}, {3, 1}, {10, 0}, {2, 2}},
     .own = own_mix,
     .own_kernel = "mix_eight",
     .own_file = "mixup.cu"},
    {.file = "2_loss",
     .title = "the gradient of a smoothed loss",
     .kernel = "loss",
     .make = loss_gradient,
     .rows = {{64, 1}, {37, 1}, {37, 0}, {1, 1}},
     .own = own_loss,
     .own_kernel = "all_images",
     .own_file = "smoothing.cu"},
    {.file = "3_sum",
     .title = "a sum over a warp and a block",
     .kernel = "sum",
     .make = row_sums,
     .rows = {{5, 1024}, {2, 1000}, {3, 70}, {2, 1}},
     .most_turns = 20,
     .most_accesses = 20},
    {.file = "4_norm",
     .title = "dgamma and dbeta",
     .kernel = "norm",
     .make = norm_sums,
     .rows = {{256, 64}, {35, 24}, {5, 40}, {1, 8}},
     .most_sectors = 256 * 7.0 / 32,
     .most_accesses = 200,
     .own = own_norm,
     .own_kernel = "sum_strip",
     .own_file = "resnet18.cu"},
    {.file = "5_sgd",
     .title = "SGD, four weights at a time",
     .kernel = "sgd",
     .make = sgd_step,
     .rows = {{4096}, {1003}, {5}, {1}},
     .most_requests = 0.07,
     .own = own_sgd,
     .own_kernel = "update_four",
     .own_file = "sgd.cu"},
    {.file = "6_tile",
     .title = "a tile in shared memory",
     .kernel = "tile",
     .make = tile_product,
     .rows = {{64, 48, 64}, {17, 33, 40}, {5, 3, 7}, {1, 1, 1}},
     .most_sectors = 1.5},
    {.file = "7_fragments",
     .title = "the fragments of mma",
     .kernel = "fragments",
     .make = mma_product,
     .rows = {{32, 16, 64}, {16, 8, 16}, {21, 24, 48}}},
    {.file = "8_pipeline",
     .title = "wait counts of a cp.async pipeline",
     .kernel = "pipeline",
     .make = smoothed_lines,
     .rows = {{32}, {35}, {2}, {1}},
     .copies = 3},
    {.file = "9_swizzle",
     .title = "a swizzle key without bank conflicts",
     .kernel = "swizzle",
     .make = transposed,
     .rows = {{128, 64}, {72, 40}, {8, 8}},
     .no_conflicts = true},
    {.file = "10_stride",
     .title = "the input gradient of stride 2",
     .kernel = "stride",
     .make = stride_two,
     .rows = {{8, 8, 16, 32}, {5, 7, 8, 16}, {6, 9, 3, 5}, {1, 1, 8, 8}},
     .own = own_stride,
     .own_kernel = "gather_tile (input gradient)",
     .own_file = "gpu/gather.h"}};

// -- One row ---------------------------------------------------------------------------------------

static const problem *at_work; // its kernel runs

// A kernel that the simulator stops ends the program; this is its last word.
static void stopped(void) {
  if (at_work) printf("FAIL %s: the simulated GPU stopped it; its line says why\n", at_work->shape);
}

static void *upload_input(const device *d, const input *in) {
  const size_t size = in->format == BYTES    ? 1
                      : in->format == FLOATS ? sizeof(real)
                                             : d->activation_bytes;
  void *there = d->allocate(in->count * size);
  if (in->format == BF16)
    d->upload_activations(there, in->values, in_a_line(in->count));
  else
    d->upload(there, in->values, in->count * size);
  return there;
}

static void upload_output(const device *d, void *there, const output *o) {
  const size_t count = count_of(o);
  const real *before = o->before ? o->before : poison(count);
  if (o->bf16)
    d->upload_activations(there, before, in_a_line(count));
  else
    d->upload(there, before, count * sizeof(real));
}

static real *download_output(const device *d, const void *there, const output *o) {
  real *values = poison(count_of(o));
  if (o->bf16)
    d->download_activations(values, there, in_a_line(count_of(o)));
  else
    d->download(values, there, count_of(o) * sizeof(real));
  return values;
}

static void upload_problem(const device *d, problem *p) {
  for (int i = 0; i < MOST_INPUTS && p->in[i].values; i++) p->t.in[i] = upload_input(d, &p->in[i]);
  for (int i = 0; i < MOST_OUTPUTS && p->out[i].name; i++)
    p->t.out[i] =
        d->allocate(count_of(&p->out[i]) * (p->out[i].bf16 ? d->activation_bytes : sizeof(real)));
}

static void release_problem(const device *d, problem *p) {
  for (int i = 0; i < MOST_INPUTS; i++) d->release((void *)p->t.in[i]);
  for (int i = 0; i < MOST_OUTPUTS; i++) d->release(p->t.out[i]);
}

// Runs the kernel on fresh outputs and leaves what came out in got.
static void run_once(const device *d, const problem *p, run_function *run,
                     real *got[MOST_OUTPUTS]) {
  for (int i = 0; i < MOST_OUTPUTS && p->out[i].name; i++)
    upload_output(d, p->t.out[i], &p->out[i]);
  at_work = p;
  run(&p->t);
  at_work = NULL;
  for (int i = 0; i < MOST_OUTPUTS && p->out[i].name; i++)
    got[i] = download_output(d, p->t.out[i], &p->out[i]);
}

// "dx[1][0][3]", for a message.
static const char *name_of(const output *o, size_t i) {
  static char name[100];
  int index[4], rank = 0, used = snprintf(name, sizeof name, "%s", o->name);
  while (rank < 4 && o->dims[rank]) rank++;
  for (int j = rank; j-- > 0; i /= (size_t)o->dims[j]) index[j] = (int)(i % (size_t)o->dims[j]);
  for (int j = 0; j < rank; j++)
    used += snprintf(name + used, sizeof name - (size_t)used, "[%d]", index[j]);
  return name;
}

static bool is_right(const problem *p, const output *o, const real *got) {
  const size_t count = count_of(o);
  size_t wrong = 0, first = 0;
  for (size_t i = count; i-- > 0;) {
    const double error = fabs((double)got[i] - (double)o->expected[i]);
    if (error <= o->tolerance[i]) continue;
    wrong++;
    first = i;
  }
  if (!wrong) return true;
  printf("FAIL %s: %s is %.7g, expected %.7g, tolerance %.1e; %zu of %zu are wrong\n", p->shape,
         name_of(o, first), (double)got[first], (double)o->expected[first], o->tolerance[first],
         wrong, count);
  return false;
}

static bool same_bits(const problem *p, const output *o, const real *a, const real *b) {
  for (size_t i = 0; i < count_of(o); i++) {
    if (!memcmp(&a[i], &b[i], sizeof *a)) continue;
    printf("FAIL %s: %s is %.9g, but %.9g when warps and lanes run in reverse\n", p->shape,
           name_of(o, i), (double)a[i], (double)b[i]);
    return false;
  }
  return true;
}

// -- What it costs ---------------------------------------------------------------------------------

// As run_once. cost, if it is not NULL: what `kernel` costs meanwhile, for each result.
static void run_counted(const device *d, const problem *p, run_function *run, const char *kernel,
                        real *got[MOST_OUTPUTS], exercise_cost *cost) {
  if (!cost) {
    run_once(d, p, run, got);
    return;
  }
  const exercise_cost before = simt_exercise_cost(kernel);
  const double results = (double)count_of(&p->out[0]);
  simt_counting = true;
  run_once(d, p, run, got);
  simt_counting = false;
  *cost = simt_exercise_cost(kernel);
  cost->sectors = (cost->sectors - before.sectors) / results;
  cost->wavefronts = (cost->wavefronts - before.wavefronts) / results;
  cost->least = (cost->least - before.least) / results;
  cost->requests = (cost->requests - before.requests) / results;
  cost->products = (cost->products - before.products) / results;
}

static void print_cost(const char *who, const exercise_cost *c) {
  printf("%-24s %9.3f %11.3f %8.3f %9.3f %15.1f\n", who, c->sectors, c->wavefronts, c->least,
         c->requests, 1000 * c->products);
}

static bool within(const char *what, double cost, double most) {
  if (!most || cost <= most) return true;
  printf("FAIL right, but dear: %.3f %s for each result, at most %.3f are allowed\n", cost, what,
         most);
  return false;
}

static bool cheap_enough(const exercise *e, const exercise_cost *c) {
  bool good = within("sectors", c->sectors, e->most_sectors);
  good &= within("requests", c->requests, e->most_requests);
  good &= within("turns of shared memory", c->wavefronts, e->most_turns);
  if (e->no_conflicts && c->wavefronts != c->least) {
    printf("FAIL right, but bank conflicts: shared memory takes %.2f times the turns it must\n",
           c->wavefronts / c->least);
    good = false;
  }
  if (e->most_accesses && c->accesses > e->most_accesses) {
    printf(
        "FAIL right, but one thread does too much: %d accesses to memory, at most %d are allowed\n",
        c->accesses, e->most_accesses);
    good = false;
  }
  if (c->copies < e->copies) {
    printf("FAIL right, but it waits: at most %d copies of a thread are under way while a line is "
           "used, %d can be\n",
           c->copies, e->copies);
    good = false;
  }
  return good;
}

// Of our solution and of the program's kernel, on the first row.
static void print_other_costs(const exercise *e, const device *d, const problem *p,
                              run_function *ours) {
  real *unused[MOST_OUTPUTS];
  exercise_cost c;
  char who[60];
  run_counted(d, p, ours, e->kernel, unused, &c);
  print_cost("our solution", &c);
  if (!e->own) return;
  own_device = d, own = e->own;
  run_counted(d, p, run_own, e->own_kernel, unused, &c);
  snprintf(who, sizeof who, "%.*s, %s", (int)strcspn(e->own_kernel, " "), e->own_kernel,
           e->own_file);
  print_cost(who, &c);
}

// cost: NULL, or where to put what it costs. simulated: twice, in reverse first. Where a barrier is
// missing, most readers come after the writers then, and the report names both, as a race; forward,
// it would say that nobody has written yet.
static bool row_is_right(const exercise *e, const device *d, const problem *p, run_function *run,
                         bool simulated, exercise_cost *cost) {
  real *got[MOST_OUTPUTS], *again[MOST_OUTPUTS];
  bool right = true;
  simt_reversed = simulated;
  run_counted(d, p, run, e->kernel, got, cost);
  simt_reversed = false;
  for (int i = 0; i < MOST_OUTPUTS && p->out[i].name; i++) right &= is_right(p, &p->out[i], got[i]);
  if (!right || !simulated) return right;
  run_once(d, p, run, again);
  for (int i = 0; i < MOST_OUTPUTS && p->out[i].name; i++)
    right &= same_bits(p, &p->out[i], again[i], got[i]);
  return right;
}

// -- An exercise -----------------------------------------------------------------------------------

static bool check_rows(const exercise *e, const device *d, run_function *run, run_function *ours) {
  const bool simulated = !strcmp(d->name, "simt");
  problem p[ROWS];
  exercise_cost cost;
  bool right = true;
  for (int i = 0; i < ROWS && e->rows[i][0]; i++) {
    const int *size = e->rows[i];
    p[i] = (problem){.t = {.rows = size[0], .columns = size[1], .depth = size[2]}};
    e->make(&p[i], size);
    upload_problem(d, &p[i]);
    const bool good = row_is_right(e, d, &p[i], run, simulated, simulated && !i ? &cost : NULL);
    if (good) printf("ok   %s\n", p[i].shape);
    right &= good;
  }
  if (right && simulated) {
    right = cheap_enough(e, &cost);
    printf("%-24s %9s %11s %8s %9s %15s\n", "cost of a result", "sectors", "wavefronts", "least",
           "requests", "mma a thousand");
    print_cost(run == ours ? "our solution" : "yours", &cost);
    if (run != ours) print_other_costs(e, d, &p[0], ours);
  }
  for (int i = 0; i < ROWS && e->rows[i][0]; i++) release_problem(d, &p[i]);
  return right;
}

static int usage(void) {
  fprintf(stderr, "usage: exercises list | exercises N yours|ours [cuda]\n");
  return 2;
}

int main(int argc, char **argv) {
  error e;
  const int n = argc > 1 ? atoi(argv[1]) : 0;
  if (argc == 2 && !strcmp(argv[1], "list")) {
    for (int i = 0; i < EXERCISES; i++)
      printf("%d %s %s\n", i + 1, exercises[i].file, exercises[i].title);
    return 0;
  }
  const bool yours = argc > 2 && !strcmp(argv[2], "yours"), gpu = argc > 3;
  if (n < 1 || n > EXERCISES || argc > 4 || (gpu && strcmp(argv[3], "cuda"))) return usage();
  if (!yours && (argc < 3 || strcmp(argv[2], "ours"))) return usage();
  const device *d = device_by_name(gpu ? "cuda" : "simt", &e);
  const exercise_table *table = gpu ? cuda_exercises() : simt_exercises();
  if (!d || !table) {
    fprintf(stderr, "exercises: %s\n", e.text);
    return 1;
  }
  if (gpu && !d->fused) {
    printf("not checked on this GPU: the exercises take sm_80 or newer\n");
    return 0;
  }
  run_function *run = (yours ? table->yours : table->ours)[n - 1];
  if (!run) {
    fprintf(stderr, "exercises: this file has no run_%d(const task *t)\n", n);
    return 1;
  }
  stream = random_open(getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 1, RANDOM_TEST, 0, 0);
  atexit(stopped);
  const bool right = check_rows(&exercises[n - 1], d, run, table->ours[n - 1]);
  release();
  return !right;
}
