/* SPDX-License-Identifier: MIT
 *
 * Steps whose results are read one step late, on the emulated GPU, as graphs and by single
 * launches, against steps that wait for each result: the same events with the same losses, the
 * same blocks, the same message and state after a value that is not finite, and the same result
 * after any stop. */
#include "kernels/cuda/emu/emu_card.h"
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_EVENTS = 300 };

enum how { GRAPHS, SINGLE, WAITING, N_HOWS };

struct happened {
    enum calib_event_kind kind;
    int64_t block, epoch, sample;
    double loss, done, tokens_per_s;
    long waits, launches, graphs; /* of the host, so far */
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
        (struct happened){e->kind,           e->block,          e->epoch,
                          e->sample,         e->loss,           e->done,
                          e->tokens_per_s,   emu_card()->waits, emu_card()->launches,
                          emu_card()->graphs};
}

static void recorder_open(struct recorder *r)
{
    memset(r, 0, sizeof(*r));
    memory_io_open(&r->m);
    r->pass_on = r->m.io.event;
    r->m.io.event = record;
}

/* WAITING: every operation does, so no step is read late. SINGLE: by choice, or because no step can
 * be recorded. */
static enum err run(struct recorder *r, const struct fixture *f,
                    const struct calib_settings *s, enum how how)
{
    int32_t tokens[4096];
    const bool chosen = how == SINGLE && s->batch > 1;
    emu_card()->graph_fails = how == SINGLE ? "cudaStreamEndCapture" : NULL;
    setenv("WKVQ_GRAPHS", chosen ? "none" : "", 1);
    struct dev *d = open_dev("cuda-emu");
    assert_true(dev_set_synchronous(d, how == WAITING));
    assert_int_equal(dev_queues(d), how != WAITING);
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
    if (which & 2)
        s.memory_bytes = UINT64_C(1) << 30;
    else
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

/* Launches of a step in the middle of an epoch, of one sample, in a block. By a graph they are its
 * rates, its input and n targets, the graph, and its report. */
static long check_launches(const struct recorder *r, int64_t block, bool graphs, long n)
{
    for (int i = 2; i < r->n; i++) {
        const struct happened *e = &r->event[i];
        if (e->block != block || e[0].kind != CALIB_STEP || e[-1].kind != CALIB_STEP ||
            e[-2].kind != CALIB_STEP || e->sample < 3)
            continue;
        const long launches = e[0].launches - e[-1].launches;
        assert_int_equal(e[0].graphs - e[-1].graphs, graphs);
        if (graphs)
            assert_int_equal(launches, 4 + n);
        return launches;
    }
    fail();
    return 0;
}

static void test_late_steps_are_the_same(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 51);
    for (int which = 1; which < 3; which++) { /* batches, and all terms from the host */
        static struct recorder r[N_HOWS];
        const struct calib_settings s = settings_of(which);
        for (int how = 0; how < N_HOWS; how++) {
            const long before = emu_card()->graphs;
            recorder_open(&r[how]);
            must(run(&r[how], &f, &s, (enum how)how));
            assert_int_equal(emu_card()->graphs > before, how == GRAPHS);
            check_same_events(&r[how], &r[0]);
            assert_true(same_result(&r[how].m, &r[0].m));
            if (how != WAITING)
                check_speeds(&r[how]);
            if (how != WAITING && s.batch == 1)
                check_waits(&r[how]);
            assert_false(r[how].m.done_fell);
        }
        for (int64_t block = 0; block < 2 && s.batch == 1; block++) {
            const long few = check_launches(&r[GRAPHS], block, true, 2 - block);
            const long many = check_launches(&r[SINGLE], block, false, 2 - block);
            print_message("launches of a step: %ld, by a graph %ld\n", many, few);
            assert_true(many > 10 * few);
        }
        for (int how = 0; how < N_HOWS; how++)
            memory_io_close(&r[how].m);
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
    assert_int_equal(run(&late, &f, &s, GRAPHS), ERR_NUMERIC);
    snprintf(said, sizeof(said), "%s", err_text());
    assert_int_equal(run(&waiting, &f, &s, WAITING), ERR_NUMERIC);
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
    assert_int_equal(run(&r, &f, &s, GRAPHS), ERR_NUMERIC);
    snprintf(said, sizeof(said), "%s", err_text());
    asked = r.m.asked;
    memory_io_close(&r.m);
    for (int64_t after = asked - 2; after <= asked; after++) {
        recorder_open(&r);
        r.m.stop_after = after;
        stops += run(&r, &f, &s, GRAPHS) == ERR_STOPPED;
        r.m.stop_after = 0;
        assert_int_equal(run(&r, &f, &s, GRAPHS), ERR_NUMERIC);
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
    must(run(&whole, &f, &s, GRAPHS));
    for (int64_t after = 14; err == ERR_STOPPED; after += 3) {
        parts.m.asked = 0;
        parts.m.stop_after = after;
        parts.n = 0;
        err = run(&parts, &f, &s, GRAPHS);
        assert_false(parts.m.done_fell);
    }
    must(err);
    assert_true(same_result(&whole.m, &parts.m));
    memory_io_close(&whole.m);
    memory_io_close(&parts.m);
    fixture_close(&f);
}

/* A block is saved after every step where that is due, once its results are read, and ends with the
 * same bytes. A run that is stopped later loses no step. */
static void test_saves_between_steps(void **state)
{
    static struct recorder plain, often;
    struct fixture f;
    const struct calib_settings s = settings_of(1);
    fixture_open(&f, tiny_arch(0, 1), 53);
    for (int how = 0; how < N_HOWS; how++) {
        recorder_open(&plain);
        recorder_open(&often);
        often.m.io.save_seconds = 1e-9;
        must(run(&plain, &f, &s, how));
        must(run(&often, &f, &s, how));
        assert_int_equal(plain.m.n_saves, s.epochs);
        assert_int_equal(often.m.n_saves, s.epochs + often.m.n_steps);
        assert_int_equal(often.m.n_steps, 3 * s.epochs); /* of two samples, and of one */
        assert_true(same_result(&plain.m, &often.m));
        memory_io_close(&plain.m);
        memory_io_close(&often.m);
    }
    fixture_close(&f);
}

/* A plan's only measured step is not the one that records a graph. */
static void test_a_trial_times_a_graph(void **state)
{
    struct fixture f;
    struct calib_bench b;
    const struct calib_settings s = settings_of(0);
    struct dev *d = open_dev("cuda-emu");
    const long before = emu_card()->graphs;
    fixture_open(&f, tiny_arch(0, 2), 54);
    must(calib_bench_step(&b, d, &f.arch, &f.source, &s, 1, NULL));
    /* the last step to warm up, and the one that is measured */
    assert_int_equal(emu_card()->graphs - before, 2);
    fixture_close(&f);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_steps_are_the_same),
        cmocka_unit_test(test_a_bad_step_moves_nothing),
        cmocka_unit_test(test_a_stop_hides_no_bad_step),
        cmocka_unit_test(test_stops_save_whole_steps),
        cmocka_unit_test(test_saves_between_steps),
        cmocka_unit_test(test_a_trial_times_a_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
