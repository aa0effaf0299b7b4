// tools/draw_data.c - pictures of what training does to images; see pictures.h.
//
// What is shown is the program's own: batches from cifar_training_batch and mixup_draw with seed 1, as
// in the first steps of a run, and pixels from reference_mix_images.
#include "pictures.h"

#include "cifar.h"
#include "png.h"
#include "reference/reference.h"

#include <string.h>

enum { SCALE = 2, SIDE = IMAGE_SIDE * SCALE, GAP = 10, STRIDE = SIDE + GAP, LINE = 12 };
enum { SEED = 1, IMAGES = 500 }; // the first ones are enough

static void draw_sample(picture *p, int left, int top, const uint8_t *images, sample s) {
  static real pixels[IMAGE_BYTES];
  const step_values alone = {.lambda = 1};
  s.partner = 0;
  reference_mix_images(1, pixels, images, &s, &alone);
  picture_image(p, left, top, IMAGE_SIDE, SCALE, pixels);
}

// -- Mixup ----------------------------------------------------------------------------------------

enum { COLUMNS = 6, BATCH = 2 };

// A column: image a, its partner b, lambda a + (1 - lambda) b, and in words what is asked for.
static void draw_pair(picture *p, int left, const dataset *d, const sample *pair, float lambda) {
  static real mixed[BATCH * IMAGE_BYTES];
  const sample *partner = &pair[pair[0].partner];
  const step_values step = {.lambda = lambda};
  reference_mix_images(BATCH, mixed, d->images, pair, &step);
  draw_sample(p, left, GAP, d->images, pair[0]);
  draw_sample(p, left, GAP + STRIDE, d->images, *partner);
  picture_image(p, left, GAP + 2 * STRIDE, IMAGE_SIDE, SCALE, mixed);
  const int words = GAP + 3 * STRIDE;
  picture_text(p, left, words, "%.2f", lambda);
  picture_text(p, left, words + LINE, "%.10s", d->class_names[d->labels[pair[0].image]]);
  picture_text(p, left, words + 2 * LINE, "+ %.2f", 1 - lambda);
  picture_text(p, left, words + 3 * LINE, "%.10s", d->class_names[d->labels[partner->image]]);
}

bool draw_mixed(const picture_request *r, error *e) {
  dataset d;
  if (!cifar_read(r->data, IMAGES, 1, &d, e)) return false;
  int32_t order[IMAGES];
  cifar_shuffle(order, IMAGES, SEED, 0);
  picture p = picture_make(GAP + COLUMNS * STRIDE, GAP + 3 * STRIDE + 4 * LINE + GAP);
  // A batch of two, of each step: its two images are each other's partners, or their own. The latter
  // show nothing, so those steps are left out.
  for (int step = 1, shown = 0; shown < COLUMNS; step++) {
    sample pair[BATCH];
    cifar_training_batch(pair, order, IMAGES, BATCH, SEED, 0, step);
    const float lambda = mixup_draw(BATCH, pair, 1, SEED, 0, step);
    if (pair[0].partner == 0) continue;
    draw_pair(&p, GAP + shown++ * STRIDE, &d, pair, lambda);
  }
  const bool ok = picture_write(&p, r->out, e);
  picture_free(&p);
  cifar_free(&d);
  return ok;
}

// -- Crops and flips ------------------------------------------------------------------------------

enum { ROWS = 3, EPOCHS = 6 };

// The image itself, and what the first epochs make of it.
static void draw_row(picture *p, int top, const dataset *d, int image) {
  int32_t order[IMAGES];
  sample samples[IMAGES], plain = {.image = image, .crop_y = CROP_PADDING, .crop_x = CROP_PADDING};
  draw_sample(p, GAP, top, d->images, plain);
  for (int epoch = 0; epoch < EPOCHS; epoch++) {
    cifar_shuffle(order, IMAGES, SEED, epoch);
    cifar_training_batch(samples, order, IMAGES, IMAGES, SEED, epoch, 1);
    for (int b = 0; b < IMAGES; b++)
      if (samples[b].image == image)
        draw_sample(p, GAP + (1 + epoch) * STRIDE + GAP, top, d->images, samples[b]);
  }
}

bool draw_crops(const picture_request *r, error *e) {
  dataset d;
  if (!cifar_read(r->data, IMAGES, 1, &d, e)) return false;
  picture p = picture_make(GAP + (1 + EPOCHS) * STRIDE + GAP, GAP + LINE + ROWS * STRIDE);
  picture_text(&p, GAP, GAP, "in the file");
  for (int epoch = 0; epoch < EPOCHS; epoch++)
    picture_text(&p, GAP + (1 + epoch) * STRIDE + GAP, GAP, "epoch %d", epoch);
  for (int row = 0; row < ROWS; row++) draw_row(&p, GAP + LINE + row * STRIDE, &d, row);
  const bool ok = picture_write(&p, r->out, e);
  picture_free(&p);
  cifar_free(&d);
  return ok;
}
