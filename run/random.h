// run/random.h - every random number of a run, from a counter instead of a state.
//
// A usual generator is a state that each call moves on, so what a run draws depends on everything
// drawn before: stop it in the middle, or add one more draw, and all later numbers change. Here a
// number is a pure function of *what it is for*:
//
//     four numbers of 32 bits = Philox4x32-10(key = seed, counter = (i, step, epoch, purpose))
//
// Philox mixes counter and key so thoroughly that neighbouring counters give numbers without any
// visible relation. The numbers of i = 0, 1, 2, .. for one purpose, epoch and step are a *stream*:
// random_open names it, and each call of random_bits hands out its next number.
//
// Nothing has to be saved to resume a run, and the number of threads or the device cannot matter.
// Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. It is
// also one of cuRAND's generators, and PyTorch's on a GPU.
//
// Checked by `make check` (tests/random_test.c): the paper's known answers, the distributions'
// moments, Kolmogorov-Smirnov against the exact Beta distribution.
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

// What a number is for. The values are part of what a seed means: append, never renumber.
typedef enum {
  RANDOM_WEIGHTS = 1, // initial weights; step = the tensor's position in parameters.list
  RANDOM_SHUFFLE = 2, // the order of the training images in an epoch
  RANDOM_CROP = 3,    // corner and flip of each image of a batch
  RANDOM_LAMBDA = 4,  // mixup's lambda for a batch
  RANDOM_PARTNER = 5, // mixup's permutation of a batch
  RANDOM_SHAPES = 6,  // the stand-in data set (tools/shapes.c)
  RANDOM_TEST = 7,    // inputs of the checks in tests/
} random_purpose;

// The numbers of one (seed, purpose, epoch, step), to be drawn in order.
typedef struct {
  uint32_t key[2];     // the seed, low word first
  uint32_t counter[4]; // next block: index, step, epoch, purpose
  uint32_t block[4];   // the current block's four numbers
  int unread;          // how many of them are still to be handed out
} random_stream;

// One block of Philox4x32-10: four 32-bit numbers from a 128-bit counter and a 64-bit key.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t result[4]);

random_stream random_open(uint64_t seed, random_purpose purpose, uint32_t epoch, uint32_t step);

uint32_t random_bits(random_stream *stream);              // uniform on 0 .. 2^32-1
uint32_t random_below(random_stream *stream, uint32_t n); // uniform on 0 .. n-1, n > 0, exactly
float random_float(random_stream *stream);                // uniform on [0, 1): a multiple of 2^-24
double random_double(random_stream *stream);              // uniform on (0, 1), ends excluded
double random_normal(random_stream *stream);              // mean 0, variance 1

// Beta(alpha, alpha) for any alpha > 0: mixup's lambda, in [0, 1].
double random_beta(random_stream *stream, double alpha);

// Fills order[0..n-1] with a permutation of 0 .. n-1, each of the n! equally likely.
void random_permutation(random_stream *stream, int32_t *order, uint32_t n);

#endif
