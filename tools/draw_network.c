// tools/draw_network.c - pictures of a trained network; see pictures.h.
#include "pictures.h"

#include "cifar.h"
#include "network.h"
#include "png.h"
#include "reference/reference.h"
#include "run/checkpoint.h"
#include "run/inspect.h"
#include "run/safetensors.h"

#include <math.h>
#include <string.h>

// -- The first layer's filters --------------------------------------------------------------------

enum {
  FILTER = 3,
  FILTER_SCALE = 10,
  FILTER_STRIDE = FILTER * FILTER_SCALE + 8,
  FILTERS_A_ROW = 8
};

// A filter, [3][3][RGB], as a picture of 3x3 pixels: grey is 0, and the largest of its weights is as far from
// it as black and white are.
static void draw_filter(picture *p, int left, int top, const real *w) {
  enum { COUNT = FILTER * FILTER * IMAGE_CHANNELS };
  real pixels[COUNT], largest = 0;
  for (int i = 0; i < COUNT; i++) largest = fmaxf(largest, fabsf(w[i]));
  for (int i = 0; i < COUNT; i++) pixels[i] = (real)0.5 + (largest > 0 ? w[i] / largest / 2 : 0);
  picture_image(p, left, top, FILTER, FILTER_SCALE, pixels);
}

// A network with the weights of a file, as wide as they are.
static bool load_network(network *n, const char *path, int batch, error *e) {
  safetensors s;
  if (!safetensors_read(path, &s, e)) return false;
  const int width = checkpoint_width(&s);
  safetensors_free(&s);
  if (!width) return fail(e, "%s: has no conv1.weight of this network", path);
  if (!network_create(n, cpu_device(), width, batch, e)) return false;
  bool ok = checkpoint_load(n, path, stdout, e);
  const char *bad = ok ? network_bad_tensor(n) : NULL;
  if (bad) ok = fail(e, "%s: %s is not finite", path, bad);
  if (!ok) network_free(n);
  return ok;
}

bool draw_filters(const picture_request *r, error *e) {
  static network n;
  if (!load_network(&n, r->weights, 1, e)) return false;
  const parameter *stem = &n.parameters.list[n.units[0].weight];
  const int width = n.width, rows = (width + FILTERS_A_ROW - 1) / FILTERS_A_ROW;
  picture p = picture_make(8 + FILTERS_A_ROW * FILTER_STRIDE, 8 + rows * FILTER_STRIDE);
  for (int k = 0; k < width; k++)
    draw_filter(&p, 8 + k % FILTERS_A_ROW * FILTER_STRIDE, 8 + k / FILTERS_A_ROW * FILTER_STRIDE,
                n.parameters.weight + stem->offset + (size_t)k * (stem->count / (size_t)width));
  const bool ok = picture_write(&p, r->out, e);
  picture_free(&p);
  network_free(&n);
  return ok;
}

// -- Mistakes -------------------------------------------------------------------------------------

enum { BATCH = 100, MISTAKES = 6, GAP = 10, LINE = 12, SCALE = 2 };
enum { STRIDE = IMAGE_SIDE * SCALE + GAP };

typedef struct {
  int image, guess;
  double confidence;
} mistake;

// Keeps the MISTAKES most confident ones, the most confident first.
static void keep(mistake worst[MISTAKES], mistake m) {
  for (int i = 0; i < MISTAKES; i++)
    if (m.confidence > worst[i].confidence) {
      const mistake weaker = worst[i];
      worst[i] = m;
      m = weaker;
    }
}

static double confidence_of(const real *logits, int guess) {
  double sum = 0; // of e^(logit - largest)
  for (int j = 0; j < CLASSES; j++) sum += exp((double)logits[j] - (double)logits[guess]);
  return 1 / sum;
}

static void find_mistakes(network *n, const dataset *d, mistake worst[MISTAKES]) {
  sample samples[BATCH];
  const step_values alone = {.lambda = 1};
  const int images = d->train_count + d->test_count;
  for (int first = d->train_count; first < images; first += BATCH) {
    const int count = images - first < BATCH ? images - first : BATCH;
    cifar_test_batch(samples, first, count);
    n->device->mix_images(count, n->input, d->images, samples, &alone);
    network_forward(n, count, false);
    for (int b = 0; b < count; b++) {
      const real *logits = n->logits + b * CLASSES;
      const int guess = reference_arg_max(logits);
      if (guess != d->labels[first + b])
        keep(worst, (mistake){first + b, guess, confidence_of(logits, guess)});
    }
  }
}

static bool draw_worst(const mistake worst[MISTAKES], const dataset *d, const char *path,
                       error *e) {
  real pixels[IMAGE_BYTES];
  const step_values alone = {.lambda = 1};
  picture p = picture_make(GAP + MISTAKES * STRIDE, GAP + STRIDE + 3 * LINE + GAP);
  for (int i = 0; i < MISTAKES && worst[i].confidence > 0; i++) {
    const int left = GAP + i * STRIDE, words = GAP + STRIDE;
    sample s;
    cifar_test_batch(&s, worst[i].image, 1);
    s.partner = 0;
    reference_mix_images(1, pixels, d->images, &s, &alone);
    picture_image(&p, left, GAP, IMAGE_SIDE, SCALE, pixels);
    picture_text(&p, left, words, "%s", d->class_names[d->labels[worst[i].image]]);
    picture_text(&p, left, words + LINE, "? %s", d->class_names[worst[i].guess]);
    picture_text(&p, left, words + 2 * LINE, "%.1f %%", 100 * worst[i].confidence);
  }
  const bool ok = picture_write(&p, path, e);
  picture_free(&p);
  return ok;
}

bool draw_mistakes(const picture_request *r, error *e) {
  static network n;
  dataset d;
  mistake worst[MISTAKES] = {0};
  if (!cifar_read(r->data, 1, 0, &d, e)) return false;
  bool ok = load_network(&n, r->weights, BATCH, e);
  if (ok) {
    find_mistakes(&n, &d, worst);
    network_free(&n);
    ok = draw_worst(worst, &d, r->out, e);
  }
  cifar_free(&d);
  return ok;
}
