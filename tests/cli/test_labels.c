/* SPDX-License-Identifier: MIT
 *
 * Names of points: all are placed, inside, and none covers another name or a point. */
#include "kernels/base/rng.h"
#include "tools/report/labels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define NAMES 20

static const struct box area = {60, 10, 948, 510};

static bool apart(struct box a, struct box b)
{
    return a.left >= b.right || b.left >= a.right || a.top >= b.bottom || b.top >= a.bottom;
}

static void check(const struct label *l)
{
    for (int i = 0; i < NAMES; i++) {
        const struct box b = l[i].box;
        assert_true(l[i].placed);
        assert_true(b.left >= area.left && b.right <= area.right && b.top >= area.top &&
                    b.bottom <= area.bottom);
        assert_true(b.right - b.left >= label_width(l[i].text) - 1e-9);
        for (int k = 0; k < NAMES; k++) {
            const struct box point = {l[k].x - 3.9, l[k].y - 3.9, l[k].x + 3.9,
                                      l[k].y + 3.9};
            assert_true(apart(b, point));
            assert_true(k == i || apart(b, l[k].box));
        }
    }
}

/* Points in a cloud of a given size, from a whole picture to nearly one place. */
static void clouds(void **state)
{
    const double sizes[] = {400, 100, 20, 1};
    struct label l[NAMES];
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++) {
        for (int i = 0; i < NAMES; i++)
            l[i] = (struct label){.text = "weights.bits=4 kv.bits=16",
                                  .x = 300 + sizes[s] * rng_uniform(&rng),
                                  .y = 200 + sizes[s] * rng_uniform(&rng) / 2};
        labels_place(l, NAMES, area);
        check(l);
    }
}

/* Points at one size in bytes, as cells of equal formats have. */
static void column(void **state)
{
    struct label l[NAMES];
    for (int i = 0; i < NAMES; i++)
        l[i] = (struct label){
            .text = "without CRR (k = 0)", .x = 100, .y = 250 + 4.0 * i * (i % 2 ? -1 : 1)};
    labels_place(l, NAMES, area);
    check(l);
}

static void no_room(void **state)
{
    struct label l = {.text = "too wide a name", .x = 65, .y = 20};
    labels_place(&l, 1, (struct box){60, 10, 100, 60});
    assert_false(l.placed);
}

static void long_names(void **state)
{
    const char *name = "weights.group_size=128 \xc3\xa9 kv.group_size=64 kv.bits=4";
    const int n = label_bytes(name);
    assert_int_equal(label_bytes("short"), 5);
    assert_int_equal(n, LABEL_MAX - 1 + 1); /* one of the characters has two bytes */
    assert_true(label_width(name) > label_width("weights.group_size=128"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clouds),
        cmocka_unit_test(column),
        cmocka_unit_test(no_room),
        cmocka_unit_test(long_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
