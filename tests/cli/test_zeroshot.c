/* SPDX-License-Identifier: MIT
 *
 * The batches of multiple choice in simulation, and its accuracies. */
#include "tools/eval/tasks/zeroshot.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define QUESTIONS 3000
#define CHOICES 2

/* Lengths as sorted questions have them, falling from `longest` to about 15, a few long and
 * most short; the second choice is the shorter one. */
static int64_t fill(struct request *r, struct request **order, int64_t longest)
{
    for (int64_t i = 0; i < QUESTIONS * CHOICES; i++) {
        const int64_t question = i / CHOICES;
        const double x = (double)question / QUESTIONS;
        const int64_t n = 15 + (int64_t)((double)longest * pow(1 - x, 6));
        r[i] = (struct request){.question = question, .longest = n};
        r[i].n = n - (i % CHOICES) * 3;
        order[i] = &r[i];
    }
    return QUESTIONS * CHOICES;
}

/* Checks one batch and returns how much of it is padding. */
static int64_t check_batch(struct request **order, int64_t n, int64_t first, int64_t end)
{
    const int64_t T = order[first]->longest;
    int64_t padding = 0;
    assert_true(end > first && end <= n);
    assert_true(end == n || order[end]->question != order[end - 1]->question);
    for (int64_t i = first; i < end; i++)
        padding += T - order[i]->n;
    if (end - first > CHOICES) {
        assert_true(padding <= ZEROSHOT_BATCH_PADDING);
        assert_true((end - first) * T <= ZEROSHOT_BATCH_TOKENS);
    }
    return padding;
}

static void batches_pad_little(void **state)
{
    static struct request r[QUESTIONS * CHOICES];
    static struct request *order[QUESTIONS * CHOICES];
    const int64_t longest[] = {20, 250, 2000};
    for (size_t k = 0; k < ARRAY_LEN(longest); k++) {
        const int64_t n = fill(r, order, longest[k]);
        int64_t tokens = 0, padding = 0, batches = 0;
        for (int64_t i = 0, end; i < n; i = end, batches++) {
            end = zeroshot_batch_end(order, n, i);
            padding += check_batch(order, n, i, end);
        }
        for (int64_t i = 0; i < n; i++)
            tokens += order[i]->n;
        assert_true(6 * padding < tokens);
        assert_true(batches <= 4 + 2 * tokens / ZEROSHOT_BATCH_TOKENS + padding / 500);
    }
}

static void a_question_is_a_batch(void **state)
{
    struct request r[4] = {{.question = 3, .longest = 40000, .n = 40000},
                           {.question = 3, .longest = 40000, .n = 10},
                           {.question = 1, .longest = 30, .n = 30},
                           {.question = 1, .longest = 30, .n = 29}};
    struct request *order[4] = {&r[0], &r[1], &r[2], &r[3]};
    assert_int_equal(zeroshot_batch_end(order, 4, 0), 2);
    assert_int_equal(zeroshot_batch_end(order, 4, 2), 4);
}

static void the_first_of_equals_wins(void **state)
{
    struct choice c[3] = {{.chars = 10}, {.chars = 1}, {.chars = 20}};
    struct question q = {.choice = c, .n = 3, .gold = 0};
    const struct question_set s = {.normalized = true, .item = &q, .n = 1};
    const struct request r[3] = {{.ll = -5}, {.ll = -5}, {.ll = -10}};
    struct zeroshot_result out;
    zeroshot_reduce(&out, &s, r);
    assert_true(out.acc == 1 && out.norm == 1 && isnan(out.acc_stderr));
    q.gold = 1;
    zeroshot_reduce(&out, &s, r);
    assert_true(out.acc == 0 && out.norm == 0);
    q.gold = 2; /* -10 / 20 = -5 / 10: equal, but later */
    zeroshot_reduce(&out, &s, r);
    assert_true(out.norm == 0);
}

static void a_question_counts_once_however_many_choices_are_cut(void **state)
{
    struct choice c[2] = {{.chars = 1}, {.chars = 1}};
    struct question q[3] = {
        {.choice = c, .n = 2}, {.choice = c, .n = 2}, {.choice = c, .n = 2}};
    const struct question_set s = {.item = q, .n = 3};
    const struct request r[6] = {{.cut = true}, {.cut = true}, {0},
                                 {0},           {0},           {.cut = true}};
    struct zeroshot_result out;
    zeroshot_reduce(&out, &s, r);
    assert_int_equal(out.cut, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_pad_little),
        cmocka_unit_test(a_question_is_a_batch),
        cmocka_unit_test(the_first_of_equals_wins),
        cmocka_unit_test(a_question_counts_once_however_many_choices_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
