// tests/scratch.h - for the tests that write files: a directory of their own, and what the line of a
// refusal must look like.
#ifndef SCRATCH_H
#define SCRATCH_H

#include "../run/error.h"
#include "check.h"
#include <dirent.h>
#include <string.h>
#include <unistd.h>

static char scratch_directory[200];

// A new directory under $TMPDIR, or /dev/shm, or /tmp: on a RAM disk, where there is one, because these
// tests would spend most of their time waiting for a disk (ten times as long on ours).
static inline void scratch_make(void) {
  const char *place = getenv("TMPDIR");
  if (!place || !*place) place = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  snprintf(scratch_directory, sizeof scratch_directory, "%s/resnet18-test-XXXXXX", place);
  if (mkdtemp(scratch_directory)) return;
  fprintf(stderr, "%s: could not be made\n", scratch_directory);
  exit(1);
}

// A name in it; valid until four calls later.
static inline const char *scratch_path(const char *name) {
  static char paths[4][300];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%s/%s", scratch_directory, name);
  return path;
}

// Removes all that is in a directory, not the directory itself.
static inline void scratch_empty(const char *path) {
  char name[4096];
  DIR *directory = opendir(path);
  for (struct dirent *d; directory && (d = readdir(directory));) {
    if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
    snprintf(name, sizeof name, "%s/%s", path, d->d_name);
    if (remove(name) == 0) continue;
    scratch_empty(name); // a directory that is not empty
    remove(name);
  }
  if (directory) closedir(directory);
}

static inline void scratch_remove(void) {
  scratch_empty(scratch_directory);
  rmdir(scratch_directory);
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
