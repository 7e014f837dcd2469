/* SPDX-License-Identifier: MIT
 *
 * The two ends of the residual stream: rows of the embedding to hidden states on the
 * device, and the final norm. */
#include "calib/model/model.h"

#include "kernels/base/mem.h"
#include "kernels/dev_refine.h"

#include <inttypes.h>

/* Rows converted to F32 and uploaded at a time. */
#define EMBED_ROWS 64

/* stage [EMBED_ROWS][D] is scratch. */
static enum err embed_rows(struct dev *d, const struct tensor *x,
                           const struct host_mat *embed, const int32_t *ids, float *stage)
{
    const int64_t T = x->dim[0], D = x->dim[1];
    const size_t row = (size_t)D * dtype_bytes(embed->dtype);
    for (int64_t t = 0; t < T; t += EMBED_ROWS) {
        const int64_t n = T - t < EMBED_ROWS ? T - t : EMBED_ROWS;
        for (int64_t i = 0; i < n; i++) {
            const int64_t id = ids[t + i];
            FAIL_IF(id < 0 || id >= embed->rows, ERR_FORMAT,
                    "token %" PRId64 " has id %" PRId64 ", the model has %" PRId64
                    " tokens: the tokenizer belongs to another model",
                    t + i, id, embed->rows);
            host_to_f32(stage + i * D, (const char *)embed->data + (size_t)id * row,
                        embed->dtype, D);
        }
        const struct tensor rows = tensor_rows(*x, t, n);
        TRY(dev_upload(d, rows.data, stage, (size_t)(n * D) * sizeof(float)));
    }
    return OK;
}

enum err model_embed(struct dev *d, const struct arch *a, const struct tensor *x,
                     const struct host_mat *embed, const int32_t *ids)
{
    TRY(host_mat_check(embed, "embedding", embed->rows, x->dim[1]));
    float *stage = NULL;
    TRY(mem_alloc(&stage, EMBED_ROWS * (size_t)x->dim[1], sizeof(*stage)));
    const enum err err = embed_rows(d, x, embed, ids, stage);
    mem_free(stage);
    return err ? err : block_scale(d, x, a->embed_scale);
}

/* The normalized states are scaled, because logits are V wide. */
enum err model_last(struct dev *d, const struct arch *a, const struct tensor *y,
                    const struct tensor *s, const struct tensor *x,
                    const struct tensor *gain)
{
    const struct rmsnorm_inputs in = {.x = x, .g = gain, .eps = a->norm_eps};
    TRY(dev_rmsnorm(d, y, s, NULL, &in));
    return block_scale(d, y, a->logit_scale);
}

enum err model_last_bwd(struct dev *d, const struct arch *a, const struct last_grads *g,
                        const struct tensor *s, const struct tensor *x,
                        const struct tensor *gain)
{
    TRY(block_scale(d, g->dy, a->logit_scale));
    if (g->dgain)
        TRY(dev_rmsnorm_gain_bwd(d, g->dgain, g->dy, x, s));
    return dev_rmsnorm_bwd(d, &(struct rmsnorm_grads){.dx = g->dx}, g->dy, x, s, gain);
}
