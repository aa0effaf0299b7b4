// shapes.c - a stand-in data set in CIFAR-10's format, for when CIFAR-10 cannot be had.
#define _POSIX_C_SOURCE 200809L

#include "error.h"
#include "random.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  CLASSES = 10,
  SIDE = 32,
  PIXELS = SIDE * SIDE,
  RECORD = 1 + 3 * PIXELS, // label, red plane, green plane, blue plane
  TRAIN_FILES = 5,
  FILES = TRAIN_FILES + 3, // ... test_batch.bin, batches.meta.txt, STAND-IN.txt
  MAX_IMAGES = 1000000,
  MAX_CLUTTER = 8,
};

enum { TRAIN, TEST, LABELS = 2 }; // random stream: split, or LABELS + split

static const double pi = 3.14159265358979323846;

static const char *const class_names[CLASSES] = {"disc",  "ring", "crescent", "triangle", "square",
                                                 "cross", "star", "heart",    "arrow",    "bars"};

// ---- drawing ----------------------------------------------------------------------------------

typedef struct {
  double channel[3]; // red, green, blue, 0..1
} colour;

// Two colours blended by a sine wave: a gradient where the wave is long, stripes where it is short.
typedef struct {
  colour from, to;
  double wave_x, wave_y, phase;
} surface;

// A line with round ends; a blob where half_length is small.
typedef struct {
  double x, y, direction_x, direction_y, half_length, radius;
  colour paint;
} stroke;

typedef struct {
  int class;
  double x, y, size, direction_x, direction_y, stretch;
  surface background, foreground;
  stroke clutter[MAX_CLUTTER]; // those below `behind` lie behind the shape
  int behind, strokes;
  double noise;
} scene;

static double box(double x, double y, double a, double b) {
  return fmax(fabs(x) - a, fabs(y) - b);
}

static void fold(int n, double *x, double *y) {
  const double angle = remainder(atan2(*y, *x), 2 * pi / n), radius = hypot(*x, *y);
  *x = radius * cos(angle), *y = radius * fabs(sin(angle));
}

static double heart(double x, double y) {
  const double side = 0.56, a = (x + y) / sqrt(2), b = (x - y) / sqrt(2);
  const double lobes = fmin(hypot(a - side, b), hypot(a, b - side)) - side;
  return fmin(box(a, b, side, side), lobes);
}

static double shape_distance(int class, double x, double y) {
  switch (class) {
  case 0:
    return hypot(x, y) - 0.8;
  case 1:
    return fabs(hypot(x, y) - 0.68) - 0.18;
  case 2:
    return fmax(hypot(x, y) - 0.9, 0.75 - hypot(x - 0.5, y));
  case 3:
    fold(3, &x, &y);
    return x - 0.5;
  case 4:
    return box(x, y, 0.7, 0.7);
  case 5:
    return fmin(box(x, y, 0.95, 0.26), box(x, y, 0.26, 0.95));
  case 6:
    fold(5, &x, &y);
    return 0.384 * (x - 1) + 0.923 * y;
  case 7:
    return heart(x, y);
  case 8:
    return fmin(fmax(0.1 - x, (x + fabs(y) - 0.95) / sqrt(2)), box(x + 0.4, y, 0.55, 0.2));
  default:
    return fmin(box(x, y, 0.9, 0.15), box(x, fabs(y) - 0.64, 0.9, 0.15));
  }
}

static double uniform(random_stream *random, double low, double high) {
  return low + (high - low) * random_double(random);
}

static colour random_colour(random_stream *random) {
  colour c;
  for (int k = 0; k < 3; k++) c.channel[k] = random_double(random);
  return c;
}

#ifndef VARY
#define VARY 0.25
#define CONTRAST 0.4
#define SMALL 6.5
#define LARGE 12.0
#define NOISE 0.2
#define CLUT 7
#define STRETCH 0.2
#endif

static surface random_surface(random_stream *random) {
  surface s = {.from = random_colour(random)};
  for (int k = 0; k < 3; k++) s.to.channel[k] = s.from.channel[k] + uniform(random, -VARY, VARY);
  const double angle = uniform(random, 0, 2 * pi), length = 5 * pow(16, random_double(random));
  s.wave_x = 2 * pi / length * cos(angle), s.wave_y = 2 * pi / length * sin(angle);
  s.phase = uniform(random, 0, 2 * pi);
  return s;
}

static stroke random_stroke(random_stream *random) {
  const double angle = uniform(random, 0, pi), blob = random_double(random) < 0.5;
  return (stroke){.x = uniform(random, 0, SIDE),
                  .y = uniform(random, 0, SIDE),
                  .direction_x = cos(angle),
                  .direction_y = sin(angle),
                  .half_length = blob ? uniform(random, 0, 2) : uniform(random, 4, 16),
                  .radius = blob ? uniform(random, 0.8, 2.2) : uniform(random, 0.4, 0.8),
                  .paint = random_colour(random)};
}

static double colour_distance(const colour *a, const colour *b) {
  double sum = 0;
  for (int k = 0; k < 3; k++)
    sum += (a->channel[k] - b->channel[k]) * (a->channel[k] - b->channel[k]);
  return sqrt(sum);
}

static scene random_scene(random_stream *random, int class) {
  scene s = {.class = class, .size = uniform(random, SMALL, LARGE)};
  const double angle = uniform(random, 0, 2 * pi), reach = SIDE / 2.0 - 0.85 * s.size;
  s.x = SIDE / 2.0 + uniform(random, -reach, reach),
  s.y = SIDE / 2.0 + uniform(random, -reach, reach);
  s.direction_x = cos(angle), s.direction_y = sin(angle);
  s.stretch = exp(uniform(random, -STRETCH, STRETCH));
  s.background = random_surface(random);
  do s.foreground = random_surface(random);
  while (colour_distance(&s.foreground.from, &s.background.from) < CONTRAST ||
         colour_distance(&s.foreground.to, &s.background.to) < CONTRAST ||
         colour_distance(&s.foreground.to, &s.background.from) < CONTRAST ||
         colour_distance(&s.foreground.from, &s.background.to) < CONTRAST);
  s.strokes = 1 + (int)random_below(random, CLUT);
  s.behind = (int)random_below(random, (uint32_t)s.strokes + 1);
  for (int k = 0; k < s.strokes; k++) s.clutter[k] = random_stroke(random);
  s.noise = uniform(random, 0, NOISE);
  return s;
}

static colour surface_colour(const surface *s, double x, double y) {
  const double t = 0.5 + 0.5 * sin(s->wave_x * x + s->wave_y * y + s->phase);
  colour c;
  for (int k = 0; k < 3; k++)
    c.channel[k] = s->from.channel[k] + t * (s->to.channel[k] - s->from.channel[k]);
  return c;
}

static void cover(colour *pixel, const colour *paint, double distance) {
  const double share = fmin(fmax(0.5 - distance, 0), 1);
  for (int k = 0; k < 3; k++) pixel->channel[k] += share * (paint->channel[k] - pixel->channel[k]);
}

static double stroke_distance(const stroke *s, double x, double y) {
  const double along = (x - s->x) * s->direction_x + (y - s->y) * s->direction_y;
  const double across = (y - s->y) * s->direction_x - (x - s->x) * s->direction_y;
  return hypot(fmax(fabs(along) - s->half_length, 0), across) - s->radius;
}

static colour scene_colour(const scene *s, double x, double y) {
  colour pixel = surface_colour(&s->background, x, y);
  for (int k = 0; k < s->behind; k++)
    cover(&pixel, &s->clutter[k].paint, stroke_distance(&s->clutter[k], x, y));
  const double along = (x - s->x) * s->direction_x + (y - s->y) * s->direction_y;
  const double across = (y - s->y) * s->direction_x - (x - s->x) * s->direction_y;
  const colour paint = surface_colour(&s->foreground, x, y);
  cover(&pixel, &paint,
        s->size *
            shape_distance(s->class, along / s->size * s->stretch, across / s->size / s->stretch));
  for (int k = s->behind; k < s->strokes; k++)
    cover(&pixel, &s->clutter[k].paint, stroke_distance(&s->clutter[k], x, y));
  return pixel;
}

static void draw_image(uint64_t seed, int split, uint32_t i, unsigned char record[RECORD]) {
  random_stream labels = random_open(seed, RANDOM_SHAPES, (uint32_t)(LABELS + split), i / CLASSES);
  int32_t order[CLASSES];
  random_permutation(&labels, order, CLASSES);
  record[0] = (unsigned char)order[i % CLASSES];
  random_stream random = random_open(seed, RANDOM_SHAPES, (uint32_t)split, i);
  const scene s = random_scene(&random, record[0]);
  for (int p = 0; p < PIXELS; p++) {
    const colour pixel = scene_colour(&s, p % SIDE + 0.5, p / SIDE + 0.5);
    for (int k = 0; k < 3; k++) {
      const double value = pixel.channel[k] + s.noise * (2 * random_double(&random) - 1);
      record[1 + k * PIXELS + p] = (unsigned char)(255 * fmin(fmax(value, 0), 1) + 0.5);
    }
  }
}
int main(int argc, char **argv) {
  (void)argc;
  for (int f = 0; f < 6; f++) {
    char path[1000];
    if (f < 5)
      snprintf(path, 1000, "%s/data_batch_%d.bin", argv[1], f + 1);
    else
      snprintf(path, 1000, "%s/test_batch.bin", argv[1]);
    FILE *o = fopen(path, "wb");
    unsigned char r[RECORD];
    for (int i = 0; i < 2000; i++)
      draw_image(1, f / 5, f % 5 * 2000 + i, r), fwrite(r, 1, RECORD, o);
    fclose(o);
  }
}
