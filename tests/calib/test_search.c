/* SPDX-License-Identifier: MIT
 *
 * The searched start of the clipping: the best of the grid, with the weights of each
 * projection's own inputs. */
#include "calib/start/inputs.h"
#include "calib/start/search.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/clip.h"
#include "kernels/tensor/quant.h"
#include "tests/calib/calib_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* One weight ten times the others, on either side: clipped if its input is small, kept if
 * its input is the largest. */
static void test_search_weighs_inputs(void **state)
{
    enum { N = 64 };
    float w[N], gamma[2], beta[2];
    double m[N];
    struct rng r;
    rng_seed(&r, 7);
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < N; i++) {
            w[i] = (float)rng_normal(&r) * 0.3f;
            m[i] = 1;
        }
        w[20] = side ? -5.0f : 5.0f;
        for (int i = 0; i < 2; i++) {
            m[20] = i ? 1e4 : 1e-4;
            clip_search(&gamma[i], &beta[i], &(struct clip_group){w, m, N, {4}}, 0.99f);
        }
        const float *outer = side ? beta : gamma, *inner = side ? gamma : beta;
        assert_true(outer[0] <= 0.7f);
        assert_true(outer[1] >= 0.9f);
        assert_true(inner[0] >= 0.4f && inner[0] <= 1);
    }
}

static double weighted_error(const float *w, const double *m, int n, float gamma,
                             float beta, int scale_bits)
{
    enum { BITS = 3 };
    float lo = 0, hi = 0;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    lo *= beta;
    const float h = f16_to_f32(quant_weight_scale(lo, gamma * hi, BITS, scale_bits));
    const uint8_t z = quant_weight_zero(lo, h, BITS);
    for (int i = 0; i < n; i++) {
        const uint8_t q = quant_weight_code(w[i], h, z, BITS);
        const double e = (double)w[i] - (double)quant_weight_value(q, z, h);
        sum += m[i] * (e * e);
    }
    return sum;
}

/* No other beta of the grid has less error with the gamma that was found, and no equal pair
 * has. */
static void test_search_finds_the_least(void **state)
{
    enum { N = 32 };
    float w[N], gamma, beta;
    double m[N];
    struct rng r;
    rng_seed(&r, 8);
    for (int group = 0; group < 50; group++) {
        for (int i = 0; i < N; i++) {
            w[i] = (float)rng_normal(&r);
            m[i] = exp(2 * rng_normal(&r));
        }
        const struct lin_format f = {.bits = 3, .scale_bits = group % 3};
        clip_search(&gamma, &beta, &(struct clip_group){w, m, N, f}, 0.99f);
        const double found = weighted_error(w, m, N, gamma, beta, f.scale_bits);
        for (int i = 0; i < 12; i++) {
            const float x = i ? 1.0f - 0.05f * (float)i : 0.99f;
            assert_true(found <= weighted_error(w, m, N, gamma, x, f.scale_bits));
            assert_true(found <= weighted_error(w, m, N, x, x, f.scale_bits));
        }
    }
}

#define T 8

/* Inputs [T, n] of a projection, of which a few columns are large. Returns the columns'
 * sums of squares, of rows first to last - 1; release with mem_free. */
static double *draw_rows(struct tensor *x, struct dev *d, struct rng *r, int64_t n,
                         int64_t first, int64_t last)
{
    double *moment = NULL;
    must(mem_calloc(&moment, (size_t)n, sizeof(*moment)));
    float *host = draw(r, T * n, 1, 0);
    const int64_t loud = (int64_t)rng_below(r, 5);
    for (int64_t i = 0; i < T * n; i++) {
        host[i] *= i % n % 5 == loud ? 20 : 0.05f;
        if (i / n >= first && i / n < last)
            moment[i % n] += (double)host[i] * (double)host[i];
    }
    *x = tensor_2d(to_dev(d, host, T * n, DT_F32), DT_F32, T, n);
    mem_free(host);
    return moment;
}

static double *draw_inputs(struct tensor *x, struct dev *d, struct rng *r, int64_t n)
{
    return draw_rows(x, d, r, n, 0, T);
}

/* Checks rows first to last - 1 of projection l. */
static void check_rows(struct dev *d, const struct fakequant *f, int l, int64_t first,
                       int64_t last, const double *moment)
{
    const struct tensor wt = block_weights_lin(&f->master, f->arch, l);
    const int64_t in = wt.dim[1], G = f->format[l].group_size, groups = f->a[l].dim[1];
    float *w = to_host(d, &wt), *a = to_host(d, &f->a[l]), *b = to_host(d, &f->b[l]);
    for (int64_t r = first; r < last; r++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t n = (g + 1) * G < in ? G : in - g * G;
            float gamma, beta;
            const struct clip_group group = {w + r * in + g * G, moment + g * G, n,
                                             f->format[l]};
            clip_search(&gamma, &beta, &group, 0.99f);
            const float *at = &a[r * groups + g], *bt = &b[r * groups + g];
            assert_true(fabsf(1 / (1 + expf(-*at)) - gamma) <= 1e-5f);
            assert_true(fabsf(1 / (1 + expf(-*bt)) - beta) <= 1e-5f);
        }
    mem_free(w);
    mem_free(a);
    mem_free(b);
}

static void check_lin(struct dev *d, const struct fakequant *f, int l, const double *moment)
{
    check_rows(d, f, l, 0, arch_out(f->arch, l), moment);
}

/* Each projection's clipping follows from the moments of its own input over two samples.
 * The moments of the block before do not count. */
static void test_every_projection_by_its_own_input(void **state)
{
    struct fixture model;
    struct calib_settings s = tiny_settings();
    struct share alone;
    struct search k;
    struct fakequant f;
    struct block_acts acts = {0};
    struct dev *d = open_dev("cpu");
    struct rng r;
    rng_seed(&r, 9);
    s.seqlen = T;
    s.weights_init = INIT_SEARCH;
    s.weights.scale_bits = 2;
    fixture_open(&model, tiny_arch(1, 1), 46);
    must(fakequant_open(&f, d, &model.arch, &s));
    must(fakequant_load(&f, &model.blocks[0], 0));
    must(fakequant_start(&f, NULL, NULL, NULL, NULL, NULL));
    s.samples = 2;
    must(share_open(&alone, NULL, 1, 1, ""));
    must(search_open(&k, d, &model.arch, &s, &alone));

    struct tensor *const x[N_INPUTS] = {&acts.n1, &acts.o, &acts.n2, &acts.m};
    const int reads[N_LIN] = {[LIN_O] = 1, [LIN_GATE] = 2, [LIN_UP] = 2, [LIN_DOWN] = 3};
    const int some_reader[N_INPUTS] = {LIN_Q, LIN_O, LIN_UP, LIN_DOWN};
    double *moment[N_INPUTS];
    for (int round = 0; round < 2; round++) {
        search_begin(&k);
        for (int i = 0; i < N_INPUTS; i++)
            moment[i] = draw_inputs(x[i], d, &r, arch_in(&model.arch, some_reader[i]));
        for (int64_t i = 0; i < s.samples; i++)
            must(search_add(&k, &acts, i));
        must(search_finish(&k, &f));
        for (int l = 0; l < N_LIN; l++)
            check_lin(d, &f, l, moment[reads[l]]);
        for (int i = 0; i < N_INPUTS; i++) {
            mem_free(moment[i]);
            dev_free(d, x[i]->data);
        }
    }
    search_close(&k);
    share_close(&alone);
    fakequant_close(&f);
    fixture_close(&model);
    dev_close(&d);
}

/* Draws x again, and adds the moments of its rows range[0] to range[1] - 1. */
static void add_moment(double *sum, struct tensor *x, struct dev *d, struct rng same,
                       int64_t n, const int64_t range[2])
{
    dev_free(d, x->data);
    double *moment = draw_rows(x, d, &same, n, range[0], range[1]);
    for (int64_t c = 0; c < n; c++)
        sum[c] += moment[c];
    mem_free(moment);
}

/* Experts' clipping follows from the rows that are theirs in all samples; that of expert 1, which
 * has none, from columns that count alike. Expert 0 has ever fewer, and none in the last. */
static void test_every_expert_by_its_own_tokens(void **state)
{
    enum { E = 3 };
    struct fixture model;
    struct calib_settings s = tiny_settings();
    struct share alone;
    struct search k;
    struct fakequant f;
    struct block_acts acts = {0};
    struct dev *d = open_dev("cpu");
    struct arch a = tiny_arch(4, 1);
    int64_t first[3][E + 1] = {{0, 3, 3, T}, {0, 1, 1, T}, {0, 0, 0, T}}; /* of samples */
    struct rng r;
    rng_seed(&r, 10);
    a.n_experts = E;
    s.seqlen = T;
    s.samples = 3;
    s.weights_init = INIT_SEARCH;
    fixture_open(&model, a, 46);
    must(fakequant_open(&f, d, &model.arch, &s));
    must(fakequant_load(&f, &model.blocks[0], 0));
    must(fakequant_start(&f, NULL, NULL, NULL, NULL, NULL));
    must(share_open(&alone, NULL, 1, 1, ""));
    must(search_open(&k, d, &model.arch, &s, &alone));

    struct tensor *const x[N_INPUTS] = {&acts.n1, &acts.o, &acts.experts.x, &acts.m};
    const int reader[N_INPUTS] = {LIN_Q, LIN_O, LIN_UP, LIN_DOWN};
    double *plain = draw_inputs(x[0], d, &r, a.d_model), *moment[E];
    mem_free(draw_inputs(x[1], d, &r, arch_in(&a, LIN_O)));
    for (int i = 2; i < N_INPUTS; i++) {
        const int l = reader[i];
        for (int e = 0; e < E; e++) {
            must(mem_calloc(&moment[e], (size_t)arch_in(&a, l), sizeof(*moment[e])));
            for (int64_t n = 0; n < s.samples; n++)
                add_moment(moment[e], x[i], d, r, arch_in(&a, l), &first[n][e]);
            for (int64_t c = 0; c < arch_in(&a, l) && e == 1; c++)
                moment[e][c] = 1;
        }
        dev_free(d, x[5 - i]->data); /* the other one has no effect */
        mem_free(draw_inputs(x[5 - i], d, &r, arch_in(&a, reader[5 - i])));
        search_begin(&k);
        for (int64_t n = 0; n < s.samples; n++) {
            acts.experts.route.first = first[n];
            must(search_add(&k, &acts, n));
        }
        must(search_finish(&k, &f));
        for (int e = 0; e < E; e++) {
            const int64_t n = arch_out(&a, l) / E;
            check_rows(d, &f, l, e * n, (e + 1) * n, moment[e]);
            mem_free(moment[e]);
        }
        check_lin(d, &f, LIN_Q, plain);
    }
    mem_free(plain);
    for (int i = 0; i < N_INPUTS; i++)
        dev_free(d, x[i]->data);
    search_close(&k);
    share_close(&alone);
    fakequant_close(&f);
    fixture_close(&model);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_search_weighs_inputs),
        cmocka_unit_test(test_search_finds_the_least),
        cmocka_unit_test(test_every_projection_by_its_own_input),
        cmocka_unit_test(test_every_expert_by_its_own_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
