// cpu-bf16/device.c - the `cpu-bf16` device: activations in blocks of bf16, convolutions on AMX's
// tiles, or on plain C's where there are none.
//
// Memory, loss and optimiser are the reference's. So are mixed images, which are then laid out.
// Weights stay floats: `rounded_weight` is `weight` itself, and convolutions round what they read.
#include "conv.h"
#include "cpu/conv.h"
#include "reference/reference.h"
#include "resnet18.h"
#include "run/error.h"

void blocks_from_floats(bf16 *blocks, const real *values, activation_shape s) {
  const int channel_blocks = blocks_of(s.channels);
#pragma omp parallel for
  for (int i = 0; i < blocks_of(s.images) * s.pixels * channel_blocks; i++) {
    const int place = i / channel_blocks, channel = i % channel_blocks * SIDE;
    const int pixel = place % s.pixels, group = place / s.pixels;
    const int images = images_of(s.images, group);
    const int count = s.channels - channel < SIDE ? s.channels - channel : SIDE;
    for (int row = 0; row < images; row++) {
      const size_t image = (size_t)group * SIDE + row;
      float value[SIDE] = {0};
      memcpy(value, values + (image * s.pixels + pixel) * s.channels + channel,
             count * sizeof *value);
      store_row(blocks + (size_t)i * BLOCK + row * SIDE, load_pair(value));
    }
    clear_rows(blocks + (size_t)i * BLOCK, images, SIDE);
    finish_stores();
  }
}

void blocks_to_floats(real *values, const bf16 *blocks, activation_shape s) {
  const int channel_blocks = blocks_of(s.channels);
#pragma omp parallel for
  for (int i = 0; i < s.images * s.pixels; i++)
    for (int c = 0; c < s.channels; c++) {
      const int image = i / s.pixels, pixel = i % s.pixels;
      const bf16 *block = blocks + block_at(image / SIDE, s.pixels, pixel, channel_blocks) +
                          (size_t)(c / SIDE) * BLOCK;
      values[(size_t)i * s.channels + c] = to_float(block[image % SIDE * SIDE + c % SIDE]);
    }
}

static void upload_activations(void *activations, const real *host, activation_shape shape) {
  blocks_from_floats(activations, host, shape);
}

static void download_activations(real *host, const void *activations, activation_shape shape) {
  blocks_to_floats(host, activations, shape);
}

static void mix_images(int batch, void *x, const uint8_t *images, const sample *samples,
                       const step_values *step) {
  const activation_shape shape = {batch, IMAGE_SIDE * IMAGE_SIDE, IMAGE_CHANNELS};
  real *mixed = cpu_scratch(activation_count(shape) * sizeof *mixed);
  reference_mix_images(batch, mixed, images, samples, step);
  blocks_from_floats(x, mixed, shape);
}

static const fusions fused = {.conv_statistics = bf16_conv_statistics,
                              .norm_apply = bf16_norm_apply,
                              .conv_backward_masked = bf16_conv_backward_masked,
                              .norm_spread = bf16_norm_spread};

static device make_device(void) {
  device d = reference_device;
  d.name = "cpu-bf16";
  d.activation_bytes = sizeof(bf16);
  d.block = SIDE;
  d.upload_activations = upload_activations;
  d.download_activations = download_activations;
  d.mix_images = mix_images;
  d.conv_forward = bf16_conv_forward;
  d.conv_backward_input = bf16_conv_backward_input;
  d.conv_backward_weight = bf16_conv_backward_weight;
  d.conv_norm_inference = bf16_conv_norm_inference;
  d.norm_forward = bf16_norm_forward;
  d.norm_inference = bf16_norm_inference;
  d.norm_backward = bf16_norm_backward;
  d.pool_forward = bf16_pool_forward;
  d.pool_backward = bf16_pool_backward;
  d.linear_forward = bf16_linear_forward;
  d.linear_backward = bf16_linear_backward;
  d.fused = &fused;
  return d;
}

const device *cpu_bf16_device(bool *fast) {
  static device d;
  static char description[sizeof(error) + 40];
  error why_not;
  *fast = amx_permitted(&why_not);
#if defined __x86_64__ && defined __linux__
  if (*fast) bf16_multiplier = &amx_multiplier;
#endif
  if (*fast)
    snprintf(description, sizeof description, "bf16, by %s", bf16_multiplier->name);
  else
    snprintf(description, sizeof description, "bf16, slow, by %s: %s", bf16_multiplier->name,
             why_not.text);
  d = make_device();
  d.description = description;
  return &d;
}
