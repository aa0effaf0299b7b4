// tests/crash.h - for crash_test.c: the calls of a save, watched. fsync(), rename(), mkdir(), malloc(), calloc()
// and realloc() stand in front of the C library's.
#ifndef CRASH_H
#define CRASH_H

#include "states.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

// -- fsync, rename and mkdir, watched --------------------------------------------------------------

// What happens at one of the calls of a save. SPOIL_THERE, CUT_THERE: a bit of the file that is synced
// turns over, or its last byte goes.
typedef enum { NOTHING, FAIL_THERE, DIE_THERE, DAWDLE, SPOIL_THERE, CUT_THERE } event;

enum { MOST_CALLS = 16 };

static struct {
  event event;
  int at;                       // the call at which it happens, from 1
  int calls;                    // how many there were
  char order[MOST_CALLS + 1];   // what they did, a letter each
  struct stat seen[MOST_CALLS]; // the file or directory that was synced; or where a name was given
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
static bool call(char letter, const struct stat *seen) {
  if (watch.calls < MOST_CALLS) {
    watch.order[watch.calls] = letter;
    watch.seen[watch.calls] = *seen;
  }
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

static bool same_file(const struct stat *a, const struct stat *b) {
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

// 'd': a directory. 'f': a file, of which all bytes so far are then safe.
int fsync(int handle) {
  struct stat status;
  if (fstat(handle, &status) != 0) return -1;
  const bool directory = S_ISDIR(status.st_mode);
  if (!call(directory ? 'd' : 'f', &status)) return -1;
  if (!directory && !damage(handle, status.st_size)) return -1;
  return fdatasync(handle);
}

// The directory that has a name.
static bool find_parent(const char *path, struct stat *status) {
  char parent[4096];
  snprintf(parent, sizeof parent, "%s", path);
  char *slash = strrchr(parent, '/');
  if (slash) slash[slash == parent] = 0;
  return stat(slash ? parent : ".", status) == 0;
}

// Did call i, counted from 0, sync the file, with all the bytes that it has now?
static bool synced_whole(int i, const char *path) {
  struct stat now;
  const struct stat *then = &watch.seen[i];
  return watch.order[i] == 'f' && stat(path, &now) == 0 && same_file(then, &now) &&
         then->st_size == now.st_size;
}

static bool is_safe(const char *path) {
  bool safe = false;
  for (int i = 0; i < MOST_CALLS; i++) safe = safe || synced_whole(i, path);
  return safe;
}

// 'w': the weights get their name. 'r': the resume file does. '?': a file of which a power cut might
// still take bytes, so that the name would stand for a damaged one.
int rename(const char *from, const char *to) {
  struct stat parent;
  if (!find_parent(to, &parent)) return -1;
  if (!call(!is_safe(from) ? '?' : strstr(to, ".resume.") ? 'r' : 'w', &parent)) return -1;
  return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

// 'm': a directory is made. One that is there already is no call.
int mkdir(const char *path, mode_t mode) {
  struct stat parent;
  if (find_parent(path, &parent) && !file_exists(path) && !call('m', &parent)) return -1;
  return mkdirat(AT_FDCWD, path, mode);
}

// Are calls first .. end - 1, but for fsyncs of files, about this directory or names in it?
static bool all_in(const char *directory, int first, int end) {
  struct stat status;
  bool all = stat(directory, &status) == 0;
  for (int i = first; i < end; i++)
    all = all && (watch.order[i] == 'f' || same_file(&watch.seen[i], &status));
  return all;
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
