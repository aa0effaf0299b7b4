// course/exercises/table.cu - the exercises as a table, for each of the two devices that the files
// are compiled for, and what they cost on the simulated one.
#include "course/exercises/exercises.h"

#define EACH(of) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10)
// Weak: a program need not have all of them, then it is NULL.
#define DECLARE(n) __attribute__((weak)) void run_##n(const task *t);
#define YOURS(n) GPU::exercise::run_##n,
#define OURS(n) GPU::solution::run_##n,

namespace GPU {
namespace exercise {
EACH(DECLARE)
}
namespace solution {
EACH(DECLARE)
}
} // namespace GPU

static const exercise_table table = {{EACH(YOURS)}, {EACH(OURS)}};

#ifdef __CUDACC__

const exercise_table *cuda_exercises(void) {
  return &table;
}

#else
#include "simt/inside.h"

const exercise_table *simt_exercises(void) {
  return &table;
}

static int most_copies;

void simt::note_copies() {
  const int copies = simt_now.thread->copies;
  if (copies > most_copies) most_copies = copies;
}

exercise_cost simt_exercise_cost(const char *kernel) {
  const simt_cost global = simt_count(kernel, false), shared = simt_count(kernel, true);
  const int copies = most_copies, accesses = simt_most_accesses;
  most_copies = simt_most_accesses = 0;
  return {(double)global.parts,
          (double)shared.parts,
          (double)shared.ideal,
          (double)(global.requests + shared.requests),
          (double)simt_products,
          copies,
          accesses};
}

#endif
