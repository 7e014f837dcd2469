/* SPDX-License-Identifier: MIT */
#include "tools/bench/synth.h"

#include "convert/artifact/artifact_files.h"
#include "convert/format/tensor_names.h"
#include "convert/output/out_plan.h"
#include "convert/output/outdir.h"
#include "data/json.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/qtensor.h"
#include "tools/bench/synth_values.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIGMA 0.02
#define NORM_SIGMA 0.1
#define OUTLIER 6.0      /* factor of the large channels */
#define OUTLIER_PART 512 /* one channel out of so many is large */

#define LAYER_NORMS 2

#define PIECE_WEIGHTS ((int64_t)4 << 20)  /* weights made between two writes */
#define CHUNK_WEIGHTS ((int64_t)64 << 10) /* weights made by one thread at a time */

/* The rows of a tensor that are large. */
enum loud { LOUD_NONE, LOUD_RESIDUAL, LOUD_KEYS, LOUD_KINDS };

struct synth {
    const struct synth_settings *s;
    struct out_plan plan;
    struct outdir dir;
    struct pool *pool;
    struct normal_table *plain, *loud, *norm;
    bool *channel[LOUD_KINDS]; /* [rows], true: large */
    uint16_t *piece;
    int32_t bos, eos; /* -1: none */
    uint64_t done, total;
    enum err (*progress)(void *ctx, double share);
    void *progress_ctx;
};

/* --- tensors -------------------------------------------------------------------------- */

static enum err add(struct out_plan *p, const char *name, int64_t rows, int64_t cols)
{
    struct out_tensor t = {.dtype = DT_F16, .n_dims = cols ? 2 : 1};
    t.dim[0] = rows;
    t.dim[1] = cols;
    snprintf(t.name, sizeof(t.name), "%s", name);
    return out_plan_add(p, &t);
}

static enum err add_layer(struct out_plan *p, const struct arch *a, int64_t layer)
{
    static const char *const norm[LAYER_NORMS] = {"input_layernorm",
                                                  "post_attention_layernorm"};
    char name[128];
    for (int l = 0; l < N_LIN; l++) {
        layer_tensor_name(name, sizeof(name), layer, lin_module[l], ".weight");
        TRY(add(p, name, arch_out(a, l), arch_in(a, l)));
    }
    for (size_t i = 0; i < LAYER_NORMS; i++) {
        layer_tensor_name(name, sizeof(name), layer, norm[i], ".weight");
        TRY(add(p, name, a->d_model, 0));
    }
    return OK;
}

static enum err make_plan(struct out_plan *p, const struct synth_settings *s)
{
    const struct arch *a = &s->arch;
    TRY(add(p, "model.embed_tokens.weight", a->vocab, a->d_model));
    for (int64_t i = 0; i < a->n_layers; i++)
        TRY(add_layer(p, a, i));
    TRY(add(p, "model.norm.weight", a->d_model, 0));
    if (!a->tied)
        TRY(add(p, "lm_head.weight", a->vocab, a->d_model));
    return out_plan_cut(p, s->shard_bytes);
}

uint64_t synth_bytes(const struct arch *a)
{
    const uint64_t D = (uint64_t)a->d_model, L = (uint64_t)a->n_layers;
    const uint64_t ends = (uint64_t)a->vocab * D * (a->tied ? 1 : 2) + D;
    return 2 * (ends + L * ((uint64_t)arch_block_params(a) + 2 * D));
}

/* --- values --------------------------------------------------------------------------- */

static enum err draw_channels(bool **out, int64_t n, uint64_t seed)
{
    struct rng r;
    TRY(mem_calloc(out, (size_t)n, sizeof(**out)));
    rng_seed(&r, seed);
    for (int64_t i = 0; i < n / OUTLIER_PART + 1; i++)
        (*out)[rng_below(&r, (uint64_t)n)] = true;
    return OK;
}

/* Returns which rows of tensor number i are loud. The embedding is number 0, then come the layers,
 * the projections first in each. */
static enum loud loud_kind(const struct synth *y, size_t i)
{
    const size_t layer = N_LIN + LAYER_NORMS, n = (size_t)y->s->arch.n_layers * layer;
    const size_t lin = i > 0 && i <= n ? (i - 1) % layer : N_LIN;
    return lin == LIN_O || lin == LIN_DOWN ? LOUD_RESIDUAL
           : lin == LIN_K                  ? LOUD_KEYS
                                           : LOUD_NONE;
}

/* Fills rows [first, first + rows) of one tensor. */
struct piece {
    const struct synth *y;
    const struct normal_table *quiet;
    const bool *loud; /* [rows of the tensor], NULL: none */
    int64_t first, rows, cols, rows_per_chunk;
    uint64_t tensor; /* index in the plan */
};

static const struct normal_table *table_of(const struct piece *p, int64_t row)
{
    return p->loud && p->loud[row] ? p->y->loud : p->quiet;
}

static void fill_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct piece *p = ctx;
    const int64_t begin = chunk * p->rows_per_chunk;
    const int64_t end =
        begin + p->rows_per_chunk < p->rows ? begin + p->rows_per_chunk : p->rows;
    for (int64_t i = begin; i < end; i++)
        synth_row(p->y->piece + i * p->cols, p->cols, table_of(p, p->first + i),
                  p->y->s->seed, p->tensor, (uint64_t)(p->first + i));
}

/* Writes tensor number i of the plan. */
static enum err write_tensor(void *ctx, struct st_writer *f, size_t i)
{
    struct synth *y = ctx;
    const struct out_tensor *t = &y->plan.tensor[i];
    const int64_t rows = t->n_dims == 2 ? t->dim[0] : 1;
    struct piece p = {.y = y, .loud = y->channel[loud_kind(y, i)], .tensor = i};
    p.quiet = t->n_dims == 2 ? y->plain : y->norm;
    p.cols = t->n_dims == 2 ? t->dim[1] : t->dim[0];
    p.rows_per_chunk = CHUNK_WEIGHTS / p.cols + 1;
    const int64_t most = p.cols < PIECE_WEIGHTS ? PIECE_WEIGHTS / p.cols : 1;
    for (; p.first < rows; p.first += p.rows) {
        p.rows = rows - p.first < most ? rows - p.first : most;
        pool_run(y->pool, (p.rows + p.rows_per_chunk - 1) / p.rows_per_chunk, fill_chunk,
                 &p);
        const size_t bytes = (size_t)(p.rows * p.cols) * sizeof(*y->piece);
        TRY(st_write(f, y->piece, bytes));
        y->done += bytes;
        if (y->progress)
            TRY(y->progress(y->progress_ctx, (double)y->done / (double)y->total));
    }
    return OK;
}

/* --- files -------------------------------------------------------------------------- */

/* Returns a token's id as JSON; null: none. */
static json_t *id_json(int32_t id)
{
    return id >= 0 ? json_integer(id) : json_null();
}

static json_t *config_json(const struct synth *y)
{
    const struct arch *a = &y->s->arch;
    json_t *o = json_pack(
        "{s:[s], s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:b, s:s}",
        "architectures", "LlamaForCausalLM", "model_type", a->model_type, "hidden_act",
        "silu", "hidden_size", (json_int_t)a->d_model, "intermediate_size",
        (json_int_t)a->d_ff, "num_hidden_layers", (json_int_t)a->n_layers,
        "num_attention_heads", (json_int_t)a->n_heads, "num_key_value_heads",
        (json_int_t)a->n_kv, "head_dim", (json_int_t)a->head_dim, "vocab_size",
        (json_int_t)a->vocab, "max_position_embeddings", (json_int_t)a->max_positions,
        "rms_norm_eps", (double)a->norm_eps, "rope_theta", a->rope_theta,
        "tie_word_embeddings", (int)a->tied, "torch_dtype", "float16");
    if (o && !json_object_set_new(o, "bos_token_id", id_json(y->bos)) &&
        !json_object_set_new(o, "eos_token_id", id_json(y->eos)))
        return o;
    json_decref(o);
    return NULL;
}

static enum err write_config(const struct synth *y)
{
    enum err err = OK;
    char *path = NULL, *text = NULL;
    json_t *o = config_json(y);
    /* Prints as many digits as an f32 has, so that 1e-5 stays 1e-5. */
    if (!o || !(text = json_text(o, JSON_INDENT(2) | JSON_REAL_PRECISION(7))))
        FAIL_OUT(ERR_MEMORY, "config.json: out of memory");
    const size_t n = strlen(text);
    text[n] = '\n'; /* replaces the NUL */
    TRY_OUT(file_join(&path, y->dir.tmp, "config.json"));
    TRY_OUT(file_write_all(path, text, n + 1));
out:
    mem_free(path);
    free(text);
    json_decref(o);
    return err;
}

/* --- the checkpoint ------------------------------------------------------------------- */

static enum err read_tokenizer(struct synth *y)
{
    const struct synth_settings *s = y->s;
    struct tokenizer *t = NULL;
    y->bos = y->eos = -1;
    if (!s->tokenizer_dir)
        return OK;
    TRY(tokenizer_open(&t, s->tokenizer_dir));
    const int64_t vocab = tokenizer_vocab(t);
    y->bos = tokenizer_bos(t);
    y->eos = tokenizer_eos(t);
    tokenizer_close(&t);
    FAIL_IF(vocab > s->arch.vocab, ERR_MISMATCH,
            "%s: the tokenizer has %" PRId64 " tokens, the model room for %" PRId64,
            s->tokenizer_dir, vocab, s->arch.vocab);
    return OK;
}

static enum err prepare(struct synth *y)
{
    const struct arch *a = &y->s->arch;
    TRY(arch_check(a));
    TRY(read_tokenizer(y));
    TRY(make_plan(&y->plan, y->s));
    y->total = synth_bytes(a);
    TRY(pool_open(&y->pool, y->s->threads));
    TRY(mem_alloc(&y->plain, 1, sizeof(*y->plain)));
    TRY(mem_alloc(&y->loud, 1, sizeof(*y->loud)));
    TRY(mem_alloc(&y->norm, 1, sizeof(*y->norm)));
    normal_table_fill(y->plain, 0, SIGMA);
    normal_table_fill(y->loud, 0, OUTLIER * SIGMA);
    normal_table_fill(y->norm, 1, NORM_SIGMA);
    TRY(draw_channels(&y->channel[LOUD_RESIDUAL], a->d_model, y->s->seed));
    TRY(draw_channels(&y->channel[LOUD_KEYS], a->n_kv * a->head_dim, ~y->s->seed));
    const int64_t widest = a->d_ff > a->d_model ? a->d_ff : a->d_model;
    const int64_t room = widest > PIECE_WEIGHTS ? widest : PIECE_WEIGHTS;
    return mem_alloc(&y->piece, (size_t)room, sizeof(*y->piece));
}

static enum err write_all(struct synth *y)
{
    struct manifest_file copied[ARTIFACT_FILES_MAX], index;
    size_t n;
    TRY(out_plan_write(&y->plan, y->dir.tmp, write_tensor, y));
    if (y->plan.n_shards > 1)
        TRY(artifact_write_index(y->dir.tmp, &y->plan, &index));
    if (y->s->tokenizer_dir)
        TRY(artifact_copy_tokenizer(y->dir.tmp, y->s->tokenizer_dir, copied, &n));
    return write_config(y);
}

static void release(struct synth *y)
{
    outdir_abort(&y->dir);
    out_plan_free(&y->plan);
    pool_close(&y->pool);
    mem_free(y->plain);
    mem_free(y->loud);
    mem_free(y->norm);
    for (int i = 0; i < LOUD_KINDS; i++)
        mem_free(y->channel[i]);
    mem_free(y->piece);
}

enum err synth_write(const char *out_dir, const struct synth_settings *s,
                     enum err (*progress)(void *ctx, double share), void *progress_ctx)
{
    enum err err = OK;
    struct synth y = {.s = s, .progress = progress, .progress_ctx = progress_ctx};
    TRY_OUT(prepare(&y));
    TRY_OUT(file_check_space(out_dir, y.total, "the checkpoint"));
    TRY_OUT(outdir_open(&y.dir, out_dir, OUTDIR_NEW));
    TRY_OUT(write_all(&y));
    TRY_OUT(outdir_commit(&y.dir));
out:
    release(&y);
    return err;
}
