/* SPDX-License-Identifier: MIT
 *
 * Files: read-only maps, and writers that show a file under its name only when it is whole:
 * written beside it as NAME.tmp.TAG (kernels/base/owner.h), fsynced, renamed; the directory
 * is fsynced too. */
#ifndef WKVQ_FILE_H
#define WKVQ_FILE_H

#include "kernels/base/error.h"
#include "kernels/base/owner.h"

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

/* Start writing path, mode 0644. A link is followed, and the file that it names replaced. A
 * pipe or a device is written to as it is, because a rename would replace it. The temporary
 * file is a new one: no file is truncated. Errors: ERR_USAGE for a directory, a dangling
 * link, or a place that this user may not write; ERR_IO. */
enum err file_writer_open(struct file_writer **out, const char *path);
/* Would file_writer_open succeed? It is tried, and nothing stays. For an output that is
 * written after hours of work. */
enum err file_writer_probe(const char *path);
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
/* ERR_NOT_FOUND, with the target's name, if path is a symbolic link to nothing. */
enum err file_check_link(const char *path);
/* Make the directory path, which must not exist (*taken: something does). Errors: ERR_USAGE
 * when this user may not, ERR_IO. */
enum err file_make_new_dir(bool *taken, const char *path);
/* Remove from a directory the regular files whose names known accepts, then the directory
 * itself if that leaves it empty and the system allows it. Everything else stays: other
 * names, links, directories. *left (may be NULL): the first name that stays, "" if none, in
 * a fresh string. A missing directory is fine. Errors: ERR_IO. */
typedef bool file_known_fn(const void *ctx, const char *name);
enum err file_remove_known(char **left, const char *dir, file_known_fn *known,
                           const void *ctx);
/* The TAG of entry where it is "NAME.tmp.TAG" or "NAME.tmp.TAG.N", a name that a writer of
 * NAME gives to its temporary file; tag gets it. */
bool file_is_temp(char tag[OWNER_TAG_MAX], const char *entry, const char *name);
/* A regular file, and no link to one? */
bool file_is_plain(const char *path);
/* Could a file be written into directory path, which is made where it is missing? It is
 * tried in the nearest directory that exists, and nothing stays. Errors: ERR_USAGE, ERR_IO.
 */
enum err file_probe_dir(const char *path);
/* The directory above path, and the nearest one at or above path that exists, each in a
 * fresh string. */
enum err file_parent(char **out, const char *path);
enum err file_existing_dir(char **out, const char *path);
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
