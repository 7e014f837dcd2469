/* SPDX-License-Identifier: MIT
 *
 * Estimates the needs of a refinement. For T tokens of a sample, P weights of the projections that
 * a token passes, and V words of D channels:
 *
 *   student       forward 2 P T, gradients 4 P T, and forward again 2 P T if activations were not
 *                 kept
 *   head          student's and teacher's logits 2 V D T each, gradient of the states 2 V D T
 *   attention     as often as the student
 *
 * Flops of projections and attention are those of calib/cost.h. */
#include "calib/cost.h"
#include "calib/model/ends.h"
#include "calib/refine/distill.h"
#include "calib/refine/refine.h"
#include "calib/refine/student.h"
#include "calib/streams.h"

static double attention_flops(const struct arch *a, int64_t T)
{
    return cost_attention_flops(a, T) * (double)a->n_layers;
}

static double linear_flops(const struct arch *a, int64_t T)
{
    return cost_linear_flops(a, T) * (double)a->n_layers;
}

static double head_flops(const struct arch *a, int64_t T)
{
    return 2 * (double)T * (double)(a->vocab * a->d_model);
}

/* Returns the groups of a projection, each with a scale that learns. */
static int64_t lin_groups(const struct arch *a, struct lin_format f, int lin)
{
    return f.bits < 16 ? arch_out(a, lin) * weight_groups(arch_in(a, lin), f.group_size)
                       : 0;
}

/* Returns the gains of norms and the channels of the cache that learn in a layer. */
static int64_t layer_vectors(const struct arch *a, const struct kv_spec *kv, int64_t layer)
{
    const int64_t cache = kv->method == KV_CHANNEL_TOKEN ? 4 * a->n_kv * a->head_dim : 0;
    return cache + arch_gains(a, layer);
}

/* Adds what one projection needs. */
static void add_lin(struct refine_plan *p, const struct arch *a,
                    const struct refine_settings *s, struct lin_format f, int lin)
{
    const int64_t out = arch_out(a, lin), in = arch_in(a, lin);
    const int64_t groups = lin_groups(a, f, lin);
    if (f.bits >= 16)
        return;
    const size_t codes = (size_t)(out * (f.bits <= 4 ? (in + 1) / 2 : in));
    p->codes_bytes += codes + (size_t)(3 * groups);
    if (s->lr_round > 0) {
        p->codes_bytes += 2 * (size_t)(out * in);
        p->saved_bytes += 2 * codes + 2 * (size_t)(out * in);
    }
    p->host_bytes += (size_t)(out * in + 3 * groups);
    p->params_bytes += (size_t)groups * sizeof(float);
}

/* Returns the bytes of what does not learn in a layer: its router and its biases. */
static size_t unlearned_bytes(const struct arch *a, enum dtype act)
{
    size_t bytes = (size_t)(a->n_experts * a->d_model) * dtype_bytes(act);
    for (int l = 0; l < N_LIN; l++)
        bytes += arch_has_bias(a, l) ? (size_t)arch_out(a, l) * sizeof(float) : 0;
    return bytes;
}

static void add_layers(struct refine_plan *p, const struct arch *a,
                       const struct weight_spec *w, const struct kv_spec *kv,
                       const struct refine_settings *s)
{
    for (int64_t b = 0; b < a->n_layers; b++) {
        for (int l = 0; l < N_LIN; l++)
            add_lin(p, a, s, weight_format(w, b, l), l);
        p->codes_bytes += unlearned_bytes(a, s->act);
        p->params_bytes += (size_t)layer_vectors(a, kv, b) * sizeof(float);
    }
}

/* Returns the windows of a step of the rank that has most. */
static int64_t windows_of_rank(const struct refine_settings *s, int ranks)
{
    return (s->batch + ranks - 1) / ranks;
}

/* Returns the most that a product takes where operands are widened. */
static size_t widened_bytes(const struct arch *a, const struct refine_settings *s)
{
    const size_t block = block_widened_bytes(a, s->seqlen);
    const size_t head = distiller_widened_bytes(a, s->seqlen);
    if (!s->widens || s->act != DT_BF16)
        return 0;
    return block > head ? block : head;
}

enum err refine_plan(struct refine_plan *out, const struct arch *a,
                     const struct weight_spec *w, const struct kv_spec *kv,
                     const struct refine_settings *s, int ranks)
{
    const struct calib_settings stream = {
        .samples = s->samples + s->guard, .seqlen = s->seqlen, .act = s->act};
    const int64_t T = s->seqlen;
    const double windows = (double)stream.samples;
    const double forward = linear_flops(a, T) + attention_flops(a, T);
    const int64_t per_epoch = (s->samples + s->batch - 1) / s->batch;
    struct refine_plan p = {.steps = s->epochs * per_epoch};
    TRY(stream_bytes(&p.teacher_bytes, a, &stream));
    add_layers(&p, a, w, kv, s);
    p.host_bytes += ends_source_bytes(a, s->head) + source_rotated_bytes(a, kv);
    p.saved_bytes += 4 * p.params_bytes;
    p.params_bytes *= 5;
    struct refine_settings own = *s; /* with the windows of the rank that has most */
    own.batch = windows_of_rank(s, ranks);
    p.work_bytes = student_work_bytes(a, &own, ranks > 1) +
                   block_inside_bytes(a, s->seqlen, s->act, s->cpu_threads) +
                   widened_bytes(a, s) +
                   distiller_bytes(a, s->seqlen, s->act,
                                   s->head.bits < 16 || s->other_teacher ? 2 : 1) +
                   2 * (p.teacher_bytes / (size_t)stream.samples);
    p.acts_bytes = student_acts_bytes(a, &own);
    p.keeps_acts = p.acts_bytes <= s->acts_bytes;
    const double passes = p.keeps_acts ? 1 : 2;
    p.attention_flops_per_step =
        (double)s->batch * (passes + COST_ATTENTION_BACKWARD) * attention_flops(a, T);
    p.flops_per_step =
        (double)s->batch * ((passes + 2) * linear_flops(a, T) + 3 * head_flops(a, T)) +
        p.attention_flops_per_step;
    p.total_flops =
        (double)p.steps * p.flops_per_step + windows * forward +
        (double)((REFINE_LOOKS + 1) * s->guard) * (forward + 2 * head_flops(a, T));
    *out = p;
    return OK;
}

/* Floats that the windows of a step add up: all, and in the layer that has most. */
static void count_gradients(double *all, double *most, const struct arch *a,
                            const struct weight_spec *w, const struct kv_spec *kv,
                            const struct refine_settings *s)
{
    *all = *most = 0;
    for (int64_t b = 0; b < a->n_layers; b++) {
        int64_t n = layer_vectors(a, kv, b);
        for (int l = 0; l < N_LIN; l++)
            n += lin_groups(a, weight_format(w, b, l), l) +
                 (s->lr_round > 0 ? arch_out(a, l) * arch_in(a, l) : 0);
        *all += (double)n;
        *most = (double)n > *most ? (double)n : *most;
    }
}

void refine_plan_ranks(struct refine_ranks_plan *out, const struct arch *a,
                       const struct weight_spec *w, const struct kv_spec *kv,
                       const struct refine_settings *s, int ranks)
{
    const double others = (double)(ranks - 1) / (double)ranks;
    double all, most;
    count_gradients(&all, &most, a, w, kv, s);
    struct refine_ranks_plan p = {.step_windows = windows_of_rank(s, ranks)};
    p.gradient_bytes = sizeof(float) * most * (double)p.step_windows;
    p.step_bytes = sizeof(float) * all * ((double)p.step_windows + 1) * others;
    p.teacher_bytes =
        sizeof(float) * others * (double)((s->samples + s->guard) * s->seqlen * a->d_model);
    p.speedup = (double)s->batch / (double)p.step_windows;
    *out = p;
}
