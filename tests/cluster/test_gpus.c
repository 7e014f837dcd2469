/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_gpus.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check(const char *list, int slot, const char *want)
{
    char got[SWEEP_GPU_MAX];
    setenv("CUDA_VISIBLE_DEVICES", list, 1);
    sweep_gpu(got, slot);
    assert_string_equal(got, want);
}

static void slots_take_turns(void **state)
{
    (void)state;
    check("3,5,GPU-1a2b", 0, "3");
    check("3,5,GPU-1a2b", 1, "5");
    check("3,5,GPU-1a2b", 2, "GPU-1a2b");
    check("3,5,GPU-1a2b", 3, "3");
    check("3,5,GPU-1a2b", 63, "3");
}

static void one_gpu_is_for_all(void **state)
{
    (void)state;
    check("3", 1, "");
    check("", 1, "");
}

static void a_long_name_changes_nothing(void **state)
{
    char list[SWEEP_GPU_MAX + 8];
    (void)state;
    memset(list, 'x', sizeof(list));
    memcpy(list, "7,", 2);
    list[sizeof(list) - 1] = '\0';
    check(list, 0, "7");
    check(list, 1, "");
}

static void check_cells(const char *list, int64_t parallel, int64_t want)
{
    setenv("CUDA_VISIBLE_DEVICES", list, 1);
    assert_int_equal(sweep_gpu_cells(parallel), want);
}

static void cells_divide_a_shared_gpu(void **state)
{
    (void)state;
    check_cells("3", 4, 4);
    check_cells("", 4, 4);
    check_cells("3,5", 2, 1);
    check_cells("3,5", 3, 2);
    check_cells("0,1,2,3", 2, 1);
    check_cells("0,1", 1, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(slots_take_turns),
                                       cmocka_unit_test(one_gpu_is_for_all),
                                       cmocka_unit_test(a_long_name_changes_nothing),
                                       cmocka_unit_test(cells_divide_a_shared_gpu)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
