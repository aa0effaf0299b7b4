// reference/conv.c - convolution in three passes, as seven plain loops each: the definition that
// every faster version is held against.
//
// Forward, with the image treated as zero outside its borders:
//
//     z[b][p][q][k] = sum over r, s, c of  x[b][p*stride + r - padding][q*stride + s - padding][c]
//                                          * w[k][r][s][c]
//
// The other two passes are the chain rule read off this line. Every x that was multiplied by a w to
// make a z receives that z's gradient times the same w (backward_input); every w receives the
// gradient times the x it was multiplied by (backward_weight). Each loop nest below *gathers*: it
// walks over the elements of its result and collects what belongs there, so that the result is
// written once, by one thread, from a sum held in double.
//
// Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016.
#include "reference.h"

// In the code s is the shape, so that a filter's tap is (r, t) instead of (r, s).

// Where output row (or column) p looks with filter row r, or -1 outside the image.
static int input_at(int p, int r, const conv_shape *s, int in_size) {
  const int h = p * s->stride + r - s->kernel / 2;
  return h >= 0 && h < in_size ? h : -1;
}

// The output row (or column) that looks at input row h with filter row r, or -1 if there is none.
static int output_at(int h, int r, const conv_shape *s, int out_size) {
  const int scaled = h + s->kernel / 2 - r;
  return scaled >= 0 && scaled % s->stride == 0 && scaled / s->stride < out_size
             ? scaled / s->stride
             : -1;
}

static real *pixel(const void *activations, int height, int width, int channels, int b, int row,
                   int column) {
  return (real *)activations + (((size_t)b * height + row) * width + column) * channels;
}

// sums: [2][Cout]: the sum and the sum of squares of each output channel.
static void sum_channels(const conv_shape *s, double *sums, const real *z) {
  const size_t pixels = (size_t)s->batch * s->out_height * s->out_width;
#pragma omp parallel for
  for (int k = 0; k < s->out_channels; k++) {
    double sum = 0, sum_of_squares = 0;
    for (size_t i = 0; i < pixels; i++) {
      const double value = z[i * s->out_channels + k];
      sum += value;
      sum_of_squares += value * value;
    }
    sums[k] = sum;
    sums[s->out_channels + k] = sum_of_squares;
  }
}

// One output value. filter: [R][S][Cin]
static double dot_with_filter(const conv_shape *s, const void *x, const real *filter, int b, int p,
                              int q) {
  double sum = 0;
  for (int r = 0; r < s->kernel; r++)
    for (int t = 0; t < s->kernel; t++) {
      const int h = input_at(p, r, s, s->in_height), v = input_at(q, t, s, s->in_width);
      if (h < 0 || v < 0) continue;
      const real *in = pixel(x, s->in_height, s->in_width, s->in_channels, b, h, v);
      const real *tap = filter + (r * s->kernel + t) * s->in_channels;
      for (int c = 0; c < s->in_channels; c++) sum += (double)in[c] * tap[c];
    }
  return sum;
}

void reference_conv_forward(const conv_shape *s, void *z, const void *x, const void *w,
                            double *sums) {
  const size_t filter_size = (size_t)s->kernel * s->kernel * s->in_channels;
#pragma omp parallel for collapse(2)
  for (int b = 0; b < s->batch; b++)
    for (int p = 0; p < s->out_height; p++)
      for (int q = 0; q < s->out_width; q++) {
        real *out = pixel(z, s->out_height, s->out_width, s->out_channels, b, p, q);
        for (int k = 0; k < s->out_channels; k++)
          out[k] = (real)dot_with_filter(s, x, (const real *)w + k * filter_size, b, p, q);
      }
  if (sums) sum_channels(s, sums, z);
}

// The gradient of one input pixel's channel c: every output that used it, times the weight it used.
static double collect_gradient(const conv_shape *s, const void *dz, const real *w, int b, int h,
                               int v, int c) {
  const size_t filter_size = (size_t)s->kernel * s->kernel * s->in_channels;
  double sum = 0;
  for (int r = 0; r < s->kernel; r++)
    for (int t = 0; t < s->kernel; t++) {
      const int p = output_at(h, r, s, s->out_height), q = output_at(v, t, s, s->out_width);
      if (p < 0 || q < 0) continue;
      const real *out = pixel(dz, s->out_height, s->out_width, s->out_channels, b, p, q);
      const real *tap = w + (r * s->kernel + t) * s->in_channels + c;
      for (int k = 0; k < s->out_channels; k++) sum += (double)out[k] * tap[k * filter_size];
    }
  return sum;
}

void reference_conv_backward_input(const conv_shape *s, void *dx, const void *dz, const void *w,
                                   bool accumulate) {
#pragma omp parallel for collapse(2)
  for (int b = 0; b < s->batch; b++)
    for (int h = 0; h < s->in_height; h++)
      for (int v = 0; v < s->in_width; v++) {
        real *in = pixel(dx, s->in_height, s->in_width, s->in_channels, b, h, v);
        for (int c = 0; c < s->in_channels; c++) {
          const double sum = collect_gradient(s, dz, w, b, h, v, c);
          in[c] = (real)(accumulate ? in[c] + sum : sum);
        }
      }
}

// The gradient of one weight: filter k, tap (r, t), channel c, summed over all output pixels.
static double sum_over_pixels(const conv_shape *s, const void *dz, const void *x, int k, int r,
                              int t, int c) {
  double sum = 0;
  for (int b = 0; b < s->batch; b++)
    for (int p = 0; p < s->out_height; p++)
      for (int q = 0; q < s->out_width; q++) {
        const int h = input_at(p, r, s, s->in_height), v = input_at(q, t, s, s->in_width);
        if (h < 0 || v < 0) continue;
        sum += (double)pixel(dz, s->out_height, s->out_width, s->out_channels, b, p, q)[k] *
               pixel(x, s->in_height, s->in_width, s->in_channels, b, h, v)[c];
      }
  return sum;
}

void reference_conv_backward_weight(const conv_shape *s, real *dw, const void *dz, const void *x) {
#pragma omp parallel for collapse(2)
  for (int k = 0; k < s->out_channels; k++)
    for (int r = 0; r < s->kernel; r++)
      for (int t = 0; t < s->kernel; t++)
        for (int c = 0; c < s->in_channels; c++)
          dw[(((size_t)k * s->kernel + r) * s->kernel + t) * s->in_channels + c] =
              (real)sum_over_pixels(s, dz, x, k, r, t, c);
}
