/* SPDX-License-Identifier: MIT
 *
 * The allocation against an exhaustive search. */
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tools/tune/allocate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>

#include <cmocka.h>

enum { MOST_ITEMS = 8, MOST_OPTIONS = 5 };

struct instance {
    struct allocate_option option[MOST_ITEMS][MOST_OPTIONS];
    struct allocate_item item[MOST_ITEMS];
    int n;
};

/* Costs from few values, so that many choices cost the same. Losses need not fall with
 * cost; some are equal, some are 0. */
static void draw_instance(struct instance *t, struct rng *r)
{
    t->n = 1 + (int)rng_below(r, MOST_ITEMS);
    const uint64_t dear = rng_below(r, 2) ? 5 : 1000;
    for (int i = 0; i < t->n; i++) {
        t->item[i] =
            (struct allocate_item){t->option[i], 1 + (int)rng_below(r, MOST_OPTIONS)};
        for (int o = 0; o < t->item[i].n; o++)
            t->option[i][o] = (struct allocate_option){
                .cost = (int64_t)rng_below(r, dear),
                .loss = rng_below(r, 4) ? (double)rng_below(r, 40) / 4
                                        : exp(5 * rng_normal(r))};
    }
}

static void total(int64_t *cost, double *loss, const struct instance *t, const int *choice)
{
    *cost = 0;
    *loss = 0;
    for (int i = 0; i < t->n; i++) {
        *cost += t->option[i][choice[i]].cost;
        *loss += t->option[i][choice[i]].loss;
    }
}

/* Advances to the next choice, like a counter. Returns false after the last. */
static bool next_choice(int *choice, const struct instance *t)
{
    for (int i = 0; i < t->n; i++) {
        if (++choice[i] < t->item[i].n)
            return true;
        choice[i] = 0;
    }
    return false;
}

/* Returns the least loss within the budget, or INFINITY if no choice fits. */
static double brute_force(const struct instance *t, int64_t budget)
{
    int choice[MOST_ITEMS] = {0};
    double best = INFINITY;
    do {
        int64_t cost;
        double loss;
        total(&cost, &loss, t, choice);
        if (cost <= budget)
            best = fmin(best, loss);
    } while (next_choice(choice, t));
    return best;
}

static void check_instance(const struct instance *t, int64_t budget)
{
    int choice[MOST_ITEMS];
    int64_t cost;
    double loss;
    const double best = brute_force(t, budget);
    const enum err err = allocate(choice, t->item, t->n, budget);
    if (isinf(best)) {
        assert_int_equal(err, ERR_USAGE);
        return;
    }
    assert_int_equal(err, OK);
    total(&cost, &loss, t, choice);
    assert_true(cost <= budget);
    assert_true(fabs(loss - best) <= 1e-12 * (1 + best));
}

static void test_every_choice(void **state)
{
    struct rng r;
    struct instance t;
    (void)state;
    rng_seed(&r, 11);
    for (int i = 0; i < 600; i++) {
        int64_t most = 0;
        draw_instance(&t, &r);
        for (int k = 0; k < t.n; k++)
            for (int o = 0; o < t.item[k].n; o++)
                most += t.option[k][o].cost;
        check_instance(&t, (int64_t)rng_below(&r, (uint64_t)most + 2));
    }
}

/* As many items and options as a model has: within the budget, no worse than one option for
 * all, and with almost the whole budget spent. */
static void test_many_items(void **state)
{
    enum { ITEMS = 224, OPTIONS = 30 };
    static struct allocate_option option[ITEMS][OPTIONS];
    static struct allocate_item item[ITEMS];
    int choice[ITEMS];
    struct rng r;
    int64_t cost = 0, budget = 0;
    double loss = 0, uniform = 0;
    (void)state;
    rng_seed(&r, 5);
    for (int i = 0; i < ITEMS; i++) {
        const double weight = exp(2 * rng_normal(&r));
        const int64_t size = 500 + (int64_t)rng_below(&r, 4000);
        for (int o = 0; o < OPTIONS; o++) {
            const double bits = 2 + 0.2 * o;
            option[i][o] = (struct allocate_option){
                size * (int64_t)(100 * bits + 0.5) + (int64_t)rng_below(&r, 50),
                weight * exp2(-2 * bits) * (1 + 0.2 * rng_uniform(&r))};
        }
        item[i] = (struct allocate_item){option[i], OPTIONS};
        budget += option[i][10].cost;
        uniform += option[i][10].loss;
    }
    assert_int_equal(allocate(choice, item, ITEMS, budget), OK);
    for (int i = 0; i < ITEMS; i++) {
        cost += option[i][choice[i]].cost;
        loss += option[i][choice[i]].loss;
    }
    assert_true(cost <= budget);
    assert_true(loss < uniform);
    assert_true((double)cost > 0.999 * (double)budget);
}

static void test_refusals(void **state)
{
    int choice[1];
    struct allocate_option o = {.cost = 3, .loss = 1};
    const struct allocate_item item = {&o, 1};
    (void)state;
    assert_int_equal(allocate(choice, &item, 1, 2), ERR_USAGE);
    assert_int_equal(allocate(choice, &item, 1, 3), OK);
    assert_int_equal(choice[0], 0);
    o.loss = NAN;
    assert_int_equal(allocate(choice, &item, 1, 3), ERR_NUMERIC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_choice),
        cmocka_unit_test(test_many_items),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
