// tools/draw_cpu.c - two pictures for course/5-cpu.md, of how cpu/ computes; see pictures.h.
#include "pictures.h"

#include "svg.h"

enum { HEIGHT = 330, WIDTH = 700 }; // of both sheets

// A straight line from one place on the sheet to another.
static void draw_stroke(FILE *out, look how, double x0, double y0, double x1, double y1) {
  const chart sheet = {.width = WIDTH, .height = HEIGHT, .x1 = WIDTH, .y1 = HEIGHT};
  chart_line(out, &sheet, how, 2, (double[]){x0, x1}, (double[]){HEIGHT - y0, HEIGHT - y1});
}

// -- A tile of sums in registers: cpu/microkernel.h -----------------------------------------------------

enum { ROWS = 8, VECTORS = 2, FLOATS = 16 };                  // of the tile, with AVX-512
enum { CELL = 14, ROW = 26, LEFT = 150, TOP = 80, GAP = 20 }; // on the sheet

// A register of `count` floats.
static void draw_register(FILE *out, look how, double x, double y, int count) {
  svg_bar(out, how, x, y, count * CELL, ROW - 8, false);
  for (int i = 0; i <= count; i++)
    draw_stroke(out, series_look(0), x + i * CELL, y, x + i * CELL, y + ROW - 8);
}

static double left_of(int vector) {
  return LEFT + vector * (FLOATS * CELL + GAP);
}

bool draw_registers(const picture_request *r, error *e) {
  const look of_w = series_look(1), of_x = series_look(3), of_sums = series_look(2);
  FILE *out =
      svg_open(r->out, WIDTH, HEIGHT,
               "Sixteen registers of sums, two of the filters' numbers, a pixel's number", e);
  if (!out) return false;
  svg_text(out, LEFT - 20, TOP - 30, 13, "end", "row n of W");
  for (int j = 0; j < VECTORS; j++) {
    draw_register(out, of_w, left_of(j), TOP - 44, FLOATS);
    svg_text(out, left_of(j) + FLOATS * CELL / 2, TOP - 52, 12, "middle", "b%d: filters %d to %d",
             j, j * FLOATS, (j + 1) * FLOATS - 1);
  }
  for (int i = 0; i < ROWS; i++) {
    const double y = TOP + i * ROW;
    svg_text(out, LEFT - 60, y + 14, 13, "end", "x[%d][n]", i);
    draw_register(out, of_x, LEFT - 44, y, 1);
    for (int j = 0; j < VECTORS; j++) draw_register(out, of_sums, left_of(j), y, FLOATS);
  }
  svg_text(out, left_of(0), TOP + ROWS * ROW + 18, 13, "start",
           "%d x %d registers of sums: each += x[row][n] times the number above it in W", ROWS,
           VECTORS);
  svg_text(out, left_of(0), TOP + ROWS * ROW + 36, 13, "start",
           "a step n: %d loads, %d multiply-adds of %d numbers each", ROWS + VECTORS,
           ROWS * VECTORS, FLOATS);
  return svg_close(out, r->out, e);
}

// -- Winograd's method on a line of numbers: cpu/winograd.h ---------------------------------------------

enum { INPUTS = 4, PRODUCTS = 4, OUTPUTS = 2 };
enum { AT_D = 60, AT_SUM = 200, AT_PRODUCT = 420, AT_Y = 600, STEP = 64, FIRST = 90 };

static const double d[INPUTS] = {1, 2, 3, 4}, g[3] = {1, 0, 2};
// m = (of_d d) (of_g g), y = of_m m: chapter 5's formulas as matrices.
static const int of_d[PRODUCTS][INPUTS] = {
    {1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
static const double of_g[PRODUCTS][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
static const int of_m[OUTPUTS][PRODUCTS] = {{1, 1, 1, 0}, {0, 1, -1, -1}};

// A line from one number to another that it is added to, or, dashed, subtracted from.
static void draw_term(FILE *out, int sign, double x0, double y0, double x1, double y1) {
  if (sign) draw_stroke(out, series_look(sign > 0 ? 0 : 3), x0, y0 - 5, x1, y1 - 5);
}

static double height_of(int i, int count) {
  return FIRST + STEP * (i + (PRODUCTS - count) / 2.0);
}

bool draw_winograd(const picture_request *r, error *e) {
  double m[PRODUCTS];
  FILE *out = svg_open(r->out, WIDTH, HEIGHT,
                       "Winograd's method: two results of three taps with four multiplications", e);
  if (!out) return false;
  svg_text(out, AT_D, 40, 13, "middle", "four numbers d");
  svg_text(out, AT_SUM, 40, 13, "middle", "sums of two");
  svg_text(out, AT_PRODUCT, 40, 13, "middle", "times sums of g = (1, 0, 2)");
  svg_text(out, AT_Y, 40, 13, "middle", "two results y");
  for (int i = 0; i < PRODUCTS; i++) {
    const double y = height_of(i, PRODUCTS);
    double sum = 0, factor = 0;
    for (int j = 0; j < INPUTS; j++) sum += of_d[i][j] * d[j];
    for (int j = 0; j < 3; j++) factor += of_g[i][j] * g[j];
    m[i] = sum * factor;
    svg_text(out, AT_D, y, 16, "middle", "%g", d[i]);
    svg_text(out, AT_SUM, y, 16, "middle", "%g", sum);
    svg_text(out, AT_PRODUCT, y, 16, "middle", "m%d = %g x %g = %g", i + 1, sum, factor, m[i]);
    draw_stroke(out, series_look(0), AT_SUM + 20, y - 5, AT_PRODUCT - 90, y - 5);
    for (int j = 0; j < INPUTS; j++)
      draw_term(out, of_d[i][j], AT_D + 14, height_of(j, INPUTS), AT_SUM - 20, y);
  }
  for (int i = 0; i < OUTPUTS; i++) {
    const double y = height_of(i, OUTPUTS);
    double sum = 0;
    for (int j = 0; j < PRODUCTS; j++) sum += of_m[i][j] * m[j];
    svg_text(out, AT_Y, y, 16, "start", "y%d = %g", i, sum);
    for (int j = 0; j < PRODUCTS; j++)
      draw_term(out, of_m[i][j], AT_PRODUCT + 92, height_of(j, PRODUCTS), AT_Y - 8, y);
  }
  svg_text(
      out, AT_D, HEIGHT - 14, 12, "start",
      "a black line adds, a dashed red one subtracts; y0 and y1 by the formula: 6 multiplications");
  return svg_close(out, r->out, e);
}
