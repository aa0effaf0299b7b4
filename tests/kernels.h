// tests/kernels.h - the machinery of kernels_test.c: arrays on a device between guard zones, the table of
// results, and the processes that share the work. The cases themselves are over there.
//
// Arrays. A case makes arrays on a device with input(), output() and changed(), then calls run(),
// which launches the operation and leaves in each array's `values` what the device then has there.
// Everything lies between guard zones: NaN around inputs, so that a read beyond them shows, and a
// pattern around outputs, so that a write beyond them shows; outputs are NaN before. Activations
// begin at a multiple of 64 bytes, as a device's own `allocate` gives them; weights, gradients and
// the like at a multiple of 8 elements, as in the network's flat arrays (every tensor there has a
// multiple of 8 elements but the last).
//
// Processes. The simulator has one thread, so several processes take cases from one list, in memory
// that they share, and put rows there; the first process prints them in the list's order. A process
// that ends in the middle of a case (the simulator's report, a crash) fails that case, and another
// goes on with the next. A GPU is used from one process, begun for it; at most MOST_GPU_ENDS times.
#ifndef KERNELS_H
#define KERNELS_H

#include "inputs.h"
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern bool simt_reversed; // simt/simt.h: the last warp and lane first

typedef struct {
  const device *of[3];
  int count;
} devices; // plain and fast, and the CPU's in blocks of bf16

static inline bool is_fast_kernel(const device *d) {
  return !strcmp(d->name, "simt") || !strcmp(d->name, "cuda");
}

// SMALL: in the selection `quick`. FOR_TILES: `quick` too, but not for the plain kernels, which have no
// tiles that could be filled in part. LARGE: once on the simulator; all others a second time, reversed.
// IN_BLOCKS: `quick` too, for cpu-bf16 alone.
typedef enum { SMALL, FOR_TILES, IN_BLOCKS, MEDIUM, LARGE } extent;

typedef struct test_case {
  const char *operation; // its name in device.h
  char shape[48];        // in words
  void (*test)(const struct test_case *, const devices *);
  conv_shape conv;
  norm_shape norm;
  int batch, pixels, channels;
  union { // what an operation can be asked for, each by its name
    bool option, with_sums, accumulate, with_residual, with_shortcut, with_dlogits, with_momentum;
  };
  union {
    bool relu, smoothed, usual_decay, y_given;
  };
  union {
    int alias, lambda; // norm_backward: which arrays are one; make_step's numbers
    enum {
      AS_IT_IS,
      NORM,
      NORM_AND_RELU
    } added_norm; // norm_apply: the residual is given as a z with this norm
  };
  extent size;
} test_case;

// -- The table ------------------------------------------------------------------------------------

enum { MAX_CASES = 1600, CASE_ROWS = 30, MOST_GPU_ENDS = 5, SIMULATED = 0, ON_GPU = 1 };

typedef struct {
  const char *operation, *device;
  char text[120];
  double error, tolerance;
} row;

typedef struct {
  pid_t process;      // that works on it; 0: not begun, or done
  const char *device; // and for which device
  int rows;
  row row[CASE_ROWS];
} case_rows;

typedef struct {
  atomic_int next; // the case to be taken next
  char no_gpu[200];
  case_rows of[MAX_CASES];
} rows_of_a_kind;

static rows_of_a_kind *results; // [2]: SIMULATED, ON_GPU; memory shared by all processes
static int kind;                // which of them this process works for
static test_case cases[MAX_CASES];
static int case_count;

// error 0 and tolerance 0: exactly so.
static inline void add_row(const test_case *c, const char *device_name, const char *what,
                           double error, double tolerance) {
  case_rows *all = &results[kind].of[c - cases];
  if (all->rows == CASE_ROWS) abort();
  row *r = &all->row[all->rows++];
  r->operation = c->operation;
  r->device = device_name;
  r->error = error;
  r->tolerance = tolerance;
  char described[80];
  snprintf(described, sizeof described, "%s%s%s", c->shape, *what ? ", " : "", what);
  snprintf(r->text, sizeof r->text, "%-20s %-52s %-10s", c->operation, described, device_name);
}

// -- Arrays on a device ---------------------------------------------------------------------------

typedef enum { ACTIVATIONS, WEIGHTS, REALS, BYTES } format; // WEIGHTS: what convolutions read

typedef struct {
  const device *device;
  format format;
  bool is_output;
  activation_shape shape;     // of ACTIVATIONS; of others, all elements in a line
  size_t count, bytes, guard; // elements; bytes; bytes before and as many behind
  uint8_t *memory;            // the device's, guards included
  void *data;                 // in it, behind the first guard
  uint8_t *before, *after;    // the host's copies of all of it
  real *values;               // after run(), as floats; not for BYTES
} array;

enum { MAX_ARRAYS = 32, PATTERN = 0xA5 };
static array arrays[MAX_ARRAYS];
static int array_count;
static array *x, *w, *y, *dy, *dx, *dw, *sums; // those of the case at work that many cases have
static bool unguarded; // from the command line: so the simulator's watch sees the first byte beyond

static inline size_t element_bytes(const device *d, format f) {
  const size_t of_weight = d->rounded_weight_bytes ? d->rounded_weight_bytes : sizeof(real);
  return f == BYTES     ? 1
         : f == REALS   ? sizeof(real)
         : f == WEIGHTS ? of_weight
                        : d->activation_bytes;
}

// WEIGHTS that are rounded have the format of activations, WEIGHTS that are not that of REALS.
static inline bool is_converted(const device *d, format f) {
  return f == ACTIVATIONS || (f == WEIGHTS && d->rounded_weight_bytes);
}

static inline size_t guard_bytes(const device *d, format f) {
  if (unguarded) return 0;
  return f == WEIGHTS || f == REALS ? 8 * 33 * element_bytes(d, f) : 256;
}

static inline array *new_array(const device *d, format f, activation_shape shape, bool is_output) {
  if (array_count == MAX_ARRAYS) abort();
  array *a = &arrays[array_count++];
  const size_t count = activation_count(shape);
  *a = (array){.device = d, .format = f, .is_output = is_output, .shape = shape, .count = count};
  a->bytes = f == ACTIVATIONS ? activation_size(d, shape) : count * element_bytes(d, f);
  a->guard = guard_bytes(d, f);
  a->memory = d->allocate(a->bytes + 2 * a->guard);
  a->data = a->memory + a->guard;
  a->before = take(a->bytes + 2 * a->guard);
  a->after = take(a->bytes + 2 * a->guard);
  if (f != BYTES) a->values = take(count * sizeof(real));
  memset(a->before, is_output ? PATTERN : 0xff, a->bytes + 2 * a->guard);
  return a;
}

// host: floats, or BYTES; the device's conversion to its own format is checked by a case of its
// own.
static inline array *filled(const device *d, format f, const void *host, activation_shape shape,
                            bool is_output) {
  array *a = new_array(d, f, shape, is_output);
  if (is_converted(d, f))
    d->upload_activations(a->data, host, shape);
  else
    d->upload(a->data, host, a->bytes);
  d->download(a->before + a->guard, a->data, a->bytes);
  return a;
}

static inline array *input(const device *d, format f, const void *host, size_t count) {
  return filled(d, f, host, in_a_line(count), false);
}

static inline array *input_activations(const device *d, const void *host, activation_shape shape) {
  return filled(d, ACTIVATIONS, host, shape, false);
}

// An output that the operation also reads.
static inline array *changed(const device *d, format f, const void *host, size_t count) {
  return filled(d, f, host, in_a_line(count), true);
}

static inline array *changed_activations(const device *d, const void *host,
                                         activation_shape shape) {
  return filled(d, ACTIVATIONS, host, shape, true);
}

static inline array *poisoned(array *a) {
  memset(a->before + a->guard, 0xff, a->bytes); // a NaN in every format
  return a;
}

static inline array *output(const device *d, format f, size_t count) {
  return poisoned(new_array(d, f, in_a_line(count), true));
}

static inline array *output_activations(const device *d, activation_shape shape) {
  return poisoned(new_array(d, ACTIVATIONS, shape, true));
}

static inline void free_arrays(void) {
  while (array_count) {
    array *a = &arrays[--array_count];
    a->device->release(a->memory);
  }
}

typedef void launcher(const test_case *, const device *);

// One launch, from the same contents each time. Whether it wrote only where it may.
static inline bool run_once(const test_case *c, const device *d, launcher *launch, bool compare) {
  bool good = true;
  for (int i = 0; i < array_count; i++)
    d->upload(arrays[i].memory, arrays[i].before, arrays[i].bytes + 2 * arrays[i].guard);
  launch(c, d);
  for (int i = 0; i < array_count; i++) {
    array *a = &arrays[i];
    const size_t all = a->bytes + 2 * a->guard;
    uint8_t *now = compare ? take(all) : a->after;
    d->download(now, a->memory, all);
    if (compare) good &= !memcmp(now, a->after, all);
    good &= !memcmp(now, a->before, a->is_output ? a->guard : all);
    good &= !memcmp(now + a->guard + a->bytes, a->before + a->guard + a->bytes, a->guard);
  }
  return good;
}

// Twice, to the same bits; the second time, on the simulator, with the last warp and lane first.
static inline void run(const test_case *c, const device *d, launcher *launch) {
  results[kind].of[c - cases].device = d->name;
  add_row(c, d->name, "no stray write", !run_once(c, d, launch, false), 0);
  for (int i = 0; i < array_count; i++) {
    array *a = &arrays[i];
    if (is_converted(d, a->format))
      d->download_activations(a->values, a->data, a->shape);
    else if (a->format != BYTES)
      memcpy(a->values, a->after + a->guard, a->bytes);
  }
  if (c->size == LARGE && kind == SIMULATED) return;
  simt_reversed = kind == SIMULATED;
  const bool simulated = !strncmp(d->name, "simt", 4);
  add_row(c, d->name, simulated ? "reversed" : "repeated", !run_once(c, d, launch, true), 0);
  simt_reversed = false;
}

// -- Comparing ------------------------------------------------------------------------------------

// Half the distance between neighbouring numbers of 8 significant bits at |value|: what rounding to
// the nearest bf16 may change.
static inline double half_spacing(double value) {
  int exponent;
  frexp(value, &exponent); // value = f 2^exponent, f in [1/2, 1)
  return ldexp(1, (exponent < -125 ? -125 : exponent) - 9);
}

static inline real *round_all(real *values, size_t count) {
  for (size_t i = 0; i < count; i++) values[i] = to_nearest_bf16(values[i]);
  return values;
}

// bf16 numbers, normally distributed: what a GPU can be handed as it is.
static inline real *bf16_normals(size_t count, double mean, double deviation) {
  return round_all(normals(count, mean, deviation), count);
}

#define EPSILON 0x1p-24 // float's rounding to nearest, relative

// Of a sum of k products, their squares' sum given: kernels_test.c says why.
static inline double sum_slack(double k, double sum_of_squares) {
  return 64 * sqrt(k) * EPSILON * sqrt(sum_of_squares);
}

// `roundings` of 2^-24 each, relative to the values.
static inline double *few_roundings(size_t count, const real *values, double roundings) {
  double *slack = take(count * sizeof *slack);
  for (size_t i = 0; i < count; i++) slack[i] = roundings * EPSILON * fabs((double)values[i]);
  return slack;
}

static inline double *constant(size_t count, double value) {
  double *values = take(count * sizeof *values);
  for (size_t i = 0; i < count; i++) values[i] = value;
  return values;
}

static inline real *squares(const real *values, size_t count) {
  real *result = take(count * sizeof *result);
  for (size_t i = 0; i < count; i++) result[i] = values[i] * values[i];
  return result;
}

// A row for the element with the largest error / tolerance. slack[i]: what the arithmetic before
// the rounding of the result may add up to.
static inline void compare(const test_case *c, const array *out, const char *what,
                           const real *expected, const double *slack) {
  const bool bf16 = element_bytes(out->device, out->format) == 2;
  double worst = -1, worst_error = 0, worst_tolerance = 0;
  for (size_t i = 0; i < out->count; i++) {
    const double size = fabs((double)expected[i]) + slack[i];
    const double tolerance = slack[i] + (bf16 ? half_spacing(size) : 0x1p-24 * size);
    const double error = fabs((double)out->values[i] - expected[i]);
    const double ratio = error == 0 ? 0 : error / tolerance;
    if (isnan(worst) || ratio <= worst) continue;
    worst = ratio; // a NaN comes here too, and stays
    worst_error = error;
    worst_tolerance = tolerance;
  }
  add_row(c, out->device->name, what, worst_error, worst_tolerance);
}

static inline void compare_exactly(const test_case *c, const array *out, const char *what,
                                   const real *expected) {
  size_t wrong = 0;
  for (size_t i = 0; i < out->count; i++) wrong += !(out->values[i] == expected[i]);
  add_row(c, out->device->name, what, (double)wrong, 0);
}

// -- Processes ------------------------------------------------------------------------------------

typedef struct {
  uint64_t seed;
  const char *operation, *device; // what the command line selects; NULL: all
  bool quick, network;            // small shapes only; the network's only, at width 64 and batch 1
} selection;

static inline bool is_gpu(const char *device_name) {
  return !strncmp(device_name, "cuda", 4);
}

static inline bool selected(const selection *s, const test_case *c) {
  const bool of_network = c->size == LARGE || (c->size == MEDIUM && !c->conv.batch);
  return (!s->operation || !strcmp(s->operation, c->operation)) &&
         (!s->quick || c->size <= IN_BLOCKS) && (!s->network || of_network);
}

// The devices of this process's kind; none, with a line in results, where there is no GPU.
static inline devices open_devices(const selection *s) {
  static const char *const names[2][3] = {{"simt-plain", "simt", "cpu-bf16"},
                                          {"cuda-plain", "cuda", NULL}};
  devices found = {.count = 0};
  error e;
  for (int i = 0; i < 3; i++) {
    const char *name = s->device ? s->device : names[kind][i];
    if (!name) continue;
    if (s->device && (i || is_gpu(s->device) != (kind == ON_GPU))) continue;
    found.of[found.count] = device_by_name(name, &e);
    if (found.of[found.count])
      found.count++;
    else
      snprintf(results[kind].no_gpu, sizeof results->no_gpu, "%s", e.text);
  }
  return found;
}

// Those of them on which a case of that size runs.
static inline devices devices_for(extent size, const devices *all) {
  devices chosen = {.count = 0};
  for (int i = 0; i < all->count; i++) {
    const device *d = all->of[i];
    const bool wanted = size == IN_BLOCKS   ? !strcmp(d->name, "cpu-bf16")
                        : size == FOR_TILES ? !strstr(d->name, "plain")
                                            : true;
    if (wanted) chosen.of[chosen.count++] = d;
  }
  return chosen;
}

static inline void work(const selection *s) {
  const devices all = open_devices(s);
  for (int i; all.count && (i = atomic_fetch_add(&results[kind].next, 1)) < case_count;) {
    if (!selected(s, &cases[i])) continue;
    results[kind].of[i].process = getpid();
    stream = random_open(s->seed, RANDOM_TEST, 1, (uint32_t)i);
    const devices on = devices_for(cases[i].size, &all);
    if (on.count) cases[i].test(&cases[i], &on);
    release();
    results[kind].of[i].process = 0;
  }
}

static inline pid_t start_worker(const selection *s, int its_kind) {
  fflush(stdout);
  const pid_t worker = fork();
  if (worker > 0) return worker;
  if (worker < 0) {
    perror("fork");
    exit(1);
  }
  kind = its_kind;
  work(s);
  _exit(0);
}

static inline const char *describe_end(int status) {
  static char text[60];
  snprintf(text, sizeof text, "ended by %s %d", WIFSIGNALED(status) ? "signal" : "exit status",
           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
  return text;
}

// A worker that ended within a case left its number there: the case has failed. False: there is
// none.
static inline bool fail_case_of(pid_t worker, int status) {
  for (kind = SIMULATED; kind <= ON_GPU; kind++)
    for (int i = 0; i < case_count; i++) {
      case_rows *c = &results[kind].of[i];
      if (c->process != worker) continue;
      if (c->rows == CASE_ROWS) c->rows--;
      add_row(&cases[i], c->device ? c->device : "?", describe_end(status), 1, 0);
      c->process = 0;
      return true;
    }
  return false;
}

static inline void run_workers(const selection *s) {
  const int processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
  const int simulators = processors < 1 ? 1 : processors > 8 ? 8 : processors;
  int running = 1 + simulators, status, gpu_ends = 0;
  // What this process does, the simulator counts and reports, and compute-sanitizer watches for certain.
  if (getenv("SIMT_REPORT") || getenv("GPU_SANITIZED")) {
    kind = getenv("SIMT_REPORT") ? SIMULATED : ON_GPU;
    work(s);
    return;
  }
  pid_t worker, gpu_worker = start_worker(s, ON_GPU);
  for (int i = 0; i < simulators; i++) start_worker(s, SIMULATED);
  for (; running && (worker = wait(&status)) > 0; running--) {
    if (status == 0) continue;
    if (!fail_case_of(worker, status)) {
      check(false, "a process %s outside of any case", describe_end(status));
      continue;
    }
    const bool gpu = worker == gpu_worker;
    if (gpu && ++gpu_ends == MOST_GPU_ENDS) { // hundreds of cases, each with a new process
      check(false, "the GPU's process ended %d times: its other cases are left out", gpu_ends);
      continue;
    }
    worker = start_worker(s, gpu ? ON_GPU : SIMULATED);
    if (gpu) gpu_worker = worker;
    running++;
  }
}

static inline void *shared_memory(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) out_of_memory(bytes);
  return memory;
}

// -- The result -----------------------------------------------------------------------------------

typedef struct {
  const char *operation, *device;
  int rows, failed;
  double worst;
} summary;

static inline void count_row(summary *all, int *count, const row *r, bool ok) {
  int i = 0;
  while (i < *count && (strcmp(all[i].operation, r->operation) || strcmp(all[i].device, r->device)))
    i++;
  if (i == *count) all[(*count)++] = (summary){r->operation, r->device, 0, 0, 0};
  all[i].rows++;
  all[i].failed += !ok;
  if (r->tolerance > 0) all[i].worst = larger(all[i].worst, r->error / r->tolerance);
}

// A device may leave an operation out: its entry is NULL, and there are no rows of it. These and no others, or
// an entry that was lost would go unnoticed.
static inline bool is_left_out(const char *device_name, const char *operation) {
  static const char *const of_plain[] = {"conv_norm_inference",  "conv_statistics",
                                         "conv_backward_masked", "block_backward_masked",
                                         "norm_conv_statistics", "norm_conv_backward_weight",
                                         "norm_apply",           "norm_spread"};
  static const char *const of_cpu[] = {"block_backward_masked", "norm_conv_statistics",
                                       "norm_conv_backward_weight"};
  bool found = false;
  for (size_t i = 0; strstr(device_name, "plain") && i < sizeof of_plain / sizeof *of_plain; i++)
    found |= !strcmp(operation, of_plain[i]);
  for (size_t i = 0; !strcmp(device_name, "cpu-bf16") && i < sizeof of_cpu / sizeof *of_cpu; i++)
    found |= !strcmp(operation, of_cpu[i]);
  return found;
}

// Has every device that is always there rows of every operation that it does not leave out?
static inline void check_completeness(const summary *all, int count) {
  static const char *const names[] = {"simt-plain", "simt", "cpu-bf16"};
  for (int d = 0; d < 3; d++) {
    int wrong = 0;
    for (int i = 0; i < case_count; i++) {
      bool has_rows = false;
      for (int j = 0; j < count; j++)
        has_rows |=
            !strcmp(all[j].device, names[d]) && !strcmp(all[j].operation, cases[i].operation);
      wrong += has_rows == is_left_out(names[d], cases[i].operation);
    }
    check(!wrong, "%s: each operation has rows, but for those that it is known to leave out",
          names[d]);
  }
}

// A line a row, then a line for each operation and device.
static inline void print_results(const selection *s) {
  static summary all[100];
  int count = 0;
  for (int k = SIMULATED; k <= ON_GPU; k++)
    for (int i = 0; i < case_count; i++)
      for (int j = 0; j < results[k].of[i].rows; j++) {
        const row *r = &results[k].of[i].row[j];
        count_row(all, &count, r, check_error(r->error, r->tolerance, "%s", r->text));
      }
  printf("%-20s %-10s %6s %6s  %s\n", "operation", "device", "rows", "failed",
         "largest error / tolerance");
  for (int i = 0; i < count; i++)
    printf("%-20s %-10s %6d %6d  %.3f\n", all[i].operation, all[i].device, all[i].rows,
           all[i].failed, all[i].worst);
  if (results[ON_GPU].no_gpu[0]) no_rows_for_cuda(results[ON_GPU].no_gpu);
  if (!count) check(false, "nothing was checked");
  if (!s->operation && !s->device && !s->network) check_completeness(all, count);
}

#endif
