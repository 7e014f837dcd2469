/* SPDX-License-Identifier: MIT
 *
 * Finds and checks all weights of a Hugging Face model directory when the model is
 * opened. */
#include "convert/checkpoint/hf_experts.h"
#include "convert/checkpoint/hf_files.h"
#include "convert/checkpoint/hf_fold.h"
#include "convert/checkpoint/hf_fused.h"
#include "convert/checkpoint/hf_given.h"
#include "convert/checkpoint/hf_rest.h"
#include "convert/format/tensor_names.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define EMBED "model.embed_tokens.weight"
#define HEAD "lm_head.weight"

struct hf_model {
    struct arch arch;
    char *dir;
    struct hf_files files;
    struct hf_experts experts;
    struct block_src *block; /* [n_layers] */
    struct host_mat embed, norm, head;
    bool *taken; /* [files.n_places], by name: the architecture uses the tensor */
    struct model_source source;
    bool rotated; /* the source returns blocks with rotated values */
    struct block_src
        *rotated_block;        /* [n_layers] blocks that the source returns while rotated */
    void **rotated_memory;     /* [n_layers] memory of the rotated blocks in use */
    struct packed packed;      /* projections that another tool quantized; n 0: none */
    struct given_block *given; /* [n_layers] their values while in use; NULL without */
};

/* --- finding and checking tensors --------------------------------------------------- */

/* A dimension, and the field of config.json that determines it. */
struct side {
    const char *field;
    int64_t n;
};

static void shape_text(char *out, size_t size, const struct st_tensor *t)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < t->n_dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%" PRId64, i ? ", " : "",
                                 t->dim[i]);
    if (used < size)
        snprintf(out + used, size - used, "]");
}

static enum err check_tensor(const struct st_tensor *t, const char *where, struct side rows,
                             struct side cols)
{
    const int n_dims = cols.field ? 2 : 1;
    const bool fits =
        t->n_dims == n_dims && t->dim[0] == rows.n && (n_dims == 1 || t->dim[1] == cols.n);
    if (!fits) {
        char is[192], want[160];
        shape_text(is, sizeof(is), t);
        if (cols.field)
            snprintf(want, sizeof(want), "[%" PRId64 " (%s), %" PRId64 " (%s)]", rows.n,
                     rows.field, cols.n, cols.field);
        else
            snprintf(want, sizeof(want), "[%" PRId64 " (%s)]", rows.n, rows.field);
        FAIL(ERR_FORMAT, "%s: tensor %s has shape %s, config.json wants %s", where, t->name,
             is, want);
    }
    FAIL_IF(t->dtype != DT_F32 && t->dtype != DT_F16 && t->dtype != DT_BF16, ERR_SUPPORT,
            "%s: tensor %s has dtype %s; supported are F32, F16 and BF16", where, t->name,
            t->dtype_name);
    return OK;
}

static enum err take(struct host_mat *out, struct hf_model *m, const char *name,
                     struct side rows, struct side cols)
{
    const struct hf_place *p;
    TRY(hf_files_need(&p, &m->files, name, m->dir, &m->arch));
    TRY(check_tensor(p->t, st_path(m->files.file[p->file]), rows, cols));
    *out = (struct host_mat){.data = p->t->data,
                             .dtype = p->t->dtype,
                             .rows = rows.n,
                             .cols = cols.field ? cols.n : 1,
                             .name = p->t->name};
    m->taken[p - m->files.by_name] = true;
    return OK;
}

static const struct side no_side = {NULL, 1};

static struct side out_side(const struct arch *a, int l)
{
    static const char *const field[N_LIN] = {"num_attention_heads * head_dim",
                                             "num_key_value_heads * head_dim",
                                             "num_key_value_heads * head_dim",
                                             "hidden_size",
                                             "intermediate_size",
                                             "intermediate_size",
                                             "hidden_size"};
    return (struct side){field[l], arch_out(a, l)};
}

static struct side in_side(const struct arch *a, int l)
{
    const char *field = l == LIN_O      ? "num_attention_heads * head_dim"
                        : l == LIN_DOWN ? "intermediate_size"
                                        : "hidden_size";
    return (struct side){field, arch_in(a, l)};
}

static enum err take_linear(struct block_src *b, struct hf_model *m, int64_t i, int l)
{
    const struct arch *a = &m->arch;
    char name[96];
    layer_tensor_name(name, sizeof(name), i, arch_lin_module(a, l), ".weight");
    TRY(take(&b->lin[l], m, name, out_side(a, l), in_side(a, l)));
    hf_experts_set(&b->lin[l], &m->experts, a, i, l);
    if (!arch_has_bias(a, l))
        return OK;
    layer_tensor_name(name, sizeof(name), i, lin_module[l], ".bias");
    return take(&b->bias[l], m, name, out_side(a, l), no_side);
}

/* Returns the fields of config.json that determine the length of a norm's gain. */
static const char *norm_field(const struct arch *a, enum norm_gain g)
{
    if (g != GAIN_Q && g != GAIN_K)
        return "hidden_size";
    if (a->qk_norm == QK_NORM_HEAD)
        return "head_dim";
    return out_side(a, g == GAIN_Q ? LIN_Q : LIN_K).field;
}

static enum err take_norm(struct block_src *b, struct hf_model *m, int64_t i,
                          enum norm_gain g)
{
    const struct side n = {norm_field(&m->arch, g), arch_gain(&m->arch, i, g)};
    char name[96];
    if (!n.n)
        return OK;
    layer_tensor_name(name, sizeof(name), i, arch_norm_module(&m->arch, g), ".weight");
    return take(&b->norm[g], m, name, n, no_side);
}

static void router_name(char *out, size_t size, const struct hf_model *m, int64_t i)
{
    layer_tensor_name(out, size, i, arch_router_module(&m->arch), ".weight");
}

static enum err take_router(struct block_src *b, struct hf_model *m, int64_t i)
{
    const struct side rows = {"num_experts", m->arch.n_experts};
    const struct side cols = {"hidden_size", m->arch.d_model};
    char name[96];
    if (!rows.n)
        return OK;
    router_name(name, sizeof(name), m, i);
    return take(&b->router, m, name, rows, cols);
}

static enum err take_block(struct hf_model *m, int64_t i)
{
    struct block_src *b = &m->block[i];
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        TRY(take_norm(b, m, i, (enum norm_gain)g));
    for (int l = 0; l < N_LIN; l++)
        TRY(take_linear(b, m, i, l));
    return take_router(b, m, i);
}

/* Handles a model without a head. In most families the embedding is the head, but neither
 * file nor class need say so. */
static enum err settle_headless(struct hf_model *m)
{
    FAIL_IF(
        m->files.base_model, ERR_SUPPORT,
        "%s: the checkpoint has no head (lm_head.weight) and config.json says that it is "
        "not tied to the embedding: save the whole language model, not its base alone",
        m->dir);
    log_warn("%s: no lm_head.weight: the embedding serves as the head, as if "
             "tie_word_embeddings were true",
             m->dir);
    m->arch.tied = true;
    return OK;
}

/* Decides whether embedding and head are one tensor, whatever config.json says. Of a tied
 * pair, either may be the stored one. Two stored tensors are tied only if they are equal,
 * as in transformers 5. */
static enum err settle_ties(struct hf_model *m)
{
    const struct hf_place *embed = hf_files_find(&m->files, EMBED);
    const struct hf_place *head = hf_files_find(&m->files, HEAD);
    if (!m->arch.tied)
        return embed && !head ? settle_headless(m) : OK;
    if (!embed && head) {
        log_info("%s: only lm_head.weight is stored: it serves as the embedding too",
                 m->dir);
        hf_files_rename(&m->files, HEAD, EMBED);
    } else if (embed && head && !hf_files_same(&m->files, embed, head)) {
        log_warn("%s: config.json or its family's default ties embedding and head, but "
                 "lm_head.weight differs from the embedding: both are used",
                 m->dir);
        m->arch.tied = false;
    }
    return OK;
}

static enum err take_ends(struct hf_model *m)
{
    const struct side width = {"hidden_size", m->arch.d_model};
    const struct side vocab = {"vocab_size", m->arch.vocab};
    TRY(settle_ties(m));
    TRY(take(&m->embed, m, EMBED, vocab, width));
    hf_take_dtype(&m->arch, m->embed.dtype);
    TRY(take(&m->norm, m, "model.norm.weight", width, no_side));
    if (!m->arch.tied)
        return take(&m->head, m, HEAD, vocab, width);
    m->head = m->embed;
    return OK;
}

static struct hf_rest rest_of(const struct hf_model *m)
{
    return (struct hf_rest){&m->files, m->taken, &m->arch};
}

enum err hf_check_rest(const struct hf_model *m)
{
    const struct hf_rest rest = rest_of(m);
    return hf_rest_check(&rest);
}

/* --- the source --------------------------------------------------------------------- */

static enum err source_block(void *ctx, int64_t i, struct block_src *out)
{
    struct hf_model *m = ctx;
    FAIL_IF(i < 0 || i >= m->arch.n_layers, ERR_USAGE,
            "block %" PRId64 " of a model of %" PRId64, i, m->arch.n_layers);
    if (!m->rotated) {
        *out = m->block[i];
        return m->given ? given_block_make(&m->given[i], out, &m->packed) : OK;
    }
    if (!m->rotated_memory[i]) {
        m->rotated_block[i] = m->block[i];
        TRY(fold_values(&m->rotated_block[i], &m->rotated_memory[i], &m->arch));
    }
    *out = m->rotated_block[i];
    return OK;
}

static enum err source_ends(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                            struct host_mat *head)
{
    const struct hf_model *m = ctx;
    *embed = m->embed;
    *final_norm = m->norm;
    *head = m->head;
    return OK;
}

/* Calls tell for a tensor, or for the parts that take its place. */
static void for_tensor(const struct hf_model *m, const char *name,
                       void (*tell)(const struct st_file *f, const struct st_tensor *t))
{
    const struct hf_place *p = hf_files_find(&m->files, name);
    const struct packed_lin *packed = packed_find(&m->packed, name);
    if (p && !packed && p->t->data) /* not joined */
        tell(m->files.file[p->file], p->t);
    if (packed)
        packed_tell(packed, &m->files, tell);
}

static void for_weights(const struct hf_model *m, int64_t i,
                        void (*tell)(const struct st_file *f, const struct st_tensor *t))
{
    for (int l = 0; l < N_LIN; l++) {
        const struct host_mat *w = &m->block[i].lin[l];
        if (w->part && !packed_find(&m->packed, w->name))
            hf_experts_tell(&m->experts, &m->files, w, tell);
        else
            for_tensor(m, w->name, tell);
    }
}

static void source_release(void *ctx, int64_t i)
{
    struct hf_model *m = ctx;
    if (m->rotated_memory) {
        mem_free(m->rotated_memory[i]);
        m->rotated_memory[i] = NULL;
    }
    if (m->given)
        given_block_free(&m->given[i]);
    for_weights(m, i, st_release);
}

static void source_prefetch(void *ctx, int64_t i)
{
    for_weights(ctx, i, st_prefetch);
}

/* Says in which 16-bit type each projection is stored, if all blocks have the same. A rotation
 * keeps it (fold_values); values made of given codes are F32. */
static void set_stored(struct hf_model *m)
{
    for (int l = 0; l < N_LIN; l++) {
        enum dtype t = m->block[0].lin[l].dtype;
        for (int64_t i = 1; i < m->arch.n_layers; i++)
            t = m->block[i].lin[l].dtype == t ? t : DT_F32;
        m->source.stored[l] = m->given ? DT_F32 : t;
    }
}

/* --- open and close ----------------------------------------------------------------- */

static enum err refuse_artifact(const struct hf_model *m)
{
    char *path = NULL;
    TRY(file_join(&path, m->dir, "manifest.json"));
    const bool found = file_exists(path);
    mem_free(path);
    FAIL_IF(found && hf_files_find(&m->files, "model.layers.0.self_attn.q_proj.qweight"),
            ERR_SUPPORT,
            "%s: this is a wkvq artifact (config.json: quantization_config), already "
            "quantized; use the full-precision checkpoint",
            m->dir);
    return OK;
}

/* Refuses a tensor that is packed but no projection. */
static enum err refuse_packed(const struct hf_model *m, const char *name)
{
    const struct packed_lin *l = packed_find(&m->packed, name);
    FAIL_IF(l, ERR_SUPPORT,
            "%s: tensor %s is packed, but only the projections of a \"%s\" model's layers "
            "can be; quantize again without it",
            m->dir, l->part[PART_CODES].name, m->arch.model_type);
    return OK;
}

/* Refuses those whose values are read before the others are looked at. */
static enum err refuse_packed_ends(const struct hf_model *m)
{
    char name[96];
    TRY(refuse_packed(m, EMBED));
    TRY(refuse_packed(m, HEAD));
    for (int64_t i = 0; m->arch.n_experts && i < m->arch.n_layers; i++) {
        router_name(name, sizeof(name), m, i);
        TRY(refuse_packed(m, name));
    }
    return OK;
}

/* Refuses other packed tensors that no block uses. */
static enum err refuse_packed_rest(const struct hf_model *m)
{
    for (int64_t i = 0; i < m->packed.n; i++) {
        const struct packed_lin *l = &m->packed.lin[i];
        const struct hf_place *p = hf_files_find(&m->files, l->name);
        if (!m->taken[p - m->files.by_name])
            return refuse_packed(m, l->name);
    }
    return OK;
}

/* Makes the projections of a block from the tensors of experts and from fused ones. */
static enum err split_or_join(struct hf_model *m)
{
    if (m->arch.n_experts)
        return hf_join_experts(&m->experts, &m->files, &m->arch, m->dir);
    return m->arch.fused ? hf_split_fused(&m->files, &m->arch, m->dir) : OK;
}

static enum err open_packed(struct hf_model *m, const char *dir, const char *wants)
{
    TRY(hf_read_packed_config(&m->arch, dir));
    TRY(hf_files_open(&m->files, dir));
    TRY(packed_open(&m->packed, &m->files, dir, wants));
    TRY(refuse_packed_ends(m));
    TRY(hf_need_experts(&m->files, &m->arch, dir));
    TRY(hf_join_packed(&m->packed, &m->arch)); /* before the tensors, for better messages */
    TRY(split_or_join(m));
    TRY(m->arch.fused ? hf_split_packed(&m->packed, &m->arch) : OK);
    return mem_calloc(&m->given, (size_t)m->arch.n_layers, sizeof(*m->given));
}

static enum err open_plain(struct hf_model *m, const char *dir)
{
    TRY(hf_read_config(&m->arch, dir));
    TRY(hf_files_open(&m->files, dir));
    TRY(refuse_artifact(m));
    TRY(hf_need_experts(&m->files, &m->arch, dir));
    return split_or_join(m);
}

static enum err open_all(struct hf_model *m, const char *dir, const char *wants)
{
    TRY(mem_strdup(&m->dir, dir));
    TRY(wants ? open_packed(m, dir, wants) : open_plain(m, dir));
    TRY(mem_calloc(&m->taken, (size_t)m->files.n_places, sizeof(*m->taken)));
    TRY(mem_calloc(&m->block, (size_t)m->arch.n_layers, sizeof(*m->block)));
    TRY(take_ends(m));
    for (int64_t i = 0; i < m->arch.n_layers; i++)
        TRY(take_block(m, i));
    TRY(refuse_packed_rest(m));
    const struct hf_rest rest = rest_of(m);
    hf_rest_report(&rest, m->dir);
    m->source = (struct model_source){.ctx = m,
                                      .block = source_block,
                                      .ends = source_ends,
                                      .release = source_release,
                                      .prefetch = source_prefetch,
                                      .makes_blocks = m->given != NULL};
    set_stored(m);
    return OK;
}

static void free_folded(struct hf_model *m)
{
    for (int64_t i = 0; m->rotated_memory && i < m->arch.n_layers; i++)
        mem_free(m->rotated_memory[i]);
    mem_free(m->rotated_memory);
    mem_free(m->rotated_block);
    m->rotated_memory = NULL;
    m->rotated_block = NULL;
}

enum err hf_rotate_values(struct hf_model *m, const struct kv_spec *kv)
{
    const size_t n = (size_t)m->arch.n_layers;
    enum err err = kv_rotate_check(kv, m->arch.head_dim);
    if (!err)
        err = kv_target_check(kv, m->arch.head_dim);
    if (err)
        return err_add(err, "%s: ", m->dir);
    FAIL_IF(
        m->given && (kv->rotate & ROTATE_V), ERR_SUPPORT,
        "%s: kv.rotate turns values by the weights of v_proj and o_proj, but their codes "
        "are given; set kv.rotate to k or none",
        m->dir);
    m->rotated = kv->rotate & ROTATE_V;
    m->source.makes_blocks = m->given || m->rotated;
    if (!m->rotated)
        free_folded(m);
    else if (!m->rotated_memory) {
        TRY(mem_calloc(&m->rotated_block, n, sizeof(*m->rotated_block)));
        TRY(mem_calloc(&m->rotated_memory, n, sizeof(*m->rotated_memory)));
    }
    return OK;
}

/* wants: as in hf_open_packed(); NULL: weights that are not quantized. */
static enum err open_model(struct hf_model **out, const char *model_dir, const char *wants)
{
    struct hf_model *m;
    TRY(mem_calloc(&m, 1, sizeof(*m)));
    const enum err err = open_all(m, model_dir, wants);
    if (err) {
        hf_close(&m);
        return err;
    }
    *out = m;
    return OK;
}

enum err hf_open(struct hf_model **out, const char *model_dir)
{
    return open_model(out, model_dir, NULL);
}

enum err hf_open_packed(struct hf_model **out, const char *model_dir, const char *wants)
{
    return open_model(out, model_dir, wants);
}

void hf_close(struct hf_model **pm)
{
    struct hf_model *m = *pm;
    *pm = NULL;
    if (!m)
        return;
    free_folded(m);
    for (int64_t i = 0; m->given && i < m->arch.n_layers; i++)
        given_block_free(&m->given[i]);
    mem_free(m->given);
    packed_close(&m->packed);
    hf_files_close(&m->files);
    hf_experts_close(&m->experts);
    mem_free(m->taken);
    mem_free(m->block);
    mem_free(m->dir);
    mem_free(m);
}

const struct arch *hf_arch(const struct hf_model *m)
{
    return &m->arch;
}

const struct model_source *hf_source(struct hf_model *m)
{
    return &m->source;
}

enum err hf_identity(uint32_t *crc, const struct hf_model *m, bool deep)
{
    char *path = NULL;
    uint32_t sum;
    uint64_t bytes;
    TRY(file_join(&path, m->dir, "config.json"));
    const enum err err = file_crc32(&sum, &bytes, path);
    mem_free(path);
    TRY(err);
    TRY(hf_files_crc(&sum, &m->files, deep));
    *crc = sum;
    return OK;
}

uint64_t hf_bytes(const struct hf_model *m)
{
    uint64_t n = 0;
    for (int i = 0; i < m->files.n_files; i++)
        n += st_bytes(m->files.file[i]);
    return n;
}

const struct st_tensor *hf_stored_at(const struct hf_model *m, int64_t i)
{
    return hf_files_stored(&m->files, i);
}

int64_t hf_tensor_count(const struct hf_model *m)
{
    return m->files.n_places;
}

const struct st_tensor *hf_tensor_at(const struct hf_model *m, int64_t i)
{
    return m->files.place[i].t;
}

const struct st_tensor *hf_find(const struct hf_model *m, const char *name)
{
    const struct hf_place *p = hf_files_find(&m->files, name);
    return p ? p->t : NULL;
}

void hf_release(const struct hf_model *m, const struct st_tensor *t)
{
    for_tensor(m, t->name, st_release);
}

struct lin_format hf_lin_format(const struct hf_model *m, int64_t layer, int lin)
{
    const struct packed_lin *l = packed_find(&m->packed, m->block[layer].lin[lin].name);
    return l ? l->format : (struct lin_format){.bits = 16};
}

bool hf_packed(struct hf_packed *out, const struct hf_model *m)
{
    if (m->given)
        packed_describe(out, &m->packed);
    return m->given;
}

void hf_set_full(struct hf_model *m, struct hf_model *full)
{
    m->source.full = full ? hf_source(full) : NULL;
}
