/* SPDX-License-Identifier: MIT
 *
 * The caches of other engines, bit for bit, against values that those engines' own libraries
 * computed (tests/golden/gen_engine.py). GOLDEN_ENGINE names the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/mem.h"
#include "kernels/dev_engine.h"

#include <stdlib.h>
#include <string.h>

static struct st_file *golden;

static const struct st_tensor *find(const char *name)
{
    const struct st_tensor *t = st_find(golden, name);
    if (!t)
        fail_msg("no tensor %s", name);
    assert_int_equal(t->dtype, DT_F32);
    return t;
}

/* The cache of vectors x [T][d], d = 2 for a vector, must hold y. */
static void check(const char *x_name, const char *y_name, enum kv_target target,
                  enum kv_side side)
{
    static const char *const device[] = {"ref", "cpu"};
    const struct st_tensor *x = find(x_name), *y = find(y_name);
    const int64_t d = x->n_dims > 1 ? x->dim[1] : 2;
    const int64_t T = (int64_t)(x->bytes / sizeof(float)) / d;
    assert_int_equal(x->bytes, y->bytes);
    assert_int_equal(x->bytes, (size_t)(T * d) * sizeof(float));
    for (size_t i = 0; i < ARRAY_LEN(device); i++) {
        struct dev *dev = NULL;
        float *data = NULL;
        const struct dev_settings settings = {.name = device[i], .threads = 2};
        assert_int_equal(dev_open(&dev, &settings), OK);
        assert_int_equal(mem_alloc(&data, x->bytes, 1), OK);
        memcpy(data, x->data, x->bytes);
        const struct tensor in = tensor_3d(data, DT_F32, T, 1, d);
        const struct engine_quant p = {
            .x = &in, .scale = 1, .target = target, .side = side};
        assert_int_equal(dev_fake_quant_engine(dev, &in, &p), OK);
        assert_memory_equal(data, y->data, y->bytes);
        mem_free(data);
        dev_close(&dev);
    }
}

static void test_fp8(void **state)
{
    (void)state;
    check("fp8.x", "fp8.y", TARGET_FP8, KV_K);
}

static void test_quanto4(void **state)
{
    (void)state;
    check("quanto4_64.x", "quanto4_64.y", TARGET_QUANTO4, KV_K);
    check("quanto4_128.x", "quanto4_128.y", TARGET_QUANTO4, KV_V);
}

/* Heads of 96 channels are rotated 32 at a time. Those of 256 need signs that no smaller head
 * has. */
static void test_vllm_int4(void **state)
{
    (void)state;
    check("vllm_int4_64.x", "vllm_int4_64.y", TARGET_VLLM_INT4, KV_K);
    check("vllm_int4_96.x", "vllm_int4_96.y", TARGET_VLLM_INT4, KV_V);
    check("vllm_int4_128.x", "vllm_int4_128.y", TARGET_VLLM_INT4, KV_V);
    check("vllm_int4_256.x", "vllm_int4_256.y", TARGET_VLLM_INT4, KV_K);
}

static int open_golden(void **state)
{
    (void)state;
    const char *path = getenv("GOLDEN_ENGINE");
    return path && st_open(&golden, path) == OK ? 0 : -1;
}

static int close_golden(void **state)
{
    (void)state;
    st_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_quanto4),
        cmocka_unit_test(test_vllm_int4),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
