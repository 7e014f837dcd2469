/* SPDX-License-Identifier: MIT
 *
 * Repeated steps: as graphs on the emulated GPU, and called each time elsewhere. What graphs do
 * not allow, and what then happens. */
#include "kernels/base/log.h"
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev_report.h"
#include "kernels/dev_step.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 100, ROWS = 130, COLS = 1000, PARTS = 6, MOST = 6 };

static const char *const devices[] = {"ref", "cpu", "cuda-emu"};

/* What a step does beside moving its parameters. */
enum extra {
    NOTHING,
    LOSS, /* needs working memory */
    SUM,  /* needs cuBLASLt */
    DOWNLOAD,
    SYNC,
    COPY_SYNC,
    FINITE,
    ALLOC,
    FREE,
    HOST_ALLOC,
    UPLOAD,
    COPY_IN,
    COPY_OUT,
    COPY_WAIT,
    SEND,
    N_EXTRAS
};

/* Parameters p with gradient and moments, and what the extras need, in memory of a device. */
struct steps {
    struct dev *d;
    enum extra extra;
    int from; /* the extra is done from this call on */
    int calls;
    void *memory, *locked, *victim;
    struct tensor p, g, m, v, sum, part, large, range;
    struct adamw_rates *rates;
    struct dev_report report;
};

static struct dev *open_dev(const char *name)
{
    struct dev *d = NULL;
    const struct dev_settings s = {name, 1};
    assert_int_equal(dev_open(&d, &s), OK);
    return d;
}

static struct tensor part_of(const struct steps *s, int i)
{
    return tensor_2d((float *)s->memory + i * 128, DT_F32, 1, N);
}

static void open_steps(struct steps *s, const char *name, enum extra extra)
{
    float x[N * PARTS];
    const size_t bytes = (128 * PARTS + ROWS * COLS + 2 * COLS) * sizeof(float);
    err_clear();
    *s = (struct steps){.d = open_dev(name), .extra = extra};
    assert_int_equal(dev_alloc(s->d, &s->memory, bytes), OK);
    assert_int_equal(dev_alloc(s->d, (void **)&s->rates, sizeof(*s->rates)), OK);
    assert_int_equal(dev_host_alloc(s->d, &s->locked, sizeof(x)), OK);
    assert_int_equal(dev_report_open(&s->report, s->d, 1), OK);
    assert_int_equal(dev_zero(s->d, s->memory, bytes), OK);
    s->p = part_of(s, 0), s->g = part_of(s, 1), s->m = part_of(s, 2), s->v = part_of(s, 3);
    s->sum = part_of(s, 4), s->part = part_of(s, 5);
    float *large = (float *)s->memory + 128 * PARTS;
    s->large = tensor_2d(large, DT_F32, ROWS, COLS);
    s->range = tensor_1d(large + ROWS * COLS, DT_F32, COLS);
    for (int i = 0; i < N; i++)
        x[i] = (float)(i % 7) - 3;
    assert_int_equal(dev_upload(s->d, s->g.data, x, N * sizeof(*x)), OK);
}

static void close_steps(struct steps *s)
{
    dev_report_close(&s->report);
    dev_free(s->d, s->victim);
    dev_free(s->d, s->memory);
    dev_free(s->d, s->rates);
    dev_host_free(s->d, s->locked);
    dev_close(&s->d);
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
}

static struct adamw adamw_of(int i)
{
    return (struct adamw){.lr = 0.1f / (float)(i + 1),
                          .beta1 = 0.9f,
                          .beta2 = 0.999f,
                          .eps = 1e-8f,
                          .weight_decay = 0.01f,
                          .step = i + 1};
}

static enum err report_loss(struct steps *s)
{
    const struct loss_inputs in = {.y = &s->p, .t = &s->g, .weight = 1};
    return dev_report_loss(&s->report, 0, NULL, &in);
}

static enum err do_extra(struct steps *s)
{
    static float host[N];
    void *p = s->victim;
    bool finite;
    const size_t bytes = sizeof(host);
    const struct tensor one = tensor_2d(s->g.data, DT_F32, 1, 1);
    switch (s->extra) {
    case LOSS:
        return report_loss(s);
    case SUM:
        return dev_gemm_add(s->d, GEMM_NN, &s->sum, &s->g, &one, &s->g, &s->part);
    case DOWNLOAD:
        return dev_download(s->d, host, s->p.data, bytes);
    case SYNC:
        return dev_sync(s->d);
    case COPY_SYNC:
        return dev_copy_sync(s->d);
    case FINITE:
        return dev_all_finite(s->d, &finite, &s->p);
    case ALLOC:
        return dev_alloc(s->d, &s->victim, 64);
    case FREE:
        dev_free(s->d, p);
        s->victim = s->calls > 2 ? NULL : p; /* a capture does not free it */
        return OK;
    case HOST_ALLOC:
        TRY(dev_host_alloc(s->d, &p, 64));
        dev_host_free(s->d, p);
        return OK;
    case UPLOAD:
        return dev_upload(s->d, s->sum.data, host, bytes);
    case COPY_IN:
        return dev_copy_in(s->d, s->sum.data, s->locked, bytes);
    case COPY_OUT:
        return dev_copy_out(s->d, s->locked, s->g.data, bytes);
    case COPY_WAIT:
        return dev_copy_wait(s->d);
    case SEND:
        return dev_report_send(&s->report, 0);
    default:
        return OK;
    }
}

/* With rates on the device. Those of the call itself are wrong. */
static enum err step(void *ctx)
{
    struct steps *s = ctx;
    struct adamw o = adamw_of(40);
    o.rates = s->rates;
    if (++s->calls > s->from)
        TRY(do_extra(s));
    return dev_adamw(s->d, &s->p, &s->g, &s->m, &s->v, &o);
}

static enum err take(struct steps *s, int i, int64_t key)
{
    const struct adamw o = adamw_of(i);
    struct adamw_rates r = dev_adamw_rates(&o);
    TRY(dev_put(s->d, s->rates, &r, sizeof(r)));
    r.lr = NAN; /* the host may change it at once */
    return dev_repeat(s->d, key, step, s);
}

static void read_back(struct steps *s, float out[3 * N])
{
    const struct tensor *const all[] = {&s->p, &s->m, &s->v};
    for (int k = 0; k < 3; k++)
        assert_int_equal(dev_download(s->d, out + k * N, all[k]->data, N * sizeof(float)),
                         OK);
}

/* n steps by arguments. */
static void plainly(const char *name, int n, float out[3 * N])
{
    struct steps s;
    open_steps(&s, name, NOTHING);
    for (int i = 0; i < n; i++) {
        const struct adamw o = adamw_of(i);
        assert_int_equal(dev_adamw(s.d, &s.p, &s.g, &s.m, &s.v, &o), OK);
    }
    read_back(&s, out);
    close_steps(&s);
}

/* What n steps lead to on the emulated GPU. */
static float wanted[MOST + 1][3 * N];

static int find_wanted(void **state)
{
    for (int n = 0; n <= MOST; n++)
        plainly("cuda-emu", n, wanted[n]);
    return 0;
}

static void check_moved(struct steps *s, int n)
{
    float got[3 * N];
    read_back(s, got);
    assert_memory_equal(got, wanted[n], sizeof(got));
}

/* The same bits as by arguments, on each device; one launch a step, from the second on. */
static void test_rates_and_repeats(void **state)
{
    for (int k = 0; k < 3; k++) {
        struct steps s;
        float want[3 * N], got[3 * N];
        const bool gpu = k == 2;
        plainly(devices[k], 5, want);
        open_steps(&s, devices[k], NOTHING);
        for (int i = 0; i < 5; i++) {
            const long graphs = emu_card()->graphs, launches = emu_card()->launches;
            assert_int_equal(take(&s, i, 3), OK);
            assert_int_equal(emu_card()->graphs - graphs, gpu && i);
            if (gpu)
                assert_int_equal(emu_card()->launches - launches, 2); /* put, step */
        }
        assert_int_equal(s.calls, gpu ? 2 : 5);
        read_back(&s, got);
        assert_memory_equal(got, want, sizeof(want));
        close_steps(&s);
    }
}

static void test_puts(void **state)
{
    struct steps s;
    uint32_t words[DEV_PUT_BYTES / 4], got[DEV_PUT_BYTES / 4 + 1];
    for (int k = 0; k < 3; k++) {
        open_steps(&s, devices[k], NOTHING);
        for (size_t n = 4; n <= DEV_PUT_BYTES; n += n < 8 ? 4 : 40) {
            for (size_t i = 0; i < DEV_PUT_BYTES / 4; i++)
                words[i] = (uint32_t)(1000 * n + i);
            assert_int_equal(dev_zero(s.d, s.p.data, sizeof(got)), OK);
            assert_int_equal(dev_put(s.d, s.p.data, words, n), OK);
            memset(words, 0x55, n);
            assert_int_equal(dev_download(s.d, got, s.p.data, sizeof(got)), OK);
            for (size_t i = 0; i <= DEV_PUT_BYTES / 4; i++)
                assert_int_equal(got[i], i < n / 4 ? 1000 * n + i : 0);
        }
        close_steps(&s);
    }
    open_steps(&s, "cuda-emu", NOTHING);
    assert_int_equal(dev_put(s.d, s.p.data, words, DEV_PUT_BYTES + 4), ERR_SHAPE);
    assert_int_equal(dev_put(s.d, s.p.data, words, 6), ERR_SHAPE);
    assert_int_equal(dev_put(s.d, s.p.data, words, 0), ERR_SHAPE);
    close_steps(&s);
}

/* Adds ctx's tensor g to p. */
static enum err other(void *ctx)
{
    const struct steps *s = ctx;
    return dev_add(s->d, &s->p, &s->p, &s->g);
}

/* Each key stands for its own operations, and after dev_forget() for others. */
static void test_keys(void **state)
{
    struct steps s;
    float got[3 * N];
    open_steps(&s, "cuda-emu", NOTHING);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(take(&s, i, 0), OK);
        assert_int_equal(dev_repeat(s.d, 1, other, &s), OK);
    }
    dev_forget(s.d);
    const long graphs = emu_card()->graphs;
    for (int i = 0; i < 3; i++)
        assert_int_equal(dev_repeat(s.d, 0, other, &s), OK);
    assert_int_equal(emu_card()->graphs - graphs, 2);
    read_back(&s, got);
    for (int i = 0; i < N; i++) /* 7 additions of g; AdamW moves by less than 1 */
        assert_true(fabsf(got[i] - 7 * ((float)(i % 7) - 3)) < 1);
    assert_int_equal(s.calls, 2);
    close_steps(&s);
}

/* More keys than a device records. */
static void test_many_keys(void **state)
{
    struct steps s;
    float got[3 * N];
    const long before = emu_card()->graphs;
    open_steps(&s, "cuda-emu", NOTHING);
    for (int round = 0; round < 3; round++)
        for (int key = 0; key < DEV_REPEATS + 5; key++)
            assert_int_equal(dev_repeat(s.d, key, other, &s), OK);
    assert_int_equal(emu_card()->graphs - before, 2 * DEV_REPEATS);
    read_back(&s, got);
    for (int i = 0; i < N; i++)
        assert_true(got[i] == 3 * (DEV_REPEATS + 5) * ((float)(i % 7) - 3));
    close_steps(&s);
}

/* Another operation makes the device replace working memory that graphs use. */
static void test_memory_that_moves(void **state)
{
    struct steps s;
    const double *loss;
    bool bad;
    open_steps(&s, "cuda-emu", LOSS);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(take(&s, i, 0), OK);
        if (i == 2)
            assert_int_equal(dev_col_minmax(s.d, &s.range, &s.range, &s.large), OK);
    }
    assert_int_equal(s.calls, 4); /* it is queued and recorded once more */
    check_moved(&s, 6);
    assert_int_equal(dev_report_send(&s.report, 0), OK);
    assert_int_equal(dev_report_read(&s.report, 0, &loss, &bad), OK);
    assert_true(*loss > 0 && !bad);
    close_steps(&s);
}

static char said[1000];

static void hear(void *ctx, enum log_level level, const char *line)
{
    snprintf(said + strlen(said), sizeof(said) - strlen(said), "%s\n", line);
}

/* A step that cannot be recorded is queued each time, and once the device says why. */
static void test_what_a_graph_does_not_allow(void **state)
{
    static const char *const names[N_EXTRAS] = {
        [DOWNLOAD] = "download:",     [SYNC] = "sync:",         [COPY_SYNC] = NULL,
        [FINITE] = "working memory:", [ALLOC] = "memory:",      [FREE] = "adamw:",
        [HOST_ALLOC] = "page-locked", [UPLOAD] = "upload:",     [COPY_IN] = "copy:",
        [COPY_OUT] = "copy:",         [COPY_WAIT] = "wait for", [SEND] = NULL};
    log_set_sink(hear, NULL);
    for (int extra = NOTHING; extra < N_EXTRAS; extra++) {
        struct steps s;
        const long before = emu_card()->graphs;
        said[0] = 0;
        open_steps(&s, "cuda-emu", (enum extra)extra);
        if (extra == FREE)
            assert_int_equal(dev_alloc(s.d, &s.victim, 64), OK);
        s.from = names[extra] ? 1 : 0;
        assert_int_equal(take(&s, 0, 0), OK);
        assert_non_null(strstr(dev_about(s.d), "; steps: CUDA graphs"));
        assert_int_equal(take(&s, 1, 0), OK);
        s.extra = NOTHING;
        assert_int_equal(take(&s, 2, 0), OK);
        assert_int_equal(emu_card()->graphs - before, names[extra] ? 0 : 2);
        assert_int_equal(!!*said, !!names[extra]);
        if (names[extra]) {
            assert_non_null(strstr(said, names[extra]));
            assert_non_null(strstr(said, "by single launches: device cuda-emu: "));
            assert_non_null(
                strstr(dev_about(s.d), "; steps: single launches (capture failed)"));
            assert_string_equal(err_text(), "");
        }
        check_moved(&s, 3);
        close_steps(&s);
    }
    log_set_sink(NULL, NULL);
}

/* Steps work where the driver or a library refuses. */
static void test_functions_that_fail(void **state)
{
    static const char *const functions[] = {"cudaStreamBeginCapture",
                                            "cudaStreamEndCapture",
                                            "cudaGraphInstantiate",
                                            "cudaGraphLaunch",
                                            "capture",
                                            "cublasLtMatmul"};
    struct emu_card *c = emu_card();
    log_set_sink(hear, NULL);
    for (int k = 0; k < 6; k++) {
        struct steps s;
        said[0] = 0;
        open_steps(&s, "cuda-emu", k < 4 ? NOTHING : SUM);
        assert_int_equal(take(&s, 0, 0), OK);
        *(k < 4 ? &c->graph_fails : &c->cublaslt_fails) = functions[k];
        /* the last one fails in any case */
        assert_int_equal(take(&s, 1, 0), k < 5 ? OK : ERR_DEVICE);
        c->graph_fails = c->cublaslt_fails = NULL;
        assert_non_null(strstr(said, k < 4 ? "operation not supported"
                                           : "gemm: cuBLASLt: CUBLAS_STATUS_NOT_INIT"));
        assert_non_null(strstr(dev_about(s.d), "(capture failed)"));
        if (k < 5) {
            assert_int_equal(take(&s, 2, 0), OK);
            check_moved(&s, 3);
        }
        close_steps(&s);
    }
    log_set_sink(NULL, NULL);
}

/* Whichever call of the first steps fails, all later ones fail too. */
static void test_a_failure_stays(void **state)
{
    struct emu_card *c = emu_card();
    long calls = 0;
    log_set_sink(hear, NULL);
    for (long at = 0; at <= calls; at++) {
        struct steps s;
        enum err err = OK;
        said[0] = 0;
        open_steps(&s, "cuda-emu", LOSS);
        const long before = c->calls;
        c->fail_at = at ? before + at : 0;
        for (int i = 0; i < 4; i++)
            err = err ? err : take(&s, i, 0);
        if (!at)
            calls = c->calls - before;
        assert_int_equal(err, at ? ERR_DEVICE : OK);
        if (at)
            assert_non_null(strstr(err_text(), "an illegal memory access was"));
        c->fail_at = 0;
        close_steps(&s);
    }
    assert_true(calls > 10);
    log_set_sink(NULL, NULL);
}

/* By choice, and while every operation waits. */
static void test_without_graphs(void **state)
{
    for (int waits = 0; waits < 2; waits++) {
        struct steps s;
        const long before = emu_card()->graphs;
        if (!waits)
            setenv("WKVQ_GRAPHS", "none", 1);
        open_steps(&s, "cuda-emu", LOSS);
        unsetenv("WKVQ_GRAPHS");
        dev_set_synchronous(s.d, waits);
        for (int i = 0; i < 4; i++)
            assert_int_equal(take(&s, i, 0), OK);
        assert_int_equal(s.calls, 4);
        assert_int_equal(emu_card()->graphs, before);
        assert_int_equal(
            !strstr(dev_about(s.d), "; steps: single launches (WKVQ_GRAPHS is none)"),
            waits);
        check_moved(&s, 4);
        close_steps(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rates_and_repeats),
        cmocka_unit_test(test_puts),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_many_keys),
        cmocka_unit_test(test_memory_that_moves),
        cmocka_unit_test(test_what_a_graph_does_not_allow),
        cmocka_unit_test(test_functions_that_fail),
        cmocka_unit_test(test_a_failure_stays),
        cmocka_unit_test(test_without_graphs),
    };
    return cmocka_run_group_tests(tests, find_wanted, NULL);
}
