// 1_plain.cu - rung 1 of the ladder: a thread for each result, a loop for its sum.
//
// What it wastes: a thread reads two numbers for every multiplication. The 32 threads of a warp
// have neighbouring columns n and the same row m, so x[m][k] is one address for all of them, but
// w[n][k] are 32 addresses in 32 different rows: 32 sectors of 32 bytes, of each of which 2 bytes
// are used. (The caches of a GPU bring back some of the others, which the simulator does not
// count.)
#include "course/ladder/ladder.h"

namespace GPU {

static __global__ void plain(conv_shape s, bf16 *z, const bf16 *x, const bf16 *w) {
  const int rows = rows_of(s), columns = s.out_channels, depth = s.in_channels;
  const int i = (int)thread_number(), m = i / columns, n = i % columns;
  if (m >= rows) return; // the last block may have threads to spare
  float sum = 0;
  for (int k = 0; k < depth; k++) sum += to_float(x[m * depth + k]) * to_float(w[n * depth + k]);
  z[i] = to_bf16(sum);
}

void run_plain(const conv_shape *s, void *z, const void *x, const void *w) {
  const size_t results = (size_t)rows_of(*s) * s->out_channels;
  launch("ladder_plain", plain, {blocks_for(results), THREADS, 0}, *s, (bf16 *)z, (const bf16 *)x,
         (const bf16 *)w);
}

} // namespace GPU
