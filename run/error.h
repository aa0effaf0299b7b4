// run/error.h - how this program fails: in one line that says what is wrong, where, and what to do.
//
// A function that can fail because of what a user gave it (a file, an option, a full disk) returns
// false and leaves its line in an `error`; only main() prints it and ends the process, with status
// 1, or 2 where the command line itself is wrong. So a test, or a fuzzer, can call such a function
// with anything at all and go on.
//
//     if (!cifar_read(directory, &data, &e)) { fprintf(stderr, "train: %s\n", e.text); exit(1); }
#ifndef ERROR_H
#define ERROR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  char text[1024]; // one line, without the newline
} error;

// Writes the line (printf's format) into e and returns false: `return fail(e, "...", ...);`
__attribute__((format(printf, 2, 3))) static inline bool fail(error *e, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(e->text, sizeof e->text, format, arguments);
  va_end(arguments);
  return false;
}

// Ends the process with a line: without memory nothing in this program could go on, and it asks for
// its large pieces before the first step.
__attribute__((noreturn)) static inline void out_of_memory(size_t bytes) {
  fprintf(stderr, "out of memory: could not get %zu more bytes; try a smaller --batch or --width\n",
          bytes);
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
