// tests/simt_legal.h - kernels with unusual but legal code: the simulator has to let them pass, and their
// results have to be right.
#ifndef SIMT_LEGAL_H
#define SIMT_LEGAL_H

#include "simt_broken.h"

// -- Unusual but legal kernels --------------------------------------------------------------------

// Each half of a warp on its own: sums of 16 lanes, then of 8 by width.
static __global__ void half_warps(int *out) {
  const int lane = threadIdx.x, half = lane / 16;
  int sum = lane;
  if (half == 0)
    for (int bits = 8; bits; bits /= 2) sum += __shfl_xor_sync(0xffff, sum, bits);
  else
    for (int bits = 8; bits; bits /= 2) sum += __shfl_down_sync(0xffff0000, sum, bits, 16);
  out[lane] = sum;
  out[32 + lane] = __shfl_sync(0xffffffff, lane, 9, 8); // lane 1 of each 8
}

// Threads beyond the end return; the others of their warp go on, and name the whole warp: "all
// non-exited threads named in mask". The block ends within a warp.
static __global__ void leave_early(int *out, int n) {
  if ((int)threadIdx.x >= n) return;
  out[threadIdx.x] = __shfl_down_sync(0xffffffff, (int)threadIdx.x, threadIdx.x == 36 ? 0 : 1);
  __syncwarp();
}

static __global__ void histogram(int *out, const uint8_t *value, int n) {
  __shared__ int s[8];
  if (threadIdx.x < 8) s[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&s[value[i] % 8], 1);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&out[threadIdx.x], s[threadIdx.x]);
}

// Neighbouring bytes, by threads of other warps and of other blocks; a stride that is not a word's.
static __global__ void neighbours(uint8_t *out, uint16_t *halves) {
  __shared__ uint8_t s[96];
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x * gridDim.x + blockIdx.x] = s[95 - threadIdx.x];
  halves[threadIdx.x * gridDim.x + blockIdx.x] = blockIdx.x;
}

// All read the same word; who wrote it reads it back without a barrier.
static __global__ void broadcast(int *out) {
  __shared__ int s[2], own[64];
  if (threadIdx.x == 0) s[1] = 5;
  own[threadIdx.x] = threadIdx.x;
  own[threadIdx.x] += 1;
  __syncthreads();
  out[threadIdx.x] = s[1] + own[threadIdx.x];
}

// A reduction within a warp over shared memory, ordered by __syncwarp alone; then only lanes 0 and
// 1 meet, and lanes 1 and 2: what lane 0 wrote has come to lane 2.
static __global__ void warp_synchronous(int *out) {
  __shared__ int s[64], relay;
  int *mine = s + threadIdx.x / 32 * 32;
  const int lane = threadIdx.x % 32;
  mine[lane] = lane;
  for (int half = 16; half; half /= 2) {
    __syncwarp();
    if (lane < half) mine[lane] += mine[lane + half];
  }
  __syncwarp();
  out[threadIdx.x] = mine[0];
  if (threadIdx.x == 0) relay = 9;
  if (threadIdx.x < 2) __syncwarp(3);
  if (threadIdx.x == 1 || threadIdx.x == 2) __syncwarp(6);
  if (threadIdx.x == 2) out[64] = relay;
}

// Two stages: while one is summed up, the next is on its way.
static __global__ void pipeline(const float4 *in, float *out, int steps) {
  DYNAMIC_SHARED(memory);
  float4 *stage = (float4 *)memory; // [2][64]
  const int i = threadIdx.x;
  float sum = 0;
  copy_async(&stage[i], &in[i], true);
  commit_copies();
  for (int step = 0; step < steps; step++) {
    const bool more = step + 1 < steps;
    copy_async(&stage[(step + 1) % 2 * 64 + i], in + (step + 1) * 64 + i, more);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    sum += stage[step % 2 * 64 + 63 - i].w;
    __syncthreads();
  }
  out[i] = sum;
}

struct large { // more than a hook knows: goes by __tsan_read_range
  float value[10];
};
static __global__ void by_value(large x, const large *from, large *to) {
  static const float table[2] = {1, 2}; // constants lie in the program
  large sum = from[threadIdx.x];
  for (int i = 0; i < 10; i++) sum.value[i] += x.value[i] * table[i % 2];
  to[threadIdx.x] = sum;
  memcpy(&to[32 + threadIdx.x], &from[threadIdx.x], sizeof sum);
}

template <int size> static __global__ void three_dimensions(int *out) {
  __shared__ int s[size];
  const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  s[i] = simt_lane();
  __syncthreads();
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * size + i] = s[size - 1 - i];
}

static int *numbers, *more; // device memory, of zeroes

// Each returns whether the kernel's result is right.
struct legal {
  const char *name;
  bool (*run)();
};
static const legal all_legal[] = {
    {"shuffles of half a warp",
     [] {
       run(half_warps, {1, 32, 0}, numbers);
       bool ok = numbers[16] == 16 * 47 / 2;
       for (int i = 0; i < 16; i++) ok = ok && numbers[i] == 120;
       for (int i = 0; i < 32; i++) ok = ok && numbers[32 + i] == i / 8 * 8 + 1;
       return ok;
     }},
    {"an early exit before warp operations",
     [] {
       run(leave_early, {1, 45, 0}, numbers, 37);
       bool ok = numbers[37] == 0 && numbers[36] == 36;
       for (int i = 0; i < 36; i++) ok = ok && numbers[i] == (i == 31 ? 31 : i + 1);
       return ok;
     }},
    {"atomics in shared and global memory",
     [] {
       for (int i = 0; i < 1000; i++) ((uint8_t *)more)[i] = i % 7;
       run(histogram, {3, 96, 0}, numbers, (const uint8_t *)more, 1000);
       return numbers[0] == 3 * 143 && numbers[6] == 3 * 142 && numbers[7] == 0;
     }},
    {"the last block adds up what all have stored, twice with one counter",
     [] {
       unsigned *counter = (unsigned *)more;
       run(last_adds_up, {3, 64, 0}, numbers, numbers + 64, counter, 0);
       run(last_adds_up, {5, 64, 0}, numbers, numbers + 64, counter, 0);
       return numbers[0] == (3 + 5) * 64 && *counter == 0;
     }},
    {"neighbouring bytes and halves of a word",
     [] {
       run(neighbours, {3, 96, 0}, (uint8_t *)numbers, (uint16_t *)more);
       return ((uint8_t *)numbers)[5 * 3 + 1] == 90 && ((uint16_t *)more)[5 * 3 + 2] == 2;
     }},
    {"broadcast, and a thread's own memory",
     [] {
       run(broadcast, {1, 64, 0}, numbers);
       return numbers[63] == 69;
     }},
    {"warp-synchronous code",
     [] {
       run(warp_synchronous, {1, 64, 0}, numbers);
       return numbers[63] == 496 && numbers[64] == 9;
     }},
    {"a pipeline of copies",
     [] {
       float *from = (float *)more, *to = (float *)numbers;
       for (int i = 0; i < 5 * 256; i++) from[i] = i;
       run(pipeline, {1, 64, 2048}, (const float4 *)from, to, 5);
       return to[63] == 5 * 3 + 256 * 10;
     }},
    {"structures by value, constants, memcpy",
     [] {
       large x = {{1, 1, 1, 1, 1, 1, 1, 1, 1, 7}};
       run(by_value, {1, 32, 0}, x, (const large *)more, (large *)numbers);
       return ((float *)numbers)[31 * 10 + 9] == 14;
     }},
    {"a recording whose branches wait for each other, replayed twice",
     [] {
       int *a = (int *)filled(512);
       for (int i = 0; i < 2; i++) replay(a, numbers, more, 2, overwrite_a);
       replay(a, numbers + 64, more, 1, overwrite_b);
       replay(a, numbers, more + 64, 2, read_c);
       return a[63] == 1 && a[127] == 1 && numbers[63] == 1 && numbers[127] == 2 && more[63] == 1;
     }},
    {"blocks and grids of three dimensions",
     [] {
       run(three_dimensions<105>, {dim3(2, 3, 4), dim3(3, 5, 7), 0}, numbers);
       return numbers[23 * 105] == 104 % 32 && numbers[23 * 105 + 104] == 0;
     }},
};

#endif
