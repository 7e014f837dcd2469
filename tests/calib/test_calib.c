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

/* One walk of a sample through the model: x moves on by whole blocks. */
struct walk {
    struct recon r; /* r.x is where the walk stands */
    const struct fixture *f;
};

static void walk_plain(struct walk *w, int64_t block)
{
    const struct block_weights *weights;
    const struct tensor *out;
    must(recon_full(&w->r, &weights, &w->f->source, block));
    must(recon_plain(&w->r, weights, NULL, &out));
    must(dev_copy(w->r.dev, &w->r.x, out));
}

static void walk_quantized(struct walk *w, struct fakequant *q, int64_t block,
                           const struct block_quant *saved)
{
    const struct tensor *out;
    must(fakequant_load(q, &w->f->blocks[block], block));
    must(fakequant_import(q, saved));
    must(recon_quantized(&w->r, q, &out));
    must(dev_copy(w->r.dev, &w->r.x, out));
}

/* Loss of one sample at `block` with the saved block. Both models run from the embedding;
 * in the quantized one, blocks after `block` are in full precision. */
static double walk_loss(struct walk *full, struct walk *half, struct fakequant *q,
                        const struct calib_settings *s, const struct memory_io *m,
                        int64_t block)
{
    const int64_t last = full->f->arch.n_layers - 1;
    const int64_t end = block + s->crr_blocks < last ? block + s->crr_blocks : last;
    double sum = 0, loss = 0;
    for (int64_t b = 0; b <= end; b++) {
        walk_plain(full, b);
        if (b <= block)
            walk_quantized(half, q, b, &m->block[b]);
        else
            walk_plain(half, b);
        const struct loss_inputs in = {
            .y = &half->r.x, .t = &full->r.x, .kind = s->crr_loss, .weight = 1};
        must(dev_loss(q->dev, &loss, NULL, &in));
        sum += b >= block ? loss : 0;
    }
    return s->crr_terms == TERMS_ALL ? sum / (double)(end - block + 1) : loss;
}

static double set_loss(struct dev *d, const struct fixture *f,
                       const struct calib_settings *s, const struct memory_io *m,
                       int64_t block)
{
    struct walk full = {.f = f}, half = {.f = f};
    struct fakequant q;
    int32_t tokens[4096];
    double sum = 0;
    const int64_t n = s->eval_samples ? s->eval_samples : s->samples;
    assert_true(s->samples * s->seqlen <= 4096);
    tiny_tokens(tokens, s, &f->arch);
    must(fakequant_open(&q, d, &f->arch, s));
    must(recon_open(&full.r, d, &f->arch, s));
    must(recon_open(&half.r, d, &f->arch, s));
    for (int64_t i = 0; i < n; i++) {
        must(model_embed(d, &f->arch, &full.r.x, &f->embed, tokens + i * s->seqlen));
        must(dev_copy(d, &half.r.x, &full.r.x));
        sum += walk_loss(&full, &half, &q, s, m, block);
    }
    fakequant_close(&q);
    recon_close(&full.r);
    recon_close(&half.r);
    return sum / (double)n;
}

/* Trains with k blocks after the block in work, and checks every reported loss against an
 * independent forward pass. */
static void check_losses(int which, int64_t k, enum crr_terms terms, enum loss_kind loss,
                         int64_t eval_samples)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    int gained = 0;
    fixture_open(&f, tiny_arch(which, 4), 7);
    s.crr_blocks = k, s.crr_terms = terms, s.crr_loss = loss, s.epochs = 4;
    s.eval_samples = eval_samples;
    calibrate("ref", &m, &f, &s);
    struct dev *d = open_dev("ref");
    for (int64_t i = 0; i < f.arch.n_layers; i++) {
        const double again = set_loss(d, &f, &s, &m, i);
        assert_true(fabs(again - m.stats[i].best_loss) <= 1e-6 * again);
        gained += m.stats[i].best_epoch > 0;
    }
    assert_true(gained >= 3);
    dev_close(&d);
    memory_io_close(&m);
    fixture_close(&f);
}

static void test_gains_and_reports_truly(void **state)
{
    for (int which = 0; which < 2; which++) {
        check_losses(which, 0, TERMS_LAST, LOSS_MAE, 0);
        check_losses(which, 2, TERMS_ALL, LOSS_MSE, 0);
        check_losses(which, 5, TERMS_LAST, LOSS_MAE, 0);
        check_losses(which, 2, TERMS_LAST, LOSS_MAE, 1);
        check_losses(which, 0, TERMS_ALL, LOSS_MAE, 2);
    }
    check_losses(3, 2, TERMS_ALL, LOSS_MSE, 1);
    check_losses(4, 0, TERMS_LAST, LOSS_MAE, 0);
    check_losses(4, 2, TERMS_ALL, LOSS_MSE, 0);
}

static bool finite_block(const struct block_quant *q)
{
    for (int64_t c = 0; c < q->n_channels; c++)
        if (!(q->k_scale[c] > 0 && q->v_scale[c] > 0 && isfinite(q->k_shift[c]) &&
              isfinite(q->v_shift[c])))
            return false;
    return true;
}

/* Changes one setting of the loss or of the arithmetic. */
static void vary_training(struct calib_settings *s, int which)
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
    case 30:
        s->eval_samples = 1;
        break;
    case 15:
        s->schedule = SCHEDULE_COSINE, s->weight_decay = 0.01f;
        break;
    case 17:
        s->epochs = 0;
        break;
    case 22:
        s->weights.act_bits = 8;
        break;
    case 23:
        s->weights.act_bits = 4, s->kv.bits = 16;
        break;
    default:
        s->act = DT_BF16;
        break;
    }
}

/* Changes how codes are chosen from weights, or their start values. */
static void vary_weights(struct calib_settings *s, int which)
{
    switch (which) {
    case 25:
        s->weights.round = ROUND_LEARNED;
        break;
    case 26:
        s->weights.method = WEIGHT_RTN, s->weights.round = ROUND_LEARNED;
        s->kv.bits = 16;
        break;
    case 27:
        s->weights.method = WEIGHT_GPTQ, s->weights.round = ROUND_LEARNED;
        s->gptq.damp = 0.01;
        break;
    case 29:
        s->kv_init = INIT_SEARCH, s->kv.bits = 2;
        break;
    default:
        s->weights_init = INIT_SEARCH;
        break;
    }
}

/* Changes one setting of the tiny run. */
static void vary(struct calib_settings *s, int which)
{
    switch (which) {
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
    case 16:
        s->weights.bits = 8, s->kv.bits = 8;
        break;
    case 18:
        s->weights.bits = 16, s->kv.bits = 16;
        break;
    case 19:
        s->weights.method = WEIGHT_RTN, s->kv.method = KV_TOKEN;
        break;
    case 20:
        s->weights.method = WEIGHT_GPTQ, s->gptq = (struct gptq_settings){0.01, false};
        break;
    case 21:
        s->weights.method = WEIGHT_GPTQ, s->gptq = (struct gptq_settings){0.01, true};
        s->kv.bits = 16;
        break;
    default:
        if (which >= 25 && which < 30)
            vary_weights(s, which);
        else
            vary_training(s, which);
        break;
    }
}
#define N_VARIANTS 31

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

/* Settings that differ in what a resumed run must restore: streams and parameters, or
 * nothing. */
static struct calib_settings resume_case(int which)
{
    struct calib_settings s = tiny_settings();
    if (which == 0)
        s.crr_terms = TERMS_ALL, s.eval_samples = 2;
    if (which == 1)
        s.crr_blocks = 0, s.act = DT_BF16, s.schedule = SCHEDULE_COSINE;
    if (which == 2)
        s.crr_blocks = 5, s.weights.method = WEIGHT_RTN, s.kv.key_stage = KEY_PRE_ROPE,
        s.kv_init = INIT_SEARCH;
    if (which == 3)
        s.weights.method = WEIGHT_RTN, s.kv.learn = false;
    if (which == 4)
        s.kv.bits = 16, s.crr_blocks = 2;
    if (which == 5)
        s.weights.method = WEIGHT_GPTQ, s.gptq.damp = 0.01;
    if (which >= 6)
        s.weights.round = ROUND_LEARNED,
        s.weights.method = which < 9 ? (enum weight_method)(which - 6) : WEIGHT_LWC,
        s.gptq.damp = 0.01;
    if (which == 7 || which == 8)
        s.kv.bits = 16; /* weights rounded to nearest: only offsets learn */
    if (which >= 8 && which < 10)
        s.weights_init = INIT_SEARCH;
    if (which == 10) /* the cache keeps its start values while the weights learn */
        s.kv.learn = false;
    if (which == 11)
        s.kv = kv_target_spec(TARGET_FP8);
    return s;
}

static void stop_and_resume(struct arch a, int from, int to)
{
    struct fixture f;
    fixture_open(&f, a, 10);
    for (int which = from; which < to; which++) {
        const struct calib_settings s = resume_case(which);
        struct memory_io whole;
        calibrate("cpu", &whole, &f, &s);
        for (int64_t every = 1 + which % 2; every < whole.asked; every += 1 + every / 3) {
            struct memory_io m;
            stop_and_go(&m, &f, &s, every);
            assert_true(same_result(&m, &whole));
            memory_io_close(&m);
        }
        memory_io_close(&whole);
    }
    fixture_close(&f);
}

static void test_stopped_and_resumed(void **state)
{
    stop_and_resume(tiny_arch(1, 3), 0, 12);
    stop_and_resume(tiny_arch(4, 2), 0, 2);
    stop_and_resume(tiny_arch(4, 2), 6, 7);
}

/* A NaN in a weight, a norm or a bias of a block far after the block in work is found, and
 * the message names its place. */
static void test_non_finite_weight_is_named(void **state)
{
    for (int which = 0; which < 4; which++) {
        struct fixture f;
        struct memory_io m;
        const struct calib_settings s = tiny_settings();
        fixture_open(&f, tiny_arch(1, 4), 11);
        struct block_src *b = &f.blocks[3];
        const struct host_mat *const mats[] = {&b->lin[LIN_GATE], &b->norm[GAIN_Q],
                                               &b->bias[LIN_V], &b->bias[LIN_UP]};
        const char *const names[] = {"mlp.gate_proj", "q_norm", "layers.3.v.bias",
                                     "layers.3.up.bias"};
        b->bias[LIN_V].name = "layers.3.v.bias";
        b->bias[LIN_UP].name = "layers.3.up.bias";
        ((float *)(uintptr_t)mats[which]->data)[5] = which ? NAN : INFINITY;
        memory_io_open(&m);
        assert_int_equal(run_on("cpu", &m, &f, &s), ERR_FORMAT);
        assert_non_null(strstr(err_text(), "block 3"));
        assert_non_null(strstr(err_text(), names[which]));
        assert_int_equal(m.open_streams, 0);
        memory_io_close(&m);
        fixture_close(&f);
    }
}

/* Learning rates at which training diverges: the run stops, names the place, and saves a
 * partial block that another run can load. */
static void test_divergence_is_named_and_saved(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 2), 11);
    s.lr_shift = s.lr_smooth = 1e30f;
    memory_io_open(&m);
    assert_int_equal(run_on("cpu", &m, &f, &s), ERR_NUMERIC);
    assert_non_null(strstr(err_text(), "block 0, epoch 0, step "));
    assert_non_null(strstr(err_text(), "sample "));
    assert_true(m.n_partial > 0);
    assert_int_equal(m.n_blocks, 0);
    assert_int_equal(run_on("cpu", &m, &f, &s), ERR_NUMERIC);
    assert_non_null(strstr(err_text(), "block 0, epoch 0, step "));
    memory_io_close(&m);
    fixture_close(&f);
}

/* Learning rates that make every epoch worse: the start values are kept, bit for bit. */
static void test_start_is_kept(void **state)
{
    struct fixture f;
    struct memory_io m, start;
    struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 1), 14);
    s.lr_clip = 30, s.lr_shift = s.lr_smooth = 3;
    calibrate("cpu", &m, &f, &s);
    assert_int_equal(m.stats[0].best_epoch, 0);
    assert_true(m.stats[0].best_loss == m.stats[0].start_loss);
    assert_true(m.stats[0].epoch_loss[1] > m.stats[0].start_loss);
    s.epochs = 0;
    calibrate("cpu", &start, &f, &s);
    for (int l = 0; l < N_LIN; l++) {
        const struct qlinear *x = &m.block[0].lin[l], *y = &start.block[0].lin[l];
        assert_memory_equal(x->scales, y->scales, (size_t)(2 * x->out * x->groups));
    }
    assert_memory_equal(m.block[0].k_shift, start.block[0].k_shift,
                        (size_t)m.block[0].n_channels * sizeof(float));
    memory_io_close(&m);
    memory_io_close(&start);
    fixture_close(&f);
}

/* Shifts of the keys after `epochs` steps of one sample. */
static void shifts_after(float *shift, const struct fixture *f, struct calib_settings s,
                         int64_t epochs)
{
    struct memory_io m;
    s.epochs = epochs;
    calibrate("ref", &m, f, &s);
    assert_int_equal(m.stats[0].best_epoch, epochs);
    memcpy(shift, m.block[0].k_shift, (size_t)m.block[0].n_channels * sizeof(float));
    memory_io_close(&m);
}

/* At half of the cosine the rate is one half. Of two steps from one start, the first equals
 * a step at a constant rate, and the second is half as long. */
static void test_cosine_halves_the_rate(void **state)
{
    struct fixture f;
    struct calib_settings s = tiny_settings();
    float first[16], whole[16], half[16], moved = 0;
    fixture_open(&f, tiny_arch(0, 1), 16);
    s.samples = 1;
    shifts_after(first, &f, s, 1);
    shifts_after(whole, &f, s, 2);
    s.schedule = SCHEDULE_COSINE;
    shifts_after(half, &f, s, 2);
    for (int c = 0; c < 16; c++) {
        const float want = 0.5f * (whole[c] - first[c]), have = half[c] - first[c];
        assert_true(fabsf(have - want) <= 1e-5f);
        moved = fmaxf(moved, fabsf(want));
    }
    assert_true(moved >= 1e-3f);
    fixture_close(&f);
}

static void refuse_settings(const struct fixture *f, const struct calib_settings *s,
                            const char *key)
{
    static const int32_t tokens[4096];
    struct memory_io m;
    struct dev *d = open_dev("cpu");
    memory_io_open(&m);
    err_clear();
    assert_int_equal(calib_run(d, &f->arch, &f->source, s, tokens, 0, &m.io), ERR_USAGE);
    assert_int_equal(strncmp(err_text(), key, strlen(key)), 0);
    memory_io_close(&m);
    dev_close(&d);
}

/* Each count just below and just above its range, which the table of keys has too. */
static void test_settings_are_checked(void **state)
{
    struct fixture f;
    struct calib_settings s;
    const struct {
        const char *key;
        int64_t *count, lo, hi;
    } row[] = {
        {"calibration.samples", &s.samples, RANGE_SAMPLES},
        {"calibration.seqlen", &s.seqlen, RANGE_SEQLEN},
        {"calibration.epochs", &s.epochs, RANGE_EPOCHS},
        {"calibration.batch", &s.batch, RANGE_BATCH},
        {"calibration.eval_samples", &s.eval_samples, RANGE_EVAL_SAMPLES},
        {"weights.group_size", &s.weights.group_size, RANGE_WEIGHT_GROUP},
        {"kv.group_size", &s.kv.group_size, RANGE_KV_GROUP},
        {"kv.window", &s.kv.window, RANGE_WINDOW},
        {"kv.sink", &s.kv.sink, RANGE_SINK},
        {"crr.blocks", &s.crr_blocks, RANGE_CRR_BLOCKS},
    };
    fixture_open(&f, tiny_arch(0, 2), 15);
    for (size_t i = 0; i < ARRAY_LEN(row); i++)
        for (int above = 0; above < 2; above++) {
            s = tiny_settings();
            *row[i].count = above ? row[i].hi + 1 : row[i].lo - 1;
            refuse_settings(&f, &s, row[i].key);
        }
    for (int bits = 1; bits <= 17; bits += 8) {
        s = tiny_settings();
        s.weights.bits = bits;
        refuse_settings(&f, &s, "weights.bits");
        s.weights.bits = 4;
        s.kv.bits = bits;
        refuse_settings(&f, &s, "kv.bits");
    }
    s = tiny_settings();
    s.gptq.damp = NAN;
    refuse_settings(&f, &s, "weights.damp");
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

/* The same calibration on ref, on cpu, and with emulated GPU kernels. The emulation
 * protects device memory, so this shows that only operations access it. */
static void devices_agree(enum weight_round round)
{
    static const char *const others[] = {"cpu", "cuda-emu"};
    struct fixture f;
    struct memory_io x, y;
    struct calib_settings s = tiny_settings();
    fixture_open(&f, tiny_arch(0, 2), 13);
    s.crr_loss = LOSS_MSE;
    s.weights.round = round;
    calibrate("ref", &x, &f, &s);
    for (size_t d = 0; d < ARRAY_LEN(others); d++) {
        calibrate(others[d], &y, &f, &s);
        for (int64_t i = 0; i < 2; i++)
            assert_true(fabs(x.stats[i].best_loss - y.stats[i].best_loss) <=
                        0.02 * x.stats[i].best_loss);
        memory_io_close(&y);
    }
    memory_io_close(&x);
    fixture_close(&f);
}

static void test_devices_agree(void **state)
{
    devices_agree(ROUND_NEAREST);
    devices_agree(ROUND_LEARNED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gains_and_reports_truly),
        cmocka_unit_test(test_every_switch),
        cmocka_unit_test(test_same_bytes_twice_and_on_disk),
        cmocka_unit_test(test_stopped_and_resumed),
        cmocka_unit_test(test_non_finite_weight_is_named),
        cmocka_unit_test(test_divergence_is_named_and_saved),
        cmocka_unit_test(test_start_is_kept),
        cmocka_unit_test(test_cosine_halves_the_rate),
        cmocka_unit_test(test_settings_are_checked),
        cmocka_unit_test(test_wrong_partial_is_refused),
        cmocka_unit_test(test_devices_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
