// solutions/8_pipeline.cu - a solution of exercise 8; gpu/tile.h's go_through_stages does the same.
//
// When line i is to be used, groups 0 .. i + 2 have been committed: three before the loop and one
// for each line since. Group i must be done, so the newest two, i + 1 and i + 2, may be under way.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

enum { WIDTH = 512, BLOCK = WIDTH / 4, PER_BLOCK = 16, LINES = 4 };

// This thread's share of a line: four floats.
static __device__ void begin_line(float4 *stage, const float *line) {
  copy_async(stage + threadIdx.x, line + 4 * threadIdx.x, true);
}

static __device__ void use_line(float *y, const float4 *stage) {
  const float *x = (const float *)stage;
  note_copies(); // for the checker
  for (int i = threadIdx.x; i < WIDTH; i += BLOCK)
    y[i] = (i > 0 ? x[i - 1] : 0) / 4 + x[i] / 2 + (i < WIDTH - 1 ? x[i + 1] : 0) / 4;
}

static __global__ void pipeline(int lines, float *y, const float *x) {
  __shared__ float4 stages[LINES][BLOCK];
  const int first = blockIdx.x * PER_BLOCK, count = min_of(PER_BLOCK, lines - first);
  x += (size_t)first * WIDTH;
  y += (size_t)first * WIDTH;
  for (int i = 0; i < LINES - 1; i++) {
    if (i < count) begin_line(stages[i], x + i * WIDTH);
    commit_copies();
  }
  for (int i = 0; i < count; i++) {
    const int next = i + LINES - 1;
    wait_for_copies<LINES - 2>(); // this thread's copies of line i are there,
    __syncthreads();              // and everyone's; all are done with line i - 1,
    if (next < count) begin_line(stages[next % LINES], x + next * WIDTH); // whose stage this is
    commit_copies();
    use_line(y + i * WIDTH, stages[i % LINES]);
  }
}

void run_8(const task *t) {
  launch("pipeline", pipeline, {divide_up(t->rows, PER_BLOCK), BLOCK, 0}, t->rows, t->out[0],
         t->in[0]);
}

} // namespace solution
} // namespace GPU
