// tests/nan_fused.h - the cases of device.h's fusions for nan_test.c: what depends on an input follows from the
// operations that a fusion replaces.
//
// g is dx where the mask lets it through, else 0, whatever dx is. So a NaN in what the mask is made of, y or
// the norm below, makes no NaN of g; but it has to let dx through, and with it a NaN. Else the gradient of
// a ReLU whose output is a NaN would be a sound 0.
#ifndef NAN_FUSED_H
#define NAN_FUSED_H

#include "nan.h"

// -- A norm's z and arrays --------------------------------------------------------------------------

enum {
  NORM_Z,
  NORM_GAMMA,
  NORM_BETA,
  NORM_MEAN,
  NORM_INVERSE_STD,
  NORM_DGAMMA,
  NORM_DBETA,
  NORM_PLACES
};
static const char *const norm_places[NORM_PLACES] = {"z",           "gamma",  "beta", "mean",
                                                     "inverse_std", "dgamma", "dbeta"};

typedef struct {
  activation_shape shape;
  real *values[NORM_PLACES];
  array on[NORM_PLACES];
} norm_inputs;

static size_t norm_count(const norm_inputs *n, int place) {
  return place == NORM_Z ? activation_count(n->shape) : (size_t)n->shape.channels;
}

static norm_inputs draw_norm(activation_shape shape) {
  norm_inputs n = {.shape = shape};
  for (int i = 0; i < NORM_PLACES; i++)
    n.values[i] = i == NORM_GAMMA || i == NORM_INVERSE_STD ? ones(norm_count(&n, i))
                                                           : normals(norm_count(&n, i), 0, 1);
  return n;
}

// A NaN in one place. Returned: what it is used for, of z's elements one or a channel's.
static real *spoil_norm(norm_inputs *n, int place) {
  const size_t at = somewhere(norm_count(n, place));
  n->values[place][at] = a_nan();
  return only(activation_count(n->shape), at, place == NORM_Z ? 0 : n->shape.channels);
}

static norm_below put_norm(norm_inputs *n, const norm_below *shortcut) {
  array *on = n->on;
  on[NORM_Z] = put_activations(n->values[NORM_Z], n->shape);
  for (int i = NORM_GAMMA; i < NORM_PLACES; i++)
    on[i] = put(REALS, n->values[i], n->shape.channels);
  return (norm_below){.norm = {.gamma = on[NORM_GAMMA].there,
                               .beta = on[NORM_BETA].there,
                               .mean = on[NORM_MEAN].there,
                               .inverse_std = on[NORM_INVERSE_STD].there},
                      .z = on[NORM_Z].there,
                      .dgamma = on[NORM_DGAMMA].there,
                      .dbeta = on[NORM_DBETA].there,
                      .shortcut = shortcut};
}

// -- conv_statistics and norm_conv_statistics -------------------------------------------------------

enum { FILTERS = NORM_PLACES }; // w, behind the places of the norm on the way; without one, z is x

typedef struct {
  conv_shape s;
  bool normed;
  norm_inputs below;
  real *w, *of_z[4]; // mean, inverse_std, running_mean, running_var
  array z, on[4];
} statistics_case;

static statistics_case draw_statistics(conv_shape s, bool normed) {
  const conv_sizes n = sizes_of(&s);
  statistics_case c = {.s = s, .normed = normed, .below = draw_norm(n.x_shape)};
  c.w = normals(n.w, 0, 1);
  for (int i = 0; i < 4; i++) c.of_z[i] = normals(s.out_channels, 0, 1);
  return c;
}

static void run_statistics(statistics_case *c) {
  const conv_sizes n = sizes_of(&c->s);
  const norm_below below = put_norm(&c->below, NULL);
  const void *w = put(WEIGHTS, c->w, n.w).there;
  c->z = zero_activations(n.z_shape);
  for (int i = 0; i < 4; i++) c->on[i] = put(REALS, c->of_z[i], c->s.out_channels);
  const norm_arrays of_z = {.mean = c->on[0].there,
                            .inverse_std = c->on[1].there,
                            .running_mean = c->on[2].there,
                            .running_var = c->on[3].there};
  if (c->normed)
    d->fused->norm_conv_statistics(&c->s, c->z.there, &below, w, &of_z);
  else
    d->fused->conv_statistics(&c->s, c->z.there, below.z, w, &of_z);
}

// A NaN in x, or in what is made x of, or in w: all statistics of its channels have it.
static void test_statistics(conv_shape s, bool normed, int place) {
  static const char *const names[] = {"mean", "inverse_std", "running_mean", "running_var"};
  statistics_case c = draw_statistics(s, normed);
  const size_t count = sizes_of(&s).z, channels = (size_t)s.out_channels;
  real *depends;
  if (place == FILTERS)
    c.w[draw_seen(&s, FORWARD, SECOND, &depends)] = a_nan();
  else if (normed)
    depends = seen_from(&s, FORWARD, FIRST, spoil_norm(&c.below, place));
  else
    c.below.values[NORM_Z][draw_seen(&s, FORWARD, FIRST, &depends)] = a_nan();
  run_statistics(&c);
  char what[120];
  snprintf(what, sizeof what, "%sconv_statistics %dx%d/%d, %d -> %d, from %s",
           normed ? "norm_" : "", s.kernel, s.kernel, s.stride, s.in_channels, s.out_channels,
           place == FILTERS ? "w"
           : normed         ? norm_places[place]
                            : "x");
  if (place == FILTERS)
    expect(&c.z, depends, what);
  else
    expect_just(&c.z, depends, what);
  for (int i = 0; i < 4; i++)
    expect_just(&c.on[i], channels_of(depends, count, channels), names[i]);
  let_go();
  release();
}

// A NaN in a running statistic stays there.
static void test_running(conv_shape s, bool normed) {
  statistics_case c = draw_statistics(s, normed);
  const size_t channels = (size_t)s.out_channels, at[] = {somewhere(channels), somewhere(channels)};
  for (int i = 0; i < 2; i++) c.of_z[2 + i][at[i]] = a_nan();
  run_statistics(&c);
  for (int i = 0; i < 2; i++) {
    expect_just(&c.on[i], take(channels * sizeof(real)), "the batch's, beside a running NaN");
    expect_just(&c.on[2 + i], only(channels, at[i], 0), "the running one");
  }
  let_go();
  release();
}

// From dz, or from the norm on the way.
static void test_norm_conv_backward_weight(conv_shape s, bool in_dz, int place) {
  const conv_sizes n = sizes_of(&s);
  norm_inputs below = draw_norm(n.x_shape);
  real *dz = normals(n.z, 0, 1), *depends;
  if (in_dz)
    dz[draw_seen(&s, BACKWARD_WEIGHT, FIRST, &depends)] = a_nan();
  else
    depends = seen_from(&s, BACKWARD_WEIGHT, SECOND, spoil_norm(&below, place));
  const norm_below on = put_norm(&below, NULL);
  array dw = zeros(REALS, n.w);
  d->fused->norm_conv_backward_weight(&s, dw.there, put_activations(dz, n.z_shape).there, &on);
  char what[100];
  snprintf(what, sizeof what, "norm_conv_backward_weight, from %s",
           in_dz ? "dz" : norm_places[place]);
  expect(&dw, depends, what);
  let_go();
  release();
}

// -- norm_apply -------------------------------------------------------------------------------------

typedef enum { NOTHING_ADDED, VALUES_ADDED, NORM_ADDED, NORM_AND_RELU_ADDED } added;

// A row: a bit for each number of y, which was fetched, that is above zero or a NaN, and for no other.
static void expect_mask(const array *y, const void *there) {
  const size_t bytes = (y->count + 7) / 8;
  uint8_t *bits = take(bytes);
  int wrong = 0;
  d->download(bits, there, bytes);
  for (size_t i = 0; i < y->count; i++) wrong += (bits[i / 8] >> i % 8 & 1) != !(y->host[i] <= 0);
  check(!wrong, "%s, norm_apply's mask: %d bits are wrong", d->name, wrong);
}

// A NaN in one place of the norm itself, or of what is added.
static void test_norm_apply(int channels, added kind, bool in_added, int place, bool relu) {
  const norm_shape s = {35, channels, 1};
  const activation_shape shape = {1, 35, channels};
  norm_inputs own = draw_norm(shape), other = draw_norm(shape);
  const real *depends = spoil_norm(in_added ? &other : &own, place);
  const norm_below on = put_norm(&own, NULL), on_other = put_norm(&other, NULL);
  const addend add = {.values = on_other.z,
                      .norm = kind >= NORM_ADDED ? &on_other.norm : NULL,
                      .relu = kind == NORM_AND_RELU_ADDED};
  array y = zero_activations(shape);
  const size_t bytes = (y.count + 7) / 8;
  void *mask = d->fused->keeps_masks ? hold(take(bytes), bytes) : NULL;
  d->fused->norm_apply(&s, y.there, mask, on.z, &on.norm, kind ? &add : NULL, relu);
  static const char *const kinds[] = {"", ", residual", ", norm added", ", norm and ReLU added"};
  char what[100];
  snprintf(what, sizeof what, "norm_apply, %d channels%s%s, from %s%s", channels,
           relu ? ", ReLU" : "", kinds[kind], in_added ? "the added " : "", norm_places[place]);
  expect_just(&y, depends, what);
  if (mask) expect_mask(&y, mask);
  let_go();
  release();
}

static void test_norm_applies(int channels, bool relu) {
  const added last = d->fused->takes_norm ? NORM_AND_RELU_ADDED : VALUES_ADDED;
  for (added kind = NOTHING_ADDED; kind <= last; kind++)
    for (int place = NORM_Z; place <= NORM_INVERSE_STD; place++) {
      test_norm_apply(channels, kind, false, place, relu);
      if (kind >= NORM_ADDED || (kind == VALUES_ADDED && place == NORM_Z))
        test_norm_apply(channels, kind, true, place, relu);
    }
}

// -- norm_spread ------------------------------------------------------------------------------------

typedef enum { OF_G, OF_NORM, OF_SHORTCUT } owner;

// A NaN in g, or in one place of the norm, or of the shortcut's.
static void test_norm_spread(int channels, bool with_shortcut, owner of, int place) {
  const norm_shape s = {35, channels, 1};
  const activation_shape shape = {1, 35, channels};
  const size_t count = activation_count(shape), at = somewhere(count);
  norm_inputs own = draw_norm(shape), beside = draw_norm(shape);
  real *g = normals(count, 0, 1), *none = take(count * sizeof *none), *depends = only(count, at, 0);
  if (of == OF_G) g[at] = a_nan();
  if (of != OF_G) depends = spoil_norm(of == OF_NORM ? &own : &beside, place);
  const norm_below shortcut = put_norm(&beside, NULL);
  const norm_below on = put_norm(&own, with_shortcut ? &shortcut : NULL);
  array dz = zero_activations(shape), shortcut_dz = zero_activations(shape);
  d->fused->norm_spread(&s, dz.there, with_shortcut ? shortcut_dz.there : NULL,
                        put_activations(g, shape).there, &on);
  char what[100];
  snprintf(what, sizeof what, "norm_spread%s, %d channels, from %s%s",
           with_shortcut ? " with a shortcut" : "", channels,
           of == OF_SHORTCUT ? "the shortcut's " : "", of == OF_G ? "g" : norm_places[place]);
  expect_just(&dz, of == OF_SHORTCUT ? none : depends, what);
  if (with_shortcut) expect_just(&shortcut_dz, of == OF_NORM ? none : depends, "its shortcut's dz");
  let_go();
  release();
}

static void test_norm_spreads(int channels) {
  const bool pairs = d->fused->block_backward_masked; // then it wants shortcuts
  for (int with_shortcut = 0; with_shortcut <= pairs; with_shortcut++) {
    test_norm_spread(channels, with_shortcut, OF_G, NORM_Z);
    for (int place = 0; place < NORM_PLACES; place++) {
      if (place == NORM_BETA) continue; // not read
      test_norm_spread(channels, with_shortcut, OF_NORM, place);
      if (with_shortcut) test_norm_spread(channels, with_shortcut, OF_SHORTCUT, place);
    }
  }
}

// -- conv_backward_masked and block_backward_masked -------------------------------------------------

enum { IN_DZ, IN_W, IN_SHORTCUT_DZ, IN_SHORTCUT_W, IN_BEFORE, IN_Y, MASKED_INPUTS };

typedef struct {
  conv_shape s;
  bool block, accumulate;
  bool y_given; // the layer below added a residual; else its z tells what ReLU let through
  conv_shape shortcut;
  real *in[MASKED_INPUTS]; // IN_Y: as it follows from z, where it is not given
  norm_inputs below, beside;
  array g;
} masked_case;

static size_t masked_count(const masked_case *m, int input) {
  const conv_sizes n = sizes_of(&m->s), of_shortcut = sizes_of(&m->shortcut);
  const size_t counts[] = {n.z, n.w, of_shortcut.z, of_shortcut.w, n.x, n.x};
  return counts[input];
}

// The layer below's y: z is moved away from where roundings would decide.
static void find_y(masked_case *m) {
  real *const *n = m->below.values, *z = n[NORM_Z];
  for (size_t i = 0; i < masked_count(m, IN_Y); i++) {
    const size_t c = i % m->s.in_channels;
    real *y = &m->in[IN_Y][i];
    *y = n[NORM_GAMMA][c] * (z[i] - n[NORM_MEAN][c]) * n[NORM_INVERSE_STD][c] + n[NORM_BETA][c];
    if (fabs(*y) < 0.1) z[i] += 1, *y += 1;
  }
}

static void draw_masked(masked_case *m) {
  const conv_shape *s = &m->s;
  m->shortcut = make_conv_shape(s->batch, s->in_height, s->in_width, s->in_channels,
                                s->out_channels, 1, s->stride);
  for (int i = 0; i < MASKED_INPUTS; i++) m->in[i] = normals(masked_count(m, i), 0, 1);
  m->below = draw_norm(sizes_of(s).x_shape);
  m->beside = draw_norm(sizes_of(s).x_shape);
  if (!m->y_given) find_y(m);
}

static bool has_shortcut(const masked_case *m) {
  return m->y_given && d->fused->block_backward_masked;
}

// The mask's bits, on the device.
static const uint8_t *put_mask(const real *y, size_t count) {
  uint8_t *bits = take((count + 7) / 8);
  for (size_t i = 0; i < count; i++) bits[i / 8] |= !(y[i] <= 0) << i % 8;
  return hold(bits, (count + 7) / 8);
}

static void run_masked(masked_case *m) {
  const conv_sizes n = sizes_of(&m->s), of_shortcut = sizes_of(&m->shortcut);
  const norm_below beside = put_norm(&m->beside, NULL);
  norm_below below = put_norm(&m->below, has_shortcut(m) ? &beside : NULL);
  if (m->y_given) below.y = put_activations(m->in[IN_Y], n.x_shape).there;
  if (m->y_given && d->fused->keeps_masks) below.mask = put_mask(m->in[IN_Y], n.x);
  m->g = put_activations(m->in[IN_BEFORE], n.x_shape);
  const void *dz = put_activations(m->in[IN_DZ], n.z_shape).there;
  const void *w = put(WEIGHTS, m->in[IN_W], n.w).there;
  const shortcut_gradient shortcut = {
      &m->shortcut, put_activations(m->in[IN_SHORTCUT_DZ], of_shortcut.z_shape).there,
      put(WEIGHTS, m->in[IN_SHORTCUT_W], of_shortcut.w).there};
  if (m->block)
    d->fused->block_backward_masked(&m->s, m->g.there, dz, w, &shortcut, &below);
  else
    d->fused->conv_backward_masked(&m->s, m->g.there, dz, w, m->accumulate, &below);
}

// What is marked, where the mask lets it through.
static real *let_through(const masked_case *m, const real *marks) {
  real *values = take(masked_count(m, IN_Y) * sizeof *values);
  for (size_t i = 0; i < masked_count(m, IN_Y); i++)
    values[i] = marks[i] != 0 && !(m->in[IN_Y][i] <= 0);
  return values;
}

// What of g depends on element `at` of an input.
static real *masked_from(const masked_case *m, int input, size_t at) {
  const bool in_w = input == IN_W || input == IN_SHORTCUT_W;
  const real *marks = only(masked_count(m, input), at, 0);
  if (input != IN_BEFORE)
    marks = seen_from(input < IN_SHORTCUT_DZ ? &m->s : &m->shortcut, BACKWARD_INPUT,
                      in_w ? SECOND : FIRST, marks);
  return let_through(m, marks);
}

static void describe(char what[120], const masked_case *m, const char *owner, const char *place) {
  const conv_shape *s = &m->s;
  snprintf(what, 120, "%s_backward_masked %dx%d/%d, %d -> %d%s%s, from %s%s",
           m->block ? "block" : "conv", s->kernel, s->kernel, s->stride, s->in_channels,
           s->out_channels, m->accumulate ? ", accumulate" : "", m->y_given ? ", y" : "", owner,
           place);
}

// A NaN in dz, in w, or in what was there: g has it, and both sums of both norms.
static void test_masked(masked_case m, int input) {
  static const char *const names[] = {"dz", "w", "the shortcut's dz", "the shortcut's w",
                                      "what was there"};
  draw_masked(&m);
  const size_t count = masked_count(&m, IN_BEFORE), channels = (size_t)m.s.in_channels;
  real *depends;
  size_t at;
  do {
    at = somewhere(masked_count(&m, input));
    depends = masked_from(&m, input, at);
  } while (!any(depends, count));
  m.in[input][at] = a_nan();
  run_masked(&m);
  void (*const row)(const array *, const real *, const char *) =
      input == IN_W || input == IN_SHORTCUT_W ? expect : expect_just;
  const real *sums = channels_of(depends, count, channels);
  char what[120];
  describe(what, &m, "", names[input]);
  row(&m.g, depends, what);
  row(&m.below.on[NORM_DBETA], sums, "its dbeta");
  row(&m.below.on[NORM_DGAMMA], sums, "its dgamma");
  if (has_shortcut(&m)) {
    row(&m.beside.on[NORM_DBETA], sums, "its shortcut's dbeta");
    row(&m.beside.on[NORM_DGAMMA], sums, "its shortcut's dgamma");
  }
  let_go();
  release();
}

// A NaN in z, the mean or inverse_std of the norm below or of the shortcut's: that norm's dgamma has it.
static void test_masked_norm(masked_case m, owner of, int place) {
  draw_masked(&m);
  const size_t count = masked_count(&m, IN_Y), channels = (size_t)m.s.in_channels;
  norm_inputs *spoilt = of == OF_NORM ? &m.below : &m.beside;
  const real *sums = channels_of(spoil_norm(spoilt, place), count, channels);
  const real *none = take(count * sizeof *none);
  run_masked(&m);
  char what[120];
  describe(what, &m, of == OF_SHORTCUT ? "the shortcut's " : "", norm_places[place]);
  expect_just(&spoilt->on[NORM_DGAMMA], sums, what);
  expect_just(&spoilt->on[NORM_DBETA], none, "its dbeta");
  expect_just(&m.g, none, "its g");
  if (has_shortcut(&m))
    expect_just(&(of == OF_NORM ? &m.beside : &m.below)->on[NORM_DGAMMA], none,
                "the other norm's dgamma");
  let_go();
  release();
}

// dz is all NaN: g is where y is above zero, and where it is a NaN, of itself or from a place of the norm.
static void test_masked_open(masked_case m, int place) {
  draw_masked(&m);
  for (size_t i = 0; i < masked_count(&m, IN_DZ); i++) m.in[IN_DZ][i] = a_nan();
  if (m.y_given) {
    m.in[IN_Y][somewhere(masked_count(&m, IN_Y))] = a_nan();
  } else {
    spoil_norm(&m.below, place);
    find_y(&m);
  }
  run_masked(&m);
  char what[120];
  describe(what, &m, "dz, let through by ", m.y_given ? "y" : norm_places[place]);
  expect_just(&m.g, let_through(&m, ones(masked_count(&m, IN_Y))), what);
  let_go();
  release();
}

// All of them, of a shape and with a mask.
static void test_masks(masked_case m) {
  for (int input = IN_DZ; input <= (m.block ? IN_SHORTCUT_W : IN_W); input++) test_masked(m, input);
  if (m.accumulate) test_masked(m, IN_BEFORE);
  for (int place = 0; place < NORM_DGAMMA; place++) {
    if (m.s.kernel == 3 && m.s.stride == 1 && !m.block && !(m.y_given && place))
      test_masked_open(m, place);
    if (place == NORM_GAMMA || place == NORM_BETA) continue; // of these, only the mask is made
    test_masked_norm(m, OF_NORM, place);
    if (has_shortcut(&m)) test_masked_norm(m, OF_SHORTCUT, place);
  }
}

// -- All of them ------------------------------------------------------------------------------------

static void test_norm_on_the_way(conv_shape s) {
  for (int place = 0; place < NORM_DGAMMA; place++) {
    test_statistics(s, true, place);
    test_norm_conv_backward_weight(s, false, place);
  }
  test_statistics(s, true, FILTERS);
  test_running(s, true);
  test_norm_conv_backward_weight(s, true, 0);
}

static void test_fused_convolutions(conv_shape s) {
  test_statistics(s, false, NORM_Z);
  test_statistics(s, false, FILTERS);
  test_running(s, false);
  if (d->fused->takes_norm && d->fused->takes_norm(&s)) test_norm_on_the_way(s);
  for (int variant = 0; variant < 4; variant++)
    test_masks((masked_case){.s = s, .accumulate = variant & 1, .y_given = variant & 2});
  for (int y_given = 0; d->fused->block_backward_masked && y_given < 2; y_given++)
    if (s.kernel == 3) test_masks((masked_case){.s = s, .block = true, .y_given = y_given});
}

static void test_fusions(void) {
  static const int channels[] = {24, 5};
  test_fused_convolutions(make_conv_shape(2, 8, 8, 16, 32, 3, 1));
  test_fused_convolutions(make_conv_shape(2, 7, 6, 16, 32, 3, 2));
  test_fused_convolutions(make_conv_shape(2, 7, 6, 16, 24, 1, 2));
  test_fused_convolutions(make_conv_shape(2, 7, 6, 5, 3, 3, 1));
  for (int i = 0; i < 2; i++) {
    for (int relu = 0; relu < 2; relu++) test_norm_applies(channels[i], relu);
    test_norm_spreads(channels[i]);
  }
}

#endif
