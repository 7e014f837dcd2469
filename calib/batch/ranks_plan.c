/* SPDX-License-Identifier: MIT */
#include "calib/cost.h"
#include "calib/fakequant.h"
#include "calib/start/kv_search.h"
#include "calib/start/search.h"

/* Passes of all samples: those that ranks share, and those that each of them repeats for every
 * sample, because GPTQ's products are too large to send. */
static void count_passes(double *shared, double *repeated, const struct arch *a,
                         const struct calib_settings *s)
{
    *shared = cost_stream_passes(a, s);
    *repeated = 0;
    for (int64_t i = 0; i < a->n_layers; i++) {
        const struct block_cost c = cost_of_block(a, s, i);
        const double repeats = calib_runs_gptq(s) ? c.gather : 0;
        *shared += cost_block_passes(&c) - repeats;
        *repeated += repeats;
    }
}

/* Bytes of a sample that its rank sends to the others for a block's start values. */
static double start_bytes(const struct arch *a, const struct calib_settings *s)
{
    const int64_t floats = calib_runs_gptq(s) ? s->seqlen * a->d_model : 0;
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
