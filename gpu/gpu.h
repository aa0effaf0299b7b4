// gpu/gpu.h - how a GPU runs a program, and the few words beyond plain CUDA that the .cu files use.
//
// A *kernel* is a function that the GPU runs many times at once, each time in another *thread*. All
// threads execute the same lines; a thread finds its part of the work from its number. Threads come
// in groups:
//
//     warp    32 threads, its *lanes*. As a rule they execute each line together, but CUDA promises it
//             only at __syncwarp and a warp's own operations. Where a condition divides the lanes, the
//             ways run one after another, each with its own lanes. What the lanes load or store at one
//             line goes to memory as one *request*, cut into *sectors* of 32 bytes. Lanes that touch
//             neighbouring bytes share sectors; lanes that touch bytes far apart cost a whole sector
//             each. A lane that has returned does nothing more.
//     block   up to 1024 threads. They run on the same processor of the GPU (NVIDIA: *streaming
//             multiprocessor*, SM; an H100 has 132) and can work together: they
//             share a small, fast memory, and wait for each other at a barrier.
//     grid    all blocks of one launch. They know nothing of each other and run in any order.
//
// A thread's number in the grid, i, from the three numbers that it can ask for, in blocks of 256:
//
//     blockIdx.x          0                    1                    2         ...
//                  +--------------------+--------------------+--------------------+
//     threadIdx.x  | 0  1  2  ...  255  | 0  1  2  ...  255  | 0  1  2  ...  255  | blockDim.x: 256
//                  +--------------------+--------------------+--------------------+
//     i              0  1  2  ...  255   256 257   ...         512 513             = blockIdx.x *
//                                                                  blockDim.x + threadIdx.x
//
// A block can have two dimensions. Then its threads have a threadIdx.y, too, and are numbered row by row:
// threadIdx.y * blockDim.x + threadIdx.x. A warp is 32 of these numbers in a row.
//
// A cache in each processor keeps sectors that were loaded lately. sm_80 and sm_90 are names of
// generations of processors, the A100's and the H100's.
//
// A processor holds several blocks at once. While one warp waits for memory, another computes; so a
// kernel is fast when there are enough warps, and when enough of their loads are under way.
//
//     __global__               a kernel, which the CPU launches
//     __device__               a function that kernels call; __host__ __device__: the CPU as well
//     __shared__               a variable of which each block has one
//     __syncthreads()          the barrier: waits until all threads of the block have come to it
//     __launch_bounds__(T, N)  blocks have at most T threads, and N blocks shall fit on a processor.
//                              A processor has 65,536 registers, where variables live: the compiler
//                              gives a thread 65,536 / (T N) of them at most. Without N: 65,536 / T. Never more
//                              than 255.
//     __restrict__             what this pointer leads to, no other pointer of the kernel writes: the
//                              compiler may load from it before a store through another
//     #pragma unroll           the loop is written out (with a number: so many rounds of it), so that
//                              array indices become constants and the array can live in registers
//     template <int N>         the compiler writes the function once for each N that it is used with,
//                              as if N were a constant; with <typename T>, once for each type
//
// Of C++ and PTX (the GPU's portable assembler), which a reader of C may not know:
//
//     const T &x               x is passed by address, and used like a value
//     typename... P            any number of types
//     uint2, float4, ..        two or four numbers, loaded with one instruction; dim3: three sizes
//     asm(text : out : in)     one instruction of PTX; %0, %1, .. are the operands, in order
//     __CUDACC__               defined while nvcc compiles; __CUDA_ARCH__ only in code for the GPU,
//                              as 800 for sm_80
//
// Each .cu file is compiled twice: by nvcc, for the device `cuda`, and by g++ on top of simt/,
// which plays the GPU on a CPU, for the device `simt`. What only one of them knows is hidden here:
//
//     launch(name, kernel, {grid, block, shared bytes}, arguments...)
//         starts `grid` blocks of `block` threads; CUDA writes kernel<<<...>>>(...). name is for error
//         messages. launch returns at once. The GPU works through launches in order, and a kernel
//         sees all that earlier launches stored. Shared bytes: the size of DYNAMIC_SHARED.
//     DYNAMIC_SHARED(name)
//         the part of a block's shared memory whose size the launch decides, as bytes
//
// No operation waits for a result, so a step is always the same list of launches. Such a list is
// recorded once and then started as a whole, step after step: gpu/recording.cu.
#ifndef GPU_H
#define GPU_H

extern "C" {
#include "device.h"
}

#ifdef __CUDACC__
#define GPU cuda // the namespace of everything that is compiled twice
#include <cuda_runtime.h>
#else
#define GPU simt
#include "simt/simt.h"
#endif

namespace GPU {

// What each .cu file puts into the table: its plain kernels, or those that training uses.
void fill_mixup(device *d, bool plain);
void fill_conv(device *d, fusions *fused, bool plain);
void fill_resnet18(device *d, fusions *fused, bool plain);
void fill_head(device *d, bool plain);
void fill_smoothing(device *d, bool plain);
void fill_sgd(device *d, bool plain);

// At least `bytes` of device memory for partial results, valid until the next call. The operations of a
// branch run one after another, so all share one piece; the side branch has its own. gpu.cu
void *workspace(size_t bytes);

// `count` counters that are zero, and that a launch leaves zero behind it. gpu.cu
unsigned *counters_of_zero(size_t count);

// gpu/recording.cu
extern const recording_table our_recorder;
bool is_on_side_branch(void);

static inline __host__ __device__ int divide_up(int a, int b) {
  return (a + b - 1) / b;
}
static inline __host__ __device__ int min_of(int a, int b) {
  return a < b ? a : b;
}

enum {
  LANES = 32, // threads of a warp
  // Threads of a block, in most kernels here: whole warps, and enough of them to keep a processor
  // busy while some wait for memory.
  THREADS = 256,
};

// Blocks of THREADS threads for `count` pieces of work, a thread each.
static inline unsigned blocks_for(size_t count) {
  return (unsigned)((count + THREADS - 1) / THREADS);
}

// The number of this thread in the whole grid.
static inline __device__ size_t thread_number() {
  return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// nvcc may compute a value again wherever it is used: that saves a register, and may cost a division each
// time. Behind keep() it has to hold the value.
static inline __device__ void keep(int *value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(*value));
#else
  (void)value;
#endif
}

// -- bf16 -------------------------------------------------------------------------------------------
//
// A bf16 is the upper half of a float: sign, all 8 bits of the exponent, and 7 bits behind the
// point. So a bf16 has a float's range, in half the memory, but 8 bits of precision instead of 24
// (the bit before the point is not stored, it is 1).
//
//     float   s eeeeeeee fffffff ffffffffffffffff          bf16   s eeeeeeee fffffff

typedef struct {
  uint16_t bits;
} bf16;

static inline __host__ __device__ float bits_to_float(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } u = {bits};
  return u.value;
}

static inline __host__ __device__ uint32_t float_to_bits(float value) {
  union {
    float value;
    uint32_t bits;
  } u = {value};
  return u.bits;
}

static inline __host__ __device__ float to_float(bf16 x) {
  return bits_to_float((uint32_t)x.bits << 16);
}

// To the nearest. Adding 0x7fff carries into the upper half where the lower one is more than
// 0x8000, and adding 1 besides, where the upper half is odd, carries at 0x8000 itself: a tie goes
// to even. A NaN has an exponent of ones and any fraction but 0. Its fraction may lie in the lower
// half alone, and without that half it would be an infinity. So every NaN becomes the same one.
static inline __host__ __device__ bf16 to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  bf16 result;
  if ((bits & 0x7fffffff) > 0x7f800000)
    result.bits = 0x7fff;
  else
    result.bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return result;
}

// Two neighbours in one register of 32 bits, the first in the low half.
static inline __host__ __device__ uint32_t to_pair(float first, float second) {
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ >= 800
  uint32_t pair; // the same rounding in one instruction
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return to_bf16(first).bits | (uint32_t)to_bf16(second).bits << 16;
#endif
}
static inline __host__ __device__ float first_of(uint32_t pair) {
  return bits_to_float(pair << 16);
}
static inline __host__ __device__ float second_of(uint32_t pair) {
  return bits_to_float(pair & 0xffff0000);
}

// Eight neighbours as floats. In memory they are 16 bytes, the most that one thread can load or
// store at once; the address must be a multiple of 16.
enum { EIGHT = 8 };
typedef struct {
  float value[EIGHT];
} float8;

static inline __device__ float8 load_floats(const float *from) {
  const float4 low = *(const float4 *)from, high = *(const float4 *)(from + 4);
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}
static inline __device__ float8 load_bf16x8(const bf16 *from) {
  const uint4 raw = *(const uint4 *)from;
  return {{first_of(raw.x), second_of(raw.x), first_of(raw.y), second_of(raw.y), first_of(raw.z),
           second_of(raw.z), first_of(raw.w), second_of(raw.w)}};
}
static inline __device__ void store_bf16x8(bf16 *to, const float8 &x) {
  uint4 raw;
  raw.x = to_pair(x.value[0], x.value[1]);
  raw.y = to_pair(x.value[2], x.value[3]);
  raw.z = to_pair(x.value[4], x.value[5]);
  raw.w = to_pair(x.value[6], x.value[7]);
  *(uint4 *)to = raw;
}

#ifdef __CUDACC__

// -- Launching, with every error caught ------------------------------------------------------------

// Ends the process with a line unless e is cudaSuccess. what: the call or kernel. gpu.cu
void check_cuda(cudaError_t e, const char *what);

// Where launches and copies queue: the branch at work. gpu/recording.cu
cudaStream_t stream_at_work(void);
extern bool launches_are_left_out;

typedef struct {
  dim3 grid, block;
  size_t shared_bytes;
} launch_shape;

template <typename... P, typename... A>
static inline void launch(const char *name, void (*kernel)(P...), launch_shape s, A... arguments) {
  // A kernel that wants more than 48 KB of shared memory has to say so first. This also makes CUDA load the
  // kernel, which it does when the program first names it (CUDA Programming Guide, "Lazy Loading"): in the
  // pass that leaves launches out, and not while a step is recorded.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)s.shared_bytes),
             name);
  if (launches_are_left_out) return;
  kernel<<<s.grid, s.block, s.shared_bytes, stream_at_work()>>>(static_cast<P>(arguments)...);
  check_cuda(cudaGetLastError(), name);
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#endif // __CUDACC__

} // namespace GPU

#endif
