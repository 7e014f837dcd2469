/* SPDX-License-Identifier: MIT
 *
 * Estimates the needs of a calibration: bytes from the layouts that allocate them, flops
 * from cost.h. */
#include "calib/calib.h"

#include "calib/calibration.h"
#include "calib/cost.h"
#include "calib/fakequant.h"
#include "calib/recon.h"
#include "calib/start/gptq.h"
#include "calib/start/kv_search.h"
#include "calib/start/search.h"
#include "calib/streams.h"

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

/* Returns the bytes of the largest block that is saved while it trains. Chosen codes, which follow
 * from learned offsets when a block is handed over, take less. */
static size_t saved_bytes(const struct arch *a, const struct calib_settings *s)
{
    uint64_t most = 0;
    for (int64_t b = 0; b < a->n_layers; b++) {
        const uint64_t n = calib_learns(s, b) ? calib_partial_bytes(a, s, b) : 0;
        most = n > most ? n : most;
    }
    return (size_t)most;
}

enum err calib_plan(struct calib_plan *out, const struct arch *a,
                    const struct calib_settings *s)
{
    const int64_t depth = cost_reach(a, s->crr_blocks, 0);
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
    p.saved_bytes = saved_bytes(a, s);
    p.flops_per_step = cost_step_flops(&p.attention_flops_per_step, a, s, 0);
    p.total_flops = cost_total_flops(a, s);
    *out = p;
    return OK;
}
