// tools/png.h - pictures made of pixels, written as PNG without a compression library.
//
//     picture p = picture_make(200, 100);              // white
//     picture_image(&p, 10, 10, 2, pixels);            // 32x32 pixels, each drawn 2x2
//     picture_text(&p, 10, 80, "%s", "a cat");
//     picture_write(&p, "cat.png", &e);
//     picture_free(&p);
//
// Checked by `make course-check`: another PNG reader, Python's zlib, takes it apart.
#ifndef PNG_H
#define PNG_H

#include "device.h"
#include "run/error.h"

typedef struct {
  int width, height;
  uint8_t *rgb; // [height][width][3]
} picture;

picture picture_make(int width, int height);
void picture_free(picture *p);

// A filled rectangle of red, green and blue from 0 to 1; what lies outside the picture is left out.
void picture_fill(picture *p, int left, int top, int width, int height, const real rgb[3]);

// An image of rows of side x side pixels, [side][side][3] from 0 to 1, each drawn as scale x scale.
void picture_image(picture *p, int left, int top, int side, int scale, const real *pixels);

// A line of small letters, digits and signs (font.h), 9 pixels high; of others a gap.
__attribute__((format(printf, 4, 5))) void picture_text(picture *p, int left, int top,
                                                        const char *format, ...);

// False, with a line in e, when the file cannot be written.
bool picture_write(const picture *p, const char *path, error *e);

#endif
