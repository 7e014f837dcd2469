/* SPDX-License-Identifier: MIT
 *
 * One training step passes through this file twice. fakequant_apply computes, per group,
 *
 *   h = fp16((gamma wmax - beta wmin) / Q)      z = clamp(round(-beta wmin / h), 0, Q)
 *   q = clamp(round(W / h + offset) + z, 0, Q)  W^ = (q - z) h
 *
 * and backward returns dL/dW^. round and fp16 have derivative 0 almost everywhere, so their
 * gradient is replaced by that of the identity (straight through). With u = W / h and r =
 * round(u), per element:
 *
 *   inside [0, Q]   dW^/dh = r - u      dW^/dz = 0
 *   above Q         dW^/dh = Q - z      dW^/dz = -h
 *   below 0         dW^/dh = -z         dW^/dz = -h
 *
 * fakequant_clip_grads sums these over a group and chains them to gamma and beta, and by
 * gamma' = gamma (1 - gamma) to a and b. The offsets' gradient is dL/dW^ h inside the
 * range, of which a step uses the sign (dev_offset_step). The cache's gradients, for log s
 * and delta, come from block_backward_params directly.
 *
 * Blocks may differ in formats, so each lays its own parameters out in memory that is sized
 * for the largest (plan_block, layout). */
#include "calib/fakequant.h"

#include "calib/batch/batch_sum.h"
#include "calib/cost.h"
#include "calib/fakequant_round.h"
#include "calib/finite.h"
#include "calib/model/carve.h"
#include "calib/start/kv_search.h"
#include "kernels/tensor/fp8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CLIP_START 4.0f /* sigma(4) = 0.982: nearly no clipping, but a gradient */

/* --- layout ------------------------------------------------------------------------- */

static int64_t kv_channels(const struct arch *a)
{
    return a->n_kv * a->head_dim;
}

static int64_t lin_groups(const struct fakequant *f, int l)
{
    return weight_groups(arch_in(f->arch, l), f->format[l].group_size);
}

/* Returns true if projection l is quantized. */
static bool packs(const struct fakequant *f, int l)
{
    return f->format[l].bits < 16;
}

/* Decides from the settings what is quantized and what learns. GPTQ with learned rounding
 * only provides start values for offsets and clipping; alone, it fixes the codes. */
static void plan_kinds(struct fakequant *f, const struct arch *a,
                       const struct calib_settings *s)
{
    f->arch = a;
    f->weights = s->weights;
    f->kv =
        (struct block_kv){.spec = s->kv, .scale = {1, 1}, .act_bits = s->weights.act_bits};
    f->quantize_weights = weight_quantizes(&s->weights);
    f->quantize_kv = kv_quantizes(&s->kv);
    const bool gptq = calib_runs_gptq(s);
    f->learn_round = f->quantize_weights && s->weights.round == ROUND_LEARNED;
    f->gptq_start = gptq && f->learn_round;
    f->gptq = gptq && !f->learn_round;
    f->given = f->quantize_weights && s->weights.method == WEIGHT_GIVEN;
    f->learn_weights = calib_clips(s);
    f->sums = s->batch > 1;
    f->learn_kv = calib_learns_kv(s);
}

/* Counts what one block learns; it follows from the formats of its projections. */
static void plan_block(struct fakequant *f, int64_t block)
{
    const struct arch *a = f->arch;
    f->count[FQ_CLIP] = f->count[FQ_SMOOTH] = f->count[FQ_SHIFT] = 0;
    for (int l = 0; l < N_LIN; l++) {
        f->format[l] = weight_format(&f->weights, block, l);
        if (f->learn_weights && packs(f, l))
            f->count[FQ_CLIP] += 2 * arch_out(a, l) * lin_groups(f, l);
    }
    if (f->learn_kv)
        f->count[FQ_SMOOTH] = f->count[FQ_SHIFT] = 2 * kv_channels(a);
    f->n = f->count[FQ_CLIP] + f->count[FQ_SMOOTH] + f->count[FQ_SHIFT];
}

/* Returns the next rows x cols floats of vector x and advances *at. */
static struct tensor take(const struct tensor *x, int64_t *at, int64_t rows, int64_t cols)
{
    float *data = x->data;
    const struct tensor part = tensor_2d(data ? data + *at : NULL, DT_F32, rows, cols);
    *at += rows * cols;
    return part;
}

static struct tensor take_1d(const struct tensor *x, int64_t *at, int64_t n)
{
    struct tensor part = take(x, at, 1, n);
    return tensor_1d(part.data, DT_F32, n);
}

/* Places scales, zeros, a and b with their gradients, and the gradients of weights, which a block
 * without a quantized projection does not need. */
static void place_clip(struct fakequant *f, struct carve *c)
{
    const struct arch *a = f->arch;
    int64_t p_at = 0, g_at = 0;
    bool any = false;
    f->grads.dwqkv = f->grads.dwo = f->grads.dwgu = f->grads.dwdown = (struct tensor){0};
    for (int l = 0; l < N_LIN; l++) {
        const int64_t out = arch_out(a, l), groups = lin_groups(f, l);
        f->scales[l] = f->zeros[l] = (struct tensor){0};
        f->a[l] = f->b[l] = f->da[l] = f->db[l] = (struct tensor){0};
        if (!packs(f, l))
            continue;
        any = true;
        f->scales[l] = carve_2d(c, DT_F16, out, groups);
        f->zeros[l] = carve_2d(c, DT_U8, out, groups);
        if (!f->learn_weights)
            continue;
        f->a[l] = take(&f->p, &p_at, out, groups);
        f->b[l] = take(&f->p, &p_at, out, groups);
        f->da[l] = take(&f->g, &g_at, out, groups);
        f->db[l] = take(&f->g, &g_at, out, groups);
    }
    if (!any || (!f->learn_weights && !f->learn_round))
        return;
    const int64_t d = a->head_dim, heads = a->n_heads + 2 * a->n_kv;
    f->grads.dwqkv = carve_2d(c, DT_F32, heads * d, a->d_model);
    f->grads.dwo = carve_2d(c, DT_F32, a->d_model, a->n_heads * d);
    f->grads.dwgu = carve_2d(c, DT_F32, 2 * arch_out(a, LIN_GATE), a->d_model);
    f->grads.dwdown = carve_2d(c, DT_F32, arch_out(a, LIN_DOWN), a->d_ff);
}

/* Places s, log s and delta; log s and delta are part of p where they learn. */
static void place_kv(struct fakequant *f, struct carve *c)
{
    const int64_t C = kv_channels(f->arch);
    f->kv.k_s = carve_1d(c, DT_F32, C);
    f->kv.v_s = carve_1d(c, DT_F32, C);
    if (!f->learn_kv) {
        f->k_ls = carve_1d(c, DT_F32, C);
        f->v_ls = carve_1d(c, DT_F32, C);
        f->kv.k_shift = carve_1d(c, DT_F32, C);
        f->kv.v_shift = carve_1d(c, DT_F32, C);
        return;
    }
    int64_t p_at = f->count[FQ_CLIP], g_at = p_at;
    f->k_ls = take_1d(&f->p, &p_at, C);
    f->v_ls = take_1d(&f->p, &p_at, C);
    f->kv.k_shift = take_1d(&f->p, &p_at, C);
    f->kv.v_shift = take_1d(&f->p, &p_at, C);
    f->grads.k_dls = take_1d(&f->g, &g_at, C);
    f->grads.v_dls = take_1d(&f->g, &g_at, C);
    f->grads.k_dshift = take_1d(&f->g, &g_at, C);
    f->grads.v_dshift = take_1d(&f->g, &g_at, C);
}

/* Places the sums of gradients over the samples of a step. */
static void place_sums(struct fakequant *f, struct carve *c)
{
    const struct tensor *grad[FQ_SUMS];
    fakequant_gradients(f, grad);
    for (int i = 0; i < FQ_SUMS; i++) {
        f->sum[i] = (struct tensor){0};
        if (f->sums && grad[i] && i)
            f->sum[i] = carve_2d(c, DT_F32, grad[i]->dim[0], grad[i]->dim[1]);
        else if (f->sums && grad[i])
            f->sum[i] = carve_1d(c, DT_F32, f->n);
    }
}

/* Places everything of the block; called once with c->base NULL to measure. */
static void layout(struct fakequant *f, struct carve *c)
{
    struct tensor *const vectors[] = {&f->p, &f->g, &f->m, &f->v, &f->best};
    for (size_t i = 0; i < ARRAY_LEN(vectors); i++)
        *vectors[i] = f->n ? carve_1d(c, DT_F32, f->n) : (struct tensor){0};
    if (f->quantize_weights)
        place_clip(f, c);
    if (f->quantize_kv)
        place_kv(f, c);
    place_sums(f, c);
}

/* Returns the bytes of the block that needs most. */
static size_t most_bytes(const struct fakequant *planned)
{
    struct fakequant f = *planned;
    size_t most = 0;
    f.memory = NULL;
    for (int64_t i = 0; i < f.arch->n_layers; i++) {
        struct carve c = {0};
        plan_block(&f, i);
        layout(&f, &c);
        most = c.used > most ? c.used : most;
    }
    return most;
}

void fakequant_master_types(enum dtype lin[N_LIN], const struct calib_settings *s)
{
    const bool gptq_fixes =
        s->weights.method == WEIGHT_GPTQ && s->weights.round != ROUND_LEARNED;
    const bool changes = gptq_fixes || s->weights.method == WEIGHT_GIVEN;
    for (int l = 0; l < N_LIN; l++)
        lin[l] = changes ? DT_F32 : s->stored[l];
}

size_t fakequant_bytes(const struct arch *a, const struct calib_settings *s)
{
    struct fakequant f = {0};
    plan_kinds(&f, a, s);
    return most_bytes(&f) + round_bytes(&f);
}

int64_t fakequant_gradients_most(const struct arch *a, const struct calib_settings *s)
{
    struct fakequant f = {0};
    int64_t most = 0;
    plan_kinds(&f, a, s);
    for (int64_t i = 0; i < a->n_layers; i++) {
        plan_block(&f, i);
        most = f.n > most ? f.n : most;
    }
    return most + (f.learn_round ? arch_block_params(a) : 0);
}

/* Lays the block's tensors out in the memory that fakequant_open allocated. */
static void place_block(struct fakequant *f, int64_t block)
{
    struct carve c = {.base = f->memory};
    plan_block(f, block);
    layout(f, &c);
}

enum err fakequant_open(struct fakequant *f, struct dev *d, const struct arch *a,
                        const struct calib_settings *s)
{
    *f = (struct fakequant){.dev = d};
    enum dtype master[N_LIN];
    plan_kinds(f, a, s);
    fakequant_master_types(master, s);
    const size_t bytes = most_bytes(f);
    if (bytes)
        TRY(dev_alloc(d, &f->memory, bytes));
    place_block(f, 0);
    if (f->learn_round)
        TRY(round_open(f));
    if (f->quantize_weights)
        TRY(block_weights_alloc_as(&f->master, d, a, master));
    return block_weights_alloc(&f->wq, d, a, s->act);
}

static void drop_fixed(struct fakequant *f)
{
    for (int l = 0; l < N_LIN; l++)
        qlinear_free(&f->fixed[l]);
}

void fakequant_close(struct fakequant *f)
{
    if (f->dev)
        dev_free(f->dev, f->memory);
    drop_fixed(f);
    round_close(f);
    block_weights_free(&f->master);
    block_weights_free(&f->wq);
    *f = (struct fakequant){0};
}

enum err fakequant_load(struct fakequant *f, const struct block_src *src, int64_t block)
{
    drop_fixed(f);
    f->kv.layer = block;
    place_block(f, block);
    /* Backward writes none where the cache of this block alone is unquantized. */
    if (f->n)
        TRY(dev_zero(f->dev, f->g.data, (size_t)f->n * sizeof(float)));
    if (f->learn_round)
        TRY(round_zero(f));
    if (f->quantize_weights)
        TRY(block_weights_load(&f->master, f->arch, block, src));
    if (f->given)
        TRY(fakequant_take_given(f, src));
    if (f->quantize_weights)
        TRY(block_weights_convert(&f->wq, &f->master));
    else
        TRY(block_weights_load(&f->wq, f->arch, block, src));
    return finite_weights(&f->wq, f->arch, src, block);
}

/* --- start values ------------------------------------------------------------------- */

/* Returns the scale with which FP8 just holds the largest of n ranges; 1 if all values are 0. */
static float scale_of_ranges(const float *mn, const float *mx, int64_t n)
{
    float most = 0;
    for (int64_t c = 0; c < n; c++)
        most = fmaxf(most, fmaxf(mx[c], -mn[c]));
    const float scale = most / FP8_MAX;
    return scale > 0 ? scale : 1;
}

/* Starts log s and delta of keys or values from their ranges; at 0 (s = 1) where that side
 * is unquantized or no range is given. A scale of the tensor does not learn. */
static enum err start_side(struct fakequant *f, enum kv_side side, const float *mn,
                           const float *mx, const float *alpha)
{
    const struct tensor *const ls = side == KV_K ? &f->k_ls : &f->v_ls;
    const struct tensor *const delta = side == KV_K ? &f->kv.k_shift : &f->kv.v_shift;
    const int64_t C = kv_channels(f->arch);
    const size_t bytes = (size_t)C * sizeof(float);
    const bool scaled = kv_target_has_scales(f->kv.spec.target);
    const bool fixed = scaled || (side == KV_K && f->kv.spec.target);
    f->kv.scale[side] = scaled && mn ? scale_of_ranges(mn, mx, C) : 1;
    if (!mn || fixed || kv_format(&f->kv.spec, f->kv.layer, side).bits >= 16) {
        TRY(dev_zero(f->dev, ls->data, bytes));
        return dev_zero(f->dev, delta->data, bytes);
    }
    float *host = NULL;
    TRY(mem_alloc(&host, 2 * (size_t)C, sizeof(*host)));
    kv_smooth(host, host + C, mn, mx, C, alpha ? alpha[side] : KV_ALPHA);
    for (int64_t c = 0; c < C && f->kv.spec.target && !arch_holds_value_shift(f->arch); c++)
        host[C + c] = 0;
    enum err err = dev_upload(f->dev, ls->data, host, bytes);
    if (!err)
        err = dev_upload(f->dev, delta->data, host + C, bytes);
    if (!err)
        err = dev_sync(f->dev);
    mem_free(host);
    return err;
}

/* Starts all a and b alike; p begins with them. */
static enum err start_clip(struct fakequant *f)
{
    const int64_t n = f->count[FQ_CLIP];
    float *host = NULL;
    if (!n)
        return OK;
    TRY(mem_alloc(&host, (size_t)n, sizeof(*host)));
    for (int64_t i = 0; i < n; i++)
        host[i] = CLIP_START;
    enum err err = dev_upload(f->dev, f->p.data, host, (size_t)n * sizeof(*host));
    if (!err)
        err = dev_sync(f->dev);
    mem_free(host);
    return err;
}

enum err fakequant_start(struct fakequant *f, const float *k_min, const float *k_max,
                         const float *v_min, const float *v_max, const float *alpha)
{
    TRY(start_clip(f));
    if (f->quantize_kv) {
        TRY(start_side(f, KV_K, k_min, k_max, alpha));
        TRY(start_side(f, KV_V, v_min, v_max, alpha));
    }
    if (!f->n)
        return OK;
    TRY(dev_zero(f->dev, f->m.data, (size_t)f->n * sizeof(float)));
    TRY(dev_zero(f->dev, f->v.data, (size_t)f->n * sizeof(float)));
    return dev_zero(f->dev, f->best.data, (size_t)f->n * sizeof(float));
}

/* --- a step ------------------------------------------------------------------------- */

/* Projection l's weight w and its format, without learned parameters. */
static struct weight_quant lin_quant(const struct fakequant *f, int l,
                                     const struct tensor *w)
{
    return (struct weight_quant){.w = w,
                                 .bits = f->format[l].bits,
                                 .group_size = f->format[l].group_size,
                                 .scale_bits = f->format[l].scale_bits};
}

/* Writes wq, scales and zeros of projection l. With given codes, or codes fixed by GPTQ, master
 * holds their values and rounding under the fixed scales reproduces them. */
static enum err apply_lin(struct fakequant *f, int l)
{
    const struct tensor w = block_weights_lin(&f->master, f->arch, l);
    const struct tensor wq = block_weights_lin(&f->wq, f->arch, l);
    const struct tensor v = fakequant_offsets(f, l, false);
    struct weight_quant p = lin_quant(f, l, &w);
    if (f->gptq || f->given)
        return dev_fake_quant_stored(f->dev, &wq, &f->scales[l], &f->zeros[l], &p);
    p.a = f->learn_weights ? &f->a[l] : NULL;
    p.b = f->learn_weights ? &f->b[l] : NULL;
    p.v = f->learn_round ? &v : NULL;
    return dev_fake_quant_weights(f->dev, &wq, &f->scales[l], &f->zeros[l], &p);
}

enum err fakequant_apply(struct fakequant *f)
{
    for (int l = 0; l < N_LIN; l++)
        if (packs(f, l))
            TRY(apply_lin(f, l));
    if (!f->quantize_kv)
        return OK;
    /* s > 0 holds because log s learns. */
    TRY(dev_exp(f->dev, &f->kv.k_s, &f->k_ls));
    return dev_exp(f->dev, &f->kv.v_s, &f->v_ls);
}

/* Returns the gradient of projection l's weight, a view into the stacked matrices. */
static struct tensor lin_grad(const struct fakequant *f, int l)
{
    const struct block_weights stacked = {.wqkv = f->grads.dwqkv,
                                          .wo = f->grads.dwo,
                                          .wgu = f->grads.dwgu,
                                          .wdown = f->grads.dwdown};
    return block_weights_lin(&stacked, f->arch, l);
}

/* dL/da and dL/db from dL/dW^, projection by projection, as the table above chains them. */
enum err fakequant_clip_grads(struct fakequant *f)
{
    for (int l = 0; l < N_LIN && f->learn_weights; l++) {
        if (!packs(f, l))
            continue;
        const struct tensor w = block_weights_lin(&f->master, f->arch, l);
        const struct tensor dw = lin_grad(f, l), v = fakequant_offsets(f, l, false);
        struct weight_quant p = lin_quant(f, l, &w);
        p.a = &f->a[l];
        p.b = &f->b[l];
        p.v = f->learn_round ? &v : NULL;
        TRY(dev_fake_quant_weights_bwd(f->dev, &f->da[l], &f->db[l], &dw, &p));
    }
    return OK;
}

/* Returns elements [at, at + n) of a vector. */
static struct tensor slice(const struct tensor *x, int64_t at, int64_t n)
{
    return tensor_1d((float *)x->data + at, DT_F32, n);
}

/* Moves the offsets against dL/dW^, with the scales and zeros of the last apply. */
static enum err step_offsets(struct fakequant *f, float rate)
{
    for (int l = 0; l < N_LIN; l++) {
        if (!packs(f, l))
            continue;
        const struct tensor w = block_weights_lin(&f->master, f->arch, l);
        const struct tensor dw = lin_grad(f, l), v = fakequant_offsets(f, l, false);
        struct weight_quant p = lin_quant(f, l, &w);
        p.v = &v;
        TRY(dev_offset_step(f->dev, &dw, &f->scales[l], &f->zeros[l], &p, rate));
    }
    return OK;
}

static struct adamw adamw_of(const struct fq_step *s, int kind)
{
    return (struct adamw){.lr = s->lr[kind],
                          .beta1 = 0.9f,
                          .beta2 = 0.999f,
                          .eps = 1e-8f,
                          .weight_decay = s->weight_decay,
                          .step = s->step,
                          .unless = s->unless,
                          .rates = s->rates ? &s->rates[kind] : NULL};
}

enum err fakequant_put_rates(struct fakequant *f, const struct fq_step *s)
{
    struct adamw_rates rates[N_FQ_KINDS];
    for (int kind = 0; kind < N_FQ_KINDS; kind++) {
        const struct adamw o = adamw_of(s, kind);
        rates[kind] = dev_adamw_rates(&o);
    }
    return dev_put(f->dev, s->rates, rates, sizeof(rates));
}

/* Offsets step by the sign of their gradient, everything else by AdamW. Each kind of
 * parameter lies in one piece of p and has its own rate. */
enum err fakequant_step(struct fakequant *f, const struct fq_step *s)
{
    int64_t at = 0;
    if (f->learn_round)
        TRY(step_offsets(f, s->lr[FQ_ROUND]));
    for (int kind = 0; kind < N_FQ_KINDS; kind++) {
        const int64_t n = f->count[kind];
        const struct adamw o = adamw_of(s, kind);
        if (!n)
            continue;
        const struct tensor p = slice(&f->p, at, n), g = slice(&f->g, at, n);
        const struct tensor m = slice(&f->m, at, n), v = slice(&f->v, at, n);
        TRY(dev_adamw(f->dev, &p, &g, &m, &v, &o));
        at += n;
    }
    return OK;
}

/* Sets *bad and the name if x is not finite, unless one was found before. */
static enum err check(struct fakequant *f, const struct tensor *x, const char *what,
                      const char *of, char *name, size_t bytes, bool *bad)
{
    bool finite = true;
    if (*bad || !x->data)
        return OK;
    TRY(dev_all_finite(f->dev, &finite, x));
    if (finite)
        return OK;
    *bad = true;
    snprintf(name, bytes, "%s of %s", what, of);
    return OK;
}

/* One test of all gradients together is the usual path. Only after a hit is the tensor
 * searched that has it. */
enum err fakequant_bad_gradient(struct fakequant *f, char *name, size_t bytes, bool *bad)
{
    bool finite = true;
    *bad = false;
    for (int l = 0; l < N_LIN && f->learn_round && !f->learn_weights; l++) {
        if (!packs(f, l))
            continue;
        const struct tensor dw = lin_grad(f, l);
        TRY(check(f, &dw, "weight", arch_lin_module(f->arch, l), name, bytes, bad));
    }
    if (!f->n || *bad)
        return OK;
    TRY(dev_all_finite(f->dev, &finite, &f->g));
    if (finite)
        return OK;
    for (int l = 0; l < N_LIN; l++) {
        TRY(check(f, &f->da[l], "upper clipping", arch_lin_module(f->arch, l), name, bytes,
                  bad));
        TRY(check(f, &f->db[l], "lower clipping", arch_lin_module(f->arch, l), name, bytes,
                  bad));
    }
    TRY(check(f, &f->grads.k_dls, "smoothing", "keys", name, bytes, bad));
    TRY(check(f, &f->grads.v_dls, "smoothing", "values", name, bytes, bad));
    TRY(check(f, &f->grads.k_dshift, "shift", "keys", name, bytes, bad));
    return check(f, &f->grads.v_dshift, "shift", "values", name, bytes, bad);
}

enum err fakequant_report_gradients(const struct fakequant *f, struct dev_report *r)
{
    return f->n ? dev_report_check(r, &f->g) : OK;
}

enum err fakequant_keep_best(struct fakequant *f)
{
    if (f->learn_round)
        TRY(round_copy(f, true));
    return f->n ? dev_copy(f->dev, &f->best, &f->p) : OK;
}

enum err fakequant_restore_best(struct fakequant *f)
{
    if (f->learn_round)
        TRY(round_copy(f, false));
    return f->n ? dev_copy(f->dev, &f->p, &f->best) : OK;
}
