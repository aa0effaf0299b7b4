// tests/simt_test.cpp - does the simulator catch what it claims to, and nothing else?
//
// Each broken kernel of simt_broken.h runs in a child process, forward and with warps and lanes
// reversed, and must end with one line that names the mistake, the kernel, and the lines that are
// marked in it. The kernels of simt_legal.h must pass. Then ldmatrix, mma and shuffles against the
// manuals' formulas, and counts of bank conflicts and sectors, of single requests and of a launch. This file is compiled as watched
// kernels are, by g++ with -fsanitize=thread: the simulator itself is not.
#include "check.h"
#include "simt_broken.h"
#include "simt_legal.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

// Runs it in a child; what it wrote on stderr, and whether it ended with status 1.
static bool run_child(void (*body)(), char *text, size_t size) {
  int ends[2], status;
  if (pipe(ends)) return false;
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    body();
    exit(0);
  }
  close(ends[1]);
  size_t n = 0;
  for (ssize_t got; (got = read(ends[0], text + n, size - 1 - n)) > 0;) n += got;
  text[n] = 0;
  close(ends[0]);
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static bool names_line(const char *text, int line) {
  char place[60];
  snprintf(place, sizeof place, "simt_broken.h:%d", line);
  const char *found = strstr(text, place);
  return !line || (found && !strchr("0123456789", found[strlen(place)]));
}

static void check_broken(const broken *b) {
  char text[4000];
  marked[0] = marked[1] = 0;
  const bool ended = run_child(b->run, text, sizeof text);
  const char *end = strchr(text, '\n');
  const bool one_line = end && !end[1];
  if (!check(ended && one_line && !strncmp(text, "simt: ", 6) && strstr(text, b->message) &&
                 names_line(text, marked[0]) && names_line(text, marked[1]),
             "caught%s: %s: %s", simt_reversed ? ", reversed" : "", b->message, b->name) ||
      getenv("SHOW"))
    printf("     %s (expected lines %d and %d)\n", text, marked[0], marked[1]);
}

static const legal *legal_now;

static void check_legal(const legal *l) {
  char text[4000];
  legal_now = l;
  const bool ended = run_child(
      [] {
        numbers = (int *)filled(16384), more = (int *)filled(16384);
        exit(legal_now->run() ? 1 : 2);
      },
      text, sizeof text);
  if (!check(ended && !text[0], "passes%s: %s", simt_reversed ? ", reversed" : "", l->name))
    printf("     %s\n", text);
}

// Where nobody watches, what is undefined is at least NaN.
NOT_WATCHED static __global__ void undefined(uint32_t *out, const uint4 *in) {
  __shared__ uint32_t s;
  __shared__ uint4 target;
  DYNAMIC_SHARED(dynamic);
  out[0] = *(volatile uint32_t *)&s;
  out[1] = *(volatile uint32_t *)dynamic;
  *(volatile uint32_t *)&target.x = 0;
  copy_async(&target, in, true);
  out[2] = *(volatile uint32_t *)&target.x;
  s = *(uint32_t *)dynamic = 0;
}

static void check_poison() {
  uint32_t *result = (uint32_t *)simt_allocate(16);
  check(result[0] == UINT32_MAX && result[3] == UINT32_MAX && (uintptr_t)result % 64 == 0,
        "device memory starts as NaN, at a multiple of 64");
  for (int i = 0; i < 2; i++) run(undefined, {2, 1, 4}, result, (const uint4 *)filled(16));
  check(result[0] == UINT32_MAX && result[1] == UINT32_MAX, "so does each block's shared memory");
  check(result[2] == UINT32_MAX, "the target of a copy is NaN until the wait");
}

// The order of the threads is not promised, so what depends on it shows in the result.
NOT_WATCHED static __global__ void last_one_wins(int *out) {
  __shared__ int s;
  s = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s;
}

static void check_order() {
  int *result = (int *)filled(64 * sizeof *result), last[2];
  for (int order = 0; order < 2; order++) {
    simt_reversed = order;
    run(last_one_wins, {1, 64, 0}, result);
    last[order] = result[7];
  }
  check(last[0] == 63 && last[1] == 0, "forward and reversed, a race gives different results");
}

// -- Bank conflicts and sectors -------------------------------------------------------------------

static __global__ void read_words(float *out, int stride, int offset) {
  __shared__ float s[1025];
  for (int i = threadIdx.x; i < 1025; i += 32) s[i] = 0; // 33 requests
  __syncthreads();
  out[threadIdx.x] = s[(threadIdx.x * stride + offset) % 1024];
}
static __global__ void read_eights(float *out, int stride) {
  __shared__ float2 s[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) s[i].x = s[i].y = 0;
  __syncthreads();
  const float2 pair = s[threadIdx.x * stride % 1024];
  out[threadIdx.x] = pair.x;
}
static __global__ void read_sixteens(float *out, int stride) {
  __shared__ float4 s[512];
  for (int i = threadIdx.x; i < 512; i += 32) s[i] = *(float4 *)out;
  __syncthreads();
  const float4 four = s[threadIdx.x * stride % 512];
  out[threadIdx.x] = four.w;
}
static __global__ void read_rows(int pitch) {
  DYNAMIC_SHARED(s);
  uint32_t matrix[4];
  for (int i = threadIdx.x; i < 32 * pitch; i += 32) s[i] = 0;
  __syncthreads();
  load_matrices(matrix, s + threadIdx.x * pitch);
}
static __global__ void copy_strided(const float *from, float *to, int stride, int offset) {
  to[threadIdx.x] = from[threadIdx.x * stride + offset];
}

// What a launch adds to the counts.
template <typename... P, typename... A>
static simt_cost cost_of(bool shared, void (*kernel)(P...), size_t bytes, A... arguments) {
  const simt_cost before = simt_count("kernel_under_test", shared);
  run(kernel, {1, 32, bytes}, arguments...);
  const simt_cost after = simt_count("kernel_under_test", shared);
  return {after.requests - before.requests, after.parts - before.parts, after.ideal - before.ideal};
}

static void check_cost(const char *what, simt_cost c, int requests, int parts, int ideal) {
  check((int)c.requests == requests && (int)c.parts == parts && (int)c.ideal == ideal,
        "%s: %d requests, %d parts, %d ideal; counted %d, %d, %d", what, requests, parts, ideal,
        (int)c.requests, (int)c.parts, (int)c.ideal);
}

static void check_costs() {
  simt_counting = true;
  float *from = (float *)filled(8192 * sizeof *from), *to = (float *)filled(256);
  check_cost("words side by side", cost_of(true, read_words, 0, to, 1, 0), 34, 34, 34);
  check_cost("all lanes the same word", cost_of(true, read_words, 0, to, 0, 5), 34, 34, 34);
  check_cost("every second word", cost_of(true, read_words, 0, to, 2, 0), 34, 35, 34);
  check_cost("every 32nd word", cost_of(true, read_words, 0, to, 32, 3), 34, 65, 34);
  check_cost("every 33rd word", cost_of(true, read_words, 0, to, 33, 0), 34, 34, 34);
  check_cost("8 bytes side by side", cost_of(true, read_eights, 0, to, 1), 65, 64 * 2 + 2,
             65 * 2 - 64);
  check_cost("16 bytes side by side", cost_of(true, read_sixteens, 0, to, 1), 17, 68, 68);
  check_cost("16 bytes, every second", cost_of(true, read_sixteens, 0, to, 2), 17, 72, 68);
  check_cost("ldmatrix, rows of 16 bytes", cost_of(true, read_rows, 512, 16), 17, 20, 20);
  check_cost("ldmatrix, rows of 64 bytes", cost_of(true, read_rows, 2048, 64), 65, 64 + 16, 68);
  check_cost("ldmatrix, rows of 128 bytes", cost_of(true, read_rows, 4096, 128), 129, 128 + 32,
             132);
  check_cost("ldmatrix, rows of 80 bytes", cost_of(true, read_rows, 2560, 80), 81, 84, 84);
  check_cost("sectors side by side", cost_of(false, copy_strided, 0, from, to, 1, 0), 2, 8, 8);
  check_cost("sectors, off by one word", cost_of(false, copy_strided, 0, from, to, 1, 1), 2, 9, 8);
  check_cost("sectors, one word of each", cost_of(false, copy_strided, 0, from, to, 8, 0), 2, 36,
             8);
  check_cost("sectors, one for all", cost_of(false, copy_strided, 0, from, to, 0, 9), 2, 5, 5);
  simt_counting = false;
}

// -- A launch's cost ------------------------------------------------------------------------------
//
// Of 130 blocks, four run, and the others are taken to be like the third and fourth. A block of 32
// threads multiplies once, reads 32 floats that all blocks read (4 sectors) and 32 of its own (4),
// writes 32 bytes of shared memory, and two of each four floats of its own: 16 sectors, twice.

static simt_launch counted_launch;

static __global__ void cost_a_launch(const float *shared_by_all, const float *own, float *out) {
  DYNAMIC_SHARED(s);
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  float c[4] = {};
  uint32_t a[4] = {}, b[2] = {};
  mma_16x8x16(c, a, b);
  s[threadIdx.x] = 1;
  const float sum = shared_by_all[threadIdx.x] + own[i] + c[0];
  out[4 * i] = sum;
  out[4 * i + 1] = sum;
}

static void check_launch() {
  enum { BLOCKS = 130 };
  float *all = (float *)filled(128), *own = (float *)filled(BLOCKS * 128);
  float *to = (float *)filled(BLOCKS * 512);
  simt_on_launch = [](const simt_launch *c) { counted_launch = *c; };
  run(cost_a_launch, {BLOCKS, 32, 32}, all, own, to);
  simt_on_launch = NULL;
  const simt_launch &c = counted_launch;
  check(c.mma == BLOCKS, "a launch: a product for each block (%g)", c.mma);
  check(c.read == 4 + 4 * BLOCKS, "sectors that all blocks read count once (%g)", c.read);
  check(c.written == 16 * BLOCKS, "sectors written twice count once (%g)", c.written);
  check(c.requested == (4 + 4 + 2 * 16) * BLOCKS, "and each time as asked for (%g)", c.requested);
  check(c.turns == BLOCKS && c.least == BLOCKS, "a turn of shared memory (%g)", c.turns);
}

// -- ldmatrix and mma against the manual's formulas -----------------------------------------------

static uint32_t state = 1; // of a linear congruential generator

static int draw(int below) {
  state = state * 1664525 + 1013904223;
  return (state >> 8) % below;
}

static uint32_t bf16_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> 16;
}

static __global__ void multiply_once(const uint32_t *a, const uint32_t *b, float *c) {
  const int lane = threadIdx.x;
  mma_16x8x16(c + 4 * lane, a + 4 * lane, b + 2 * lane);
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": with groupID = lane / 4
// and threadID_in_group = lane % 4,
//     a_i, i = 0..7:   row groupID if i < 2 or 4 <= i < 6, else groupID + 8;
//                      column threadID_in_group * 2 + (i & 1), + 8 if i >= 4
//     b_i, i = 0..3:   row threadID_in_group * 2 + (i & 1), + 8 if i >= 2; column groupID
//     c_i, i = 0..3:   row groupID, + 8 if i >= 2; column threadID_in_group * 2 + (i & 1)
// Small integers: every product and sum is exact, in any order.
static void check_mma() {
  float a[16][16], b[16][8], c[16][8];
  for (float *x = a[0]; x < a[0] + 256; x++) *x = draw(17) - 8;
  for (float *x = b[0]; x < b[0] + 128; x++) *x = draw(17) - 8;
  for (float *x = c[0]; x < c[0] + 128; x++) *x = draw(201) - 100;
  uint32_t *ra = (uint32_t *)filled(512), *rb = (uint32_t *)filled(256);
  float *rc = (float *)filled(512);
  for (int lane = 0; lane < 32; lane++) {
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; i++) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      ra[lane * 4 + i / 2] |= bf16_of(a[row][column]) << i % 2 * 16;
    }
    for (int i = 0; i < 4; i++) {
      const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      rb[lane * 2 + i / 2] |= bf16_of(b[row][group]) << i % 2 * 16;
      rc[lane * 4 + i] = c[group + (i >= 2 ? 8 : 0)][in_group * 2 + (i & 1)];
    }
  }
  run(multiply_once, {1, 32, 0}, (const uint32_t *)ra, (const uint32_t *)rb, rc);
  int wrong = 0;
  for (int lane = 0; lane < 32; lane++)
    for (int i = 0; i < 4; i++) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + (i & 1);
      float sum = c[row][column];
      for (int k = 0; k < 16; k++) sum += a[row][k] * b[k][column];
      wrong += rc[lane * 4 + i] != sum;
    }
  check(wrong == 0, "mma: 16 x 16 times 16 x 8, spread as the PTX manual says (%d wrong)", wrong);
}

static __global__ void load_once(const uint4 *rows, uint32_t *to, bool transposed) {
  __shared__ uint4 s[32];
  s[threadIdx.x] = rows[threadIdx.x];
  __syncwarp();
  if (transposed)
    load_matrices_transposed(to + 4 * threadIdx.x, &s[threadIdx.x ^ 5]);
  else
    load_matrices(to + 4 * threadIdx.x, &s[threadIdx.x ^ 5]);
}

// PTX ISA, "ldmatrix": threads 8 m .. 8 m + 7 give the addresses of rows 0..7 of matrix m; thread t
// receives elements 2 (t % 4) and the next of row t / 4, with .trans those of the transposed
// matrix.
static void check_ldmatrix() {
  uint16_t *rows = (uint16_t *)filled(512);
  uint32_t *to = (uint32_t *)filled(512);
  for (int i = 0; i < 256; i++) rows[i] = draw(65536);
  for (int transposed = 0; transposed < 2; transposed++) {
    int wrong = 0;
    run(load_once, {1, 32, 0}, (const uint4 *)rows, to, (bool)transposed);
    for (int t = 0; t < 32; t++)
      for (int m = 0; m < 4; m++)
        for (int i = 0; i < 2; i++) {
          const int row = transposed ? 2 * (t % 4) + i : t / 4;
          const int column = transposed ? t / 4 : 2 * (t % 4) + i;
          wrong += (to[t * 4 + m] >> i * 16 & 0xffff) != rows[((8 * m + row) ^ 5) * 8 + column];
        }
    check(wrong == 0, "ldmatrix%s (%d wrong)", transposed ? ", transposed" : "", wrong);
  }
}

static __global__ void shuffle_once(double *to, int argument, int width) {
  const double mine = threadIdx.x + 0.5;
  to[threadIdx.x] = __shfl_sync(0xffffffff, mine, argument, width);
  to[32 + threadIdx.x] = __shfl_xor_sync(0xffffffff, mine, argument, width);
  to[64 + threadIdx.x] = __shfl_down_sync(0xffffffff, mine, argument, width);
}

// As the CUDA manual describes them: who would read beyond its group of `width` lanes keeps its
// own; of __shfl_xor_sync, groups further up are out of reach.
static void check_shuffles() {
  double *to = (double *)filled(96 * sizeof *to);
  int wrong = 0;
  for (int width = 1; width <= 32; width *= 2)
    for (int argument = 0; argument < 32; argument++) {
      run(shuffle_once, {1, 32, 0}, to, argument, width);
      for (int lane = 0; lane < 32; lane++) {
        const int group = lane - lane % width, end = group + width;
        const int other = lane ^ argument, next = lane + argument;
        wrong += to[lane] != group + argument % width + 0.5;
        wrong += to[32 + lane] != (other < end ? other : lane) + 0.5;
        wrong += to[64 + lane] != (next < end ? next : lane) + 0.5;
      }
    }
  check(wrong == 0, "shuffles of every width and argument (%d wrong)", wrong);
}

int main() {
  marked = (int *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  in = (float *)filled(64 * sizeof *in);
  out = (float *)filled(4096 * sizeof *out);
  for (int order = 0; order < 2; order++) {
    simt_reversed = simt_side_late = order;
    for (const broken &b : all_broken) check_broken(&b);
    for (const legal &l : all_legal) check_legal(&l);
    check_mma();
    check_ldmatrix();
    check_shuffles();
  }
  check_poison();
  check_order();
  check_costs();
  check_launch();
  return check_summary();
}
