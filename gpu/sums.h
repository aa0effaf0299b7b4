// gpu/sums.h - sums over many threads, in an order that never changes.
//
// Floating-point addition is not associative: (a + b) + c and a + (b + c) round differently. The
// same seed shall give the same bits, so which thread comes first must not decide what is added to
// what. Threads can add up in three places, each wider and slower than the one before:
//
//     a warp    by shuffles, in registers                                     sum_over_warp
//     a block   through shared memory, with a barrier before it is read       each kernel for itself
//     a grid    each block leaves a partial sum in the GPU's memory, and the   add_partials
//               last block to be done adds them up
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
//
// The blocks of a launch have no barrier together: some may begin only when others have ended. But they
// can count. Each adds one to a counter when its partial sum is stored, and the block that finds itself the
// last adds all of them up. Which block that is depends on timing. What it adds, and in which order,
// does not.
//
// A second kernel could do that, too: all launches before it are over when it begins. It would cost a
// launch, and between two launches the GPU runs empty.
//
// In stage 1 of the network (network.h) there are 512 partial sums for each channel, a long way for one
// block. So it is done in two levels, of which the first is over while other blocks still compute:
//
//     partial sums    0 1 .. 31    32 33 .. 63   ..  511
//     groups              0             1        ..  15      each by the last block of its group
//     all                             sum                    by the last of those blocks

// Partial sums of a group. A thread adds up one channel's: its loads do not wait for each other.
enum { GROUP = 32 };

// Whether this block is the last of `count` to get here. If it is, all its threads see what the others
// stored before. counter: zero before the first of them, and zero again behind the last.
//
// atomicInc(counter, last) adds one, or makes it zero where it was `last`, and returns what it was; no
// other block's comes between. A fence, __threadfence(): whoever sees what this thread does behind it, sees
// also what came before it. That includes what the block's other threads did before the barrier, which puts
// it before this thread's fence. So all of a block's stores are there before it counts; and behind the
// second fence and barrier, all its threads load what others stored before they counted.
static inline __device__ bool is_last_of(unsigned *counter, unsigned count) {
  __shared__ unsigned before;
  __syncthreads(); // all threads of this block have stored
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    __threadfence();
    before = atomicInc(counter, count - 1);
    __threadfence();
  }
  __syncthreads();
  return before == count - 1;
}

// Two sums for each of `channels` channels, in parts: [part][2][channels]. A block has some channels' of one
// part, and there are as many blocks for these channels as there are parts.
typedef struct {
  int parts, channels;
  double *groups;     // [group][2][channels]
  unsigned *counters; // [blocks of a part][groups + 1]
} parts_of_sums;

// Adds up the parts first .. end - 1, in order, for channels from first_channel on, `count` of them or
// fewer: a thread each. store(channel, sum, second sum)
template <typename partial, typename function>
static __device__ void add_parts_of(const partial *partials, int first, int end, int channels,
                                    int first_channel, int count, const function &store) {
  const int threads = blockDim.x * blockDim.y;
  const int end_channel = min_of(first_channel + count, channels);
  for (int c = first_channel + threadIdx.y * blockDim.x + threadIdx.x; c < end_channel;
       c += threads) {
    const partial *of = partials + (size_t)first * 2 * channels + c;
    double sum = 0, second = 0;
#pragma unroll 8
    for (int part = first; part < end; part++, of += 2 * (size_t)channels) {
      sum += of[0];
      second += of[channels];
    }
    store(c, sum, second);
  }
}

// Every block calls it once, after it has stored its sums to partials[part]. In every part the channels are
// divided among the blocks in the same way: block number block_of_part has the `count` channels from
// first_channel on. Whichever of these blocks comes last calls finish(channel, sum, second sum).
template <typename partial, typename function>
static __device__ void add_partials(const partial *partials, const parts_of_sums &s, int part,
                                    int block_of_part, int first_channel, int count,
                                    const function &finish) {
  const int groups = divide_up(s.parts, GROUP), group = part / GROUP, first = group * GROUP;
  const int end = min_of(first + GROUP, s.parts), channels = s.channels;
  unsigned *counters = s.counters + (size_t)block_of_part * (groups + 1);
  if (!is_last_of(&counters[group], end - first)) return;
  // [&](..) { .. }: a function without a name, which may use the variables around it (tile.h says more).
  add_parts_of(partials, first, end, channels, first_channel, count,
               [&](int c, double sum, double second) {
                 s.groups[(size_t)group * 2 * channels + c] = sum;
                 s.groups[((size_t)group * 2 + 1) * channels + c] = second;
               });
  if (is_last_of(&counters[groups], groups))
    add_parts_of(s.groups, 0, groups, channels, first_channel, count, finish);
}

// Room in the workspace for the partial sums, which are returned, and for the groups'.
template <typename partial>
static partial *place_partials(parts_of_sums *s, int parts, int channels, int blocks_of_part) {
  const size_t groups = divide_up(parts, GROUP), pair = 2 * (size_t)channels;
  s->parts = parts, s->channels = channels;
  s->counters = counters_of_zero(blocks_of_part * (groups + 1));
  s->groups = (double *)workspace(groups * pair * sizeof(double) + parts * pair * sizeof(partial));
  return (partial *)(s->groups + groups * pair);
}

} // namespace GPU

#endif
