// cpu-bf16/blocks.h - how the device `cpu-bf16` lays out activations: in blocks of 32 images x 32
// channels, and all that touches a row of a block.
//
// A tensor core multiplies small matrices whose rows lie one after another (cpu-bf16/tiles.h). In the
// usual layout [B][H][W][C] the rows that a convolution needs lie all over an image. Here one pixel
// of 32 images makes the rows:
//
//     [B / 32][H][W][C / 32]  blocks of [32 images][32 channels] bf16, 2 KB each
//
//                                    channel 0   1   2  ..  31
//                          image  0  |  row 0: 64 bytes, a cache line |
//     pixel (h, w) of      image  1  |  row 1                         |
//     images 0 .. 31,      ..
//     channels 0 .. 31     image 31  |  row 31                        |
//
//     then the same pixel's channels 32 .. 63, and so on; then the pixel to its right
//
// So a block is one piece of memory, the pixel that a filter's tap meets is another block's address,
// taps beyond the border are left out, and a stride changes nothing but which blocks are taken.
// Nothing is ever gathered, neither patches nor columns.
//
// Numbers of images and channels are filled up to multiples of 32 with zeros. *Every operation of
// this device leaves zeros there*, and no sum counts them: then batches of 1, 80 or 100 images and
// widths of 8 need no code of their own.
//
// A bf16 is the upper half of a float (device.h).
//
// Checked by `make check`: tests/tiles_test.c (the zeros), tests/kernels_test.c (all else).
#ifndef BLOCKS_H
#define BLOCKS_H

#include "device.h"
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { SIDE = 32, BLOCK = SIDE * SIDE };

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIVIDE_UP(a, b) (((a) + (b)-1) / (b))

typedef uint16_t bf16;

// Whole or begun blocks, of so many images or channels.
static inline int blocks_of(int count) {
  return (count + SIDE - 1) / SIDE;
}

// Images in a group of 32: all of them but in the last group.
static inline int images_of(int images, int group) {
  return images - group * SIDE < SIDE ? images - group * SIDE : SIDE;
}

// Where a pixel's first block is, in elements: groups and pixels are counted through.
static inline size_t block_at(int group, int pixels, int pixel, int channel_blocks) {
  return ((size_t)group * pixels + pixel) * channel_blocks * BLOCK;
}

static inline float to_float(bf16 value) {
  const uint32_t bits = (uint32_t)value << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

// To the nearest, ties to even; a NaN stays one. (What is added never carries a number that is
// finite beyond infinity; it would carry a NaN.)
static inline bf16 to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? (bf16)(bits >> 16 | 0x40) : (bf16)nearest;
}

// -- Rows of a block -----------------------------------------------------------------------------

static inline void load_row(float values[SIDE], const bf16 *row) {
#pragma omp simd
  for (int i = 0; i < SIDE; i++) values[i] = to_float(row[i]);
}

// Writes a row past the caches: an activation is larger than they are, and a usual store would first
// read the line that it overwrites. finish_rows() makes such stores visible to other threads.
static inline void write_row(bf16 *row, const bf16 values[SIDE]) {
#ifdef __SSE2__
  for (int i = 0; i < SIDE; i += 8)
    _mm_stream_si128((__m128i *)(row + i), _mm_loadu_si128((const __m128i *)(values + i)));
#else
  memcpy(row, values, SIDE * sizeof *row);
#endif
}

static inline void finish_rows(void) {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

static inline void store_row(bf16 *row, const float values[SIDE]) {
  bf16 rounded[SIDE];
#pragma omp simd
  for (int i = 0; i < SIDE; i++) rounded[i] = to_bf16(values[i]);
  write_row(row, rounded);
}

// Zeros in the rows of a block that no image has.
static inline void clear_rows(bf16 *block, int images) {
  static const bf16 zeros[SIDE];
  for (int i = images; i < SIDE; i++) write_row(block + i * SIDE, zeros);
}

// -- Two other orders, which products need -------------------------------------------------------
//
// A tile's row has 16 words of 32 bits: 16 floats, or 16 pairs of bf16. A block has two such tiles.

enum { WORDS = 16, HALF = BLOCK / 2 };

typedef uint32_t word __attribute__((may_alias)); // two bf16 of an array at once

// Rows 2k and 2k + 1 become pairs. Of the left and of the right 16 columns n:
//     to[half][k][n] = (from[2k][16 half + n], from[2k + 1][16 half + n])
static inline void pair_rows(bf16 *to, const bf16 *from) {
  word *words = (word *)to;
  for (int half = 0; half < 2; half++)
    for (int k = 0; k < WORDS; k++) {
      const bf16 *row = from + 2 * k * SIDE + half * WORDS;
#pragma omp simd
      for (int n = 0; n < WORDS; n++)
        words[(half * WORDS + k) * WORDS + n] = row[n] | (uint32_t)row[SIDE + n] << 16;
    }
}

typedef uint32_t four_words __attribute__((vector_size(16), may_alias));

// to[half][k][n] = from[half][n][k], in words.
static inline void transpose_halves(bf16 *to, const bf16 *from) {
  for (int i = 0; i < 2 * WORDS; i += 4)
    for (int k = 0; k < WORDS; k += 4) {
      const four_words *in = (const four_words *)(from + i * SIDE + 2 * k);
      const int row = SIDE * sizeof(bf16) / sizeof *in; // from one row to the next
      four_words *out = (four_words *)(to + (i / WORDS * WORDS + k) * SIDE + 2 * (i % WORDS));
      const four_words a = __builtin_shufflevector(in[0], in[row], 0, 4, 1, 5);
      const four_words b = __builtin_shufflevector(in[2 * row], in[3 * row], 0, 4, 1, 5);
      const four_words c = __builtin_shufflevector(in[0], in[row], 2, 6, 3, 7);
      const four_words d = __builtin_shufflevector(in[2 * row], in[3 * row], 2, 6, 3, 7);
      out[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
      out[row] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
      out[2 * row] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
      out[3 * row] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
    }
}

// Whole activations, from and to floats [images][pixels][channels]: device.c.
void blocks_from_floats(bf16 *blocks, const real *values, activation_shape shape);
void blocks_to_floats(real *values, const bf16 *blocks, activation_shape shape);

#endif
