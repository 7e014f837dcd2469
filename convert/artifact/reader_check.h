/* SPDX-License-Identifier: MIT
 *
 * The fields of an open artifact, and the checks of its tensors and files. Only reader*.c
 * and artifact_random.c include this header. */
#ifndef WKVQ_READER_CHECK_H
#define WKVQ_READER_CHECK_H

#include "convert/artifact/reader.h"
#include "convert/format/manifest.h"

struct artifact {
    char *dir;
    struct arch arch;
    struct weight_spec weights; /* with their mixes, owned */
    struct kv_spec kv;
    struct manifest *manifest;
    /* [n_files] in the manifest's order; NULL if not a tensor file */
    struct st_file **file;
    struct packed_block *block;       /* [n_layers] */
    float *channels;                  /* [n_layers][4][C] */
    struct packed_linear embed, head; /* views of one matrix when tied */
    struct host_mat final_norm;
    struct model_source source;
    float **unpacked; /* [n_layers] F32 weights, NULL until artifact_source needs them */
    float *unpacked_end[2]; /* of embedding and head, likewise */
    void *memory;           /* tensors of artifact_random; else NULL */
};

/* Finds and checks every tensor that the architecture needs; fills block, channels, embed,
 * final_norm and head. Errors: ERR_NOT_FOUND, ERR_FORMAT. */
enum err reader_bind(struct artifact *a);
/* Checks that config.json matches the manifest; before its content is used. */
enum err reader_check_config(const struct artifact *a);
/* Compares file sizes and tensors with the manifest, and CRCs if check_crc. Warns of files of a
 * tokenizer that the manifest lacks. */
enum err reader_check_manifest(const struct artifact *a, bool check_crc);
/* Checks that no value of an F32, F16 or BF16 tensor is NaN or infinite. */
enum err reader_check_finite(const struct artifact *a);
/* Returns the tensor, or NULL; *file is the name of its file. */
const struct st_tensor *reader_find(const struct artifact *a, const char *name,
                                    const char **file);

#endif
