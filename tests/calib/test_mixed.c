/* SPDX-License-Identifier: MIT
 *
 * Calibrations in which projections differ in bits and group size, in every method. */
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

/* Several bits and group sizes, ragged groups and whole rows, some projections unquantized.
 * In block 1 no two projections are alike; in block 2 only v is quantized. */
static struct mix *odd_mix(void)
{
    struct mix *m = NULL;
    must(mix_parse(&m, MIX_WEIGHTS,
                   "v_proj=8:5, 0.down_proj=3:0, 0.k_proj=16, 1.q_proj=2, 1.k_proj=3:9, "
                   "1.o_proj=5:0, 1.gate_proj=6:7, 1.up_proj=7:12, 1.down_proj=16, "
                   "2.q_proj=16, 2.k_proj=16, 2.o_proj=16, 2.gate_proj=16, 2.up_proj=16, "
                   "2.down_proj=16",
                   ERR_USAGE, "odd_mix"));
    return m;
}

/* The methods that choose codes in a mixed run. */
static struct calib_settings mixed_case(int which, const struct mix *m)
{
    struct calib_settings s = tiny_settings();
    s.weights.method = (enum weight_method)(which % 3);
    s.weights.round = which < 3 ? ROUND_NEAREST : ROUND_LEARNED;
    s.weights_init = which < 3 ? INIT_PAPER : INIT_SEARCH;
    s.gptq.damp = 0.01;
    s.weights.mixed = m;
    return s;
}
#define N_MIXED 6

static void mixed_resumes(const struct fixture *f, const struct calib_settings *s)
{
    struct memory_io whole, m;
    calibrate("cpu", &whole, f, s);
    assert_true(whole.asked > 8);
    for (int64_t every = 5; every < whole.asked; every += 1 + every / 2) {
        stop_and_go(&m, f, s, every);
        assert_true(same_result(&m, &whole));
        memory_io_close(&m);
    }
    memory_io_close(&whole);
}

static void test_mixed_stopped_and_resumed(void **state)
{
    struct fixture f;
    struct mix *mixed = odd_mix();
    fixture_open(&f, tiny_arch(1, 3), 10);
    for (int which = 0; which < N_MIXED; which++) {
        const struct calib_settings s = mixed_case(which, mixed);
        mixed_resumes(&f, &s);
    }
    fixture_close(&f);
    mix_free(mixed);
}

static const struct tensor *saved(const struct memory_io *m, const char *name)
{
    for (int i = 0; i < m->n_partial; i++)
        if (!strcmp(m->partial[i].name, name))
            return &m->partial[i].t;
    fail_msg("%s is not saved", name);
    return NULL;
}

/* Stops in the training of the block behind an ordinary one. */
static void stop_in_block_1(struct memory_io *m, const struct fixture *f,
                            const struct calib_settings *s)
{
    for (int64_t at = 1; at < 200; at++) {
        memory_io_open(m);
        m->stop_after = at;
        const enum err err = run_on("cpu", m, f, s);
        assert_int_equal(err, ERR_STOPPED);
        err_clear();
        if (m->n_blocks == 1 && m->n_partial && m->n_steps > s->epochs * s->samples + 2)
            return;
        memory_io_close(m);
    }
    fail_msg("it never stopped in block 1");
}

/* Where one block's cache is unquantized, its smoothing and shift have no gradients: neither those
 * of the block before it, nor what memory held. */
static void test_a_block_without_a_cache_to_learn(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    struct mix *mixed = NULL;
    (void)state;
    must(mix_parse(&mixed, MIX_KV, "1.k=16, 1.v=16", ERR_USAGE, "kv.mixed"));
    s.kv.mixed = mixed;
    s.epochs = 2;
    fixture_open(&f, tiny_arch(0, 2), 12);
    stop_in_block_1(&m, &f, &s);
    const struct tensor *moment = saved(&m, "m");
    const int64_t learned = 4 * f.arch.n_kv * f.arch.head_dim, n = tensor_count(moment);
    float clip = 0;
    for (int64_t i = 0; i < n; i++) {
        const float x = ((const float *)moment->data)[i];
        if (i < n - learned)
            clip += x * x;
        else
            assert_true(x == 0);
    }
    assert_true(clip > 0);
    memory_io_close(&m);
    fixture_close(&f);
    mix_free(mixed);
}

static void check_saved(const struct memory_io *m, const struct fixture *f,
                        const struct calib_settings *s)
{
    size_t sum = 0;
    for (int i = 0; i < m->n_partial; i++)
        sum += (size_t)tensor_count(&m->partial[i].t) * dtype_bytes(m->partial[i].t.dtype);
    assert_int_equal(sum, calib_partial_bytes(&f->arch, s, m->partial_block));
}

/* Stops everywhere. Returns the set of blocks that were saved unfinished, as bits. */
static unsigned saved_blocks(const struct fixture *f, const struct calib_settings *s)
{
    unsigned blocks = 0;
    struct memory_io m;
    enum err err = ERR_STOPPED;
    memory_io_open(&m);
    for (m.stop_after = 3; err == ERR_STOPPED; m.stop_after += 3) {
        m.asked = 0;
        err = run_on("cpu", &m, f, s);
        if (!m.n_partial)
            continue;
        check_saved(&m, f, s);
        blocks |= 1U << m.partial_block;
    }
    must(err);
    memory_io_close(&m);
    return blocks;
}

/* The block in work is saved in as many bytes as calib_partial_bytes() says. */
static void test_bytes_of_the_saved_block(void **state)
{
    struct fixture f;
    struct mix *mixed = odd_mix();
    (void)state;
    fixture_open(&f, tiny_arch(0, 3), 10);
    for (int which = 0; which < 3 * N_MIXED; which++) {
        struct calib_settings s = mixed_case(which % N_MIXED, mixed);
        s.kv.learn = which < N_MIXED;
        s.kv.bits = which < 2 * N_MIXED ? 4 : 16;
        const unsigned blocks = saved_blocks(&f, &s);
        assert_true(blocks == 7 ||
                    !s.kv.learn); /* without anything to learn none is saved */
    }
    fixture_close(&f);
    mix_free(mixed);
}

/* Every projection has the format that the mix gives it; an unquantized one is empty. */
static void check_formats(const struct memory_io *m, const struct fixture *f,
                          const struct weight_spec *w)
{
    const struct arch *a = &f->arch;
    for (int64_t i = 0; i < m->n_blocks; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &m->block[i].lin[l];
            const struct lin_format want = weight_format(w, i, l);
            const bool packed = want.bits < 16;
            assert_int_equal(qlinear_fits(q, arch_out(a, l), arch_in(a, l), want), packed);
            assert_true(packed || !q->scales);
            assert_int_equal(q->codes != NULL, packed && weight_chooses_codes(w));
            for (int64_t k = 0; packed && k < q->out * q->groups; k++)
                assert_int_equal(q->zeros[k] >> want.bits, 0);
            for (int64_t k = 0; q->codes && k < q->out * q->in; k++)
                assert_int_equal(q->codes[k] >> want.bits, 0);
        }
}

static void test_mixed_formats(void **state)
{
    static const char *const name[] = {"ref", "cpu", "cuda-emu"};
    struct mix *mixed = odd_mix();
    for (int which = 0; which < N_MIXED; which++) {
        const struct calib_settings s = mixed_case(which, mixed);
        for (int device = 0; device < 3; device++) {
            struct fixture f;
            struct memory_io m;
            fixture_open(&f, tiny_arch(which % 2, 3), 12);
            calibrate(name[device], &m, &f, &s);
            check_formats(&m, &f, &s.weights);
            memory_io_close(&m);
            fixture_close(&f);
        }
    }
    mix_free(mixed);
}

/* Projection l of block 0 in a run of one format for all. */
static void uniform_like(struct memory_io *m, const struct fixture *f,
                         struct calib_settings s, struct lin_format format)
{
    s.weights.bits = format.bits;
    s.weights.group_size = format.group_size;
    s.weights.mixed = NULL;
    calibrate("cpu", m, f, &s);
}

static void same_linear(const struct qlinear *x, const struct qlinear *y)
{
    const size_t n = (size_t)(x->out * x->groups);
    assert_int_equal(x->groups, y->groups);
    assert_memory_equal(x->scales, y->scales, 2 * n);
    assert_memory_equal(x->zeros, y->zeros, n);
    assert_int_equal(!x->codes, !y->codes);
    if (x->codes)
        assert_memory_equal(x->codes, y->codes, (size_t)(x->out * x->in));
}

/* Nothing learns. In the first block, a projection whose input does not depend on others is
 * quantized as in a run with only its format. */
static void test_mixed_is_each_alone(void **state)
{
    struct fixture f;
    struct mix *mixed = NULL;
    must(mix_parse(&mixed, MIX_WEIGHTS,
                   "q_proj=2, k_proj=3:9, v_proj=8:5, o_proj=5:0, gate_proj=6:7, "
                   "up_proj=7:12, down_proj=3:0",
                   ERR_USAGE, "mix"));
    fixture_open(&f, tiny_arch(1, 1), 13);
    for (int search = 0; search < 2; search++)
        for (int method = WEIGHT_RTN; method <= WEIGHT_GPTQ; method++) {
            struct memory_io m, alone;
            struct calib_settings s = tiny_settings();
            s.epochs = 0;
            s.weights.method = (enum weight_method)method;
            s.weights.mixed = mixed;
            s.weights_init = search ? INIT_SEARCH : INIT_PAPER;
            s.gptq.damp = 0.01;
            calibrate("cpu", &m, &f, &s);
            for (int l = 0; l < N_LIN; l++) {
                uniform_like(&alone, &f, s, weight_format(&s.weights, 0, l));
                same_linear(&m.block[0].lin[l], &alone.block[0].lin[l]);
                memory_io_close(&alone);
            }
            memory_io_close(&m);
        }
    fixture_close(&f);
    mix_free(mixed);
}

/* A mix that gives every kind the base format changes nothing. */
static void test_mix_of_one_format(void **state)
{
    struct fixture f;
    struct mix *mixed = NULL;
    must(mix_parse(&mixed, MIX_WEIGHTS,
                   "q_proj=4:16, k_proj=4:16, v_proj=4:16, o_proj=4:16, gate_proj=4:16, "
                   "up_proj=4:16, down_proj=4:16",
                   ERR_USAGE, "mix"));
    fixture_open(&f, tiny_arch(0, 3), 14);
    for (int which = 0; which < N_MIXED; which++) {
        struct memory_io x, y;
        struct calib_settings s = mixed_case(which, mixed);
        s.weights.bits = 16;
        s.weights.group_size = 3;
        calibrate("cpu", &x, &f, &s);
        uniform_like(&y, &f, s, (struct lin_format){4, 16});
        assert_true(same_result(&x, &y));
        memory_io_close(&x);
        memory_io_close(&y);
    }
    fixture_close(&f);
    mix_free(mixed);
}

static void test_mix_beyond_the_model(void **state)
{
    struct fixture f;
    struct memory_io m;
    struct calib_settings s = tiny_settings();
    struct mix *mixed = NULL;
    must(mix_parse(&mixed, MIX_WEIGHTS, "0-2.v_proj=8", ERR_USAGE, "mix"));
    s.weights.mixed = mixed;
    fixture_open(&f, tiny_arch(0, 2), 15);
    memory_io_open(&m);
    assert_int_equal(run_on("cpu", &m, &f, &s), ERR_USAGE);
    assert_non_null(strstr(err_text(), "rule '2.v_proj=8': the model has layers 0 to 1"));
    memory_io_close(&m);
    fixture_close(&f);
    mix_free(mixed);
    err_clear();
}

/* Counts the scales with more significant bits. */
static int64_t beyond(const struct memory_io *m, int scale_bits)
{
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_blocks; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct qlinear *q = &m->block[i].lin[l];
            for (int64_t k = 0; q->scales && k < q->out * q->groups; k++)
                n += !quant_scale_fits(q->scales[k], scale_bits);
        }
    return n;
}

/* Calibrates two blocks in one epoch. */
static void short_run(const char *device, struct memory_io *m, struct calib_settings s,
                      int scale_bits)
{
    struct fixture f;
    s.weights.scale_bits = scale_bits;
    s.epochs = 1;
    fixture_open(&f, tiny_arch(1, 2), 16);
    calibrate(device, m, &f, &s);
    fixture_close(&f);
}

/* Every method on every device. */
static void test_scale_bits(void **state)
{
    static const char *const name[] = {"ref", "cpu", "cuda-emu"};
    for (int which = 0; which < N_MIXED; which++) {
        struct calib_settings s = mixed_case(which, NULL);
        struct memory_io m;
        s.gptq.act_order = which >= 3;
        for (int device = 0; device < 3; device++) {
            short_run(name[device], &m, s, 3);
            assert_int_equal(beyond(&m, 3), 0);
            memory_io_close(&m);
        }
        struct memory_io all, same;
        short_run("cpu", &all, s, 0);
        assert_true(beyond(&all, 3) > 0);
        short_run("cpu", &same, s, 11);
        assert_true(same_result(&same, &all));
        memory_io_close(&same);
        memory_io_close(&all);
    }
}

static void test_scale_bits_refused(void **state)
{
    static const int wrong[] = {-1, 12};
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        struct fixture f;
        struct memory_io m;
        struct calib_settings s = tiny_settings();
        s.weights.scale_bits = wrong[i];
        fixture_open(&f, tiny_arch(0, 2), 17);
        memory_io_open(&m);
        assert_int_equal(run_on("cpu", &m, &f, &s), ERR_USAGE);
        assert_non_null(strstr(err_text(), "weights.scale_bits"));
        memory_io_close(&m);
        fixture_close(&f);
        err_clear();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed_stopped_and_resumed),
        cmocka_unit_test(test_mixed_formats),
        cmocka_unit_test(test_a_block_without_a_cache_to_learn),
        cmocka_unit_test(test_bytes_of_the_saved_block),
        cmocka_unit_test(test_mixed_is_each_alone),
        cmocka_unit_test(test_mix_of_one_format),
        cmocka_unit_test(test_mix_beyond_the_model),
        cmocka_unit_test(test_scale_bits),
        cmocka_unit_test(test_scale_bits_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
