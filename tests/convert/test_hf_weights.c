/* SPDX-License-Identifier: MIT
 *
 * Tensors of Hugging Face directories: what config.json demands of them, and their identity. */
#include "kernels/base/mem.h"
#include "tests/convert/hf_fixture.h"
#include "tests/golden_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_tensor_checks(void **state)
{
    struct hf_spec s;
    hf_read("llama", "");
    hf_llama_tensors(&s);
    hf_entry(&s, "model.layers.1.mlp.up_proj.weight")->dim[1] = 31;
    hf_write("model.safetensors", &s, 0, s.n);
    hf_refuse_open(ERR_FORMAT, "model.layers.1.mlp.up_proj.weight", "[48, 31]");
    hf_refuse_open(ERR_FORMAT, "intermediate_size", "model.safetensors");

    hf_llama_tensors(&s);
    hf_entry(&s, "model.norm.weight")->dtype = DT_I32;
    hf_write("model.safetensors", &s, 0, s.n);
    hf_refuse_open(ERR_SUPPORT, "model.norm.weight", "I32");

    hf_llama_tensors(&s);
    hf_write("model.safetensors", &s, 0, s.n - 1);
    hf_refuse_open(ERR_NOT_FOUND, "model.layers.1.mlp.down_proj.weight", "missing");

    hf_write("model.safetensors", &s, 0, s.n);
    hf_read("llama", ",\"attention_bias\":true");
    hf_refuse_open(ERR_NOT_FOUND, "model.layers.0.self_attn.q_proj.bias", "missing");
    hf_read("qwen3", ",\"num_key_value_heads\":4,\"head_dim\":8");
    hf_refuse_open(ERR_NOT_FOUND, "model.layers.0.self_attn.q_norm.weight", "missing");
    hf_read("olmo2", "");
    hf_refuse_open(ERR_NOT_FOUND, "model.layers.0.self_attn.q_norm.weight", "missing");
    hf_drop("model.safetensors");
}

static void test_identity(void **state)
{
    struct hf_spec s;
    struct hf_model *m = NULL;
    uint32_t shallow, deep, crc;
    hf_read("llama", "");
    hf_llama_tensors(&s);
    hf_write("model.safetensors", &s, 0, s.n);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_int_equal(hf_identity(&shallow, m, false), OK);
    assert_int_equal(hf_identity(&deep, m, true), OK);
    hf_close(&m);
    char path[128];
    snprintf(path, sizeof(path), "%s/model.safetensors", hf_dir);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, -1, SEEK_END);
    fputc(1, f);
    fclose(f);
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_int_equal(hf_identity(&crc, m, false), OK);
    assert_int_equal(crc, shallow);
    assert_int_equal(hf_identity(&crc, m, true), OK);
    assert_int_not_equal(crc, deep);
    hf_close(&m);
    hf_read("llama", ",\"rope_theta\":20000");
    assert_int_equal(hf_open(&m, hf_dir), OK);
    assert_int_equal(hf_identity(&crc, m, false), OK);
    assert_int_not_equal(crc, shallow);
    hf_close(&m);
    hf_drop("model.safetensors");
}

/* A directory as save_pretrained writes it. */
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
        cmocka_unit_test(test_tensor_checks),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_golden_models),
    };
    return cmocka_run_group_tests(tests, hf_make_dir, hf_drop_dir);
}
