/* SPDX-License-Identifier: MIT
 *
 * What is demanded of memory and disk before a job runs. */
#include "calib/model/shapes.h"
#include "tools/pipeline/preflight.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Petabytes of streams: too many for any disk. A job that only converts has none, and no state. */
static void only_a_calibration_needs_space(void **state)
{
    struct job j = {.cells = 1};
    struct calib_plan plan;
    (void)state;
    recipe_init(&j.recipe);
    j.recipe.samples = 1 << 20;
    j.recipe.seqlen = 4096;
    j.recipe.memory = 1000;
    assert_int_equal(arch_of_shape(&j.arch, "llama-2-13b"), OK);
    j.settings = recipe_settings(&j.recipe, NULL);
    assert_int_equal(preflight_resources(&plan, &j, "/tmp/none"), ERR_IO);
    assert_non_null(strstr(err_text(), "free some space"));
    err_clear();
    assert_true(j.state_bytes > 0 && plan.stream_bytes > 0);
    j.only_converts = true;
    assert_int_equal(preflight_resources(&plan, &j, "/tmp/none"), OK);
    assert_true(!j.state_bytes && !plan.stream_bytes);
    recipe_free(&j.recipe);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(only_a_calibration_needs_space)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
