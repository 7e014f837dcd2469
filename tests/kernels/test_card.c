/* SPDX-License-Identifier: MIT
 *
 * The cuda device where there is no GPU, or an old one, with an old driver, or that the build has no code for. */
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
    for (c->fail_at = 1; c->fail_at <= 4; c->fail_at++)
        refused(c->fail_at == 1 ? ERR_SUPPORT : ERR_DEVICE, "illegal memory access");
    *c = was;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cards_that_do_not_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
