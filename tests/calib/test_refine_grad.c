/* SPDX-License-Identifier: MIT
 *
 * The loss of refinement and its gradients through the whole quantized model. */
#include "calib/model/ends.h"
#include "calib/refine/distill.h"
#include "calib/refine/student.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/refine_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* A student, the head, and a teacher's states that are not its own. */
struct probe {
    struct share share;
    struct student st;
    struct ends_source ends; /* the student's */
    struct distiller head;
    struct tensor teacher, dx[2];
    const int32_t *ids;
};

/* head_bits: of the student's embedding and head, 16: the teacher's. */
static void probe_open(struct probe *p, struct model *m, struct dev *d, int head_bits)
{
    const struct refine_settings s = refine_settings();
    const int64_t D = m->f.arch.d_model;
    struct rng r;
    rng_seed(&r, 12);
    const struct model_source *from = &m->f.source;
    must(ends_source_open(&p->ends, from, (struct lin_format){.bits = head_bits}, 1));
    const struct model_source *served = head_bits < 16 ? &p->ends.source : from;
    must(share_open(&p->share, NULL, s.batch, s.batch, "refine.batch"));
    must(student_open(&p->st, d, &m->f.arch, served, m->calibrated.block, &s, &p->share));
    must(distiller_open(&p->head, d, &m->f.arch, served, from, T, DT_F32));
    float *x = draw(&r, T * D, 1, 0);
    p->teacher = tensor_2d(to_dev(d, x, T * D, DT_F32), DT_F32, T, D);
    for (int i = 0; i < 2; i++)
        p->dx[i] = dev_2d(d, DT_F32, T, D);
    p->ids = m->ids;
    mem_free(x);
}

static void probe_close(struct probe *p)
{
    dev_free(p->st.dev, p->teacher.data);
    for (int i = 0; i < 2; i++)
        dev_free(p->st.dev, p->dx[i].data);
    distiller_close(&p->head);
    student_close(&p->st);
    share_close(&p->share);
    ends_source_close(&p->ends);
}

/* 0.5 KL + 0.25 CE; grads: also into st.g. */
static double loss_of(struct probe *p, bool grads)
{
    double loss[2];
    const struct distill_pair pair = {student_state(&p->st, 0, LAYERS), &p->st.final_norm,
                                      &p->teacher, p->ids};
    const struct distill_grads g = {p->dx, &p->st.dfinal, 0.5f, 0.25f, 1};
    must(student_forward(&p->st, &p->ids, 1));
    must(distill_loss(&p->head, loss, &pair, grads ? &g : NULL));
    if (grads)
        must(student_backward(&p->st, p->dx, 1));
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

static void check_gradients(int which, int head_bits)
{
    struct model m;
    struct probe p;
    struct dev *d = open_dev("cpu"); /* parameters are then in the host's memory */
    model_open(&m, which, 16);
    probe_open(&p, &m, d, head_bits);
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
    check_gradients(0, 16);
    check_gradients(1, 16);
    check_gradients(0, 3);
    check_gradients(1, 3);
}

/* The gradients of windows ids[n] in one batch, on the host. */
static float *batch_gradients(struct probe *p, const int32_t *const *ids, int64_t n)
{
    double loss[2];
    must(student_forward(&p->st, ids, n));
    for (int64_t i = 0; i < n; i++) {
        struct student_grads one;
        must(student_begin_window(&p->st, &one, LAYERS));
        const struct distill_pair pair = {student_state(&p->st, i, LAYERS),
                                          &p->st.final_norm, &p->teacher, ids[i]};
        const struct distill_grads g = {&p->dx[i], &one.dnorm[0], 0.5f, 0.25f, 1};
        must(distill_loss(&p->head, loss, &pair, &g));
        must(student_end_window(&p->st, LAYERS, i));
    }
    must(student_backward(&p->st, p->dx, n));
    return to_host(p->st.dev, &p->st.g);
}

/* The gradients of a batch are the sums of those of its windows, bit for bit. */
static void test_batch_adds(void **state)
{
    struct model m;
    struct probe p;
    struct dev *d = open_dev("cpu");
    (void)state;
    model_open(&m, 1, 4);
    probe_open(&p, &m, d, 16);
    const int32_t *const ids[] = {p.ids, p.ids + T};
    float *first = batch_gradients(&p, ids, 1), *second = batch_gradients(&p, ids + 1, 1);
    float *both = batch_gradients(&p, ids, 2);
    for (int64_t i = 0; i < tensor_count(&p.st.g); i++)
        if (!(both[i] == first[i] + second[i]))
            fail_msg("parameter %d: %g and %g, together %g", (int)i, (double)first[i],
                     (double)second[i], (double)both[i]);
    for (int k = 0; k < N_REFINE_KINDS; k++) {
        double sum = 0;
        for (int64_t i = p.st.first[k]; i < p.st.first[k + 1]; i++)
            sum += fabs((double)first[i]);
        assert_true(sum > 0); /* every kind has a gradient */
    }
    mem_free(first);
    mem_free(second);
    mem_free(both);
    probe_close(&p);
    model_close(&m);
    dev_close(&d);
}

/* mean KL(p || q) of the logits y head^T, in double precision. */
static double divergence(const struct host_mat *head, const float *teacher_y,
                         const struct host_mat *student_head, const float *student_y)
{
    const struct host_mat *const heads[] = {head, student_head};
    const float *const ys[] = {teacher_y, student_y};
    double logit[2][256], sum = 0;
    assert_in_range(head->rows, 2, 256);
    for (int64_t t = 0; t + 1 < T; t++) {
        for (int m = 0; m < 2; m++) {
            double total = 0;
            for (int64_t v = 0; v < head->rows; v++) {
                const float *w = (const float *)heads[m]->data + v * head->cols;
                logit[m][v] = 0;
                for (int64_t c = 0; c < head->cols; c++)
                    logit[m][v] += (double)w[c] * (double)ys[m][t * head->cols + c];
                total += exp(logit[m][v]);
            }
            for (int64_t v = 0; v < head->rows; v++)
                logit[m][v] -= log(total);
        }
        for (int64_t v = 0; v < head->rows; v++)
            sum += exp(logit[0][v]) * (logit[0][v] - logit[1][v]);
    }
    return sum / (T - 1);
}

/* The student's states meet its own quantized head, the teacher's the head of the checkpoint. */
static void test_two_heads(void **state)
{
    struct model m;
    struct probe p;
    struct dev *d = open_dev("cpu");
    struct host_mat embed, norm, head, student_head;
    double loss[2];
    (void)state;
    model_open(&m, 1, 16);
    probe_open(&p, &m, d, 3);
    must(student_forward(&p.st, &p.ids, 1));
    const struct distill_pair pair = {student_state(&p.st, 0, LAYERS), &p.st.final_norm,
                                      &p.teacher, p.ids};
    must(distill_loss(&p.head, loss, &pair, NULL));
    must(m.f.source.ends(m.f.source.ctx, &embed, &norm, &head));
    must(p.ends.source.ends(p.ends.source.ctx, &embed, &norm, &student_head));
    float *y = to_host(d, &p.head.y), *teacher = to_host(d, &p.teacher);
    const double want = divergence(&head, teacher, &student_head, y);
    assert_true(fabs(loss[0] - want) <= 1e-5 * want);
    assert_true(fabs(divergence(&head, teacher, &head, y) - want) > 1e-3 * want);
    mem_free(y);
    mem_free(teacher);
    probe_close(&p);
    model_close(&m);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_batch_adds),
        cmocka_unit_test(test_two_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
