// gpu/sums.h - sums over many threads, in an order that never changes.
//
// Floating-point addition is not associative: (a + b) + c and a + (b + c) round differently. The
// same seed shall give the same bits, so which thread comes first must not decide what is added to
// what. Threads can add up in three places, each wider and slower than the one before:
//
//     a warp    by shuffles, in registers                                     sum_over_warp
//     a block   through shared memory, with a barrier before it is read       each kernel for itself
//     a grid    each block leaves a partial sum in the GPU's memory, and a    sum_of_partials
//               second kernel adds those up: the boundary between two
//               launches is the only barrier that all blocks share
#ifndef GPU_SUMS_H
#define GPU_SUMS_H

#include "gpu/gpu.h"

namespace GPU {

// -- A warp -----------------------------------------------------------------------------------------

// The sum of all lanes' values, in every lane. All 32 lanes have to call it.
//
// A *shuffle*, __shfl_xor_sync(mask, value, bits), has a bit in mask for each lane that takes part,
// 0xffffffff for all 32. It gives each lane the value of the lane whose
// number differs from its own in `bits`. Five rounds, with bits 16, 8, 4, 2 and 1, add up a warp.
// Two rounds would add up four lanes, which hold a, b, c and d:
//
//     lane          0              1              2              3
//     bits = 2      a + c          b + d          c + a          d + b
//     bits = 1      (a+c)+(b+d)    (b+d)+(a+c)    (c+a)+(d+b)    (d+b)+(c+a)
//
// a + c and c + a are the same bits, so all lanes hold the same.
template <typename number> static inline __device__ number sum_over_warp(number value) {
  for (int bits = LANES / 2; bits; bits /= 2) value += __shfl_xor_sync(0xffffffff, value, bits);
  return value;
}

// -- A grid -----------------------------------------------------------------------------------------

// The sum over `parts` of partials[part][column], `columns` of them side by side. For blocks of
// COLUMNS x ROWS threads, a column for each threadIdx.x:
//
//     threadIdx.y = 0            part 0,         part ROWS,         part 2 ROWS, ..
//                   1            part 1,         part ROWS + 1,     ..
//                   ..                                                    and then the rows' sums,
//                   ROWS - 1     part ROWS - 1,  part 2 ROWS - 1,   ..    row 0 first
//
// More rows make shorter chains of additions, each of which waits for its load. Only the threads of
// row 0 get the sum; `number` is the type that it is added up in.
template <typename number, int ROWS, int COLUMNS, typename partial>
static inline __device__ number sum_of_partials(const partial *partials, int parts, int columns,
                                                int column) {
  __shared__ number shared[ROWS][COLUMNS];
  number sum = 0;
  if (column < columns)
    for (int part = threadIdx.y; part < parts; part += ROWS)
      sum += partials[(size_t)part * columns + column];
  if (ROWS == 1) return sum;
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int row = 1; row < ROWS; row++) sum += shared[row][threadIdx.x];
  return sum;
}

// The launch of a kernel that calls sum_of_partials.
template <int ROWS, int COLUMNS> static launch_shape shape_of_sums(int columns) {
  return {dim3(divide_up(columns, COLUMNS)), dim3(COLUMNS, ROWS), 0};
}

} // namespace GPU

#endif
