// simt_test.cpp - does the simulator catch what it claims to, and nothing else?
//
// One small broken kernel for each kind of mistake: it runs in a child process, forward and with
// warps and lanes reversed, and must end with one line that names the mistake, the kernel, and the
// lines that FIRST and SECOND mark. Then kernels with unusual but legal code, which must pass; counts
// of bank conflicts and sectors; and ldmatrix, mma and shuffles against the PTX manual's formulas.
// This file is compiled as watched kernels are, by g++ with -fsanitize=thread.
#include "../simt/simt.h"
#include "check.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST mark(0, __LINE__),
#define SECOND mark(1, __LINE__),

static int *marked; // [2], seen by the parent

__attribute__((noinline, no_sanitize("thread"))) static void mark(int which, int line) {
  marked[which] = line;
}

static void *filled(size_t bytes) { // device memory, of zeroes
  return memset(simt_allocate(bytes), 0, bytes);
}

template <typename... P, typename... A>
static void run(void (*kernel)(P...), launch_shape shape, A... arguments) {
  launch("kernel_under_test", kernel, shape, arguments...);
}

// -- Broken kernels: races ---------------------------------------------------------------------------

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

static __global__ void blocks_write(int *out) {
  FIRST out[threadIdx.x] = blockIdx.x;
}

static __global__ void blocks_read(int *out) {
  FIRST out[blockIdx.x * 32 + threadIdx.x] = 1;
  SECOND out[64 + blockIdx.x * 32 + threadIdx.x] = out[(1 - blockIdx.x) * 32 + threadIdx.x];
}

static __global__ void half_atomic(int *out) {
  if (threadIdx.x == 40)
    FIRST out[0] = 7;
  else
    SECOND atomicAdd(out, 1);
}

// -- Broken kernels: bounds and alignment --------------------------------------------------------------

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
static __global__ void anothers_local(float *out) {
  __shared__ float *pointer;
  float local[4] = {0, 1, 2, (float)out[0]};
  if (threadIdx.x == 0) pointer = &local[out[1] > 0];
  __syncthreads();
  if (threadIdx.x == 1) FIRST out[0] = *pointer;
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
static __attribute__((noinline, no_sanitize("thread"))) void write_unwatched(char *where) {
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

// -- Broken kernels: shared memory that nobody wrote, and copies under way -----------------------------

static __global__ void uninitialised(float *out) {
  __shared__ float s[64];
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  FIRST out[threadIdx.x] = s[threadIdx.x];
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

// -- Broken kernels: barriers and warp operations --------------------------------------------------------

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
static __global__ void part_of_a_warp() {
  float c[4] = {0};
  const uint32_t a[4] = {0}, b[2] = {0};
  if (threadIdx.x == 9) return;
  FIRST multiply_add(c, a, b);
}
static __global__ void nothing() {
}

// -- All of them -----------------------------------------------------------------------------------------

static float *in, *out; // 64 and 4096 floats on the device

struct broken {
  const char *name, *message;
  void (*run)();
};
static const broken all_broken[] = {
    {"no barrier between a write and a read", "race in shared memory", [] { run(no_barrier, {1, 64, 0}, (int *)out); }},
    {"two threads write", "race in shared memory", [] { run(two_writers, {1, 64, 0}, (int *)out); }},
    {"no barrier between a read and a write", "race in shared memory", [] { run(overwritten, {1, 64, 0}, (int *)out); }},
    {"a reader behind another", "race in shared memory", [] { run(two_readers, {1, 64, 0}, (int *)out); }},
    {"a race for one byte", "race in shared memory", [] { run(one_byte, {1, 64, 0}, (int *)out); }},
    {"a shuffle does not order memory", "race in shared memory", [] { run(no_syncwarp, {1, 32, 0}, (int *)out); }},
    {"__syncwarp of other lanes", "race in shared memory", [] { run(wrong_half, {1, 32, 0}, (int *)out); }},
    {"two blocks write", "race in global memory", [] { run(blocks_write, {2, 32, 0}, (int *)out); }},
    {"a block reads what another writes", "race in global memory", [] { run(blocks_read, {2, 32, 0}, (int *)out); }},
    {"atomic and not", "race in global memory", [] { run(half_atomic, {1, 64, 0}, (int *)out); }},
    {"one element too far", "out of bounds", [] { run(behind, {1, 64, 0}, in); }},
    {"one element ahead", "out of bounds", [] { run(ahead, {1, 64, 0}, in, out); }},
    {"a pointer to the heap", "out of bounds", [] { run(dereference, {1, 4, 0}, (float *)calloc(4, 4), out); }},
    {"a pointer to the host's stack", "out of bounds", [] { volatile float host[4] = {1}; run(dereference, {1, 4, 0}, (float *)host, out); }},
    {"NULL", "out of bounds", [] { run(dereference, {1, 4, 0}, (float *)NULL, out); }},
    {"released memory", "out of bounds", [] { float *x = (float *)filled(64); simt_release(x); run(dereference, {1, 4, 0}, x, out); }},
    {"memcpy", "out of bounds", [] { run(copy_bytes, {1, 1, 0}, out, in, 64 * 4 + 1); }},
    {"dynamic shared memory", "out of bounds", [] { run(beyond_shared, {1, 64, 64}); }},
    {"another thread's local memory", "out of bounds", [] { run(anothers_local, {1, 2, 0}, out); }},
    {"8 bytes", "misaligned", [] { run(misaligned_pair, {1, 1, 0}, out); }},
    {"16 bytes", "misaligned", [] { run(misaligned_four, {1, 1, 0}, in, out); }},
    {"cp.async from", "misaligned", [] { run(misaligned_copy, {1, 1, 0}, in); }},
    {"cp.async", "out of bounds", [] { run(copy_beyond, {1, 32, 0}, in); }},
    {"code that is not watched", "no memory there", [] { run(unwatched, {1, 1, 0}, (char *)filled(64)); }},
    {"recursion without end", "stack overflow", [] { run(bottomless, {1, 1, 0}, (int *)out); }},
    {"an element that nobody wrote", "uninitialised shared memory", [] { run(uninitialised, {1, 64, 0}, out); }},
    {"another block's shared memory", "uninitialised shared memory", [] { run(left_over, {2, 32, 32}, out); }},
    {"a row that nobody wrote", "uninitialised shared memory", [] { run(uninitialised_row, {1, 32, 0}); }},
    {"no wait", "a copy in flight", [] { run(no_wait, {1, 16, 0}, (float4 *)in, out); }},
    {"a wait for the group before", "a copy in flight", [] { run(wait_too_short, {1, 16, 0}, (float4 *)in, out); }},
    {"a wait without a barrier", "shared memory", [] { run(wait_without_barrier, {1, 64, 0}, (float4 *)out, out + 1024); }},
    {"ldmatrix of a copy", "a copy in flight", [] { run(row_in_flight, {1, 32, 0}, (float4 *)out); }},
    {"a write to a copy's target", "a copy in flight", [] { run(target_overwritten, {1, 16, 0}, (float4 *)in); }},
    {"a copy over what is still read", "race in shared memory", [] { run(stage_overwritten, {1, 64, 0}, (float4 *)out, out + 1024); }},
    {"copies without a wait", "cp.async not waited for", [] { run(too_many_copies, {1, 1, 0}, (float4 *)in); }},
    {"a thread returns", "not all threads get there", [] { run(early_exit, {1, 64, 0}); }},
    {"barriers at two lines", "not all threads get there", [] { run(two_barriers, {1, 64, 0}); }},
    {"barrier and __syncwarp", "not all threads get there", [] { run(deadlock, {1, 64, 0}); }},
    {"half a warp in a shuffle", "not all threads get there", [] { run(half_shuffle, {1, 32, 0}, (int *)out); }},
    {"a lane outside its own mask", "is not in its own mask", [] { run(not_in_mask, {1, 32, 0}, (int *)out); }},
    {"a lane that takes no part", "reads lane 20, which takes no part", [] { run(outside_mask, {1, 32, 0}, (int *)out); }},
    {"mma without a lane", "not all threads get there", [] { run(part_of_a_warp, {1, 32, 0}); }},
    {"mma in a block of 24 threads", "are no whole warp", [] { run(part_of_a_warp, {1, 8, 0}); }},
    {"too many threads", "cannot be launched", [] { run(nothing, {1, 1025, 0}); }},
    {"no blocks", "cannot be launched", [] { run(nothing, {dim3(1, 0), 1, 0}); }},
    {"too much shared memory", "are too many", [] { run(nothing, {1, 1, 228 << 10}); }},
    {"released twice", "not allocated", [] { void *x = filled(8); simt_release(x); simt_release(x); }},
};

// Runs it in a child; what it wrote on stderr, and whether it ended with status 1.
static bool run_child(void (*body)(), char *text, size_t size) {
  int ends[2], status;
  if (pipe(ends)) return false;
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    body();
    exit(0);
  }
  close(ends[1]);
  size_t n = 0;
  for (ssize_t got; (got = read(ends[0], text + n, size - 1 - n)) > 0;) n += got;
  text[n] = 0;
  close(ends[0]);
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static bool names_line(const char *text, int line) {
  char place[60];
  snprintf(place, sizeof place, "simt_test.cpp:%d", line);
  const char *found = strstr(text, place);
  return !line || (found && !strchr("0123456789", found[strlen(place)]));
}

static void check_broken(const broken *b) {
  char text[4000];
  marked[0] = marked[1] = 0;
  const bool ended = run_child(b->run, text, sizeof text);
  const char *end = strchr(text, '\n');
  const bool one_line = end && !end[1];
  if (!check(ended && one_line && !strncmp(text, "simt: ", 6) && strstr(text, b->message) &&
                 names_line(text, marked[0]) && names_line(text, marked[1]),
             "caught%s: %s: %s", simt_reversed ? ", reversed" : "", b->message, b->name) || getenv("SHOW"))
    printf("     %s (expected lines %d and %d)\n", text, marked[0], marked[1]);
}

// -- Unusual but legal kernels ---------------------------------------------------------------------------

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

// A reduction within a warp over shared memory, ordered by __syncwarp alone; then only lanes 0 and 1
// meet, and lanes 1 and 2: what lane 0 wrote has come to lane 2.
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
    {"blocks and grids of three dimensions",
     [] {
       run(three_dimensions<105>, {dim3(2, 3, 4), dim3(3, 5, 7), 0}, numbers);
       return numbers[23 * 105] == 104 % 32 && numbers[23 * 105 + 104] == 0;
     }},
};

static const legal *legal_now;

static void check_legal(const legal *l) {
  char text[4000];
  legal_now = l;
  const bool ended = run_child(
      [] {
        numbers = (int *)filled(16384), more = (int *)filled(16384);
        exit(legal_now->run() ? 1 : 2);
      },
      text, sizeof text);
  if (!check(ended && !text[0], "passes%s: %s", simt_reversed ? ", reversed" : "", l->name))
    printf("     %s\n", text);
}

// The order of the threads is not promised, so what depends on it shows in the result.
__attribute__((no_sanitize("thread"))) static __global__ void last_one_wins(int *out) {
  __shared__ int s;
  s = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s;
}

static void check_order() {
  int *result = (int *)filled(64 * sizeof *result), last[2];
  for (int order = 0; order < 2; order++) {
    simt_reversed = order;
    run(last_one_wins, {1, 64, 0}, result);
    last[order] = result[7];
  }
  check(last[0] == 63 && last[1] == 0, "forward and reversed, a race gives different results");
}

// -- Bank conflicts and sectors --------------------------------------------------------------------------

static __global__ void read_words(float *out, int stride, int offset) {
  __shared__ float s[1025];
  for (int i = threadIdx.x; i < 1025; i += 32) s[i] = 0; // 33 requests
  __syncthreads();
  out[threadIdx.x] = s[(threadIdx.x * stride + offset) % 1024];
}
static __global__ void read_eights(float *out, int stride) {
  __shared__ float2 s[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) s[i].x = s[i].y = 0;
  __syncthreads();
  const float2 pair = s[threadIdx.x * stride % 1024];
  out[threadIdx.x] = pair.x;
}
static __global__ void read_sixteens(float *out, int stride) {
  __shared__ float4 s[512];
  for (int i = threadIdx.x; i < 512; i += 32) s[i] = *(float4 *)out;
  __syncthreads();
  const float4 four = s[threadIdx.x * stride % 512];
  out[threadIdx.x] = four.w;
}
static __global__ void read_rows(int pitch) {
  DYNAMIC_SHARED(s);
  uint32_t matrix[4];
  for (int i = threadIdx.x; i < 32 * pitch; i += 32) s[i] = 0;
  __syncthreads();
  load_matrices(matrix, s + threadIdx.x * pitch);
}
static __global__ void copy_strided(const float *from, float *to, int stride, int offset) {
  to[threadIdx.x] = from[threadIdx.x * stride + offset];
}

// What a launch adds to the counts.
template <typename... P, typename... A>
static simt_cost cost_of(bool shared, void (*kernel)(P...), size_t bytes, A... arguments) {
  const simt_cost before = simt_count("kernel_under_test", shared);
  run(kernel, {1, 32, bytes}, arguments...);
  const simt_cost after = simt_count("kernel_under_test", shared);
  return {after.requests - before.requests, after.parts - before.parts, after.ideal - before.ideal};
}

static void check_cost(const char *what, simt_cost c, int requests, int parts, int ideal) {
  check((int)c.requests == requests && (int)c.parts == parts && (int)c.ideal == ideal,
        "%s: %d requests, %d parts, %d ideal; counted %d, %d, %d", what, requests, parts, ideal,
        (int)c.requests, (int)c.parts, (int)c.ideal);
}

static void check_costs() {
  simt_counting = true;
  float *from = (float *)filled(8192 * sizeof *from), *to = (float *)filled(256);
  check_cost("words side by side", cost_of(true, read_words, 0, to, 1, 0), 34, 34, 34);
  check_cost("all lanes the same word", cost_of(true, read_words, 0, to, 0, 5), 34, 34, 34);
  check_cost("every second word", cost_of(true, read_words, 0, to, 2, 0), 34, 35, 34);
  check_cost("every 32nd word", cost_of(true, read_words, 0, to, 32, 3), 34, 65, 34);
  check_cost("every 33rd word", cost_of(true, read_words, 0, to, 33, 0), 34, 34, 34);
  check_cost("8 bytes side by side", cost_of(true, read_eights, 0, to, 1), 65, 64 * 2 + 2, 65 * 2 - 64);
  check_cost("16 bytes side by side", cost_of(true, read_sixteens, 0, to, 1), 17, 68, 68);
  check_cost("16 bytes, every second", cost_of(true, read_sixteens, 0, to, 2), 17, 72, 68);
  check_cost("ldmatrix, rows of 16 bytes", cost_of(true, read_rows, 512, 16), 17, 20, 20);
  check_cost("ldmatrix, rows of 64 bytes", cost_of(true, read_rows, 2048, 64), 65, 64 + 16, 68);
  check_cost("ldmatrix, rows of 128 bytes", cost_of(true, read_rows, 4096, 128), 129, 128 + 32, 132);
  check_cost("ldmatrix, rows of 80 bytes", cost_of(true, read_rows, 2560, 80), 81, 84, 84);
  check_cost("sectors side by side", cost_of(false, copy_strided, 0, from, to, 1, 0), 2, 8, 8);
  check_cost("sectors, off by one word", cost_of(false, copy_strided, 0, from, to, 1, 1), 2, 9, 8);
  check_cost("sectors, one word of each", cost_of(false, copy_strided, 0, from, to, 8, 0), 2, 36, 8);
  check_cost("sectors, one for all", cost_of(false, copy_strided, 0, from, to, 0, 9), 2, 5, 5);
  simt_counting = false;
}

// -- ldmatrix and mma against the manual's formulas --------------------------------------------------------

static uint32_t state = 1; // of a linear congruential generator

static int draw(int below) {
  state = state * 1664525 + 1013904223;
  return (state >> 8) % below;
}

static uint32_t bf16_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> 16;
}

static __global__ void multiply_once(const uint32_t *a, const uint32_t *b, float *c) {
  const int lane = threadIdx.x;
  multiply_add(c + 4 * lane, a + 4 * lane, b + 2 * lane);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": with groupID = lane / 4 and
// threadID_in_group = lane % 4,
//     a_i, i = 0..7:   row groupID if i < 2 or 4 <= i < 6, else groupID + 8;
//                      column threadID_in_group * 2 + (i & 1), + 8 if i >= 4
//     b_i, i = 0..3:   row threadID_in_group * 2 + (i & 1), + 8 if i >= 2; column groupID
//     c_i, i = 0..3:   row groupID, + 8 if i >= 2; column threadID_in_group * 2 + (i & 1)
// Small integers: every product and sum is exact, in any order.
static void check_mma() {
  float a[16][16], b[16][8], c[16][8];
  for (float *x = a[0]; x < a[0] + 256; x++) *x = draw(17) - 8;
  for (float *x = b[0]; x < b[0] + 128; x++) *x = draw(17) - 8;
  for (float *x = c[0]; x < c[0] + 128; x++) *x = draw(201) - 100;
  uint32_t *ra = (uint32_t *)filled(512), *rb = (uint32_t *)filled(256);
  float *rc = (float *)filled(512);
  for (int lane = 0; lane < 32; lane++) {
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; i++) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      ra[lane * 4 + i / 2] |= bf16_of(a[row][column]) << i % 2 * 16;
    }
    for (int i = 0; i < 4; i++) {
      const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      rb[lane * 2 + i / 2] |= bf16_of(b[row][group]) << i % 2 * 16;
      rc[lane * 4 + i] = c[group + (i >= 2 ? 8 : 0)][in_group * 2 + (i & 1)];
    }
  }
  run(multiply_once, {1, 32, 0}, (const uint32_t *)ra, (const uint32_t *)rb, rc);
  int wrong = 0;
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
      float sum = c[row][column];
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      wrong += rc[lane * 4 + i] != sum;
    }
  check(wrong == 0, "mma: 16 x 16 times 16 x 8, spread as the PTX manual says (%d wrong)", wrong);
}

static __global__ void load_once(const uint4 *rows, uint32_t *to, bool transposed) {
  __shared__ uint4 s[32];
  s[threadIdx.x] = rows[threadIdx.x];
  __syncwarp();
  if (transposed)
    load_matrices_transposed(to + 4 * threadIdx.x, &s[threadIdx.x ^ 5]);
  else
    load_matrices(to + 4 * threadIdx.x, &s[threadIdx.x ^ 5]);
}

// PTX ISA, "ldmatrix": threads 8 m .. 8 m + 7 give the addresses of rows 0..7 of matrix m; thread t
// receives elements 2 (t % 4) and the next of row t / 4, with .trans those of the transposed matrix.
static void check_ldmatrix() {
  uint16_t *rows = (uint16_t *)filled(512);
  uint32_t *to = (uint32_t *)filled(512);
  for (int i = 0; i < 256; i++) rows[i] = draw(65536);
  for (int transposed = 0; transposed < 2; transposed++) {
    int wrong = 0;
    run(load_once, {1, 32, 0}, (const uint4 *)rows, to, (bool)transposed);
    for (int t = 0; t < 32; t++)
      for (int m = 0; m < 4; m++)
        for (int i = 0; i < 2; i++) {
          const int row = transposed ? 2 * (t % 4) + i : t / 4;
          const int column = transposed ? t / 4 : 2 * (t % 4) + i;
          wrong += (to[t * 4 + m] >> i * 16 & 0xffff) != rows[((8 * m + row) ^ 5) * 8 + column];
        }
    check(wrong == 0, "ldmatrix%s (%d wrong)", transposed ? ", transposed" : "", wrong);
  }
}

static __global__ void shuffle_once(double *to, int argument, int width) {
  const double mine = threadIdx.x + 0.5;
  to[threadIdx.x] = __shfl_sync(0xffffffff, mine, argument, width);
  to[32 + threadIdx.x] = __shfl_xor_sync(0xffffffff, mine, argument, width);
  to[64 + threadIdx.x] = __shfl_down_sync(0xffffffff, mine, argument, width);
}

// As the CUDA manual describes them: who would read beyond its group of `width` lanes keeps its own;
// of __shfl_xor_sync, groups further up are out of reach.
static void check_shuffles() {
  double *to = (double *)filled(96 * sizeof *to);
  int wrong = 0;
  for (int width = 1; width <= 32; width *= 2)
    for (int argument = 0; argument < 32; argument++) {
      run(shuffle_once, {1, 32, 0}, to, argument, width);
      for (int lane = 0; lane < 32; lane++) {
        const int group = lane - lane % width, end = group + width;
        const int other = lane ^ argument, next = lane + argument;
        wrong += to[lane] != group + argument % width + 0.5;
        wrong += to[32 + lane] != (other < end ? other : lane) + 0.5;
        wrong += to[64 + lane] != (next < end ? next : lane) + 0.5;
      }
    }
  check(wrong == 0, "shuffles of every width and argument (%d wrong)", wrong);
}

int main() {
  marked = (int *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  in = (float *)filled(64 * sizeof *in);
  out = (float *)filled(4096 * sizeof *out);
  for (int order = 0; order < 2; order++) {
    simt_reversed = order;
    for (const broken &b : all_broken) check_broken(&b);
    for (const legal &l : all_legal) check_legal(&l);
    check_mma();
    check_ldmatrix();
    check_shuffles();
  }
  check_order();
  check_costs();
  return check_summary();
}
