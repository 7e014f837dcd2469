/* SPDX-License-Identifier: MIT
 *
 * A packed embedding and head in the runtime, and rounded inputs of projections, against the
 * simulation: one token at a time (decode) and several (prefill). */
#include "calib/model/ends.h"
#include "convert/runtime/runtime.h"
#include "kernels/base/mem.h"
#include "tests/convert/golden_artifact.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/convert/dir_fixture.h"

/* Relative to the range of the logits. Nothing else is quantized, so no code is at an edge;
 * sums differ in their order alone. */
#define BOUND 1e-5

/* [T][V] logits of the packed runtime, chunk by chunk. */
static void decode(float *logits, const struct golden *g, int64_t chunk)
{
    struct artifact *a = NULL;
    struct runtime *rt = NULL;
    const struct runtime_settings settings = {.threads = 2, .max_tokens = g->T};
    ok(artifact_open(&a, dir, ARTIFACT_CHECK));
    ok(runtime_open(&rt, a, &settings));
    for (int64_t t = 0; t < g->T; t += chunk) {
        const int64_t n = g->T - t < chunk ? g->T - t : chunk;
        ok(runtime_forward(rt, logits + t * g->V, true, g->ids + t, n));
    }
    runtime_close(&rt);
    artifact_close(&a);
}

static void simulate(float *logits, const struct golden *g, const struct weight_spec *w)
{
    const struct dev_settings settings = {.name = "ref", .threads = 1};
    struct dev *d = NULL;
    struct ends_source ends;
    ok(dev_open(&d, &settings));
    ok(ends_source_open(&ends, hf_source(g->model), head_format(w), 1));
    const struct model_run run = {.dev = d,
                                  .arch = hf_arch(g->model),
                                  .src = &ends.source,
                                  .act = DT_F32,
                                  .chunk = 1,
                                  .act_bits = w->act_bits};
    ok(model_logits(&run, g->ids, 1, g->T, logits));
    ends_source_close(&ends);
    dev_close(&d);
}

/* Compares both, and the loss of what w quantizes with the bound. */
static void check(const char *model, const struct weight_spec *w)
{
    const struct kv_spec kv = {
        .method = KV_TOKEN, .bits = 16, .past_only = true, .window = 1};
    struct golden g = {0};
    struct fake_state state;
    float *have = NULL, *want = NULL;
    err_clear();
    ok(golden_open(&g, model));
    fake_state_open(&state, &g, *w, kv);
    ok(golden_artifact(dir, &g, &state));
    ok(mem_alloc(&have, (size_t)(g.T * g.V), sizeof(*have)));
    ok(mem_alloc(&want, (size_t)(g.T * g.V), sizeof(*want)));
    simulate(want, &g, w);
    const double loss = golden_error(want, g.logits, g.T * g.V);
    for (int64_t chunk = 1; chunk <= 5; chunk += 4) {
        decode(have, &g, chunk);
        const double error = golden_error(have, want, g.T * g.V);
        print_message("%s, head of %d bits in groups of %" PRId64
                      ", inputs of %d, chunk %" PRId64 ": error %.2g, quantization %.2g\n",
                      model, w->head_bits, w->head_group, w->act_bits, chunk, error, loss);
        assert_true(error <= BOUND);
        assert_true(loss > 100 * BOUND); /* else the comparison says nothing */
    }
    mem_free(have);
    mem_free(want);
    fake_state_close(&state);
    golden_close(&g);
}

/* All kernels: 8 bits; 4 bits in whole rows and in groups that vectors cannot take; widths
 * between; ragged groups. */
static void each_format(const char *model)
{
    static const int64_t format[][2] = {{8, 128}, {8, 5}, {6, 12}, {4, 0},
                                        {4, 16},  {4, 5}, {3, 7},  {2, 0}};
    for (size_t k = 0; k < ARRAY_LEN(format); k++) {
        const int bits = (int)format[k][0];
        const struct weight_spec w = {.bits = 16,
                                      .scale_bits = bits == 6 ? 7 : 0,
                                      .head_bits = bits,
                                      .head_group = format[k][1]};
        check(model, &w);
    }
}

static void test_tied(void **state)
{
    each_format("qwen2");
    each_format("llama_tied_bf16");
    each_format("tied_head_only");
}

static void test_untied(void **state)
{
    each_format("llama2_gqa");
    each_format("llama_f16");
}

/* activations.bits, where a norm stands before the projections and where none does. */
static void test_inputs(void **state)
{
    static const char *const models[] = {"llama2_gqa", "qwen2", "olmo2", "gemma3"};
    for (size_t i = 0; i < ARRAY_LEN(models); i++)
        for (int bits = 4; bits <= 6; bits += 2) {
            const struct weight_spec w = {.bits = 16, .act_bits = bits};
            check(models[i], &w);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_untied),
        cmocka_unit_test(test_inputs),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
