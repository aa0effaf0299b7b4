// gpu/stem.h - the stem (network.h), convolution of an image's three colours: output and weight gradient.
// Nobody wants the gradient of an image.
//
// A pixel of 3 channels has 6 bytes. cp.async and ldmatrix move 16 at a time, and those are two pixels and
// two thirds. So gather_tile (gpu/gather.h) and weight_tile (conv.cu) fetched each number of a patch by
// itself, from an address of its own. With less than 1 % of the arithmetic they asked for 5 % of all that a
// step's kernels ask of memory, and took 55 and 46 instructions for each mma.
//
// Here the lines of an image are copied as they lie in memory, 192 bytes each, and a fourth channel is put
// in once they are there. A pixel then has 8 bytes:
//
//     copied     0 | r g b  r g b  r g b ..       0: a border, which is zero
//     widened    0 0 0 0  r g b 0  r g b 0  r g b 0 ..
//
// The three taps of a filter's row, and a fourth that does not exist, are 16 numbers beside each other:
// the terms of one mma. A filter is three of them, 48 terms in place of 27. Tensor cores have nothing
// else to do here: all these products take an A100 3 us, where its memory takes 9 to move x and z.
//
// *Output.* Of mma_16x8x16, lane 4 g + t (g = 0 .. 7, t = 0 .. 3) holds four of the 16 terms of pixel g, and
// the same four of pixel g + 8 (gpu/tile.h). Which of a patch's numbers is which term is up to us, as long
// as filters have the same order. Here a lane's four are the channels of tap t:
//
//     lane         4 g         4 g + 1     4 g + 2     4 g + 3
//     pixel        g - 1       g           g + 1       g + 1
//     filter       w[r][0]     w[r][1]     w[r][2]     zeroes
//
// So a lane loads a pixel with one instruction of 8 bytes. The fourth tap meets zeroes. It takes the third
// one's pixel, because 0 times a NaN or an infinity is a NaN, and none should come from beyond the filter.
//
// *Weight gradient.* Here the patches, transposed, are the mma's operand a: its rows are the 16 terms, and
// pixels are summed over. ldmatrix makes that of 16 bytes of each of eight pixels, which are two taps. But
// they have to begin at a multiple of 16, and only every other pixel does. So a line is there twice, the
// second time moved by one:
//
//     bytes        0            16           32
//     first        border  0    1  2         3  4   ..        0, 1, 2 ..  the line's pixels
//     moved        0  1         2  3         4  5   ..
//
// The fourth channel and the fourth tap have rows of the result for themselves, which are not stored.
//
// What it brings, by `make cost` and `make sass-report` (width 64, batch 128, sm_80):
//
//                                              output         weight gradient
//                                          before     now      before     now
//     MB asked for (x and z are 18)            75      24         196      21
//     turns of the banks, for one needed     1.67    1.04        2.29    1.03
//     mma, thousands                          131     197         524     197
//     instructions for each mma                55       9          46       7
//     millions of instructions                7.2     1.8        24.0     1.3
//
// (The output's kernel has no loop: counted are the 430 instructions from its beginning to the last of a
// warp's 48 mma.)
//
// What is taken: 3x3 filters, as many as a multiple of 8, with stride 1, on images 32 wide and as high as a
// multiple of 8. All else is left to gather_tile and weight_tile.
//
// Checked by `make check`, through conv.cu's operations; by itself:
//
//     build/gcc/watched/kernels_test conv_forward simt unguarded
//     build/gcc/watched/kernels_test conv_backward_weight simt unguarded
#ifndef GPU_STEM_H
#define GPU_STEM_H

#include "gpu/halo_weight.h"

namespace GPU {

enum {
  STEM_WIDTH = 32, // pixels of a line
  COLOURS = 3,     // channels of x
  WIDE = 4,        // and in shared memory
  // bf16 numbers from a copied line to the next, with eight zeroes between them
  COLOUR_LINE = STEM_WIDTH * COLOURS + EIGHT,
  PAIRS = STEM_WIDTH / 2 + 1, // of pixels in a line that is widened, borders too
  WIDE_LINE = PAIRS * 2 * WIDE,
  ROW_TERMS = 4 * WIDE, // of a filter's row: its taps, and one more
  FILTER_TERMS = 3 * ROW_TERMS,
};

// What a block keeps of x: the lines of its pixels, one above and one below.
template <int PIXELS_> struct stem_lines {
  enum {
    LINES = PIXELS_ / STEM_WIDTH + 2,
    COPIED = EIGHT + LINES * COLOUR_LINE, // bf16 numbers; zeroes come first and last
    WIDENED = LINES * WIDE_LINE,
    // From the first copy of the lines to the moved one: 64 bytes more than a multiple of 128, so that
    // ldmatrix's eight pixels, four of each, meet in no bank.
    MOVED = (WIDENED + 31) / 64 * 64 + 32,
  };
};

// Zeroes for the borders on the left and on the right; copies never go there.
template <typename lines> static __device__ void clear_borders(bf16 *copied) {
  const uint4 zeroes = {0, 0, 0, 0};
  if ((int)threadIdx.x <= lines::LINES) *(uint4 *)(copied + threadIdx.x * COLOUR_LINE) = zeroes;
}

// Begins to copy the lines of the pixels from first_pixel on, the one above and the one below; beyond the
// image they are zeroes.
template <typename lines>
static __device__ void copy_lines(bf16 *copied, const bf16 *x, int height, int first_pixel) {
  enum { PIECES = STEM_WIDTH * COLOURS / EIGHT };
  const int line = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
  if (line >= lines::LINES) return;
  const int number = first_pixel / STEM_WIDTH; // that line's, in the batch
  const int row = number % height + line - 1;
  const bool inside = row >= 0 && row < height;
  copy_async(copied + EIGHT + line * COLOUR_LINE + piece * EIGHT,
             piece_at(x, inside ? (number + line - 1) * PIECES + piece : 0), inside);
}

// From copied lines to widened ones. A thread makes a pair of pixels and, if `twice`, the pair that begins
// one pixel later, for the moved copy.
template <typename lines>
static __device__ void widen(bf16 *widened, const bf16 *copied, bool twice) {
  const int line = threadIdx.x / PAIRS, pair = threadIdx.x % PAIRS;
  if (line >= lines::LINES) return;
  // It loads pairs of numbers, of three pixels a, b and c in all: .a aa bb bc cc
  const uint32_t *from = (const uint32_t *)(copied + EIGHT + line * COLOUR_LINE) + pair * COLOURS;
  const uint32_t before = from[-2], aa = from[-1], bb = from[0], bc = from[1], cc = from[2];
  bf16 *to = widened + line * WIDE_LINE + pair * 2 * WIDE;
  uint4 two;
  two.x = before >> 16 | aa << 16, two.y = aa >> 16;
  two.z = bb, two.w = bc & 0xffff;
  *(uint4 *)to = two;
  if (!twice) return;
  two.x = bb, two.y = bc & 0xffff;
  two.z = bc >> 16 | cc << 16, two.w = cc >> 16;
  *(uint4 *)(to + lines::MOVED) = two;
}

// -- Output -----------------------------------------------------------------------------------------

typedef struct {
  epilogue end;  // its `to`: [pixels][channels]
  const bf16 *x; // [pixels][3]
  const bf16 *w; // [Cout][3][3][3]
  int height;    // of an image
} stem_job;

// The result of a block: 8 lines, 64 filters.
typedef tile_of<PIXELS, FILTERS, true, true> stem_block;
typedef stem_lines<PIXELS> output_lines;

static_assert((output_lines::WIDENED + output_lines::COPIED + FILTERS * FILTER_TERMS) *
                      sizeof(bf16) <=
                  bytes_to_finish<stem_block>(),
              "where the result is staged, all of it fits");
static_assert(output_lines::WIDENED % EIGHT == 0 && output_lines::COPIED % EIGHT == 0, "16 bytes");

// filters: [FILTERS][FILTER_TERMS], with zeroes for the fourth tap, the fourth channel, and filters that
// do not exist.
static __device__ void fill_filters(bf16 *filters, const stem_job &g, int first_filter) {
  for (int i = threadIdx.x; i < FILTERS * FILTER_TERMS / WIDE; i += THREADS) {
    const int filter = first_filter + i / (FILTER_TERMS / WIDE), r = i / 4 % 3, s = i % 4;
    uint2 tap;
    tap.x = tap.y = 0;
    if (filter < g.end.channels && s < 3) {
      const bf16 *from = g.w + ((filter * 3 + r) * 3 + s) * COLOURS;
      tap.x = from[0].bits | (uint32_t)from[1].bits << 16;
      tap.y = from[2].bits;
    }
    *(uint2 *)(filters + i * WIDE) = tap;
  }
}

// The products of a warp's 64 pixels, two lines, with its 32 filters. A line of x is loaded once and meets
// the filters' rows r, for the line of the result that is r - 1 above.
static __device__ void multiply_lines(stem_block *t, const bf16 *widened, const bf16 *filters) {
  enum { LINE_STEPS = STEM_WIDTH / 16, RESULT_LINES = stem_block::M_STEPS / LINE_STEPS };
  const int lane = threadIdx.x % LANES, tap = lane % 4;
  const int of_eight = lane / 4; // its pixel, and its filter
  const bf16 *from = widened + stem_block::warp_row() / STEM_WIDTH * WIDE_LINE +
                     (of_eight + min_of(tap, 2)) * WIDE;
  const bf16 *filter = filters + (stem_block::warp_column() + of_eight) * FILTER_TERMS + tap * WIDE;
  uint32_t b[3][stem_block::N_STEPS][2];
#pragma unroll
  for (int r = 0; r < 3; r++)
#pragma unroll
    for (int j = 0; j < stem_block::N_STEPS; j++) {
      const uint2 terms = *(const uint2 *)(filter + j * 8 * FILTER_TERMS + r * ROW_TERMS);
      b[r][j][0] = terms.x, b[r][j][1] = terms.y;
    }
#pragma unroll
  for (int i = 0; i < (RESULT_LINES + 2) * LINE_STEPS; i++) {
    const int line = i / LINE_STEPS, step = i % LINE_STEPS;
    const bf16 *pixels = from + line * WIDE_LINE + step * 16 * WIDE;
    const uint2 upper = *(const uint2 *)pixels, lower = *(const uint2 *)(pixels + 8 * WIDE);
    const uint32_t a[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
    for (int r = 0; r < 3; r++) {
      if (line < r || line - r >= RESULT_LINES) continue;
#pragma unroll
      for (int j = 0; j < stem_block::N_STEPS; j++)
        mma_16x8x16(t->sum[(line - r) * LINE_STEPS + step][j], a, b[r][j]);
    }
  }
}

// Block (x, y): tile x of 256 pixels, tile y of 64 filters.
static __global__ void __launch_bounds__(THREADS, 2) stem_tile(stem_job g) {
  DYNAMIC_SHARED(bytes);
  bf16 *widened = (bf16 *)bytes, *copied = widened + output_lines::WIDENED;
  bf16 *filters = copied + output_lines::COPIED;
  const int first_pixel = blockIdx.x * PIXELS, first_filter = blockIdx.y * FILTERS;
  clear_borders<output_lines>(copied);
  copy_lines<output_lines>(copied, g.x, g.height, first_pixel);
  commit_copies();
  fill_filters(filters, g, first_filter);
  wait_for_copies<0>();
  __syncthreads();
  widen<output_lines>(widened, copied, false);
  __syncthreads();
  stem_block t;
  clear(&t);
  multiply_lines(&t, widened, filters);
  __syncthreads(); // the result is staged in the same memory
  finish_tile<true>(&t, (bf16 *)bytes, g.end, first_filter, blockIdx.x,
                    [&](int row) { return (ptrdiff_t)(first_pixel + row) * g.end.channels; });
}

static bool stem_takes(const conv_shape *s) {
  return s->in_channels == COLOURS && s->kernel == 3 && s->stride == 1 &&
         s->out_channels % EIGHT == 0 && s->in_width == STEM_WIDTH &&
         s->in_height % (PIXELS / STEM_WIDTH) == 0;
}

// False, and nothing is done, for a shape that gather_tile has to take.
static bool stem_convolution(const conv_shape *s, const void *x, const void *w,
                             const epilogue &end) {
  stem_job g = {end, (const bf16 *)x, (const bf16 *)w, s->in_height};
  if (!stem_takes(s)) return false;
  const int tiles = s->batch * s->in_height / (PIXELS / STEM_WIDTH);
  const int columns = divide_up(s->out_channels, FILTERS);
  plan_sums(&g.end, tiles, columns);
  launch("stem_tile", stem_tile,
         {dim3(tiles, columns), dim3(THREADS), bytes_to_finish<stem_block>()}, g);
  return true;
}

// -- Weight gradient --------------------------------------------------------------------------------
//
// As in gpu/halo_weight.h, a block has a part of the pixels, in strips of 128, and 64 filters. Unlike there, a
// warp has 8 of these filters with all taps and channels: terms are the rows of its result, filters the
// columns. It takes 56 KB of shared memory, so two blocks fit on an A100's or an H100's processor, and one
// where there are 100 KB.

typedef stem_lines<STRIP> strip_lines;

// A stage is dz, and behind it x: bf16 numbers.
enum { STEM_DZ = STRIP * FILTERS, STEM_STAGE = STEM_DZ + strip_lines::COPIED };

static_assert(STEM_STAGE % EIGHT == 0, "16 bytes");

// sum += the products of a strip. A line of x is loaded once, as above, and meets three lines of dz.
static __device__ void multiply_strip_lines(float sum[3][4], bf16 *dz, const bf16 *widened) {
  const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, matrix = lane / 8;
  const int pixel =
      matrix / 2 * 8 + lane % 8 + matrix % 2 * 2; // with which this lane's two taps begin
  const bf16 *from = widened + pixel / 2 * 2 * WIDE + pixel % 2 * strip_lines::MOVED;
  uint32_t b[STRIP / STEM_WIDTH][4];
#pragma unroll
  for (int line = 0; line < STRIP / STEM_WIDTH; line++)
    load_matrices_transposed(b[line], piece_of<FILTERS>(dz, line * STEM_WIDTH + lane, warp));
#pragma unroll
  for (int i = 0; i < strip_lines::LINES * 2; i++) {
    const int line = i / 2, half = i % 2;
    uint32_t a[4];
    load_matrices_transposed(a, from + line * WIDE_LINE + half * 16 * WIDE);
#pragma unroll
    for (int r = 0; r < 3; r++)
      if (line >= r && line - r < STRIP / STEM_WIDTH)
        mma_16x8x16(sum[r], a, b[line - r] + 2 * half);
  }
}

// Block (x, 0, z): part x of the sum, tile z of the filters.
static __global__ void __launch_bounds__(THREADS, 2) stem_weight_tile(strip_job g) {
  DYNAMIC_SHARED(bytes);
  bf16 *shared = (bf16 *)bytes, *widened = shared + STAGES * STEM_STAGE;
  const int first = blockIdx.x * g.part_strips, lane = threadIdx.x % LANES;
  const int strips = blockIdx.x + 1 < gridDim.x ? g.part_strips : g.last_strips;
  for (int i = 0; i < STAGES; i++) clear_borders<strip_lines>(shared + i * STEM_STAGE + STEM_DZ);
  float sum[3][4] = {};
  go_through_stages<STEM_STAGE>(
      shared, strips,
      [&](bf16 *stage, int step) {
        copy_dz(g, stage, (first + step) * STRIP);
        copy_lines<strip_lines>(stage + STEM_DZ, g.x, g.height, (first + step) * STRIP);
      },
      [&](bf16 *stage) {
        widen<strip_lines>(widened, stage + STEM_DZ, true);
        __syncthreads();
        multiply_strip_lines(sum, stage, widened);
      });
  const int filter = blockIdx.z * FILTERS + threadIdx.x / LANES * 8 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 12; i++) {
    const int r = i / 4, term = lane / 4 + i / 2 % 2 * 8, n = filter + i % 2;
    const int s = term / WIDE, c = term % WIDE;
    if (s < 3 && c < COLOURS && n < g.filters)
      g.to[((size_t)(blockIdx.x * g.filters + n) * TAPS + r * 3 + s) * COLOURS + c] = sum[r][i % 4];
  }
}

// False, and nothing is done, for a shape that weight_tile has to take.
static bool stem_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
  strip_job g = {};
  if (!stem_takes(s)) return false;
  g.dz = (const bf16 *)dz, g.x = (const bf16 *)x, g.height = s->in_height;
  g.pixels = s->batch * s->in_height * s->in_width;
  g.filters = s->out_channels, g.channels = COLOURS;
  const int tiles = divide_up(g.filters, FILTERS), parts = cut_strips(&g, tiles);
  g.to = place_of_parts(dw, parts, g.filters, TAPS * COLOURS, TAPS * COLOURS);
  launch("stem_weight_tile", stem_weight_tile,
         {dim3(parts, 1, tiles), dim3(THREADS),
          (STAGES * STEM_STAGE + 2 * strip_lines::MOVED) * sizeof(bf16)},
         g);
  launch_add_parts(dw, g.to, parts, g.filters, TAPS * COLOURS, TAPS * COLOURS);
  return true;
}

} // namespace GPU

#endif
