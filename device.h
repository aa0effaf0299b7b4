// device.h - the table of operations: everything that training ResNet-18 needs a processor to do.
//
// This is the course's table of contents. The network (network.c) and the trainer (train.c) are
// written once and speak only to this table; each *device* fills it with its own functions:
//
//     reference   reference/       plain loops that read like the formulas, sums in double
//     cpu         the same, with the convolutions of cpu/ in place of the plain ones
//     cpu-bf16    cpu-bf16/        for the CPU's own tensor cores (AMX)
//     cuda        *.cu and gpu/    compiled by nvcc, for a GPU
//     simt        the same files, compiled by g++ on a simulated GPU (simt/)
//
// The table is made so that a GPU can fill it, and three of its rules come from there:
//
// 1. Activations are opaque (`void *`). An *activation* is a number that one layer hands to the next.
//    `reference` and `cpu` keep it as a float of 32 bits. The others keep it as a *bf16*: the upper
//    half of a float, with the same 8 bits of exponent but 8 bits of precision in place of 24. A bf16
//    takes half the memory, and it is what a GPU's tensor cores take, its units that multiply small
//    matrices (gpu/tile.h). Weights are floats on every device. `cuda`
//    and `simt` keep a copy rounded to bf16 besides; `cpu-bf16` rounds them each time it reads them.
// 2. No operation returns anything to the host (the CPU that runs the program), so none has to wait
//    for the device: the host queues operation after operation, and a download waits for them all.
//    What changes from step to step lies in the device's memory too (`step_values`). So the
//    operations of a step are always the same calls with the same arguments. A GPU can *record* such
//    a sequence once and start it again as a whole, step after step: `recorder`, below.
// 3. Walking through an activation costs more time than computing with it. So neighbours share walks:
//    batch normalisation needs, of each channel, the sum of its input and of its input's squares, and
//    the convolution before adds them up while it stores its output. What else can be shared, a device
//    may offer as `fusions`, at the end of the table.
//
// Names. x is what a layer reads, z a convolution's output, y the output of the layer as a whole,
// after batch normalisation, the residual sum and ReLU (max(0, .), the *rectified linear unit*); w
// are weights. d before a name is the gradient: dz = d loss / d z.
//
// Layouts. B images, H x W pixels, C channels; C-style arrays, the last index moves fastest.
//     activations   [B][H][W][C], channel last ("NHWC"): a pixel's channels are neighbours
//     conv weights  [Cout][R][S][Cin], filter rows R, columns S; the linear layer's [10][C]
//     data set      images [N][3][32][32] bytes as in CIFAR-10's files, labels [N] bytes
// Every pointer that an operation takes is memory from the device's own `allocate`. Outputs are
// overwritten unless it says "adds to". Pointers must not overlap unless it says they may.
//
// Checked by `make check`: the reference's gradients against finite differences in double precision,
// whole steps of `reference` and `cpu` against PyTorch's numbers, and every other device against the
// reference, operation by operation, on every shape of the network.
#ifndef DEVICE_H
#define DEVICE_H

#include "run/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The type of weights, gradients and the CPU devices' activations. The program uses float; the
// finite-difference check compiles the same reference with -DREAL=double.
#ifndef REAL
#define REAL float
#endif
typedef REAL real;

enum {
  CLASSES = 10,
  IMAGE_SIDE = 32,    // pixels
  IMAGE_CHANNELS = 3, // red, green, blue
  // Of an image in the data set; a byte is one value, so it is also how many values an image has.
  IMAGE_BYTES = IMAGE_CHANNELS * IMAGE_SIDE * IMAGE_SIDE,
  CROP_PADDING = 4, // zeros around an image before a crop, so a corner is in 0 .. 8
};

// One image of a batch: which, how cropped, and which other image of the batch is mixed into it.
typedef struct {
  int32_t image;          // its number in the data set
  int32_t partner;        // a position in this batch; its own position where nothing is mixed
  int32_t crop_y, crop_x; // corner of the 32x32 crop in the 40x40 padded image; (4, 4) is no crop
  int32_t flip;           // 1: left and right are exchanged after the crop
} sample;

// What changes from step to step. It lies in device memory, so that the calls of every step have
// the same arguments.
typedef struct {
  float lambda; // weight of the image itself; 1 - lambda is its partner's
  float learning_rate;
  int32_t slot; // which step_result this step writes
} step_values;

// What a step reports. Sums over the batch: divide by the number of images for means.
typedef struct {
  double loss; // sum of the images' losses
  // Sum of lambda [arg max = own label] + (1 - lambda) [arg max = partner's label], where [..] is 1
  // if the condition holds, else 0.
  double correct;
} step_result;

// A convolution's shape. Zero padding is kernel / 2, so a 3x3 keeps the size at stride 1.
typedef struct {
  int batch;
  int in_height, in_width, in_channels;
  int out_height, out_width, out_channels; // out = (in + 2 padding - kernel) / stride + 1
  int kernel;                              // 3 or 1
  int stride;                              // 1 or 2
} conv_shape;

// The shape of a kernel x kernel convolution with padding kernel / 2.
static inline conv_shape make_conv_shape(int batch, int height, int width, int in_channels,
                                         int out_channels, int kernel, int stride) {
  const int padding = kernel / 2;
  return (conv_shape){.batch = batch,
                      .in_height = height,
                      .in_width = width,
                      .in_channels = in_channels,
                      .out_height = (height + 2 * padding - kernel) / stride + 1,
                      .out_width = (width + 2 * padding - kernel) / stride + 1,
                      .out_channels = out_channels,
                      .kernel = kernel,
                      .stride = stride};
}

// A batch normalisation's shape: each channel is normalised over all pixels of all images.
typedef struct {
  int pixels; // B * H * W
  int channels;
  int images; // B, where a device's layout depends on it; it divides pixels
} norm_shape;

// An activation's shape, as a whole.
typedef struct {
  int images;
  int pixels; // of an image
  int channels;
} activation_shape;

// Batch normalisation's two constants, PyTorch's defaults.
#define NORM_EPSILON 1e-5   // added to the variance, so that 1 / sqrt(variance) is always finite
#define NEW_BATCH_SHARE 0.1 // of the newest batch in running_mean and running_var; the rest is old

// A batch normalisation's arrays, [C] each.
typedef struct {
  const real *gamma, *beta;         // learned
  real *running_mean, *running_var; // for evaluation
  real *mean, *inverse_std;         // the latest training batch's
} norm_arrays;

// The normalisation and ReLU below a convolution, which made the x that it reads.
typedef struct norm_below {
  norm_arrays norm;
  const void *z; // what was normalised
  // What came out, which is x; and its mask, where the device keeps masks (fusions): then it reads the mask,
  // and not y. Both are NULL where no residual was added: there z and norm tell where x is above zero.
  const void *y;
  const uint8_t *mask;
  real *dgamma, *dbeta; // written on the way back
  // The norm of the block's shortcut, which has the same gradient; of it, norm, z, dgamma and dbeta are
  // used. NULL: there is none, or the device does not want it here (fusions).
  const struct norm_below *shortcut;
} norm_below;

// What a block adds to its second norm's output before ReLU: an activation, [n][C]; or one that was not
// stored, as the z and the norm that it is made of.
typedef struct {
  const void *values;      // what is added, or z
  const norm_arrays *norm; // of z; NULL: the values are added as they are
  bool relu;               // with ReLU behind that norm, or without
} addend;

// Where the gradient of a block's shortcut comes from, if that is a convolution.
typedef struct {
  const conv_shape *shape;
  const void *dz, *w;
} shortcut_gradient;

// Two operations at once, so that a walk through memory is saved: see fusions below.
typedef struct fusions fusions;

// A list of operations that is started as a whole: see recording_table below.
typedef struct recording recording;
typedef struct recording_table recording_table;

// One trained tensor.
typedef struct {
  char name[40]; // PyTorch's: "layer2.0.conv1.weight"
  int dims[4];   // as it lies in memory: [Cout][R][S][Cin], [10][C], or [C]; unused ones are 1
  int rank;      // how many of dims count: 4, 2 or 1
  size_t offset; // first element in the flat arrays below
  size_t count;  // dims[0] * dims[1] * dims[2] * dims[3]
} parameter;

// All trained tensors, one after another in flat arrays, so that one operation updates them all.
typedef struct {
  const parameter *list;
  int list_count;
  size_t count; // elements in each flat array
  real *weight; // device memory, like the rest
  real *gradient;
  real *momentum; // v
  // What convolutions and the linear layer read. On a device with `rounded_weight_bytes` 0 that is
  // `weight` itself, and the two pointers are equal. Another keeps a copy in a format of its own,
  // `rounded_weight_bytes` an element, tensor by tensor in the same order; sgd_update rewrites it.
  void *rounded_weight;
} parameters;

typedef struct device {
  const char *name;
  const char *description; // for the first lines of a run: "fp32, Winograd and direct convolution"
  size_t activation_bytes; // bytes of one activation
  // Activations lie in blocks of so many images x channels, the last ones filled up with zeros
  // (cpu-bf16/blocks.h); 1: one after another, as above.
  int block;
  size_t rounded_weight_bytes; // see parameters.rounded_weight
  bool asynchronous;           // operations return before they are done; a download waits for them

  // -- memory ------------------------------------------------------------------------------------

  // `bytes` of device memory, its contents undefined, aligned to 64 bytes at least. Ends the
  // process with one line when there is not enough.
  void *(*allocate)(size_t bytes);
  size_t (*free_bytes)(void);    // how much there is left to allocate; NULL: nobody knows
  void (*release)(void *memory); // NULL is allowed
  // Copies between host and device. Work already queued sees the old contents, later work the new.
  void (*upload)(void *device_memory, const void *host, size_t bytes);
  void (*download)(void *host, const void *device_memory, size_t bytes); // waits for queued work
  // Converts activations from and to host floats, [images][pixels][channels] there: for checks and
  // for naming a bad tensor.
  void (*upload_activations)(void *activations, const real *host, activation_shape shape);
  void (*download_activations)(real *host, const void *activations, activation_shape shape);
  // Makes `rounded_weight` agree with `weight` after an upload of weights.
  void (*refresh_rounded_weights)(const parameters *p);

  // -- a batch of images: reference/mixup.c, mixup.cu ----------------------------------------------

  // x[b] = lambda a(b) + (1 - lambda) a(partner of b), where a(b) is image samples[b].image,
  // padded, cropped and flipped, its bytes divided by 255. Zhang et al., "mixup", 2018.
  //     images: [N][3][32][32] bytes    samples: [batch]    x: activations [batch][32][32][3]
  void (*mix_images)(int batch, void *x, const uint8_t *images, const sample *samples,
                     const step_values *step);

  // -- convolution in three passes: reference/conv.c, cpu/conv.c, conv.cu --------------------------
  //
  // x, dx: [B][in_height][in_width][Cin]; z, dz: [B][out_height][out_width][Cout]; w, dw:
  // [Cout][R][S][Cin]. Output pixel (p, q) meets, with *tap* (r, s) of a filter, its row r and column
  // s, input pixel (h, v), h = stride p + r - padding and v = stride q + s - padding; outside the image
  // x is zero.

  // z[b][p][q][k] = sum over r, s, c of x[b][h][v][c] w[k][r][s][c].
  // sums (may be NULL): [2][Cout], the sum of z and of z*z over all pixels, for norm_forward.
  void (*conv_forward)(const conv_shape *shape, void *z, const void *x, const void *w,
                       double *sums);
  // dx[b][h][v][c] = sum over r, s, k of dz[b][p][q][k] w[k][r][s][c], where (p, q) is the output
  // pixel that meets (h, v) with tap (r, s), if there is one. With `accumulate`, adds to dx.
  void (*conv_backward_input)(const conv_shape *shape, void *dx, const void *dz, const void *w,
                              bool accumulate);
  // dw[k][r][s][c] = sum over b, p, q of dz[b][p][q][k] x[b][h][v][c].
  void (*conv_backward_weight)(const conv_shape *shape, real *dw, const void *dz, const void *x);

  // -- batch normalisation, residual sum, ReLU: reference/resnet18.c, resnet18.cu ------------------
  //
  // y, z, residual and their gradients: [n][C], n = pixels of all images; gamma, beta, running_*,
  // saved_*: [C]. Ioffe and Szegedy, "Batch normalization", 2015.

  // Training: y = act(gamma (z - mean) inverse_std + beta + residual), for each channel with
  //     mean = sum / n    variance = sum of squares / n - mean^2    (from conv_forward's sums)
  //     inverse_std = 1 / sqrt(variance + NORM_EPSILON)
  // Mean and inverse_std are kept in saved_* for norm_backward. Evaluation will use the running
  // statistics: running = (1 - NEW_BATCH_SHARE) running + NEW_BATCH_SHARE (the batch's), where the
  // batch's variance counts n / (n - 1) times. residual may be NULL; act is ReLU where relu is set.
  void (*norm_forward)(const norm_shape *shape, void *y, const void *z, const double *sums,
                       const real *gamma, const real *beta, const void *residual, bool relu,
                       real *running_mean, real *running_var, real *saved_mean,
                       real *saved_inverse_std);
  // Evaluation: the same y from the running statistics, which do not change.
  void (*norm_inference)(const norm_shape *shape, void *y, const void *z, const real *gamma,
                         const real *beta, const void *residual, bool relu,
                         const real *running_mean, const real *running_var);
  // Evaluation: conv_forward and norm_inference at once, so that nothing lies in memory between
  // them. NULL: this device has no such operation, and the network calls the two. Training's are
  // at the end of the table.
  void (*conv_norm_inference)(const conv_shape *shape, void *y, const void *x, const void *w,
                              const real *gamma, const real *beta, const void *residual, bool relu,
                              const real *running_mean, const real *running_var);
  // From dy: g = dy where y > 0 or is a NaN, else 0; without ReLU g = dy. xhat = (z - mean) inverse_std.
  //     dresidual = g    dbeta = sum g    dgamma = sum g xhat
  //     dz = gamma inverse_std (g - dbeta / n - xhat dgamma / n)
  // y is read only where relu is set. dresidual may be NULL, and may be dy itself; dz may be dy
  // unless dresidual is.
  void (*norm_backward)(const norm_shape *shape, void *dz, void *dresidual, real *dgamma,
                        real *dbeta, const void *dy, const void *y, const void *z,
                        const real *gamma, const real *saved_mean, const real *saved_inverse_std,
                        bool relu);

  // -- the network's head: average pool and linear layer -------------------------------------------

  // y[b][c] = mean of x[b][.][.][c] over `pixels` pixels, and dx = dy / pixels at each of them.
  void (*pool_forward)(int batch, int pixels, int channels, void *y, const void *x);
  void (*pool_backward)(int batch, int pixels, int channels, void *dx, const void *dy);

  // logits[b][o] = bias[o] + sum over c of x[b][c] w[o][c]; x: activations, logits: real [B][10].
  void (*linear_forward)(int batch, int channels, real *logits, const void *x, const void *w,
                         const real *bias);
  // dx = dlogits w, dw = dlogits^T x, dbias = sum over b of dlogits.
  void (*linear_backward)(int batch, int channels, void *dx, real *dw, real *dbias,
                          const real *dlogits, const void *x, const void *w);

  // -- the loss: reference/smoothing.c, smoothing.cu -----------------------------------------------

  // Cross-entropy against a target t that is mixed from two smoothed labels, with s = smoothing:
  //     smooth(l)[j] = 1 - s for j = l, s / 9 for each of the other nine classes
  //     t[b] = lambda smooth(label of image b) + (1 - lambda) smooth(label of its partner)
  //     loss[b] = - sum over j of t[b][j] log softmax(logits[b])[j]
  // results[step->slot] = sums over the batch; dlogits = (softmax - t) / batch, the gradient of the
  // mean loss. dlogits may be NULL. Szegedy et al., "Rethinking the Inception architecture", 2016.
  void (*cross_entropy)(int batch, float smoothing, real *dlogits, step_result *results,
                        const real *logits, const uint8_t *labels, const sample *samples,
                        const step_values *step);

  // -- the optimiser: reference/sgd.c, sgd.cu ------------------------------------------------------

  // v = momentum v + (g + weight_decay w); w -= step->learning_rate v: every parameter, biases and
  // batch normalisation included, and the rounded copies. As torch.optim.SGD defines it: v starts
  // at zero, so its first value is g + weight_decay w.
  void (*sgd_update)(const parameters *p, const step_values *step, float momentum,
                     float weight_decay);

  // Operations that share walks through memory. NULL: this device has none of them, and the network
  // calls the operations above.
  const fusions *fused;

  // Operations that are started together. NULL: this device gains nothing by it.
  const recording_table *recorder;
} device;

// What the operations of the table do one after another, done in fewer walks through memory. Each
// says which ones it replaces; they are its definition. conv.cu, resnet18.cu; cpu-bf16/
//
//     forward    conv_forward, norm_forward          -> conv_statistics, norm_apply
//                norm_apply, conv_statistics of the  -> norm_conv_statistics
//                layer above
//                norm_apply, norm_apply that adds    -> norm_apply with an addend that has a norm
//                what the first one made
//     backward   conv_backward_input of a layer,     -> conv_backward_masked, norm_spread
//                norm_backward of the layer below
//                the same, where a block's shortcut  -> block_backward_masked, norm_spread
//                has a convolution and a norm, too
//                conv_backward_weight of an x that   -> norm_conv_backward_weight
//                norm_conv_statistics did not store
struct fusions {
  // conv_forward; and the first part of norm_forward: n's mean and inverse_std, the running
  // statistics moved.
  void (*conv_statistics)(const conv_shape *shape, void *z, const void *x, const void *w,
                          const norm_arrays *n);
  // The rest: y = act(gamma (z - mean) inverse_std + beta + residual). residual may be NULL. Only a
  // device with takes_norm is given one that has a norm; it adds what norm_apply would have stored.
  // mask (NULL: none is kept): where y is above zero or a NaN, a bit for each number, bit i % 8 of byte i / 8 for
  // number i of [n][C]. conv_backward_masked will read it in place of y, a sixteenth of the bytes.
  void (*norm_apply)(const norm_shape *shape, void *y, uint8_t *mask, const void *z,
                     const norm_arrays *n, const addend *residual, bool relu);
  bool keeps_masks; // norm_apply can write one, and conv_backward_masked wants one

  // conv_backward_input, whose dx is the gradient of a ReLU's output; and the first part of that
  // layer's norm_backward: in place of dx, g = dx where the output was above zero or a NaN, else 0; and
  // dbeta and dgamma, also those of below->shortcut. With `accumulate`, g = 0 or dx + what was there.
  void (*conv_backward_masked)(const conv_shape *shape, void *g, const void *dz, const void *w,
                               bool accumulate, const norm_below *below);
  // The gradient of a block's input, whole: conv_backward_input of the shortcut; then
  // conv_backward_masked of the block's first convolution, added to it. The two have the same x and the
  // same shape of dz. NULL: the network calls the two, and gives no norm_below a shortcut.
  void (*block_backward_masked)(const conv_shape *shape, void *g, const void *dz, const void *w,
                                const shortcut_gradient *shortcut, const norm_below *below);
  // The rest: dz = gamma inverse_std (g - dbeta / n - xhat dgamma / n); and, with of->shortcut, its dz from
  // the same g (else NULL). shortcut_dz may be g; without a shortcut dz may. The residual's gradient is g.
  void (*norm_spread)(const norm_shape *shape, void *dz, void *shortcut_dz, const void *g,
                      const norm_below *of);

  // What a norm makes without a residual need not lie in memory: it is a multiply-add away from z. A
  // convolution reads z below, and normalises it as it comes, with ReLU: the same x as from norm_apply,
  // rounded as activations are. May a convolution of this shape do so? NULL: none may. Of `below`, norm
  // and z are read.
  bool (*takes_norm)(const conv_shape *shape);
  // norm_apply of the layer below, then conv_statistics.
  void (*norm_conv_statistics)(const conv_shape *shape, void *z, const norm_below *below,
                               const void *w, const norm_arrays *n);
  // norm_apply of the layer below, then conv_backward_weight.
  void (*norm_conv_backward_weight)(const conv_shape *shape, real *dw, const void *dz,
                                    const norm_below *below);
};

// A step as a whole. Each operation is one launch of a GPU's kernel or several, which the host has to
// prepare, every time anew. Started as a whole, they are prepared once, and follow each other without the
// host. And what does not depend on each other can run at the same time: a recording has a
// main branch and, beside it, a *side branch*. gpu/recording.cu
struct recording_table {
  // Calls operations(of), which calls this table's operations; they are noted, with their arguments, and
  // not done. It is called twice, and must not allocate, release, upload or download.
  recording *(*record)(void (*operations)(void *of), void *of);
  // Queues everything that was noted: the same results, to the bit, as the calls themselves.
  void (*replay)(const recording *r);
  void (*forget)(recording *r); // NULL is allowed

  // Operations between side_begins and side_ends come after all that was noted before side_begins, in
  // their order, but perhaps at the same time as what the main branch goes on with; so neither may write
  // what the other one touches. side_ends returns a mark, above zero. What the main branch notes after
  // wait_for_side(mark) comes after all of the side branch up to that mark. A recording ends when both
  // branches have ended. Where nothing is being recorded, the three do nothing and a mark is zero.
  void (*side_begins)(void);
  int (*side_ends)(void);
  void (*wait_for_side)(int mark);
};

static inline size_t activation_count(activation_shape s) {
  return (size_t)s.images * s.pixels * s.channels;
}

// Bytes that these activations take on the device.
static inline size_t activation_size(const device *d, activation_shape s) {
  s.images = (s.images + d->block - 1) / d->block * d->block;
  s.channels = (s.channels + d->block - 1) / d->block * d->block;
  return activation_count(s) * d->activation_bytes;
}

extern const device reference_device;      // reference/device.c
const device *cpu_device(void);            // cpu/device.c
const device *cpu_bf16_device(bool *fast); // cpu-bf16/device.c. fast: on AMX
const device *simt_device(bool plain);     // gpu/gpu.cu, compiled by g++ on the simulator
// gpu/gpu.cu, where nvcc compiled it. NULL, with a line in e: no GPU can be used.
const device *cuda_device(bool plain, error *e);

// "reference", "cpu", "cpu-bf16", "simt", "cuda", with "-plain" behind the last two for the plain
// kernels, or "auto": cuda where a GPU answers, else cpu-bf16 where the processor has AMX and Linux
// permits it, else cpu. NULL, with a line in e: it cannot be had. Any other name counts as auto:
// device_name_is_known tells.
// run/devices.c
const device *device_by_name(const char *name, error *e);
bool device_name_is_known(const char *name);

#endif
