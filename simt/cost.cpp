// simt/cost.cpp - what the accesses of a simulated kernel to memory cost: `make simt-report`, and,
// launch by launch, `make cost`.
//
// A GPU's memories work on whole warps. The lanes (threads) of a warp execute an instruction
// together, so that all their addresses make one *request*. How long a request takes depends on how
// its addresses lie:
//
//     global memory comes in *sectors* of 32 bytes: a request costs as many as it touches
//     shared memory has 32 *banks*, each a word of 4 bytes wide; word w lies in bank w % 32. A bank
//     serves one word at a time, to all lanes that want it: a request takes as many turns as the
//     words that it wants of one bank (a *bank conflict*: more than one)
//
// Both are counted as `parts`, beside the `ideal`: what the same bytes would cost, lying side by side.
// CUDA C++ Programming Guide, "Device memory accesses" and "Shared memory".
//
// Each instruction of a kernel that accesses memory is a *place*. watch.cpp sees each access of each
// thread and calls simt_count_access.
//
// Checked by `make check` (tests/simt_test.cpp): kernels whose costs are known.
#include "inside.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Here the lanes come one after another. The n-th accesses of all lanes at one place, since the warp
// last stopped, are one request.
struct request {
  uint32_t lanes; // that came by
  uintptr_t address[WARP];
};
enum { MAX_PLACES = 1 << 14, MAX_TURNS = 1 << 14 }; // what comes more often is not counted

struct place { // an instruction of a kernel that accesses memory
  site where;
  const char *kernel;
  bool shared, write;
  int bytes;
  simt_cost cost;
  request *requests; // [MAX_TURNS]
  int turn[WARP], turns;
};
static place places[MAX_PLACES]; // a hash table
static int under_way[MAX_PLACES], under_way_count;
static int accesses_of[MAX_THREADS]; // of each thread of the block at work
int simt_most_accesses;

site simt_site_of(int place) {
  return places[place].where;
}

static int find_place(site where, bool shared, bool write) {
  const uint64_t key = (uintptr_t)where.file * 8 + where.line + (uintptr_t)simt_now.kernel + shared;
  for (uint32_t i = key * 0x9e3779b97f4a7c15u >> 50, end = i + MAX_PLACES; i < end; i++) {
    place *p = &places[i % MAX_PLACES];
    if (!p->kernel) *p = {where, simt_now.kernel, shared, write, 0, {}, NULL, {}, 0};
    if (p->where.file == where.file && p->where.line == where.line && p->shared == shared &&
        p->kernel == simt_now.kernel)
      return i % MAX_PLACES;
  }
  simt_report("more than %d instructions that access memory", MAX_PLACES);
}

// An access at `address`; returns its place. bytes: 0 if it is not to be counted.
int simt_count_access(site where, bool shared, bool write, int bytes, const uint8_t *address) {
  const int number = find_place(where, shared, write), lane = simt_now.thread->number % WARP;
  place *p = &places[number];
  if ((!simt_counting && !simt_on_launch) || !bytes || p->turn[lane] == MAX_TURNS) return number;
  if (!p->requests) p->requests = (request *)simt_map(MAX_TURNS * sizeof(request), true);
  if (!p->turns) under_way[under_way_count++] = number;
  const int accesses = ++accesses_of[simt_now.thread->number];
  if (accesses > simt_most_accesses) simt_most_accesses = accesses;
  request *r = &p->requests[p->turn[lane]++];
  if (p->turn[lane] > p->turns) p->turns = p->turn[lane];
  p->bytes = bytes;
  r->lanes |= 1u << lane;
  r->address[lane] = (uintptr_t)address;
  return number;
}

// How many different units some of the lanes access; those go to unit_at.
static int different(const request *r, int first, int lanes, int bytes, int unit,
                     uintptr_t unit_at[WARP]) {
  int n = 0;
  for (int lane = first; lane < first + lanes; lane++)
    for (int i = 0; (r->lanes >> lane & 1) && i < bytes; i += unit) {
      const uintptr_t at = (r->address[lane] + i) / unit;
      int j = n;
      while (j && unit_at[j - 1] != at) j--;
      if (!j) unit_at[n++] = at;
    }
  return n;
}

// -- One launch -----------------------------------------------------------------------------------
//
// A launch of a thousand blocks need not run to be counted. Along blockIdx.x go, in nearly every kernel
// of this program, pixels, images or elements (in linear_weight_rows and plain_sums, channels: too few
// to matter), and the blocks of one column of the grid cost what those of the next cost, but for what
// they share: sectors that an earlier block has touched already, the weights above all. So the first
// columns run, a 32nd of them and two at least. What the second half of them adds, all the following
// ones are taken to add as well.

enum { SECTOR = 32, SHARE = 32 };
enum : size_t { SECTORS = 16ull << 30 >> 5 }; // as much as the simulated GPU has
void (*simt_on_launch)(const simt_launch *);
static simt_launch tally;       // of the launch at work
static uint32_t launches;       // so far
static uint32_t *touched_by[2]; // [SECTORS]: the last launch that read, or wrote, a sector

static void note_sector(uintptr_t sector, bool write) {
  if (!touched_by[write])
    touched_by[write] = (uint32_t *)simt_map(SECTORS * sizeof(uint32_t), true);
  uint32_t *last = &touched_by[write][sector % SECTORS];
  *(write ? &tally.written : &tally.read) += *last != launches;
  *last = launches;
}

void simt_count_mma() {
  tally.mma += 1.0 / WARP;
}

// What all columns cost, where `half` of them cost a and `all` cost `tally`.
static simt_launch of_all_columns(const simt_launch &a, double factor) {
  const auto line = [&](double half, double all) { return half + (all - half) * factor; };
  return {a.kernel,
          line(a.mma, tally.mma),
          line(a.read, tally.read),
          line(a.written, tally.written),
          line(a.requested, tally.requested),
          line(a.turns, tally.turns),
          line(a.least, tally.least)};
}

void simt_cost_launch(unsigned columns, void (*run)(unsigned first, unsigned end)) {
  const unsigned share = columns / SHARE / 2, half = share ? share : 1;
  const unsigned all = half * 2 < columns ? half * 2 : columns;
  tally = {simt_now.kernel, 0, 0, 0, 0, 0, 0};
  launches++;
  run(0, half);
  const simt_launch a = tally;
  run(half, all);
  const double factor = all > half ? (double)(columns - half) / (all - half) : 0;
  const simt_launch cost = of_all_columns(a, factor);
  simt_now.thread = NULL; // it is over
  simt_on_launch(&cost);
}

// A request's cost. From shared memory, lanes that want 8 or 16 bytes go in 2 or 4 phases.
static simt_cost settle(const request *r, const place *p) {
  const int lanes = !p->shared || p->bytes <= 4 ? WARP : WARP * 4 / p->bytes;
  uintptr_t at[WARP];
  simt_cost cost = {1, 0, 0};
  for (int first = 0; p->shared && first < WARP; first += lanes) {
    int of_bank[32] = {0}, most = 0;
    for (int n = different(r, first, lanes, p->bytes, 4, at); n > 0; n--)
      if (++of_bank[at[n - 1] % 32] > most) most++;
    cost.parts += most;
    cost.ideal += most > 0;
  }
  if (p->shared) return cost;
  const int sectors = different(r, 0, WARP, p->bytes, SECTOR, at);
  cost.parts += sectors;
  for (int i = 0; simt_on_launch && i < sectors; i++) note_sector(at[i], p->write);
  cost.ideal += (different(r, 0, WARP, p->bytes, p->bytes, at) * p->bytes + 31) / 32;
  return cost;
}

static simt_cost plus(simt_cost a, simt_cost b) {
  return {a.requests + b.requests, a.parts + b.parts, a.ideal + b.ideal};
}

void simt_count_block() {
  memset(accesses_of, 0, sizeof accesses_of);
}

void simt_watch_stop() {
  while (under_way_count) {
    place *p = &places[under_way[--under_way_count]];
    for (request *r = p->requests; r < p->requests + p->turns; r++) {
      const simt_cost one = settle(r, p);
      p->cost = plus(p->cost, one);
      (p->shared ? tally.turns : tally.requested) += one.parts;
      if (p->shared) tally.least += one.ideal;
      r->lanes = 0;
    }
    memset(p->turn, 0, sizeof p->turn);
    p->turns = 0;
  }
}

// A kernel's costs, and the place that wastes most.
static simt_cost add_up(const char *kernel, bool shared, const place **worst) {
  simt_cost sum = {0, 0, 0};
  uint64_t waste = 0;
  for (const place *p = places; p < places + MAX_PLACES; p++) {
    if (!p->kernel || strcmp(p->kernel, kernel) || p->shared != shared) continue;
    sum = plus(sum, p->cost);
    if (p->cost.parts - p->cost.ideal <= waste) continue;
    waste = p->cost.parts - p->cost.ideal;
    *worst = p;
  }
  return sum;
}

simt_cost simt_count(const char *kernel, bool shared) {
  const place *worst;
  return add_up(kernel, shared, &worst);
}

static void print_costs() {
  const place *end = places + MAX_PLACES;
  printf("%-28s %-7s %11s %11s %11s %7s  worst line\n", "kernel", "memory", "requests", "parts",
         "ideal", "factor");
  for (const place *p = places, *before, *worst = NULL; p < end; p++, worst = NULL) {
    for (before = places; before < p; before++)
      if (p->kernel && before->kernel && p->shared == before->shared &&
          !strcmp(p->kernel, before->kernel))
        break;
    const simt_cost c =
        p->kernel && before == p ? add_up(p->kernel, p->shared, &worst) : simt_cost();
    if (c.requests)
      printf("%-28s %-7s %11zu %11zu %11zu %7.2f  %s\n", p->kernel, p->shared ? "shared" : "global",
             (size_t)c.requests, (size_t)c.parts, (size_t)c.ideal, (double)c.parts / c.ideal,
             worst ? simt_name_of(worst->where) : "");
  }
}

bool simt_counting = getenv("SIMT_REPORT") && !atexit(print_costs);
