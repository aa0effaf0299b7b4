// conv.cu - convolution in three passes on a GPU: nearly all of training's arithmetic.
//
//     output            y[b][p][q][k]   = sum over r, s, c of   x[b][h][v][c] w[k][r][s][c]
//     input gradient    dx[b][h][v][c]  = sum over r, s, k of   dy[b][p][q][k] w[k][r][s][c]
//     weight gradient   dw[k][r][s][c]  = sum over b, p, q of   dy[b][p][q][k] x[b][h][v][c]
//
// with h = stride p - padding + r and v = stride q - padding + s; what lies outside is zero.
// x, y, dx, dy, w are bf16, dw is float, sums are added up in float. device.h has the layouts.
//
// 1. The plain kernels: a thread for each element of the result, a loop for the sum.
// 2. What they waste: nearly everything. A thread reads two numbers for every multiplication, and
//    its neighbours read the same ones again. In a matrix product C = A B computed in tiles, a
//    number once loaded is used for a whole row or column of the tile; and the tensor cores, which
//    hold most of a GPU's arithmetic, do nothing but such products, 16 x 8 x 16 at a time.
// 3. So convolution is written as a matrix product. Element (m, n) of the result is
//
//                        rows m                columns n        summed over k
//     output             pixels of y           filters          taps and channels of x
//     input gradient     pixels of dx          channels of x    taps and channels of dy
//     weight gradient    filters               taps, channels   pixels of y
//
//    A and B are never built ("implicit GEMM"): for each pass a formula says where A(m, k) and
//    B(n, k) lie in x, dy or w, and tiles of them are fetched from there.
//
//          k ->                n ->            A block of 256 threads computes ROWS x COLUMNS of C,
//        +------+           +---------+        DEPTH terms of the sum at a time. Each of its 8 warps
//      m |  A   | ROWS    k |    B    | DEPTH  has a part of the tile in registers:
//        +------+           +---------+
//         DEPTH               COLUMNS            +----+----+----+----+   128 x 128: 64 x 32 each
//                                                | w0 | w1 | w2 | w3 |   128 x  64: 32 x 32
//                           STAGES tiles are     +----+----+----+----+    64 x 128: 32 x 32
//                           under way at once    | w4 | w5 | w6 | w7 |
//                                                +----+----+----+----+
//
// Nothing is added up in an order that depends on timing: no atomics, fixed partial sums.
// Checked by `make check` (tests/kernels_test.c), each kernel on each shape of the network.
#include "gpu/gpu.h"
#include "gpu/tile.h"

namespace GPU {

// -- 1. The plain kernels ---------------------------------------------------------------------------

static __global__ void plain_forward(conv_shape shape, bf16 *y, const bf16 *x, const bf16 *w) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number(), pixel = i / K;
  const int k = i % K, q = pixel % shape.out_width, p = pixel / shape.out_width % shape.out_height;
  const size_t b = pixel / shape.out_width / shape.out_height;
  if (b >= (size_t)shape.batch) return; // the last block may have threads to spare
  float sum = 0;
  for (int r = 0; r < R; r++)
    for (int s = 0; s < R; s++) {
      const int h = p * shape.stride - padding + r, v = q * shape.stride - padding + s;
      if (h < 0 || h >= shape.in_height || v < 0 || v >= shape.in_width) continue;
      const bf16 *pixel_x = x + ((b * shape.in_height + h) * shape.in_width + v) * C;
      const bf16 *tap = w + ((size_t)(k * R + r) * R + s) * C;
      for (int c = 0; c < C; c++) sum += to_float(pixel_x[c]) * to_float(tap[c]);
    }
  y[i] = to_bf16(sum);
}

static __global__ void plain_backward_input(conv_shape shape, bf16 *dx, const bf16 *dy,
                                            const bf16 *w, bool accumulate) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number(), pixel = i / C;
  const int c = i % C, v = pixel % shape.in_width, h = pixel / shape.in_width % shape.in_height;
  const size_t b = pixel / shape.in_width / shape.in_height;
  if (b >= (size_t)shape.batch) return;
  float sum = accumulate ? to_float(dx[i]) : 0;
  for (int r = 0; r < R; r++)
    for (int s = 0; s < R; s++) {
      const int down = h + padding - r, right = v + padding - s; // stride p and stride q
      if (down < 0 || down % shape.stride || right < 0 || right % shape.stride) continue;
      const int p = down / shape.stride, q = right / shape.stride;
      if (p >= shape.out_height || q >= shape.out_width) continue;
      const bf16 *pixel_dy = dy + ((b * shape.out_height + p) * shape.out_width + q) * K;
      const bf16 *tap = w + (size_t)(r * R + s) * C + c;
      for (int k = 0; k < K; k++)
        sum += to_float(pixel_dy[k]) * to_float(tap[(size_t)k * R * R * C]);
    }
  dx[i] = to_bf16(sum);
}

static __global__ void plain_backward_weight(conv_shape shape, float *dw, const bf16 *dy,
                                             const bf16 *x) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number();
  const int c = i % C, s = i / C % R, r = i / C / R % R;
  const size_t k = i / C / R / R;
  if (k >= (size_t)K) return;
  float sum = 0;
  for (int b = 0; b < shape.batch; b++)
    for (int p = 0; p < shape.out_height; p++)
      for (int q = 0; q < shape.out_width; q++) {
        const int h = p * shape.stride - padding + r, v = q * shape.stride - padding + s;
        if (h < 0 || h >= shape.in_height || v < 0 || v >= shape.in_width) continue;
        const size_t out = ((size_t)b * shape.out_height + p) * shape.out_width + q;
        const size_t in = ((size_t)b * shape.in_height + h) * shape.in_width + v;
        sum += to_float(dy[out * K + k]) * to_float(x[in * C + c]);
      }
  dw[i] = sum;
}

// sums: [2][channels], of y and y * y, y: [pixels][channels]. A block a channel: each thread takes
// every THREADS-th pixel, then half of the threads add the other half's sums to theirs, and so on.
static __global__ void plain_sums(double *sums, const bf16 *y, int pixels, int channels) {
  __shared__ double sum[THREADS], square[THREADS];
  const int c = blockIdx.x, i = threadIdx.x;
  sum[i] = square[i] = 0;
  for (int pixel = i; pixel < pixels; pixel += THREADS) {
    const double value = to_float(y[(size_t)pixel * channels + c]);
    sum[i] += value;
    square[i] += value * value;
  }
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads(); // all sums of the round before are there
    if (i < half) {
      sum[i] += sum[i + half];
      square[i] += square[i + half];
    }
  }
  if (i == 0) {
    sums[c] = sum[0];
    sums[channels + c] = square[0];
  }
}

static size_t in_count(const conv_shape *s) {
  return (size_t)s->batch * s->in_height * s->in_width * s->in_channels;
}
static size_t out_count(const conv_shape *s) {
  return (size_t)s->batch * s->out_height * s->out_width * s->out_channels;
}

static void conv_forward_plain(const conv_shape *s, void *y, const void *x, const void *w,
                               double *sums) {
  launch("plain_forward", plain_forward, {blocks_for(out_count(s)), THREADS, 0}, *s, y, x, w);
  if (!sums) return;
  const int pixels = s->batch * s->out_height * s->out_width;
  launch("plain_sums", plain_sums, {dim3(s->out_channels), dim3(THREADS), 0}, sums, y, pixels,
         s->out_channels);
}

static void conv_backward_input_plain(const conv_shape *s, void *dx, const void *dy, const void *w,
                                      bool accumulate) {
  launch("plain_backward_input", plain_backward_input, {blocks_for(in_count(s)), THREADS, 0}, *s,
         dx, dy, w, accumulate);
}

static void conv_backward_weight_plain(const conv_shape *s, real *dw, const void *dy,
                                       const void *x) {
  const size_t count = (size_t)s->out_channels * s->kernel * s->kernel * s->in_channels;
  launch("plain_backward_weight", plain_backward_weight, {blocks_for(count), THREADS, 0}, *s, dw,
         dy, x);
}

// -- 2. A tile of a matrix product --------------------------------------------------------------------

enum {
  DEPTH = 32, // terms of the sums that a stage holds
  STAGES = 3, // tiles on their way from memory or in use
  WARPS = THREADS / 32,
  WARP_COLUMNS = 32, // a warp's part of the tile
};

// A tile in shared memory is a number of lines of LINE bf16, each in pieces of 16 bytes, which are
// what cp.async writes and ldmatrix reads. ldmatrix takes the same piece of 8 lines at once; shared
// memory delivers 128 bytes at a time, one from each of 32 banks of 4. Were the pieces of a line in
// their natural order, those 8 would lie in the same banks and come one after another. So they are
// exchanged within a line, differently in each: 8 lines, 8 different groups of banks.
template <int LINE> static __device__ bf16 *piece_of(bf16 *tile, int line, int piece) {
  const int key = LINE == 32 ? line / 2 % 4 : line % 8; // 64 bytes: two lines span all banks
  return tile + line * LINE + (piece ^ key) * EIGHT;
}

// Fills a tile. A thread has one piece in each of COUNT lines, always the same piece. Where element i
// of a line lies, or NULL for zero, says address(number, line, i), number counting the thread's
// lines. WIDE: eight elements, from each eighth on, lie together, at a multiple of 16 bytes.
template <int LINES, int LINE, bool WIDE, typename function>
static __device__ void load_tile(bf16 *tile, const void *somewhere, const function &address) {
  enum { PIECES = LINE / EIGHT, AT_ONCE = THREADS / PIECES, COUNT = LINES / AT_ONCE };
  const int piece = threadIdx.x % PIECES;
#pragma unroll
  for (int number = 0; number < COUNT; number++) {
    const int line = threadIdx.x / PIECES + number * AT_ONCE;
    bf16 *to = piece_of<LINE>(tile, line, piece);
    if (WIDE) {
      const bf16 *from = address(number, line, piece * EIGHT);
      copy_async(to, from ? from : somewhere, from != NULL);
    } else {
      for (int e = 0; e < EIGHT; e++) {
        const bf16 *from = address(number, line, piece * EIGHT + e);
        to[e].bits = from ? from->bits : 0;
      }
    }
  }
}

// What a block and a warp compute, as a type so that all sizes are constants. A_ALONG_K: a line of
// A's tile is a row, [ROWS][DEPTH]; else it is a term of the sum, [DEPTH][ROWS]. B likewise.
template <int ROWS_, int COLUMNS_, bool A_ALONG_K_, bool B_ALONG_K_> struct tile_of {
  enum {
    ROWS = ROWS_,
    COLUMNS = COLUMNS_,
    A_ALONG_K = A_ALONG_K_,
    B_ALONG_K = B_ALONG_K_,
    WARPS_ACROSS = COLUMNS / WARP_COLUMNS,
    WARP_ROWS = ROWS * WARPS_ACROSS / WARPS,
    M_STEPS = WARP_ROWS / 16, // products of 16 x 8 that make a warp's part
    N_STEPS = WARP_COLUMNS / 8,
    A_LINES = A_ALONG_K ? ROWS : DEPTH,
    A_LINE = A_ALONG_K ? DEPTH : ROWS,
    B_LINES = B_ALONG_K ? COLUMNS : DEPTH,
    B_LINE = B_ALONG_K ? DEPTH : COLUMNS,
    STAGE = (ROWS + COLUMNS) * DEPTH, // bf16 numbers
  };
  float sum[M_STEPS][N_STEPS][4]; // multiply_add's c, for each of the products

  // The first row and column of this thread's warp in the tile.
  static __device__ int warp_row() { return threadIdx.x / 32 / WARPS_ACROSS * WARP_ROWS; }
  static __device__ int warp_column() { return threadIdx.x / 32 % WARPS_ACROSS * WARP_COLUMNS; }
};

// 16 rows of A by 16 terms, as multiply_add wants them: four 8 x 8 matrices, of which ldmatrix has
// each lane name one line of one. Their order is rows 0-7 and 8-15 of terms 0-7, then of 8-15.
template <typename tile>
static __device__ void load_a(uint32_t a[4], bf16 *shared, int row, int term) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  const int m = row + matrix % 2 * 8, k = term + matrix / 2 * 8;
  if (tile::A_ALONG_K)
    load_matrices(a, piece_of<tile::A_LINE>(shared, m + line, k / EIGHT));
  else
    load_matrices_transposed(a, piece_of<tile::A_LINE>(shared, k + line, m / EIGHT));
}

// 16 terms by 16 columns of B, for two products side by side: b[0], b[1] and b[2], b[3].
template <typename tile>
static __device__ void load_b(uint32_t b[4], bf16 *shared, int column, int term) {
  const int lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
  const int n = column + matrix / 2 * 8, k = term + matrix % 2 * 8;
  if (tile::B_ALONG_K)
    load_matrices(b, piece_of<tile::B_LINE>(shared, n + line, k / EIGHT));
  else
    load_matrices_transposed(b, piece_of<tile::B_LINE>(shared, k + line, n / EIGHT));
}

// sum += A B for one stage.
template <typename tile>
static __device__ void multiply_stage(tile *t, bf16 *a_tile, bf16 *b_tile) {
#pragma unroll
  for (int term = 0; term < DEPTH; term += 16) {
    uint32_t a[tile::M_STEPS][4], b[tile::N_STEPS / 2][4];
#pragma unroll
    for (int i = 0; i < tile::M_STEPS; i++)
      load_a<tile>(a[i], a_tile, tile::warp_row() + i * 16, term);
#pragma unroll
    for (int j = 0; j < tile::N_STEPS / 2; j++)
      load_b<tile>(b[j], b_tile, tile::warp_column() + j * 16, term);
#pragma unroll
    for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
      for (int j = 0; j < tile::N_STEPS; j++)
        multiply_add(t->sum[i][j], a[i], b[j / 2] + j % 2 * 2);
  }
}

// The sum over `steps` stages. load(a_tile, b_tile, step) begins to fill a stage. While one stage is
// multiplied, STAGES - 1 are on their way, so that memory's latency is hidden behind arithmetic.
template <typename tile, typename function>
static __device__ void multiply_all(tile *t, bf16 *shared, int steps, const function &load) {
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
    for (int j = 0; j < tile::N_STEPS; j++)
      t->sum[i][j][0] = t->sum[i][j][1] = t->sum[i][j][2] = t->sum[i][j][3] = 0;
  for (int step = 0; step < STAGES - 1; step++) {
    bf16 *stage = shared + step * tile::STAGE;
    if (step < steps) load(stage, stage + tile::ROWS * DEPTH, step);
    commit_copies();
  }
  for (int step = 0; step < steps; step++) {
    wait_for_copies<STAGES - 2>(); // this thread's share of stage `step` is there,
    __syncthreads();               // and everyone's; and all are done with the stage before it,
    const int next = step + STAGES - 1;
    bf16 *free_stage = shared + next % STAGES * tile::STAGE; // which is filled again
    if (next < steps) load(free_stage, free_stage + tile::ROWS * DEPTH, next);
    commit_copies(); // an empty group counts as well: the wait above always means the same
    bf16 *stage = shared + step % STAGES * tile::STAGE;
    multiply_stage(t, stage, stage + tile::ROWS * DEPTH);
  }
  __syncthreads(); // shared memory may be used for something else
}

// Division by a number known before the launch: a multiplication and a shift instead of some twenty
// instructions. Exact for 0 <= n < 2^31. Granlund and Montgomery, "Division by invariant integers
// using multiplication", 1994: 2^shift / d rounded up, with 31 bits more than d has.
typedef struct {
  uint32_t multiplier;
  int shift;
} divisor;

static divisor make_divisor(int d) {
  int bits = 0;
  if (d == 0) d = 1; // a class without pixels or taps divides nothing
  while (1ll << bits < d) bits++;
  return {.multiplier = (uint32_t)(((1ull << (31 + bits)) + d - 1) / d), .shift = 31 + bits};
}

static __device__ int divide(int n, divisor d) {
  return (int)((uint64_t)n * d.multiplier >> d.shift);
}

// -- 3. Output and input gradient ---------------------------------------------------------------------

// Both collect, for each pixel of `to`, taps of `from`; along one axis (rows, or columns), number i
// of the pixels that are computed is pixel first + spacing i of `to`. Its tap number j meets pixel
// scale i + offset + direction j of `from`, with row (or column) first_tap + tap_spacing j of the
// filter.
//
// The input gradient of stride 2: stride p = h + padding - r needs h + padding - r to be even, so
// rows with even h meet other taps than those with odd h. Each of the four classes of pixels (rows
// and columns, even and odd) is a product of its own, with 1, 2, 2 or 4 taps, none wasted.
typedef struct {
  int first, spacing, count;
  int scale, offset, direction;
  int first_tap, tap_spacing, taps;
} axis;

typedef struct {
  axis rows, columns;
  divisor by_columns, by_rows; // the counts of `columns` and `rows`
  divisor by_column_taps;
  int pixels; // rows of the product: batch * rows.count * columns.count
  int terms;  // taps * from_channels
} pixel_class;

typedef struct {
  bf16 *to;         // [batch][to_height][to_width][to_channels]
  const bf16 *from; // [batch][from_height][from_width][from_channels]
  const bf16 *w;    // [Cout][kernel][kernel][Cin]
  int to_height, to_width, to_channels;
  int from_height, from_width, from_channels;
  int kernel;
  bool accumulate; // to += instead of to =
  divisor by_from_channels;
  float *partials; // [row tiles][2][to_channels] sums of the tiles' columns, or NULL
  pixel_class classes[4];
} gather;

// Which image, row and column number m of a class is, and its place in `to`.
typedef struct {
  int image, row, column; // numbers along the axes
} place;

static __device__ place place_of(const pixel_class *k, int m) {
  const int line = divide(m, k->by_columns), image = divide(line, k->by_rows);
  return {image, line - image * k->rows.count, m - line * k->columns.count};
}

static __device__ size_t offset_in_to(const gather *g, const pixel_class *k, place at) {
  const int h = k->rows.first + k->rows.spacing * at.row;
  const int v = k->columns.first + k->columns.spacing * at.column;
  return ((size_t)(at.image * g->to_height + h) * g->to_width + v) * g->to_channels;
}

// Term number k of the sum: which tap along each axis, and which channel of `from`.
typedef struct {
  int row_tap, column_tap, channel;
} term;

static __device__ term term_of(const gather *g, const pixel_class *k, int number) {
  const int tap = divide(number, g->by_from_channels), row = divide(tap, k->by_column_taps);
  return {row, tap - row * k->columns.taps, number - tap * g->from_channels};
}

// For the pixel of row m: its image, and the pixel of `from` that its first tap meets. What does not
// depend on the term is worth finding once, before the loop.
typedef struct {
  const bf16 *image;
  int h, v;
} corner;

static __device__ corner corner_of(const gather *g, const pixel_class *k, int m) {
  enum { OUTSIDE = -(1 << 20) }; // whatever the tap: a row beyond the last is zero
  if (m >= k->pixels) return {g->from, OUTSIDE, OUTSIDE};
  const place at = place_of(k, m);
  return {.image = g->from + (size_t)at.image * g->from_height * g->from_width * g->from_channels,
          .h = k->rows.scale * at.row + k->rows.offset,
          .v = k->columns.scale * at.column + k->columns.offset};
}

// A(m, k), lines along k.
static __device__ const bf16 *from_address(const gather *g, const pixel_class *k, const corner *at,
                                           int number) {
  const term t = term_of(g, k, number);
  const int h = at->h + k->rows.direction * t.row_tap;
  const int v = at->v + k->columns.direction * t.column_tap;
  if (number >= k->terms || h < 0 || h >= g->from_height || v < 0 || v >= g->from_width)
    return NULL;
  return at->image + ((size_t)h * g->from_width + v) * g->from_channels + t.channel;
}

// B(n, k). Forward, a filter's taps and channels lie in w as they are counted here: lines along k.
// Backward, channel n of x has its neighbours beside it for each tap and filter: lines along n.
template <bool BACKWARD>
static __device__ const bf16 *weight_address(const gather *g, const pixel_class *k, int n,
                                             int number) {
  if (n >= g->to_channels || number >= k->terms) return NULL;
  if (!BACKWARD) return g->w + (size_t)n * k->terms + number;
  const term t = term_of(g, k, number);
  const int r = k->rows.first_tap + k->rows.tap_spacing * t.row_tap;
  const int s = k->columns.first_tap + k->columns.tap_spacing * t.column_tap;
  return g->w + ((size_t)(t.channel * g->kernel + r) * g->kernel + s) * g->to_channels + n;
}

// The warps' sums, as bf16, to staged: [ROWS][COLUMNS + EIGHT], a padded tile in shared memory, from
// where they can be stored 16 bytes at a time. The padding keeps the rows' banks apart.
template <typename tile>
static __device__ void stage_tile(const tile *t, bf16 *staged, const gather *g,
                                  const pixel_class *k, int first_row, int first_column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
    for (int j = 0; j < tile::N_STEPS; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = tile::warp_row() + i * 16 + half * 8 + lane / 4;
        const int column = tile::warp_column() + j * 8 + lane % 4 * 2;
        float first = t->sum[i][j][half * 2], second = t->sum[i][j][half * 2 + 1];
        const int m = first_row + row, n = first_column + column;
        if (g->accumulate && m < k->pixels && n < g->to_channels) {
          const bf16 *old = g->to + offset_in_to(g, k, place_of(k, m)) + n;
          first += to_float(old[0]);
          if (n + 1 < g->to_channels) second += to_float(old[1]);
        }
        *(uint32_t *)&staged[row * (tile::COLUMNS + EIGHT) + column] = to_pair(first, second);
      }
}

// From there to memory.
template <typename tile>
static __device__ void store_tile(const bf16 *staged, const gather *g, const pixel_class *k,
                                  int first_row, int first_column) {
  enum { PIECES = tile::COLUMNS / EIGHT };
  for (int i = threadIdx.x; i < tile::ROWS * PIECES; i += THREADS) {
    const int m = first_row + i / PIECES, n = first_column + i % PIECES * EIGHT;
    if (m >= k->pixels || n >= g->to_channels) continue;
    const bf16 *piece = &staged[i / PIECES * (tile::COLUMNS + EIGHT) + i % PIECES * EIGHT];
    bf16 *to = g->to + offset_in_to(g, k, place_of(k, m)) + n;
    if (g->to_channels % EIGHT == 0)
      *(uint4 *)to = *(const uint4 *)piece;
    else
      for (int e = 0; e < EIGHT && n + e < g->to_channels; e++) to[e] = piece[e];
  }
}

// The sums of a tile's columns and of their squares, for batch normalisation, which would otherwise
// have to read all of y again. A thread adds up two columns in a slice of the rows; one of the
// slices' threads adds up those. Rows beyond the last pixel hold zeroes.
template <typename tile>
static __device__ void sum_columns(const bf16 *staged, float *slices, const gather *g,
                                   int first_column) {
  enum { COLUMNS = tile::COLUMNS, SLICES = THREADS / (COLUMNS / 2), ROWS = tile::ROWS / SLICES };
  const int slice = threadIdx.x / (COLUMNS / 2), column = threadIdx.x % (COLUMNS / 2) * 2;
  float sum[2] = {0, 0}, square[2] = {0, 0};
  for (int row = slice * ROWS; row < (slice + 1) * ROWS; row++) {
    const uint32_t pair = *(const uint32_t *)&staged[row * (COLUMNS + EIGHT) + column];
    const float first = first_of(pair), second = second_of(pair);
    sum[0] += first;
    sum[1] += second;
    square[0] += first * first;
    square[1] += second * second;
  }
  for (int i = 0; i < 2; i++) { // slices: [SLICES][2][COLUMNS]
    slices[(slice * 2 + 0) * COLUMNS + column + i] = sum[i];
    slices[(slice * 2 + 1) * COLUMNS + column + i] = square[i];
  }
  __syncthreads();
  const int which = threadIdx.x / COLUMNS, n = threadIdx.x % COLUMNS;
  if (which > 1 || first_column + n >= g->to_channels) return;
  float total = 0;
  for (int i = 0; i < SLICES; i++) total += slices[(i * 2 + which) * COLUMNS + n];
  g->partials[((size_t)blockIdx.x * 2 + which) * g->to_channels + first_column + n] = total;
}

// Block (x, y, z): row tile x, column tile y, class z.
template <int ROWS, int COLUMNS, bool BACKWARD, bool WIDE>
static __global__ void __launch_bounds__(THREADS, 2) gather_tile(gather g) {
  typedef tile_of<ROWS, COLUMNS, true, !BACKWARD> tile;
  enum { LINES = THREADS / (DEPTH / EIGHT), COUNT = ROWS / LINES }; // of A, at once and of a thread
  DYNAMIC_SHARED(bytes);
  bf16 *shared = (bf16 *)bytes;
  const pixel_class *k = &g.classes[blockIdx.z];
  const int first_row = blockIdx.x * ROWS, first_column = blockIdx.y * COLUMNS;
  if (first_row >= k->pixels || (g.accumulate && k->terms == 0)) return;
  corner at[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    at[i] = corner_of(&g, k, first_row + threadIdx.x / (DEPTH / EIGHT) + i * LINES);
  tile t;
  multiply_all(&t, shared, divide_up(k->terms, DEPTH), [&](bf16 *a, bf16 *b, int step) {
    const int first = step * DEPTH;
    load_tile<tile::A_LINES, tile::A_LINE, WIDE>(a, g.from, [&](int number, int, int i) {
      return from_address(&g, k, &at[number], first + i);
    });
    load_tile<tile::B_LINES, tile::B_LINE, WIDE>(b, g.w, [&](int, int line, int i) {
      const int n = BACKWARD ? i : line, number = BACKWARD ? line : i;
      return weight_address<BACKWARD>(&g, k, first_column + n, first + number);
    });
  });
  stage_tile(&t, shared, &g, k, first_row, first_column);
  __syncthreads();
  store_tile<tile>(shared, &g, k, first_row, first_column);
  if (!g.partials) return;
  sum_columns<tile>(shared, (float *)(shared + ROWS * (COLUMNS + EIGHT)), &g, first_column);
}

// sums[i] = the sum over `tiles` of partials[tile][i], i < count, in double, in a fixed order: a
// thread every SLICES-th tile, then one the slices.
enum { SLICES = THREADS / 32 };
static __global__ void add_partial_sums(double *sums, const float *partials, int tiles, int count) {
  __shared__ double slices[SLICES][32];
  const int lane = threadIdx.x % 32, slice = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  double sum = 0;
  if (i < count)
    for (int tile = slice; tile < tiles; tile += SLICES) sum += partials[(size_t)tile * count + i];
  slices[slice][lane] = sum;
  __syncthreads();
  if (slice > 0 || i >= count) return;
  for (int other = 1; other < SLICES; other++) sum += slices[other][lane];
  sums[i] = sum;
}

static axis forward_axis(int stride, int kernel, int size) {
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
static axis backward_axis(int stride, int kernel, int size, int parity) {
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

static pixel_class make_class(int batch, int from_channels, axis rows, axis columns) {
  return {.rows = rows,
          .columns = columns,
          .by_columns = make_divisor(columns.count),
          .by_rows = make_divisor(rows.count),
          .by_column_taps = make_divisor(columns.taps),
          .pixels = batch * rows.count * columns.count,
          .terms = rows.taps * columns.taps * from_channels};
}

template <int ROWS, int COLUMNS, bool BACKWARD, bool WIDE>
static void launch_gather(const gather *g, int class_count, double *sums) {
  gather with_sums = *g;
  const int tiles = divide_up(g->classes[0].pixels, ROWS); // the first class has the most pixels
  const size_t stages = STAGES * (ROWS + COLUMNS) * DEPTH * sizeof(bf16);
  if (sums)
    with_sums.partials = (float *)workspace((size_t)tiles * 2 * g->to_channels * sizeof(float));
  const dim3 grid(tiles, divide_up(g->to_channels, COLUMNS), class_count);
  launch(BACKWARD ? "gather_tile (input gradient)" : "gather_tile (output)",
         gather_tile<ROWS, COLUMNS, BACKWARD, WIDE>, {grid, dim3(THREADS), stages}, with_sums);
  if (sums)
    launch("add_partial_sums", add_partial_sums,
           {dim3(divide_up(2 * g->to_channels, 32)), dim3(THREADS), 0}, sums, with_sums.partials,
           tiles, 2 * g->to_channels);
}

// The larger tile does more arithmetic a byte. But 4 x 4 pixels of 128 images in 512 channels are
// only 64 such tiles: half of a large GPU would have nothing to do.
template <bool BACKWARD> static void choose_gather(const gather *g, int classes, double *sums) {
  if (g->from_channels % EIGHT || g->to_channels % EIGHT)
    launch_gather<128, 64, BACKWARD, false>(g, classes, sums);
  else if (g->to_channels >= 128 && g->to_height * g->to_width > 16)
    launch_gather<128, 128, BACKWARD, true>(g, classes, sums);
  else
    launch_gather<128, 64, BACKWARD, true>(g, classes, sums);
}

static void conv_forward(const conv_shape *s, void *y, const void *x, const void *w, double *sums) {
  gather g = {};
  g.to = (bf16 *)y, g.from = (const bf16 *)x, g.w = (const bf16 *)w;
  g.to_height = s->out_height, g.to_width = s->out_width, g.to_channels = s->out_channels;
  g.from_height = s->in_height, g.from_width = s->in_width, g.from_channels = s->in_channels;
  g.kernel = s->kernel;
  g.by_from_channels = make_divisor(g.from_channels);
  g.classes[0] =
      make_class(s->batch, g.from_channels, forward_axis(s->stride, s->kernel, s->out_height),
                 forward_axis(s->stride, s->kernel, s->out_width));
  choose_gather<false>(&g, 1, sums);
}

static void conv_backward_input(const conv_shape *s, void *dx, const void *dy, const void *w,
                                bool accumulate) {
  const int classes = s->stride * s->stride;
  gather g = {};
  g.to = (bf16 *)dx, g.from = (const bf16 *)dy, g.w = (const bf16 *)w;
  g.to_height = s->in_height, g.to_width = s->in_width, g.to_channels = s->in_channels;
  g.from_height = s->out_height, g.from_width = s->out_width, g.from_channels = s->out_channels;
  g.kernel = s->kernel;
  g.accumulate = accumulate;
  g.by_from_channels = make_divisor(g.from_channels);
  for (int i = 0; i < classes; i++)
    g.classes[i] = make_class(s->batch, g.from_channels,
                              backward_axis(s->stride, s->kernel, s->in_height, i / s->stride),
                              backward_axis(s->stride, s->kernel, s->in_width, i % s->stride));
  choose_gather<true>(&g, classes, NULL);
}

// -- 4. Weight gradient -------------------------------------------------------------------------------

// Its result is small and its sum is long: 64 x 576 numbers of 131,072 terms each in the first stage
// of the network. So the sum is cut into parts for as many blocks as a GPU has room for, and the
// parts are added by a second kernel, in order.
typedef struct {
  float *to;      // [parts][out_channels][pitch]: dw itself, or the workspace
  const bf16 *dy; // [pixels][out_channels]
  const bf16 *x;  // [batch][in_height][in_width][in_channels]
  conv_shape shape;
  int pixels;     // batch * out_height * out_width: the terms of the sum
  int columns;    // kernel * kernel * in_channels
  int pitch;      // columns, rounded up to an even number
  int part_steps; // stages of DEPTH pixels in a part
  divisor by_in_channels, by_kernel, by_out_width, by_out_height;
} weight_pass;

// B(n, k): the pixel of x that output pixel k meets in tap and channel n; lines along n.
static __device__ const bf16 *patch_address(const weight_pass *o, int n, int pixel) {
  const conv_shape *s = &o->shape;
  if (n >= o->columns || pixel >= o->pixels) return NULL;
  const int line = divide(pixel, o->by_out_width), image = divide(line, o->by_out_height);
  const int p = line - image * s->out_height, q = pixel - line * s->out_width;
  const int tap = divide(n, o->by_in_channels), r = divide(tap, o->by_kernel);
  const int h = p * s->stride - s->kernel / 2 + r;
  const int v = q * s->stride - s->kernel / 2 + tap - r * s->kernel;
  if (h < 0 || h >= s->in_height || v < 0 || v >= s->in_width) return NULL;
  return o->x + ((size_t)(image * s->in_height + h) * s->in_width + v) * s->in_channels +
         (n - tap * s->in_channels);
}

template <typename tile>
static __device__ void store_weights(const tile *t, const weight_pass *o, int first_row,
                                     int first_column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
    for (int j = 0; j < tile::N_STEPS; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int m = first_row + tile::warp_row() + i * 16 + half * 8 + lane / 4;
        const int n = first_column + tile::warp_column() + j * 8 + lane % 4 * 2;
        if (m >= o->shape.out_channels || n >= o->pitch) continue;
        float2 pair;
        pair.x = t->sum[i][j][half * 2];
        pair.y = t->sum[i][j][half * 2 + 1];
        *(float2 *)&o->to[((size_t)blockIdx.z * o->shape.out_channels + m) * o->pitch + n] = pair;
      }
}

// Block (x, y, z): column tile x, row tile y, part z of the sum.
template <int ROWS, int COLUMNS, bool WIDE>
static __global__ void __launch_bounds__(THREADS, 2) weight_tile(weight_pass o) {
  typedef tile_of<ROWS, COLUMNS, false, false> tile;
  DYNAMIC_SHARED(bytes);
  const int first_row = blockIdx.y * ROWS, first_column = blockIdx.x * COLUMNS;
  const int first_step = blockIdx.z * o.part_steps, filters = o.shape.out_channels;
  const int steps = min_of(o.part_steps, divide_up(o.pixels, DEPTH) - first_step);
  tile t;
  multiply_all(&t, (bf16 *)bytes, steps, [&](bf16 *a, bf16 *b, int step) {
    const int first = (first_step + step) * DEPTH;
    load_tile<tile::A_LINES, tile::A_LINE, WIDE>(a, o.dy, [&](int, int line, int i) {
      const int pixel = first + line, filter = first_row + i;
      const bool inside = pixel < o.pixels && filter < filters;
      return inside ? o.dy + (size_t)pixel * filters + filter : NULL;
    });
    load_tile<tile::B_LINES, tile::B_LINE, WIDE>(b, o.x, [&](int, int line, int i) {
      return patch_address(&o, first_column + i, first + line);
    });
  });
  store_weights(&t, &o, first_row, first_column);
}

// dw[row][column] = the sum over parts of partials[part][row][column], in order.
static __global__ void add_parts(float *dw, const float *partials, int parts, int rows, int columns,
                                 int pitch) {
  const size_t i = thread_number(), row = i / columns, column = i % columns;
  if (row >= (size_t)rows) return;
  float sum = 0;
  for (int part = 0; part < parts; part++)
    sum += partials[((size_t)part * rows + row) * pitch + column];
  dw[i] = sum;
}

template <int ROWS, int COLUMNS, bool WIDE>
static void launch_weight_pass(weight_pass *o, real *dw) {
  enum { BLOCKS = 256, LEAST_STEPS = 8 }; // about two blocks for each of 132 processors
  const int rows = divide_up(o->shape.out_channels, ROWS), across = divide_up(o->columns, COLUMNS);
  const int steps = divide_up(o->pixels, DEPTH);
  const int wanted = min_of(divide_up(BLOCKS, rows * across), divide_up(steps, LEAST_STEPS));
  o->part_steps = divide_up(steps, wanted);
  const int parts = divide_up(steps, o->part_steps);
  const size_t count = (size_t)o->shape.out_channels * o->pitch;
  const bool direct = parts == 1 && o->pitch == o->columns;
  o->to = direct ? dw : (float *)workspace(parts * count * sizeof(float));
  launch(
      "weight_tile", weight_tile<ROWS, COLUMNS, WIDE>,
      {dim3(across, rows, parts), dim3(THREADS), STAGES * (ROWS + COLUMNS) * DEPTH * sizeof(bf16)},
      *o);
  if (!direct)
    launch("add_parts", add_parts,
           {blocks_for((size_t)o->shape.out_channels * o->columns), THREADS, 0}, dw, o->to, parts,
           o->shape.out_channels, o->columns, o->pitch);
}

static void conv_backward_weight(const conv_shape *s, real *dw, const void *dy, const void *x) {
  weight_pass o = {};
  o.dy = (const bf16 *)dy, o.x = (const bf16 *)x, o.shape = *s;
  o.pixels = s->batch * s->out_height * s->out_width;
  o.columns = s->kernel * s->kernel * s->in_channels;
  o.pitch = (o.columns + 1) / 2 * 2;
  o.by_in_channels = make_divisor(s->in_channels);
  o.by_kernel = make_divisor(s->kernel);
  o.by_out_width = make_divisor(s->out_width);
  o.by_out_height = make_divisor(s->out_height);
  if (s->in_channels % EIGHT || s->out_channels % EIGHT)
    launch_weight_pass<64, 128, false>(&o, dw);
  else if (s->out_channels >= 128)
    launch_weight_pass<128, 128, true>(&o, dw);
  else
    launch_weight_pass<64, 128, true>(&o, dw);
}

void fill_conv(device *d, bool plain) {
  d->conv_forward = plain ? conv_forward_plain : conv_forward;
  d->conv_backward_input = plain ? conv_backward_input_plain : conv_backward_input;
  d->conv_backward_weight = plain ? conv_backward_weight_plain : conv_backward_weight;
}

} // namespace GPU
