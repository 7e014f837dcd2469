/* SPDX-License-Identifier: MIT
 *
 * config.json alone, and with the weights of a valid checkpoint. */
#include "convert/checkpoint/hf.h"
#include "convert/format/artifact_spec.h"
#include "tests/fuzz/fuzz.h"

void fuzz_setup(void)
{
    fuzz_copy("model/model.safetensors", "model.safetensors");
}

/* An artifact's quantization_config. */
static void read_spec(const uint8_t *data, size_t n)
{
    struct weight_spec w = {0};
    struct kv_spec kv = {0};
    json_t *root = NULL, *q = NULL;
    fuzz_check(json_parse(&root, (const char *)data, n, "config.json"));
    if (json_is_object(root) && !json_get_object(&q, root, "quantization_config", "x") && q)
        fuzz_check(spec_from_json(&w, &kv, q, "config.json"));
    err_clear();
    spec_free(&w, &kv);
    json_decref(root);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct arch a;
    struct hf_model *m = NULL;
    fuzz_put("config.json", data, n);
    const enum err e = hf_read_config(&a, fuzz_path(""));
    fuzz_check(e);
    if (!e) {
        fuzz_check(arch_check_length(&a, 128));
        fuzz_check(hf_open(&m, fuzz_path("")));
        hf_close(&m);
    }
    read_spec(data, n);
    return 0;
}
