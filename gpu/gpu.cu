// gpu/gpu.cu - the devices `cuda` and `simt`: their memory, their errors, and the table of
// operations that the other .cu files fill.
//
// Each device comes a second time, as `cuda-plain` and `simt-plain`, with the plain kernel of each
// file instead of the fast one. The plain devices exist to be read and to be checked, but they
// train as well.
#include "gpu.h"

#include "run/error.h"
#include <string.h>

namespace GPU {

#ifdef __CUDACC__

// -- Errors, with what to do about them ---------------------------------------------------------------

static const char *remedy(cudaError_t e) {
  switch (e) {
  case cudaErrorNoDevice:
    return "no NVIDIA GPU is visible; --device cpu runs without one";
  case cudaErrorInsufficientDriver:
    return "the NVIDIA driver is missing, or older than this program's CUDA: install or update it, "
           "build with an older toolkit (NVCC=), or use --device cpu";
  case cudaErrorNoKernelImageForDevice:
  case cudaErrorInvalidDeviceFunction:
  case cudaErrorUnsupportedPtxVersion:
    return "this program holds no code for this GPU: make clean, then make ARCH=sm_NN with the "
           "number that nvidia-smi --query-gpu=compute_cap prints (and NVCC=FILE of an older "
           "toolkit, if this one does not know the GPU any more)";
  case cudaErrorMemoryAllocation:
    return "the GPU's memory is full: try a smaller --batch or --width";
  case cudaErrorDevicesUnavailable:
    return "another program holds the GPU for itself alone";
  case cudaErrorLaunchTimeout:
    return "the GPU also draws a screen, and may not work longer on one kernel: try a smaller "
           "--batch";
  case cudaErrorSystemNotReady:
  case cudaErrorSystemDriverMismatch:
  case cudaErrorCompatNotSupportedOnDevice:
  case cudaErrorECCUncorrectable:
  case cudaErrorUnknown:
    return "the GPU or its driver is not in order: what does nvidia-smi say?";
  default:
    return "a bug: make sanitize finds where";
  }
}

void check_cuda(cudaError_t e, const char *what) {
  if (e == cudaSuccess) return;
  fprintf(stderr, "cuda: %s: %s (%s)\n", what, cudaGetErrorString(e), remedy(e));
  exit(1);
}

// -- Memory -------------------------------------------------------------------------------------------

static void *allocate_device(size_t bytes) {
  void *memory;
  check_cuda(cudaMalloc(&memory, bytes ? bytes : 1), "cudaMalloc");
  return memory;
}

static void release_device(void *memory) {
  if (memory)
    check_cuda(cudaFree(memory), "cudaFree"); // cudaFree(NULL) would start CUDA where nobody has
}

// The copy is queued behind what has been launched. Small ones, a few for each step, go through a ring of
// *pinned* memory, from which the GPU copies by itself: the host's bytes have been taken when the call
// returns, and nothing is waited for but, now and then, the ring. Large ones, before the first step, come from
// pageable memory and are waited for: of such a copy CUDA says only that it "might be synchronous" (Runtime
// API, "API synchronization behavior"), and the caller may free the bytes.
static void upload(void *device_memory, const void *host, size_t bytes) {
  enum : size_t { RING = 1 << 20, SMALL = RING / 8, ALIGNED = 64 };
  static unsigned char *ring;
  static size_t used;
  const bool small = bytes <= SMALL;
  if (small) {
    if (!ring) check_cuda(cudaMallocHost((void **)&ring, RING), "cudaMallocHost");
    if (used + bytes > RING) {
      check_cuda(cudaStreamSynchronize(stream_at_work()), "copies to the GPU");
      used = 0;
    }
    host = memcpy(ring + used, host, bytes);
    used += (bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
  }
  check_cuda(cudaMemcpyAsync(device_memory, host, bytes, cudaMemcpyHostToDevice, stream_at_work()),
             "copy to the GPU");
  if (!small) check_cuda(cudaStreamSynchronize(stream_at_work()), "copies to the GPU");
}

static void download(void *host, const void *device_memory, size_t bytes) {
  check_cuda(cudaMemcpyAsync(host, device_memory, bytes, cudaMemcpyDeviceToHost, stream_at_work()),
             "copy from the GPU");
  check_cuda(cudaStreamSynchronize(stream_at_work()), "the GPU's work");
}

// Without what launches will take besides: kernels' code, which CUDA loads when they are first named, and
// workspace (below), some KB an image where activations are some MB.
static size_t free_bytes() {
  size_t available, total;
  check_cuda(cudaMemGetInfo(&available, &total), "cudaMemGetInfo");
  const size_t besides = available / 64 + ((size_t)256 << 20);
  return available > besides ? available - besides : 0;
}

// -- What the GPU executes ----------------------------------------------------------------------------

// 800 where it executes code that was compiled for sm_80, or that the driver made of PTX for it.
static __global__ void say_architecture(int *architecture) {
#ifdef __CUDA_ARCH__
  *architecture = __CUDA_ARCH__;
#endif
}

// An error where this program holds no code for the GPU.
static cudaError_t find_architecture(int *architecture) {
  int *there;
  cudaError_t e = cudaMalloc((void **)&there, sizeof *there);
  if (e != cudaSuccess) return e;
  say_architecture<<<1, 1>>>(there);
  e = cudaGetLastError();
  if (e == cudaSuccess) e = cudaMemcpy(architecture, there, sizeof *there, cudaMemcpyDeviceToHost);
  const cudaError_t freed = cudaFree(there);
  return e == cudaSuccess ? freed : e;
}

#else

static void *allocate_device(size_t bytes) {
  void *memory = simt_allocate(bytes);
  if (!memory) out_of_memory(bytes);
  return memory;
}

static void release_device(void *memory) {
  simt_release(memory);
}

static void upload(void *device_memory, const void *host, size_t bytes) {
  memcpy(device_memory, host, bytes);
}

static void download(void *host, const void *device_memory, size_t bytes) {
  memcpy(host, device_memory, bytes);
}

#endif

// A piece that has become too small is kept: work that is queued may use it, and recordings do. Each is
// at least twice as large as the one before, so that all together are less than two of the last.
typedef struct {
  void *memory;
  size_t size;
} piece;

// Whether it had been too small.
static bool grow(piece *p, size_t bytes) {
  if (bytes <= p->size) return false;
  p->size = bytes > 2 * p->size ? bytes : 2 * p->size;
  p->memory = allocate_device(p->size);
  return true;
}

void *workspace(size_t bytes) {
  static piece pieces[2]; // of each branch
  piece *p = &pieces[is_on_side_branch()];
  grow(p, bytes);
  return p->memory;
}

unsigned *counters_of_zero(size_t count) {
  static piece pieces[2];
  piece *p = &pieces[is_on_side_branch()];
  if (grow(p, count * sizeof(unsigned))) {
    void *zeros = allocate(p->size); // host memory comes zeroed (run/error.h)
    upload(p->memory, zeros, p->size);
    free(zeros);
  }
  return (unsigned *)p->memory;
}

static void upload_activations(void *activations, const real *host, activation_shape shape) {
  const size_t count = activation_count(shape);
  bf16 *rounded = (bf16 *)allocate(count * sizeof *rounded);
  for (size_t i = 0; i < count; i++) rounded[i] = to_bf16(host[i]);
  upload(activations, rounded, count * sizeof *rounded);
  free(rounded);
}

static void download_activations(real *host, const void *activations, activation_shape shape) {
  const size_t count = activation_count(shape);
  bf16 *rounded = (bf16 *)allocate(count * sizeof *rounded);
  download(rounded, activations, count * sizeof *rounded);
  for (size_t i = 0; i < count; i++) host[i] = to_float(rounded[i]);
  free(rounded);
}

// -- The table ----------------------------------------------------------------------------------------

static void fill(device *d, fusions *fused, const char *name, bool plain) {
  d->name = name;
  d->activation_bytes = d->rounded_weight_bytes = sizeof(bf16);
  d->block = 1;
  d->asynchronous = true; // the simulator is not, but so the same code runs for both
  d->recorder = &our_recorder;
  d->allocate = allocate_device;
  d->release = release_device;
  d->upload = upload;
  d->download = download;
  d->upload_activations = upload_activations;
  d->download_activations = download_activations;
  fill_mixup(d, plain);
  fill_conv(d, fused, plain);
  fill_resnet18(d, fused, plain);
  d->fused = plain ? NULL : fused;
  fill_head(d, plain);
  fill_smoothing(d, plain);
  fill_sgd(d, plain);
}

} // namespace GPU

#ifdef __CUDACC__

const device *cuda_device(bool plain, error *e) {
  static device table[2]; // plain and fast, which may be in use at the same time
  static fusions fused;
  static char description[2][400];
  device *d = &table[plain];
  cudaDeviceProp gpu;
  int count, architecture;
  cudaError_t found = cudaGetDeviceCount(&count);
  if (found == cudaSuccess) found = cudaGetDeviceProperties(&gpu, 0);
  if (found == cudaSuccess) found = cuda::find_architecture(&architecture);
  if (found != cudaSuccess) {
    fail(e, "%s (%s)", cudaGetErrorString(found), cuda::remedy(found));
    return NULL;
  }
  // Older GPUs cannot multiply bf16, nor does code for an older one (gpu/tile.h).
  const bool tensor_cores = architecture >= 800;
  cuda::fill(d, &fused, plain ? "cuda-plain" : "cuda", plain);
  if (!tensor_cores) {
    cuda::fill_conv(d, &fused, true);
    d->fused = NULL;
  }
  d->free_bytes = cuda::free_bytes;
  snprintf(description[plain], sizeof description[plain],
           "%s, compute capability %d.%d, %s kernels", gpu.name, gpu.major, gpu.minor,
           plain          ? "plain"
           : tensor_cores ? "tensor-core"
                          : "plain convolution");
  d->description = description[plain];
  return d;
}

#else

const device *simt_device(bool plain) {
  static device table[2];
  static fusions fused;
  device *d = &table[plain];
  simt::fill(d, &fused, plain ? "simt-plain" : "simt", plain);
  d->description =
      plain ? "the plain CUDA kernels, simulated: slow" : "the CUDA kernels, simulated: slow";
  return d;
}

#endif
