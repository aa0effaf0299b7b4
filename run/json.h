// run/json.h - as much of JSON (RFC 8259) as the header of a safetensors file needs: objects, strings,
// arrays of whole numbers. run/safetensors.c reads headers with it.
//
// Each function reads one thing at the cursor and steps over it, or returns false and leaves what it
// expected in `expected`. The cursor walks over a copy of the text, and a string is decoded where it
// stands there, with a zero in the place of its closing quote or before: no escape is shorter than what
// it stands for.
//
// Checked by `make check` (tests/safetensors_test.c) and `make fuzz`.
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
  char *at, *end;
  const char *expected;
} cursor;

static inline bool expect(cursor *c, const char *what) {
  c->expected = what;
  return false;
}

static inline void skip_space(cursor *c) {
  while (c->at < c->end && strchr(" \t\r\n", *c->at) && *c->at) c->at++;
}

static inline bool next_is(cursor *c, char wanted) {
  skip_space(c);
  if (c->at >= c->end || *c->at != wanted) return false;
  c->at++;
  return true;
}

// The four digits behind \u.
static inline bool read_code(cursor *c, uint32_t *code) {
  *code = 0;
  for (int i = 0; i < 4; i++, c->at++) {
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    const char *digit = c->at < c->end && *c->at ? strchr(digits, *c->at) : NULL;
    if (!digit) return expect(c, "four hexadecimal digits after \\u");
    *code = *code * 16 + (uint32_t)(digit - digits) % 16;
  }
  return true;
}

// A letter's number to UTF-8: 7, 11, 16 or 21 bits in one to four bytes.
static inline char *put_utf8(char *to, uint32_t code) {
  const int more = code && code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static const uint8_t first[] = {0, 0xC0, 0xE0, 0xF0};
  *to++ = (char)(first[more] | code >> (6 * more));
  for (int i = more - 1; i >= 0; i--) *to++ = (char)(0x80 | (code >> (6 * i) & 0x3F));
  return to;
}

// What stands behind a backslash. Beyond 16 bits, JSON writes a letter as two halves, "surrogates":
// D800 + its upper ten bits, DC00 + its lower ten, after taking 10000 away (RFC 8259, section 7).
static inline bool read_escape(cursor *c, char **to) {
  static const char names[] = "\"\\/bfnrt", stands_for[] = "\"\\/\b\f\n\r\t";
  const char *name = c->at < c->end && *c->at ? strchr(names, *c->at) : NULL;
  uint32_t code, low = 0;
  if (name) {
    c->at++;
    *(*to)++ = stands_for[name - names];
    return true;
  }
  if (c->at >= c->end || *c->at != 'u') return expect(c, "an escape that JSON has");
  c->at++;
  if (!read_code(c, &code)) return false;
  if (code >= 0xD800 && code < 0xE000) {
    const bool two = code < 0xDC00 && c->end - c->at > 2 && !memcmp(c->at, "\\u", 2);
    if (two) c->at += 2;
    if (!two || !read_code(c, &low) || low < 0xDC00 || low >= 0xE000)
      return expect(c, "both halves of a letter beyond \\uFFFF");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  *to = put_utf8(*to, code);
  return true;
}

static inline bool read_string(cursor *c, const char **text) {
  if (!next_is(c, '"')) return expect(c, "a string");
  char *to = c->at;
  *text = to;
  while (c->at < c->end && *c->at != '"') {
    const char letter = *c->at++;
    if ((unsigned char)letter < 0x20) return expect(c, "no control character in a string");
    if (letter != '\\')
      *to++ = letter;
    else if (!read_escape(c, &to))
      return false;
  }
  if (c->at >= c->end) return expect(c, "the end of a string");
  *to = 0;
  c->at++;
  return true;
}

static inline bool read_number(cursor *c, int64_t *number) {
  skip_space(c);
  *number = 0;
  const char *first = c->at;
  for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++) {
    if (*number > INT64_MAX / 10 - 1) return expect(c, "a smaller number");
    *number = *number * 10 + (*c->at - '0');
  }
  return c->at > first || expect(c, "a whole number, not negative");
}

// [n, n, ...]: how many, the first `room` of them, and their product, with *fits false where that is
// more than a size_t can hold.
static inline bool read_numbers(cursor *c, int64_t *numbers, int room, int *count, size_t *product,
                                bool *fits) {
  *count = 0;
  *product = 1;
  *fits = true;
  if (!next_is(c, '[')) return expect(c, "an array");
  if (next_is(c, ']')) return true;
  do {
    int64_t number;
    if (!read_number(c, &number)) return false;
    if (*count < room) numbers[*count] = number;
    if (__builtin_mul_overflow(*product, (size_t)number, product)) *fits = false;
    ++*count;
  } while (next_is(c, ','));
  return next_is(c, ']') || expect(c, "']'");
}

// "key" : in front of a value
static inline bool read_key(cursor *c, const char **key) {
  return read_string(c, key) && (next_is(c, ':') || expect(c, "':'"));
}

#endif
