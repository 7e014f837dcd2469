/* SPDX-License-Identifier: MIT
 *
 * Sizes that overflow are refused; memory is aligned, zeroed, kept by a resize. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/mem.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void sizes_are_checked(void **state)
{
    size_t out = 77;
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &out));
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_true(out == 77);
    assert_true(size_mul(SIZE_MAX / 3, 3, &out) && out == SIZE_MAX / 3 * 3);
    assert_true(size_mul(0, SIZE_MAX, &out) && out == 0);
    assert_true(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
}

static void products_of_dimensions(void **state)
{
    size_t out = 77;
    const int64_t good[] = {3, 5, 7}, negative[] = {3, -1}, huge[] = {INT64_MAX, 4};
    assert_int_equal(size_product(&out, good, 3, 4), OK);
    assert_true(out == 420);
    err_clear();
    assert_int_equal(size_product(&out, negative, 2, 4), ERR_FORMAT);
    assert_string_equal(err_text(), "dimension 1 is negative (-1)");
    assert_int_equal(size_product(&out, huge, 2, 4), ERR_FORMAT);
    assert_true(out == 420);
    assert_int_equal(size_product(&out, good, 0, 4), OK);
    assert_true(out == 4);
}

static void allocations(void **state)
{
    void *p = NULL;
    assert_int_equal(mem_alloc(&p, SIZE_MAX / 2, 3), ERR_MEMORY);
    assert_int_equal(mem_alloc(&p, SIZE_MAX - 10, 1), ERR_MEMORY);
    assert_null(p);
    for (size_t n = 0; n < 200; n += 7) {
        uint8_t *q = NULL;
        assert_int_equal(mem_calloc(&q, n, 3), OK);
        assert_non_null(q);
        assert_true((uintptr_t)q % MEM_ALIGN == 0);
        for (size_t i = 0; i < n * 3; i++)
            assert_int_equal(q[i], 0);
        mem_free(q);
    }
    mem_free(NULL);
}

static void a_resize_keeps_what_fits(void **state)
{
    int *p = NULL;
    assert_int_equal(mem_resize(&p, 0, 4, sizeof(*p)), OK);
    for (int i = 0; i < 4; i++)
        p[i] = i + 1;
    assert_int_equal(mem_resize(&p, 4, 1000, sizeof(*p)), OK);
    assert_true(p[0] == 1 && p[3] == 4);
    assert_int_equal(mem_resize(&p, 1000, 2, sizeof(*p)), OK);
    assert_true(p[0] == 1 && p[1] == 2);
    int *before = p;
    assert_int_equal(mem_resize(&p, 2, SIZE_MAX, sizeof(*p)), ERR_MEMORY);
    assert_ptr_equal(p, before);
    mem_free(p);
}

static void strings_and_figures(void **state)
{
    char *s = NULL;
    assert_int_equal(mem_strdup(&s, "abc"), OK);
    assert_string_equal(s, "abc");
    mem_free(s);
    assert_true(mem_peak_bytes() > 100000);
}

#define MUCH ((size_t)96 << 20)

/* Starts this program once more and returns the peak that it sees. */
static uint64_t peak_of_child(void)
{
    int end[2];
    uint64_t peak = 0;
    assert_int_equal(pipe(end), 0);
    const pid_t child = fork();
    if (!child) {
        dup2(end[1], STDOUT_FILENO);
        execl("/proc/self/exe", "test_mem", "peak", (char *)NULL);
        _exit(1);
    }
    assert_true(child > 0);
    close(end[1]);
    assert_int_equal(read(end[0], &peak, sizeof(peak)), sizeof(peak));
    close(end[0]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    return peak;
}

static void a_peak_is_of_this_program_alone(void **state)
{
    uint8_t *much = NULL;
    const uint64_t before = peak_of_child();
    assert_int_equal(mem_alloc(&much, MUCH, 1), OK);
    memset(much, 1, MUCH);
    assert_true(mem_peak_bytes() >= MUCH);
    assert_true(peak_of_child() < before + MUCH / 2);
    mem_free(much);
}

static int print_peak(void)
{
    const uint64_t peak = mem_peak_bytes();
    return write(STDOUT_FILENO, &peak, sizeof(peak)) != sizeof(peak);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return print_peak();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(products_of_dimensions),
        cmocka_unit_test(allocations),
        cmocka_unit_test(a_resize_keeps_what_fits),
        cmocka_unit_test(strings_and_figures),
        cmocka_unit_test(a_peak_is_of_this_program_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
