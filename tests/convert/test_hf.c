/* SPDX-License-Identifier: MIT
 *
 * config.json of Hugging Face directories: defaults of both generations, and the messages of
 * refusals. */
#include "kernels/base/mem.h"
#include "tests/convert/hf_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void refuse_text(const char *text, enum err want, const char *word1,
                        const char *word2)
{
    struct arch a = {0};
    hf_put("config.json", text);
    err_clear();
    const enum err e = hf_read_config(&a, hf_dir);
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
    const struct arch a = hf_read("llama", "");
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
    struct arch a = hf_read("mistral", ",\"num_key_value_heads\":2");
    assert_int_equal(a.max_positions, 131072);
    assert_int_equal(a.sliding_window, 4096); /* missing is not null */
    assert_int_equal(arch_reach(&a, 0), 4096);
    assert_int_equal(arch_reach(&a, 1), 4096);
    a = hf_read("mistral", ",\"num_key_value_heads\":null,\"sliding_window\":null,"
                           "\"attention_bias\":true");
    assert_int_equal(a.sliding_window, 0);
    assert_int_equal(a.n_kv, 4);
    assert_false(a.qkv_bias); /* MistralConfig has no such field */
    a = hf_read("mistral", ",\"num_key_value_heads\":2,\"layer_types\":[\"full_attention\","
                           "\"sliding_attention\"]");
    assert_int_equal(arch_reach(&a, 0), 0); /* transformers takes it for a ministral */
    assert_int_equal(arch_reach(&a, 1), 4096);
    refuse("mistral", "", ERR_FORMAT, "num_key_value_heads", "8"); /* the default, not H */
}

static void test_qwen2_defaults(void **state)
{
    struct arch a = hf_read("qwen2", ",\"num_key_value_heads\":2");
    assert_true(a.qkv_bias && !a.o_bias && !a.qk_norm);
    assert_int_equal(a.head_dim, 8);
    assert_int_equal(a.max_positions, 32768);
    assert_int_equal(a.sliding_window, 0);
    assert_int_equal(a.bos, -1);
    assert_int_equal(a.n_eos, 0);
    a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":100,"
                         "\"use_sliding_window\":false");
    assert_int_equal(a.sliding_window, 0);
    a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":100,"
                         "\"use_sliding_window\":true,\"max_window_layers\":1");
    assert_int_equal(a.sliding_window, 100);
    assert_int_equal(arch_reach(&a, 0), 0);
    assert_int_equal(arch_reach(&a, 1), 100);
    assert_int_equal(arch_check_length(&a, 101), OK);
    a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"sliding_window\":100,"
                         "\"use_sliding_window\":true,\"max_window_layers\":1,"
                         "\"layer_types\":[\"sliding_attention\",\"full_attention\"]");
    assert_int_equal(arch_reach(&a, 0), 100); /* layer_types has precedence */
    assert_int_equal(arch_reach(&a, 1), 0);
    a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"use_sliding_window\":true,"
                         "\"layer_types\":[\"full_attention\",\"full_attention\"]");
    assert_int_equal(arch_full_attention(&a), 32768); /* no layer of two */
    refuse("qwen2", "", ERR_FORMAT, "num_key_value_heads", "32");
}

static void test_qwen3_defaults(void **state)
{
    struct arch a = hf_read("qwen3", ",\"num_key_value_heads\":2");
    assert_int_equal(a.head_dim, 128); /* not hidden / heads */
    assert_true(a.qk_norm && !a.qkv_bias && !a.o_bias);
    a = hf_read("qwen3",
                ",\"num_key_value_heads\":2,\"attention_bias\":true,\"head_dim\":16");
    assert_true(a.qkv_bias && a.o_bias);
    assert_int_equal(a.head_dim, 16);
}

static void test_missing_sizes(void **state)
{
    struct arch a = {0};
    hf_put("config.json", "{\"model_type\":\"llama\"}");
    err_clear();
    *hf_log = 0;
    assert_int_equal(hf_read_config(&a, hf_dir), OK);
    assert_int_equal(a.d_model, 4096);
    assert_int_equal(a.d_ff, 11008);
    assert_int_equal(a.n_layers, 32);
    assert_int_equal(a.vocab, 32000);
    assert_non_null(strstr(hf_log, "is missing, taken as")); /* never silently */
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
        const struct arch a = hf_read("llama", text[i]);
        assert_int_equal(a.rope, ROPE_LLAMA3);
        assert_true(a.rope_theta == 500000 && a.rope_factor == 8);
        assert_true(a.rope_low == 1 && a.rope_high == 4);
        assert_int_equal(a.rope_original, 512);
        assert_int_equal(a.dtype, DT_BF16);
    }
    struct arch a =
        hf_read("llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}");
    assert_int_equal(a.rope, ROPE_LINEAR);
    assert_true(a.rope_factor == 2.5 && a.rope_theta == 10000);
    a = hf_read("llama",
                ",\"dtype\":\"float16\",\"torch_dtype\":\"bfloat16\",\"rope_theta\":7,"
                "\"rope_parameters\":{\"rope_theta\":9,\"rope_type\":\"default\"}");
    assert_int_equal(a.dtype, DT_F16); /* the newer field wins */
    assert_true(a.rope_theta == 9);
    a = hf_read("llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                         "\"low_freq_factor\":1,\"high_freq_factor\":4}");
    assert_int_equal(a.rope_original, 2048); /* max_position_embeddings */
}

static void test_yarn(void **state)
{
    struct arch a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"rope_theta\":1e6,"
                                     "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
                                     "\"original_max_position_embeddings\":32768}");
    assert_int_equal(a.rope, ROPE_YARN);
    assert_true(a.rope_theta == 1e6 && a.rope_factor == 4 && a.rope_truncate);
    assert_true(a.rope_low == 1 && a.rope_high == 32);
    assert_int_equal(a.rope_original, 32768);
    assert_true(fabs(a.rope_attention - 1.138629436111989) < 1e-15);
    a = hf_read("llama", ",\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":5e5,"
                         "\"factor\":40,\"mscale\":0.707,\"mscale_all_dim\":1.0,"
                         "\"beta_fast\":16,\"beta_slow\":0,\"truncate\":false}");
    assert_true(fabs(a.rope_attention - 0.9210423553163399) < 1e-15);
    assert_true(a.rope_low == 1 && a.rope_high == 16 && !a.rope_truncate);
    assert_int_equal(a.rope_original, 2048);
    a = hf_read("llama", ",\"original_max_position_embeddings\":256,\"rope_scaling\":{"
                         "\"rope_type\":\"yarn\",\"type\":\"linear\",\"factor\":null,"
                         "\"original_max_position_embeddings\":512,\"mscale\":2,"
                         "\"mscale_all_dim\":0,\"truncate\":null}");
    assert_int_equal(a.rope, ROPE_YARN); /* the newer spelling wins */
    assert_int_equal(a.rope_original, 256);
    assert_true(a.rope_factor == 8 && !a.rope_truncate);
    assert_true(fabs(a.rope_attention - 1.2079441541679836) <
                1e-15); /* mscale alone: none */
    a = hf_read("llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                         "\"attention_factor\":1,\"mscale\":2,\"mscale_all_dim\":1}");
    assert_true(a.rope_attention == 1);
}

/* Published spellings; the expected values are those of transformers 5's AutoConfig. */
static void test_spellings(void **state)
{
    struct arch a = hf_read("llama", ",\"mlp_bias\":true");
    assert_true(a.mlp_bias && !a.qkv_bias && !a.o_bias);
    a = hf_read("mistral", ",\"num_key_value_heads\":2,\"mlp_bias\":true");
    assert_false(a.mlp_bias); /* MistralConfig has no such field */
    a = hf_read("llama", ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}");
    assert_int_equal(a.rope, ROPE_DYNAMIC);
    a = hf_read("llama",
                ",\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"default\"}");
    assert_true(a.rope == ROPE_DEFAULT && a.rope_theta == 500000);
    a = hf_read("llama", ",\"rope_theta\":7,\"rope_scaling\":{},"
                         "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}");
    assert_true(a.rope == ROPE_LINEAR && a.rope_factor == 2 && a.rope_theta == 7);
    a = hf_read("llama",
                ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},"
                "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":9}");
    assert_true(a.rope == ROPE_LINEAR && a.rope_theta == 10000);
    a = hf_read("llama",
                ",\"architectures\":null,\"torch_dtype\":\"torch.bfloat16\","
                "\"pretraining_tp\":2,\"quantization_config\":null,\"head_dim\":null");
    assert_true(a.dtype == DT_BF16 && a.head_dim == 8);
    a = hf_read("llama",
                ",\"architectures\":[],\"torch_dtype\":null,\"hidden_act\":\"swish\","
                "\"max_position_embeddings\":4096.0");
    assert_true(a.dtype == DT_F32 && a.max_positions == 4096);
    a = hf_read("llama", ",\"architectures\":[\"LlamaModel\"],\"sliding_window\":16,"
                         "\"use_sliding_window\":true,\"rms_norm_eps\":0.00001");
    assert_true(a.sliding_window == 0 && a.norm_eps == 1e-5f);
    a = hf_read("qwen2", ",\"num_key_value_heads\":2,\"attention_bias\":false,"
                         "\"sliding_window\":16,\"layer_types\":[\"sliding_attention\","
                         "\"full_attention\"]");
    assert_true(a.qkv_bias && a.sliding_window == 0); /* use_sliding_window decides */
    assert_string_equal(hf_architecture(&a), "Qwen2ForCausalLM");
}

/* A missing factor is 1, also that of the scores. */
static void test_granite(void **state)
{
    struct arch a = hf_read("granite", ",\"embedding_multiplier\":12.0,"
                                       "\"attention_multiplier\":0.015625,"
                                       "\"residual_multiplier\":0.22,"
                                       "\"logits_scaling\":8,\"attention_bias\":true");
    assert_true(a.embed_scale == 12 && a.attn_scale == 0.015625);
    assert_true(a.residual_scale == 0.22 && a.logit_scale == 0.125);
    assert_true(a.qkv_bias && a.o_bias && !a.mlp_bias);
    assert_string_equal(hf_architecture(&a), "GraniteForCausalLM");
    a = hf_read("granite", ",\"logits_scaling\":null");
    assert_true(a.embed_scale == 1 && a.attn_scale == 1);
    assert_true(a.residual_scale == 1 && a.logit_scale == 1);
    a = hf_read("llama", ",\"residual_multiplier\":0.22");
    assert_true(a.residual_scale == 0); /* LlamaConfig has no such field */
}

/* Layers without a rope: by their list, or each of the interval. They are the sliding ones. */
static void test_smollm3(void **state)
{
    struct arch a = hf_read("smollm3", ",\"num_hidden_layers\":9");
    for (int64_t i = 0; i < 9; i++)
        assert_int_equal(layer_set_has(&a.no_rope, i), i == 3 || i == 7);
    assert_true(a.tied && a.rope_theta == 2e6 && a.n_kv == 4 && !a.o_bias && !a.mlp_bias);
    assert_int_equal(a.bos, 128000);
    assert_int_equal(a.eos[0], 128001);
    assert_string_equal(hf_architecture(&a), "SmolLM3ForCausalLM");
    a = hf_read("smollm3", ",\"no_rope_layers\":null,\"no_rope_layer_interval\":2,"
                           "\"use_sliding_window\":true,\"sliding_window\":5,"
                           "\"tie_word_embeddings\":false");
    assert_true(!layer_set_has(&a.no_rope, 0) && layer_set_has(&a.no_rope, 1) && !a.tied);
    assert_int_equal(arch_reach(&a, 0), 0);
    assert_int_equal(arch_reach(&a, 1), 5);
    a = hf_read("smollm3", ",\"no_rope_layers\":[0,1,1],\"no_rope_layer_interval\":1,"
                           "\"use_sliding_window\":true,\"sliding_window\":5,"
                           "\"layer_types\":[\"full_attention\",\"sliding_attention\"]");
    assert_true(layer_set_has(&a.no_rope, 0) && !layer_set_has(&a.no_rope, 1));
    assert_int_equal(arch_reach(&a, 0), 0); /* layer_types has precedence */
    assert_int_equal(arch_reach(&a, 1), 5);
    a = hf_read("smollm3", ",\"use_sliding_window\":true,\"no_rope_layer_interval\":1");
    assert_int_equal(arch_reach(&a, 0), 0); /* no window by default */
    a = hf_read("llama", ",\"no_rope_layers\":[0,0]");
    assert_false(layer_set_has(&a.no_rope, 0)); /* LlamaConfig has no such field */
}

#define FACTORS "\"short_factor\":[1,2,3,4],\"long_factor\":[5,6,7,8]"

static void test_phi3(void **state)
{
    struct arch a = hf_read("phi3", "");
    assert_true(a.fused && !a.tied && a.norm_eps == 1e-5f && a.rope == ROPE_DEFAULT);
    assert_int_equal(a.rotary_dim, 0);
    assert_int_equal(a.sliding_window, 0); /* none by default */
    assert_int_equal(a.n_kv, 4);
    assert_int_equal(a.eos[0], 32000);
    a = hf_read("phi3", ",\"sliding_window\":2047,\"max_position_embeddings\":131072,"
                        "\"original_max_position_embeddings\":4096,"
                        "\"rope_scaling\":{\"type\":\"su\"," FACTORS "}");
    assert_int_equal(a.rope, ROPE_LONGROPE);
    assert_int_equal(arch_reach(&a, 1), 2047);
    assert_int_equal(a.max_positions, 4096);
    assert_true(a.rope_short[3] == 4 && arch_inv_freq(&a, 0) == 1);
    /* Phi-3-mini-128k: sqrt(1 + ln 32 / ln 4096) */
    assert_true(fabs(a.rope_attention - 1.1902380714238083) < 1e-12);
    assert_int_equal(arch_check_length(&a, 4096), OK);
    assert_int_equal(arch_check_length(&a, 4097), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "long_factor"));
    a = hf_read("phi3", ",\"partial_rotary_factor\":0.8,\"rope_parameters\":{\"rope_type\":"
                        "\"longrope\",\"attention_factor\":1.5,\"short_factor\":[1,2,3],"
                        "\"long_factor\":[1,1,1],\"original_max_position_embeddings\":99},"
                        "\"original_max_position_embeddings\":512");
    assert_int_equal(a.rotary_dim, 6); /* of 8 channels, int(6.4) */
    assert_true(a.rope_attention == 1.5 && a.max_positions == 512);
    a = hf_read("phi3", ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}");
    assert_int_equal(a.rotary_dim, 4);
    a = hf_read("phi3", ",\"attention_bias\":true,\"mlp_bias\":true");
    assert_false(a.qkv_bias || a.o_bias || a.mlp_bias); /* Phi3Config has no such fields */
}

static void test_specials(void **state)
{
    struct arch a = hf_read("llama", ",\"bos_token_id\":[7],\"eos_token_id\":[5,6,9]");
    assert_int_equal(a.bos, 7);
    assert_int_equal(a.n_eos, 3);
    assert_int_equal(a.eos[2], 9);
    a = hf_read("llama", ",\"bos_token_id\":null,\"eos_token_id\":null");
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
    {"granite", ",\"residual_multiplier\":0", ERR_FORMAT, "residual_multiplier", "above 0"},
    {"granite", ",\"embedding_multiplier\":-12", ERR_FORMAT, "embedding_multiplier", "-12"},
    {"granite", ",\"attention_multiplier\":\"1\"", ERR_FORMAT, "attention_multiplier",
     "string"},
    {"granite", ",\"logits_scaling\":1e-60", ERR_FORMAT, "logits", "1e+60"},
    {"gemma3_text", ",\"final_logit_softcapping\":30.0", ERR_SUPPORT,
     "final_logit_softcapping", "soft caps"},
    {"gemma3_text", ",\"attn_logit_softcapping\":50.0", ERR_SUPPORT,
     "attn_logit_softcapping", "soft caps"},
    {"gemma3_text", ",\"use_bidirectional_attention\":true", ERR_SUPPORT,
     "use_bidirectional_attention", "causal"},
    {"gemma3_text", ",\"is_causal\":false", ERR_SUPPORT, "is_causal", "causal attention"},
    {"qwen3", ",\"is_causal\":false", ERR_SUPPORT, "is_causal", "causal attention"},
    {"gemma3_text", ",\"rope_parameters\":{\"rope_theta\":700}", ERR_SUPPORT,
     "rope_parameters", "full_attention"},
    {"gemma3_text",
     ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8},\"rope_parameters\":"
     "{\"full_attention\":{\"rope_theta\":700}}",
     ERR_SUPPORT, "rope_scaling and rope_parameters", "both"},
    {"mistral", ",\"num_key_value_heads\":2,\"layer_types\":[\"full_attention\"]",
     ERR_FORMAT, "layer_types", "1"},
    {"gemma3_text", ",\"query_pre_attn_scalar\":0", ERR_FORMAT, "query_pre_attn_scalar",
     "above 0"},
    {"gemma3_text", ",\"hidden_activation\":\"silu\"", ERR_SUPPORT, "hidden_activation",
     "gelu_pytorch_tanh"},
    {"gemma3_text", ",\"dtype\":\"float64\"", ERR_SUPPORT, "float64", "bfloat16"},
    {"gemma3_text", ",\"sliding_window_pattern\":0", ERR_FORMAT, "sliding_window_pattern",
     "0"},
    {"gemma3_text", ",\"rope_local_base_freq\":1", ERR_FORMAT, "rope_local_base_freq",
     "above 1"},
    {"gemma3_text", ",\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"yarn\"}}",
     ERR_SUPPORT, "sliding_attention", "yarn"},
    {"gemma3_text",
     ",\"rope_parameters\":{\"sliding_attention\":{\"type\":\"linear\",\"factor\":4}}",
     ERR_SUPPORT, "sliding_attention", "linear"},
    {"gemma2", "", ERR_SUPPORT, "gemma2", "gemma3_text"},
    {"granitemoe", "", ERR_SUPPORT, "granitemoe", "granite"},
    {"gpt2", "", ERR_SUPPORT, "gpt2", "llama, mistral"},
    {"qwen3_moe", ",\"decoder_sparse_step\":2", ERR_SUPPORT, "decoder_sparse_step", "2"},
    {"qwen3_moe", ",\"mlp_only_layers\":[1]", ERR_SUPPORT, "mlp_only_layers", "1 layers"},
    {"qwen3_moe", ",\"num_experts\":0", ERR_FORMAT, "num_experts", "at least 1"},
    {"qwen3_moe", ",\"num_experts\":4,\"num_experts_per_tok\":5", ERR_FORMAT,
     "num_experts_per_tok", "at most num_experts, 4"},
    {"llama", ",\"num_local_experts\":8", ERR_SUPPORT, "num_local_experts", "8"},
    {"qwen2", ",\"num_experts\":4", ERR_SUPPORT, "num_experts", "qwen3_moe"},
    {"llama", ",\"architectures\":[\"LlamaForSequenceClassification\"]", ERR_SUPPORT,
     "LlamaForSequenceClassification", "LlamaForCausalLM"},
    {"qwen2", ",\"architectures\":[\"LlamaModel\"]", ERR_SUPPORT, "LlamaModel",
     "Qwen2Model"},
    {"llama", ",\"architectures\":[3]", ERR_FORMAT, "architectures", "string"},
    {"llama", ",\"hidden_act\":\"gelu\"", ERR_SUPPORT, "hidden_act", "gelu"},
    {"llama", ",\"mlp_bias\":1", ERR_FORMAT, "mlp_bias", "true"},
    {"llama", ",\"partial_rotary_factor\":0.5", ERR_SUPPORT, "partial_rotary_factor",
     "0.5"},
    {"llama", ",\"rope_scaling\":{\"type\":\"yarn\"}", ERR_FORMAT, "rope_scaling",
     "factor"},
    {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}", ERR_FORMAT, "factor",
     "0.5"},
    {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"attention_factor\":-1}",
     ERR_FORMAT, "attention_factor", "-1"},
    {"llama", ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"truncate\":1}",
     ERR_FORMAT, "truncate", "true"},
    {"llama",
     ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
     "\"original_max_position_embeddings\":0}",
     ERR_FORMAT, "original_max_position_embeddings", "0"},
    {"llama", ",\"rope_scaling\":{\"type\":\"dynamic\"}", ERR_FORMAT, "factor", "missing"},
    {"llama", ",\"rope_scaling\":{\"type\":\"su\"}", ERR_SUPPORT, "\"su\"", "yarn"},
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
    {"llama", ",\"quantization_config\":{\"quant_method\":\"awq\",\"format\":\"wkvq\"}",
     ERR_SUPPORT, "quantization_config", "awq"},
    {"llama", ",\"quantization_config\":{}", ERR_SUPPORT, "quantization_config",
     "not given"},
    {"llama", ",\"compression_config\":{}", ERR_SUPPORT, "compression_config", "quantized"},
    {"llama", ",\"num_key_value_heads\":3", ERR_FORMAT, "num_key_value_heads", "3"},
    {"llama", ",\"num_key_value_heads\":0", ERR_FORMAT, "num_key_value_heads", "0"},
    {"llama", ",\"head_dim\":7", ERR_SUPPORT, "head_dim", "7"},
    {"llama", ",\"head_dim\":\"8\"", ERR_FORMAT, "head_dim", "string"},
    {"llama", ",\"rms_norm_eps\":0", ERR_FORMAT, "rms_norm_eps", "0"},
    {"llama", ",\"rms_norm_eps\":\"1e-05\"", ERR_FORMAT, "rms_norm_eps", "string"},
    {"llama", ",\"rope_theta\":\"500000\"", ERR_FORMAT, "rope_theta", "string"},
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
    {"mistral", ",\"sliding_window\":0", ERR_FORMAT, "sliding_window is 0", "null"},
    {"llama", ",\"per_layer_config\":{\"1\":{\"rms_norm_eps\":0.1}}", ERR_SUPPORT,
     "per_layer_config", "1 layers"},
    {"phi3", ",\"partial_rotary_factor\":1.5", ERR_FORMAT, "partial_rotary_factor", "1.5"},
    {"phi3", ",\"partial_rotary_factor\":0.1", ERR_FORMAT, "partial_rotary_factor",
     "no chan"},
    {"phi3", ",\"partial_rotary_factor\":0.7", ERR_SUPPORT, "partial_rotary_factor",
     "5 of 8"},
    {"phi3", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", ERR_SUPPORT, "linear",
     "longrope"},
    {"phi3", ",\"rope_scaling\":{\"type\":\"longrope\"}", ERR_FORMAT, "short_factor",
     "missing"},
    {"phi3", ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2,3]}",
     ERR_FORMAT, "short_factor has 3", "4 pairs"},
    {"phi3",
     ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2,3,4],"
     "\"long_factor\":[1,2,3,\"4\"]}",
     ERR_FORMAT, "long_factor[3]", "string"},
    {"phi3",
     ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2,0,4],"
     "\"long_factor\":[1,2,3,4]}",
     ERR_FORMAT, "short_factor[2]", "want 1.17549e-38"},
    {"phi3",
     ",\"original_max_position_embeddings\":1,\"rope_scaling\":{\"type\":\"longrope\"," FACTORS
     "}",
     ERR_FORMAT, "original_max_position_embeddings", "at least 2"},
    {"phi3", ",\"rope_scaling\":{\"type\":\"longrope\",\"attention_factor\":0," FACTORS "}",
     ERR_FORMAT, "attention_factor", "want 1.17549e-38"},
    {"smollm3", ",\"no_rope_layers\":[1]", ERR_FORMAT, "no_rope_layers has 1", "2"},
    {"smollm3", ",\"no_rope_layers\":[1,2]", ERR_FORMAT, "no_rope_layers[1]", "without"},
    {"smollm3", ",\"no_rope_layers\":[1,true]", ERR_FORMAT, "no_rope_layers[1]", "1"},
    {"smollm3", ",\"no_rope_layers\":4", ERR_FORMAT, "no_rope_layers", "array"},
    {"smollm3", ",\"no_rope_layer_interval\":0", ERR_FORMAT, "no_rope_layer_interval", "0"},
    {"smollm3", ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]", ERR_SUPPORT,
     "layer_types[1]", "use_sliding_window"},
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
    hf_drop("config.json");
    struct arch a;
    err_clear();
    assert_int_equal(hf_read_config(&a, hf_dir), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "config.json"));
    err_clear();
    assert_int_equal(hf_read_config(&a, "/tmp/no/model.gguf"), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "GGUF"));
    err_clear();
    assert_int_equal(hf_read_config(&a, "/tmp/no/such/dir"), ERR_NOT_FOUND);
}

/* An artifact's own config.json is read, so that its reader can; also that of an early one,
 * which has quant_method. */
static void test_own_quantization(void **state)
{
    struct arch a = hf_read("llama", ",\"quantization_config\":{\"format\":\"wkvq\"}");
    assert_int_equal(a.n_layers, 2);
    a = hf_read("llama", ",\"quantization_config\":{\"quant_method\":\"wkvq\"}");
    assert_int_equal(a.n_layers, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_defaults),
        cmocka_unit_test(test_mistral_defaults),
        cmocka_unit_test(test_qwen2_defaults),
        cmocka_unit_test(test_qwen3_defaults),
        cmocka_unit_test(test_missing_sizes),
        cmocka_unit_test(test_generations),
        cmocka_unit_test(test_yarn),
        cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_granite),
        cmocka_unit_test(test_smollm3),
        cmocka_unit_test(test_phi3),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_refused_fields),
        cmocka_unit_test(test_refused_texts),
        cmocka_unit_test(test_own_quantization),
    };
    return cmocka_run_group_tests(tests, hf_make_dir, hf_drop_dir);
}
