// tests/random_test.c - are the random numbers what they claim to be?
//
// Philox against the known answers of its authors' library (Random123, kat_vectors); then each
// distribution against its moments and its exact distribution function. The tests of distributions
// use a fixed seed: a true generator fails a test at level p in a share p of all seeds, and a check
// must not fail for no reason. Bounds are five standard errors, or for Kolmogorov-Smirnov
// D < 2 / sqrt(n), which chance exceeds once in 1,500 times.
#include "../cifar.h"
#include "check.h"

#include "../run/schedule.h"
#include <string.h>

enum { DRAWS = 20000 };

static void check_philox(void) {
  static const uint32_t counters[3][4] = {{0, 0, 0, 0},
                                          {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                                          {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
  static const uint32_t keys[3][2] = {{0, 0}, {0xffffffff, 0xffffffff}, {0xa4093822, 0x299f31d0}};
  static const uint32_t answers[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
                                         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
  for (int i = 0; i < 3; i++) {
    uint32_t result[4];
    philox(counters[i], keys[i], result);
    check(!memcmp(result, answers[i], sizeof result), "philox4x32-10, known answer %d", i);
  }
}

// The same (seed, purpose, epoch, step) gives the same numbers; a change of any one gives others.
static void check_streams(void) {
  random_stream a = random_open(7, RANDOM_CROP, 3, 11), b = a;
  random_stream others[] = {random_open(8, RANDOM_CROP, 3, 11),
                            random_open(7, RANDOM_LAMBDA, 3, 11),
                            random_open(7, RANDOM_CROP, 4, 11), random_open(7, RANDOM_CROP, 3, 12),
                            random_open(7 + (1ull << 32), RANDOM_CROP, 3, 11)};
  int same = 0, equal_to_other = 0;
  for (int i = 0; i < 1000; i++) {
    const uint32_t bits = random_bits(&a);
    same += bits == random_bits(&b);
    for (int j = 0; j < 5; j++) equal_to_other += bits == random_bits(&others[j]);
  }
  check(same == 1000, "a stream is a function of its key");
  check(equal_to_other <= 1, "streams of other keys differ (%d of 5000 equal)", equal_to_other);
}

static void check_uniform(void) {
  random_stream s = random_open(1, RANDOM_TEST, 0, 0);
  double sum = 0, sum_of_squares = 0, least = 1, most = 0;
  for (int i = 0; i < DRAWS; i++) {
    const double u = random_float(&s);
    sum += u, sum_of_squares += u * u;
    least = fmin(least, u), most = fmax(most, u);
  }
  check_error(fabs(sum / DRAWS - 0.5), 5 * sqrt(1.0 / 12 / DRAWS), "uniform: mean 1/2");
  check_error(fabs(sum_of_squares / DRAWS - 1.0 / 3), 5 * sqrt(4.0 / 45 / DRAWS),
              "uniform: mean square 1/3");
  check(least >= 0 && most < 1, "uniform: in [0, 1)");
}

static void check_below(void) {
  enum { N = 7, EACH = 10000 };
  int counts[N] = {0};
  double chi_square = 0;
  random_stream s = random_open(2, RANDOM_TEST, 0, 0);
  for (int i = 0; i < N * EACH; i++) counts[random_below(&s, N)]++;
  for (int i = 0; i < N; i++) chi_square += (counts[i] - EACH) * (double)(counts[i] - EACH) / EACH;
  check_error(chi_square, 6 + 5 * sqrt(12.0), "below 7: chi-square with 6 degrees of freedom");
  // With n = 3 * 2^30, taking the remainder would give the first third twice as often.
  int first_third = 0;
  for (int i = 0; i < DRAWS; i++) first_third += random_below(&s, 3u << 30) < 1u << 30;
  check_error(fabs((double)first_third / DRAWS - 1.0 / 3), 5 * sqrt(2.0 / 9 / DRAWS),
              "below 3 * 2^30: no remainder's bias");
}

static void check_normal(void) {
  random_stream s = random_open(3, RANDOM_TEST, 0, 0);
  double moments[5] = {0};
  for (int i = 0; i < DRAWS; i++) {
    const double x = random_normal(&s);
    for (int k = 1; k <= 4; k++) moments[k] += pow(x, k) / DRAWS;
  }
  check_error(fabs(moments[1]), 5 * sqrt(1.0 / DRAWS), "normal: mean 0");
  check_error(fabs(moments[2] - 1), 5 * sqrt(2.0 / DRAWS), "normal: variance 1");
  check_error(fabs(moments[3]), 5 * sqrt(15.0 / DRAWS), "normal: third moment 0");
  check_error(fabs(moments[4] - 3), 5 * sqrt(96.0 / DRAWS), "normal: fourth moment 3");
}

// The distribution function of Beta(a, a), by the continued fraction of the incomplete beta function
// (Abramowitz and Stegun 26.5.8, evaluated from the inside out); for x <= 1/2, and by symmetry above.
static double beta_below(double x, double a) {
  if (x > 0.5) return 1 - beta_below(1 - x, a);
  if (x <= 0) return 0;
  double fraction = 1;
  for (int m = 300; m >= 1; m--) {
    const double even = m * (a - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (2 * a + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    fraction = 1 + even / (1 + odd / fraction);
  }
  const double first = -2 * a * x / (a + 1);
  const double log_front = a * log(x) + a * log1p(-x) + lgamma(2 * a) - 2 * lgamma(a) - log(a);
  return exp(log_front) / (1 + first / fraction);
}

static int ascending(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void check_beta(double alpha) {
  static double draws[DRAWS];
  double mean = 0, variance = 0, distance = 0;
  for (int i = 0; i < DRAWS; i++) {
    random_stream s = random_open(4, RANDOM_LAMBDA, 1, (uint32_t)i); // as mixup_draw opens it
    draws[i] = random_beta(&s, alpha);
    mean += draws[i] / DRAWS;
  }
  const double exact = 1 / (4 * (2 * alpha + 1)); // the variance of Beta(alpha, alpha)
  for (int i = 0; i < DRAWS; i++) variance += (draws[i] - 0.5) * (draws[i] - 0.5) / DRAWS;
  qsort(draws, DRAWS, sizeof *draws, ascending);
  // Numbers below 1e-12 stand for all down to 0: doubles above 1/2 end that near to 1.
  for (int i = 0; i < DRAWS; i++) {
    if (draws[i] < 1e-12 || draws[i] > 1 - 1e-12) continue;
    const double below = beta_below(draws[i], alpha);
    distance = larger(distance, fabs(below - (double)i / DRAWS));
    distance = larger(distance, fabs(below - (i + 1.0) / DRAWS));
  }
  check_error(fabs(mean - 0.5), 5 * sqrt(exact / DRAWS), "Beta(%g, %g): mean 1/2", alpha, alpha);
  check_error(fabs(variance / exact - 1), 5 * sqrt(2.0 / DRAWS), "Beta(%g, %g): variance", alpha,
              alpha);
  check_error(distance, 2 / sqrt(DRAWS), "Beta(%g, %g): Kolmogorov-Smirnov", alpha, alpha);
  check(draws[0] >= 0 && draws[DRAWS - 1] <= 1, "Beta(%g, %g): in [0, 1]", alpha, alpha);
}

// Is the distribution function that the draws are held against right? Beta(1, 1) is uniform, and
// Beta(2, 2) has 3 x^2 - 2 x^3, Beta(1/2, 1/2) has 2 / pi asin(sqrt x).
static void check_beta_below(void) {
  double error = 0;
  for (double x = 0.001; x < 1; x += 0.0173) {
    error = larger(error, fabs(beta_below(x, 1) - x));
    error = larger(error, fabs(beta_below(x, 2) - x * x * (3 - 2 * x)));
    error = larger(error, fabs(beta_below(x, 0.5) - 2 / acos(-1) * asin(sqrt(x))));
  }
  check_error(error, 1e-12, "the exact Beta distribution that follows");
}

// All 120 permutations of five equally often, and a long one is a permutation.
static void check_permutation(void) {
  enum { EACH = 200, KINDS = 120 };
  static int counts[3125];
  static int32_t order[50000];
  double chi_square = 0;
  for (int i = 0; i < KINDS * EACH; i++) {
    random_stream s = random_open(5, RANDOM_SHUFFLE, (uint32_t)i, 0);
    int code = 0;
    random_permutation(&s, order, 5);
    for (int j = 0; j < 5; j++) code = 5 * code + order[j];
    counts[code]++;
  }
  int kinds = 0;
  for (int i = 0; i < 3125; i++) kinds += counts[i] > 0;
  for (int i = 0; i < 3125; i++)
    if (counts[i]) chi_square += pow(counts[i] - EACH, 2) / EACH;
  check(kinds == KINDS, "permutations of 5: all 120 and nothing else (%d)", kinds);
  check_error(chi_square, 119 + 5 * sqrt(238), "permutations of 5: equally often (chi-square)");
  static char seen[50000];
  int different = 0;
  random_stream s = random_open(5, RANDOM_SHUFFLE, 0, 0);
  random_permutation(&s, order, 50000);
  for (int i = 0; i < 50000; i++) different += !seen[order[i]]++;
  check(different == 50000, "a permutation of 50000 has each number once");
}

static void check_mixup_draw(void) {
  enum { BATCH = 128, STEPS = 2000 };
  static sample samples[BATCH];
  int fixed = 0, complete = 0;
  double mean = 0;
  for (int step = 1; step <= STEPS; step++) {
    char seen[BATCH] = {0};
    mean += mixup_draw(BATCH, samples, 1, 9, 0, step) / STEPS;
    for (int b = 0; b < BATCH; b++) {
      fixed += samples[b].partner == b;
      complete += !seen[samples[b].partner]++;
    }
  }
  check(complete == BATCH * STEPS, "mixup: partners are a permutation of the batch");
  // A random permutation has one fixed point on average, with variance one.
  check_error(fabs((double)fixed / STEPS - 1), 5 / sqrt(STEPS), "mixup: one own partner a batch");
  check_error(fabs(mean - 0.5), 5 * sqrt(1.0 / 12 / STEPS), "mixup: lambda's mean over steps");
  const float lambda = mixup_draw(BATCH, samples, 0, 9, 0, 1);
  bool own = lambda == 1;
  for (int b = 0; b < BATCH; b++) own = own && samples[b].partner == b;
  check(own, "mixup: alpha 0 turns it off");
}

// lr / 10 from epoch 50, / 100 from epoch 100, epochs counted from 0.
static void check_schedule(void) {
  char *defaults[] = {"train"}, *quick[] = {"train", "--preset", "quick", "--epochs", "9"};
  options o;
  error e;
  bool ok = options_parse(1, defaults, &o, &e);
  for (int epoch = 0; epoch < 150; epoch++) {
    const double expected = epoch < 50 ? 0.1 : epoch < 100 ? 0.01 : 0.001;
    ok = ok && fabs(learning_rate_of(&o, epoch) - expected) < 1e-15;
  }
  check(ok && o.epochs == 150, "schedule: the recipe's 150 epochs");
  ok = options_parse(5, quick, &o, &e) && o.milestone_count == 2 && o.milestones[0] == 3 &&
       o.milestones[1] == 6;
  check(ok, "schedule: quick drops after one and two thirds of its epochs");
}

int main(void) {
  check_philox();
  check_streams();
  check_uniform();
  check_below();
  check_normal();
  check_beta_below();
  const double alphas[] = {0.01, 0.1, 0.2, 0.5, 1, 2, 5, 40};
  for (size_t i = 0; i < sizeof alphas / sizeof *alphas; i++) check_beta(alphas[i]);
  check_permutation();
  check_mixup_draw();
  check_schedule();
  return check_summary();
}
