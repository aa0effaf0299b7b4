// run/report.c - lines on the screen, the CSV log, the trace; report.h says what is in them.
#define _POSIX_C_SOURCE 200809L
#include "report.h"

#include "checkpoint.h"
#include "inspect.h"
#include "schedule.h"
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { LINE_EVERY = 100 }; // batches, as the recipe's notebook does

// How a log and a trace begin.
static const char csv_headings[] =
    "epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy,test_nll,seconds,data\n";
static const char trace_beginning[] = "{\"trace\":3,";

double clock_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// -- Opening the files ---------------------------------------------------------------------------

static line_place place_epoch(int epoch, const position *at) {
  return epoch < at->epoch ? LINE_BEFORE : epoch == at->epoch ? LINE_BEHIND : LINE_TOO_LATE;
}

static line_place place_row(const char *line, const position *at) {
  int epoch;
  if (sscanf(line, "%d,", &epoch) != 1) return LINE_BEFORE; // the headings have no number
  return place_epoch(epoch, at);
}

static line_place place_record(const char *line, const position *at) {
  int epoch;
  long long step;
  const int found = sscanf(line, "{\"epoch\":%d,\"step\":%lld", &epoch, &step);
  if (found < 1 || (found == 2 && step <= at->step)) return LINE_BEFORE;
  return place_epoch(epoch, at);
}

const char *report_kind_of_data(const dataset *data) {
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

// What stays as it is for the whole run. What a resumed run may change stands in each step.
static void trace_run(FILE *out, const options *o, const dataset *data) {
  fprintf(out, "%s\"data\":", trace_beginning);
  print_json_string(out, o->data);
  fprintf(out, ",\"seed\":%llu,\"width\":%d,\"batch\":%d,\"train_images\":%d,\"test_images\":%d}\n",
          (unsigned long long)o->seed, o->width, o->batch, data->train_count, data->test_count);
}

// How wide a line of the screen is; 0 where the output goes elsewhere.
static int terminal_columns(void) {
  struct winsize size;
  if (!isatty(STDOUT_FILENO)) return 0;
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

bool report_find(report *r, const options *o, error *e) {
  r->columns = terminal_columns();
  const bool ok =
      (!o->log[0] || log_file_find(&r->log, "--log", o->log, csv_headings, o, e)) &&
      (!o->trace[0] || log_file_find(&r->trace, "--trace", o->trace, trace_beginning, o, e)) &&
      (!o->log[0] || !o->trace[0] || log_files_differ(&r->log, &r->trace, e));
  if (!ok) report_close(r);
  return ok;
}

// Both, before one of them is changed.
static bool may_go_on(const report *r, const options *o, const position *at, error *e) {
  return (!o->log[0] || log_file_may_go_on(&r->log, at, place_row, e)) &&
         (!o->trace[0] || log_file_may_go_on(&r->trace, at, place_record, e));
}

bool report_begin(report *r, const options *o, const dataset *data, const device *device,
                  const position *at, error *e) {
  r->device = device;
  r->begun = clock_seconds();
  r->begun_step = at->step;
  const bool ok = (at->step == 0 || may_go_on(r, o, at, e)) &&
                  (!o->log[0] || log_file_begin(&r->log, at, place_row, e)) &&
                  (!o->trace[0] || log_file_begin(&r->trace, at, place_record, e));
  if (ok && r->log.is_empty) fputs(csv_headings, r->log.stream);
  if (ok && r->trace.is_empty) trace_run(r->trace.stream, o, data);
  return ok && log_file_written(&r->log, e) && log_file_written(&r->trace, e);
}

// A line that the next one overwrites; other output first clears it.
static void clear_progress(report *r) {
  if (r->progress_shown) printf("\r\033[K");
  r->progress_shown = false;
}

bool report_sync(report *r, error *e) {
  return log_file_sync(&r->log, e) && log_file_sync(&r->trace, e);
}

void report_close(report *r) {
  clear_progress(r);
  log_file_close(&r->log);
  log_file_close(&r->trace);
}

void report_recipe(const options *o) {
  metadata settings[SAVED_OPTIONS];
  const int count = options_to_metadata(o, settings);
  printf("recipe    ");
  for (int i = 0; i < count; i++)
    if (strcmp(settings[i].value, "0") || strstr(settings[i].key, "images") == NULL)
      printf("%s %s %s", i ? "," : "", settings[i].key, settings[i].value);
  printf("\n");
}

// -- Steps ----------------------------------------------------------------------------------------------

static void trace_step(const report *r, const options *o, const position *at,
                       const drawn_batch *batch, const step_result *result) {
  const sample *samples = batch->samples;
  FILE *out = r->trace.stream;
  fprintf(out,
          "{\"epoch\":%d,\"step\":%lld,\"activations\":\"%s\",\"lr\":%.9g,\"momentum\":%.17g,"
          "\"weight_decay\":%.17g,\"smoothing\":%.17g,\"lambda\":%.9g,\"index\":[",
          at->epoch, (long long)at->step,
          r->device->activation_bytes == sizeof(uint16_t) ? "bf16" : "float32",
          batch->learning_rate, o->momentum, o->weight_decay, o->smoothing, batch->lambda);
  for (int b = 0; b < batch->count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].image);
  fprintf(out, "],\"partner\":[");
  for (int b = 0; b < batch->count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].partner);
  fprintf(out, "],\"crop\":[");
  for (int b = 0; b < batch->count; b++)
    fprintf(out, "%s[%d,%d]", b ? "," : "", samples[b].crop_y, samples[b].crop_x);
  fprintf(out, "],\"flip\":[");
  for (int b = 0; b < batch->count; b++) fprintf(out, "%s%d", b ? "," : "", samples[b].flip);
  fprintf(out, "],\"loss\":%.17g,\"correct\":%.17g}\n", result->loss / batch->count,
          result->correct);
}

// A line that wraps could not be overwritten, so it is cut where the terminal ends. Where the speed has
// no room it is left out: a terminal of 40 columns shows the rest.
static void show_progress(report *r, const options *o, const position *at, int steps) {
  char line[200], speed[40];
  const double spent = clock_seconds() - r->begun;
  const int64_t left = (int64_t)(o->epochs - at->epoch) * steps - at->step_in_epoch;
  const long seconds = (long)((double)left * spent / (double)(at->step - r->begun_step));
  const int length = snprintf(line, sizeof line, "epoch %d (0-%d) %d/%d %ld:%02ld:%02ld left",
                              at->epoch, o->epochs - 1, at->step_in_epoch, steps, seconds / 3600,
                              seconds / 60 % 60, seconds % 60);
  const int more = snprintf(speed, sizeof speed, ", %.0f images/s", (double)r->images / spent);
  printf("\r\033[K%.*s%s", r->columns - 1, line, length + more < r->columns ? speed : "");
  fflush(stdout);
  r->progress_shown = true;
}

bool report_step(report *r, const options *o, const dataset *data, const position *at,
                 const drawn_batch *batch, const step_result *result, error *e) {
  const int steps = (data->train_count + o->batch - 1) / o->batch;
  r->images += batch->count;
  if (r->trace.stream) trace_step(r, o, at, batch, result);
  if (!log_file_written(&r->trace, e)) return false;
  if ((at->step_in_epoch - 1) % LINE_EVERY == 0) {
    clear_progress(r);
    printf("epoch %3d  batch %4d/%d  lambda %.4f  batch accuracy %6.2f %%  loss %.4f\n", at->epoch,
           at->step_in_epoch, steps, batch->lambda, 100 * result->correct / batch->count,
           result->loss / batch->count);
    fflush(stdout);
  }
  if (r->columns) show_progress(r, o, at, steps);
  return true;
}

bool report_epoch(report *r, const options *o, const dataset *data, const position *at,
                  const score *test, error *e) {
  const double images = (double)at->images;
  const double rate = learning_rate_of(o, at->epoch);
  const uint64_t before_row = r->log.written;
  clear_progress(r);
  printf("epoch %3d  train accuracy %6.2f %%  loss %.4f   test accuracy %6.2f %%  loss %.4f   "
         "lr %g  %.1f s  %.0f images/s\n",
         at->epoch, 100 * at->correct / images, at->loss / images, 100 * test->accuracy, test->loss,
         rate, at->seconds, images / at->seconds);
  fflush(stdout);
  if (r->log.stream)
    fprintf(r->log.stream, "%d,%.9g,%.9g,%.9g,%.9g,%.9g,%.9g,%.3f,%s\n", at->epoch, rate,
            at->loss / images, at->correct / images, test->loss, test->accuracy, test->nll,
            at->seconds, report_kind_of_data(data));
  if (!log_file_written(&r->log, e)) return false;
  if (r->trace.stream)
    fprintf(r->trace.stream,
            "{\"epoch\":%d,\"train_loss\":%.17g,\"train_accuracy\":%.17g,\"test_loss\":%.17g,"
            "\"test_accuracy\":%.17g,\"seconds\":%.3f}\n",
            at->epoch, at->loss / images, at->correct / images, test->loss, test->accuracy,
            at->seconds);
  if (log_file_written(&r->trace, e)) return true;
  r->log.written = before_row; // a resumed run writes both lines
  return false;
}

// -- The end of a run -----------------------------------------------------------------------------

// As a shell reads it: in quotes where anything but the usual characters of a path stands in it.
static void print_path(const char *path) {
  const char *usual = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./+,=:@";
  if (path[strspn(path, usual)] == 0) {
    printf("%s", path);
    return;
  }
  putchar('\'');
  for (; *path; path++)
    if (*path == '\'')
      printf("'\\''");
    else
      putchar(*path);
  putchar('\'');
}

// The hours of the whole recipe, were its network's arithmetic done at the speed of this process. At
// width 64 an image takes (64 / width)^2 times the arithmetic; but wider layers keep a processor
// busier, so the true time is rather shorter. Negative: too few images were trained to tell.
static double hours_of_recipe(const report *r, const network *n) {
  enum { IMAGES = 50000, FEWEST = 5000 };
  const options *o = options_recipe();
  network recipe;
  error e;
  if (r->images < FEWEST || !network_describe(&recipe, n->device, o->width, 1, &e)) return -1;
  const double seconds = (clock_seconds() - r->begun) / (double)r->images; // tests included
  return seconds * network_flops(&recipe) / network_flops(n) * o->epochs * IMAGES / 3600;
}

static void print_next(const report *r, const options *o, const network *n) {
  char weights[PATH_ROOM + 64];
  snprintf(weights, sizeof weights, "%s/" CHECKPOINT_NAME ".safetensors", o->checkpoint);
  printf("next:  ./train --data ");
  print_path(o->data);
  printf(" --eval ");
  print_path(weights);
  if (o->test_images) printf(" --test-images %d", o->test_images);
  const options *recipe = options_recipe();
  if (o->width >= recipe->width) {
    printf("\n");
    return;
  }
  if (options_given(o, "preset")) {
    printf("\n       ./train --data ");
    print_path(o->data);
    printf(" --preset quick --epochs %d    # longer, and better", 3 * o->epochs);
  }
  printf("\n       ./train --data ");
  print_path(o->data);
  printf("    # the whole recipe: width %d, %d epochs", recipe->width, recipe->epochs);
  const double hours = hours_of_recipe(r, n);
  if (hours >= 0) printf("; up to %.*f hours here", hours < 10, hours);
  printf("\n");
}

void report_done(report *r, const options *o, const dataset *data, const position *at,
                 const score *test, const network *n) {
  clear_progress(r);
  printf("\ndone: test accuracy %.2f %% (%d of %d) after %d epoch%s, seed %" PRIu64 ", on %s\n",
         100 * test->accuracy, test->correct, test->images, at->epoch, at->epoch == 1 ? "" : "s",
         o->seed, data->description);
  printf("this took %.0f s; the weights are in %s/" CHECKPOINT_NAME ".safetensors\n",
         clock_seconds() - r->begun, o->checkpoint);
  print_next(r, o, n);
}

void report_stopped(report *r, const options *o, const position *at) {
  clear_progress(r);
  if (at->step == 0)
    printf("\nstopped before the first step; nothing was saved\n");
  else
    printf("\nstopped after step %lld and saved in %s; to go on, give the same command with "
           "--resume\n",
           (long long)at->step, o->checkpoint);
}
