// tools/svg.c - see svg.h.
#include "svg.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

look series_look(int number) {
  static const look looks[] = {
      {"#000000", "none"}, {"#0072B2", "8 3"}, {"#009E73", "2 2"},     {"#D55E00", "9 2 2 2"},
      {"#E69F00", "12 4"}, {"#CC79A7", "4 4"}, {"#56B4E9", "1 3 6 3"}, {"#888888", "6 2 1 2 1 2"}};
  return looks[number % 8];
}

// -- The sheet ------------------------------------------------------------------------------------

// Characters that mean something to XML are written by their names.
static void print_escaped(FILE *out, const char *text) {
  for (; *text; text++)
    if (*text == '&')
      fputs("&amp;", out);
    else if (*text == '<')
      fputs("&lt;", out);
    else if (*text == '>')
      fputs("&gt;", out);
    else
      fputc(*text, out);
}

// Is it a file that has something in it, and begins otherwise?
static bool is_of_another_kind(const char *path, const char *beginning) {
  struct stat status;
  if (stat(path, &status) != 0 || !S_ISREG(status.st_mode) || !status.st_size) return false;
  char there[8] = {0};
  FILE *file = fopen(path, "rb");
  const bool seen = file && fread(there, 1, sizeof there - 1, file) > 0;
  if (file) fclose(file);
  return !seen || strncmp(there, beginning, strlen(beginning)) != 0;
}

FILE *open_picture(const char *path, const char *beginning, error *e) {
  if (is_of_another_kind(path, beginning)) {
    fail(e, "%s: is there already and no such picture, and stays; give another name", path);
    return NULL;
  }
  FILE *out = fopen(path, "wb");
  if (!out) fail(e, "%s: %s", path, strerror(errno));
  return out;
}

FILE *svg_open(const char *path, double width, double height, const char *title, error *e) {
  FILE *out = open_picture(path, "<svg", e);
  if (!out) return NULL;
  fprintf(out,
          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" "
          "height=\"%g\" font-family=\"sans-serif\" role=\"img\">\n<title>",
          width, height, width, height);
  print_escaped(out, title);
  fprintf(out, "</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n");
  return out;
}

bool svg_close(FILE *out, const char *path, error *e) {
  fprintf(out, "</svg>\n");
  const bool failed = ferror(out);
  return (fclose(out) == 0 && !failed) || fail(e, "%s: could not be written: disk full?", path);
}

void svg_text(FILE *out, double x, double y, double size, const char *anchor, const char *format,
              ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!text[0]) return;
  fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" text-anchor=\"%s\">", x, y, size,
          anchor);
  print_escaped(out, text);
  fprintf(out, "</text>\n");
}

// -- Axes -----------------------------------------------------------------------------------------

// How far from one edge to the other.
static double share_of(bool log, double value, double from, double to) {
  return log ? log10(value / from) / log10(to / from) : (value - from) / (to - from);
}

static double place_x(const chart *c, double x) {
  return c->left + c->width * share_of(c->log_x, x, c->x0, c->x1);
}

static double place_y(const chart *c, double y) {
  return c->top + c->height * (1 - share_of(c->log_y, y, c->y0, c->y1));
}

static double inside(double value, double from, double to) {
  return value < from ? from : value > to ? to : value;
}

// A round distance between numbers at an axis, so that there are from 3 to 7 of them.
static double round_step(double range) {
  const double power = pow(10, floor(log10(range / 4)));
  const double digit = range / 4 / power;
  return (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10) * power;
}

static void grid_line(FILE *out, double x0, double y0, double x1, double y1) {
  fprintf(out,
          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#dddddd\" "
          "stroke-width=\"0.7\"/>\n",
          x0, y0, x1, y1);
}

static void mark_x(FILE *out, const chart *c, double x) {
  const double at = place_x(c, x), bottom = c->top + c->height;
  grid_line(out, at, c->top, at, bottom);
  svg_text(out, at, bottom + 14, 11, "middle", "%g", x);
}

static void mark_y(FILE *out, const chart *c, double y) {
  const double at = place_y(c, y);
  grid_line(out, c->left, at, c->left + c->width, at);
  svg_text(out, c->left - 5, at + 4, 11, "end", "%g", y);
}

// Every round number of an axis, counted from the first so that no rounding error adds up.
static void mark_all(FILE *out, const chart *c, bool log, double from, double to,
                     void (*mark)(FILE *, const chart *, double)) {
  for (double at = from; log && at <= to * 1.001; at *= 10) mark(out, c, at);
  if (log) return;
  const double step = round_step(to - from), first = ceil(from / step - 1e-9);
  for (int i = 0; (first + i) * step <= to + 1e-9 * step; i++) mark(out, c, (first + i) * step);
}

void chart_axes(FILE *out, const chart *c, const char *title, const char *x_name,
                const char *y_name) {
  const double middle = c->top + c->height / 2, y_at = c->left - 40;
  mark_all(out, c, c->log_x, c->x0, c->x1, mark_x);
  mark_all(out, c, c->log_y, c->y0, c->y1, mark_y);
  fprintf(out,
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
          "stroke=\"#444444\"/>\n",
          c->left, c->top, c->width, c->height);
  svg_text(out, c->left + c->width / 2, c->top - 8, 13, "middle", "%s", title);
  svg_text(out, c->left + c->width / 2, c->top + c->height + 31, 12, "middle", "%s", x_name);
  fprintf(out, "<g transform=\"rotate(-90 %.1f %.1f)\">\n", y_at, middle);
  svg_text(out, y_at, middle, 12, "middle", "%s", y_name);
  fprintf(out, "</g>\n");
}

// -- What stands in them --------------------------------------------------------------------------

static void print_points(FILE *out, const chart *c, int count, const double *x, const double *y,
                         int step) {
  for (int i = step > 0 ? 0 : count - 1; i >= 0 && i < count; i += step)
    if (isfinite(y[i]))
      fprintf(out, "%.1f,%.1f ", place_x(c, inside(x[i], c->x0, c->x1)),
              place_y(c, inside(y[i], c->y0, c->y1)));
}

void chart_line(FILE *out, const chart *c, look how, int count, const double *x, const double *y) {
  fprintf(out,
          "<polyline fill=\"none\" stroke=\"%s\" stroke-dasharray=\"%s\" "
          "stroke-width=\"1.6\" points=\"",
          how.colour, how.dashes);
  print_points(out, c, count, x, y, 1);
  fprintf(out, "\"/>\n");
}

void chart_band(FILE *out, const chart *c, look how, int count, const double *x, const double *low,
                const double *high) {
  fprintf(out, "<polygon fill=\"%s\" fill-opacity=\"0.18\" points=\"", how.colour);
  print_points(out, c, count, x, low, 1);
  print_points(out, c, count, x, high, -1);
  fprintf(out, "\"/>\n");
}

void svg_bar(FILE *out, look how, double x, double y, double width, double height, bool hollow) {
  fprintf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" ", x, y, width, height);
  fprintf(out,
          hollow ? "fill=\"none\" stroke=\"%s\" stroke-dasharray=\"3 2\"/>\n"
                 : "fill=\"%s\" fill-opacity=\"0.55\"/>\n",
          how.colour);
}

void chart_bar(FILE *out, const chart *c, look how, double x0, double x1, double y, bool hollow) {
  const double left = place_x(c, x0), top = place_y(c, inside(y, c->y0, c->y1));
  svg_bar(out, how, left, top, place_x(c, x1) - left, c->top + c->height - top, hollow);
}

void chart_point(FILE *out, const chart *c, look how, double x, double y, int number) {
  const double at_x = place_x(c, inside(x, c->x0, c->x1));
  const double at_y = place_y(c, inside(y, c->y0, c->y1));
  fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"8\" fill=\"%s\"/>\n<g fill=\"#ffffff\">\n",
          at_x, at_y, how.colour);
  svg_text(out, at_x, at_y + 3.5, 10, "middle", "%d", number);
  fprintf(out, "</g>\n");
}

void svg_legend(FILE *out, double x, double y, int count, const char *const *names) {
  for (int i = 0; i < count; i++) {
    const look how = series_look(i);
    fprintf(out,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
            "stroke-dasharray=\"%s\" stroke-width=\"2\"/>\n",
            x, y - 4, x + 30, y - 4, how.colour, how.dashes);
    svg_text(out, x + 36, y, 12, "start", "%s", names[i]);
    x += 56 + 6.5 * (double)strlen(names[i]);
  }
}
