// tools/png.c - see png.h. A PNG file is a signature of 8 bytes and then chunks, here three of them:
//
//     IHDR   width, height, 8 bits a channel, red green blue
//     IDAT   the rows from top to bottom, a filter byte (0: none) before each, as a zlib stream
//     IEND   nothing
//
//     a chunk        length, name, that many bytes, CRC-32 of name and bytes
//     zlib stream    78 01, blocks, Adler-32 of the bytes
//     stored block   1 in the last one and 0 in others, length, its complement (both little-endian),
//                    the bytes as they are: at most 65,535
//
// Numbers are big-endian but in the block. PNG: ISO/IEC 15948; zlib: RFC 1950; blocks: RFC 1951, 3.2.4.
#include "png.h"

#include "font.h"
#include "svg.h"

#include <string.h>

picture picture_make(int width, int height) {
  const size_t bytes = (size_t)width * (size_t)height * 3;
  picture p = {width, height, allocate(bytes)};
  memset(p.rgb, 255, bytes);
  return p;
}

void picture_free(picture *p) {
  free(p->rgb);
  *p = (picture){0};
}

// -- Drawing --------------------------------------------------------------------------------------

static uint8_t byte_of(real value) {
  return (uint8_t)(value <= 0 ? 0 : value >= 1 ? 255 : value * 255 + (real)0.5);
}

void picture_fill(picture *p, int left, int top, int width, int height, const real rgb[3]) {
  for (int y = top < 0 ? 0 : top; y < top + height && y < p->height; y++)
    for (int x = left < 0 ? 0 : left; x < left + width && x < p->width; x++)
      for (int c = 0; c < 3; c++)
        p->rgb[((size_t)y * (size_t)p->width + (size_t)x) * 3 + (size_t)c] = byte_of(rgb[c]);
}

void picture_image(picture *p, int left, int top, int side, int scale, const real *pixels) {
  for (int y = 0; y < side; y++)
    for (int x = 0; x < side; x++)
      picture_fill(p, left + x * scale, top + y * scale, scale, scale, pixels + (y * side + x) * 3);
}

static void draw_letter(picture *p, int left, int top, char letter) {
  static const real ink[3] = {0};
  for (size_t i = 0; i < sizeof font / sizeof *font; i++) {
    if (font[i].letter != letter) continue;
    const char *rows = font[i].rows;
    for (int k = 0; rows[k]; k++)
      if (rows[k] == '#')
        picture_fill(p, left + k % (GLYPH_WIDTH + 1), top + k / (GLYPH_WIDTH + 1), 1, 1, ink);
  }
}

void picture_text(picture *p, int left, int top, const char *format, ...) {
  char text[128];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  for (const char *c = text; *c; c++, left += GLYPH_WIDTH + 1) draw_letter(p, left, top, *c);
}

// -- Writing --------------------------------------------------------------------------------------

typedef struct {
  FILE *out;
  uint32_t crc, adler_a, adler_b; // of the chunk and of the rows so far
} writer;

// CRC-32, a bit at a time: the remainder of the bytes, as a polynomial over {0, 1}, by 0x04C11DB7,
// bits in reverse.
static void put(writer *w, const uint8_t *bytes, size_t count) {
  fwrite(bytes, 1, count, w->out);
  for (size_t i = 0; i < count; i++) {
    w->crc ^= bytes[i];
    for (int bit = 0; bit < 8; bit++) w->crc = w->crc >> 1 ^ (w->crc & 1 ? 0xEDB88320u : 0);
  }
}

static void put_number(writer *w, uint32_t n) {
  put(w, (uint8_t[]){(uint8_t)(n >> 24), (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n}, 4);
}

static void begin_chunk(writer *w, const char *name, uint32_t length) {
  put_number(w, length);
  w->crc = 0xFFFFFFFFu;
  put(w, (const uint8_t *)name, 4);
}

static void end_chunk(writer *w) {
  put_number(w, ~w->crc);
}

// Adler-32: the sum of the bytes, and the sum of those sums, modulo 65521.
static void put_row_bytes(writer *w, const uint8_t *bytes, size_t count) {
  put(w, bytes, count);
  for (size_t i = 0; i < count; i++) {
    w->adler_a = (w->adler_a + bytes[i]) % 65521;
    w->adler_b = (w->adler_b + w->adler_a) % 65521;
  }
}

// A row is a stored block: its filter byte and its pixels.
static void put_row(writer *w, const picture *p, int y) {
  const size_t length = (size_t)p->width * 3;
  const uint32_t n = (uint32_t)length + 1, complement = ~n;
  put(w,
      (uint8_t[]){y == p->height - 1, (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)complement,
                  (uint8_t)(complement >> 8)},
      5);
  put_row_bytes(w, (const uint8_t[]){0}, 1);
  put_row_bytes(w, p->rgb + (size_t)y * length, length);
}

static void put_picture(writer *w, const picture *p) {
  fwrite("\x89PNG\r\n\x1a\n", 1, 8, w->out);
  begin_chunk(w, "IHDR", 13);
  put_number(w, (uint32_t)p->width);
  put_number(w, (uint32_t)p->height);
  put(w, (const uint8_t[]){8, 2, 0, 0, 0},
      5); // 8 bits, RGB, the one compression, filter, not interlaced
  end_chunk(w);
  begin_chunk(w, "IDAT", 2 + (uint32_t)p->height * (uint32_t)(5 + 1 + p->width * 3) + 4);
  put(w, (const uint8_t[]){0x78, 0x01}, 2);
  for (int y = 0; y < p->height; y++) put_row(w, p, y);
  put_number(w, w->adler_b << 16 | w->adler_a);
  end_chunk(w);
  begin_chunk(w, "IEND", 0);
  end_chunk(w);
}

bool picture_write(const picture *p, const char *path, error *e) {
  if (p->width * 3 + 1 > 65535)
    return fail(e, "%s: %d pixels are too wide: a row has to fit into a block", path, p->width);
  writer w = {.out = open_picture(path, "\x89PNG", e), .adler_a = 1};
  if (!w.out) return false;
  put_picture(&w, p);
  const bool failed = ferror(w.out);
  return (fclose(w.out) == 0 && !failed) || fail(e, "%s: could not be written: disk full?", path);
}
