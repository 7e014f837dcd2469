/* SPDX-License-Identifier: MIT
 *
 * A state's file of one block, for a model and settings that fit the valid one. */
#include "convert/checkpoint/hf.h"
#include "tests/fuzz/fuzz.h"
#include "tools/recipe/recipe.h"
#include "tools/state/state_block.h"

static struct arch arch;
static struct weight_spec weights;
static struct kv_spec kv;

void fuzz_setup(void)
{
    struct recipe r;
    fuzz_copy("model/config.json", "config.json");
    fuzz_check(hf_read_config(&arch, fuzz_path("")));
    recipe_init(&r);
    fuzz_check(recipe_set(&r, "weights.group_size", "8", "fuzz"));
    weights = recipe_weight_spec(&r);
    kv = recipe_kv_spec(&r);
    recipe_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct block_quant q = {0};
    fuzz_put("block.safetensors", data, n);
    for (int gptq = 0; gptq < 2; gptq++) {
        weights.method = gptq ? WEIGHT_GPTQ : WEIGHT_RTN;
        const enum err e =
            state_block_load(&q, fuzz_path("block.safetensors"), &arch, 0, &weights, &kv);
        fuzz_check(e);
        if (!e)
            fuzz_use(q.k_scale, (size_t)q.n_channels * sizeof(float));
        block_quant_free(&q);
    }
    return 0;
}
