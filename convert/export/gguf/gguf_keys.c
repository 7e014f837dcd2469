/* SPDX-License-Identifier: MIT */
#include "convert/export/gguf/gguf_keys.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/file/file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define QUANTIZATION_VERSION 2 /* of ggml's block formats */

/* --- the architecture --------------------------------------------------------------- */

/* By enum arch_family. */
static const struct gguf_graph graphs[] = {
    [ARCH_LLAMA] = {.arch = "llama", .has_llama3 = true, .has_biases = true},
    [ARCH_MISTRAL] = {.arch = "llama", .has_llama3 = true, .has_biases = true},
    [ARCH_QWEN2] = {.arch = "qwen2", .heads_fill_width = true},
    [ARCH_QWEN3] = {.arch = "qwen3"},
    [ARCH_GRANITE] = {.arch = "granite", .has_llama3 = true, .has_biases = true},
    [ARCH_SMOLLM3] = {.arch = "smollm3", .no_rope_step = 4},
    [ARCH_PHI3] = {.arch = "phi3", .fuses = true, .heads_fill_width = true},
    [ARCH_GEMMA3] = {.arch = "gemma3", .full_step = 6},
    [ARCH_OLMO2] = {.arch = "olmo2", .heads_fill_width = true, .has_own_head = true},
    [ARCH_QWEN3_MOE] = {.arch = "qwen3moe", .renormalizes = true},
    [ARCH_MIXTRAL] = {.arch = "llama",
                      .has_llama3 = true,
                      .has_biases = true,
                      .renormalizes = true},
};

/* Refuses other layers without a rope than the graph has: each whose number, counted from
 * 1, its step divides. */
static enum err check_no_rope(const struct arch *a, int64_t step)
{
    for (int64_t i = 0; i < a->n_layers; i++) {
        const bool have = layer_set_has(&a->no_rope, i);
        FAIL_IF(have != (step && (i + 1) % step == 0), ERR_SUPPORT,
                "no_rope_layers: layer %" PRId64 " has %s rotary embedding; llama.cpp "
                "leaves it out in every layer of %" PRId64 " for model_type %s",
                i, have ? "no" : "a", step, a->model_type);
    }
    return OK;
}

/* Refuses what llama.cpp has as constants of gemma3: which layers slide, the base of their rope,
 * and the factor of the scores, which in the largest model is of the mean width of a head. */
static enum err check_gemma(const struct gguf_graph *g, const struct arch *a)
{
    const int64_t width = a->n_layers == 62 ? a->d_model / a->n_heads : a->head_dim;
    for (int64_t i = 0; i < a->n_layers; i++)
        FAIL_IF(layer_set_has(&a->sliding, i) != ((i + 1) % g->full_step != 0), ERR_SUPPORT,
                "layer_types: layer %" PRId64 " is %s; llama.cpp has a full one in every "
                "%" PRId64 " layers of model_type %s",
                i, layer_set_has(&a->sliding, i) ? "sliding" : "full", g->full_step,
                a->model_type);
    FAIL_IF(a->rope_theta_sliding != 1e4, ERR_SUPPORT,
            "rope_local_base_freq is %g, which llama.cpp has as 10000",
            a->rope_theta_sliding);
    FAIL_IF(a->rope != ROPE_DEFAULT && a->rope != ROPE_LINEAR, ERR_SUPPORT,
            "rope_type %s with model_type %s: llama.cpp computes default and linear",
            rope_name[a->rope], a->model_type);
    FAIL_IF(fabs(a->attn_scale * sqrt((double)width) - 1) > 1e-6, ERR_SUPPORT,
            "query_pre_attn_scalar is %g, which llama.cpp has as %" PRId64,
            1 / (a->attn_scale * a->attn_scale), width);
    FAIL_IF(a->sliding_window < 1, ERR_SUPPORT,
            "sliding_window is missing, which llama.cpp needs for model_type %s",
            a->model_type);
    return OK;
}

_Static_assert(ARCH_MAX_EXPERTS <= GGUF_MAX_EXPERTS, "check_graph() must refuse experts");

static enum err check_graph(const struct gguf_graph *g, const struct arch *a)
{
    FAIL_IF(a->n_layers > GGUF_MAX_LAYERS, ERR_SUPPORT,
            "num_hidden_layers is %" PRId64 ", and llama.cpp has at most %d", a->n_layers,
            GGUF_MAX_LAYERS);
    FAIL_IF(a->rope == ROPE_YARN && !a->rope_truncate, ERR_SUPPORT,
            "rope_scaling.truncate is false: llama.cpp computes yarn with true");
    FAIL_IF(a->rope == ROPE_LLAMA3 && !g->has_llama3, ERR_SUPPORT,
            "rope_type llama3 with model_type %s: llama.cpp computes it for llama, mistral "
            "and granite only",
            a->model_type);
    FAIL_IF((a->o_bias || a->mlp_bias) && !g->has_biases, ERR_SUPPORT,
            "%s: llama.cpp has no biases of o_proj and the MLP for model_type %s",
            a->o_bias ? "attention_bias" : "mlp_bias", a->model_type);
    FAIL_IF(g->heads_fill_width && a->n_heads * a->head_dim != a->d_model, ERR_SUPPORT,
            "num_attention_heads %" PRId64 " x head_dim %" PRId64 " is not hidden_size "
            "%" PRId64 ", which llama.cpp needs for model_type %s",
            a->n_heads, a->head_dim, a->d_model, a->model_type);
    FAIL_IF(g->has_own_head && a->tied, ERR_SUPPORT,
            "tie_word_embeddings: llama.cpp wants a head of its own for model_type %s",
            a->model_type);
    FAIL_IF(
        a->n_experts && a->norm_active != g->renormalizes, ERR_SUPPORT,
        "norm_topk_prob is false: llama.cpp divides the weights of the chosen experts by "
        "their sum for model_type %s",
        a->model_type);
    if (g->full_step)
        TRY(check_gemma(g, a));
    return check_no_rope(a, g->no_rope_step);
}

enum err gguf_check_arch(struct gguf_plan *p, const struct export_source *s)
{
    p->graph = &graphs[s->arch->family];
    const enum err err = check_graph(p->graph, s->arch);
    return err ? err_add(err, "%s/config.json: ", s->dir) : OK;
}

int64_t gguf_context(const struct arch *a)
{
    const bool windows = graphs[a->family].full_step != 0;
    const int64_t n = windows ? a->max_positions : arch_full_attention(a);
    return n < INT32_MAX ? n : INT32_MAX;
}

/* --- keys --------------------------------------------------------------------------- */

/* Writes "ARCH.name" to out. */
static const char *key_of(char out[96], const struct gguf_plan *p, const char *name)
{
    snprintf(out, 96, "%s.%s", p->graph->arch, name);
    return out;
}

static enum err put_u32(struct gguf_plan *p, const char *name, int64_t v)
{
    char key[96];
    return gguf_key_u32(p->w, key_of(key, p, name), (uint32_t)v);
}

static enum err put_f32(struct gguf_plan *p, const char *name, double v)
{
    char key[96];
    return gguf_key_f32(p->w, key_of(key, p, name), (float)v);
}

static enum err put_string(struct gguf_plan *p, const char *key, const char *s)
{
    return gguf_key_string(p->w, key, s, strlen(s));
}

static enum err put_sizes(struct gguf_plan *p, const struct arch *a)
{
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {
        {"block_count", a->n_layers},
        {"context_length", gguf_context(a)},
        {"embedding_length", a->d_model},
        {"feed_forward_length", a->d_ff},
        {"attention.head_count", a->n_heads},
        {"attention.head_count_kv", a->n_kv},
        {"attention.key_length", a->head_dim},
        {"attention.value_length", a->head_dim},
        {"vocab_size", a->vocab},
        {"rope.dimension_count", arch_rotary_dim(a)},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        TRY(put_u32(p, sizes[i].name, sizes[i].value));
    if (a->n_experts) {
        TRY(put_u32(p, "expert_count", a->n_experts));
        TRY(put_u32(p, "expert_used_count", a->n_active));
        TRY(put_u32(p, "expert_feed_forward_length", a->d_ff));
    }
    if (p->graph->full_step)
        TRY(put_u32(p, "attention.sliding_window", a->sliding_window));
    TRY(put_f32(p, "attention.layer_norm_rms_epsilon", (double)a->norm_eps));
    return put_f32(p, "rope.freq_base", a->rope_theta);
}

/* Granite's factors. llama.cpp divides the logits by theirs. */
static enum err put_factors(struct gguf_plan *p, const struct arch *a)
{
    if (a->family != ARCH_GRANITE)
        return OK;
    TRY(put_f32(p, "embedding_scale", a->embed_scale));
    TRY(put_f32(p, "attention.scale", a->attn_scale));
    TRY(put_f32(p, "residual_scale", a->residual_scale));
    return put_f32(p, "logit_scale", 1 / a->logit_scale);
}

/* llama.cpp multiplies cos and sin by attn_factor (1 + 0.1 ln factor). */
static enum err put_yarn(struct gguf_plan *p, const struct arch *a)
{
    TRY(put_u32(p, "rope.scaling.original_context_length", a->rope_original));
    TRY(put_f32(p, "rope.scaling.attn_factor",
                a->rope_attention / (1 + 0.1 * log(a->rope_factor))));
    TRY(put_f32(p, "rope.scaling.yarn_beta_fast", a->rope_high));
    return put_f32(p, "rope.scaling.yarn_beta_slow", a->rope_low);
}

/* llama.cpp takes the short factors, a tensor, up to this length. */
static enum err put_longrope(struct gguf_plan *p, const struct arch *a)
{
    TRY(put_u32(p, "rope.scaling.original_context_length", a->rope_original));
    return put_f32(p, "rope.scaling.attn_factor", a->rope_attention);
}

/* Llama 3's scaling is the tensor rope_freqs.weight. A dynamic one is not needed within
 * context_length. */
static enum err put_rope(struct gguf_plan *p, const struct arch *a)
{
    char key[96];
    if (a->rope == ROPE_LONGROPE)
        return put_longrope(p, a);
    if (a->rope != ROPE_LINEAR && a->rope != ROPE_YARN)
        return OK;
    TRY(put_string(p, key_of(key, p, "rope.scaling.type"), rope_name[a->rope]));
    TRY(put_f32(p, "rope.scaling.factor", a->rope_factor));
    return a->rope == ROPE_YARN ? put_yarn(p, a) : OK;
}

/* Returns llama.cpp's number for files mostly of this type. */
static uint32_t file_type(enum gguf_type t)
{
    static const struct {
        enum gguf_type type;
        uint32_t number;
    } files[] = {{GGUF_F32, 0},  {GGUF_F16, 1},  {GGUF_Q4_1, 3},
                 {GGUF_Q8_0, 7}, {GGUF_Q5_1, 9}, {GGUF_BF16, 32}};
    for (size_t i = 0; i < ARRAY_LEN(files); i++)
        if (files[i].type == t)
            return files[i].number;
    return 0;
}

/* Returns the type of most weights of the projections. */
static enum gguf_type main_type(const struct gguf_plan *p)
{
    int64_t n[GGUF_BF16 + 1] = {0};
    int best = GGUF_F32;
    for (size_t i = 0; i < p->n; i++)
        if (p->item[i].linear && p->item[i].linear->layer >= 0)
            n[p->item[i].type] += p->item[i].rows * p->item[i].cols;
    for (int t = 0; t <= GGUF_BF16; t++)
        best = n[t] > n[best] ? t : best;
    return (enum gguf_type)best;
}

/* Returns true for a name in UTF-8, as GGUF's strings are, and not for "." and "..". */
static bool is_name(const char *s)
{
    return *s && strcmp(s, ".") != 0 && strcmp(s, "..") != 0 && utf8_valid(s, strlen(s));
}

/* Returns the model's name: the last part of --base-model, of the checkpoint's own name,
 * or of the artifact's directory. Borrowed. */
static const char *model_name(const struct export_job *j)
{
    const char *own =
        json_string_value(json_object_get(j->source->config, "_name_or_path"));
    const char *names[] = {j->options.base_model, own, j->source->dir};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (names[i] && is_name(file_base_name(names[i])))
            return file_base_name(names[i]);
    return "model";
}

/* The model that was quantized, as "organization/name". */
static enum err put_base(struct gguf_plan *p, const struct export_job *j)
{
    const char *id = export_base_model(j);
    const char *slash = id ? strchr(id, '/') : NULL;
    if (!slash || slash == id || !slash[1] || strchr(slash + 1, '/'))
        return OK;
    TRY(gguf_key_u32(p->w, "general.base_model.count", 1));
    TRY(put_string(p, "general.base_model.0.name", slash + 1));
    return gguf_key_string(p->w, "general.base_model.0.organization", id,
                           (size_t)(slash - id));
}

static enum err put_general(struct gguf_plan *p, const struct export_job *j)
{
    const char *product =
        json_string_value(json_object_get(j->source->manifest, "product"));
    const char *crc =
        json_string_value(json_object_get(j->source->manifest, "manifest_crc32"));
    const char *license = export_license(j);
    TRY(put_string(p, "general.architecture", p->graph->arch));
    TRY(put_string(p, "general.type", "model"));
    TRY(put_string(p, "general.name", model_name(j)));
    if (license)
        TRY(put_string(p, "general.license", license));
    TRY(put_base(p, j));
    if (product)
        TRY(put_string(p, "general.quantized_by", product));
    if (crc) /* which artifact this is */
        TRY(put_string(p, "wkvq.manifest_crc32", crc));
    if (j->carries_target) /* the cache to serve it with */
        TRY(put_string(p, "wkvq.kv_target", kv_target_name[j->source->kv->target]));
    TRY(gguf_key_u32(p->w, "general.file_type", file_type(main_type(p))));
    return gguf_key_u32(p->w, "general.quantization_version", QUANTIZATION_VERSION);
}

/* Announces the tensors, each with the rows of the items that continue it. */
static enum err announce(struct gguf_plan *p)
{
    for (size_t i = 0, end; i < p->n; i = end) {
        const struct gguf_item *t = &p->item[i];
        int64_t rows = t->rows;
        for (end = i + 1; end < p->n && p->item[end].continues; end++)
            rows += p->item[end].rows;
        const int64_t dim[] = {rows / t->rows, t->n_dims < 3 ? rows : t->rows, t->cols};
        TRY(gguf_tensor(p->w, t->name, t->type, t->n_dims, dim + 3 - t->n_dims));
    }
    return OK;
}

enum err gguf_add_keys(struct gguf_plan *p, const struct export_job *j)
{
    TRY(put_general(p, j));
    TRY(put_sizes(p, j->source->arch));
    TRY(put_factors(p, j->source->arch));
    TRY(put_rope(p, j->source->arch));
    if (p->copy.n_keys)
        TRY(gguf_copy_keys(p->w, &p->copy));
    else if (p->vocab.model)
        TRY(gguf_vocab_keys(p->w, &p->vocab));
    else
        TRY(put_string(p, "tokenizer.ggml.model", "none"));
    return announce(p);
}
