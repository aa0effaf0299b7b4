// tools/draw_cost.c - the roofline and the cost of a step; see pictures.h. The argument is
// `step=FILE`, a file with what `make cost` prints.
//
// Left: what each card of bench/cards.h can do at most at so many FLOP for each byte, and where this
// program's kernels lie on an H100's line. Left of its bend memory decides, right of it arithmetic
// (Williams, Waterman, Patterson, "Roofline", CACM 2009). Kernels without tensor cores have no
// number there: a quarter of a FLOP to one FLOP a byte. Right: each kernel's share of the least time of a step, on an
// H100 (filled) and on an RTX 3090 (dashed).
#include "pictures.h"

#include "bench/cards.h"
#include "svg.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

enum { ROWS = 64, SHOWN = 12, H100 = 1, RTX_3090 = 3 }; // of cards[]
enum { TOP = 66, SIDE = 300, BARS_LEFT = 640, BARS_WIDTH = 250, BAR = 24 };
enum { NAME_WIDTH = 30, LAYER_WIDTH = 8 }; // of the sheet's first columns

typedef struct {
  char name[NAME_WIDTH + LAYER_WIDTH + 1];
  double gflop, megabytes, microseconds[COLUMNS];
} row;

static row rows[ROWS];
static int row_count;

// "name   layer  " without the blanks at the ends of both.
static void copy_name(row *r, const char *line) {
  int kernel = NAME_WIDTH, layer = NAME_WIDTH + LAYER_WIDTH;
  while (kernel > 0 && line[kernel - 1] == ' ') kernel--;
  while (layer > NAME_WIDTH && line[layer - 1] == ' ') layer--;
  snprintf(r->name, sizeof r->name, "%.*s%s%.*s", kernel, line, layer > NAME_WIDTH ? " " : "",
           layer - NAME_WIDTH, line + NAME_WIDTH);
}

// The first table of the sheet, a step of training, up to its last row, "together".
static bool read_sheet(const char *path, row *together, error *e) {
  char line[512];
  bool inside = false, complete = false;
  FILE *in = fopen(path, "r");
  if (!in) return fail(e, "%s: %s", path, strerror(errno));
  while (!complete && row_count < ROWS && fgets(line, sizeof line, in)) {
    row *r = &rows[row_count];
    int launches;
    double asked, turns, factor;
    if (!strncmp(line, "kernel ", 7)) inside = true;
    if (!inside || strlen(line) < NAME_WIDTH + LAYER_WIDTH ||
        sscanf(line + NAME_WIDTH + LAYER_WIDTH, "%d%lf%lf%lf%lf%lf%lf%lf%lf%lf", &launches,
               &r->gflop, &r->megabytes, &asked, &turns, &factor, &r->microseconds[0],
               &r->microseconds[1], &r->microseconds[2], &r->microseconds[3]) != 6 + COLUMNS)
      continue;
    copy_name(r, line);
    complete = !strcmp(r->name, "together");
    if (complete)
      *together = *r;
    else
      row_count++;
  }
  fclose(in);
  return complete || fail(e, "%s: is not what `make cost` prints", path);
}

static int slower_first(const void *a, const void *b) {
  const double x = ((const row *)a)->microseconds[H100], y = ((const row *)b)->microseconds[H100];
  return (x < y) - (x > y);
}

// TFLOP/s at so many FLOP for each byte.
static double roof(const card *c, double intensity) {
  const double fed = intensity * c->bandwidth / 1000;
  return fed < c->peak ? fed : c->peak;
}

// Kernels that lie on top of each other are drawn below each other.
static void draw_points(FILE *out, const chart *c) {
  const double decade = c->height / log10(c->y1 / c->y0), disc = 17;
  double placed[SHOWN];
  for (int i = 0, count = 0; i < SHOWN; i++) {
    const double intensity = 1000 * rows[i].gflop / rows[i].megabytes;
    double tflops = roof(&cards[H100], intensity);
    if (intensity < c->x0) continue;
    for (int j = 0; j < count; j++)
      if (fabs(log10(intensity / placed[j])) * decade < disc) tflops /= pow(10, disc / decade);
    chart_point(out, c, series_look(H100), intensity, tflops, i + 1);
    placed[count++] = intensity;
  }
}

static void draw_roofs(FILE *out) {
  const chart c = {.left = 64,
                   .top = TOP,
                   .width = SIDE,
                   .height = SIDE,
                   .x0 = 10,
                   .x1 = 1000,
                   .y0 = 10,
                   .y1 = 1000,
                   .log_x = true,
                   .log_y = true};
  const char *names[COLUMNS];
  chart_axes(out, &c, "what a card can do", "FLOP for each byte", "TFLOP/s");
  for (int i = 0; i < COLUMNS; i++) {
    const double bend = cards[i].peak * 1000 / cards[i].bandwidth;
    names[i] = cards[i].column;
    chart_line(out, &c, series_look(i), 3, (double[]){c.x0, bend, c.x1},
               (double[]){roof(&cards[i], c.x0), cards[i].peak, cards[i].peak});
  }
  draw_points(out, &c);
  svg_legend(out, 64, 24, COLUMNS, names);
}

// A line of the right chart: the rows from `first` to before `end`, added up.
static void draw_share(FILE *out, const row *together, int first, int end, const char *name) {
  static const int shown[] = {H100, RTX_3090};
  const double y = TOP + BAR * first;
  svg_text(out, BARS_LEFT - 30, y + 15, 12, "end", "%s", name);
  if (end == first + 1) svg_text(out, BARS_LEFT - 8, y + 15, 12, "end", "%d", end);
  for (int k = 0; k < 2; k++) {
    double share = 0;
    for (int i = first; i < end; i++)
      share += rows[i].microseconds[shown[k]] / together->microseconds[shown[k]];
    svg_bar(out, series_look(shown[k]), BARS_LEFT, y + 3, share * 4 * BARS_WIDTH, BAR - 8, k == 1);
    svg_text(out, BARS_LEFT + BARS_WIDTH + 30 + 40 * k, y + 15, 12, "end", "%.1f", 100 * share);
  }
}

static void draw_shares(FILE *out, const row *together) {
  for (int i = 0; i < SHOWN; i++) draw_share(out, together, i, i + 1, rows[i].name);
  draw_share(out, together, SHOWN, row_count, "the others");
  svg_text(out, BARS_LEFT + BARS_WIDTH / 2, TOP - 8, 13, "middle",
           "share of a step's least time, %%");
  svg_text(out, BARS_LEFT + BARS_WIDTH + 30, TOP - 8, 12, "end", "%s", cards[H100].column);
  svg_text(out, BARS_LEFT + BARS_WIDTH + 70, TOP - 8, 12, "end", "%s", cards[RTX_3090].column);
}

bool draw_roofline(const picture_request *r, error *e) {
  const char *equals = strchr(r->arguments[0], '=');
  row together;
  if (!equals || !equals[1]) return fail(e, "%s: step=FILE is wanted", r->arguments[0]);
  if (!read_sheet(equals + 1, &together, e)) return false;
  if (row_count <= SHOWN) return fail(e, "%s: has too few kernels", equals + 1);
  qsort(rows, (size_t)row_count, sizeof *rows, slower_first);
  FILE *out = svg_open(r->out, BARS_LEFT + BARS_WIDTH + 86, TOP + SIDE + 46,
                       "Roofline of four cards, and each kernel's share of a training step", e);
  if (!out) return false;
  draw_roofs(out);
  draw_shares(out, &together);
  return svg_close(out, r->out, e);
}
