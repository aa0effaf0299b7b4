// run/log_files.c - opening, continuing and writing logs, traces and bins; see run/log_files.h.
#define _DEFAULT_SOURCE // realpath, flock
#include "log_files.h"

#include "checkpoint.h"
#include "cifar.h"
#include "files.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

// -- What is there -------------------------------------------------------------------------------

static bool same_file(const struct stat *a, const struct stat *b) {
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

// Is it one of the files in this directory whose names `owned` takes? False, with a line in e, where the
// directory cannot be read.
static bool is_in(const struct stat *status, const char *directory, bool owned(const char *name),
                  bool *found, error *e) {
  file_list list;
  struct stat other;
  const bool ok = files_list(directory, owned, &list, e);
  *found = false;
  for (int i = 0; ok && i < list.count; i++)
    *found = *found || (stat(list.paths[i], &other) == 0 && same_file(status, &other));
  files_list_free(&list);
  return ok;
}

// The descriptor of standard output or standard error, where it is one of these; else 0.
static int standard_stream(const struct stat *status) {
  struct stat other;
  for (int i = STDOUT_FILENO; i <= STDERR_FILENO; i++)
    if (fstat(i, &other) == 0 && same_file(status, &other)) return i;
  return 0;
}

// A run reads these, or writes them by itself: then false, with a line in e. Of the checkpoint's names those
// that were not there are there by now, if this is one of them: log_file_find made it.
static bool is_not_the_runs_own(const log_file *f, const struct stat *status, const options *o,
                                error *e) {
  bool data, checkpoint;
  if (!is_in(status, o->data, cifar_owns, &data, e) ||
      !is_in(status, o->checkpoint, checkpoint_owns, &checkpoint, e))
    return false;
  return (!data && !checkpoint) || fail(e, "%s: is a file of the %s; give another %s", f->path,
                                        data ? "data set" : "checkpoint", f->option);
}

// A file that a crash or a full disk cut short within its first line is one of its kind, too.
static bool begins_as_its_kind(const log_file *f, error *e) {
  char start[256];
  FILE *file = fopen(f->path, "r");
  if (!file) return fail(e, "%s: could not be read: %s", f->path, strerror(errno));
  const size_t length = fread(start, 1, strlen(f->beginning), file);
  const int why = ferror(file) ? errno : 0;
  fclose(file);
  if (why) return fail(e, "%s: could not be read: %s", f->path, strerror(why));
  return !memcmp(start, f->beginning, length) ||
         fail(e,
              "%s: does not begin as the file of a %s does (an older program's?), so it stays as "
              "it is; give another %s",
              f->path, f->option, f->option);
}

static bool is_possible(log_file *f, const options *o, error *e) {
  struct stat status;
  if (fstat(f->handle, &status) != 0) return fail(e, "%s: %s", f->path, strerror(errno));
  f->as_it_is = S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode) || standard_stream(&status);
  if (f->as_it_is) return true;
  if (!S_ISREG(status.st_mode))
    return fail(e, "%s: neither a file nor a pipe nor a terminal; give another %s", f->path,
                f->option);
  return is_not_the_runs_own(f, &status, o, e) && begins_as_its_kind(f, e);
}

// A pipe without a reader cannot be opened for writing at once (ENXIO), and would be waited for.
static bool fail_to_open(const log_file *f, int why, error *e) {
  return fail(e, "%s: %s; give another %s", f->path,
              why == ENXIO ? "a pipe that nobody reads" : strerror(why), f->option);
}

bool log_file_find(log_file *f, const char *option, const char *path, const char *beginning,
                   const options *o, error *e) {
  const int flags = O_WRONLY | O_APPEND | O_NONBLOCK | O_NOCTTY;
  const uint64_t written = f->written;
  *f = (log_file){.option = option, .path = path, .beginning = beginning, .written = written};
  f->handle = open(path, flags);
  f->created = f->handle < 0 && errno == ENOENT;
  if (f->created) f->handle = open(path, flags | O_CREAT, 0666);
  if (f->handle < 0) return fail_to_open(f, errno, e);
  if (is_possible(f, o, e)) return true;
  log_file_close(f);
  return false;
}

bool log_files_differ(const log_file *a, const log_file *b, error *e) {
  struct stat of_a, of_b;
  if (fstat(a->handle, &of_a) != 0) return fail(e, "%s: %s", a->path, strerror(errno));
  if (fstat(b->handle, &of_b) != 0) return fail(e, "%s: %s", b->path, strerror(errno));
  if (S_ISCHR(of_a.st_mode) || !same_file(&of_a, &of_b)) return true;
  return fail(e, "%s: the same file as %s; %s and %s need one each", b->path, a->path, a->option,
              b->option);
}

// -- Beginning and going on ------------------------------------------------------------------------

// What an earlier file holds, as seen from a position.
typedef struct {
  int lines_before, lines_behind; // whole ones
  bool too_late;                  // is there a line of a later epoch?
  off_t length;                   // of the lines before, which stand first, in bytes
  uint64_t fingerprint;           // of these
} contents;

// False, with a line in e, where the file cannot be read to its end.
static bool look_into(const log_file *f, const position *at, place_line *place, contents *c,
                      error *e) {
  char *line = NULL;
  size_t room = 0;
  bool before = true;
  ssize_t bytes;
  FILE *in = fopen(f->path, "r");
  *c = (contents){.fingerprint = FINGERPRINT_OF_NOTHING};
  while (in && (bytes = getline(&line, &room, in)) > 0) {
    const bool whole = line[bytes - 1] == '\n';
    const line_place here = whole ? place(line, at) : LINE_BEHIND;
    c->too_late = c->too_late || here == LINE_TOO_LATE;
    before = before && here == LINE_BEFORE;
    if (!before) {
      c->lines_behind += whole;
      continue;
    }
    c->lines_before++;
    c->length += bytes;
    c->fingerprint = fingerprint(c->fingerprint, line, (size_t)bytes);
  }
  const bool ok = in && feof(in);
  if (!ok)
    fail(e, "%s: could not be read to its end: %s; it stays as it is", f->path, strerror(errno));
  free(line);
  if (in) fclose(in);
  return ok;
}

// The first line is the same for many runs, or for all.
static bool has_rows(const contents *c) {
  return c->lines_before > 1;
}

// What comes before the checkpoint has to be what this run wrote.
static bool is_this_runs(const log_file *f, const position *at, const contents *c, error *e) {
  if (c->too_late)
    return fail(e,
                "%s: goes on behind epoch %d, where the checkpoint is, so it is another run's or a "
                "later state's and stays as it is; give another %s",
                f->path, at->epoch, f->option);
  if (has_rows(c) && !f->written)
    return fail(
        e,
        "%s: has rows from before the checkpoint, whose run had no file for %s by then (or is an "
        "older program's), and stays as it is; give another %s",
        f->path, f->option, f->option);
  return !has_rows(c) || c->fingerprint == f->written ||
         fail(e,
              "%s: not what the run of this checkpoint wrote last, so it is another run's or an "
              "earlier one of its own, or was changed, and stays as it is; give another %s",
              f->path, f->option);
}

// A link leads to the new file then, since that has the old one's name.
static bool set_aside(log_file *f, error *e) {
  int number;
  struct stat status;
  if (lstat(f->path, &status) != 0) return fail(e, "%s: %s", f->path, strerror(errno));
  char *target = S_ISLNK(status.st_mode) ? realpath(f->path, NULL) : strdup(f->path);
  if (!target) return fail(e, "%s: %s", f->path, strerror(errno));
  const char *const paths[] = {target};
  const bool ok = files_set_aside(paths, 1, &number, e);
  if (ok) {
    printf("%s: what stood there is now %s.%d\n", f->path, target, number);
    close(f->handle);
    f->handle = open(target, O_WRONLY | O_APPEND | O_CREAT | O_EXCL, 0666);
  }
  const int why = errno;
  free(target);
  return ok && (f->handle >= 0 || fail_to_open(f, why, e));
}

// A run holds its files until it ends: what another goes on with, it would spoil. To move them aside does no
// harm. True also where the file system knows no locks.
static bool hold(const log_file *f, error *e) {
  return flock(f->handle, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK ||
         fail(e, "%s: another run is writing to it; give another %s", f->path, f->option);
}

// Does the name still lead to the file that was opened? Another run may have moved that aside.
static bool is_still_there(const log_file *f) {
  struct stat opened, named;
  return fstat(f->handle, &opened) == 0 && stat(f->path, &named) == 0 && same_file(&opened, &named);
}

bool log_file_may_go_on(const log_file *f, const position *at, place_line *place, error *e) {
  contents c;
  return f->as_it_is ||
         (hold(f, e) && look_into(f, at, place, &c, e) && is_this_runs(f, at, &c, e));
}

// Goes on with a file that holds something. The lines behind the checkpoint are cut off in one step: there
// is no copy that could be cut short, or be lost with its new name. Where no row before it tells whose they
// are, or there is only a first line that this run did not write, the file is moved aside.
static bool go_on(log_file *f, const position *at, place_line *place, error *e) {
  contents c;
  if (!hold(f, e) || !look_into(f, at, place, &c, e) || !is_this_runs(f, at, &c, e)) return false;
  if (!is_still_there(f))
    return fail(e, "%s: another file than a moment ago; it stays as it is", f->path);
  const bool foreign = c.lines_before == 1 && c.fingerprint != f->written;
  if (foreign || (!has_rows(&c) && c.lines_behind)) return set_aside(f, e);
  f->written = c.fingerprint;
  return ftruncate(f->handle, c.length) == 0 ||
         fail(e, "%s: could not be continued: %s", f->path, strerror(errno));
}

// Two descriptors that each keep a place of their own in standard output would overwrite each other.
static bool take_as_it_is(log_file *f, error *e) {
  struct stat status;
  if (fstat(f->handle, &status) != 0) return fail(e, "%s: %s", f->path, strerror(errno));
  const int stream = standard_stream(&status);
  fflush(stdout);
  if (stream ? dup2(stream, f->handle) >= 0
             : fcntl(f->handle, F_SETFL, O_APPEND) == 0) // without O_NONBLOCK
    return true;
  return fail_to_open(f, errno, e);
}

static bool begin_file(log_file *f, const position *at, place_line *place, error *e) {
  struct stat status;
  if (fstat(f->handle, &status) != 0) return fail(e, "%s: %s", f->path, strerror(errno));
  if (status.st_size > 0 && !(at->step > 0 ? go_on(f, at, place, e) : set_aside(f, e)))
    return false;
  if (fstat(f->handle, &status) != 0) return fail(e, "%s: %s", f->path, strerror(errno));
  f->is_empty = status.st_size == 0;
  if (!f->is_empty) return true;
  if (!hold(f, e)) return false;
  f->written = FINGERPRINT_OF_NOTHING;
  char *target = realpath(f->path, NULL);
  const bool ok = target ? file_sync_name(target, e) : fail(e, "%s: %s", f->path, strerror(errno));
  free(target);
  return ok;
}

bool log_file_begin(log_file *f, const position *at, place_line *place, error *e) {
  f->is_empty = at->step == 0; // of what has no length
  if (!(f->as_it_is ? take_as_it_is(f, e) : begin_file(f, at, place, e))) return false;
  f->stream = open_memstream(&f->lines, &f->bytes);
  return f->stream || fail(e, "%s: %s", f->path, strerror(errno));
}

// -- Writing -------------------------------------------------------------------------------------

// What comes after a line that is cut short could not be read: so nothing does.
static bool fail_and_close(log_file *f, const char *what, error *e) {
  const int why = errno;
  f->created = false;
  log_file_close(f);
  return fail(e, "%s: could not be %s: %s", f->path, what, strerror(why));
}

bool log_file_written(log_file *f, error *e) {
  if (!f->stream) return true;
  if (fflush(f->stream) != 0 || ferror(f->stream) || !file_write(f->handle, f->lines, f->bytes))
    return fail_and_close(f, "written", e);
  if (!f->as_it_is) f->written = fingerprint(f->written, f->lines, f->bytes);
  rewind(f->stream);
  f->bytes = 0;
  return true;
}

bool log_file_sync(log_file *f, error *e) {
  if (!f->stream) return true;
  if (!log_file_written(f, e)) return false;
  // EINVAL: what it is cannot be synced, as pipes and devices cannot.
  return fsync(f->handle) == 0 || errno == EINVAL || fail_and_close(f, "synced", e);
}

void log_file_close(log_file *f) {
  struct stat status;
  char *target = f->created ? realpath(f->path, NULL) : NULL;
  if (target && fstat(f->handle, &status) == 0 && status.st_size == 0 && is_still_there(f))
    unlink(target);
  free(target);
  if (f->stream) fclose(f->stream);
  free(f->lines);
  if (f->path && f->handle >= 0) close(f->handle);
  f->stream = NULL;
  f->lines = NULL;
  f->handle = -1;
}
