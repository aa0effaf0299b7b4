// gpu/gpu.h - the few words beyond plain CUDA in which the .cu files speak to a GPU.
//
// Each .cu file is compiled twice: by nvcc, for the device `cuda`, and by g++ on top of simt/, which
// plays the GPU on a CPU, for the device `simt`. What only one of them knows is hidden here:
//
//     launch(name, kernel, {grid, block, shared bytes}, arguments...)   instead of kernel<<<...>>>
//     DYNAMIC_SHARED(name)       the block's dynamic shared memory, as bytes
//     copy_async, commit_copies, wait_for_copies       global -> shared memory behind one's back
//     load_matrices, load_matrices_transposed, multiply_add              the tensor cores
//     bf16, pairs and eights of it: how activations lie in memory
//
// A bf16 is the upper half of a float: the same range, 8 bits of precision instead of 24. A tensor
// core multiplies bf16 numbers exactly and adds in float.
#ifndef GPU_H
#define GPU_H

#include "device.h"

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
void fill_conv(device *d, bool plain);
void fill_resnet18(device *d, bool plain);
void fill_smoothing(device *d, bool plain);
void fill_sgd(device *d, bool plain);

// At least `bytes` of device memory for partial results, valid until the next call: operations run
// one after another, so they share one piece. gpu.cu
void *workspace(size_t bytes);

static inline __host__ __device__ int divide_up(int a, int b) {
  return (a + b - 1) / b;
}
static inline __host__ __device__ int min_of(int a, int b) {
  return a < b ? a : b;
}

// Most kernels here run in blocks of so many threads: a multiple of 32, and enough of them to keep a
// processor of the GPU busy while some wait for memory. mixup.cu explains blocks and threads.
enum { THREADS = 256 };

// Blocks of THREADS threads for `count` pieces of work, a thread each.
static inline unsigned blocks_for(size_t count) {
  return (unsigned)((count + THREADS - 1) / THREADS);
}

// The number of this thread in the whole grid.
static inline __device__ size_t thread_number() {
  return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// -- bf16 -------------------------------------------------------------------------------------------

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

// To the nearest, ties to even; a NaN stays one (its low half alone must not be what made it one).
static inline __host__ __device__ bf16 to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  bf16 result;
  if ((bits & 0x7fffffff) > 0x7f800000)
    result.bits = 0x7fff;
  else
    result.bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  return result;
}

// Two neighbours in one register, the first in the low half.
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

// Eight neighbours: 16 bytes, the most that one thread can load or store at once.
enum { EIGHT = 8 };
typedef struct {
  float value[EIGHT];
} float8;

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

typedef struct {
  dim3 grid, block;
  size_t shared_bytes;
} launch_shape;

template <typename... P, typename... A>
static inline void launch(const char *name, void (*kernel)(P...), launch_shape s, A... arguments) {
  enum { USUAL_LIMIT = 48 << 10 }; // beyond it a kernel has to ask
  if (s.shared_bytes > USUAL_LIMIT)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)s.shared_bytes),
               name);
  kernel<<<s.grid, s.block, s.shared_bytes>>>(static_cast<P>(arguments)...);
  check_cuda(cudaGetLastError(), name);
}

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// -- Tensor cores and asynchronous copies: PTX, from sm_80 on ---------------------------------------

// The instructions that a GPU has to be an sm_80 for. Older ones never get to a kernel that uses them:
// gpu.cu gives them the plain convolution.
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 800
#define SM_80(...) __trap()
#else
#define SM_80(...) asm volatile(__VA_ARGS__)
#endif

// 16 bytes from global to shared memory, both addresses multiples of 16, without a register between
// and without waiting; zeroes where !valid. Seen by this thread after wait_for_copies, by others
// after a barrier behind that. PTX ISA, "cp.async".
static inline __device__ void copy_async(void *shared, const void *global, bool valid) {
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
  SM_80("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid ? 16 : 0)
        : "memory");
}
// Closes a group of copies.
static inline __device__ void commit_copies() {
  SM_80("cp.async.commit_group;" ::: "memory");
}
// Waits until at most the newest `groups_left` groups are still under way.
template <int groups_left> static inline __device__ void wait_for_copies() {
  SM_80("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

// Four matrices of 8 x 8 bf16 from shared memory: lane l names row l % 8 of matrix l / 8 and
// receives in to[j] elements 2 (l % 4) and the next of row l / 4 of matrix j; transposed, of column
// l / 4. PTX ISA, "ldmatrix".
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

// c += a b for a warp: a 16 x 16, b 16 x 8, c 16 x 8, spread over the lanes' registers. With
// g = lane / 4 and t = 2 (lane % 4), pairs and floats are
//     a[0]: a[g][t, t + 1]   a[1]: a[g + 8][t, ..]   a[2]: a[g][t + 8, ..]   a[3]: a[g + 8][t + 8, ..]
//     b[0]: b[t, t + 1][g]   b[1]: b[t + 8, ..][g]
//     c[0], c[1]: c[g][t, t + 1]                     c[2], c[3]: c[g + 8][t, t + 1]
// PTX ISA, "mma.m16n8k16".
static inline __device__ void multiply_add(float c[4], const uint32_t a[4], const uint32_t b[2]) {
  SM_80("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif // __CUDACC__

} // namespace GPU

#endif
