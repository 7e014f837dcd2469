/* SPDX-License-Identifier: MIT
 *
 * Streams on the emulated GPU, in page-locked memory, in plain memory and on disk: the same
 * bytes from each, and as much memory as planned. Also calibrations on a GPU that fails in
 * the middle, which the cpu finishes. */
#include "calib/model/model.h"
#include "kernels/base/mem.h"
#include "kernels/cuda/emu/emu_card.h"
#include "kernels/dev_report.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

/* Nothing stays allocated on the device. */
static enum err run_clean(const char *device, struct memory_io *m, const struct fixture *f,
                          const struct calib_settings *s)
{
    const enum err err = run_on(device, m, f, s);
    assert_int_equal(m->open_streams, 0);
    assert_int_equal(emu_card()->live, 0);
    assert_int_equal(emu_card()->held, 0);
    return err;
}

enum home { ON_DEVICE, LOCKED, NOT_LOCKED, ON_DISK, N_HOMES };

static void send_home(struct calib_settings *s, enum home home)
{
    emu_card()->pinned = UINT64_C(1) << 30;
    s->device_bytes = s->memory_bytes = 0;
    if (home == ON_DEVICE)
        s->device_bytes = UINT64_C(1) << 30;
    if (home == LOCKED || home == NOT_LOCKED)
        s->memory_bytes = UINT64_C(1) << 30;
    /* enough for the slots, too little for a stream */
    if (home == NOT_LOCKED)
        emu_card()->pinned = 2 * 2 * 24 * (size_t)s->seqlen * sizeof(float) +
                             REPORT_SLOTS * dev_report_bytes(2);
}

static void test_same_bytes_wherever_streams_live(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 41);
    for (int terms = 0; terms < 2; terms++) {
        struct memory_io m[N_HOMES];
        /* More streams change nothing about the other homes. */
        const int homes = terms ? LOCKED + 1 : N_HOMES;
        long of_weights = 0; /* copies of a run whose streams are on the device */
        struct calib_settings s = tiny_settings();
        s.samples = 5;
        s.epochs = 1;
        s.crr_terms = terms ? TERMS_ALL : TERMS_LAST;
        for (int home = 0; home < homes; home++) {
            const long before = emu_card()->copies;
            send_home(&s, home);
            memory_io_open(&m[home]);
            must(run_clean("cuda-emu", &m[home], &f, &s));
            const long copies = emu_card()->copies - before;
            if (home == ON_DEVICE)
                of_weights = copies;
            assert_int_equal(copies > of_weights, home != ON_DEVICE);
            assert_int_equal(m[home].n_streams,
                             home == NOT_LOCKED || home == ON_DISK ? 2 : 0);
            assert_int_equal(m[home].n_on_disk, home == ON_DISK ? 2 : 0);
            assert_true(same_result(&m[home], &m[0]));
        }
        for (int home = 0; home < homes; home++)
            memory_io_close(&m[home]);
    }
    fixture_close(&f);
}

/* The most device memory of a run against calib_plan, for a small model's shape. */
static void test_memory_is_what_was_planned(void **state)
{
    struct fixture f;
    struct arch small = tiny_arch(0, 2);
    small.d_model = 128, small.d_ff = 256, small.n_heads = 4, small.n_kv = 2;
    small.head_dim = 32;
    fixture_open(&f, small, 42);
    for (int which = 0; which < 8; which += which ? 3 : 2) { /* 0, 2, 5 */
        struct memory_io m;
        struct calib_plan p;
        struct calib_settings s = tiny_settings();
        s.samples = 2, s.seqlen = 40, s.epochs = 1, s.crr_blocks = 5;
        s.act = which & 1 ? DT_BF16 : DT_F32;
        s.crr_terms = which & 2 ? TERMS_ALL : TERMS_LAST;
        send_home(&s, which & 4 ? LOCKED : ON_DEVICE);
        must(calib_plan(&p, &f.arch, &s));
        assert_int_equal(p.streams, which & 4 ? STREAM_MEMORY : STREAM_DEVICE);
        memory_io_open(&m);
        m.stop_after = 11; /* after a training step: everything has been allocated */
        emu_card()->peak = 0;
        assert_int_equal(run_clean("cuda-emu", &m, &f, &s), ERR_STOPPED);
        assert_true(m.n_partial > 0);
        const double planned = (double)calib_plan_device_bytes(&p);
        const double was = (double)emu_card()->peak;
        print_message("planned %.0f, at most %.0f (%.1f%%)\n", planned, was,
                      100 * was / planned);
        assert_true(was <= planned && was >= 0.9 * planned);
        memory_io_close(&m);
    }
    fixture_close(&f);
}

/* The same with cuDNN, whose working memory is most of what so small a model needs. */
static void test_memory_with_cudnn_is_what_was_planned(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_plan p;
    struct arch small = tiny_arch(0, 1);
    struct calib_settings s = tiny_settings();
    const struct emu_card was = *emu_card();
    if (was.early_copies) /* they change nothing here */
        skip();
    small.d_model = 16, small.n_heads = 2, small.n_kv = 1, small.max_positions = 512;
    fixture_open(&f, small, 45);
    s.samples = 1, s.seqlen = 512, s.epochs = 1, s.act = DT_BF16;
    send_home(&s, ON_DEVICE);
    must(calib_plan(&p, &f.arch, &s));
    memory_io_open(&m);
    m.stop_after = 5; /* after the first backward */
    emu_card()->major = 9;
    emu_card()->cudnn = 92600;
    emu_card()->peak = 0;
    assert_int_equal(run_clean("cuda-emu", &m, &f, &s), ERR_STOPPED);
    const double planned = (double)calib_plan_device_bytes(&p),
                 workspace = 2 * 2 * 512 * (512 + 2 * 8), used = (double)emu_card()->peak;
    print_message("planned %.0f, at most %.0f, of which cuDNN %.0f\n", planned, used,
                  workspace);
    assert_true(emu_card()->cudnn_runs > was.cudnn_runs);
    assert_true(used <= planned && used >= planned - workspace / 2);
    emu_card()->major = was.major;
    emu_card()->cudnn = was.cudnn;
    memory_io_close(&m);
    fixture_close(&f);
}

/* Evaluation has windows of many lengths, so it asks cuDNN for nothing. */
static void test_evaluation_makes_no_plans(void **state)
{
    struct arch small = tiny_arch(0, 1);
    const struct emu_card was = *emu_card();
    const int32_t ids[24] = {1, 2, 3};
    float nll[23];
    struct fixture f;
    small.d_model = 16, small.n_heads = 2, small.n_kv = 1; /* rows that cuDNN could take */
    fixture_open(&f, small, 46);
    emu_card()->major = 9;
    emu_card()->cudnn = 92600;
    struct dev *d = open_dev("cuda-emu");
    const struct model_run r = {
        .dev = d, .arch = &f.arch, .src = &f.source, .act = DT_BF16, .chunk = 1};
    must(model_nll(&r, ids, 1, 24, nll));
    assert_non_null(strstr(dev_about(d), "cuDNN 9.26"));
    assert_int_equal(emu_card()->cudnn_runs, was.cudnn_runs);
    dev_close(&d);
    emu_card()->major = was.major;
    emu_card()->cudnn = was.cudnn;
    fixture_close(&f);
}

/* A complete run on the device, to count its calls and to get its losses. */
static long whole_run(struct memory_io *m, const struct fixture *f,
                      const struct calib_settings *s, const char *device)
{
    memory_io_open(m);
    emu_card()->fail_at = 0;
    struct dev *d = open_dev(device);
    int32_t tokens[256];
    tiny_tokens(tokens, s, &f->arch);
    must(calib_run(d, &f->arch, &f->source, s, tokens, 0, &m->io));
    const long calls = emu_card()->calls;
    dev_close(&d);
    return calls;
}

/* A sticky error at any call: the run stops with a message, and what was saved is complete.
 * The cpu resumes it, with losses as near as those of a run on the cpu alone. */
static void test_cpu_ends_what_a_gpu_began(void **state)
{
    struct fixture f;
    struct memory_io gpu, m;
    struct calib_settings s = tiny_settings();
    int blocks_kept = 0, partials_kept = 0;
    fixture_open(&f, tiny_arch(1, 2), 43);
    s.crr_loss = LOSS_MSE;
    send_home(&s, LOCKED);
    const long calls = whole_run(&gpu, &f, &s, "cuda-emu");
    /* just opened; in block 0 after an epoch; in block 1 before and after one */
    const long where[] = {12, calls * 59 / 100, calls * 3 / 4, calls * 19 / 20};
    for (size_t i = 0; i < ARRAY_LEN(where); i++) {
        memory_io_open(&m);
        emu_card()->fail_at = where[i];
        assert_int_equal(run_clean("cuda-emu", &m, &f, &s), ERR_DEVICE);
        assert_non_null(strstr(err_text(), "an illegal memory access was encountered"));
        emu_card()->fail_at = 0;
        blocks_kept += m.n_blocks > 0;
        partials_kept += m.n_partial > 0;
        must(run_clean("cpu", &m, &f, &s));
        assert_int_equal(m.n_blocks, 2);
        for (int64_t b = 0; b < 2; b++)
            assert_true(fabs(gpu.stats[b].best_loss - m.stats[b].best_loss) <=
                        0.02 * gpu.stats[b].best_loss);
        memory_io_close(&m);
    }
    assert_true(blocks_kept > 0 && partials_kept > 0);
    memory_io_close(&gpu);
    fixture_close(&f);
}

/* Less memory than planned, in steps down to none: the run is refused, and no saved block
 * is lost. */
static void test_too_little_memory(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    const struct emu_card was = *emu_card();
    struct calib_plan p;
    fixture_open(&f, tiny_arch(0, 2), 44);
    send_home(&s, ON_DEVICE);
    must(calib_plan(&p, &f.arch, &s));
    memory_io_open(&m);
    for (uint64_t total = 1000; total < p.weights_bytes + p.acts_bytes / 2; total *= 2) {
        emu_card()->total = total;
        assert_int_equal(run_clean("cuda-emu", &m, &f, &s), ERR_MEMORY);
        assert_non_null(strstr(err_text(), "device cuda-emu: out of memory"));
    }
    emu_card()->total = was.total;
    must(run_clean("cuda-emu", &m, &f, &s));
    memory_io_close(&m);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes_wherever_streams_live),
        cmocka_unit_test(test_memory_is_what_was_planned),
        cmocka_unit_test(test_memory_with_cudnn_is_what_was_planned),
        cmocka_unit_test(test_evaluation_makes_no_plans),
        cmocka_unit_test(test_cpu_ends_what_a_gpu_began),
        cmocka_unit_test(test_too_little_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
