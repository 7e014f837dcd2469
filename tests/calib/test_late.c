/* SPDX-License-Identifier: MIT
 *
 * Steps whose results are read one step late, on the emulated GPU, against steps that wait for
 * each: the same events with the same losses, the same blocks, the same message and state after a
 * value that is not finite, and the same result after any stop. */
#include "kernels/cuda/emu/emu_card.h"
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_EVENTS = 300 };

struct happened {
    enum calib_event_kind kind;
    int64_t block, epoch, sample;
    double loss, done, tokens_per_s;
    long waits; /* of the host, so far */
};

/* A memory_io that also keeps the events of training. */
struct recorder {
    struct memory_io m; /* first: the callbacks' context */
    void (*pass_on)(void *ctx, const struct calib_event *e);
    struct happened event[MOST_EVENTS];
    int n;
};

static void record(void *ctx, const struct calib_event *e)
{
    struct recorder *r = ctx;
    r->pass_on(ctx, e);
    if (e->kind != CALIB_STEP && e->kind != CALIB_EVAL && e->kind != CALIB_EPOCH)
        return;
    assert_true(r->n < MOST_EVENTS);
    r->event[r->n++] =
        (struct happened){e->kind, e->block, e->epoch,        e->sample,
                          e->loss, e->done,  e->tokens_per_s, emu_card()->waits};
}

static void recorder_open(struct recorder *r)
{
    memset(r, 0, sizeof(*r));
    memory_io_open(&r->m);
    r->pass_on = r->m.io.event;
    r->m.io.event = record;
}

/* waits: every operation does, so no step is read late. */
static enum err run(struct recorder *r, const struct fixture *f,
                    const struct calib_settings *s, bool waits)
{
    int32_t tokens[4096];
    struct dev *d = open_dev("cuda-emu");
    assert_true(dev_set_synchronous(d, waits));
    assert_int_equal(dev_queues(d), !waits);
    tiny_tokens(tokens, s, &f->arch);
    err_clear();
    r->m.last_done = 0;
    const enum err err =
        calib_run(d, &f->arch, &f->source, s, tokens, r->m.n_blocks, &r->m.io);
    dev_close(&d);
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
    return err;
}

static void check_same_events(const struct recorder *x, const struct recorder *y)
{
    assert_int_equal(x->n, y->n);
    for (int i = 0; i < x->n; i++) {
        const struct happened *a = &x->event[i], *b = &y->event[i];
        assert_int_equal(a->kind, b->kind);
        assert_int_equal(a->block, b->block);
        assert_int_equal(a->epoch, b->epoch);
        assert_int_equal(a->sample, b->sample);
        assert_true(a->loss == b->loss && a->done == b->done);
    }
}

static struct calib_settings settings_of(int which)
{
    struct calib_settings s = tiny_settings();
    s.samples = 5, s.seqlen = 7;
    s.device_bytes = UINT64_C(1) << 30;
    s.batch = which & 1 ? 2 : 1;
    s.crr_terms = which & 2 ? TERMS_ALL : TERMS_LAST;
    s.act = which & 1 ? DT_BF16 : DT_F32;
    return s;
}

/* Between the events of neighbouring steps the host has waited once. */
static void check_waits(const struct recorder *late)
{
    int pairs = 0;
    for (int i = 2; i < late->n; i++) {
        const struct happened *e = &late->event[i];
        if (e[0].kind != CALIB_STEP || e[-1].kind != CALIB_STEP || e[-2].kind != CALIB_STEP)
            continue;
        assert_int_equal(e[0].waits - e[-1].waits, 1);
        pairs++;
    }
    assert_true(pairs > 3);
}

/* The last step of an epoch is read right after the one before it, so its time is not counted. */
static void check_speeds(const struct recorder *late)
{
    int ends = 0;
    for (int i = 1; i + 1 < late->n; i++) {
        const struct happened *e = &late->event[i];
        if (e[-1].kind != CALIB_STEP || e[0].kind != CALIB_STEP || e[1].kind == CALIB_STEP)
            continue;
        assert_true(e[0].tokens_per_s > 0 && e[0].tokens_per_s == e[-1].tokens_per_s);
        ends++;
    }
    assert_true(ends > 1);
}

static void test_late_steps_are_the_same(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 51);
    for (int which = 1; which < 3; which++) { /* batches, and all terms */
        static struct recorder late, waiting;
        const struct calib_settings s = settings_of(which);
        recorder_open(&late);
        recorder_open(&waiting);
        must(run(&late, &f, &s, false));
        must(run(&waiting, &f, &s, true));
        check_same_events(&late, &waiting);
        check_speeds(&late);
        assert_true(same_result(&late.m, &waiting.m));
        assert_false(late.m.done_fell);
        if (s.batch == 1)
            check_waits(&late);
        memory_io_close(&late.m);
        memory_io_close(&waiting.m);
    }
    fixture_close(&f);
}

/* The step is named, and the parameters before it are saved, though others were queued behind
 * it. */
static void test_a_bad_step_moves_nothing(void **state)
{
    static struct recorder late, waiting;
    struct fixture f;
    char said[512];
    struct calib_settings s = settings_of(1);
    s.lr_shift = s.lr_smooth = 1e30f;
    fixture_open(&f, tiny_arch(0, 2), 11);
    recorder_open(&late);
    recorder_open(&waiting);
    assert_int_equal(run(&late, &f, &s, false), ERR_NUMERIC);
    snprintf(said, sizeof(said), "%s", err_text());
    assert_int_equal(run(&waiting, &f, &s, true), ERR_NUMERIC);
    assert_string_equal(said, err_text());
    assert_non_null(strstr(said, "block 0, epoch 0, step 1 (sample "));
    assert_int_equal(late.m.n_blocks, 0);
    assert_true(late.m.n_partial > 0);
    check_same_partial(&late.m, &waiting.m);
    check_same_events(&late, &waiting);
    memory_io_close(&late.m);
    memory_io_close(&waiting.m);
    fixture_close(&f);
}

/* A stop between the bad step and its report saves no state behind it: the next run meets the step
 * again. */
static void test_a_stop_hides_no_bad_step(void **state)
{
    static struct recorder r;
    struct fixture f;
    char said[512];
    int64_t asked, stops = 0;
    struct calib_settings s = settings_of(0);
    s.lr_shift = s.lr_smooth = 1e30f;
    fixture_open(&f, tiny_arch(0, 2), 11);
    recorder_open(&r);
    assert_int_equal(run(&r, &f, &s, false), ERR_NUMERIC);
    snprintf(said, sizeof(said), "%s", err_text());
    asked = r.m.asked;
    memory_io_close(&r.m);
    for (int64_t after = asked - 2; after <= asked; after++) {
        recorder_open(&r);
        r.m.stop_after = after;
        stops += run(&r, &f, &s, false) == ERR_STOPPED;
        r.m.stop_after = 0;
        assert_int_equal(run(&r, &f, &s, false), ERR_NUMERIC);
        assert_string_equal(said, err_text());
        memory_io_close(&r.m);
    }
    assert_true(stops > 0);
    fixture_close(&f);
}

/* Whenever it is stopped, a run saves whole steps, and ends as without a stop. */
static void test_stops_save_whole_steps(void **state)
{
    static struct recorder whole, parts;
    struct fixture f;
    const struct calib_settings s = settings_of(1);
    enum err err = ERR_STOPPED;
    fixture_open(&f, tiny_arch(0, 1), 53);
    recorder_open(&whole);
    recorder_open(&parts);
    must(run(&whole, &f, &s, false));
    for (int64_t after = 14; err == ERR_STOPPED; after += 3) {
        parts.m.asked = 0;
        parts.m.stop_after = after;
        parts.n = 0;
        err = run(&parts, &f, &s, false);
        assert_false(parts.m.done_fell);
    }
    must(err);
    assert_true(same_result(&whole.m, &parts.m));
    memory_io_close(&whole.m);
    memory_io_close(&parts.m);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_steps_are_the_same),
        cmocka_unit_test(test_a_bad_step_moves_nothing),
        cmocka_unit_test(test_a_stop_hides_no_bad_step),
        cmocka_unit_test(test_stops_save_whole_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
