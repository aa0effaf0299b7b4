// tests/faults.c - every call of a run struck in turn: nothing that was saved may be lost.
//
//     make faults                       all of it, in some minutes; FAULTS=N/M: the N-th of M parts
//     build/gcc/tests/faults build/gcc/faults/train build/gcc/shapes over EIO 37   one case again
//
// A trainer that stops for a full disk must leave its last checkpoint, and so must one that is killed,
// at any moment. Which moments are there? As many as the run has calls that touch a file, and
// allocations; so this test makes three short runs of ./train (four steps of ten images),
//
//     fresh      in an empty directory
//     resumed    --resume, of a run killed in its last save: log and trace are longer than the checkpoint
//     over       where an earlier run, of another seed, left its checkpoint, log and trace
//
// and for each call of each run, and each kind of fault below, makes the run once more and strikes
// that call. After each strike
//
//     the run ended by itself within 20 s, with 0, 1 or by the signal that it was sent
//     unless it was killed, a status that is not 0 comes with exactly one line on stderr
//     0 means: output, weights, momentum, log and trace are those of a run without a fault
//     the checkpoint's files are, to the bit, ones that a run without a fault has saved
//     of an earlier run nothing is lost, and where its checkpoint stands, its log and trace do
//     the same command again, with --resume where there is a checkpoint of the run, ends with the
//     same weights, momentum, log and trace as if nothing had happened; then the two files of the
//     earlier run's checkpoint stand together under one suffix, and no .new is left
//
// Why ptrace, and no preloaded open() and write()? The C library's own fopen() and fflush() do not
// call those but the kernel: there a tracer sees every call. Allocations do not reach the kernel, so
// these do need a preloaded library (faults_preload.c). The tracer is faults_trace.c.
#define _GNU_SOURCE
#include "faults.h"

#include "faults_snapshot.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/wait.h>

static const strike strikes[] = {
    {"EACCES", OPEN, FAIL, EACCES, 0},
    {"EIO", OPEN, FAIL, EIO, 0},
    {"ENOSPC", OPEN, FAIL, ENOSPC, 0},
    {"EMFILE", OPEN, FAIL, EMFILE, 0},
    {"EINTR", OPEN, FAIL, EINTR, 0},
    {"EIO", READ, FAIL, EIO, 0},
    {"EINTR", READ, FAIL, EINTR, 0},
    {"half", READ, HALF, 0, 0},
    {"EIO", WRITE, FAIL, EIO, 0},
    {"EINTR", WRITE, FAIL, EINTR, 0},
    {"full", WRITE, FULL_DISK, ENOSPC, 0},
    {"EFBIG", WRITE, FAIL_AND_SIGNAL, EFBIG, SIGXFSZ},
    {"half", WRITE, HALF, 0, 0},
    {"torn", WRITE, TORN, 0, 0},
    {"EIO", SYNC, FAIL, EIO, 0},
    {"ENOSPC", SYNC, FAIL, ENOSPC, 0},
    {"SIGTERM", SYNC, SIGNAL, 0, SIGTERM}, // its handler is SIGINT's
    {"EACCES", RENAME, FAIL, EACCES, 0},
    {"EIO", RENAME, FAIL, EIO, 0},
    {"ENOSPC", RENAME, FAIL, ENOSPC, 0},
    {"EIO", CLOSE, FAIL_WHEN_DONE, EIO, 0},
    {"ENOSPC", CLOSE, FAIL_WHEN_DONE, ENOSPC, 0},
    {"EINTR", CLOSE, FAIL_WHEN_DONE, EINTR, 0},
    {"EACCES", MAKE, FAIL, EACCES, 0},
    {"EIO", MAKE, FAIL, EIO, 0},
    {"ENOSPC", MAKE, FAIL, ENOSPC, 0},
    {"EIO", CUT, FAIL, EIO, 0},
    {"EACCES", REMOVE, FAIL, EACCES, 0},
    {"EIO", REMOVE, FAIL, EIO, 0},
    {"EACCES", LOOK, FAIL, EACCES, 0},
    {"EIO", LOOK, FAIL, EIO, 0},
    {"EIO", SEEK, FAIL, EIO, 0},
    {"EINTR", LOCK, FAIL, EINTR, 0},
    {"ENOLCK", LOCK, FAIL, ENOLCK, 0},
    {"EACCES", LINK, FAIL, EACCES, 0},
    {"EIO", LINK, FAIL, EIO, 0},
    {"EIO", LIST, FAIL, EIO, 0},
    {"NULL", ALLOCATE, FAIL, ENOMEM, 0},
    {"SIGINT", FILE_CALL, SIGNAL, 0, SIGINT},
    {"SIGKILL", FILE_CALL, SIGNAL, 0, SIGKILL},
};
enum { STRIKES = sizeof strikes / sizeof *strikes };

// -- The three runs -----------------------------------------------------------------------------------

typedef struct {
  const char *name;
  bool resume;     // its command has --resume
  char begin[300]; // the directory it begins with
  snapshot start;  // that, and
  snapshot end;    // what it leaves when nothing happens
  call *walk;      // the calls that it makes then
  int calls;
} run;

#define WEIGHTS "c/resnet18_cifar10.safetensors"
#define RESUME "c/resnet18_cifar10.resume.safetensors"

static run runs[] = {{.name = "fresh"}, {.name = "resumed", .resume = true}, {.name = "over"}};
enum { RUNS = sizeof runs / sizeof *runs };

static char train[PATH_MAX], program[PATH_MAX];
static char **command_line;
static char arena[300];   // where a worker's runs take place
static snapshot saved;    // every file of a checkpoint that undisturbed runs save
static snapshot *earlier; // what `over` begins with

static outcome start(const char *seed, bool resume, bool keep, int at, const strike *with,
                     bool describe) {
  char *arguments[] = {
      train,         "--data",       "../data",    "--width",  "8",       "--threads",
      "1",           "--batch",      "10",         "--epochs", "2",       "--device",
      "cpu",         "--checkpoint", "c",          "--log",    "log.csv", "--trace",
      "trace.jsonl", "--seed",       (char *)seed, NULL,       NULL,      NULL};
  int count = 21;
  if (resume) arguments[count++] = "--resume";
  if (keep) arguments[count++] = "--keep-every=1";
  return run_struck(arguments, arena, "../preload.so", at, with, describe);
}

static void set_arena(const char *from) {
  mkdir(arena, 0777);
  scratch_empty(arena);
  if (from) copy_tree(from, arena);
}

static void give_up(const char *what) {
  fprintf(stderr, "faults: %s; what it said is in %s\n", what, arena);
  exit(1);
}

static outcome undisturbed(const char *seed, bool resume, bool keep) {
  const outcome o = start(seed, resume, keep, 0, NULL, !keep);
  if (o.forbidden) {
    printf("skipped: make faults, because this system allows no ptrace or no seccomp filters\n");
    printf("0 passed, 0 failed\n");
    scratch_remove();
    exit(0);
  }
  if (!o.begun || o.status) give_up("a run without a fault failed");
  return o;
}

// Where to kill a run so that log and trace are complete, and the last checkpoint is not begun.
static int last_save(const outcome *o) {
  int row = 0, i = 0;
  for (i = 0; i < o->calls; i++)
    if (o->walk[i].kind == WRITE && strstr(o->walk[i].words, "log.csv")) row = i;
  for (i = row; i < o->calls && o->walk[i].kind != SYNC; i++) {}
  return i + 1;
}

static void walk(run *r) {
  char path[400];
  set_arena(r->begin);
  r->start = look_at(arena);
  outcome o = undisturbed("1", r->resume, false);
  r->end = look_at(arena);
  r->walk = o.walk;
  r->calls = o.calls;
  set_arena(r->begin);
  o = undisturbed("1", r->resume, false);
  const snapshot again = look_at(arena);
  if (o.calls != r->calls || state_of(&again) != state_of(&r->end))
    give_up("two runs without a fault differ");
  free(o.walk);
  snprintf(path, sizeof path, "%s/c", arena);
  add_files(&saved, path, "");
}

// What the runs begin with, and all that they may save.
static void prepare(void) {
  const strike killed = {"SIGKILL", FILE_CALL, SIGNAL, 0, SIGKILL};
  char path[400];
  for (int i = 0; i < RUNS; i++)
    snprintf(runs[i].begin, sizeof runs[i].begin, "%s/%s", scratch_directory, runs[i].name);
  snprintf(arena, sizeof arena, "%s/arena", scratch_directory);
  set_arena(NULL);
  free(undisturbed("1", false, true).walk); // the state after each step
  snprintf(path, sizeof path, "%s/c", arena);
  add_files(&saved, path, "");
  set_arena(NULL);
  free(undisturbed("2", false, false).walk);
  copy_tree(arena, runs[2].begin);
  set_arena(NULL);
  const outcome whole = undisturbed("1", false, false);
  set_arena(NULL);
  free(start("1", false, false, last_save(&whole), &killed, false).walk);
  copy_tree(arena, runs[1].begin);
  free(whole.walk);
  set_arena(NULL);
  copy_tree(arena, runs[0].begin);
  for (int i = 0; i < RUNS; i++) walk(&runs[i]);
  earlier = &runs[2].start;
  add_files(&saved, (snprintf(path, sizeof path, "%s/c", runs[1].begin), path), "");
}

// -- After a strike -----------------------------------------------------------------------------------

// What is wrong, in words; "" if nothing.
typedef struct {
  char words[300];
} verdict;

#define WRONG(...) return (snprintf(v->words, sizeof v->words, __VA_ARGS__), false)

static bool one_line(verdict *v) {
  char text[2000], path[400];
  snprintf(path, sizeof path, "%s/err", arena);
  FILE *file = fopen(path, "r");
  const size_t length = file ? fread(text, 1, sizeof text - 1, file) : 0;
  if (file) fclose(file);
  text[length] = 0;
  if (!text[0]) WRONG("it says nothing on stderr");
  const char *end = strchr(text, '\n');
  if (!end || end[1]) WRONG("not one line on stderr: %.200s", text);
  for (const char *c = text; c < end; c++)
    if ((unsigned char)*c < 0x20) WRONG("a control character on stderr");
  return strstr(text, ": ") || (snprintf(v->words, sizeof v->words, "not clear: %s", text), false);
}

static bool ended_well(const outcome *o, const strike *s, verdict *v) {
  const bool exited = WIFEXITED(o->status);
  const int signal = s->manner == SIGNAL ? s->signal : 0;
  if (o->hung) WRONG("still running after 20 s");
  if (!o->struck) WRONG("this time the call was not made");
  if (s->manner == TORN || signal == SIGKILL) {
    if (exited || WTERMSIG(o->status) != SIGKILL) WRONG("it was killed and lives");
    return true;
  }
  if (!exited && WTERMSIG(o->status) == signal) return true; // before the trainer's own handler
  if (!exited) WRONG("ended by signal %d", WTERMSIG(o->status));
  const int status = WEXITSTATUS(o->status);
  if (status == 0 || (signal && status == 128 + signal)) return true;
  if (status != 1) WRONG("exit status %d", status);
  return one_line(v);
}

static bool is_the_end(const run *r, const snapshot *s, const char *when, verdict *v) {
  static const char *const files[] = {WEIGHTS, RESUME, "log.csv", "trace.jsonl"};
  for (int i = 0; i < 4; i++)
    if (!same(s, &r->end, files[i]))
      WRONG("%s: %s is %s", when, files[i],
            print_of(s, files[i]) ? "not that of a run without a fault" : "gone");
  return true;
}

// A file under a checkpoint's name is one that was saved; what a run began with is not gone.
static bool is_sound(const run *r, const snapshot *s, verdict *v) {
  static const char *const names[] = {WEIGHTS, RESUME};
  for (int i = 0; i < 2; i++) {
    const uint64_t print = print_of(s, names[i]);
    if (!print && r->resume) WRONG("%s is gone", names[i]);
    if (print && !holds(&saved, print) && print != print_of(earlier, names[i]))
      WRONG("%s is damaged", names[i]);
  }
  for (int i = 0; i < earlier->count && r == &runs[2]; i++)
    if (strcmp(earlier->files[i].name, "out") && strcmp(earlier->files[i].name, "err") &&
        !holds(s, earlier->files[i].print))
      WRONG("of the earlier run %s is lost", earlier->files[i].name);
  if (r == &runs[2] && same(s, earlier, RESUME) &&
      (!same(s, earlier, "log.csv") || !same(s, earlier, "trace.jsonl")))
    WRONG("the earlier run could go on, without its log or trace");
  return true;
}

static bool is_tidy(const run *r, const snapshot *s, verdict *v) {
  char weights[100], resume[100];
  for (int i = 0; i < s->count; i++) {
    const size_t length = strlen(s->files[i].name);
    if (length > 4 && !strcmp(s->files[i].name + length - 4, ".new"))
      WRONG("after the same command again: %s is left", s->files[i].name);
  }
  if (r != &runs[2]) return true;
  for (int number = 1; number < 10; number++) {
    snprintf(weights, sizeof weights, WEIGHTS ".%d", number);
    snprintf(resume, sizeof resume, RESUME ".%d", number);
    if (print_of(s, weights) == print_of(earlier, WEIGHTS) &&
        print_of(s, resume) == print_of(earlier, RESUME))
      return true;
  }
  WRONG("after the same command again: the earlier run's checkpoint is torn apart");
}

// Runs the same command once more. What a directory leads to is known once it has been tried.
static bool goes_on(const run *r, const snapshot *s, verdict *v) {
  enum { MOST = 4096 };
  static struct {
    uint64_t state;
    const run *run;
    verdict verdict;
  } tried[MOST];
  static int count;
  const uint64_t resume = print_of(s, RESUME), state = state_of(s);
  for (int i = 0; i < count; i++)
    if (tried[i].state == state && tried[i].run == r) {
      *v = tried[i].verdict;
      return !v->words[0];
    }
  const outcome o =
      start("1", resume && resume != print_of(earlier, RESUME), false, 0, NULL, false);
  free(o.walk);
  const snapshot end = look_at(arena);
  if (o.hung || !WIFEXITED(o.status) || WEXITSTATUS(o.status)) {
    char path[400], text[200] = "";
    snprintf(path, sizeof path, "%s/err", arena);
    FILE *file = fopen(path, "r");
    if (file && fgets(text, sizeof text, file)) text[strcspn(text, "\n")] = 0;
    if (file) fclose(file);
    snprintf(v->words, sizeof v->words, "the same command again fails: %s", text);
  } else if (is_the_end(r, &end, "after the same command again", v) && is_sound(r, &end, v)) {
    is_tidy(r, &end, v);
  }
  if (count < MOST) {
    tried[count].state = state;
    tried[count].run = r;
    tried[count++].verdict = *v;
  }
  return !v->words[0];
}

// -- Cases --------------------------------------------------------------------------------------------

static bool fits(const strike *s, const call *c) {
  return s->at == c->kind || (s->at == FILE_CALL && c->kind != ALLOCATE);
}

static verdict try_case(const run *r, int at, const strike *s, bool again) {
  verdict verdict = {""}, *v = &verdict;
  set_arena(r->begin);
  const outcome o = start("1", r->resume, false, at, s, false);
  const snapshot found = look_at(arena);
  const bool is_it = o.calls >= at && o.walk[at - 1].kind == r->walk[at - 1].kind;
  free(o.walk);
  if (again) {
    char command[700];
    printf("%s\n", r->walk[at - 1].words);
    printf("wait status %d; its output:\n", o.status);
    fflush(stdout);
    snprintf(command, sizeof command, "cd '%s' && cat out err && ls -l . c", arena);
    if (system(command) != 0) printf("(no list of %s)\n", arena);
  }
  if (!is_it)
    snprintf(v->words, sizeof v->words, "this time call %d is another one", at);
  else if (ended_well(&o, s, v) && is_sound(r, &found, v)) {
    const bool done = WIFEXITED(o.status) && WEXITSTATUS(o.status) == 0;
    if (!done ||
        (is_the_end(r, &found, "exit status 0", v) &&
         // Without locks there is a line more; a name that cannot be looked at is passed over, and
         // what is set aside gets the next number.
         (s->error == ENOLCK || s->at == LOOK || same(&found, &r->end, "out") ||
          (snprintf(v->words, sizeof v->words, "exit status 0: its output is not whole"), false))))
      goes_on(r, &found, v);
  }
  return verdict;
}

typedef struct {
  int tried[STRIKES], broken[STRIKES];
} tally;

// The cases of a part, of those the worker's own.
static tally work(int part, int parts, int worker, int workers) {
  tally t = {{0}, {0}};
  uint32_t number = 0;
  int mine = 0;
  for (int i = 0; i < RUNS; i++)
    for (int at = 1; at <= runs[i].calls; at++)
      for (int s = 0; s < STRIKES; s++) {
        if (!fits(&strikes[s], &runs[i].walk[at - 1])) continue;
        // In an order of no pattern: a write has as many kinds of faults each time.
        if ((uint32_t)(number++ * 2654435761u) / 65536 % (uint32_t)parts != (uint32_t)part - 1)
          continue;
        if (mine++ % workers != worker) continue;
        const verdict v = try_case(&runs[i], at, &strikes[s], false);
        t.tried[s]++;
        if (!v.words[0]) continue;
        t.broken[s]++;
        printf("FAIL %s, %s at call %d (%s): %s\n     again: %s %s %s %s %s %d\n", runs[i].name,
               strikes[s].name, at, runs[i].walk[at - 1].words, v.words, command_line[0],
               command_line[1], command_line[2], runs[i].name, strikes[s].name, at);
        fflush(stdout);
      }
  return t;
}

static tally work_in_parallel(int part, int parts) {
  const long processors = sysconf(_SC_NPROCESSORS_ONLN);
  const int workers = processors < 1 ? 1 : processors > 16 ? 16 : (int)processors;
  tally sum = {{0}, {0}}, one;
  int ends[2], reported = 0;
  if (pipe(ends) != 0) give_up("no pipe");
  fflush(stdout);
  for (int i = 0; i < workers; i++) {
    if (fork() != 0) continue;
    snprintf(arena, sizeof arena, "%s/arena%d", scratch_directory, i);
    one = work(part, parts, i, workers);
    _exit(write(ends[1], &one, sizeof one) != (ssize_t)sizeof one);
  }
  close(ends[1]);
  for (; read(ends[0], &one, sizeof one) == (ssize_t)sizeof one; reported++)
    for (int i = 0; i < STRIKES; i++) {
      sum.tried[i] += one.tried[i];
      sum.broken[i] += one.broken[i];
    }
  while (wait(NULL) > 0) {}
  if (reported != workers) give_up("a worker did not come to its end");
  return sum;
}

static int report(const tally *t) {
  static const char *const kinds[] = {
      "any call",  "open",   "read", "write", "fsync", "rename", "close", "mkdir",
      "ftruncate", "unlink", "stat", "lseek", "lock",  "link",   "list",  "allocation"};
  int tried = 0, broken = 0;
  for (int i = 0; i < RUNS; i++) printf("%-8s %d calls\n", runs[i].name, runs[i].calls);
  for (int i = 0; i < STRIKES; i++) {
    if (t->tried[i])
      printf("%-11s %-8s %5d tried, %5d broken\n", kinds[strikes[i].at], strikes[i].name,
             t->tried[i], t->broken[i]);
    tried += t->tried[i];
    broken += t->broken[i];
  }
  printf("%d passed, %d failed\n", tried - broken, broken);
  return broken || !tried;
}

static int one_again(const char *name, const char *fault, int at) {
  for (int i = 0; i < RUNS; i++)
    for (int s = 0; s < STRIKES; s++) {
      if (strcmp(runs[i].name, name) || strcmp(strikes[s].name, fault)) continue;
      if (at < 1 || at > runs[i].calls || !fits(&strikes[s], &runs[i].walk[at - 1])) continue;
      const verdict v = try_case(&runs[i], at, &strikes[s], true);
      printf("%s\n", v.words[0] ? v.words : "as it should be");
      return v.words[0] != 0;
    }
  fprintf(stderr, "faults: run %s has no call %d that %s could strike\n", name, at, fault);
  return 2;
}

static void make_scratch(const char *shapes) {
  char command[PATH_MAX + 600], library[PATH_MAX];
  scratch_make();
  const char *slash = strrchr(program, '/');
  snprintf(library, sizeof library, "%.*s/faults_preload.so", (int)(slash - program), program);
  if (symlink(library, scratch_path("preload.so")) != 0) give_up("no link to faults_preload.so");
  snprintf(command, sizeof command, "'%s' --train 20 --test 10 '%s/data' >/dev/null", shapes,
           scratch_directory);
  if (system(command) != 0) give_up("no data");
}

int main(int argc, char **argv) {
  int part = 1, parts = 1, result;
  if ((argc != 3 && argc != 4 && argc != 6) || !realpath(argv[1], train) ||
      !realpath(argv[0], program) ||
      (argc == 4 && (sscanf(argv[3], "%d/%d", &part, &parts) != 2 || part < 1 || part > parts))) {
    fprintf(stderr, "usage: faults TRAIN SHAPES [N/M | RUN FAULT CALL]\n");
    return 2;
  }
  command_line = argv;
  make_scratch(argv[2]);
  prepare();
  if (argc == 6) {
    result = one_again(argv[3], argv[4], atoi(argv[5]));
  } else {
    const tally t = work_in_parallel(part, parts);
    result = report(&t);
  }
  for (int i = 0; i < RUNS; i++) free(runs[i].walk);
  scratch_remove();
  return result;
}
