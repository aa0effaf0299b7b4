// run/error.h - how this program fails: in one line that says what is wrong, where, and what to do.
//
// A function that can fail because of what a user gave it (a file, an option, a full disk) returns
// false and leaves its line in an `error`; only main() prints it and ends the process, with status
// 1, or 2 where the command line itself is wrong. So a test, or a fuzzer, can call such a function
// with anything at all and go on.
//
//     if (!directory_make(path, &e)) { fprintf(stderr, "train: %s\n", e.text); exit(1); }
#ifndef ERROR_H
#define ERROR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  char text[1024]; // one line, without the newline
} error;

enum { LONGEST_LINE = 640 }; // of a message; the rest of its room is for what is added to it

// A line too long loses its middle, where its longest path is: its end says why. A cut does not go
// through a letter of UTF-8, of which all bytes but the first begin with the bits 10.
static inline void shorten_middle(char *text) {
  const size_t length = strlen(text);
  size_t head = LONGEST_LINE / 2, tail = length - LONGEST_LINE / 2;
  if (length <= LONGEST_LINE) return;
  while (head > 0 && ((unsigned char)text[head] & 0xC0) == 0x80) head--;
  while (tail < length && ((unsigned char)text[tail] & 0xC0) == 0x80) tail++;
  memmove(text + head + 3, text + tail, length - tail + 1);
  memcpy(text + head, "...", 3);
}

// Copies text into e, a newline as \n and any other control character as \x1b, so that it stays one
// line and does nothing to the terminal.
static inline void put_line(error *e, const char *text) {
  size_t length = 0;
  for (; *text && length + 5 < sizeof e->text; text++) {
    const unsigned char c = (unsigned char)*text;
    if (c == '\n')
      length += (size_t)snprintf(e->text + length, 5, "\\n");
    else if (c < 0x20 || c == 0x7F)
      length += (size_t)snprintf(e->text + length, 5, "\\x%02x", c);
    else
      e->text[length++] = (char)c;
  }
  e->text[length] = 0;
}

// Writes the line (printf's format) into e and returns false: `return fail(e, "...", ...);`
__attribute__((format(printf, 2, 3))) static inline bool fail(error *e, const char *format, ...) {
  char text[3 * 4096]; // two paths, and words
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  shorten_middle(text);
  put_line(e, text);
  return false;
}

// The same, behind the line that is there already.
__attribute__((format(printf, 2, 3))) static inline bool fail_also(error *e, const char *format,
                                                                   ...) {
  const size_t length = strlen(e->text);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(e->text + length, sizeof e->text - length, format, arguments);
  va_end(arguments);
  return false;
}

extern char *program_invocation_short_name; // the C library's: argv[0] without its folders

// Ends the process with a line: without memory nothing in this program could go on, and it asks for
// its large pieces before the first step.
__attribute__((noreturn)) static inline void out_of_memory(size_t bytes) {
  fprintf(stderr,
          "%s: out of memory: could not get %zu more bytes; try a smaller --batch or --width\n",
          program_invocation_short_name, bytes);
  exit(1);
}

// `bytes` of zeroed host memory, to be given back with free().
static inline void *allocate(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) out_of_memory(bytes);
  return memory;
}

// The same for a caller that has something to clear away first, a half-written file, or a name to give:
// NULL, with a line in e that begins with `what`.
static inline void *allocate_or_fail(size_t bytes, const char *what, error *e) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) fail(e, "%s: out of memory: could not get %zu more bytes", what, bytes);
  return memory;
}

#endif
