// shapes.c - a stand-in data set in CIFAR-10's format, for when CIFAR-10 cannot be had.
//
//     ./shapes [--seed N] [--train N] [--test N] DIR
//     ./shapes --seed 1 data/stand-in
//
// Without a network, without the download, the course still needs pictures to learn from: this
// program draws them. It writes the files of CIFAR-10's binary version (cifar.h has the format), by
// default with 10,000 training and 2,000 test images, and STAND-IN.txt, which says what they are. An
// accuracy on them says nothing about CIFAR-10; it says that a network learns.
//
// An image shows one of ten shapes, bright on a darker ground:
//
//     0 disc  1 ring  2 crescent  3 triangle  4 square  5 cross  6 star  7 heart  8 arrow  9 bars
//
// What must not tell the classes apart is random: colours, gradients and stripes of the shape and of
// the ground, place, size, a little stretch and tilt, stray lines and blobs before and behind, noise.
// A class survives what training does to images: each shape is its own mirror image, the tilt goes
// either way, and no class is told by its place.
//
// Every image has a difficulty h = u^6, u uniform on (0, 1): half of all images have h < 0.02, one in
// nine has h > 0.5. With h the clutter and the noise grow, the contrast and the size shrink. So most
// images are easy, which lets a short training find the shapes at all, and some are very hard, which
// keeps it from being perfect. (With all images of one middling difficulty, the same accuracy hung on
// luck: 79 % with one seed, 91 % with the next.)
//
// Measured on `--seed 1`, test accuracy:
//
//     chance                                                       10 %
//     logistic regression on the pixels, best of several L2        TODO
//     ./train --preset quick, seeds 1 to 4                         TODO
//
// Image i of a split is a function of (seed, split, i) and nothing else: the first images of a large
// set are a small set, and the number of threads does not matter. Arithmetic is in double, so that
// what compilers and maths libraries do differently is lost when it is rounded to a byte.
#define _POSIX_C_SOURCE 200809L
#include "error.h"
#include "files.h"
#include "random.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

enum {
  CLASSES = 10,
  SIDE = 32,
  PIXELS = SIDE * SIDE,
  RECORD_BYTES = 1 + 3 * PIXELS, // label, red plane, green plane, blue plane
  TRAIN_FILES = 5,
  MAX_IMAGES = 1000000,
  MAX_STROKES = 9,
};

// The `epoch` of a random stream is free here; it says what the stream is for.
enum { TRAIN = 0, TEST = 1, LABELS = 2 }; // an image of a split; LABELS + split: ten labels

static const double pi = 3.14159265358979323846;

// ---- The shapes -----------------------------------------------------------------------------------
//
// A shape is a function that says how far a point lies outside it, negative inside: roughly, except
// near the edge, where that distance decides how much of a pixel is covered. x goes right, y up, and
// every shape about fills the circle of radius 1. fmin of two shapes is their union, fmax what they
// share.

static double length(double x, double y) {
  return sqrt(x * x + y * y);
}

static double box(double x, double y, double half_width, double half_height) {
  return fmax(fabs(x) - half_width, fabs(y) - half_height);
}

// Turns (x, y) by a multiple of 1/n of a circle, and mirrors it, into the half-sector just above the
// x axis: one straight edge drawn there becomes 2n edges, a polygon or a star.
static void fold(int n, double *x, double *y) {
  const double angle = fabs(remainder(atan2(*y, *x), 2 * pi / n)), radius = length(*x, *y);
  *x = radius * cos(angle), *y = radius * sin(angle);
}

static double disc(double x, double y) {
  return length(x, y) - 0.8;
}

static double ring(double x, double y) {
  return fabs(length(x, y) - 0.68) - 0.18;
}

static double crescent(double x, double y) {
  return fmax(length(x, y) - 0.9, 0.75 - length(x, y - 0.5));
}

static double triangle(double x, double y) {
  double across = -y, along = x; // from the centre down to the base, and along the base
  fold(3, &across, &along);
  return across - 0.5;
}

static double square(double x, double y) {
  return box(x, y, 0.7, 0.7);
}

static double cross(double x, double y) {
  return fmin(box(x, y, 0.95, 0.26), box(x, y, 0.26, 0.95));
}

static double star(double x, double y) {
  double across = y, along = x; // one point of the star is at the top
  fold(5, &across, &along);
  return 0.384 * (across - 1) + 0.923 * along;
}

// A square standing on its corner, with half a disc on each of its two upper sides.
static double heart(double x, double y) {
  const double half = 0.56, a = (y + x) / sqrt(2), b = (y - x) / sqrt(2);
  return fmin(box(a, b, half, half), fmin(length(a - half, b), length(a, b - half)) - half);
}

static double arrow(double x, double y) {
  const double head = fmax(0.1 - y, (y + fabs(x) - 0.95) / sqrt(2));
  return fmin(head, box(x, y + 0.4, 0.2, 0.55));
}

static double bars(double x, double y) {
  return fmin(box(x, y, 0.9, 0.15), box(x, fabs(y) - 0.64, 0.9, 0.15));
}

static const struct {
  const char *name;
  double (*distance)(double x, double y);
} classes[CLASSES] = {
    {"disc", disc},     {"ring", ring},   {"crescent", crescent}, {"triangle", triangle},
    {"square", square}, {"cross", cross}, {"star", star},         {"heart", heart},
    {"arrow", arrow},   {"bars", bars},
};

// ---- The scene: all that is random about an image, but its noise ----------------------------------

typedef struct {
  double channel[3]; // red, green, blue, each 0 .. 1
} colour;

// Two colours that a sine wave blends: a gradient where the wave is long, stripes where it is short.
typedef struct {
  colour from, to;
  double wave_x, wave_y, phase;
} surface;

// A place and a direction in the image, from which the coordinates of a shape or stroke are counted.
typedef struct {
  double x, y, cosine, sine;
} frame;

// A line with round ends, or a blob where it is short.
typedef struct {
  frame frame;
  double half_length, radius;
  colour paint;
} stroke;

typedef struct {
  int class;
  frame frame;
  double size, stretch; // pixels to the shape's radius of 1; how much wider and flatter
  surface ground, paint;
  stroke strokes[MAX_STROKES];
  int stroke_count, behind; // the first `behind` strokes lie behind the shape
  double noise;             // the most that a channel is off
} scene;

static double uniform(random_stream *random, double low, double high) {
  return low + (high - low) * random_double(random);
}

static frame frame_at(double x, double y, double angle) {
  return (frame){.x = x, .y = y, .cosine = cos(angle), .sine = sin(angle)};
}

static colour random_colour(random_stream *random) {
  colour c;
  for (int k = 0; k < 3; k++) c.channel[k] = random_double(random);
  return c;
}

static surface random_surface(random_stream *random) {
  surface s = {.from = random_colour(random)};
  for (int k = 0; k < 3; k++) s.to.channel[k] = s.from.channel[k] + uniform(random, -0.12, 0.12);
  const double wavelength = 5 * pow(16, random_double(random)); // 5 to 80 pixels
  const double angle = uniform(random, 0, 2 * pi);
  s.wave_x = 2 * pi / wavelength * cos(angle), s.wave_y = 2 * pi / wavelength * sin(angle);
  s.phase = uniform(random, 0, 2 * pi);
  return s;
}

static stroke random_stroke(random_stream *random) {
  const bool blob = random_double(random) < 0.5;
  const double x = uniform(random, 0, SIDE), y = uniform(random, 0, SIDE);
  return (stroke){.frame = frame_at(x, y, uniform(random, 0, pi)),
                  .half_length = blob ? uniform(random, 0, 2) : uniform(random, 4, 16),
                  .radius = blob ? uniform(random, 0.8, 2.2) : uniform(random, 0.4, 0.8),
                  .paint = random_colour(random)};
}

// How bright the eye finds a surface on average, 0 .. 1 (ITU-R BT.601).
static double luma(const surface *s) {
  const double weight[3] = {0.299, 0.587, 0.114};
  double sum = 0;
  for (int k = 0; k < 3; k++) sum += weight[k] * (s->from.channel[k] + s->to.channel[k]) / 2;
  return sum;
}

static scene random_scene(random_stream *random, int class) {
  const double h = pow(random_double(random), 6); // the difficulty
  scene s = {.class = class, .size = uniform(random, 8.5, 12) * (1 - 0.5 * h)};
  const double reach = SIDE / 2.0 - 0.85 * s.size; // most of the shape stays inside the image
  const double x = SIDE / 2.0 + uniform(random, -reach, reach);
  const double y = SIDE / 2.0 + uniform(random, -reach, reach);
  s.frame = frame_at(x, y, uniform(random, -pi, pi) * 25 / 180);
  s.stretch = exp(uniform(random, -0.1, 0.1));
  do s.ground = random_surface(random), s.paint = random_surface(random);
  while (luma(&s.paint) - luma(&s.ground) < 0.33 * (1 - h));
  s.stroke_count = (int)uniform(random, 0, 3 + 7 * h);
  s.behind = (int)random_below(random, (uint32_t)s.stroke_count + 1);
  for (int i = 0; i < s.stroke_count; i++) s.strokes[i] = random_stroke(random);
  s.noise = 0.04 + 0.5 * h;
  return s;
}

// ---- Drawing --------------------------------------------------------------------------------------

static colour surface_colour(const surface *s, double x, double y) {
  const double share = 0.5 + 0.5 * sin(s->wave_x * x + s->wave_y * y + s->phase);
  colour c;
  for (int k = 0; k < 3; k++)
    c.channel[k] = s->from.channel[k] + share * (s->to.channel[k] - s->from.channel[k]);
  return c;
}

// The image's (x, y), y down, as the frame sees it, y up.
static void enter_frame(const frame *f, double *x, double *y) {
  const double right = *x - f->x, up = f->y - *y;
  *x = right * f->cosine + up * f->sine, *y = up * f->cosine - right * f->sine;
}

// Paints a pixel whose centre lies `distance` pixels outside an edge: it is covered by half if the
// edge runs through its centre, wholly or not at all if the edge is half a pixel away.
static void paint_over(colour *pixel, const colour *paint, double distance) {
  const double share = fmin(fmax(0.5 - distance, 0), 1);
  for (int k = 0; k < 3; k++) pixel->channel[k] += share * (paint->channel[k] - pixel->channel[k]);
}

static void paint_stroke(colour *pixel, const stroke *s, double x, double y) {
  enter_frame(&s->frame, &x, &y);
  paint_over(pixel, &s->paint, length(fmax(fabs(x) - s->half_length, 0), y) - s->radius);
}

static void paint_shape(colour *pixel, const scene *s, double x, double y) {
  const colour paint = surface_colour(&s->paint, x, y);
  enter_frame(&s->frame, &x, &y);
  x /= s->size * s->stretch, y /= s->size / s->stretch;
  paint_over(pixel, &paint, s->size * classes[s->class].distance(x, y));
}

static colour scene_colour(const scene *s, double x, double y) {
  colour pixel = surface_colour(&s->ground, x, y);
  for (int i = 0; i < s->behind; i++) paint_stroke(&pixel, &s->strokes[i], x, y);
  paint_shape(&pixel, s, x, y);
  for (int i = s->behind; i < s->stroke_count; i++) paint_stroke(&pixel, &s->strokes[i], x, y);
  return pixel;
}

// Each ten images in a row have the ten classes, in random order.
static int image_class(uint64_t seed, int split, int i) {
  const uint32_t ten = (uint32_t)(i / CLASSES);
  random_stream random = random_open(seed, RANDOM_SHAPES, (uint32_t)(LABELS + split), ten);
  int32_t order[CLASSES];
  random_permutation(&random, order, CLASSES);
  return order[i % CLASSES];
}

static void draw_record(uint64_t seed, int split, int i, uint8_t record[RECORD_BYTES]) {
  random_stream random = random_open(seed, RANDOM_SHAPES, (uint32_t)split, (uint32_t)i);
  const scene s = random_scene(&random, image_class(seed, split, i));
  record[0] = (uint8_t)s.class;
  for (int p = 0; p < PIXELS; p++) {
    const colour pixel = scene_colour(&s, p % SIDE + 0.5, p / SIDE + 0.5);
    for (int k = 0; k < 3; k++) {
      const double value = pixel.channel[k] + uniform(&random, -s.noise, s.noise);
      record[1 + k * PIXELS + p] = (uint8_t)(255 * fmin(fmax(value, 0), 1) + 0.5);
    }
  }
}

// ---- Files ----------------------------------------------------------------------------------------

typedef struct {
  uint64_t seed;
  int train, test; // images
  const char *directory;
} options;

enum { MARKER, NAMES, FIRST_BATCH, TEST_BATCH = FIRST_BATCH + TRAIN_FILES, FILES };
enum { PATH_ROOM = 4200 }; // directory_make() refuses what would not fit

static const char *const file_names[FILES] = {
    "STAND-IN.txt",     "batches.meta.txt", "data_batch_1.bin", "data_batch_2.bin",
    "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin"};

static void path_of(const options *o, int file, const char *suffix, char path[PATH_ROOM]) {
  snprintf(path, PATH_ROOM, "%s/%s%s", o->directory, file_names[file], suffix);
}

// Somebody's CIFAR-10 must not be overwritten: files may be replaced only where STAND-IN.txt says
// that this program made them. A CIFAR-10 unpacked on top of a stand-in set would leave STAND-IN.txt
// lying there, but brings its own class names.
static bool may_replace(const options *o, error *e) {
  char path[PATH_ROOM], line[64] = "";
  path_of(o, MARKER, "", path);
  const bool marked = file_exists(path);
  path_of(o, NAMES, "", path);
  FILE *names = fopen(path, "r");
  const bool ours = !names || (fgets(line, sizeof line, names) && !strcmp(line, "disc\n"));
  if (names) fclose(names);
  for (int file = NAMES; file < FILES; file++) {
    path_of(o, file, "", path);
    if (file_exists(path) && !(marked && ours))
      return fail(e, "%s: not made by this program, so it stays; choose another directory", path);
  }
  return true;
}

static void write_marker(const options *o, FILE *out) {
  fprintf(
      out,
      "This is NOT CIFAR-10. It is a stand-in set in CIFAR-10's format: pictures of ten shapes,\n"
      "drawn by a program (shapes.c). An accuracy on it says nothing about CIFAR-10.\n\n"
      "seed             %llu\ntraining images  %d\ntest images      %d\n",
      (unsigned long long)o->seed, o->train, o->test);
}

// Images first .. first + count - 1 of a split. Drawn a few hundred at a time, by all threads.
static void write_images(const options *o, int split, int first, int count, FILE *out) {
  enum { AT_ONCE = 500 };
  uint8_t(*records)[RECORD_BYTES] = allocate(AT_ONCE * sizeof *records);
  for (int done = 0; done < count && !ferror(out); done += AT_ONCE) {
    const int now = count - done < AT_ONCE ? count - done : AT_ONCE;
#pragma omp parallel for
    for (int i = 0; i < now; i++) draw_record(o->seed, split, first + done + i, records[i]);
    fwrite(records, RECORD_BYTES, (size_t)now, out);
  }
  free(records);
}

static void write_content(const options *o, int file, FILE *out) {
  const int share = o->train / TRAIN_FILES;
  if (file == MARKER) {
    write_marker(o, out);
  } else if (file == NAMES) {
    for (int i = 0; i < CLASSES; i++) fprintf(out, "%s\n", classes[i].name);
  } else if (file == TEST_BATCH) {
    write_images(o, TEST, 0, o->test, out);
  } else {
    write_images(o, TRAIN, (file - FIRST_BATCH) * share, share, out);
  }
}

// Writes one file under its temporary name, all the way to the disk.
static bool write_file(const options *o, int file, error *e) {
  char path[PATH_ROOM];
  path_of(o, file, ".tmp", path);
  FILE *out = fopen(path, "wb");
  if (!out) return fail(e, "%s: could not be created: %s", path, strerror(errno));
  write_content(o, file, out);
  const bool ok = !ferror(out) && fflush(out) == 0 && fsync(fileno(out)) == 0;
  const int why = errno;
  if (fclose(out) == 0 && ok) return true;
  return fail(e, "%s: could not be written: %s", path, strerror(ok ? errno : why));
}

// All or nothing: no file takes its name before all are written. The marker comes first, so that a
// set that a crash left half renamed still counts as one of ours and can be made again.
static bool write_set(const options *o, error *e) {
  char from[PATH_ROOM], to[PATH_ROOM];
  bool ok = directory_make(o->directory, e) && may_replace(o, e);
  if (!ok) return false;
  for (int file = 0; file < FILES && ok; file++) ok = write_file(o, file, e);
  for (int file = 0; file < FILES; file++) {
    path_of(o, file, ".tmp", from);
    path_of(o, file, "", to);
    ok = ok && file_replace(from, to, e);
    if (!ok) unlink(from);
  }
  return ok;
}

// ---- The command line -----------------------------------------------------------------------------

#define USAGE "shapes [--seed N] [--train N] [--test N] DIR"

// A whole number, digits only, from least to most.
static bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *number) {
  char *end;
  errno = 0;
  *number = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && !*end && !errno && *number >= least && *number <= most;
}

static bool parse_arguments(int argc, char **argv, options *o, error *e) {
  uint64_t train = 10000, test = 2000;
  *o = (options){.seed = 1};
  for (int i = 1; i < argc; i++) {
    const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
    if (name[0] != '-') {
      if (o->directory) return fail(e, "one directory, not both %s and %s", o->directory, name);
      o->directory = name;
      continue;
    }
    if (!strcmp(name, "--seed")) {
      if (!parse_number(value, 0, UINT64_MAX, &o->seed))
        return fail(e, "--seed %s: not possible; a whole number from 0 to 2^64-1 is", value);
    } else if (!strcmp(name, "--train")) {
      if (!parse_number(value, TRAIN_FILES, MAX_IMAGES, &train) || train % TRAIN_FILES)
        return fail(e, "--train %s: not possible; a multiple of %d up to %d is", value, TRAIN_FILES,
                    MAX_IMAGES);
    } else if (!strcmp(name, "--test")) {
      if (!parse_number(value, 1, MAX_IMAGES, &test))
        return fail(e, "--test %s: not possible; a whole number from 1 to %d is", value,
                    MAX_IMAGES);
    } else {
      return fail(e, "unknown option %s; usage: " USAGE, name);
    }
    i++;
  }
  o->train = (int)train, o->test = (int)test;
  return (o->directory && *o->directory) || fail(e, "where to? usage: " USAGE);
}

int main(int argc, char **argv) {
  options o;
  error e;
  if (argc == 2 && !strcmp(argv[1], "--help")) {
    printf("usage: " USAGE "\n");
    return 0;
  }
  if (!parse_arguments(argc, argv, &o, &e)) {
    fprintf(stderr, "shapes: %s\n", e.text);
    return 2;
  }
  if (!write_set(&o, &e)) {
    fprintf(stderr, "shapes: %s\n", e.text);
    return 1;
  }
  printf("%s: %d training and %d test images of shapes, in CIFAR-10's format, seed %llu\n",
         o.directory, o.train, o.test, (unsigned long long)o.seed);
  return 0;
}
