// gpu/patches.h - which pixels a convolution's filter meets, as a matrix that is never built.
//
// A convolution is a matrix product (conv.cu). One of its matrices has a row for each pixel that is
// computed, and in it everything that the filter covers there, the *patch*: taps x channels
// numbers. A *tap* is one position (r, s) of the filter. Built in memory, the patches of a 3x3
// filter would take nine times what the activation itself does. So nobody builds them: patch_at
// says where element (m, k) lies in the activation, and tiles of the matrix are fetched from there
// ("implicit GEMM"). What that still wastes, gpu/halo.h saves where it can.
//
//     activation, one image:            row m of the matrix, for the pixel at e, 3x3 taps:
//
//         a b c . .                     |   a   |   b   |   c   |   d   |   e   | .. |   i   |
//         d e f . .                       r0 s0   r0 s1   r0 s2   r1 s0   r1 s1        r2 s2
//         g h i . .
//         . . . . .                     each letter: a pixel's channels, neighbours in memory, or
//                                       zeroes where the filter reaches beyond the image
#ifndef GPU_PATCHES_H
#define GPU_PATCHES_H

#include "gpu/divide.h"
#include "gpu/gpu.h"

namespace GPU {

// The activation that patches are taken from.
typedef struct {
  const bf16 *pixels; // [batch][height][width][channels]
  int height, width, channels;
  divisor by_channels;
} patch_source;

// One direction, rows or columns, of the pixels that are computed and of their patches. Number i of
// these pixels is row (or column) first + spacing i. Its tap number j is row (or column)
// first_tap + tap_spacing j of the filter, and meets scale i + offset + direction j of the source.
//
// Forward, z's row p meets row h = stride p - padding + r of x in filter row r. The input gradient
// asks the other way round: dx's row h meets row p = (h + padding - r) / stride of dz, if that is
// whole. With stride 2 it is whole only where h + padding - r is even, so rows with even h meet
// other taps than rows with odd h. Take a 3x3 filter (padding 1), an x of 4 rows, z of 2:
//
//     h = 0    r = 1 meets p = 0
//     h = 1    r = 0 meets p = 1    r = 2 meets p = 0
//     h = 2    r = 1 meets p = 1
//     h = 3    r = 0 meets p = 2, outside: zero          r = 2 meets p = 1
//
//                  first  spacing  count  scale  offset  direction  first_tap  tap_spacing  taps
//     z's rows       0       1       2      2      -1        1          0           1         3
//     dx, h even     0       2       2      1       0       -1          1           2         1
//     dx, h odd      1       2       2      1       1       -1          0           2         2
//
// Check: h = 3 is number i = 1 of the odd rows. Its taps j = 0 and 1 meet 1 + 1 - 0 = 2 and
// 1 + 1 - 1 = 1.
//
// Rows and columns, even and odd, make four classes of pixels (*parity* classes), with 1 x 1,
// 1 x 2, 2 x 1 and 2 x 2 taps. Each is a matrix product of its own. Together they have 9 taps for 4
// pixels; a single product of all 9 taps for each pixel would multiply three zeroes for every
// number.
typedef struct {
  int first, spacing, count;
  int scale, offset, direction;
  int first_tap, tap_spacing, taps;
} axis;

static inline axis forward_axis(int stride, int kernel, int size) {
  return {.first = 0,
          .spacing = 1,
          .count = size,
          .scale = stride,
          .offset = -(kernel / 2),
          .direction = 1,
          .first_tap = 0,
          .tap_spacing = 1,
          .taps = kernel};
}

// Of `size` pixels of dx, those number parity, parity + stride, ...
static inline axis backward_axis(int stride, int kernel, int size, int parity) {
  const int padded = parity + kernel / 2, first_tap = padded % stride;
  return {.first = parity,
          .spacing = stride,
          .count = divide_up(size - parity, stride),
          .scale = 1,
          .offset = (padded - first_tap) / stride,
          .direction = -1,
          .first_tap = first_tap,
          .tap_spacing = stride,
          .taps = first_tap < kernel ? divide_up(kernel - first_tap, stride) : 0};
}

// The pixels of one matrix product: all of them forward and with stride 1, else those of one
// parity.
typedef struct {
  axis rows, columns;
  divisor by_columns, by_rows; // the counts of `columns` and `rows`
  divisor by_column_taps;
  int pixels; // rows of the matrix: batch * rows.count * columns.count
  int terms;  // columns of the matrix: taps * channels of the source
} parity_class;

static inline parity_class make_class(int batch, int channels, axis rows, axis columns) {
  return {.rows = rows,
          .columns = columns,
          .by_columns = make_divisor(columns.count),
          .by_rows = make_divisor(rows.count),
          .by_column_taps = make_divisor(columns.taps),
          .pixels = batch * rows.count * columns.count,
          .terms = rows.taps * columns.taps * channels};
}

// Which image, row and column number m of a class is.
typedef struct {
  int image, row, column; // numbers along the axes
} place;

static inline __device__ place place_of(const parity_class *of, int m) {
  const int line = divide(m, of->by_columns), image = divide(line, of->by_rows);
  return {image, line - image * of->rows.count, m - line * of->columns.count};
}

// Which tap along each axis, and which channel of the source, term number `number` is.
typedef struct {
  int row_tap, column_tap, channel;
} patch_term;

static inline __device__ patch_term term_of(const patch_source *from, const parity_class *of,
                                            int number) {
  const int tap = divide(number, from->by_channels), row = divide(tap, of->by_column_taps);
  return {row, tap - row * of->columns.taps, number - tap * from->channels};
}

// For the pixel of row m: its image, and the pixel of the source that its first tap meets. What
// does not depend on the term is worth finding once, before the loop.
typedef struct {
  const bf16 *image;
  int h, v;
} corner;

static inline __device__ corner corner_of(const patch_source *from, const parity_class *of, int m) {
  enum { OUTSIDE = -(1 << 20) }; // whatever the tap: a row beyond the last is zero
  if (m >= of->pixels) return {from->pixels, OUTSIDE, OUTSIDE};
  const place at = place_of(of, m);
  return {.image = from->pixels + (size_t)at.image * from->height * from->width * from->channels,
          .h = of->rows.scale * at.row + of->rows.offset,
          .v = of->columns.scale * at.column + of->columns.offset};
}

// Where element `number` of the patch at a corner lies; NULL: it is zero.
static inline __device__ const bf16 *patch_at(const patch_source *from, const parity_class *of,
                                              const corner *at, int number) {
  const patch_term t = term_of(from, of, number);
  const int h = at->h + of->rows.direction * t.row_tap;
  const int v = at->v + of->columns.direction * t.column_tap;
  if (number >= of->terms || h < 0 || h >= from->height || v < 0 || v >= from->width) return NULL;
  return at->image + ((size_t)h * from->width + v) * from->channels + t.channel;
}

} // namespace GPU

#endif
