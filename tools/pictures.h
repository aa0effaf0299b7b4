// tools/pictures.h - the course's pictures, one function each; tools/pictures.c calls the one asked for.
// Each returns false, with a line in e, for a file that cannot be read or written.
#ifndef PICTURES_H
#define PICTURES_H

#include "run/error.h"

// What a picture is made of, as the command line names it.
typedef struct {
  const char *data;             // directory of a data set
  const char *weights;          // a safetensors file
  const char *const *arguments; // what else there is: [argument_count]
  int argument_count;
  const char *out;
} picture_request;

typedef bool draw_picture(const picture_request *r, error *e);

// draw_data.c, of a data set
draw_picture draw_mixed; // images, their partners, and what mixup makes of them
draw_picture draw_crops; // one image in several crops and flips

// draw_numbers.c, of nothing but the program
draw_picture draw_targets;  // a label, smoothed, mixed, both
draw_picture draw_beta;     // lambda's distribution for five alphas
draw_picture draw_schedule; // the learning rate over the epochs

// draw_cpu.c, of nothing but the program
draw_picture draw_registers; // a tile of sums in a CPU's registers
draw_picture draw_winograd;  // two results of three taps with four multiplications

// draw_network.c, of trained weights
draw_picture draw_filters;  // the first layer
draw_picture draw_mistakes; // the test images that it is most sure of and wrong about

// draw_bins.c, of the files of ./train --eval --bins: arguments are NAME=FILE.csv
draw_picture draw_reliability; // accuracy against confidence, and how many images have which

// draw_cost.c, of what `make cost` prints: the argument is that file
draw_picture
    draw_roofline; // which kernels memory binds, which arithmetic; each one's share of a step

#endif
