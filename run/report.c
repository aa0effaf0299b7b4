// run/report.c - lines on the screen, the CSV log, the trace; report.h says what is in them.
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include "files.h"
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_EVERY = 100 }; // batches, as the recipe's notebook does

double clock_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// -- Opening the files ---------------------------------------------------------------------------

// Did this line of a log or trace come from before the position?
typedef bool keep_line(const char *line, const position *at);

static bool keep_row(const char *line, const position *at) {
  int epoch;
  return sscanf(line, "%d,", &epoch) != 1 || epoch < at->epoch; // the heading has no number
}

static bool keep_record(const char *line, const position *at) {
  int epoch;
  long long step;
  if (sscanf(line, "{\"epoch\":%d,\"step\":%lld", &epoch, &step) == 2) return step <= at->step;
  return sscanf(line, "{\"epoch\":%d,", &epoch) != 1 || epoch < at->epoch;
}

// Rewrites the file with the lines to keep; a last line that a crash cut short goes too.
static bool cut(const char *path, const position *at, keep_line *keep, error *e) {
  char new_path[PATH_ROOM + 8], *line = NULL;
  size_t room = 0;
  snprintf(new_path, sizeof new_path, "%s.new", path);
  FILE *in = fopen(path, "r"), *out = fopen(new_path, "w");
  bool ok = in && out;
  for (ssize_t length; ok && (length = getline(&line, &room, in)) > 0;)
    if (line[length - 1] == '\n' && keep(line, at)) ok = fputs(line, out) >= 0;
  const int why = errno;
  free(line);
  if (in) fclose(in);
  if (out && fclose(out) != 0) ok = false;
  if (!ok) return fail(e, "%s: could not be continued: %s", path, strerror(why));
  return file_replace(new_path, path, e);
}

// *file is open for appending; *is_new tells whether it needs its first line.
static bool open_one(const char *path, const position *at, keep_line *keep, FILE **file,
                     bool *is_new, error *e) {
  int number;
  *is_new = !(at->step > 0 && file_exists(path));
  if (!*is_new && !cut(path, at, keep, e)) return false;
  if (*is_new && !files_set_aside(&path, 1, &number, e)) return false;
  *file = fopen(path, "a");
  return *file || fail(e, "%s: %s", path, strerror(errno));
}

static const char *kind_of_data(const dataset *data) {
  if (data->is_cifar10) return "cifar10";
  return strstr(data->description, "STAND-IN") ? "stand-in" : "unknown";
}

static void print_json_string(FILE *out, const char *text) {
  fputc('"', out);
  for (; *text; text++) {
    if (*text == '"' || *text == '\\') fputc('\\', out);
    if ((unsigned char)*text < 0x20)
      fprintf(out, "\\u%04x", *text);
    else
      fputc(*text, out);
  }
  fputc('"', out);
}

static void trace_run(FILE *out, const options *o, const dataset *data, const char *device) {
  fprintf(out, "{\"trace\":1,\"data\":");
  print_json_string(out, o->data);
  fprintf(out,
          ",\"seed\":%llu,\"width\":%d,\"batch\":%d,\"train_images\":%d,\"test_images\":%d,"
          "\"lr\":%.17g,\"momentum\":%.17g,\"weight_decay\":%.17g,\"mixup_alpha\":%.17g,"
          "\"smoothing\":%.17g,\"device\":\"%s\"}\n",
          (unsigned long long)o->seed, o->width, o->batch, data->train_count, data->test_count,
          o->lr, o->momentum, o->weight_decay, o->mixup_alpha, o->smoothing, device);
}

bool report_open(report *r, const options *o, const dataset *data, const char *device,
                 const position *at, error *e) {
  bool is_new;
  *r =
      (report){.terminal = isatty(STDOUT_FILENO), .begun = clock_seconds(), .begun_step = at->step};
  if (o->log[0]) {
    if (!open_one(o->log, at, keep_row, &r->csv, &is_new, e)) return false;
    if (is_new)
      fprintf(r->csv, "epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy,seconds,data\n");
  }
  if (o->trace[0]) {
    if (!open_one(o->trace, at, keep_record, &r->trace, &is_new, e)) return false;
    if (is_new) trace_run(r->trace, o, data, device);
  }
  return true;
}

static bool close_one(FILE *file, const char *what, error *e) {
  if (!file) return true;
  const bool failed = ferror(file);
  return (fclose(file) == 0 && !failed) || fail(e, "the %s could not be written: disk full?", what);
}

bool report_close(report *r, error *e) {
  const bool log = close_one(r->csv, "--log file", e);
  return close_one(r->trace, "--trace file", e) && log;
}

// -- Steps ----------------------------------------------------------------------------------------------

static void trace_step(FILE *out, const position *at, const sample *samples, int count,
                       float lambda, double rate, double loss, double correct) {
  fprintf(out, "{\"epoch\":%d,\"step\":%lld,\"lr\":%.9g,\"lambda\":%.9g,\"index\":[", at->epoch,
          (long long)at->step, rate, lambda);
  for (int b = 0; b < count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].image);
  fprintf(out, "],\"partner\":[");
  for (int b = 0; b < count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].partner);
  fprintf(out, "],\"crop\":[");
  for (int b = 0; b < count; b++)
    fprintf(out, "%s[%d,%d]", b ? "," : "", samples[b].crop_y, samples[b].crop_x);
  fprintf(out, "],\"flip\":[");
  for (int b = 0; b < count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].flip);
  fprintf(out, "],\"loss\":%.17g,\"correct\":%.17g}\n", loss / count, correct);
  fflush(out);
}

// A line that the next one overwrites; other output first clears it.
static void clear_progress(report *r) {
  if (r->progress_shown) printf("\r\033[K");
  r->progress_shown = false;
}

static void show_progress(report *r, const options *o, const position *at, int steps, int batch) {
  const double spent = clock_seconds() - r->begun;
  const double steps_a_second = (double)(at->step - r->begun_step) / spent;
  const int64_t left = (int64_t)(o->epochs - at->epoch) * steps - at->step_in_epoch;
  const long seconds = (long)((double)left / steps_a_second);
  printf("\r\033[Kepoch %d of %d: batch %d/%d, %.0f images/s, %ld:%02ld:%02ld left", at->epoch,
         o->epochs, at->step_in_epoch, steps, steps_a_second * batch, seconds / 3600,
         seconds / 60 % 60, seconds % 60);
  fflush(stdout);
  r->progress_shown = true;
}

void report_step(report *r, const options *o, const dataset *data, const position *at,
                 const sample *samples, int count, float lambda, double rate, double loss,
                 double correct) {
  const int steps = (data->train_count + o->batch - 1) / o->batch;
  if (r->trace) trace_step(r->trace, at, samples, count, lambda, rate, loss, correct);
  if ((at->step_in_epoch - 1) % LINE_EVERY == 0) {
    clear_progress(r);
    printf("epoch %3d  batch %4d/%d  lambda %.4f  batch accuracy %6.2f %%  loss %.4f\n", at->epoch,
           at->step_in_epoch, steps, lambda, 100 * correct / count, loss / count);
    fflush(stdout);
  }
  if (r->terminal) show_progress(r, o, at, steps, o->batch);
}

void report_epoch(report *r, const options *o, const dataset *data, const position *at,
                  const score *test) {
  const double images = (double)at->images;
  const double rate = options_learning_rate(o, at->epoch);
  clear_progress(r);
  printf("epoch %3d  train accuracy %6.2f %%  loss %.4f   test accuracy %6.2f %%  loss %.4f   "
         "lr %g  %.1f s  %.0f images/s\n",
         at->epoch, 100 * at->correct / images, at->loss / images, 100 * test->accuracy, test->loss,
         rate, at->seconds, images / at->seconds);
  fflush(stdout);
  if (r->csv) {
    fprintf(r->csv, "%d,%.9g,%.9g,%.9g,%.9g,%.9g,%.3f,%s\n", at->epoch, rate, at->loss / images,
            at->correct / images, test->loss, test->accuracy, at->seconds, kind_of_data(data));
    fflush(r->csv);
  }
  if (r->trace) {
    fprintf(r->trace,
            "{\"epoch\":%d,\"train_loss\":%.17g,\"train_accuracy\":%.17g,\"test_loss\":%.17g,"
            "\"test_accuracy\":%.17g,\"seconds\":%.3f}\n",
            at->epoch, at->loss / images, at->correct / images, test->loss, test->accuracy,
            at->seconds);
    fflush(r->trace);
  }
}
