#ifndef GPU_TILE_H
#define GPU_TILE_H

#include "gpu/gpu.h"

namespace GPU {

#ifdef __CUDACC__

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
