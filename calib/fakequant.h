/* SPDX-License-Identifier: MIT
 *
 * The quantizer of one block while it is calibrated: what learns, with gradients, AdamW
 * moments and the best values so far, and the fake-quantized weights and cache parameters
 * that follow from them. All tensors are on the device.
 *
 *   learns                          shape              gives
 *   a, b      clipping logits       [out, groups] each gamma = sigma(a), beta = sigma(b)
 *   log s     smoothing             [K*d], of K, of V  s = exp(log s)
 *   delta     shift                 [K*d], of K, of V
 *   offset    rounding offset       [out, in]          inside the rounding, +-0.5
 *
 * All but the offsets are stored in one vector p, kind after kind:
 *
 *   p = | a, b of q, k, v, o, gate, up, down | log s of K, of V | delta of K, of V |
 *       |<------------- FQ_CLIP ------------>|<-- FQ_SMOOTH -->|<-- FQ_SHIFT --->|
 *
 * so that moments, the best values and AdamW treat them alike. */
#ifndef WKVQ_FAKEQUANT_H
#define WKVQ_FAKEQUANT_H

#include "calib/calib.h"
#include "calib/model/block.h"
#include "kernels/dev_report.h"
#include "kernels/dev_step.h"

/* Kinds of parameters, each with its own learning rate. */
enum fq_kind { FQ_CLIP, FQ_SMOOTH, FQ_SHIFT, N_FQ_KINDS };
enum { FQ_SUMS = 5 }; /* g, dwqkv, dwo, dwgu, dwdown */
/* Learning rates: those of the kinds, then that of the rounding offsets. */
enum { FQ_ROUND = N_FQ_KINDS, N_FQ_RATES };

/* How parameters move in a step. */
struct fq_step {
    float lr[N_FQ_RATES];
    float weight_decay;
    int64_t step;          /* counts from 1 */
    const int32_t *unless; /* as that of struct adamw; NULL if rounding is learned */
    /* [N_FQ_KINDS], memory of the device: the rates of fakequant_put_rates() replace those here.
     * NULL: those here count. */
    struct adamw_rates *rates;
};

struct fakequant {
    struct dev *dev;
    const struct arch *arch;
    struct weight_spec weights;
    struct lin_format format[N_LIN];    /* of the block in work; 16 bits: unquantized */
    bool quantize_weights, quantize_kv; /* below 16 bits in any block */
    bool learn_weights, learn_kv;       /* a and b; log s and delta */
    bool learn_round;                   /* rounding offsets */
    bool gptq_start;                    /* offsets start at the codes of GPTQ */
    bool sums;                          /* steps of several samples add gradients up */
    bool gptq;  /* GPTQ chooses scales, zeros and codes once; no weight learns */
    bool given; /* scales and zeros are the source's, and master has the codes' values */
    int64_t count[N_FQ_KINDS];      /* floats of each kind in this block; 0: not learned */
    int64_t n;                      /* floats of all kinds */
    void *memory;                   /* sized for the block that needs most */
    struct tensor p, g, m, v, best; /* [n]: parameters, gradients, moments, best p */
    struct tensor a[N_LIN], b[N_LIN];   /* [out, groups], views of p */
    struct tensor da[N_LIN], db[N_LIN]; /* views of g */
    /* F16, U8 [out, groups]: of the last fakequant_apply. */
    struct tensor scales[N_LIN], zeros[N_LIN];
    struct qlinear fixed[N_LIN]; /* codes that GPTQ chose; master then holds their values */
    struct tensor k_ls, v_ls;    /* [K*d] log s, views of p or memory of their own */
    struct block_kv kv;          /* s and delta of the last fakequant_apply */
    struct block_grads grads;    /* written by block_backward_params */
    /* Only with sums: those of g, and with learn_round of the gradients of weights. */
    struct tensor sum[FQ_SUMS];
    struct block_weights master; /* full precision; only with quantize_weights */
    /* F32 rounding offsets, current and best; only with learn_round. */
    struct block_weights offset, offset_best;
    struct block_weights wq; /* act type: the weights that the block computes with */
};

/* d and a are borrowed. Errors here and below, unless noted: ERR_MEMORY, ERR_DEVICE. Close in any
 * case. */
enum err fakequant_open(struct fakequant *f, struct dev *d, const struct arch *a,
                        const struct calib_settings *s);
void fakequant_close(struct fakequant *f); /* accepts a zeroed or half-built one */
/* Sets the types of master's projections: those of the source, or F32 where other values are
 * written into master. */
void fakequant_master_types(enum dtype lin[N_LIN], const struct calib_settings *s);
/* Returns the device memory apart from master and wq. */
size_t fakequant_bytes(const struct arch *a, const struct calib_settings *s);

/* Returns the floats of the gradients from which a step is computed, in the block that has most:
 * what the samples of a step add up. */
int64_t fakequant_gradients_most(const struct arch *a, const struct calib_settings *s);

/* Loads the weights of a block; wq holds them in full precision until fakequant_apply.
 * Errors: as finite_weights. */
enum err fakequant_load(struct fakequant *f, const struct block_src *src, int64_t block);
/* Takes scales and zeros of all projections from src. ERR_MISMATCH if src has none, or those of
 * another format. */
enum err fakequant_take_given(struct fakequant *f, const struct block_src *src);
/* Fixes codes, scales and zeros of projection l to those of q. q is consumed in any
 * case. */
enum err fakequant_fix(struct fakequant *f, int l, struct qlinear *q);
/* Sets the offsets of projection l so that rounding gives the codes of q, whose scales and
 * zeros are those of fakequant_scales; codes out of reach get the nearest offset. */
enum err fakequant_start_at(struct fakequant *f, int l, const struct qlinear *q);
/* Sets start values: a = b = 4, and s and delta by kv_smooth(); moments and best become 0.
 *   k_min .. v_max  host [K*d], ranges of the block's keys and values; all NULL, and where
 *                   the cache is unquantized: s = 1, delta = 0
 *   alpha           exponents for K and for V; NULL: KV_ALPHA */
enum err fakequant_start(struct fakequant *f, const float *k_min, const float *k_max,
                         const float *v_min, const float *v_max, const float *alpha);
/* Computes wq, scales, zeros and s from the parameters. */
enum err fakequant_apply(struct fakequant *f);
/* Computes the gradients of a and b from those of the weights. */
enum err fakequant_clip_grads(struct fakequant *f);
/* Adds up the gradients of a step with n samples; called after each sample i = 0 .. n - 1 has
 * written its own. After the last, their sum has the place of its own gradients. It is
 * ((g_0 + g_1) + g_2) + ..., whatever computed them. Needs sums where n > 1. */
enum err fakequant_add_sample(struct fakequant *f, int64_t i, int64_t n);
/* Takes one AdamW step. */
enum err fakequant_step(struct fakequant *f, const struct fq_step *s);
/* Queues the write of the rates of s to s->rates, from where steps behind it read them. */
enum err fakequant_put_rates(struct fakequant *f, const struct fq_step *s);
/* *bad = some gradient is not finite; name [bytes] then describes the first one. */
enum err fakequant_bad_gradient(struct fakequant *f, char *name, size_t bytes, bool *bad);
/* The same for a report, without a wait and a name. Without learned rounding. */
enum err fakequant_report_gradients(const struct fakequant *f, struct dev_report *r);

enum err fakequant_keep_best(struct fakequant *f);    /* best = p */
enum err fakequant_restore_best(struct fakequant *f); /* p = best */

/* unreached [E] = experts of which nothing has moved, because no sample of any step sent a token to
 * them; false without experts, and where none of their weights learns. Before
 * fakequant_restore_best(). */
enum err fakequant_unreached(struct fakequant *f, bool *unreached);
/* Sets the clipping of these experts to none, gamma = beta = 1, so that they are rounded to
 * nearest; their offsets are 0 since the start. After fakequant_restore_best(). */
enum err fakequant_clip_none(struct fakequant *f, const bool *unreached);

/* Returns a view of projection l's offsets, F32 [out, in]: the current ones or the best.
 * Empty without learn_round. */
struct tensor fakequant_offsets(const struct fakequant *f, int l, bool best);

/* Sets wq and the cache parameters as a finished block's q has them, bit for bit. Errors:
 * ERR_MISMATCH if q has other shapes or formats. */
enum err fakequant_import(struct fakequant *f, const struct block_quant *q);
/* Copies scales and zeros of the last apply into q, which has room for them. */
enum err fakequant_scales(const struct fakequant *f, struct qlinear *q, int l);
/* *q = scales, zeros, codes if chosen, s and delta of the last apply. Owned by the caller
 * (block_quant_free). */
enum err fakequant_export(struct fakequant *f, struct block_quant *q);

#endif
