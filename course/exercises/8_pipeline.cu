// 8_pipeline.cu - exercise 8: wait counts of a cp.async pipeline. About 5 lines. Belongs to
// course/3-ladder.md, before rung 5.
//
//     y[line][i] = x[line][i - 1] / 4 + x[line][i] / 2 + x[line][i + 1] / 4        outside x is 0
//
//     x, y   float [lines][512]
//
// A block has 16 lines, the last one perhaps fewer, and uses them one after another. Its 128 threads
// bring a line into shared memory by cp.async, 16 bytes each, which does not wait: begin_line begins
// the copies of a line, commit_copies() closes a *group* of all that this thread has begun since the
// group before, and wait_for_copies<N>() waits until at most the newest N groups of this thread are
// still under way. (Groups can be empty. They count as well.) There are LINES = 4 lines of shared
// memory, the *stages*; line i of the block goes to stages[i % LINES].
//
// Fill in what happens between the lines, so that
//  * a line is used when all its copies have come, those that other threads began, too: a barrier,
//    __syncthreads(), after each thread has waited for its own;
//  * a stage is filled again only when all threads are done with it;
//  * while a line is used, the next three are on their way: N as large as may be.
// One barrier for each line is enough, the one that is there. Three lines are begun before the loop, a
// group each.
//
// Who calls it: nobody. The tiles of a convolution come in this way, three at a time (gpu/tile.h).
//
// The check looks at: every result, for 32, 35, 2 and 1 lines; reading what is still in flight, with
// the lines of the code; races; and that three copies of a thread are under way while a line is used.
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

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
    __syncthreads(); // fill in: what has to come before this barrier, and what behind it
    use_line(y + i * WIDTH, stages[i % LINES]);
  }
}

void run_8(const task *t) {
  launch("pipeline", pipeline, {divide_up(t->rows, PER_BLOCK), BLOCK, 0}, t->rows, t->out[0],
         t->in[0]);
}

} // namespace exercise
} // namespace GPU
