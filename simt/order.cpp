// simt/order.cpp - what of the past is certain to be over, for a thread of the simulated GPU.
//
// A simulator runs one thread after another, so whatever happened earlier is over. On a GPU it need not be.
// It is, if something makes sure of it. There is a rule for each distance:
//
//     the same thread               its own deeds, in the program's order
//     a lane of its warp            what it did before both were in the same __syncwarp
//     a thread of its block         what it did before the latest barrier
//     a block of the same launch    what it did before it told (below)
//     an earlier launch             all; but of a recording's other branch only as far as an edge reaches
//
// watch.cpp asks, for each byte that is read or written.
//
// *Telling.* Blocks of a launch share no barrier, but one can leave a message in memory: "I am the n-th to
// be done". By the rules of PTX ("Memory Consistency Model", release and acquire patterns):
//
//     block A    stores;  barrier;  one thread: __threadfence(), then an atomic operation on a counter
//     block B    one thread: an atomic operation on the counter, then __threadfence();  barrier;  loads
//
// If B's operation came after A's, then B's loads see A's stores. Without A's barrier, only that thread's
// own stores; without either fence, or with another counter, nothing is promised. A block may use
// several counters, one after another (gpu/sums.h: its group's, then that of all groups); the latest is known here.
//
// Checked by tests/simt_test.cpp: a kernel for each of these that lacks one step.
#include "inside.h"

#include <stdlib.h>

simt_clock simt_clock_now;
static simt_clock *const at = &simt_clock_now;

// A thread's latest fence, and its latest atomic operation. What an earlier block's fence covers is all
// from before this block.
struct step {
  uint64_t block;      // when its block began
  uint64_t all, own;   // fence: what is covered, of the block before a barrier, of the thread
  const void *counter; // atomic operation
  int told_before;     // how many had told then
};
static step fence_of[MAX_THREADS], count_of[MAX_THREADS];

// A fence, then an atomic operation.
struct telling {
  uint64_t block, all, own; // as in `step`
  int thread;
  const void *counter;
};
static telling *told; // in this launch, in order
static int told_count, told_room;

// What a thread, or after a barrier its block, has been told: all tellings before one, by a counter.
struct knowledge {
  uint64_t block;
  const void *counter;
  int count;
};
static knowledge known_to[MAX_THREADS], known_to_block;
static knowledge heard; // by a thread, since the barrier

// -- A block ------------------------------------------------------------------------------------------

// From now on a thread's deeds have a later time.
static void move_on(int thread) {
  at->now[thread] = at->epoch * MAX_THREADS + thread;
}

void simt_order_barrier() {
  at->epoch++;
  for (int i = 0; i < simt_now.count; i++) move_on(i);
  at->barrier_passed = at->epoch * MAX_THREADS;
  if (heard.block == at->block_began) known_to_block = heard;
}

// Each of these lanes now knows what any of them knew, and all that any of them has done.
void simt_order_lanes(void *data[WARP]) {
  const int first = simt_now.thread->number / WARP * WARP;
  uint64_t known[WARP] = {0};
  for (int lane = 0; lane < WARP; lane++)
    for (int i = 0; data[lane] && i < WARP; i++)
      if (known[i] < at->seen[first + lane][i]) known[i] = at->seen[first + lane][i];
  at->epoch++;
  for (int lane = 0; lane < WARP; lane++) {
    if (!data[lane]) continue;
    move_on(first + lane);
    known[lane] = at->now[first + lane];
  }
  for (int lane = 0; lane < WARP; lane++)
    if (data[lane]) memcpy(at->seen[first + lane], known, sizeof known);
}

// -- A launch: blocks that tell each other ------------------------------------------------------------

void simt_fence() {
  const int me = simt_now.thread->number;
  fence_of[me] = {at->block_began, at->barrier_passed, at->now[me], NULL, 0};
  at->epoch++;
  move_on(me); // what comes now is not covered
  if (count_of[me].block != at->block_began) return;
  heard = known_to[me] = {at->block_began, count_of[me].counter, count_of[me].told_before};
}

void simt_order_atomic(const void *counter) {
  const int me = simt_now.thread->number;
  const step *fence = &fence_of[me];
  count_of[me] = {at->block_began, 0, 0, counter, told_count};
  if (told_count == told_room) {
    told_room = told_room ? 2 * told_room : 256;
    told = (telling *)realloc(told, told_room * sizeof *told);
    if (!told) simt_report("no memory for the simulator itself (fences)");
  }
  told[told_count++] = {at->block_began, fence->all, fence->own, me, counter};
}

static bool includes(const knowledge *k, int telling) {
  return k->block == at->block_began && k->counter == told[telling].counter && telling < k->count;
}

bool simt_block_told(uint64_t then) {
  int first = 0, end = told_count; // the last before it is in first - 1 .. end - 1
  while (first < end) {
    const int middle = (first + end) / 2;
    if (told[middle].block <= then)
      first = middle + 1;
    else
      end = middle;
  }
  for (int i = first - 1; i >= 0 && told[i].block == told[first - 1].block; i--) {
    const bool covered =
        then < told[i].all || ((int)(then % MAX_THREADS) == told[i].thread && then <= told[i].own);
    if (covered &&
        (includes(&known_to[simt_now.thread->number], i) || includes(&known_to_block, i)))
      return true;
  }
  return false;
}

void simt_order_block() {
  simt_order_barrier();
  at->block_began = at->barrier_passed;
}

void simt_order_launch() {
  at->launch_began = (at->epoch + 1) * MAX_THREADS;
  told_count = 0;
}

// -- A recording -----------------------------------------------------------------------------------------

// The launches of the recording that is replayed (recording.cpp), in the order in which they ran.
struct replayed {
  uint64_t began;
  const char *kernel;
  int branch, number; // in its branch
};
static replayed *replays;
static int replay_count, replay_room, of_branch[2]; // of_branch: how many of each
static int branch_now, others_over; // of the launch at work; launches of the other branch before it

void simt_order_list_begins() {
  replay_count = of_branch[0] = of_branch[1] = 0;
  at->replaying = true;
}

void simt_order_branch(const char *kernel, int branch, int others) {
  if (replay_count == replay_room) {
    replay_room = replay_room ? 2 * replay_room : 256;
    replays = (replayed *)realloc(replays, replay_room * sizeof *replays);
    if (!replays) simt_report("no memory for the simulator itself (launches)");
  }
  replays[replay_count++] = {(at->epoch + 1) * MAX_THREADS, kernel, branch, of_branch[branch]++};
  branch_now = branch;
  others_over = others;
}

void simt_order_list_ends() {
  replay_count = 0;
  at->replaying = false;
}

// The launch of the recording in which an access happened; NULL: before them all, or there is none.
static const replayed *launch_of(uint64_t then) {
  int first = 0, end = replay_count; // the last that began before it is in first - 1 .. end - 1
  while (first < end) {
    const int middle = (first + end) / 2;
    if (replays[middle].began <= then)
      first = middle + 1;
    else
      end = middle;
  }
  return first ? &replays[first - 1] : NULL;
}

bool simt_launch_is_over(uint64_t then) {
  const replayed *launch = launch_of(then);
  return !launch || launch->branch == branch_now || launch->number < others_over;
}

const char *simt_launch_at(uint64_t then) {
  return launch_of(then)->kernel;
}
