/* SPDX-License-Identifier: MIT
 *
 * Packed projections that share tensors are split in time that grows with their number: counted in
 * branches of our code (the compiler calls us at each, -fsanitize-coverage=trace-pc), not in
 * seconds. */
#include "convert/checkpoint/hf_fused.h"
#include "convert/checkpoint/packed/packed.h"
#include "kernels/base/mem.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#define WIDTH 8

static uint64_t steps;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    steps++;
}

static void name_weight(char *out, size_t size, int64_t layer, const char *module)
{
    snprintf(out, size, "model.layers.%d.%s.weight", (int)layer, module);
}

/* A phi3's, of which two of four in a layer are of several projections. */
static void make_packed(struct packed *p, int64_t layers)
{
    static const struct {
        const char *module;
        int64_t rows;
    } in_layer[] = {{"mlp.down_proj", WIDTH},
                    {"mlp.gate_up_proj", 2 * WIDTH},
                    {"self_attn.o_proj", WIDTH},
                    {"self_attn.qkv_proj", 3 * WIDTH}};
    char name[128];
    *p = (struct packed){0};
    assert_int_equal(
        mem_calloc(&p->lin, (size_t)layers * ARRAY_LEN(in_layer), sizeof(*p->lin)), OK);
    for (int64_t i = 0; i < layers; i++)
        for (size_t k = 0; k < ARRAY_LEN(in_layer); k++) {
            struct packed_lin *l = &p->lin[p->n++];
            name_weight(name, sizeof(name), i, in_layer[k].module);
            assert_int_equal(mem_strdup(&l->name, name), OK);
            l->out = l->rows = in_layer[k].rows;
        }
    packed_sort(p);
}

static void check_part(const struct packed *p, int64_t layer, const char *module,
                       int64_t first)
{
    char name[128];
    name_weight(name, sizeof(name), layer, module);
    const struct packed_lin *l = packed_find(p, name);
    assert_non_null(l);
    assert_int_equal(l->first, first);
    assert_int_equal(l->rows, WIDTH);
}

/* Splits those of a model, and returns how many steps that took. */
static uint64_t split_steps(int64_t layers)
{
    const struct arch a = {.n_layers = layers,
                           .d_model = WIDTH,
                           .d_ff = WIDTH,
                           .n_heads = 1,
                           .n_kv = 1,
                           .head_dim = WIDTH,
                           .fused = true};
    struct packed p;
    make_packed(&p, layers);
    steps = 0;
    assert_int_equal(hf_split_packed(&p, &a), OK);
    const uint64_t took = steps;
    assert_int_equal(p.n, 7 * layers);
    for (int64_t i = 0; i < layers; i++) {
        check_part(&p, i, "self_attn.q_proj", 0);
        check_part(&p, i, "self_attn.v_proj", 2 * WIDTH);
        check_part(&p, i, "mlp.up_proj", WIDTH);
        check_part(&p, i, "mlp.down_proj", 0);
    }
    packed_close(&p);
    return took;
}

/* Four times the layers: n log n takes 5 times the steps here, n^2 would take 16. */
static void test_steps_of_splitting(void **state)
{
    const uint64_t some = split_steps(256), more = split_steps(1024);
    assert_true(some > 256);
    assert_in_range(more, 4 * some, 6 * some);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps_of_splitting)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
