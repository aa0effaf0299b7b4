// simt/simt.h - how a GPU runs your kernel: enough of CUDA for g++ to compile the .cu files, in a
// program that you can step through with gdb.
//
// A GPU starts a grid of blocks of threads. The threads of a block share a small fast memory and
// can wait for each other (__syncthreads); each 32 of them, a warp, execute together and can read
// each other's registers (shuffles, ldmatrix, mma). Here, a CUDA thread is a fiber: a stack of its
// own and a place where it stopped. All run in one thread of the operating system, one after
// another:
//
//     for each block                    row by row, or column by column; shared memory is made NaN
//       for each warp                   forward, or reversed: what depends on the order, differs
//         for each lane                 run it up to its next barrier, warp operation, or end
//
// What the hardware leaves undefined is made to hurt: device and shared memory start as NaN; the
// target of a cp.async is NaN until the thread waits for it; a barrier or warp operation that not
// all threads reach is reported with the lines where they are instead. For kernels compiled with
// -fsanitize=thread, watch.cpp adds what only single accesses can show: races, uninitialised memory,
// accesses out of bounds; and cost.cpp counts what the accesses would cost.
//
// It cannot show what this file itself has wrong: the layout of mma's fragments is our reading of
// the PTX manual, the kernels' is the same. Nor do two threads ever run at the same time. Only a
// GPU has the last word. Checked by tests/simt_test.cpp: a broken kernel for each kind of mistake.
#ifndef SIMT_H
#define SIMT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// Static shared memory. One block runs at a time, so one copy is enough; as thread-local variables
// all of it lies together, where watch.cpp finds it to poison it.
#define __shared__ static __thread

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// Where a call stands in the kernel's source. As defaults of a default, these are the caller's.
struct site {
  const char *file;
  int line;
};
static inline site here(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

// -- Barriers and warp operations -----------------------------------------------------------------

void __syncthreads(site where = here());
void __syncwarp(unsigned mask = 0xffffffff, site where = here());

// A warp operation: each lane of `mask` brings its own `data`; the last to arrive lets `act` work
// on all of them, in one go, and then all continue. data[lane] is NULL for lanes that take no part:
// not in the mask, or no longer running. CUDA: "all non-exited threads named in mask must execute
// the same intrinsic with the same mask".
enum { WARP = 32 };
typedef void simt_action(void *data[WARP]);
void simt_together(const char *name, unsigned mask, void *data, simt_action *act, site where);

struct simt_shuffle { // every lane shows `value` and takes that of lane `from`
  uint64_t value, taken;
  int from;
};
simt_action simt_exchange;

template <typename T>
static inline T simt_take(const char *name, unsigned mask, T value, int from, site where) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves a register or two");
  simt_shuffle s = {0, 0, from};
  memcpy(&s.value, &value, sizeof value);
  simt_together(name, mask, &s, simt_exchange, where);
  memcpy(&value, &s.taken, sizeof value);
  return value;
}

static inline int simt_lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % WARP;
}

// width, a power of two, cuts the warp into groups; who would look beyond his own takes his own.
template <typename T>
static inline T __shfl_sync(unsigned mask, T x, int source, int width = WARP, site where = here()) {
  const int from = (simt_lane() & -width) | (source & (width - 1));
  return simt_take("__shfl_sync", mask, x, from, where);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T x, int bits, int width = WARP, site at = here()) {
  const int lane = simt_lane(), from = lane ^ bits;
  return simt_take("__shfl_xor_sync", mask, x, from <= (lane | (width - 1)) ? from : lane, at);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T x, int distance, int width = WARP,
                                 site at = here()) {
  const int lane = simt_lane(), from = lane + distance;
  return simt_take("__shfl_down_sync", mask, x, from <= (lane | (width - 1)) ? from : lane, at);
}

// True if the kernels were compiled with hooks (watch.cpp). A program may make it false, but not true.
extern bool simt_watching;
extern void (*simt_on_launch)(const struct simt_launch *); // see below

// Fibers change places only where they wait, so an addition is atomic by itself; watch.cpp is told.
void simt_atomic(void *address, size_t bytes, site where);

#define NOT_WATCHED __attribute__((no_sanitize("thread")))
template <typename T>
NOT_WATCHED static inline T atomicAdd(T *address, T value, site where = here()) {
  static_assert((T)0.5 == 0, "the order of floating-point additions changes the sum");
  simt_atomic(address, sizeof *address, where);
  const T before = *address;
  *address = before + value;
  return before;
}

// *address + 1, or 0 where it was `last` already. Returns what it was. (Where addresses count and values
// do not, simt_on_launch, it counts nothing: not all blocks run.)
NOT_WATCHED static inline unsigned atomicInc(unsigned *address, unsigned last,
                                             site where = here()) {
  simt_atomic(address, sizeof *address, where);
  const unsigned before = simt_on_launch ? 0 : *address;
  if (!simt_on_launch) *address = before >= last ? 0 : before + 1;
  return before;
}

// What this thread has stored comes before what it does next, for all threads of the GPU (order.cpp).
void simt_fence();
static inline void __threadfence() {
  if (simt_watching) simt_fence();
}

// The tensor cores' operations and asynchronous copies; gpu/tile.h says what they do.
void copy_async(void *shared, const void *global, bool valid, site where = here());
void commit_copies();
void simt_wait(int groups_left);
template <int groups_left> static inline void wait_for_copies() {
  simt_wait(groups_left);
}
void load_matrices(uint32_t to[4], const void *row, site where = here());
void load_matrices_transposed(uint32_t to[4], const void *row, site where = here());
void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2], site where = here());

// -- Launching a kernel, and its memory -----------------------------------------------------------

struct launch_shape {
  dim3 grid, block;
  size_t shared_bytes; // dynamic shared memory of a block
};

// Runs `body` once a thread. argument: handed on to it.
void simt_run(const char *kernel, launch_shape shape, void (*body)(void *argument), void *argument);

// What `launch` does: runs the kernel; nothing; or notes it, with a copy of its arguments, in a list
// (recording.cpp).
enum simt_mode { RUN_LAUNCHES, LEAVE_OUT_LAUNCHES, NOTE_LAUNCHES };
extern simt_mode simt_launches;
void simt_note(const char *kernel, launch_shape shape, void (*body)(void *argument),
               const void *argument, size_t bytes);

template <typename... P, typename... A>
static inline void launch(const char *name, void (*kernel)(P...), launch_shape shape,
                          A... arguments) {
  auto call = [=]() NOT_WATCHED { kernel(static_cast<P>(arguments)...); }; // from the host's memory
  typedef decltype(call) bound;
  static_assert(__is_trivially_copyable(bound), "a copy of its bytes is a copy of it");
  const auto body = [](void *it) { (*static_cast<bound *>(it))(); };
  if (simt_launches == RUN_LAUNCHES) simt_run(name, shape, body, &call);
  if (simt_launches == NOTE_LAUNCHES) simt_note(name, shape, body, &call, sizeof call);
}

// A list of launches with a side branch, as device.h's recording_table defines it.
struct simt_list;
simt_list *simt_begin_list();      // what is noted from now on goes there
void simt_on_side(bool side);      // to its side branch, or its main branch
int simt_side_mark();              // how many launches the side branch has
void simt_wait_for_side(int mark); // by what the main branch notes from now on
void simt_run_list(const simt_list *list);
void simt_free_list(simt_list *list);
// Whether a side branch runs as late as it may, and not as early. From the start if $SIMT_SIDE_LATE is set.
extern bool simt_side_late;

unsigned char *simt_dynamic_shared();
#define DYNAMIC_SHARED(name) unsigned char *name = simt_dynamic_shared()

void *simt_allocate(size_t bytes); // of device memory, as NaN; NULL: there is no more
void simt_release(void *memory);

// Whether the last warp, lane and column of blocks go first. From the start if $SIMT_REVERSED is set.
extern bool simt_reversed;
extern bool simt_counting; // what accesses cost; $SIMT_REPORT prints it at the end of the program

struct simt_cost {
  uint64_t requests, parts, ideal; // of warps; wavefronts or sectors they took; the least possible
};
simt_cost simt_count(const char *kernel, bool shared);
extern int simt_most_accesses; // of one thread of a block to memory, while they are counted
extern uint64_t simt_products; // mma instructions so far, one for the 32 lanes of a warp

// What one launch costs, for bench/cost.cpp. While simt_on_launch is set, addresses count and
// values do not: only a share of the blocks runs, without races being looked for, and the tensor
// cores compute nothing. cost.cpp says how the rest is found.
struct simt_launch {
  const char *kernel;
  double mma;           // products of 16 x 8 x 16
  double read, written; // sectors of global memory, each once
  double requested;     // sectors, each as often as a warp asks for it
  double turns, least;  // of shared memory, and the least possible: simt_cost's parts and ideal
};

#ifdef __SANITIZE_THREAD__ // g++ tells the watcher about assignments, but not about these
void *simt_bytes(const void *address, size_t bytes, bool write);
#define memcpy(to, from, n) memcpy(simt_bytes(to, n, true), simt_bytes(from, n, false), n)
#define memset(to, value, n) memset(simt_bytes(to, n, true), value, n)
#endif

#endif
