// conv.cu - convolution in three passes on a GPU: nearly all of training's arithmetic.
//
//     output            z[b][p][q][k]   = sum over r, s, c of   x[b][h][v][c] w[k][r][s][c]
//     input gradient    dx[b][h][v][c]  = sum over r, s, k of   dz[b][p][q][k] w[k][r][s][c]
//     weight gradient   dw[k][r][s][c]  = sum over b, p, q of   dz[b][p][q][k] x[b][h][v][c]
//
// with h = stride p - padding + r and v = stride q - padding + s; what lies outside is zero.
// x, z, dx, dz, w are bf16, dw is float, sums are added up in float. device.h has the layouts.
//
// 1. The plain kernels: a thread for each element of the result, a loop for the sum.
// 2. What the plain kernels waste: nearly everything. A thread reads two numbers for every
//    multiplication, and its neighbours read the same ones again. In a matrix product C = A B computed
//    in tiles, a number once loaded is used for a whole row or column of the tile; and tensor cores,
//    which hold most of a GPU's arithmetic, do nothing but such products. gpu/tile.h does that.
// 3. So convolution is written as a matrix product. Element (m, n) of the result is
//
//                        rows m                columns n        summed over k
//     output             pixels of z           filters          taps and channels of x
//     input gradient     pixels of dx          channels of x    taps and channels of dz
//     weight gradient    filters               taps, channels   pixels of z
//
//    (m, n and k are a matrix product's indices here, as in gpu/tile.h. A term k is called `number`
//    in the code, where k is a filter.)
//
//    In each of them one matrix consists of *patches*: what the filter covers, pixel after pixel, as
//    one row each. gpu/patches.h says where their elements lie. Output and input gradient multiply
//    patches of x or dz by w (gpu/gather.h), the weight gradient dz by patches of x (below).
//    With 3x3 filters and stride 1, neighbours' patches share six of their nine pixels. gpu/halo.h
//    computes output and input gradient of those layers from pixels that come from memory once,
//    gpu/halo_weight.h the weight gradient. A pixel of three channels has less
//    than the 16 bytes that all of these move at a time, so the first layer has gpu/stem.h.
// 4. Batch normalisation wants to walk through what a convolution stores. gpu/epilogue.h does part
//    of its work while the numbers are still in registers. The rest, inside a block and behind
//    the stem, the next convolution does with what it has loaded (gpu/norm.h).
//
// Nothing is added up in an order that depends on timing: partial sums are fixed (gpu/sums.h).
// Checked by `make check` (tests/kernels_test.c), each kernel on each shape of the network.
#include "gpu/gather.h"
#include "gpu/halo.h"
#include "gpu/halo_weight.h"
#include "gpu/parts.h"
#include "gpu/stem.h"

namespace GPU {

// -- The plain kernels ---------------------------------------------------------------------------

static __global__ void plain_forward(conv_shape shape, bf16 *z, const bf16 *x, const bf16 *w) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number(), pixel = i / K;
  const int k = i % K, q = pixel % shape.out_width, p = pixel / shape.out_width % shape.out_height;
  const size_t b = pixel / shape.out_width / shape.out_height;
  if (b >= (size_t)shape.batch) return; // the last block may have threads to spare
  float sum = 0;
  for (int r = 0; r < R; r++)
    for (int s = 0; s < R; s++) {
      const int h = p * shape.stride - padding + r, v = q * shape.stride - padding + s;
      if (h < 0 || h >= shape.in_height || v < 0 || v >= shape.in_width) continue;
      const bf16 *pixel_x = x + ((b * shape.in_height + h) * shape.in_width + v) * C;
      const bf16 *tap = w + ((size_t)(k * R + r) * R + s) * C;
      for (int c = 0; c < C; c++) sum += to_float(pixel_x[c]) * to_float(tap[c]);
    }
  z[i] = to_bf16(sum);
}

static __global__ void plain_backward_input(conv_shape shape, bf16 *dx, const bf16 *dz,
                                            const bf16 *w, bool accumulate) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number(), pixel = i / C;
  const int c = i % C, v = pixel % shape.in_width, h = pixel / shape.in_width % shape.in_height;
  const size_t b = pixel / shape.in_width / shape.in_height;
  if (b >= (size_t)shape.batch) return;
  float sum = accumulate ? to_float(dx[i]) : 0;
  for (int r = 0; r < R; r++)
    for (int s = 0; s < R; s++) {
      const int down = h + padding - r, right = v + padding - s; // stride p and stride q
      if (down < 0 || down % shape.stride || right < 0 || right % shape.stride) continue;
      const int p = down / shape.stride, q = right / shape.stride;
      if (p >= shape.out_height || q >= shape.out_width) continue;
      const bf16 *pixel_dz = dz + ((b * shape.out_height + p) * shape.out_width + q) * K;
      const bf16 *tap = w + (size_t)(r * R + s) * C + c;
      for (int k = 0; k < K; k++)
        sum += to_float(pixel_dz[k]) * to_float(tap[(size_t)k * R * R * C]);
    }
  dx[i] = to_bf16(sum);
}

static __global__ void plain_backward_weight(conv_shape shape, float *dw, const bf16 *dz,
                                             const bf16 *x) {
  const int K = shape.out_channels, C = shape.in_channels, R = shape.kernel, padding = R / 2;
  const size_t i = thread_number();
  const int c = i % C, s = i / C % R, r = i / C / R % R;
  const size_t k = i / C / R / R;
  if (k >= (size_t)K) return;
  float sum = 0;
  for (int b = 0; b < shape.batch; b++)
    for (int p = 0; p < shape.out_height; p++)
      for (int q = 0; q < shape.out_width; q++) {
        const int h = p * shape.stride - padding + r, v = q * shape.stride - padding + s;
        if (h < 0 || h >= shape.in_height || v < 0 || v >= shape.in_width) continue;
        const size_t out = ((size_t)b * shape.out_height + p) * shape.out_width + q;
        const size_t in = ((size_t)b * shape.in_height + h) * shape.in_width + v;
        sum += to_float(dz[out * K + k]) * to_float(x[in * C + c]);
      }
  dw[i] = sum;
}

// sums: [2][channels], of z and z * z, z: [pixels][channels]. A block a channel: each thread takes
// every THREADS-th pixel, then half of the threads add the other half's sums to theirs, and so on.
static __global__ void plain_sums(double *sums, const bf16 *z, int pixels, int channels) {
  __shared__ double sum[THREADS], square[THREADS];
  const int c = blockIdx.x, i = threadIdx.x;
  sum[i] = square[i] = 0;
  for (int pixel = i; pixel < pixels; pixel += THREADS) {
    const double value = to_float(z[(size_t)pixel * channels + c]);
    sum[i] += value;
    square[i] += value * value;
  }
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads(); // all sums of the round before are there
    if (i < half) {
      sum[i] += sum[i + half];
      square[i] += square[i + half];
    }
  }
  if (i == 0) {
    sums[c] = sum[0];
    sums[channels + c] = square[0];
  }
}

static size_t in_count(const conv_shape *s) {
  return (size_t)s->batch * s->in_height * s->in_width * s->in_channels;
}
static size_t out_count(const conv_shape *s) {
  return (size_t)s->batch * s->out_height * s->out_width * s->out_channels;
}

static void conv_forward_plain(const conv_shape *s, void *z, const void *x, const void *w,
                               double *sums) {
  launch("plain_forward", plain_forward, {blocks_for(out_count(s)), THREADS, 0}, *s, z, x, w);
  if (!sums) return;
  const int pixels = s->batch * s->out_height * s->out_width;
  launch("plain_sums", plain_sums, {dim3(s->out_channels), dim3(THREADS), 0}, sums, z, pixels,
         s->out_channels);
}

static void conv_backward_input_plain(const conv_shape *s, void *dx, const void *dz, const void *w,
                                      bool accumulate) {
  launch("plain_backward_input", plain_backward_input, {blocks_for(in_count(s)), THREADS, 0}, *s,
         dx, dz, w, accumulate);
}

static void conv_backward_weight_plain(const conv_shape *s, real *dw, const void *dz,
                                       const void *x) {
  const size_t count = (size_t)s->out_channels * s->kernel * s->kernel * s->in_channels;
  launch("plain_backward_weight", plain_backward_weight, {blocks_for(count), THREADS, 0}, *s, dw,
         dz, x);
}

// -- Output and input gradient ---------------------------------------------------------------------

static void output(const conv_shape *s, void *to, const void *x, const void *w, epilogue end) {
  gather_job g = {};
  end.to = (bf16 *)to, end.channels = s->out_channels;
  if (halo_convolution<false, false>(s, x, w, {}, end) || stem_convolution(s, x, w, end)) return;
  g.end = end, g.products = 1;
  g.to_height = s->out_height, g.to_width = s->out_width;
  g.product[0] = product_of(source_of(x, s->in_height, s->in_width, s->in_channels), w, s->kernel);
  g.product[0].classes[0] =
      make_class(s->batch, s->in_channels, forward_axis(s->stride, s->kernel, s->out_height),
                 forward_axis(s->stride, s->kernel, s->out_width));
  choose_gather<false>(&g, 1);
}

static patch_product gradient_product(const conv_shape *s, const void *dz, const void *w) {
  patch_product p =
      product_of(source_of(dz, s->out_height, s->out_width, s->out_channels), w, s->kernel);
  for (int i = 0; i < s->stride * s->stride; i++)
    p.classes[i] = make_class(s->batch, s->out_channels,
                              backward_axis(s->stride, s->kernel, s->in_height, i / s->stride),
                              backward_axis(s->stride, s->kernel, s->in_width, i % s->stride));
  return p;
}

// shortcut: what its part of the gradient is made of; NULL: there is none.
static void input_gradient(const conv_shape *s, void *dx, const void *dz, const void *w,
                           const shortcut_gradient *shortcut, epilogue end) {
  gather_job g = {};
  end.to = (bf16 *)dx, end.channels = s->in_channels;
  if (!shortcut && halo_convolution<true, false>(s, dz, w, {}, end)) return;
  g.end = end, g.products = 1;
  g.to_height = s->in_height, g.to_width = s->in_width;
  g.product[0] = gradient_product(s, dz, w);
  if (shortcut)
    g.product[g.products++] = gradient_product(shortcut->shape, shortcut->dz, shortcut->w);
  choose_gather<true>(&g, s->stride * s->stride);
}

// -- The operations, an epilogue each --------------------------------------------------------------

static void conv_forward(const conv_shape *s, void *z, const void *x, const void *w, double *sums) {
  epilogue end = {};
  end.sets = sums ? 1 : 0;
  end.sums[0].use.sums = sums;
  output(s, z, x, w, end);
}

static epilogue statistics_of(const conv_shape *s, const norm_arrays *of_z) {
  epilogue end = {};
  end.sets = 1;
  end.sums[0].use.norm = *of_z;
  end.sums[0].use.pixels = s->batch * s->out_height * s->out_width;
  return end;
}

static void conv_statistics(const conv_shape *s, void *z, const void *x, const void *w,
                            const norm_arrays *of_z) {
  output(s, z, x, w, statistics_of(s, of_z));
}

// With more channels the norm's table would leave room for one block on a processor (gpu/halo.h).
static bool takes_norm(const conv_shape *s) {
  return halo_takes(s) && s->in_channels <= MOST_NORMALISED;
}

static void norm_conv_statistics(const conv_shape *s, void *z, const norm_below *below,
                                 const void *w, const norm_arrays *of_z) {
  epilogue end = statistics_of(s, of_z);
  end.to = (bf16 *)z, end.channels = s->out_channels;
  halo_convolution<false, true>(s, below->z, w, training_normal(&below->norm), end);
}

static void conv_norm_inference(const conv_shape *s, void *y, const void *x, const void *w,
                                const real *gamma, const real *beta, const void *residual,
                                bool relu, const real *running_mean, const real *running_var) {
  epilogue end = {};
  end.norm = {gamma, beta, running_mean, NULL, running_var};
  end.residual = (const bf16 *)residual;
  end.relu = relu;
  output(s, y, x, w, end);
}

static void conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                                bool accumulate) {
  epilogue end = {};
  end.accumulate = accumulate;
  input_gradient(s, dx, dz, w, NULL, end);
}

static column_sums gradient_sums(const norm_below *of) {
  column_sums s = {};
  s.z = (const bf16 *)of->z, s.mean = of->norm.mean;
  s.use.inverse_std = of->norm.inverse_std;
  s.use.dgamma = of->dgamma, s.use.dbeta = of->dbeta;
  return s;
}

static epilogue mask_of(const norm_below *below) {
  epilogue end = {};
  end.norm = training_normal(&below->norm);
  end.mask = below->mask;
  end.sums[end.sets++] = gradient_sums(below);
  if (below->shortcut) end.sums[end.sets++] = gradient_sums(below->shortcut);
  return end;
}

static void conv_backward_masked(const conv_shape *s, void *g, const void *dz, const void *w,
                                 bool accumulate, const norm_below *below) {
  epilogue end = mask_of(below);
  end.accumulate = accumulate;
  input_gradient(s, g, dz, w, NULL, end);
}

static void block_backward_masked(const conv_shape *s, void *g, const void *dz, const void *w,
                                  const shortcut_gradient *shortcut, const norm_below *below) {
  input_gradient(s, g, dz, w, shortcut, mask_of(below));
}

// -- Weight gradient -------------------------------------------------------------------------------

// The sum is long, so it is cut into parts (gpu/parts.h). Its B is the output's A, the other way round: a
// column for each tap and channel of the patches, a term of the sum for each pixel of z.
typedef struct {
  float *to;      // [parts][filters][pitch]: dw itself, or the workspace
  const bf16 *dz; // [pixels][filters]
  patch_source x;
  parity_class patches; // of x, for each pixel of z; their terms are the columns of dw
  int filters;
  int pitch;      // columns of dw, rounded up to an even number
  int part_steps; // stages of DEPTH pixels in a part
} weight_job;

// Block (x, y, z): part x of the sum, column tile y, row tile z.
template <int ROWS, int COLUMNS, bool ALIGNED>
static __global__ void __launch_bounds__(THREADS, 2) weight_tile(weight_job o) {
  typedef tile_of<ROWS, COLUMNS, false, false> tile;
  DYNAMIC_SHARED(bytes);
  const int first_row = blockIdx.z * ROWS, first_column = blockIdx.y * COLUMNS;
  const int first_step = blockIdx.x * o.part_steps, pixels = o.patches.pixels;
  const int steps = min_of(o.part_steps, divide_up(pixels, DEPTH) - first_step);
  // Lines of B that the block loads at once, and lines for each thread: a pixel each, of the next stage.
  // A thread's columns stay the same.
  enum { LINES = THREADS / (COLUMNS / EIGHT), COUNT = DEPTH / LINES };
  const int piece = threadIdx.x % (COLUMNS / EIGHT);
  const patch_term column = term_of(&o.x, &o.patches, first_column + piece * EIGHT);
  place at[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    at[i] = place_of(&o.patches, first_step * DEPTH + threadIdx.x / (COLUMNS / EIGHT) + i * LINES);
  tile t;
  clear(&t);
  multiply_all(&t, (bf16 *)bytes, steps, [&](bf16 *a, bf16 *b, int step) {
    const int first = (first_step + step) * DEPTH;
    load_tile<tile::A_LINES, tile::A_LINE, ALIGNED>(a, o.dz, [&](int, int line, int i) {
      const int pixel = first + line, filter = first_row + i;
      const bool inside = pixel < pixels && filter < o.filters;
      return inside ? o.dz + (size_t)pixel * o.filters + filter : NULL;
    });
    load_tile<tile::B_LINES, tile::B_LINE, ALIGNED>(b, o.x.pixels, [&](int number, int, int i) {
      return patch_at(&o.x, &o.patches, corner_of(&o.x, &o.patches, at[number]),
                      ALIGNED ? column : term_of(&o.x, &o.patches, first_column + i));
    });
#pragma unroll
    for (int i = 0; i < COUNT; i++) next_stage(&o.patches, &at[i]);
  });
  for_each_pair(&t, [&](int, int row, int column, float first, float second) {
    const int m = first_row + row, n = first_column + column;
    if (m >= o.filters || n >= o.pitch) return;
    float2 pair;
    pair.x = first;
    pair.y = second;
    *(float2 *)&o.to[((size_t)blockIdx.x * o.filters + m) * o.pitch + n] = pair;
  });
}

template <int ROWS, int COLUMNS, bool ALIGNED>
static void launch_weight_job(weight_job *o, real *dw) {
  const int columns = o->patches.terms, steps = divide_up(o->patches.pixels, DEPTH);
  const int rows = divide_up(o->filters, ROWS), across = divide_up(columns, COLUMNS);
  o->part_steps = steps_of_part(steps, 8, rows * across);
  const int parts = divide_up(steps, o->part_steps);
  const size_t stages = STAGES * (ROWS + COLUMNS) * DEPTH * sizeof(bf16);
  o->to = place_of_parts(dw, parts, o->filters, columns, o->pitch);
  launch("weight_tile", weight_tile<ROWS, COLUMNS, ALIGNED>,
         {dim3(parts, across, rows), dim3(THREADS), stages}, *o);
  launch_add_parts(dw, o->to, parts, o->filters, columns, o->pitch);
}

static void conv_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
  weight_job o = {};
  if (strip_convolution<false>(s, dw, dz, x, {}) || stem_backward_weight(s, dw, dz, x)) return;
  o.dz = (const bf16 *)dz, o.filters = s->out_channels;
  o.x = source_of(x, s->in_height, s->in_width, s->in_channels);
  o.patches =
      make_class(s->batch, s->in_channels, forward_axis(s->stride, s->kernel, s->out_height),
                 forward_axis(s->stride, s->kernel, s->out_width));
  o.pitch = divide_up(o.patches.terms, 2) * 2;
  if (s->in_channels % EIGHT || s->out_channels % EIGHT)
    launch_weight_job<64, 128, false>(&o, dw);
  else if (s->out_channels >= 128)
    launch_weight_job<128, 128, true>(&o, dw);
  else
    launch_weight_job<64, 128, true>(&o, dw);
}

static void norm_conv_backward_weight(const conv_shape *s, real *dw, const void *dz,
                                      const norm_below *below) {
  strip_convolution<true>(s, dw, dz, below->z, training_normal(&below->norm));
}

void fill_conv(device *d, fusions *fused, bool plain) {
  d->conv_forward = plain ? conv_forward_plain : conv_forward;
  d->conv_backward_input = plain ? conv_backward_input_plain : conv_backward_input;
  d->conv_backward_weight = plain ? conv_backward_weight_plain : conv_backward_weight;
  d->conv_norm_inference = plain ? NULL : conv_norm_inference;
  fused->conv_statistics = conv_statistics;
  fused->conv_backward_masked = conv_backward_masked;
  fused->block_backward_masked = block_backward_masked;
  fused->takes_norm = takes_norm;
  fused->norm_conv_statistics = norm_conv_statistics;
  fused->norm_conv_backward_weight = norm_conv_backward_weight;
}

} // namespace GPU
