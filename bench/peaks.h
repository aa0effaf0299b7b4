// bench/peaks.h - what this machine's processor and memory can do at most, measured: operations.c holds
// each operation against it.
//
// Multiply-adds on registers alone, on all threads, with more sums than a multiply-add takes cycles to
// end; c = a + b on arrays that fit no cache; for cpu-bf16, products of blocks from the first cache, the
// second and memory, three roofs for the same loop. Each is the best of a few runs: what disturbs a run
// only makes it slower. Here is the clock, too.
#ifndef PEAKS_H
#define PEAKS_H

#include "cpu-bf16/conv.h"
#include "cpu/microkernel.h"
#include "run/error.h"
#include <math.h>
#include <omp.h>
#include <time.h>

static inline double read_clock(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline double now(void) {
  return read_clock(CLOCK_MONOTONIC);
}

// GFLOP/s, a multiply-add counted as two.
static inline double measure_flops(void) {
  enum { REPEATS = 1 << 22, SUMS = 12 };
  double peak = 0;
  for (int run = 0; run < 5; run++) {
    const double start = now();
    float sink = 0;
#pragma omp parallel reduction(+ : sink)
    {
      vector sum[SUMS] = {{0}}, a = {0}, b = {0};
      __asm__ volatile("" : "+m"(a), "+m"(b)); // or the compiler would know the result
      for (int i = 0; i < REPEATS; i++)
#pragma GCC unroll 12
        for (int j = 0; j < SUMS; j++) sum[j] += a * b;
      for (int j = 0; j < SUMS; j++) sink += sum[j][0];
    }
    const double flops = 2.0 * REPEATS * SUMS * LANES * omp_get_max_threads() + sink;
    peak = fmax(peak, 1e-9 * flops / (now() - start));
  }
  return peak;
}

// GFLOP/s of products of blocks (cpu-bf16/product.h): each thread has `pairs` of its own, 4 KB each, and
// takes them again and again, for a fifth of a second.
static inline double measure_products(int pairs) {
  enum { MOST_RUNS = 64, PAIRS_A_CALL = 256 };
  const int runs = pairs < PAIRS_A_CALL ? PAIRS_A_CALL / pairs : 1;
  double rate = 0;
#pragma omp parallel reduction(+ : rate)
  {
    const size_t blocks = 2 * (size_t)pairs + 1;
    bf16 *memory = allocate(blocks * BLOCK * sizeof *memory);
    bf16 *a = memory + (64 - (uintptr_t)memory % 64) / sizeof *memory; // a cache line's beginning
    block_run list[MOST_RUNS];
    float c[BLOCK];
    long products = 0;
    memset(memory, 1, blocks * BLOCK * sizeof *memory); // or all pages would be one, of zeros
    for (int i = 0; i < runs; i++) list[i] = (block_run){a, a + (size_t)pairs * BLOCK, pairs};
    const block_sum sum = {
        .runs = list, .run_count = runs, .b_step = BLOCK, .rows = SIDE, .terms = SIDE};
    bf16_multiplier->open();
    const double start = now();
    for (; now() - start < 0.2; products += runs * pairs) bf16_multiplier->product(c, &sum);
    rate += 1e-9 * (double)products * 2 * SIDE * SIDE * SIDE / (now() - start);
    bf16_multiplier->close();
    free(memory);
  }
  return rate;
}

// From the first cache, the second, and memory: 16 KB, 512 KB and 64 MB for each thread. On a rented
// machine a core may be shared with a stranger's thread, which comes and goes: the most of several goes,
// in turn, is nearest to what it can do.
enum { ROOFS = 3 };

static inline void measure_roofs(double most[ROOFS]) {
  static const int pairs[ROOFS] = {4, 128, 1 << 14};
  enum { GOES = 12 };
  for (int i = 0; i < ROOFS * GOES; i++) {
    const double rate = measure_products(pairs[i % ROOFS]);
    most[i % ROOFS] = i < ROOFS ? rate : fmax(most[i % ROOFS], rate);
  }
}

// GB/s, two arrays read and one written.
static inline double measure_bytes(void) {
  const size_t count = 1 << 25; // 128 MiB each
  float *a = allocate(count * sizeof *a), *b = allocate(count * sizeof *b);
  float *c = allocate(count * sizeof *c);
  double peak = 0;
  for (int run = 0; run < 5; run++) {
    const double start = now();
#pragma omp parallel for simd
    for (size_t i = 0; i < count; i++) c[i] = a[i] + b[i];
    peak = fmax(peak, 3e-9 * (double)(count * sizeof *a) / (now() - start));
  }
  free(a), free(b), free(c);
  return peak;
}

#endif
