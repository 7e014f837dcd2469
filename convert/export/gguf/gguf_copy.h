/* SPDX-License-Identifier: MIT
 *
 * The tokenizer of another GGUF file (--gguf-vocab), such as a vocabulary-only one of
 * llama.cpp's converter: all keys whose names begin with "tokenizer.", byte for byte. */
#ifndef WKVQ_GGUF_COPY_H
#define WKVQ_GGUF_COPY_H

#include "convert/export/export.h"
#include "convert/export/gguf/gguf_file.h"
#include "kernels/base/file/file.h"

#define GGUF_COPY_KEYS 64 /* files have about 15 */

/* A zeroed one is empty. */
struct gguf_copy {
    struct file_map map; /* of the file, owned */
    struct {
        size_t at, n; /* name, type and value in the map */
    } key[GGUF_COPY_KEYS];
    int n_keys;    /* 0: nothing is copied */
    bool compared; /* its tokens are those of the artifact's own tokenizer */
};

/* Reads the keys of the file at path, which is not trusted, for the artifact s. Errors:
 * ERR_NOT_FOUND, ERR_USAGE, ERR_IO, ERR_MEMORY; ERR_FORMAT with an offset; ERR_SUPPORT for
 * a file without a tokenizer, with another number of tokens than the embedding has rows, or
 * with other tokens than the artifact's tokenizer, as far as that can be read. Free in any
 * case. */
enum err gguf_copy_open(struct gguf_copy *out, const char *path,
                        const struct export_source *s);
/* Adds the keys. */
enum err gguf_copy_keys(struct gguf_writer *w, const struct gguf_copy *c);
void gguf_copy_free(struct gguf_copy *c); /* accepts a zeroed one */

#endif
