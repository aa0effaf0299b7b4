// cpu-bf16/pack.c - what products read besides activations as they lie: filters in blocks, and patches of an
// input with few channels.
//
// Weights are packed into blocks at each call, as cpu/conv.c does it, 1.5 per cent of a step at width 64.
// (SGD could write both packings, and save a part of that: they would then come from memory, where
// here they have just been written. Not tried.)
//
// The stem has 3 channels and would pay for 32 at each of 9 taps. Its patches of 27 numbers are gathered
// after all, one block a pixel, and then it is a 1x1 convolution of 27 channels: a ninth of the products.
//
// Checked by `make check`: tests/kernels_test.c and tests/tiles_test.c (rounding).
#include "conv.h"

// -- Weights in blocks ---------------------------------------------------------------------------

// 32 filters x 32 channels of one tap, rounded; zeros behind the last of either. The next block's rows
// are asked for: they lie behind these, 128 bytes in each of 32 places.
static void read_filters(bf16 *block, const float *w, const conv_shape *s, int first_filter,
                         int first_channel, int tap) {
  const int taps = s->kernel * s->kernel, filters = MIN(SIDE, s->out_channels - first_filter);
  const int channels = MIN(SIDE, s->in_channels - first_channel);
  memset(block, 0, BLOCK * sizeof *block);
  for (int f = 0; f < filters; f++) {
    const float *from =
        w + ((size_t)(first_filter + f) * taps + tap) * s->in_channels + first_channel;
    __builtin_prefetch(from + SIDE);
    __builtin_prefetch(from + SIDE + WORDS);
#pragma omp simd
    for (int c = 0; c < channels; c++) block[f * SIDE + c] = to_bf16(from[c]);
  }
}

// Blocks are made in the order in which w lies in memory. A block's 32 rows, 128 bytes each, are far apart
// (18 KB with 512 channels); but in each of the 32 places the next block's row follows this one's, so
// read_filters can ask for it early. (Behind the last one that address is outside w; it is only asked for.)
void bf16_pack_filters(bf16 *packed, const float *w, const conv_shape *s, bool backward) {
  const int taps = s->kernel * s->kernel;
  const int filters = blocks_of(s->out_channels), channels = blocks_of(s->in_channels);
#pragma omp parallel for schedule(dynamic, 16)
  for (int i = 0; i < filters * taps * channels; i++) {
    _Alignas(64) bf16 block[BLOCK];
    const int filter = i / channels / taps, tap = i / channels % taps, channel = i % channels;
    read_filters(block, w, s, filter * SIDE, channel * SIDE, tap);
    if (backward)
      pair_rows(packed + (((size_t)channel * taps + tap) * filters + filter) * BLOCK, block);
    else
      transpose_halves(packed + (size_t)i * BLOCK, block);
  }
}

// -- Patches of few channels ----------------------------------------------------------------------
//
// A block's row holds an image's patch: [taps][channels] as in a filter, so w needs no other order.
// Four channels are copied at once. The fourth of 3, a zero, is written over by the next tap's first.

enum { COPIED = 4 };

bool bf16_takes_patches(const conv_shape *s) {
  const int taps = s->kernel * s->kernel;
  return taps > 1 &&
         (taps - 1) * s->in_channels + DIVIDE_UP(s->in_channels, COPIED) * COPIED <= SIDE;
}

conv_shape bf16_patch_shape(const conv_shape *s) {
  conv_shape flat = *s;
  flat.in_height = s->out_height, flat.in_width = s->out_width;
  flat.in_channels = s->kernel * s->kernel * s->in_channels;
  flat.kernel = flat.stride = 1;
  return flat;
}

size_t bf16_patch_count(const conv_shape *s) {
  return (size_t)blocks_of(s->batch) * s->out_height * s->out_width * BLOCK;
}

// Tap (r, s) of pixel (p, q), which meets pixel (h, v) of x, for 32 images.
static void gather_tap(bf16 *patch, const conv_shape *shape, const bf16 *x, int r, int s) {
  bf16 *to = patch + (r * shape->kernel + s) * shape->in_channels;
  for (int i = 0; i < SIDE; i++)
    for (int c = 0; c < shape->in_channels; c += COPIED)
      memcpy(to + i * SIDE + c, x + i * SIDE + c, COPIED * sizeof *to);
}

void bf16_gather_patches(bf16 *to, const conv_shape *shape, const bf16 *x) {
  const int padding = shape->kernel / 2, in_pixels = shape->in_height * shape->in_width;
#pragma omp parallel for schedule(dynamic, 64)
  for (int i = 0; i < blocks_of(shape->batch) * shape->out_height * shape->out_width; i++) {
    const int q = i % shape->out_width, p = i / shape->out_width % shape->out_height;
    const int group = i / shape->out_width / shape->out_height;
    bf16 *patch = to + (size_t)i * BLOCK;
    memset(patch, 0, BLOCK * sizeof *patch);
    for (int r = 0; r < shape->kernel; r++)
      for (int s = 0; s < shape->kernel; s++) {
        const int h = shape->stride * p + r - padding, v = shape->stride * q + s - padding;
        if (h >= 0 && h < shape->in_height && v >= 0 && v < shape->in_width)
          gather_tap(patch, shape, x + block_at(group, in_pixels, h * shape->in_width + v, 1), r,
                     s);
      }
  }
}
