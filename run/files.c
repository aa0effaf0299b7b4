// run/files.c - see files.h.
#define _POSIX_C_SOURCE 200809L
#include "files.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool file_exists(const char *path) {
  struct stat status;
  return stat(path, &status) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

bool file_is_regular(const char *path) {
  struct stat status;
  return lstat(path, &status) == 0 && S_ISREG(status.st_mode);
}

// Open for reading; -1 with a line in e for what is no regular file. O_NONBLOCK: a pipe that nobody
// writes to would keep open() waiting.
static int open_regular(const char *path, size_t *size, error *e) {
  struct stat status;
  const int handle = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (handle < 0 || fstat(handle, &status) != 0)
    fail(e, "%s: %s", path, strerror(errno));
  else if (!S_ISREG(status.st_mode))
    fail(e, "%s: not a file", path);
  else {
    *size = (size_t)status.st_size;
    return handle;
  }
  if (handle >= 0) close(handle);
  return -1;
}

// Reads until `count` bytes are there or the file ends; fewer, with errno set, after an error.
static size_t read_all(int handle, uint8_t *bytes, size_t count) {
  size_t done = 0;
  errno = 0;
  while (done < count) {
    const ssize_t more = read(handle, bytes + done, count - done);
    if (more < 0 && errno == EINTR) continue;
    if (more <= 0) break;
    done += (size_t)more;
  }
  return done;
}

static bool fail_short(const char *path, size_t done, size_t size, error *e) {
  if (errno) return fail(e, "%s: %s after %zu of %zu bytes", path, strerror(errno), done, size);
  return fail(e, "%s: short read: %zu of %zu bytes", path, done, size);
}

uint8_t *file_read(const char *path, size_t *size, error *e) {
  size_t wanted;
  const int handle = open_regular(path, &wanted, e);
  if (handle < 0) return NULL;
  uint8_t *bytes = allocate_or_fail(wanted, path, e);
  if (bytes && (*size = read_all(handle, bytes, wanted)) != wanted) {
    fail_short(path, *size, wanted, e);
    free(bytes);
    bytes = NULL;
  }
  close(handle);
  return bytes;
}

bool file_fingerprint(const char *path, uint64_t *result, size_t *size, error *e) {
  uint8_t piece[1 << 16];
  const int handle = open_regular(path, size, e);
  if (handle < 0) return false;
  bool ok = true;
  *result = FINGERPRINT_OF_NOTHING;
  for (size_t done = 0; ok && done < *size;) {
    const size_t left = *size - done, count = left < sizeof piece ? left : sizeof piece;
    const size_t got = read_all(handle, piece, count);
    *result = fingerprint(*result, piece, got);
    done += got;
    ok = got == count || fail_short(path, done, *size, e);
  }
  close(handle);
  return ok;
}

bool file_write(int handle, const void *bytes, size_t count) {
  for (size_t done = 0; done < count;) {
    const ssize_t more = write(handle, (const uint8_t *)bytes + done, count - done);
    if (more < 0 && errno == EINTR) continue;
    if (more == 0) errno = EIO;
    if (more <= 0) return false;
    done += (size_t)more;
  }
  return true;
}

bool file_sync_name(const char *path, error *e) {
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

bool file_replace(const char *from, const char *to, error *e) {
  if (rename(from, to) != 0) return fail(e, "%s: could not be replaced: %s", to, strerror(errno));
  return file_sync_name(to, e);
}

bool directory_make(const char *path, error *e) {
  char part[4096];
  if (strlen(path) >= sizeof part) return fail(e, "%s: the name is too long", path);
  for (size_t i = 1; i <= strlen(path); i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    snprintf(part, i + 1, "%s", path);
    if (mkdir(part, 0777) == 0) {
      if (!file_sync_name(part, e)) return false;
    } else if (errno != EEXIST) {
      return fail(e, "%s: could not be made: %s", part, strerror(errno));
    }
  }
  return true;
}

// Who holds the lock, as the file says: one line, without control characters.
static void read_holder(int handle, char *text, size_t room) {
  text[read_all(handle, (uint8_t *)text, room - 1)] = 0;
  text[strcspn(text, "\n")] = 0;
  for (char *c = text; *c; c++)
    if (iscntrl((unsigned char)*c)) *c = '?';
  if (!*text) snprintf(text, room, "another process");
}

static bool write_holder(int handle) {
  char host[256] = "", text[320];
  if (gethostname(host, sizeof host - 1) != 0) snprintf(host, sizeof host, "an unknown host");
  snprintf(text, sizeof text, "process %ld on %s\n", (long)getpid(), host);
  return ftruncate(handle, 0) == 0 && file_write(handle, text, strlen(text));
}

static bool lock(int handle, const char *directory, error *e) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET}; // its length 0: to the end
  char holder[320];
  int refused;
  while ((refused = fcntl(handle, F_SETLK, &whole)) != 0 && errno == EINTR) {}
  if (!refused) return true;
  if (errno == EACCES || errno == EAGAIN) {
    read_holder(handle, holder, sizeof holder);
    return fail(e, "%s: in use by %s; wait for it, or give another --checkpoint", directory,
                holder);
  }
  printf("%s: cannot be locked (%s): let no second run save there meanwhile\n", directory,
         strerror(errno));
  return true;
}

// Can a file be made, written and removed?
static bool probe(const char *directory) {
  char path[4200];
  snprintf(path, sizeof path, "%s/.probe", directory);
  const int handle = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0666);
  if (handle < 0) return false;
  const bool written = file_write(handle, "probe\n", 6);
  const int why = errno;
  const bool closed = close(handle) == 0, removed = remove(path) == 0;
  if (!written) errno = why;
  return written && closed && removed;
}

bool directory_claim(const char *path, error *e) {
  char name[4200];
  snprintf(name, sizeof name, "%s/.lock", path);
  const int handle = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (handle >= 0 && !lock(handle, path, e)) {
    close(handle);
    return false;
  }
  // The handle stays open: closing it would give the lock up.
  if (handle >= 0 && write_holder(handle) && probe(path)) return true;
  const int why = errno;
  if (handle >= 0) close(handle);
  return fail(e, "%s: a run cannot be saved there: %s; give another --checkpoint", path,
              strerror(why));
}

// Appends DIR/NAME.
static bool add_path(file_list *list, const char *directory, const char *name, error *e) {
  const size_t room = strlen(directory) + strlen(name) + 2;
  char **longer = realloc(list->paths, ((size_t)list->count + 1) * sizeof *longer);
  if (longer) list->paths = longer;
  char *path = longer ? allocate_or_fail(room, directory, e) : NULL;
  if (!longer) fail(e, "%s: out of memory", directory);
  if (!path) return false;
  snprintf(path, room, "%s/%s", directory, name);
  list->paths[list->count++] = path;
  return true;
}

static int last_name_first(const void *a, const void *b) {
  return strcmp(*(char *const *)b, *(char *const *)a);
}

bool files_list(const char *directory, bool wanted(const char *name), file_list *list, error *e) {
  *list = (file_list){0};
  DIR *open = opendir(directory);
  if (!open)
    return errno == ENOENT || errno == ENOTDIR || fail(e, "%s: %s", directory, strerror(errno));
  bool ok = true;
  const struct dirent *entry;
  for (errno = 0; ok && (entry = readdir(open)); errno = 0)
    if (wanted(entry->d_name)) ok = add_path(list, directory, entry->d_name, e);
  if (ok && errno) ok = fail(e, "%s: could not be read: %s", directory, strerror(errno));
  closedir(open);
  if (list->count) qsort(list->paths, (size_t)list->count, sizeof *list->paths, last_name_first);
  return ok;
}

void files_list_free(file_list *list) {
  for (int i = 0; i < list->count; i++) free(list->paths[i]);
  free(list->paths);
}

// Undoes the moves of files_set_aside, as far as that is possible.
static void put_back(const char *const *paths, int count, int number) {
  char aside[4200];
  for (int i = 0; i < count; i++) {
    snprintf(aside, sizeof aside, "%s.%d", paths[i], number);
    if (!file_exists(paths[i])) rename(aside, paths[i]);
  }
}

bool files_set_aside(const char *const *paths, int count, int *number, error *e) {
  char aside[4200];
  bool any = false;
  for (int i = 0; i < count; i++) any = any || file_exists(paths[i]);
  *number = 0;
  if (!any) return true;
  for (bool taken = true; taken;) {
    if (++*number > MOST_ASIDE) return fail(e, "%s: could not be moved aside", paths[0]);
    taken = false;
    for (int i = 0; i < count; i++) {
      snprintf(aside, sizeof aside, "%s.%d", paths[i], *number);
      taken = taken || file_exists(aside);
    }
  }
  for (int i = 0; i < count; i++) {
    snprintf(aside, sizeof aside, "%s.%d", paths[i], *number);
    if (!file_exists(paths[i]) || file_replace(paths[i], aside, e)) continue;
    put_back(paths, i + 1, *number); // all or none; file i may have moved, but not reached the disk
    return false;
  }
  return true;
}

uint64_t fingerprint(uint64_t before, const void *bytes, size_t count) {
  uint64_t hash = before;
  for (size_t i = 0; i < count; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3u;
  return hash;
}
