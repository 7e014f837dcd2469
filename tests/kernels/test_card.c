/* SPDX-License-Identifier: MIT
 *
 * The cuda device where there is no GPU, an old one or an old driver, or too little memory; and
 * failures that show in a call of cuBLAS. */
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void refused(enum err want, const char *text)
{
    struct dev *d = NULL;
    const struct dev_settings s = {"cuda-emu", 1};
    err_clear();
    assert_int_equal(dev_open(&d, &s), want);
    assert_null(d);
    assert_non_null(strstr(err_text(), text));
    assert_int_equal(emu_card()->live, 0);
}

static void test_cards_that_do_not_do(void **state)
{
    struct emu_card *c = emu_card();
    const struct emu_card was = *c;
    c->devices = 0;
    refused(ERR_SUPPORT, "no NVIDIA GPU found (no CUDA-capable device is detected); use");
    *c = was;
    c->driver = 12020;
    refused(ERR_SUPPORT,
            "the driver has CUDA 12.2, this build wants 13.0; install a newer");
    *c = was;
    c->major = 7;
    c->minor = 5;
    refused(ERR_SUPPORT, "has compute capability 7.5, bf16 needs 8.0; use --device cpu");
    *c = was;
    c->no_code = true;
    refused(ERR_SUPPORT, "no code for CUDA kernels emulated on the CPU, compute capability "
                         "8.0 (no kernel image is available for execution on the device); "
                         "build with -Dgpu_arch=80, or use --device cpu");
    *c = was;
    c->total = 0; /* others have all of it */
    refused(ERR_MEMORY, "device cuda-emu: context: out of memory");
    *c = was;
    c->cublas_lacks_memory = true;
    refused(ERR_MEMORY, "cuBLAS does not start: CUBLAS_STATUS_ALLOC_FAILED");
    *c = was;
    for (c->fail_at = 1; c->fail_at <= 4; c->fail_at++)
        refused(c->fail_at == 1 ? ERR_SUPPORT : ERR_DEVICE, "illegal memory access");
    *c = was;
}

/* Returns the error of a product, with its message. */
static enum err product(struct dev *d, float *x)
{
    const struct tensor a = tensor_2d(x, DT_F32, 4, 8), c = tensor_2d(x + 32, DT_F32, 4, 4);
    err_clear();
    return dev_gemm(d, GEMM_NT, &c, &a, &a, false);
}

/* A product that meets the fault of an earlier kernel names that, and one for which there is too
 * little memory says so. */
static void test_products_that_fail(void **state)
{
    struct emu_card *card = emu_card();
    for (int earlier = 0; earlier < 2; earlier++) {
        struct dev *d = NULL;
        void *x = NULL;
        assert_int_equal(dev_open(&d, &(struct dev_settings){"cuda-emu", 1}), OK);
        assert_int_equal(dev_alloc(d, &x, 48 * sizeof(float)), OK);
        assert_int_equal(product(d, x), OK);
        assert_int_equal(dev_sync(d), OK);
        card->fail_at = earlier ? card->calls + 1 : 0;
        card->cublas_lacks_memory = !earlier;
        assert_int_equal(product(d, x), earlier ? ERR_DEVICE : ERR_MEMORY);
        assert_non_null(strstr(err_text(), earlier ? "gemm: an illegal memory access was"
                                                   : "gemm: CUBLAS_STATUS_ALLOC_FAILED"));
        card->fail_at = 0;
        card->cublas_lacks_memory = false;
        dev_free(d, x);
        dev_close(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cards_that_do_not_do),
        cmocka_unit_test(test_products_that_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
