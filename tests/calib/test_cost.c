/* SPDX-License-Identifier: MIT
 *
 * What the plan and the progress count is what a calibration does, in blocks of all kinds. */
#include "calib/cost.h"
#include "calib/fakequant.h"
#include "tests/calib/cost_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* A run whose progress is compared with its passes at each event. */
struct watched {
    struct memory_io m;
    void (*event)(void *ctx, const struct calib_event *e);
    const struct cost_case *c;
    double total, done; /* passes */
    int64_t step;       /* of the epoch */
    int64_t wrong;      /* events whose progress is another */
};

static void watch(void *ctx, const struct calib_event *e)
{
    struct watched *w = ctx;
    const struct calib_settings *s = &w->c->s;
    const int64_t chain = cost_chain(w->c, e->block),
                  left = s->samples - w->step * s->batch;
    w->event(&w->m, e);
    if (e->kind == CALIB_EPOCH)
        w->step = 0;
    if (e->kind == CALIB_STEP) {
        w->done += (double)(3 * chain * (left < s->batch ? left : s->batch));
        w->step++;
    }
    w->done += e->kind == CALIB_PREPARE || e->kind == CALIB_ADVANCE;
    w->done += e->kind == CALIB_SCAN ? w->c->scan : 0;
    w->done += e->kind == CALIB_EVAL ? (double)chain : 0;
    w->wrong += !(fabs(e->done * w->total - w->done) <= 1e-9 * w->total);
}

static double planned_passes(const struct arch *a, const struct calib_settings *s)
{
    double sum = cost_stream_passes(a, s);
    for (int64_t i = 0; i < a->n_layers; i++) {
        const struct block_cost b = cost_of_block(a, s, i);
        sum += cost_block_passes(&b);
    }
    return sum;
}

static void run_watched(struct watched *w, const char *device, const struct fixture *f,
                        const struct cost_case *c)
{
    *w = (struct watched){.c = c, .total = planned_passes(&f->arch, &c->s)};
    memory_io_open(&w->m);
    w->event = w->m.io.event;
    w->m.io.event = watch; /* its context is w, which begins with m */
    must(run_on(device, &w->m, f, &c->s));
}

/* The passes that are planned are those of the run, and progress has counted each. */
static void test_passes(void **state)
{
    static const char *const device[] = {"cpu", "cuda-emu"};
    struct fixture f;
    (void)state;
    fixture_open(&f, tiny_arch(1, COST_BLOCKS), 21);
    for (int which = 0; which < COST_CASES; which++)
        for (int d = 0; d < 2; d++) {
            struct cost_case c;
            struct watched w;
            cost_case_open(&c, which, &f.arch);
            c.s.device_bytes = d ? UINT64_C(1) << 30 : 0;
            run_watched(&w, device[d], &f, &c);
            const double seen = seen_forward(&w.m, &c) + seen_steps(&w.m, &c);
            assert_true(fabs(seen - w.total) <= 1e-12 * w.total);
            assert_true(fabs(w.done - w.total) <= 1e-12 * w.total);
            assert_int_equal(w.wrong, 0);
            memory_io_close(&w.m);
            cost_case_close(&c);
        }
    fixture_close(&f);
}

/* A run that is stopped and resumed counts what it did before, and ends at 1. */
static void test_passes_of_a_resumed_run(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, tiny_arch(0, COST_BLOCKS), 22);
    for (int which = 0; which < COST_CASES; which++) {
        struct cost_case c;
        struct memory_io m;
        cost_case_open(&c, which, &f.arch);
        stop_and_go(&m, &f, &c.s, 31);
        assert_true(fabs(m.last_done - 1) <= 1e-9);
        memory_io_close(&m);
        cost_case_close(&c);
    }
    fixture_close(&f);
}

static void test_what_learns(void **state)
{
    const struct arch arch = tiny_arch(0, COST_BLOCKS);
    (void)state;
    for (int which = 0; which < COST_CASES; which++) {
        struct cost_case c;
        cost_case_open(&c, which, &arch);
        assert_true(calib_learns_weights(&c.s) == (c.weights_learn > 0));
        assert_true(calib_learns_kv(&c.s) == (c.kv_learns > 0));
        for (int b = 0; b < COST_BLOCKS; b++) {
            assert_true(calib_quantizes(&c.s, b) == (b != 1));
            assert_true(calib_learns(&c.s, b) ==
                        ((c.weights_learn | c.kv_learns) >> b & 1));
        }
        cost_case_close(&c);
    }
}

/* Weights have gradients where they learn, and only there. */
static void test_gradients(void **state)
{
    struct fixture f;
    struct dev *d = open_dev("cpu");
    (void)state;
    fixture_open(&f, tiny_arch(0, COST_BLOCKS), 24);
    for (int which = 0; which < COST_CASES; which++) {
        struct cost_case c;
        struct fakequant q;
        struct block_src src;
        cost_case_open(&c, which, &f.arch);
        must(fakequant_open(&q, d, &f.arch, &c.s));
        for (int b = 0; b < COST_BLOCKS; b++) {
            must(f.source.block(f.source.ctx, b, &src));
            must(fakequant_load(&q, &src, b));
            assert_true(!q.grads.dwqkv.data == !(c.weights_learn >> b & 1));
            assert_true(!q.grads.dwdown.data == !(c.weights_learn >> b & 1));
        }
        fakequant_close(&q);
        cost_case_close(&c);
    }
    fixture_close(&f);
    dev_close(&d);
}

/* Flops of a sample in a block of tiny_arch(0), by D = 24, F = 40, H d = 32 and K d = 16. */
#define TOKENS 11.0
#define P (24 * (32 + 16 + 16) + 32 * 24 + 3 * 24 * 40)
#define QKV (24 * (32 + 16 + 16))
#define LINEAR (2 * TOKENS * P)
#define ATTENTION (2 * TOKENS * (TOKENS + 1) * 32)

/* Of a sample in a step of block b. */
static double step_flops(const struct cost_case *c, int b)
{
    const double n = (double)cost_chain(c, b);
    return n * (LINEAR + ATTENTION) + n * (LINEAR + 2.5 * ATTENTION) - 2 * TOKENS * QKV +
           (c->weights_learn >> b & 1) * LINEAR;
}

/* As test_flops_of_gptq() has them. */
static double gptq_block(const struct cost_case *c)
{
    const double D = 24, F = 40, Q = 32, T = TOKENS * (double)c->s.samples;
    const double sums = 2 * T * (2 * D * D + Q * Q + F * F);
    const double factors = 2.0 / 3 * (2 * D * D * D + Q * Q * Q + F * F * F);
    return sums + factors + (Q + 2 * 16 + 2 * F) * D * D + D * Q * Q + D * F * F;
}

/* Those of the plan belong to the passes of the run. */
static void test_flops(void **state)
{
    struct fixture f;
    (void)state;
    fixture_open(&f, tiny_arch(0, COST_BLOCKS), 23);
    for (int which = 0; which < COST_CASES; which++) {
        struct cost_case c;
        struct memory_io m;
        struct calib_plan p;
        cost_case_open(&c, which, &f.arch);
        calibrate("cpu", &m, &f, &c.s);
        must(calib_plan(&p, &f.arch, &c.s));
        double want = seen_forward(&m, &c) * (LINEAR + ATTENTION);
        for (int b = 0; b < COST_BLOCKS; b++) {
            const double steps = (double)m.n_events[b][CALIB_STEP];
            want += steps / 3 * (double)c.s.samples * step_flops(&c, b);
            if (c.s.weights.method == WEIGHT_GPTQ && c.quantized_weights >> b & 1)
                want += gptq_block(&c);
        }
        assert_true(fabs(p.total_flops - want) <= 1e-12 * want);
        const double step = (c.weights_learn | c.kv_learns) & 1 ? step_flops(&c, 0)
                                                                : 3 * (LINEAR + ATTENTION);
        assert_true(fabs(p.flops_per_step - step) <= 1e-12 * step);
        memory_io_close(&m);
        cost_case_close(&c);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_passes),      cmocka_unit_test(test_passes_of_a_resumed_run),
        cmocka_unit_test(test_what_learns), cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_flops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
