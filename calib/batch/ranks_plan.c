/* SPDX-License-Identifier: MIT */
#include "calib/calib.h"
#include "calib/fakequant.h"
#include "calib/start/kv_search.h"
#include "calib/start/search.h"

static bool runs_gptq(const struct calib_settings *s)
{
    return weight_quantizes(&s->weights) && s->weights.method == WEIGHT_GPTQ;
}

/* Passes through a block per sample, summed over all blocks: those that ranks share, and those
 * that each of them repeats for every sample, because GPTQ's products are too large to send. */
static void count_passes(double *shared, double *repeated, const struct arch *a,
                         const struct calib_settings *s)
{
    const double n = (double)s->samples, measured = (double)calib_eval_samples(s);
    const bool ranges = kv_needs_ranges(&s->kv);
    const bool inputs = calib_searches_weights(s) && !runs_gptq(s);
    *shared = *repeated = 0;
    for (int64_t i = 0; i < a->n_layers; i++) {
        const int64_t after = a->n_layers - 1 - i;
        const double chain = (double)((s->crr_blocks < after ? s->crr_blocks : after) + 1);
        *shared +=
            chain * ((double)(1 + s->epochs) * measured + 3 * (double)s->epochs * n) +
            (2 + ranges + calib_searches_kv(s) + inputs) * n;
        *repeated += n * runs_gptq(s);
    }
}

/* Bytes of a sample that its rank sends to the others for a block's start values. */
static double start_bytes(const struct arch *a, const struct calib_settings *s)
{
    const int64_t floats = runs_gptq(s) ? s->seqlen * a->d_model : 0;
    const int64_t doubles = (calib_searches_weights(s) ? search_columns(a) : 0) +
                            (calib_searches_kv(s) ? 2 * KV_SEARCH_GRID : 0);
    return (double)(floats * (int64_t)sizeof(float) + doubles * (int64_t)sizeof(double));
}

void calib_plan_ranks(struct calib_ranks_plan *out, const struct arch *a,
                      const struct calib_settings *s, int ranks)
{
    const double floats = (double)fakequant_gradients_most(a, s);
    const double others = (double)(ranks - 1) / (double)ranks;
    struct calib_ranks_plan p = {.step_samples = (s->batch + ranks - 1) / ranks};
    double shared, repeated;
    count_passes(&shared, &repeated, a, s);
    const double share = (double)p.step_samples / (double)s->batch;
    p.step_bytes = sizeof(float) * floats * ((double)p.step_samples + 1) * others;
    p.gradient_bytes = sizeof(float) * floats * (double)p.step_samples;
    p.block_bytes = start_bytes(a, s) * (double)s->samples * others;
    p.speedup = (shared + repeated) / (share * shared + repeated);
    *out = p;
}
