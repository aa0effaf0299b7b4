// reference/mixup.c - a batch of mixed images, plainly.
//
// x[b] = lambda a(b) + (1 - lambda) a(partner of b): the network hardly ever sees one image alone (of a
// random permutation about one image is its own partner), but a weighted sum of two, and is asked for
// both labels in the same proportion (reference/smoothing.c). The two images of a pair are augmented
// first, each with its own crop and flip.
//
// Zhang, Cisse, Dauphin, Lopez-Paz: "mixup: beyond empirical risk minimization", ICLR 2018.
#include "reference.h"

// Value of image s at pixel (y, x) and channel c after padding, crop, flip and division by 255. The
// flip exchanges left and right of the crop, so it is undone first on the way back to the file.
static real augmented_pixel(const uint8_t *images, const sample *s, int y, int x, int c) {
  const int crop_column = s->flip ? IMAGE_SIDE - 1 - x : x;
  const int row = y + s->crop_y - CROP_PADDING;
  const int column = crop_column + s->crop_x - CROP_PADDING;
  if (row < 0 || row >= IMAGE_SIDE || column < 0 || column >= IMAGE_SIDE) return 0;
  const uint8_t *image = images + (size_t)s->image * IMAGE_BYTES;
  return (real)image[(c * IMAGE_SIDE + row) * IMAGE_SIDE + column] / 255;
}

// images: [N][3][32][32]; samples: [batch]; x: [batch][32][32][3]
void reference_mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                          const step_values *step) {
  const real lambda = step->lambda;
#pragma omp parallel for // the CPU's threads share the rounds of the next loop
  for (int b = 0; b < batch; b++) {
    const sample *own = &samples[b], *partner = &samples[own->partner];
    real *pixel = (real *)x + (size_t)b * IMAGE_BYTES;
    for (int row = 0; row < IMAGE_SIDE; row++)
      for (int column = 0; column < IMAGE_SIDE; column++)
        for (int c = 0; c < IMAGE_CHANNELS; c++)
          *pixel++ = lambda * augmented_pixel(images, own, row, column, c) +
                     (1 - lambda) * augmented_pixel(images, partner, row, column, c);
  }
}
