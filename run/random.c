// run/random.c - counter-based random numbers and the three distributions that the recipe draws from.
// What each function promises stands in random.h.
#include "random.h"

#include <math.h>

// One round multiplies two of the four words by constants, keeps the low halves, mixes the high
// halves with the other two words and the key, and swaps places; ten rounds pass every known test.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t result[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = (uint64_t)c0 * 0xD2511F53u;
    const uint64_t product1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)product1;
    c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)product0;
    k0 += 0x9E3779B9u; // the golden ratio ...
    k1 += 0xBB67AE85u; // ... and sqrt(3) - 1: a Weyl sequence stands in for a key schedule
  }
  result[0] = c0, result[1] = c1, result[2] = c2, result[3] = c3;
}

random_stream random_open(uint64_t seed, random_purpose purpose, uint32_t epoch, uint32_t step) {
  return (random_stream){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                         .counter = {0, step, epoch, (uint32_t)purpose}};
}

uint32_t random_bits(random_stream *stream) {
  if (!stream->unread) {
    philox(stream->counter, stream->key, stream->block);
    stream->counter[0]++; // 2^34 numbers a stream; a tensor of width 64 takes under 2^22
    stream->unread = 4;
  }
  return stream->block[4 - stream->unread--];
}

// bits % n would favour small results when n does not divide 2^32. Lemire (2019), "Fast random
// integer generation in an interval": scale to n, and draw again in the few cases that are too many.
uint32_t random_below(random_stream *stream, uint32_t n) {
  const uint32_t surplus = -n % n; // 2^32 mod n
  uint64_t scaled;
  do scaled = (uint64_t)random_bits(stream) * n;
  while ((uint32_t)scaled < surplus);
  return (uint32_t)(scaled >> 32);
}

float random_float(random_stream *stream) {
  return (float)(random_bits(stream) >> 8) * 0x1p-24f;
}

// 32 bits and a half, so that log(u) and log(1-u) are finite.
double random_double(random_stream *stream) {
  return (random_bits(stream) + 0.5) * 0x1p-32;
}

// Box and Muller (1958): a uniform angle and an exponential squared radius.
double random_normal(random_stream *stream) {
  const double radius = sqrt(-2 * log(random_double(stream)));
  return radius * cos(2 * 3.14159265358979323846 * random_double(stream));
}

// The logarithm of a Gamma(alpha, 1) number. Marsaglia and Tsang (2000), "A simple method for
// generating gamma variables": a cubed normal, rejected about one time in twenty; for alpha < 1,
// Gamma(alpha) = Gamma(alpha + 1) * U^(1/alpha). The logarithm, because U^(1/alpha) underflows for
// small alpha: at alpha = 0.001 nearly half of all numbers are below the smallest double.
static double log_gamma_number(random_stream *stream, double alpha) {
  if (alpha < 1) {
    const double larger =
        log_gamma_number(stream, alpha + 1); // drawn first: C leaves it open in a + b
    return larger + log(random_double(stream)) / alpha;
  }
  const double d = alpha - 1.0 / 3, c = 1 / sqrt(9 * d);
  for (;;) {
    const double x = random_normal(stream), root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    if (log(random_double(stream)) < x * x / 2 + d - d * v + d * log(v)) return log(d * v);
  }
}

// Beta = G1 / (G1 + G2) with two Gamma numbers, = 1 / (1 + exp(log G2 - log G1)).
double random_beta(random_stream *stream, double alpha) {
  const double log_g1 = log_gamma_number(stream, alpha);
  const double log_g2 = log_gamma_number(stream, alpha);
  return 1 / (1 + exp(log_g2 - log_g1));
}

// Fisher and Yates: swap each place with a random one among those not yet settled.
void random_permutation(random_stream *stream, int32_t *order, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) order[i] = (int32_t)i;
  for (uint32_t i = n; i > 1; i--) {
    const uint32_t j = random_below(stream, i);
    const int32_t other = order[j];
    order[j] = order[i - 1];
    order[i - 1] = other;
  }
}
