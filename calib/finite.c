/* SPDX-License-Identifier: MIT */
#include "calib/finite.h"

#include "kernels/tensor/host_finite.h"

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
        TRY(check_tensor(w, &x, src->lin[l].name, arch_lin_module(a, l), block));
        TRY(check_tensor(w, &b, src->bias[l].name, lin_module[l], block));
    }
    TRY(check_tensor(w, &w->router, src->router.name, "router", block));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        TRY(check_tensor(w, &w->norm[g], src->norm[g].name,
                         arch_norm_module(a, (enum norm_gain)g), block));
    return OK;
}

static enum err check_end(const struct host_mat *m)
{
    return host_check_finite(m->name, m->data, m->dtype, m->rows * m->cols, m->cols);
}

enum err finite_ends(const struct model_source *src)
{
    struct host_mat embed, norm, head;
    TRY(src->ends(src->ctx, &embed, &norm, &head));
    TRY(check_end(&embed));
    TRY(check_end(&norm));
    return head.data == embed.data ? OK : check_end(&head);
}
