// gpu/head.cu - the head of the network: average pool, and the linear layer that makes logits of
// what the pool leaves. reference/resnet18.c defines both.
//
//     pool      y[b][c] = mean of x[b][.][.][c]             dx = dy / pixels at each pixel
//     linear    logits[b][o] = bias[o] + sum over c of x[b][c] w[o][c]
//               dx = dlogits w        dw = dlogits^T x      dbias[o] = sum over b of dlogits[b][o]
//
//     x, y, w and gradients of x, y   bf16: [batch][pixels][channels] before the pool, [batch][channels]
//                                     behind it, w [10][channels]
//     logits, dlogits, bias, dw, dbias   float: [batch][10], [10], [10][channels]
//
// The head is small. At width 64 and batch 128, the pool reads 2 MB, and each of the linear layer's
// three products takes 0.66 million multiplications, where the network's first 3x3 convolution
// between 64 channels takes 4,800 million. But little work is not yet quick work: a thread that
// adds up 512 numbers one after another waits 512 times. Only many short chains keep a GPU busy.
//
// Checked by `make check`: all kernels against reference/resnet18.c.
#include "gpu/gpu.h"
#include "gpu/sums.h"

namespace GPU {

// -- Average pool: plain and fast are the same ---------------------------------------------------
//
// x is the smallest activation that a block leaves, [batch][4][4][512]. With a thread for each value of y, or
// of dy, the lanes of a warp touch neighbours, and a request is one unbroken stretch of memory. Places in the
// arrays take two divisions, and the mean a third; a thread does each of them once, for all its pixels.
// Threads that move eight values each would be faster; but the whole kernel moves 2 MB, for which an H100's
// memory, at 3.35 TB/s, needs less than a microsecond.

static __global__ void average(int batch, int pixels, int channels, bf16 *y, const bf16 *x) {
  const int i = (int)thread_number();
  if (i >= batch * channels) return;
  const bf16 *first = x + (size_t)(i / channels) * pixels * channels + i % channels;
  float sum = 0;
  for (int pixel = 0; pixel < pixels; pixel++) sum += to_float(first[(size_t)pixel * channels]);
  y[i] = to_bf16(sum / pixels);
}

static void pool_forward(int batch, int pixels, int channels, void *y, const void *x) {
  launch("average", average, {blocks_for((size_t)batch * channels), THREADS, 0}, batch, pixels,
         channels, y, x);
}

static __global__ void spread_average(int batch, int pixels, int channels, bf16 *dx,
                                      const bf16 *dy) {
  const int i = (int)thread_number();
  if (i >= batch * channels) return;
  bf16 *first = dx + (size_t)(i / channels) * pixels * channels + i % channels;
  const bf16 share = to_bf16(to_float(dy[i]) / pixels);
  for (int pixel = 0; pixel < pixels; pixel++) first[(size_t)pixel * channels] = share;
}

static void pool_backward(int batch, int pixels, int channels, void *dx, const void *dy) {
  launch("spread_average", spread_average, {blocks_for((size_t)batch * channels), THREADS, 0},
         batch, pixels, channels, dx, dy);
}

// -- Linear layer, plain: a thread an output -----------------------------------------------------

static __global__ void multiply_logit(int batch, int channels, float *logits, const bf16 *x,
                                      const bf16 *w, const float *bias) {
  const int i = (int)thread_number(), b = i / CLASSES, o = i % CLASSES;
  if (b >= batch) return;
  float sum = 0;
  for (int c = 0; c < channels; c++)
    sum += to_float(x[(size_t)b * channels + c]) * to_float(w[(size_t)o * channels + c]);
  logits[i] = sum + bias[o];
}

static void linear_forward_plain(int batch, int channels, real *logits, const void *x,
                                 const void *w, const real *bias) {
  launch("multiply_logit", multiply_logit, {blocks_for((size_t)batch * CLASSES), THREADS, 0}, batch,
         channels, logits, x, w, bias);
}

// Thread i makes dx[b][c]. The fast device uses this kernel too: a thread has ten loads of w, and
// those of a warp are neighbours.
static __global__ void linear_input(int batch, int channels, bf16 *dx, const float *dlogits,
                                    const bf16 *w) {
  const int i = (int)thread_number(), b = i / channels, c = i % channels;
  if (b >= batch) return;
  float sum = 0;
  for (int o = 0; o < CLASSES; o++)
    sum += dlogits[b * CLASSES + o] * to_float(w[(size_t)o * channels + c]);
  dx[i] = to_bf16(sum);
}

// Thread i makes dw[o][c]. One column more, c = channels, is that of an input that is always 1:
// dbias[o].
static __global__ void linear_weight(int batch, int channels, float *dw, float *dbias,
                                     const float *dlogits, const bf16 *x) {
  const int i = (int)thread_number(), o = i / (channels + 1), c = i % (channels + 1);
  if (o >= CLASSES) return;
  float sum = 0;
  for (int b = 0; b < batch; b++)
    sum += dlogits[b * CLASSES + o] * (c < channels ? to_float(x[(size_t)b * channels + c]) : 1);
  if (c < channels)
    dw[(size_t)o * channels + c] = sum;
  else
    dbias[o] = sum;
}

static void linear_backward_plain(int batch, int channels, void *dx, real *dw, real *dbias,
                                  const real *dlogits, const void *x, const void *w) {
  launch("linear_input", linear_input, {blocks_for((size_t)batch * channels), THREADS, 0}, batch,
         channels, dx, dlogits, w);
  launch("linear_weight", linear_weight, {blocks_for((size_t)CLASSES * (channels + 1)), THREADS, 0},
         batch, channels, dw, dbias, dlogits, x);
}

// -- Linear layer, fast --------------------------------------------------------------------------
//
// What the plain kernels waste: few threads do all of the work, each in a long chain. Forward,
// 1,280 threads add up 512 products each, and neighbouring threads moreover read different rows of
// w. For dw, 5,130 threads add up 128. Shorter chains:
//
//     forward     a warp for each logit. Its lanes take eight channels of x and w at a time, in turn,
//                 and add up by shuffles (gpu/sums.h): with 512 channels, twice eight each.
//     dw, dbias   a block for 32 channels. Its 16 rows of threads share the images. A thread holds all
//                 ten sums of its channel, so x is read once. Then the rows' sums are added in order,
//                 through shared memory.

enum { IMAGE_ROWS = 16 };

// Block: 32 lanes x 8 logits. (A block is numbered along x first, so a row of threads is a warp.)
static __global__ void __launch_bounds__(THREADS)
    multiply_logit_warp(int batch, int channels, float *logits, const bf16 *x, const bf16 *w,
                        const float *bias) {
  const int i = blockIdx.x * blockDim.y + threadIdx.y, b = i / CLASSES, o = i % CLASSES;
  if (b >= batch) return; // a warp's lanes together
  float sum = 0;
  for (int c = EIGHT * threadIdx.x; c < channels; c += EIGHT * LANES) {
    const float8 value = load_bf16x8(x + (size_t)b * channels + c);
    const float8 weight = load_bf16x8(w + (size_t)o * channels + c);
    for (int j = 0; j < EIGHT; j++) sum += value.value[j] * weight.value[j];
  }
  sum = sum_over_warp(sum);
  if (threadIdx.x == 0) logits[i] = sum + bias[o];
}

static void linear_forward(int batch, int channels, real *logits, const void *x, const void *w,
                           const real *bias) {
  const int warps = THREADS / LANES;
  if (channels % EIGHT)
    linear_forward_plain(batch, channels, logits, x, w, bias);
  else
    launch("multiply_logit_warp", multiply_logit_warp,
           {divide_up(batch * CLASSES, warps), dim3(LANES, warps), 0}, batch, channels, logits, x,
           w, bias);
}

// Block: 32 channels x 16 rows.
static __global__ void __launch_bounds__(LANES *IMAGE_ROWS)
    linear_weight_rows(int batch, int channels, float *dw, float *dbias, const float *dlogits,
                       const bf16 *x) {
  __shared__ float shared[CLASSES][IMAGE_ROWS][LANES];
  const int c = blockIdx.x * LANES + threadIdx.x;
  float sums[CLASSES] = {};
  for (int b = threadIdx.y; b < batch; b += IMAGE_ROWS) {
    const float value = c < channels ? to_float(x[(size_t)b * channels + c]) : 1;
    for (int o = 0; o < CLASSES; o++) sums[o] += dlogits[b * CLASSES + o] * value;
  }
  for (int o = 0; o < CLASSES; o++) shared[o][threadIdx.y][threadIdx.x] = sums[o];
  __syncthreads();
  const int o = threadIdx.y; // a row of threads for each output
  if (o >= CLASSES || c > channels) return;
  float sum = 0;
  for (int row = 0; row < IMAGE_ROWS; row++) sum += shared[o][row][threadIdx.x];
  if (c < channels)
    dw[(size_t)o * channels + c] = sum;
  else
    dbias[o] = sum;
}

static void linear_backward(int batch, int channels, void *dx, real *dw, real *dbias,
                            const real *dlogits, const void *x, const void *w) {
  launch("linear_input", linear_input, {blocks_for((size_t)batch * channels), THREADS, 0}, batch,
         channels, dx, dlogits, w);
  launch("linear_weight_rows", linear_weight_rows,
         {divide_up(channels + 1, LANES), dim3(LANES, IMAGE_ROWS), 0}, batch, channels, dw, dbias,
         dlogits, x);
}

void fill_head(device *d, bool plain) {
  d->pool_forward = pool_forward;
  d->pool_backward = pool_backward;
  d->linear_forward = plain ? linear_forward_plain : linear_forward;
  d->linear_backward = plain ? linear_backward_plain : linear_backward;
}

} // namespace GPU
