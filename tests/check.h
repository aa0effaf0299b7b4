// tests/check.h - all the test framework there is: a line a check, and "N passed, N failed" at the end.
#ifndef CHECK_H
#define CHECK_H

#include "../run/random.h"
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static int checks_passed, checks_failed;

__attribute__((format(printf, 2, 3))) static inline bool check(bool ok, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("%s ", ok ? "ok  " : "FAIL");
  vprintf(format, arguments);
  printf("\n");
  fflush(stdout);
  va_end(arguments);
  if (ok)
    checks_passed++;
  else
    checks_failed++;
  return ok;
}

// `!(error <= tolerance)` fails, so a NaN does.
__attribute__((format(printf, 3, 4))) static inline bool check_error(double error, double tolerance,
                                                                     const char *format, ...) {
  char text[200];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return check(error <= tolerance, "%-60s error %.2e, tolerance %.2e", text, error, tolerance);
}

// A NaN is larger than anything. (fmax would drop it.)
static inline double larger(double a, double b) {
  return a > b || isnan(a) ? a : b;
}

// There are no rows for a GPU: a failure where nvidia-smi names one (the Makefile says so in GPU_EXPECTED).
static inline void no_rows_for_cuda(const char *why) {
  if (getenv("GPU_EXPECTED"))
    check(false, "no rows for cuda, though there is a GPU: %s", why);
  else
    printf("no rows for cuda: %s\n", why);
}

// The last line of a test program and its exit status.
static inline int check_summary(void) {
  printf("%d passed, %d failed\n", checks_passed, checks_failed);
  return checks_failed != 0;
}

// The seed of a test's random inputs: $SEED, or another one each time. It is printed, so that what
// failed can be run again.
static inline uint64_t check_seed(const char *test) {
  uint64_t seed = 0;
  FILE *source = fopen("/dev/urandom", "rb");
  if (source && fread(&seed, 1, 4, source) != 4) seed = 0;
  if (source) fclose(source);
  if (getenv("SEED")) seed = strtoull(getenv("SEED"), NULL, 10);
  printf("%s: SEED=%llu\n", test, (unsigned long long)seed);
  return seed;
}

#endif
