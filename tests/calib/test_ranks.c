/* SPDX-License-Identifier: MIT
 *
 * Calibrations on several ranks. Threads stand for processes: each has a device, callbacks and
 * streams of its own. */
#include "calib/cost.h"
#include "kernels/base/mem.h"
#include "tests/calib/cost_fixture.h"
#include "tests/calib/ranks_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MOST RANKS_MOST
#define SAMPLES 7

/* --- runs ----------------------------------------------------------------------------- */

struct rank {
    struct memory_io io;
    const struct fixture *f;
    const struct calib_settings *s;
    enum err err;
    int64_t sent, received;
    char text[256];
};

static void work(void *ctx, const struct ranks *me)
{
    struct rank *r = ctx;
    r->io.io.ranks = me;
    r->err = run_on("cpu", &r->io, r->f, r->s);
    r->sent = ranks_sent();
    r->received = ranks_received();
    snprintf(r->text, sizeof(r->text), "%s", err_text());
}

/* Runs on n ranks whose callbacks are open. All must end alike. */
static enum err run_ranks(struct rank *r, int n, const struct fixture *f,
                          const struct calib_settings *s)
{
    void *ctx[MOST];
    for (int i = 0; i < n; i++) {
        r[i].f = f;
        r[i].s = s;
        ctx[i] = &r[i];
    }
    ranks_run(n, work, ctx);
    for (int i = 1; i < n; i++)
        assert_int_equal(r[i].err, r[0].err);
    return r[0].err;
}

static void open_ranks(struct rank *r, int n)
{
    for (int i = 0; i < n; i++)
        memory_io_open(&r[i].io);
}

static void close_ranks(struct rank *r, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(r[i].io.open_streams, 0);
        assert_false(r[i].io.done_fell);
        memory_io_close(&r[i].io);
    }
}

static struct calib_settings rank_settings(int which)
{
    struct calib_settings s = tiny_settings();
    s.samples = SAMPLES; /* the last step has fewer samples than ranks */
    s.batch = 5;
    s.eval_samples = which == 1 ? 3 : 0;
    s.crr_terms = which ? TERMS_ALL : TERMS_LAST;
    if (which == 1)
        s.weights.round = ROUND_LEARNED, s.schedule = SCHEDULE_COSINE;
    if (which == 2)
        s.weights_init = INIT_SEARCH, s.kv_init = INIT_SEARCH;
    if (which == 3)
        s.weights.method = WEIGHT_GPTQ, s.weights.round = ROUND_LEARNED, s.gptq.damp = 0.01;
    if (which == 4)
        s.weights.method = WEIGHT_GPTQ, s.gptq.damp = 0.01, s.act = DT_BF16;
    if (which == 5)
        s.memory_bytes = 1;
    return s;
}

static void same_on_any_number(struct arch a, int settings)
{
    struct fixture f;
    fixture_open(&f, a, 9);
    for (int which = 0; which < settings; which++) {
        const struct calib_settings s = rank_settings(which);
        struct memory_io one;
        calibrate("cpu", &one, &f, &s);
        for (int n = 2; n <= MOST; n++) {
            struct rank r[MOST];
            open_ranks(r, n);
            must(run_ranks(r, n, &f, &s));
            for (int i = 0; i < n; i++)
                assert_true(same_result(&r[i].io, &one));
            close_ranks(r, n);
        }
        memory_io_close(&one);
    }
    fixture_close(&f);
}

/* Every rank has the blocks and losses of one process, bit for bit. */
static void test_the_same_on_any_number(void **state)
{
    same_on_any_number(tiny_arch(1, 3), 6);
    same_on_any_number(tiny_arch(4, 2), 2);
}

/* One rank is asked to stop: all stop at the same place. The state of rank 0 is then resumed by
 * another number of ranks, which read it. */
static void test_stopped_and_resumed_by_others(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 9);
    const struct calib_settings s = rank_settings(1);
    struct memory_io one;
    calibrate("cpu", &one, &f, &s);
    for (int64_t after = 1; after < 40; after += 3) {
        struct rank a[MOST], b[MOST];
        const int n = 2 + (int)(after % 3), m = 2 + (int)((after + 1) % 3);
        open_ranks(a, n);
        a[n - 1].io.stop_after = after;
        const enum err err = run_ranks(a, n, &f, &s);
        assert_true(err == ERR_STOPPED || err == OK);
        for (int i = 0; i < m; i++) {
            b[i].io = a[0].io; /* the copies borrow its blocks */
            b[i].io.io.ctx = &b[i].io;
            b[i].io.n_partial = a[0].io.n_partial;
            b[i].io.stop_after = 0;
        }
        if (err == ERR_STOPPED) {
            /* The partial state is freed by the first to save; each needs its own. */
            for (int i = 0; i < m; i++)
                for (int k = 0; k < b[i].io.n_partial; k++) {
                    struct tensor *t = &b[i].io.partial[k].t;
                    const size_t bytes = (size_t)tensor_count(t) * dtype_bytes(t->dtype);
                    void *own = NULL;
                    must(mem_alloc(&own, bytes, 1));
                    memcpy(own, t->data, bytes);
                    t->data = own;
                }
            must(run_ranks(b, m, &f, &s));
            for (int i = 0; i < m; i++)
                assert_true(same_result(&b[i].io, &one));
            for (int i = 0; i < m; i++) { /* only what it did not borrow */
                struct memory_io own = b[i].io;
                memset(own.block, 0, (size_t)a[0].io.n_blocks * sizeof(*own.block));
                memory_io_close(&own);
            }
        }
        close_ranks(a, n);
    }
    memory_io_close(&one);
    fixture_close(&f);
}

static void test_more_ranks_than_samples_of_a_step(void **state)
{
    struct fixture f;
    struct rank r[MOST];
    struct calib_settings s = rank_settings(0);
    fixture_open(&f, tiny_arch(0, 2), 9);
    s.batch = 3;
    open_ranks(r, MOST);
    assert_int_equal(run_ranks(r, MOST, &f, &s), ERR_USAGE);
    assert_non_null(strstr(r[3].text, "calibration.batch is 3, but there are 4 ranks"));
    close_ranks(r, MOST);
    fixture_close(&f);
}

/* The plan's bytes are those that ranks really send, if all have as many samples. Only GPTQ repeats
 * passes on every rank, and has the samples of the others sent. */
static void test_traffic_is_as_planned(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(1, 2), 9);
    for (int which = 0; which < 4; which++)
        for (int n = 2; n <= MOST; n += 2) {
            struct rank r[MOST];
            struct calib_ranks_plan plan;
            struct calib_settings s = rank_settings(which);
            double all = 0, received = 0;
            s.samples = 8, s.batch = 4;
            calib_plan_ranks(&plan, &f.arch, &s, n);
            assert_int_equal(plan.step_samples, 4 / n);
            open_ranks(r, n);
            must(run_ranks(r, n, &f, &s));
            for (int i = 0; i < n; i++) {
                all += (double)r[i].sent;
                received += (double)r[i].received;
            }
            const double steps =
                (double)(f.arch.n_layers * s.epochs * calib_epoch_steps(&s));
            assert_true(fabs(all - n * steps * plan.step_bytes) <= 1e-9 * all);
            const double planned = n * (double)f.arch.n_layers * plan.block_bytes;
            assert_true(fabs(received - planned) <= 1e-9 * planned);
            assert_true(which == 3 ? plan.speedup < n : fabs(plan.speedup - n) <= 1e-9);
            close_ranks(r, n);
        }
    fixture_close(&f);
}

/* Each of n ranks makes as many passes, and the plan says how many fewer than one process. */
static void check_speedup(const struct fixture *f, const struct cost_case *c, double all,
                          int n)
{
    struct rank r[MOST];
    struct calib_ranks_plan plan;
    calib_plan_ranks(&plan, &f->arch, &c->s, n);
    open_ranks(r, n);
    must(run_ranks(r, n, f, &c->s));
    for (int i = 0; i < n; i++) {
        const double own = seen_forward(&r[i].io, c) + seen_steps(&r[i].io, c) / n;
        assert_true(fabs(plan.speedup - all / own) <= 1e-9 * plan.speedup);
    }
    close_ranks(r, n);
}

static void test_speedup_is_as_planned(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(1, COST_BLOCKS), 9);
    for (int which = 0; which < COST_CASES; which++) {
        struct cost_case c;
        struct memory_io one;
        cost_case_open(&c, which, &f.arch);
        c.s.samples = 8, c.s.batch = 4, c.s.eval_samples = 0;
        calibrate("cpu", &one, &f, &c.s);
        const double all = seen_forward(&one, &c) + seen_steps(&one, &c);
        for (int n = 2; n <= MOST; n += 2)
            check_speedup(&f, &c, all, n);
        memory_io_close(&one);
        cost_case_close(&c);
    }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_on_any_number),
        cmocka_unit_test(test_stopped_and_resumed_by_others),
        cmocka_unit_test(test_more_ranks_than_samples_of_a_step),
        cmocka_unit_test(test_traffic_is_as_planned),
        cmocka_unit_test(test_speedup_is_as_planned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
