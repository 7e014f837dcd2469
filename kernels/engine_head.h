/* SPDX-License-Identifier: MIT
 *
 * One head of one token in the cache of another engine: the formulas of kernels/dev_engine.h,
 * which every device of this machine shares. Private to kernels/.
 *
 * The gradient, with x' = R P x, g = R P dxq, e = s g, q a block's codes and d its unrounded step
 * (where R is not orthogonal but sqrt(n) times it, the factors of g and dx cancel): straight
 * through, a block has
 *
 *   dL/dx~_c = e_c (0 where the code is limited) + [c is d's place] dL/dd dd/dx~_c
 *   dL/dd    = sum_c e_c (q_c - zero - (x~_c - min) / d), without the last term where limited
 *   dx' = dL/dx~ / s      dL/dlog s = s g x~^ - dL/dx~ x~      dL/dshift = g - dx'
 *
 * and dx = P^T R dx'. vLLM's zero is taken to be constant. */
#ifndef WKVQ_ENGINE_HEAD_H
#define WKVQ_ENGINE_HEAD_H

#include "kernels/dev_engine.h"
#include "kernels/tensor/engine_block.h"
#include "kernels/tensor/fp8.h"
#include "kernels/tensor/hadamard.h"

#include <string.h>

static inline bool engine_head_fits(const struct engine_quant *p)
{
    const struct kv_spec kv = kv_target_spec(p->target);
    return kv_target_fits(&kv, p->x->dim[2]);
}

/* Returns how many channels are rotated together; 0: none are. */
static inline int64_t engine_rotation(const struct engine_quant *p)
{
    const int64_t d = p->x->dim[2];
    if (p->target == TARGET_VLLM_INT4)
        return d & -d;
    if (!kv_target_folds(p->target))
        return 0;
    return p->side == KV_K ? d : KV_TARGET_V_ROTATION;
}

/* Returns the sign by which vLLM multiplies channel i of n that it rotates together. Bit i says
 * that it is -1: torch.bernoulli of 1/2 from a generator with the seed 0x9E3779B9, whose first
 * draws do not depend on how many follow. */
static inline float engine_sign(int64_t i)
{
    static const uint32_t minus[HADAMARD_MAX / 32] = {
        0x9a8ca6f2, 0x7f7fca4e, 0x59bbc293, 0x9480abc7, 0xb55b747e, 0x54503bbe,
        0xcdf467b7, 0x05dfbc5f, 0xb291e3cc, 0x57563834, 0xe46ae225, 0x67fc4ca6,
        0xcfc78691, 0x32d9dff1, 0x365fdb89, 0x75625346};
    return minus[i / 32] >> i % 32 & 1 ? -1.0f : 1.0f;
}

/* y = R y. vLLM's R has a factor sqrt(n), n the channels that it rotates together. */
static inline void engine_rotate(float *y, const struct engine_quant *p)
{
    const int64_t n = engine_rotation(p), d = p->x->dim[2];
    if (p->target == TARGET_VLLM_INT4)
        for (int64_t i = 0; i < d; i++)
            y[i] *= engine_sign(i % n);
    for (int64_t i = 0; n && i < d; i += n)
        if (p->target == TARGET_VLLM_INT4)
            hadamard_sums_f32(y + i, n);
        else
            hadamard_f32(y + i, n);
}

/* y = the inverse of R times y. */
static inline void engine_rotate_back(float *y, const struct engine_quant *p)
{
    const int64_t n = engine_rotation(p), d = p->x->dim[2];
    if (p->target != TARGET_VLLM_INT4) {
        engine_rotate(y, p);
        return;
    }
    for (int64_t i = 0; i < d; i += n)
        hadamard_sums_f32(y + i, n);
    for (int64_t i = 0; i < d; i++)
        y[i] *= engine_sign(i % n) / (float)n;
}

/* Returns the channel of a head that is the engine's channel i. */
static inline int64_t engine_channel(const struct engine_quant *p, int64_t i)
{
    return p->interleaved ? i % 2 * (p->x->dim[2] / 2) + i / 2 : i;
}

static inline float engine_get(const struct tensor *x, int64_t i)
{
    return x->dtype == DT_F32 ? ((const float *)x->data)[i]
                              : bf16_to_f32(((const uint16_t *)x->data)[i]);
}

/* y [d] = R P of the head that starts at element `at` of x. */
static inline void engine_read(float *y, const struct engine_quant *p,
                               const struct tensor *x, int64_t at)
{
    for (int64_t i = 0; i < p->x->dim[2]; i++)
        y[i] = engine_get(x, at + engine_channel(p, i));
    engine_rotate(y, p);
}

/* The head that starts at element `at` of x = P^T R y, or +=. Overwrites y. */
static inline void engine_write(const struct tensor *x, int64_t at,
                                const struct engine_quant *p, float *y, bool add)
{
    engine_rotate_back(y, p);
    for (int64_t i = 0; i < p->x->dim[2]; i++) {
        const int64_t to = at + engine_channel(p, i);
        const float v = add ? engine_get(x, to) + y[i] : y[i];
        if (x->dtype == DT_F32)
            ((float *)x->data)[to] = v;
        else
            ((uint16_t *)x->data)[to] = bf16_from_f32(v);
    }
}

/* Returns the values of a vector of channels for a head, or NULL. */
static inline float *engine_part(const struct tensor *x, int64_t head, int64_t d)
{
    float *all = x ? x->data : NULL;
    return all ? all + head * d : NULL;
}

/* y [d] = x~ of token t. */
static inline void engine_smooth(float *y, const struct engine_quant *p, int64_t t,
                                 int64_t head)
{
    const int64_t d = p->x->dim[2];
    const float *s = engine_part(p->s, head, d), *shift = engine_part(p->shift, head, d);
    const bool scaled = kv_target_has_scales(p->target);
    engine_read(y, p, p->x, t * p->x->ld + head * d);
    for (int64_t i = 0; (s || scaled) && i < d; i++)
        y[i] = scaled ? y[i] / p->scale : quant_kv_in(y[i], s[i], shift[i]);
}

/* y [d] = x~^ from x~. */
static inline void engine_round(float *y, const struct engine_quant *p)
{
    const int64_t d = p->x->dim[2];
    if (p->target == TARGET_FP8) {
        for (int64_t i = 0; i < d; i++)
            y[i] = fp8_round(y[i]);
        return;
    }
    const int64_t n = engine_block_values(p->target, d);
    for (int64_t at = 0; at < d; at += n) {
        const struct engine_block b = engine_block_of(y + at, n, p->target);
        for (int64_t i = at; i < at + n; i++)
            y[i] = engine_block_value(&b, engine_block_round(&b, y[i]));
    }
}

/* The cache's value of one head. */
static inline void engine_head(const struct tensor *xq, const struct engine_quant *p,
                               int64_t t, int64_t head)
{
    const int64_t d = p->x->dim[2];
    const float *s = engine_part(p->s, head, d), *shift = engine_part(p->shift, head, d);
    const bool scaled = kv_target_has_scales(p->target);
    float y[HADAMARD_MAX];
    engine_smooth(y, p, t, head);
    engine_round(y, p);
    for (int64_t i = 0; (s || scaled) && i < d; i++)
        y[i] = scaled ? p->scale * y[i] : s[i] * y[i] + shift[i];
    engine_write(xq, t * xq->ld + head * d, p, y, false);
}

/* e [n] = dL/dx~ of a block with the values x~ [n], from e = dL/dx~^. */
static inline void engine_block_grad(float *e, const struct engine_block *b, const float *x,
                                     int64_t n)
{
    float dd = 0;
    for (int64_t i = 0; i < n && b->inverse != 0; i++) {
        const int code = engine_block_round(b, x[i]), q = engine_block_limit(code);
        const float steps = (float)q - b->zero;
        dd += e[i] * (q != code ? steps : steps - (x[i] - b->min) * b->inverse);
        e[i] = q != code ? 0 : e[i];
    }
    e[b->at_max] += dd * b->by_max;
    e[b->at_min] += dd * b->by_min;
}

/* e [d] = dL/dx~ from e = dL/dx~^, with x~ in y [d]. */
static inline void engine_round_grad(float *e, const struct engine_quant *p, const float *y)
{
    const int64_t d = p->x->dim[2];
    if (p->target == TARGET_FP8) {
        for (int64_t i = 0; i < d; i++)
            e[i] = fabsf(y[i]) <= FP8_MAX ? e[i] : 0;
        return;
    }
    const int64_t n = engine_block_values(p->target, d);
    for (int64_t at = 0; at < d; at += n) {
        const struct engine_block b = engine_block_of(y + at, n, p->target);
        engine_block_grad(e + at, &b, y + at, n);
    }
}

/* The gradients of one head; those of parameters are added to dls and dshift. With a scale for the
 * tensor, dL/dx is dL/dx~^ where FP8 holds x: the scale divides and multiplies. */
static inline void engine_head_bwd(const struct kv_grads *grads, const struct tensor *dxq,
                                   const struct engine_quant *p, int64_t t, int64_t head)
{
    const int64_t d = p->x->dim[2];
    const float *s = engine_part(p->s, head, d);
    float *dls = engine_part(grads->dls, head, d);
    float *dshift = engine_part(grads->dshift, head, d);
    float y[HADAMARD_MAX], v[HADAMARD_MAX], g[HADAMARD_MAX], e[HADAMARD_MAX];
    engine_smooth(y, p, t, head);
    memcpy(v, y, (size_t)d * sizeof(*v));
    if (dls)
        engine_round(v, p);
    engine_read(g, p, dxq, t * dxq->ld + head * d);
    for (int64_t i = 0; i < d; i++)
        e[i] = s ? s[i] * g[i] : g[i];
    engine_round_grad(e, p, y);
    for (int64_t i = 0; dls && i < d; i++) {
        dls[i] += s[i] * g[i] * v[i] - e[i] * y[i];
        dshift[i] += g[i] - e[i] / s[i];
    }
    for (int64_t i = 0; s && i < d; i++)
        e[i] /= s[i];
    engine_write(grads->dx, t * grads->dx->ld + head * d, p, e, grads->accumulate);
}

#endif
