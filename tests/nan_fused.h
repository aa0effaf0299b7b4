// tests/nan_fused.h - the cases of device.h's fusions for nan_test.c: what depends on an input follows from the
// operations that a fusion replaces.
#ifndef NAN_FUSED_H
#define NAN_FUSED_H

#include "nan.h"

// From the z or the norm of what is added, where the device makes it on the way.
static void test_added_norm(int channels, int place, bool relu) {
  const norm_shape s = {35, channels, 1};
  const activation_shape shape = {1, 35, channels};
  const size_t count = (size_t)35 * channels, at = somewhere(place == Z ? count : (size_t)channels);
  real *values[PLACES];
  array on[PLACES], y = zero_activations(shape), one = put(REALS, ones(channels), channels);
  for (int i = 0; i < PLACES; i++) values[i] = normals(i == Z ? count : (size_t)channels, 0, 1);
  values[place][at] = a_nan();
  on[Z] = put_activations(values[Z], shape);
  for (int i = GAMMA; i < PLACES; i++) on[i] = put(REALS, values[i], channels);
  const norm_arrays of = {.gamma = on[GAMMA].there,
                          .beta = on[BETA].there,
                          .mean = on[MEAN].there,
                          .inverse_std = on[VARIANCE].there};
  const norm_arrays own = {
      .gamma = one.there, .beta = one.there, .mean = one.there, .inverse_std = one.there};
  const addend add = {.values = on[Z].there, .norm = &of, .relu = relu};
  d->fused->norm_apply(&s, y.there, NULL, put_activations(normals(count, 0, 1), shape).there, &own,
                       &add, true);
  expect(&y, only(count, at, place == Z ? 0 : channels), "norm_apply, from the norm that it adds");
  let_go();
  release();
}

// A norm on the way to a convolution: a NaN in z, or in one of the norm's arrays.
static void test_norm_conv(int place) {
  const conv_shape s = make_conv_shape(2, 8, 8, 16, 32, 3, 1);
  const size_t x = 2 * 64 * 16, w = 32 * 9 * 16, z = 2 * 64 * 32, count[] = {x, 0, 16, 16, 16, 16};
  const size_t at = somewhere(count[place]), channel = at % 16;
  real *values[PLACES], *seen = poison(z), *filters = take(w * sizeof *filters);
  real *one = place == Z ? only(x, at, 0) : only(x, channel, 16);
  for (int i = 0; i < PLACES; i++) values[i] = normals(count[i], 0, 1);
  values[place][at] = a_nan();
  reference_conv_forward(&s, seen, one, ones(w), NULL);
  reference_conv_backward_weight(&s, filters, ones(z), one);
  const activation_shape x_shape = {2, 64, 16}, z_shape = {2, 64, 32};
  array out = zero_activations(z_shape), dw = zeros(REALS, w), on[PLACES];
  for (int i = GAMMA; i < PLACES; i++) on[i] = put(REALS, values[i], 16);
  array of_out = put(REALS, ones(32), 32);
  const norm_below below = {.norm = {.gamma = on[GAMMA].there,
                                     .beta = on[BETA].there,
                                     .mean = on[MEAN].there,
                                     .inverse_std = on[VARIANCE].there},
                            .z = put_activations(values[Z], x_shape).there};
  const norm_arrays own = {.running_mean = of_out.there,
                           .running_var = of_out.there,
                           .mean = of_out.there,
                           .inverse_std = of_out.there};
  d->fused->norm_conv_statistics(&s, out.there, &below, put(WEIGHTS, normals(w, 0, 1), w).there,
                                 &own);
  d->fused->norm_conv_backward_weight(&s, dw.there,
                                      put_activations(normals(z, 0, 1), z_shape).there, &below);
  char what[80];
  snprintf(what, sizeof what, "norm_conv_statistics, from %s", places[place]);
  expect(&out, seen, what);
  snprintf(what, sizeof what, "norm_conv_backward_weight, from %s", places[place]);
  expect(&dw, filters, what);
  let_go();
  release();
}

#endif
