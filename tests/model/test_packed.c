/* SPDX-License-Identifier: MIT
 *
 * Texts packed into windows have the losses that each has alone. */
#include "kernels/base/mem.h"
#include "tests/model/quantized_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Products of other sizes add up in another order; all codes must be equal. */
#define TOLERANCE 2e-6

/* Texts of several lengths in two packed windows; some begin as an earlier one does. */
#define TEXTS 6
#define ROWS 20
static const struct sequence text[TEXTS] = {{0, 0, 0, T}, {0, 6, T, 3}, {0, 2, T + 3, 5},
                                            {0, 0, 0, 4}, {0, 0, 4, T}, {4, 5, 4 + T, 3}};
static const int64_t text_start[] = {0, 3, TEXTS}; /* of windows */

/* The ids of text i: those that it shares come from an earlier text of its window. */
static void text_ids(int32_t *ids, const struct quantized *m, int64_t i)
{
    const struct sequence *q = &text[i];
    int64_t base = i < text_start[1] ? 0 : text_start[1];
    while (text[base].first != q->from)
        base++;
    memcpy(ids, m->ids + base, (size_t)q->past * sizeof(*ids));
    memcpy(ids + q->past, m->ids + i, (size_t)q->n * sizeof(*ids));
}

/* Fills the rows of text i: every own row but the last has a target. */
static void text_rows(int32_t *ids, int32_t *target, const struct quantized *m, int64_t i)
{
    const struct sequence *q = &text[i];
    const int64_t at = (i < text_start[1] ? 0 : ROWS) + q->first;
    int32_t all[T];
    text_ids(all, m, i);
    for (int64_t k = 0; k < q->n; k++) {
        ids[at + k] = all[q->past + k];
        target[at + k] = k + 1 < q->n ? all[q->past + k + 1] : -1;
    }
}

/* The losses of packed texts are those of each text alone. */
static void check_texts(const struct model_run *r, const struct quantized *m,
                        const float *nll, const char *what)
{
    for (int64_t i = 0; i < TEXTS; i++) {
        const struct sequence *q = &text[i];
        const int64_t at = (i < text_start[1] ? 0 : ROWS) + q->first, n = q->past + q->n;
        int32_t ids[T];
        float want[T - 1];
        text_ids(ids, m, i);
        must(model_nll(r, ids, 1, n, want));
        check_error(what, max_error(nll + at, want + q->past, q->n - 1), TOLERANCE);
        assert_true(nll[at + q->n - 1] == 0);
    }
}

static void check_packed(const char *device, struct kv_spec kv, int64_t chunk)
{
    int32_t ids[2 * ROWS] = {0}, target[2 * ROWS];
    float nll[2 * ROWS];
    struct quantized m;
    quantized_open(&m);
    for (int i = 0; i < LAYERS; i++)
        m.q[i].kv = kv;
    for (int i = 0; i < 2 * ROWS; i++)
        target[i] = -1;
    for (int64_t i = 0; i < TEXTS; i++)
        text_rows(ids, target, &m, i);
    struct dev *d = open_dev(device);
    const struct model_run r = {.dev = d,
                                .arch = &m.f.arch,
                                .src = &m.f.source,
                                .quant = &m.quant,
                                .act = DT_F32,
                                .chunk = chunk};
    const struct packed_windows w = {2, ROWS, T, text, text_start, ids, target};
    must(model_nll_packed(&r, &w, nll));
    check_texts(&r, &m, nll, "nll, packed");
    dev_close(&d);
    quantized_close(&m);
}

/* Sequences that do not fit their window are refused. */
static void packed_windows_are_checked(void **state)
{
    const struct sequence wrong[][2] = {
        {{0, 0, 0, 0}, {0, 0, 0, 4}},  /* no row */
        {{0, 0, 0, 4}, {0, 0, 5, 4}},  /* a gap */
        {{0, 0, 0, 4}, {0, 0, 3, 4}},  /* an overlap */
        {{0, 0, 0, 4}, {0, 0, 4, 7}},  /* more rows than the window has */
        {{0, 0, 0, 4}, {0, 5, 4, 4}},  /* more past than the other text has */
        {{0, 0, 0, 4}, {1, 2, 4, 4}},  /* a past that is no text */
        {{0, 0, 0, 4}, {0, -1, 4, 4}}, /* a negative past */
        {{0, 0, 0, 6}, {0, 6, 6, 4}},  /* longer than the longest */
    };
    const int64_t start[] = {0, 2};
    const int32_t ids[10] = {0}, target[10] = {0};
    float nll[10];
    struct quantized m;
    quantized_open(&m);
    struct dev *d = open_dev("ref");
    const struct model_run r = {
        .dev = d, .arch = &m.f.arch, .src = &m.f.source, .act = DT_F32, .chunk = 1};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        const struct packed_windows w = {1, 10, T, wrong[i], start, ids, target};
        assert_int_equal(model_nll_packed(&r, &w, nll), ERR_SHAPE);
        err_clear();
    }
    /* The second text has a past itself, so the third cannot begin with its rows. */
    const struct sequence chain[] = {{0, 0, 0, 4}, {0, 2, 4, 3}, {4, 2, 7, 3}};
    const int64_t start_3[] = {0, 3};
    const struct packed_windows chained = {1, 10, T, chain, start_3, ids, target};
    assert_int_equal(model_nll_packed(&r, &chained, nll), ERR_SHAPE);
    err_clear();
    const struct packed_windows none = {.rows = 10, .start = start};
    assert_int_equal(model_nll_packed(&r, &none, nll), ERR_USAGE);
    err_clear();
    dev_close(&d);
    quantized_close(&m);
}

static void packed_texts_are_as_alone(void **state)
{
    struct mix *mixed;
    must(mix_parse(&mixed, MIX_KV, "v=8:6, 0.k=16, 1.k=3:3", ERR_USAGE, "test"));
    const struct kv_spec plain = {KV_CHANNEL_TOKEN, KV_BITS, 4, KEY_POST_ROPE, true, 1,
                                  .learn = true};
    struct kv_spec kept = plain, pre = plain, full = plain, blocks = plain;
    kept.window = 3;
    kept.sink = 1;
    pre.key_stage = KEY_PRE_ROPE;
    struct kv_spec blocks_pre = pre;
    full.bits = 16;
    blocks.method = KV_CHANNEL;
    blocks_pre.method = KV_CHANNEL;
    blocks_pre.group_size = 5;
    struct kv_spec of_layers = blocks_pre;
    of_layers.mixed = mixed;
    const char *const device[] = {"ref", "cpu"};
    for (size_t i = 0; i < ARRAY_LEN(device); i++) {
        check_packed(device[i], plain, 1);
        check_packed(device[i], plain, 0);
        check_packed(device[i], plain, 7);
        check_packed(device[i], kept, 1);
        check_packed(device[i], pre, 4);
        check_packed(device[i], full, 1);
        check_packed(device[i], blocks, 1);
        check_packed(device[i], blocks_pre, 1);
        check_packed(device[i], of_layers, 1);
    }
    mix_free(mixed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_texts_are_as_alone),
        cmocka_unit_test(packed_windows_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
