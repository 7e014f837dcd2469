/* SPDX-License-Identifier: MIT
 *
 * The cpu device beyond parity (checkop): repeatable bits, what may depend on the number of
 * threads, and the description of the chosen kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "kernels/attn_memory.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Three blocks of tiles and a remainder, one kv head for three query heads. */
#define T 200
#define H 3
#define D 40
#define N (T * H * D)

enum { Q, K, V, KQ, VQ, DO, N_IN, O = N_IN, DQ, DK, DV, DKQ, DVQ, N_TENSORS };

struct attention {
    struct dev *dev;
    struct tensor t[N_TENSORS], lse;
};

static int64_t heads_of(int i)
{
    return i == Q || i == DO || i == O || i == DQ ? H : 1;
}

static void setup(struct attention *a, int threads, enum dtype type)
{
    static float host[N];
    struct rng rng;
    assert_int_equal(dev_open(&a->dev, &(struct dev_settings){"cpu", threads}), OK);
    rng_seed(&rng, 7);
    for (int i = 0; i < N_TENSORS; i++) {
        void *p, *f;
        const int64_t n = T * heads_of(i) * D;
        assert_int_equal(dev_alloc(a->dev, &p, N * 4), OK);
        assert_int_equal(dev_alloc(a->dev, &f, N * 4), OK);
        a->t[i] = tensor_3d(p, type, T, heads_of(i), D);
        for (int64_t k = 0; k < n; k++)
            host[k] = i < N_IN ? (float)rng_normal(&rng) : 0;
        const struct tensor from = tensor_3d(f, DT_F32, T, heads_of(i), D);
        assert_int_equal(dev_upload(a->dev, f, host, (size_t)n * 4), OK);
        assert_int_equal(dev_copy(a->dev, &a->t[i], &from), OK);
        dev_free(a->dev, f);
    }
    void *p;
    assert_int_equal(dev_alloc(a->dev, &p, H * T * 4), OK);
    a->lse = tensor_2d(p, DT_F32, H, T);
}

static void teardown(struct attention *a)
{
    for (int i = 0; i < N_TENSORS; i++)
        dev_free(a->dev, a->t[i].data);
    dev_free(a->dev, a->lse.data);
    dev_close(&a->dev);
}

static void run(struct attention *a)
{
    const struct attn_mask mask = {.window = 3, .sink = 2};
    struct tensor *t = a->t;
    const struct attn_inputs in = {.q = &t[Q],
                                   .k = &t[K],
                                   .v = &t[V],
                                   .kq = &t[KQ],
                                   .vq = &t[VQ],
                                   .mask = &mask,
                                   .scale = 1 / sqrtf(D)};
    const struct attn_grads grads = {
        .dq = &t[DQ], .dk = &t[DK], .dv = &t[DV], .dkq = &t[DKQ], .dvq = &t[DVQ]};
    assert_int_equal(dev_attn(a->dev, &t[O], &a->lse, &in), OK);
    assert_int_equal(dev_attn_bwd(a->dev, &grads, &t[DO], &t[O], &a->lse, &in), OK);
}

static bool same_bits(const struct tensor *a, const struct tensor *b)
{
    return !memcmp(a->data, b->data, (size_t)tensor_count(a) * dtype_bytes(a->dtype));
}

/* Any free thread takes the next chunk; results must not depend on it. */
static void test_repeats(void **state)
{
    for (int type = 0; type < 2; type++) {
        struct attention a, b;
        setup(&a, 3, type ? DT_BF16 : DT_F32);
        setup(&b, 3, type ? DT_BF16 : DT_F32);
        run(&a);
        for (int round = 0; round < 3; round++) {
            run(&b);
            for (int i = O; i < N_TENSORS; i++)
                assert_true(same_bits(&a.t[i], &b.t[i]));
            assert_true(same_bits(&a.lse, &b.lse));
        }
        teardown(&a);
        teardown(&b);
    }
}

/* Only dq sums over chunks of several threads; every other gradient is written by one. */
static void test_threads(void **state)
{
    struct attention one, many;
    setup(&one, 1, DT_F32);
    setup(&many, 5, DT_F32);
    run(&one);
    run(&many);
    for (int i = O; i < N_TENSORS; i++)
        assert_true(i == DQ || same_bits(&one.t[i], &many.t[i]));
    const float *a = one.t[DQ].data, *b = many.t[DQ].data;
    bool differs = false;
    for (int i = 0; i < N; i++) {
        const bool pass = fabsf(a[i] - b[i]) <= 1e-5f;
        assert_true(pass);
        differs = differs || a[i] != b[i];
    }
    assert_true(differs); /* otherwise the work was not split, and the test shows nothing */
    teardown(&one);
    teardown(&many);
}

/* Writes the values of `from` [T,heads,D] as tensor `to`. */
static void put(struct attention *a, int to, const float *from)
{
    const size_t bytes = (size_t)tensor_count(&a->t[to]) * sizeof(float);
    void *p;
    assert_int_equal(dev_alloc(a->dev, &p, bytes), OK);
    assert_int_equal(dev_upload(a->dev, p, from, bytes), OK);
    const struct tensor f = tensor_3d(p, DT_F32, T, heads_of(to), D);
    assert_int_equal(dev_copy(a->dev, &a->t[to], &f), OK);
    dev_free(a->dev, p);
}

static float value(const struct tensor *t, int64_t i)
{
    return t->dtype == DT_F32 ? ((const float *)t->data)[i]
                              : bf16_to_f32(((const uint16_t *)t->data)[i]);
}

/* Key 0 lies 50 nats below the others, key 1 lies 35 below. No query before the third has a
 * gradient, so a value's gradient is what later queries see of it: nothing of the first, whose
 * probability is below 2^-64, and something of the second. */
static void check_negligible_probabilities(enum dtype type)
{
    static float q[N], k[T * D], dout[N];
    struct attention a;
    setup(&a, 2, type);
    for (int i = 0; i < T * H; i++)
        q[i * D] = sqrtf(D);
    k[0] = -50;
    k[D] = -35;
    for (int i = 2 * H * D; i < N; i++)
        dout[i] = 1;
    put(&a, Q, q);
    put(&a, K, k);
    put(&a, DO, dout);
    struct tensor *t = a.t;
    const struct attn_inputs in = {
        .q = &t[Q], .k = &t[K], .v = &t[V], .scale = 1 / sqrtf(D)};
    const struct attn_grads grads = {.dq = &t[DQ], .dk = &t[DK], .dv = &t[DV]};
    assert_int_equal(dev_attn(a.dev, &t[O], &a.lse, &in), OK);
    assert_int_equal(dev_attn_bwd(a.dev, &grads, &t[DO], &t[O], &a.lse, &in), OK);
    for (int c = 0; c < D; c++) {
        const float first = value(&t[DV], c), second = value(&t[DV], D + c);
        assert_true(first == 0);
        assert_true(second > 0 && second < 1e-12f);
    }
    teardown(&a);
}

static void test_negligible_probabilities_are_zero(void **state)
{
    for (enum isa isa = ISA_PLAIN; isa < N_ISAS; isa++) {
        if (!cpu_has_isa(isa))
            continue;
        cpu_limit_isa(isa);
        check_negligible_probabilities(DT_F32);
        check_negligible_probabilities(DT_BF16);
    }
    cpu_limit_isa(N_ISAS);
}

static void test_products_repeat(void **state)
{
    enum { M = 130, P = 200 };
    struct attention a;
    setup(&a, 3, DT_BF16);
    float *c[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(mem_alloc(&c[i], M * P, sizeof(float)), OK);
    for (int kind = GEMM_NT; kind <= GEMM_TN; kind++) {
        const struct tensor x = kind == GEMM_TN ? tensor_2d(a.t[Q].data, DT_BF16, 64, M)
                                                : tensor_2d(a.t[Q].data, DT_BF16, M, 64);
        const struct tensor y = kind == GEMM_NT ? tensor_2d(a.t[DO].data, DT_BF16, P, 64)
                                                : tensor_2d(a.t[DO].data, DT_BF16, 64, P);
        for (int round = 0; round < 4; round++) {
            const struct tensor z = tensor_2d(c[round > 0], DT_F32, M, P);
            assert_int_equal(dev_gemm(a.dev, (enum gemm_kind)kind, &z, &x, &y, false), OK);
            assert_true(!round || !memcmp(c[0], c[1], sizeof(float) * M * P));
        }
    }
    mem_free(c[0]);
    mem_free(c[1]);
    teardown(&a);
}

/* The planned bytes are those that forward and backward allocated, to the byte, on every
 * instruction set and on the one that a device chooses, with threads that share one key-value
 * head and with one thread. */
static void test_planned_memory_is_allocated(void **state)
{
    const int threads[] = {1, 2, 5, 16};
    (void)state;
    for (enum isa isa = ISA_PLAIN; isa <= N_ISAS; isa++)
        for (int which = 0; which < 8 && (isa == N_ISAS || cpu_has_isa(isa)); which++) {
            struct attention a;
            const enum dtype type = which % 2 ? DT_BF16 : DT_F32;
            const struct attn_shape shape = {T, H, 1, D, type};
            cpu_limit_isa(isa);
            setup(&a, threads[which / 2], type);
            run(&a);
            const struct cpu *cpu = a.dev->priv;
            size_t used = 0;
            for (int slot = 0; slot < N_SLOTS; slot++)
                used += cpu->slot_bytes[slot];
            assert_true(used > 0);
            assert_int_equal(attn_inside_bytes(&shape, threads[which / 2]), used);
            teardown(&a);
        }
    cpu_limit_isa(N_ISAS);
}

static void test_about(void **state)
{
    for (enum isa isa = ISA_PLAIN; isa < N_ISAS; isa++) {
        struct dev *d;
        if (!cpu_has_isa(isa))
            continue;
        cpu_limit_isa(isa);
        assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 2}), OK);
        assert_non_null(strstr(dev_about(d), "bf16 GEMM: "));
        assert_non_null(strstr(dev_about(d), "; f32 GEMM: "));
        assert_non_null(strstr(dev_about(d), "threads: 2"));
        assert_int_equal(dev_threads(d), 2);
        if (isa != ISA_AVX512BF16)
            assert_int_equal(dev_preferred_act(d), DT_F32);
        dev_close(&d);
        assert_null(d);
    }
    cpu_limit_isa(N_ISAS);
}

/* Intel's processors from Sapphire Rapids on, family 6 and model 143, are slow with pairs of BF16;
 * AMD's are not. Of others this says nothing. */
static void test_where_pairs_pay(void **state)
{
    char line[256], maker[32] = "";
    int model = 0, family = 0;
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof(line), f) && line[0] != '\n') {
        sscanf(line, "vendor_id : %31s", maker);
        sscanf(line, "cpu family : %d", &family);
        sscanf(line, "model : %d", &model);
    }
    if (f)
        fclose(f);
    const bool slow = !strcmp(maker, "GenuineIntel") && family == 6 && model >= 143;
    if (!slow && strcmp(maker, "AuthenticAMD"))
        skip();
    assert_int_equal(isa_bf16_pays(), !slow);
}

/* BF16 is preferred only where its products are faster than F32's, and is otherwise multiplied in
 * F32. A limit uses its set all the same, so that its kernels can be tested. */
static void test_preferred_type(void **state)
{
    const bool pairs = cpu_has_isa(ISA_AVX512BF16);
    const bool fast = onednn_has_tiles() || (pairs && isa_bf16_pays());
    struct dev *d;
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 1}), OK);
    assert_int_equal(dev_preferred_act(d), fast ? DT_BF16 : DT_F32);
    assert_int_equal(!strstr(dev_about(d), "bf16 GEMM: as f32"), fast);
    assert_int_equal(!!strstr(dev_about(d), "faster here"), pairs && !fast);
    dev_close(&d);
    if (!pairs)
        return;
    cpu_limit_isa(ISA_AVX512BF16);
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 1}), OK);
    assert_int_equal(dev_preferred_act(d), DT_BF16);
    assert_non_null(strstr(dev_about(d), "AVX512-BF16"));
    dev_close(&d);
    cpu_limit_isa(N_ISAS);
}

/* Without products of BF16, the operands of one are widened to F32, and so is a result of BF16:
 * what the memory plan counts. */
static void test_memory_of_a_widened_product(void **state)
{
    enum { ROWS = 5, OUT = 7, IN = 11 };
    static uint16_t x[ROWS * IN], w[OUT * IN], y[ROWS * OUT];
    const struct tensor a = tensor_2d(x, DT_BF16, ROWS, IN),
                        b = tensor_2d(w, DT_BF16, OUT, IN),
                        c = tensor_2d(y, DT_BF16, ROWS, OUT);
    struct dev *d;
    cpu_limit_isa(ISA_PLAIN);
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 1}), OK);
    const bool widens = dev_widens(d); /* not with tiles of AMX */
    assert_int_equal(dev_gemm(d, GEMM_NT, &c, &a, &b, false), OK);
    const struct cpu *cpu = d->priv;
    assert_int_equal(cpu->slot_bytes[SLOT_GEMM],
                     widens ? (ROWS * IN + OUT * IN + ROWS * OUT) * 4 : 0);
    dev_close(&d);
    cpu_limit_isa(N_ISAS);
}

/* c = a b^T of one row, where every element is 8. */
static void run_row(struct onednn_kernel *kernel)
{
    float a[8], b[16 * 8], c[2 * 16] = {0};
    for (int i = 0; i < 16 * 8; i++)
        a[i % 8] = b[i] = 1;
    assert_true(onednn_run(kernel, 0, a, b, c));
    for (int i = 0; i < 2 * 16; i++)
        assert_float_equal(c[i], i < 16 ? 8 : 0, 0);
}

/* The kernels of one product stay valid, also where the cache is full and a new shape would take
 * the entry of one of them, which is the oldest. */
static void test_kernels_of_a_product_stay(void **state)
{
    enum { ENTRIES = 512 };
    const struct gemm_tile row = {GEMM_NT, 1, 16, 8, 8, 8, 16, DT_F32, DT_F32, false};
    struct gemm_tile t[] = {row, row};
    struct onednn_kernel *k[2];
    struct onednn *o;
    if (onednn_open(&o, 1))
        skip();
    assert_int_equal(onednn_find(k, o, t, 1), OK);
    for (t[1].m = 2; t[1].m <= ENTRIES; t[1].m++)
        assert_int_equal(onednn_find(&k[1], o, &t[1], 1), OK);
    assert_int_equal(onednn_find(k, o, t, 2), OK);
    assert_ptr_not_equal(k[0], k[1]);
    run_row(k[0]);
    onednn_close(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_negligible_probabilities_are_zero),
        cmocka_unit_test(test_products_repeat),
        cmocka_unit_test(test_planned_memory_is_allocated),
        cmocka_unit_test(test_about),
        cmocka_unit_test(test_where_pairs_pay),
        cmocka_unit_test(test_preferred_type),
        cmocka_unit_test(test_memory_of_a_widened_product),
        cmocka_unit_test(test_kernels_of_a_product_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
