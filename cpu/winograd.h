// winograd.h - from pixels to the 36 points of Winograd's method and back; see winograd.c.
#ifndef WINOGRAD_H
#define WINOGRAD_H

#include "conv.h"

enum { TILE = 4, WINDOW = 6, POINTS = WINDOW * WINDOW, GROUP = 32 };
// GROUP: tiles at a time; more, and their points no longer fit the cache beside the filters'.

// One of the two activations that a convolution connects, x or y, and the matrices made from it:
// matrix t's row m starts at t * step + m * row.
typedef struct {
  int height, width, channels; // of an image
  int size;    // what a row of a matrix sees: size x size pixels, at points 6x6 of x, 4x4 of y
  int stride;  // pixels between what two neighbouring rows see
  bool add;    // write adds to the images: windows overlap, and patches
  int columns; // floats of a row
  size_t row, step;
} side;

bool winograd_takes(const conv_shape *s);
// `count` tiles from the `first` on, counted through all images: rows from pixels, pixels from rows.
void winograd_read(const side *s, float *rows, float *images, int first, int count);
void winograd_write(const side *s, float *rows, float *images, int first, int count);
// LANES filters, `lane` floats apart; their taps, `tap` floats apart.
void winograd_read_filters(float *to, size_t step, const float *w, size_t tap, size_t lane);
void winograd_write_filters(float *dw, size_t tap, const float *from, size_t step);

#endif
