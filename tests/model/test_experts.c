/* SPDX-License-Identifier: MIT
 *
 * A block with a mixture of experts: its backward against finite differences, the cpu device
 * against ref, and what a mixture must give whatever the values. */
#include "tests/model/block_bench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* Checks that steps of check_slope() change no choice of experts, which would be a jump: those of
 * a token that are chosen have logits 0.02 above the others, more than a step moves them. */
static void check_apart(const struct arch *a, int64_t T)
{
    struct bench b;
    bench_open(&b, "ref", *a, T, DT_F32, NULL);
    forward(&b);
    const struct route *r = &b.acts.experts.route;
    const int64_t E = a->n_experts, k = a->n_active;
    for (int64_t t = 0; t < T; t++) {
        const float *p = r->p + t * E;
        const double last = log((double)p[r->expert[t * k + k - 1]]);
        int64_t near = 0;
        for (int64_t e = 0; e < E; e++)
            near += log((double)p[e]) > last - 0.02;
        if (near != k) /* as NaN leaves it */
            fail_msg("%d of %d experts, token %d: a choice could change", (int)k, (int)E,
                     (int)t);
    }
    bench_close(&b);
}

static void slopes_of_experts(void **state)
{
    struct arch a = arch_of(4, 2, 4, 12, 7);
    a.n_experts = 6;
    a.n_active = 2;
    check_apart(&a, 6);
    check_slopes(a, 6);
    a.norm_active = true;
    check_slopes(a, 6);
    a.qk_norm = QK_NORM_HEAD;
    a.n_active = 6; /* all of them: no choice can change */
    check_slopes(a, 4);
    a.n_experts = a.n_active = 1;
    check_slopes(a, 6);
    a.n_experts = 9; /* more than tokens: some have none */
    check_apart(&a, 3);
    check_slopes(a, 3);
}

/* With all experts alike and weights that add up to 1, the mixture is its one MLP. */
static void equal_experts_are_one(void **state)
{
    struct arch one = arch_of(4, 2, 4, 12, 7), mixed = one;
    struct bench x, y;
    mixed.n_experts = 4;
    mixed.n_active = 3;
    mixed.norm_active = true;
    bench_open(&x, "ref", one, 6, DT_F32, NULL);
    bench_open(&y, "ref", mixed, 6, DT_F32, NULL);
    for (int l = LIN_GATE; l <= LIN_DOWN; l++) {
        const struct tensor w = block_weights_lin(&x.w, &one, l);
        const struct tensor all = block_weights_lin(&y.w, &mixed, l);
        for (int64_t e = 0; e < 4; e++) {
            const struct tensor to = tensor_rows(all, e * w.dim[0], w.dim[0]);
            must(dev_copy(y.d, &to, &w));
        }
    }
    must(dev_copy(y.d, &y.w.wqkv, &x.w.wqkv));
    must(dev_copy(y.d, &y.w.wo, &x.w.wo));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        if (x.w.norm[g].data)
            must(dev_copy(y.d, &y.w.norm[g], &x.w.norm[g]));
    must(dev_copy(y.d, &y.x, &x.x));
    forward(&x);
    forward(&y);
    same("out", &x, &x.out, &y, &y.out, 1e-6);
    bench_close(&x);
    bench_close(&y);
}

static void compare_kinds(enum dtype act, double bound)
{
    const struct kv_spec spec = {.method = KV_CHANNEL_TOKEN,
                                 .bits = 8,
                                 .group_size = 8,
                                 .past_only = true,
                                 .window = 3,
                                 .sink = 2};
    struct arch a = arch_of(6, 2, 16, 40, 24);
    a.n_experts = 6;
    a.n_active = 2;
    compare_devices(a, 12, act, NULL, bound);
    a.norm_active = true;
    compare_devices(a, 12, act, &spec, bound);
}

static void cpu_is_ref(void **state)
{
    compare_kinds(DT_F32, 1e-4);
    compare_kinds(DT_BF16, 2e-2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_of_experts),
        cmocka_unit_test(equal_experts_are_one),
        cmocka_unit_test(cpu_is_ref),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
