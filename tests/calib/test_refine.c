/* SPDX-License-Identifier: MIT
 *
 * Runs of end-to-end refinement: what they gain, the guard, and the same bytes after any
 * interruption. */
#include "calib/model/ends.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/refine_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* struct refine_io over plain memory. */
struct memory_refine {
    struct memory_io m; /* streams, and the saved tensors as a partial of block -1 */
    struct refine_io io;
    int64_t looks, asked, stop_after;
    int64_t step; /* the last one that was told */
    double last_done;
    bool done_fell, done_jumped;
    size_t saved; /* bytes that the last save was given */
    int64_t saves;
};

/* More than the share of one step in test_resume. */
#define JUMP 0.1

static void event(void *ctx, const struct refine_event *e)
{
    struct memory_refine *x = ctx;
    x->looks += !isnan(e->guard);
    if (!(e->done >= x->last_done && e->done <= 1 + 1e-9))
        x->done_fell = true;
    if (x->last_done > 0 && e->done - x->last_done > JUMP)
        x->done_jumped = true;
    x->last_done = e->done;
    x->step = e->step;
}

static bool stop(void *ctx)
{
    struct memory_refine *x = ctx;
    return ++x->asked == x->stop_after;
}

static enum err save(void *ctx, const struct named_tensor *t, int n)
{
    struct memory_refine *x = ctx;
    x->saved = 0;
    x->saves++;
    for (int i = 0; i < n; i++)
        x->saved += (size_t)tensor_count(&t[i].t) * dtype_bytes(t[i].t.dtype);
    return x->m.io.save_partial(&x->m, -1, t, n);
}

static enum err load(void *ctx, const struct named_tensor **t, int *n)
{
    struct memory_refine *x = ctx;
    *t = x->m.partial;
    *n = x->m.n_partial;
    return OK;
}

static void memory_refine_open(struct memory_refine *x)
{
    *x = (struct memory_refine){0};
    memory_io_open(&x->m);
    x->io = (struct refine_io){&x->m.io, x, event, stop, save, load, NULL};
}

static bool same_gains(const struct model *x, const struct model *y)
{
    for (int64_t b = 0; b < LAYERS; b++)
        for (int g = 0; g < N_GAINS; g++) {
            const float *one = x->calibrated.block[b].gain[g];
            const float *two = y->calibrated.block[b].gain[g];
            const int64_t n = arch_gain(&x->f.arch, b, (enum norm_gain)g);
            if (!one != !n || !two != !n ||
                (n && memcmp(one, two, (size_t)n * sizeof(*one))))
                return false;
        }
    return true;
}

static enum err run(struct memory_refine *x, struct refine_result *out, struct model *m,
                    const struct refine_settings *s, const char *device)
{
    struct dev *d = open_dev(device);
    const enum err err = refine_run(out, d, &m->f.arch, &m->f.source, m->calibrated.block,
                                    s, m->ids, &x->io);
    dev_close(&d);
    return err;
}

/* A source that makes blocks, over another. */
struct making {
    struct model_source source, from;
    int64_t asked, held, most; /* calls of block(), and blocks that were not released */
    bool made[LAYERS];
};

static enum err make_block(void *ctx, int64_t i, struct block_src *out)
{
    struct making *m = ctx;
    m->asked++;
    m->held += !m->made[i];
    m->made[i] = true;
    m->most = m->held > m->most ? m->held : m->most;
    return m->from.block(m->from.ctx, i, out);
}

static void release_block(void *ctx, int64_t i)
{
    struct making *m = ctx;
    m->held -= m->made[i];
    m->made[i] = false;
}

static enum err ends_of_making(void *ctx, struct host_mat *embed, struct host_mat *norm,
                               struct host_mat *head)
{
    const struct making *m = ctx;
    return m->from.ends(m->from.ctx, embed, norm, head);
}

static void refine_making(struct making *making, struct model *m, int head_bits)
{
    struct refine_settings s = refine_settings();
    struct memory_refine x;
    struct refine_result out;
    *making = (struct making){.from = m->f.source, .source = m->f.source};
    making->source.ctx = making;
    making->source.block = make_block;
    making->source.ends = ends_of_making;
    making->source.release = release_block;
    making->source.makes_blocks = true;
    m->f.source = making->source;
    s.head.bits = head_bits;
    memory_refine_open(&x);
    must(run(&x, &out, m, &s, "cpu"));
    memory_io_close(&x.m);
    m->f.source = making->from;
}

/* Made blocks take memory: one exists at a time, none is left, and no step needs one where all
 * projections have codes. A quantized head, whose source lies between, changes nothing. */
static void test_made_blocks_are_released(void **state)
{
    const int shape[] = {0, 1, 4}; /* plain, with biases, with experts */
    struct making making;
    struct model m;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(shape); i++) {
        model_open(&m, shape[i], 4);
        refine_making(&making, &m, 16);
        assert_int_equal(making.most, 1);
        assert_int_equal(making.held, 0);
        assert_int_equal(making.asked, 2 * LAYERS); /* by the student and by the teacher */
        model_close(&m);
    }
    for (int head_bits = 4; head_bits <= 16; head_bits += 12) {
        model_open(&m, 1, 4);
        for (int64_t b = 0; b < LAYERS; b++)
            qlinear_free(&m.calibrated.block[b].lin[LIN_DOWN]);
        refine_making(&making, &m, head_bits);
        assert_int_equal(making.most, 1);
        assert_int_equal(making.held, 0);
        assert_true(making.asked > 2 * LAYERS);
        model_close(&m);
    }
}

/* Each count just below and just above its range. */
static void test_settings_are_checked(void **state)
{
    struct model m;
    struct memory_refine x = {0};
    struct refine_result out;
    struct refine_settings s;
    const struct {
        const char *key;
        int64_t *count, lo, hi;
    } row[] = {{"refine.samples", &s.samples, 1, REFINE_SAMPLES_MAX},
               {"refine.seqlen", &s.seqlen, RANGE_REFINE_SEQLEN},
               {"refine.epochs", &s.epochs, RANGE_REFINE_EPOCHS},
               {"refine.batch", &s.batch, RANGE_REFINE_BATCH},
               {"refine.guard", &s.guard, RANGE_REFINE_GUARD}};
    (void)state;
    model_open(&m, 0, 4);
    for (size_t i = 0; i < 2 * ARRAY_LEN(row); i++) {
        s = refine_settings();
        *row[i / 2].count = i % 2 ? row[i / 2].hi + 1 : row[i / 2].lo - 1;
        err_clear();
        assert_int_equal(run(&x, &out, &m, &s, "cpu"), ERR_USAGE);
        assert_int_equal(strncmp(err_text(), row[i / 2].key, strlen(row[i / 2].key)), 0);
    }
    model_close(&m);
}

/* Projection l's codes that follow from the source under the scales of q. */
static uint8_t *source_codes(struct model *m, const struct qlinear *q, int64_t b, int l)
{
    struct block_src src;
    uint8_t *codes = NULL;
    must(m->f.source.block(m->f.source.ctx, b, &src));
    must(mem_alloc(&codes, (size_t)(q->out * q->in), 1));
    for (int64_t i = 0; i < q->out * q->in; i++) {
        const int64_t g = i / q->in * q->groups + i % q->in / qlinear_group(q);
        codes[i] = quant_weight_code(((const float *)src.lin[l].data)[i],
                                     f16_to_f32(q->scales[g]), q->zeros[g], q->format.bits);
    }
    return codes;
}

/* Elements in which the codes of layer b's projection l differ from those of the start. */
static int64_t moved_codes(struct model *m, struct model *before, int64_t b, int l)
{
    const struct qlinear *q = &m->calibrated.block[b].lin[l];
    uint8_t *was = source_codes(before, &before->calibrated.block[b].lin[l], b, l);
    int64_t n = 0;
    for (int64_t i = 0; i < q->out * q->in; i++)
        n += q->codes[i] != was[i];
    mem_free(was);
    return n;
}

/* The plan counts what is saved, except for the padding of codes and offsets, and the position. */
static void check_saved(const struct memory_refine *x, const struct model *m,
                        const struct refine_settings *s)
{
    struct calib_settings c = tiny_settings();
    struct refine_plan plan;
    c.weights.bits = 3;
    c.kv.bits = 4;
    must(refine_plan(&plan, &m->f.arch, &c.weights, &c.kv, s, 1));
    print_message("saved %zu bytes, planned %zu\n", x->saved, plan.saved_bytes);
    assert_in_range(x->saved, plan.saved_bytes,
                    plan.saved_bytes + 32 + 3 * 64 * LAYERS * N_LIN);
}

/* The guard's loss falls, scales change; codes stay unless rounding learns. */
static void check_run(int which, const char *device, float lr_round)
{
    struct model m, before;
    struct memory_refine x;
    struct refine_result out;
    struct refine_settings s = refine_settings();
    s.epochs = 12;
    for (int k = 0; k < N_REFINE_KINDS; k++)
        s.lr[k] *= 4;
    s.lr_round = lr_round;
    model_open(&m, which, 4);
    model_open(&before, which, 4);
    memory_refine_open(&x);
    must(run(&x, &out, &m, &s, device));
    print_message("guard %g -> %g\n", out.start, out.best);
    assert_true(out.start > 0 && out.best < 0.95 * out.start);
    assert_true(out.best_step > 0 && out.best_step <= out.steps);
    assert_int_equal(out.steps, 36);
    assert_int_equal(x.looks, 5);
    assert_false(x.done_fell);
    assert_true(x.last_done > 0.999);
    check_saved(&x, &m, &s);
    assert_int_equal(x.m.open_streams, 0);
    for (int64_t b = 0; b < LAYERS; b++) {
        const struct qlinear *q = &m.calibrated.block[b].lin[LIN_DOWN];
        const struct qlinear *was = &before.calibrated.block[b].lin[LIN_DOWN];
        assert_non_null(q->codes);
        assert_memory_equal(q->zeros, was->zeros, (size_t)(q->out * q->groups));
        assert_true(memcmp(q->scales, was->scales, (size_t)(q->out * q->groups) * 2));
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *lin = &m.calibrated.block[b].lin[l];
            const int64_t moved = moved_codes(&m, &before, b, l);
            assert_true(lr_round > 0 ? moved > 0 && moved < lin->out * lin->in / 2
                                     : moved == 0);
        }
    }
    memory_io_close(&x.m);
    model_close(&m);
    model_close(&before);
}

static void test_runs(void **state)
{
    (void)state;
    check_run(0, "cpu", 0);
    check_run(1, "cpu", 0);
    check_run(1, "cuda-emu", 0);
    check_run(0, "cpu", 0.02f);
    check_run(1, "cuda-emu", 0.02f);
    check_run(4, "cpu", 0.02f);
}

/* A quantized head is the student's alone: it adds to the loss at the start, and what learns
 * makes up for part of it. The plan counts its memory. */
static void check_head(int which)
{
    struct model m;
    struct memory_refine x;
    struct refine_result plain, quantized;
    struct refine_settings s = refine_settings();
    struct calib_settings c = tiny_settings();
    struct refine_plan plan[2];
    const struct arch a = tiny_arch(which, LAYERS);
    for (int i = 0; i < 2; i++) {
        s.head.bits = i ? 2 : 16;
        s.epochs = i ? 12 : 1;
        must(refine_plan(&plan[i], &a, &c.weights, &c.kv, &s, 1));
        model_open(&m, which, 4);
        memory_refine_open(&x);
        must(run(&x, i ? &quantized : &plain, &m, &s, "cpu"));
        memory_io_close(&x.m);
        model_close(&m);
    }
    print_message("guard %g; with the head: %g -> %g\n", plain.start, quantized.start,
                  quantized.best);
    assert_true(quantized.start > 1.05 * plain.start);
    assert_true(quantized.best < 0.97 * quantized.start);
    const size_t one = (size_t)(a.vocab * a.d_model) * sizeof(float);
    assert_int_equal(plan[1].work_bytes - plan[0].work_bytes, one);
    assert_int_equal(plan[1].host_bytes - plan[0].host_bytes, a.tied ? one : 2 * one);
}

static void test_head(void **state)
{
    (void)state;
    check_head(0);
    check_head(1);
}

/* Rates that ruin the model: the start is kept, bit for bit. */
static void test_guard(void **state)
{
    struct model m, before;
    struct memory_refine x;
    struct refine_result out;
    struct refine_settings s = refine_settings();
    (void)state;
    s.lr[REFINE_SCALES] = 2;
    s.lr[REFINE_NORMS] = 2;
    s.lr_round = 0.9f;
    model_open(&m, 0, 4);
    model_open(&before, 0, 4);
    memory_refine_open(&x);
    must(run(&x, &out, &m, &s, "cpu"));
    assert_int_equal(out.best_step, 0);
    assert_true(out.best == out.start);
    for (int64_t b = 0; b < LAYERS; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &m.calibrated.block[b].lin[l];
            assert_memory_equal(q->scales, before.calibrated.block[b].lin[l].scales,
                                (size_t)(q->out * q->groups) * sizeof(*q->scales));
            assert_int_equal(moved_codes(&m, &before, b, l), 0);
        }
    assert_memory_equal(m.calibrated.block[LAYERS - 1].gain[GAIN_FINAL],
                        m.f.final_norm.data, (size_t)m.f.arch.d_model * sizeof(float));
    memory_io_close(&x.m);
    model_close(&m);
    model_close(&before);
}

/* Activations that are kept or made again: the same bytes. */
static void test_kept_activations(void **state)
{
    struct model m[2];
    (void)state;
    for (int keep = 0; keep < 2; keep++) {
        struct memory_refine x;
        struct refine_result out;
        struct refine_settings s = refine_settings();
        s.lr_round = 0.02f;
        s.acts_bytes = keep ? UINT64_C(1) << 30 : 0;
        model_open(&m[keep], 1, 4);
        memory_refine_open(&x);
        must(run(&x, &out, &m[keep], &s, "cpu"));
        memory_io_close(&x.m);
    }
    assert_true(same_gains(&m[0], &m[1]));
    for (int64_t b = 0; b < LAYERS; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &m[0].calibrated.block[b].lin[l];
            const struct qlinear *k = &m[1].calibrated.block[b].lin[l];
            assert_memory_equal(q->scales, k->scales, (size_t)(q->out * q->groups) * 2);
            assert_memory_equal(q->codes, k->codes, (size_t)(q->out * q->in));
        }
    model_close(&m[0]);
    model_close(&m[1]);
}

/* Returns the step that the saved state is at; 0: there is none. */
static int64_t saved_step(const struct memory_refine *x)
{
    for (int i = 0; i < x->m.n_partial; i++)
        if (!strcmp(x->m.partial[i].name, "refine.step"))
            return *(const int64_t *)x->m.partial[i].t.data;
    return 0;
}

/* Stopped at every call of stop() in turn and resumed: no step is lost, and the same bytes. */
static void test_resume(void **state)
{
    struct model whole;
    struct memory_refine x;
    struct refine_result want, out;
    struct refine_settings s = refine_settings();
    int stops = 0;
    (void)state;
    s.lr_round = 0.02f;
    model_open(&whole, 1, 4);
    memory_refine_open(&x);
    must(run(&x, &want, &whole, &s, "cpu"));
    memory_io_close(&x.m);
    for (int64_t every = 14; every <= 22; every += 4) {
        struct model m;
        enum err err;
        model_open(&m, 1, 4);
        memory_refine_open(&x);
        do {
            x.asked = 0;
            x.last_done = 0;
            x.stop_after = every;
            err = run(&x, &out, &m, &s, "cpu");
            stops += err == ERR_STOPPED;
            assert_true(!err || err == ERR_STOPPED);
            err_clear();
            if (err)
                assert_int_equal(saved_step(&x), x.step);
            every += err == ERR_STOPPED; /* preparation is repeated: get further */
        } while (err);
        for (int64_t b = 0; b < LAYERS; b++)
            for (int l = 0; l < N_LIN; l++) {
                const struct qlinear *q = &m.calibrated.block[b].lin[l];
                assert_memory_equal(q->scales, whole.calibrated.block[b].lin[l].scales,
                                    (size_t)(q->out * q->groups) * sizeof(*q->scales));
                assert_memory_equal(q->codes, whole.calibrated.block[b].lin[l].codes,
                                    (size_t)(q->out * q->in));
            }
        assert_false(x.done_fell || x.done_jumped);
        assert_true(x.last_done > 0.999);
        assert_true(same_gains(&m, &whole));
        assert_true(out.best == want.best && out.best_step == want.best_step);
        memory_io_close(&x.m);
        model_close(&m);
    }
    assert_true(stops > 3);
    model_close(&whole);
}

/* Steps are saved at the four looks behind the first, and after each where that is due. */
static void test_saves_when_due(void **state)
{
    const struct refine_settings s = refine_settings();
    (void)state;
    for (int often = 0; often < 2; often++) {
        struct model m;
        struct memory_refine x;
        struct refine_result out;
        model_open(&m, 0, 4);
        memory_refine_open(&x);
        x.m.io.save_seconds = often ? 1e-9 : 0;
        must(run(&x, &out, &m, &s, "cpu"));
        assert_true(out.steps > 4);
        assert_int_equal(x.looks, 5);
        assert_int_equal(x.saves, often ? out.steps : 4);
        memory_io_close(&x.m);
        model_close(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_settings_are_checked),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_made_blocks_are_released),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_guard),
        cmocka_unit_test(test_kept_activations),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_saves_when_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
