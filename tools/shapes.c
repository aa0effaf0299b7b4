// tools/shapes.c - a stand-in data set in CIFAR-10's format, for when CIFAR-10 cannot be had.
//
//     ./shapes --seed 1 data/stand-in
//
// Without a network, without the download, the course still needs pictures to learn from: this
// program draws them, 10,000 for training and 2,000 for testing unless --train and --test say other
// numbers, and writes them into the files of CIFAR-10's binary version (cifar.h has the format).
// An accuracy on them says nothing about CIFAR-10; it says that a network learns.
//
// An image shows one of ten shapes, bright on a darker ground:
//
//     0 disc  1 ring  2 crescent  3 triangle  4 square  5 cross  6 star  7 heart  8 arrow  9 bars
//
// What must not tell the classes apart is random: colours, gradients and stripes of shape and
// ground, place, size, a little stretch and tilt, stray lines and blobs before and behind, noise.
// A class survives what training does to an image: each shape is its own mirror image, the tilt
// goes either way, and place means nothing.
//
// Every image has a difficulty h = u^6, with u uniform on (0, 1): half of them have h < 0.02, one
// in nine has h > 0.5. With h, clutter and noise grow, contrast and size shrink. So most images are
// easy, which lets a short training find the shapes at all, and some are very hard, which keeps it
// from being perfect. (When all images were middling, the accuracy hung on luck: 79 % with one
// seed, 91 % with the next.)
//
// Measured on the set of the command above, test accuracy:
//
//     chance                                                         10 %
//     logistic regression on pixels, L2 of 0.001, 0.01, 0.1          23 % at best
//     the same with random crops and flips                           18 %
//     ./train --preset quick --data data/stand-in, seeds 1 to 4      93.00  93.25  93.20  92.95 %
//
// Image i of a split is a function of (seed, split, i) and nothing else: a smaller set is the
// beginning of a larger one, and the number of threads does not matter. Arithmetic is in double, so
// that what compilers and maths libraries do differently is lost in rounding to a byte.
//
// A set that was interrupted is not taken for a whole one: its last file, test_batch.bin, gets its name
// last, when all others are on the disk under theirs; and that file is what `make` looks for.
//
// Checked by `make check`: tests/data.py.
#define _DEFAULT_SOURCE // flock
#include "cifar.h"
#include "run/files.h"
#include "run/random.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_IMAGES = 1000000, MAX_STROKES = 9 };
enum { PIXELS = IMAGE_SIDE * IMAGE_SIDE };

// A random stream's `epoch` is free here, and says what the stream is for: an image of the split,
// or (LABELS + split) the classes of ten images.
enum { TRAIN = 0, TEST = 1, LABELS = 2 };

static const double pi = 3.14159265358979323846;

// -- The shapes -----------------------------------------------------------------------------------

enum { DISC, RING, CRESCENT, TRIANGLE, SQUARE, CROSS, STAR, HEART, ARROW }; // and bars
static const char *const class_names[CLASSES] = {"disc",  "ring", "crescent", "triangle", "square",
                                                 "cross", "star", "heart",    "arrow",    "bars"};

typedef struct {
  double x, y;
} point;

static double length(double x, double y) {
  return sqrt(x * x + y * y);
}

// How far a point lies outside the box |x| <= width, |y| <= height, along an axis.
static double box(double x, double y, double width, double height) {
  return fmax(fabs(x) - width, fabs(y) - height);
}

// Turns a point by a multiple of 1/n of a circle and mirrors it, into the half sector just above
// the x axis: one straight edge drawn there becomes 2n edges, a polygon or a star.
static point fold(int n, double x, double y) {
  const double angle = fabs(remainder(atan2(y, x), 2 * pi / n)), radius = length(x, y);
  return (point){radius * cos(angle), radius * sin(angle)};
}

// An edge from the tip at the top, at distance 1, to the notch between two tips, at 0.45.
static double star(double x, double y) {
  const point p = fold(5, y, x);
  return 0.384 * (p.x - 1) + 0.923 * p.y;
}

// A square standing on its corner, with half a disc on each of its two upper sides.
static double heart(double x, double y) {
  const double half = 0.56, a = (y + x) / sqrt(2), b = (y - x) / sqrt(2);
  return fmin(box(a, b, half, half), fmin(length(a - half, b), length(a, b - half)) - half);
}

// How far (x, y) lies outside the shape, negative inside; right near the edge, where it decides
// how much of a pixel is covered, and of the right sign elsewhere. x goes right, y up; every shape
// about fills the circle of radius 1. fmin of two shapes is their union, fmax what they share.
static double shape_distance(int class, double x, double y) {
  if (class == DISC) return length(x, y) - 0.8;
  if (class == RING) return fabs(length(x, y) - 0.68) - 0.18;
  if (class == CRESCENT) return fmax(length(x, y) - 0.9, 0.75 - length(x, y - 0.5));
  if (class == TRIANGLE) return fold(3, -y, x).x - 0.5;
  if (class == SQUARE) return box(x, y, 0.7, 0.7);
  if (class == CROSS) return fmin(box(x, y, 0.95, 0.26), box(x, y, 0.26, 0.95));
  if (class == STAR) return star(x, y);
  if (class == HEART) return heart(x, y);
  if (class == ARROW)
    return fmin(fmax(0.1 - y, (y + fabs(x) - 0.95) / sqrt(2)), box(x, y + 0.4, 0.2, 0.55));
  return fmin(box(x, y, 0.9, 0.15), box(x, fabs(y) - 0.64, 0.9, 0.15)); // bars
}

// -- The scene: all that is random about an image, but its noise ----------------------------------

typedef struct {
  double channel[3]; // red, green, blue, each 0 .. 1
} colour;

// Two colours that a sine wave blends: a gradient where it is long, stripes where it is short.
typedef struct {
  colour from, to;
  double wave_x, wave_y, phase;
} surface;

// Coordinates of its own for each thing in the image: where it is and how it is turned.
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
  double size, stretch; // the shape's radius in pixels; how much wider and flatter it is
  surface ground, paint;
  stroke strokes[MAX_STROKES];
  int stroke_count, behind; // the first `behind` strokes lie behind the shape
  double noise;             // the most that a channel is off
} scene;

static double uniform(random_stream *random, double low, double high) {
  return low + (high - low) * random_double(random);
}

// Somewhere in the image, `margin` off its border, turned by up to `turn` either way.
static frame random_frame(random_stream *random, double margin, double turn) {
  const double x = uniform(random, margin, IMAGE_SIDE - margin);
  const double y = uniform(random, margin, IMAGE_SIDE - margin);
  const double angle = uniform(random, -turn, turn);
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
  const double angle = uniform(random, 0, pi);
  s.wave_x = 2 * pi / wavelength * cos(angle);
  s.wave_y = 2 * pi / wavelength * sin(angle);
  s.phase = uniform(random, 0, 2 * pi);
  return s;
}

static stroke random_stroke(random_stream *random) {
  const bool blob = random_double(random) < 0.5;
  stroke s = {.frame = random_frame(random, 0, pi)};
  s.paint = random_colour(random);
  s.half_length = blob ? uniform(random, 0, 2) : uniform(random, 4, 16);
  s.radius = blob ? uniform(random, 0.8, 2.2) : uniform(random, 0.4, 0.8);
  return s;
}

// How bright the eye finds a surface on average, 0 .. 1 (the weights of ITU-R BT.601).
static double brightness(const surface *s) {
  const double weight[3] = {0.299, 0.587, 0.114};
  double sum = 0;
  for (int k = 0; k < 3; k++) sum += weight[k] * (s->from.channel[k] + s->to.channel[k]) / 2;
  return sum;
}

static scene random_scene(random_stream *random, int class) {
  const double h = pow(random_double(random), 6); // the difficulty
  scene s = {.class = class, .size = uniform(random, 8.5, 12) * (1 - 0.5 * h)};
  s.frame = random_frame(random, 0.85 * s.size, 25 * pi / 180);
  s.stretch = exp(uniform(random, -0.1, 0.1));
  do {
    s.ground = random_surface(random);
    s.paint = random_surface(random);
  } while (brightness(&s.paint) - brightness(&s.ground) < 0.33 - 0.25 * h);
  s.stroke_count = (int)uniform(random, 0, 3 + 7 * h);
  s.behind = (int)random_below(random, (uint32_t)s.stroke_count + 1);
  for (int i = 0; i < s.stroke_count; i++) s.strokes[i] = random_stroke(random);
  s.noise = 0.04 + 0.5 * h;
  return s;
}

// -- Drawing --------------------------------------------------------------------------------------

static colour surface_colour(const surface *s, double x, double y) {
  const double share = 0.5 + 0.5 * sin(s->wave_x * x + s->wave_y * y + s->phase);
  colour c;
  for (int k = 0; k < 3; k++)
    c.channel[k] = s->from.channel[k] + share * (s->to.channel[k] - s->from.channel[k]);
  return c;
}

// A point of the image, whose y goes down, in the coordinates of a frame, whose y goes up.
static point in_frame(const frame *f, double x, double y) {
  const double right = x - f->x, up = f->y - y;
  return (point){right * f->cosine + up * f->sine, up * f->cosine - right * f->sine};
}

// Paints a pixel whose centre lies `distance` pixels outside an edge: half of it where the edge
// runs through the centre, all or nothing of it half a pixel away.
static void paint_over(colour *pixel, const colour *paint, double distance) {
  const double share = fmin(fmax(0.5 - distance, 0), 1);
  for (int k = 0; k < 3; k++) pixel->channel[k] += share * (paint->channel[k] - pixel->channel[k]);
}

static void paint_stroke(colour *pixel, const stroke *s, double x, double y) {
  const point p = in_frame(&s->frame, x, y);
  paint_over(pixel, &s->paint, length(fmax(fabs(p.x) - s->half_length, 0), p.y) - s->radius);
}

static colour scene_colour(const scene *s, double x, double y) {
  colour pixel = surface_colour(&s->ground, x, y);
  const colour paint = surface_colour(&s->paint, x, y);
  const point p = in_frame(&s->frame, x, y);
  const double outside =
      shape_distance(s->class, p.x / s->size / s->stretch, p.y / s->size * s->stretch);
  for (int i = 0; i < s->behind; i++) paint_stroke(&pixel, &s->strokes[i], x, y);
  paint_over(&pixel, &paint, s->size * outside);
  for (int i = s->behind; i < s->stroke_count; i++) paint_stroke(&pixel, &s->strokes[i], x, y);
  return pixel;
}

// Images 0 .. 9 have the ten classes in random order, and so have 10 .. 19, and so on.
static int image_class(uint64_t seed, int split, int i) {
  random_stream random =
      random_open(seed, RANDOM_SHAPES, (uint32_t)(LABELS + split), (uint32_t)(i / CLASSES));
  int32_t order[CLASSES];
  random_permutation(&random, order, CLASSES);
  return order[i % CLASSES];
}

static void draw_record(uint64_t seed, int split, int i, uint8_t record[RECORD_BYTES]) {
  random_stream random = random_open(seed, RANDOM_SHAPES, (uint32_t)split, (uint32_t)i);
  const scene s = random_scene(&random, image_class(seed, split, i));
  record[0] = (uint8_t)s.class;
  for (int p = 0; p < PIXELS; p++) {
    const colour pixel = scene_colour(&s, p % IMAGE_SIDE + 0.5, p / IMAGE_SIDE + 0.5);
    for (int k = 0; k < 3; k++) {
      const double value = pixel.channel[k] + uniform(&random, -s.noise, s.noise);
      record[1 + k * PIXELS + p] = (uint8_t)(255 * fmin(fmax(value, 0), 1) + 0.5);
    }
  }
}

// -- Files ----------------------------------------------------------------------------------------

typedef struct {
  uint64_t seed, train, test; // the last two: numbers of images
  const char *directory;
} options;

enum { PATH_ROOM = 4200 }; // directory_make() refuses what would not fit

static void path_of(const options *o, int file, const char *suffix, char path[PATH_ROOM]) {
  snprintf(path, PATH_ROOM, "%s/%s%s", o->directory, cifar_files[file], suffix);
}

// Somebody's CIFAR-10 must not be overwritten: files are replaced only where STAND-IN.txt says that
// this program made them, and the class names agree. (CIFAR-10 unpacked on top of a stand-in set
// would leave STAND-IN.txt there, but brings class names of its own.)
static bool may_replace(const options *o, error *e) {
  char path[PATH_ROOM], line[64] = "";
  path_of(o, MARK_FILE, "", path);
  bool ours = file_is_regular(path);
  path_of(o, NAMES_FILE, "", path);
  FILE *names = file_is_regular(path) ? fopen(path, "r") : NULL;
  if (names) ours = ours && fgets(line, sizeof line, names) && !strncmp(line, "disc\n", 5);
  if (names) fclose(names);
  for (int file = NAMES_FILE; file < ALL_FILES && !ours; file++) {
    path_of(o, file, "", path);
    if (file_exists(path))
      return fail(e, "%s: not made by this program, so it stays; choose another directory", path);
  }
  return true;
}

// Images first .. first + count - 1 of a split, drawn 500 at a time by all threads.
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
  const int share = (int)o->train / TRAIN_FILES;
  if (file == MARK_FILE)
    fprintf(
        out,
        "This is NOT CIFAR-10. It is a stand-in set in CIFAR-10's format: pictures of shapes,\n"
        "drawn by a program (tools/shapes.c). An accuracy on it says nothing about CIFAR-10.\n\n"
        "seed %llu, %llu training images, %llu test images\n",
        (unsigned long long)o->seed, (unsigned long long)o->train, (unsigned long long)o->test);
  for (int i = 0; i < CLASSES && file == NAMES_FILE; i++) fprintf(out, "%s\n", class_names[i]);
  if (file == TEST_FILE) write_images(o, TEST, 0, (int)o->test, out);
  if (file >= FIRST_FILE && file < TEST_FILE)
    write_images(o, TRAIN, (file - FIRST_FILE) * share, share, out);
}

// Writes one file under its temporary name, all the way to the disk. What stands there, a killed run's
// or anything else (a FIFO would be waited for), is no file of a set.
static bool write_file(const options *o, int file, error *e) {
  char path[PATH_ROOM];
  path_of(o, file, ".tmp", path);
  unlink(path);
  FILE *out = fopen(path, "wbx");
  if (!out)
    return fail(e, "%s: could not be created: %s; choose another directory", path, strerror(errno));
  write_content(o, file, out);
  const bool ok = !ferror(out) && fflush(out) == 0 && fsync(fileno(out)) == 0;
  if (!ok)
    fail(e, "%s: could not be written: %s; make room, or choose another directory", path,
         strerror(errno));
  fclose(out); // after fsync there is nothing left that could fail
  return ok;
}

// Two of these programs in one directory would take each other's files. So the second waits, at a lock on the
// directory that goes with the process. A file system without locks has no such protection.
static void take_turn(const options *o) {
  const int directory = open(o->directory, O_RDONLY);
  if (directory < 0 || flock(directory, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  printf("waiting for another shapes in %s\n", o->directory);
  fflush(stdout);
  while (flock(directory, LOCK_EX) != 0 && errno == EINTR) {}
}

// No file takes its name before all are written. The marker does so first: a set that a crash left
// half renamed still counts as one of ours, and can be made again. An earlier set loses its last file
// before that, so that no mixture of two passes for a whole one.
static bool write_set(const options *o, error *e) {
  char from[PATH_ROOM], to[PATH_ROOM];
  if (!directory_make(o->directory, e)) return false;
  take_turn(o);
  if (!may_replace(o, e)) return false;
  bool ok = true;
  for (int file = 0; file < ALL_FILES && ok; file++) ok = write_file(o, file, e);
  path_of(o, TEST_FILE, "", to);
  if (ok && unlink(to) != 0 && errno != ENOENT)
    ok = fail(e, "%s: could not be removed: %s; choose another directory", to, strerror(errno));
  for (int file = 0; file < ALL_FILES; file++) {
    path_of(o, file, ".tmp", from);
    path_of(o, file, "", to);
    ok = ok && file_replace(from, to, e);
    if (!ok) unlink(from);
  }
  return ok;
}

// -- The command line -----------------------------------------------------------------------------

static const char usage[] = "usage: shapes [--seed N] [--train N] [--test N] DIR";

static bool parse_arguments(int argc, char **argv, options *o, error *e) {
  *o = (options){.seed = 1, .train = 10000, .test = 2000};
  const struct {
    const char *name;
    uint64_t *number, least, most, multiple_of;
  } table[] = {{"--seed", &o->seed, 0, UINT64_MAX, 1},
               {"--train", &o->train, TRAIN_FILES, MAX_IMAGES, TRAIN_FILES},
               {"--test", &o->test, 1, MAX_IMAGES, 1}};
  for (int i = 1; i < argc; i++) {
    int which = 0;
    while (which < 3 && strcmp(argv[i], table[which].name)) which++;
    if (which == 3) {
      if (argv[i][0] == '-' || !argv[i][0] || o->directory)
        return fail(e, "'%s' is out of place; %s", argv[i], usage);
      o->directory = argv[i];
      continue;
    }
    const char *text = ++i < argc ? argv[i] : "";
    char *end;
    errno = 0;
    const uint64_t n = *table[which].number = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || n < table[which].least ||
        n > table[which].most || n % table[which].multiple_of)
      return fail(e, "%s '%s': not possible; %llu, %llu .. %llu is", table[which].name, text,
                  (unsigned long long)table[which].least,
                  (unsigned long long)(table[which].least + table[which].multiple_of),
                  (unsigned long long)table[which].most);
  }
  return o->directory || fail(e, "no directory given; %s", usage);
}

// The number of a standard stream that is closed would go to the next file that is opened, and what
// is said on the stream into that file. Nothing can be written to this one.
static void hold_standard_streams(void) {
  int number = 0;
  while (number >= 0 && number <= STDERR_FILENO) number = open("/dev/null", O_RDONLY);
  if (number >= 0) close(number);
}

static int report_mistake(const error *e, int status) {
  fprintf(stderr, "shapes: %s\n", e->text);
  return status;
}

int main(int argc, char **argv) {
  options o;
  error e;
  hold_standard_streams();
  signal(SIGXFSZ, SIG_IGN); // a file that grows beyond `ulimit -f` is then a failed write
  if (!parse_arguments(argc, argv, &o, &e)) return report_mistake(&e, 2);
  if (!write_set(&o, &e)) return report_mistake(&e, 1);
  printf("%s: %d training and %d test images of shapes in CIFAR-10's format (seed %llu)\n",
         o.directory, (int)o.train, (int)o.test, (unsigned long long)o.seed);
  if (fflush(stdout) == 0) return 0;
  fail(&e, "standard output: could not be written: %s; the set is complete", strerror(errno));
  return report_mistake(&e, 1);
}
