/* SPDX-License-Identifier: MIT
 *
 * checkop: the MLP's gate, and the rows of a mixture of experts. */
#include "kernels/dev_experts.h"
#include "tests/kernels/checkop.h"

#include <math.h>

struct gate_case {
    int64_t rows, cols;
    enum gate_act act;
    enum dtype y, gu;
    bool in_place;
    enum ck_pattern pattern;
};

static bool begin_case(struct ck *c, const struct gate_case *k)
{
    return ck_begin(c, "%s %ldx%ld, gu %s, y %s%s, %s",
                    k->act == GATE_SILU ? "silu" : "gelu", (long)k->rows, (long)k->cols,
                    dtype_name(k->gu), dtype_name(k->y), k->in_place ? ", in place" : "",
                    ck_pattern_name[k->pattern]);
}

/* Elements after each row of gu: with them rows are aligned for wide accesses to g and u, to g
 * alone, or to none. */
static int64_t gate_pad(const struct gate_case *k)
{
    return k->cols > 100 ? 3 : ck_pad(k->cols, 2);
}

/* Random values larger than the pattern's, to reach both tails of the exponential. */
static struct tensor gate_input(struct ck *c, const struct gate_case *k)
{
    const struct tensor gu =
        ck_in(c, ck_2d(k->gu, k->rows, 2 * k->cols, gate_pad(k)), k->pattern);
    if (k->pattern == PAT_RANDOM)
        for (int64_t i = 0; i < k->rows * k->cols; i++) {
            const int64_t r = i / k->cols, f = i % k->cols;
            ck_set(&gu, r, f, ck_get(&gu, r, f) * (f % 5 == 4 ? 60 : 2));
        }
    return gu;
}

/* z of sigma(z), and its slope, in magnitude. */
static double gate_arg(const struct gate_case *k, double g)
{
    return k->act == GATE_SILU ? g : g * (GELU_A + GELU_B * g * g);
}

static double gate_slope(const struct gate_case *k, double g)
{
    return k->act == GATE_SILU ? 1 : GELU_A + 3 * GELU_B * g * g;
}

/* sigma(z) for a magnitude. Near the end of F32's range its relative error grows without
 * bound, while the absolute error stays below the smallest normal number. GELU's z is rounded,
 * and an error of z is one of sigma's exponential. */
static double sigmoid_magnitude(const struct gate_case *k, double g)
{
    const double z = gate_arg(k, g), rounding = k->act == GATE_SILU ? 0 : fabs(z);
    return (1 + rounding) / (1 + exp(-z)) + 0x1p-126 * 0x1p22;
}

static void one_gate(struct ck *c, const struct gate_case *k)
{
    if (!begin_case(c, k))
        return;
    const struct tensor gu = gate_input(c, k);
    double *mag = ck_doubles(c, k->rows * k->cols);
    for (int64_t i = 0; i < k->rows * k->cols; i++) {
        const double g = ck_get(&gu, i / k->cols, i % k->cols);
        const double u = ck_get(&gu, i / k->cols, k->cols + i % k->cols);
        mag[i] = fabs(g * u) * sigmoid_magnitude(k, g);
    }
    const struct ck_out y =
        ck_poisoned(c, ck_2d(k->y, k->rows, k->cols, ck_pad(k->cols, 5)));
    CK_EACH(c, s) ck_ok(c, dev_gate(c->dev[s], k->act, &y.side[s], &gu));
    ck_close(c, "y", &y, mag, 4);
    ck_end(c);
}

static void one_gate_bwd(struct ck *c, const struct gate_case *k)
{
    if (!begin_case(c, k))
        return;
    const int64_t F = k->cols;
    const struct tensor gu = gate_input(c, k);
    const struct tensor dy = ck_in(c, ck_2d(k->y, k->rows, F, ck_pad(F, 1)), PAT_RANDOM);
    const struct ck_out dgu =
        k->in_place ? ck_copies(c, &gu, gate_pad(k))
                    : ck_poisoned(c, ck_2d(k->y, k->rows, 2 * F, gate_pad(k)));
    double *mag = ck_doubles(c, 2 * k->rows * F);
    for (int64_t r = 0; r < k->rows; r++)
        for (int64_t f = 0; f < F; f++) {
            const double g = ck_get(&gu, r, f), u = ck_get(&gu, r, F + f);
            const double d = fabs(ck_get(&dy, r, f)), sig = sigmoid_magnitude(k, g);
            mag[2 * r * F + f] = d * fabs(u) * sig * (1 + fabs(g) * gate_slope(k, g));
            mag[(2 * r + 1) * F + f] = d * fabs(g) * sig;
        }
    CK_EACH(c, s)
    ck_ok(c, dev_gate_bwd(c->dev[s], k->act, &dgu.side[s], &dy,
                          k->in_place ? &dgu.side[s] : &gu));
    ck_close(c, "dgu", &dgu, mag, 4);
    ck_end(c);
}

static void each(struct ck *c, void (*one)(struct ck *c, const struct gate_case *k),
                 bool in_place)
{
    static const int64_t sizes[][2] = {{1, 1}, {1, 31}, {4, 16}, {3, 129}};
    if (c->bench) {
        one(c,
            &(struct gate_case){256, 2048, GATE_SILU, DT_BF16, DT_BF16, false, PAT_RANDOM});
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 8; v++) {
                struct gate_case k = {sizes[i][0],
                                      sizes[i][1],
                                      v & 4 ? GATE_GELU : GATE_SILU,
                                      v & 1 ? DT_BF16 : DT_F32,
                                      v & 2 ? DT_BF16 : DT_F32,
                                      false,
                                      (enum ck_pattern)p};
                one(c, &k);
                k.in_place = in_place;
                if (in_place)
                    one(c, &k);
            }
}

static void test_gate(struct ck *c)
{
    each(c, one_gate, false);
}

static void test_gate_bwd(struct ck *c)
{
    each(c, one_gate_bwd, true);
}

struct gather_case {
    int64_t rows, choices, from, cols; /* R, J, N, C */
    enum dtype y, x;
    bool weighted; /* dev_gather only */
    enum ck_pattern pattern;
};

/* Rows of x for each row, among them the first, the last, and one twice. */
static struct tensor gather_index(struct ck *c, const struct gather_case *k)
{
    struct tensor index = ck_in_empty(c, ck_2d(DT_F32, k->rows, k->choices, 0));
    int32_t *at = index.data;
    index.dtype = DT_I32;
    for (int64_t i = 0; i < k->rows * k->choices; i++)
        at[i] = (int32_t)(i % 3 ? (int64_t)rng_below(&c->rng, (uint64_t)k->from)
                                : i % 2 * (k->from - 1));
    return index;
}

static bool begin_gather(struct ck *c, const struct gather_case *k)
{
    return ck_begin(c, "%ldx%ld from %ldx%ld, x %s, y %s%s, %s", (long)k->rows,
                    (long)k->choices, (long)k->from, (long)k->cols, dtype_name(k->x),
                    dtype_name(k->y), k->weighted ? ", weighted" : "",
                    ck_pattern_name[k->pattern]);
}

static void one_gather(struct ck *c, const struct gather_case *k)
{
    if (!begin_gather(c, k))
        return;
    const struct tensor x =
        ck_in(c, ck_2d(k->x, k->from, k->cols, ck_pad(k->cols, 3)), k->pattern);
    const struct tensor index = gather_index(c, k);
    const struct tensor weight =
        ck_in(c, ck_2d(DT_F32, k->rows, k->choices, 0), PAT_RANDOM);
    double *mag = ck_doubles(c, k->rows * k->cols);
    for (int64_t i = 0; i < k->rows * k->choices; i++)
        for (int64_t col = 0; col < k->cols; col++)
            mag[i / k->choices * k->cols + col] +=
                fabs(ck_get(&x, ((const int32_t *)index.data)[i], col) *
                     (k->weighted ? (double)((const float *)weight.data)[i] : 1));
    const struct ck_out y =
        ck_poisoned(c, ck_2d(k->y, k->rows, k->cols, ck_pad(k->cols, 5)));
    CK_EACH(c, s)
    ck_ok(c, dev_gather(c->dev[s], &y.side[s], &x, &index, k->weighted ? &weight : NULL));
    ck_close(c, "y", &y, mag, k->choices);
    ck_end(c);
}

static void one_gather_dot(struct ck *c, const struct gather_case *k)
{
    if (k->weighted || !begin_gather(c, k))
        return;
    const struct tensor x = ck_in(c, ck_2d(k->x, k->from, k->cols, 3), k->pattern);
    const struct tensor dy = ck_in(c, ck_2d(k->y, k->rows, k->cols, 1), PAT_RANDOM);
    const struct tensor index = gather_index(c, k);
    double *mag = ck_doubles(c, k->rows * k->choices);
    for (int64_t i = 0; i < k->rows * k->choices; i++)
        for (int64_t col = 0; col < k->cols; col++)
            mag[i] += fabs(ck_get(&x, ((const int32_t *)index.data)[i], col) *
                           ck_get(&dy, i / k->choices, col));
    const struct ck_out dw = ck_poisoned(c, ck_2d(DT_F32, k->rows, k->choices, 0));
    CK_EACH(c, s) ck_ok(c, dev_gather_dot(c->dev[s], &dw.side[s], &dy, &x, &index));
    ck_close(c, "dw", &dw, mag, k->cols);
    ck_end(c);
}

static void each_gather(struct ck *c,
                        void (*one)(struct ck *c, const struct gather_case *k))
{
    static const int64_t sizes[][4] = {
        {1, 1, 1, 1}, {5, 1, 3, 31}, {4, 8, 32, 32}, {7, 2, 5, 129}};
    if (c->bench) {
        one(c,
            &(struct gather_case){256, 8, 2048, 2048, DT_BF16, DT_BF16, false, PAT_RANDOM});
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
        for (int p = 0; p < N_PATTERNS; p++)
            for (int v = 0; v < 8; v++)
                one(c, &(struct gather_case){sizes[i][0], sizes[i][1], sizes[i][2],
                                             sizes[i][3], v & 1 ? DT_BF16 : DT_F32,
                                             v & 2 ? DT_BF16 : DT_F32, v & 4,
                                             (enum ck_pattern)p});
}

static void test_gather(struct ck *c)
{
    each_gather(c, one_gather);
}

static void test_gather_dot(struct ck *c)
{
    each_gather(c, one_gather_dot);
}

const struct ck_test ck_mlp_tests[] = {{"gate", test_gate},
                                       {"gate_bwd", test_gate_bwd},
                                       {"gather", test_gather},
                                       {"gather_dot", test_gather_dot},
                                       {NULL, NULL}};
