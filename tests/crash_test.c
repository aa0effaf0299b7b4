// tests/crash_test.c - that no save can cost the last good checkpoint: not a full disk, not a name that is
// taken, not kill -9, not a power cut.
//
// A save comes down to seven calls: fsync of the new weights, fsync of the new resume file, fsync of the
// directory, which has their new names, a rename of each over the old one, the resume file first, and an
// fsync of the directory behind each rename. Before them come directories that are not there yet, and the
// lines of a run's log and trace. This file puts its own fsync(), rename() and mkdir() in front of the C
// library's, so that it can write down their order and which file or directory each is about, fail at
// each in turn, and kill -9 the process at each in turn; then it looks at what a resumed run would
// find: the state before or the state after, to the bit. Since such a test covers only moments that
// its author thought of, it also kills a process that does nothing but save, at random moments.
//
//     make build/gcc/tests/crash_test && build/gcc/tests/crash_test
#define _POSIX_C_SOURCE 200809L
#include "../run/trainer.h"
#include "crash.h"
#include "states.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

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
  check(save(&b, &e) && !strcmp(watch.order, "ffdrdwd"),
        "order: both files and their new names reach the disk, then the resume file gets its name, "
        "then the weights: %s %s",
        watch.order, e.text);
  check(all_in(scratch_directory, 0, 7), "each name and each fsync of a directory is in theirs");
  check(nothing_new_left(), "and no temporary file is left");
}

// A file's name is no safer than that of each directory above it.
static void test_new_directories(void) {
  error e = {""};
  watch_for(NOTHING, 0);
  scratch_empty(scratch_directory);
  check(save_in(scratch_path("a/new/one"), &b, &e) && !strcmp(watch.order, "mdmdmdffdrdwd"),
        "directories that are not there are made, and each has its name on the disk before the "
        "next: %s %s",
        watch.order, e.text);
  check(all_in(scratch_directory, 0, 2) && all_in(scratch_path("a"), 2, 4) &&
            all_in(scratch_path("a/new"), 4, 6) && all_in(scratch_path("a/new/one"), 6, 13),
        "each directory that is synced is the one with the new name");
}

// An epoch's row is in the log, but its line does not go into the trace: a resumed run writes both, so what
// the checkpoint says of the log may not count the row.
static void test_row_without_line(trainer *t, const dataset *data) {
  const score test = {.accuracy = 0.5};
  const uint64_t written = t->report.log.written;
  error e = {""};
  const int full = open("/dev/full", O_WRONLY);
  if (full < 0) {
    printf("skip a full disk: no /dev/full here\n");
    return;
  }
  t->at.images = 1;
  dup2(full, t->report.trace.handle);
  close(full);
  check_refused(report_epoch(&t->report, &t->options, data, &t->at, &test, &e), &e,
                "a line that does not fit", t->options.trace, strerror(ENOSPC));
  check(t->report.log.written == written, "the row before it does not count as written");
}

// A run's log and trace: once a checkpoint says that their lines are written, no run writes them again.
static void test_logs_first(void) {
  static char *arguments[] = {"train"};
  static trainer t;
  static const dataset data;
  error e = {""};
  scratch_empty(scratch_directory);
  check(options_parse(1, arguments, &t.options, &e), "the recipe's options %s", e.text);
  snprintf(t.options.checkpoint, PATH_ROOM, "%s", scratch_directory);
  snprintf(t.options.log, PATH_ROOM, "%s", scratch_path("log.csv"));
  snprintf(t.options.trace, PATH_ROOM, "%s", scratch_path("trace.jsonl"));
  network_initialise(&victim, 1);
  t.network = victim;
  check(report_find(&t.report, &t.options, &e) &&
            report_begin(&t.report, &t.options, &data, victim.device, &t.at, &e),
        "a log and a trace begin %s", e.text);
  fputs("0,of a row\n", t.report.log.stream); // which is not written yet
  watch_for(NOTHING, 0);
  check(save_run(&t, &e) && !strcmp(watch.order, "ffffdrdwd"), "a run is saved: %s %s", watch.order,
        e.text);
  check(synced_whole(0, t.options.log) && synced_whole(1, t.options.trace),
        "all lines of its log and its trace reach the disk before the checkpoint");
  test_row_without_line(&t, &data);
  report_close(&t.report);
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
    const char found = state_found(&e), wanted = at <= 4 ? 'a' : 'b';
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
    const char found = state_found(&e), wanted = at <= 4 ? '-' : 'b';
    check(found == wanted, "killed at call %d of the first save: %c, wanted %c %s", at, found,
          wanted, e.text);
  }
}

// An error of the disk at each call.
static void test_failure_at_each_call(void) {
  for (int at = 1; at <= 7; at++) {
    error e;
    begin_with_a();
    watch_for(FAIL_THERE, at);
    const bool ok = save(&b, &e);
    watch_for(NOTHING, 0);
    check_refused(ok, &e, "a save with an error of the disk", scratch_directory, strerror(EIO));
    const char found = state_found(&e), wanted = at <= 4 ? 'a' : 'b';
    check(found == wanted, "at call %d: state %c, wanted %c %s", at, found, wanted, e.text);
    if (at <= 4) check(nothing_new_left(), "and no temporary file is left");
  }
}

// A file that does not read back as it was written never gets its name.
static void test_damage_at_each_file(void) {
  for (int at = 1; at <= 2; at++)
    for (event what = SPOIL_THERE; what <= CUT_THERE; what++) {
      error e = {""};
      begin_with_a();
      watch_for(what, at);
      const bool ok = save(&b, &e);
      watch_for(NOTHING, 0);
      check_refused(ok, &e, what == CUT_THERE ? "a file that loses a byte" : "a byte that changes",
                    scratch_directory, "reads back other than it was written");
      check(state_found(&e) == 'a' && nothing_new_left(), "file %d: state a stays %s", at, e.text);
    }
}

// -- Without memory --------------------------------------------------------------------------------

// At each allocation of a save in turn there is no memory: only for that one, or from there on. Where
// the save says that it failed, state a is still there; where it does not, state b is.
static void test_no_memory(void) {
#ifdef OWN_ALLOCATOR
  for (int lasting = 0; lasting <= 1; lasting++) {
    int refused = 0;
    bool ok = true, done = false;
    for (int at = 1; !done && at <= 200; at++) {
      error e = {""}, unused;
      if (ok) begin_with_a();
      fail_allocation(at, lasting);
      ok = save(&b, &e);
      done = !fail_no_allocation();
      refused += !ok;
      const bool said = ok || (strstr(e.text, "memory") && !strchr(e.text, '\n'));
      if (!said || !nothing_new_left() || state_found(&unused) != (ok ? 'b' : 'a'))
        check(false, "allocation %d: %s %s", at, ok ? "saved" : "refused", e.text);
    }
    check(done && refused >= 8, "no memory for %s of a save: %d times refused, and state a stays",
          lasting ? "an allocation and all after it" : "one allocation", refused);
  }
#else
  printf("skip a save without memory: not under sanitizers, and not without glibc\n");
#endif
}

// -- An earlier run's files ------------------------------------------------------------------------

// A checkpoint that a crash left between the two renames is set aside whole.
static void test_set_aside_after_crash(void) {
  error e = {""};
  int number = 0;
  begin_with_a();
  watch_for(DIE_THERE, 6);
  save_in_child(&b);
  watch_for(NOTHING, 0);
  check(checkpoint_repair(scratch_directory, &e) &&
            checkpoint_set_aside(scratch_directory, &number, &e) && number == 1 && save(&a, &e),
        "killed between the renames, set aside, another run saves %s", e.text);
  rename(scratch_path(WEIGHTS ".1"), scratch_path(WEIGHTS));
  rename(scratch_path(RESUME ".1"), scratch_path(RESUME));
  const char found = state_found(&e);
  check(found == 'b', "what was set aside can still be resumed: state %c, wanted b %s", found,
        e.text);
}

// Where the files of state a are: together under a name's ending ("" or ".K")?
static const char *where_a_is(uint64_t weights, uint64_t resume) {
  static const char *const endings[] = {"", ".1", ".2", ".3"};
  for (int i = 0; i < 4; i++) {
    char name[100], resume_name[100];
    snprintf(name, sizeof name, WEIGHTS "%s", endings[i]);
    snprintf(resume_name, sizeof resume_name, RESUME "%s", endings[i]);
    if (fingerprint_of(name) == weights && fingerprint_of(resume_name) == resume) return endings[i];
  }
  return NULL;
}

// The first save of a new run, over state a.
static bool save_over(void) {
  int number;
  error e;
  return checkpoint_set_aside(scratch_directory, &number, &e) && save(&b, &e);
}

// Which names are in use already, when state a is moved aside.
typedef enum {
  NONE_TAKEN,
  ONE_OF_EACH, // .1 by weights, .2 by a resume file: a goes to .3
  BY_A_STEP    // .1 by a kept step alone, and there is a kept step to be moved first: all go to .2
} taken_names;

// kill -9 at each call of that: 1 to 4 move a away (a kept step is two more, before them), seven more save
// b. After the next start a's two files are together, and what stands under the names is a or b as a
// whole; the new run's next attempt ends well.
static void test_kill_in_set_aside(taken_names taken) {
  static const char *const endings[] = {".1", ".3", ".2"};
  const int before = taken == BY_A_STEP ? 2 : 0;
  bool done = false;
  for (int at = 1; !done && at <= 20; at++) {
    error e = {""};
    if (!begin_with_a()) return;
    const uint64_t weights = fingerprint_of(WEIGHTS), resume = fingerprint_of(RESUME);
    if (taken == ONE_OF_EACH) scratch_write(scratch_path(WEIGHTS ".1"), "other", 5);
    if (taken == ONE_OF_EACH) scratch_write(scratch_path(RESUME ".2"), "other", 5);
    if (taken == BY_A_STEP) scratch_write(scratch_path("step-000001.safetensors"), "kept", 4);
    if (taken == BY_A_STEP) scratch_write(scratch_path("step-000001.safetensors.1"), "other", 5);
    watch_for(DIE_THERE, at);
    const pid_t child = fork();
    if (child == 0) _exit(!save_over());
    int status = 0;
    waitpid(child, &status, 0);
    done = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    watch_for(NOTHING, 0);
    const char found = state_found(&e), *where = where_a_is(weights, resume);
    const char wanted = at <= before + 3 ? 'a' : at <= before + 8 ? '-' : 'b';
    const char *ending = at <= before + 3 ? "" : endings[taken];
    check(found == wanted && where && !strcmp(where, ending),
          "killed at call %d over an earlier run: %c, a's files under \"%s\" %s", at, found,
          where ? where : "(apart)", e.text);
    check(save_over() && state_found(&e) == 'b' && where_a_is(weights, resume),
          "and the next attempt saves b, and has a's files together");
  }
  check(done, "it has an end");
}

// An error of the disk at each rename and fsync of moving the files away: none or both are moved.
static void test_failure_in_set_aside(void) {
  for (int at = 1; at <= 4; at++) {
    error e = {""};
    int number;
    begin_with_a();
    const uint64_t weights = fingerprint_of(WEIGHTS), resume = fingerprint_of(RESUME);
    watch_for(FAIL_THERE, at);
    const bool ok = checkpoint_set_aside(scratch_directory, &number, &e);
    watch_for(NOTHING, 0);
    const char *where = where_a_is(weights, resume);
    check(!ok && where && !*where, "an error at call %d of moving a away: a is where it was", at);
  }
}

// -- One run at a time -------------------------------------------------------------------------------

// A child that claims the directory and waits to be killed. Its number once it has it.
static pid_t claim_in_child(void) {
  int ready[2];
  char byte;
  if (pipe(ready) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    error e;
    if (checkpoint_claim(scratch_directory, &e) && write(ready[1], "y", 1) == 1) pause();
    _exit(1);
  }
  close(ready[1]);
  const bool claimed = read(ready[0], &byte, 1) == 1;
  close(ready[0]);
  check(claimed, "a process claims the directory");
  return child;
}

static void end_child(pid_t child) {
  int status;
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
}

static void test_one_at_a_time(void) {
  char holder[100], host[64] = "";
  error e = {""};
  begin_with_a();
  pid_t child = claim_in_child();
  gethostname(host, sizeof host - 1);
  snprintf(holder, sizeof holder, "in use by process %d on %s;", (int)child, host);
  check_refused(checkpoint_claim(scratch_directory, &e), &e,
                "a second one, which learns of the first", scratch_directory, holder);
  end_child(child);
  child = claim_in_child(); // the lock file is still there
  scratch_write(scratch_path(".lock"), "an\033other\nmachine\n", 18);
  check_refused(checkpoint_claim(scratch_directory, &e), &e,
                "a name that is none is made printable", scratch_directory, "in use by an?other;");
  end_child(child);
  check(checkpoint_claim(scratch_directory, &e) && state_found(&e) == 'a',
        "a claim dies with its process %s", e.text);
  check(!file_exists(scratch_path(".probe")), "and leaves nothing but the lock file");
}

static void test_unwritable(void) {
  error e = {""};
  begin_with_a();
  mkdir(scratch_path(".probe"), 0777);
  check_refused(checkpoint_claim(scratch_directory, &e), &e, "a directory that takes no file",
                scratch_directory, "cannot be saved there");
  scratch_empty(scratch_directory);
  mkdir(scratch_path(".lock"), 0777);
  check_refused(checkpoint_claim(scratch_directory, &e), &e, "a directory that takes no lock",
                scratch_directory, "cannot be saved there");
}

// What cannot be read cannot be judged: nothing is moved.
static void test_unreadable(void) {
  static const char *const names[] = {WEIGHTS, RESUME};
  for (int i = 0; i < 2; i++) {
    error e = {""};
    begin_with_a();
    remove(scratch_path(names[i]));
    mkdir(scratch_path(names[i]), 0777);
    scratch_write(scratch_path(WEIGHTS ".new"), "new", 3);
    check_refused(checkpoint_repair(scratch_directory, &e), &e, "a directory in a file's place",
                  scratch_path(names[i]), "not a file");
    check(file_exists(scratch_path(WEIGHTS ".new")), "and all stays as it was");
  }
  error e = {""};
  begin_with_a();
  check(truncate(scratch_path(RESUME), 5000) == 0, "a resume file cut short");
  check(checkpoint_repair(scratch_directory, &e), "is in nobody's way %s", e.text);
  scratch_write(scratch_path(WEIGHTS ".new"), "new", 3);
  check_refused(checkpoint_repair(scratch_directory, &e), &e,
                "a damaged resume file beside new weights", scratch_path(RESUME),
                "may have its weights");
  check(file_exists(scratch_path(WEIGHTS ".new")), "and these stay");
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
  test_new_directories();
  test_logs_first();
  test_kill_at_each_call();
  test_kill_in_first_save();
  test_failure_at_each_call();
  test_damage_at_each_file();
  test_no_memory();
  test_set_aside_after_crash();
  for (taken_names taken = NONE_TAKEN; taken <= BY_A_STEP; taken++) test_kill_in_set_aside(taken);
  test_failure_in_set_aside();
  test_unreadable();
  test_unwritable();
  test_one_at_a_time();
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
