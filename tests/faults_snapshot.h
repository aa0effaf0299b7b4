// tests/faults_snapshot.h - what is in a run's directory, by the fingerprints of its files; for faults.c.
#ifndef FAULTS_SNAPSHOT_H
#define FAULTS_SNAPSHOT_H

#include "../run/files.h"
#include "scratch.h"

#include <sys/stat.h>

typedef struct {
  char name[100]; // "c/..." for one in the checkpoint directory
  uint64_t print; // of its bytes
} one_file;

typedef struct {
  one_file files[64];
  int count;
} snapshot;

static inline void add_files(snapshot *s, const char *directory, const char *prefix) {
  char path[800];
  struct stat status;
  error e;
  DIR *list = opendir(directory);
  for (struct dirent *d; list && (d = readdir(list));) {
    if (d->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "%s/%s", directory, d->d_name);
    if (lstat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
      add_files(s, path, "c/");
      continue;
    }
    if (s->count == 64) continue;
    size_t size = 0;
    uint8_t *bytes = file_read(path, &size, &e);
    one_file *f = &s->files[s->count++];
    snprintf(f->name, sizeof f->name, "%s%.90s", prefix, d->d_name);
    f->print = fingerprint(FINGERPRINT_OF_NOTHING, bytes, size);
    free(bytes);
  }
  if (list) closedir(list);
}

static inline snapshot look_at(const char *directory) {
  snapshot s = {.count = 0};
  add_files(&s, directory, "");
  return s;
}

// The fingerprint of a file's bytes; 0: there is no such file.
static inline uint64_t print_of(const snapshot *s, const char *name) {
  for (int i = 0; i < s->count; i++)
    if (!strcmp(s->files[i].name, name)) return s->files[i].print;
  return 0;
}

static inline bool holds(const snapshot *s, uint64_t print) {
  for (int i = 0; i < s->count; i++)
    if (s->files[i].print == print) return true;
  return false;
}

static inline bool same(const snapshot *a, const snapshot *b, const char *name) {
  return print_of(a, name) == print_of(b, name);
}

// What the next run would find, as one number; a lock's file may hold the number of a process.
static inline uint64_t state_of(const snapshot *s) {
  uint64_t sum = 0;
  for (int i = 0; i < s->count; i++) {
    const one_file *f = &s->files[i];
    if (!strcmp(f->name, "out") || !strcmp(f->name, "err") || strstr(f->name, "lock")) continue;
    sum += fingerprint(f->print, f->name, strlen(f->name)); // in whatever order
  }
  return sum;
}

static inline void copy_tree(const char *from, const char *to) {
  char a[800], b[800];
  struct stat status;
  size_t size;
  error e;
  mkdir(to, 0777);
  DIR *list = opendir(from);
  for (struct dirent *d; list && (d = readdir(list));) {
    if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, "..")) continue;
    snprintf(a, sizeof a, "%s/%s", from, d->d_name);
    snprintf(b, sizeof b, "%s/%s", to, d->d_name);
    if (stat(a, &status) == 0 && S_ISDIR(status.st_mode)) {
      copy_tree(a, b);
      continue;
    }
    uint8_t *bytes = file_read(a, &size, &e);
    if (bytes) scratch_write(b, bytes, size);
    free(bytes);
  }
  if (list) closedir(list);
}

#endif
