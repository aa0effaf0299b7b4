// gpu/gather.h - output and input gradient of any convolution, as a product with the matrix of patches.
//
// A block computes a tile of the result: 128 pixels by 64 or 128 channels. Row by row, the matrix's numbers
// are gathered from where gpu/patches.h says that they lie, a stage of 32 terms at a time (gpu/tile.h).
// That serves every filter, stride and size. 3x3 filters with stride 1, most of the arithmetic, have a
// kernel of their own in gpu/halo.h, and the first layer has one in gpu/stem.h.
//
// What it wastes are instructions. multiply_patches finds each address anew: for each 16 bytes a division
// for the tap, another for its row, then row, column and whether they are inside. Where the source has a
// multiple of 32 channels, as in all layers that come here if the width is such a multiple, a stage has
// one tap, and multiply_taps only adds. Instructions for each mma in the main loop, by `make sass-report`
// (sm_80):
//
//                              output    input gradient
//     128 x 64   divided          9.6              10.9
//                added            7.6               8.3
//     128 x 128  divided          6.7               8.7    (no longer built)
//                added            4.8               5.3
//
// Checked by `make check`, through conv.cu's operations; by itself:
//
//     build/gcc/watched/kernels_test conv_backward_input simt unguarded
#ifndef GPU_GATHER_H
#define GPU_GATHER_H

#include "gpu/epilogue.h"
#include "gpu/patches.h"

namespace GPU {

// Both gather: a pixel of `to` is the product of its patch of `from` with the filters.
typedef struct {
  patch_source from; // x or dz
  const bf16 *w;     // [Cout][kernel][kernel][Cin]
  int kernel;
  parity_class classes[4];
  tap_distances distances[4];
} patch_product;

// Two products are added up where a block has a shortcut: x's gradient is that of both of its convolutions.
// By itself, the shortcut's part is mostly zeroes, since a 1x1 filter with stride 2 meets one pixel in
// four. To store it, and to load it again to be added, cost 59 MB a step, and a launch each.
typedef struct {
  epilogue end; // its `to`: [batch][to_height][to_width][channels]
  int to_height, to_width;
  patch_product product[2]; // the same pixels in the same classes
  int products;             // how many there are
} gather_job;

// What an address is found for: each number; eight neighbours, where the channels on both sides are
// multiples of 8; or a tap, where those of the source are multiples of DEPTH, too.
enum { OF_NUMBERS, OF_EIGHTS, OF_TAPS };

// Where the pixel of row m begins in `to`; negative: there is no such row.
static __device__ ptrdiff_t offset_in_to(const gather_job *g, const parity_class *of, int m) {
  if (m >= of->pixels) return -1;
  const place at = place_of(of, m);
  const int h = of->rows.first + of->rows.spacing * at.row;
  const int v = of->columns.first + of->columns.spacing * at.column;
  return (((ptrdiff_t)at.image * g->to_height + h) * g->to_width + v) * g->end.channels;
}

// The weight for column n, one of the channels of `to`, and term `number` of the patch. Forward, neighbours in
// memory are the next terms, so lines of the tile run along the terms. Backward, neighbours are the
// next channels of x, which are the columns, so lines run along the columns.
template <bool BACKWARD>
static __device__ const bf16 *weight_address(const patch_product *p, const parity_class *of,
                                             int channels, int n, int number) {
  if (n >= channels || number >= of->terms) return NULL;
  if (!BACKWARD) return p->w + (size_t)n * of->terms + number;
  const patch_term t = term_of(&p->from, of, number);
  const int r = of->rows.first_tap + of->rows.tap_spacing * t.row_tap;
  const int s = of->columns.first_tap + of->columns.tap_spacing * t.column_tap;
  return p->w + ((size_t)(t.channel * p->kernel + r) * p->kernel + s) * channels + n;
}

// Adds a product to the sums of a tile, with a division for each piece. channels: of `to`
template <bool BACKWARD, bool ALIGNED, typename tile>
static __device__ void multiply_patches(tile *t, bf16 *shared, const patch_product &p, int channels,
                                        int first_row, int first_column) {
  // Lines of A that the block loads at once, and lines for each thread, as in load_tile.
  enum { LINES = THREADS / (DEPTH / EIGHT), COUNT = tile::ROWS / LINES };
  const parity_class *of = &p.classes[blockIdx.z];
  corner at[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    at[i] =
        corner_of(&p.from, of, place_of(of, first_row + threadIdx.x / (DEPTH / EIGHT) + i * LINES));
  multiply_all(t, shared, divide_up(of->terms, DEPTH), [&](bf16 *a, bf16 *b, int step) {
    const int first = step * DEPTH;
    load_tile<tile::A_LINES, tile::A_LINE, ALIGNED>(a, p.from.pixels, [&](int number, int, int i) {
      return patch_at(&p.from, of, at[number], term_of(&p.from, of, first + i));
    });
    load_tile<tile::B_LINES, tile::B_LINE, ALIGNED>(b, p.w, [&](int, int line, int i) {
      const int n = BACKWARD ? i : line, number = BACKWARD ? line : i;
      return weight_address<BACKWARD>(&p, of, channels, first_column + n, first + number);
    });
  });
}

// This thread's pieces of B, for tap 0 and channel 0: their numbers in w; below zero: there are none.
template <bool BACKWARD, typename tile, int COUNT>
static __device__ void find_weights(int first[COUNT], const patch_product &p, int terms,
                                    int channels, int first_column) {
  enum { PIECES = tile::B_LINE / EIGHT, AT_ONCE = THREADS / PIECES };
  const int piece = threadIdx.x % PIECES, pieces_of_tap = channels / EIGHT;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int line = threadIdx.x / PIECES + i * AT_ONCE;
    const int n = first_column + (BACKWARD ? piece * EIGHT : line);
    first[i] = BACKWARD ? line * p.kernel * p.kernel * pieces_of_tap + n / EIGHT
                        : n * (terms / EIGHT) + piece;
    if (n >= channels) first[i] = -1;
    keep(&first[i]);
  }
}

// The same, with additions only. A stage is `channel` .. channel + DEPTH - 1 of `tap`.
template <bool BACKWARD, typename tile>
static __device__ void multiply_taps(tile *t, bf16 *shared, const patch_product &p, int channels,
                                     int first_row, int first_column) {
  enum { LINES = THREADS / (DEPTH / EIGHT), COUNT = tile::ROWS / LINES };
  enum { B_COUNT = tile::COLUMNS * DEPTH / EIGHT / THREADS };
  const parity_class *of = &p.classes[blockIdx.z];
  const tap_distances &distance = p.distances[blockIdx.z];
  const int pieces = p.from.channels / EIGHT;
  int pixel[COUNT], filter[B_COUNT], tap = 0, channel = 0;
  uint32_t inside = 0;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int row = first_row + threadIdx.x / (DEPTH / EIGHT) + i * LINES;
    const corner at = corner_of(&p.from, of, place_of(of, row));
    pixel[i] = at.pixel * pieces + threadIdx.x % (DEPTH / EIGHT);
    inside |= taps_inside(&p.from, of, at) << i * MOST_TAPS;
    keep(&pixel[i]);
  }
  find_weights<BACKWARD, tile, B_COUNT>(filter, p, of->terms, channels, first_column);
  multiply_all(t, shared, of->terms / DEPTH, [&](bf16 *a, bf16 *b, int) {
    const int along = channel / EIGHT, next_pixel = distance.pixel[tap] + along;
    const int next_filter =
        BACKWARD ? distance.filter[tap] + channel * p.kernel * p.kernel * (channels / EIGHT)
                 : tap * pieces + along;
    load_pieces<tile::A_LINES, tile::A_LINE>(a, p.from.pixels, [&](int i) {
      return inside >> (tap + i * MOST_TAPS) & 1 ? pixel[i] + next_pixel : -1;
    });
    load_pieces<tile::B_LINES, tile::B_LINE>(
        b, p.w, [&](int i) { return filter[i] < 0 ? -1 : filter[i] + next_filter; });
    channel += DEPTH;
    if (channel < p.from.channels) return;
    channel = 0;
    tap++;
  });
}

// Block (x, y, z): row tile x, column tile y, class z.
template <int ROWS, int COLUMNS, bool BACKWARD, int ADDRESSES>
static __global__ void __launch_bounds__(THREADS, 2) gather_tile(gather_job g) {
  typedef tile_of<ROWS, COLUMNS, true, !BACKWARD> tile;
  DYNAMIC_SHARED(bytes);
  bf16 *shared = (bf16 *)bytes;
  const parity_class *of = &g.product[0].classes[blockIdx.z];
  const int first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;
  const int tile_number = blockIdx.z * gridDim.x + blockIdx.x;
  if (first_row >= of->pixels) return finish_empty_tile(g.end, first_column, COLUMNS, tile_number);
  if (g.end.accumulate && !g.end.sets && of->terms == 0)
    return; // pixels that no tap meets (1x1, stride 2): + 0
  tile t;
  clear(&t);
#pragma unroll 1
  for (int i = 0; i < g.products; i++)
    if (ADDRESSES == OF_TAPS)
      multiply_taps<BACKWARD>(&t, shared, g.product[i], g.end.channels, first_row, first_column);
    else
      multiply_patches<BACKWARD, ADDRESSES == OF_EIGHTS>(&t, shared, g.product[i], g.end.channels,
                                                         first_row, first_column);
  finish_tile<ADDRESSES != OF_NUMBERS>(&t, shared, g.end, first_column, tile_number, [&](int row) {
    return offset_in_to(&g, of, first_row + row);
  });
}

template <int ROWS, int COLUMNS, bool BACKWARD, int ADDRESSES>
static void launch_gather(const gather_job *job, int class_count) {
  gather_job g = *job;
  const int channels = g.end.channels;
  for (int i = 0; ADDRESSES == OF_TAPS && i < g.products * class_count; i++) {
    patch_product *p = &g.product[i / class_count];
    p->distances[i % class_count] = distances_of(&p->from, &p->classes[i % class_count], p->kernel,
                                                 BACKWARD ? channels : p->from.channels);
  }
  const int tiles =
      divide_up(g.product[0].classes[0].pixels, ROWS); // the first class has the most pixels
  constexpr size_t stages = STAGES * (ROWS + COLUMNS) * DEPTH * sizeof(bf16);
  static_assert(bytes_to_finish<tile_of<ROWS, COLUMNS, true, !BACKWARD>>() <= stages,
                "the result is staged in the same memory");
  plan_sums(&g.end, tiles * class_count, divide_up(channels, COLUMNS));
  const dim3 grid(tiles, divide_up(channels, COLUMNS), class_count);
  launch(BACKWARD ? "gather_tile (input gradient)" : "gather_tile (output)",
         gather_tile<ROWS, COLUMNS, BACKWARD, ADDRESSES>, {grid, dim3(THREADS), stages}, g);
}

// The larger tile does more arithmetic for each byte. But 4 x 4 pixels of 128 images in 512
// channels are only 64 such tiles: half of a large GPU would have nothing to do.
template <bool BACKWARD> static void choose_gather(const gather_job *g, int classes) {
  const int channels = g->end.channels, from = g->product[0].from.channels;
  if (from % EIGHT || channels % EIGHT)
    launch_gather<128, 64, BACKWARD, OF_NUMBERS>(g, classes);
  else if (from % DEPTH)
    launch_gather<128, 64, BACKWARD, OF_EIGHTS>(g, classes);
  else if (channels >= 128 && g->to_height * g->to_width > 16)
    launch_gather<128, 128, BACKWARD, OF_TAPS>(g, classes);
  else
    launch_gather<128, 64, BACKWARD, OF_TAPS>(g, classes);
}

static patch_source source_of(const void *pixels, int height, int width, int channels) {
  return {(const bf16 *)pixels, height, width, channels, make_divisor(channels)};
}

// Its classes are still to be made.
static patch_product product_of(const patch_source &from, const void *w, int kernel) {
  patch_product p = {};
  p.from = from, p.w = (const bf16 *)w, p.kernel = kernel;
  return p;
}

} // namespace GPU

#endif
