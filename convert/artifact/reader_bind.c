/* SPDX-License-Identifier: MIT
 *
 * Binds tensors by name to packed blocks; checks every shape, type and value rule. */
#include "convert/artifact/reader_check.h"
#include "convert/format/bitpack.h"
#include "convert/format/tensor_names.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* The place of a tensor: its name, and the start of messages about it. */
struct place {
    const struct artifact *a;
    int64_t layer;             /* -1: outside the layers */
    const char *module, *tail; /* "self_attn.q_proj", ".qweight" */
};

static void name_of(char out[160], const struct place *p)
{
    if (p->layer >= 0)
        layer_tensor_name(out, 160, p->layer, p->module, p->tail);
    else
        snprintf(out, 160, "%s%s", p->module, p->tail);
}

const struct st_tensor *reader_find(const struct artifact *a, const char *name,
                                    const char **file)
{
    for (size_t k = 0; k < a->manifest->n_files; k++) {
        const struct st_tensor *t = a->file[k] ? st_find(a->file[k], name) : NULL;
        if (t) {
            *file = st_path(a->file[k]);
            return t;
        }
    }
    return NULL;
}

/* Finds a tensor [rows][cols], or [rows] if cols is 0. */
static enum err need(const struct st_tensor **out, const char **file, const struct place *p,
                     int64_t rows, int64_t cols)
{
    char name[160];
    name_of(name, p);
    const struct st_tensor *t = reader_find(p->a, name, file);
    FAIL_IF(!t, ERR_NOT_FOUND, "%s: tensor %s is missing", p->a->dir, name);
    const bool fits = cols ? t->n_dims == 2 && t->dim[0] == rows && t->dim[1] == cols
                           : t->n_dims == 1 && t->dim[0] == rows;
    FAIL_IF(!fits && cols, ERR_FORMAT,
            "%s: tensor %s has %d dimensions, [%" PRId64 "][%" PRId64 "], want [%" PRId64
            "][%" PRId64 "]",
            *file, name, t->n_dims, t->n_dims > 0 ? t->dim[0] : 0,
            t->n_dims > 1 ? t->dim[1] : 0, rows, cols);
    FAIL_IF(!fits, ERR_FORMAT,
            "%s: tensor %s has %d dimensions, the first of %" PRId64
            ", want one of %" PRId64,
            *file, name, t->n_dims, t->n_dims > 0 ? t->dim[0] : 0, rows);
    *out = t;
    return OK;
}

static enum err need_type(const struct st_tensor *t, enum dtype want, const char *file)
{
    FAIL_IF(t->dtype != want, ERR_FORMAT, "%s: tensor %s is %s, want %s", file, t->name,
            t->dtype_name, dtype_name(want));
    return OK;
}

static enum err need_plain(struct host_mat *out, const struct place *p, int64_t rows,
                           int64_t cols)
{
    const struct st_tensor *t = NULL;
    const char *file = NULL;
    TRY(need(&t, &file, p, rows, cols));
    FAIL_IF(t->dtype != DT_F32 && t->dtype != DT_F16 && t->dtype != DT_BF16, ERR_FORMAT,
            "%s: tensor %s is %s, want F32, F16 or BF16", file, t->name, t->dtype_name);
    *out = (struct host_mat){t->data, t->dtype, rows, cols ? cols : 1, t->name};
    return OK;
}

/* Checks that the unused high bits of every row are 0: codes have one encoding. */
static enum err check_padding(const struct st_tensor *t, int64_t codes, int bits,
                              const char *file)
{
    const int used = (int)(codes % 8 * bits % 8);
    if (!used)
        return OK;
    for (int64_t r = 0; r < t->dim[0]; r++)
        FAIL_IF(t->data[(r + 1) * t->dim[1] - 1] >> used, ERR_FORMAT,
                "%s: tensor %s: row %" PRId64 " has bits set after its last code", file,
                t->name, r);
    return OK;
}

/* Checks that scales are positive and finite, and have no more significant bits than
 * declared. */
static enum err check_scales(const struct st_tensor *t, int scale_bits, const char *file)
{
    for (size_t i = 0; i < t->bytes / 2; i++) {
        const unsigned h = t->data[2 * i] | (unsigned)t->data[2 * i + 1] << 8;
        FAIL_IF(h == 0 || h >= 0x7c00, ERR_FORMAT,
                "%s: tensor %s: scale %zu is %g, want a positive finite number", file,
                t->name, i, (double)f16_to_f32((uint16_t)h));
        FAIL_IF(!quant_scale_fits((uint16_t)h, scale_bits), ERR_FORMAT,
                "%s: tensor %s: scale %zu is %.9g, which has more than weights.scale_bits, "
                "%d significant bits",
                file, t->name, i, (double)f16_to_f32((uint16_t)h), scale_bits);
    }
    return OK;
}

static enum err bind_packed(struct packed_linear *l, struct place p)
{
    const struct st_tensor *t = NULL;
    const char *file = NULL;
    p.tail = ".qweight";
    TRY(need(&t, &file, &p, l->out, bitpack_bytes(l->in, l->bits)));
    TRY(need_type(t, DT_U8, file));
    TRY(check_padding(t, l->in, l->bits, file));
    l->qweight = t->data;
    l->w = (struct host_mat){NULL, DT_F32, l->out, l->in, t->name};
    p.tail = ".scales";
    TRY(need(&t, &file, &p, l->out, l->groups));
    TRY(need_type(t, DT_F16, file));
    TRY(check_scales(t, p.a->weights.scale_bits, file));
    l->scales = t->data;
    p.tail = ".zeros";
    TRY(need(&t, &file, &p, l->out, bitpack_bytes(l->groups, l->bits)));
    TRY(need_type(t, DT_U8, file));
    TRY(check_padding(t, l->groups, l->bits, file));
    l->zeros = t->data;
    return OK;
}

/* Fills shape, format and tensors of l, whose names start as p says. */
static enum err bind_matrix(struct packed_linear *l, struct place p, int64_t out,
                            int64_t in, struct lin_format f)
{
    l->out = out;
    l->in = in;
    l->bits = f.bits;
    l->group_size = f.group_size;
    l->groups = weight_groups(in, f.group_size);
    p.tail = ".weight";
    return f.bits < 16 ? bind_packed(l, p) : need_plain(&l->w, &p, out, in);
}

static enum err bind_linear(struct artifact *a, int64_t layer, int lin)
{
    struct packed_linear *l = &a->block[layer].lin[lin];
    struct place p = {a, layer, arch_lin_module(&a->arch, lin), ".bias"};
    TRY(bind_matrix(l, p, arch_out(&a->arch, lin), arch_in(&a->arch, lin),
                    weight_format(&a->weights, layer, lin)));
    return arch_has_bias(&a->arch, lin) ? need_plain(&l->bias, &p, l->out, 0) : OK;
}

static enum err bind_channels(const struct artifact *a, int64_t layer, float *to,
                              const char *tail, bool positive)
{
    const struct place p = {a, layer, "self_attn", tail};
    const struct st_tensor *t = NULL;
    const char *file = NULL;
    const int64_t n = a->arch.n_kv * a->arch.head_dim;
    TRY(need(&t, &file, &p, n, 0));
    TRY(need_type(t, DT_F32, file));
    memcpy(to, t->data, t->bytes);
    for (int64_t i = 0; i < n; i++)
        FAIL_IF(!isfinite(to[i]) || (positive && !(to[i] > 0)), ERR_FORMAT,
                "%s: tensor %s: channel %" PRId64 " is %g, want a finite %snumber", file,
                t->name, i, (double)to[i], positive ? "positive " : "");
    return OK;
}

/* Refuses channels of a cache with one scale for all of them, unless their scales [n] are equal
 * and their shifts [n] 0. what: k or v. */
static enum err check_one_scale(const struct artifact *a, int64_t layer, const float *scale,
                                const float *shift, int64_t n, char what)
{
    for (int64_t i = 0; i < n && kv_target_has_scales(a->kv.target); i++)
        FAIL_IF(scale[i] != scale[0] || shift[i] != 0, ERR_FORMAT,
                "%s: block %" PRId64
                ": kv.target is %s, which has one scale and no shift, but "
                "channel %" PRId64 " of %c has the scale %g and the shift %g, and the "
                "first has the scale %g",
                a->dir, layer, kv_target_name[a->kv.target], i, what, (double)scale[i],
                (double)shift[i], (double)scale[0]);
    return OK;
}

static enum err bind_cache(struct artifact *a, int64_t layer)
{
    struct packed_block *b = &a->block[layer];
    const int64_t n = a->arch.n_kv * a->arch.head_dim;
    float *at = a->channels + layer * 4 * n;
    b->k_scale = at;
    b->k_shift = at + n;
    b->v_scale = at + 2 * n;
    b->v_shift = at + 3 * n;
    TRY(bind_channels(a, layer, at, ".k_scale", true));
    TRY(bind_channels(a, layer, at + n, ".k_shift", false));
    TRY(bind_channels(a, layer, at + 2 * n, ".v_scale", true));
    TRY(bind_channels(a, layer, at + 3 * n, ".v_shift", false));
    TRY(check_one_scale(a, layer, b->k_scale, b->k_shift, n, 'k'));
    return check_one_scale(a, layer, b->v_scale, b->v_shift, n, 'v');
}

static enum err bind_block(struct artifact *a, int64_t layer)
{
    struct packed_block *b = &a->block[layer];
    for (int l = 0; l < N_LIN; l++)
        TRY(bind_linear(a, layer, l));
    for (int g = 0; g < N_BLOCK_GAINS; g++) {
        const enum norm_gain gain = (enum norm_gain)g;
        const struct place p = {a, layer, arch_norm_module(&a->arch, gain), ".weight"};
        const int64_t n = arch_gain(&a->arch, layer, gain);
        if (n)
            TRY(need_plain(&b->norm[g], &p, n, 0));
    }
    const struct place router = {a, layer, arch_router_module(&a->arch), ".weight"};
    if (a->arch.n_experts)
        TRY(need_plain(&b->router, &router, a->arch.n_experts, a->arch.d_model));
    return bind_cache(a, layer);
}

static enum err bind_ends(struct artifact *a)
{
    const struct lin_format f = head_format(&a->weights);
    const int64_t V = a->arch.vocab, D = a->arch.d_model;
    struct place p = {a, -1, "model.embed_tokens", ".weight"};
    TRY(bind_matrix(&a->embed, p, V, D, f));
    p.module = "model.norm";
    TRY(need_plain(&a->final_norm, &p, D, 0));
    p.module = "lm_head";
    return a->arch.tied ? OK : bind_matrix(&a->head, p, V, D, f);
}

static uint64_t tensor_file_bytes(const struct artifact *a)
{
    uint64_t total = 0;
    for (size_t k = 0; k < a->manifest->n_files; k++)
        total += a->file[k] ? st_bytes(a->file[k]) : 0;
    return total;
}

enum err reader_bind(struct artifact *a)
{
    const size_t n = (size_t)a->arch.n_layers;
    size_t floats = 0;
    /* A hostile config.json may claim any size: the manifest bounds it before
     * allocation. */
    FAIL_IF(n > a->manifest->n_tensors, ERR_FORMAT,
            "%s: config.json says %" PRId64 " layers, the manifest lists %zu tensors",
            a->dir, a->arch.n_layers, a->manifest->n_tensors);
    const int64_t dim[] = {a->arch.n_layers, 4, a->arch.n_kv, a->arch.head_dim};
    TRY(size_product(&floats, dim, 4, sizeof(float)));
    FAIL_IF(floats > tensor_file_bytes(a), ERR_FORMAT,
            "%s: config.json declares more key/value channels than the files hold", a->dir);
    TRY(mem_calloc(&a->block, n, sizeof(*a->block)));
    TRY(mem_alloc(&a->channels, floats, 1));
    TRY(bind_ends(a));
    for (int64_t i = 0; i < a->arch.n_layers; i++)
        TRY(bind_block(a, i));
    return OK;
}
