/* SPDX-License-Identifier: MIT
 *
 * What learns in one block: clipping logits a, b of every weight group, log s and delta of
 * every K and V channel, the rounding offset of every weight, with gradients, AdamW moments
 * and the best values so far; and the fake-quantized weights and cache settings that follow
 * from them. All on the device. */
#ifndef WKVQ_FAKEQUANT_H
#define WKVQ_FAKEQUANT_H

#include "calib/calib.h"
#include "calib/model/block.h"

/* Parameters lie in one vector, a kind after another: clipping a, b of the seven
 * projections; log s of K, V; delta of K, V. */
enum fq_kind { FQ_CLIP, FQ_SMOOTH, FQ_SHIFT, N_FQ_KINDS };
/* Rates of a step: of these kinds, then of the rounding offsets, which lie apart. */
enum { FQ_ROUND = N_FQ_KINDS, N_FQ_RATES };

struct fakequant {
    struct dev *dev;
    const struct arch *arch;
    struct weight_spec weights;
    struct lin_format format[N_LIN];    /* of the block in work; 16 bits: left alone */
    bool quantize_weights, quantize_kv; /* below 16 bits, in any block */
    bool learn_weights, learn_kv;
    bool gptq_start; /* offsets start at GPTQ's codes */
    bool
        gptq; /* no weight learns: scales, zeros and codes are chosen once, to begin with */
    bool learn_round; /* offsets inside the rounding */
    int64_t count[N_FQ_KINDS],
        n;        /* floats of each kind (0: not learned), and together, in this block */
    void *memory; /* for the block that needs most */
    struct tensor p, g, m, v, best;     /* [n] */
    struct tensor a[N_LIN], b[N_LIN];   /* [out, groups], views of p */
    struct tensor da[N_LIN], db[N_LIN]; /* views of g */
    struct tensor scales[N_LIN],
        zeros[N_LIN];            /* F16, U8 [out, groups], of the last apply */
    struct qlinear fixed[N_LIN]; /* codes that GPTQ chose; master then holds their values */
    struct tensor k_ls, v_ls;    /* [K*d], views of p or their own */
    struct block_kv kv;          /* s and delta of the last apply */
    struct block_grads grads;    /* what block_backward_params writes */
    struct block_weights master; /* F32; only with quantize_weights */
    struct block_weights offset,
        offset_best;         /* F32 rounding offsets; only with learn_round */
    struct block_weights wq; /* act type, as the block computes with */
};

enum err fakequant_open(struct fakequant *f, struct dev *d, const struct arch *a,
                        const struct calib_settings *s);
void fakequant_close(struct fakequant *f); /* accepts a zeroed or half-built one */
/* Whether anything of a block is quantized, and whether anything learns. */
bool fakequant_quantizes(const struct fakequant *f, int64_t block);
bool fakequant_learns(const struct fakequant *f, int64_t block);
/* Device bytes besides the two sets of weights. */
size_t fakequant_bytes(const struct arch *a, const struct calib_settings *s);

/* The weights of another block; wq holds them in full precision until the next apply.
 * ERR_NUMERIC names block and tensor when they are not finite. */
enum err fakequant_load(struct fakequant *f, const struct block_src *src, int64_t block);
/* Codes, scales and zeros of projection l in place of its weights, from now on. q is taken
 * over whatever the result. */
enum err fakequant_fix(struct fakequant *f, int l, struct qlinear *q);
/* Offsets of projection l where they give the codes of q, whose scales and zeros are those
 * of fakequant_scales; as near as they come where they reach less far. */
enum err fakequant_start_at(struct fakequant *f, int l, const struct qlinear *q);
/* Start values: a = b = 4; s and delta as kv_smooth() has them, alpha that of K and of V
 * (NULL: KV_ALPHA), from the minima and maxima that the block's keys and
 * values take (host, [K*d] each; all NULL, and what is left alone: s = 1, delta = 0).
 * Moments and best become 0. */
enum err fakequant_start(struct fakequant *f, const float *k_min, const float *k_max,
                         const float *v_min, const float *v_max, const float *alpha);
/* wq, scales, zeros and s from the parameters. */
enum err fakequant_apply(struct fakequant *f);
/* Gradients of a and b from those of the weights. */
enum err fakequant_clip_grads(struct fakequant *f);
/* One AdamW step; lr of each kind, step counts from 1. */
enum err fakequant_step(struct fakequant *f, const float lr[N_FQ_RATES], float weight_decay,
                        int64_t step);
/* Name of the first parameter whose gradient is not finite; NULL if all are. */
enum err fakequant_bad_gradient(struct fakequant *f, char *name, size_t bytes, bool *bad);

enum err fakequant_keep_best(struct fakequant *f);    /* best = p */
enum err fakequant_restore_best(struct fakequant *f); /* p = best */

/* View of projection l's rounding offsets, F32 [out, in] on the device, the present or the
 * best; empty without learn_round. */
struct tensor fakequant_offsets(const struct fakequant *f, int l, bool best);

/* Take over what a finished block's q says, in place of parameters: wq and the cache
 * settings as they were calibrated, bit for bit. */
enum err fakequant_import(struct fakequant *f, const struct block_quant *q);
/* Scales and zeros of the last apply into q, which has room for them. */
enum err fakequant_scales(const struct fakequant *f, struct qlinear *q, int l);
/* Scales, zeros, s, delta of the last apply. Owned by the caller. */
enum err fakequant_export(struct fakequant *f, struct block_quant *q);

#endif
