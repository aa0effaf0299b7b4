// simt/recording.cpp - launches that are noted and run later: the simulator's CUDA graphs, with one side
// branch (device.h's recording_table; gpu/recording.cu).
//
// A GPU may run the side branch at any time that its edges allow. Here launches never run at the same
// time, so two orders stand for all: the side branch as early as it may, and as late. What depends on an
// edge that is not there then gives other bits. And watch.cpp is told, for each launch, which ones of the
// other branch are certain to be over: it reports any two accesses to the same bytes, at least one of
// them a write, that no edge orders.
//
// Checked by `make check` (tests/simt_test.cpp, tests/recording_test.c).
#include "inside.h"

#include <stdlib.h>

struct noted {
  const char *kernel;
  launch_shape shape;
  void (*body)(void *);
  void *argument;
  int others; // how many launches of the other branch come before this one
};

struct branch {
  noted *launches;
  int count, room;
};

struct simt_list {
  branch branches[2]; // main, side
};

simt_mode simt_launches;
bool simt_side_late = getenv("SIMT_SIDE_LATE");
static simt_list *open_list; // that launches are noted in
static int at_work;          // its branch
static int others;           // of the other branch, that come before what is noted now

simt_list *simt_begin_list() {
  open_list = (simt_list *)calloc(1, sizeof *open_list);
  if (!open_list) simt_report("no memory for a list of launches");
  at_work = others = 0;
  return open_list;
}

void simt_note(const char *kernel, launch_shape shape, void (*body)(void *), const void *argument,
               size_t bytes) {
  void *copy = malloc(bytes);
  branch *b = &open_list->branches[at_work];
  if (b->count == b->room) {
    b->room = b->room ? 2 * b->room : 64;
    b->launches = (noted *)realloc(b->launches, b->room * sizeof *b->launches);
  }
  if (!copy || !b->launches) simt_report("no memory for a list of launches");
  b->launches[b->count++] = {kernel, shape, body, memcpy(copy, argument, bytes), others};
}

void simt_on_side(bool side) {
  static int main_waits_for;
  if (side) main_waits_for = others;
  at_work = side;
  others = side ? open_list->branches[0].count : main_waits_for;
}

int simt_side_mark() {
  return open_list->branches[1].count;
}

void simt_wait_for_side(int mark) {
  if (others < mark) others = mark;
}

// The branch whose turn it is: 0 or 1; -1 where all is done. done: launches of each.
static int next_branch(const simt_list *list, const int done[2]) {
  bool ready[2];
  for (int b = 0; b < 2; b++)
    ready[b] =
        done[b] < list->branches[b].count && list->branches[b].launches[done[b]].others <= done[!b];
  if (ready[0] && ready[1]) return simt_side_late ? 0 : 1;
  return ready[0] ? 0 : ready[1] ? 1 : -1;
}

void simt_run_list(const simt_list *list) {
  int done[2] = {0, 0};
  simt_order_list_begins();
  for (int b; (b = next_branch(list, done)) >= 0; done[b]++) {
    const noted *n = &list->branches[b].launches[done[b]];
    simt_order_branch(n->kernel, b, n->others);
    simt_run(n->kernel, n->shape, n->body, n->argument);
  }
  for (int b = 0; b < 2; b++)
    if (done[b] < list->branches[b].count)
      simt_report("%s of a recording waits for what never comes",
                  list->branches[b].launches[done[b]].kernel);
  simt_order_list_ends();
}

void simt_free_list(simt_list *list) {
  if (!list) return;
  for (branch &b : list->branches) {
    for (int i = 0; i < b.count; i++) free(b.launches[i].argument);
    free(b.launches);
  }
  free(list);
}
