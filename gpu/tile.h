// gpu/tile.h - a tile of a matrix product on tensor cores.
//
//     C[m][n] = sum over k of A[m][k] B[n][k]            A, B: bf16, C: float
//
// This file knows nothing of convolution. Who uses it says where A[m][k] and B[n][k] lie in
// memory.
//
// A *tensor core* is the part of a GPU's processor that multiplies small matrices: 16 x 16 by 16 x
// 8 bf16 numbers with one instruction of a warp. Products are exact. Sums are floats, but bits
// beyond a float's are cut off, not rounded (Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior
// of NVIDIA tensor cores", 2021). Most of a GPU's arithmetic is there: in a clock, the tensor cores
// of one of an A100's processors do 1,024 multiply-adds, its other units 64 in float. To keep them
// busy is a question of memory, at three distances.
//
// 1. The GPU's memory. A block of 256 threads computes a tile of C, ROWS x COLUMNS, DEPTH terms of
//    the sum at a time. A number of A, once loaded, is used for all COLUMNS of the tile, one of B
//    for all ROWS. Each of the block's 8 warps has a part of C in registers:
//
//          k ->                n ->
//        +------+           +---------+           +----+----+----+----+   128 x 128: 64 x 32 each
//      m |  A   | ROWS    k |    B    | DEPTH     | w0 | w1 | w2 | w3 |   128 x  64: 32 x 32 *
//        +------+           +---------+           +----+----+----+----+    64 x 128: 32 x 32
//         DEPTH               COLUMNS             | w4 | w5 | w6 | w7 |
//                                                 +----+----+----+----+   * 2 warps across, 4 down
//
// 2. Shared memory. What A and B have for DEPTH terms, a *stage* (not one of the network's four
//    stages), is copied there by *cp.async*, an instruction that moves 16 bytes without a register
//    between and without waiting. STAGES stages are in use or under way at once, so that the
//    products of one hide the way of the others.
// 3. Registers. *ldmatrix* loads what the tensor cores take from shared memory.
//
// Templates make all sizes constants; gpu.h explains them. Where A and B lie, a caller says with a
// *callable*: an expression that makes a function, which may use the variables around it,
//
//     [&](int row, int column) { return a + row * width + column; }
//
// and which can be handed on like a value. Each has a type of its own, without a name, so what
// takes one is a template: `template <typename function> .. (const function &address)`. The
// compiler then knows what it calls and puts it in place. No call is left.
//
// Checked by `make check`, through conv.cu's kernels.
#ifndef GPU_TILE_H
#define GPU_TILE_H

#include "gpu/gpu.h"

namespace GPU {

// -- The instructions -------------------------------------------------------------------------------
//
// cp.async and mma on bf16 need an sm_80 (ldmatrix an sm_75): an A100, an RTX 30, or newer. C++ has
// no words for them, so each is a line of PTX, the GPU's portable assembler. On the CPU, simt/ has
// functions of the same names.
//
// An 8 x 8 matrix of bf16 lies in a warp's registers like this: lane 4 r + c / 2 holds elements c
// and c + 1 of row r as a pair. Everything is made of such matrices. The numbers are lanes:
//
//     column   0  1   2  3   4  5   6  7
//     row 0   |  0  |  1  |  2  |  3  |
//     row 1   |  4  |  5  |  6  |  7  |
//      ..
//     row 7   | 28  | 29  | 30  | 31  |
//
// mma_16x8x16: c += a b, with a 16 x 16, b 16 x 8, c 16 x 8. a consists of four such matrices, b of
// two that are transposed, c of two whose pairs are two floats:
//
//     a      term 0-7   term 8-15      b       column 0   1  ..  7        c     column 0 1  2 3 .. 6 7
//           +----------+----------+           +-------------------+            +--------------------+
//     row   |   a[0]   |   a[2]   |   term 0  |        0   4     28 |    row 0 |      0    1      3  |
//     0-7   | as above | as above |        1  |        0   4     28 |    ..    |    c[0], c[1]       |
//           +----------+----------+        2  |  b[0]  1   5     29 |        7 |     28   29     31  |
//     row   |   a[1]   |   a[3]   |       ..  |        3   7     31 |          +--------------------+
//     8-15  | as above | as above |           +-------------------+      row 8 |      0    1      3  |
//           +----------+----------+   term 8  |  b[1]  0   4     28 |    ..    |    c[2], c[3]       |
//                                         ..  |        3   7     31 |       15 |     28   29     31  |
//                                             +-------------------+            +--------------------+
//
// PTX ISA, "mma.m16n8k16", "ldmatrix", "cp.async".

#ifdef __CUDACC__

// Nobody launches a kernel that uses these in code for an older GPU: gpu.cu takes the plain convolution.
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 800
#define SM_80(...) __trap()
#else
#define SM_80(...) asm volatile(__VA_ARGS__)
#endif

// Begins to copy 16 bytes from global to shared memory, or 16 zeroes where !valid; both addresses
// are multiples of 16. This thread sees them after wait_for_copies, others after a barrier behind
// that.
static inline __device__ void copy_async(void *shared, const void *global, bool valid) {
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
  SM_80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0)
        : "memory");
}
// Makes a group of the copies that this thread has begun since the last group.
static inline __device__ void commit_copies() {
  SM_80("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the newest `groups_left` groups of this thread are still under way.
template <int groups_left> static inline __device__ void wait_for_copies() {
  SM_80("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

// Loads four 8 x 8 matrices from shared memory. Lane l names row l % 8 of matrix l / 8, which is 16
// bytes at any multiple of 16; to[j] becomes this lane's pair of matrix j, transposed in the second
// function.
static inline __device__ void load_matrices(uint32_t to[4], const void *row) {
  const uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
  SM_80("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "r"(from)
        : "memory");
}
static inline __device__ void load_matrices_transposed(uint32_t to[4], const void *row) {
  const uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
  SM_80("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "r"(from)
        : "memory");
}

// c += a b for a warp, spread over its lanes as drawn above.
static inline __device__ void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
  SM_80("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif // __CUDACC__

// -- The sizes --------------------------------------------------------------------------------------
//
// Two blocks shall fit on a processor: while one waits at a barrier, or stores its result, the
// other computes. That leaves a thread 65,536 / (2 * 256) = 128 registers, of which the sums of a
// 64 x 32 part take 64. It leaves a block half of the shared memory, of which every processor from
// sm_80 on has 100 KB at least, 1 KB of it lost for each block (CUDA C++ Programming Guide,
// "Compute Capabilities").
//
// DEPTH 32, STAGES 3: a stage of the largest tile is (128 + 128) * 32 * 2 bytes = 16 KB, three are
// 48 KB, and twice that is 96 KB. It just fits; a fourth stage, or twice the DEPTH, would not.
//
// Time, on an A100: the 128 * 128 * 32 multiply-adds of a stage take its tensor cores 512 clocks at
// 1,024 a clock. For 16 terms a warp loads four 16 x 16 matrices of A and two of B, an ldmatrix of
// 512 bytes each. 8 warps do that twice in a stage: 48 KB, and 16 KB more are written there by
// copies. Shared memory moves 128 bytes a clock: (48 + 16) KB / 128 = 512 clocks. Both are busy all
// the time. (A 128 x 64 tile: 256 clocks of products, but (32 + 12) KB / 128 = 352 of shared
// memory. The larger tile is the better one.)
//
// A copy from an A100's memory takes 290 clocks where nothing else is under way (course/2-gpu.md), and
// more where memory is busy, as it is here. With three stages, one is multiplied and two are under way,
// so each has 1,024 clocks to arrive. With two stages it would have 512, and little to spare. DEPTH 16
// and six stages would take as much memory, with twice as many barriers.

enum {
  DEPTH = 32, // terms of the sums that a stage holds
  STAGES = 3, // tiles on their way from memory or in use
  WARPS = THREADS / LANES,
  WARP_COLUMNS = 32, // a warp's part of the tile
};

// What a block and a warp compute, as a type so that all sizes are constants. A_ALONG_K: a line of
// A's tile in shared memory is a row, [ROWS][DEPTH]; else it is a term of the sum, [DEPTH][ROWS].
// It is whichever has neighbours in memory. B likewise. DEPTH_: gpu/halo.h takes fewer terms.
template <int ROWS_, int COLUMNS_, bool A_ALONG_K_, bool B_ALONG_K_, int DEPTH_ = DEPTH>
struct tile_of {
  enum {
    ROWS = ROWS_,
    COLUMNS = COLUMNS_,
    A_ALONG_K = A_ALONG_K_,
    B_ALONG_K = B_ALONG_K_,
    WARPS_ACROSS = COLUMNS / WARP_COLUMNS,
    WARP_ROWS = ROWS * WARPS_ACROSS / WARPS,
    M_STEPS = WARP_ROWS / 16, // products of 16 x 8 that make a warp's part
    N_STEPS = WARP_COLUMNS / 8,
    PAIRS = 2 * N_STEPS, // of neighbours that a thread has in 16 rows
    A_LINES = A_ALONG_K ? ROWS : DEPTH_,
    A_LINE = A_ALONG_K ? DEPTH_ : ROWS,
    B_LINES = B_ALONG_K ? COLUMNS : DEPTH_,
    B_LINE = B_ALONG_K ? DEPTH_ : COLUMNS,
    STAGE = (ROWS + COLUMNS) * DEPTH_, // bf16 numbers
    STAGED_LINE = COLUMNS + EIGHT,     // bf16 numbers, of the result in shared memory: see below
  };
  float sum[M_STEPS][N_STEPS][4]; // mma_16x8x16's c, for each of the products

  // The first row and column of this thread's warp in the tile.
  static __device__ int warp_row() { return threadIdx.x / LANES / WARPS_ACROSS * WARP_ROWS; }
  static __device__ int warp_column() { return threadIdx.x / LANES % WARPS_ACROSS * WARP_COLUMNS; }
};

// -- Into shared memory -----------------------------------------------------------------------------

// A tile in shared memory is a number of lines of LINE bf16, each in pieces of 16 bytes, which are
// what cp.async writes and ldmatrix reads. ldmatrix takes the same piece of 8 lines at once. Shared
// memory delivers 128 bytes at a time, 4 from each of its 32 banks. Were the pieces of a line in
// their natural order, those 8 would lie in the same banks and come one after another. So the
// pieces are exchanged within a line, differently in each (a *swizzle*): piece p stands at position
// p ^ key, where the key depends on the line. With lines of 64 bytes, two lines span all banks:
//
//     banks       0-3  4-7 8-11 12-15          16-19 20-23 24-27 28-31
//     line 0       0    1    2    3     line 1    0     1     2     3         key 0
//     line 2       1    0    3    2     line 3    1     0     3     2         key 1
//     line 4       2    3    0    1     line 5    2     3     0     1         key 2
//     line 6       3    2    1    0     line 7    3     2     1     0         key 3
//
// Each piece, say 0, is in 8 different groups of banks in the 8 lines. Lines of 128 bytes or more
// span all banks alone, and have 8 keys; of lines of 32 bytes, four span them, and have 2.
template <int LINE> static __device__ int place_of_piece(int line, int piece) {
  enum { KEYS = LINE < 64 ? LINE / EIGHT : 8, LINES_OF_A_KEY = 8 / KEYS };
  const int key = line / LINES_OF_A_KEY % KEYS;
  return line * LINE + (piece ^ key) * EIGHT;
}
template <int LINE> static __device__ bf16 *piece_of(bf16 *tile, int line, int piece) {
  return tile + place_of_piece<LINE>(line, piece);
}

// Where a piece lies in memory: counted in 16 bytes, an int reaches through 32 GB.
static inline __device__ const bf16 *piece_at(const bf16 *array, int piece) {
  return array + (ptrdiff_t)piece * EIGHT;
}

// Fills a tile. A thread has one piece in each of COUNT lines, always the same piece.
// address(number, line, i) returns where element i of a line lies, or NULL where it is zero; number
// counts the lines of this thread, from 0. ALIGNED: elements 8 j .. 8 j + 7 of a line lie together
// in memory, from a multiple of 16 bytes on. any_address: cp.async wants one that can be read even
// where it writes zeroes.
template <int LINES, int LINE, bool ALIGNED, typename function>
static __device__ void load_tile(bf16 *tile, const void *any_address, const function &address) {
  enum { PIECES = LINE / EIGHT, AT_ONCE = THREADS / PIECES, COUNT = LINES / AT_ONCE };
  const int piece = threadIdx.x % PIECES;
#pragma unroll
  for (int number = 0; number < COUNT; number++) {
    const int line = threadIdx.x / PIECES + number * AT_ONCE;
    bf16 *to = piece_of<LINE>(tile, line, piece);
    if (ALIGNED) {
      const bf16 *from = address(number, line, piece * EIGHT);
      copy_async(to, from ? from : any_address, from != NULL);
    } else {
      for (int e = 0; e < EIGHT; e++) {
        const bf16 *from = address(number, line, piece * EIGHT + e);
        to[e].bits = from ? from->bits : 0;
      }
    }
  }
}

// The same where addresses are cheap: number(i) returns the number in `array` of this thread's piece in
// its line i, or one below zero where it is zeroes.
template <int LINES, int LINE, typename function>
static __device__ void load_pieces(bf16 *tile, const bf16 *array, const function &number) {
  enum { PIECES = LINE / EIGHT, AT_ONCE = THREADS / PIECES, COUNT = LINES / AT_ONCE };
  const int piece = threadIdx.x % PIECES;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int line = threadIdx.x / PIECES + i * AT_ONCE, from = number(i);
    copy_async(piece_of<LINE>(tile, line, piece), piece_at(array, from < 0 ? 0 : from), from >= 0);
  }
}

// -- Products ---------------------------------------------------------------------------------------

// 16 rows of A by 16 terms, as mma_16x8x16 wants them: four 8 x 8 matrices, of which ldmatrix has
// each lane name one line of one. Their order is rows 0-7 and 8-15 of terms 0-7, then of 8-15.
template <typename tile>
static __device__ void load_a(uint32_t a[4], bf16 *shared, int row, int term) {
  const int lane = threadIdx.x % LANES, matrix = lane / 8, line = lane % 8;
  const int m = row + matrix % 2 * 8, k = term + matrix / 2 * 8;
  if (tile::A_ALONG_K)
    load_matrices(a, piece_of<tile::A_LINE>(shared, m + line, k / EIGHT));
  else
    load_matrices_transposed(a, piece_of<tile::A_LINE>(shared, k + line, m / EIGHT));
}

// 16 terms by 16 columns of B, for two products side by side: b[0], b[1] and b[2], b[3]. First the
// line that this lane names.
template <typename tile>
static __device__ const bf16 *line_of_b(bf16 *shared, int column, int term) {
  const int lane = threadIdx.x % LANES, matrix = lane / 8, line = lane % 8;
  const int n = column + matrix / 2 * 8, k = term + matrix % 2 * 8;
  if (tile::B_ALONG_K) return piece_of<tile::B_LINE>(shared, n + line, k / EIGHT);
  return piece_of<tile::B_LINE>(shared, k + line, n / EIGHT);
}
template <typename tile> static __device__ void load_b(uint32_t b[4], const bf16 *line) {
  if (tile::B_ALONG_K)
    load_matrices(b, line);
  else
    load_matrices_transposed(b, line);
}

template <typename tile> static __device__ void clear(tile *t) {
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
    for (int j = 0; j < tile::N_STEPS; j++)
      t->sum[i][j][0] = t->sum[i][j][1] = t->sum[i][j][2] = t->sum[i][j][3] = 0;
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
      load_b<tile>(b[j], line_of_b<tile>(b_tile, tile::warp_column() + j * 16, term));
#pragma unroll
    for (int i = 0; i < tile::M_STEPS; i++)
#pragma unroll
      for (int j = 0; j < tile::N_STEPS; j++) mma_16x8x16(t->sum[i][j], a[i], b[j / 2] + j % 2 * 2);
  }
}

// Takes `steps` stages of SIZE bf16 numbers through shared memory, STAGES of them at once. load(stage, step)
// begins to fill one; use(stage), which all threads call, computes with one that is there. While one stage
// is used, STAGES - 1 are on their way:
//
//     step            0          1          2          3
//     used            stage 0    stage 1    stage 2    stage 0 ..
//     filled for      step 2     step 3     step 4     step 5
//     which is        stage 2    stage 0    stage 1    stage 2
//
// The stage that is filled in a step is the one that was used in the step before. All have
// left it when they come to the barrier, so one barrier in a step is enough.
template <int SIZE, typename load_function, typename use_function>
static __device__ void go_through_stages(bf16 *shared, int steps, const load_function &load,
                                         const use_function &use) {
  for (int step = 0; step < STAGES - 1; step++) {
    if (step < steps) load(shared + step * SIZE, step);
    commit_copies();
  }
  for (int step = 0; step < steps; step++) {
    wait_for_copies<STAGES - 2>(); // this thread's share of stage `step` is there,
    __syncthreads();               // and everyone's; and all are done with the stage before it,
    const int next = step + STAGES - 1;
    if (next < steps) load(shared + next % STAGES * SIZE, next); // which is filled again
    commit_copies(); // an empty group counts as well: the wait above always means the same
    use(shared + step % STAGES * SIZE);
  }
  __syncthreads(); // shared memory may be used for something else
}

// Adds the sum over `steps` stages. load(a_tile, b_tile, step) begins to fill one.
template <typename tile, typename function>
static __device__ void multiply_all(tile *t, bf16 *shared, int steps, const function &load) {
  enum { B = tile::ROWS * DEPTH };
  go_through_stages<tile::STAGE>(
      shared, steps, [&](bf16 *stage, int step) { load(stage, stage + B, step); },
      [&](bf16 *stage) { multiply_stage(t, stage, stage + B); });
}

// -- Out of the registers ---------------------------------------------------------------------------

// Calls use(number, row, column, first, second) for each pair of neighbours that this thread has in rows 16 i
// to 16 i + 15 of its warp's part. number counts them, below PAIRS. row and column are first's, in the tile;
// second's column is the next.
template <typename tile, typename function>
static __device__ void for_each_pair_of(const tile *t, int i, const function &use) {
  const int lane = threadIdx.x % LANES;
#pragma unroll
  for (int j = 0; j < tile::N_STEPS; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = tile::warp_row() + i * 16 + half * 8 + lane / 4;
      const int column = tile::warp_column() + j * 8 + lane % 4 * 2;
      use(j * 2 + half, row, column, t->sum[i][j][half * 2], t->sum[i][j][half * 2 + 1]);
    }
}

// The same for all rows.
template <typename tile, typename function>
static __device__ void for_each_pair(const tile *t, const function &use) {
#pragma unroll
  for (int i = 0; i < tile::M_STEPS; i++) for_each_pair_of(t, i, use);
}

// A warp's pairs are scattered: as bf16, eight rows of 16 bytes each, where a sector has 32. So a
// result in bf16 is *staged*: put together in shared memory, from where 16 bytes of a row leave at
// a time. Eight numbers of padding, 16 bytes, make each row begin 4 banks behind the row before (20
// where a tile has 32 columns: 0, 20, 8, 28, ..). A warp writes 16 bytes of 8 rows at once, 4 banks for
// each row: all 32, each once.
template <typename tile> static __device__ bf16 *staged_at(bf16 *staged, int row, int column) {
  return staged + row * tile::STAGED_LINE + column;
}

// Stores a staged tile's first `columns` columns. address(row): where the row's column 0 goes, or
// NULL. ALIGNED: each row goes to a multiple of 16 bytes, and columns is a multiple of 8.
template <bool ALIGNED, typename tile, typename function>
static __device__ void store_staged(bf16 *staged, int columns, const function &address) {
  enum { PIECES = tile::COLUMNS / EIGHT };
  for (int i = threadIdx.x; i < tile::ROWS * PIECES; i += THREADS) {
    const int row = i / PIECES, column = i % PIECES * EIGHT;
    bf16 *to = column < columns ? address(row) : NULL;
    if (!to) continue;
    const bf16 *piece = staged_at<tile>(staged, row, column);
    if (ALIGNED)
      *(uint4 *)(to + column) = *(const uint4 *)piece;
    else
      for (int e = 0; e < EIGHT && column + e < columns; e++) to[column + e] = piece[e];
  }
}

} // namespace GPU

#endif
