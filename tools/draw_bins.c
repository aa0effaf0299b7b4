// tools/draw_bins.c - reliability diagrams: how often the network is right where it is so and so sure;
// see pictures.h. The files are those of `./train --eval FILE --bins FILE.csv`.
//
// Upper row: of the images in a bin of confidence, the share that is right, as a bar; a calibrated
// network's bars end at the diagonal. Lower row: the share of all images that is in each bin. Files
// with the same name before the = are runs of one kind from several seeds: their images are taken
// together. DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983; Guo,
// Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.
#include "pictures.h"

#include "svg.h"

#include <errno.h>
#include <math.h>
#include <string.h>

enum { BINS = 15, KINDS = 6 };
enum { LEFT = 60, TOP = 36, SIDE = 160, LOW = 70, STRIDE = SIDE + 56, BELOW = 250 };

typedef struct {
  char name[32];
  double images[BINS], right[BINS], confidence[BINS]; // sums over images
} kind;

// Adds a file's bins; empty ones have no confidence and accuracy.
static bool add_file(kind *k, const char *path, error *e) {
  char line[256];
  FILE *in = fopen(path, "r");
  if (!in) return fail(e, "%s: %s", path, strerror(errno));
  bool ok = fgets(line, sizeof line, in) && !strncmp(line, "from,to,images,", 15);
  for (int i = 0; ok && i < BINS; i++) {
    double from, to, images, confidence = 0, accuracy = 0;
    ok = fgets(line, sizeof line, in) &&
         sscanf(line, "%lf,%lf,%lf,%lf,%lf", &from, &to, &images, &confidence, &accuracy) >= 3;
    if (!ok) break;
    k->images[i] += images;
    k->confidence[i] += images * confidence;
    k->right[i] += images * accuracy;
  }
  fclose(in);
  return ok || fail(e, "%s: is no file of --bins", path);
}

static void draw_kind(FILE *out, const kind *k, int number) {
  const double left = LEFT + STRIDE * number;
  const chart up = {.left = left, .top = TOP, .width = SIDE, .height = SIDE, .x1 = 1, .y1 = 1};
  const chart low = {.left = left, .top = BELOW, .width = SIDE, .height = LOW, .x1 = 1, .y1 = 1};
  const look how = series_look(number);
  double all = 0, error = 0, mean = 0;
  for (int i = 0; i < BINS; i++) all += k->images[i];
  chart_axes(out, &up, k->name, "", number ? "" : "accuracy");
  chart_axes(out, &low, "", "confidence", number ? "" : "share of images");
  for (int i = 0; i < BINS; i++) {
    const double from = (double)i / BINS, to = (double)(i + 1) / BINS;
    if (k->images[i] == 0) continue;
    chart_bar(out, &up, how, from, to, k->right[i] / k->images[i], false);
    chart_bar(out, &low, how, from, to, k->images[i] / all, false);
    error += fabs(k->right[i] - k->confidence[i]) / all;
    mean += k->confidence[i] / all;
  }
  chart_line(out, &up, series_look(0), 2, (double[]){0, 1}, (double[]){0, 1});
  svg_text(out, left + SIDE / 2, BELOW - 9, 11, "middle", "mean %.3f, error %.3f", mean, error);
}

bool draw_reliability(const picture_request *r, error *e) {
  static kind kinds[KINDS];
  int count = 0;
  for (int i = 0; i < r->argument_count; i++) {
    const char *argument = r->arguments[i], *equals = strchr(argument, '=');
    char name[32];
    int at = 0;
    if (!equals || !equals[1]) return fail(e, "%s: NAME=FILE.csv is wanted", argument);
    snprintf(name, sizeof name, "%.*s", (int)(equals - argument), argument);
    while (at < count && strcmp(kinds[at].name, name)) at++;
    if (at == KINDS) return fail(e, "more than %d kinds of runs", KINDS);
    if (at == count) snprintf(kinds[count++].name, sizeof name, "%s", name);
    if (!add_file(&kinds[at], equals + 1, e)) return false;
  }
  FILE *out = svg_open(r->out, LEFT + STRIDE * count - 36, BELOW + LOW + 46,
                       "Reliability diagrams and histograms of confidence", e);
  if (!out) return false;
  for (int i = 0; i < count; i++) draw_kind(out, &kinds[i], i);
  return svg_close(out, r->out, e);
}
