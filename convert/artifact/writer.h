/* SPDX-License-Identifier: MIT
 *
 * Writes an artifact: a directory that looks like a Hugging Face model. docs/artifact.md
 * describes every bit. One deterministic pass over the checkpoint. Files appear under their
 * names only when complete, manifest.json last. */
#ifndef WKVQ_ARTIFACT_WRITER_H
#define WKVQ_ARTIFACT_WRITER_H

#include "convert/checkpoint/hf.h"
#include "kernels/tensor/qtensor.h"

struct artifact_settings {
    struct weight_spec weights;
    struct kv_spec kv;
    const char *config_json;     /* the configuration, a JSON object for the manifest */
    const char *provenance_json; /* JSON object: data CRC, windows, state, versions */
    uint64_t shard_bytes;        /* 0: 5e9 */
    bool force;                  /* overwrite an existing artifact */
    int threads;
};

/* Returns quantized blocks one after another. block NULL: the writer rounds to nearest,
 * with s = 1 and delta = 0. q is borrowed until the next call. */
struct quant_source {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, const struct block_quant **q);
};

/* Computes scales and zeros of one layer's block by round to nearest (gamma = beta = 1), in
 * the layer's formats of w. Those of WEIGHT_GIVEN are copied from src; ERR_MISMATCH if it
 * stores none. The caller frees *out with block_quant_free(). */
enum err quant_block_rtn(struct block_quant *out, const struct arch *a,
                         const struct block_src *src, int64_t layer,
                         const struct weight_spec *w, const struct kv_spec *kv);

/* Computes the exact size of all files that artifact_write() would write; nothing is
 * written. Errors: those of the settings and of model_dir's files. */
enum err artifact_bytes(uint64_t *out, struct hf_model *m, const char *model_dir,
                        const struct artifact_settings *s);

/* Writes the artifact. progress is told the share that is done, and its error ends the writing;
 * NULL: nobody is told. On error nothing is left. Errors: ERR_USAGE if out_dir has other
 * content, or an artifact without force; ERR_FORMAT for a non-finite weight, ERR_IO,
 * ERR_MEMORY. */
enum err artifact_write(const char *out_dir, struct hf_model *m, const char *model_dir,
                        const struct quant_source *q, const struct artifact_settings *s,
                        enum err (*progress)(void *ctx, double share), void *progress_ctx);

#endif
