// bench/bench.c - how fast a device is: whole steps beside PyTorch's; then the operations of a step, one by one,
// beside what the machine could do at most.
//
//     make bench                     the `cpu` device; PYTHON=python3: one that can import torch;
//                                    BENCH_DEVICE=cpu-bf16 or cuda: beside PyTorch in bf16
//     build/gcc/bench/bench cpu python3 out.json
//
// Operations are in operations.c. Both work on the network and the batch of bench.h.
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
#include "bench.h"
#include "worker.h"

#include <math.h>
#include <omp.h>
#include <signal.h>

enum { ROUNDS = 7 };

FILE *json;
const device *d;
const card *gpu;
double peak_flops, peak_bytes;

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *values, int count) {
  qsort(values, (size_t)count, sizeof *values, by_value);
  return (values[(count - 1) / 2] + values[count / 2]) / 2;
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
