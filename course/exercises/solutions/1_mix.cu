// solutions/1_mix.cu - a solution of exercise 1. mixup.cu has the same kernel, and a faster one.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { BLOCK = 160 };

// Value of image s at pixel (y, x) and channel c: the flip is undone first, then the crop.
static __device__ float pixel_of(const uint8_t *images, sample s, int y, int x, int c) {
  const int row = y + s.crop_y - CROP_PADDING;
  const int column = (s.flip ? IMAGE_SIDE - 1 - x : x) + s.crop_x - CROP_PADDING;
  if (row < 0 || row >= IMAGE_SIDE || column < 0 || column >= IMAGE_SIDE) return 0;
  const uint8_t *image = images + (size_t)s.image * IMAGE_BYTES;
  return image[(c * IMAGE_SIDE + row) * IMAGE_SIDE + column] / 255.0f;
}

static __global__ void mix(int count, bf16 *x, const uint8_t *images, const sample *samples,
                           const step_values *step) {
  const int i = blockIdx.x * BLOCK + threadIdx.x;
  if (i >= count) return;
  const int channel = i % IMAGE_CHANNELS, column = i / IMAGE_CHANNELS % IMAGE_SIDE;
  const int row = i / (IMAGE_CHANNELS * IMAGE_SIDE) % IMAGE_SIDE;
  const sample own = samples[i / IMAGE_BYTES], partner = samples[own.partner];
  const float a = pixel_of(images, own, row, column, channel);
  const float b = pixel_of(images, partner, row, column, channel);
  x[i] = to_bf16(step->lambda * a + (1 - step->lambda) * b);
}

void run_1(const task *t) {
  const int count = t->rows * IMAGE_BYTES;
  launch("mix", mix, {divide_up(count, BLOCK), BLOCK, 0}, count, t->out[0], t->in[0], t->in[1],
         t->in[2]);
}

} // namespace solution
} // namespace GPU
