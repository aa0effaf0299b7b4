// crash_test.c - that no save can cost the last good checkpoint: not a full disk, not a name that is
// taken, not kill -9, not a power cut.
//
// A save comes down to six calls: fsync of the new weights, fsync of the new resume file, a rename
// of each over the old one, and an fsync of the directory behind each rename. This file puts its own
// fsync() and rename() in front of the C library's, so that it can write down their order, fail at
// each in turn, and kill -9 the process at each in turn; then it looks at what a resumed run would
// find: the state before or the state after, to the bit. Since such a test covers only moments that
// its author thought of, it also kills a process that does nothing but save, at random moments.
//
//     make build/gcc/tests/crash_test && build/gcc/tests/crash_test
#define _POSIX_C_SOURCE 200809L
#include "states.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

// -- fsync and rename, watched -------------------------------------------------------------------

// What happens at one of the calls of a save.
typedef enum { NOTHING, FAIL_THERE, DIE_THERE, DAWDLE } event;

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
  return false;
}

// 'd': a directory. 'f': a file, of which all bytes so far are then safe.
int fsync(int handle) {
  struct stat status;
  if (fstat(handle, &status) != 0) return -1;
  if (!call(S_ISDIR(status.st_mode) ? 'd' : 'f')) return -1;
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

// -- What each kind of trouble leaves behind -----------------------------------------------------------

static bool begin_with_a(void) {
  error e = {""};
  watch_for(NOTHING, 0);
  scratch_empty(scratch_directory);
  return save(&a, &e) || check(false, "%s", e.text);
}

static bool nothing_new_left(void) {
  return !file_exists(scratch_path(WEIGHTS ".new")) && !file_exists(scratch_path(RESUME ".new"));
}

// Saves n in a process of its own. True if that came to its end, false if it was killed.
static bool save_in_child(const network *n) {
  int status;
  const pid_t child = fork();
  if (child == 0) {
    error e;
    _exit(!save(n, &e));
  }
  if (child < 0 || waitpid(child, &status, 0) != child) return check(false, "fork");
  return WIFEXITED(status);
}

// Without each of these fsyncs a power cut could keep what came later and lose what came before.
static void test_order(void) {
  error e = {""};
  begin_with_a();
  watch_for(NOTHING, 0);
  check(save(&b, &e) && !strcmp(watch.order, "ffrdwd"),
        "order: both files reach the disk, then the resume file's name, then the weights': %s %s",
        watch.order, e.text);
  check(nothing_new_left(), "and no temporary file is left");
}

// kill -9 at each call. Before the first rename the old state stands; after it, the new one does.
static void test_kill_at_each_call(void) {
  bool done = false;
  for (int at = 1; !done && at <= 20; at++) {
    error e;
    if (!begin_with_a()) return;
    watch_for(DIE_THERE, at);
    done = save_in_child(&b);
    watch_for(NOTHING, 0);
    const char found = state_found(&e), wanted = at <= 3 ? 'a' : 'b';
    check(found == wanted, "killed at call %d: state %c, wanted %c %s", at, found, wanted, e.text);
    check(state_found(&e) == wanted && file_exists(scratch_path(WEIGHTS)),
          "and again the next time, %s in place", WEIGHTS);
    check(save(&a, &e) && state_found(&e) == 'a' && nothing_new_left(),
          "and the next save is like any other %s", e.text);
  }
  check(done, "a save has an end");
}

// The same for the very first save, when there is nothing to fall back to.
static void test_kill_in_first_save(void) {
  bool done = false;
  for (int at = 1; !done && at <= 20; at++) {
    error e;
    watch_for(DIE_THERE, at);
    scratch_empty(scratch_directory);
    done = save_in_child(&b);
    watch_for(NOTHING, 0);
    const char found = state_found(&e), wanted = at <= 3 ? '-' : 'b';
    check(found == wanted, "killed at call %d of the first save: %c, wanted %c %s", at, found,
          wanted, e.text);
  }
}

// An error of the disk at each call.
static void test_failure_at_each_call(void) {
  for (int at = 1; at <= 6; at++) {
    error e;
    begin_with_a();
    watch_for(FAIL_THERE, at);
    const bool ok = save(&b, &e);
    watch_for(NOTHING, 0);
    check_refused(ok, &e, "a save with an error of the disk", scratch_directory, strerror(EIO));
    const char found = state_found(&e), wanted = at <= 3 ? 'a' : 'b';
    check(found == wanted, "at call %d: state %c, wanted %c %s", at, found, wanted, e.text);
    if (at <= 3) check(nothing_new_left(), "and no temporary file is left");
  }
}

// A checkpoint that a crash left between the two renames is set aside whole.
static void test_set_aside_after_crash(void) {
  error e = {""};
  int number = 0;
  begin_with_a();
  watch_for(DIE_THERE, 5);
  save_in_child(&b);
  watch_for(NOTHING, 0);
  check(checkpoint_set_aside(scratch_directory, &number, &e) && number == 1 && save(&a, &e),
        "killed between the renames, set aside, another run saves %s", e.text);
  rename(scratch_path(WEIGHTS ".1"), scratch_path(WEIGHTS));
  rename(scratch_path(RESUME ".1"), scratch_path(RESUME));
  const char found = state_found(&e);
  check(found == 'b', "what was set aside can still be resumed: state %c, wanted b %s", found,
        e.text);
}

// -- Full disks and names that are taken --------------------------------------------------------------

// A save that fails must leave both files as they were, to the byte, and nothing beside them.
static void expect_save_fails(const char *what, const char *phrase, uint64_t weights,
                              uint64_t resume) {
  error e = {""};
  check_refused(save(&b, &e), &e, what, scratch_directory, phrase);
  check(fingerprint_of(WEIGHTS) == weights && fingerprint_of(RESUME) == resume &&
            state_found(&e) == 'a',
        "and the checkpoint is as it was %s", e.text);
}

// As on a disk with room for so many bytes a file.
static void test_file_size_limit(uint64_t weights, uint64_t resume) {
  struct rlimit before, limit;
  struct stat status;
  stat(scratch_path(WEIGHTS), &status);
  const rlim_t sizes[] = {0, 1, 4096, (rlim_t)status.st_size / 2, (rlim_t)status.st_size - 1};
  signal(SIGXFSZ, SIG_IGN);
  getrlimit(RLIMIT_FSIZE, &before);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    error e = {""};
    limit = (struct rlimit){.rlim_cur = sizes[i], .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    const bool ok = save(&b, &e); // nothing may be printed meanwhile: it could not be written
    setrlimit(RLIMIT_FSIZE, &before);
    char what[80];
    snprintf(what, sizeof what, "files limited to %llu bytes", (unsigned long long)sizes[i]);
    check_refused(ok, &e, what, scratch_path(WEIGHTS ".new"), strerror(EFBIG));
    check(fingerprint_of(WEIGHTS) == weights && fingerprint_of(RESUME) == resume &&
              nothing_new_left(),
          "and the checkpoint is as it was, nothing beside it");
  }
}

static void test_full_disk(uint64_t weights, uint64_t resume) {
  const char *const names[] = {WEIGHTS ".new", RESUME ".new"};
  for (int i = 0; i < 2; i++) {
    if (!file_exists("/dev/full") || symlink("/dev/full", scratch_path(names[i])) != 0) {
      printf("skip a full disk: no /dev/full here\n");
      return;
    }
    expect_save_fails(i ? "no room for the resume file" : "no room for the weights",
                      strerror(ENOSPC), weights, resume);
    check(nothing_new_left(), "and nothing is left beside it");
  }
}

static void test_taken_names(uint64_t weights, uint64_t resume) {
  error e;
  mkdir(scratch_path(WEIGHTS ".new"), 0777);
  expect_save_fails("a directory where the new weights go", strerror(EISDIR), weights, resume);
  remove(scratch_path(WEIGHTS ".new"));
  mkdir(scratch_path(RESUME ".new"), 0777);
  expect_save_fails("a directory where the new resume file goes", strerror(EISDIR), weights,
                    resume);
  check(!file_exists(scratch_path(WEIGHTS ".new")), "and the new weights are gone");
  remove(scratch_path(RESUME ".new"));
  scratch_write(scratch_path("file"), "text", 4);
  check_refused(save_in(scratch_path("file"), &b, &e), &e, "a file in the directory's place",
                scratch_path("file"), strerror(ENOTDIR));
  check_refused(save_in(scratch_path("file/below"), &b, &e), &e, "a file above the directory",
                scratch_path("file/below"), strerror(ENOTDIR));
  e.text[0] = 0;
  check(save_in(scratch_path("a/new/one"), &b, &e), "a directory that is not there is made %s",
        e.text);
}

// What a killed save leaves behind is no hindrance.
static void test_leftovers(void) {
  error e = {""};
  begin_with_a();
  scratch_write(scratch_path(WEIGHTS ".new"), "half", 4);
  scratch_write(scratch_path(RESUME ".new"), "half", 4);
  check(state_found(&e) == 'a', "halves of new files beside a checkpoint: it is resumed %s",
        e.text);
  check(save(&b, &e) && state_found(&e) == 'b' && nothing_new_left(), "and saved over %s", e.text);
}

// -- kill -9 at random moments -----------------------------------------------------------------------

// A process that saves b, a, b, a, ... until it is killed, `seconds` after its first save began. That
// it began is read from a pipe, since a busy machine may start it late.
static void save_until_killed(double seconds) {
  int status = 0, ends[2];
  char byte;
  if (pipe(ends) != 0) check(false, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    error e;
    if (write(ends[1], "b", 1) != 1) _exit(1);
    for (int i = 0;; i++)
      if (!save(i % 2 ? &a : &b, &e)) _exit(1);
  }
  close(ends[1]);
  const bool began = read(ends[0], &byte, 1) == 1;
  close(ends[0]);
  sleep_for(seconds);
  if (child < 0 || !began || kill(child, SIGKILL) != 0 || waitpid(child, &status, 0) != child ||
      !WIFSIGNALED(status))
    check(false, "the saving process ended before it was killed");
}

// Each fsync and rename takes a millisecond longer here, so that the moments between them are hit too.
// The process does nothing but save, so nearly every kill comes amid a save; on a machine that gives it
// no time at all before the kill, there are more rounds.
static void test_random_kills(void) {
  enum { ROUNDS = 60, MOST_ROUNDS = 6000 };
  int rounds = 0, of_a = 0, of_b = 0, unfinished = 0, between = 0, broken = 0;
  error e = {""};
  begin_with_a();
  watch_for(DAWDLE, 0);
  const double begun = seconds_now();
  for (int i = 0; i < 4; i++) save(&a, &e);
  const double one_save = (seconds_now() - begun) / 4;
  for (; rounds < ROUNDS || (!unfinished && rounds < MOST_ROUNDS); rounds++) {
    save_until_killed((0.2 + 2 * random_double(&numbers)) * one_save);
    unfinished += !nothing_new_left();
    const uint64_t weights = fingerprint_of(WEIGHTS);
    const char found = state_found(&e);
    between += fingerprint_of(WEIGHTS) != weights;
    of_a += found == 'a';
    of_b += found == 'b';
    if (found == 'a' || found == 'b') continue;
    broken++;
    check(false, "round %d: %c %s", rounds, found, e.text);
    begin_with_a();
    watch_for(DAWDLE, 0);
  }
  check(broken == 0, "killed %d times at random: %d found state a, %d state b", rounds, of_a, of_b);
  check(unfinished > 0, "%d kills came amid a save, %d of them between the renames", unfinished,
        between);
}

int main(void) {
  make_states("crash_test");
  scratch_make();
  test_order();
  test_kill_at_each_call();
  test_kill_in_first_save();
  test_failure_at_each_call();
  test_set_aside_after_crash();
  begin_with_a();
  const uint64_t weights = fingerprint_of(WEIGHTS), resume = fingerprint_of(RESUME);
  test_file_size_limit(weights, resume);
  test_full_disk(weights, resume);
  test_taken_names(weights, resume);
  test_leftovers();
  test_random_kills();
  scratch_remove();
  free_states();
  return check_summary();
}
