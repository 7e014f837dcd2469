/* SPDX-License-Identifier: MIT
 *
 * Hugging Face directories: defaults of both generations of config.json, and what is
 * refused with which words. */
#include "convert/checkpoint/hf.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tests/golden_model.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64], last_log[512];

static void keep_log(void *ctx, enum log_level level, const char *line)
{
    snprintf(last_log, sizeof(last_log), "%s", line);
}

static int make_dir(void **state)
{
    log_set_sink(keep_log, NULL);
    strcpy(dir, "/tmp/test_hf.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state)
{
    return !scratch_remove(dir);
}

static void put(const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_int_equal(file_write_all(path, text, strlen(text)), OK);
}

static void drop(const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
}

/* Sizes that a file always has. */
#define SIZES                                                                              \
    "\"hidden_size\":32,\"intermediate_size\":48,\"num_hidden_layers\":2,"                 \
    "\"num_attention_heads\":4,\"vocab_size\":64"

/* Type and sizes, then further members (starting with a comma). */
static struct arch read_ok(const char *type, const char *more)
{
    char text[2048];
    struct arch a = {0};
    snprintf(text, sizeof(text), "{\"model_type\":\"%s\"," SIZES "%s}", type, more);
    put("config.json", text);
    err_clear();
    if (hf_read_config(&a, dir))
        fail_msg("%s", err_text());
    return a;
}

static void refuse_text(const char *text, enum err want, const char *word1,
                        const char *word2)
{
    struct arch a = {0};
    put("config.json", text);
    err_clear();
    const enum err e = hf_read_config(&a, dir);
    if (e != want || !strstr(err_text(), "config.json") || !strstr(err_text(), word1) ||
        !strstr(err_text(), word2))
        fail_msg("%s: want %s with \"%s\" and \"%s\", have %s: %s", text, err_name(want),
                 word1, word2, err_name(e), err_text());
}

static void refuse(const char *type, const char *more, enum err want, const char *word1,
                   const char *word2)
{
    char text[2048];
    snprintf(text, sizeof(text), "{\"model_type\":\"%s\"," SIZES "%s}", type, more);
    refuse_text(text, want, word1, word2);
}

/* --- defaults ----------------------------------------------------------------------- */

static void test_llama_defaults(void **state)
{
    const struct arch a = read_ok("llama", "");
    assert_int_equal(a.family, ARCH_LLAMA);
    assert_string_equal(a.model_type, "llama");
    assert_int_equal(a.n_kv, 4);
    assert_int_equal(a.head_dim, 8);
    assert_int_equal(a.max_positions, 2048);
    assert_true(a.norm_eps == 1e-6f);
    assert_true(a.rope_theta == 10000);
    assert_int_equal(a.rope, ROPE_DEFAULT);
    assert_false(a.qkv_bias || a.o_bias || a.qk_norm || a.tied);
    assert_int_equal(a.sliding_window, 0);
    assert_int_equal(a.bos, 1);
    assert_int_equal(a.n_eos, 1);
    assert_int_equal(a.eos[0], 2);
    assert_int_equal(a.dtype, DT_F32);
}

static void test_mistral_defaults(void **state)
{
    struct arch a = read_ok("mistral", ",\"num_key_value_heads\":2");
    assert_int_equal(a.max_positions, 131072);
    assert_int_equal(a.sliding_window, 4096); /* missing is not null */
    assert_int_equal(a.sliding_from, 0);
    a = read_ok("mistral", ",\"num_key_value_heads\":null,\"sliding_window\":null,"
                           "\"attention_bias\":true");
    assert_int_equal(a.sliding_window, 0);
    assert_int_equal(a.n_kv, 4);
    assert_false(a.qkv_bias); /* MistralConfig has no such field */
    refuse("mistral", "", ERR_FORMAT, "num_key_value_heads", "8"); /* the default, not H */
}

static void test_qwen2_defaults(void **state)
{
    struct arch a = read_ok("qwen2", ",\"num_key_value_heads\":2");
    assert_true(a.qkv_bias && !a.o_bias && !a.qk_norm);
    assert_int_equal(a.head_dim, 8);
    assert_int_equal(a.max_positions, 32768);
    assert_int_equal(a.sliding_window, 0);
    assert_int_equal(a.bos, -1);
    assert_int_equal(a.n_eos, 0);
    a = read_ok("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":100,"
                         "\"use_sliding_window\":false");
    assert_int_equal(a.sliding_window, 0);
    a = read_ok("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":100,"
                         "\"use_sliding_window\":true,\"max_window_layers\":1");
    assert_int_equal(a.sliding_window, 100);
    assert_int_equal(a.sliding_from, 1);
    assert_int_equal(arch_check_length(&a, 100), OK);
    err_clear();
    assert_int_equal(arch_check_length(&a, 101), ERR_SUPPORT);
    a = read_ok("qwen2", ",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
                         "\"layer_types\":[\"full_attention\",\"full_attention\"]");
    assert_int_equal(a.sliding_from, 2); /* no layer of two */
    refuse("qwen2", "", ERR_FORMAT, "num_key_value_heads", "32");
}

static void test_qwen3_defaults(void **state)
{
    struct arch a = read_ok("qwen3", ",\"num_key_value_heads\":2");
    assert_int_equal(a.head_dim, 128); /* not hidden / heads */
    assert_true(a.qk_norm && !a.qkv_bias && !a.o_bias);
    a = read_ok("qwen3",
                ",\"num_key_value_heads\":2,\"attention_bias\":true,\"head_dim\":16");
    assert_true(a.qkv_bias && a.o_bias);
    assert_int_equal(a.head_dim, 16);
}

static void test_missing_sizes(void **state)
{
    struct arch a = {0};
    put("config.json", "{\"model_type\":\"llama\"}");
    err_clear();
    *last_log = 0;
    assert_int_equal(hf_read_config(&a, dir), OK);
    assert_int_equal(a.d_model, 4096);
    assert_int_equal(a.d_ff, 11008);
    assert_int_equal(a.n_layers, 32);
    assert_int_equal(a.vocab, 32000);
    assert_non_null(strstr(last_log, "is missing, taken as")); /* never silently */
}

static void test_generations(void **state)
{
    static const char *const text[] = {
        ",\"rope_theta\":5e5,\"torch_dtype\":\"bfloat16\",\"rope_scaling\":{\"type\":"
        "\"llama3\","
        "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
        "\"original_max_position_embeddings\":512}",
        ",\"dtype\":\"bfloat16\",\"rope_scaling\":null,\"rope_parameters\":{"
        "\"rope_type\":\"llama3\",\"rope_theta\":500000,\"factor\":8.0,\"low_freq_factor\":"
        "1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":512}",
    };
    for (size_t i = 0; i < ARRAY_LEN(text); i++) {
        const struct arch a = read_ok("llama", text[i]);
        assert_int_equal(a.rope, ROPE_LLAMA3);
        assert_true(a.rope_theta == 500000 && a.rope_factor == 8);
        assert_true(a.rope_low == 1 && a.rope_high == 4);
        assert_int_equal(a.rope_original, 512);
        assert_int_equal(a.dtype, DT_BF16);
    }
    struct arch a =
        read_ok("llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}");
    assert_int_equal(a.rope, ROPE_LINEAR);
    assert_true(a.rope_factor == 2.5 && a.rope_theta == 10000);
    a = read_ok("llama",
                ",\"dtype\":\"float16\",\"torch_dtype\":\"bfloat16\",\"rope_theta\":7,"
                "\"rope_parameters\":{\"rope_theta\":9,\"rope_type\":\"default\"}");
    assert_int_equal(a.dtype, DT_F16); /* the newer field wins */
    assert_true(a.rope_theta == 9);
    a = read_ok("llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                         "\"low_freq_factor\":1,\"high_freq_factor\":4}");
    assert_int_equal(a.rope_original, 2048); /* max_position_embeddings */
}

static void test_specials(void **state)
{
    struct arch a = read_ok("llama", ",\"bos_token_id\":[7],\"eos_token_id\":[5,6,9]");
    assert_int_equal(a.bos, 7);
    assert_int_equal(a.n_eos, 3);
    assert_int_equal(a.eos[2], 9);
    a = read_ok("llama", ",\"bos_token_id\":null,\"eos_token_id\":null");
    assert_int_equal(a.bos, -1);
    assert_int_equal(a.n_eos, 0);
    refuse("llama", ",\"eos_token_id\":\"</s>\"", ERR_FORMAT, "eos_token_id", "string");
    refuse("llama", ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", ERR_SUPPORT, "eos_token_id",
           "9");
}

/* --- refusals of config.json -------------------------------------------------------- */

static const struct {
    const char *type, *more;
    enum err err;
    const char *word1, *word2;
} refused_fields[] = {
    {"gpt2", "", ERR_SUPPORT, "gpt2", "llama, mistral"},
    {"mixtral", "", ERR_SUPPORT, "mixtral", "qwen3"},
    {"qwen3_moe", "", ERR_SUPPORT, "qwen3_moe", "supported"},
    {"llama", ",\"num_local_experts\":8", ERR_SUPPORT, "num_local_experts", "8"},
    {"qwen2", ",\"num_experts\":4", ERR_SUPPORT, "num_experts", "dense"},
    {"llama", ",\"architectures\":[\"LlamaForSequenceClassification\"]", ERR_SUPPORT,
     "LlamaForSequenceClassification", "LlamaForCausalLM"},
    {"llama", ",\"architectures\":[3]", ERR_FORMAT, "architectures", "string"},
    {"llama", ",\"hidden_act\":\"gelu\"", ERR_SUPPORT, "hidden_act", "gelu"},
    {"llama", ",\"mlp_bias\":1", ERR_FORMAT, "mlp_bias", "true"},
    {"llama", ",\"partial_rotary_factor\":0.5", ERR_SUPPORT, "partial_rotary_factor",
     "0.5"},
    {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4}", ERR_SUPPORT, "yarn",
     "linear"},
    {"llama", ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}", ERR_SUPPORT,
     "dynamic", "llama3"},
    {"llama", ",\"rope_parameters\":{\"rope_type\":\"longrope\"}", ERR_SUPPORT, "longrope",
     "rope_parameters"},
    {"llama", ",\"rope_scaling\":{\"type\":\"linear\"}", ERR_FORMAT, "factor", "missing"},
    {"llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", ERR_FORMAT,
     "factor", "0.5"},
    {"llama",
     ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
     "\"high_freq_factor\":4}",
     ERR_FORMAT, "low_freq_factor", "high_freq_factor"},
    {"llama", ",\"rope_scaling\":{\"type\":3}", ERR_FORMAT, "type", "string"},
    {"llama", ",\"rope_scaling\":[1]", ERR_FORMAT, "rope_scaling", "object"},
    {"qwen2",
     ",\"num_key_value_heads\":2,\"rope_parameters\":{\"full_attention\":{},"
     "\"sliding_attention\":{}}",
     ERR_SUPPORT, "rope_parameters", "layers"},
    {"llama", ",\"quantization_config\":{\"quant_method\":\"gptq\"}", ERR_SUPPORT,
     "quantization_config", "gptq"},
    {"llama", ",\"compression_config\":{}", ERR_SUPPORT, "compression_config", "quantized"},
    {"llama", ",\"num_key_value_heads\":3", ERR_FORMAT, "num_key_value_heads", "3"},
    {"llama", ",\"num_key_value_heads\":0", ERR_FORMAT, "num_key_value_heads", "0"},
    {"llama", ",\"head_dim\":7", ERR_SUPPORT, "head_dim", "7"},
    {"llama", ",\"head_dim\":\"8\"", ERR_FORMAT, "head_dim", "string"},
    {"llama", ",\"rms_norm_eps\":0", ERR_FORMAT, "rms_norm_eps", "0"},
    {"llama", ",\"rope_theta\":-1", ERR_FORMAT, "rope_theta", "-1"},
    {"llama", ",\"tie_word_embeddings\":1", ERR_FORMAT, "tie_word_embeddings", "true"},
    {"llama", ",\"max_position_embeddings\":0", ERR_FORMAT, "max_position_embeddings", "0"},
    {"qwen2",
     ",\"num_key_value_heads\":2,\"use_sliding_window\":true,\"layer_types\":["
     "\"full\"]",
     ERR_FORMAT, "layer_types", "1"},
    {"qwen2",
     ",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
     "\"layer_types\":[\"full_attention\",\"linear_attention\"]",
     ERR_SUPPORT, "linear_attention", "layer_types[1]"},
};

static void test_refused_fields(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(refused_fields); i++)
        refuse(refused_fields[i].type, refused_fields[i].more, refused_fields[i].err,
               refused_fields[i].word1, refused_fields[i].word2);
}

static void test_refused_texts(void **state)
{
    refuse_text("", ERR_FORMAT, "line", "");
    refuse_text("[]", ERR_FORMAT, "array", "object");
    refuse_text("{}", ERR_FORMAT, "model_type", "missing");
    refuse_text("{\"model_type\":3}", ERR_FORMAT, "model_type", "integer");
    refuse_text("{\"model_type\":\"llama\",\"hidden_size\":30,\"num_attention_heads\":4}",
                ERR_FORMAT, "hidden_size", "head_dim");
    refuse_text("{\"model_type\":\"llama\",\"hidden_size\":-32,\"num_attention_heads\":4}",
                ERR_FORMAT, "hidden_size", "-32");
    refuse_text("{\"model_type\":\"llama\",\"hidden_size\":4611686018427387904}",
                ERR_FORMAT, "hidden_size", "4611686018427387904");
    drop("config.json");
    struct arch a;
    err_clear();
    assert_int_equal(hf_read_config(&a, dir), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "config.json"));
    err_clear();
    assert_int_equal(hf_read_config(&a, "/tmp/no/model.gguf"), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "GGUF"));
    err_clear();
    assert_int_equal(hf_read_config(&a, "/tmp/no/such/dir"), ERR_NOT_FOUND);
}

/* An artifact's own config.json is read, so that its reader can. */
static void test_own_quantization(void **state)
{
    const struct arch a =
        read_ok("llama", ",\"quantization_config\":{\"quant_method\":\"wkvq\"}");
    assert_int_equal(a.n_layers, 2);
}

/* --- weights ------------------------------------------------------------------------ */

static void refuse_open(enum err want, const char *word1, const char *word2)
{
    struct hf_model *m = NULL;
    err_clear();
    const enum err e = hf_open(&m, dir);
    if (e != want || !strstr(err_text(), word1) || !strstr(err_text(), word2))
        fail_msg("want %s with \"%s\" and \"%s\", have %s: %s", err_name(want), word1,
                 word2, err_name(e), err_text());
    assert_null(m);
}

#define MAX_TENSORS 64
struct spec {
    char name[MAX_TENSORS][96];
    struct st_entry e[MAX_TENSORS];
    int n;
};

static struct st_entry *add(struct spec *s, const char *name, int64_t rows, int64_t cols)
{
    struct st_entry *e = &s->e[s->n];
    snprintf(s->name[s->n], sizeof(s->name[0]), "%s", name);
    *e = (struct st_entry){s->name[s->n], DT_F16, cols ? 2 : 1, {rows, cols}};
    s->n++;
    return e;
}

/* The tensors of read_ok("llama", ""), D = 32, F = 48, V = 64, two layers. */
static void llama_tensors(struct spec *s)
{
    static const int64_t out[N_LIN] = {32, 32, 32, 32, 48, 48, 32};
    static const int64_t in[N_LIN] = {32, 32, 32, 32, 32, 32, 48};
    char name[96];
    s->n = 0;
    add(s, "model.embed_tokens.weight", 64, 32);
    add(s, "model.norm.weight", 32, 0);
    add(s, "lm_head.weight", 64, 32);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.input_layernorm.weight", i);
        add(s, name, 32, 0);
        snprintf(name, sizeof(name), "model.layers.%d.post_attention_layernorm.weight", i);
        add(s, name, 32, 0);
        for (int l = 0; l < N_LIN; l++) {
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", i, lin_module[l]);
            add(s, name, out[l], in[l]);
        }
    }
}

static void write_tensors(const char *file, const struct spec *s, int first, int n)
{
    static const uint8_t zero[64 * 64 * 4];
    char path[128];
    struct st_writer *w;
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    assert_int_equal(st_writer_open(&w, path, s->e + first, n, NULL, 0), OK);
    for (int i = first; i < first + n; i++) {
        const int64_t cols = s->e[i].n_dims > 1 ? s->e[i].dim[1] : 1;
        assert_int_equal(
            st_write(w, zero, (size_t)(s->e[i].dim[0] * cols) * dtype_bytes(s->e[i].dtype)),
            OK);
    }
    assert_int_equal(st_writer_commit(&w), OK);
}

static struct st_entry *entry(struct spec *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->name[i], name))
            return &s->e[i];
    return NULL;
}

static void test_tensor_checks(void **state)
{
    struct spec s;
    read_ok("llama", "");
    llama_tensors(&s);
    entry(&s, "model.layers.1.mlp.up_proj.weight")->dim[1] = 31;
    write_tensors("model.safetensors", &s, 0, s.n);
    refuse_open(ERR_FORMAT, "model.layers.1.mlp.up_proj.weight", "[48, 31]");
    refuse_open(ERR_FORMAT, "intermediate_size", "model.safetensors");

    llama_tensors(&s);
    entry(&s, "model.norm.weight")->dtype = DT_I32;
    write_tensors("model.safetensors", &s, 0, s.n);
    refuse_open(ERR_SUPPORT, "model.norm.weight", "I32");

    llama_tensors(&s);
    write_tensors("model.safetensors", &s, 0, s.n - 1);
    refuse_open(ERR_NOT_FOUND, "model.layers.1.mlp.down_proj.weight", "missing");

    write_tensors("model.safetensors", &s, 0, s.n);
    read_ok("llama", ",\"attention_bias\":true");
    refuse_open(ERR_NOT_FOUND, "model.layers.0.self_attn.q_proj.bias", "missing");
    read_ok("qwen3", ",\"num_key_value_heads\":4,\"head_dim\":8");
    refuse_open(ERR_NOT_FOUND, "model.layers.0.self_attn.q_norm.weight", "missing");
    drop("model.safetensors");
}

static void test_extra_tensors(void **state)
{
    struct spec s;
    struct hf_model *m = NULL;
    read_ok("llama", "");
    llama_tensors(&s);
    add(&s, "model.layers.0.self_attn.rotary_emb.inv_freq", 4, 0);
    write_tensors("model.safetensors", &s, 0, s.n);
    *last_log = 0;
    assert_int_equal(hf_open(&m, dir), OK);
    assert_string_equal(last_log, ""); /* follows from config.json: nothing to say */
    assert_int_equal(hf_tensor_count(m), s.n);
    hf_close(&m);
    add(&s, "model.layers.0.self_attn.q_proj.bias", 32, 0);
    write_tensors("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, dir), OK);
    assert_non_null(strstr(last_log, "1 tensors"));
    assert_non_null(strstr(last_log, "q_proj.bias"));
    hf_close(&m);
    drop("model.safetensors");
}

static void test_tied(void **state)
{
    struct spec s;
    struct hf_model *m = NULL;
    struct host_mat embed, norm, head;
    read_ok("llama", ",\"tie_word_embeddings\":true");
    llama_tensors(&s);
    write_tensors("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, dir), OK);
    const struct model_source *src = hf_source(m);
    assert_int_equal(src->ends(src->ctx, &embed, &norm, &head), OK);
    assert_ptr_equal(embed.data, head.data); /* the stored copy is not used */
    hf_close(&m);
    read_ok("llama", "");
    snprintf(s.name[2], sizeof(s.name[2]), "other.weight");
    write_tensors("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, dir), OK);
    assert_true(hf_arch(m)->tied); /* no head is stored */
    hf_close(&m);
    drop("model.safetensors");
}

/* Two shards and an index with one odd entry. */
static void put_index(const char *tensor, const char *file)
{
    char text[1024];
    snprintf(text, sizeof(text),
             "{\"metadata\":{},\"weight_map\":{\"model.embed_tokens.weight\":"
             "\"model-00001-of-00002.safetensors\",\"model.layers.1.mlp.up_proj.weight\":"
             "\"model-00002-of-00002.safetensors\",\"%s\":\"%s\"}}",
             tensor, file);
    put("model.safetensors.index.json", text);
}

static void test_shards(void **state)
{
    struct spec s;
    struct hf_model *m = NULL;
    read_ok("llama", "");
    llama_tensors(&s);
    write_tensors("model-00001-of-00002.safetensors", &s, 0, 10);
    write_tensors("model-00002-of-00002.safetensors", &s, 10, s.n - 10);
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    if (hf_open(&m, dir))
        fail_msg("%s", err_text());
    assert_int_equal(hf_tensor_count(m), s.n);
    assert_non_null(hf_find(m, "model.layers.1.mlp.down_proj.weight"));
    assert_null(hf_find(m, "model.layers.2.mlp.down_proj.weight"));
    hf_release(m, hf_find(m, "lm_head.weight"));
    hf_close(&m);
    put_index("lm_head.weight", "model-00002-of-00002.safetensors");
    refuse_open(ERR_FORMAT, "lm_head.weight", "model-00002-of-00002.safetensors");
    put_index("lm_head.weight", "model-00003-of-00002.safetensors");
    refuse_open(ERR_NOT_FOUND, "model-00003-of-00002.safetensors", dir);
    put_index("lm_head.weight", "../model.safetensors");
    refuse_open(ERR_FORMAT, "../model.safetensors", "same directory");
    put_index("lm_head.weight", "/etc/x.safetensors");
    refuse_open(ERR_FORMAT, "/etc/x.safetensors", "lm_head.weight");
    put_index("lm_head.weight", "pytorch_model.bin");
    refuse_open(ERR_FORMAT, "pytorch_model.bin", "lm_head.weight");
    put("model.safetensors.index.json", "{\"weight_map\":{}}");
    refuse_open(ERR_FORMAT, "weight_map", "empty");
    put("model.safetensors.index.json", "{\"weight_map\":{\"a\":3}}");
    refuse_open(ERR_FORMAT, "weight_map", "integer");
    put("model.safetensors.index.json", "{}");
    refuse_open(ERR_FORMAT, "weight_map", "missing");
    write_tensors("model-00002-of-00002.safetensors", &s, 9, s.n - 9);
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    refuse_open(ERR_FORMAT, s.name[9], "both");
    drop("model.safetensors.index.json");
}

static void test_no_weights(void **state)
{
    read_ok("llama", "");
    drop("model-00001-of-00002.safetensors");
    drop("model-00002-of-00002.safetensors");
    refuse_open(ERR_NOT_FOUND, "model.safetensors", dir);
    static const char *const other[] = {"pytorch_model.bin", "consolidated.00.pth",
                                        "m.gguf"};
    for (size_t i = 0; i < ARRAY_LEN(other); i++) {
        put(other[i], "x");
        refuse_open(ERR_SUPPORT, other[i], "safetensors");
        drop(other[i]);
    }
}

static void test_identity(void **state)
{
    struct spec s;
    struct hf_model *m = NULL;
    uint32_t shallow, deep, crc;
    read_ok("llama", "");
    llama_tensors(&s);
    write_tensors("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, dir), OK);
    assert_int_equal(hf_identity(&shallow, m, false), OK);
    assert_int_equal(hf_identity(&deep, m, true), OK);
    hf_close(&m);
    char path[128];
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -1, SEEK_END);
    fputc(1, f);
    fclose(f);
    assert_int_equal(hf_open(&m, dir), OK);
    assert_int_equal(hf_identity(&crc, m, false), OK);
    assert_int_equal(crc, shallow);
    assert_int_equal(hf_identity(&crc, m, true), OK);
    assert_int_not_equal(crc, deep);
    hf_close(&m);
    read_ok("llama", ",\"rope_theta\":20000");
    assert_int_equal(hf_open(&m, dir), OK);
    assert_int_equal(hf_identity(&crc, m, false), OK);
    assert_int_not_equal(crc, shallow);
    hf_close(&m);
    drop("model.safetensors");
}

/* What save_pretrained writes. */
static void test_golden_models(void **state)
{
    for (int i = 0; i < golden_count; i++) {
        struct golden g;
        err_clear();
        if (golden_open(&g, golden_name[i]))
            fail_msg("%s: %s", golden_name[i], err_text());
        assert_int_equal(g.V, hf_arch(g.model)->vocab);
        golden_close(&g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_defaults), cmocka_unit_test(test_mistral_defaults),
        cmocka_unit_test(test_qwen2_defaults), cmocka_unit_test(test_qwen3_defaults),
        cmocka_unit_test(test_missing_sizes),  cmocka_unit_test(test_generations),
        cmocka_unit_test(test_specials),       cmocka_unit_test(test_refused_fields),
        cmocka_unit_test(test_refused_texts),  cmocka_unit_test(test_own_quantization),
        cmocka_unit_test(test_tensor_checks),  cmocka_unit_test(test_extra_tensors),
        cmocka_unit_test(test_tied),           cmocka_unit_test(test_shards),
        cmocka_unit_test(test_no_weights),     cmocka_unit_test(test_identity),
        cmocka_unit_test(test_golden_models),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
