// course/ladder/rungs.cu - the rungs as a table, for each of the two devices that the files are
// compiled for.
#include "course/ladder/ladder.h"

static const rung ladder[RUNGS] = {
    {"1_plain", "ladder_plain", false, GPU::run_plain},
    {"2_tile", "ladder_tile", false, GPU::run_tile},
    {"3_mma", "ladder_mma", false, GPU::run_mma},
    {"4_swizzle", "ladder_swizzle", false, GPU::run_swizzle},
    {"5_stages", "ladder_stages", false, GPU::run_stages},
    {"6_convolution", "ladder_convolution", true, GPU::run_convolution}};

#ifdef __CUDACC__
const rung *cuda_ladder(void) {
  return ladder;
}
#else
const rung *simt_ladder(void) {
  return ladder;
}

ladder_cost simt_ladder_cost(const char *kernel) {
  const simt_cost shared = simt_count(kernel, true);
  return {simt_count(kernel, false).parts, shared.parts, shared.ideal, simt_products};
}
#endif
