/* SPDX-License-Identifier: MIT */
#include "tools/state/state_block.h"

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MAX_TENSORS (3 * N_LIN + 4 + N_GAINS)

static const char *const gain_name[N_GAINS] = {[GAIN_ATTENTION] = "attention_norm",
                                               [GAIN_MLP] = "mlp_norm",
                                               [GAIN_Q] = "q_norm",
                                               [GAIN_K] = "k_norm",
                                               [GAIN_ATTENTION_OUT] = "attention_out_norm",
                                               [GAIN_MLP_OUT] = "mlp_out_norm",
                                               [GAIN_FINAL] = "final_norm"};

struct tensor_list {
    struct named_tensor t[MAX_TENSORS];
    int n;
};

static void add(struct tensor_list *l, const char *name, const char *suffix,
                struct tensor t)
{
    struct named_tensor *slot = &l->t[l->n++];
    snprintf(slot->name, sizeof(slot->name), "%s%s", name, suffix);
    slot->t = t;
}

static void list_block(struct tensor_list *l, const struct block_quant *q,
                       const struct arch *a, int64_t layer)
{
    for (int i = 0; i < N_LIN; i++) {
        const struct qlinear *lin = &q->lin[i];
        if (!lin->scales)
            continue;
        add(l, lin_name[i], ".scales",
            tensor_2d(lin->scales, DT_F16, lin->out, lin->groups));
        add(l, lin_name[i], ".zeros", tensor_2d(lin->zeros, DT_U8, lin->out, lin->groups));
        if (lin->codes)
            add(l, lin_name[i], ".codes", tensor_2d(lin->codes, DT_U8, lin->out, lin->in));
    }
    add(l, "k_scale", "", tensor_1d(q->k_scale, DT_F32, q->n_channels));
    add(l, "k_shift", "", tensor_1d(q->k_shift, DT_F32, q->n_channels));
    add(l, "v_scale", "", tensor_1d(q->v_scale, DT_F32, q->n_channels));
    add(l, "v_shift", "", tensor_1d(q->v_shift, DT_F32, q->n_channels));
    for (int g = 0; g < N_GAINS; g++)
        if (q->gain[g])
            add(l, gain_name[g], "",
                tensor_1d(q->gain[g], DT_F32, arch_gain(a, layer, (enum norm_gain)g)));
}

uint64_t state_block_bytes(const struct arch *a, int64_t layer, const struct weight_spec *w)
{
    uint64_t n = 4 * sizeof(float) * (uint64_t)(a->n_kv * a->head_dim);
    for (int i = 0; i < N_LIN; i++) {
        const struct lin_format f = weight_format(w, layer, i);
        const int64_t out = arch_out(a, i), in = arch_in(a, i);
        if (f.bits >= 16)
            continue;
        n += (sizeof(uint16_t) + 1) * (uint64_t)(out * weight_groups(in, f.group_size));
        if (weight_chooses_codes(w))
            n += (uint64_t)(out * in);
    }
    return w->refined ? n + sizeof(float) * (uint64_t)arch_gains(a, layer) : n;
}

/* Statistics as metadata, for people who inspect the file with another program. */
enum err state_block_save(const char *path, const struct block_quant *q,
                          const struct arch *a, int64_t layer,
                          const struct calib_block_stats *stats)
{
    char block[24], start[32], best[32], epoch[24];
    struct tensor_list l = {.n = 0};
    snprintf(block, sizeof(block), "%" PRId64, layer);
    list_block(&l, q, a, layer);
    if (stats) {
        snprintf(start, sizeof(start), "%.17g", stats->start_loss);
        snprintf(best, sizeof(best), "%.17g", stats->best_loss);
        snprintf(epoch, sizeof(epoch), "%" PRId64, stats->best_epoch);
    }
    const char *const metadata[] = {"block",     block, "start_loss", start,
                                    "best_loss", best,  "best_epoch", epoch};
    return st_save(path, l.t, l.n, metadata, stats ? 4 : 1);
}

/* Copies a tensor out of f after checking its type and shape. cols 0: one dimension. */
static enum err fetch(void *dst, const struct st_file *f, const char *name,
                      enum dtype dtype, int64_t rows, int64_t cols)
{
    const struct st_tensor *t = st_find(f, name);
    const int n_dims = cols ? 2 : 1;
    FAIL_IF(!t, ERR_FORMAT, "%s: tensor %s is missing", st_path(f), name);
    FAIL_IF(t->dtype != dtype || t->n_dims != n_dims || t->dim[0] != rows ||
                (cols && t->dim[1] != cols),
            ERR_FORMAT,
            "%s: tensor %s: %s of [%" PRId64 ", %" PRId64 "], want %s of [%" PRId64
            ", %" PRId64 "]",
            st_path(f), name, t->dtype_name, t->n_dims > 0 ? t->dim[0] : 0,
            t->n_dims > 1 ? t->dim[1] : 0, dtype_name(dtype), rows, cols);
    memcpy(dst, t->data, t->bytes);
    return OK;
}

static enum err check_range(const uint8_t *x, int64_t n, const struct st_file *f,
                            const char *name, int bits)
{
    for (int64_t i = 0; i < n; i++)
        FAIL_IF(x[i] >> bits, ERR_FORMAT,
                "%s: tensor %s: value %d at index %" PRId64 " needs more than %d bits",
                st_path(f), name, x[i], i, bits);
    return OK;
}

static enum err fetch_linear(struct qlinear *q, const struct st_file *f,
                             const struct arch *a, int lin, struct lin_format format,
                             bool codes)
{
    char name[64];
    TRY(qlinear_alloc(q, arch_out(a, lin), arch_in(a, lin), format));
    snprintf(name, sizeof(name), "%s.scales", lin_name[lin]);
    TRY(fetch(q->scales, f, name, DT_F16, q->out, q->groups));
    snprintf(name, sizeof(name), "%s.zeros", lin_name[lin]);
    TRY(fetch(q->zeros, f, name, DT_U8, q->out, q->groups));
    TRY(check_range(q->zeros, q->out * q->groups, f, name, format.bits));
    if (!codes)
        return OK;
    TRY(qlinear_alloc_codes(q));
    snprintf(name, sizeof(name), "%s.codes", lin_name[lin]);
    TRY(fetch(q->codes, f, name, DT_U8, q->out, q->in));
    return check_range(q->codes, q->out * q->in, f, name, format.bits);
}

static enum err fetch_gains(struct block_quant *q, const struct st_file *f,
                            const struct arch *a, int64_t layer)
{
    for (int g = 0; g < N_GAINS; g++) {
        const int64_t n = arch_gain(a, layer, (enum norm_gain)g);
        if (!n)
            continue;
        TRY(mem_alloc(&q->gain[g], (size_t)n, sizeof(float)));
        TRY(fetch(q->gain[g], f, gain_name[g], DT_F32, n, 0));
    }
    return OK;
}

enum err state_block_load(struct block_quant *out, const char *path, const struct arch *a,
                          int64_t layer, const struct weight_spec *w,
                          const struct kv_spec *kv)
{
    enum err err = OK;
    struct st_file *f = NULL;
    struct block_quant q = {0};
    const int64_t channels = a->n_kv * a->head_dim;
    TRY(st_open(&f, path));
    TRY_OUT(block_quant_alloc(&q, channels));
    q.kv = *kv;
    for (int i = 0; i < N_LIN; i++) {
        const struct lin_format format = weight_format(w, layer, i);
        if (format.bits < 16)
            TRY_OUT(fetch_linear(&q.lin[i], f, a, i, format, weight_chooses_codes(w)));
    }
    TRY_OUT(fetch(q.k_scale, f, "k_scale", DT_F32, channels, 0));
    TRY_OUT(fetch(q.k_shift, f, "k_shift", DT_F32, channels, 0));
    TRY_OUT(fetch(q.v_scale, f, "v_scale", DT_F32, channels, 0));
    TRY_OUT(fetch(q.v_shift, f, "v_shift", DT_F32, channels, 0));
    if (w->refined)
        TRY_OUT(fetch_gains(&q, f, a, layer));
    *out = q;
    st_close(&f);
    return OK;
out:
    block_quant_free(&q);
    st_close(&f);
    return err;
}
