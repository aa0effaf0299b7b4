// 3_sum.cu - exercise 3: a sum over a warp and a block. About 12 lines. Belongs to gpu/sums.h; do
// the exercise first.
//
//     sums[row] = sum over column of x[row][column]
//
//     x      float [rows][columns]         sums   float [rows]
//
// A block of 256 threads, 8 warps of 32 lanes, adds up one row: blockIdx.x is the row. In four parts:
//
// 1. Thread t adds up columns t, t + 256, t + 512, .. in a variable of its own. columns can be any
//    number, less than 256 too.
// 2. Each warp adds up its 32 lanes' sums by *shuffles*, without any memory. All 32 lanes call
//    __shfl_xor_sync(0xffffffff, value, bits), and each gets the value of the lane whose number
//    differs from its own in `bits`. After five rounds, with bits 16, 8, 4, 2 and 1, every lane has
//    the sum. (0xffffffff says that all 32 lanes take part.)
// 3. One lane of each warp stores the warp's sum in shared memory: an array `__shared__ float
//    of_warp[8]`, of which the block has one.
// 4. One thread adds up the 8 and stores the row's sum. A warp sees what another warp stored only
//    after a barrier, __syncthreads(), to which all threads of the block come.
//
// Who calls it: nobody in this form. The loss, batch normalisation and the gradients of the weights
// add up like this.
//
// The check looks at: the sums, for rows of 1024, 1000, 70 and 1 columns; the same bits when warps and
// lanes run in reverse; races; at most 20 turns of shared memory for each row (halving there, 128
// threads, then 64, .., takes about 45); at most 20 accesses to memory by one thread (who adds up 1,024
// columns alone has 1,025).
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

enum { BLOCK = 256 };

static __global__ void sum(int columns, float *sums, const float *x) {
  const float *row = x + (size_t)blockIdx.x * columns;
  float own = 0;
  if ((int)threadIdx.x < columns) own = row[threadIdx.x];
  if (threadIdx.x == 0) sums[blockIdx.x] = own; // fill in: this is x[row][0] alone
}

void run_3(const task *t) {
  launch("sum", sum, {t->rows, BLOCK, 0}, t->columns, t->out[0], t->in[0]);
}

} // namespace exercise
} // namespace GPU
