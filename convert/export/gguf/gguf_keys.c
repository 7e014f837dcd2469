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

static enum err check_qwen(const struct arch *a)
{
    FAIL_IF(a->rope == ROPE_LLAMA3, ERR_SUPPORT,
            "rope_type llama3 with model_type %s: llama.cpp computes it for llama and "
            "mistral only",
            a->model_type);
    FAIL_IF(a->o_bias || a->mlp_bias, ERR_SUPPORT,
            "%s: llama.cpp has no biases of o_proj and the MLP for model_type %s",
            a->o_bias ? "attention_bias" : "mlp_bias", a->model_type);
    FAIL_IF(a->family == ARCH_QWEN2 && a->n_heads * a->head_dim != a->d_model, ERR_SUPPORT,
            "num_attention_heads %" PRId64 " x head_dim %" PRId64 " is not hidden_size "
            "%" PRId64 ", which llama.cpp needs for model_type qwen2",
            a->n_heads, a->head_dim, a->d_model);
    return OK;
}

/* Returns llama.cpp's name of the architecture. */
static const char *arch_name(enum arch_family f)
{
    static const char *const name[] = {[ARCH_LLAMA] = "llama",
                                       [ARCH_MISTRAL] = "llama",
                                       [ARCH_QWEN2] = "qwen2",
                                       [ARCH_QWEN3] = "qwen3",
                                       [ARCH_GRANITE] = "granite"};
    return name[f];
}

enum err gguf_check_arch(struct gguf_plan *p, const struct export_source *s)
{
    const struct arch *a = s->arch;
    enum err err = OK;
    p->arch = arch_name(a->family);
    p->is_llama = arch_interleaves_keys(a);
    if (a->rope == ROPE_YARN && !a->rope_truncate)
        err = err_set(ERR_SUPPORT, __FILE__, __LINE__,
                      "rope_scaling.truncate is false: llama.cpp computes yarn with true");
    else if (!p->is_llama)
        err = check_qwen(a);
    return err ? err_add(err, "%s/config.json: ", s->dir) : OK;
}

int64_t gguf_context(const struct arch *a)
{
    const int64_t n = arch_full_attention(a);
    return n < INT32_MAX ? n : INT32_MAX;
}

/* --- keys --------------------------------------------------------------------------- */

/* Writes "ARCH.name" to out. */
static const char *key_of(char out[96], const struct gguf_plan *p, const char *name)
{
    snprintf(out, 96, "%s.%s", p->arch, name);
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
        {"rope.dimension_count", a->head_dim},
    };
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        TRY(put_u32(p, sizes[i].name, sizes[i].value));
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

/* Llama 3's scaling is the tensor rope_freqs.weight. A dynamic one is not needed within
 * context_length. */
static enum err put_rope(struct gguf_plan *p, const struct arch *a)
{
    char key[96];
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
    enum gguf_type best = GGUF_F32;
    int64_t most = 0;
    for (size_t i = 0; i < p->n; i++) {
        int64_t n = 0;
        for (size_t k = 0; k < p->n; k++)
            if (p->item[k].linear && p->item[k].linear->layer >= 0 &&
                p->item[k].type == p->item[i].type)
                n += p->item[k].rows * p->item[k].cols;
        if (n > most) {
            most = n;
            best = p->item[i].type;
        }
    }
    return best;
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
    TRY(put_string(p, "general.architecture", p->arch));
    TRY(put_string(p, "general.type", "model"));
    TRY(put_string(p, "general.name", model_name(j)));
    if (license)
        TRY(put_string(p, "general.license", license));
    TRY(put_base(p, j));
    if (product)
        TRY(put_string(p, "general.quantized_by", product));
    if (crc) /* which artifact this is */
        TRY(put_string(p, "wkvq.manifest_crc32", crc));
    if (j->source->kv->target) /* the cache to serve it with */
        TRY(put_string(p, "wkvq.kv_target", kv_target_name[j->source->kv->target]));
    TRY(gguf_key_u32(p->w, "general.file_type", file_type(main_type(p))));
    return gguf_key_u32(p->w, "general.quantization_version", QUANTIZATION_VERSION);
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
    for (size_t i = 0; i < p->n; i++) {
        const struct gguf_item *t = &p->item[i];
        const int64_t dim[] = {t->rows, t->cols};
        TRY(gguf_tensor(p->w, t->name, t->type, t->is_vector ? 1 : 2, dim + t->is_vector));
    }
    return OK;
}
