/* SPDX-License-Identifier: MIT
 *
 * Gradients of linked devices are added up as those that pass through host memory. Threads stand
 * for ranks, and the cpu device with a link between threads for a GPU. */
#include "calib/batch/share.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/dev_link.h"
#include "kernels/dev_ops.h"
#include "tests/calib/ranks_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* --- a link between threads --------------------------------------------------------- */

static _Thread_local const struct ranks *linked_to;
static _Thread_local int transfers;
static uint64_t free_of_last = UINT64_MAX; /* of the last rank's device */
static uint64_t reserve;

static bool fake_link(struct dev *d, const struct ranks *r, char *about)
{
    linked_to = r;
    transfers = 0;
    strcpy(about, "threads");
    return true;
}

static void fake_unlink(struct dev *d)
{
    linked_to = NULL;
}

static int64_t count(int *n, const int64_t *wide)
{
    int64_t all = 0;
    for (int q = 0; q < linked_to->size; q++) {
        n[q] = (int)wide[q];
        all += wide[q];
    }
    return all;
}

static void fake_transfer(struct dev *d, float *const *to, const int64_t *to_n,
                          const float *const *from, const int64_t *from_n)
{
    int put[RANKS_MAX], take[RANKS_MAX];
    float *sent = NULL, *arrived = NULL;
    assert_int_equal(mem_alloc(&sent, (size_t)count(put, from_n) + 1, sizeof(*sent)), OK);
    assert_int_equal(mem_alloc(&arrived, (size_t)count(take, to_n) + 1, sizeof(*sent)), OK);
    float *at = sent;
    for (int q = 0; q < linked_to->size; at += put[q++])
        memcpy(at, from[q], (size_t)put[q] * sizeof(*at));
    linked_to->exchange(arrived, take, sent, put);
    at = arrived;
    for (int q = 0; q < linked_to->size; at += take[q++])
        memcpy(to[q], at, (size_t)take[q] * sizeof(*at));
    mem_free(sent);
    mem_free(arrived);
    transfers++;
}

static bool fake_memory(struct dev *d, uint64_t *free, uint64_t *total)
{
    *free = linked_to->rank == linked_to->size - 1 ? free_of_last : UINT64_MAX;
    *total = *free;
    return true;
}

static enum err fill_linked(struct dev *d, int threads)
{
    TRY(cpu_fill(d, threads));
    d->ops.link = fake_link;
    d->ops.unlink = fake_unlink;
    d->ops.transfer = fake_transfer;
    d->ops.memory = fake_memory;
    return OK;
}

/* --- a step ------------------------------------------------------------------------- */

#define TENSORS 3
#define BATCH 7

struct step {
    const char *device;
    const int64_t *floats; /* [TENSORS]; 0: no such gradient */
    int64_t samples;       /* of the batch */
    bool linked;
    float *sum; /* of all tensors in a row */
    int transfers;
};

static int64_t floats_of(const struct step *s)
{
    int64_t all = 0;
    for (int i = 0; i < TENSORS; i++)
        all += s->floats[i];
    return all;
}

/* The gradients of sample k. */
static void draw(float *x, int64_t n, int64_t k)
{
    struct rng r;
    rng_seed(&r, (uint64_t)k + 1);
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(&r);
}

static void views(struct tensor *t, const struct tensor **at, const struct step *s)
{
    int64_t first = 0;
    for (int i = 0; i < TENSORS; first += s->floats[i++]) {
        t[i] = tensor_1d(s->sum + first, DT_F32, s->floats[i]);
        at[i] = s->floats[i] ? &t[i] : NULL;
    }
}

static void work(void *ctx, const struct ranks *me)
{
    struct step *s = ctx;
    struct share h;
    struct dev *d = NULL;
    struct tensor t[TENSORS];
    const struct tensor *at[TENSORS];
    char about[DEV_LINK_TEXT];
    const int64_t n = floats_of(s);
    assert_int_equal(dev_open(&d, &(struct dev_settings){s->device, 1}), OK);
    assert_int_equal(share_open(&h, me, BATCH, BATCH, "batch"), OK);
    assert_int_equal(mem_alloc(&s->sum, (size_t)n, sizeof(*s->sum)), OK);
    views(t, at, s);
    dev_link(d, me, about);
    assert_int_equal(share_link(&h, d, n, reserve), OK);
    s->linked = h.linked.dev;
    for (int64_t k = h.from; k < h.to && k < s->samples; k++) {
        draw(s->sum, n, k);
        assert_int_equal(share_keep(&h, d, at, TENSORS, k), OK);
    }
    assert_int_equal(share_sum(&h, d, at, TENSORS, s->samples), OK);
    s->transfers = transfers;
    share_close(&h);
    dev_unlink(d);
    dev_close(&d);
}

/* The sums are those of ((g_0 + g_1) + g_2) + ... on every rank. */
static void check_step(const char *device, int ranks, const int64_t *floats,
                       int64_t samples, bool want_linked)
{
    struct step s[RANKS_MOST];
    void *ctx[RANKS_MOST];
    float *want = NULL, *one = NULL;
    for (int i = 0; i < ranks; i++) {
        s[i] = (struct step){.device = device, .floats = floats, .samples = samples};
        ctx[i] = &s[i];
    }
    const int64_t n = floats_of(&s[0]);
    assert_int_equal(mem_alloc(&want, (size_t)n, sizeof(*want)), OK);
    assert_int_equal(mem_alloc(&one, (size_t)n, sizeof(*one)), OK);
    draw(want, n, 0);
    for (int64_t k = 1; k < samples; k++) {
        draw(one, n, k);
        for (int64_t i = 0; i < n; i++)
            want[i] += one[i];
    }
    ranks_run(ranks, work, ctx);
    for (int i = 0; i < ranks; i++) {
        assert_int_equal(s[i].linked, want_linked);
        assert_int_equal(s[i].transfers > 0, want_linked);
        assert_memory_equal(s[i].sum, want, (size_t)n * sizeof(*want));
        mem_free(s[i].sum);
    }
    mem_free(want);
    mem_free(one);
}

static void test_sums_in_order(void **state)
{
    static const int64_t shapes[][TENSORS] = {{5, 0, 130}, {1, 1, 0}, {300, 7, 1}};
    for (int n = 2; n <= RANKS_MOST; n++)
        for (int i = 0; i < 3; i++)
            for (int64_t samples = 1; samples <= BATCH; samples++) {
                check_step("linked", n, shapes[i], samples, true);
                check_step("cpu", n, shapes[i], samples, false);
            }
}

/* More than one slice, whose border lies inside a tensor. */
static void test_slices(void **state)
{
    static const int64_t floats[TENSORS] = {3, (1 << 22) + 100, 2};
    check_step("linked", 3, floats, 4, true);
}

/* One rank has too little memory: all use the host's. */
static void test_too_little_memory(void **state)
{
    static const int64_t floats[TENSORS] = {5, 0, 130};
    free_of_last = 1;
    for (int n = 2; n <= RANKS_MOST; n++)
        check_step("linked", n, floats, BATCH, false);
    free_of_last = UINT64_MAX;
}

/* Gradients leave free what the device allocates later. */
static void test_reserve(void **state)
{
    static const int64_t floats[TENSORS] = {5, 0, 130};
    free_of_last = 1 << 20;
    check_step("linked", 2, floats, BATCH, true);
    reserve = free_of_last - 16;
    check_step("linked", 2, floats, BATCH, false);
    reserve = free_of_last + 1;
    check_step("linked", 2, floats, BATCH, false);
    reserve = 0;
    free_of_last = UINT64_MAX;
}

static void test_refused(void **state)
{
    struct dev *d = NULL;
    char about[DEV_LINK_TEXT] = "?";
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 1}), OK);
    assert_false(dev_link(d, NULL, about) || *about || dev_linked(d));
    assert_int_equal(dev_transfer(d, NULL, NULL, NULL, NULL), ERR_DEVICE);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_in_order), cmocka_unit_test(test_slices),
        cmocka_unit_test(test_too_little_memory), cmocka_unit_test(test_reserve),
        cmocka_unit_test(test_refused)};
    log_set_level(LOG_ERROR);
    dev_register("linked", fill_linked);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
