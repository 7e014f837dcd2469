/* SPDX-License-Identifier: MIT
 *
 * End-to-end refinement: gradients of the whole quantized model against finite differences;
 * the guard; the same bytes after any interruption. */
#include "calib/refine/distill.h"
#include "calib/refine/student.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 3, T = 24, SAMPLES = 5, GUARD = 2 };

static struct refine_settings settings(void)
{
    return (struct refine_settings){.samples = SAMPLES,
                                    .guard = GUARD,
                                    .seqlen = T,
                                    .epochs = 3,
                                    .batch = 2,
                                    .lr = {3e-3f, 1e-3f, 2e-3f, 2e-3f},
                                    .kl = 1,
                                    .scale_bits = 11,
                                    .act = DT_F32,
                                    .seed = 5};
}

/* --- a quantized model to begin with ------------------------------------------------ */

struct model {
    struct fixture f;
    struct memory_io
        calibrated; /* blocks, rounded to nearest by a calibration of no epoch */
    int32_t ids[(SAMPLES + GUARD) * T];
};

static void model_open(struct model *m, int which, int kv_bits)
{
    struct calib_settings s = tiny_settings();
    struct rng r;
    fixture_open(&m->f, tiny_arch(which, LAYERS), 31);
    s.epochs = 0;
    s.weights.bits = 3;
    s.kv.bits = kv_bits;
    memory_io_open(&m->calibrated);
    must(run_on("cpu", &m->calibrated, &m->f, &s));
    assert_int_equal(m->calibrated.n_blocks, LAYERS);
    rng_seed(&r, 8);
    for (size_t i = 0; i < ARRAY_LEN(m->ids); i++)
        m->ids[i] = (int32_t)rng_below(&r, (uint64_t)m->f.arch.vocab);
}

static void model_close(struct model *m)
{
    memory_io_close(&m->calibrated);
    fixture_close(&m->f);
}

/* --- gradients ---------------------------------------------------------------------- */

/* A student, the head, and a teacher's states that are not its own. */
struct probe {
    struct student st;
    struct distiller head;
    struct tensor teacher, dx;
    const int32_t *ids;
};

static void probe_open(struct probe *p, struct model *m, struct dev *d)
{
    const struct refine_settings s = settings();
    const int64_t D = m->f.arch.d_model;
    struct rng r;
    rng_seed(&r, 12);
    must(student_open(&p->st, d, &m->f.arch, &m->f.source, m->calibrated.block, &s));
    must(distiller_open(&p->head, d, &m->f.arch, &m->f.source, T, DT_F32));
    float *x = draw(&r, T * D, 1, 0);
    p->teacher = tensor_2d(to_dev(d, x, T * D, DT_F32), DT_F32, T, D);
    p->dx = dev_2d(d, DT_F32, T, D);
    p->ids = m->ids;
    mem_free(x);
}

static void probe_close(struct probe *p)
{
    dev_free(p->st.dev, p->teacher.data);
    dev_free(p->st.dev, p->dx.data);
    distiller_close(&p->head);
    student_close(&p->st);
}

/* 0.5 KL + 0.25 CE; grads: also into st.g. */
static double loss_of(struct probe *p, bool grads)
{
    double loss[2];
    const struct distill_pair pair = {student_state(&p->st, 0, LAYERS), &p->st.final_norm,
                                      &p->teacher, p->ids};
    const struct distill_grads g = {&p->dx, &p->st.dfinal, 0.5f, 0.25f, 1};
    must(student_forward(&p->st, &p->ids, 1));
    must(distill_loss(&p->head, loss, &pair, grads ? &g : NULL));
    if (grads)
        must(student_backward(&p->st, &p->dx, 1));
    return 0.5 * loss[0] + 0.25 * loss[1];
}

/* How far log h really moves in fp16 when every u moves by a step from 0. */
static void moved_scales(const struct probe *p, const float *u, double *moved)
{
    int64_t at = 0;
    for (int64_t b = 0; b < LAYERS; b++)
        for (int l = 0; l < N_LIN; l++) {
            const struct student_lin *q = &p->st.layer[b].lin[l];
            const int64_t n = tensor_count(&q->u);
            for (int64_t i = 0; i < n; i++, at++) {
                const uint16_t h = ((const uint16_t *)q->base.data)[i];
                const float after =
                    f16_to_f32(quant_scale_step(h, u[at], p->st.scale_bits));
                moved[at] = log((double)after / (double)f16_to_f32(h));
            }
        }
}

/* (L(p + step) - L(p - step)) against g . (what the parameters moved by), along random
 * directions of one kind. */
static void check_kind(struct probe *p, const float *grad, int kind, uint64_t seed)
{
    const int64_t first = p->st.first[kind], n = p->st.first[kind + 1] - first;
    const size_t bytes = (size_t)n * sizeof(float);
    float *at = (float *)p->st.p.data + first;
    float *start = NULL, *step = NULL;
    double *moved = NULL, want = 0, got = 0;
    struct rng r;
    rng_seed(&r, seed);
    must(mem_alloc(&start, (size_t)n, sizeof(*start)));
    must(mem_alloc(&step, (size_t)n, sizeof(*step)));
    must(mem_alloc(&moved, (size_t)n, sizeof(*moved)));
    memcpy(start, at, bytes);
    for (int side = 1; side >= -1; side -= 2) {
        for (int64_t i = 0; i < n; i++) {
            if (side > 0)
                step[i] = (float)(2e-3 * rng_normal(&r));
            moved[i] = (double)step[i];
        }
        float *signed_step = draw(&r, n, 0, 0);
        for (int64_t i = 0; i < n; i++)
            signed_step[i] = (float)side * step[i];
        if (kind == REFINE_SCALES)
            moved_scales(p, signed_step, moved);
        else
            for (int64_t i = 0; i < n; i++)
                moved[i] = (double)signed_step[i];
        for (int64_t i = 0; i < n; i++) {
            at[i] = start[i] + signed_step[i];
            got += side * moved[i] * (double)grad[first + i];
        }
        want += side * loss_of(p, false);
        memcpy(at, start, bytes);
        mem_free(signed_step);
    }
    if (!(fabs(got - want) <= 0.02 * fabs(want) + 2e-6))
        fail_msg("kind %d: along the gradient %g, by differences %g", kind, got, want);
    mem_free(start);
    mem_free(step);
    mem_free(moved);
}

static void check_gradients(int which)
{
    struct model m;
    struct probe p;
    struct dev *d = open_dev("cpu"); /* parameters are then in the host's memory */
    model_open(&m, which, 16);
    probe_open(&p, &m, d);
    loss_of(&p, true);
    float *grad = to_host(d, &p.st.g);
    for (uint64_t seed = 1; seed <= 3; seed++) {
        check_kind(&p, grad, REFINE_SCALES, seed);
        check_kind(&p, grad, REFINE_NORMS, seed);
    }
    mem_free(grad);
    probe_close(&p);
    model_close(&m);
    dev_close(&d);
}

static void test_gradients(void **state)
{
    (void)state;
    check_gradients(0);
    check_gradients(1);
}

/* Gradients of a second window are added to those of the first. */
static void test_batch_adds(void **state)
{
    struct model m;
    struct probe p;
    struct dev *d = open_dev("cpu");
    (void)state;
    model_open(&m, 1, 4);
    probe_open(&p, &m, d);
    loss_of(&p, true);
    float *one = to_host(d, &p.st.g);
    loss_of(&p, true);
    float *two = to_host(d, &p.st.g);
    const int64_t n = tensor_count(&p.st.g);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)two[i] - 2 * (double)one[i]) <= 1e-5 * fabs((double)two[i])))
            fail_msg("parameter %d: %g once, %g twice", (int)i, (double)one[i],
                     (double)two[i]);
    for (int k = 0; k < N_REFINE_KINDS; k++) {
        double sum = 0;
        for (int64_t i = p.st.first[k]; i < p.st.first[k + 1]; i++)
            sum += fabs((double)one[i]);
        assert_true(sum > 0); /* every kind has a gradient */
    }
    mem_free(one);
    mem_free(two);
    probe_close(&p);
    model_close(&m);
    dev_close(&d);
}

/* --- runs --------------------------------------------------------------------------- */

/* struct refine_io over plain memory. */
struct memory_refine {
    struct memory_io m; /* streams, and the saved tensors as a partial of block -1 */
    struct refine_io io;
    int64_t looks, asked, stop_after;
    double last_done;
    bool done_fell, done_jumped;
    size_t saved; /* bytes that the last save was given */
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
    x->io = (struct refine_io){&x->m.io, x, event, stop, save, load};
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
        s = settings();
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
    must(refine_plan(&plan, &m->f.arch, &c.weights, &c.kv, s));
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
    struct refine_settings s = settings();
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
}

/* Rates that ruin the model: the start is kept, bit for bit. */
static void test_guard(void **state)
{
    struct model m, before;
    struct memory_refine x;
    struct refine_result out;
    struct refine_settings s = settings();
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
        struct refine_settings s = settings();
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

/* Stopped at every call of stop() in turn and resumed: the same bytes. */
static void test_resume(void **state)
{
    struct model whole;
    struct memory_refine x;
    struct refine_result want, out;
    struct refine_settings s = settings();
    int stops = 0;
    (void)state;
    s.lr_round = 0.02f;
    model_open(&whole, 1, 4);
    memory_refine_open(&x);
    must(run(&x, &want, &whole, &s, "cpu"));
    memory_io_close(&x.m);
    for (int64_t every = 20; every <= 60; every += 13) {
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
        assert_true(same_gains(&m, &whole));
        assert_true(out.best == want.best && out.best_step == want.best_step);
        memory_io_close(&x.m);
        model_close(&m);
    }
    assert_true(stops > 3);
    model_close(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_batch_adds),
        cmocka_unit_test(test_settings_are_checked),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_guard),
        cmocka_unit_test(test_kept_activations),
        cmocka_unit_test(test_resume),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
