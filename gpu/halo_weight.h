// gpu/halo_weight.h - 3x3 convolution with stride 1, weight gradient: a pixel comes from memory once
// for all nine taps, here, too.
//
//     dw[k][r][s][c] = sum over b, p, q of   dz[b][p][q][k] x[b][p - 1 + r][q - 1 + s][c]
//
// As a product of matrices (conv.cu, weight_tile) a block makes 128 filters x 128 columns, and a column
// is a tap of a channel. For each pixel it fetches 128 numbers of dz and 128 of x; the same number of
// x comes for another tap again, to this block or to its neighbours. In the network's 13 layers that
// are 2,259 MB (width 64, batch 128), where dz and x are 222 MB.
//
// Here a block makes all nine taps of 64 filters x 32 channels. For each pixel it fetches 64 numbers of
// dz and 32 of x, and does 9 * 64 * 32 multiply-adds with them. The tile of 128 x 128 does about as
// many, 16,384 in place of 18,432, with 256 numbers in place of 96. By `make cost` and `make
// sass-report`, for these layers, against weight_tile as it was then:
//
//                                      weight_tile    strip_tile
//     MB asked for, sums stored too          2,259           813
//     MB to add up parts of the sum            233           104    (gpu/parts.h)
//     instructions for each mma         9.0 to 14.0    1.7, and 2.3 with what a strip does once
//
// Where x is a y that nobody stored, inside a block or behind the stem, z is copied, and a thread normalises its share, as in
// gpu/halo.h. That, too, is done once for a strip, and raises 2.3 instructions to 3.1.
//
// The pixels come in *strips* of 128, the stages of gpu/tile.h: dz as a tile of 128 lines of 64 filters,
// x as a region with a border, as in gpu/halo.h, of 32 channels. A tap of 32 pixels is the same 32
// lines of the region, moved by a constant. ldmatrix has each lane name a line: lane l names pixel l.
// It leaves, transposed, what two mma take as b: 16 pixels by 8 channels, twice.
//
//     warp 0    filters 0-31    channels 0-7          warp 4    filters 32-63   channels 0-7
//     warp 1                    channels 8-15         warp 5                    channels 8-15
//      ..                                              ..
//
// For 32 pixels a warp loads four matrices of dz and nine of x, 512 bytes each, and issues 36 mma. Its 9 *
// 32 * 8 sums take 72 registers a thread.
//
// A border above or below a strip is zero where the image ends, and the next strip's pixels where not.
// So those lines are copied for each strip, zeroes too. What is zero in every strip, the left border and
// the lines between small images, is cleared once.
//
// Banks. A pixel has 64 bytes; 16 of padding follow. Eight neighbours begin in banks 0, 20, 8, 28, 16, 4,
// 24 and 12.
//
// Checked by `make check`, through conv.cu's operations; by itself:
//
//     build/gcc/watched/kernels_test conv_backward_weight simt unguarded
#ifndef GPU_HALO_WEIGHT_H
#define GPU_HALO_WEIGHT_H

#include "gpu/halo.h"
#include "gpu/parts.h"

namespace GPU {

enum {
  STRIP = 128,  // pixels of a stage
  FILTERS = 64, // of a block
  SLICE = 32,   // channels of a block
  WARP_FILTERS = 32,
  AT_A_TIME = 32, // pixels that a warp multiplies at a time: two mma's terms
};

typedef struct {
  float *to;          // [parts][filters][3][3][channels]: dw itself, or the workspace
  const bf16 *dz, *x; // [pixels][filters], [pixels][channels]
  int height, pixels; // of an image; of the batch
  int filters, channels;
  int part_strips; // strips in a part of the sum
  int last_strips; // and in the last one
  normal norm;     // of a z that is normalised on its way to be x, where NORMALISED
} strip_job;

template <int WIDTH> struct strip_of {
  typedef region_of<WIDTH, STRIP, SLICE> region;
  enum { DZ = STRIP * FILTERS, STAGE = DZ + region::SIZE }; // bf16 numbers
};

// A thread's share of a strip, of dz or of x. That of x is moved on from strip to strip. What else can be
// found anew is found anew, for there are no registers to keep it in: 72 sums, and what nvcc loads ahead
// of an mma, take nearly all of the 128.
typedef struct {
  int from; // pieces of 16 bytes from the array's first on: the first to copy
  int at;   // that one's pixel, or its row in an image; NOWHERE: its channel does not exist
  bf16 *to; // in the stage that the strip goes to
} strip_copies;

enum { NOWHERE = -(1 << 30) }; // below zero, whatever is added to it here

// Of x: a region. row: of the strip's first pixel in its image.
template <typename region>
static __device__ strip_copies find_region(const strip_job &g, bf16 *stage, int first_pixel,
                                           int row, int first_channel) {
  enum { PIECES = SLICE / EIGHT, WIDTH = region::WIDTH, WHOLE = region::WHOLE };
  // Shared memory takes eight lanes' pieces at once, two pixels of four. Side by side, the first's
  // piece 0 and the second's piece 3 would meet in banks 0 to 3; four apart, none do.
  const int first = threadIdx.x / 32 * 8 + threadIdx.x / 8 % 4 + threadIdx.x / 4 % 2 * 4;
  const int piece = threadIdx.x % PIECES, channel = first_channel + piece * EIGHT;
  bf16 *to = stage + region::place_of(first) + region::PIXEL + piece * EIGHT;
  strip_copies c;
  int pixel = first_pixel + first;
  if (WHOLE) {
    c.at = pixel;
    c.to = to + region::LINE; // the row above the first image is a border
  } else {
    pixel -= WIDTH; // a strip begins with the row above
    c.at = row - 1 + first / WIDTH;
    c.to = to;
  }
  if (channel >= g.channels) c.at = NOWHERE;
  c.from = pixel * (g.channels / EIGHT) + channel / EIGHT;
  return c;
}

// The pieces of a share: number i is AT_ONCE pixels behind the one before, which is AT_STEP further in
// `at`. The last REST pixels are those of the first threads. act(i, is there one: `at` in 0 .. limit - 1?)
template <int COUNT, int REST, int AT_ONCE, int AT_STEP, typename function>
static __device__ void for_each_piece(const strip_copies &c, int limit, const function &act) {
#pragma unroll
  for (int i = 0; i < COUNT + (REST > 0); i++) {
    if (i == COUNT && (int)threadIdx.x * AT_ONCE >= REST * THREADS) break;
    act(i, (unsigned)(c.at + i * AT_STEP) < (unsigned)limit);
  }
}

// Begins to copy the piece that lies `further` than the share's first; zeroes where there is none.
static __device__ void copy_piece(const bf16 *array, const strip_copies &c, int place, int further,
                                  bool valid) {
  copy_async(c.to + place, piece_at(array, valid ? c.from + further : 0), valid);
}

// Of dz: lines of 64 filters, as load_a wants them.
static __device__ void copy_dz(const strip_job &g, bf16 *stage, int first_pixel) {
  enum { PIECES = FILTERS / EIGHT, AT_ONCE = THREADS / PIECES };
  const int piece = threadIdx.x % PIECES, line = threadIdx.x / PIECES, pieces = g.filters / EIGHT;
  const int filter = blockIdx.z * FILTERS + piece * EIGHT, pixel = first_pixel + line;
  const strip_copies c = {pixel * pieces + filter / EIGHT, filter < g.filters ? pixel : NOWHERE,
                          piece_of<FILTERS>(stage, line, piece)};
  for_each_piece<STRIP / AT_ONCE, 0, AT_ONCE, AT_ONCE>(c, g.pixels, [&](int i, bool valid) {
    copy_piece(g.dz, c, i * AT_ONCE * FILTERS, i * AT_ONCE * pieces, valid);
  });
}

enum { REGION_AT_ONCE = THREADS / (SLICE / EIGHT) }; // pixels of x that the block copies at once

template <typename region, typename function>
static __device__ void for_each_of_region(const strip_job &g, const strip_copies &c,
                                          const function &act) {
  enum { AT_ONCE = REGION_AT_ONCE, AT_STEP = region::WHOLE ? AT_ONCE : AT_ONCE / region::WIDTH };
  for_each_piece<region::COPIED / AT_ONCE, region::COPIED % AT_ONCE, AT_ONCE, AT_STEP>(
      c, region::WHOLE ? g.pixels : g.height, act);
}

template <typename region>
static __device__ void copy_region(const strip_job &g, strip_copies *c, int move) {
  enum { WIDTH = region::WIDTH, WHOLE = region::WHOLE };
  const int pieces = g.channels / EIGHT;
  if (WHOLE) // unsigned: NOWHERE may overflow
    c->from = (int)((unsigned)c->at * (unsigned)pieces) +
              (int)(blockIdx.y * SLICE / EIGHT + threadIdx.x % (SLICE / EIGHT));
  for_each_of_region<region>(g, *c, [&](int i, bool valid) {
    copy_piece(g.x, *c, region::place_of(i * REGION_AT_ONCE), i * REGION_AT_ONCE * pieces, valid);
  });
  if (!WHOLE) c->from += STRIP * pieces;
  c->at += WHOLE ? STRIP : STRIP / WIDTH;
  if (!WHOLE && c->at + 1 >= g.height) c->at -= g.height; // the next strip is of the next image
  c->to += move;
}

// What `c` was before copy_region moved it on to the other stage, `move` further.
template <typename region>
static __device__ strip_copies strip_before(const strip_job &g, strip_copies c, int move) {
  c.at -= region::WHOLE ? STRIP : STRIP / region::WIDTH;
  if (!region::WHOLE && c.at < -1) c.at += g.height;
  c.to -= move;
  return c;
}

// A strip whose copies have landed: this thread's share of z becomes x. Pixels that do not exist stay
// zero: the border is one of x. table: of the block's channels (gpu/norm.h).
template <typename region>
static __device__ void normalise_region(const strip_job &g, const strip_copies &c,
                                        const float *table) {
  for_each_of_region<region>(g, c, [&](int i, bool valid) {
    if (valid)
      normalise_eight(c.to + region::place_of(i * REGION_AT_ONCE), table, SLICE,
                      (int)threadIdx.x % (SLICE / EIGHT) * EIGHT);
  });
}

// For 16 filters each and every tap: mma_16x8x16's c.
typedef float tap_sums[WARP_FILTERS / 16][TAPS][4];

// sum += the products of one strip. dz: the stage; x: this lane's pixel and channels in its region.
template <typename region>
static __device__ void multiply_strip(tap_sums sum, bf16 *dz, const bf16 *x, int warp_filter) {
  typedef tile_of<FILTERS, 2 * FILTERS, false, false> tile; // for load_a: lines of 64 filters
#pragma unroll 1 // unrolled, it would need more than the 128 registers that there are
  for (int pixel = 0; pixel < STRIP; pixel += AT_A_TIME) {
    uint32_t a[AT_A_TIME / 16][WARP_FILTERS / 16][4], b[4];
#pragma unroll
    for (int half = 0; half < AT_A_TIME / 16; half++)
#pragma unroll
      for (int i = 0; i < WARP_FILTERS / 16; i++)
        load_a<tile>(a[half][i], dz, warp_filter + i * 16, pixel + half * 16);
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
      const int moved = tap / 3 * region::LINE + tap % 3 * region::PIXEL;
      load_matrices_transposed(b, x + region::place_of(pixel) + moved);
#pragma unroll
      for (int half = 0; half < AT_A_TIME / 16; half++)
#pragma unroll
        for (int i = 0; i < WARP_FILTERS / 16; i++)
          mma_16x8x16(sum[i][tap], a[half][i], b + 2 * half);
    }
  }
}

// The sum over a part's strips. While one is multiplied, the next is on its way. table: of the norm,
// where NORMALISED.
template <int WIDTH, bool NORMALISED>
static __device__ void multiply_strips(tap_sums sum, bf16 *shared, const strip_job &g,
                                       int first_channel, int warp_filter, int warp_channel,
                                       const float *table) {
  typedef typename strip_of<WIDTH>::region region;
  enum { STAGE = strip_of<WIDTH>::STAGE, DZ = strip_of<WIDTH>::DZ };
  const int strip = blockIdx.x * g.part_strips, first_row = strip * (STRIP / WIDTH) % g.height;
  strip_copies x = find_region<region>(g, shared + DZ, strip * STRIP, first_row, first_channel);
  bf16 *stage = shared;
  int move = STAGE; // from the stage that is multiplied to the other one
  copy_dz(g, stage, strip * STRIP);
  copy_region<region>(g, &x, move);
  commit_copies();
  int left = blockIdx.x + 1 < gridDim.x ? g.part_strips : g.last_strips, next = strip;
  while (left-- > 0) {
    wait_for_copies<0>(); // this thread's share of the strip is there,
    if (NORMALISED) normalise_region<region>(g, strip_before<region>(g, x, move), table);
    __syncthreads(); // and everyone's; and all are done with the strip before it,
    next++;
    if (left > 0) { // whose stage is filled again
      copy_dz(g, stage + move, next * STRIP);
      copy_region<region>(g, &x, -move);
    }
    commit_copies();
    multiply_strip<region>(
        sum, stage, stage + DZ + region::place_of(threadIdx.x % LANES) + warp_channel, warp_filter);
    stage += move;
    move = -move;
  }
}

// Block (x, y, z): part x of the sum, slice y of the channels, tile z of the filters.
template <int WIDTH, bool NORMALISED>
static __global__ void __launch_bounds__(THREADS, 2) strip_tile(strip_job g) {
  DYNAMIC_SHARED(bytes);
  bf16 *shared = (bf16 *)bytes;
  float *table = (float *)(shared + 2 * strip_of<WIDTH>::STAGE);
  const int first_filter = blockIdx.z * FILTERS, first_channel = blockIdx.y * SLICE;
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int warp_filter = warp / (SLICE / 8) * WARP_FILTERS, warp_channel = warp % (SLICE / 8) * 8;
  for (int i = threadIdx.x * EIGHT; i < 2 * strip_of<WIDTH>::STAGE; i += THREADS * EIGHT) {
    const uint4 zeroes = {0, 0, 0, 0};
    *(uint4 *)(shared + i) = zeroes;
  }
  if (NORMALISED) fill_table(table, SLICE, g.norm, first_channel, g.channels);
  __syncthreads(); // zeroes come first, copies after them
  tap_sums sum = {};
  multiply_strips<WIDTH, NORMALISED>(sum, shared, g, first_channel, warp_filter, warp_channel,
                                     table);
  const int column = first_channel + warp_channel + lane % 4 * 2;
  if (column >= g.channels) return;
#pragma unroll
  for (int i = 0; i < WARP_FILTERS / 8; i++) {
    const int filter = first_filter + warp_filter + i * 8 + lane / 4;
    if (filter >= g.filters) return;
    float *to = g.to + ((size_t)blockIdx.x * g.filters + filter) * TAPS * g.channels + column;
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
      float2 pair;
      pair.x = sum[i / 2][tap][i % 2 * 2];
      pair.y = sum[i / 2][tap][i % 2 * 2 + 1];
      *(float2 *)(to + tap * g.channels) = pair;
    }
  }
}

// Cuts the sum into parts, of which each has `blocks` blocks. Returns how many.
static int cut_strips(strip_job *g, int blocks) {
  const int strips = divide_up(g->pixels, STRIP);
  g->part_strips = steps_of_part(strips, 4, blocks);
  const int parts = divide_up(strips, g->part_strips);
  g->last_strips = strips - (parts - 1) * g->part_strips;
  return parts;
}

template <int WIDTH, bool NORMALISED> static void launch_strips(strip_job *g, real *dw) {
  const int slices = divide_up(g->channels, SLICE), tiles = divide_up(g->filters, FILTERS);
  const int parts = cut_strips(g, slices * tiles), columns = TAPS * g->channels;
  const size_t stages = 2 * strip_of<WIDTH>::STAGE * sizeof(bf16);
  const size_t table = NORMALISED ? 2 * SLICE * sizeof(float) : 0;
  g->to = place_of_parts(dw, parts, g->filters, columns, columns);
  launch("strip_tile", strip_tile<WIDTH, NORMALISED>,
         {dim3(parts, slices, tiles), dim3(THREADS), stages + table}, *g);
  launch_add_parts(dw, g->to, parts, g->filters, columns, columns);
}

// False, and nothing is done, for a shape that others have to take (gpu/stem.h, weight_tile); all that
// halo_takes are taken.
// norm: of the layer below, if NORMALISED; then x is that layer's z.
template <bool NORMALISED>
static bool strip_convolution(const conv_shape *s, real *dw, const void *dz, const void *x,
                              const normal &norm) {
  const int width = s->in_width, height = s->in_height;
  strip_job g = {NULL,
                 (const bf16 *)dz,
                 (const bf16 *)x,
                 height,
                 s->batch * height * width,
                 s->out_channels,
                 s->in_channels,
                 0,
                 0,
                 norm};
  if (s->kernel != 3 || s->stride != 1 || g.filters % EIGHT || g.channels % EIGHT) return false;
  if (width == 32 && height % strip_of<32>::region::HEIGHT == 0)
    launch_strips<32, NORMALISED>(&g, dw);
  else if (width == 16 && height % strip_of<16>::region::HEIGHT == 0)
    launch_strips<16, NORMALISED>(&g, dw);
  else if (width == 8 && height == 8)
    launch_strips<8, NORMALISED>(&g, dw);
  else if (width == 4 && height == 4)
    launch_strips<4, NORMALISED>(&g, dw);
  else
    return false;
  return true;
}

} // namespace GPU

#endif
