/* SPDX-License-Identifier: MIT
 *
 * Refinements on several ranks, as threads with a device of their own. */
#include "kernels/base/mem.h"
#include "tests/calib/ranks_fixture.h"
#include "tests/calib/refine_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct rank {
    struct model m;
    struct memory_io io; /* streams, and the saved tensors as a partial of block -1 */
    const struct refine_settings *s;
    struct refine_result out;
    int64_t asked, stop_after;
    enum err err;
    int64_t sent;
    char text[256];
};

static bool stop(void *ctx)
{
    struct rank *r = ctx;
    return ++r->asked == r->stop_after;
}

static enum err save(void *ctx, const struct named_tensor *t, int n)
{
    struct rank *r = ctx;
    return r->io.io.save_partial(&r->io, -1, t, n);
}

static enum err load(void *ctx, const struct named_tensor **t, int *n)
{
    struct rank *r = ctx;
    *t = r->io.partial;
    *n = r->io.n_partial;
    return OK;
}

static void work(void *ctx, const struct ranks *me)
{
    struct rank *r = ctx;
    const struct refine_io io = {&r->io.io, r, NULL, stop, save, load, me};
    struct dev *d = open_dev("cpu");
    err_clear();
    r->asked = 0;
    r->err = refine_run(&r->out, d, &r->m.f.arch, &r->m.f.source, r->m.calibrated.block,
                        r->s, r->m.ids, &io);
    r->sent = ranks_sent();
    snprintf(r->text, sizeof(r->text), "%s", err_text());
    dev_close(&d);
}

static void open_ranks(struct rank *r, int n)
{
    for (int i = 0; i < n; i++) {
        r[i] = (struct rank){0};
        model_open(&r[i].m, 1, 4);
        memory_io_open(&r[i].io);
    }
}

static void close_ranks(struct rank *r, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(r[i].io.open_streams, 0);
        memory_io_close(&r[i].io);
        model_close(&r[i].m);
    }
}

/* All must end alike. */
static enum err run_ranks(struct rank *r, int n, const struct refine_settings *s)
{
    void *ctx[RANKS_MOST];
    for (int i = 0; i < n; i++) {
        r[i].s = s;
        ctx[i] = &r[i];
    }
    ranks_run(n, work, ctx);
    for (int i = 1; i < n; i++)
        assert_int_equal(r[i].err, r[0].err);
    return r[0].err;
}

static void check_same(const struct rank *x, const struct rank *y)
{
    assert_true(x->out.start == y->out.start && x->out.best == y->out.best);
    assert_int_equal(x->out.best_step, y->out.best_step);
    for (int64_t b = 0; b < LAYERS; b++)
        assert_true(same_block(&x->m.calibrated.block[b], &y->m.calibrated.block[b]));
    assert_int_equal(x->io.n_partial, y->io.n_partial);
    for (int i = 0; i < x->io.n_partial; i++) {
        const struct tensor *t = &x->io.partial[i].t, *u = &y->io.partial[i].t;
        assert_int_equal(tensor_count(t), tensor_count(u));
        assert_memory_equal(t->data, u->data,
                            (size_t)tensor_count(t) * dtype_bytes(t->dtype));
    }
}

/* A last batch that is filled up, a guard that some ranks have no window of, and a head and codes
 * that are the student's own. */
static struct refine_settings rank_settings(int which)
{
    struct refine_settings s = refine_settings();
    s.batch = 4;
    s.epochs = 4;
    for (int k = 0; k < N_REFINE_KINDS; k++)
        s.lr[k] *= 4;
    s.acts_bytes = which == 1 ? UINT64_C(1) << 30 : 0;
    s.lr_round = which ? 0.005f : 0;
    s.ce = 0.25f;
    s.head.bits = which == 2 ? 4 : 16;
    s.memory_bytes = which == 2 ? 1 : 0;
    return s;
}

static void check_settings(int which)
{
    const struct refine_settings s = rank_settings(which);
    struct rank one;
    open_ranks(&one, 1);
    must(run_ranks(&one, 1, &s));
    assert_true(which || one.out.best_step > 0);
    for (int n = 2; n <= RANKS_MOST; n++) {
        struct rank r[RANKS_MOST];
        open_ranks(r, n);
        must(run_ranks(r, n, &s));
        for (int i = 0; i < n; i++)
            check_same(&r[i], &one);
        close_ranks(r, n);
    }
    close_ranks(&one, 1);
}

/* Every rank has the scales, codes, gains, moments and losses of one process, bit for bit. */
static void test_the_same_on_any_number(void **state)
{
    for (int which = 0; which < 3; which++)
        check_settings(which);
}

static void copy_partial(struct memory_io *to, const struct memory_io *from)
{
    must(from->io.save_partial(to, -1, from->partial, from->n_partial));
}

/* One rank is asked to stop: all stop at the same place, and another number of ranks resumes what
 * rank 0 saved. */
static void test_stopped_and_resumed_by_others(void **state)
{
    const struct refine_settings s = rank_settings(1);
    struct rank one;
    int stops = 0;
    open_ranks(&one, 1);
    must(run_ranks(&one, 1, &s));
    for (int64_t after = 2; after < 20; after += 4) {
        struct rank a[RANKS_MOST], b[RANKS_MOST];
        const int n = 2 + (int)(after / 4 % 3), m = 1 + (int)((after / 4 + 2) % 4);
        open_ranks(a, n);
        open_ranks(b, m);
        a[n - 1].stop_after = after;
        const enum err err = run_ranks(a, n, &s);
        assert_true(err == ERR_STOPPED || err == OK);
        stops += err == ERR_STOPPED;
        for (int i = 0; i < m && a[0].io.n_partial; i++)
            copy_partial(&b[i].io, &a[0].io);
        must(run_ranks(b, m, &s));
        check_same(&b[0], &one);
        close_ranks(a, n);
        close_ranks(b, m);
    }
    assert_true(stops > 2);
    close_ranks(&one, 1);
}

/* A loss that is not finite ends all ranks with the same message. */
static void test_not_finite_on_all(void **state)
{
    struct refine_settings s = rank_settings(0);
    struct rank r[3];
    s.kl = NAN;
    open_ranks(r, 3);
    assert_int_equal(run_ranks(r, 3, &s), ERR_NUMERIC);
    for (int i = 0; i < 3; i++)
        assert_non_null(strstr(r[i].text, "step 1, window"));
    close_ranks(r, 3);
}

static void test_more_ranks_than_windows_of_a_step(void **state)
{
    struct refine_settings s = rank_settings(0);
    struct rank r[3];
    s.batch = 2;
    open_ranks(r, 3);
    assert_int_equal(run_ranks(r, 3, &s), ERR_USAGE);
    assert_non_null(strstr(r[2].text, "refine.batch is 2, but there are 3 ranks"));
    close_ranks(r, 3);
}

/* The plan's bytes are those that ranks really send, if all have as many windows. */
static void test_traffic_is_as_planned(void **state)
{
    for (int which = 0; which < 2; which++) {
        struct refine_settings s = rank_settings(which);
        struct calib_settings c = tiny_settings();
        struct refine_ranks_plan plan;
        struct rank r[2];
        c.weights.bits = 3;
        c.kv.bits = 4;
        open_ranks(r, 2);
        must(run_ranks(r, 2, &s));
        refine_plan_ranks(&plan, &r->m.f.arch, &c.weights, &c.kv, &s, 2);
        const double want = 2 * (double)r->out.steps * plan.step_bytes;
        assert_true(fabs((double)(r[0].sent + r[1].sent) - want) <= 1e-9 * want);
        assert_true(plan.speedup == 2 && plan.step_windows == 2);
        close_ranks(r, 2);
    }
}

/* A rank needs the memory of its windows; one process also sums of whole weights. */
static void test_memory_is_a_share(void **state)
{
    struct calib_settings c = tiny_settings();
    struct refine_settings s = refine_settings();
    struct refine_plan half, shared;
    const struct arch a = tiny_arch(1, LAYERS);
    s.lr_round = 0;
    s.batch = 2;
    must(refine_plan(&half, &a, &c.weights, &c.kv, &s, 1));
    s.batch = 4;
    must(refine_plan(&shared, &a, &c.weights, &c.kv, &s, 2));
    assert_true(shared.work_bytes == half.work_bytes &&
                shared.acts_bytes == half.acts_bytes);
    s.lr_round = 0.02f;
    must(refine_plan(&shared, &a, &c.weights, &c.kv, &s, 2));
    must(refine_plan(&half, &a, &c.weights, &c.kv, &s, 1));
    assert_true(shared.work_bytes + block_weights_bytes(&a, DT_F32) < half.work_bytes);
    assert_true(shared.total_flops == half.total_flops && shared.steps == half.steps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_on_any_number),
        cmocka_unit_test(test_stopped_and_resumed_by_others),
        cmocka_unit_test(test_not_finite_on_all),
        cmocka_unit_test(test_more_ranks_than_windows_of_a_step),
        cmocka_unit_test(test_traffic_is_as_planned),
        cmocka_unit_test(test_memory_is_a_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
