// run/files.h - the few things that the data set, the checkpoints and the logs all do with files.
#ifndef FILES_H
#define FILES_H

#include "error.h"
#include <stdint.h>

enum { MOST_ASIDE = 100000 }; // names tried for a file that is moved aside

// False only where nothing is there for certain. What a failing disk does not let us look at counts as
// there: so it is not overwritten, and the next call that needs it says what is wrong.
bool file_exists(const char *path);
// There, and neither a directory, a device or a pipe, nor a link to something else.
bool file_is_regular(const char *path);

// A whole file in memory from malloc, its size in *size; NULL with a line in e for what cannot be
// opened, is no regular file (a pipe could keep its reader waiting for ever), ends before its size is
// reached, or does not fit into memory.
uint8_t *file_read(const char *path, size_t *size, error *e);

// The fingerprint of a file's bytes, and how many there are, read in pieces. False where file_read
// would fail, but for memory, of which it needs none.
bool file_fingerprint(const char *path, uint64_t *result, size_t *size, error *e);

// Writes all `count` bytes, however many calls that takes; false with errno set.
bool file_write(int handle, const void *bytes, size_t count);

// Makes `from` appear under the name `to`, replacing what was there in one step, and has the new
// name reach the disk. A crash at any moment leaves either the old file or the new one.
bool file_replace(const char *from, const char *to, error *e);

// Has the name of a file, a new one say, reach the disk. fsync of the file alone does not.
bool file_sync_name(const char *path, error *e);

// Makes the directory and those above it that are missing, as mkdir -p does, and has their names reach the
// disk.
bool directory_make(const char *path, error *e);

// Makes the directory this process's own until it ends, however it ends: locks DIR/.lock, which stays
// there and names its last owner, and makes sure that files can be written beside it. False, with a
// line in e, where another process holds the lock (the line names that one and its machine), or where
// nothing can be written.
//
// The lock is fcntl's. The kernel lets go of it with the process, so a file left by a dead one locks
// nobody out. NFS hands it to the server: it holds between machines too, and after a machine's crash
// until the server gives up waiting for it (90 s in NFS 4). On a file system without locks a line on
// standard output says so, and the directory is used all the same.
bool directory_claim(const char *path, error *e);

// The paths of files in a directory, the last name of the alphabet first.
typedef struct {
  char **paths;
  int count;
} file_list;

// Those whose names `wanted` takes; none where there is no such directory. To be freed with
// files_list_free, also when it fails: false, with a line in e, where the directory cannot be read.
bool files_list(const char *directory, bool wanted(const char *name), file_list *list, error *e);
void files_list_free(file_list *list);

// Moves files out of a new run's way: those of `paths` that exist become path.K, with the smallest
// K that is free for all of them. *number is K, or 0 where there was nothing to move. Where one cannot
// be moved, those before it go back to their names: false, with a line in e.
bool files_set_aside(const char *const *paths, int count, int *number, error *e);

// FNV-1a (Fowler, Noll, Vo), 64 bits, continued from the fingerprint of the bytes before.
#define FINGERPRINT_OF_NOTHING 0xCBF29CE484222325u
uint64_t fingerprint(uint64_t before, const void *bytes, size_t count);

#endif
