/* SPDX-License-Identifier: MIT
 *
 * checkop: rmsnorm and its backward. */
#include "tests/kernels/checkop.h"

#include <math.h>

struct norm_case {
    struct ck_shape x;
    enum dtype y, add; /* add DT_OTHER: none */
    enum ck_pattern pattern;
    bool accumulate, in_place;
};

static int64_t width(const struct ck_shape *s)
{
    return s->dim[s->n_dims - 1];
}

static int64_t norm_rows(const struct ck_shape *s)
{
    return s->n_dims == 3 ? s->dim[0] * s->dim[1] : s->dim[0];
}

static struct ck_shape of_type(struct ck_shape s, enum dtype t, int64_t pad)
{
    s.dtype = t;
    s.pad = pad;
    return s;
}

static bool begin_case(struct ck *c, const struct norm_case *n)
{
    return ck_begin(c, "%s %ld rows of %ld, pad %ld, other %s%s%s%s, %s",
                    dtype_name(n->x.dtype), (long)norm_rows(&n->x), (long)width(&n->x),
                    (long)n->x.pad, dtype_name(n->y), n->add == DT_OTHER ? "" : ", added",
                    n->accumulate ? ", +=" : "", n->in_place ? ", in place" : "",
                    ck_pattern_name[n->pattern]);
}

static void one_rmsnorm(struct ck *c, const struct norm_case *n)
{
    if (!begin_case(c, n))
        return;
    const int64_t C = width(&n->x), R = norm_rows(&n->x);
    const bool with_add = n->add != DT_OTHER;
    const struct tensor x = ck_in(c, n->x, n->pattern);
    const struct tensor add =
        with_add ? ck_in(c, of_type(n->x, n->add, 1), n->pattern) : (struct tensor){0};
    const struct tensor g = ck_in(c, ck_1d(C), PAT_RANDOM);
    const struct ck_out h = ck_poisoned(c, of_type(n->x, DT_F32, 2));
    const struct ck_out s_out = ck_poisoned(c, ck_1d(R));
    const struct ck_out y =
        n->in_place ? ck_copies(c, &x, n->x.pad) : ck_poisoned(c, of_type(n->x, n->y, 3));
    CK_EACH(c, s)
    {
        const struct rmsnorm_inputs in = {.x = n->in_place ? &y.side[s] : &x,
                                          .add = with_add ? &add : NULL,
                                          .g = &g,
                                          .eps = 1e-5f};
        ck_ok(c, dev_rmsnorm(c->dev[s], &y.side[s], &s_out.side[s],
                             with_add ? &h.side[s] : NULL, &in));
    }
    if (with_add) {
        double *mag = ck_doubles(c, R * C);
        for (int64_t i = 0; i < R * C; i++)
            mag[i] = fabs(ck_get(&x, i / C, i % C)) + fabs(ck_get(&add, i / C, i % C));
        ck_close(c, "h", &h, mag, 1);
        /* y depends on h, whose relative error is that of a sum with cancellation. */
        for (int64_t i = 0; i < R * C; i++)
            mag[i] *= fabs(ck_get(&s_out.side[0], 0, i / C) * ck_get(&g, 0, i % C));
        ck_close(c, "y", &y, mag, C);
    } else {
        ck_close(c, "y", &y, NULL, C);
    }
    ck_close(c, "s", &s_out, NULL, C);
    ck_end(c);
}

/* |terms| of s (g dy - x s^2 / C sum g dy x). */
static double *bwd_magnitude(struct ck *c, const struct tensor *dy, const struct tensor *x,
                             const struct tensor *s, const struct tensor *g,
                             const struct tensor *start)
{
    const int64_t C = tensor_count(g), R = tensor_count(s), per = ck_cols(x) / C;
    double *mag = ck_doubles(c, R * C);
    for (int64_t r = 0; r < R; r++) {
        const int64_t row = r / per, at = r % per * C;
        const double s_r = ck_get(s, 0, r);
        double dot = 0;
        for (int64_t k = 0; k < C; k++)
            dot += fabs(ck_get(g, 0, k) * ck_get(dy, row, at + k) * ck_get(x, row, at + k));
        for (int64_t k = 0; k < C; k++)
            mag[r * C + k] =
                s_r * (fabs(ck_get(g, 0, k) * ck_get(dy, row, at + k)) +
                       fabs(ck_get(x, row, at + k)) * s_r * s_r * dot / (double)C) +
                (start ? fabs(ck_get(start, row, at + k)) : 0);
    }
    return mag;
}

static void one_rmsnorm_bwd(struct ck *c, const struct norm_case *n)
{
    if (!begin_case(c, n))
        return;
    const int64_t C = width(&n->x), R = norm_rows(&n->x);
    const struct tensor x = ck_in(c, n->x, n->pattern);
    const struct tensor dy = ck_in(c, of_type(n->x, n->y, 1), n->pattern);
    const struct tensor g = ck_in(c, ck_1d(C), PAT_RANDOM);
    const struct tensor s_in = ck_in_empty(c, ck_1d(R));
    for (int64_t r = 0; r < R; r++) {
        const int64_t per = ck_cols(&x) / C;
        double sum = 0;
        for (int64_t k = 0; k < C; k++)
            sum += pow(ck_get(&x, r / per, r % per * C + k), 2);
        ck_set(&s_in, 0, r, 1 / sqrt(sum / (double)C + 1e-5));
    }
    struct ck_out dx = ck_poisoned(c, of_type(n->x, n->y, 2));
    if (n->in_place)
        dx = ck_copies(c, &dy, 1);
    else if (n->accumulate)
        dx = ck_twins(c, of_type(n->x, n->y, 2), PAT_RANDOM);
    const double *mag =
        bwd_magnitude(c, &dy, &x, &s_in, &g, n->accumulate ? &dx.side[0] : NULL);
    CK_EACH(c, s)
    {
        const struct rmsnorm_grads grads = {.dx = &dx.side[s], .accumulate = n->accumulate};
        ck_ok(c, dev_rmsnorm_bwd(c->dev[s], &grads, n->in_place ? &dx.side[s] : &dy, &x,
                                 &s_in, &g));
    }
    ck_close(c, "dx", &dx, mag, C);
    ck_end(c);
}

/* With a copy of dx, in dy's place: it has the bits of dev_copy(), and dx those without one. */
static void one_rmsnorm_copy(struct ck *c, const struct norm_case *n)
{
    if (!ck_begin(c, "%ld rows of %ld, pad %ld, a copy in %s%s, %s", (long)norm_rows(&n->x),
                  (long)width(&n->x), (long)n->x.pad, dtype_name(n->y),
                  n->accumulate ? ", +=" : "", ck_pattern_name[n->pattern]))
        return;
    const int64_t C = width(&n->x), R = norm_rows(&n->x);
    const struct tensor x = ck_in(c, n->x, n->pattern);
    const struct tensor dy = ck_in(c, of_type(n->x, n->y, 1), n->pattern);
    const struct tensor g = ck_in(c, ck_1d(C), PAT_RANDOM);
    const struct tensor s_in = ck_in_range(c, ck_1d(R), 0.5, 2);
    const struct ck_out copied = ck_copies(c, &dy, 3);
    const struct ck_out want = ck_poisoned(c, of_type(n->x, n->y, 2));
    const struct ck_out dx = ck_twins(c, of_type(n->x, DT_F32, 2), PAT_RANDOM);
    const struct ck_out plain = ck_copies(c, &dx.side[0], 4);
    CK_EACH(c, s)
    {
        struct dev *d = c->dev[s];
        const struct rmsnorm_grads with = {&dx.side[s], &copied.side[s], n->accumulate},
                                   without = {&plain.side[s], NULL, n->accumulate};
        ck_ok(c, dev_rmsnorm_bwd(d, &with, &copied.side[s], &x, &s_in, &g));
        ck_ok(c, dev_rmsnorm_bwd(d, &without, &dy, &x, &s_in, &g));
        ck_ok(c, dev_copy(d, &want.side[s], &plain.side[s]));
    }
    for (int s = 0; s < N_SIDES && !c->bench; s++) {
        ck_bits(c, "dx", &(struct ck_out){{plain.side[s], dx.side[s]}});
        ck_bits(c, "copy", &(struct ck_out){{want.side[s], copied.side[s]}});
    }
    ck_end(c);
}

static struct ck_shape shape_at(size_t i, enum dtype t)
{
    const struct ck_shape shapes[] = {ck_2d(t, 1, 1, 0),    ck_2d(t, 1, 33, 0),
                                      ck_2d(t, 5, 16, 7),   ck_2d(t, 5, 577, 0),
                                      ck_3d(t, 3, 2, 8, 5), ck_3d(t, 4, 3, 80, 0)};
    return shapes[i];
}

static void test_rmsnorm(struct ck *c)
{
    if (c->bench) {
        one_rmsnorm(c, &(struct norm_case){ck_2d(DT_F32, 256, 2048, 0), DT_BF16, DT_BF16,
                                           PAT_RANDOM, false, false});
        return;
    }
    for (size_t i = 0; i < 6; i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 4; v++) {
                const enum dtype ty = v & 1 ? DT_BF16 : DT_F32,
                                 tx = v & 2 ? DT_BF16 : DT_F32;
                struct norm_case n = {shape_at(i, i < 4 ? DT_F32 : tx),
                                      ty,
                                      DT_OTHER,
                                      (enum ck_pattern)p,
                                      false,
                                      false};
                one_rmsnorm(c, &n);
                n.in_place = n.x.dtype == ty;
                if (n.in_place)
                    one_rmsnorm(c, &n);
                n.in_place = false;
                n.add = tx;
                if (i < 4)
                    one_rmsnorm(c, &n);
            }
}

static void test_rmsnorm_bwd(struct ck *c)
{
    if (c->bench) {
        one_rmsnorm_bwd(c, &(struct norm_case){ck_2d(DT_F32, 256, 2048, 0), DT_F32,
                                               DT_OTHER, PAT_RANDOM, true, false});
        return;
    }
    for (size_t i = 0; i < 6; i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 12; v++)
                one_rmsnorm_bwd(
                    c, &(struct norm_case){shape_at(i, v & 1 ? DT_BF16 : DT_F32),
                                           v & 2 ? DT_BF16 : DT_F32, DT_OTHER,
                                           (enum ck_pattern)p, v / 4 == 1, v / 4 == 2});
    for (size_t i = 0; i < 6; i++)
        for (int v = 0; v < 4; v++)
            one_rmsnorm_copy(c, &(struct norm_case){shape_at(i, DT_F32),
                                                    v & 1 ? DT_BF16 : DT_F32, DT_OTHER,
                                                    PAT_RANDOM, v / 2, false});
}

const struct ck_test ck_norm_tests[] = {
    {"rmsnorm", test_rmsnorm}, {"rmsnorm_bwd", test_rmsnorm_bwd}, {NULL, NULL}};
