// run/files.c - see files.h.
#define _POSIX_C_SOURCE 200809L
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_exists(const char *path) {
  struct stat status;
  return stat(path, &status) == 0;
}

bool file_is_regular(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0 && S_ISREG(status.st_mode);
}

uint8_t *file_read(const char *path, size_t *size, error *e) {
  struct stat status;
  FILE *file = fopen(path, "rb");
  if (!file || fstat(fileno(file), &status) != 0) {
    fail(e, "%s: %s", path, strerror(errno));
    if (file) fclose(file);
    return NULL;
  }
  if (!S_ISREG(status.st_mode)) {
    fail(e, "%s: not a file", path);
    fclose(file);
    return NULL;
  }
  uint8_t *bytes = allocate((size_t)status.st_size);
  *size = fread(bytes, 1, (size_t)status.st_size, file);
  fclose(file);
  if (*size == (size_t)status.st_size) return bytes;
  fail(e, "%s: short read: %zu of %lld bytes", path, *size, (long long)status.st_size);
  free(bytes);
  return NULL;
}

// A directory's entries are data of their own: a rename is safe only once they are on the disk.
static bool sync_directory_of(const char *path, error *e) {
  char directory[4096];
  snprintf(directory, sizeof directory, "%s", path);
  char *slash = strrchr(directory, '/');
  if (slash) *(slash == directory ? slash + 1 : slash) = 0;
  const int handle = open(slash ? directory : ".", O_RDONLY);
  if (handle < 0) return fail(e, "%s: %s", directory, strerror(errno));
  // EINVAL: a file system that has no such thing as syncing a directory.
  const bool ok = fsync(handle) == 0 || errno == EINVAL;
  const int why = errno;
  close(handle);
  return ok || fail(e, "%s: could not be synced: %s", directory, strerror(why));
}

bool file_sync_name(const char *path, error *e) {
  return sync_directory_of(path, e);
}

bool file_replace(const char *from, const char *to, error *e) {
  if (rename(from, to) != 0) return fail(e, "%s: could not be replaced: %s", to, strerror(errno));
  return sync_directory_of(to, e);
}

bool directory_make(const char *path, error *e) {
  char part[4096];
  if (strlen(path) >= sizeof part) return fail(e, "%s: the name is too long", path);
  for (size_t i = 1; i <= strlen(path); i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    snprintf(part, i + 1, "%s", path);
    if (mkdir(part, 0777) != 0 && errno != EEXIST)
      return fail(e, "%s: could not be made: %s", part, strerror(errno));
  }
  return true;
}

bool files_set_aside(const char *const *paths, int count, int *number, error *e) {
  char aside[4200];
  bool any = false;
  for (int i = 0; i < count; i++) any = any || file_exists(paths[i]);
  *number = 0;
  if (!any) return true;
  for (bool taken = true; taken;) {
    ++*number;
    taken = false;
    for (int i = 0; i < count; i++) {
      snprintf(aside, sizeof aside, "%s.%d", paths[i], *number);
      taken = taken || file_exists(aside);
    }
  }
  for (int i = 0; i < count; i++) {
    snprintf(aside, sizeof aside, "%s.%d", paths[i], *number);
    if (file_exists(paths[i]) && !file_replace(paths[i], aside, e)) return false;
  }
  return true;
}

uint64_t fingerprint(uint64_t before, const void *bytes, size_t count) {
  uint64_t hash = before;
  for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
  return hash;
}
