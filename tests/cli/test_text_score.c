/* SPDX-License-Identifier: MIT
 *
 * Scores of answers against tests/golden/scores.json (tests/golden/gen_scores.py). */
#include "data/json.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/longbench.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static json_t *golden;

static int load(void **state)
{
    const char *path = getenv("GOLDEN_SCORES");
    return path && json_load_file_strict(&golden, path, 1 << 20) == OK ? 0 : -1;
}

static int drop(void **state)
{
    json_decref(golden);
    return 0;
}

static void ok(enum err e)
{
    if (e)
        fail_msg("%s (%s)", err_text(), err_where());
}

static struct span text_of(const json_t *row, size_t i)
{
    const json_t *s = json_array_get(row, i);
    return (struct span){json_string_value(s), json_string_length(s)};
}

static void near(double got, const json_t *row, size_t i)
{
    const double want = json_number_value(json_array_get(row, i));
    const bool pass = fabs(got - want) <= 1e-12;
    if (!pass)
        fail_msg("%s / %s: %.17g, want %.17g", text_of(row, 0).p, text_of(row, 1).p, got,
                 want);
}

static void words(void **state)
{
    const json_t *rows = json_object_get(golden, "f1"), *row;
    size_t i;
    assert_true(json_array_size(rows) > 10);
    json_array_foreach(rows, i, row)
    {
        const struct span want = text_of(row, 2);
        char *norm;
        size_t n;
        double f1;
        ok(score_normalize(&norm, &n, text_of(row, 0)));
        assert_int_equal(n, want.n);
        assert_memory_equal(norm, want.p, n + 1);
        mem_free(norm);
        ok(score_f1(&f1, text_of(row, 0), text_of(row, 1)));
        near(f1, row, 3);
    }
}

static void code(void **state)
{
    const json_t *rows = json_object_get(golden, "code"), *row;
    size_t i;
    assert_true(json_array_size(rows) > 60);
    json_array_foreach(rows, i, row)
    {
        double ratio, score;
        ok(score_ratio(&ratio, text_of(row, 0), text_of(row, 1)));
        near(ratio, row, 2);
        ok(score_code(&score, text_of(row, 0), text_of(row, 1)));
        near(score, row, 3);
    }
}

static void first_lines(void **state)
{
    const char *const text[][2] = {
        {"\n\nParis\nQ:", "Paris"}, {"one", "one"}, {"\n", ""}, {"", ""}};
    for (size_t i = 0; i < ARRAY_LEN(text); i++) {
        const struct span s =
            score_first_line((struct span){text[i][0], strlen(text[i][0])});
        assert_int_equal(s.n, strlen(text[i][1]));
        assert_memory_equal(s.p, text[i][1], s.n);
    }
}

static void broken_text_is_read(void **state)
{
    double f1;
    ok(score_f1(&f1, (struct span){"caf\xc3 x", 6}, (struct span){"x", 1}));
    assert_true(fabs(f1 - 2.0 / 3) <= 1e-12);
}

/* The best of all answers, by the data set's own metric and rule. */
static void data_sets(void **state)
{
    const struct {
        const char *name, *answer;
        double score;
    } want[] = {
        {"2wikimqa", "The red\nhouse", 1},
        {"hotpotqa", "a red house.", 1},
        {"qasper", "red", 2.0 / 3},
        {"multifieldqa_en", "red\nhouse", 1},
        {"triviaqa", "\nred\nhouse", 2.0 / 3},
        {"lcc", "# x\nred house", 1},
        {"lcc", "red  house", 0.95},
    };
    json_t *answers = json_pack("[s, s]", "green", "red house");
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        const struct longbench_task *task =
            longbench_find(want[i].name, strlen(want[i].name));
        double score;
        assert_non_null(task);
        ok(longbench_score(&score, task,
                           (struct span){want[i].answer, strlen(want[i].answer)}, answers));
        if (!(fabs(score - want[i].score) <= 1e-12))
            fail_msg("%s: %g, want %g", want[i].name, score, want[i].score);
    }
    json_decref(answers);
    assert_null(longbench_find("trec", 4));
}

static const char *set_of(const char *file, const char *row)
{
    const struct longbench_task *task = NULL;
    json_t *o = json_loads(row, 0, NULL);
    assert_non_null(o);
    err_clear();
    if (longbench_row_task(&task, o, file, "here"))
        task = NULL;
    json_decref(o);
    return task ? task->name : "none";
}

/* A row's own field counts before its file's name, of which only known ends are cut. */
static void data_sets_of_rows(void **state)
{
    (void)state;
    assert_string_equal(set_of("x.jsonl", "{\"dataset\": \"lcc\"}"), "lcc");
    assert_string_equal(set_of("qasper.jsonl", "{\"set\": \"lcc\"}"), "lcc");
    assert_string_equal(set_of("qasper.jsonl", "{}"), "qasper");
    assert_string_equal(set_of("qasper.JSON.gz", "{}"), "qasper");
    assert_string_equal(set_of("qasper.tar.zst", "{}"), "qasper");
    assert_string_equal(set_of("qasper", "{}"), "qasper");
    assert_string_equal(set_of("qasper.old.jsonl", "{}"), "none");
    assert_non_null(strstr(err_text(), "data set \"qasper.old.jsonl\" is not supported"));
    assert_string_equal(set_of("qasper.jsonl.bak", "{}"), "none");
    assert_string_equal(set_of(".jsonl", "{}"), "none");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words),       cmocka_unit_test(code),
        cmocka_unit_test(first_lines), cmocka_unit_test(broken_text_is_read),
        cmocka_unit_test(data_sets),   cmocka_unit_test(data_sets_of_rows),
    };
    return cmocka_run_group_tests(tests, load, drop);
}
