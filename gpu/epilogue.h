// gpu/epilogue.h - what a convolution's kernel does with its result before it is stored: the
// *epilogue*.
//
// A tile of the result is in registers, as floats, when the products are done. Whatever else a layer
// wants of these numbers is cheap now; later it would cost a walk through memory each. So
// there are five ways to end, and the operations of device.h that choose between them:
//
//     store                                     conv_forward, conv_backward_input
//     add to what is there                      conv_backward_input with accumulate
//     store, and add up z and z z               conv_forward with sums, conv_statistics,
//                                               norm_conv_statistics
//     normalise, add the residual, ReLU         conv_norm_inference
//     mask with ReLU below, store, and
//     add up g and g (z - mean), and the
//     same with the z of a shortcut             conv_backward_masked, block_backward_masked
//
// What is added, and the z and masks of the layer below, still come from memory, which answers after hundreds of
// clocks. A thread that asks for one row's, uses it, and asks for the next one's waits as long for every row, 16
// or 32 times; and two blocks of 8 warps with 4 bytes a lane have 2 KB on their way at a processor, where an A100
// wants 4 KB (course/2-gpu.md). So each asks for eight pairs before it uses the first.
//
// Checked by `make check`, through conv.cu's kernels.
#ifndef GPU_EPILOGUE_H
#define GPU_EPILOGUE_H

#include "gpu/norm.h"
#include "gpu/tile.h"

namespace GPU {

// Two sums over each column of all tiles: of the result and its squares, or, where z is given, of
// the result g and of g (z - mean).
typedef struct {
  const bf16 *z;
  const float *mean;
  use_of_sums use; // what becomes of them
} column_sums;

typedef struct {
  bf16 *to; // [pixels][channels], the result
  int channels;
  bool accumulate; // to += instead of to =
  column_sums sums[2];
  int sets;            // how many of them there are; two: g goes through a shortcut's norm as well
  float *partials;     // [tiles][2][sets x channels], the tiles' sums
  parts_of_sums parts; // who adds them up
  // Of a normalisation: evaluation's, or, where sums[0].z is given, that of the layer below, whose output's
  // gradient this is.
  normal norm;
  bool relu;
  const bf16 *residual; // evaluation; may be NULL
  const uint8_t *mask;  // below: where its output is above zero. NULL: no residual there, z tells
} epilogue;

// Two neighbours, the number at i and the next; both: that is there, too. ALIGNED: channels are a multiple of 8,
// so it is, and the two are one word.
template <bool ALIGNED>
static __device__ uint32_t load_pair(const bf16 *from, ptrdiff_t i, bool both) {
  if (ALIGNED) return *(const uint32_t *)(from + i);
  return from[i].bits | (both ? (uint32_t)from[i + 1].bits << 16 : 0);
}

// The same of a mask: bits `bit` and `bit` + 1 of what is returned. ALIGNED: that is the byte that has both.
template <bool ALIGNED>
static __device__ uint32_t load_bits(const uint8_t *mask, size_t i, int bit, bool both) {
  if (ALIGNED) return mask[i / 8];
  const uint32_t first = mask[i / 8] >> i % 8 & 1;
  return (first | (both ? (mask[(i + 1) / 8] >> (i + 1) % 8 & 1) << 1 : 0)) << bit;
}

// The warps' sums, as bf16, to the staged tile in shared memory. offset(row): of the row's first
// channel in `to`, or negative where there is none. of: evaluation's [COLUMNS], or NULL.
template <bool ALIGNED, typename tile, typename function>
static __device__ void stage_tile(const tile *t, bf16 *staged, const epilogue &e, int first_column,
                                  const channel_normal *of, const function &offset) {
  const bf16 *add = e.accumulate ? e.to : of ? e.residual : NULL;
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++) {
    uint32_t old[tile::PAIRS] = {}; // all on their way before one is waited for
    if (add)
      for_each_pair_of(t, i, [&](int number, int row, int column, float, float) {
        const int n = first_column + column;
        const ptrdiff_t at = n < e.channels ? offset(row) : -1;
        if (at >= 0) old[number] = load_pair<ALIGNED>(add, at + n, n + 1 < e.channels);
      });
    for_each_pair_of(t, i, [&](int number, int row, int column, float first, float second) {
      if (of) {
        first = normalised(of[column], first);
        second = normalised(of[column + 1], second);
      }
      first += first_of(old[number]);
      second += second_of(old[number]);
      if (of && e.relu) {
        first = relu_of(first);
        second = relu_of(second);
      }
      *(uint32_t *)staged_at<tile>(staged, row, column) = to_pair(first, second);
    });
  }
}

// -- Sums over a tile's columns -------------------------------------------------------------------

// For each of two neighbouring columns: a number, and a factor for it.
typedef struct {
  float value[2], factor[2]; // [column]
} column_pair;

// What a pair of dy wants of the layer below.
typedef struct {
  uint32_t z, mask; // two neighbours, and a byte with their two bits
  bool inside;      // is there such a row?
} pair_below;

// Two sums over each column of a staged tile: of the values, and of the values times their factors.
// terms(row, column, below) returns those of a pair, where below is what load(row) returned. A thread adds up two
// columns in a slice of the rows; then one thread for each sum adds up the slices', in order, and calls
// store(which, column, sum). slices: shared memory behind the staged tile.
//
// Why is float enough within a tile, where batch normalisation wants double? z is a bf16, of 8
// bits. Where the mean of a channel is large beside its deviation, which is where much cancels
// later, its z have the same exponent or two neighbouring ones. So each z z has 16 bits, at most
// two places apart, and 256 of them add up to 16 + 8 + 2 = 26 bits, two more than a float holds.
// Where the exponents differ by more, little cancels. The tiles' sums are added in double.
template <typename tile, typename loader, typename function, typename result>
static __device__ void sum_columns(float *slices, const loader &load, const function &terms,
                                   const result &store) {
  enum { ROWS_AT_ONCE = 8 }; // that are loaded before the first is used
  enum { COLUMNS = tile::COLUMNS, SLICES = THREADS / (COLUMNS / 2), ROWS = tile::ROWS / SLICES };
  const int slice = threadIdx.x / (COLUMNS / 2), column = threadIdx.x % (COLUMNS / 2) * 2;
  float sum[2] = {0, 0}, product[2] = {0, 0}; // [column]
#pragma unroll 1
  for (int row = slice * ROWS; row < (slice + 1) * ROWS; row += ROWS_AT_ONCE) {
    pair_below below[ROWS_AT_ONCE];
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) below[r] = load(row + r);
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
      const column_pair add = terms(row + r, column, below[r]);
      for (int i = 0; i < 2; i++) {
        sum[i] += add.value[i];
        product[i] = fmaf(add.value[i], add.factor[i], product[i]);
      }
    }
  }
  for (int i = 0; i < 2; i++) { // slices: [SLICES][2][COLUMNS]
    slices[slice * 2 * COLUMNS + column + i] = sum[i];
    slices[(slice * 2 + 1) * COLUMNS + column + i] = product[i];
  }
  __syncthreads();
  const int which = threadIdx.x / COLUMNS, n = threadIdx.x % COLUMNS;
  if (which > 1) return;
  float total = 0;
  for (int i = 0; i < SLICES; i++) total += slices[(i * 2 + which) * COLUMNS + n];
  store(which, n, total);
}

// g = dy where the layer below's output is above zero, else 0. The mask tells, or, where no residual was
// added to it, z.
static __device__ float masked(float dy, const epilogue &e, uint32_t bit, const channel_normal &n,
                               float z) {
  const bool zero = e.mask ? !bit : normalised(n, z) <= 0;
  return zero ? 0 : dy;
}

// Of the staged result itself: z, and z as its factor. Rows beyond the last pixel are zeroes.
static __device__ column_pair squares_of(uint32_t pair) {
  const float first = first_of(pair), second = second_of(pair);
  return {{first, second}, {first, second}};
}

// dy becomes g. bit: the first one's in the byte of the mask.
static __device__ uint32_t mask_pair(uint32_t dy, const pair_below &below, int bit,
                                     const epilogue &e, const channel_normal *of, bool both) {
  const uint32_t bits = below.mask >> bit;
  const float first = masked(first_of(dy), e, bits & 1, of[0], first_of(below.z));
  const float second = both ? masked(second_of(dy), e, bits & 2, of[1], second_of(below.z)) : 0;
  return to_pair(first, second);
}

static __device__ column_pair products_of(uint32_t g, uint32_t z, const float *mean) {
  return {{first_of(g), second_of(g)}, {first_of(z) - mean[0], second_of(z) - mean[1]}};
}

// A set's sums of a tile; with the first set, its dy become g. tile_number: which of the partial sums are
// this tile's.
template <bool ALIGNED, typename tile, typename function>
static __device__ void sum_tile(bf16 *staged, const epilogue &e, int set, int first_column,
                                int tile_number, const function &offset) {
  const column_sums &s = e.sums[set];
  float *slices = (float *)staged_at<tile>(staged, tile::ROWS, 0);
  int thread = threadIdx.x;
  keep(&thread); // nvcc would find what follows before the products, and has no register left there
  const int n = first_column + thread % (tile::COLUMNS / 2) * 2; // this thread's two columns
  const bool both = ALIGNED || n + 1 < e.channels;
  channel_normal of[2] = {};
  float mean[2] = {};
  for (int i = 0; i < 2; i++) {
    if (!s.z || n + i >= e.channels) continue;
    if (set == 0) of[i] = normal_of(e.norm, n + i);
    mean[i] = s.mean[n + i];
  }
  sum_columns<tile>(
      slices,
      [&](int row) -> pair_below {
        const ptrdiff_t at = s.z && n < e.channels ? offset(row) : -1;
        if (at < 0) return {};
        const bool masks = set == 0 && e.mask;
        return {load_pair<ALIGNED>(s.z, at + n, both),
                masks ? load_bits<ALIGNED>(e.mask, at + n, n % 8, both) : 0, true};
      },
      [&](int row, int column, const pair_below &below) -> column_pair {
        uint32_t *pair = (uint32_t *)staged_at<tile>(staged, row, column);
        if (!s.z) return squares_of(*pair);
        if (!below.inside) return {};
        if (set == 0) *pair = mask_pair(*pair, below, n % 8, e, of, both);
        return products_of(*pair, below.z, mean);
      },
      [&](int which, int column, float sum) {
        const int c = first_column + column;
        float *of_tile = e.partials + ((size_t)tile_number * 2 + which) * e.sets * e.channels;
        if (c < e.channels) of_tile[set * e.channels + c] = sum;
      });
}

// All tiles' sums, once the last of those with these columns is stored. The second set's channels come
// behind the first one's.
static __device__ void add_tiles(const epilogue &e, int first_column, int columns,
                                 int tile_number) {
  const int blocks = divide_up(e.channels, columns);
#pragma unroll 1
  for (int set = 0; set < e.sets; set++) {
    const int skipped = set * e.channels, left = e.channels - first_column;
    add_partials(e.partials, e.parts, tile_number, set * blocks + first_column / columns,
                 skipped + first_column, min_of(columns, left),
                 [&](int c, double sum, double second) {
                   finish_sums(e.sums[set].use, e.channels, c - skipped, sum, second);
                 });
  }
}

// Before the launch: room for the sums of so many tiles, in `blocks` blocks of columns each.
static void plan_sums(epilogue *e, int tiles, int blocks) {
  if (e->sets)
    e->partials = place_partials<float>(&e->parts, tiles, e->sets * e->channels, e->sets * blocks);
}

// -- All of it ------------------------------------------------------------------------------------

// Shared memory that finish_tile takes: the staged tile and, behind it, evaluation's scale and shift or the
// slices' sums, which need more: four floats a thread, two sums of each of two columns.
template <typename tile> static constexpr size_t bytes_to_finish() {
  return tile::ROWS * tile::STAGED_LINE * sizeof(bf16) + 4 * THREADS * sizeof(float);
}

// The result, from registers to memory. ALIGNED: e.channels is a multiple of 8.
template <bool ALIGNED, typename tile, typename function>
static __device__ void finish_tile(const tile *t, bf16 *shared, const epilogue &e, int first_column,
                                   int tile_number, const function &offset) {
  channel_normal *of = NULL;
  if (e.norm.variance) { // behind the staged tile
    of = (channel_normal *)staged_at<tile>(shared, tile::ROWS, 0);
    const int n = first_column + threadIdx.x;
    if (threadIdx.x < tile::COLUMNS)
      of[threadIdx.x] = n < e.channels ? normal_of(e.norm, n) : channel_normal();
    __syncthreads();
  }
  stage_tile<ALIGNED>(t, shared, e, first_column, of, offset);
  __syncthreads();
#pragma unroll 1
  for (int set = 0; set < e.sets; set++) {
    sum_tile<ALIGNED, tile>(shared, e, set, first_column, tile_number, offset);
    __syncthreads(); // the mask is in the staged tile, too
  }
  store_staged<ALIGNED, tile>(shared, e.channels - first_column, [&](int row) {
    const ptrdiff_t at = offset(row);
    return at < 0 ? NULL : e.to + at + first_column;
  });
  add_tiles(e, first_column, tile::COLUMNS, tile_number);
}

// A tile without a pixel: its sums are zero.
static __device__ void finish_empty_tile(const epilogue &e, int first_column, int columns,
                                         int tile_number) {
  const int which = threadIdx.x / columns, c = first_column + threadIdx.x % columns;
  for (int set = 0; set < e.sets && which < 2 && c < e.channels; set++)
    e.partials[(((size_t)tile_number * 2 + which) * e.sets + set) * e.channels + c] = 0;
  add_tiles(e, first_column, columns, tile_number);
}

} // namespace GPU

#endif
