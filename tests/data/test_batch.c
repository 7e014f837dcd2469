/* SPDX-License-Identifier: MIT
 *
 * Windows, against values from CPython's random module. */
#include "data/batch.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* Draws from one text of n tokens. */
static enum err draw(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                     uint64_t seed)
{
    const struct batch_text text = {"the text", 0, n, 1};
    const struct batch_source source = {.text = &text, .n_texts = 1};
    struct mt19937 rng;
    mt_seed(&rng, seed);
    return batch_draw(offset, NULL, samples, seqlen, &source, &rng);
}

static void test_offsets(void **state)
{
    static const struct {
        uint64_t seed;
        int64_t n, want[8];
    } v[] = {
        {0, 341469, {201979, 220500, 21225, 135746, 268055, 254766, 212302, 159023}},
        {0, 2000000, {1770880, 807917, 1589545, 1866976, 882002, 84901, 542987, 1072220}},
        {2, 2000000, {1810071, 1987738, 1780597, 118596, 192067, 177989, 757192, 1752168}},
    };
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        int64_t have[8];
        assert_int_equal(draw(have, 8, 2048, v[i].n, v[i].seed), OK);
        assert_memory_equal(have, v[i].want, sizeof(have));
    }
}

/* What is drawn in two calls continues: it is what one call draws. */
static void test_goes_on(void **state)
{
    const struct batch_text text = {"the text", 0, 2000000, 0.25};
    const struct batch_source source = {.text = &text, .n_texts = 1};
    int64_t whole[8], parts[8];
    struct mt19937 rng;
    mt_seed(&rng, 0);
    assert_int_equal(batch_draw(parts, NULL, 3, 2048, &source, &rng), OK);
    assert_int_equal(batch_draw(parts + 3, NULL, 5, 2048, &source, &rng), OK);
    assert_int_equal(draw(whole, 8, 2048, 2000000, 0), OK);
    assert_memory_equal(whole, parts, sizeof(whole));
}

/* Shares and how many of n windows each text then gives; figures by hand. */
static void test_shares(void **state)
{
    static const struct {
        double share[4];
        int64_t n, want[4];
    } v[] = {
        {{1, 1, 1, 1}, 8, {2, 2, 2, 2}},
        {{0.5, 0.3, 0.2, 0}, 10, {5, 3, 2, 0}},
        {{0.1, 0.2, 0.7, 0}, 10, {1, 2, 7, 0}},
        {{1, 1, 1, 0}, 16, {6, 5, 5, 0}}, /* 5.33 each: the first gets what is left */
        {{0, 1, 2, 0}, 16, {0, 5, 11, 0}},
        {{60, 30, 5, 5}, 7, {4, 2, 1, 0}}, /* 4.2, 2.1, 0.35, 0.35 */
        {{0, 0, 3, 0}, 5, {0, 0, 5, 0}},
        {{1, 2, 3, 4}, 0, {0, 0, 0, 0}},
        {{1e-9, 1, 0, 0}, 4, {0, 4, 0, 0}},
    };
    for (size_t i = 0; i < ARRAY_LEN(v); i++) {
        struct batch_text text[4] = {{NULL}};
        int64_t have[4];
        for (int t = 0; t < 4; t++)
            text[t].share = v[i].share[t];
        assert_int_equal(batch_shares(have, v[i].n, text, 4), OK);
        assert_memory_equal(have, v[i].want, sizeof(have));
    }
    static const double bad[][2] = {
        {0, 0}, {-1, 1}, {NAN, 1}, {INFINITY, 1}, {1e308, 1e308}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        const struct batch_text text[2] = {{.share = bad[i][0]}, {.share = bad[i][1]}};
        int64_t have[2];
        err_clear();
        assert_int_equal(batch_shares(have, 3, text, 2), ERR_USAGE);
        assert_non_null(strstr(err_text(), "want a positive sum"));
    }
}

/* Windows lie in their texts, as many as the shares say, and in proportion from the first
 * on. */
static void test_draws_from_texts(void **state)
{
    static const struct batch_text text[] = {{"a", 0, 120, 0.5},
                                             {"b", 120, 101, 0.25},
                                             {"c", 221, 5, 0},
                                             {"d", 226, 1000, 0.25}};
    static const struct batch_source source = {.text = text, .n_texts = 4};
    enum { N = 40, L = 100 };
    int64_t offset[N], again[N], count[4], so_far[4] = {0};
    int from[N];
    struct mt19937 rng;
    mt_seed(&rng, 7);
    assert_int_equal(batch_draw(offset, from, N, L, &source, &rng), OK);
    assert_int_equal(batch_shares(count, N, text, 4), OK);
    for (int i = 0; i < N; i++) {
        const struct batch_text *t = &text[from[i]];
        assert_true(offset[i] >= t->begin && offset[i] + L <= t->begin + t->n);
        so_far[from[i]]++;
        for (int k = 0; k < 4; k++) {
            const int64_t off = so_far[k] * N - count[k] * (i + 1);
            assert_true(off < N && off > -N); /* less than a window from its share */
        }
    }
    assert_memory_equal(so_far, count, sizeof(count));
    mt_seed(&rng, 7);
    assert_int_equal(batch_draw(again, NULL, N, L, &source, &rng), OK);
    assert_memory_equal(again, offset, sizeof(offset));
}

/* The refusal names the text, and the generator continues as if nothing was drawn. */
static void test_a_short_text_is_named(void **state)
{
    static const struct batch_text text[] = {{"a.txt", 0, 500, 9}, {"b.txt", 500, 100, 1}};
    static const struct batch_source source = {.text = text, .n_texts = 2};
    int64_t offset[20];
    struct mt19937 rng, before;
    mt_seed(&rng, 3);
    before = rng;
    err_clear();
    assert_int_equal(batch_draw(offset, NULL, 20, 100, &source, &rng), ERR_USAGE);
    assert_non_null(strstr(err_text(), "b.txt has 100 tokens, and windows of 100 need"));
    assert_memory_equal(&rng, &before, sizeof(rng));
    /* of four windows its share is none, so that its length does not matter */
    assert_int_equal(batch_draw(offset, NULL, 4, 100, &source, &rng), OK);
}

/* Draws from one text of n tokens beside the windows at avoid. */
static enum err draw_apart(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                           uint64_t seed, const int64_t *avoid, int64_t n_avoid)
{
    const struct batch_text text = {"the text", 0, n, 1};
    const struct batch_source source = {&text, 1, avoid, n_avoid};
    struct mt19937 rng, before;
    mt_seed(&rng, seed);
    before = rng;
    const enum err err = batch_draw(offset, NULL, samples, seqlen, &source, &rng);
    assert_true(!err == (memcmp(&rng, &before, sizeof(rng)) != 0));
    return err;
}

/* Windows apart from others: none overlaps them, and the rest follows the same generator,
 * which stands where it stood if no place is left. */
static void test_apart(void **state)
{
    static const int64_t avoid[] = {100, 400};
    int64_t have[200];
    bool before = false, between = false, after = false;
    assert_int_equal(draw_apart(have, 200, 50, 600, 3, avoid, 2), OK);
    for (int i = 0; i < 200; i++) {
        assert_true(have[i] >= 0 && have[i] < 600 - 50);
        assert_true(have[i] <= 50 || (have[i] >= 150 && have[i] <= 350) || have[i] >= 450);
        before = before || have[i] <= 50;
        between = between || (have[i] >= 150 && have[i] <= 350);
        after = after || have[i] >= 450;
    }
    assert_true(before && between && after);
    int64_t plain[200];
    assert_int_equal(draw(plain, 200, 50, 600, 3), OK);
    assert_int_equal(draw_apart(have, 200, 50, 600, 3, NULL, 0), OK);
    assert_memory_equal(have, plain, sizeof(have));
    err_clear(); /* no place is left */
    const int64_t middle = 20;
    assert_int_equal(draw_apart(have, 1, 50, 95, 3, &middle, 1), ERR_USAGE);
    assert_non_null(
        strstr(err_text(), "the text has 95 tokens, too few for windows of 50"));
    assert_non_null(strstr(err_text(), "refine.guard"));
    err_clear();
}

/* The windows to avoid may be in any of the texts. */
static void test_apart_in_texts(void **state)
{
    static const struct batch_text text[] = {{"a", 0, 60, 1}, {"b", 60, 60, 1}};
    static const int64_t avoid[] = {0, 35, 80};
    const struct batch_source source = {text, 2, avoid, 3};
    int64_t offset[50];
    struct mt19937 rng;
    mt_seed(&rng, 1);
    assert_int_equal(batch_draw(offset, NULL, 50, 10, &source, &rng), OK);
    for (int i = 0; i < 50; i++)
        for (int k = 0; k < 3; k++)
            assert_true(offset[i] + 10 <= avoid[k] || avoid[k] + 10 <= offset[i]);
}

static void test_limits(void **state)
{
    int64_t o[2];
    err_clear();
    assert_int_equal(draw(o, 2, 2048, 2048, 0), ERR_USAGE);
    assert_non_null(strstr(err_text(), "2048"));
    err_clear();
    assert_int_equal(draw(o, 2, 0, 5, 0), ERR_USAGE);
    err_clear();
    assert_int_equal(draw(o, 2, 4, 5, 0), OK); /* the only place is 0 */
    assert_int_equal(o[0], 0);
    assert_int_equal(o[1], 0);
    assert_int_equal(batch_windows(341469, 2048), 166);
    assert_int_equal(batch_windows(2047, 2048), 0);
    assert_int_equal(batch_windows(5, 0), 0);
}

static void test_gather(void **state)
{
    static const int32_t ids[] = {0, 1, 2, 3, 4, 5};
    static const int64_t at[] = {3, 0};
    static const int32_t want[] = {3, 4, 5, 0, 1, 2};
    int32_t have[6];
    batch_gather(have, ids, at, 2, 3);
    assert_memory_equal(have, want, sizeof(want));
}

static void test_crc(void **state)
{
    static const int32_t ids[] = {1, -2, 70000};
    assert_int_equal(batch_crc(ids, 3),
                     3653759634u); /* zlib.crc32(struct.pack('<3i', ...)) */
    assert_int_equal(batch_crc(ids, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_goes_on),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_draws_from_texts),
        cmocka_unit_test(test_a_short_text_is_named),
        cmocka_unit_test(test_apart),
        cmocka_unit_test(test_apart_in_texts),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_crc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
