/* SPDX-License-Identifier: MIT
 *
 * Whole calibrations of tiny models: what is learned, every switch, determinism, resume. */
#include "calib/fakequant.h"
#include "calib/recon.h"
#include "kernels/base/mem.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static int32_t tokens[4096];

static enum err run_on(const char *device, struct memory_io *m, const struct fixture *f,
                       const struct calib_settings *s)
{
    struct dev *d = open_dev(device);
    tiny_tokens(tokens, s, &f->arch);
    err_clear();
    m->last_done = 0;
    const enum err err = calib_run(d, &f->arch, &f->source, s, tokens, m->n_blocks, &m->io);
    dev_close(&d);
    return err;
}

/* A fresh run that must succeed. */
static void calibrate(const char *device, struct memory_io *m, const struct fixture *f,
                      const struct calib_settings *s)
{
    memory_io_open(m);
    must(run_on(device, m, f, s));
    assert_int_equal(m->n_blocks, f->arch.n_layers);
    assert_int_equal(m->open_streams, 0);
    assert_false(m->done_fell);
    for (int64_t i = 0; i < m->n_blocks; i++)
        assert_true(m->stats[i].best_loss <= m->stats[i].start_loss);
}

/* Loss of block i with saved parameters, computed apart from the run: fp and quantized
 * models walked from the embedding. Only for local loss (k = 0). */
static double local_loss(struct dev *d, const struct fixture *f,
                         const struct calib_settings *s, const struct memory_io *m,
                         int64_t block)
{
    struct fakequant q;
    struct recon full, quantized;
    const struct tensor *out;
    double sum = 0, loss;
    must(fakequant_open(&q, d, &f->arch, s));
    must(recon_open(&full, d, &f->arch, s));
    must(recon_open(&quantized, d, &f->arch, s));
    for (int64_t i = 0; i < s->samples; i++) {
        must(model_embed(d, &full.x, &f->embed, tokens + i * s->seqlen));
        must(dev_copy(d, &quantized.x, &full.x));
        for (int64_t b = 0; b <= block; b++) {
            const struct block_weights *w;
            must(recon_full(&full, &w, &f->source, b));
            must(recon_plain(&full, w, NULL, &out));
            must(dev_copy(d, &full.x, out));
            must(fakequant_load(&q, &f->blocks[b]));
            must(fakequant_import(&q, &m->block[b]));
            must(recon_quantized(&quantized, &q, &out));
            must(dev_copy(d, &quantized.x, out));
        }
        must(dev_loss(d, &loss, NULL, &quantized.x, &full.x, s->crr_loss, 1, false));
        sum += loss;
    }
    fakequant_close(&q);
    recon_close(&full);
    recon_close(&quantized);
    return sum / (double)s->samples;
}

static void test_gains_and_reports_truly(void **state)
{
    for (int which = 0; which < 2; which++) {
        struct fixture f;
        struct memory_io m;
        struct calib_settings s = tiny_settings();
        fixture_open(&f, tiny_arch(which, 3), 7);
        s.crr_blocks = 0;
        s.epochs = 4;
        calibrate("ref", &m, &f, &s);
        int gained = 0;
        struct dev *d = open_dev("ref");
        for (int64_t i = 0; i < 3; i++) {
            gained += m.stats[i].best_epoch > 0;
            const double again = local_loss(d, &f, &s, &m, i);
            assert_true(fabs(again - m.stats[i].best_loss) <= 1e-6 * again);
        }
        assert_true(gained >= 2);
        dev_close(&d);
        memory_io_close(&m);
        fixture_close(&f);
    }
}

static bool finite_block(const struct block_quant *q)
{
    for (int64_t c = 0; c < q->n_channels; c++)
        if (!(q->k_scale[c] > 0 && q->v_scale[c] > 0 && isfinite(q->k_shift[c]) &&
              isfinite(q->v_shift[c])))
            return false;
    return true;
}

/* Changes one setting of the tiny run. */
static void vary(struct calib_settings *s, int which)
{
    switch (which) {
    case 0:
        s->crr_blocks = 0;
        break;
    case 1:
        s->crr_blocks = 5;
        break;
    case 2:
        s->crr_terms = TERMS_ALL, s->crr_blocks = 2;
        break;
    case 3:
        s->crr_loss = LOSS_MSE;
        break;
    case 4:
        s->kv.past_only = false;
        break;
    case 5:
        s->kv.method = KV_TOKEN;
        break;
    case 6:
        s->kv.learn = false;
        break;
    case 7:
        s->kv.bits = 16;
        break;
    case 8:
        s->weights.bits = 16;
        break;
    case 9:
        s->weights.method = WEIGHT_RTN;
        break;
    case 10:
        s->weights.group_size = 0;
        break;
    case 11:
        s->weights.group_size = 9, s->weights.bits = 3;
        break;
    case 12:
        s->kv.key_stage = KEY_PRE_ROPE;
        break;
    case 13:
        s->kv.window = 3, s->kv.sink = 2;
        break;
    case 14:
        s->kv.group_size = 3, s->kv.bits = 2;
        break;
    case 15:
        s->schedule = SCHEDULE_COSINE, s->weight_decay = 0.01f;
        break;
    case 16:
        s->weights.bits = 8, s->kv.bits = 8;
        break;
    case 17:
        s->epochs = 0;
        break;
    case 18:
        s->weights.bits = 16, s->kv.bits = 16;
        break;
    case 19:
        s->weights.method = WEIGHT_RTN, s->kv.method = KV_TOKEN;
        break;
    default:
        s->act = DT_BF16;
        break;
    }
}
#define N_VARIANTS 21

static void test_every_switch(void **state)
{
    struct memory_io base;
    for (int which = 0; which < 2; which++) {
        struct fixture f;
        const struct calib_settings plain = tiny_settings();
        fixture_open(&f, tiny_arch(which, 3), 8);
        calibrate("cpu", &base, &f, &plain);
        for (int v = 0; v < N_VARIANTS; v++) {
            struct memory_io m;
            struct calib_settings s = plain;
            vary(&s, v);
            calibrate("cpu", &m, &f, &s);
            if (same_result(&m, &base))
                fail_msg("variant %d changes nothing", v);
            for (int64_t i = 0; i < m.n_blocks; i++) {
                assert_true(finite_block(&m.block[i]));
                assert_true(!m.block[i].lin[LIN_Q].scales == (s.weights.bits == 16));
            }
            memory_io_close(&m);
        }
        memory_io_close(&base);
        fixture_close(&f);
    }
}

static void test_same_bytes_twice_and_on_disk(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 3), 9);
    for (int terms = 0; terms < 2; terms++) {
        struct memory_io x, y, disk;
        struct calib_settings s = tiny_settings();
        s.crr_terms = terms ? TERMS_ALL : TERMS_LAST;
        calibrate("cpu", &x, &f, &s);
        calibrate("cpu", &y, &f, &s);
        assert_true(same_result(&x, &y));
        assert_int_equal(x.n_on_disk, 0);
        s.memory_bytes = 1;
        calibrate("cpu", &disk, &f, &s);
        assert_int_equal(disk.n_on_disk, disk.n_streams);
        assert_true(same_result(&x, &disk));
        memory_io_close(&x);
        memory_io_close(&y);
        memory_io_close(&disk);
    }
    fixture_close(&f);
}

static void test_stopped_and_resumed(void **state)
{
    struct fixture f;
    struct memory_io whole;
    struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(1, 3), 10);
    s.crr_terms = TERMS_ALL;
    calibrate("cpu", &whole, &f, &s);
    for (int64_t every = 1; every < whole.asked; every += 1 + every / 3) {
        struct memory_io m;
        enum err err;
        int stops = 0;
        memory_io_open(&m);
        /* Preparation is repeated by every resumed run, so each gets further than the last.
         */
        for (int64_t after = every;; after += every) {
            m.asked = 0;
            m.stop_after = after;
            err = run_on("cpu", &m, &f, &s);
            if (err != ERR_STOPPED)
                break;
            stops++;
        }
        must(err);
        assert_true(stops > 0);
        assert_true(same_result(&m, &whole));
        memory_io_close(&m);
    }
    memory_io_close(&whole);
    fixture_close(&f);
}

static void test_non_finite_is_named(void **state)
{
    struct fixture f;
    struct memory_io m;
    const struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 2), 11);
    ((float *)(uintptr_t)f.blocks[1].lin[LIN_GATE].data)[5] = NAN;
    memory_io_open(&m);
    assert_int_equal(run_on("cpu", &m, &f, &s), ERR_NUMERIC);
    assert_non_null(strstr(err_text(), "block 0"));
    assert_int_equal(m.open_streams, 0);
    memory_io_close(&m);
    fixture_close(&f);
}

static void test_wrong_partial_is_refused(void **state)
{
    struct fixture f;
    struct memory_io m;
    const struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 2), 12);
    memory_io_open(&m);
    for (m.stop_after = 1; !m.n_partial && !m.n_blocks; m.stop_after++) {
        m.asked = 0;
        assert_int_equal(run_on("cpu", &m, &f, &s), ERR_STOPPED);
    }
    assert_true(m.n_partial > 0);
    for (int i = 0; i < m.n_partial; i++)
        if (!strcmp(m.partial[i].name, "position"))
            ((int64_t *)m.partial[i].t.data)[2] = 1000;
    m.stop_after = 0;
    assert_int_equal(run_on("cpu", &m, &f, &s), ERR_FORMAT);
    memory_io_close(&m);
    fixture_close(&f);
}

static void test_devices_agree(void **state)
{
    struct fixture f;
    struct memory_io x, y;
    struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 2), 13);
    s.crr_loss = LOSS_MSE;
    calibrate("ref", &x, &f, &s);
    calibrate("cpu", &y, &f, &s);
    for (int64_t i = 0; i < 2; i++)
        assert_true(fabs(x.stats[i].best_loss - y.stats[i].best_loss) <=
                    0.02 * x.stats[i].best_loss);
    memory_io_close(&x);
    memory_io_close(&y);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gains_and_reports_truly),
        cmocka_unit_test(test_every_switch),
        cmocka_unit_test(test_same_bytes_twice_and_on_disk),
        cmocka_unit_test(test_stopped_and_resumed),
        cmocka_unit_test(test_non_finite_is_named),
        cmocka_unit_test(test_wrong_partial_is_refused),
        cmocka_unit_test(test_devices_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
