// tests/faults_preload.c - what `make faults` preloads into the program that it strikes: see faults.c.
//
// The kernel sees every call that touches a file, but no malloc() that finds room in memory the
// process has already. So each allocation here asks first, by a system call that no kernel has and the
// tracer answers. (OpenMP's library need not ask: without memory it ends the process in its own way, which
// is not ours to change.) The clock stands still, so that a run's files can be compared to the byte: the
// seconds of a log are 0.
#define _GNU_SOURCE
#include "faults.h"

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// glibc's own names for its allocator.
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static bool is_openmp(const void *caller) {
  Dl_info place;
  return dladdr(caller, &place) && place.dli_fname && strstr(place.dli_fname, "omp.so");
}

static bool may_allocate(size_t bytes, const void *caller) {
  return is_openmp(caller) || syscall(FAULTS_ALLOCATION, bytes, caller) == 0;
}

void *malloc(size_t bytes) {
  return may_allocate(bytes, __builtin_return_address(0)) ? __libc_malloc(bytes) : NULL;
}

void *calloc(size_t count, size_t bytes) {
  return may_allocate(count * bytes, __builtin_return_address(0)) ? __libc_calloc(count, bytes)
                                                                  : NULL;
}

void *realloc(void *memory, size_t bytes) {
  return may_allocate(bytes, __builtin_return_address(0)) ? __libc_realloc(memory, bytes) : NULL;
}

void *aligned_alloc(size_t alignment, size_t bytes) {
  return may_allocate(bytes, __builtin_return_address(0)) ? __libc_memalign(alignment, bytes)
                                                          : NULL;
}

int posix_memalign(void **memory, size_t alignment, size_t bytes) {
  if (!may_allocate(bytes, __builtin_return_address(0))) return ENOMEM;
  *memory = __libc_memalign(alignment, bytes);
  return *memory ? 0 : ENOMEM;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  (void)clock;
  *now = (struct timespec){.tv_sec = 1000};
  return 0;
}

// The dynamic loader and the libraries are ready: from here on the calls are the program's.
__attribute__((constructor)) static void begin(void) {
  syscall(FAULTS_BEGIN);
}
