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
// Nothing is gathered but the stem's patches (pack.c).
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
#ifdef __AVX512F__
#include <immintrin.h>
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
//
// Half a row is 16 channels, as many floats as fill the widest registers that CPUs have today (on others
// the compiler takes two or four). All arithmetic on activations is done on them: a + b, a * b and so on.

enum { WORDS = 16, HALVES = 2 };

typedef float floats __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef bf16 bf16s __attribute__((vector_size(32)));

static inline floats load_floats(const float *from) {
  floats values;
  memcpy(&values, from, sizeof values);
  return values;
}

// A whole row's.
typedef struct {
  floats of[HALVES];
} pair;

static inline pair load_pair(const float *from) {
  return (pair){{load_floats(from), load_floats(from + WORDS)}};
}

typedef float eight_floats __attribute__((vector_size(32), may_alias));
typedef double eight_doubles __attribute__((vector_size(64), aligned(8), may_alias));

// Adds a sum for each channel to sums: [32] doubles. Before that, only the 32 numbers of one block
// were added in float, far fewer than sum_columns in gpu/epilogue.h allows for.
static inline void add_sums(double *sums, const pair *sum) {
  const eight_floats *of = (const eight_floats *)sum;
  for (int k = 0; k < SIDE; k += 8)
    *(eight_doubles *)(sums + k) += __builtin_convertvector(of[k / 8], eight_doubles);
}

static inline floats load_half(const bf16 *from) {
#ifdef __AVX512F__ // as two instructions: GCC 12 makes nine of what stands below
  const words wide = (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
#else
  bf16s halves;
  memcpy(&halves, from, sizeof halves);
  const words wide = __builtin_convertvector(halves, words);
#endif
  return (floats)(wide << 16);
}

// Rounds as to_bf16 does, but numbers whose absolute value is below 2^-126 become zero: the instruction in
// store_row makes them so, and tiles take them as zeros anyway. Writes 32 numbers, and returns what
// they have become.
static inline pair round_row(bf16 *to, pair values) {
  for (int h = 0; h < HALVES; h++) {
    const words bits = (words)values.of[h], is_nan = (words)((bits & 0x7fffffff) > 0x7f800000);
    const words is_small = (words)((bits & 0x7f800000) == 0);
    const words nearest = (bits & ~(is_small & 0x7fffffff)) + 0x7fff + (bits >> 16 & 1);
    const words rounded = (is_nan & (bits | 0x400000)) | (~is_nan & nearest);
    const bf16s upper = __builtin_convertvector(rounded >> 16, bf16s);
    memcpy(to + h * WORDS, &upper, sizeof upper);
    values.of[h] = (floats)(rounded & 0xffff0000);
  }
  return values;
}

// The same, past the caches where the processor has AVX-512's instructions for bf16: an activation is larger
// than they are, and a usual store would first read the line that it overwrites. A thread calls
// finish_stores() before others may read.
static inline pair store_row(bf16 *to, pair values) {
#ifdef __AVX512BF16__
  const __m512i row = (__m512i)_mm512_cvtne2ps_pbh((__m512)values.of[1], (__m512)values.of[0]);
  _mm512_stream_si512((__m512i *)to, row);
  const words left = (words)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(row));
  const words right = (words)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(row, 1));
  return (pair){{(floats)(left << 16), (floats)(right << 16)}};
#else
  return round_row(to, values);
#endif
}

// `count` floats of 16, past the caches, too, where they fill a line.
static inline void store_floats(float *to, floats values, int count) {
#ifdef __AVX512BF16__
  if (count == WORDS && (uintptr_t)to % sizeof values == 0) {
    _mm512_stream_ps(to, (__m512)values);
    return;
  }
#endif
  memcpy(to, &values, count * sizeof *to);
}

static inline void finish_stores(void) {
#ifdef __AVX512BF16__
  _mm_sfence();
#endif
}

// What a norm makes of z. One function for the way forward and for the mask on the way back: the compiler may
// make one operation of the two or not, but the two sides have to agree.
static inline floats normalised(floats z, floats scale, floats shift) {
  return z * scale + shift;
}

// y where it is not below zero, else 0; a NaN stays one.
static inline floats relu(floats y) {
  return (floats)((words)y & ~(words)(y < 0));
}

// dy where ReLU's result y is above zero, else 0; where y is a NaN, dy.
static inline floats masked(floats dy, floats y) {
  return (floats)((words)dy & ~(words)(y <= 0));
}

// Zeros in rows of a block, from `first` to `end` - 1: those that no image has.
static inline void clear_rows(bf16 *block, int first, int end) {
  for (int i = first; i < end; i++) store_row(block + i * SIDE, (pair){0});
}

// Asks for a block that is needed soon, so that it is in the first cache by then. Where there is none,
// behind the last, nothing happens.
static inline void fetch_block(const bf16 *block) {
  for (int i = 0; i < SIDE; i++) __builtin_prefetch(block + i * SIDE);
}

// -- Two other orders, which products need -------------------------------------------------------
//
// A tile's row has 16 words of 32 bits: 16 floats, or 16 pairs of bf16. A block has two such tiles.

enum { HALF = BLOCK / 2 };

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

// Four words of the eight in a and b, by their numbers. gcc knows clang's name for it only since gcc 12.
#ifdef __clang__
#define CHOOSE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOOSE(a, b, ...) __builtin_shuffle(a, b, (four_words){__VA_ARGS__})
#endif

// to[half][k][n] = from[half][n][k], in words.
static inline void transpose_halves(bf16 *to, const bf16 *from) {
  for (int i = 0; i < 2 * WORDS; i += 4)
    for (int k = 0; k < WORDS; k += 4) {
      const four_words *in = (const four_words *)(from + i * SIDE + 2 * k);
      const int row = SIDE * sizeof(bf16) / sizeof *in; // from one row to the next
      four_words *out = (four_words *)(to + (i / WORDS * WORDS + k) * SIDE + 2 * (i % WORDS));
      const four_words a = CHOOSE(in[0], in[row], 0, 4, 1, 5);
      const four_words b = CHOOSE(in[2 * row], in[3 * row], 0, 4, 1, 5);
      const four_words c = CHOOSE(in[0], in[row], 2, 6, 3, 7);
      const four_words d = CHOOSE(in[2 * row], in[3 * row], 2, 6, 3, 7);
      out[0] = CHOOSE(a, b, 0, 1, 4, 5);
      out[row] = CHOOSE(a, b, 2, 3, 6, 7);
      out[2 * row] = CHOOSE(c, d, 0, 1, 4, 5);
      out[3 * row] = CHOOSE(c, d, 2, 3, 6, 7);
    }
}

// Whole activations, from and to floats [images][pixels][channels]: device.c.
void blocks_from_floats(bf16 *blocks, const real *values, activation_shape shape);
void blocks_to_floats(real *values, const bf16 *blocks, activation_shape shape);

#endif
