// bench/worker.h - for bench.c: processes that do steps when asked to, ours and PyTorch's. A worker says
// its name in a line; "train 3" or "eval 3" on its standard input is answered by the seconds that so many
// steps took, on the clock and of the processors.
#ifndef WORKER_H
#define WORKER_H

#include "bench.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct {
  pid_t process;
  FILE *to, *from;
  char name[200];
} worker;

static void next_line(worker *w, char *line, int size) {
  if (!fgets(line, size, w->from)) line[0] = 0;
  line[strcspn(line, "\n")] = 0;
}

static worker start_worker(const char *const *command) {
  int to[2], from[2];
  // Without O_CLOEXEC the next worker would hold this one's input open for ever.
  if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC)) stop("no pipe");
  fflush(NULL);
  worker w = {.process = fork()};
  if (w.process < 0) stop("no process");
  if (w.process == 0) {
    dup2(to[0], 0), dup2(from[1], 1);
    execvp(command[0], (char *const *)command);
    _exit(127);
  }
  close(to[0]), close(from[1]);
  w.to = fdopen(to[1], "w"), w.from = fdopen(from[0], "r");
  if (!w.to || !w.from) stop("no stream");
  next_line(&w, w.name, sizeof w.name);
  return w;
}

typedef struct {
  double clock, cpu; // seconds
} duration;

static duration ask(worker *w, const char *mode, int steps) {
  char line[100];
  duration took;
  fprintf(w->to, "%s %d\n", mode, steps);
  fflush(w->to);
  next_line(w, line, sizeof line);
  if (sscanf(line, "%lf %lf", &took.clock, &took.cpu) != 2) stop("a worker gave up");
  return took;
}

// Its peak resident size so far, in MiB. (getrusage's would be the largest of it and of the compilers that
// it called.)
static double peak_memory(const worker *w) {
  char path[40], line[200];
  double kib = 0;
  snprintf(path, sizeof path, "/proc/%ld/status", (long)w->process);
  FILE *file = fopen(path, "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %lf kB", &kib) == 1) break;
  if (file) fclose(file);
  if (kib <= 0) stop("a worker's memory cannot be found");
  return kib / 1024;
}

static void stop_worker(worker *w) {
  fclose(w->to), fclose(w->from);
  if (waitpid(w->process, NULL, 0) < 0) stop("a worker is gone");
}

#endif
