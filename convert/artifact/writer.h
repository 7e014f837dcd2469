/* SPDX-License-Identifier: MIT
 *
 * Writing an artifact: a directory that looks like a Hugging Face model. docs/artifact.md
 * describes it bit by bit. One deterministic pass over the checkpoint; files appear under
 * their names only when whole, manifest.json last. */
#ifndef WKVQ_ARTIFACT_WRITER_H
#define WKVQ_ARTIFACT_WRITER_H

#include "convert/checkpoint/hf.h"
#include "kernels/tensor/qtensor.h"

struct artifact_settings {
    struct weight_spec weights;
    struct kv_spec kv;
    const char *config_json;     /* the run's config as a JSON object, into the manifest */
    const char *provenance_json; /* JSON object: data CRC, windows, state, versions */
    uint64_t shard_bytes;        /* 0: 5e9 */
    bool force;                  /* overwrite an artifact that is there */
    int threads;
};

/* Quantized blocks come one after another; NULL block: round to nearest, s = 1, delta = 0,
 * computed here. q is borrowed until the next call. */
struct quant_source {
    void *ctx;
    enum err (*block)(void *ctx, int64_t i, const struct block_quant **q);
};

/* Scales and zeros of one layer's block by round to nearest (gamma = beta = 1), as w says
 * of that layer. */
enum err quant_block_rtn(struct block_quant *out, const struct arch *a,
                         const struct block_src *src, int64_t layer,
                         const struct weight_spec *w, const struct kv_spec *kv);

/* Bytes of all files of the artifact that artifact_write would make, exactly; nothing is
 * written. Errors: those of the settings and of model_dir's files. */
enum err artifact_bytes(uint64_t *out, struct hf_model *m, const char *model_dir,
                        const struct artifact_settings *s);

/* Errors: ERR_USAGE when out_dir exists with something else in it, or an artifact without
 * force. progress may be NULL. */
enum err artifact_write(const char *out_dir, struct hf_model *m, const char *model_dir,
                        const struct quant_source *q, const struct artifact_settings *s,
                        void (*progress)(void *ctx, double share), void *progress_ctx);

#endif
