/* SPDX-License-Identifier: MIT
 *
 * Estimates the needs of a refinement. For T tokens of a sample, P weights of the projections,
 * and V words of D channels:
 *
 *   student       forward 2 P T, gradients 4 P T, and forward again 2 P T if activations were not
 *                 kept
 *   head          student's and teacher's logits 2 V D T each, gradient of the states 2 V D T
 *   attention     as often as the student; backward takes 2.5 times as much as forward */
#include "calib/model/ends.h"
#include "calib/refine/distill.h"
#include "calib/refine/refine.h"
#include "calib/refine/student.h"
#include "calib/streams.h"

#define ATTENTION_BACKWARD 2.5 /* in forward passes */

static double attention_flops(const struct arch *a, double T)
{
    return 2 * T * (T + 1) * (double)(a->n_heads * a->head_dim) * (double)a->n_layers;
}

static double linear_flops(const struct arch *a, double T)
{
    return 2 * T * (double)(arch_block_params(a) * a->n_layers);
}

static double head_flops(const struct arch *a, double T)
{
    return 2 * T * (double)(a->vocab * a->d_model);
}

/* Adds what one projection needs. */
static void add_lin(struct refine_plan *p, const struct arch *a,
                    const struct refine_settings *s, struct lin_format f, int lin)
{
    const int64_t out = arch_out(a, lin), in = arch_in(a, lin);
    const int64_t groups = weight_groups(in, f.group_size);
    if (f.bits >= 16)
        return;
    const size_t codes = (size_t)(out * (f.bits <= 4 ? (in + 1) / 2 : in));
    p->codes_bytes += codes + (size_t)(3 * out * groups);
    if (s->lr_round > 0) {
        p->codes_bytes += 2 * (size_t)(out * in);
        p->saved_bytes += 2 * codes + 2 * (size_t)(out * in);
    }
    p->host_bytes += (size_t)(out * in + 3 * out * groups);
    p->params_bytes += (size_t)(out * groups) * sizeof(float);
}

static void add_layers(struct refine_plan *p, const struct arch *a,
                       const struct weight_spec *w, const struct kv_spec *kv,
                       const struct refine_settings *s)
{
    const int64_t cache = kv->method == KV_CHANNEL_TOKEN ? 4 * a->n_kv * a->head_dim : 0;
    for (int64_t b = 0; b < a->n_layers; b++) {
        int64_t vectors = cache;
        for (int l = 0; l < N_LIN; l++)
            add_lin(p, a, s, weight_format(w, b, l), l);
        for (int g = 0; g < N_GAINS; g++)
            vectors += arch_gain(a, b, (enum norm_gain)g);
        p->params_bytes += (size_t)vectors * sizeof(float);
    }
}

enum err refine_plan(struct refine_plan *out, const struct arch *a,
                     const struct weight_spec *w, const struct kv_spec *kv,
                     const struct refine_settings *s)
{
    const struct calib_settings stream = {
        .samples = s->samples + s->guard, .seqlen = s->seqlen, .act = s->act};
    const double T = (double)s->seqlen, windows = (double)stream.samples;
    const double forward = linear_flops(a, T) + attention_flops(a, T);
    const int64_t per_epoch = (s->samples + s->batch - 1) / s->batch;
    struct refine_plan p = {.steps = s->epochs * per_epoch};
    TRY(stream_bytes(&p.teacher_bytes, a, &stream));
    add_layers(&p, a, w, kv, s);
    p.host_bytes += ends_source_bytes(a, s->head);
    p.saved_bytes += 4 * p.params_bytes;
    p.params_bytes *= 5;
    p.work_bytes = student_work_bytes(a, s->seqlen, s->batch, s->act) +
                   distiller_bytes(a, s->seqlen, s->act,
                                   s->head.bits < 16 || s->other_teacher ? 2 : 1) +
                   2 * (p.teacher_bytes / (size_t)stream.samples);
    p.acts_bytes = student_acts_bytes(a, s);
    p.keeps_acts = p.acts_bytes <= s->acts_bytes;
    const double passes = p.keeps_acts ? 1 : 2;
    p.attention_flops_per_step =
        (double)s->batch * (passes + ATTENTION_BACKWARD) * attention_flops(a, T);
    p.flops_per_step =
        (double)s->batch * ((passes + 2) * linear_flops(a, T) + 3 * head_flops(a, T)) +
        p.attention_flops_per_step;
    p.total_flops =
        (double)p.steps * p.flops_per_step + windows * forward +
        (double)((REFINE_LOOKS + 1) * s->guard) * (forward + 2 * head_flops(a, T));
    *out = p;
    return OK;
}
