// scratch.h - for the tests that write files: a directory of their own, and what the line of a
// refusal must look like.
#ifndef SCRATCH_H
#define SCRATCH_H

#include "../error.h"
#include "check.h"
#include <dirent.h>
#include <string.h>
#include <unistd.h>

// A new directory under $TMPDIR, or /tmp. Its name stays in `path`.
static inline void scratch_make(char *path, size_t room) {
  const char *place = getenv("TMPDIR");
  snprintf(path, room, "%s/resnet18-test-XXXXXX", place && *place ? place : "/tmp");
  if (mkdtemp(path)) return;
  fprintf(stderr, "%s: could not be made\n", path);
  exit(1);
}

// Removes its files and its empty directories, not the directory itself.
static inline void scratch_empty(const char *path) {
  char name[4096];
  DIR *directory = opendir(path);
  for (struct dirent *d; directory && (d = readdir(directory));) {
    snprintf(name, sizeof name, "%s/%s", path, d->d_name);
    if (strcmp(d->d_name, ".") && strcmp(d->d_name, "..")) remove(name);
  }
  if (directory) closedir(directory);
}

static inline void scratch_remove(const char *path) {
  scratch_empty(path);
  rmdir(path);
}

static inline void scratch_write(const char *path, const void *bytes, size_t count) {
  FILE *file = fopen(path, "wb");
  if (file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0) return;
  fprintf(stderr, "%s: could not be written\n", path);
  exit(1);
}

// A refusal is false, and one line that begins with the file's name and has `phrase` in it.
static inline bool check_refused(bool ok, const error *e, const char *what, const char *file,
                                 const char *phrase) {
  const bool good = !ok && !strncmp(e->text, file, strlen(file)) && !strchr(e->text, '\n') &&
                    strstr(e->text, phrase);
  check(good, "refused: %s", what);
  if (!good)
    printf("     %s \"%s\", wanted \"%s...%s\"\n", ok ? "accepted:" : "said", e->text, file,
           phrase);
  return good;
}

#endif
