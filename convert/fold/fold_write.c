/* SPDX-License-Identifier: MIT
 *
 * Writes a folded checkpoint: the source's tensors in their order, those that change in F32, and
 * then the biases that it did not have. */
#include "convert/artifact/artifact_files.h"
#include "convert/checkpoint/hf_fused.h"
#include "convert/fold/fold.h"
#include "convert/format/tensor_names.h"
#include "convert/output/out_plan.h"
#include "convert/output/outdir.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((size_t)8 << 20) /* between two reports of progress */

/* What becomes of a tensor. The biases of q and k are there because engines create all four or
 * none. PART_WIDEN: q or k as F32, beside v in one tensor. */
enum part {
    PART_COPY,
    PART_V,
    PART_O,
    PART_V_BIAS,
    PART_O_BIAS,
    PART_ZERO,
    PART_WIDEN,
    N_PARTS
};

struct item {
    enum part part;
    int64_t layer;
    const struct st_tensor *src; /* NULL: the checkpoint has no such tensor */
    char name[128];
    size_t tensor; /* in the plan; several items in a row may be parts of one */
};

struct fold {
    struct hf_model *m;
    const struct arch *a;
    float **s, **shift; /* [n_layers][K*d], owned */
    bool biases;
    struct item *item;   /* [n_items] */
    int64_t n_items, at; /* at: the next to write */
    struct out_plan plan;
    float *values, *bias; /* the largest tensor; [D] */
    const struct fold_options *options;
    uint64_t done, total; /* bytes of tensors */
};

/* --- what to write ------------------------------------------------------------------- */

static enum err take_layer(struct fold *f, int64_t i, const struct block_quant *q)
{
    const int64_t n = f->a->n_kv * f->a->head_dim;
    FAIL_IF(q->n_channels != n, ERR_MISMATCH,
            "block %" PRId64 ": the fold has %" PRId64 " channels, the model %" PRId64, i,
            q->n_channels, n);
    TRY(mem_alloc(&f->s[i], (size_t)n, sizeof(float)));
    TRY(mem_alloc(&f->shift[i], (size_t)n, sizeof(float)));
    for (int64_t c = 0; c < n; c++) {
        f->s[i][c] = q->v_scale[c];
        f->shift[i][c] = q->v_shift[c];
        f->biases = f->biases || q->v_shift[c] != 0;
        FAIL_IF(!(q->v_scale[c] > 0 && isfinite(q->v_scale[c]) && isfinite(q->v_shift[c])),
                ERR_FORMAT,
                "block %" PRId64 ": channel %" PRId64 " has scale %g and shift %g", i, c,
                (double)q->v_scale[c], (double)q->v_shift[c]);
    }
    return OK;
}

static enum err take_layers(struct fold *f, const struct quant_source *q)
{
    const size_t n = (size_t)f->a->n_layers;
    TRY(mem_calloc(&f->s, n, sizeof(*f->s)));
    TRY(mem_calloc(&f->shift, n, sizeof(*f->shift)));
    for (int64_t i = 0; i < f->a->n_layers; i++) {
        const struct block_quant *of;
        TRY(q->block(q->ctx, i, &of));
        TRY(take_layer(f, i, of));
    }
    FAIL_IF(f->biases && !arch_holds_value_shift(f->a), ERR_SUPPORT,
            "the state has a shift of values, but a %s model has no biases for it",
            f->a->model_type);
    return OK;
}

static enum part part_of(int64_t *layer, const char *name, const struct arch *a)
{
    static const char *const tail[N_PARTS] = {[PART_V] = ".v_proj.weight",
                                              [PART_O] = ".o_proj.weight",
                                              [PART_V_BIAS] = ".v_proj.bias",
                                              [PART_O_BIAS] = ".o_proj.bias"};
    char own[128];
    for (*layer = 0; *layer < a->n_layers; ++*layer)
        for (int p = PART_V; p <= PART_O_BIAS; p++) {
            layer_tensor_name(own, sizeof(own), *layer, "self_attn", tail[p]);
            if (!strcmp(own, name))
                return (enum part)p;
        }
    return PART_COPY;
}

/* Adds a part of the plan's last tensor. */
static void add_part(struct fold *f, struct item item)
{
    item.tensor = f->plan.n - 1;
    f->item[f->n_items++] = item;
}

/* Adds a tensor of n_dims dimensions, F32 unless it is copied, and its first part. */
static enum err add(struct fold *f, struct item item, int n_dims, const int64_t *dim)
{
    struct out_tensor t = {.dtype = item.part == PART_COPY ? item.src->dtype : DT_F32,
                           .n_dims = n_dims};
    for (int i = 0; i < n_dims; i++)
        t.dim[i] = dim[i];
    snprintf(t.name, sizeof(t.name), "%s", item.name);
    TRY(out_plan_add(&f->plan, &t));
    add_part(f, item);
    return OK;
}

/* Returns the projection whose weight this is, and its layer; -1: it is another tensor. */
static int linear_of(int64_t *layer, const char *name, const struct arch *a)
{
    char own[128];
    for (*layer = 0; *layer < a->n_layers; ++*layer)
        for (int l = 0; l < N_LIN; l++) {
            layer_tensor_name(own, sizeof(own), *layer, lin_module[l], ".weight");
            if (!strcmp(own, name))
                return l;
        }
    return -1;
}

/* Adds a tensor of a family that has several projections in one. Its parts follow each other, as
 * hf_split_fused() made them. */
static enum err add_fused(struct fold *f, struct item item)
{
    int64_t layer, dim[] = {0, 0};
    const int lin = linear_of(&layer, item.name, f->a);
    const struct hf_fused *u = lin < 0 ? NULL : hf_fused_at(lin);
    if (lin == LIN_Q || lin == LIN_K)
        item.part = PART_WIDEN;
    if (lin < 0 || lin == LIN_O || lin == LIN_DOWN)
        return add(f, item, item.src->n_dims, item.src->dim);
    if (!u) { /* its first part announced it */
        add_part(f, item);
        return OK;
    }
    for (int l = u->first; l < u->first + u->n; l++)
        dim[0] += arch_out(f->a, l);
    dim[1] = arch_in(f->a, lin);
    layer_tensor_name(item.name, sizeof(item.name), layer, u->module, ".weight");
    return add(f, item, 2, dim);
}

static enum err add_missing_biases(struct fold *f, int64_t layer)
{
    static const struct {
        const char *tail;
        enum part part;
        int lin;
    } bias[] = {{".q_proj.bias", PART_ZERO, LIN_Q},
                {".k_proj.bias", PART_ZERO, LIN_K},
                {".v_proj.bias", PART_V_BIAS, LIN_V},
                {".o_proj.bias", PART_O_BIAS, LIN_O}};
    for (size_t i = 0; i < ARRAY_LEN(bias); i++) {
        struct item item = {.part = bias[i].part, .layer = layer};
        const int64_t n = arch_out(f->a, bias[i].lin);
        layer_tensor_name(item.name, sizeof(item.name), layer, "self_attn", bias[i].tail);
        if (!hf_find(f->m, item.name))
            TRY(add(f, item, 1, &n));
    }
    return OK;
}

static enum err list_items(struct fold *f)
{
    const int64_t n = hf_tensor_count(f->m);
    const size_t most = (size_t)(n + 4 * f->a->n_layers);
    TRY(mem_calloc(&f->item, most, sizeof(*f->item)));
    for (int64_t i = 0; i < n; i++) {
        struct item item = {.src = hf_tensor_at(f->m, i)};
        FAIL_IF(strlen(item.src->name) >= sizeof(item.name) ||
                    item.src->n_dims > TENSOR_MAX_DIMS || !dtype_bytes(item.src->dtype),
                ERR_SUPPORT, "tensor %.100s: its name, shape or type cannot be copied",
                item.src->name);
        snprintf(item.name, sizeof(item.name), "%s", item.src->name);
        item.part = part_of(&item.layer, item.name, f->a);
        TRY(f->a->fused ? add_fused(f, item)
                        : add(f, item, item.src->n_dims, item.src->dim));
    }
    for (int64_t i = 0; i < f->a->n_layers && f->biases; i++)
        TRY(add_missing_biases(f, i));
    TRY(out_plan_cut(&f->plan, f->options->shard_bytes));
    for (size_t i = 0; i < f->plan.n; i++)
        f->total += f->plan.tensor[i].bytes;
    return OK;
}

/* --- writing ------------------------------------------------------------------------- */

static enum err put(struct fold *f, struct st_writer *w, const void *data, size_t n)
{
    const struct fold_options *o = f->options;
    for (size_t at = 0; at < n;) {
        const size_t piece = n - at < PIECE_BYTES ? n - at : PIECE_BYTES;
        TRY(st_write(w, (const uint8_t *)data + at, piece));
        at += piece;
        f->done += piece;
        if (o->progress)
            TRY(o->progress(o->progress_ctx, (double)f->done / (double)f->total));
    }
    return OK;
}

/* *values = the n numbers of a folded or added tensor. The block's pages are then released: a
 * fold holds those of one block at most. */
static enum err fold_item(const float **values, int64_t *n, const struct fold *f,
                          const struct item *t)
{
    const struct arch *a = f->a;
    const struct model_source *source = hf_source(f->m);
    const float *s = f->s[t->layer], *shift = f->shift[t->layer];
    struct block_src b;
    TRY(source->block(source->ctx, t->layer, &b));
    *values = f->values;
    switch (t->part) {
    case PART_V:
        *n = a->n_kv * a->head_dim * a->d_model;
        TRY(fold_v(f->values, &b.lin[LIN_V], s));
        break;
    case PART_O:
        *n = a->d_model * a->n_heads * a->head_dim;
        fold_o(f->values, f->bias, &b, a, s, shift);
        break;
    case PART_V_BIAS:
        *n = a->n_kv * a->head_dim;
        fold_v_bias(f->values, &b.bias[LIN_V], s, shift, *n);
        break;
    case PART_O_BIAS:
        *n = a->d_model;
        *values = f->bias;
        fold_o(f->values, f->bias, &b, a, s, shift);
        break;
    case PART_ZERO:
    default:
        *n = arch_out(a, strstr(t->name, "q_proj") ? LIN_Q : LIN_K);
        memset(f->values, 0, (size_t)*n * sizeof(float));
    }
    source->release(source->ctx, t->layer);
    return OK;
}

static enum err write_item(struct fold *f, struct st_writer *w, const struct item *t)
{
    const float *values = f->values;
    int64_t n;
    if (t->part == PART_COPY) {
        TRY(put(f, w, t->src->data, t->src->bytes));
        hf_release(f->m, t->src);
        return OK;
    }
    if (t->part == PART_WIDEN) {
        n = t->src->dim[0] * t->src->dim[1];
        host_to_f32(f->values, t->src->data, t->src->dtype, n);
        hf_release(f->m, t->src);
    } else {
        TRY(fold_item(&values, &n, f, t));
    }
    return put(f, w, values, (size_t)n * sizeof(float));
}

/* Writes the items of tensor number i of the plan. */
static enum err write_tensor(void *ctx, struct st_writer *w, size_t i)
{
    struct fold *f = ctx;
    for (; f->at < f->n_items && f->item[f->at].tensor == i; f->at++)
        TRY(write_item(f, w, &f->item[f->at]));
    return OK;
}

static enum err write_tensors(struct fold *f, const char *dir, uint64_t *bytes)
{
    const int64_t H = f->a->n_heads * f->a->head_dim, D = f->a->d_model;
    struct manifest_file index;
    TRY(mem_alloc(&f->values, (size_t)(H > D ? H : D), (size_t)D * sizeof(float)));
    TRY(mem_alloc(&f->bias, (size_t)D, sizeof(float)));
    TRY(out_plan_write(&f->plan, dir, write_tensor, f));
    *bytes = 0;
    for (int k = 0; k < f->plan.n_shards; k++)
        *bytes += f->plan.shard[k].bytes;
    return f->plan.n_shards > 1 ? artifact_write_index(dir, &f->plan, &index) : OK;
}

static enum err write_config(const struct fold *f, const char *dir, const char *model_dir)
{
    enum err err = OK;
    char *from = NULL, *to = NULL, *text = NULL;
    json_t *o = NULL;
    TRY_OUT(file_join(&from, model_dir, "config.json"));
    TRY_OUT(file_join(&to, dir, "config.json"));
    TRY_OUT(json_load_file_lenient(&o, from, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    json_object_del(o, "auto_map"); /* names Python files that are not copied */
    bool done = artifact_config_truth(o, f->a);
    if (f->biases)
        done = done && !json_object_set_new(o, "attention_bias", json_true());
    text = done ? json_text_restored(o, JSON_INDENT(2)) : NULL;
    if (!text)
        FAIL_OUT(ERR_MEMORY, "%s: out of memory", to);
    TRY_OUT(file_write_all(to, text, strlen(text)));
out:
    free(text);
    json_decref(o);
    mem_free(from);
    mem_free(to);
    return err;
}

static void release(struct fold *f)
{
    for (int64_t i = 0; f->s && f->shift && i < f->a->n_layers; i++) {
        mem_free(f->s[i]);
        mem_free(f->shift[i]);
    }
    mem_free(f->s);
    mem_free(f->shift);
    mem_free(f->item);
    out_plan_free(&f->plan);
    mem_free(f->values);
    mem_free(f->bias);
}

enum err fold_write(struct fold_report *out, const char *out_dir, struct hf_model *m,
                    const char *model_dir, const struct quant_source *q,
                    const struct fold_options *options)
{
    enum err err = OK;
    struct fold f = {.m = m, .a = hf_arch(m), .options = options};
    struct outdir dir = {0};
    struct manifest_file copied[ARTIFACT_FILES_MAX];
    size_t n;
    if (f.a->n_experts)
        FAIL_OUT(ERR_SUPPORT, "%s: a fold is not written for a mixture of experts",
                 model_dir);
    TRY_OUT(take_layers(&f, q));
    TRY_OUT(list_items(&f));
    TRY_OUT(outdir_open(&dir, out_dir, OUTDIR_NEW));
    TRY_OUT(write_tensors(&f, dir.tmp, &out->bytes));
    TRY_OUT(write_config(&f, dir.tmp, model_dir));
    TRY_OUT(artifact_copy_tokenizer(dir.tmp, model_dir, copied, &n));
    TRY_OUT(outdir_commit(&dir));
    out->biases = f.biases;
out:
    outdir_abort(&dir);
    release(&f);
    return err;
}
