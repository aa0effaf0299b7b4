// tools/plot.c - draws what `./train --log` wrote: learning curves, as SVG.
//
//     ./train --log run.csv ..
//     tools/plot run.csv -o run.svg
//     tools/plot plain=a.csv plain=b.csv mixup=c.csv -o both.svg
//
// Three charts: the accuracy on training images as training sees them, cropped, flipped and perhaps
// mixed; the accuracy and the negative log likelihood on the test images. Logs with the same name
// before the = are runs of one kind from several seeds: their mean is a line, and the band around
// it goes from the least to the most of them. The name of a log without one is its path. A log whose
// run is not at its end counts as far as it goes. Another program's log will do, too: a chart is drawn
// where every log has its column.
#include "svg.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum { LOGS = 64, SERIES = 8, EPOCHS = 4096, COLUMNS = 16 };
enum { LEFT = 62, TOP = 64, WIDTH = 250, HEIGHT = 190, STRIDE = WIDTH + 72 };

typedef struct {
  const char *column, *title;
  double factor; // from the log's unit to the chart's
} figure;

static const figure figures[] = {{"train_accuracy", "training accuracy, %", 100},
                                 {"test_accuracy", "test accuracy, %", 100},
                                 {"test_nll", "test NLL (negative log likelihood)", 1}};
enum { FIGURES = sizeof figures / sizeof *figures };

typedef struct {
  const char *path;
  int series; // its position in `names`
  int epochs;
  int column[FIGURES]; // where in a row the figure is; -1: nowhere
  double value[FIGURES][EPOCHS];
} run_log;

typedef struct {
  run_log *logs[LOGS];
  int log_count;
  const char *names[SERIES];
  int series_count;
  const char *out;
} request;

// Cuts the next field off a line; NULL behind the last one.
static char *next_field(char **line) {
  char *field = *line;
  if (!field) return NULL;
  char *end = field + strcspn(field, ",\r\n");
  *line = *end == ',' ? end + 1 : NULL;
  *end = 0;
  return field;
}

// Where each figure's column is, from the line of headings. False where it has none of them.
static bool find_columns(char *headings, int columns[FIGURES]) {
  bool found = false;
  for (int i = 0; i < FIGURES; i++) columns[i] = -1;
  int number = 0;
  for (char *name = next_field(&headings); name; name = next_field(&headings), number++)
    for (int i = 0; i < FIGURES; i++)
      if (!strcmp(name, figures[i].column)) columns[i] = number, found = true;
  return found;
}

// The row of the next epoch. False for one that is cut short or holds something else.
static bool read_row(char *line, run_log *log) {
  double row[COLUMNS];
  int count = 0;
  for (char *field; count < COLUMNS && (field = next_field(&line)); count++) {
    char *end;
    row[count] = strtod(field, &end);
    if (end == field || *end) row[count] = NAN; // it says something else
  }
  if (count == 0 || row[0] != log->epochs) return false; // epochs count from 0
  for (int i = 0; i < FIGURES; i++) {
    if (log->column[i] < 0) continue;
    if (log->column[i] >= count || isnan(row[log->column[i]])) return false;
    log->value[i][log->epochs] = row[log->column[i]] * figures[i].factor;
  }
  log->epochs++;
  return true;
}

static bool read_log(run_log *log, error *e) {
  char line[1024];
  FILE *in = fopen(log->path, "r");
  if (!in) return fail(e, "%s: cannot be opened: %s", log->path, strerror(errno));
  bool ok = fgets(line, sizeof line, in) && find_columns(line, log->column);
  if (!ok) fail(e, "%s: is no log of ./train --log: its headings are others", log->path);
  while (ok && fgets(line, sizeof line, in)) {
    ok = log->epochs < EPOCHS || fail(e, "%s: has more than %d epochs", log->path, EPOCHS);
    if (ok && !(ok = read_row(line, log)))
      fail(e, "%s: line %d is not the row of epoch %d", log->path, log->epochs + 2, log->epochs);
  }
  if (ok && ferror(in)) ok = fail(e, "%s: could not be read", log->path);
  fclose(in);
  if (ok && log->epochs == 0) return fail(e, "%s: has no epoch yet", log->path);
  return ok;
}

// Mean, least and most of the series' runs at each epoch that one of them has reached. Returns how
// many epochs that are.
static int summarise(const request *r, int series, int figure, double *mean, double *least,
                     double *most) {
  for (int epoch = 0; epoch < EPOCHS; epoch++) {
    int count = 0;
    double sum = 0;
    least[epoch] = INFINITY, most[epoch] = -INFINITY;
    for (int i = 0; i < r->log_count; i++) {
      const run_log *log = r->logs[i];
      if (log->series != series || epoch >= log->epochs) continue;
      const double value = log->value[figure][epoch];
      sum += value, count++;
      least[epoch] = fmin(least[epoch], value), most[epoch] = fmax(most[epoch], value);
    }
    if (count == 0) return epoch;
    mean[epoch] = sum / count;
  }
  return EPOCHS;
}

// The upper edge of a chart: all of an accuracy; of a loss what is beyond the first few epochs, since a
// run's beginning can be far above all the rest.
static double upper_edge(const request *r, int figure) {
  double most = 0;
  if (figures[figure].factor == 100) return 100;
  for (int i = 0; i < r->log_count; i++) {
    const run_log *log = r->logs[i];
    for (int epoch = log->epochs / 10; epoch < log->epochs; epoch++)
      most = fmax(most, log->value[figure][epoch]);
  }
  return most > 0 ? 1.05 * most : 1;
}

// Whether every log has it. A chart in which one of the lines is missing would be read wrong.
static bool in_all_logs(const request *r, int figure) {
  for (int i = 0; i < r->log_count; i++)
    if (r->logs[i]->column[figure] < 0) return false;
  return true;
}

// The chart that has `place` others on its left.
static void draw_figure(FILE *out, const request *r, int figure, int place, int epochs) {
  static double x[EPOCHS], mean[EPOCHS], least[EPOCHS], most[EPOCHS];
  const chart c = {.left = LEFT + STRIDE * place,
                   .top = TOP,
                   .width = WIDTH,
                   .height = HEIGHT,
                   .x1 = epochs > 1 ? epochs - 1 : 1,
                   .y1 = upper_edge(r, figure)};
  for (int i = 0; i < EPOCHS; i++) x[i] = i;
  chart_axes(out, &c, figures[figure].title, "epoch", "");
  for (int s = 0; s < r->series_count; s++) {
    const int count = summarise(r, s, figure, mean, least, most);
    chart_band(out, &c, series_look(s), count, x, least, most);
    chart_line(out, &c, series_look(s), count, x, mean);
  }
}

static bool draw(const request *r, error *e) {
  int epochs = 0, charts = 0, place = 0;
  for (int i = 0; i < r->log_count; i++)
    if (r->logs[i]->epochs > epochs) epochs = r->logs[i]->epochs;
  for (int i = 0; i < FIGURES; i++) charts += in_all_logs(r, i);
  if (charts == 0) return fail(e, "the logs have no column in common that could be drawn");
  FILE *out = svg_open(r->out, LEFT + STRIDE * charts - 40, TOP + HEIGHT + 46,
                       "Learning curves: accuracy and loss over the epochs", e);
  if (!out) return false;
  svg_legend(out, LEFT, 24, r->series_count, r->names);
  for (int i = 0; i < FIGURES; i++)
    if (in_all_logs(r, i)) draw_figure(out, r, i, place++, epochs);
  return svg_close(out, r->out, e);
}

// "name=path" or "path". The name's series is the one that has it already, or a new one.
static bool add_log(request *r, char *argument, error *e) {
  char *equals = strchr(argument, '=');
  const char *name = argument;
  if (equals) *equals = 0;
  if (r->log_count == LOGS) return fail(e, "more than %d logs", LOGS);
  run_log *log = r->logs[r->log_count++] = allocate(sizeof *log);
  log->path = equals ? equals + 1 : argument;
  while (log->series < r->series_count && strcmp(r->names[log->series], name)) log->series++;
  if (log->series == SERIES) return fail(e, "more than %d kinds of runs", SERIES);
  if (log->series == r->series_count) r->names[r->series_count++] = name;
  return read_log(log, e);
}

int main(int argc, char **argv) {
  request r = {0};
  error e;
  bool ok = true;
  bool known = true; // what is said
  for (int i = 1; i < argc && ok && known; i++)
    if (!strcmp(argv[i], "-o") && i + 1 < argc)
      r.out = argv[++i];
    else if (argv[i][0] == '-')
      known = false;
    else
      ok = add_log(&r, argv[i], &e);
  const bool complete = known && r.out && r.log_count;
  if (ok && !complete) fail(&e, "usage: tools/plot [NAME=]RUN.csv .. -o FILE.svg");
  const bool drawn = ok && complete && draw(&r, &e);
  for (int i = 0; i < r.log_count; i++) free(r.logs[i]);
  if (!drawn) fprintf(stderr, "plot: %s\n", e.text);
  return drawn ? 0 : ok && !complete ? 2 : 1;
}
