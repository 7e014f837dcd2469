/* SPDX-License-Identifier: MIT
 *
 * Steps of several samples (calibration.batch): the sum of gradients, and whole runs. */
#include "calib/batch/batch_sum.h"
#include "calib/cost.h"
#include "kernels/base/mem.h"
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define SAMPLES 4

static struct calib_settings batch_settings(int64_t batch)
{
    struct calib_settings s = tiny_settings();
    s.samples = SAMPLES;
    s.batch = batch;
    s.weights.round = ROUND_LEARNED;
    return s;
}

/* Writes the gradients of a sample, and adds them to sum [floats] in the order of the tensors. */
static void put_sample(struct fakequant *f, float *sum, int64_t i)
{
    const struct tensor *grad[FQ_SUMS];
    struct rng rng;
    rng_seed(&rng, (uint64_t)i + 1);
    fakequant_gradients(f, grad);
    for (int k = 0; k < FQ_SUMS; k++) {
        const int64_t n = tensor_count(grad[k]);
        float *host = draw(&rng, n, 1e3, 0);
        must(dev_upload(f->dev, grad[k]->data, host, (size_t)n * sizeof(*host)));
        for (int64_t j = 0; j < n; j++)
            sum[j] = i ? sum[j] + host[j] : host[j];
        sum += n;
        must(dev_sync(f->dev));
        mem_free(host);
    }
}

static void check_sum(struct fakequant *f, const float *sum)
{
    const struct tensor *grad[FQ_SUMS];
    fakequant_gradients(f, grad);
    for (int k = 0; k < FQ_SUMS; k++) {
        const int64_t n = tensor_count(grad[k]);
        float *host = NULL;
        must(mem_alloc(&host, (size_t)n, sizeof(*host)));
        must(dev_download(f->dev, host, grad[k]->data, (size_t)n * sizeof(*host)));
        assert_memory_equal(host, sum, (size_t)n * sizeof(*host));
        sum += n;
        mem_free(host);
    }
}

/* The sum is ((g0 + g1) + g2) + g3 in F32, bit for bit, on every device. */
static void test_gradients_are_added_in_order(void **state)
{
    static const char *const device[] = {"ref", "cpu", "cuda-emu"};
    for (size_t i = 0; i < ARRAY_LEN(device); i++) {
        const struct arch a = tiny_arch(0, 2);
        const struct calib_settings s = batch_settings(SAMPLES);
        struct dev *d = open_dev(device[i]);
        struct fakequant f;
        struct fixture fixture;
        float *sum = NULL;
        fixture_open(&fixture, a, 9);
        must(fakequant_open(&f, d, &fixture.arch, &s));
        must(fakequant_load(&f, &fixture.blocks[0], 0));
        must(mem_calloc(&sum, (size_t)(f.n + arch_block_params(&a)), sizeof(*sum)));
        for (int64_t k = 0; k < SAMPLES; k++) {
            put_sample(&f, sum, k);
            must(fakequant_add_sample(&f, k, SAMPLES));
        }
        check_sum(&f, sum);
        mem_free(sum);
        fakequant_close(&f);
        fixture_close(&fixture);
        dev_close(&d);
    }
}

/* Runs on `samples` copies of one window. */
static void calibrate_copies(struct memory_io *m, const struct fixture *f,
                             struct calib_settings s, int64_t samples)
{
    int32_t tokens[1024];
    struct dev *d = open_dev("cpu");
    s.samples = 1;
    tiny_tokens(tokens, &s, &f->arch);
    for (int64_t i = 1; i < samples; i++)
        memcpy(tokens + i * s.seqlen, tokens, (size_t)s.seqlen * sizeof(*tokens));
    s.samples = s.batch = samples;
    memory_io_open(m);
    must(calib_run(d, &f->arch, &f->source, &s, tokens, 0, &m->io));
    dev_close(&d);
}

/* The mean gradient of 2 or 4 equal samples is that of one, bit for bit: halves are exact. */
static void test_equal_samples_count_as_one(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(1, 3), 9);
    for (int which = 0; which < 3; which++) {
        struct calib_settings s = batch_settings(1);
        struct memory_io one, two, four;
        s.crr_terms = which ? TERMS_ALL : TERMS_LAST;
        s.schedule = which == 1 ? SCHEDULE_COSINE : SCHEDULE_CONSTANT;
        s.weights.round = which == 2 ? ROUND_NEAREST : ROUND_LEARNED;
        calibrate_copies(&one, &f, s, 1);
        calibrate_copies(&two, &f, s, 2);
        calibrate_copies(&four, &f, s, 4);
        assert_true(same_result(&one, &two));
        assert_true(same_result(&one, &four));
        memory_io_close(&one);
        memory_io_close(&two);
        memory_io_close(&four);
    }
    fixture_close(&f);
}

/* Steps of an epoch, of which the last may have fewer samples. */
static void test_steps(void **state)
{
    static const int64_t steps[SAMPLES] = {4, 2, 2, 1};
    struct memory_io m[SAMPLES];
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 9);
    for (int i = 0; i < SAMPLES; i++) {
        const struct calib_settings s = batch_settings(i + 1);
        assert_int_equal(calib_epoch_steps(&s), steps[i]);
        calibrate("cpu", &m[i], &f, &s);
        assert_int_equal(m[i].n_steps, s.epochs * steps[i] * f.arch.n_layers);
        for (int k = 0; k < i; k++)
            assert_false(same_result(&m[k], &m[i]));
    }
    for (int i = 0; i < SAMPLES; i++)
        memory_io_close(&m[i]);
    fixture_close(&f);
}

/* Also stopped between the samples of a step. */
static void test_stopped_and_resumed(void **state)
{
    struct fixture f;
    fixture_open(&f, tiny_arch(1, 2), 10);
    for (int64_t batch = 2; batch <= SAMPLES; batch++) {
        struct calib_settings s = batch_settings(batch);
        struct memory_io whole;
        s.schedule = SCHEDULE_COSINE;
        calibrate("cpu", &whole, &f, &s);
        for (int64_t every = 1; every < whole.asked; every += 1 + every / 3) {
            struct memory_io m;
            stop_and_go(&m, &f, &s, every);
            assert_true(same_result(&m, &whole));
            memory_io_close(&m);
        }
        memory_io_close(&whole);
    }
    fixture_close(&f);
}

static void test_refused(void **state)
{
    static const int64_t batch[] = {0, -1, SAMPLES + 1, (1 << 20) + 1};
    struct fixture f;
    fixture_open(&f, tiny_arch(0, 2), 9);
    for (size_t i = 0; i < ARRAY_LEN(batch); i++) {
        const struct calib_settings s = batch_settings(batch[i]);
        struct memory_io m;
        memory_io_open(&m);
        assert_int_equal(run_on("cpu", &m, &f, &s), ERR_USAGE);
        assert_non_null(strstr(err_text(), "calibration.batch"));
        memory_io_close(&m);
    }
    fixture_close(&f);
}

/* The plan has a second set of gradients. */
static void test_memory(void **state)
{
    const struct arch a = tiny_arch(0, 2);
    struct calib_settings one = batch_settings(1), four = batch_settings(4);
    const size_t weights = (size_t)arch_block_params(&a) * sizeof(float);
    assert_true(fakequant_bytes(&a, &four) >= fakequant_bytes(&a, &one) + weights);
    one.weights.round = four.weights.round = ROUND_NEAREST;
    assert_true(fakequant_bytes(&a, &four) > fakequant_bytes(&a, &one));
    assert_true(fakequant_bytes(&a, &four) < fakequant_bytes(&a, &one) + weights / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradients_are_added_in_order),
                                       cmocka_unit_test(test_equal_samples_count_as_one),
                                       cmocka_unit_test(test_steps),
                                       cmocka_unit_test(test_stopped_and_resumed),
                                       cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
