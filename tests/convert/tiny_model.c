/* SPDX-License-Identifier: MIT */
#include "tests/convert/tiny_model.h"

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const struct tiny_model tiny_default = {.type = "llama",
                                        .n_layers = 2,
                                        .d_model = 36,
                                        .d_ff = 53,
                                        .n_heads = 6,
                                        .n_kv = 2,
                                        .head_dim = 6,
                                        .vocab = 40,
                                        .dtype = DT_BF16,
                                        .seed = 1};

#define TENSORS_MAX 512

struct maker {
    const struct tiny_model *m;
    struct rng rng;
    struct named_tensor t[TENSORS_MAX];
    int n;
};

/* rows x cols around mean; cols 0: a vector. */
static enum err add(struct maker *k, const char *name, int64_t rows, int64_t cols,
                    double mean)
{
    const int64_t n = rows * (cols ? cols : 1);
    uint8_t *data = NULL;
    const size_t unit = dtype_bytes(k->m->dtype);
    FAIL_IF(k->n == TENSORS_MAX, ERR_USAGE, "too many tensors for a tiny model");
    TRY(mem_alloc(&data, (size_t)n, unit));
    for (int64_t i = 0; i < n; i++) {
        const float f = (float)(mean + 0.2 * rng_normal(&k->rng));
        const uint16_t h = k->m->dtype == DT_BF16 ? bf16_from_f32(f) : f16_from_f32(f);
        memcpy(data + (size_t)i * unit, unit == 4 ? (const void *)&f : (const void *)&h,
               unit);
    }
    struct named_tensor *t = &k->t[k->n++];
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->t = cols ? tensor_2d(data, k->m->dtype, rows, cols)
                : tensor_1d(data, k->m->dtype, rows);
    return OK;
}

static enum err add_in_layer(struct maker *k, int64_t layer, const char *name, int64_t rows,
                             int64_t cols, double mean)
{
    char full[128];
    snprintf(full, sizeof(full), "model.layers.%" PRId64 ".%s", layer, name);
    return add(k, full, rows, cols, mean);
}

static enum err add_extras(struct maker *k, int64_t i)
{
    const struct tiny_model *m = k->m;
    const int64_t q = m->n_heads * m->head_dim, kv = m->n_kv * m->head_dim;
    if (!strcmp(m->type, "qwen2")) {
        TRY(add_in_layer(k, i, "self_attn.q_proj.bias", q, 0, 0));
        TRY(add_in_layer(k, i, "self_attn.k_proj.bias", kv, 0, 0));
        TRY(add_in_layer(k, i, "self_attn.v_proj.bias", kv, 0, 0));
    }
    if (!strcmp(m->type, "qwen3")) {
        TRY(add_in_layer(k, i, "self_attn.q_norm.weight", m->head_dim, 0, 1));
        TRY(add_in_layer(k, i, "self_attn.k_norm.weight", m->head_dim, 0, 1));
    }
    if (!strcmp(m->type, "olmo2")) {
        TRY(add_in_layer(k, i, "self_attn.q_norm.weight", q, 0, 1));
        TRY(add_in_layer(k, i, "self_attn.k_norm.weight", kv, 0, 1));
        TRY(add_in_layer(k, i, "post_feedforward_layernorm.weight", m->d_model, 0, 1));
    }
    return OK;
}

static enum err add_layer(struct maker *k, int64_t i)
{
    const struct tiny_model *m = k->m;
    const int64_t q = m->n_heads * m->head_dim, kv = m->n_kv * m->head_dim;
    if (strcmp(m->type, "olmo2"))
        TRY(add_in_layer(k, i, "input_layernorm.weight", m->d_model, 0, 1));
    TRY(add_in_layer(k, i, "post_attention_layernorm.weight", m->d_model, 0, 1));
    TRY(add_in_layer(k, i, "self_attn.q_proj.weight", q, m->d_model, 0));
    TRY(add_in_layer(k, i, "self_attn.k_proj.weight", kv, m->d_model, 0));
    TRY(add_in_layer(k, i, "self_attn.v_proj.weight", kv, m->d_model, 0));
    TRY(add_in_layer(k, i, "self_attn.o_proj.weight", m->d_model, q, 0));
    TRY(add_in_layer(k, i, "mlp.gate_proj.weight", m->d_ff, m->d_model, 0));
    TRY(add_in_layer(k, i, "mlp.up_proj.weight", m->d_ff, m->d_model, 0));
    TRY(add_in_layer(k, i, "mlp.down_proj.weight", m->d_model, m->d_ff, 0));
    return add_extras(k, i);
}

static enum err add_all(struct maker *k)
{
    TRY(add(k, "model.embed_tokens.weight", k->m->vocab, k->m->d_model, 0));
    for (int64_t i = 0; i < k->m->n_layers; i++)
        TRY(add_layer(k, i));
    TRY(add(k, "model.norm.weight", k->m->d_model, 0, 1));
    return k->m->tied ? OK : add(k, "lm_head.weight", k->m->vocab, k->m->d_model, 0);
}

static enum err write_text(const char *dir, const char *name, const char *text)
{
    char *path = NULL;
    TRY(file_join(&path, dir, name));
    const enum err err = file_write_all(path, text, strlen(text));
    mem_free(path);
    return err;
}

static enum err write_config(const char *dir, const struct tiny_model *m)
{
    static const char *const architecture[][2] = {{"llama", "LlamaForCausalLM"},
                                                  {"mistral", "MistralForCausalLM"},
                                                  {"qwen2", "Qwen2ForCausalLM"},
                                                  {"qwen3", "Qwen3ForCausalLM"},
                                                  {"olmo2", "Olmo2ForCausalLM"}};
    char text[1024];
    const char *class = "";
    for (size_t i = 0; i < ARRAY_LEN(architecture); i++)
        if (!strcmp(architecture[i][0], m->type))
            class = architecture[i][1];
    snprintf(
        text, sizeof(text),
        "{\"architectures\": [\"%s\"], \"model_type\": \"%s\", \"hidden_act\": \"silu\",\n"
        "\"hidden_size\": %" PRId64 ", \"intermediate_size\": %" PRId64
        ", \"num_hidden_layers\": %" PRId64 ", \"num_attention_heads\": %" PRId64
        ", \"num_key_value_heads\": %" PRId64 ", \"head_dim\": %" PRId64
        ", \"vocab_size\": %" PRId64 ",\n\"max_position_embeddings\": 256, "
        "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"tie_word_embeddings\": %s, "
        "\"bos_token_id\": 1, \"eos_token_id\": 2, \"torch_dtype\": \"%s\"}\n",
        class, m->type, m->d_model, m->d_ff, m->n_layers, m->n_heads, m->n_kv, m->head_dim,
        m->vocab, m->tied ? "true" : "false",
        m->dtype == DT_F32    ? "float32"
        : m->dtype == DT_BF16 ? "bfloat16"
                              : "float16");
    return write_text(dir, "config.json", text);
}

enum err tiny_model_write(const char *dir, const struct tiny_model *m)
{
    enum err err = OK;
    struct maker *k = NULL;
    char *path = NULL;
    TRY(mem_calloc(&k, 1, sizeof(*k)));
    k->m = m;
    rng_seed(&k->rng, m->seed);
    TRY_OUT(file_make_dir(dir));
    TRY_OUT(write_config(dir, m));
    TRY_OUT(write_text(dir, "tokenizer.json", "{\"stand-in\": true}\n"));
    TRY_OUT(write_text(dir, "generation_config.json", "{}\n"));
    TRY_OUT(add_all(k));
    TRY_OUT(file_join(&path, dir, "model.safetensors"));
    TRY_OUT(st_save(path, k->t, k->n, NULL, 0));
out:
    for (int i = 0; i < k->n; i++)
        mem_free(k->t[i].t.data);
    mem_free(path);
    mem_free(k);
    return err;
}
