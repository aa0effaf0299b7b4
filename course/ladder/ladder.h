// course/ladder/ladder.h - six rungs from a plain kernel to what conv.cu does: what they share.
//
// Each rung is a file that stands alone, under 100 lines, and differs from the one before by one
// idea; read them side by side (diff -y 3_mma.cu 4_swizzle.cu). All have this signature:
//
//     void run(const conv_shape *shape, void *z, const void *x, const void *w)
//
//     1_plain.cu         a thread for each result
//     2_tile.cu          what neighbours need is loaded once, into shared memory
//     3_mma.cu           tensor cores multiply
//     4_swizzle.cu       ldmatrix, and pieces that lie where they do not collide
//     5_stages.cu        the next tiles are on their way while this one is multiplied
//     6_convolution.cu   the same product, with the addresses of a convolution
//
// Rungs 1 to 5 compute a 1x1 convolution of stride 1, which is nothing but a matrix product:
//
//     z[m][n] = sum over k of x[m][k] w[n][k]
//
//     rows m      pixels of all images          x: [rows][depth]      bf16
//     columns n   output channels               w: [columns][depth]   bf16
//     depth k     input channels                z: [rows][columns]    bf16, summed in float
//
// Rung 6 takes any convolution of device.h. For all of them depth is a multiple of 32 channels,
// columns one of 8, and pointers are multiples of 16 bytes; rows and columns need not fill a tile.
//
// `make ladder` runs them on the simulator, and on a GPU where one answers (sm_80 or newer), holds
// each result against the reference, and prints what each rung costs.
#ifndef LADDER_H
#define LADDER_H

#include "device.h"

enum { RUNGS = 6 };

typedef struct {
  const char *name;   // of its file
  const char *kernel; // as the simulator's counts name it
  bool convolves;     // 3x3, and stride 2
  void (*run)(const conv_shape *shape, void *z, const void *x, const void *w);
} rung;

// What a kernel has cost so far, of the simulated memories and tensor cores.
typedef struct {
  uint64_t sectors;    // of 32 bytes, from and to global memory
  uint64_t wavefronts; // turns of shared memory
  uint64_t least;      // of them, without bank conflicts
  uint64_t products;   // mma instructions of a warp
} ladder_cost;

#ifdef __cplusplus
extern "C" {
#endif
const rung *simt_ladder(void); // [RUNGS]
const rung *cuda_ladder(void);
ladder_cost simt_ladder_cost(const char *kernel);
#ifdef __cplusplus
}

#include "gpu/tile.h" // copy_async, load_matrices and mma_16x8x16, which CUDA has no words for

namespace GPU {

void run_plain(const conv_shape *shape, void *z, const void *x, const void *w);
void run_tile(const conv_shape *shape, void *z, const void *x, const void *w);
void run_mma(const conv_shape *shape, void *z, const void *x, const void *w);
void run_swizzle(const conv_shape *shape, void *z, const void *x, const void *w);
void run_stages(const conv_shape *shape, void *z, const void *x, const void *w);
void run_convolution(const conv_shape *shape, void *z, const void *x, const void *w);

static inline __host__ __device__ int rows_of(const conv_shape &s) {
  return s.batch * s.out_height * s.out_width;
}

} // namespace GPU
#endif

#endif
