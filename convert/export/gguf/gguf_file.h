/* SPDX-License-Identifier: MIT
 *
 * Writes GGUF files, version 3: a header of typed keys and tensor descriptions, then the
 * tensors' bytes. Little-endian; data starts at, and every tensor occupies, a multiple of
 * 32 bytes. A writer belongs to one thread. */
#ifndef WKVQ_GGUF_FILE_H
#define WKVQ_GGUF_FILE_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

/* Types of tensors, with ggml's numbers. Q4_1, Q5_1 and Q8_0 are blocks of 32 columns
 * (convert/export/gguf/gguf_blocks.h). */
enum gguf_type {
    GGUF_F32 = 0,
    GGUF_F16 = 1,
    GGUF_Q4_1 = 3,
    GGUF_Q5_1 = 7,
    GGUF_Q8_0 = 8,
    GGUF_BF16 = 30
};
#define GGUF_BLOCK 32      /* columns */
#define GGUF_NAME_BYTES 64 /* of a tensor's name with its NUL: ggml's GGML_MAX_NAME */
#define GGUF_MAX_DIMS 4    /* ggml's GGML_MAX_DIMS */

/* "Q4_1" */
const char *gguf_type_name(enum gguf_type t);
/* Returns true for the types whose rows are blocks. */
bool gguf_type_is_blocks(enum gguf_type t);
/* Returns the bytes of a row of n columns; n is a multiple of GGUF_BLOCK for blocks. */
uint64_t gguf_row_bytes(enum gguf_type t, int64_t n);

struct gguf_writer; /* opaque */

/* Starts a file. Nothing is written until gguf_begin(). The caller ends it with
 * gguf_commit() or gguf_abort(). Errors: ERR_MEMORY. */
enum err gguf_open(struct gguf_writer **out);

/* Add a key with its value. The strings are copied; n is the length of s in bytes. Errors:
 * ERR_MEMORY; ERR_SHAPE after gguf_begin(), and while a list lacks items. */
enum err gguf_key_u32(struct gguf_writer *w, const char *key, uint32_t v);
enum err gguf_key_f32(struct gguf_writer *w, const char *key, float v);
enum err gguf_key_bool(struct gguf_writer *w, const char *key, bool v);
enum err gguf_key_string(struct gguf_writer *w, const char *key, const char *s, size_t n);
/* Adds a key as n bytes of another file: its name, type and value. */
enum err gguf_key_stored(struct gguf_writer *w, const void *bytes, size_t n);
/* Start a list of n items, which are then added one by one. */
enum err gguf_list_i32(struct gguf_writer *w, const char *key, uint64_t n);
enum err gguf_list_f32(struct gguf_writer *w, const char *key, uint64_t n);
enum err gguf_list_string(struct gguf_writer *w, const char *key, uint64_t n);
enum err gguf_item_i32(struct gguf_writer *w, int32_t v);
enum err gguf_item_f32(struct gguf_writer *w, float v);
enum err gguf_item_string(struct gguf_writer *w, const char *s, size_t n);

/* Announces a tensor of n_dims 1 to GGUF_MAX_DIMS: dim [columns], [rows, columns], or
 * [matrices, rows, columns]. Errors as for keys; also ERR_SHAPE for a name or dimensions that
 * ggml's readers refuse. */
enum err gguf_tensor(struct gguf_writer *w, const char *name, enum gguf_type t, int n_dims,
                     const int64_t *dim);
/* Returns the size of the complete file, for what has been added so far. */
uint64_t gguf_bytes(const struct gguf_writer *w);

/* Creates the file and writes its header. Then gguf_write() takes the bytes of the tensors
 * in the order of their announcement, in any number of pieces; none crosses a tensor's end.
 * Errors: those of file_writer_open(); ERR_IO; ERR_SHAPE for a mistake of the caller. */
enum err gguf_begin(struct gguf_writer *w, const char *path);
enum err gguf_write(struct gguf_writer *w, const void *data, size_t bytes);
/* Gives the file its name. Frees *w whatever the result. ERR_SHAPE if bytes are missing. */
enum err gguf_commit(struct gguf_writer **w);
void gguf_abort(struct gguf_writer **w); /* *w may be NULL */

#endif
