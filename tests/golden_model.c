/* SPDX-License-Identifier: MIT */
#include "tests/golden_model.h"

#include "kernels/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const golden_name[] = {"llama1_mha",
                                   "llama2_gqa",
                                   "llama3_rope",
                                   "llama3_rope_old",
                                   "linear_rope",
                                   "mistral",
                                   "qwen2",
                                   "qwen3",
                                   "llama_bias",
                                   "llama_tied_bf16",
                                   "llama_f16",
                                   "llama_mlp_bias",
                                   "yarn",
                                   "yarn_attention",
                                   "yarn_mscale",
                                   "dynamic_rope",
                                   "tied_twice",
                                   "tied_head_only",
                                   "llama_base",
                                   "granite",
                                   "granite_bias",
                                   "mistral_window",
                                   "qwen2_window",
                                   "qwen3_window",
                                   "smollm3",
                                   "smollm3_window",
                                   "phi3",
                                   "phi3_longrope",
                                   "phi4_mini",
                                   "olmo2",
                                   "olmo2_bias",
                                   "gemma3",
                                   "gemma3_old",
                                   "qwen3_moe",
                                   "qwen3_moe_plain",
                                   "mixtral"};
const int golden_count = ARRAY_LEN(golden_name);

enum err golden_open(struct golden *g, const char *name)
{
    const char *root = getenv("GOLDEN_MODELS");
    char path[600];
    *g = (struct golden){0};
    snprintf(g->dir, sizeof(g->dir), "%s/%s", root ? root : "tests/golden/models", name);
    snprintf(path, sizeof(path), "%s/golden.safetensors", g->dir);
    TRY(hf_open(&g->model, g->dir));
    TRY(st_open(&g->file, path));
    const struct st_tensor *ids = st_find(g->file, "ids");
    const struct st_tensor *logits = st_find(g->file, "logits");
    FAIL_IF(!ids || !logits, ERR_FORMAT, "%s: ids or logits are missing", path);
    g->T = logits->dim[0];
    g->V = logits->dim[1];
    TRY(mem_alloc(&g->ids, ids->bytes, 1));
    TRY(mem_alloc(&g->logits, logits->bytes, 1));
    memcpy(g->ids, ids->data, ids->bytes);
    memcpy(g->logits, logits->data, logits->bytes);
    return OK;
}

void golden_close(struct golden *g)
{
    hf_close(&g->model);
    st_close(&g->file);
    mem_free(g->ids);
    mem_free(g->logits);
}

double golden_error(const float *have, const float *want, int64_t n)
{
    double lo = want[0], hi = want[0], worst = 0;
    for (int64_t i = 0; i < n; i++) {
        lo = want[i] < lo ? want[i] : lo;
        hi = want[i] > hi ? want[i] : hi;
        const double d = fabs((double)have[i] - (double)want[i]);
        if (!(d <= worst))
            worst = d; /* NaN replaces any value and stays */
        if (isnan(worst))
            break;
    }
    return worst / (hi - lo);
}
