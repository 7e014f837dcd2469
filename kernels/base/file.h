/* SPDX-License-Identifier: MIT
 *
 * Files: read-only maps, and writers that show a file under its name only when it is whole
 * (written beside as NAME.tmp.PID, fsynced, renamed; the directory is fsynced too). */
#ifndef WKVQ_FILE_H
#define WKVQ_FILE_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct file_map {
    const uint8_t *data; /* NULL when size is 0 */
    size_t size;
    bool loaded; /* memory of its own, not the file's pages */
};

/* Map path read-only. Errors: ERR_NOT_FOUND (missing, or a directory), ERR_USAGE (not
 * ours to read), ERR_IO. Close with file_map_close, which accepts a zeroed struct. */
enum err file_map_open(struct file_map *out, const char *path);
/* The same from a copy in memory of its own, in huge pages where the system has them:
 * faster to read again and again, and untouched by what becomes of the file. ERR_MEMORY
 * too. */
enum err file_map_load(struct file_map *out, const char *path);
void file_map_close(struct file_map *m);

struct file_writer; /* opaque; one thread */

/* Start writing path. mode 0644. Errors: ERR_IO. */
enum err file_writer_open(struct file_writer **out, const char *path);
/* Buffered. */
enum err file_write(struct file_writer *w, const void *data, size_t n);
enum err file_printf(struct file_writer *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Bytes written so far, and their CRC-32. */
uint64_t file_writer_bytes(const struct file_writer *w);
uint32_t file_writer_crc(const struct file_writer *w);
/* Flush, fsync, rename into place. Whatever the result, *w is released and set to NULL. */
enum err file_writer_commit(struct file_writer **w);
/* Drop what was written and remove the temporary file. Accepts NULL. */
void file_writer_abort(struct file_writer **w);

/* Whole small files. file_read_all adds a NUL that *size does not count; release with
 * mem_free. ERR_FORMAT if larger than limit. */
enum err file_read_all(char **out, size_t *size, const char *path, size_t limit);
enum err file_write_all(const char *path, const void *data, size_t n);

bool file_exists(const char *path);
bool file_is_dir(const char *path);
bool file_is_regular(const char *path);
/* Size in bytes, -1 if missing. */
int64_t file_size(const char *path);
/* Make a directory (parents too); an existing one is fine. */
enum err file_make_dir(const char *path);
/* Remove a directory that holds only plain files. Missing is fine. */
enum err file_remove_dir(const char *path);
/* ERR_NOT_FOUND, with the target's name, if path is a symbolic link to nothing. */
enum err file_check_link(const char *path);
/* DIR/NAME in a fresh string. */
enum err file_join(char **out, const char *dir, const char *name);
/* The part after the last '/'. */
const char *file_base_name(const char *path);

/* Are the n bytes of a whole file the pointer that a clone without git-lfs has in the
 * file's place? A message that refuses it ends with the advice. */
bool file_is_lfs_pointer(const void *bytes, size_t n);
#define FILE_LFS_ADVICE                                                                    \
    "this is a git-lfs pointer, not the file itself: run \"git lfs pull\" in its repository"

/* Whole file through CRC-32. */
enum err file_crc32(uint32_t *crc, uint64_t *bytes, const char *path);

#endif
