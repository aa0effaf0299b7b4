// gpu/divide.h - division by a number that is known before the launch.
//
// A GPU has no instruction that divides integers: n / d takes it some twenty others. Where the CPU
// knows d, it can prepare a multiplication by a rounded reciprocal and a shift instead. With l the
// number of bits such that 2^(l-1) < d <= 2^l,
//
//     multiplier = 2^(31+l) / d, rounded up          n / d = n * multiplier >> (31 + l)
//
// Example: d = 7 has l = 3. multiplier = 2^34 / 7 rounded up = 2454267027. For n = 20, n *
// multiplier is 2.857.. * 2^34, so the shift leaves 2.
//
// Why this is exact for 0 <= n < 2^31. Rounding up makes multiplier * d = 2^(31+l) + e with
// 0 <= e < d, and therefore
//
//     n * multiplier / 2^(31+l) = n / d + (n e / 2^(31+l)) / d.
//
// n < 2^31 and e < d <= 2^l make n e < 2^(31+l), so what the rounding adds is less than 1 / d. And
// n / d is a whole number plus at most (d - 1) / d. Even together they do not reach the next whole
// number, so cutting off the fraction gives the quotient. Granlund and Montgomery, "Division by
// invariant integers using multiplication", 1994, theorem 4.2, with N = 31.
//
// Does everything fit? d >= 2^(l-1) + 1 for l > 0, so 2^(31+l) / d < 2^32 - 1 and the multiplier
// has 32 bits at most (d = 1: it is 2^31). Their product is below 2^31 * 2^32 = 2^63.
#ifndef GPU_DIVIDE_H
#define GPU_DIVIDE_H

#include "gpu/gpu.h"

namespace GPU {

typedef struct {
  uint32_t multiplier;
  int shift;
} divisor;

// d may be 0 where nothing is divided by it.
static inline divisor make_divisor(int d) {
  int bits = 0;
  if (d == 0) d = 1;
  while (1ll << bits < d) bits++;
  return {.multiplier = (uint32_t)(((1ull << (31 + bits)) + d - 1) / d), .shift = 31 + bits};
}

static inline __device__ int divide(int n, divisor d) {
  return (int)((uint64_t)n * d.multiplier >> d.shift);
}

} // namespace GPU

#endif
