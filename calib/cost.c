/* SPDX-License-Identifier: MIT */
#include "calib/cost.h"

#include "calib/start/gptq.h"

/* --- what is done --------------------------------------------------------------------- */

bool calib_learns_weights(const struct calib_settings *s)
{
    return weight_quantizes(&s->weights) &&
           (s->weights.method == WEIGHT_LWC || s->weights.round == ROUND_LEARNED);
}

bool calib_learns_kv(const struct calib_settings *s)
{
    return kv_quantizes(&s->kv) && s->kv.method == KV_CHANNEL_TOKEN && s->kv.learn;
}

static bool weights_learn_in(const struct calib_settings *s, int64_t block)
{
    return calib_learns_weights(s) && weight_quantizes_layer(&s->weights, block);
}

bool calib_quantizes(const struct calib_settings *s, int64_t block)
{
    return weight_quantizes_layer(&s->weights, block) || kv_quantizes_layer(&s->kv, block);
}

bool calib_learns(const struct calib_settings *s, int64_t block)
{
    return weights_learn_in(s, block) ||
           (calib_learns_kv(s) && kv_quantizes_layer(&s->kv, block));
}

bool calib_runs_gptq(const struct calib_settings *s)
{
    return weight_quantizes(&s->weights) && s->weights.method == WEIGHT_GPTQ;
}

bool calib_clips(const struct calib_settings *s)
{
    return (weight_quantizes(&s->weights) && s->weights.method == WEIGHT_LWC) ||
           (calib_runs_gptq(s) && s->weights.round == ROUND_LEARNED);
}

bool calib_searches_weights(const struct calib_settings *s)
{
    return s->weights_init == INIT_SEARCH && calib_clips(s);
}

bool calib_searches_kv(const struct calib_settings *s)
{
    return s->kv_init == INIT_SEARCH && s->kv.method == KV_CHANNEL_TOKEN &&
           kv_quantizes(&s->kv);
}

bool calib_gathers(const struct calib_settings *s, int64_t block)
{
    return (calib_runs_gptq(s) || calib_searches_weights(s)) &&
           weight_quantizes_layer(&s->weights, block);
}

int calib_kv_passes(const struct calib_settings *s, int64_t block)
{
    if (!kv_needs_ranges(&s->kv) || !kv_quantizes_layer(&s->kv, block))
        return 0;
    return calib_searches_kv(s) ? 2 : 1;
}

int64_t calib_eval_samples(const struct calib_settings *s)
{
    return s->eval_samples > 0 && s->eval_samples < s->samples ? s->eval_samples
                                                               : s->samples;
}

int64_t calib_epoch_steps(const struct calib_settings *s)
{
    return (s->samples + s->batch - 1) / s->batch;
}

/* --- passes --------------------------------------------------------------------------- */

int64_t cost_reach(const struct arch *a, int64_t k, int64_t block)
{
    const int64_t after = a->n_layers - 1 - block;
    return k < after ? k : after;
}

struct block_cost cost_of_block(const struct arch *a, const struct calib_settings *s,
                                int64_t block)
{
    const double samples = (double)s->samples;
    const int64_t chain = cost_reach(a, s->crr_blocks, block) + 1;
    const bool measures = calib_quantizes(s, block);
    return (struct block_cost){
        .chain = chain,
        .epochs = calib_learns(s, block) ? s->epochs : 0,
        .gather = calib_gathers(s, block) * samples,
        .scan = calib_kv_passes(s, block) * samples * cost_scan_passes(a, s->seqlen),
        .measure = measures ? (double)(chain * calib_eval_samples(s)) : 0,
        .epoch = (double)(COST_STEP_PASSES * chain) * samples};
}

double cost_block_passes(const struct block_cost *c)
{
    const double epochs = (double)c->epochs;
    return c->gather + c->scan + (1 + epochs) * c->measure + epochs * c->epoch;
}

double cost_stream_passes(const struct arch *a, const struct calib_settings *s)
{
    return (double)((2 * a->n_layers - 1) * s->samples);
}

/* --- flops ---------------------------------------------------------------------------- */

double cost_linear_flops(const struct arch *a, int64_t T)
{
    return 2 * (double)T * (double)arch_token_params(a);
}

double cost_attention_flops(const struct arch *a, int64_t T)
{
    return 2 * (double)T * (double)(T + 1) * (double)(a->n_heads * a->head_dim);
}

/* Returns the flops of q, k and v, which come before attention. */
static double qkv_flops(const struct arch *a, int64_t T)
{
    return 2 * (double)T * (double)(arch_out(a, LIN_Q) + 2 * arch_out(a, LIN_K)) *
           (double)a->d_model;
}

double cost_scan_passes(const struct arch *a, int64_t T)
{
    return qkv_flops(a, T) / (cost_linear_flops(a, T) + cost_attention_flops(a, T));
}

/* Returns the flops of the gradients of a step's projections: of the inputs of those in the n
 * blocks after the one in work, and in it of all but q, k and v; and of its weights. */
static double linear_gradients(const struct arch *a, const struct calib_settings *s,
                               int64_t block, int64_t n)
{
    const double linear = cost_linear_flops(a, s->seqlen);
    return (double)n * linear + (linear - qkv_flops(a, s->seqlen)) +
           weights_learn_in(s, block) * linear;
}

double cost_step_flops(double *attention, const struct arch *a,
                       const struct calib_settings *s, int64_t block)
{
    const int64_t n = cost_reach(a, s->crr_blocks, block);
    const double forward = (double)(n + 1) * cost_linear_flops(a, s->seqlen);
    const double scores = (double)(n + 1) * cost_attention_flops(a, s->seqlen);
    const bool learns = calib_learns(s, block);
    *attention = (learns ? 1 + COST_ATTENTION_BACKWARD : 1) * scores;
    return forward + *attention + (learns ? linear_gradients(a, s, block, n) : 0);
}

double cost_total_flops(const struct arch *a, const struct calib_settings *s)
{
    double passes = cost_stream_passes(a, s), sum = 0, attention;
    for (int64_t i = 0; i < a->n_layers; i++) {
        const struct block_cost c = cost_of_block(a, s, i);
        const double steps = (double)c.epochs * c.epoch;
        passes += cost_block_passes(&c) - steps;
        if (c.epochs)
            sum += (double)(c.epochs * s->samples) * cost_step_flops(&attention, a, s, i);
        if (c.gather > 0)
            sum += gptq_flops(a, s, i);
    }
    return sum +
           passes * (cost_linear_flops(a, s->seqlen) + cost_attention_flops(a, s->seqlen));
}
