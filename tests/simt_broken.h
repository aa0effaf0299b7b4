// tests/simt_broken.h - a small broken kernel for each kind of mistake that the simulator has to catch.
//
// A line of a kernel that FIRST or SECOND marks has to be named in the report.
#ifndef SIMT_BROKEN_H
#define SIMT_BROKEN_H

#include "../simt/simt.h"
#include <stdlib.h>

#define FIRST mark(0, __LINE__),
#define SECOND mark(1, __LINE__),

static int *marked; // [2], seen by the parent of a process that runs a broken kernel

NOT_WATCHED __attribute__((noinline)) static void mark(int which, int line) {
  marked[which] = line;
}

static void *filled(size_t bytes) { // device memory, of zeroes
  return memset(simt_allocate(bytes), 0, bytes);
}

template <typename... P, typename... A>
static void run(void (*kernel)(P...), launch_shape shape, A... arguments) {
  launch("kernel_under_test", kernel, shape, arguments...);
}
#define RUN(...) [] { run(__VA_ARGS__); }

// -- Broken kernels: races ------------------------------------------------------------------------

static __global__ void no_barrier(int *out) {
  __shared__ int s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  FIRST s[threadIdx.x] = 1;
  SECOND out[threadIdx.x] = s[63 - threadIdx.x];
}

static __global__ void two_writers(int *out) {
  __shared__ int s[64];
  FIRST s[threadIdx.x / 2] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x / 2];
}

static __global__ void overwritten(int *out) {
  __shared__ int s[64];
  s[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x < 63) FIRST out[threadIdx.x] = s[threadIdx.x + 1];
  SECOND s[threadIdx.x] = 2;
}

// Both read it; that the one which writes was the last to read must not hide the other.
static __global__ void two_readers(int *out) {
  __shared__ int s;
  if (threadIdx.x == 5) s = 1;
  __syncthreads();
  if (threadIdx.x == 3 || threadIdx.x == 33) {
    FIRST out[threadIdx.x] = s;
    if (threadIdx.x == (simt_reversed ? 3 : 33)) SECOND s = 2;
  }
}

static __global__ void one_byte(int *out) {
  __shared__ uint8_t s[4];
  if (threadIdx.x == 0) s[2] = 0;
  __syncthreads();
  if (threadIdx.x < 4) FIRST s[threadIdx.x] = 1;
  if (threadIdx.x == 32) SECOND out[0] = s[2];
}

static __global__ void no_syncwarp(int *out) {
  __shared__ int s[32];
  FIRST s[threadIdx.x] = 1;
  __shfl_sync(0xffffffff, 1, 0); // waits for the lanes, not for their memory
  SECOND out[threadIdx.x] = s[31 - threadIdx.x];
}

static __global__ void wrong_half(int *out) {
  __shared__ int s[32];
  s[threadIdx.x] = 0;
  __syncwarp();
  FIRST s[threadIdx.x] = 1;
  if (threadIdx.x < 16)
    __syncwarp(0xffff);
  else
    __syncwarp(0xffff0000);
  SECOND out[threadIdx.x] = s[31 - threadIdx.x];
}

static __global__ void anothers_syncwarp(int *out) {
  __shared__ int s[32];
  if (threadIdx.x < 32) s[threadIdx.x] = 0;
  __syncthreads();
  if ((threadIdx.x < 32) != simt_reversed)
    FIRST s[threadIdx.x % 32] = 1;
  else {
    __syncwarp();
    SECOND out[threadIdx.x] = s[31 - threadIdx.x % 32];
  }
}

static __global__ void blocks_write(int *out) {
  FIRST out[threadIdx.x] = blockIdx.x;
}

static __global__ void blocks_read(int *out) {
  FIRST out[blockIdx.x * 32 + threadIdx.x] = 1;
  SECOND out[64 + blockIdx.x * 32 + threadIdx.x] = out[(1 - blockIdx.x) * 32 + threadIdx.x];
}

// Two threads of the block that writes have read it since; that must not hide the other block.
static __global__ void in_place(int *out) {
  if (threadIdx.x < 2) FIRST out[2 + 2 * blockIdx.x + threadIdx.x] = out[0];
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == 0) SECOND out[0] = 1;
}

static __global__ void half_atomic(int *out) {
  if (threadIdx.x == 40)
    FIRST out[0] = 7;
  else
    SECOND atomicAdd(out, 1);
}

static __global__ void atomic_and_read(int *out) {
  if (threadIdx.x == (simt_reversed ? 0 : 63))
    FIRST out[1] = out[0];
  else
    SECOND atomicAdd(out, 1);
}

// -- Broken kernels: bounds and alignment ---------------------------------------------------------

static __global__ void behind(float *out) {
  FIRST out[threadIdx.x + 1] = 1;
}
static __global__ void ahead(const float *in, float *out) {
  FIRST out[threadIdx.x] = in[(int)threadIdx.x - 1];
}
static __global__ void dereference(const float *in, float *out) {
  FIRST out[threadIdx.x] = in[threadIdx.x];
}
static __global__ void copy_bytes(void *out, const void *in, int bytes) {
  FIRST memcpy(out, in, bytes);
}
static __global__ void beyond_shared() {
  DYNAMIC_SHARED(s);
  FIRST s[threadIdx.x + 1] = 1;
}
static __global__ void anothers_local(float *out, unsigned owner) {
  __shared__ float *pointer;
  float local[4] = {0, 1, 2, (float)out[0]};
  if (threadIdx.x == owner) pointer = &local[out[1] > 0];
  __syncthreads();
  if (threadIdx.x != owner) FIRST out[0] = *pointer;
}
static __global__ void misaligned_pair(float *out) {
  const float2 pair = {1, 2};
  FIRST *(float2 *)(out + 1) = pair;
}
static __global__ void misaligned_four(const float *in, float *out) {
  FIRST *(float4 *)out = *(const float4 *)(in + 2);
}
static __global__ void misaligned_copy(const float *in) {
  __shared__ float4 s;
  FIRST copy_async(&s, in + 2, true);
}
static __global__ void copy_beyond(const float *in) {
  __shared__ float4 s[32];
  FIRST copy_async(&s[threadIdx.x], in + 4 * threadIdx.x, true);
}
NOT_WATCHED static __attribute__((noinline)) void write_unwatched(char *where) {
  *(volatile char *)where = 1;
}
static __global__ void unwatched(char *out) {
  write_unwatched(out + 64);
}
static __attribute__((noinline)) int depth(volatile int *n) {
  volatile char room[4096];
  room[0] = 1;
  return *n ? depth(n) + room[0] : 0;
}
static __global__ void bottomless(int *out) {
  *out = 1;
  *out = depth(out);
}

// Behind a[0] lies a[1], whose memory is the GPU's, too, and written.
static __global__ void beyond_a_row(float *out) {
  __shared__ float a[2][32];
  for (int i = 0; i < 2; i++) a[i][threadIdx.x] = 1;
  __syncthreads();
  FIRST out[threadIdx.x] = a[0][threadIdx.x + 1];
}

// -- Broken kernels: shared memory that nobody wrote, and copies under way ------------------------

static __global__ void uninitialised(float *out) {
  __shared__ float s[64];
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  FIRST out[threadIdx.x] = s[threadIdx.x];
}
static __global__ void uninitialised_sum(int *out) {
  __shared__ int s;
  FIRST atomicAdd(&s, 1);
  __syncthreads();
  out[threadIdx.x] = s;
}
// Written by the block before, which is none of ours.
static __global__ void left_over(float *out) {
  DYNAMIC_SHARED(s);
  if (blockIdx.x == 0) s[threadIdx.x] = 1;
  FIRST out[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}
static __global__ void uninitialised_row() {
  __shared__ uint4 s[32];
  uint32_t matrix[4];
  if (threadIdx.x != 7) s[threadIdx.x] = {1, 2, 3, 4};
  __syncwarp();
  FIRST load_matrices(matrix, &s[threadIdx.x]);
}
static __global__ void no_wait(const float4 *in, float *out) {
  __shared__ float4 s[32];
  FIRST copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
  commit_copies();
  SECOND out[threadIdx.x] = s[threadIdx.x].x;
}
static __global__ void wait_too_short(const float4 *in, float *out) {
  __shared__ float4 s[2][32];
  for (int i = 0; i < 2; i++) {
    FIRST copy_async(&s[i][threadIdx.x], &in[threadIdx.x], true);
    commit_copies();
  }
  wait_for_copies<1>();
  __syncthreads();
  SECOND out[threadIdx.x] = s[1][threadIdx.x].x;
}
static __global__ void wait_without_barrier(const float4 *in, float *out) {
  __shared__ float4 s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  FIRST copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
  commit_copies();
  wait_for_copies<0>();
  SECOND out[threadIdx.x] = s[63 - threadIdx.x].x;
}
static __global__ void wait_behind_barrier(const float4 *in, float *out) {
  __shared__ float4 s[64];
  copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
  commit_copies();
  __syncthreads();
  wait_for_copies<0>();
  if (threadIdx.x == (simt_reversed ? 0 : 63)) FIRST out[threadIdx.x] = s[63 - threadIdx.x].x;
}
static __global__ void row_in_flight(const float4 *in) {
  __shared__ float4 s[32];
  uint32_t matrix[4];
  FIRST copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
  commit_copies();
  __syncwarp();
  SECOND load_matrices_transposed(matrix, &s[threadIdx.x]);
}
static __global__ void target_overwritten(const float4 *in) {
  __shared__ float4 s[32];
  FIRST copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
  SECOND s[threadIdx.x] = {0, 0, 0, 0};
}
static __global__ void stage_overwritten(const float4 *in, float *out) {
  __shared__ float4 s[64];
  s[threadIdx.x] = {1, 2, 3, 4};
  __syncthreads();
  FIRST out[threadIdx.x] = s[63 - threadIdx.x].x;
  SECOND copy_async(&s[threadIdx.x], &in[threadIdx.x], true);
}
static __global__ void too_many_copies(const float4 *in) {
  __shared__ float4 s[100];
  for (int i = 0; i < 100; i++) FIRST copy_async(&s[i], in, false);
}

// -- Broken kernels: barriers and warp operations -------------------------------------------------

static __global__ void early_exit() {
  if (threadIdx.x == 40) return;
  FIRST __syncthreads();
}
static __global__ void two_barriers() {
  if (threadIdx.x < 32)
    FIRST __syncthreads();
  else
    SECOND __syncthreads();
}
static __global__ void deadlock() {
  if (threadIdx.x % 32 < 16)
    FIRST __syncthreads();
  else
    SECOND __syncwarp();
}
static __global__ void half_shuffle(int *out) {
  if (threadIdx.x < 16) FIRST out[threadIdx.x] = __shfl_xor_sync(0xffffffff, 1, 1);
  SECOND __syncthreads();
}
static __global__ void not_in_mask(int *out) {
  FIRST out[threadIdx.x] = __shfl_sync(0xffff, 1, 0);
}
static __global__ void outside_mask(int *out) {
  if (threadIdx.x < 16) FIRST out[threadIdx.x] = __shfl_sync(0xffff, 1, 20);
}
static __global__ void masks_differ() {
  if (threadIdx.x < 3) FIRST __syncwarp(threadIdx.x == 0 ? 3 : 7);
}
static __global__ void part_of_a_warp() {
  float c[4] = {0};
  const uint32_t a[4] = {0}, b[2] = {0};
  if (threadIdx.x == 9) return;
  FIRST mma_16x8x16(c, a, b);
}
static __global__ void nothing() {}

// -- Broken recordings ----------------------------------------------------------------------------

static __global__ void take(int *to, const int *from) {
  FIRST to[threadIdx.x] = from[threadIdx.x];
}
static __global__ void put(int *to, int value) {
  SECOND to[threadIdx.x] = value;
}
static __global__ void take_back(int *to, const int *from) {
  SECOND to[threadIdx.x] = from[threadIdx.x];
}
static __global__ void begin(int *to) {
  to[threadIdx.x] = 1;
}

// Records: main puts 1 into a. The side branch copies it to b, then to c. Main goes on with `last`, after
// the first `waits` of these copies. Then replays it.
static void replay(int *a, int *b, int *c, int waits, void (*last)(int *a, int *b, int *c)) {
  simt_list *list = simt_begin_list();
  int marks[3] = {0};
  simt_launches = NOTE_LAUNCHES;
  run(begin, {1, 64, 0}, a);
  for (int i = 1; i < 3; i++) {
    simt_on_side(true);
    run(take, {1, 64, 0}, i == 1 ? b : c, a);
    simt_on_side(false);
    marks[i] = simt_side_mark();
  }
  simt_wait_for_side(marks[waits]);
  simt_on_side(true), simt_on_side(false); // which forgets nothing
  last(a, b, c);
  simt_launches = RUN_LAUNCHES;
  simt_run_list(list);
  simt_free_list(list);
}
static void allocate_more(int *, int *, int *) {
  simt_allocate(64);
}
static void wait_for_ever() {
  simt_list *list = simt_begin_list();
  simt_launches = NOTE_LAUNCHES;
  simt_wait_for_side(1);
  run(begin, {1, 64, 0}, (int *)NULL);
  simt_launches = RUN_LAUNCHES;
  simt_run_list(list);
}
static void overwrite_a(int *a, int *, int *) {
  run(put, {1, 64, 0}, a, 2);
}
static void overwrite_b(int *, int *b, int *) {
  run(put, {1, 64, 0}, b, 2);
}
static void read_c(int *a, int *, int *c) {
  run(take_back, {1, 64, 0}, a + 64, c);
}

// -- Broken kernels: blocks that tell each other ---------------------------------------------------

// Each block stores its numbers; the last to be done, which a counter tells, adds up all of them. Bits of
// `without` leave out one step.
enum { FENCE_BEFORE = 1, BARRIER = 2, OWN_COUNTER = 4, FENCE_BEHIND = 8 };

static __global__ void last_adds_up(int *sum, int *numbers, unsigned *counter, int without) {
  __shared__ bool last;
  FIRST numbers[blockIdx.x * 64 + threadIdx.x] = 1;
  if (!(without & BARRIER)) __syncthreads();
  if (threadIdx.x == 0) {
    if (!(without & FENCE_BEFORE)) __threadfence();
    const bool own = without & OWN_COUNTER;
    const unsigned before = atomicInc(counter + (own ? 1 + blockIdx.x : 0), gridDim.x - 1);
    last = own ? blockIdx.x == (simt_reversed ? 0 : gridDim.x - 1) : before == gridDim.x - 1;
    if (!(without & FENCE_BEHIND)) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  int mine = 0;
  for (unsigned i = 0; i < gridDim.x; i++) {
    const unsigned from = i * 64 + 63 - threadIdx.x;
    SECOND mine += numbers[from];
  }
  atomicAdd(sum, mine);
}

// A thread's own store needs no barrier; but it must come before the fence.
static __global__ void told_too_early(int *sum, int *number, unsigned *counter) {
  __threadfence();
  FIRST number[blockIdx.x] = 1;
  if (atomicInc(counter, 1) == 0) return;
  __threadfence();
  SECOND sum[0] = number[0] + number[1];
}

static void run_last_adds_up(int without) {
  run(last_adds_up, {3, 64, 0}, (int *)filled(4), (int *)filled(3 * 64 * 4), (unsigned *)filled(64),
      without);
}

// A report names a thread by all its numbers.
static __global__ void one_of_eight(float *out) {
  __shared__ float s[2][4];
  if (threadIdx.x != 2 || threadIdx.y != 1) s[threadIdx.y][threadIdx.x] = 1;
  FIRST out[threadIdx.y * 4 + threadIdx.x] = s[threadIdx.y][threadIdx.x];
}

// -- All of them ----------------------------------------------------------------------------------

static float *in, *out; // 64 and 4096 floats on the device

struct broken {
  const char *name, *message;
  void (*run)();
};
static const broken all_broken[] = {
    {"no barrier between a write and a read", "race in shared memory",
     RUN(no_barrier, {1, 64, 0}, (int *)out)},
    {"two threads write", "race in shared memory", RUN(two_writers, {1, 64, 0}, (int *)out)},
    {"no barrier between a read and a write", "race in shared memory",
     RUN(overwritten, {1, 64, 0}, (int *)out)},
    {"a reader behind another", "race in shared memory", RUN(two_readers, {1, 64, 0}, (int *)out)},
    {"a race for one byte", "race in shared memory", RUN(one_byte, {1, 64, 0}, (int *)out)},
    {"a shuffle does not order memory", "race in shared memory",
     RUN(no_syncwarp, {1, 32, 0}, (int *)out)},
    {"__syncwarp of other lanes", "race in shared memory", RUN(wrong_half, {1, 32, 0}, (int *)out)},
    {"__syncwarp of another warp", "race in shared memory",
     RUN(anothers_syncwarp, {1, 64, 0}, (int *)out)},
    {"a block tells without a fence", "race in global memory",
     [] { run_last_adds_up(FENCE_BEFORE); }},
    {"a block tells before all have stored", "race in global memory",
     [] { run_last_adds_up(BARRIER); }},
    {"a block tells by a counter of its own", "race in global memory",
     [] { run_last_adds_up(OWN_COUNTER); }},
    {"a block is told, and has no fence", "race in global memory",
     [] { run_last_adds_up(FENCE_BEHIND); }},
    {"a block tells before it stores", "race in global memory",
     RUN(told_too_early, {2, 1, 0}, (int *)filled(4), (int *)filled(8), (unsigned *)filled(4))},
    {"two blocks write", "race in global memory", RUN(blocks_write, {2, 32, 0}, (int *)out)},
    {"a block reads what another writes", "race in global memory",
     RUN(blocks_read, {2, 32, 0}, (int *)out)},
    {"a block writes what another has read", "race in global memory",
     RUN(in_place, {2, 64, 0}, (int *)out)},
    {"atomic and not", "race in global memory", RUN(half_atomic, {1, 64, 0}, (int *)out)},
    {"a read beside atomics", "race in global memory",
     RUN(atomic_and_read, {1, 64, 0}, (int *)out)},
    {"one element too far", "out of bounds", RUN(behind, {1, 64, 0}, in)},
    {"one element ahead", "out of bounds", RUN(ahead, {1, 64, 0}, in, out)},
    {"a pointer to the heap", "out of bounds",
     RUN(dereference, {1, 4, 0}, (float *)calloc(4, 4), out)},
    {"a pointer to the host's stack", "out of bounds",
     [] {
       volatile float host[4] = {1};
       run(dereference, {1, 4, 0}, (float *)host, out);
     }},
    {"memory in a recording", "is allocated or released while launches are recorded",
     [] { replay((int *)filled(512), (int *)out, (int *)out + 64, 2, allocate_more); }},
    {"a mark that does not exist", "waits for what never comes", wait_for_ever},
    {"what the other branch reads is overwritten", "on the other branch",
     [] { replay((int *)filled(512), (int *)out, (int *)out + 64, 0, overwrite_a); }},
    {"the same, with an edge to an earlier launch", "on the other branch",
     [] { replay((int *)filled(512), (int *)out, (int *)out + 64, 1, overwrite_a); }},
    {"two branches write the same", "on the other branch",
     [] { replay((int *)filled(512), (int *)out, (int *)out + 64, 0, overwrite_b); }},
    {"what the other branch writes is read", "on the other branch",
     [] { replay((int *)filled(512), (int *)out, (int *)out + 64, 1, read_c); }},
    {"NULL", "out of bounds", RUN(dereference, {1, 4, 0}, (float *)NULL, out)},
    {"released memory", "out of bounds",
     [] {
       float *x = (float *)filled(64);
       simt_release(x);
       run(dereference, {1, 4, 0}, x, out);
     }},
    {"memcpy", "out of bounds", RUN(copy_bytes, {1, 1, 0}, out, in, 64 * 4 + 1)},
    {"dynamic shared memory", "out of bounds", RUN(beyond_shared, {1, 64, 64})},
    {"a row's end, with another row behind it", "out of bounds: index 32 of an array of type 'float [32]'",
     RUN(beyond_a_row, {1, 32, 0}, out)},
    {"local memory of the thread before", "out of bounds", RUN(anothers_local, {1, 2, 0}, out, 0u)},
    {"local memory of the thread behind", "out of bounds", RUN(anothers_local, {1, 2, 0}, out, 1u)},
    {"8 bytes", "misaligned", RUN(misaligned_pair, {1, 1, 0}, out)},
    {"16 bytes", "misaligned", RUN(misaligned_four, {1, 1, 0}, in, out)},
    {"cp.async from", "misaligned", RUN(misaligned_copy, {1, 1, 0}, in)},
    {"cp.async", "out of bounds", RUN(copy_beyond, {1, 32, 0}, in)},
    {"code that is not watched", "its stack is full", RUN(unwatched, {1, 1, 0}, (char *)filled(64))},
    {"recursion without end", "its stack is full", RUN(bottomless, {1, 1, 0}, (int *)out)},
    {"an element that nobody wrote", "uninitialised shared memory",
     RUN(uninitialised, {1, 64, 0}, out)},
    {"a thread of two dimensions", "thread 6 (2, 1, 0): uninitialised shared memory",
     RUN(one_of_eight, {1, {4, 2}, 0}, out)},
    {"an atomic sum that nobody set to 0", "uninitialised shared memory",
     RUN(uninitialised_sum, {1, 64, 0}, (int *)out)},
    {"another block's shared memory", "uninitialised shared memory",
     RUN(left_over, {2, 32, 32}, out)},
    {"a row that nobody wrote", "uninitialised shared memory", RUN(uninitialised_row, {1, 32, 0})},
    {"no wait", "a copy in flight", RUN(no_wait, {1, 16, 0}, (float4 *)in, out)},
    {"a wait for the group before", "a copy in flight",
     RUN(wait_too_short, {1, 16, 0}, (float4 *)in, out)},
    {"a wait without a barrier", "shared memory",
     RUN(wait_without_barrier, {1, 64, 0}, (float4 *)out, out + 1024)},
    {"a wait behind the barrier", "race in shared memory",
     RUN(wait_behind_barrier, {1, 64, 0}, (float4 *)out, out + 1024)},
    {"ldmatrix of a copy", "a copy in flight", RUN(row_in_flight, {1, 32, 0}, (float4 *)out)},
    {"a write to a copy's target", "a copy in flight",
     RUN(target_overwritten, {1, 16, 0}, (float4 *)in)},
    {"a copy over what is still read", "race in shared memory",
     RUN(stage_overwritten, {1, 64, 0}, (float4 *)out, out + 1024)},
    {"copies without a wait", "cp.async not waited for",
     RUN(too_many_copies, {1, 1, 0}, (float4 *)in)},
    {"a thread returns", "not all threads get there", RUN(early_exit, {1, 64, 0})},
    {"barriers at two lines", "not all threads get there", RUN(two_barriers, {1, 64, 0})},
    {"barrier and __syncwarp", "not all threads get there", RUN(deadlock, {1, 64, 0})},
    {"half a warp in a shuffle", "not all threads get there",
     RUN(half_shuffle, {1, 32, 0}, (int *)out)},
    {"a lane outside its own mask", "is not in its own mask",
     RUN(not_in_mask, {1, 32, 0}, (int *)out)},
    {"a lane that takes no part", "reads lane 20, which takes no part",
     RUN(outside_mask, {1, 32, 0}, (int *)out)},
    {"lanes with different masks", "do not agree who takes part", RUN(masks_differ, {1, 32, 0})},
    {"mma without a lane", "not all threads get there", RUN(part_of_a_warp, {1, 32, 0})},
    {"mma in a block of 8 threads", "are no whole warp", RUN(part_of_a_warp, {1, 8, 0})},
    {"too many threads", "cannot be launched", RUN(nothing, {1, 1025, 0})},
    {"no blocks", "cannot be launched", RUN(nothing, {dim3(1, 0), 1, 0})},
    {"too much shared memory", "are too many", RUN(nothing, {1, 1, 228 << 10})},
    {"released twice", "not allocated",
     [] { void *x = filled(8); simt_release(x); simt_release(x); }},
};

#endif
