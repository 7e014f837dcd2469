/* SPDX-License-Identifier: MIT
 *
 * The tensors of a GGUF file: names, types, shapes and sources. */
#include "convert/export/gguf/gguf_keys.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>

#define MOST_Q8_BITS 7 /* q - z of more does not fit 8 bits with a sign */

static const char *const lin_names[N_LIN] = {
    [LIN_Q] = "attn_q",      [LIN_K] = "attn_k",      [LIN_V] = "attn_v",
    [LIN_O] = "attn_output", [LIN_GATE] = "ffn_gate", [LIN_UP] = "ffn_up",
    [LIN_DOWN] = "ffn_down",
};
/* Of all experts of a layer. */
static const char *const expert_names[N_LIN] = {
    [LIN_GATE] = "ffn_gate_exps", [LIN_UP] = "ffn_up_exps", [LIN_DOWN] = "ffn_down_exps"};

/* --- types -------------------------------------------------------------------------- */

static enum err check_blocks(const struct export_linear *l)
{
    const struct packed_linear *q = l->packed;
    const int64_t group = q->group_size ? q->group_size : q->in;
    FAIL_IF(q->bits > MOST_Q8_BITS, ERR_SUPPORT,
            "%s: weights.bits %d: GGUF holds our codes of 2 to %d bits; use 7 or fewer, or "
            "16, which leaves the weight unquantized",
            l->name, q->bits, MOST_Q8_BITS);
    FAIL_IF(q->in % GGUF_BLOCK, ERR_SUPPORT,
            "%s has %" PRId64 " columns, which is no multiple of %d, the columns of GGUF's "
            "blocks; leave it at 16 bits (weights.mixed)",
            l->name, q->in, GGUF_BLOCK);
    FAIL_IF(group % GGUF_BLOCK, ERR_SUPPORT,
            "%s: group_size %" PRId64
            " is no multiple of %d, the columns of GGUF's blocks; "
            "use 32, 64, 128 or 0",
            l->name, group, GGUF_BLOCK);
    return OK;
}

static enum gguf_type type_of_bits(int bits, bool only_q8)
{
    return only_q8 || bits > 5 ? GGUF_Q8_0 : bits == 5 ? GGUF_Q5_1 : GGUF_Q4_1;
}

static enum gguf_type type_of(enum dtype t)
{
    return t == DT_F16 ? GGUF_F16 : t == DT_BF16 ? GGUF_BF16 : GGUF_F32;
}

/* --- the list ----------------------------------------------------------------------- */

static enum err add(struct gguf_plan *p, const struct gguf_item *t)
{
    if (p->n == p->room) {
        const size_t room = p->room ? 2 * p->room : 64;
        TRY(mem_resize(&p->item, p->room, room, sizeof(*p->item)));
        p->room = room;
    }
    p->item[p->n++] = *t;
    return OK;
}

/* Adds a vector as F32; data NULL: the model has none. */
static enum err add_vector(struct gguf_plan *p, const char *name, struct host_mat m,
                           int64_t head_dim)
{
    struct gguf_item t = {
        .type = GGUF_F32, .rows = 1, .cols = m.rows, .n_dims = 1, .widens = true};
    if (!m.data)
        return OK;
    snprintf(t.name, sizeof(t.name), "%s", name);
    t.m = m;
    t.head_dim = head_dim;
    return add(p, &t);
}

/* Adds the weight of a norm, as what llama.cpp multiplies by. */
static enum err add_gain(struct gguf_plan *p, const char *name, struct host_mat m,
                         const struct arch *a)
{
    TRY(add_vector(p, name, m, 0));
    if (m.data && a->gain_plus_one)
        p->item[p->n - 1].plus_one = true;
    return OK;
}

/* Adds a matrix as it is stored. */
static enum err add_matrix(struct gguf_plan *p, const char *name, struct host_mat m)
{
    struct gguf_item t = {
        .type = type_of(m.dtype), .rows = m.rows, .cols = m.cols, .n_dims = 2};
    snprintf(t.name, sizeof(t.name), "%s", name);
    t.m = m;
    return add(p, &t);
}

/* Returns true if q - z of every code fits Q8_0. codes [in], zeros [groups]: scratch. */
static bool fits_q8(const struct packed_linear *q, uint8_t *codes, uint8_t *zeros)
{
    const int64_t group = q->group_size ? q->group_size : q->in;
    for (int64_t r = 0; r < q->out; r++) {
        export_row_codes(codes, q, r);
        export_row_zeros(zeros, q, r);
        for (int64_t c = 0; c < q->in; c++) {
            const int v = codes[c] - zeros[c / group];
            if (v < INT8_MIN || v > INT8_MAX)
                return false;
        }
    }
    return true;
}

/* *type = that of a quantized embedding or head: F16 where blocks cannot hold it. */
static enum err type_of_end(enum gguf_type *type, const struct packed_linear *q,
                            bool only_q8)
{
    const int64_t group = q->group_size ? q->group_size : q->in;
    uint8_t *scratch;
    *type = type_of_bits(q->bits, only_q8);
    if (q->in % GGUF_BLOCK || group % GGUF_BLOCK)
        *type = GGUF_F16;
    else if (q->bits > MOST_Q8_BITS) {
        TRY(mem_alloc(&scratch, (size_t)(q->in + q->groups), 1));
        if (!fits_q8(q, scratch, scratch + q->in))
            *type = GGUF_F16;
        mem_free(scratch);
    }
    return OK;
}

/* Adds embedding (i 0) or head (i 1), w if they are not quantized. */
static enum err add_end(struct gguf_plan *p, const struct export_source *s, int i,
                        const char *name, struct host_mat w, bool only_q8)
{
    const struct export_linear *l = &s->end[i];
    if (!s->n_ends)
        return add_matrix(p, name, w);
    struct gguf_item t = {
        .rows = l->packed->out, .cols = l->packed->in, .n_dims = 2, .linear = l};
    snprintf(t.name, sizeof(t.name), "%s", name);
    TRY(type_of_end(&t.type, l->packed, only_q8));
    return add(p, &t);
}

/* "blk.LAYER.NAME" */
static const char *in_layer(char out[GGUF_NAME_BYTES], int64_t layer, const char *name,
                            const char *tail)
{
    snprintf(out, GGUF_NAME_BYTES, "blk.%" PRId64 ".%s%s", layer, name, tail);
    return out;
}

/* Returns a projection's bias, with the shift of values if that is folded into it. */
static struct host_mat bias_of(const struct gguf_plan *p, const struct export_linear *l)
{
    struct host_mat bias = l->packed->bias;
    if (!p->folded || (l->lin != LIN_V && l->lin != LIN_O))
        return bias;
    const struct gguf_folded *f = &p->folded[l->layer];
    bias.data = l->lin == LIN_V ? f->v : f->o;
    bias.dtype = DT_F32;
    bias.rows = l->packed->out;
    bias.cols = 1;
    return bias;
}

/* Adds the weight of a projection, or that of one expert. */
static enum err add_weight(struct gguf_plan *p, const struct export_linear *l, bool only_q8,
                           const char *name)
{
    const struct packed_linear *q = l->packed;
    struct gguf_item t = {.type = type_of(q->w.dtype),
                          .rows = q->out,
                          .cols = q->in,
                          .n_dims = 2,
                          .linear = l,
                          .m = q->w};
    in_layer(t.name, l->layer, name, ".weight");
    if (q->bits < 16) {
        TRY(check_blocks(l));
        t.type = type_of_bits(q->bits, only_q8);
    }
    return add(p, &t);
}

/* Adds a projection of all n experts of a layer as one tensor. */
static enum err add_experts(struct gguf_plan *p, const struct export_linear *l, int64_t n,
                            bool only_q8)
{
    for (int64_t e = 0; e < n; e++) {
        TRY(add_weight(p, &l[e], only_q8, expert_names[l->lin]));
        p->item[p->n - 1].n_dims = 3;
        p->item[p->n - 1].continues = e > 0;
    }
    return OK;
}

/* llama.cpp's own files have routers in F32. */
static enum err add_router(struct gguf_plan *p, int64_t layer, struct host_mat m)
{
    char name[GGUF_NAME_BYTES];
    if (!m.data)
        return OK;
    TRY(add_matrix(p, in_layer(name, layer, "ffn_gate_inp", ".weight"), m));
    p->item[p->n - 1].type = GGUF_F32;
    p->item[p->n - 1].widens = true;
    return OK;
}

static enum err add_linear(struct gguf_plan *p, const struct export_linear *l, bool only_q8,
                           int64_t head_dim)
{
    char name[GGUF_NAME_BYTES];
    const int64_t turned = l->lin == LIN_Q || l->lin == LIN_K ? head_dim : 0;
    TRY(add_weight(p, l, only_q8, lin_names[l->lin]));
    p->item[p->n - 1].head_dim = turned;
    return add_vector(p, in_layer(name, l->layer, lin_names[l->lin], ".bias"),
                      bias_of(p, l), turned);
}

/* Makes the last n items, projections without a bias, one tensor of the type that holds all of
 * them. Returns false, and changes nothing, if no type does: some are not quantized. */
static bool fuse(struct gguf_plan *p, int n, const char *name, bool only_q8)
{
    struct gguf_item *const t = &p->item[p->n - (size_t)n];
    int most = 0;
    bool alike = true;
    for (int k = 0; k < n; k++) {
        const int bits = t[k].linear->packed->bits;
        most = bits > most ? bits : most;
        alike = alike && t[k].type == t[0].type;
    }
    if (most == 16 && !alike)
        return false;
    for (int k = 0; k < n; k++) {
        t[k].type = most < 16 ? type_of_bits(most, only_q8) : t[k].type;
        t[k].continues = k > 0;
    }
    in_layer(t[0].name, t[0].linear->layer, name, ".weight");
    return true;
}

static enum err fuse_gate_up(struct gguf_plan *p, bool only_q8)
{
    const struct export_linear *gate = p->item[p->n - 2].linear,
                               *up = p->item[p->n - 1].linear;
    FAIL_IF(!fuse(p, 2, lin_names[LIN_UP], only_q8), ERR_SUPPORT,
            "%s and %s are %d and %d bits, but llama.cpp has them in one tensor of one "
            "type; quantize both or neither (weights.mixed)",
            gate->name, up->name, gate->packed->bits, up->packed->bits);
    return OK;
}

/* Fuses what the family's files have in one tensor. q, k and v stay apart if no type holds them;
 * llama.cpp has read that since April 2026. */
static enum err fuse_after(struct gguf_plan *p, int lin, bool only_q8)
{
    if (p->graph->fuses && lin == LIN_V)
        fuse(p, 3, "attn_qkv", only_q8);
    return p->graph->fuses && lin == LIN_UP ? fuse_gate_up(p, only_q8) : OK;
}

static const char *const norm_names[N_BLOCK_GAINS] = {
    [GAIN_ATTENTION] = "attn_norm",
    [GAIN_MLP] = "ffn_norm",
    [GAIN_Q] = "attn_q_norm",
    [GAIN_K] = "attn_k_norm",
    [GAIN_ATTENTION_OUT] = "post_attention_norm",
    [GAIN_MLP_OUT] = "post_ffw_norm",
};

/* Adds layer number `layer`, whose projections begin at l. */
static enum err add_layer(struct gguf_plan *p, const struct export_source *s, int64_t layer,
                          const struct export_linear *l, bool only_q8)
{
    char name[GGUF_NAME_BYTES];
    const struct packed_block *b = artifact_block(s->artifact, layer);
    /* llama.cpp turns neighbouring channels in these models, Hugging Face the halves. */
    const int64_t head_dim = arch_interleaves_keys(s->arch) ? s->arch->head_dim : 0;
    for (int lin = 0; lin < N_LIN; lin++) {
        const int64_t n = arch_stacked(s->arch, lin);
        TRY(arch_of_experts(s->arch, lin) ? add_experts(p, l, n, only_q8)
                                          : add_linear(p, l, only_q8, head_dim));
        TRY(fuse_after(p, lin, only_q8));
        l += n;
    }
    TRY(add_router(p, layer, b->router));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        TRY(add_gain(p, in_layer(name, layer, norm_names[g], ".weight"), b->norm[g],
                     s->arch));
    return OK;
}

/* Llama 3 divides the angles of slow pairs by these factors. */
static enum err add_rope(struct gguf_plan *p, const struct arch *a)
{
    const int64_t n = a->head_dim / 2;
    struct arch plain = *a;
    if (a->rope != ROPE_LLAMA3)
        return OK;
    plain.rope = ROPE_DEFAULT;
    TRY(mem_alloc(&p->rope, (size_t)n, sizeof(*p->rope)));
    for (int64_t i = 0; i < n; i++)
        p->rope[i] = (float)(arch_inv_freq(&plain, i) / arch_inv_freq(a, i));
    return add_vector(p, "rope_freqs.weight",
                      (struct host_mat){p->rope, DT_F32, n, 1, NULL}, 0);
}

/* Reads long_factor, which arch lacks: it is not used here, but llama.cpp takes it for
 * contexts beyond the original length. Its length was checked when the artifact was
 * opened. */
static void read_long_factors(float *out, int64_t n, const json_t *config)
{
    const json_t *o = json_object_get(config, "rope_scaling");
    if (!json_object_size(o))
        o = json_object_get(config, "rope_parameters");
    const json_t *list = json_object_get(o, "long_factor");
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)json_number_value(json_array_get(list, (size_t)i));
}

static enum err add_longrope(struct gguf_plan *p, const struct export_source *s)
{
    const int64_t n = arch_rotary_dim(s->arch) / 2;
    TRY(mem_alloc(&p->rope, 2 * (size_t)n, sizeof(*p->rope)));
    for (int64_t i = 0; i < n; i++)
        p->rope[i] = (float)s->arch->rope_short[i];
    read_long_factors(p->rope + n, n, s->config);
    TRY(add_vector(p, "rope_factors_short.weight",
                   (struct host_mat){p->rope, DT_F32, n, 1, NULL}, 0));
    return add_vector(p, "rope_factors_long.weight",
                      (struct host_mat){p->rope + n, DT_F32, n, 1, NULL}, 0);
}

enum err gguf_list_tensors(struct gguf_plan *p, const struct export_source *s, bool only_q8)
{
    TRY(add_end(p, s, 0, "token_embd.weight", artifact_embed(s->artifact)->w, only_q8));
    TRY(s->arch->rope == ROPE_LONGROPE ? add_longrope(p, s) : add_rope(p, s->arch));
    for (int64_t i = 0; i < s->arch->n_layers; i++)
        TRY(add_layer(p, s, i, &s->linear[i * (s->n_linears / s->arch->n_layers)],
                      only_q8));
    TRY(add_gain(p, "output_norm.weight", artifact_final_norm(s->artifact), s->arch));
    return s->arch->tied
               ? OK
               : add_end(p, s, 1, "output.weight", artifact_head(s->artifact)->w, only_q8);
}
