// tests/faults.h - one run of a program, watched call by call, with one of its calls struck: faults.c has
// the reasons.
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>
#include <stdint.h>

// System calls that no kernel has: how the preloaded library (faults_preload.c) tells the tracer that
// main() is near, and asks whether an allocation (bytes, caller's address) is to succeed.
enum { FAULTS_BEGIN = 0xFA00, FAULTS_ALLOCATION = 0xFA01 };

typedef enum {
  FILE_CALL, // any of those below but ALLOCATE
  OPEN,
  READ,
  WRITE,
  SYNC,
  RENAME,
  CLOSE,
  MAKE,   // mkdir
  CUT,    // ftruncate
  REMOVE, // unlink, rmdir
  LOOK,   // stat, access, readlink
  SEEK,
  LOCK, // flock, fcntl's locks
  LINK,
  LIST, // a directory's entries
  ALLOCATE
} kind_of_call;

// A call as the walk saw it: its kind, and a few words ("write 4096 bytes: log.csv").
typedef struct {
  kind_of_call kind;
  char words[240];
} call;

typedef enum {
  FAIL,           // the call is not made, and returns the error
  FAIL_WHEN_DONE, // it is made, and returns the error: close(), which closes in any case
  FULL_DISK,      // it fails, and so does every later write
  HALF,           // half of the bytes
  TORN,           // half of the bytes, then SIGKILL
  SIGNAL,         // a signal arrives; the call is made (but for SIGKILL)
  FAIL_AND_SIGNAL // as a write beyond `ulimit -f` does
} manner;

typedef struct {
  const char *name;
  kind_of_call at;
  manner manner;
  int error, signal;
} strike;

typedef struct {
  int status;     // as wait() gives it
  bool forbidden; // the system allows no tracing, and nothing was run
  bool begun;     // main() was reached
  bool hung;      // it had to be killed after 20 s
  call *walk;     // the calls it made, to be freed
  int calls;
  bool struck;
} outcome;

// Runs `arguments` (the program's whole path first) in `directory`, with its output in the files out
// and err there and `library` preloaded, and strikes call `at`, counted from 1; 0: none. Where
// `describe` is false the words of the walk stay empty.
outcome run_struck(char *const arguments[], const char *directory, const char *library, int at,
                   const strike *with, bool describe);

#endif
