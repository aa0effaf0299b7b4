// tests/crash.h - for crash_test.c: the calls of a save, watched. fsync(), rename(), malloc(), calloc() and
// realloc() stand in front of the C library's.
#ifndef CRASH_H
#define CRASH_H

#include "states.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

// -- fsync and rename, watched -------------------------------------------------------------------

// What happens at one of the calls of a save. SPOIL_THERE, CUT_THERE: a bit of the file that is synced
// turns over, or its last byte goes.
typedef enum { NOTHING, FAIL_THERE, DIE_THERE, DAWDLE, SPOIL_THERE, CUT_THERE } event;

static struct {
  event event;
  int at;         // the call at which it happens, from 1
  int calls;      // how many there were
  char order[16]; // what they did, a letter each
  ino_t synced[8];
  off_t synced_size[8];
  int synced_count;
} watch;

static void watch_for(event what, int at) {
  memset(&watch, 0, sizeof watch);
  watch.event = what;
  watch.at = at;
}

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void sleep_for(double seconds) {
  struct timespec t = {.tv_sec = (time_t)seconds};
  t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
  nanosleep(&t, NULL);
}

// Counts a call; false if it is to fail.
static bool call(char letter) {
  if (watch.calls < (int)sizeof watch.order - 1) watch.order[watch.calls] = letter;
  watch.calls++;
  if (watch.event == DAWDLE) sleep_for(1e-3);
  if (watch.calls != watch.at) return true;
  if (watch.event == DIE_THERE) kill(getpid(), SIGKILL);
  errno = EIO;
  return watch.event != FAIL_THERE;
}

// What a failing disk might make of a file, between its writing and its name.
static bool damage(int handle, off_t size) {
  if (watch.calls != watch.at) return true;
  if (watch.event == CUT_THERE) return ftruncate(handle, size - 1) == 0;
  if (watch.event != SPOIL_THERE) return true;
  const off_t at = random_below(&numbers, (uint32_t)size);
  char path[40], byte; // the handle is only for writing
  snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
  const int reader = open(path, O_RDONLY);
  if (reader < 0) return false;
  const bool known = pread(reader, &byte, 1, at) == 1;
  close(reader);
  if (!known) return false;
  byte ^= 1;
  return pwrite(handle, &byte, 1, at) == 1;
}

// 'd': a directory. 'f': a file, of which all bytes so far are then safe.
int fsync(int handle) {
  struct stat status;
  if (fstat(handle, &status) != 0) return -1;
  const bool directory = S_ISDIR(status.st_mode);
  if (!call(directory ? 'd' : 'f') || (!directory && !damage(handle, status.st_size))) return -1;
  if (watch.synced_count < 8) {
    watch.synced[watch.synced_count] = status.st_ino;
    watch.synced_size[watch.synced_count++] = status.st_size;
  }
  return fdatasync(handle);
}

// 'w': the weights get their name. 'r': the resume file does. '?': a file of which a power cut might
// still take bytes, so that the name would stand for a damaged one.
int rename(const char *from, const char *to) {
  struct stat status;
  bool safe = false;
  if (stat(from, &status) == 0)
    for (int i = 0; i < watch.synced_count; i++)
      safe = safe || (watch.synced[i] == status.st_ino && watch.synced_size[i] == status.st_size);
  if (!call(!safe ? '?' : strstr(to, ".resume.") ? 'r' : 'w')) return -1;
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

// -- Memory, which fails when told to ---------------------------------------------------------------

// The sanitizers have an allocator of their own, so there this part is left out.
#if defined __has_feature
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#endif
#if defined __GLIBC__ && !defined __SANITIZE_ADDRESS__ && !defined SANITIZED
#define OWN_ALLOCATOR

static int allocations_left = -1; // until one fails; negative: none does
static bool no_memory_lasts;      // do all fail after it?

static bool may_allocate(void) {
  if (allocations_left > 0) allocations_left--;
  if (allocations_left != 0) return true;
  if (!no_memory_lasts) allocations_left = -1;
  errno = ENOMEM;
  return false;
}

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);

// From the allocation `at` (1, 2, ..) on, or only there.
static inline void fail_allocation(int at, bool lasting) {
  allocations_left = at;
  no_memory_lasts = lasting;
}

// As before. Did it come to that?
static inline bool fail_no_allocation(void) {
  const bool came = allocations_left <= 0;
  allocations_left = -1;
  return came;
}

void *malloc(size_t bytes) {
  return may_allocate() ? __libc_malloc(bytes) : NULL;
}

void *calloc(size_t count, size_t bytes) {
  return may_allocate() ? __libc_calloc(count, bytes) : NULL;
}

void *realloc(void *memory, size_t bytes) {
  return may_allocate() ? __libc_realloc(memory, bytes) : NULL;
}

#endif

#endif
