/* SPDX-License-Identifier: MIT
 *
 * Estimates the needs of a calibration: bytes from the layouts that allocate them, flops
 * from the shapes. */
#include "calib/calib.h"

#include "calib/calibration.h"
#include "calib/fakequant.h"
#include "calib/recon.h"
#include "calib/start/gptq.h"
#include "calib/start/kv_search.h"
#include "calib/start/search.h"
#include "calib/streams.h"

/* Attention of a training step, in forward passes: backward recomputes S and has four
 * products for forward's two, which makes 2.5. */
#define ATTENTION_PASSES 3.5

int64_t calib_eval_samples(const struct calib_settings *s)
{
    return s->eval_samples > 0 && s->eval_samples < s->samples ? s->eval_samples
                                                               : s->samples;
}

int64_t calib_epoch_steps(const struct calib_settings *s)
{
    return (s->samples + s->batch - 1) / s->batch;
}

bool calib_learns_weights(const struct calib_settings *s)
{
    return weight_quantizes(&s->weights) &&
           (s->weights.method == WEIGHT_LWC || s->weights.round == ROUND_LEARNED);
}

bool calib_searches_weights(const struct calib_settings *s)
{
    const bool clips =
        s->weights.method == WEIGHT_LWC ||
        (s->weights.method == WEIGHT_GPTQ && s->weights.round == ROUND_LEARNED);
    return s->weights_init == INIT_SEARCH && weight_quantizes(&s->weights) && clips;
}

bool calib_searches_kv(const struct calib_settings *s)
{
    return s->kv_init == INIT_SEARCH && s->kv.method == KV_CHANNEL_TOKEN &&
           kv_quantizes(&s->kv);
}

/* Returns the flops of causal attention forward: two products over T (T + 1) / 2 pairs of
 * tokens, d wide. */
static double attention_flops(const struct arch *a, double T)
{
    return 2 * T * (T + 1) * (double)(a->n_heads * a->head_dim);
}

static double linear_flops(const struct arch *a, double T)
{
    return 2 * T * (double)arch_token_params(a);
}

/* Returns the flops of a training step through the block in work and n blocks after it. The
 * block in work needs no gradient of its input, below q, k, v. */
static double step_flops(const struct arch *a, const struct calib_settings *s, int64_t n)
{
    const double T = (double)s->seqlen, linear = linear_flops(a, T);
    const double qkv =
        2 * T * (double)(arch_out(a, LIN_Q) + 2 * arch_out(a, LIN_K)) * (double)a->d_model;
    const double weight_grads = calib_learns_weights(s);
    return (double)(n + 1) * (linear + ATTENTION_PASSES * attention_flops(a, T)) +
           (double)n * linear + (linear - qkv) + weight_grads * linear;
}

static double forward_flops(const struct arch *a, const struct calib_settings *s)
{
    return linear_flops(a, (double)s->seqlen) + attention_flops(a, (double)s->seqlen);
}

static bool learns(const struct calib_settings *s, int64_t block)
{
    return calib_learns_weights(s) || (kv_quantizes_layer(&s->kv, block) &&
                                       s->kv.method == KV_CHANNEL_TOKEN && s->kv.learn);
}

static int64_t depth_of(const struct arch *a, const struct calib_settings *s, int64_t i)
{
    const int64_t after = a->n_layers - 1 - i;
    return s->crr_blocks < after ? s->crr_blocks : after;
}

static double all_flops(const struct arch *a, const struct calib_settings *s)
{
    const double samples = (double)s->samples;
    const double measured = (double)calib_eval_samples(s);
    double sum = 0;
    for (int64_t i = 0; i < a->n_layers; i++) {
        const double epochs = learns(s, i) ? (double)s->epochs : 0;
        const double chain = (double)(depth_of(a, s, i) + 1);
        sum += samples * epochs * step_flops(a, s, depth_of(a, s, i));
        /* The loss at the start and after each epoch; start values; both streams. */
        sum += forward_flops(a, s) * ((1 + epochs) * chain * measured + 3 * samples);
        sum += gptq_flops(a, s, i);
    }
    return sum;
}

/* Returns a bound of what operations allocate inside the device: mostly attention, and products
 * where they widen their operands. */
static size_t inside_bytes(const struct arch *a, const struct calib_settings *s)
{
    const bool widens = s->widens && s->act == DT_BF16;
    return (64u << 10) + block_inside_bytes(a, s->seqlen, s->act, s->cpu_threads) +
           (widens ? block_widened_bytes(a, s->seqlen) : 0);
}

uint64_t calib_plan_device_bytes(const struct calib_plan *p)
{
    const uint64_t fixed = (uint64_t)p->weights_bytes + p->acts_bytes + p->params_bytes;
    return fixed + DEV_UPLOAD_BYTES +
           (p->streams == STREAM_DEVICE ? p->stream_bytes : p->slot_bytes);
}

static size_t master_bytes(const struct arch *a, const struct calib_settings *s)
{
    enum dtype lin[N_LIN];
    fakequant_master_types(lin, s);
    return weight_quantizes(&s->weights) ? block_weights_bytes_as(a, lin) : 0;
}

/* Returns the host's bytes of one block of given weights (makes_blocks): values in F32, scales and
 * zeros, and the codes of the projection whose values are made. */
static size_t given_bytes(const struct arch *a, const struct weight_spec *w)
{
    size_t most = 0, codes = 0;
    for (int64_t b = 0; b < a->n_layers; b++) {
        size_t groups = 0;
        for (int l = 0; l < N_LIN; l++) {
            const int64_t out = arch_out(a, l), in = arch_in(a, l);
            const struct lin_format f = weight_format(w, b, l);
            if (f.bits >= 16)
                continue;
            groups += (size_t)(out * weight_groups(in, f.group_size));
            codes = (size_t)(out * in) > codes ? (size_t)(out * in) : codes;
        }
        most = groups > most ? groups : most;
    }
    return block_weights_bytes(a, DT_F32) + codes + 3 * most;
}

enum err calib_plan(struct calib_plan *out, const struct arch *a,
                    const struct calib_settings *s)
{
    const int64_t depth = depth_of(a, s, 0);
    const size_t one_set = block_weights_bytes(a, s->act);
    size_t stream;
    TRY(stream_bytes(&stream, a, s));
    struct calib_plan p = {0};
    p.n_streams = 1 + (s->crr_terms == TERMS_ALL ? depth + 1 : 1);
    p.stream_bytes = (size_t)p.n_streams * stream;
    p.streams = stream_place_of(s, (double)p.n_streams * (double)stream);
    p.slot_bytes = 2 * (size_t)p.n_streams * (stream / (size_t)s->samples);
    const size_t full = (size_t)(depth > 1 ? depth : 1) * one_set;
    p.weights_bytes = full + one_set + master_bytes(a, s);
    p.acts_bytes = recon_bytes(a, s) - full + inside_bytes(a, s);
    if (!s->cpu_threads) /* a GPU's */
        p.acts_bytes += late_bytes(a, s, p.n_streams - 1);
    p.params_bytes = fakequant_bytes(a, s) + gptq_bytes(a, s) + search_bytes(a, s) +
                     (calib_searches_kv(s) ? kv_search_bytes(a) : 0);
    if (weight_quantizes_head(&s->weights))
        p.host_bytes = (size_t)(a->vocab * a->d_model) * sizeof(float);
    if (s->weights.method == WEIGHT_GIVEN)
        p.host_bytes += given_bytes(a, &s->weights);
    p.host_bytes += source_rotated_bytes(a, &s->kv);
    p.flops_per_step = step_flops(a, s, depth);
    p.attention_flops_per_step =
        (double)(depth + 1) * ATTENTION_PASSES * attention_flops(a, (double)s->seqlen);
    p.total_flops = all_flops(a, s);
    *out = p;
    return OK;
}
