/* SPDX-License-Identifier: MIT
 *
 * safetensors files: a strict reader over a read-only map (no gap, no overlap, no overflow,
 * no duplicate key, nothing after the last byte), and a deterministic writer. */
#ifndef WKVQ_SAFETENSORS_H
#define WKVQ_SAFETENSORS_H

#include "kernels/base/file/file.h"
#include "kernels/tensor/tensor.h"

struct st_tensor {
    char *name;
    char dtype_name[12]; /* as the file says; dtype is DT_OTHER for types we do not compute
                          */
    enum dtype dtype;
    int n_dims;
    int64_t dim[8];
    const uint8_t *data; /* borrowed from the map; any alignment */
    size_t bytes;
};

struct st_file; /* opaque, read-only, safe to share between threads */

/* Opens a file and validates everything but the values. Errors: ERR_NOT_FOUND, ERR_MEMORY,
 * ERR_FORMAT with file, tensor and byte offset. Close with st_close(). */
enum err st_open(struct st_file **out, const char *path);
/* The same, but reads from a copy in memory (file_map_load()). */
enum err st_load(struct st_file **out, const char *path);
void st_close(struct st_file **f);
const char *st_path(const struct st_file *f);
int64_t st_count(const struct st_file *f);
const struct st_tensor *st_at(const struct st_file *f, int64_t i); /* in file order */
/* NULL if missing */
const struct st_tensor *st_find(const struct st_file *f, const char *name);
uint64_t st_bytes(const struct st_file *f);
/* Tells the system that the pages of tensor t are not needed for now. */
void st_release(const struct st_file *f, const struct st_tensor *t);
/* Tells the system to prefetch the pages of tensor t. */
void st_prefetch(const struct st_file *f, const struct st_tensor *t);

/* Writing. First all tensors are announced, because the header precedes the data. Then
 * their bytes are written in the same order. */
struct st_writer;
struct st_entry {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
};
/* Starts a file. metadata: n_meta pairs of key and value; {"format":"pt"} is always
 * written. dtype, shape and name come from e [n]. */
enum err st_writer_open(struct st_writer **out, const char *path, const struct st_entry *e,
                        int64_t n, const char *const *metadata, int n_meta);
/* Writes the next bytes of the announced tensors, in any number of pieces. ERR_SHAPE if a
 * piece crosses a tensor's end. */
enum err st_write(struct st_writer *w, const void *data, size_t bytes);
/* Returns the CRC-32 of tensor i's bytes, once they are complete. */
uint32_t st_writer_crc(const struct st_writer *w, int64_t i);
/* Return the size and the CRC-32 of the file so far, including the header. */
uint64_t st_writer_file_bytes(const struct st_writer *w);
uint32_t st_writer_file_crc(const struct st_writer *w);
enum err st_writer_commit(struct st_writer **w); /* frees *w whatever the result */
void st_writer_abort(struct st_writer **w);

/* Writes a whole file of host tensors. */
enum err st_save(const char *path, const struct named_tensor *t, int64_t n,
                 const char *const *metadata, int n_meta);

#endif
