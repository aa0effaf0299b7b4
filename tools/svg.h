// tools/svg.h - charts as SVG: text that a browser draws. A figure is a sheet of so many units, about
// a screen's pixels; a chart is a rectangle on it with axes.
//
//     FILE *out = svg_open("squares.svg", 300, 200, "x squared", &e);
//     const chart c = {.left = 60, .top = 30, .width = 220, .height = 120, .x1 = 3, .y1 = 9};
//     chart_axes(out, &c, "a parabola", "x", "x squared");
//     chart_line(out, &c, series_look(0), 4, (double[]){0, 1, 2, 3}, (double[]){0, 1, 4, 9});
//     svg_close(out, "squares.svg", &e);
//
// The format: W3C, "Scalable Vector Graphics (SVG) 1.1". Checked by `make course-check`.
#ifndef SVG_H
#define SVG_H

#include "run/error.h"

// Colours that people with any kind of colour vision tell apart (Okabe and Ito, "Color universal
// design", 2008), and for a print without colours a pattern of dashes each.
typedef struct {
  const char *colour, *dashes;
} look;

look series_look(int number); // of series 0, 1, ..; from the eighth on they repeat

typedef struct {
  double left, top, width, height; // on the sheet
  double x0, x1, y0, y1;           // the numbers at its left and right, lower and upper edge
  bool log_x, log_y;               // powers of ten at equal distances; the edges are powers of ten
} chart;

// Opens a picture's file, of whatever kind; NULL, with a line in e, where that is not possible. `beginning` is
// what files of its kind begin with. What is there and begins otherwise is somebody's log or weights: it stays.
FILE *open_picture(const char *path, const char *beginning, error *e);

// Opens the file and begins a white sheet; NULL, with a line in e, where that is not possible. `title` is
// what a reader who cannot see the figure is told.
FILE *svg_open(const char *path, double width, double height, const char *title, error *e);
bool svg_close(FILE *out, const char *path, error *e);

// A line of text; anchor: "start", "middle" or "end", the part of it that is at (x, y).
__attribute__((format(printf, 6, 7))) void svg_text(FILE *out, double x, double y, double size,
                                                    const char *anchor, const char *format, ...);

// The frame, a grid with its numbers, and the names of chart and axes; any of them may be "".
void chart_axes(FILE *out, const chart *c, const char *title, const char *x_name,
                const char *y_name);

// What lies outside the axes is cut off. Points whose y is not finite are left out.
void chart_line(FILE *out, const chart *c, look how, int count, const double *x, const double *y);
// The area between two lines.
void chart_band(FILE *out, const chart *c, look how, int count, const double *x, const double *low,
                const double *high);
// A bar from x0 to x1, from the lower edge up to y; hollow: only its outline, dashed.
void chart_bar(FILE *out, const chart *c, look how, double x0, double x1, double y, bool hollow);

// A number on a point, white on a disc.
void chart_point(FILE *out, const chart *c, look how, double x, double y, int number);

// A bar on the sheet, for charts that lie on their side; hollow as above.
void svg_bar(FILE *out, look how, double x, double y, double width, double height, bool hollow);

// A row of names with their lines, from (x, y) to the right.
void svg_legend(FILE *out, double x, double y, int count, const char *const *names);

#endif
