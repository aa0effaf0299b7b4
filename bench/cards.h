// bench/cards.h - what some GPUs can do at most, from their makers' papers, and the bound that follows.
//
// A kernel cannot end before its arithmetic is done, and not before its bytes have been moved. Both
// can go on at the same time, so its least time is the longer of the two:
//
//     bound = max(FLOP / peak, bytes / bandwidth)
//
// Williams, Waterman, Patterson: "Roofline: an insightful visual performance model for multicore
// architectures", CACM 2009. FLOP / bytes is a kernel's *intensity*; peak / bandwidth, the card's
// own, says which of the two binds. An H100's is 295: below that, memory decides.
//
// Peaks are for bf16 with float sums on tensor cores, without sparsity. A bound is no measurement:
// no kernel reaches both numbers, and NVIDIA's own matrix products reach some 60 to 80 % of the
// first. Nor is `bytes` strict where an operand still lies in the second-level cache (L2), which
// holds what was used last.
#ifndef CARDS_H
#define CARDS_H

#include <stddef.h>
#include <string.h>

typedef struct {
  const char *name; // as the driver calls it, or how that begins
  const char *column;
  double peak;      // TFLOP/s
  double bandwidth; // GB/s
  double cache;     // MB of L2
  const char *source;
} card;

static const card cards[] = {
    {"NVIDIA A100-SXM4-80GB", "A100", 312, 2039, 40, "A100 80GB data sheet, 2021"},
    {"NVIDIA H100 80GB HBM3", "H100", 989.4, 3350, 50, "H100 SXM data sheet, 2023"},
    {"NVIDIA GeForce RTX 4090", "4090", 165.2, 1008, 72, "Ada GPU architecture paper, appendix A"},
    {"NVIDIA GeForce RTX 3090", "3090", 71, 936, 6, "GA102 GPU architecture paper, appendix A"},
    {"NVIDIA H200", "H200", 989.4, 4800, 60, "H200 data sheet, 2024; L2 as the driver reports it"},
};
enum { CARDS = sizeof cards / sizeof *cards, COLUMNS = 4 }; // COLUMNS: those that `make cost` shows

// Between the end of a kernel and the start of the next one on the same stream, seconds: an
// assumption, of the order that is usually seen.
#define LAUNCH_GAP 1e-6

// Seconds.
static inline double bound_of(const card *c, double flops, double bytes) {
  const double arithmetic = flops / (1e12 * c->peak), memory = bytes / (1e9 * c->bandwidth);
  return arithmetic > memory ? arithmetic : memory;
}

// What is surely moved from and to memory: as much as fits L2 may have been left there.
static inline double surely_moved(const card *c, double bytes) {
  const double left = 1e6 * c->cache;
  return bytes > left ? bytes - left : 0;
}

// Of a device's description, which begins with the GPU's name and a comma. NULL: none of these.
static inline const card *card_of(const char *gpu) {
  for (int i = 0; i < CARDS; i++) {
    const size_t length = strlen(cards[i].name); // an "RTX 3090 Ti" is another card
    if (!strncmp(gpu, cards[i].name, length) && gpu[length] == ',') return &cards[i];
  }
  return NULL;
}

#endif
