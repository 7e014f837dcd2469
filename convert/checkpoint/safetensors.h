/* SPDX-License-Identifier: MIT
 *
 * safetensors files: a strict reader over a read-only map (no gap, no overlap, no overflow,
 * no duplicate key, nothing after the last byte), and a deterministic writer. */
#ifndef WKVQ_SAFETENSORS_H
#define WKVQ_SAFETENSORS_H

#include "kernels/base/file.h"
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

/* Open and validate everything but the values. Errors: ERR_NOT_FOUND, ERR_FORMAT naming
 * file, tensor and byte offset. */
enum err st_open(struct st_file **out, const char *path);
/* The same from a copy in memory (file_map_load). ERR_MEMORY too. */
enum err st_load(struct st_file **out, const char *path);
void st_close(struct st_file **f);
const char *st_path(const struct st_file *f);
int64_t st_count(const struct st_file *f);
const struct st_tensor *st_at(const struct st_file *f, int64_t i); /* in file order */
const struct st_tensor *st_find(const struct st_file *f, const char *name); /* NULL: none */
uint64_t st_bytes(const struct st_file *f);
/* Tell the system that the pages of tensor t are not needed for now. */
void st_release(const struct st_file *f, const struct st_tensor *t);
/* ... that they will be: it may read them meanwhile. */
void st_prefetch(const struct st_file *f, const struct st_tensor *t);

/* Writing. All tensors are announced first (the header comes first in the file), then their
 * bytes are given in the same order. Order in the file is the order of announcement. */
struct st_writer;
struct st_entry {
    const char *name;
    enum dtype dtype;
    int n_dims;
    int64_t dim[TENSOR_MAX_DIMS];
};
/* metadata: n_meta pairs key, value; {"format":"pt"} is always written. */
enum err st_writer_open(struct st_writer **out, const char *path, const struct st_entry *e,
                        int64_t n, const char *const *metadata, int n_meta);
/* Bytes of the next announced tensor, in any number of pieces; crossing a tensor's end is
 * ERR_SHAPE. */
enum err st_write(struct st_writer *w, const void *data, size_t bytes);
/* CRC-32 of tensor i's bytes; valid once it is complete. */
uint32_t st_writer_crc(const struct st_writer *w, int64_t i);
/* Of the whole file so far, header included; complete before st_writer_commit. */
uint64_t st_writer_file_bytes(const struct st_writer *w);
uint32_t st_writer_file_crc(const struct st_writer *w);
enum err st_writer_commit(struct st_writer **w); /* released whatever the result */
void st_writer_abort(struct st_writer **w);

/* Whole small files of host tensors. */
enum err st_save(const char *path, const struct named_tensor *t, int64_t n,
                 const char *const *metadata, int n_meta);

#endif
