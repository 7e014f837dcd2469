/* SPDX-License-Identifier: MIT
 *
 * Copies beside compute, on every device; and the messages of the cuda device for a failing call of
 * the runtime. */
#include "kernels/base/half.h"
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev_report.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1000 };

static const char *const devices[] = {"ref", "cpu", "cuda-emu"};

static struct dev *open_dev(const char *name)
{
    struct dev *d = NULL;
    const struct dev_settings s = {name, 2};
    assert_int_equal(dev_open(&d, &s), OK);
    assert_int_equal(dev_threads(d), strcmp(name, "ref") ? s.threads : 1);
    return d;
}

static void fill(float *x, float value)
{
    for (int i = 0; i < N; i++)
        x[i] = value;
}

static bool all_are(const float *x, float value)
{
    for (int i = 0; i < N; i++)
        if (x[i] != value)
            return false;
    return true;
}

struct memory {
    float *a, *b, *host; /* two of them on the device */
    struct tensor ta, tb;
};

static struct memory open_memory(struct dev *d)
{
    struct memory m = {0};
    assert_int_equal(dev_alloc(d, (void **)&m.a, N * sizeof(float)), OK);
    assert_int_equal(dev_alloc(d, (void **)&m.b, N * sizeof(float)), OK);
    assert_int_equal(dev_host_alloc(d, (void **)&m.host, N * sizeof(float)), OK);
    m.ta = tensor_2d(m.a, DT_F32, 1, N);
    m.tb = tensor_2d(m.b, DT_F32, 1, N);
    return m;
}

static void close_memory(struct dev *d, struct memory *m)
{
    dev_free(d, m->a);
    dev_free(d, m->b);
    dev_host_free(d, m->host);
}

/* Copied in, used after a wait, and copied out. */
static void round_trip(const char *name)
{
    struct dev *d = open_dev(name);
    struct memory m = open_memory(d);
    float back[N];
    fill(m.host, 3);
    assert_int_equal(dev_zero(d, m.a, sizeof(back)), OK);
    assert_int_equal(dev_copy_in(d, m.a, m.host, sizeof(back)), OK);
    assert_int_equal(dev_copy_wait(d), OK);
    assert_int_equal(dev_add(d, &m.tb, &m.ta, &m.ta), OK);
    assert_int_equal(dev_copy_out(d, back, m.b, sizeof(back)), OK);
    assert_int_equal(dev_sync(d), OK);
    assert_true(all_are(back, 6));
    close_memory(d, &m);
    dev_close(&d);
}

static void test_round_trip(void **state)
{
    for (int i = 0; i < 3; i++)
        round_trip(devices[i]);
    emu_card()->early_copies = true;
    round_trip("cuda-emu");
    emu_card()->early_copies = false;
}

/* A copy out starts after the operations before it, and one in after those that still read
 * its target, whether copies run late or early. */
static void test_copies_follow_compute(void **state)
{
    for (int early = 0; early < 2; early++) {
        emu_card()->early_copies = early;
        struct dev *d = open_dev("cuda-emu");
        struct memory m = open_memory(d);
        float back[N];
        fill(m.host, 3);
        assert_int_equal(dev_upload(d, m.a, m.host, sizeof(back)), OK);
        assert_int_equal(dev_add(d, &m.tb, &m.ta, &m.ta), OK);
        assert_int_equal(dev_copy_out(d, back, m.b, sizeof(back)), OK);
        fill(m.host, 5);
        assert_int_equal(dev_copy_in(d, m.a, m.host, sizeof(back)), OK);
        assert_int_equal(dev_copy_sync(d), OK);
        assert_true(all_are(back, 6));
        assert_int_equal(dev_download(d, back, m.a, sizeof(back)), OK);
        assert_true(all_are(back, 5));
        close_memory(d, &m);
        dev_close(&d);
    }
    emu_card()->early_copies = false;
}

/* Memory is freed after the work that uses it, also the device's own. */
static void test_memory_outlives_work(void **state)
{
    struct dev *d = open_dev("cuda-emu");
    struct memory m = open_memory(d);
    double loss;
    const struct loss_inputs in = {.y = &m.ta, .t = &m.tb, .weight = 1};
    assert_int_equal(dev_zero(d, m.a, N * sizeof(float)), OK);
    assert_int_equal(dev_zero(d, m.b, N * sizeof(float)), OK);
    assert_int_equal(dev_col_minmax(d, &m.ta, &m.tb, &m.ta), OK);
    assert_int_equal(dev_loss(d, &loss, NULL, &in), OK);
    assert_int_equal(dev_add(d, &m.tb, &m.ta, &m.ta), OK);
    dev_free(d, m.a);
    m.a = NULL;
    assert_int_equal(dev_copy_out(d, m.host, m.b, N * sizeof(float)), OK);
    close_memory(d, &m);
    assert_int_equal(dev_sync(d), OK);
    dev_close(&d);
}

/* The emulation delays copies as far as a GPU may. Without the wait the old values are
 * used. A source that changes before the copy is done spoils the copy. */
static void test_missing_waits_show(void **state)
{
    struct dev *d = open_dev("cuda-emu");
    struct memory m = open_memory(d);
    float back[N], other[N];
    fill(m.host, 3);
    assert_int_equal(dev_zero(d, m.a, sizeof(back)), OK);
    assert_int_equal(dev_copy_in(d, m.a, m.host, sizeof(back)), OK);
    assert_int_equal(dev_add(d, &m.tb, &m.ta, &m.ta), OK);
    assert_int_equal(dev_download(d, back, m.b, sizeof(back)), OK);
    assert_true(all_are(back, 0));
    fill(m.host, 4);
    assert_int_equal(dev_copy_sync(d), OK);
    assert_int_equal(dev_download(d, back, m.a, sizeof(back)), OK);
    assert_true(all_are(back, 4));
    assert_int_equal(dev_copy_out(d, back, m.a, sizeof(back)), OK);
    assert_int_equal(dev_zero(d, m.a, sizeof(back)), OK);
    assert_int_equal(dev_download(d, other, m.b, sizeof(other)), OK);
    assert_int_equal(dev_copy_sync(d), OK);
    assert_true(all_are(back, 0));
    close_memory(d, &m);
    dev_close(&d);
}

/* Elements of every bit pattern of the type's upper half, at an odd address. */
static uint8_t *some_elements(enum dtype t, int64_t n)
{
    const size_t size = dtype_bytes(t);
    uint8_t *raw = malloc((size_t)n * size + 1);
    assert_non_null(raw);
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)i * 2654435761u;
        const uint16_t half = (uint16_t)(bits >> 16);
        memcpy(raw + 1 + (size_t)i * size, t == DT_F32 ? (const void *)&bits : &half, size);
    }
    return raw;
}

/* Uploads n elements and compares them with the conversion on the host. A NaN is a NaN. The source
 * is spoiled as soon as the upload returns, and what was in the target is still read before it. */
static void upload_as(struct dev *d, enum dtype from, enum dtype to, int64_t n)
{
    const size_t bytes = (size_t)n * dtype_bytes(to);
    uint8_t *raw = some_elements(from, n);
    char *want = malloc(bytes), *got = malloc(bytes), *p = NULL;
    assert_true(want && got);
    if (to == DT_F16)
        memcpy(want, raw + 1, bytes);
    else if (to == DT_F32)
        host_to_f32((float *)want, raw + 1, from, n);
    else
        host_to_bf16((uint16_t *)want, raw + 1, from, n);
    assert_int_equal(dev_alloc(d, (void **)&p, 2 * bytes), OK);
    const enum dtype bits = to == DT_F16 ? DT_BF16 : to; /* zeros are zeros in both */
    const struct tensor y = tensor_1d(p, to, n), from_y = tensor_1d(p, bits, n);
    const struct tensor old = tensor_1d(p + bytes, bits, n);
    assert_int_equal(dev_zero(d, p, bytes), OK);
    assert_int_equal(dev_copy(d, &old, &from_y), OK);
    assert_int_equal(dev_upload_as(d, &y, raw + 1, from), OK);
    memset(raw, 0x55, (size_t)n * dtype_bytes(from) + 1);
    assert_int_equal(dev_download(d, got, p, bytes), OK);
    for (int64_t i = 0; i < n; i++) {
        float a, b;
        host_to_f32(&a, got + (size_t)i * dtype_bytes(to), to, 1);
        host_to_f32(&b, want + (size_t)i * dtype_bytes(to), to, 1);
        assert_true(isnan(b) ? isnan(a) : memcmp(&a, &b, sizeof(a)) == 0);
    }
    assert_int_equal(dev_download(d, got, p + bytes, bytes), OK);
    for (size_t i = 0; i < bytes; i++)
        assert_int_equal(got[i], 0);
    dev_free(d, p);
    free(raw);
    free(want);
    free(got);
}

/* From every type to every act type, one after the other through the same buffers: few elements,
 * then several pieces with an odd rest. */
static void uploads_on(const char *name)
{
    static const enum dtype from[] = {DT_F32, DT_F16, DT_BF16}, to[] = {DT_F32, DT_BF16};
    const int64_t piece = DEV_UPLOAD_BYTES / 4; /* of 16 bits */
    struct dev *d = open_dev(name);
    for (int i = 0; i < 6; i++) {
        upload_as(d, from[i % 3], to[i / 3], 1);
        upload_as(d, from[i % 3], to[i / 3], 1000 + i);
    }
    upload_as(d, DT_F16, DT_F16, 1000);
    upload_as(d, DT_F16, DT_F16, 2 * piece + 5);
    upload_as(d, DT_F16, DT_F32, piece);
    upload_as(d, DT_F16, DT_F32, 3 * piece + 77);
    upload_as(d, DT_F32, DT_BF16, 2 * piece + 8);
    dev_close(&d);
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
}

static void test_uploads_convert(void **state)
{
    uploads_on("cpu");
    for (int early = 0; early < 2; early++) {
        emu_card()->early_copies = early;
        uploads_on("cuda-emu");
    }
    emu_card()->early_copies = false;
}

/* The values of codes arrive in either act type. */
static void values_on(const char *name, enum dtype to)
{
    enum { OUT = 5, IN = 70, VALUES = OUT * IN };
    struct dev *d = open_dev(name);
    struct qlinear q = {0};
    float plain[VALUES], got[VALUES];
    void *p = NULL;
    assert_int_equal(qlinear_alloc(&q, OUT, IN, (struct lin_format){8, 32, 0}), OK);
    assert_int_equal(qlinear_alloc_codes(&q), OK);
    for (int i = 0; i < VALUES; i++)
        q.codes[i] = (uint8_t)(i * 101);
    for (int i = 0; i < OUT * (int)q.groups; i++) {
        q.scales[i] = (uint16_t)(0x2000 + 77 * i);
        q.zeros[i] = (uint8_t)(37 * i);
    }
    qlinear_values(plain, &q, NULL);
    assert_int_equal(dev_alloc(d, &p, VALUES * dtype_bytes(to)), OK);
    const struct tensor w = tensor_2d(p, to, OUT, IN);
    assert_int_equal(dev_upload_values(d, &w, &q), OK);
    assert_int_equal(dev_download_f32(d, got, &w), OK);
    for (int i = 0; i < VALUES; i++)
        assert_true(got[i] ==
                    (to == DT_F32 ? plain[i] : bf16_to_f32(bf16_from_f32(plain[i]))));
    qlinear_free(&q);
    dev_free(d, p);
    dev_close(&d);
}

static void test_upload_of_values(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
        values_on(devices[i], DT_F32);
        values_on(devices[i], DT_BF16);
    }
}

/* Elements of each type arrive in F32, however many, and no byte beside them is written. */
static void downloads_on(const char *name)
{
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16};
    struct dev *d = open_dev(name);
    for (int k = 0; k < 12; k++) {
        const enum dtype t = types[k % 3];
        const int64_t n = (int64_t[]){1, 2, 3, 1001}[k / 3];
        uint8_t *raw = some_elements(t, n);
        float *want = malloc((size_t)n * sizeof(*want));
        float *got = malloc((size_t)(n + 1) * sizeof(*got));
        void *p = NULL;
        assert_true(want && got);
        host_to_f32(want, raw + 1, t, n);
        got[n] = 7;
        assert_int_equal(dev_alloc(d, &p, (size_t)n * dtype_bytes(t)), OK);
        assert_int_equal(dev_upload(d, p, raw + 1, (size_t)n * dtype_bytes(t)), OK);
        const struct tensor x = tensor_1d(p, t, n);
        assert_int_equal(dev_download_f32(d, got, &x), OK);
        assert_memory_equal(got, want, (size_t)n * sizeof(*want));
        assert_true(got[n] == 7);
        dev_free(d, p);
        free(raw);
        free(want);
        free(got);
    }
    dev_close(&d);
}

static void test_downloads_convert(void **state)
{
    for (int i = 0; i < 3; i++)
        downloads_on(devices[i]);
}

/* Bytes that cross: 16 bits an element where the source or the target has no more. */
static void test_uploads_cross_in_16_bits(void **state)
{
    static const struct {
        enum dtype from, to;
        size_t bytes;
    } cases[] = {{DT_F16, DT_F32, 2},  {DT_BF16, DT_F32, 2}, {DT_F16, DT_BF16, 2},
                 {DT_F32, DT_BF16, 2}, {DT_F32, DT_F32, 4},  {DT_BF16, DT_BF16, 2},
                 {DT_F16, DT_F16, 2}};
    struct dev *d = open_dev("cuda-emu");
    struct memory m = open_memory(d);
    static const float zeros[N];
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const struct tensor y = tensor_1d(m.a, cases[i].to, N);
        const uint64_t before = emu_card()->crossed;
        assert_int_equal(dev_upload_as(d, &y, zeros, cases[i].from), OK);
        assert_int_equal(emu_card()->crossed - before, N * cases[i].bytes);
    }
    close_memory(d, &m);
    dev_close(&d);
}

/* Whatever call fails, and whichever memory is short, nothing stays allocated. Ordinary memory
 * replaces page-locked memory. */
static void test_uploads_that_fail(void **state)
{
    struct emu_card *c = emu_card();
    const struct emu_card was = *c;
    static float raw[DEV_UPLOAD_BYTES / 4 * 2];
    for (int kind = 0; kind < 16; kind++) {
        struct dev *d = open_dev("cuda-emu");
        void *p = NULL;
        assert_int_equal(dev_alloc(d, &p, sizeof(raw)), OK);
        const struct tensor y = tensor_1d(p, DT_F32, DEV_UPLOAD_BYTES / 4 * 2);
        c->total = kind == 0 ? c->live + DEV_UPLOAD_BYTES - 1 : was.total;
        c->pinned = kind == 1 ? DEV_UPLOAD_BYTES - 1 : was.pinned;
        c->fail_at = kind > 1 ? c->calls + kind - 1 : 0;
        err_clear();
        assert_int_equal(dev_upload_as(d, &y, raw, DT_F32), kind == 0   ? ERR_MEMORY
                                                            : kind == 1 ? OK
                                                                        : ERR_DEVICE);
        c->fail_at = 0;
        dev_free(d, p);
        dev_close(&d);
        assert_int_equal(c->live, 0);
        assert_int_equal(c->held, 0);
    }
    c->total = was.total;
    c->pinned = was.pinned;
    round_trip("cuda-emu");
}

/* Reports the loss of m's tensors, which are `value` and 0, and returns what dev_loss() says. */
static double report_value(struct dev_report *r, struct memory *m, int64_t at, float value)
{
    float x[N];
    double want;
    const struct loss_inputs in = {.y = &m->ta, .t = &m->tb, .weight = 0.3f};
    fill(x, value);
    assert_int_equal(dev_upload(r->dev, m->a, x, sizeof(x)), OK);
    assert_int_equal(dev_zero(r->dev, m->b, sizeof(x)), OK);
    assert_int_equal(dev_report_loss(r, at, NULL, &in), OK);
    assert_int_equal(dev_loss(r->dev, &want, NULL, &in), OK);
    return want;
}

static void check_report(struct dev_report *r, int slot, double first, double second,
                         bool want_bad)
{
    const double *loss;
    bool bad;
    assert_int_equal(dev_report_read(r, slot, &loss, &bad), OK);
    assert_true(loss[0] == first && loss[1] == second);
    assert_int_equal(bad, want_bad);
}

/* One step of AdamW from 1 with gradient 1, unless the report is bad. */
static bool moves(struct dev_report *r, struct memory *m)
{
    const struct adamw o = {.lr = 0.1f,
                            .beta1 = 0.9f,
                            .beta2 = 0.9f,
                            .eps = 1e-8f,
                            .step = 1,
                            .unless = r->bad};
    float x[N];
    struct memory moments = open_memory(r->dev);
    fill(x, 1);
    assert_int_equal(dev_upload(r->dev, m->a, x, sizeof(x)), OK);
    assert_int_equal(dev_upload(r->dev, m->b, x, sizeof(x)), OK);
    fill(x, 0);
    assert_int_equal(dev_upload(r->dev, moments.a, x, sizeof(x)), OK);
    assert_int_equal(dev_upload(r->dev, moments.b, x, sizeof(x)), OK);
    assert_int_equal(dev_adamw(r->dev, &m->ta, &m->tb, &moments.ta, &moments.tb, &o), OK);
    assert_int_equal(dev_download(r->dev, x, m->a, sizeof(x)), OK);
    const bool moved = !all_are(x, 1);
    assert_int_equal(dev_download(r->dev, x, moments.a, sizeof(x)), OK);
    assert_int_equal(!all_are(x, 0), moved);
    assert_int_equal(dev_download(r->dev, x, moments.b, sizeof(x)), OK);
    assert_int_equal(!all_are(x, 0), moved);
    close_memory(r->dev, &moments);
    return moved;
}

/* Reports are those of their own time, whatever was queued behind them, and stay bad. */
static void reports_on(const char *name)
{
    struct dev *d = open_dev(name);
    struct memory m = open_memory(d);
    struct dev_report r;
    assert_int_equal(dev_report_open(&r, d, 2), OK);
    const double two = report_value(&r, &m, 0, 2), five = report_value(&r, &m, 1, 5);
    assert_int_equal(dev_report_send(&r, 1), OK);
    const double three = report_value(&r, &m, 0, 3);
    assert_int_equal(dev_report_check(&r, &m.ta), OK);
    assert_int_equal(dev_report_send(&r, 0), OK);
    assert_true(moves(&r, &m) && two > 0 && two < three && three < five);
    const double seven = report_value(&r, &m, 0, 7);
    check_report(&r, 1, two, five, false);
    check_report(&r, 0, three, five, false);
    const double infinite = report_value(&r, &m, 1, INFINITY);
    assert_int_equal(dev_report_send(&r, 0), OK);
    report_value(&r, &m, 1, 5);
    assert_int_equal(dev_report_send(&r, 1), OK);
    check_report(&r, 0, seven, infinite, true);
    check_report(&r, 1, seven, five, true);
    assert_false(moves(&r, &m));
    dev_report_close(&r);
    /* a tensor that is not finite */
    float x[N] = {0};
    x[N - 1] = NAN;
    assert_int_equal(dev_report_open(&r, d, 1), OK);
    assert_int_equal(dev_upload(d, m.a, x, sizeof(x)), OK);
    assert_int_equal(dev_report_check(&r, &m.tb), OK);
    assert_true(moves(&r, &m));
    assert_int_equal(dev_upload(d, m.a, x, sizeof(x)), OK);
    assert_int_equal(dev_report_check(&r, &m.ta), OK);
    assert_false(moves(&r, &m));
    dev_report_close(&r);
    close_memory(d, &m);
    dev_close(&d);
}

static void test_reports(void **state)
{
    for (int i = 0; i < 3; i++)
        reports_on(devices[i]);
    emu_card()->early_copies = true;
    reports_on("cuda-emu");
    emu_card()->early_copies = false;
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
}

/* The host waits for a report's own copy, and finds what is not the device's memory there. */
static void test_a_report_is_waited_for(void **state)
{
    struct dev *d = open_dev("cuda-emu");
    struct memory m = open_memory(d);
    struct dev_report r;
    const double *loss;
    bool bad;
    assert_int_equal(dev_report_open(&r, d, 1), OK);
    const struct loss_inputs in = {.y = &m.ta, .t = &m.tb, .weight = 1};
    assert_int_equal(dev_zero(d, m.a, N * sizeof(float)), OK);
    assert_int_equal(dev_zero(d, m.b, N * sizeof(float)), OK);
    assert_int_equal(dev_report_loss(&r, 0, NULL, &in), OK);
    memset(r.copy[0], 0x55, dev_report_bytes(1));
    assert_int_equal(dev_report_send(&r, 0), OK);
    assert_int_equal(*(const uint8_t *)r.copy[0], 0x55); /* nothing waits yet */
    assert_int_equal(dev_report_read(&r, 0, &loss, &bad), OK);
    assert_true(*loss == 0 && !bad);
    dev_report_close(&r);
    close_memory(d, &m);
    dev_close(&d);
}

static void test_memory_is_counted(void **state)
{
    uint64_t free_bytes, total, after;
    struct dev *d = open_dev("cpu");
    assert_false(dev_memory(d, &free_bytes, &total));
    dev_close(&d);
    d = open_dev("cuda-emu");
    void *p = NULL;
    assert_true(dev_memory(d, &free_bytes, &total));
    assert_true(free_bytes <= total && total == emu_card()->total);
    assert_int_equal(dev_alloc(d, &p, 12345), OK);
    assert_true(dev_memory(d, &after, &total));
    assert_int_equal(free_bytes - after, 12345);
    dev_free(d, p);
    /* a refusal does not make the device fail */
    assert_int_equal(dev_alloc(d, &p, (size_t)total + 1), ERR_MEMORY);
    assert_int_equal(dev_host_alloc(d, &p, (size_t)emu_card()->pinned + 1), ERR_MEMORY);
    assert_int_equal(dev_sync(d), OK);
    dev_close(&d);
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
}

/* Whichever call fails, all later calls fail too, with a message. */
static void test_a_failure_stays(void **state)
{
    struct dev *d = open_dev("cuda-emu");
    struct memory m = open_memory(d);
    float back[N];
    emu_card()->fail_at = emu_card()->calls + 1;
    err_clear();
    assert_int_equal(dev_copy_in(d, m.a, m.host, sizeof(back)), ERR_DEVICE);
    assert_non_null(
        strstr(err_text(), "device cuda-emu: copy: an illegal memory access was"));
    assert_int_equal(dev_add(d, &m.tb, &m.ta, &m.ta), ERR_DEVICE);
    assert_int_equal(dev_download(d, back, m.a, sizeof(back)), ERR_DEVICE);
    emu_card()->fail_at = 0;
    close_memory(d, &m);
    dev_close(&d);
    round_trip("cuda-emu");
    /* an allocation that meets a failed device says so, not that memory is short */
    void *p = NULL;
    d = open_dev("cuda-emu");
    emu_card()->fail_at = emu_card()->calls + 1;
    err_clear();
    assert_int_equal(dev_alloc(d, &p, 64), ERR_DEVICE);
    assert_non_null(strstr(err_text(), "memory: an illegal memory access was"));
    emu_card()->fail_at = 0;
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_missing_waits_show),
        cmocka_unit_test(test_copies_follow_compute),
        cmocka_unit_test(test_memory_outlives_work),
        cmocka_unit_test(test_uploads_convert),
        cmocka_unit_test(test_upload_of_values),
        cmocka_unit_test(test_downloads_convert),
        cmocka_unit_test(test_uploads_cross_in_16_bits),
        cmocka_unit_test(test_uploads_that_fail),
        cmocka_unit_test(test_reports),
        cmocka_unit_test(test_a_report_is_waited_for),
        cmocka_unit_test(test_memory_is_counted),
        cmocka_unit_test(test_a_failure_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
