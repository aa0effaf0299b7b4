// reference/device.c - the `reference` device: which plain function stands behind each operation of
// device.h, and host memory in place of a GPU's.
#define _DEFAULT_SOURCE // madvise
#include "reference.h"
#include "run/error.h"

#include <string.h>
#include <sys/mman.h>

enum {
  ALIGNMENT = 64, // bytes: a cache line, and the longest vector register
  HUGE_PAGE = 1 << 21,
};

// Large memory in pages of 2 MB, where Linux has them. A processor remembers where some 2,000 pages are; in
// pages of 4 KB that is 8 MB, and a network takes hundreds. Where another page is it has to look up in a
// table, which lies in memory itself.
static void *allocate_aligned(size_t bytes) {
  const size_t alignment = bytes < HUGE_PAGE ? ALIGNMENT : HUGE_PAGE;
  const size_t size = (bytes + alignment) / alignment * alignment; // never 0
  void *memory = aligned_alloc(alignment, size);
  if (!memory) out_of_memory(bytes);
#ifdef MADV_HUGEPAGE
  if (alignment == HUGE_PAGE)
    madvise(memory, size, MADV_HUGEPAGE); // advice only: what it returns changes nothing
#endif
  return memory;
}

static void copy(void *to, const void *from, size_t bytes) {
  memcpy(to, from, bytes);
}

static void copy_activations(void *activations, const real *host, activation_shape shape) {
  memcpy(activations, host, activation_count(shape) * sizeof(real));
}

static void copy_to_host(real *host, const void *activations, activation_shape shape) {
  memcpy(host, activations, activation_count(shape) * sizeof(real));
}

static void nothing_to_refresh(const parameters *p) {
  (void)p;
} // rounded_weight is weight itself

const device reference_device = {
    .name = "reference",
    .description = "plain loops",
    .activation_bytes = sizeof(real),
    .block = 1,
    .rounded_weight_bytes = 0,
    .allocate = allocate_aligned,
    .release = free,
    .upload = copy,
    .download = copy,
    .upload_activations = copy_activations,
    .download_activations = copy_to_host,
    .refresh_rounded_weights = nothing_to_refresh,
    .mix_images = reference_mix_images,
    .conv_forward = reference_conv_forward,
    .conv_backward_input = reference_conv_backward_input,
    .conv_backward_weight = reference_conv_backward_weight,
    .norm_forward = reference_norm_forward,
    .norm_inference = reference_norm_inference,
    .norm_backward = reference_norm_backward,
    .pool_forward = reference_pool_forward,
    .pool_backward = reference_pool_backward,
    .linear_forward = reference_linear_forward,
    .linear_backward = reference_linear_backward,
    .cross_entropy = reference_cross_entropy,
    .sgd_update = reference_sgd_update,
};
