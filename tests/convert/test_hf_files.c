/* SPDX-License-Identifier: MIT
 *
 * What the files of a checkpoint hold against what config.json and the index say. */
#include "tests/convert/hf_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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

static void test_tied(void **state)
{
    struct hf_spec s;
    struct hf_model *m = NULL;
    struct host_mat embed, norm, head;
    hf_read("llama", ",\"tie_word_embeddings\":true");
    hf_llama_tensors(&s);
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    const struct model_source *src = hf_source(m);
    assert_int_equal(src->ends(src->ctx, &embed, &norm, &head), OK);
    assert_ptr_equal(embed.data, head.data); /* the stored copy is not used */
    hf_close(&m);
    hf_read("llama", "");
    snprintf(s.name[2], sizeof(s.name[2]), "other.weight");
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_true(hf_arch(m)->tied); /* no head is stored */
    hf_close(&m);
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
    hf_refuse_open(ERR_FORMAT, "lm_head.weight", "model-00002-of-00002.safetensors");
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
    hf_write("model-00002-of-00002.safetensors", &s, 9, s.n - 9);
    put_index("lm_head.weight", "model-00001-of-00002.safetensors");
    hf_refuse_open(ERR_FORMAT, s.name[9], "both");
    hf_drop("model.safetensors.index.json");
}

static void test_no_weights(void **state)
{
    hf_read("llama", "");
    hf_drop("model-00001-of-00002.safetensors");
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_extra_tensors),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_no_weights),
    };
    return cmocka_run_group_tests(tests, hf_make_dir, hf_drop_dir);
}
