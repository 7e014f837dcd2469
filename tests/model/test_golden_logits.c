/* SPDX-License-Identifier: MIT
 *
 * The whole model in full precision against Hugging Face transformers, every architecture
 * variant, on every device. */
#include "calib/model/model.h"
#include "kernels/base/mem.h"
#include "tests/golden_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BOUND 1e-4 /* of the logits' range */

static void check_model(struct dev *d, const char *name)
{
    struct golden g;
    float *logits;
    err_clear();
    if (golden_open(&g, name))
        fail_msg("%s: %s", name, err_text());
    assert_int_equal(mem_alloc(&logits, (size_t)(g.T * g.V), sizeof(float)), OK);
    const struct model_run run = {
        .dev = d, .arch = hf_arch(g.model), .src = hf_source(g.model), .act = DT_F32};
    if (model_logits(&run, g.ids, 1, g.T, logits))
        fail_msg("%s: %s", name, err_text());
    const double error = golden_error(logits, g.logits, g.T * g.V);
    print_message("%-16s %s: error %.2g of the range\n", name, dev_name(d), error);
    if (!(error <= BOUND))
        fail_msg("%s on %s: logits differ by %g of their range", name, dev_name(d), error);
    mem_free(logits);
    golden_close(&g);
}

static void check_device(const char *device)
{
    struct dev *d = NULL;
    const struct dev_settings s = {.name = device, .threads = 2};
    err_clear();
    if (dev_open(&d, &s))
        fail_msg("%s", err_text());
    for (int i = 0; i < golden_count; i++)
        check_model(d, golden_name[i]);
    dev_close(&d);
}

static void test_ref(void **state)
{
    check_device("ref");
}

static void test_cpu(void **state)
{
    check_device("cpu");
}

static void test_other(void **state)
{
    if (!getenv("GOLDEN_DEVICE"))
        skip();
    check_device(getenv("GOLDEN_DEVICE"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
