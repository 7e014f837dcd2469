/* SPDX-License-Identifier: MIT
 *
 * Checkpoints whose files disagree with config.json or with the index. config.json of OLMo 2,
 * Gemma 3 and mixtures of experts. */
#include "convert/checkpoint/hf_files.h"
#include "tests/convert/hf_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_mixture_defaults(void **state)
{
    struct arch a = hf_read("qwen3_moe", ",\"num_key_value_heads\":2");
    assert_int_equal(a.n_experts, 128);
    assert_int_equal(a.n_active, 8);
    assert_int_equal(a.d_ff, 768); /* not intermediate_size */
    assert_true(a.qk_norm == QK_NORM_HEAD && !a.norm_active && !a.sliding_window);
    assert_int_equal(arch_out(&a, LIN_UP), 128 * 768);
    assert_int_equal(arch_out(&a, LIN_DOWN), 128 * a.d_model);
    assert_int_equal(arch_in(&a, LIN_DOWN), 768);
    assert_int_equal(arch_token_params(&a) - arch_out(&a, LIN_Q) * a.d_model * 2 -
                         arch_out(&a, LIN_K) * a.d_model * 2,
                     3 * 8 * 768 * a.d_model);
    a = hf_read("qwen3_moe",
                ",\"num_key_value_heads\":2,\"num_local_experts\":6,\"num_experts\":5,"
                "\"num_experts_per_tok\":3,\"norm_topk_prob\":true,"
                "\"use_sliding_window\":true,\"sliding_window\":100");
    assert_int_equal(a.n_experts, 6); /* transformers 5 writes it under this name */
    assert_true(a.norm_active);
    assert_int_equal(arch_reach(&a, 1), 100); /* all layers */
    a = hf_read("mixtral", ",\"num_key_value_heads\":2");
    assert_int_equal(a.n_experts, 8);
    assert_int_equal(a.n_active, 2);
    assert_int_equal(a.d_ff, 48);
    assert_true(a.norm_active && !a.sliding_window);
}

static void test_extra_tensors(void **state)
{
    struct hf_spec s;
    struct hf_model *m = NULL;
    hf_read("llama", "");
    hf_llama_tensors(&s);
    hf_add(&s, "model.layers.0.self_attn.rotary_emb.inv_freq", 4, 0);
    hf_write("model.safetensors", &s, 0, s.n);
    *hf_log = 0;
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_string_equal(hf_log, ""); /* follows from config.json: nothing to say */
    assert_int_equal(hf_tensor_count(m), s.n);
    hf_close(&m);
    hf_add(&s, "model.layers.0.self_attn.q_proj.bias", 32, 0);
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_non_null(strstr(hf_log, "1 tensors"));
    assert_non_null(strstr(hf_log, "q_proj.bias"));
    hf_close(&m);
    hf_drop("model.safetensors");
}

/* A type of 16 bits is that of every block's weights, as they are handed out. */
static void check_stored(struct hf_model *m, enum dtype v, enum dtype o, enum dtype rest)
{
    const struct model_source *src = hf_source(m);
    for (int l = 0; l < N_LIN; l++)
        assert_int_equal(src->stored[l], l == LIN_V ? v : l == LIN_O ? o : rest);
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++) {
        struct block_src block;
        assert_int_equal(src->block(src->ctx, i, &block), OK);
        for (int l = 0; l < N_LIN; l++)
            assert_true(src->stored[l] == DT_F32 || block.lin[l].dtype == src->stored[l]);
    }
}

/* The types of projections, of all blocks together, which a rotation keeps. */
static void test_stored_types(void **state)
{
    struct hf_spec s;
    struct hf_model *m = NULL;
    struct kv_spec kv = {.method = KV_TOKEN, .bits = 4, .rotate = ROTATE_V};
    hf_read("llama", "");
    hf_llama_tensors(&s);
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    check_stored(m, DT_F16, DT_F16, DT_F16);
    assert_false(hf_source(m)->makes_blocks);
    assert_int_equal(hf_rotate_values(m, &kv), OK);
    check_stored(m, DT_F16, DT_F16, DT_F16);
    assert_true(hf_source(m)->makes_blocks);
    hf_close(&m);
    for (int layer = 0; layer < 2; layer++)
        for (int l = 0; l < N_LIN; l++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%d.%s.weight", layer, lin_module[l]);
            if (l != LIN_O || layer == 1) /* its types differ between layers */
                hf_entry(&s, name)->dtype = l == LIN_V ? DT_F32 : DT_BF16;
        }
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    check_stored(m, DT_F32, DT_F32, DT_BF16);
    assert_int_equal(hf_rotate_values(m, &kv), OK);
    check_stored(m, DT_F32, DT_F32, DT_BF16);
    hf_close(&m);
    hf_drop("model.safetensors");
}

/* Opens the directory and checks that the log contains the word. */
static struct hf_model *open_saying(const char *word)
{
    struct hf_model *m = NULL;
    *hf_log = 0;
    err_clear();
    if (hf_open(&m, hf_dir))
        fail_msg("%s", err_text());
    if (*word ? !strstr(hf_log, word) : *hf_log != 0)
        fail_msg("the log has \"%s\", want \"%s\"", hf_log, word);
    return m;
}

/* Returns true if the model is tied, and embedding and head have these bytes. Closes it. */
static void check_ends(struct hf_model **m, bool tied, int embed_byte, int head_byte)
{
    struct host_mat embed, norm, head;
    const struct model_source *src = hf_source(*m);
    assert_int_equal(src->ends(src->ctx, &embed, &norm, &head), OK);
    assert_int_equal(hf_arch(*m)->tied, tied);
    assert_int_equal(embed.data == head.data, tied);
    assert_int_equal(*(const uint8_t *)embed.data, embed_byte);
    assert_int_equal(*(const uint8_t *)head.data, head_byte);
    hf_close(m);
}

#define TIED ",\"tie_word_embeddings\":true"
enum { EMBED_AT = 0, HEAD_AT = 2 }; /* in hf_llama_tensors */

static void test_tied(void **state)
{
    struct hf_spec s;
    struct hf_model *m;
    hf_read("llama", TIED);
    hf_llama_tensors(&s);
    s.fill[EMBED_AT] = s.fill[HEAD_AT] = 7;
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying(""); /* the same bytes twice: tied, as config.json says */
    check_ends(&m, true, 7, 7);
    s.fill[HEAD_AT] = 8;
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying("lm_head.weight differs from the embedding: both are used");
    check_ends(&m, false, 7, 8);
    s.e[HEAD_AT].dtype = DT_BF16;
    s.fill[HEAD_AT] = 7; /* the same bytes as BF16 are other values */
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying("both are used");
    check_ends(&m, false, 7, 7);
    snprintf(s.name[HEAD_AT], sizeof(s.name[0]), "model.layers.0.rotary_emb.inv_freq");
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying("");
    check_ends(&m, true, 7, 7);
    hf_read("llama", "");
    m = open_saying("no lm_head.weight: the embedding serves as the head");
    check_ends(&m, true, 7, 7);
    hf_drop("model.safetensors");
}

/* Of a tied pair only the head is stored. */
static void test_head_only(void **state)
{
    struct hf_spec s;
    hf_read("llama", TIED);
    hf_llama_tensors(&s);
    s.fill[HEAD_AT] = 5;
    hf_write("model.safetensors", &s, 1, s.n - 1);
    struct hf_model *m = open_saying("only lm_head.weight is stored");
    assert_non_null(hf_find(m, "model.embed_tokens.weight"));
    assert_null(hf_find(m, "lm_head.weight"));
    check_ends(&m, true, 5, 5);
    hf_read("llama", "");
    hf_refuse_open(ERR_NOT_FOUND, "model.embed_tokens.weight", "missing");
    hf_drop("model.safetensors");
}

/* As LlamaModel.save_pretrained names them. */
static void test_base_model(void **state)
{
    struct hf_spec s;
    hf_read("llama", TIED ",\"architectures\":[\"LlamaModel\"]");
    hf_llama_tensors(&s);
    for (int i = 0; i < s.n; i++)
        if (i != HEAD_AT)
            memmove(s.name[i], s.name[i] + strlen("model."), strlen(s.name[i]) - 5);
    s.fill[EMBED_AT] = 3;
    s.fill[HEAD_AT] = 4;
    hf_write("model.safetensors", &s, 0, 2); /* no head, but no blocks either */
    hf_refuse_open(ERR_NOT_FOUND, "model.layers.0.input_layernorm.weight", "missing");
    hf_write("model.safetensors", &s, 0, s.n); /* with the head, under its whole name */
    struct hf_model *m = open_saying("both are used");
    assert_non_null(hf_find(m, "model.layers.1.mlp.down_proj.weight"));
    assert_null(hf_find(m, "layers.1.mlp.down_proj.weight"));
    check_ends(&m, false, 3, 4);
    snprintf(s.name[HEAD_AT], sizeof(s.name[0]), "rotary_emb.inv_freq");
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying("");
    check_ends(&m, true, 3, 3);
    hf_read("llama", "");
    hf_refuse_open(ERR_SUPPORT, "lm_head.weight", "not its base alone");
    hf_drop("model.safetensors");
}

static void test_wrapped(void **state)
{
    static const char *const bad[][2] = {
        {"_orig_mod.model.norm.weight", "torch.compile"},
        {"model._orig_mod.norm.weight", "torch.compile"},
        {"base_model.model.model.norm.weight", "merge_and_unload"},
        {"model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload"},
        {"module.model.norm.weight", "model.module"},
    };
    struct hf_spec s;
    hf_read("llama", "");
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        hf_llama_tensors(&s);
        hf_add(&s, bad[i][0], 32, 0);
        hf_write("model.safetensors", &s, 0, s.n);
        hf_refuse_open(ERR_SUPPORT, bad[i][0], bad[i][1]);
    }
    hf_drop("model.safetensors");
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
    hf_put("model.safetensors.index.json", text);
}

static void test_shards(void **state)
{
    struct hf_spec s;
    struct hf_model *m = NULL;
    hf_read("llama", "");
    hf_llama_tensors(&s);
    hf_write("model-00001-of-00002.safetensors", &s, 0, 10);
    hf_write("model-00002-of-00002.safetensors", &s, 10, s.n - 10);
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    if (hf_open(&m, hf_dir))
        fail_msg("%s", err_text());
    assert_int_equal(hf_tensor_count(m), s.n);
    assert_non_null(hf_find(m, "model.layers.1.mlp.down_proj.weight"));
    assert_null(hf_find(m, "model.layers.2.mlp.down_proj.weight"));
    hf_release(m, hf_find(m, "lm_head.weight"));
    hf_close(&m);
    put_index("lm_head.weight", "model-00002-of-00002.safetensors");
    m = open_saying(
        "1 tensors are in other files than weight_map says, the first is lm_head");
    check_ends(&m, false, 0, 0);
    put_index("no.weight", "model-00002-of-00002.safetensors");
    m = open_saying(
        "1 tensors of weight_map are in none of its files, the first is no.weight");
    check_ends(&m, false, 0, 0);
    put_index("lm_head.weight", "model-00003-of-00002.safetensors");
    hf_refuse_open(ERR_NOT_FOUND, "model-00003-of-00002.safetensors", hf_dir);
    put_index("lm_head.weight", "../model.safetensors");
    hf_refuse_open(ERR_FORMAT, "../model.safetensors", "same directory");
    put_index("lm_head.weight", "/etc/x.safetensors");
    hf_refuse_open(ERR_FORMAT, "/etc/x.safetensors", "lm_head.weight");
    put_index("lm_head.weight", "pytorch_model.bin");
    hf_refuse_open(ERR_FORMAT, "pytorch_model.bin", "lm_head.weight");
    hf_put("model.safetensors.index.json", "{\"weight_map\":{}}");
    hf_refuse_open(ERR_FORMAT, "weight_map", "empty");
    hf_put("model.safetensors.index.json", "{\"weight_map\":{\"a\":3}}");
    hf_refuse_open(ERR_FORMAT, "weight_map", "integer");
    hf_put("model.safetensors.index.json", "{}");
    hf_refuse_open(ERR_FORMAT, "weight_map", "missing");
    hf_drop("model.safetensors.index.json");
}

/* Some indexes list a tied head that no file contains. */
static void test_listed_head(void **state)
{
    struct hf_spec s;
    hf_read("llama", TIED);
    hf_llama_tensors(&s);
    snprintf(s.name[HEAD_AT], sizeof(s.name[0]), "model.layers.0.rotary_emb.inv_freq");
    hf_write("model-00001-of-00002.safetensors", &s, 0, 10);
    hf_write("model-00002-of-00002.safetensors", &s, 10, s.n - 10);
    put_index("lm_head.weight", "model-00002-of-00002.safetensors");
    struct hf_model *m = open_saying("");
    check_ends(&m, true, 0, 0);
    hf_drop("model.safetensors.index.json");
}

/* A tensor in two shards counts once if both are equal, and model.safetensors comes
 * first. */
static void test_copies(void **state)
{
    struct hf_spec s;
    hf_read("llama", "");
    hf_llama_tensors(&s);
    s.fill[EMBED_AT] = 1;
    hf_write("model-00001-of-00002.safetensors", &s, 0, 10);
    hf_write("model-00002-of-00002.safetensors", &s, 8, s.n - 8);
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    struct hf_model *m = open_saying("2 tensors are in two files");
    assert_int_equal(hf_tensor_count(m), s.n);
    for (int64_t i = 0; i < hf_tensor_count(m); i++)
        for (int64_t j = 0; j < i; j++)
            assert_string_not_equal(hf_tensor_at(m, i)->name, hf_tensor_at(m, j)->name);
    hf_release(m, hf_find(m, s.name[9]));
    check_ends(&m, false, 1, 0);
    s.fill[9] = 1;
    hf_write("model-00002-of-00002.safetensors", &s, 9, s.n - 9);
    hf_refuse_open(ERR_FORMAT, s.name[9], "differs");
    s.fill[9] = 0;
    s.fill[EMBED_AT] = 2;
    hf_write("model.safetensors", &s, 0, s.n);
    m = open_saying("");
    check_ends(&m, false, 2, 0);
    char index[128];
    snprintf(index, sizeof(index), "%s/model.safetensors.index.json", hf_dir);
    hf_drop("model.safetensors.index.json");
    assert_int_equal(symlink("../../blobs/0123", index), 0); /* nobody reads it */
    m = open_saying("");
    check_ends(&m, false, 2, 0);
    hf_drop("model.safetensors");
    hf_refuse_open(ERR_NOT_FOUND, "model.safetensors.index.json", "a link to ../../blobs");
    hf_drop("model.safetensors.index.json");
}

/* A snapshot of a hub's cache, and a clone without git-lfs. */
static void test_not_downloaded(void **state)
{
    static const char pointer[] = "version https://git-lfs.github.com/spec/v1\n"
                                  "oid sha256:0123456789abcdef0123456789abcdef\nsize 9\n";
    char path[128], config[128];
    hf_read("llama", "");
    hf_put("model.safetensors", pointer);
    hf_refuse_open(ERR_FORMAT, "model.safetensors", "git lfs pull");
    hf_drop("model.safetensors");
    snprintf(path, sizeof(path), "%s/model.safetensors", hf_dir);
    assert_int_equal(symlink("../../blobs/0123", path), 0);
    hf_refuse_open(ERR_NOT_FOUND, "model.safetensors: a link to ../../blobs/0123",
                   "download the model again");
    hf_drop("model.safetensors");
    snprintf(path, sizeof(path), "%s/model-00001-of-00002.safetensors", hf_dir);
    hf_drop("model-00001-of-00002.safetensors");
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    assert_int_equal(symlink("../../blobs/0123", path), 0);
    hf_refuse_open(ERR_NOT_FOUND, "model-00001-of-00002.safetensors",
                   "link to ../../blobs");
    hf_drop("model-00001-of-00002.safetensors");
    hf_drop("model.safetensors.index.json");
    snprintf(config, sizeof(config), "%s/config.json", hf_dir);
    hf_drop("config.json");
    assert_int_equal(symlink("../../blobs/4567", config), 0);
    hf_refuse_open(ERR_NOT_FOUND, "config.json", "link to ../../blobs/4567");
    hf_drop("config.json");
}

static void test_no_weights(void **state)
{
    hf_read("llama", "");
    hf_drop("model-00002-of-00002.safetensors");
    hf_refuse_open(ERR_NOT_FOUND, "model.safetensors", hf_dir);
    static const char *const other[] = {"pytorch_model.bin", "consolidated.00.pth",
                                        "m.gguf"};
    for (size_t i = 0; i < ARRAY_LEN(other); i++) {
        hf_put(other[i], "x");
        hf_refuse_open(ERR_SUPPORT, other[i], "safetensors");
        hf_drop(other[i]);
    }
}

/* Norms behind attention and the MLP, and norms of all heads together. */
static void test_olmo2(void **state)
{
    struct arch a = hf_read("olmo2", "");
    assert_true(a.family == ARCH_OLMO2 && a.norms == NORMS_BEHIND);
    assert_true(a.qk_norm == QK_NORM_ALL && !a.qkv_bias && !a.o_bias);
    assert_string_equal(hf_architecture(&a), "Olmo2ForCausalLM");
    assert_int_equal(arch_gain(&a, 0, GAIN_ATTENTION), 0);
    assert_int_equal(arch_gain(&a, 0, GAIN_MLP_OUT), a.d_model);
    assert_int_equal(arch_gain(&a, 0, GAIN_Q), a.n_heads * a.head_dim);
    assert_int_equal(arch_gain(&a, 0, GAIN_K), a.n_kv * a.head_dim);
    a = hf_read("olmo2", ",\"attention_bias\":true,\"mlp_bias\":true");
    assert_true(a.qkv_bias && a.o_bias && !a.mlp_bias); /* no such field */
    a = hf_read("olmo2", ",\"rms_norm_eps\":null");
    assert_true(a.norm_eps == 1e-5f);
}

/* Both generations of config.json; the factor of the embedding in the checkpoint's type. */
static void test_gemma3(void **state)
{
    struct arch a =
        hf_read("gemma3_text", ",\"num_hidden_layers\":7,\"sliding_window\":512,"
                               "\"rope_scaling\":{\"rope_type\":\"linear\","
                               "\"factor\":8.0},\"torch_dtype\":\"bfloat16\"");
    assert_true(a.norms == NORMS_AROUND && a.qk_norm == QK_NORM_HEAD && a.gain_plus_one);
    assert_true(a.gate == GATE_GELU && a.tied && a.attn_scale == 1.0 / 16);
    assert_true(a.embed_scale == 5.65625); /* sqrt(32) in bfloat16 */
    assert_true(a.rope == ROPE_LINEAR && a.rope_factor == 8 && a.rope_theta_sliding == 1e4);
    for (int64_t i = 0; i < 7; i++)
        assert_int_equal(arch_reach(&a, i), i == 5 ? 0 : 512);
    assert_string_equal(arch_norm_module(&a, GAIN_MLP), "pre_feedforward_layernorm");
    assert_string_equal(hf_architecture(&a), "Gemma3ForCausalLM");
    a = hf_read("gemma3_text",
                ",\"layer_types\":[\"full_attention\",\"sliding_attention\"],"
                "\"query_pre_attn_scalar\":64,\"rope_parameters\":{"
                "\"full_attention\":{\"rope_type\":\"default\",\"rope_theta\":5e5},"
                "\"sliding_attention\":{\"rope_theta\":100.0}}");
    assert_true(a.rope_theta == 5e5 && a.rope_theta_sliding == 100 &&
                a.attn_scale == 0.125);
    assert_true(fabs(a.embed_scale - sqrt(32)) < 1e-6);
    assert_int_equal(arch_reach(&a, 0), 0);
    assert_int_equal(arch_reach(&a, 1), 4096);
    assert_int_equal(arch_rope_column(&a, 0), 0);
    assert_int_equal(arch_rope_column(&a, 1), a.head_dim / 2);
    assert_int_equal(arch_rope_columns(&a), a.head_dim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixture_defaults),
        cmocka_unit_test(test_extra_tensors),
        cmocka_unit_test(test_stored_types),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_head_only),
        cmocka_unit_test(test_base_model),
        cmocka_unit_test(test_wrapped),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_listed_head),
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_not_downloaded),
        cmocka_unit_test(test_no_weights),
        cmocka_unit_test(test_olmo2),
        cmocka_unit_test(test_gemma3),
    };
    return cmocka_run_group_tests(tests, hf_make_dir, hf_drop_dir);
}
