/* SPDX-License-Identifier: MIT
 *
 * Which attention the cuda device computes with cuDNN, and what it says about it. Values are
 * compared by checkop. */
#include "kernels/base/half.h"
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { H = 4, K = 2, D = 16, MOST_T = 64, N_TENSORS = 13 };

/* Tensors of one attention in the card's memory, each large enough for MOST_T tokens. */
struct attention {
    void *p[N_TENSORS];
    struct tensor q, k, v, kq, vq, o, dout, lse, dq, dk, dv, dkq, dvq;
};

static struct dev *open_dev(void)
{
    struct dev *d = NULL;
    const struct dev_settings s = {"cuda-emu", 1};
    assert_int_equal(dev_open(&d, &s), OK);
    return d;
}

static void *filled(struct dev *d, enum dtype t)
{
    uint16_t host[MOST_T * H * D * 2];
    void *p = NULL;
    for (size_t i = 0; i < sizeof(host) / sizeof(*host); i++)
        host[i] =
            (uint16_t)(rand() % 2 << 15 | (0x3e00 + rand() % 256)); /* +-0.125 to 0.5 */
    if (t == DT_F32)
        memset(host, 0, sizeof(host));
    assert_int_equal(dev_alloc(d, &p, sizeof(host)), OK);
    assert_int_equal(dev_upload(d, p, host, sizeof(host)), OK);
    return p;
}

static struct attention open_attention(struct dev *d, int64_t T, enum dtype t)
{
    struct attention a;
    struct tensor *const all[N_TENSORS] = {&a.q,  &a.k,    &a.v,   &a.kq, &a.vq,
                                           &a.o,  &a.dout, &a.lse, &a.dq, &a.dk,
                                           &a.dv, &a.dkq,  &a.dvq};
    srand(1);
    for (int i = 0; i < N_TENSORS; i++) {
        const bool queries =
            all[i] == &a.q || all[i] == &a.o || all[i] == &a.dout || all[i] == &a.dq;
        a.p[i] = filled(d, t);
        *all[i] = all[i] == &a.lse ? tensor_2d(a.p[i], DT_F32, H, T)
                                   : tensor_3d(a.p[i], t, T, queries ? H : K, D);
    }
    return a;
}

static void close_attention(struct dev *d, struct attention *a)
{
    for (int i = 0; i < N_TENSORS; i++)
        dev_free(d, a->p[i]);
}

static enum err forward(struct dev *d, const struct attention *a, const struct attn_mask *m,
                        int64_t reach)
{
    return dev_attn(
        d, &a->o, &a->lse,
        &(struct attn_inputs){&a->q, &a->k, &a->v, &a->kq, &a->vq, m, reach, 0.25f, false});
}

static enum err backward(struct dev *d, const struct attention *a,
                         const struct attn_mask *m)
{
    return dev_attn_bwd(
        d, &(struct attn_grads){&a->dq, &a->dk, &a->dv, &a->dkq, &a->dvq}, &a->dout, &a->o,
        &a->lse,
        &(struct attn_inputs){&a->q, &a->k, &a->v, &a->kq, &a->vq, m, 0, 0.25f, false});
}

/* Plans that a forward executes. */
static long forward_runs(int64_t T, enum dtype t, const struct attn_mask *m, int64_t reach)
{
    struct dev *d = open_dev();
    struct attention a = open_attention(d, T, t);
    const long before = emu_card()->cudnn_runs;
    assert_int_equal(forward(d, &a, m, reach), OK);
    assert_int_equal(dev_sync(d), OK);
    close_attention(d, &a);
    dev_close(&d);
    return emu_card()->cudnn_runs - before;
}

static void test_what_it_is_asked_for(void **state)
{
    const struct attn_mask one = {.window = 1}, sinks = {.window = 3, .sink = 4};
    const struct attn_mask wide = {.window = 17}, blocks = {.window = 1, .block = 4},
                           chunks = {.window = 1, .chunk = 5};
    assert_int_equal(forward_runs(40, DT_BF16, &one, 0), 1);
    assert_int_equal(forward_runs(40, DT_BF16, &sinks, 0), 1);
    assert_int_equal(forward_runs(40, DT_BF16, &one, 40), 1);
    assert_int_equal(forward_runs(40, DT_BF16, &one, 39), 0);
    assert_int_equal(forward_runs(40, DT_BF16, &wide, 0), 0);
    assert_int_equal(forward_runs(40, DT_BF16, &blocks, 0), 0);
    assert_int_equal(forward_runs(40, DT_BF16, &chunks, 0), 0);
    assert_int_equal(forward_runs(3, DT_BF16, &sinks, 0), 0); /* no key is quantized */
    assert_int_equal(forward_runs(40, DT_F32, &one, 0), 0);
}

/* No plan is made for a length that will hardly come again. */
static void test_lengths_that_vary(void **state)
{
    struct dev *d = open_dev();
    struct attention a = open_attention(d, 40, DT_BF16);
    struct attn_inputs in = {
        .q = &a.q, .k = &a.k, .v = &a.v, .scale = 0.25f, .varies = true};
    const long before = emu_card()->cudnn_runs;
    assert_int_equal(dev_attn(d, &a.o, &a.lse, &in), OK);
    assert_int_equal(emu_card()->cudnn_runs, before);
    in.varies = false;
    assert_int_equal(dev_attn(d, &a.o, &a.lse, &in), OK);
    assert_int_equal(emu_card()->cudnn_runs, before + 1);
    close_attention(d, &a);
    dev_close(&d);
}

/* Rows, or heads, that are no multiple of 16 bytes. */
static void test_what_is_not_aligned(void **state)
{
    const struct attn_mask m = {.window = 1};
    for (int which = 0; which < 2; which++) {
        struct dev *d = open_dev();
        struct attention a = open_attention(d, 40, DT_BF16);
        struct tensor *const all[] = {&a.q, &a.k, &a.v, &a.kq, &a.vq, &a.o};
        const long before = emu_card()->cudnn_runs;
        for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
            const struct tensor x =
                tensor_3d(all[i]->data, DT_BF16, 40, all[i]->dim[1], 12);
            if (which)
                *all[i] = x;
            else
                all[i]->ld += 4;
        }
        assert_int_equal(forward(d, &a, &m, 0), OK);
        assert_int_equal(dev_sync(d), OK);
        assert_int_equal(emu_card()->cudnn_runs, before);
        close_attention(d, &a);
        dev_close(&d);
    }
}

/* More shapes than plans are kept, then the same again. */
static void test_plans_are_replaced(void **state)
{
    const struct attn_mask m = {.window = 1};
    struct dev *d = open_dev();
    struct attention a = open_attention(d, MOST_T, DT_BF16);
    const long before = emu_card()->cudnn_runs;
    for (int64_t i = 0; i < 20; i++) {
        struct attention part = a;
        struct tensor *const all[] = {&part.q,  &part.k,  &part.v,
                                      &part.kq, &part.vq, &part.o};
        for (size_t t = 0; t < sizeof(all) / sizeof(*all); t++)
            *all[t] = tensor_rows(*all[t], 0, 2 + i % 10);
        part.lse = tensor_2d(a.lse.data, DT_F32, H, 2 + i % 10);
        assert_int_equal(forward(d, &part, &m, 0), OK);
    }
    assert_int_equal(dev_sync(d), OK);
    assert_int_equal(emu_card()->cudnn_runs - before, 20);
    close_attention(d, &a);
    dev_close(&d);
    assert_int_equal(emu_card()->live, 0);
}

enum { N_RESULTS = 6, MOST_RESULT = MOST_T * H * D };
struct results {
    uint16_t of[N_RESULTS][MOST_RESULT]; /* o and the gradients, BF16 */
};

/* Computes o and all gradients; runs: the plans that this takes. */
static void compute(struct results *r, long runs)
{
    const struct attn_mask m = {.window = 1, .sink = 4};
    struct dev *d = open_dev();
    struct attention a = open_attention(d, MOST_T, DT_BF16);
    const struct tensor *const all[N_RESULTS] = {&a.o, &a.dq, &a.dk, &a.dv, &a.dkq, &a.dvq};
    const long before = emu_card()->cudnn_runs;
    memset(r, 0, sizeof(*r));
    assert_int_equal(forward(d, &a, &m, 0), OK);
    assert_int_equal(backward(d, &a, &m), OK);
    for (int i = 0; i < N_RESULTS; i++)
        assert_int_equal(
            dev_download(d, r->of[i], all[i]->data, (size_t)tensor_count(all[i]) * 2), OK);
    assert_int_equal(emu_card()->cudnn_runs - before, runs);
    close_attention(d, &a);
    dev_close(&d);
}

/* Checks that x is finite and near y: three roundings to BF16, 2^-8 each, and some cancellation
 * leave less than 2^-6 of the largest value. checkop bounds every element by itself. */
static void near(const uint16_t x[MOST_RESULT], const uint16_t y[MOST_RESULT])
{
    float largest = 0, worst = 0;
    for (int i = 0; i < MOST_RESULT; i++) {
        assert_true(isfinite(bf16_to_f32(x[i])) && isfinite(bf16_to_f32(y[i])));
        largest = fmaxf(largest, fabsf(bf16_to_f32(y[i])));
        worst = fmaxf(worst, fabsf(bf16_to_f32(x[i]) - bf16_to_f32(y[i])));
    }
    print_message("largest %g, difference %g\n", (double)largest, (double)worst);
    assert_true(largest > 0 && worst <= 0x1p-6f * largest);
}

static void test_same_bytes_twice(void **state)
{
    static struct results first, again, own;
    const int was = emu_card()->cudnn;
    compute(&first, 2);
    compute(&again, 2);
    assert_memory_equal(&first, &again, sizeof(first));
    emu_card()->cudnn = 0;
    compute(&own, 0);
    emu_card()->cudnn = was;
    for (int i = 0; i < N_RESULTS; i++)
        near(first.of[i], own.of[i]);
}

static void says(const char *what, long runs)
{
    const struct attn_mask m = {.window = 1};
    struct dev *d = open_dev();
    if (!strstr(dev_about(d), what))
        fail_msg("'%s' lacks '%s'", dev_about(d), what);
    dev_close(&d);
    assert_int_equal(forward_runs(8, DT_BF16, &m, 0), runs);
}

/* The first version that is used, and those before it with known bugs. */
static void test_versions(void **state)
{
    const int was = emu_card()->cudnn;
    emu_card()->cudnn = 91000;
    says("; attention: own kernels (cuDNN 9.10.0 is older than 9.15.1)", 0);
    emu_card()->cudnn = 91002;
    says("; attention: own kernels (cuDNN 9.10.2 is older than 9.15.1)", 0);
    emu_card()->cudnn = 91500;
    says("; attention: own kernels (cuDNN 9.15.0 is older than 9.15.1)", 0);
    emu_card()->cudnn = 91501;
    says("; attention: cuDNN 9.15.1", 1);
    emu_card()->cudnn = was;
}

static void test_own_kernels(void **state)
{
    struct emu_card *c = emu_card();
    const struct emu_card was = *c;
    says("; attention: cuDNN 9.26.0", 1);
    c->cudnn = 0;
    says("; attention: own kernels (no libcudnn.so.9)", 0);
    c->cudnn = was.cudnn;
    c->major = 8;
    says("; attention: own kernels (cuDNN is used on compute capability 9.0)", 0);
    c->major = was.major;
    setenv("WKVQ_CUDNN", "none", 1);
    says("; attention: own kernels (WKVQ_CUDNN is none)", 0);
    setenv("WKVQ_CUDNN", "/no/such/file", 1);
    says("; attention: own kernels (the file in WKVQ_CUDNN cannot be opened)", 0);
    unsetenv("WKVQ_CUDNN");
}

/* Two configurations have sums in a fixed order: one is enough, and none leaves own kernels. */
static void test_configurations(void **state)
{
    const struct attn_mask m = {.window = 1};
    emu_card()->cudnn_refuses = 1;
    assert_int_equal(forward_runs(8, DT_BF16, &m, 0), 1);
    emu_card()->cudnn_refuses = 2;
    assert_int_equal(forward_runs(8, DT_BF16, &m, 0), 0);
    emu_card()->cudnn_refuses = 0;
}

static void test_library_does_not_start(void **state)
{
    struct emu_card *c = emu_card();
    static const char *const lacking[] = {"cudnnGetVersion", "cudnnCreate",
                                          "cudnnGetErrorString", "cudnnBackendExecute"};
    for (size_t i = 0; i < sizeof(lacking) / sizeof(*lacking); i++) {
        c->cudnn_lacks = lacking[i];
        says("; attention: own kernels (libcudnn.so.9 lacks a function)", 0);
    }
    c->cudnn_lacks = NULL;
    c->cudnn_fails = "cudnnCreate";
    says("; attention: own kernels (cuDNN: CUDNN_STATUS_EXECUTION_FAILED)", 0);
    c->cudnn_status = 4004; /* of device memory: an error, and no other algorithm */
    struct dev *d = NULL;
    err_clear();
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cuda-emu", 1}), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "WKVQ_CUDNN=none in the environment, needs less"));
    c->cudnn_status = 0;
    c->cudnn_fails = "cudnnSetStream";
    says("; attention: own kernels (cuDNN: CUDNN_STATUS_EXECUTION_FAILED)", 0);
    c->cudnn_fails = NULL;
}

/* Memory for the keys with sinks, or for cuDNN itself, is missing: an error, as with any
 * operation, and no other algorithm. */
static void test_too_little_memory(void **state)
{
    const struct attn_mask m = {.window = 1, .sink = 4};
    const uint64_t total = emu_card()->total, room[] = {4096, 100000};
    for (size_t i = 0; i < sizeof(room) / sizeof(*room); i++) {
        struct dev *d = open_dev();
        struct attention a = open_attention(d, MOST_T, DT_BF16);
        const long before = emu_card()->cudnn_runs;
        err_clear();
        emu_card()->total = emu_card()->live + room[i];
        assert_int_equal(backward(d, &a, &m), ERR_MEMORY);
        assert_non_null(strstr(err_text(), "a smaller seqlen, or WKVQ_CUDNN=none"));
        emu_card()->total = total;
        assert_int_equal(dev_sync(d), ERR_MEMORY);
        assert_int_equal(emu_card()->cudnn_runs, before);
        close_attention(d, &a);
        dev_close(&d);
    }
    assert_int_equal(emu_card()->live, 0);
}

/* The library's own lack of memory while it makes a plan is an error, too. */
static void test_too_little_memory_for_a_plan(void **state)
{
    const struct attn_mask m = {.window = 1};
    struct dev *d = open_dev();
    struct attention a = open_attention(d, 8, DT_BF16);
    emu_card()->cudnn_refuses = 1;
    emu_card()->cudnn_status = 4004; /* of device memory */
    err_clear();
    assert_int_equal(forward(d, &a, &m, 0), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "a smaller seqlen, or WKVQ_CUDNN=none"));
    emu_card()->cudnn_refuses = emu_card()->cudnn_status = 0;
    close_attention(d, &a);
    dev_close(&d);
}

/* A failure of cuDNN, and one of an earlier kernel. */
static void test_failure_says_what_to_do(void **state)
{
    const struct attn_mask m = {.window = 1};
    for (int earlier = 0; earlier < 2; earlier++) {
        struct dev *d = open_dev();
        struct attention a = open_attention(d, 8, DT_BF16);
        assert_int_equal(forward(d, &a, &m, 0), OK);
        assert_int_equal(dev_sync(d), OK);
        if (earlier)
            emu_card()->fail_at = emu_card()->calls + 1;
        else
            emu_card()->cudnn_fails = "cudnnBackendExecute";
        err_clear();
        assert_int_equal(forward(d, &a, &m, 0), ERR_DEVICE);
        assert_int_equal(earlier,
                         !strstr(err_text(), "WKVQ_CUDNN=none in the environment"));
        assert_int_equal(!earlier, !strstr(err_text(), "an illegal memory access"));
        emu_card()->fail_at = 0;
        emu_card()->cudnn_fails = NULL;
        close_attention(d, &a);
        dev_close(&d);
    }
}

/* A run checks the width of its heads before its work begins. */
static void test_widths_of_heads(void **state)
{
    struct dev *d = open_dev();
    (void)state;
    assert_int_equal(dev_attn_check(d, 128), OK);
    assert_int_equal(dev_attn_check(d, 129), ERR_SUPPORT);
    assert_non_null(strstr(err_text(), "heads of 129 channels"));
    err_clear();
    dev_close(&d);
}

static int present(void **state)
{
    emu_card()->major = 9;
    emu_card()->cudnn = 92600;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_it_is_asked_for),
        cmocka_unit_test(test_lengths_that_vary),
        cmocka_unit_test(test_what_is_not_aligned),
        cmocka_unit_test(test_plans_are_replaced),
        cmocka_unit_test(test_same_bytes_twice),
        cmocka_unit_test(test_widths_of_heads),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_own_kernels),
        cmocka_unit_test(test_configurations),
        cmocka_unit_test(test_library_does_not_start),
        cmocka_unit_test(test_too_little_memory),
        cmocka_unit_test(test_too_little_memory_for_a_plan),
        cmocka_unit_test(test_failure_says_what_to_do),
    };
    return cmocka_run_group_tests(tests, present, NULL);
}
