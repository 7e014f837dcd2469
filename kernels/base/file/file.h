/* SPDX-License-Identifier: MIT
 *
 * Files: read-only maps, and writers that give a file its name only when it is complete. A writer
 * first removes what dead writers of NAME left, writes NAME.tmp.TAG (kernels/base/owner.h), fsyncs
 * it, renames it to NAME and fsyncs the directory. Thread-safe for different files. */
#ifndef WKVQ_FILE_H
#define WKVQ_FILE_H

#include "kernels/base/error.h"
#include "kernels/base/file/owner.h"

#include <stdbool.h>
#include <stdint.h>

struct file_map {
    const uint8_t *data; /* NULL when size is 0 */
    size_t size;
    bool loaded; /* a copy in memory, not the file's pages */
};

/* Maps path read-only. Errors: ERR_NOT_FOUND (missing, or a directory), ERR_USAGE (no
 * permission to read it), ERR_IO. Close it with file_map_close(), which accepts a zeroed
 * struct. */
enum err file_map_open(struct file_map *out, const char *path);
/* The same, but copies the file into memory, in huge pages if the system has them. Repeated
 * reads are faster, and later changes of the file have no effect. Also ERR_MEMORY. */
enum err file_map_load(struct file_map *out, const char *path);
void file_map_close(struct file_map *m);

struct file_writer; /* opaque; one thread */

/* Starts writing path, with mode 0644. A link is followed, and the file that it names is
 * replaced. A pipe or a device is written directly, because a rename would replace it. The
 * temporary file is always a new one, so no file is truncated. Errors: ERR_USAGE for a
 * directory, a dangling link, or a place that this user may not write; ERR_IO.
 * path NULL: bytes are counted and nothing is written; such a writer ends with
 * file_writer_abort(). */
enum err file_writer_open(struct file_writer **out, const char *path);
/* Returns what file_writer_open() would return, by trying it without leaving a file. For
 * an output that is written only after hours of work. */
enum err file_writer_probe(const char *path);
/* Appends n bytes; buffered. ERR_IO. */
enum err file_write(struct file_writer *w, const void *data, size_t n);
enum err file_printf(struct file_writer *w, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* The number of bytes written so far, and their CRC-32. */
uint64_t file_writer_bytes(const struct file_writer *w);
uint32_t file_writer_crc(const struct file_writer *w);
/* Flushes, fsyncs and renames the file into place. *w is freed and set to NULL, on failure
 * too; the file then does not exist under its name. */
enum err file_writer_commit(struct file_writer **w);
/* Removes the temporary file, frees *w and sets it to NULL. *w may be NULL. */
void file_writer_abort(struct file_writer **w);

/* Read and write a whole small file. file_read_all() appends a NUL that *size does not
 * count; the caller frees *out with mem_free(). ERR_FORMAT if the file is larger than
 * limit. */
enum err file_read_all(char **out, size_t *size, const char *path, size_t limit);
enum err file_write_all(const char *path, const void *data, size_t n);

bool file_exists(const char *path);
bool file_is_dir(const char *path);
bool file_is_regular(const char *path);
/* Size in bytes; -1 if the file is missing. */
int64_t file_size(const char *path);
/* ERR_USAGE where errno says that this user cannot write at the place that the command line
 * names, else ERR_IO. */
enum err file_place_error(void);
/* A writer of the directory NAME fills NAME.tmp.TAG/data and renames that to NAME at the end. A
 * directory that must stay, such as a mount point, has NAME/.wkvq.tmp.TAG/data inside, whose
 * files move one by one. file_final_name() knows both. */
#define FILE_STAGE_DATA "data"
#define FILE_STAGE_INSIDE ".wkvq"
/* Writes the name that a temporary path of a writer gets at the end, which messages give; path
 * itself if it is not temporary. out has strlen(path) + 1 bytes. */
void file_final_name(char *out, const char *path);
/* Records that path, which may be temporary, cannot be written: its final name, the cause `why`, an
 * errno, and what to do, with the disk's free space or the limit on file sizes. Returns the code
 * of file_place_error(). */
enum err file_write_error(const char *path, int why);
/* Makes a directory and its parents; existing ones are kept. ERR_IO. */
enum err file_make_dir(const char *path);
/* ERR_NOT_FOUND, with the target's name, if path is a symbolic link without a target.
 * ERR_USAGE if it lies in a directory that this user may not search. */
enum err file_check_link(const char *path);
/* Makes the directory path. If something of that name exists, *taken is true. Errors:
 * ERR_USAGE if this user may not make it, ERR_IO. */
enum err file_make_new_dir(bool *taken, const char *path);
/* Removes from a directory the regular files whose names `known` accepts, then the directory
 * itself if it is empty and the system allows it. Everything else is kept: other names,
 * links, directories. *left (may be NULL) is the first name that is kept, or "", in a fresh
 * string. A missing directory is no error. ERR_IO. */
typedef bool file_known_fn(const void *ctx, const char *name);
enum err file_remove_known(char **left, const char *dir, file_known_fn *known,
                           const void *ctx);
/* True if entry is "NAME.tmp.TAG" or "NAME.tmp.TAG.N", as a writer of NAME names its
 * temporary file; tag receives TAG. */
bool file_is_temp(char tag[OWNER_TAG_MAX], const char *entry, const char *name);
/* Removes the temporary files of path, which is not a link, whose writers have ended without
 * removing them: regular files beside it, called as file_is_temp() says, with the tag of a
 * dead process. What cannot be listed or removed stays, without an error. ERR_MEMORY. */
enum err file_remove_dead_temps(const char *path);
/* True for "." and "..", which every directory lists. */
bool file_is_dot(const char *name);
/* Makes the renames in directory path durable, as far as its file system can. */
void file_sync_dir(const char *path);
/* True for a regular file that is not a link. */
bool file_is_plain(const char *path);
/* True if dir, a descriptor, no longer holds name: another process has removed it since the
 * directory was read. Such an entry belongs to nobody, and no check may refuse it. */
bool file_vanished(int dir, const char *name);
/* Checks that a file could be written into directory path, which may be missing, by trying
 * it in the nearest existing directory without leaving a file. Errors: ERR_USAGE,
 * ERR_IO. */
enum err file_probe_dir(const char *path);
/* ERR_USAGE unless this user may make files in the directory dir; ERR_IO. */
enum err file_check_writable(const char *dir);
/* The directory above path, and the nearest existing one at or above path, each in a fresh
 * string. ERR_USAGE if a file is in a directory's place. */
enum err file_parent(char **out, const char *path);
enum err file_existing_dir(char **out, const char *path);
/* ERR_IO unless the disk of dir, which need not exist yet, has need bytes free; what names
 * them in the message. A file system that does not say how large it is passes. */
enum err file_check_space(const char *dir, uint64_t need, const char *what);
/* *out = "DIR/NAME"; the caller frees it with mem_free(). */
enum err file_join(char **out, const char *dir, const char *name);
/* The part after the last '/'. */
const char *file_base_name(const char *path);

/* True if the n bytes, a whole file, are a git-lfs pointer: what a clone without git-lfs
 * has in the file's place. A message that refuses such a file ends with FILE_LFS_ADVICE. */
bool file_is_lfs_pointer(const void *bytes, size_t n);
#define FILE_LFS_ADVICE                                                                    \
    "this is a git-lfs pointer, not the file itself: run \"git lfs pull\" in its repository"

/* Reads the whole file; *crc is its CRC-32 and *bytes its size. */
enum err file_crc32(uint32_t *crc, uint64_t *bytes, const char *path);

#endif
