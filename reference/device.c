// reference/device.c - the `reference` device: which plain function stands behind each operation of
// device.h, and host memory in place of a GPU's.
#include "reference.h"
#include "run/error.h"

#include <string.h>

enum { ALIGNMENT = 64 }; // bytes: a cache line, and the longest vector register

static void *allocate_aligned(size_t bytes) {
  void *memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT);
  if (!memory) out_of_memory(bytes);
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
