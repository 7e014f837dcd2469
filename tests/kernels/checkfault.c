/* SPDX-License-Identifier: MIT
 *
 * The harness is tested on broken kernels: the second device is another reference whose
 * operations are wrapped to make one fault each, and every fault must be reported. */
#include "kernels/base/half.h"
#include "tests/kernels/checkop.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static struct dev_ops real;
static enum ck_fault fault;

static void *at(const struct tensor *x, int64_t i)
{
    return (char *)x->data + i * (int64_t)dtype_bytes(x->dtype);
}

static void put(const struct tensor *x, int64_t i, float v)
{
    const uint16_t half = x->dtype == DT_BF16 ? bf16_from_f32(v) : f16_from_f32(v);
    const uint8_t byte = (uint8_t)v;
    if (x->dtype == DT_F32)
        memcpy(at(x, i), &v, sizeof(v));
    else if (x->dtype == DT_U8)
        memcpy(at(x, i), &byte, sizeof(byte));
    else
        memcpy(at(x, i), &half, sizeof(half));
}

/* Spoil output y or input in. */
static void damage(const struct tensor *y, const struct tensor *in)
{
    const int64_t rows = ck_rows(y), cols = ck_cols(y), ld = y->n_dims == 1 ? cols : y->ld;
    const int64_t last = (rows - 1) * ld + cols - 1;
    switch (fault) {
    case FAULT_VALUE:
        put(y, last, (float)ck_get(y, rows - 1, cols - 1) * 1.01f + 0.01f);
        break;
    case FAULT_NAN:
        put(y, last, NAN);
        break;
    case FAULT_INF:
        put(y, last, INFINITY);
        break;
    case FAULT_PAST:
        put(y, rows * ld, 1);
        break;
    case FAULT_BETWEEN:
        if (ld > cols && rows > 1)
            put(y, cols, 1);
        break;
    case FAULT_BEFORE:
        put(y, -1, 1);
        break;
    case FAULT_INPUT:
        put(in, 0, 12345);
        break;
    default:
        break;
    }
}

static void bad_gemm(struct dev *d, enum gemm_kind kind, const struct tensor *c,
                     const struct tensor *a, const struct tensor *b, bool accumulate)
{
    if (fault != FAULT_SKIP)
        real.gemm(d, kind, c, a, b, accumulate);
    damage(c, a);
}

static void bad_add(struct dev *d, const struct tensor *y, const struct tensor *a,
                    const struct tensor *b)
{
    if (fault != FAULT_SKIP)
        real.add(d, y, a, b);
    damage(y, b);
}

static void bad_rmsnorm(struct dev *d, const struct tensor *y, const struct tensor *s,
                        const struct tensor *h, const struct rmsnorm_inputs *in)
{
    if (fault != FAULT_SKIP)
        real.rmsnorm(d, y, s, h, in);
    damage(y, in->g);
}

static void bad_attn(struct dev *d, const struct tensor *o, const struct tensor *lse,
                     const struct attn_inputs *in)
{
    if (fault != FAULT_SKIP)
        real.attn(d, o, lse, in);
    damage(o, in->q);
}

static void bad_attn_bwd(struct dev *d, const struct attn_grads *grads,
                         const struct tensor *dout, const struct tensor *o,
                         const struct tensor *lse, const struct attn_inputs *in)
{
    if (fault != FAULT_SKIP)
        real.attn_bwd(d, grads, dout, o, lse, in);
    damage(grads->dkq ? grads->dkq : grads->dk, in->v);
}

static void bad_gate(struct dev *d, enum gate_act act, const struct tensor *y,
                     const struct tensor *gu)
{
    if (fault != FAULT_SKIP)
        real.gate(d, act, y, gu);
    damage(y, gu);
}

static void bad_fake_quant_weights(struct dev *d, const struct tensor *wq,
                                   const struct tensor *scales, const struct tensor *zeros,
                                   const struct weight_quant *p)
{
    if (fault != FAULT_SKIP)
        real.fake_quant_weights(d, wq, scales, zeros, p);
    if (fault == FAULT_VALUE) /* the smallest change there is */
        ((uint8_t *)zeros->data)[0] ^= 1;
    else if (wq)
        damage(wq, p->w);
}

static void bad_fake_quant_kv(struct dev *d, const struct tensor *xq,
                              const struct kv_quant *p)
{
    if (fault != FAULT_SKIP)
        real.fake_quant_kv(d, xq, p);
    damage(xq, p->x);
}

static void bad_adamw(struct dev *d, const struct tensor *p, const struct tensor *g,
                      const struct tensor *m, const struct tensor *v, const struct adamw *o)
{
    if (fault != FAULT_SKIP)
        real.adamw(d, p, g, m, v, o);
    damage(p, g);
}

static double bad_loss(struct dev *d, const struct tensor *dy, const struct loss_inputs *in)
{
    const double loss = real.loss(d, fault == FAULT_SKIP ? NULL : dy, in);
    if (fault == FAULT_VALUE)
        return loss * 1.0001;
    if (dy)
        damage(dy, in->t);
    return loss;
}

static void break_ops(struct dev_ops *o)
{
    o->gemm = bad_gemm;
    o->add = bad_add;
    o->rmsnorm = bad_rmsnorm;
    o->attn = bad_attn;
    o->attn_bwd = bad_attn_bwd;
    o->gate = bad_gate;
    o->fake_quant_weights = bad_fake_quant_weights;
    o->fake_quant_kv = bad_fake_quant_kv;
    o->adamw = bad_adamw;
    o->loss = bad_loss;
}

static const struct ck_test *find_test(const char *op)
{
    const struct ck_test *const groups[] = {
        ck_gemm_tests,   ck_norm_tests,  ck_attn_tests,    ck_mlp_tests,
        ck_weight_tests, ck_quant_tests, ck_channel_tests, ck_train_tests};
    for (size_t g = 0; g < ARRAY_LEN(groups); g++)
        for (const struct ck_test *t = groups[g]; t->op; t++)
            if (!strcmp(t->op, op))
                return t;
    return NULL;
}

static const char *const fault_name[N_FAULTS] = {
    "no fault",       "a wrong value",        "a NaN",
    "an infinity",    "a write past the end", "a write between",
    "a write before", "nothing written",      "a changed input"};

/* Failures of the harness itself. */
static int judge_op(struct ck *c, const char *op)
{
    const struct ck_test *t = find_test(op);
    int wrong = 0;
    for (int f = FAULT_NONE; f < N_FAULTS; f++) {
        if (f == FAULT_BETWEEN && !strcmp(op, "adamw")) /* vectors have no rows */
            continue;
        fault = (enum ck_fault)f;
        ck_run(c, t);
        const bool right = t && (f == FAULT_NONE ? !c->n_failed : c->n_failed > 0);
        if (!right)
            printf("FAIL self-test: %s with %s: %d failures in %d cases\n", op,
                   fault_name[f], c->n_failed, c->n_cases);
        wrong += !right;
    }
    return wrong;
}

int ck_self_test(uint64_t seed)
{
    static const char *const ops[] = {
        "gemm", "add",           "rmsnorm", "attn", "attn_bwd", "fake_quant_weights",
        "gate", "fake_quant_kv", "adamw",   "loss"};
    /* One case of 8 is enough to report a fault, which is in all of them. */
    struct ck c = {.seed = seed, .level = "self-test", .quiet = true, .every = 8};
    int wrong = 0;
    for (int s = 0; s < N_SIDES; s++)
        if (dev_open(&c.dev[s], &(struct dev_settings){"ref", 1})) {
            printf("FAIL self-test: %s\n", err_text());
            wrong++;
        }
    if (!wrong) {
        real = c.dev[SIDE_CPU]->ops;
        break_ops(&c.dev[SIDE_CPU]->ops);
        for (size_t i = 0; i < ARRAY_LEN(ops); i++)
            wrong += judge_op(&c, ops[i]);
    }
    for (int s = 0; s < N_SIDES; s++)
        dev_close(&c.dev[s]);
    printf("self-test: %zu operations, %d faults each, %d not reported\n", ARRAY_LEN(ops),
           N_FAULTS - 1, wrong);
    return wrong;
}
