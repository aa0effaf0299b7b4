// gpu/patches.h - which pixels a convolution's filter meets, as a matrix that is never built.
//
// A convolution is a matrix product (conv.cu). One of its matrices has a row for each pixel that is
// computed, and in it everything that the filter covers there, the *patch*: taps x channels
// numbers. A *tap* is one position (r, s) of the filter. Built in memory, the patches of a 3x3
// filter would take nine times what the activation itself does. So nobody builds them: patch_at
// says where element (m, k) lies in the activation, and tiles of the matrix are fetched from there
// ("implicit GEMM"). What that still wastes, gpu/halo.h and gpu/stem.h save where they can.
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
#include "gpu/tile.h"

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

// Which image, row and column number m of a class is: numbers along the axes.
typedef struct {
  int image, row, column;
} place;

// Which tap along each axis, and which channel of the source, a term is.
typedef struct {
  int row_tap, column_tap, channel;
} patch_term;

// The pixels of one matrix product: all of them forward and with stride 1, else those of one
// parity.
typedef struct {
  axis rows, columns;
  divisor by_columns, by_rows; // the counts of `columns` and `rows`
  divisor by_column_taps;
  int images;
  int pixels;  // rows of the matrix: images * rows.count * columns.count
  int terms;   // columns of the matrix: taps * channels of the source
  place stage; // DEPTH pixels: what is added to a pixel's place to find that of the next stage
} parity_class;

static inline parity_class make_class(int images, int channels, axis rows, axis columns) {
  // A class can be without pixels: an image of 1 x 1 has no odd row.
  const int down = rows.count ? rows.count : 1, across = columns.count ? columns.count : 1;
  return {.rows = rows,
          .columns = columns,
          .by_columns = make_divisor(columns.count),
          .by_rows = make_divisor(rows.count),
          .by_column_taps = make_divisor(columns.taps),
          .images = images,
          .pixels = images * rows.count * columns.count,
          .terms = rows.taps * columns.taps * channels,
          .stage = {DEPTH / across / down, DEPTH / across % down, DEPTH % across}};
}

static inline __device__ place place_of(const parity_class *of, int m) {
  const int line = divide(m, of->by_columns), image = divide(line, of->by_rows);
  return {image, line - image * of->rows.count, m - line * of->columns.count};
}

static inline __device__ patch_term term_of(const patch_source *from, const parity_class *of,
                                            int number) {
  const int tap = divide(number, from->by_channels), row = divide(tap, of->by_column_taps);
  return {row, tap - row * of->columns.taps, number - tap * from->channels};
}

// A place costs two divisions. A loop that goes on by a stage each time needs them once, and from then on
// adds, with a carry from digit to digit, as in a sum of hours, minutes and seconds.
static inline __device__ void add_digit(int *digit, int *higher, int add, int carry_at) {
  *digit += add;
  if (*digit < carry_at) return;
  *digit -= carry_at;
  ++*higher;
}

static inline __device__ void next_stage(const parity_class *of, place *p) {
  int lines = 0;
  p->image += of->stage.image;
  add_digit(&p->row, &p->image, of->stage.row, of->rows.count);
  add_digit(&p->column, &lines, of->stage.column, of->columns.count);
  add_digit(&p->row, &p->image, lines, of->rows.count);
}

// The pixel of the source that a pixel's first tap meets.
typedef struct {
  int pixel; // number in the batch
  int h, v;  // row and column
} corner;

static inline __device__ corner corner_of(const patch_source *from, const parity_class *of,
                                          place at) {
  enum { OUTSIDE = -(1 << 20) }; // whatever the tap: a row beyond the last is zero
  const int h = of->rows.scale * at.row + of->rows.offset;
  const int v = of->columns.scale * at.column + of->columns.offset;
  return {(at.image * from->height + h) * from->width + v, at.image < of->images ? h : OUTSIDE, v};
}

// Where a term of the patch at a corner lies; NULL: it is zero.
static inline __device__ const bf16 *patch_at(const patch_source *from, const parity_class *of,
                                              const corner &at, const patch_term &t) {
  const int rows = of->rows.direction * t.row_tap, columns = of->columns.direction * t.column_tap;
  if (t.row_tap >= of->rows.taps || (unsigned)(at.h + rows) >= (unsigned)from->height ||
      (unsigned)(at.v + columns) >= (unsigned)from->width)
    return NULL;
  const ptrdiff_t pixel = at.pixel + rows * from->width + columns;
  return from->pixels + pixel * from->channels + t.channel;
}

// -- Where a stage is of one tap --------------------------------------------------------------------
//
// patch_at finds tap, row and column anew for each 16 bytes. But if the source's channels are a multiple
// of DEPTH, all terms of a stage have the same tap, and what a tap changes is the same for all pixels: a
// distance in memory, which the host can compute; and whether there is a pixel, which is a bit. A
// thread finds the bits of its pixels once. In the loop, it adds.

enum { MOST_TAPS = 9 };

// Distances in pieces of 16 bytes (gpu/tile.h), for each tap of a class.
typedef struct {
  int pixel[MOST_TAPS];  // in the source, from the pixel that the first tap meets
  int filter[MOST_TAPS]; // in a filter, from its first piece: for the input gradient
} tap_distances;

// kernel: taps of a whole filter along an axis; filter_channels: numbers of w for each of its taps.
static inline tap_distances distances_of(const patch_source *from, const parity_class *of,
                                         int kernel, int filter_channels) {
  tap_distances d = {};
  for (int i = 0; i < of->rows.taps * of->columns.taps; i++) {
    const int row = i / of->columns.taps, column = i % of->columns.taps;
    const int r = of->rows.first_tap + of->rows.tap_spacing * row;
    const int s = of->columns.first_tap + of->columns.tap_spacing * column;
    d.pixel[i] = (of->rows.direction * row * from->width + of->columns.direction * column) *
                 (from->channels / EIGHT);
    d.filter[i] = (r * kernel + s) * (filter_channels / EIGHT);
  }
  return d;
}

// Bit i: does tap i of the patch at a corner meet a pixel?
static inline __device__ uint32_t taps_inside(const patch_source *from, const parity_class *of,
                                              const corner &at) {
  uint32_t inside = 0;
  for (int row = 0, i = 0; row < of->rows.taps; row++)
    for (int column = 0; column < of->columns.taps; column++, i++)
      inside |= (uint32_t)(patch_at(from, of, at, {row, column, 0}) != NULL) << i;
  return inside;
}

} // namespace GPU

#endif
