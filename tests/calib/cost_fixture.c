/* SPDX-License-Identifier: MIT */
#include "tests/calib/cost_fixture.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define FULL(b)                                                                            \
#b ".q_proj=16, " #b ".k_proj=16, " #b ".v_proj=16, " #b ".o_proj=16, " #b             \
       ".gate_proj=16, " #b ".up_proj=16, " #b ".down_proj=16"
#define FULL_KV(b) #b ".k=16, " #b ".v=16"

/* Block 2 has quantized keys and values only, block 3 weights only. Where those do not learn, it is
 * rounded to nearest. */
static const struct {
    enum weight_method method;
    enum weight_round round;
    enum start_values init;
    bool learn_kv;
    unsigned weights_learn, kv_learns;
} cases[COST_CASES] = {
    {WEIGHT_LWC, ROUND_NEAREST, INIT_SEARCH, true, 9, 5},
    {WEIGHT_LWC, ROUND_NEAREST, INIT_PAPER, false, 9, 0},
    {WEIGHT_RTN, ROUND_NEAREST, INIT_PAPER, true, 0, 5},
    {WEIGHT_RTN, ROUND_NEAREST, INIT_SEARCH, false, 0, 0},
    {WEIGHT_GPTQ, ROUND_NEAREST, INIT_PAPER, true, 0, 5},
    {WEIGHT_GPTQ, ROUND_LEARNED, INIT_SEARCH, true, 9, 5},
};

/* The part of a block's flops that q, k and v are. */
static double scan_passes(const struct arch *a, double T)
{
    const double D = (double)a->d_model, q = (double)(a->n_heads * a->head_dim),
                 kv = (double)(2 * a->n_kv * a->head_dim);
    const double qkv = D * (q + kv), rest = q * D + 3 * D * (double)a->d_ff;
    return 2 * T * qkv / (2 * T * (qkv + rest) + 2 * T * (T + 1) * q);
}

void cost_case_open(struct cost_case *c, int which, const struct arch *a)
{
    *c = (struct cost_case){.s = tiny_settings(),
                            .quantized_weights = 9,
                            .weights_learn = cases[which].weights_learn,
                            .kv_learns = cases[which].kv_learns};
    must(mix_parse(&c->weights, MIX_WEIGHTS, FULL(1) ", " FULL(2), ERR_USAGE, "mix"));
    must(mix_parse(&c->kv, MIX_KV, FULL_KV(1) ", " FULL_KV(3), ERR_USAGE, "mix"));
    c->s.samples = 5, c->s.batch = 2, c->s.eval_samples = 3;
    c->s.crr_blocks = 2;
    c->s.weights.method = cases[which].method;
    c->s.weights.round = cases[which].round;
    c->s.weights_init = c->s.kv_init = cases[which].init;
    c->s.weights.mixed = c->weights;
    c->s.kv.mixed = c->kv;
    c->s.kv.learn = cases[which].learn_kv;
    c->s.gptq.damp = 0.01;
    c->scan = scan_passes(a, (double)c->s.seqlen);
}

void cost_case_close(struct cost_case *c)
{
    mix_free(c->weights);
    mix_free(c->kv);
}

int64_t cost_chain(const struct cost_case *c, int64_t b)
{
    static const int64_t chain[COST_BLOCKS] = {3, 3, 2, 1};
    assert_int_equal(c->s.crr_blocks, 2);
    return chain[b];
}

double seen_forward(const struct memory_io *m, const struct cost_case *c)
{
    double n = 0;
    for (int64_t b = 0; b < COST_BLOCKS; b++)
        n += c->scan * (double)m->n_events[b][CALIB_SCAN];
    for (int64_t b = 0; b < COST_BLOCKS; b++)
        n += (double)(m->n_events[b][CALIB_PREPARE] + m->n_events[b][CALIB_ADVANCE] +
                      cost_chain(c, b) * m->n_events[b][CALIB_EVAL]);
    return n;
}

double seen_steps(const struct memory_io *m, const struct cost_case *c)
{
    const int64_t per_epoch = (c->s.samples + c->s.batch - 1) / c->s.batch;
    int64_t n = 0;
    for (int64_t b = 0; b < COST_BLOCKS; b++) {
        assert_int_equal(m->n_events[b][CALIB_STEP] % per_epoch, 0);
        n += 3 * cost_chain(c, b) * c->s.samples * (m->n_events[b][CALIB_STEP] / per_epoch);
    }
    return (double)n;
}
