/* SPDX-License-Identifier: MIT
 *
 * Which sums of products the cuda device computes with cuBLASLt, what it says about it, and that
 * the product is then not rounded before the sum. Values without it are compared by checkop. */
#include "kernels/base/half.h"
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { M = 12, N = 16, MOST_K = 24, BYTES = 4096, N_PLACES = 5 };

/* y = x + A B^T of at most M rows, in the card's memory. */
struct sum {
    struct dev *d;
    void *p[N_PLACES];
    struct tensor a, b, x, y, part;
};

static struct sum open_sum(int64_t K)
{
    struct sum s = {0};
    uint16_t half[BYTES / 2];
    float whole[BYTES / 4];
    const struct dev_settings settings = {"cuda-emu", 1};
    assert_int_equal(dev_open(&s.d, &settings), OK);
    srand(1);
    for (int i = 0; i < BYTES / 2; i++)
        half[i] = bf16_from_f32((float)(rand() % 255 - 127) / 64);
    for (int i = 0; i < BYTES / 4; i++)
        whole[i] = (float)(rand() % 255 - 127) / 64;
    for (int i = 0; i < N_PLACES; i++) {
        assert_int_equal(dev_alloc(s.d, &s.p[i], BYTES), OK);
        assert_int_equal(dev_upload(s.d, s.p[i], i < 2 ? (void *)half : whole, BYTES), OK);
    }
    s.a = tensor_2d(s.p[0], DT_BF16, M, K);
    s.b = tensor_2d(s.p[1], DT_BF16, N, K);
    s.x = tensor_2d(s.p[2], DT_F32, M, N);
    s.y = tensor_2d(s.p[3], DT_F32, M, N);
    s.part = tensor_2d(s.p[4], DT_BF16, M, N);
    return s;
}

static void close_sum(struct sum *s)
{
    for (int i = 0; i < N_PLACES; i++)
        dev_free(s->d, s->p[i]);
    dev_close(&s->d);
}

static enum err add(const struct sum *s)
{
    return dev_gemm_add(s->d, GEMM_NT, &s->y, &s->x, &s->a, &s->b, &s->part);
}

static void fetch(const struct sum *s, void *to, const struct tensor *t)
{
    assert_int_equal(
        dev_download(s->d, to, t->data, (size_t)tensor_count(t) * dtype_bytes(t->dtype)),
        OK);
}

/* Checks y against f64. The operands are multiples of 2^-6 below 2, so that products and sums of
 * MOST_K are exact in F32: anything that has been rounded to BF16 shows. */
static void is_exact(const struct sum *s)
{
    uint16_t a[M * MOST_K], b[N * MOST_K];
    float x[M * N], y[M * N];
    const int64_t K = s->a.dim[1];
    fetch(s, a, &s->a);
    fetch(s, b, &s->b);
    fetch(s, x, &s->x);
    fetch(s, y, &s->y);
    for (int64_t m = 0; m < s->y.dim[0]; m++)
        for (int64_t n = 0; n < N; n++) {
            double want = (double)x[m * N + n];
            for (int64_t k = 0; k < K; k++)
                want +=
                    (double)bf16_to_f32(a[m * K + k]) * (double)bf16_to_f32(b[n * K + k]);
            assert_true((double)y[m * N + n] == want);
        }
}

/* Checks what the device says, and how many sums of one call are folded into products. */
static void says(const char *what, long runs)
{
    struct sum s = open_sum(MOST_K);
    const long before = emu_card()->cublaslt_runs;
    if (!strstr(dev_about(s.d), what))
        fail_msg("'%s' lacks '%s'", dev_about(s.d), what);
    assert_int_equal(add(&s), OK);
    assert_int_equal(dev_sync(s.d), OK);
    assert_int_equal(emu_card()->cublaslt_runs - before, runs);
    if (runs)
        is_exact(&s);
    close_sum(&s);
}

static void test_whether_it_is_used(void **state)
{
    static const char *const lacking[] = {"cublasLtCreate", "cublasLtGetVersion",
                                          "cublasLtMatmulAlgoGetHeuristic",
                                          "cublasLtMatmul"};
    struct emu_card *c = emu_card();
    const struct emu_card was = *c;
    says("GEMM: cuBLAS 13.2.0, sums by cuBLASLt; ", 1);
    c->cublaslt = 0;
    says(", sums by own kernels (no libcublasLt.so.13); ", 0);
    c->cublaslt = 120905;
    says(", sums by own kernels (cuBLASLt 12 is not 13); ", 0);
    c->cublaslt = was.cublaslt;
    for (size_t i = 0; i < sizeof(lacking) / sizeof(*lacking); i++) {
        c->cublaslt_lacks = lacking[i];
        says(", sums by own kernels (libcublasLt.so.13 lacks a function); ", 0);
    }
    c->cublaslt_lacks = NULL;
    c->cublaslt_fails = "cublasLtCreate";
    says(", sums by own kernels (cuBLASLt does not start); ", 0);
    c->cublaslt_fails = NULL;
    setenv("WKVQ_CUBLASLT", "none", 1);
    says(", sums by own kernels (WKVQ_CUBLASLT is none); ", 0);
    unsetenv("WKVQ_CUBLASLT");
    c->cublaslt_refuses = true; /* which only shows with the shape */
    says(", sums by cuBLASLt; ", 0);
    c->cublaslt_refuses = false;
}

/* Sums after the product give the bits of two operations. */
static void test_two_operations(void **state)
{
    float one[M * N], two[M * N];
    struct sum s = open_sum(MOST_K);
    emu_card()->cublaslt_refuses = true;
    assert_int_equal(add(&s), OK);
    fetch(&s, one, &s.y);
    emu_card()->cublaslt_refuses = false;
    assert_int_equal(dev_gemm(s.d, GEMM_NT, &s.part, &s.a, &s.b, false), OK);
    assert_int_equal(dev_add(s.d, &s.y, &s.x, &s.part), OK);
    fetch(&s, two, &s.y);
    assert_memory_equal(one, two, sizeof(one));
    assert_int_equal(add(&s), OK);
    fetch(&s, two, &s.y);
    assert_memory_equal(one, two, sizeof(one)); /* the shape's plan has none */
    close_sum(&s);
}

/* More shapes than there are plans, with rows at every alignment, each of them twice. */
static void test_shapes(void **state)
{
    struct sum s = open_sum(MOST_K);
    const struct tensor a = s.a, x = s.x, y = s.y, part = s.part;
    const long before = emu_card()->cublaslt_runs;
    for (int64_t i = 0; i < 2 * M; i++) {
        const int64_t first = i % M;
        s.a = tensor_rows(a, first, M - first);
        s.x = tensor_rows(x, first, M - first);
        s.y = tensor_rows(y, first, M - first);
        s.part = tensor_rows(part, first, M - first);
        assert_int_equal(dev_zero(s.d, y.data, M * N * sizeof(float)), OK);
        assert_int_equal(add(&s), OK);
        is_exact(&s);
    }
    assert_int_equal(emu_card()->cublaslt_runs - before, 2 * M);
    close_sum(&s);
}

/* In place, cuBLAS is enough, and the product is not rounded either. */
static void test_in_place(void **state)
{
    float folded[M * N], in_place[M * N];
    struct sum s = open_sum(MOST_K);
    const long before = emu_card()->cublaslt_runs;
    assert_int_equal(add(&s), OK);
    fetch(&s, folded, &s.y);
    s.y = s.x;
    assert_int_equal(add(&s), OK);
    fetch(&s, in_place, &s.y);
    assert_int_equal(emu_card()->cublaslt_runs - before, 1);
    assert_memory_equal(folded, in_place, sizeof(folded));
    close_sum(&s);
}

/* A failure of cuBLASLt says how to do without it, one of an earlier kernel does not. */
static void test_failures(void **state)
{
    for (int earlier = 0; earlier < 2; earlier++) {
        struct sum s = open_sum(MOST_K);
        assert_int_equal(add(&s), OK);
        assert_int_equal(dev_sync(s.d), OK);
        emu_card()->cublaslt_fails = "cublasLtMatmul";
        if (earlier)
            emu_card()->fail_at = emu_card()->calls + 1;
        err_clear();
        assert_int_equal(add(&s), ERR_DEVICE);
        assert_int_equal(earlier,
                         !strstr(err_text(), "WKVQ_CUBLASLT=none in the environment"));
        assert_int_equal(!earlier, !strstr(err_text(), "an illegal memory access"));
        emu_card()->fail_at = 0;
        emu_card()->cublaslt_fails = NULL;
        close_sum(&s);
    }
}

/* A lack of memory is an error where it shows, and no other way to add: the bits of a sum do not
 * depend on the memory that is free. */
static void test_too_little_memory(void **state)
{
    static const char *const functions[] = {"cublasLtMatmulAlgoGetHeuristic",
                                            "cublasLtMatmul"};
    struct emu_card *c = emu_card();
    struct dev *d = NULL;
    c->cublaslt_lacks_memory = true;
    c->cublaslt_fails = "cublasLtCreate";
    err_clear();
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cuda-emu", 1}), ERR_MEMORY);
    assert_non_null(strstr(err_text(), "cuBLASLt does not start: CUBLAS_STATUS_ALLOC"));
    for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
        c->cublaslt_fails = NULL;
        struct sum s = open_sum(MOST_K);
        c->cublaslt_fails = functions[i];
        err_clear();
        assert_int_equal(add(&s), ERR_MEMORY);
        assert_non_null(strstr(err_text(), "gemm: cuBLASLt: CUBLAS_STATUS_ALLOC_FAILED"));
        close_sum(&s);
    }
    c->cublaslt_lacks_memory = false;
    c->cublaslt_fails = NULL;
    assert_int_equal(c->live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whether_it_is_used),
        cmocka_unit_test(test_two_operations),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_in_place),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_too_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
