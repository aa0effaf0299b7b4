// simt/simt.cpp - the machinery that runs a kernel: blocks, warps, fibers, barriers, warp
// operations, asynchronous copies. simt.h says what for; read from the top.
#include "gpu/gpu.h"
#include "inside.h"

#include <stdlib.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
bool simt_reversed = getenv("SIMT_REVERSED");
simt_block simt_now;

static void *scheduler;      // where run_warp() stopped to let a fiber run
static void (*body)(void *); // the kernel, with its arguments
static void *body_argument;

static void *new_fiber(int thread);
extern "C" void simt_switch(void **from, void *to);

// -- A grid, its blocks, their warps --------------------------------------------------------------

static const char *describe(const simt_thread *t) {
  const char *name = simt_thread_name(t->number);
  if (t->state == DONE) return simt_text("%s has returned", name);
  return simt_text("%s waits at %s, %s:%d", name, t->waits_for, t->where.file, t->where.line);
}

static bool stand_together(const simt_thread *a, const simt_thread *b) {
  return a->state == b->state &&
         (a->state == DONE || (a->where.line == b->where.line && a->where.file == b->where.file));
}

static simt_thread *first_lane(const simt_thread *t) {
  return &simt_now.threads[t->number / WARP * WARP];
}

static int lanes_of(int warp) {
  const int left = simt_now.count - warp * WARP;
  return left < WARP ? left : WARP;
}

// Thread t waits in vain: for a thread of its block, if that is a barrier, or for a lane of its
// mask.
__attribute__((noreturn)) static void report_missing(simt_thread *t) {
  simt_thread *from = t->state == IN_WARP ? first_lane(t) : simt_now.threads;
  const int count = t->state == IN_WARP ? lanes_of(t->number / WARP) : simt_now.count;
  simt_now.thread = t;
  for (simt_thread *other = from; other < from + count; other++)
    if ((t->state == AT_BARRIER || t->mask >> (other - from) & 1) && !stand_together(t, other))
      simt_report("not all threads get there: %s, but %s", describe(t), describe(other));
  simt_report("the lanes do not agree who takes part, or are no whole warp: %s with mask %08x",
              describe(t), t->mask);
}

// No thread can run. All at one barrier: they pass it. All done: false. Else the kernel is wrong.
static bool pass_barrier() {
  simt_thread *first = simt_now.threads, *end = first + simt_now.count;
  for (simt_thread *t = first; t < end; t++)
    if (t->state == IN_WARP || !stand_together(t, first))
      report_missing(t->state == DONE ? first : t);
  if (first->state == DONE) return false;
  for (simt_thread *t = first; t < end; t++) t->state = RUNNABLE;
  simt_order_barrier();
  return true;
}

// Lets the warp's lanes run, each until it waits, until none can go on.
static void run_warp(int warp) {
  const int size = lanes_of(warp);
  for (int i = 0, idle = 0; idle < size; i = i + 1 < size ? i + 1 : 0, idle++) {
    simt_thread *t = &simt_now.threads[warp * WARP + (simt_reversed ? size - 1 - i : i)];
    if (t->state != RUNNABLE) continue;
    simt_now.thread = t;
    threadIdx = t->index;
    simt_switch(&scheduler, t->stack);
    idle = -1; // what it did may let others run
  }
  simt_watch_stop();
}

static void run_block() {
  const int warps = simt::divide_up(simt_now.count, WARP);
  const unsigned x = blockDim.x, y = blockDim.y;
  simt_block_starts();
  for (unsigned i = 0; i < (unsigned)simt_now.count; i++) {
    simt_thread *t = &simt_now.threads[i];
    t->stack = new_fiber(i);
    t->number = i;
    t->index = {i % x, i / x % y, i / (x * y)};
    t->state = RUNNABLE;
    t->copies = t->groups = 0;
  }
  do
    for (int i = 0; i < warps; i++) run_warp(simt_reversed ? warps - 1 - i : i);
  while (pass_barrier());
}

// The blocks of the grid with first <= blockIdx.x < end: row by row, or, reversed, column by column and the
// last column first. A kernel must not depend on either order.
static void run_columns(unsigned first, unsigned end) {
  const uint64_t columns = end - first, lines = (uint64_t)gridDim.y * gridDim.z;
  for (uint64_t i = 0; i < columns * lines; i++) {
    const uint64_t x = simt_reversed ? columns - 1 - i / lines : i % columns;
    const uint64_t line = simt_reversed ? i % lines : i / columns;
    blockIdx = {(unsigned)(first + x), (unsigned)(line % gridDim.y), (unsigned)(line / gridDim.y)};
    run_block();
  }
}

void simt_run(const char *kernel, launch_shape s, void (*run)(void *), void *argument) {
  const size_t threads = (size_t)s.block.x * s.block.y * s.block.z;
  simt_now.kernel = kernel;
  simt_now.count = (int)threads;
  body = run;
  body_argument = argument;
  gridDim = s.grid;
  blockDim = s.block;
  if (threads < 1 || threads > MAX_THREADS || s.block.z > 64 || s.grid.x - 1 >= INT32_MAX ||
      s.grid.y - 1 >= 65535 || s.grid.z - 1 >= 65535)
    simt_report("cannot be launched: %u x %u x %u blocks of %zu threads", s.grid.x, s.grid.y,
                s.grid.z, threads);
  simt_memory_opens(s.shared_bytes);
  if (simt_on_launch)
    simt_cost_launch(s.grid.x, run_columns);
  else
    run_columns(0, s.grid.x);
  simt_now.thread = NULL;
  simt_now.kernel = NULL;
  simt_memory_closes();
}

// -- Fibers ---------------------------------------------------------------------------------------

// simt_switch saves what a function call must preserve on the stack, remembers the stack pointer in
// *from, and continues on the stack `to`, which it left earlier, or which new_fiber prepared.
// SAVED: how many registers lie below the return address there.
#if defined __x86_64__
enum { SAVED = 6 };
asm(".text\n.globl simt_switch\nsimt_switch:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
#elif defined __aarch64__
enum { SAVED = 18 }; // x19-x28, d8-d15; then the return address, x30, and x29
#define EACH_PAIR(op)                                                                              \
  op " x19, x20, [sp]\n" op " x21, x22, [sp, #16]\n" op " x23, x24, [sp, #32]\n" op                \
     " x25, x26, [sp, #48]\n" op " x27, x28, [sp, #64]\n" op " d8, d9, [sp, #80]\n" op             \
     " d10, d11, [sp, #96]\n" op " d12, d13, [sp, #112]\n" op " d14, d15, [sp, #128]\n" op         \
     " x30, x29, [sp, #144]\n"
asm(".text\n.globl simt_switch\nsimt_switch:\n sub sp, sp, #160\n" EACH_PAIR("stp") //
    "mov x9, sp\n str x9, [x0]\n mov sp, x1\n" EACH_PAIR("ldp") "add sp, sp, #160\n ret\n");
#else
#error                                                                                             \
    "the simulator switches stacks by hand: it knows x86-64 and aarch64; add simt_switch for yours"
#endif

static bool act_if_all_arrived(simt_thread *t);

// What a fiber does.
static void run_thread() {
  simt_thread *t = simt_now.thread, *lanes = first_lane(t);
  body(body_argument);
  commit_copies();
  simt_wait(0);
  t->state = DONE;
  for (int lane = 0; lane < lanes_of(t->number / WARP); lane++) // some may have waited for it alone
    if (lanes[lane].state == IN_WARP) act_if_all_arrived(&lanes[lane]);
  simt_switch(&t->stack, scheduler);
  abort(); // nobody lets a thread run that is done
}

// A stack on which simt_switch finds zeroes for every register, and run_thread to return to,
// 16-byte aligned as after a call.
static void *new_fiber(int thread) {
  void **top = (void **)(simt_stack(thread) + PAGE) - 4;
  top[0] = (void *)run_thread;
  memset(top - SAVED, 0, SAVED * sizeof *top);
  return top - SAVED;
}

uint8_t *simt_stack(int thread) {
  static uint8_t *stacks;
  if (!stacks) {
    stacks = simt_map(2 * PAGE * MAX_THREADS, false);
    for (int i = 0; i < MAX_THREADS; i++) simt_usable(stacks + (2 * i + 1) * PAGE, PAGE, true);
  }
  return stacks + (2 * thread + 1) * PAGE;
}

// -- Barriers and warp operations -----------------------------------------------------------------

static simt_thread *wait_at(const char *what, thread_state state, site where) {
  simt_thread *t = simt_now.thread;
  t->waits_for = what;
  t->state = state;
  t->where = where;
  return t;
}

void __syncthreads(site where) {
  simt_switch(&wait_at("__syncthreads", AT_BARRIER, where)->stack, scheduler);
}

// Does t wait for this lane of its warp?
static inline bool is_missing(const simt_thread *lane, const simt_thread *t) {
  return t->mask >> lane->number % WARP & 1 && lane->state != DONE &&
         !(stand_together(lane, t) && lane->mask == t->mask);
}

static bool act_if_all_arrived(simt_thread *t) {
  simt_thread *lanes = first_lane(t);
  const int size = lanes_of(t->number / WARP), last_to_run = simt_reversed ? 0 : size - 1;
  if (is_missing(&lanes[last_to_run], t)) return false; // mostly; else all are looked at
  void *data[WARP] = {NULL};
  for (int lane = 0; lane < size; lane++) {
    if (is_missing(&lanes[lane], t)) return false;
    if (t->mask >> lane & 1 && lanes[lane].state != DONE) data[lane] = lanes[lane].data;
  }
  simt_thread *last = simt_now.thread;
  simt_now.thread = t; // for reports
  simt_watch_stop();
  t->act(data);
  simt_now.thread = last;
  for (int lane = 0; lane < size; lane++)
    if (data[lane]) lanes[lane].state = RUNNABLE;
  return true;
}

void simt_together(const char *name, unsigned mask, void *data, simt_action *act, site where) {
  simt_thread *t = wait_at(name, IN_WARP, where);
  t->mask = mask;
  t->data = data;
  t->act = act;
  if (!(mask >> t->number % WARP & 1))
    simt_report("lane %d is not in its own mask %08x: %s", t->number % WARP, mask, describe(t));
  if (!act_if_all_arrived(t)) simt_switch(&t->stack, scheduler);
}

void __syncwarp(unsigned mask, site where) {
  simt_together("__syncwarp", mask, simt_now.thread, simt_order_lanes, where);
}

void simt_exchange(void *data[WARP]) {
  for (int lane = 0; lane < WARP; lane++) {
    simt_shuffle *s = (simt_shuffle *)data[lane];
    if (!s) continue;
    if (s->from >= WARP || !data[s->from])
      simt_report("lane %d reads lane %d, which takes no part: %s", lane, s->from,
                  describe(simt_now.thread));
    s->taken = ((simt_shuffle *)data[s->from])->value;
  }
}

// -- ldmatrix and mma: gpu/tile.h says which lane holds which elements ---------------------------------

// A pointer to each lane's request. These operations need all 32 lanes.
template <typename T> static T **whole_warp(void *data[WARP]) {
  for (int lane = 0; lane < WARP; lane++)
    if (!data[lane]) report_missing(simt_now.thread);
  return (T **)data;
}

struct matrices {
  uint32_t *to;
  const void *row;
};

template <bool transposed> static void load_rows(void *data[WARP]) {
  matrices **lane = whole_warp<matrices>(data);
  uint16_t m[4][8][8];
  for (int l = 0; l < WARP; l++) memcpy(m[l / 8][l % 8], lane[l]->row, 16);
  for (int l = 0; l < WARP; l++)
    for (int j = 0; j < 4; j++) {
      const int a = l / 4, b = 2 * (l % 4);
      const uint32_t low = transposed ? m[j][b][a] : m[j][a][b];
      lane[l]->to[j] = low | (uint32_t)(transposed ? m[j][b + 1][a] : m[j][a][b + 1]) << 16;
    }
}

void load_matrices(uint32_t to[4], const void *row, site where) {
  matrices request = {to, row};
  simt_watch_ldmatrix(row, where);
  if (simt_on_launch) return (void)memset(to, 0, 16);
  simt_together("ldmatrix", 0xffffffff, &request, load_rows<false>, where);
}

void load_matrices_transposed(uint32_t to[4], const void *row, site where) {
  matrices request = {to, row};
  simt_watch_ldmatrix(row, where);
  if (simt_on_launch) return (void)memset(to, 0, 16);
  simt_together("ldmatrix", 0xffffffff, &request, load_rows<true>, where);
}

struct product {
  float *c;
  const uint32_t *a, *b;
};

uint64_t simt_products;

static void multiply(void *data[WARP]) {
  product **lane = whole_warp<product>(data);
  simt_products++;
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < WARP; l++) {
    const int g = l / 4, t = 2 * (l % 4);
    for (int i = 0; i < 4; i++) {
      a[g + i % 2 * 8][t + i / 2 * 8] = simt::first_of(lane[l]->a[i]);
      a[g + i % 2 * 8][t + i / 2 * 8 + 1] = simt::second_of(lane[l]->a[i]);
      c[g + i / 2 * 8][t + i % 2] = lane[l]->c[i];
    }
    for (int i = 0; i < 2; i++) {
      b[t + i * 8][g] = simt::first_of(lane[l]->b[i]);
      b[t + i * 8 + 1][g] = simt::second_of(lane[l]->b[i]);
    }
  }
  for (int k = 0; k < 16; k++) // 128 sums grow side by side: none waits for its own last addition
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < WARP; l++)
    for (int i = 0; i < 4; i++) lane[l]->c[i] = c[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}

void mma_16x8x16(float c[4], const uint32_t a[4], const uint32_t b[2], site where) {
  product request = {c, a, b};
  if (simt_on_launch) return simt_count_mma();
  simt_together("mma", 0xffffffff, &request, multiply, where);
}

// -- Asynchronous copies --------------------------------------------------------------------------

void copy_async(void *shared, const void *global, bool valid, site where) {
  simt_thread *t = simt_now.thread;
  const simt_copy copy = {(uint8_t *)shared, valid ? global : NULL, t->groups};
  if ((uintptr_t)copy.to % 16 || (uintptr_t)copy.from % 16)
    simt_report("misaligned: cp.async needs multiples of 16, %s:%d", where.file, where.line);
  if (t->copies == MAX_COPIES)
    simt_report("more than %d cp.async not waited for, %s:%d", MAX_COPIES, where.file, where.line);
  t->copy[t->copies++] = copy;
  simt_watch_copy_begins(&copy, where);
  memset(shared, 0xff, 16);
}

void commit_copies() {
  simt_now.thread->groups++;
}

// Lets every copy land but those of the newest `groups_left` groups and those in none yet.
void simt_wait(int groups_left) {
  static const uint8_t zeroes[16] = {0};
  simt_thread *t = simt_now.thread;
  int kept = 0;
  for (int i = 0; i < t->copies; i++) {
    const simt_copy copy = t->copy[i];
    if (copy.group >= t->groups - groups_left) {
      t->copy[kept++] = copy;
      continue;
    }
    memcpy(copy.to, copy.from ? copy.from : zeroes, 16);
    simt_watch_copy_lands(&copy);
  }
  t->copies = kept;
}
