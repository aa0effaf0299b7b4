// run/log_files.h - the files into which a run writes line by line: --log, --trace and --bins.
//
// What stands under such a name already decides what happens there:
//
//     nothing, or an empty file   it is written
//     an earlier file of its kind a new run moves it aside, to NAME.1 (.2, ..), and says so; a resumed
//                                 run cuts off what came after its checkpoint, and appends. But it
//                                 refuses what another run has written: where the lines before the
//                                 checkpoint are not those that it wrote itself, or more than an
//                                 epoch comes behind, which no crash leaves; and what another run
//                                 is writing now, which holds a lock on it
//     a pipe (FIFO), a character  is appended to as it is; a pipe that nobody reads is refused, since
//     device, or what standard    to open it would mean to wait
//     output is already
//     anything else               is refused and stays as it is: a directory, a file that does not
//                                 begin as one of its kind, a file of the data set or the checkpoint,
//                                 the file that is --log and --trace at once
//
// A symbolic link is followed: what it leads to is moved aside, and the link then leads to the new
// file. Files are compared by device and inode, so no link makes two of one.
//
//     log_file_find(&log, ..) && log_file_begin(&log, ..)      all that can be refused, then changes
//     fprintf(log.stream, ..); log_file_written(&log, e)       a line, which is then with the system
//     log_file_sync(&log, e)                                   and on the disk
//
// How does a run know its own lines? Its checkpoint keeps the fingerprint of all that it had written until
// then (`written`). Two runs' logs differ in their seconds, if in nothing else. But runs that share a
// history, as two that went on from one state, share its lines, and two of the same settings have the same
// trace of their first epoch: what such a run wrote in the epoch of the checkpoint looks like what a crash
// leaves there, and is cut off.
//
// Checked by `make check`: tests/train_test.sh, and tests/log_files_test.c for what a disk can do.
#ifndef LOG_FILES_H
#define LOG_FILES_H

#include "options.h"
#include "progress.h"

typedef struct {
  const char *option, *path; // "--log", and where that is
  const char *beginning;     // how each file of this kind begins
  int handle;
  FILE *stream; // NULL before log_file_begin, after log_file_close, and after a line that failed
  char *lines;  // in memory: where the stream goes until log_file_written
  size_t bytes; // of them
  uint64_t written; // fingerprint (files.h) of what this run wrote to the file; 0: not known
  bool created;     // by log_file_find
  bool as_it_is;    // a pipe, a device, or standard output
  bool is_empty;    // after log_file_begin: the first line has to be written
} log_file;

// Where a line of such a file stands, as seen from a position: before it; behind it, in the same epoch;
// or in a later epoch, into which no run goes before it is saved.
typedef enum { LINE_BEFORE, LINE_BEHIND, LINE_TOO_LATE } line_place;
typedef line_place place_line(const char *line, const position *at);

// Opens what is there, or an empty file. False, with a line in e and all as it was, for what is
// refused. `beginning` stays the caller's, and f->written is what the checkpoint says (0 without one).
bool log_file_find(log_file *f, const char *option, const char *path, const char *beginning,
                   const options *o, error *e);

// False, with a line in e, if the two are the same file.
bool log_files_differ(const log_file *a, const log_file *b, error *e);

// For a resumed run: true if log_file_begin can go on with what is there. So nothing is changed of a log where
// the trace beside it is refused. False, with a line in e, if the lines before `at` are not those of
// f->written, if one is LINE_TOO_LATE, if another run is writing, or if the file cannot be read to its end.
bool log_file_may_go_on(const log_file *f, const position *at, place_line *place, error *e);

// Moves an earlier run's file aside where the run is new (step 0), else cuts off what came after `at`:
// from the first line on that is not LINE_BEFORE, or that a crash cut short. Where only the first line is
// LINE_BEFORE and others come behind it, or it is not this run's, the file is moved aside, too. False,
// with a line in e and the file as it was, where log_file_may_go_on is.
bool log_file_begin(log_file *f, const position *at, place_line *place, error *e);

// After each line. False, with a line in e, if it could not be written; the stream is closed then.
bool log_file_written(log_file *f, error *e);

// Has all lines so far reach the disk.
bool log_file_sync(log_file *f, error *e);

// Removes the file if log_file_find made it, nothing is in it, and its name still leads to it.
void log_file_close(log_file *f);

#endif
