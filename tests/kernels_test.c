// tests/kernels_test.c - every device that computes in bf16 against the reference: the CUDA kernels, plain
// and fast, and the CPU's device cpu-bf16. One table of operation, shape, device, error, tolerance.
// On every machine for the simulated devices and cpu-bf16, for `cuda` too where a GPU answers.
//
//     kernels_test [OPERATION] [DEVICE] [quick|network] [unguarded]        all of them without arguments
//
// Inputs are drawn fresh from a printed seed and rounded to bf16 first, so that the device and the
// reference (double sums) start from the very same numbers. Each launch is done twice, the second
// time with the last warp and lane first, and has to give the same bits: what depends on an order
// that the hardware does not promise would differ. (Of the full network's convolutions, only the
// fast kernels at batch 1, for the time it takes.)
//
// Tolerance, element by element:   slack + half the distance between bf16 numbers at the result
//
// The second term is the rounding of the output and is 2^-9 to 2^-8 of it (8 significant bits);
// float outputs have 2^-24 instead. The slack is what float arithmetic before that may lose:
//
// Sums of K products p_i. Our inputs have independent random signs, so that every partial sum, in
// whatever order, is below 8 R, R = sqrt(sum p_i^2), but for probability 2 exp(-8^2 / 2) = 3 10^-14
// (Hoeffding). An addition in float loses up to 2^-24 of the partial sum; K such losses,
// independent and of either sign, add up to less than 8 sqrt(K) times the largest, with the same
// probability:
//
//     slack = 64 sqrt(K) 2^-24 R
//
// Tensor cores do not round: a block of 8 products and the sum so far are aligned to the largest of
// them, and what then hangs over the end is cut off (Fasi, Higham, Mikaitis, Pranesh, "Numerical
// behavior of NVIDIA tensor cores", 2021). These losses need not cancel, so we count them all: in K
// / 8 blocks, 9 of up to 2^-24 of the largest, which is below 8 R. For convolutions:
//
//     slack = (9 K + 64 sqrt(K)) 2^-24 R
//
// (cpu-bf16's tensor cores do round, as often as an addition: cpu-bf16/tiles.h. The first slack
// would do for them.)
//
// An average product is 0.64 R / sqrt(K): for the largest K here, 4608, three times that slack, for
// 576 sixty times. R comes from the cpu device, run on squares (devices_test.c holds it against
// the reference), with what Winograd's method may lose of it added (conv_slack).
//
// Everything else is a formula with a few operations: 2^-24 of the largest intermediate result for
// each of them, stated where it is used.
//
//     make build/gcc/tests/kernels_test && build/gcc/tests/kernels_test conv_forward simt
#define _DEFAULT_SOURCE // MAP_ANONYMOUS
#include "../network.h"
#include "kernels.h"

#include "kernels_conv.h"
#include "kernels_fused.h"
#include "kernels_resnet18.h"
#include "kernels_step.h"
#include <omp.h>

// -- Activations to and from the host -------------------------------------------------------------

// Every kind of number: ties, the largest, those too small for an exponent, infinities, a NaN.
// cpu-bf16 makes zeros of those nearer to 0 than 2^-126 (store_row in cpu-bf16/blocks.h).
static void test_activations(const test_case *c, const devices *on) {
  static const real special[] = {0,          -0.0f,         0x1.01p0f, 0x1.03p0f,
                                 -0x1.01p0f, 0x1.010002p0f, 1e-45f,    0x1p-133f,
                                 0x1p-126f,  0x1.fep127f,   -INFINITY, INFINITY};
  static const activation_shape shape = {5, 4, 50};
  enum { COUNT = 1000, SPECIAL = sizeof special / sizeof *special };
  real *values = normals(COUNT, 0, 100), *expected = take(COUNT * sizeof *expected);
  memcpy(values, special, sizeof special);
  memcpy(expected, values, COUNT * sizeof *values);
  round_all(expected, COUNT);
  values[SPECIAL] = NAN;
  for (int i = 0; i < on->count; i++) {
    const device *d = on->of[i];
    void *there = d->allocate(activation_size(d, shape));
    real back[COUNT];
    size_t wrong = 0;
    const float least = strcmp(d->name, "cpu-bf16") ? 0 : 0x1p-126f;
    d->upload_activations(there, values, shape);
    d->download_activations(back, there, shape);
    for (int j = 0; j < COUNT; j++) {
      const real kept = fabsf(expected[j]) < least ? 0 : expected[j];
      wrong += !(j == SPECIAL ? isnan(back[j]) : back[j] == kept);
    }
    add_row(c, d->name, "rounded to nearest, ties to even", (double)wrong, 0);
    d->release(there);
  }
}

// -- Which cases there are ------------------------------------------------------------------------

__attribute__((format(printf, 3, 4))) static test_case *
add_case(const char *operation, void (*test)(const test_case *, const devices *),
         const char *format, ...) {
  if (case_count == MAX_CASES) abort();
  test_case *c = &cases[case_count++];
  *c = (test_case){.operation = operation, .test = test};
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(c->shape, sizeof c->shape, format, arguments);
  va_end(arguments);
  return c;
}

static void set_conv(test_case *c, conv_shape s, bool option, extent size) {
  c->conv = s;
  c->option = option;
  c->size = size;
}

// As the network asks for it: for a block's shortcut; for its first convolution, and the stem; for its second.
static void add_inference(conv_shape s, const char *shape, int options, extent size) {
  static const char *const in_words[] = {"", ", ReLU", ", residual, ReLU"};
  for (int i = 0; i < 3; i++) {
    if (!(options >> (i > 0) & 1)) continue;
    test_case *c =
        add_case("conv_norm_inference", test_conv_norm_inference, "%s%s", shape, in_words[i]);
    set_conv(c, s, i == 2, size);
    c->relu = i > 0;
  }
}

// options: as below; here 1 is without what is added to, and y, and 2 is with.
static void add_fused_convs(conv_shape s, const char *shape, int options, extent size) {
  error unused;
  for (int option = 0; option <= 1; option++) {
    if (!(options >> option & 1)) continue;
    test_case *c = add_case("conv_backward_masked", test_conv_backward_masked, "%s%s", shape,
                            option ? ", added, y" : "");
    set_conv(c, s, option, size);
    c->y_given = option;
  }
  set_conv(add_case("conv_statistics", test_conv_statistics, "%s", shape), s, false, size);
  if (s.kernel == 3) {
    test_case *c = add_case("block_backward_masked", test_block_backward_masked, "%s, y", shape);
    set_conv(c, s, false, size);
    c->y_given = true;
  }
  const fusions *gpu = device_by_name("simt", &unused)->fused;
  if (!gpu->takes_norm(&s)) return;
  set_conv(add_case("norm_conv_statistics", test_norm_conv_statistics, "%s", shape), s, false,
           size);
  set_conv(add_case("norm_conv_backward_weight", test_norm_conv_backward_weight, "%s", shape), s,
           false, size);
}

// options: 1, without sums and not accumulating; 2, with; 3, both.
static void add_conv(conv_shape s, int options, extent size) {
  char shape[40];
  snprintf(shape, sizeof shape, "%dx%d/%d %dx%dx%dx%d -> %d", s.kernel, s.kernel, s.stride, s.batch,
           s.in_height, s.in_width, s.in_channels, s.out_channels);
  for (int option = 0; option <= 1; option++) {
    if (!(options >> option & 1)) continue;
    set_conv(add_case("conv_forward", test_conv_forward, "%s%s", shape, option ? ", sums" : ""), s,
             option, size);
    set_conv(add_case("conv_backward_input", test_conv_backward_input, "%s%s", shape,
                      option ? ", added" : ""),
             s, option, size);
  }
  set_conv(add_case("conv_backward_weight", test_conv_backward_weight, "%s", shape), s, false,
           size);
  add_inference(s, shape, size == LARGE ? 2 : options, size);
  add_fused_convs(s, shape, size == LARGE ? 2 : options, size);
}

static void add_network_convs(int width, int batch, int options, extent size) {
  network n;
  error e;
  if (!network_describe(&n, &reference_device, width, batch, &e)) exit(1);
  for (int i = 0; i < UNITS; i++) {
    bool seen = false;
    for (int j = 0; j < i; j++)
      seen |= !memcmp(&n.units[j].shape, &n.units[i].shape, sizeof(conv_shape));
    if (!seen) add_conv(n.units[i].shape, options, size);
  }
}

// Every kernel and stride with odd sizes, on channels at random; then some that fill several tiles,
// with a remainder of each.
static void add_ragged_convs(void) {
  static const int sizes[][2] = {{5, 7}, {1, 1}, {9, 4}}, channels[] = {3, 5, 8, 12, 24, 40};
  for (int kernel = 1; kernel <= 3; kernel += 2)
    for (int stride = 1; stride <= 2; stride++)
      for (int size = 0; size < 3; size++)
        for (int batch = 1; batch <= 3; batch += 2)
          add_conv(make_conv_shape(batch, sizes[size][0], sizes[size][1],
                                   channels[random_below(&stream, 6)],
                                   channels[random_below(&stream, 6)], kernel, stride),
                   3, SMALL);
  add_conv(make_conv_shape(1, 11, 13, 72, 40, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(1, 17, 17, 70, 36, 3, 2), 3, FOR_TILES);
  add_conv(make_conv_shape(1, 16, 16, 40, 136, 3, 2), 3, MEDIUM);
  add_conv(make_conv_shape(1, 16, 16, 136, 72, 3, 1), 3, MEDIUM);
  add_conv(make_conv_shape(37, 3, 5, 70, 36, 1, 1), 3, MEDIUM);
  // More groups of 32 images than one, the last one begun only.
  add_conv(make_conv_shape(70, 4, 5, 12, 40, 3, 1), 3, IN_BLOCKS);
  add_conv(make_conv_shape(33, 9, 6, 40, 24, 3, 2), 3, IN_BLOCKS);
  add_conv(make_conv_shape(33, 3, 65, 3, 136, 3, 1), 1, IN_BLOCKS); // in chunks, added one by one
  add_conv(make_conv_shape(70, 6, 6, 5, 264, 3, 1), 1, IN_BLOCKS);  // the same, in one part
  // gpu/halo.h: several strips of an image, channels that fill no chunk, filters that fill no tile, a
  // last tile with room for more images; and images that are no whole number of strips.
  add_conv(make_conv_shape(1, 24, 32, 8, 16, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(1, 16, 16, 40, 24, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(5, 8, 8, 24, 72, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(9, 4, 4, 40, 48, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(2, 12, 32, 8, 8, 3, 1), 3, FOR_TILES);
  // gpu/stem.h: several tiles of an image, filters that fill no tile; and images that make none.
  add_conv(make_conv_shape(2, 24, 32, 3, 72, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(5, 8, 32, 3, 8, 3, 1), 3, FOR_TILES);
  add_conv(make_conv_shape(1, 12, 32, 3, 8, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(1, 8, 32, 3, 12, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(1, 8, 16, 3, 8, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(1, 8, 32, 3, 8, 3, 2), 1, FOR_TILES);
  add_conv(make_conv_shape(1, 8, 32, 3, 8, 1, 1), 1, FOR_TILES);
  // gpu/gather.h, tap by tap: filters that fill no tile, forward and backward.
  add_conv(make_conv_shape(2, 9, 8, 32, 24, 3, 2), 1, FOR_TILES);
  add_conv(make_conv_shape(2, 7, 8, 24, 32, 3, 2), 1, FOR_TILES);
  // gpu/halo_weight.h, whose strips are half as high: more than an image in a part of the sum, and
  // images that are no whole number of strips.
  add_conv(make_conv_shape(3, 8, 16, 8, 16, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(2, 12, 16, 8, 8, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(2, 10, 32, 8, 8, 3, 1), 1, FOR_TILES);
  add_conv(make_conv_shape(5, 16, 16, 8, 8, 3, 1), 1, FOR_TILES); // parts of 4, 4 and 2 strips
}

// Every combination of what a call can ask for.
static void add_norm(int images, int pixels, int channels, extent size) {
  const norm_shape s = {pixels, channels, images};
  for (int i = 0; i < 4; i++) {
    const bool residual = i & 1, relu = i & 2;
    const char *what = residual ? relu ? ", residual, ReLU" : ", residual" : relu ? ", ReLU" : "";
    test_case *c = add_case("norm_forward", test_norm_forward, "%d x %d%s", pixels, channels, what);
    c->norm = s, c->with_residual = residual, c->relu = relu, c->size = size;
    c = add_case("norm_inference", test_norm_inference, "%d x %d%s", pixels, channels, what);
    c->norm = s, c->with_residual = residual, c->relu = relu, c->size = size;
    c = add_case("norm_apply", test_norm_apply, "%d x %d%s", pixels, channels, what);
    c->norm = s, c->with_residual = residual, c->relu = relu, c->size = size;
  }
  for (int added = NORM; added <= NORM_AND_RELU; added++) {
    test_case *c = add_case("norm_apply", test_norm_apply, "%d x %d, ReLU, norm%s of the residual",
                            pixels, channels, added == NORM ? "" : " and ReLU");
    c->norm = s, c->with_residual = true, c->relu = true, c->added_norm = added, c->size = size;
  }
  for (int i = 0; i < 2 * ALIASES; i++) {
    test_case *c = add_case("norm_backward", test_norm_backward, "%d x %d%s%s", pixels, channels,
                            i & 1 ? ", ReLU" : "", alias_names[i / 2]);
    c->norm = s, c->relu = i & 1, c->alias = i / 2, c->size = size;
  }
  for (int i = 0; i < 4; i++) {
    const int alias = i & 1 ? DX_IS_DY : NO_RESIDUAL;
    test_case *c = add_case("norm_spread", test_norm_spread, "%d x %d%s%s", pixels, channels,
                            alias_names[alias], i & 2 ? ", shortcut" : "");
    c->norm = s, c->alias = alias, c->with_shortcut = i & 2, c->size = size;
  }
}

// So many partial sums that there is more than a group of them (gpu/sums.h).
static void add_many_parts(void) {
  const conv_shape s = make_conv_shape(33, 11, 12, 8, 8, 1, 1);
  set_conv(add_case("conv_statistics", test_conv_statistics, "35 tiles"), s, false, FOR_TILES);
  test_case *c = add_case("conv_backward_masked", test_conv_backward_masked, "35 tiles");
  set_conv(c, s, false, FOR_TILES);
  c = add_case("norm_backward", test_norm_backward, "35 strips");
  c->norm = (norm_shape){35 * 32, 256, 35}, c->size = FOR_TILES;
}

static void add_pool_and_linear(int batch, int pixels, int channels, extent size) {
  test_case *c =
      add_case("pool_forward", test_pool_forward, "%d x %d x %d", batch, pixels, channels);
  c->batch = batch, c->pixels = pixels, c->channels = channels, c->size = size;
  c = add_case("pool_backward", test_pool_backward, "%d x %d x %d", batch, pixels, channels);
  c->batch = batch, c->pixels = pixels, c->channels = channels, c->size = size;
  c = add_case("linear_forward", test_linear_forward, "%d x %d", batch, channels);
  c->batch = batch, c->channels = channels, c->size = size;
  c = add_case("linear_backward", test_linear_backward, "%d x %d", batch, channels);
  c->batch = batch, c->channels = channels, c->size = size;
}

// lambda: a number in the list of lambdas.
static void add_mix_and_loss(int batch, int lambda) {
  const double value = (double)lambdas[lambda];
  test_case *c = add_case("mix_images", test_mix_images, "batch %d, lambda %g", batch, value);
  c->batch = batch, c->lambda = lambda, c->size = batch < 20 ? SMALL : MEDIUM;
  for (int i = 0; i < 4; i++) {
    c = add_case("cross_entropy", test_cross_entropy, "batch %d, lambda %g%s%s", batch, value,
                 i & 1 ? ", dlogits" : "", i & 2 ? ", smoothed" : "");
    c->batch = batch, c->lambda = lambda, c->size = SMALL;
    c->with_dlogits = i & 1, c->smoothed = i & 2;
  }
}

static void add_sgd(int width) {
  const char *tensors = width ? "" : "few tensors, ";
  for (int i = 0; i < 4; i++) {
    test_case *c = add_case("sgd_update", test_sgd_update, "%swidth %d%s%s", tensors, width,
                            i & 1 ? "" : ", first step", i & 2 ? "" : ", much decay");
    c->channels = width, c->with_momentum = i & 1, c->usual_decay = i & 2, c->size = SMALL;
  }
  test_case *c =
      add_case("refresh_rounded_weights", test_refresh_compute, "%swidth %d", tensors, width);
  c->channels = width, c->size = SMALL;
}

// The long ones first, so that no process is left with one at the end.
static void add_all_cases(void) {
  add_network_convs(64, 1, 1, LARGE);
  add_network_convs(16, 2, 3, MEDIUM);
  add_network_convs(8, 1, 3, SMALL);
  add_ragged_convs();
  static const int norms[][4] = {{2, 2048, 64, 0}, {2, 512, 128, 0}, {2, 128, 256, 0},
                                 {2, 32, 512, 1},  {3, 3072, 8, 1},  {1, 16, 64, 1},
                                 {5, 35, 24, 1},   {1, 2, 12, 1},    {91, 1001, 5, 1}};
  for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
    add_norm(norms[i][0], norms[i][1], norms[i][2], norms[i][3] ? SMALL : MEDIUM);
  add_many_parts();
  static const int heads[][3] = {
      {2, 16, 512}, {3, 16, 512}, {100, 16, 64}, {1, 15, 40}, {3, 1, 13}};
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
    add_pool_and_linear(heads[i][0], heads[i][1], heads[i][2], heads[i][0] < 100 ? SMALL : MEDIUM);
  static const int batches[] = {1, 2, 3, 37, 128};
  for (int i = 0; i < 5; i++) add_mix_and_loss(batches[i], (i + 3) % 4);
  add_mix_and_loss(10, 0);
  add_sgd(8);
  add_sgd(0);
  add_case("activations", test_activations, "to the device and back")->size = SMALL;
}

// The others keep floats: devices_test holds them against the reference.
static bool computes_in_bf16(const char *name) {
  return device_name_is_known(name) && strcmp(name, "reference") && strcmp(name, "cpu") &&
         strcmp(name, "auto");
}

static void parse_arguments(int count, char **arguments, selection *s) {
  for (int i = 1; i < count; i++) {
    const char *word = arguments[i];
    bool is_operation = false;
    for (int j = 0; j < case_count; j++) is_operation |= !strcmp(word, cases[j].operation);
    if (!strcmp(word, "quick"))
      s->quick = true;
    else if (!strcmp(word, "network"))
      s->network = true;
    else if (!strcmp(word, "unguarded"))
      unguarded = true;
    else if (is_operation)
      s->operation = word;
    else if (computes_in_bf16(word))
      s->device = word;
    else {
      fprintf(stderr,
              "kernels_test: %s is no operation, bf16 device, quick, network or unguarded\n", word);
      exit(2);
    }
  }
}

int main(int argc, char **argv) {
  selection s = {.seed = check_seed("kernels_test")};
  results = shared_memory(2 * sizeof *results);
  stream = random_open(s.seed, RANDOM_TEST, 0, 0);
  add_all_cases();
  parse_arguments(argc, argv, &s);
  omp_set_num_threads(1);
  run_workers(&s);
  print_results(&s);
  return check_summary();
}
