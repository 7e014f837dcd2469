/* SPDX-License-Identifier: MIT */
#include "tests/convert/golden_artifact.h"

#include "kernels/base/rng.h"

#include <math.h>

static enum err block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct fake_state *s = ctx;
    const struct arch *a = hf_arch(s->g->model);
    const struct model_source *src = hf_source(s->g->model);
    struct block_src b;
    struct rng r;
    block_quant_free(&s->current);
    TRY(src->block(src->ctx, i, &b));
    TRY(quant_block_rtn(&s->current, a, &b, i, &s->weights, &s->kv));
    rng_seed(&r, 77 + (uint64_t)i);
    struct block_quant *c = &s->current;
    for (int64_t k = 0; k < c->n_channels && s->kv.method == KV_CHANNEL_TOKEN; k++) {
        c->k_scale[k] = (float)exp(0.5 * rng_normal(&r));
        c->v_scale[k] = (float)exp(0.5 * rng_normal(&r));
        c->k_shift[k] = (float)(0.5 * rng_normal(&r));
        c->v_shift[k] = (float)(0.5 * rng_normal(&r));
    }
    *q = c;
    return OK;
}

void fake_state_open(struct fake_state *s, const struct golden *g,
                     struct weight_spec weights, struct kv_spec kv)
{
    *s = (struct fake_state){.g = g, .weights = weights, .kv = kv};
    s->source = (struct quant_source){s, block};
    s->quant = (struct model_quant){s, block};
}

void fake_state_close(struct fake_state *s)
{
    block_quant_free(&s->current);
}

enum err golden_artifact(const char *dir, const struct golden *g, struct fake_state *s)
{
    const struct artifact_settings settings = {
        .weights = s->weights,
        .kv = s->kv,
        .config_json = "{}",
        .provenance_json = "{}",
        .force = true,
        .threads = 1,
    };
    return artifact_write(dir, g->model, g->dir, &s->source, &settings, NULL, NULL);
}
