/* SPDX-License-Identifier: MIT
 *
 * Progress as JSON lines and in logs. */
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/pace.h"
#include "tools/cli/progress.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static const char log_file[] = "test_progress.tmp.json";

static void times(void **state)
{
    static const struct {
        double seconds;
        const char *text;
    } want[] = {{0, "0 s"},          {12.4, "12 s"},       {59.6, "1 min 00 s"},
                {200, "3 min 20 s"}, {3600, "1 h 00 min"}, {7384, "2 h 03 min"},
                {-1, "0 s"},         {NAN, "0 s"}};
    char text[32];
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        progress_time_text(text, sizeof(text), want[i].seconds);
        assert_string_equal(text, want[i].text);
    }
}

/* The file's lines, each parsed. */
static json_t *read_lines(void)
{
    char *text, *rest;
    size_t n;
    json_t *list = json_array();
    assert_int_equal(file_read_all(&text, &n, log_file, 1 << 20), OK);
    for (char *line = strtok_r(text, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest)) {
        json_t *o;
        assert_int_equal(json_parse(&o, line, strlen(line), "line"), OK);
        json_array_append_new(list, o);
    }
    mem_free(text);
    return list;
}

static void json_lines(void **state)
{
    struct progress *p;
    const struct calib_block_stats st = {.start_loss = 2, .best_loss = 1, .best_epoch = 3};
    struct calib_event e = {.kind = CALIB_STEP, .n_blocks = 4, .epochs = 5, .loss = NAN};
    log_set_level(LOG_WARN);
    unlink(log_file);
    assert_int_equal(progress_open(&p, true, log_file, NULL), OK);
    progress_phase(p, "calibrate");
    progress_calib(p, &e);
    e.kind = CALIB_BLOCK;
    e.loss = 0.5;
    e.done = 0.25;
    e.stats = &st;
    progress_calib(p, &e);
    progress_close(&p);
    log_set_level(LOG_INFO);

    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), 3);
    json_t *step = json_array_get(lines, 1), *block = json_array_get(lines, 2);
    assert_string_equal(json_string_value(json_object_get(step, "event")), "step");
    assert_null(json_object_get(step, "cell"));
    assert_true(json_is_null(json_object_get(step, "loss"))); /* JSON has no NaN */
    assert_true(json_number_value(json_object_get(block, "loss")) == 0.5);
    assert_true(json_number_value(json_object_get(block, "start_loss")) == 2);
    assert_int_equal(json_integer_value(json_object_get(block, "best_epoch")), 3);
    json_decref(lines);
    unlink(log_file);
}

/* A scan of keys and values prepares start values. */
static void every_kind_has_its_name(void **state)
{
    static const char *const want[] = {
        [CALIB_PREPARE] = "prepare", [CALIB_SCAN] = "prepare", [CALIB_STEP] = "step",
        [CALIB_EVAL] = "eval",       [CALIB_EPOCH] = "epoch",  [CALIB_BLOCK] = "block",
        [CALIB_ADVANCE] = "advance"};
    struct progress *p;
    unlink(log_file);
    assert_int_equal(progress_open(&p, true, log_file, "a \"cell\""), OK);
    for (size_t i = 0; i < ARRAY_LEN(want); i++)
        progress_calib(p, &(struct calib_event){.kind = (enum calib_event_kind)i});
    progress_close(&p);

    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), ARRAY_LEN(want));
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        const json_t *line = json_array_get(lines, i);
        assert_string_equal(json_string_value(json_object_get(line, "event")), want[i]);
        assert_string_equal(json_string_value(json_object_get(line, "cell")), "a \"cell\"");
    }
    json_decref(lines);
    unlink(log_file);
}

/* Returns the seconds left that an event's line has. */
static double eta_of(json_t *lines, size_t i)
{
    json_t *eta = json_object_get(json_array_get(lines, i), "eta_s");
    assert_true(json_is_real(eta));
    return json_number_value(eta);
}

/* Sends an event after 0.05 s, as work would take. */
static void work(struct progress *p, double done, double restored)
{
    const struct calib_event e = {
        .kind = CALIB_STEP, .n_blocks = 4, .epochs = 5, .done = done, .restored = restored};
    usleep(50000);
    progress_calib(p, &e);
}

/* The clock has seen this run's work only: 0.02 of the whole in prepared samples, then 0.02 in
 * steps. The 0.5 that an earlier run did take no time. */
static void restored_work_takes_no_time(void **state)
{
    struct progress *p;
    unlink(log_file);
    assert_int_equal(progress_open(&p, true, log_file, NULL), OK);
    progress_phase(p, "calibrate");
    const double begin = clock_s();
    work(p, 0.01, 0);
    work(p, 0.03, 0);
    work(p, 0.55, 0.5);
    const double seconds = clock_s() - begin;
    progress_close(&p);

    json_t *lines = read_lines();
    assert_int_equal(json_array_size(lines), 4);
    assert_true(eta_of(lines, 2) >= 0.0499 * 0.97 / 0.02 &&
                eta_of(lines, 2) <= seconds * 0.97 / 0.02);
    assert_true(eta_of(lines, 3) >= 0.0999 * 0.45 / 0.04 &&
                eta_of(lines, 3) <= seconds * 0.45 / 0.04);
    json_decref(lines);
    unlink(log_file);
}

/* Asserts the seconds left, whose arithmetic is exact to a few last bits. */
static void left_is(double got, double want)
{
    assert_true(fabs(got - want) <= 1e-9 * want);
}

/* A step takes 10 s and is a thousandth of the whole. */
static void an_even_pace(void **state)
{
    struct pace p = {0};
    assert_true(pace_left(&p, 1000, 0.2, 0.8) == -1);
    for (int i = 1; i < 200; i++)
        left_is(pace_left(&p, 1000 + 10 * i, 0.2 + 1e-3 * i, 0.8 - 1e-3 * i),
                (0.8 - 1e-3 * i) * 10000);
}

/* Eight hours of suspension count until two windows have passed. */
static void a_suspended_run_finds_its_pace_again(void **state)
{
    struct pace p = {0};
    double now = 0, left = 0;
    for (int i = 0; i < 100; i++, now += 10)
        left = pace_left(&p, now, 1e-3 * i, 1 - 1e-3 * i);
    left_is(left, (1 - 0.099) * 10000);
    now += 8 * 3600;
    for (int i = 100; now < 1000 + 8 * 3600 + 2 * PACE_WINDOW_S + 20; i++, now += 10)
        left = pace_left(&p, now, 1e-3 * i, 1);
    left_is(left, 10000);
}

/* A step of a large model is less than a ten-thousandth of the whole, and still tells the pace. */
static void a_slow_run_has_a_pace(void **state)
{
    struct pace p = {0};
    assert_true(pace_left(&p, 0, 0, 1) == -1);
    assert_true(pace_left(&p, 50, 5e-6, 1) == -1);
    left_is(pace_left(&p, 100, 1e-5, 1), 1e7);
    left_is(pace_left(&p, 1100, 1e-5 + 1e-4, 1), 1e7);
}

/* Work that an earlier run did is not left, and took none of this run's time. */
static void an_earlier_runs_work_is_not_left(void **state)
{
    struct pace p = {0};
    assert_true(pace_left(&p, 0, 0, 0.4) == -1);
    left_is(pace_left(&p, 10, 0.1, 0.3), 30);
}

static void unwritable_log_is_refused(void **state)
{
    struct progress *p = NULL;
    err_clear();
    assert_int_equal(progress_open(&p, false, "no/such/folder/log.json", NULL), ERR_USAGE);
    assert_non_null(strstr(err_text(), "no/such/folder/log.json"));
}

static int warnings;

static void count_warnings(void *ctx, enum log_level level, const char *line)
{
    warnings += level == LOG_WARN && strstr(line, "--log-json /dev/full: cannot write: ") &&
                strstr(line, strerror(ENOSPC));
}

static void a_full_disk_is_said_once(void **state)
{
    struct progress *p;
    const struct calib_event e = {.kind = CALIB_STEP, .n_blocks = 4, .epochs = 5};
    warnings = 0;
    assert_int_equal(progress_open(&p, true, "/dev/full", NULL), OK);
    log_set_sink(count_warnings, NULL);
    progress_phase(p, "calibrate");
    progress_calib(p, &e);
    progress_calib(p, &e);
    progress_close(&p);
    assert_int_equal(warnings, 1);
    log_set_sink(NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(times),
        cmocka_unit_test(json_lines),
        cmocka_unit_test(every_kind_has_its_name),
        cmocka_unit_test(restored_work_takes_no_time),
        cmocka_unit_test(an_even_pace),
        cmocka_unit_test(a_suspended_run_finds_its_pace_again),
        cmocka_unit_test(a_slow_run_has_a_pace),
        cmocka_unit_test(an_earlier_runs_work_is_not_left),
        cmocka_unit_test(unwritable_log_is_refused),
        cmocka_unit_test(a_full_disk_is_said_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
