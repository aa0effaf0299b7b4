// run/files.h - the few things that the data set, the checkpoints and the logs all do with files.
#ifndef FILES_H
#define FILES_H

#include "error.h"
#include <stdint.h>

bool file_exists(const char *path); // if not, errno says why
// There, and neither a directory, a device or a pipe, nor a link to something else.
bool file_is_regular(const char *path);

// A whole file in memory from malloc, its size in *size; NULL with a line in e for a file that
// cannot be opened, whose size cannot be told, or that ends before its size is reached.
uint8_t *file_read(const char *path, size_t *size, error *e);

// Makes `from` appear under the name `to`, replacing what was there in one step, and has the new
// name reach the disk. A crash at any moment leaves either the old file or the new one.
bool file_replace(const char *from, const char *to, error *e);

// Has the name of a file, a new one say, reach the disk. fsync of the file alone does not.
bool file_sync_name(const char *path, error *e);

// Makes the directory and those above it that are missing, as mkdir -p does.
bool directory_make(const char *path, error *e);

// Moves files out of a new run's way: those of `paths` that exist become path.K, with the smallest
// K that is free for all of them. *number is K, or 0 where there was nothing to move.
bool files_set_aside(const char *const *paths, int count, int *number, error *e);

// FNV-1a (Fowler, Noll, Vo), 64 bits, continued from the fingerprint of the bytes before.
#define FINGERPRINT_OF_NOTHING 0xCBF29CE484222325u
uint64_t fingerprint(uint64_t before, const void *bytes, size_t count);

#endif
