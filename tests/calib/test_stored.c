/* SPDX-License-Identifier: MIT
 *
 * Full-precision weights in the types that the source has: the same results, in fewer bytes. */
#include "calib/fakequant.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "tests/calib/calib_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What calibrates; each changes or reads the full-precision weights in another way. */
static const struct {
    const char *name;
    enum weight_method method;
    enum weight_round round;
    enum start_values init;
    enum dtype act;
} ways[] = {
    {"clipping", WEIGHT_LWC, ROUND_NEAREST, INIT_PAPER, DT_F32},
    {"searched clipping", WEIGHT_LWC, ROUND_NEAREST, INIT_SEARCH, DT_BF16},
    {"learned rounding", WEIGHT_LWC, ROUND_LEARNED, INIT_PAPER, DT_BF16},
    {"rounding alone", WEIGHT_RTN, ROUND_LEARNED, INIT_PAPER, DT_F32},
    {"GPTQ", WEIGHT_GPTQ, ROUND_NEAREST, INIT_PAPER, DT_F32},
    {"start values of GPTQ", WEIGHT_GPTQ, ROUND_LEARNED, INIT_SEARCH, DT_F32},
};

static struct calib_settings settings_of(size_t way)
{
    struct calib_settings s = tiny_settings();
    s.weights.method = ways[way].method;
    s.weights.round = ways[way].round;
    s.weights_init = ways[way].init;
    s.act = ways[way].act;
    s.gptq.damp = 0.01;
    s.epochs = 1;
    return s;
}

/* Rounds a projection to a type, in which it is then stored. */
static void store(struct host_mat *m, enum dtype t)
{
    const int64_t n = m->rows * m->cols;
    const float *from = m->data;
    uint16_t *to = NULL;
    must(mem_alloc(&to, (size_t)n, sizeof(*to)));
    for (int64_t i = 0; i < n; i++)
        to[i] = t == DT_F16 ? f16_from_f32(from[i]) : bf16_from_f32(from[i]);
    m->data = to;
    m->dtype = t;
}

/* A model whose projections are stored in the types of s. */
struct stored {
    struct fixture f;
    void *memory[3 * N_LIN];
    int n;
};

static void stored_open(struct stored *m, int arch, const struct calib_settings *s)
{
    fixture_open(&m->f, tiny_arch(arch, 3), 12);
    m->n = 0;
    for (int64_t i = 0; i < m->f.arch.n_layers; i++)
        for (int l = 0; l < N_LIN; l++) {
            struct host_mat *w = &m->f.blocks[i].lin[l];
            if (s->stored[l] == DT_F32)
                continue;
            store(w, s->stored[l]);
            m->memory[m->n++] = (void *)(uintptr_t)w->data;
        }
}

static void stored_close(struct stored *m)
{
    while (m->n)
        mem_free(m->memory[--m->n]);
    fixture_close(&m->f);
}

/* All projections of one type, or v and o of another. */
static void set_types(struct calib_settings *s, enum dtype t, bool mixed)
{
    for (int l = 0; l < N_LIN; l++)
        s->stored[l] = mixed && (l == LIN_V || l == LIN_O) ? DT_F32 : t;
}

/* Runs to a stop in the middle of the second block, compares what is saved, and resumes. */
static void check_way(const char *device, size_t way, int arch, enum dtype t, bool mixed)
{
    struct memory_io m[2];
    struct stored model;
    struct calib_settings s[2] = {settings_of(way), settings_of(way)};
    set_types(&s[0], t, mixed);
    stored_open(&model, arch, &s[0]);
    for (int i = 0; i < 2; i++) {
        memory_io_open(&m[i]);
        m[i].stop_after = 48;
        assert_int_equal(run_on(device, &m[i], &model.f, &s[i]), ERR_STOPPED);
        assert_true(m[i].n_blocks > 0 && m[i].n_blocks < 3);
    }
    check_same_partial(&m[0], &m[1]);
    for (int i = 0; i < 2; i++)
        must(run_on(device, &m[i], &model.f, &s[i]));
    if (!same_result(&m[0], &m[1]))
        fail_msg("%s on %s: other results", ways[way].name, device);
    memory_io_close(&m[0]);
    memory_io_close(&m[1]);
    stored_close(&model);
}

static void test_results_do_not_depend_on_it(void **state)
{
    (void)state;
    for (size_t way = 0; way < ARRAY_LEN(ways); way++) {
        check_way("cpu", way, 0, DT_F16, false);
        check_way("cpu", way, 1, DT_BF16, false);
    }
    check_way("cuda-emu", 0, 0, DT_F16, false);
    check_way("ref", 2, 0, DT_F16, false);
    check_way("cpu", 2, 0, DT_F16, true);
    check_way("cuda-emu", 2, 0, DT_BF16, true);
    check_way("cpu", 1, 4, DT_BF16, false);
}

/* The plan counts two bytes a weight where the types allow it. What GPTQ overwrites, and given
 * values, have four. */
static void test_plans_count_it(void **state)
{
    const struct arch a = tiny_arch(0, 3);
    const int64_t qkv = (arch_out(&a, LIN_Q) + 2 * arch_out(&a, LIN_K)) * a.d_model;
    const int64_t o = arch_out(&a, LIN_O) * arch_in(&a, LIN_O);
    const int64_t all = arch_block_params(&a);
    (void)state;
    for (size_t way = 0; way < ARRAY_LEN(ways); way++) {
        const bool fixed = ways[way].method == WEIGHT_GPTQ && !ways[way].round;
        struct calib_settings s = settings_of(way);
        struct calib_plan whole, half, mixed, given;
        must(calib_plan(&whole, &a, &s));
        set_types(&s, DT_F16, false);
        must(calib_plan(&half, &a, &s));
        set_types(&s, DT_BF16, true);
        must(calib_plan(&mixed, &a, &s));
        s.weights.method = WEIGHT_GIVEN;
        must(calib_plan(&given, &a, &s));
        assert_int_equal(whole.weights_bytes - half.weights_bytes, fixed ? 0 : 2 * all);
        assert_int_equal(whole.weights_bytes - mixed.weights_bytes,
                         fixed ? 0 : 2 * (all - qkv - o));
        assert_int_equal(given.weights_bytes, whole.weights_bytes);
        assert_int_equal(half.params_bytes, whole.params_bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans_count_it),
        cmocka_unit_test(test_results_do_not_depend_on_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
