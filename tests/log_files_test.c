// tests/log_files_test.c - what a disk can do to a log: a line that cannot be read back, one that cannot be
// written, one that is not on the disk yet.
//
// This file puts its own getline(), fsync() and ftruncate() in front of the C library's, so that it
// can fail in each of them. What the names of logs may stand for is checked by tests/train_test.sh.
//
//     make build/gcc/tests/log_files_test && build/gcc/tests/log_files_test
#define _DEFAULT_SOURCE // syscall
#include "../run/checkpoint.h"
#include "../run/files.h"
#include "../run/log_files.h"
#include "check.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

// -- Calls that fail -----------------------------------------------------------------------------

static struct {
  int reads;     // getline: as many lines can be read; negative: all
  bool sync;     // fsync fails
  bool truncate; // ftruncate fails
  int syncs;     // how often fsync came
} disk = {.reads = -1};

ssize_t getline(char **line, size_t *room, FILE *file) {
  if (disk.reads == 0) {
    errno = EIO;
    return -1;
  }
  if (disk.reads > 0) disk.reads--;
  return getdelim(line, room, '\n', file);
}

int fsync(int handle) {
  disk.syncs++;
  errno = EIO;
  return disk.sync ? -1 : fdatasync(handle);
}

int ftruncate(int handle, off_t length) {
  errno = EIO;
  return disk.truncate ? -1 : (int)syscall(SYS_ftruncate, handle, length);
}

// -- A log of four rows ----------------------------------------------------------------------------

static const char headings[] = "epoch\n";
static const char rows[] = "epoch\n0,a\n1,b\n2,c\n3,d";
static options run; // of nothing: no data set, no checkpoint
static char path[300];

static line_place place(const char *line, const position *at) {
  const int epoch = line[0] == 'e' ? -1 : line[0] - '0';
  return epoch < at->epoch ? LINE_BEFORE : epoch == at->epoch ? LINE_BEHIND : LINE_TOO_LATE;
}

// The whole file as text; valid until the next call.
static const char *text_of(const char *name) {
  static char text[300];
  FILE *file = fopen(name, "r");
  text[file ? fread(text, 1, sizeof text - 1, file) : 0] = 0;
  if (file) fclose(file);
  return text;
}

// Opens the log of a run that goes on in epoch 2, and wrote these lines before.
static bool go_on_after(const char *own, log_file *f, error *e) {
  const position at = {.epoch = 2, .step = 20};
  f->written = fingerprint(FINGERPRINT_OF_NOTHING, own, strlen(own));
  return log_file_find(f, "--log", path, headings, &run, e) && log_file_begin(f, &at, place, e);
}

static bool go_on(log_file *f, error *e) {
  return go_on_after("epoch\n0,a\n1,b\n", f, e);
}

static void write_rows(void) {
  scratch_write(path, rows, strlen(rows));
}

// -- Checks ----------------------------------------------------------------------------------------

static void test_going_on(void) {
  error e = {""};
  log_file f = {0};
  write_rows();
  check(go_on(&f, &e) && !f.is_empty, "a log goes on %s", e.text);
  fputs("2,new\n", f.stream);
  check(log_file_written(&f, &e) && !strcmp(text_of(path), "epoch\n0,a\n1,b\n2,new\n"),
        "behind its epoch 1");
  log_file_close(&f);
  scratch_write(path, "epo", 3);
  check(go_on(&f, &e) && f.is_empty, "one that a crash cut in its first line begins anew %s",
        e.text);
  check(f.written == FINGERPRINT_OF_NOTHING, "and nothing is written to it so far");
  log_file_close(&f);
}

// What a checkpoint keeps of a log is what is in the file, however its lines came there.
static void test_fingerprint(void) {
  const position next = {.epoch = 3, .step = 30};
  error e = {""};
  log_file f = {0};
  write_rows();
  if (!check(go_on(&f, &e), "a log goes on %s", e.text)) return;
  fputs("2,a long", f.stream);
  fputs(" row\n", f.stream);
  check(log_file_written(&f, &e) && log_file_written(&f, &e), "a row in two parts %s", e.text);
  fputs("2,d\n", f.stream);
  check(log_file_written(&f, &e), "a shorter one %s", e.text);
  const char *text = text_of(path);
  check(!strcmp(text, "epoch\n0,a\n1,b\n2,a long row\n2,d\n"), "each is there once: %s", text);
  check(f.written == fingerprint(FINGERPRINT_OF_NOTHING, text, strlen(text)),
        "and what was written is the file's fingerprint");
  const uint64_t written = f.written;
  log_file_close(&f);
  f.written = written;
  check(log_file_find(&f, "--log", path, headings, &run, &e) &&
            log_file_begin(&f, &next, place, &e) && f.written == written,
        "so that a run goes on with it %s", e.text);
  log_file_close(&f);
}

// Rows before the checkpoint of a run that had no log.
static void test_rows_of_none(void) {
  const position at = {.epoch = 2, .step = 20};
  error e = {""};
  log_file f = {0};
  write_rows();
  const bool ok =
      log_file_find(&f, "--log", path, headings, &run, &e) && log_file_begin(&f, &at, place, &e);
  log_file_close(&f);
  check_refused(ok, &e, "the log of a run that had none", path, "had no file for --log by then");
  check(!strcmp(text_of(path), rows), "and it stays as it was");
}

// Rows of another run, of the same epochs.
static void test_another_runs_rows(void) {
  static const char *const others[] = {"epoch\n0,a\n1,c\n2,c\n", "epoch\n0,a\n",
                                       "epoch\n0,a\n1,b\n1,b\n"};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    error e = {""};
    log_file f = {0};
    scratch_write(path, others[i], strlen(others[i]));
    const bool ok = go_on(&f, &e);
    log_file_close(&f);
    check_refused(ok, &e, "a log with other rows before the checkpoint", path, "not what the run");
    check(!strcmp(text_of(path), others[i]), "and it stays as it was: %zu", i);
  }
}

// A run that another goes on with would find lines between its own.
static void test_held(void) {
  const position beginning = {0};
  error e = {""};
  log_file f = {0}, second = {0};
  remove(path);
  check(log_file_find(&f, "--log", path, headings, &run, &e) &&
            log_file_begin(&f, &beginning, NULL, &e),
        "a run begins a log %s", e.text);
  fputs(headings, f.stream);
  check(log_file_written(&f, &e), "and writes its headings %s", e.text);
  check_refused(go_on(&second, &e), &e, "another that would go on with it", path,
                "another run is writing to it");
  log_file_close(&second);
  log_file_close(&f);
  check(go_on_after(headings, &f, &e), "once the first has ended it can %s", e.text);
  log_file_close(&f);
}

// Headings alone do not say whose the rows behind them are, and a crash may have left them. Nor does a run go
// on with headings where it wrote more.
static void test_rows_of_whom(void) {
  static const char rows_behind[] = "epoch\n2,x\n2,y";
  char aside[310];
  error e = {""};
  log_file f = {0};
  snprintf(aside, sizeof aside, "%s.1", path);
  scratch_write(path, rows_behind, strlen(rows_behind));
  check(go_on_after(headings, &f, &e) && f.is_empty && !strcmp(text_of(aside), rows_behind),
        "a log without a row before the checkpoint, but with one behind, is moved aside %s",
        e.text);
  log_file_close(&f);
  remove(aside);
  scratch_write(path, headings, strlen(headings));
  check(go_on(&f, &e) && f.is_empty && !strcmp(text_of(aside), headings),
        "headings alone of another run, too %s", e.text);
  log_file_close(&f);
  remove(aside);
  scratch_write(path, headings, strlen(headings));
  check(go_on_after(headings, &f, &e) && !f.is_empty && !file_exists(aside),
        "its own are gone on with %s", e.text);
  log_file_close(&f);
}

// Another program puts a file in the place of the one that was opened.
static void test_replaced(void) {
  const position at = {.epoch = 2, .step = 20};
  error e = {""};
  log_file f = {.written = fingerprint(FINGERPRINT_OF_NOTHING, rows, strlen("epoch\n0,a\n1,b\n"))};
  write_rows();
  check(log_file_find(&f, "--log", path, headings, &run, &e), "a log is opened %s", e.text);
  remove(path);
  write_rows();
  check_refused(log_file_begin(&f, &at, place, &e), &e, "and is another file by now", path,
                "another file than a moment ago");
  log_file_close(&f);
  remove(path);
  f.written = 0;
  check(log_file_find(&f, "--log", path, headings, &run, &e), "a log is created %s", e.text);
  remove(path);
  write_rows();
  log_file_close(&f);
  check(!strcmp(text_of(path), rows), "what came into its place is not removed");
}

// A read error is not the end of the file: what comes behind it is there still.
static void test_read_error(void) {
  for (int at = 0; at <= 4; at++) {
    error e = {""};
    log_file f = {0};
    write_rows();
    disk.reads = at;
    const bool ok = go_on(&f, &e);
    disk.reads = -1;
    log_file_close(&f);
    check_refused(ok, &e, "a log that cannot be read to its end", path, strerror(EIO));
    check(!strcmp(text_of(path), rows), "and it stays as it was, error in line %d", at);
  }
}

// Row 3 is whole here: no crash leaves a row of a later epoch than the checkpoint's.
static void test_another_runs(void) {
  static const char more[] = "epoch\n0,a\n1,b\n2,c\n3,d\n4,";
  error e = {""};
  log_file f = {0};
  scratch_write(path, more, strlen(more));
  const bool ok = go_on(&f, &e);
  log_file_close(&f);
  check_refused(ok, &e, "a log that goes on behind the checkpoint's epoch", path,
                "goes on behind epoch 2");
  check(!strcmp(text_of(path), more), "and it stays as it was");
}

static void test_truncate_error(void) {
  error e = {""};
  log_file f = {0};
  write_rows();
  disk.truncate = true;
  const bool ok = go_on(&f, &e);
  disk.truncate = false;
  log_file_close(&f);
  check_refused(ok, &e, "a log that cannot be cut", path, strerror(EIO));
  check(!strcmp(text_of(path), rows), "and it stays as it was");
}

static void test_sync(void) {
  error e = {""};
  log_file f = {0};
  write_rows();
  if (!check(go_on(&f, &e), "a log goes on %s", e.text)) return;
  fputs("2,c\n", f.stream);
  disk.syncs = 0;
  check(log_file_sync(&f, &e) && disk.syncs == 1 &&
            !strcmp(text_of(path), "epoch\n0,a\n1,b\n2,c\n"),
        "synced: it is written first %s", e.text);
  disk.sync = true;
  const bool ok = log_file_sync(&f, &e);
  disk.sync = false;
  check_refused(ok, &e, "a log that cannot be synced", path, strerror(EIO));
  check(!f.stream && log_file_written(&f, &e), "and nothing is written to it any more");
  log_file_close(&f);
}

// /dev/full takes nothing, and cannot be synced either.
static void test_write_error(void) {
  const position beginning = {0};
  error e = {""};
  log_file f = {0};
  if (access("/dev/full", W_OK) != 0) {
    printf("skip a full disk: no /dev/full here\n");
    return;
  }
  check(log_file_find(&f, "--log", "/dev/full", headings, &run, &e) &&
            log_file_begin(&f, &beginning, NULL, &e) && f.is_empty && log_file_sync(&f, &e),
        "a device is opened as it is %s", e.text);
  for (int i = 0; i < 1000; i++) fputs("more than the stream's buffer has room for\n", f.stream);
  check_refused(log_file_written(&f, &e), &e, "lines that do not fit", "/dev/full",
                strerror(ENOSPC));
  check(!f.stream, "and the stream is closed");
}

// A new run's file that was opened, and then not needed.
static void test_left_empty(void) {
  error e = {""};
  log_file f = {0};
  remove(path);
  check(log_file_find(&f, "--log", path, headings, &run, &e) && file_exists(path), "opened %s",
        e.text);
  log_file_close(&f);
  check(!file_exists(path), "a file into which nothing was written is gone");
}

// Not under any name that the checkpoint has, or will have when its time comes; and a link is no way out.
static void test_names_of_checkpoint(void) {
  static const char *const names[] = {
      CHECKPOINT_NAME ".safetensors", CHECKPOINT_NAME ".resume.safetensors.new",
      KEPT_NAME "000200.safetensors", KEPT_NAME "1234567.resume.safetensors", ".lock"};
  error e = {""};
  log_file f = {0};
  snprintf(run.checkpoint, sizeof run.checkpoint, "%s", scratch_directory);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    const bool found = log_file_find(&f, "--log", scratch_path(names[i]), headings, &run, &e);
    check_refused(found, &e, names[i], scratch_path(names[i]), "is a file of the checkpoint");
    check(!file_exists(scratch_path(names[i])), "and it is not left there");
  }
  remove(path);
  const bool linked = symlink(KEPT_NAME "7.safetensors", path) == 0; // to nothing yet
  const bool found = log_file_find(&f, "--log", path, headings, &run, &e);
  check_refused(linked && found, &e, "a link to such a name", path, "is a file of the checkpoint");
  remove(path);
  check(log_file_find(&f, "--log", scratch_path(KEPT_NAME "7.csv"), headings, &run, &e),
        "another name beside the checkpoint is possible %s", e.text);
  log_file_close(&f);
  run.checkpoint[0] = 0;
}

int main(void) {
  scratch_make();
  snprintf(path, sizeof path, "%s", scratch_path("log.csv"));
  test_going_on();
  test_fingerprint();
  test_another_runs_rows();
  test_rows_of_none();
  test_held();
  test_rows_of_whom();
  test_replaced();
  test_read_error();
  test_another_runs();
  test_truncate_error();
  test_sync();
  test_write_error();
  test_left_empty();
  test_names_of_checkpoint();
  scratch_remove();
  return check_summary();
}
