/* SPDX-License-Identifier: MIT */
#include "calib/finite.h"

#include <inttypes.h>

static enum err check_tensor(const struct block_weights *w, const struct tensor *x,
                             const char *name, const char *fallback, int64_t block)
{
    bool finite = true;
    if (!x->data)
        return OK;
    TRY(dev_all_finite(w->dev, &finite, x));
    FAIL_IF(!finite, ERR_FORMAT,
            "block %" PRId64 ": tensor %s holds a NaN, an infinity or a value beyond %s; "
            "the checkpoint is damaged",
            block, name ? name : fallback, dtype_name(x->dtype));
    return OK;
}

enum err finite_weights(const struct block_weights *w, const struct arch *a,
                        const struct block_src *src, int64_t block)
{
    for (int l = 0; l < N_LIN; l++) {
        const struct tensor x = block_weights_lin(w, a, l);
        const struct tensor b = block_weights_bias(w, a, l);
        TRY(check_tensor(w, &x, src->lin[l].name, lin_module[l], block));
        TRY(check_tensor(w, &b, src->bias[l].name, lin_module[l], block));
    }
    TRY(check_tensor(w, &w->norm1, src->norm1.name, "input_layernorm", block));
    TRY(check_tensor(w, &w->norm2, src->norm2.name, "post_attention_layernorm", block));
    TRY(check_tensor(w, &w->q_norm, src->q_norm.name, "q_norm", block));
    return check_tensor(w, &w->k_norm, src->k_norm.name, "k_norm", block);
}
