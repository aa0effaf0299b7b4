// tools/draw_numbers.c - pictures of the recipe's numbers; see pictures.h. Each comes from the program's
// own functions: targets from the gradient of its loss, lambda from its sampler, rates from its
// schedule.
#include "pictures.h"

#include "reference/reference.h"
#include "run/random.h"
#include "run/schedule.h"
#include "svg.h"

#include <math.h>

// -- Targets --------------------------------------------------------------------------------------

// With all logits 0 the network says 1/10 of every class, and the gradient is 1/10 - target.
static void find_target(double target[CLASSES], float lambda, float smoothing) {
  const real logits[2 * CLASSES] = {0};
  real dlogits[2 * CLASSES];
  const uint8_t labels[2] = {3, 5};
  const sample pair[2] = {{.image = 0, .partner = 1}, {.image = 1, .partner = 0}};
  const step_values step = {.lambda = lambda};
  step_result result;
  reference_cross_entropy(2, smoothing, dlogits, &result, logits, labels, pair, &step);
  for (int j = 0; j < CLASSES; j++) target[j] = 1.0 / CLASSES - 2 * (double)dlogits[j];
}

bool draw_targets(const picture_request *r, error *e) {
  static const struct {
    const char *title;
    float lambda, smoothing;
  } panels[] = {{"a label", 1, 0},
                {"smoothed, s = 0.1", 1, 0.1f},
                {"mixed, lambda = 0.7", 0.7f, 0},
                {"both", 0.7f, 0.1f}};
  enum { LEFT = 56, TOP = 36, WIDTH = 150, HEIGHT = 120, STRIDE = WIDTH + 50 };
  FILE *out = svg_open(r->out, LEFT + 4 * STRIDE - 30, TOP + HEIGHT + 46,
                       "The target of an image of class 3, whose partner is of class 5", e);
  if (!out) return false;
  for (int i = 0; i < 4; i++) {
    double target[CLASSES];
    const chart c = {.left = LEFT + STRIDE * i,
                     .top = TOP,
                     .width = WIDTH,
                     .height = HEIGHT,
                     .x0 = -0.5,
                     .x1 = 9.5,
                     .y1 = 1};
    find_target(target, panels[i].lambda, panels[i].smoothing);
    chart_axes(out, &c, panels[i].title, "class", i ? "" : "target");
    for (int j = 0; j < CLASSES; j++)
      chart_bar(out, &c, series_look(1), j - 0.4, j + 0.4, target[j], false);
    svg_text(out, c.left + c.width - 5, TOP + 16, 11, "end", "3: %.3f", target[3]);
    svg_text(out, c.left + c.width - 5, TOP + 31, 11, "end", "5: %.3f", fabs(target[5]));
    svg_text(out, c.left + c.width - 5, TOP + 46, 11, "end", "others: %.3f", fabs(target[0]));
  }
  return svg_close(out, r->out, e);
}

// -- Beta(alpha, alpha) -----------------------------------------------------------------------------

enum { DRAWS = 400000, BINS = 40 };

// The density in the middle of each bin, from DRAWS draws.
static void sample_beta(double alpha, double density[BINS]) {
  random_stream stream = random_open(1, RANDOM_LAMBDA, 0, 1);
  for (int i = 0; i < BINS; i++) density[i] = 0;
  for (int i = 0; i < DRAWS; i++) {
    const int bin = (int)(random_beta(&stream, alpha) * BINS);
    density[bin < BINS ? bin : BINS - 1] += (double)BINS / DRAWS;
  }
}

bool draw_beta(const picture_request *r, error *e) {
  static const double alphas[] = {0.2, 0.5, 1, 2, 8};
  static const char *const names[] = {"alpha = 0.2", "0.5", "1", "2", "8"};
  const chart c = {.left = 62, .top = 60, .width = 420, .height = 200, .x1 = 1, .y1 = 4};
  FILE *out = svg_open(r->out, 510, 306, "Beta(alpha, alpha), the distribution of lambda", e);
  if (!out) return false;
  svg_legend(out, 62, 22, 5, names);
  chart_axes(out, &c, "how often lambda is drawn", "lambda", "density");
  for (int i = 0; i < 5; i++) {
    double middle[BINS], density[BINS];
    sample_beta(alphas[i], density);
    for (int k = 0; k < BINS; k++) middle[k] = (k + 0.5) / BINS;
    chart_line(out, &c, series_look(i), BINS, middle, density);
  }
  return svg_close(out, r->out, e);
}

// -- The learning rate ------------------------------------------------------------------------------

bool draw_schedule(const picture_request *r, error *e) {
  const options *recipe = options_recipe();
  const chart c = {.left = 72,
                   .top = 30,
                   .width = 420,
                   .height = 130,
                   .x1 = recipe->epochs,
                   .y0 = 1e-4,
                   .y1 = 1,
                   .log_y = true};
  double x[2 * 150],
      y[2 * 150]; // each epoch's rate at its beginning and its end: a line with steps
  FILE *out = svg_open(r->out, 520, 206, "The learning rate over the epochs of the recipe", e);
  if (!out) return false;
  for (int i = 0; i < 2 * recipe->epochs; i++) {
    x[i] = (i + 1) / 2;
    y[i] = learning_rate_of(recipe, i / 2);
  }
  chart_axes(out, &c, "the learning rate", "epoch", "");
  chart_line(out, &c, series_look(0), 2 * recipe->epochs, x, y);
  return svg_close(out, r->out, e);
}
