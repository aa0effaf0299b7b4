// solutions/7_fragments.cu - a solution of exercise 7. gpu/tile.h has the drawing for all three.
#include "course/exercises/exercises.h"

namespace GPU {
namespace solution {

typedef struct {
  int line, term; // line: a row of a or c, a column of b; term: for c, its column
} position;

// Where register i of this lane has the first of its two bf16; for c, its float.
static __device__ position of_a(int lane, int i) {
  return {lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8};
}
static __device__ position of_b(int lane, int i) {
  return {lane / 4, lane % 4 * 2 + i * 8};
}
static __device__ position of_c(int lane, int i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

static __device__ uint32_t pair_at(const bf16 *matrix, int line, int lines, int depth, int term) {
  return line < lines ? *(const uint32_t *)(matrix + line * depth + term) : 0;
}

static __global__ void fragments(int rows, int columns, int depth, float *z, const bf16 *x,
                                 const bf16 *w) {
  const int row = blockIdx.x * 16, column = blockIdx.y * 8, lane = threadIdx.x;
  uint32_t a[4], b[2];
  float c[4] = {0, 0, 0, 0};
  for (int k = 0; k < depth; k += 16) {
    for (int i = 0; i < 4; i++)
      a[i] = pair_at(x, row + of_a(lane, i).line, rows, depth, k + of_a(lane, i).term);
    for (int i = 0; i < 2; i++)
      b[i] = pair_at(w, column + of_b(lane, i).line, columns, depth, k + of_b(lane, i).term);
    mma_16x8x16(c, a, b);
  }
  for (int i = 0; i < 4; i++) {
    const position at = of_c(lane, i);
    if (row + at.line < rows) z[(row + at.line) * columns + column + at.term] = c[i];
  }
}

void run_7(const task *t) {
  launch("fragments", fragments, {dim3(divide_up(t->rows, 16), t->columns / 8), LANES, 0}, t->rows,
         t->columns, t->depth, t->out[0], t->in[0], t->in[1]);
}

} // namespace solution
} // namespace GPU
