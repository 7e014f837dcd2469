/* SPDX-License-Identifier: MIT
 *
 * The straight-through operations of the reference against PyTorch's autograd
 * (tests/golden/gen_grads.py): values bit for bit, gradients closely. checkop compares the
 * cpu device with the reference. GOLDEN_GRADS names the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "convert/checkpoint/safetensors.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/dev.h"
#include "tests/close.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct st_file *golden;

/* The tensors of one case. */
struct memory {
    void *data[16];
    int n;
};

/* A copy of tensor PREFIX.key of the file. */
static struct tensor take(struct memory *p, const char *prefix, const char *key)
{
    char name[128];
    snprintf(name, sizeof(name), "%s.%s", prefix, key);
    const struct st_tensor *t = st_find(golden, name);
    if (!t)
        fail_msg("no tensor %s", name);
    assert_true(p->n < (int)ARRAY_LEN(p->data) && t->n_dims <= 3);
    void *data = NULL;
    assert_int_equal(mem_alloc(&data, t->bytes, 1), OK);
    memcpy(data, t->data, t->bytes);
    p->data[p->n++] = data;
    struct tensor x = {.data = data, .dtype = t->dtype, .n_dims = t->n_dims, .ld = 1};
    for (int i = 0; i < t->n_dims; i++)
        x.dim[i] = t->dim[i];
    for (int i = 1; i < t->n_dims; i++)
        x.ld *= t->dim[i];
    return x;
}

/* Memory like x, zeroed. */
static struct tensor like(struct memory *p, struct tensor x)
{
    assert_true(p->n < (int)ARRAY_LEN(p->data));
    assert_int_equal(mem_calloc(&x.data, (size_t)tensor_count(&x), dtype_bytes(x.dtype)),
                     OK);
    p->data[p->n++] = x.data;
    return x;
}

static void release(struct memory *p)
{
    while (p->n)
        mem_free(p->data[--p->n]);
}

static void expect_bits(const char *what, const struct tensor *got,
                        const struct tensor *want)
{
    const struct close c = close_bits(got, want);
    if (!close_pass(&c))
        fail_msg("%s[%ld,%ld]: want %.9g, got %.9g", what, (long)c.row, (long)c.col, c.want,
                 c.got);
}

/* Gradients are sums with cancellation, and the file has no magnitudes. The largest value
 * of the tensor takes their place. */
static void expect_close(const char *what, const struct tensor *got,
                         const struct tensor *want)
{
    const float *w = want->data;
    double max = 0;
    for (int64_t i = 0; i < tensor_count(want); i++)
        max = fmax(max, fabs((double)w[i]));
    struct tolerance t = close_tolerance(DT_F32, 64);
    t.floor += t.sum * max;
    const struct close c = close_compare(got, want, NULL, t);
    if (!close_pass(&c))
        fail_msg("%s[%ld,%ld]: want %.9g, got %.9g", what, (long)c.row, (long)c.col, c.want,
                 c.got);
}

static void check_weights(struct dev *d, const char *name)
{
    struct memory p = {0};
    const struct tensor args = take(&p, name, "args"), w = take(&p, name, "w"),
                        a = take(&p, name, "a"), b = take(&p, name, "b"),
                        dwq = take(&p, name, "dwq"), wq = take(&p, name, "wq"),
                        scales = take(&p, name, "scales"), zeros = take(&p, name, "zeros"),
                        da = take(&p, name, "da"), db = take(&p, name, "db");
    const int32_t *arg = args.data;
    const struct tensor wq_got = like(&p, wq), s_got = like(&p, scales),
                        z_got = like(&p, zeros), da_got = like(&p, da),
                        db_got = like(&p, db);
    const struct weight_quant p_w = {
        .w = &w, .a = &a, .b = &b, .bits = arg[0], .group_size = arg[1]};
    assert_int_equal(dev_fake_quant_weights(d, &wq_got, &s_got, &z_got, &p_w), OK);
    expect_bits("scales", &s_got, &scales);
    expect_bits("zeros", &z_got, &zeros);
    expect_close("wq", &wq_got, &wq); /* -0 and 0 are one value here */
    assert_int_equal(dev_fake_quant_weights_bwd(d, &da_got, &db_got, &dwq, &p_w), OK);
    expect_close("da", &da_got, &da);
    expect_close("db", &db_got, &db);
    release(&p);
}

static void check_kv(struct dev *d, const char *name)
{
    struct memory p = {0};
    const struct tensor args = take(&p, name, "args"), x = take(&p, name, "x"),
                        s = take(&p, name, "s"), shift = take(&p, name, "delta"),
                        dxq = take(&p, name, "dxq"), xq = take(&p, name, "xq"),
                        dx = take(&p, name, "dx"), dls = take(&p, name, "dls"),
                        dshift = take(&p, name, "ddelta");
    const int32_t *arg = args.data;
    const bool plain = arg[2];
    const struct tensor xq_got = like(&p, xq), dx_got = like(&p, dx),
                        dls_got = like(&p, dls), dd_got = like(&p, dshift);
    const struct kv_quant p_kv = {.x = &x,
                                  .s = plain ? NULL : &s,
                                  .shift = plain ? NULL : &shift,
                                  .bits = arg[0],
                                  .group_size = arg[1]};
    assert_int_equal(dev_fake_quant_kv(d, &xq_got, &p_kv), OK);
    expect_close("xq", &xq_got, &xq);
    assert_int_equal(
        dev_fake_quant_kv_bwd(
            d, &(struct kv_grads){.dx = &dx_got, .dls = &dls_got, .dshift = &dd_got}, &dxq,
            &p_kv),
        OK);
    expect_close("dx", &dx_got, &dx);
    expect_close("dls", &dls_got, &dls);
    expect_close("ddelta", &dd_got, &dshift);
    release(&p);
}

static void check_channel(struct dev *d, const char *name)
{
    struct memory p = {0};
    const struct tensor args = take(&p, name, "args"), x = take(&p, name, "x"),
                        dxq = take(&p, name, "dxq"), xq = take(&p, name, "xq"),
                        dx = take(&p, name, "dx");
    const int32_t *arg = args.data;
    const struct tensor xq_got = like(&p, xq), dx_got = like(&p, dx);
    assert_int_equal(dev_fake_quant_kv_channel(d, &xq_got, &x, arg[0], arg[1]), OK);
    expect_close("xq", &xq_got, &xq);
    assert_int_equal(
        dev_fake_quant_kv_channel_bwd(d, &dx_got, &dxq, &x, arg[0], arg[1], false), OK);
    expect_close("dx", &dx_got, &dx);
    release(&p);
}

static void check_mae(struct dev *d, const char *name)
{
    struct memory p = {0};
    const struct tensor y = take(&p, name, "y"), t = take(&p, name, "t"),
                        weight = take(&p, name, "weight"), want = take(&p, name, "loss"),
                        dy = take(&p, name, "dy");
    const struct tensor dy_got = like(&p, dy);
    double loss = NAN;
    const struct loss_inputs in = {
        .y = &y, .t = &t, .kind = LOSS_MAE, .weight = ((const float *)weight.data)[0]};
    assert_int_equal(dev_loss(d, &loss, &dy_got, &in), OK);
    assert_true(fabs(loss - (double)((const float *)want.data)[0]) <= 1e-7 * loss);
    expect_close("dy", &dy_got, &dy);
    release(&p);
}

/* Runs every case of a kind, whose tensors are NAME.key. Returns their number. */
static int each_case(const char *kind, const char *key,
                     void (*check)(struct dev *d, const char *name))
{
    int n = 0;
    struct dev *d = NULL;
    assert_int_equal(dev_open(&d, &(struct dev_settings){"ref", 1}), OK);
    for (int64_t k = 0; k < st_count(golden); k++) {
        char name[128];
        snprintf(name, sizeof(name), "%s", st_at(golden, k)->name);
        char *end = strrchr(name, '.');
        if (strncmp(name, kind, strlen(kind)) || !end || strcmp(end + 1, key))
            continue;
        *end = '\0';
        print_message("%s\n", name);
        check(d, name);
        n++;
    }
    dev_close(&d);
    return n;
}

static void weight_clipping(void **state)
{
    assert_int_equal(each_case("lwc.", "args", check_weights), 9);
}

static void kv_quantization(void **state)
{
    assert_int_equal(each_case("kvq.", "args", check_kv), 8);
}

static void kv_by_channel(void **state)
{
    assert_int_equal(each_case("kvc.", "args", check_channel), 3);
}

static void absolute_loss(void **state)
{
    assert_int_equal(each_case("mae.", "weight", check_mae), 1);
}

static int open_golden(void **state)
{
    const char *path = getenv("GOLDEN_GRADS");
    if (path && !st_open(&golden, path))
        return 0;
    print_error("GOLDEN_GRADS=%s: %s\n", path ? path : "", err_text());
    return -1;
}

static int close_golden(void **state)
{
    st_close(&golden);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weight_clipping),
        cmocka_unit_test(kv_quantization),
        cmocka_unit_test(kv_by_channel),
        cmocka_unit_test(absolute_loss),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
