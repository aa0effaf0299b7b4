// 7_fragments.cu - exercise 7: which lane of a warp holds which number of an mma. 3 lines. Belongs to
// course/3-ladder.md, before rung 3.
//
//     z[row][column] = sum over k of x[row][k] w[column][k]
//
//     x   bf16 [rows][depth]       w   bf16 [columns][depth]       z   float [rows][columns]
//
// The instruction mma.m16n8k16 adds the product of a 16 x 16 matrix a and a 16 x 8 matrix b to a 16 x
// 8 matrix c. All three lie spread over the registers of a warp's 32 lanes, their *fragments*:
//
//     a   four registers a lane, a[0] .. a[3], each with two bf16: elements (row, term), (row, term + 1)
//     b   two registers a lane, b[0], b[1], each with two bf16: elements (term, column), (term + 1, column)
//     c   four floats a lane, c[0] .. c[3]
//
// This is where register 0 of each lane has its pair. Lane numbers, PTX ISA, "mma.m16n8k16":
//
//     a[0]   term 0,1  2,3  4,5  6,7       b[0]   column 0  1  ..  7       c[0],c[1]  column 0,1  2,3 .. 6,7
//     row 0       0    1    2    3         term 0,1      0  4     28       row 0           0    1      3
//     row 1       4    5    6    7         term 2,3      1  5     29       row 1           4    5      7
//      ..                                  term 4,5      2  6     30        ..
//     row 7      28   29   30   31         term 6,7      3  7     31       row 7          28   29     31
//
//     a[1]: the same, 8 rows further down        b[1]: the same, 8 terms further
//     a[2]: the same as a[0], 8 terms further    c[2], c[3]: the same as c[0], c[1], 8 rows further down
//     a[3]: 8 rows further down and 8 terms further
//
// Who calls it: all fast convolutions multiply with this instruction (gpu/tile.h).
//
// The check looks at: every result, for z of 32 x 16 with depth 64, 16 x 8 with 16 and 21 x 24 with
// 48. The kernel is given: a block is one warp and makes 16 x 8 results. Only the indices are missing.
#include "course/exercises/exercises.h"

namespace GPU {
namespace exercise {

typedef struct {
  int line, term; // line: a row of a or c, a column of b; term: for c, its column
} position;

// Where register i of this lane has the first of its two bf16; for c, its float. Fill in.
static __device__ position of_a(int lane, int i) {
  return {0, 0};
}
static __device__ position of_b(int lane, int i) {
  return {0, 0};
}
static __device__ position of_c(int lane, int i) {
  return {0, 0};
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

} // namespace exercise
} // namespace GPU
