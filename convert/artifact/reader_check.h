/* SPDX-License-Identifier: MIT
 *
 * What reader.c needs to know about the tensors of an artifact; private to it. */
#ifndef WKVQ_READER_CHECK_H
#define WKVQ_READER_CHECK_H

#include "convert/artifact/manifest.h"
#include "convert/artifact/reader.h"

struct artifact {
    char *dir;
    struct arch arch;
    struct weight_spec weights; /* with their mixes, owned */
    struct kv_spec kv;
    struct manifest *manifest;
    struct st_file **file; /* [n_files], by manifest; NULL for what is no tensor file */
    struct packed_block *block; /* [n_layers] */
    float *channels;            /* [n_layers][4][C] */
    struct host_mat embed, final_norm, head;
    struct model_source source;
    float **unpacked; /* [n_layers], NULL until asked for */
    void *memory;     /* all tensors of artifact_random; else NULL */
};

/* Find and check every tensor that the architecture needs; fills block, channels and the
 * ends. Errors: ERR_NOT_FOUND, ERR_FORMAT. */
enum err reader_bind(struct artifact *a);
/* config.json is listed, and as the manifest says: checked before it is believed. */
enum err reader_check_config(const struct artifact *a);
/* Sizes of files, and tensors against the manifest; CRCs too when asked. */
enum err reader_check_manifest(const struct artifact *a, bool check_crc);
/* The tensor, NULL if none; *file gets its file's name. */
const struct st_tensor *reader_find(const struct artifact *a, const char *name,
                                    const char **file);

#endif
