/* SPDX-License-Identifier: MIT
 *
 * The packed windows of multiple choice in simulation, and its accuracies. */
#include "tools/eval/tasks/zeroshot.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define CHOICES 3
#define LONGEST 1500

/* Questions of three choices. A context is one id of the question, repeated; behind it each choice
 * has ids of its own. */
struct questions {
    struct request r[300];
    int32_t ids[300][LONGEST];
    int64_t n;
};

static void add_question(struct questions *q, int64_t ctx, const int64_t *length)
{
    for (int c = 0; c < CHOICES; c++) {
        const int64_t i = q->n++;
        for (int64_t t = 0; t < ctx + length[c]; t++)
            q->ids[i][t] = (int32_t)(t < ctx ? 1000 + i / CHOICES : 10 * i + t - ctx + 1);
        q->r[i] = (struct request){.ids = q->ids[i],
                                   .n = ctx + length[c],
                                   .ctx = ctx,
                                   .question = i / CHOICES,
                                   .choice = c};
    }
}

/* Returns token t of the text of request i, read from its rows. */
static int32_t token_at(const struct zeroshot_windows *w, int64_t i, int64_t t)
{
    const struct sequence *q = &w->sequence[i];
    const int32_t *ids = w->ids + w->window[i] * w->w.rows;
    return t < q->past ? ids[q->from + t] : ids[q->first + t - q->past];
}

/* Checks that the rows of request i are its inputs, and that they score what it scores. */
static void check_request(const struct zeroshot_windows *w, const struct request *r,
                          int64_t i)
{
    const struct sequence *q = &w->sequence[i];
    const int32_t *target = w->target + w->window[i] * w->w.rows;
    assert_int_equal(q->past + q->n, r->n - 1);
    for (int64_t t = 0; t < r->n - 1; t++)
        assert_int_equal(token_at(w, i, t), r->ids[t]);
    for (int64_t t = q->past; t < r->n - 1; t++)
        assert_int_equal(target[q->first + t - q->past],
                         t + 1 < r->ctx ? -1 : r->ids[t + 1]);
    assert_true(q->past < r->ctx);
}

/* Returns the sum of rows, and checks that each window has what the model wants. */
static int64_t check_windows(const struct zeroshot_windows *w, const struct questions *q)
{
    int64_t rows = 0;
    assert_int_equal(w->start[w->w.n], q->n);
    for (int64_t i = 0; i < q->n; i++) {
        const bool first = w->start[w->window[i]] == i;
        const struct sequence *s = &w->sequence[i], *before = first ? NULL : s - 1;
        assert_int_equal(s->first, first ? 0 : before->first + before->n);
        assert_true(s->first + s->n <= w->w.rows);
        check_request(w, &q->r[i], i);
        rows += s->n;
    }
    return rows;
}

/* Losses that name their row, so that every sum tells which rows it is of. */
static void check_sums(const struct zeroshot_windows *w, struct questions *q)
{
    const int64_t rows = w->w.n * w->w.rows;
    float *nll = malloc((size_t)rows * sizeof(*nll));
    assert_non_null(nll);
    for (int64_t r = 0; r < rows; r++)
        nll[r] = w->target[r] < 0 ? NAN : (float)w->target[r];
    zeroshot_unpack(w, q->r, q->n, nll);
    for (int64_t i = 0; i < q->n; i++) {
        double want = 0;
        for (int64_t t = q->r[i].ctx; t < q->r[i].n; t++)
            want -= q->r[i].ids[t];
        assert_true(q->r[i].ll == want);
    }
    free(nll);
}

static int64_t pack(struct questions *q, int64_t *windows)
{
    struct zeroshot_windows w;
    assert_int_equal(zeroshot_pack(&w, q->r, q->n), OK);
    const int64_t rows = check_windows(&w, q);
    check_sums(&w, q);
    *windows = w.w.n;
    zeroshot_windows_free(&w);
    return rows;
}

static void choices_share_their_context(void **state)
{
    static struct questions q;
    int64_t windows, want = 0;
    for (int i = 0; i < 100; i++) {
        const int64_t ctx = 1 + 7 * i % 90, length[CHOICES] = {1 + i % 5, 9, 30};
        add_question(&q, ctx, length);
        /* The row of the context's last token predicts, so each choice has its own. */
        want += ctx - 1 + 3 + (length[0] - 1) + (length[1] - 1) + (length[2] - 1);
        assert_int_equal(zeroshot_question_rows(&q.r[3 * (int64_t)i], CHOICES),
                         ctx + length[0] + length[1] + length[2] - 1);
    }
    assert_int_equal(pack(&q, &windows), want);
    assert_int_equal(windows, (want + ZEROSHOT_WINDOW_ROWS - 1) / ZEROSHOT_WINDOW_ROWS);
}

static void a_question_may_be_longer_than_a_window(void **state)
{
    static struct questions q;
    const int64_t length[CHOICES] = {700, 700, 700}, one[CHOICES] = {1, 1, 1};
    int64_t windows;
    add_question(&q, 20, one);
    add_question(&q, 300, length);
    add_question(&q, 20, one);
    add_question(&q, LONGEST - 700, length);
    /* Windows have room for the longest text, 1499 rows. No window holds two choices of a long
     * question, and the third question follows the second's last choice. */
    const int64_t rows = pack(&q, &windows);
    assert_int_equal(windows, 7);
    assert_int_equal(rows, 22 + 3 * 999 + 22 + 3 * 1499);
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
        cmocka_unit_test(choices_share_their_context),
        cmocka_unit_test(a_question_may_be_longer_than_a_window),
        cmocka_unit_test(the_first_of_equals_wins),
        cmocka_unit_test(a_question_counts_once_however_many_choices_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
