/* SPDX-License-Identifier: MIT
 *
 * Plans the tensors of an artifact. */
#ifndef WKVQ_ARTIFACT_PLAN_H
#define WKVQ_ARTIFACT_PLAN_H

#include "convert/artifact/writer.h"
#include "convert/output/out_plan.h"

enum out_kind {
    OUT_CARRY, /* copied from the checkpoint */
    OUT_GAIN,  /* of a norm, F32, refined */
    OUT_QWEIGHT,
    OUT_SCALES,
    OUT_ZEROS,
    OUT_K_SCALE,
    OUT_K_SHIFT,
    OUT_V_SCALE,
    OUT_V_SHIFT
};

/* The packed tensors of embedding and head have these in place of a projection. */
enum { OUT_EMBED = N_LIN, OUT_HEAD };

/* What a tensor of the plan holds. */
struct out_content {
    enum out_kind kind;
    int64_t layer;               /* -1: before the layers, n_layers: after them */
    int lin;                     /* projection or end, for its three packed tensors */
    enum norm_gain gain;         /* OUT_GAIN only */
    const struct st_tensor *src; /* borrowed; OUT_CARRY and OUT_GAIN only */
};

struct artifact_plan {
    struct out_plan out;         /* layer by layer, wide types first, then by name */
    struct out_content *content; /* [out.n], owned */
};

/* Plans the artifact of model m under settings s. Release with artifact_plan_free(). Errors:
 * ERR_MEMORY, ERR_FORMAT. */
enum err artifact_plan_make(struct artifact_plan *out, const struct hf_model *m,
                            const struct artifact_settings *s);
void artifact_plan_free(struct artifact_plan *p);

#endif
