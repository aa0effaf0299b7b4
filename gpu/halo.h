// gpu/halo.h - 3x3 convolution with stride 1, output and input gradient: a pixel comes from memory
// once, and not once for each tap.
//
// These layers are 88 % of the network's arithmetic. gpu/gather.h's gather_tile can compute them, too,
// as a product with the matrix of patches (gpu/patches.h). That wastes two things:
//
//   - Tap (0, 1) of a pixel is tap (0, 0) of its neighbour. The matrix does not know, so each pixel
//     is fetched nine times: 2,277 MB in the forward pass of a step (width 64, batch 128), where
//     all those pixels and filters are 130 MB.
//   - When this file was written, gather_tile found tap, channel, row and column anew for each 16
//     bytes: 145 of the 217 instructions of its main loop did that, beside 32 mma. An H100 begins
//     four instructions in the time of an mma (tests/sass_report.sh), so the tensor cores waited.
//     (gather.h has today's figures.)
//
// Here a block keeps the pixels of its tile in shared memory, and around them their *halo*: the
// border of one pixel that the filter reaches, too. A tap is then an offset, which the compiler
// knows.
//
//     256 pixels of an image             the region: 10 lines of a border pixel and 32 pixels,
//     32 wide, 8 rows                    and a last border pixel
//
//                                        line 0    0 a a a .. a      a: the row above; zeroes, if
//         b b b .. b                     line 1    0 b b b .. b         there is none
//         c c c .. c                     line 2    0 c c c .. c      0: always zero. It is the left
//             ..                              ..                        border of its line, and the
//         i i i .. i                     line 8    0 i i i .. i         right one of the line above
//                                        line 9    0 j j j .. j 0    j: the row below, or zeroes
//
//     The pixel in row h and column v of the tile meets, with the tap at (r, s), line h + r and, in
//     it, number v + s. For the output that is tap (r, s) of the filter. The input gradient's row h
//     meets row h + 1 - r of dz with the filter's row r (device.h): line h + 2 - r. So what is at
//     (r, s) there is tap (2 - r, 2 - s).
//
// Smaller images come whole, one of 16 x 16, four of 8 x 8, or sixteen of 4 x 4, below each other
// with a line of zeroes between them. Other sizes, and channels that are no multiple of 8, are left
// to gpu/stem.h or gather_tile.
//
// The channels come in *chunks* of 16, the terms of an mma. A chunk's region and its filters, nine
// taps of them, are a stage (gpu/tile.h). Two are enough, one in use and one on its way: a chunk is
// 144 mma for each warp, 72 in the smallest tile. gather_tile has three, with 16 to 32 mma in each.
//
// Banks. A pixel of a chunk has 32 bytes; 16 of padding follow. ldmatrix takes 16 bytes of eight
// neighbours, which are 48 bytes apart: they begin in banks 0, 12, 24, 4, 16, 28, 8 and 20, four
// banks each, and no two meet. A swizzle would depend on the pixel, and be another one for each
// tap. In images 4 wide, four of the eight are on the next line; 80 bytes of padding a line put
// them into the banks that the others leave.
//
// What it brings, by `make cost` and `make sass-report`, against gather_tile as it was then:
//
//                                                     gather_tile    halo_tile
//     pixels and filters asked for, a pass               2,277 MB       774 MB
//     all that its kernels ask for: outputs              2,388 MB       890 MB    + 111 MB stored, 5 the norms
//     the same: input gradients                          2,719 MB     1,187 MB    + what masks and sums read
//     instructions for each mma                       6.8 to 11.8   1.7 to 2.2
//
// A block's second convolution reads z of the first, and each thread normalises what it has copied of a
// chunk, before the barrier behind which all use it (gpu/norm.h). So y is never in memory, inside a block
// or from the stem: 160 MB a step less, and 9 launches (`make cost`). It costs instructions, some 30 for
// each 16 bytes of a chunk, and for every tile of columns again: 2.2 to 2.5 for each mma then, 3.2 in the
// smallest tile, where they serve half as many mma. Up to four for each mma cost an H100 no time (above).
// Scale and shift of all channels are in a table behind the stages: 8 KB for 1,024 channels, with which
// two blocks still fit on an A100. More channels are declined (takes_norm in device.h).
//
// Of the 774 MB, nearly two thirds are filters, which every tile of 256 pixels fetches for itself. Larger
// tiles would need fewer, but two blocks would not fit on a processor any more. Two do on an A100
// and on an H100, with 65 to 69 KB of shared memory each; where there are 100 KB (sm_86, sm_89),
// one does.
//
// The weight gradient has a file of its own, gpu/halo_weight.h.
//
// Checked by `make check`, through conv.cu's operations; by itself:
//
//     build/gcc/watched/kernels_test conv_forward simt unguarded
#ifndef GPU_HALO_H
#define GPU_HALO_H

#include "gpu/epilogue.h"

namespace GPU {

enum {
  PIXELS = 256,                            // rows of the tile
  CHUNK = 16,                              // channels at a time: one mma's terms
  TAPS = 9,                                // of a filter
  CHUNK_PIECES = 2,                        // of 16 bytes, that a pixel's channels of a chunk are
  PIXELS_AT_ONCE = THREADS / CHUNK_PIECES, // that the block copies at once, a piece a thread
  MOST_NORMALISED = 1024,                  // channels of a source that is normalised on its way
};

typedef struct {
  epilogue end;       // its `to`: [pixels][channels]
  const bf16 *from;   // [pixels][channels]: x, or dz
  const bf16 *w;      // [Cout][3][3][Cin]
  int height, pixels; // of an image; of the batch
  int channels;       // of `from`
  normal norm;        // of a z that is normalised on its way, where NORMALISED
} halo_job;

// The region of a tile of PIXELS pixels of images WIDTH wide, with CHANNELS channels of each. Distances
// are in bf16 numbers.
template <int WIDTH_, int PIXELS_ = PIXELS, int CHANNELS = CHUNK> struct region_of {
  enum {
    WIDTH = WIDTH_,
    PIXELS = PIXELS_,
    WHOLE = WIDTH * WIDTH <= PIXELS,         // is it made of whole, square images?
    HEIGHT = WHOLE ? WIDTH : PIXELS / WIDTH, // rows of an image in it
    IMAGES = PIXELS / (WIDTH * HEIGHT),
    PIXEL = CHANNELS + EIGHT, // from a pixel to the next
    // Images 4 wide: so much that LINE, in pieces of 16 bytes, is 4 more than a multiple of 8. Then a
    // row's four pixels lie in the banks that the row above leaves.
    PADDING = WIDTH == 4 ? (4 + 7 * 5 * PIXEL / EIGHT) % 8 * EIGHT : 0,
    LINE = (WIDTH + 1) * PIXEL + PADDING, // from a row to the next
    SIZE = (IMAGES * (HEIGHT + 1) + 1) * LINE + PIXEL,
    // The order of a filter's rows: 0, 1, 2; or, with 2, 0, 2, 1. 16 pixels moved by a row are the
    // next 16 pixels, if an image is 16 wide; if it is 8 wide, those moved by two rows are. One
    // ldmatrix can do for both when they come one after the other (nvcc finds that for sm_90).
    ROW_ORDER = WIDTH == 8 ? 2 : 1,
    COPIED = WHOLE ? PIXELS : PIXELS + 2 * WIDTH,            // pixels that come from memory
    COPIES = (COPIED + PIXELS_AT_ONCE - 1) / PIXELS_AT_ONCE, // of a thread
  };

  // Where tap (0, 0) of the tile's pixel m lies. For a lane's next pixel, 16 or 128 behind it, that
  // is place_of(16) or place_of(128) further: both are whole rows, or half a row.
  static __device__ int place_of(int m) {
    const int row = m / WIDTH, image = WHOLE ? row / HEIGHT : 0;
    return (row + image) * LINE + m % WIDTH * PIXEL;
  }
};

// What a thread copies of one chunk, it copies of the next one, 16 channels further. Where that is
// takes divisions to find, so it is found once, before the loop; there, it only moves.
typedef struct {
  int from;    // pieces of 16 bytes from the array's first on: the first of the next chunk
  int channel; // its first; those beyond the last are copied as zeroes
  bf16 *to;    // in the stage that the next chunk goes to
  int inside;  // pixels: bit i says whether there is an i-th one
} copies;

template <typename region>
static __device__ copies find_pixels(const halo_job &g, bf16 *stage, int first_pixel) {
  const int piece = threadIdx.x % CHUNK_PIECES;
  // Shared memory takes the pieces of eight lanes at once. Side by side, the first and the last of
  // four pixels would meet in banks 4 to 7; every other pixel, they do not meet.
  const int first = threadIdx.x / 16 * 8 + threadIdx.x / 8 % 2 + threadIdx.x / 2 % 4 * 2;
  const int first_row = first_pixel % (g.height * region::WIDTH) / region::WIDTH - 1;
  const int pixel = first_pixel + first - (region::WHOLE ? 0 : region::WIDTH);
  int inside = 0;
  for (int i = 0; i < region::COPIES; i++) {
    const int p = first + i * PIXELS_AT_ONCE, row = first_row + p / region::WIDTH;
    const bool in_image = p < region::COPIED && row >= 0 && row < g.height;
    inside |= (region::WHOLE ? first_pixel + p < g.pixels : in_image) << i;
  }
  keep(&inside); // nvcc would find it anew for each chunk
  bf16 *to = stage + region::place_of(first) + region::PIXEL + piece * EIGHT;
  if (region::WHOLE) to += region::LINE; // the row above the first image is a border, too
  return {pixel * (g.channels / EIGHT) + piece, piece * EIGHT, to, inside};
}

// Begins to copy the next chunk of the region, and moves on: the one after it goes `move` further.
// Pixels that are not inside stay zero.
template <typename region>
static __device__ void copy_pixels(const halo_job &g, copies *c, int move) {
  const bool valid = c->channel < g.channels;
  const int from = c->from - !valid; // copy_async wants what can be read: a chunk's first piece can
#pragma unroll
  for (int i = 0; i < region::COPIES; i++)
    if (c->inside >> i & 1)
      copy_async(c->to + region::place_of(i * PIXELS_AT_ONCE),
                 piece_at(g.from, from + i * PIXELS_AT_ONCE * (g.channels / EIGHT)), valid);
  c->from += CHUNK_PIECES;
  c->channel += CHUNK;
  c->to += move;
}

// A chunk whose copies have landed: this thread's share of it, z, becomes what the layer below made of
// it. own: its first piece, of channels from `channel` on. What is not inside stays zero: the border is
// one of y.
template <typename region>
static __device__ void normalise_pixels(const halo_job &g, const float *table, int channel,
                                        bf16 *own, int inside) {
  if (channel >= g.channels) return;
#pragma unroll
  for (int i = 0; i < region::COPIES; i++)
    if (inside >> i & 1)
      normalise_eight(own + region::place_of(i * PIXELS_AT_ONCE), table, g.channels, channel);
}

// The filters of a chunk: nine tiles, one a tap of the region, each as load_tile would leave it: a
// line of 16 channels for each column, backward a line of the columns for each channel of `from`.
template <typename tile> struct filters_of {
  enum {
    BACKWARD = !tile::B_ALONG_K,
    TAP = tile::COLUMNS * CHUNK, // bf16 numbers
    SIZE = TAPS * TAP,
    TAP_PIECES = TAP / EIGHT,
    TAPS_AT_ONCE = THREADS / TAP_PIECES,
    COPIES = (TAPS + TAPS_AT_ONCE - 1) / TAPS_AT_ONCE, // of a thread
    LINE_PIECES = tile::B_LINE / EIGHT,
    ONE_TAP = BACKWARD ? -1 : 1, // of the filter, while the region's taps go on by one
  };
  static __device__ int first_tap() { return threadIdx.x / TAP_PIECES; }
  // Pieces from w's first to this thread's first tap, of filter 0 and channel 0.
  static __device__ int first_piece(int in_pieces) {
    return (BACKWARD ? TAPS - 1 - first_tap() : first_tap()) * in_pieces;
  }
  static __device__ int in_pieces(const halo_job &g) { // of one tap in w
    return (BACKWARD ? g.end.channels : g.channels) / EIGHT;
  }
};

template <typename tile>
static __device__ copies find_filters(const halo_job &g, bf16 *tiles, int first_column) {
  typedef filters_of<tile> filters;
  enum { BACKWARD = filters::BACKWARD, NONE = 1 << 20 };
  const int number = threadIdx.x % filters::TAP_PIECES, in_pieces = filters::in_pieces(g);
  const int line = number / filters::LINE_PIECES, piece = number % filters::LINE_PIECES;
  const int column = first_column + (BACKWARD ? piece * EIGHT : line);
  const int channel = BACKWARD ? line : piece * EIGHT;
  const int filter = BACKWARD ? channel : column, c = BACKWARD ? column : channel;
  const int from = filters::first_piece(in_pieces) + filter * TAPS * in_pieces + c / EIGHT;
  bf16 *tap = tiles + filters::first_tap() * filters::TAP;
  return {from, column < g.end.channels ? channel : NONE, piece_of<tile::B_LINE>(tap, line, piece),
          0};
}

template <typename tile>
static __device__ void copy_filters(const halo_job &g, copies *c, int move) {
  typedef filters_of<tile> filters;
  const int in_pieces = filters::in_pieces(g);
  const bool valid = c->channel < g.channels;
  const int from = valid ? c->from : filters::first_piece(in_pieces);
#pragma unroll
  for (int i = 0; i < filters::COPIES; i++) {
    const int taps = i * filters::TAPS_AT_ONCE;
    if (i < filters::COPIES - 1 || filters::first_tap() + taps < TAPS)
      copy_async(c->to + taps * filters::TAP,
                 piece_at(g.w, from + filters::ONE_TAP * taps * in_pieces), valid);
  }
  c->from += filters::BACKWARD ? CHUNK * TAPS * in_pieces : CHUNK_PIECES;
  c->channel += CHUNK;
  c->to += move;
}

// This lane's first lines of a chunk, as ldmatrix wants them.
template <typename tile> struct chunk_lines {
  enum { FILTER_LINES = tile::B_ALONG_K ? 1 : tile::N_STEPS / 2 };
  const bf16 *pixels; // of tap (0, 0)
  // For 16 columns each; along the channels, the others' are as many lines further.
  const bf16 *filters[FILTER_LINES];
};

// sum += the products of one chunk.
template <typename region, typename tile>
static __device__ void multiply_chunk(tile *t, const chunk_lines<tile> &from) {
#pragma unroll
  for (int step = 0; step < TAPS; step++) {
    const int row = step * region::ROW_ORDER % 3, column = step / 3;
    const int moved = row * region::LINE + column * region::PIXEL;
    uint32_t a[4], b[tile::N_STEPS / 2][4];
#pragma unroll
    for (int j = 0; j < tile::N_STEPS / 2; j++)
      load_b<tile>(b[j], from.filters[tile::B_ALONG_K ? 0 : j] +
                             (tile::B_ALONG_K ? j * 16 * tile::B_LINE : 0) +
                             (row * 3 + column) * filters_of<tile>::TAP);
#pragma unroll
    for (int i = 0; i < tile::M_STEPS; i++) {
      load_matrices(a, from.pixels + region::place_of(i * 16) + moved);
#pragma unroll
      for (int j = 0; j < tile::N_STEPS; j++) mma_16x8x16(t->sum[i][j], a, b[j / 2] + j % 2 * 2);
    }
  }
}

// The sum over all channels and taps. While one chunk is multiplied, the next is on its way. table: of
// the norm, where NORMALISED.
template <typename region, bool NORMALISED, typename tile>
static __device__ void multiply_chunks(tile *t, bf16 *shared, const halo_job &g, int first_pixel,
                                       int first_column, const float *table) {
  enum { STAGE = region::SIZE + filters_of<tile>::SIZE };
  copies pixels = find_pixels<region>(g, shared, first_pixel);
  copies filters = find_filters<tile>(g, shared + region::SIZE, first_column);
  const int lane = threadIdx.x % LANES;
  const bool has_pixels = !region::WHOLE || first_pixel + tile::warp_row() < g.pixels;
  chunk_lines<tile> lines;
  lines.pixels = shared + region::place_of(tile::warp_row() + lane % 16) + lane / 16 * EIGHT;
  for (int j = 0; j < chunk_lines<tile>::FILTER_LINES; j++)
    lines.filters[j] = line_of_b<tile>(shared + region::SIZE, tile::warp_column() + j * 16, 0);
  bf16 *own = pixels.to;
  int move = STAGE; // from the stage that is multiplied to the other one
  copy_pixels<region>(g, &pixels, move);
  copy_filters<tile>(g, &filters, move);
  commit_copies();
  for (int channel = 0; channel < g.channels; channel += CHUNK) {
    wait_for_copies<0>(); // this thread's share of the chunk is there,
    if (NORMALISED)
      normalise_pixels<region>(g, table, channel + (int)threadIdx.x % CHUNK_PIECES * EIGHT, own,
                               pixels.inside);
    __syncthreads(); // and everyone's; and all are done with the chunk before it,
    if (channel + CHUNK < g.channels) { // whose stage is filled again
      copy_pixels<region>(g, &pixels, -move);
      copy_filters<tile>(g, &filters, -move);
    }
    commit_copies();
    if (has_pixels) multiply_chunk<region>(t, lines);
    own += move;
    lines.pixels += move;
    for (int j = 0; j < chunk_lines<tile>::FILTER_LINES; j++) lines.filters[j] += move;
    move = -move;
  }
  __syncthreads(); // shared memory may be used for something else
}

// Block (x, y): row tile x, column tile y.
template <int WIDTH, int COLUMNS, bool BACKWARD, bool NORMALISED>
static __global__ void __launch_bounds__(THREADS, 2) halo_tile(halo_job g) {
  typedef region_of<WIDTH> region;
  typedef tile_of<PIXELS, COLUMNS, true, !BACKWARD, CHUNK> tile;
  DYNAMIC_SHARED(bytes);
  bf16 *shared = (bf16 *)bytes;
  const int first_pixel = blockIdx.x * PIXELS, first_column = blockIdx.y * COLUMNS;
  const int stage = region::SIZE + filters_of<tile>::SIZE;
  for (int i = threadIdx.x * EIGHT; i < region::SIZE; i += THREADS * EIGHT) {
    const uint4 zeroes = {0, 0, 0, 0};
    *(uint4 *)(shared + i) = *(uint4 *)(shared + stage + i) = zeroes;
  }
  float *table = (float *)(shared + 2 * stage);
  if (NORMALISED) fill_table(table, g.channels, g.norm, 0, g.channels);
  __syncthreads(); // zeroes come first, copies after them
  tile t;
  clear(&t);
  multiply_chunks<region, NORMALISED>(&t, shared, g, first_pixel, first_column, table);
  finish_tile<true>(&t, shared, g.end, first_column, blockIdx.x, [&](int row) {
    const int pixel = first_pixel + row;
    return pixel < g.pixels ? (ptrdiff_t)pixel * g.end.channels : -1;
  });
}

template <int WIDTH, int COLUMNS, bool BACKWARD, bool NORMALISED>
static void launch_halo(const halo_job *job) {
  typedef tile_of<PIXELS, COLUMNS, true, !BACKWARD, CHUNK> tile;
  halo_job g = *job;
  const int tiles = divide_up(g.pixels, PIXELS), channels = g.end.channels;
  constexpr size_t stages = 2 * (region_of<WIDTH>::SIZE + filters_of<tile>::SIZE) * sizeof(bf16);
  static_assert(bytes_to_finish<tile>() <= stages, "the result is staged in the same memory");
  const size_t table = NORMALISED ? 2 * g.channels * sizeof(float) : 0;
  plan_sums(&g.end, tiles, divide_up(channels, COLUMNS));
  launch(BACKWARD ? "halo_tile (input gradient)" : "halo_tile (output)",
         halo_tile<WIDTH, COLUMNS, BACKWARD, NORMALISED>,
         {dim3(tiles, divide_up(channels, COLUMNS)), dim3(THREADS), stages + table}, g);
}

// False for a shape that others have to take (gpu/stem.h, gpu/gather.h): another filter or stride, channels
// that are no multiple of 8, images that do not make tiles.
static bool halo_takes(const conv_shape *s) {
  const int width = s->in_width, height = s->in_height;
  return s->kernel == 3 && s->stride == 1 && s->in_channels % EIGHT == 0 &&
         s->out_channels % EIGHT == 0 &&
         ((width == 32 && height % region_of<32>::HEIGHT == 0) ||
          (width == height && (width == 16 || width == 8 || width == 4)));
}

// False, and nothing is done, for such a shape. norm: of the layer below, if NORMALISED.
template <bool BACKWARD, bool NORMALISED>
static bool halo_convolution(const conv_shape *s, const void *from, const void *w,
                             const normal &norm, const epilogue &end) {
  const int width = s->in_width, height = s->in_height;
  const halo_job g = {
      end,    (const bf16 *)from,        (const bf16 *)w,
      height, s->batch * height * width, BACKWARD ? s->out_channels : s->in_channels,
      norm};
  if (!halo_takes(s)) return false;
  if (width == 32)
    launch_halo<32, 64, BACKWARD, NORMALISED>(&g);
  else if (width == 16)
    launch_halo<16, 64, BACKWARD, NORMALISED>(&g);
  else if (width == 8)
    launch_halo<8, 64, BACKWARD, NORMALISED>(&g);
  else // few tiles: the smaller ones make more
    launch_halo<4, 32, BACKWARD, NORMALISED>(&g);
  return true;
}

} // namespace GPU

#endif
