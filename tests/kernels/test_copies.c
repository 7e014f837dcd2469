/* SPDX-License-Identifier: MIT
 *
 * Copies beside compute, on every device; and the messages of the cuda device for no GPU,
 * an old driver, too little memory, and a failing call of the runtime. */
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1000 };

static const char *const devices[] = {"ref", "cpu", "cuda-emu"};

static struct dev *open_dev(const char *name)
{
    struct dev *d = NULL;
    const struct dev_settings s = {name, 1};
    assert_int_equal(dev_open(&d, &s), OK);
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

static void refused(enum err want, const char *text)
{
    struct dev *d = NULL;
    const struct dev_settings s = {"cuda-emu", 1};
    err_clear();
    assert_int_equal(dev_open(&d, &s), want);
    assert_null(d);
    assert_non_null(strstr(err_text(), text));
    assert_int_equal(emu_card()->live, 0);
}

static void test_cards_that_do_not_do(void **state)
{
    struct emu_card *c = emu_card();
    const struct emu_card was = *c;
    c->devices = 0;
    refused(ERR_SUPPORT, "no NVIDIA GPU found (no CUDA-capable device is detected); use");
    *c = was;
    c->driver = 12020;
    refused(ERR_SUPPORT,
            "the driver has CUDA 12.2, this build wants 13.0; install a newer");
    *c = was;
    c->major = 7;
    c->minor = 5;
    refused(ERR_SUPPORT, "has compute capability 7.5, bf16 needs 8.0; use --device cpu");
    *c = was;
    for (c->fail_at = 1; c->fail_at <= 4; c->fail_at++)
        refused(c->fail_at == 1 ? ERR_SUPPORT : ERR_DEVICE, "illegal memory access");
    *c = was;
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
        cmocka_unit_test(test_memory_is_counted),
        cmocka_unit_test(test_cards_that_do_not_do),
        cmocka_unit_test(test_a_failure_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
