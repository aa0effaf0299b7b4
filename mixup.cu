// mixup.cu - a batch of mixed images, made on the GPU from the data set's bytes.
//
// The whole data set lies in the GPU's memory as bytes (CIFAR-10: 184 MB), so that a step needs
// from the host only which images it takes, how each is cropped and flipped, and lambda: a few
// kilobytes. One kernel does the rest:
//
//     x[b] = lambda a(b) + (1 - lambda) a(partner of b)        a(b) = flip(crop(pad(image))) / 255
//
//     images   bytes        [N][3][32][32]       one plane a colour, as in CIFAR-10's files
//     x        activations  [batch][32][32][3]   bf16, a pixel's colours are neighbours
//
// This is the first kernel to read; gpu/gpu.h has just said what kernels, blocks and threads are. A
// thread's part of the work is one value of x here, or eight of them. Pointers are to the GPU's memory:
// the CPU hands them on but cannot follow them.
//
// Checked by `make check`: both kernels against reference/mixup.c, which defines the operation.
#include "gpu/gpu.h"

namespace GPU {

// -- Plain: one thread makes one value -----------------------------------------------------------

// Value of image s at pixel (y, x) and channel c after padding, crop and flip, before the division.
static __device__ float augmented_byte(const uint8_t *images, sample s, int y, int x, int c) {
  const int crop_column = s.flip ? IMAGE_SIDE - 1 - x : x;
  const int row = y + s.crop_y - CROP_PADDING;
  const int column = crop_column + s.crop_x - CROP_PADDING;
  if (row < 0 || row >= IMAGE_SIDE || column < 0 || column >= IMAGE_SIDE) return 0;
  const uint8_t *image = images + (size_t)s.image * IMAGE_BYTES;
  return image[(c * IMAGE_SIDE + row) * IMAGE_SIDE + column];
}

// Thread i makes x's value i. count: values in x
static __global__ void mix_value(int count, bf16 *x, const uint8_t *images, const sample *samples,
                                 const step_values *step) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return; // the last block may reach beyond the end
  const int channel = i % IMAGE_CHANNELS;
  const int column = i / IMAGE_CHANNELS % IMAGE_SIDE;
  const int row = i / (IMAGE_CHANNELS * IMAGE_SIDE) % IMAGE_SIDE;
  const sample own = samples[i / IMAGE_BYTES], partner = samples[own.partner];
  const float a = augmented_byte(images, own, row, column, channel) / 255;
  const float b = augmented_byte(images, partner, row, column, channel) / 255;
  x[i] = to_bf16(step->lambda * a + (1 - step->lambda) * b);
}

static void mix_images_plain(int batch, void *x, const uint8_t *images, const sample *samples,
                             const step_values *step) {
  const int count = batch * IMAGE_BYTES;
  launch("mix_value", mix_value, {divide_up(count, THREADS), THREADS, 0}, count, x, images, samples,
         step);
}

// -- Fast: one thread makes eight neighbouring values --------------------------------------------
//
// What the plain kernel wastes. Memory first: a thread can store up to 16 bytes at once, so a warp
// can store 512 in one request. The plain kernel's warps store 32 values of 2 bytes, 64 bytes a
// request. Then arithmetic: each thread finds out for a single value where its row lies in two
// images, loads two samples of 20 bytes for it, and divides twice, which takes a GPU some ten
// instructions each.
//
//     a row of x:  96 values = 12 times 8      | r g b r g b r g | b r g b r g b r | ...
//     thread       eight values, 16 bytes      |    thread 0     |    thread 1     | ...
//
// Eight values share their row, so the row is found once; lambda / 255 replaces the divisions. The
// loads stay single bytes, since crop and flip leave nothing aligned. But the loads of a warp fall
// into the same few rows of three planes, so most of them find their sector in the processor's
// cache.

enum { ROW_EIGHTS = IMAGE_CHANNELS * IMAGE_SIDE / EIGHT, IMAGE_EIGHTS = IMAGE_BYTES / EIGHT };

// Where a row of an augmented image comes from.
typedef struct {
  const uint8_t *red; // the file's row in its first plane; NULL: the row is padding
  int first, step; // the file's columns of the row's columns 0, 1, .. are first, first + step, ..
} source_row;

static __device__ source_row find_row(const uint8_t *images, sample s, int y) {
  const int row = y + s.crop_y - CROP_PADDING, shift = s.crop_x - CROP_PADDING;
  source_row source;
  source.red = NULL;
  if (row >= 0 && row < IMAGE_SIDE)
    source.red = images + (size_t)s.image * IMAGE_BYTES + row * IMAGE_SIDE;
  source.first = s.flip ? IMAGE_SIDE - 1 + shift : shift;
  source.step = s.flip ? -1 : 1;
  return source;
}

static __device__ float byte_of(const source_row &source, int x, int c) {
  const int column = source.first + source.step * x;
  if (!source.red || column < 0 || column >= IMAGE_SIDE) return 0;
  return source.red[c * IMAGE_SIDE * IMAGE_SIDE + column];
}

// Thread i makes x's values 8 i .. 8 i + 7. count: how many times eight values x has
static __global__ void mix_eight(int count, bf16 *x, const uint8_t *images, const sample *samples,
                                 const step_values *step) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int row = i / ROW_EIGHTS % IMAGE_SIDE, first = i % ROW_EIGHTS * EIGHT;
  const sample own = samples[i / IMAGE_EIGHTS];
  const source_row a = find_row(images, own, row);
  const source_row b = find_row(images, samples[own.partner], row);
  const float weight_a = step->lambda / 255, weight_b = (1 - step->lambda) / 255;
  float8 mixed;
  for (int j = 0; j < EIGHT; j++) {
    const int column = (first + j) / IMAGE_CHANNELS, channel = (first + j) % IMAGE_CHANNELS;
    mixed.value[j] =
        weight_a * byte_of(a, column, channel) + weight_b * byte_of(b, column, channel);
  }
  store_bf16x8(x + (size_t)i * EIGHT, mixed);
}

static void mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                       const step_values *step) {
  const int count = batch * IMAGE_EIGHTS;
  launch("mix_eight", mix_eight, {divide_up(count, THREADS), THREADS, 0}, count, x, images, samples,
         step);
}

void fill_mixup(device *d, bool plain) {
  d->mix_images = plain ? mix_images_plain : mix_images;
}

} // namespace GPU
