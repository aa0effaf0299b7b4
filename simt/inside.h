// simt/inside.h - what the simulator's parts know of each other: simt.cpp, which runs the threads,
// watch.cpp, which watches what they do to memory, order.cpp, which knows what lies between two deeds,
// cost.cpp, which counts what they cost, and recording.cpp, which keeps launches for later.
#ifndef INSIDE_H
#define INSIDE_H

#include "simt.h"

enum thread_state { RUNNABLE, IN_WARP, AT_BARRIER, DONE };
enum { MAX_THREADS = 1024, MAX_COPIES = 64 }; // of a block; of one thread, in flight
enum : size_t { PAGE = 64 << 10 };            // a multiple of every machine's

struct simt_copy {
  uint8_t *to;
  const void *from; // NULL: zeroes
  int group;
};

struct simt_thread {
  void *stack; // where it stopped
  int number;  // in its block
  uint3 index; // threadIdx
  thread_state state;
  site where; // it waits, and at what
  const char *waits_for;
  unsigned mask; // of the warp operation it waits in, what it brought there, and what is to be done
  void *data;
  simt_action *act;
  simt_copy copy[MAX_COPIES];
  int copies, groups; // in flight; closed by commit so far
};

struct simt_block {
  const char *kernel;
  int count;           // threads
  simt_thread *thread; // the one that runs; NULL: no kernel does
  simt_thread threads[MAX_THREADS];
};
extern simt_block simt_now;

// Ends the process with a line: what is wrong, in which kernel, block and thread.
__attribute__((noreturn, format(printf, 1, 2))) void simt_report(const char *format, ...);
// Text for it; one of sixteen pieces, in turn.
__attribute__((format(printf, 1, 2))) const char *simt_text(const char *format, ...);
// A thread of the current launch: "thread 7"; "thread 7 (3, 1, 0)" if its blocks have more than one dimension.
const char *simt_thread_name(int number);

uint8_t *simt_map(size_t bytes, bool usable); // zeroed, taken page by page as it is touched
void simt_usable(void *memory, size_t bytes, bool usable);
uint8_t *simt_stack(int thread); // PAGE bytes, below them a page that must not be touched

// order.cpp. A time is epoch * MAX_THREADS + the thread that it is about. A new epoch begins with each
// block and barrier, at a __syncwarp for its lanes, and at a __threadfence for its thread.
struct simt_clock {
  uint64_t epoch, launch_began, block_began, barrier_passed;
  uint64_t now[MAX_THREADS];        // each thread's time
  uint64_t seen[MAX_THREADS][WARP]; // before which a lane of its warp's deeds are over for it
  bool replaying;                   // the launch is of a recording
};
extern simt_clock simt_clock_now;
void simt_order_launch();     // one begins
void simt_order_block();      // one begins
void simt_order_barrier();    // all threads pass one
simt_action simt_order_lanes; // __syncwarp
void simt_order_atomic(const void *counter);
bool simt_block_told(uint64_t then);       // is that block's deed certain to be over?
bool simt_launch_is_over(uint64_t then);   // that launch's?
const char *simt_launch_at(uint64_t then); // the kernel of a recording's launch
void simt_order_list_begins();             // a recording is replayed; then, before each launch:
void simt_order_branch(const char *kernel, int branch, int others); // others: of the other branch,
void simt_order_list_ends();                                        // certain to be over

void simt_memory_opens(size_t dynamic_bytes); // a kernel starts
void simt_memory_closes();
void simt_block_starts(); // with poisoned shared memory
void simt_watch_stop();   // no lane of the current warp can go on
void simt_watch_ldmatrix(const void *row, site where);
void simt_watch_copy_begins(const simt_copy *copy, site where);
void simt_watch_copy_lands(const simt_copy *copy);

// Where a site is, for a message: "conv.cu:123".
const char *simt_name_of(site where);

// Notes an access of the current thread: `bytes` at `address`, 0 bytes if it is not to be counted.
// Returns the number of its place, from which simt_site_of finds the site again.
int simt_count_access(site where, bool shared, bool write, int bytes, const uint8_t *address);
site simt_site_of(int place);
void simt_count_block(); // a block starts

// Costing a launch (simt_on_launch): a lane's mma; and run(first, end), blocks with blockIdx.x in
// first .. end - 1, on a share of all the columns.
void simt_count_mma();
void simt_cost_launch(unsigned columns, void (*run)(unsigned first, unsigned end));

#endif
