/* SPDX-License-Identifier: MIT
 *
 * The weights of a block on every device: the bytes that the host's conversion gives, from each
 * type of a checkpoint, in one place or in parts. */
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "tests/model/model_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const devices[] = {"ref", "cpu", "cuda-emu"};

/* A mixture of experts with all biases and a gain that stands for 1 + it. */
static struct arch large_arch(void)
{
    return (struct arch){.n_layers = 1,
                         .d_model = 24,
                         .d_ff = 18,
                         .n_experts = 3,
                         .n_active = 2,
                         .n_heads = 4,
                         .n_kv = 2,
                         .head_dim = 6,
                         .vocab = 10,
                         .max_positions = 16,
                         .norm_eps = 1e-5f,
                         .rope_theta = 10000,
                         .qkv_bias = true,
                         .o_bias = true,
                         .gain_plus_one = true};
}

/* m's values as type t, at an odd address; parts > 1: in so many places. The caller frees *memory
 * and *part. */
static void store(struct host_mat *m, enum dtype t, int64_t parts, void **memory,
                  const void ***part)
{
    const int64_t n = m->rows * m->cols;
    const size_t size = dtype_bytes(t), one = (size_t)(n / parts) * size;
    const float *x = m->data;
    char *to = calloc((size_t)parts, one + 1);
    *part = calloc((size_t)parts, sizeof(**part));
    assert_true(to && *part);
    for (int64_t p = 0; p < parts; p++) {
        char *at = to + (size_t)(parts - 1 - p) * (one + 1) + 1;
        (*part)[p] = at;
        for (int64_t i = 0; i < n / parts; i++) {
            const float v = x[p * (n / parts) + i];
            const uint16_t half = t == DT_F16 ? f16_from_f32(v) : bf16_from_f32(v);
            memcpy(at + (size_t)i * size, t == DT_F32 ? (const void *)&v : &half, size);
        }
    }
    *memory = to;
    m->dtype = t;
    m->data = parts > 1 ? NULL : (*part)[0];
    m->part = parts > 1 ? *part : NULL;
    m->part_rows = m->rows / parts;
}

struct stored {
    struct block_src src;
    void *memory[N_LIN];
    const void **part[N_LIN];
};

/* Projections of experts lie in one place each, as a checkpoint has them. */
static void store_block(struct stored *s, const struct fixture *f, enum dtype t)
{
    s->src = f->blocks[0];
    for (int l = 0; l < N_LIN; l++)
        store(&s->src.lin[l], t, l >= LIN_GATE ? f->arch.n_experts : 1, &s->memory[l],
              &s->part[l]);
}

static void drop(struct stored *s)
{
    for (int l = 0; l < N_LIN; l++) {
        free(s->memory[l]);
        free(s->part[l]);
    }
}

static void open_weights(struct block_weights *w, struct dev *d, const struct arch *a,
                         enum dtype act)
{
    must(block_weights_alloc(w, d, a, act));
    must(dev_zero(d, w->memory, block_weights_bytes(a, act)));
}

/* The memory of all weights; released with mem_free. */
static char *bytes_of(const struct block_weights *w, size_t bytes)
{
    char *host = NULL;
    must(mem_alloc(&host, bytes, 1));
    must(dev_download(w->dev, host, w->memory, bytes));
    return host;
}

/* What `want` should be, made without a device: the rows of projection l. */
static void check_projection(const struct block_weights *w, const struct arch *a,
                             const struct block_src *src, int l, const char *want)
{
    const struct tensor x = block_weights_lin(w, a, l);
    const char *at = want + ((const char *)x.data - (const char *)w->memory);
    for (int64_t r = 0; r < x.dim[0]; r++) {
        float row[64];
        uint16_t half[64];
        const void *from = host_mat_row(&src->lin[l], r);
        host_to_f32(row, from, src->lin[l].dtype, x.dim[1]);
        host_to_bf16(half, from, src->lin[l].dtype, x.dim[1]);
        const size_t bytes = (size_t)x.dim[1] * dtype_bytes(x.dtype);
        assert_memory_equal(at + (size_t)r * bytes,
                            x.dtype == DT_F32 ? (const void *)row : half, bytes);
    }
}

/* Loads one block, directly and by way of F32 or of the types that it is stored in, and compares
 * all bytes with those on ref. */
static void load_on(const char *name, const struct arch *a, const struct block_src *src,
                    enum dtype act, char **want)
{
    struct dev *d = open_dev(name);
    struct block_weights master[2] = {{0}}, w[3] = {{0}};
    enum dtype stored[N_LIN];
    const size_t bytes = block_weights_bytes(a, act);
    for (int l = 0; l < N_LIN; l++)
        stored[l] = src->lin[l].dtype;
    open_weights(&master[0], d, a, DT_F32);
    must(block_weights_alloc_as(&master[1], d, a, stored));
    for (int i = 0; i < 3; i++)
        open_weights(&w[i], d, a, act);
    must(block_weights_load(&w[0], a, 7, src));
    for (int i = 0; i < 2; i++) {
        must(block_weights_load(&master[i], a, 7, src));
        must(block_weights_convert(&w[1 + i], &master[i]));
    }
    for (int i = 0; i < 3; i++) {
        char *got = bytes_of(&w[i], bytes);
        assert_int_equal(w[i].layer, 7);
        for (int l = 0; l < N_LIN; l++)
            check_projection(&w[i], a, src, l, got);
        if (*want)
            assert_memory_equal(got, *want, bytes);
        if (*want)
            mem_free(got);
        else
            *want = got;
        block_weights_free(&w[i]);
    }
    block_weights_free(&master[0]);
    block_weights_free(&master[1]);
    dev_close(&d);
}

static void loaded_bytes_are_the_hosts(void **state)
{
    static const enum dtype from[] = {DT_F32, DT_F16, DT_BF16};
    struct fixture f;
    fixture_open(&f, large_arch(), 5);
    for (int t = 0; t < 3; t++)
        for (int act = 0; act < 2; act++) {
            struct stored s;
            char *want = NULL;
            store_block(&s, &f, from[t]);
            for (size_t i = 0; i < ARRAY_LEN(devices); i++)
                load_on(devices[i], &f.arch, &s.src, act ? DT_BF16 : DT_F32, &want);
            mem_free(want);
            drop(&s);
        }
    fixture_close(&f);
}

/* Projections in one matrix have one type: F32 where theirs differ. */
static void stacked_types(void **state)
{
    const struct arch a = large_arch();
    enum dtype stored[N_LIN];
    struct block_weights w;
    struct dev *d = open_dev("ref");
    for (int l = 0; l < N_LIN; l++)
        stored[l] = l == LIN_UP ? DT_F32 : l == LIN_O ? DT_BF16 : DT_F16;
    must(block_weights_alloc_as(&w, d, &a, stored));
    assert_true(w.wqkv.dtype == DT_F16 && w.wo.dtype == DT_BF16 && w.wgu.dtype == DT_F32 &&
                w.wdown.dtype == DT_F16);
    assert_true(w.router.dtype == DT_F32);
    block_weights_free(&w);
    stored[LIN_UP] = DT_F16;
    stored[LIN_V] = DT_BF16;
    must(block_weights_alloc_as(&w, d, &a, stored));
    assert_true(w.wqkv.dtype == DT_F32 && w.wgu.dtype == DT_F16);
    block_weights_free(&w);
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(loaded_bytes_are_the_hosts),
                                       cmocka_unit_test(stacked_types)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
