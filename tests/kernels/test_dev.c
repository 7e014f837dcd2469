/* SPDX-License-Identifier: MIT
 *
 * The checks of the operation table: what it refuses, how it fails, and that a failure
 * stays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "config.h"
#include "kernels/dev_engine.h"
#include "kernels/dev_experts.h"
#include "kernels/dev_ops.h"
#include "kernels/dev_refine.h"
#include "kernels/dev_report.h"

#include <string.h>

static struct dev *dev;
static float mem[4096];
static uint8_t bytes[4096];

static struct tensor f2(int64_t r, int64_t c)
{
    return tensor_2d(mem, DT_F32, r, c);
}

static struct tensor h2(int64_t r, int64_t c)
{
    return tensor_2d(mem, DT_BF16, r, c);
}

static struct tensor f3(int64_t a, int64_t b, int64_t c)
{
    return tensor_3d(mem, DT_F32, a, b, c);
}

/* x with rows that overlap: an operation that took it would reach beyond its memory. */
static struct tensor narrow(struct tensor x)
{
    x.ld = tensor_width(&x) - 1;
    return x;
}

/* x with gaps between its rows. */
static struct tensor spaced(struct tensor x)
{
    x.ld = tensor_width(&x) + 1;
    return x;
}

static void refused(enum err e)
{
    assert_int_equal(e, ERR_SHAPE);
    assert_true(strlen(err_text()) > 10);
    err_clear();
}

static void matrices(void **state)
{
    const struct tensor a = f2(3, 4), b = f2(5, 4), c = f2(3, 5), b_bad = f2(5, 3),
                        half = h2(5, 4), c_half = h2(3, 5), ha = h2(3, 4);
    const struct tensor n_a = narrow(a), apart = spaced(c);
    assert_int_equal(dev_gemm(dev, GEMM_NT, &c, &a, &b, false), OK);
    refused(dev_gemm(dev, GEMM_NT, &c, &a, &b_bad, false));
    assert_int_equal(dev_gemm(dev, GEMM_NT, &c, &a, &b_bad, false), ERR_SHAPE);
    assert_string_equal(err_text(), "gemm: [3,4] x [3,5] does not give [3,5]");
    err_clear();
    refused(dev_gemm(dev, GEMM_NN, &c, &a, &b, false));
    refused(dev_gemm(dev, GEMM_NT, &c, &a, &half, false));      /* two types */
    refused(dev_gemm(dev, GEMM_NT, &c_half, &a, &b, false));    /* bf16 from f32 */
    refused(dev_gemm(dev, GEMM_NT, &c_half, &ha, &half, true)); /* bf16 += */
    refused(dev_gemm(dev, GEMM_NT, &c, &n_a, &b, false));
    const struct tensor bias = tensor_1d(mem, DT_F32, 4);
    refused(dev_bias(dev, &c, &bias));
    refused(dev_add(dev, &c, &a, &c));
    refused(dev_scale(dev, &bias, 2));
    refused(dev_copy(dev, &c, &a));
    static uint16_t f16[15];
    const struct tensor source = tensor_2d(f16, DT_F16, 3, 5);
    assert_int_equal(dev_copy(dev, &c, &source), OK);
    refused(dev_copy(dev, &source, &c));
    refused(dev_upload_as(dev, &apart, mem, DT_F32));
    refused(dev_upload_as(dev, &source, mem, DT_F32));
    refused(dev_upload_as(dev, &c, mem, DT_I32));
    refused(dev_upload_as(dev, &source, mem, DT_BF16));
    refused(dev_upload_values(dev, &c, &(struct qlinear){.out = 1, .in = 1}));
    refused(dev_upload_values(dev, &c, &(struct qlinear){.out = c.dim[0], .in = c.dim[1]}));
    refused(dev_download_f32(dev, mem, &apart));
}

static void sums_of_products(void **state)
{
    static float x_mem[64], part_mem[64];
    const struct tensor a = f2(3, 4), b = f2(5, 4), y = f2(3, 5), short_y = f2(2, 5),
                        half_y = h2(3, 5), ha = h2(3, 4), hb = h2(5, 4);
    const struct tensor x = tensor_2d(x_mem, DT_F32, 3, 5);
    const struct tensor part = tensor_2d(part_mem, DT_F32, 3, 5);
    const struct tensor half_part = tensor_2d(part_mem, DT_BF16, 3, 5);
    const struct tensor wide = spaced(x);
    assert_int_equal(dev_gemm_add(dev, GEMM_NT, &y, &x, &a, &b, &part), OK);
    assert_int_equal(dev_gemm_add(dev, GEMM_NT, &x, &x, &a, &b, &part), OK);
    assert_int_equal(dev_gemm_add(dev, GEMM_NT, &y, &x, &ha, &hb, &half_part), OK);
    refused(dev_gemm_add(dev, GEMM_NT, &short_y, &x, &a, &b, &part));
    refused(dev_gemm_add(dev, GEMM_NT, &y, &short_y, &a, &b, &part));
    refused(dev_gemm_add(dev, GEMM_NT, &half_y, &x, &ha, &hb, &half_part)); /* bf16 sum */
    refused(dev_gemm_add(dev, GEMM_NT, &y, &half_y, &ha, &hb, &half_part));
    refused(dev_gemm_add(dev, GEMM_NT, &y, &x, &a, &b, &half_part)); /* bf16 from f32 */
    refused(dev_gemm_add(dev, GEMM_NN, &y, &x, &a, &b, &part));
    refused(dev_gemm_add(dev, GEMM_NT, &wide, &x, &a, &b, &part)); /* two strides */
    refused(dev_gemm_add(dev, GEMM_NT, &y, &x, &a, &b, &x));       /* nowhere to work */
}

/* A buffer of its own for x: dev_gather reads rows of it while it writes others. */
static void experts(void **state)
{
    static float rows[8];
    static int32_t at[3] = {0, 1, 1};
    const struct tensor y = f2(3, 4), x = tensor_2d(rows, DT_F32, 2, 4), wide = f2(3, 5);
    const struct tensor index = tensor_2d(at, DT_I32, 3, 1), w = f2(3, 1), w_bad = f2(3, 2);
    const struct tensor gaps = spaced(index), n_x = narrow(x), n_y = narrow(y);
    assert_int_equal(dev_gather(dev, &y, &x, &index, NULL), OK);
    refused(dev_gather(dev, &y, &y, &index, NULL)); /* onto itself */
    refused(dev_gather(dev, &wide, &x, &index, NULL));
    refused(dev_gather(dev, &y, &x, &w, NULL)); /* an index that is not of integers */
    refused(dev_gather(dev, &y, &x, &gaps, NULL));
    refused(dev_gather(dev, &n_y, &x, &index, NULL));
    refused(dev_gather(dev, &y, &n_x, &index, NULL));
    refused(dev_gather(dev, &y, &x, &index, &w_bad));
    assert_int_equal(dev_gather_dot(dev, &w, &y, &x, &index), OK);
    refused(dev_gather_dot(dev, &w_bad, &y, &x, &index));
    refused(dev_gather_dot(dev, &w, &wide, &x, &index));
    refused(dev_gather_dot(dev, &w, &n_y, &x, &index));
    refused(dev_gather_dot(dev, &w, &y, &n_x, &index));
    refused(dev_gather_dot(dev, &w, &y, &x, &w));
}

static void norms_and_rotation(void **state)
{
    const struct tensor x = f2(3, 4), x_half = h2(3, 4), s = tensor_1d(mem, DT_F32, 3),
                        g = tensor_1d(mem, DT_F32, 4), s_bad = tensor_1d(mem, DT_F32, 4);
    const struct rmsnorm_inputs in = {.x = &x, .g = &g, .eps = 1e-5f};
    refused(dev_rmsnorm(dev, &x, &s_bad, NULL, &in));
    struct rmsnorm_inputs bad = in;
    bad.g = &s;
    refused(dev_rmsnorm(dev, &x, &s, NULL, &bad));
    bad = in;
    bad.add = &x; /* without h */
    refused(dev_rmsnorm(dev, &x, &s, NULL, &bad));
    bad.x = &x_half;
    refused(dev_rmsnorm(dev, &x, &s, &x, &bad));
    bad = in;
    bad.eps = -1;
    refused(dev_rmsnorm(dev, &x, &s, NULL, &bad));
    static float elsewhere[64];
    const struct tensor copy = tensor_2d(elsewhere, DT_BF16, x.dim[0], x.dim[1]);
    const struct tensor list = tensor_1d(elsewhere, DT_F32, tensor_count(&x));
    const struct rmsnorm_grads fit = {&x, &copy, false}, over_dy = {&x, NULL, true},
                               no_f32 = {&x_half, &copy, false}, itself = {&x, &x, false},
                               other = {&x, &list, false};
    assert_int_equal(dev_rmsnorm_bwd(dev, &fit, &x, &x, &s, &g), OK);
    refused(dev_rmsnorm_bwd(dev, &over_dy, &x, &x, &s, &g));
    refused(dev_rmsnorm_bwd(dev, &no_f32, &x, &x, &s, &g));
    refused(dev_rmsnorm_bwd(dev, &itself, &x, &x, &s, &g));
    refused(dev_rmsnorm_bwd(dev, &other, &x, &x, &s, &g));
    const struct tensor heads = f3(2, 2, 5), cos = f2(2, 2), wide_cos = f2(2, 3),
                        short_cos = f2(1, 2);
    refused(dev_rope(dev, &x, &cos, &cos, false));
    refused(dev_rope(dev, &heads, &wide_cos, &wide_cos, false));
    refused(dev_rope(dev, &heads, &short_cos, &short_cos, false));
    refused(dev_rope(dev, &heads, &cos, &short_cos, false));
    const struct tensor six = f3(2, 2, 6), flat = f2(2, 4);
    refused(dev_hadamard(dev, &six));
    refused(dev_hadamard(dev, &flat));
}

static void attention(void **state)
{
    const struct tensor q = f3(4, 6, 8), k = f3(4, 2, 8), k_bad = f3(4, 4, 8), o = q,
                        lse = f2(6, 4);
    const struct attn_mask mask = {1, 0, 0, 0}, chunks = {1, 0, 4, 0};
    const struct attn_inputs bad_heads = {.q = &q, .k = &k_bad, .v = &k_bad, .scale = 1};
    refused(dev_attn(dev, &o, &lse, &bad_heads)); /* 6 % 4 */
    struct attn_inputs in = {.q = &q, .k = &k, .v = &k, .scale = 1};
    struct attn_grads grads = {.dq = &q, .dk = &k, .dv = &k};
    in.reach = -1;
    refused(dev_attn(dev, &o, &lse, &in));
    refused(dev_attn_bwd(dev, &grads, &q, &o, &lse, &in));
    in.reach = 0;
    refused(dev_attn(dev, &k, &lse, &in)); /* o not like q */
    in.kq = &k;
    refused(dev_attn(dev, &o, &lse, &in)); /* kq without vq */
    in.vq = &k;
    refused(dev_attn(dev, &o, &lse, &in)); /* no mask */
    in.mask = &mask;
    refused(dev_attn_bwd(dev, &grads, &q, &o, &lse, &in)); /* kq without dkq */
    grads.dkq = grads.dvq = &k;
    in.mask = &chunks;
    refused(dev_attn_bwd(dev, &grads, &q, &o, &lse, &in));
}

static void quantizers(void **state)
{
    const struct tensor w = f2(3, 40), a = f2(3, 3), flat = tensor_1d(mem, DT_F32, 9),
                        s = tensor_2d(bytes, DT_F16, 3, 3),
                        z = tensor_2d(bytes, DT_U8, 3, 3),
                        z_bad = tensor_2d(bytes, DT_U8, 3, 2);
    const struct weight_quant good = {
        .w = &w, .a = &a, .b = &a, .bits = 4, .group_size = 16};
    struct weight_quant p = good;
    assert_int_equal(dev_fake_quant_weights(dev, NULL, &s, &z, &p), OK);
    refused(dev_fake_quant_weights(dev, NULL, &s, &z_bad, &p));
    p.bits = 1;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p.bits = 9;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p = good;
    p.group_size = -1;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    refused(dev_fake_quant_weights_bwd(dev, &a, &a, &w, &p));
    p.group_size = 0;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p = good;
    p.b = NULL;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p.a = p.b = &flat; /* rows would be lost */
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p = good;
    const struct tensor whole = tensor_2d(mem, DT_I32, 3, 40);
    p.w = &whole;
    refused(dev_fake_quant_weights(dev, NULL, &s, &z, &p));
    p = good;
    refused(dev_fake_quant_stored(dev, &a, &s, &z, &p));
    p.v = &a;
    refused(dev_fake_quant_stored(dev, &w, &s, &z, &p));
    refused(dev_offset_step(dev, &w, &s, &z, &p, 0.1f));
    const struct tensor x = f3(2, 3, 8), c = tensor_1d(mem, DT_F32, 24),
                        c_bad = tensor_1d(mem, DT_F32, 8);
    struct kv_quant kv = {.x = &x, .s = &c, .bits = 4, .group_size = 8};
    refused(dev_fake_quant_kv(dev, &x, &kv)); /* s without shift */
    kv.s = kv.shift = &c_bad;
    refused(dev_fake_quant_kv(dev, &x, &kv));
    refused(dev_fake_quant_kv_channel(dev, &x, &x, 4, 0));
    refused(dev_fake_quant_kv_channel(dev, &x, &x, 9, 4));
    refused(dev_fake_quant_kv_channel_bwd(dev, &x, &x, &x, 4, 4, true)); /* dx is dxq */
    struct kv_grads kv_grads = {.dx = &x, .dls = &c};
    kv.s = kv.shift = &c;
    refused(dev_fake_quant_kv_bwd(dev, &kv_grads, &x, &kv)); /* dls without dshift */
    kv_grads.dshift = &c;
    kv_grads.accumulate = true;
    refused(dev_fake_quant_kv_bwd(dev, &kv_grads, &x, &kv)); /* dx is dxq */
}

static void training(void **state)
{
    double loss;
    const struct tensor y = f2(2, 3), t = f2(3, 2), dy = h2(2, 3),
                        p = tensor_1d(mem, DT_F32, 4), q = tensor_1d(mem, DT_F32, 5);
    struct loss_inputs in = {.y = &y, .t = &t, .kind = LOSS_MAE, .weight = 1};
    refused(dev_loss(dev, &loss, NULL, &in));
    in.t = &y;
    in.accumulate = true; /* into BF16 */
    refused(dev_loss(dev, &loss, &dy, &in));
    refused(dev_adamw(dev, &p, &q, &p, &p, &(struct adamw){.step = 1}));
    refused(dev_adamw(dev, &p, &p, &p, &p, &(struct adamw){.step = 0}));
    const struct tensor target = tensor_1d(mem, DT_I32, 3), nll = tensor_1d(mem, DT_F32, 2);
    refused(dev_cross_entropy(dev, &nll, &y, &target));
    void *none = NULL;
    refused(dev_alloc(dev, &none, 0));
    assert_null(none);
}

static void narrow_elements(void **state)
{
    const struct tensor x = f2(3, 4), n = narrow(x), gu = f2(3, 8), n_gu = narrow(gu);
    const struct tensor s = tensor_1d(mem, DT_F32, 3), g = tensor_1d(mem, DT_F32, 4);
    const struct rmsnorm_inputs in = {.x = &x, .add = &n, .g = &g};
    const struct rmsnorm_inputs sum = {.x = &x, .add = &x, .g = &g};
    const struct rmsnorm_grads to = {.dx = &x}, to_n = {.dx = &n};
    struct loss_inputs loss = {.y = &x, .t = &n, .weight = 1};
    struct dev_report report;
    double value;
    refused(dev_rmsnorm(dev, &x, &s, &x, &in));
    refused(dev_rmsnorm(dev, &x, &s, &n, &sum));
    refused(dev_rmsnorm_bwd(dev, &to, &n, &x, &s, &g));
    refused(dev_rmsnorm_bwd(dev, &to_n, &x, &x, &s, &g));
    refused(dev_add(dev, &x, &n, &x));
    refused(dev_add(dev, &x, &x, &n));
    refused(dev_gate_bwd(dev, GATE_SILU, &n_gu, &x, &gu));
    refused(dev_loss(dev, &value, NULL, &loss));
    loss.t = &x;
    refused(dev_loss(dev, &value, &n, &loss));
    const struct tensor heads = f3(3, 2, 4), half = f2(3, 2), n_half = narrow(half);
    refused(dev_rope(dev, &heads, &half, &n_half, false));
    assert_int_equal(dev_report_open(&report, dev, 1), OK);
    refused(dev_report_check(&report, &n));
    for (int64_t at = -1; at <= 1; at += 2)
        refused(dev_report_loss(&report, at, NULL, &(struct loss_inputs){&x, &x}));
    for (int slot = -1; slot <= REPORT_SLOTS; slot += REPORT_SLOTS + 1) {
        const double *read;
        bool bad;
        refused(dev_report_send(&report, slot));
        refused(dev_report_read(&report, slot, &read, &bad));
    }
    dev_report_close(&report);
    const struct tensor list = spaced(half), six = tensor_1d(mem, DT_F32, 6);
    refused(dev_exp(dev, &list, &six));
    refused(dev_exp(dev, &six, &list));
    refused(dev_adamw(dev, &list, &six, &six, &six, &(struct adamw){.step = 1}));
    refused(dev_adamw(dev, &six, &list, &six, &six, &(struct adamw){.step = 1}));
}

static void narrow_attention(void **state)
{
    const struct tensor q = f3(4, 6, 8), k = f3(4, 2, 8), lse = f2(6, 4), n_q = narrow(q),
                        n_k = narrow(k), gaps = spaced(lse);
    const struct attn_mask mask = {.window = 1};
    const struct attn_inputs in = {
        .q = &q, .k = &k, .v = &k, .kq = &k, .vq = &k, .mask = &mask, .scale = 1};
    const struct attn_grads grads = {.dq = &q, .dk = &k, .dv = &k, .dkq = &k, .dvq = &k};
    struct attn_inputs bad = in;
    struct attn_grads bad_grads = grads;
    refused(dev_attn(dev, &n_q, &lse, &in));
    refused(dev_attn(dev, &q, &gaps, &in));
    bad.kq = &n_k;
    refused(dev_attn(dev, &q, &lse, &bad));
    bad = in, bad.vq = &n_k;
    refused(dev_attn(dev, &q, &lse, &bad));
    refused(dev_attn_bwd(dev, &grads, &n_q, &q, &lse, &in));
    refused(dev_attn_bwd(dev, &grads, &q, &n_q, &lse, &in));
    bad_grads.dkq = &n_k;
    refused(dev_attn_bwd(dev, &bad_grads, &q, &q, &lse, &in));
    bad_grads = grads, bad_grads.dvq = &n_k;
    refused(dev_attn_bwd(dev, &bad_grads, &q, &q, &lse, &in));
}

static void narrow_quantizers(void **state)
{
    const struct tensor w = f2(3, 40), a = f2(3, 3), s = tensor_2d(bytes, DT_F16, 3, 3),
                        z = tensor_2d(bytes, DT_U8, 3, 3), n = narrow(w), x = f3(2, 3, 8),
                        n_x = narrow(x);
    const struct weight_quant p = {
        .w = &w, .a = &a, .b = &a, .v = &w, .bits = 4, .group_size = 16};
    struct weight_quant bad = p;
    bad.v = &n;
    refused(dev_fake_quant_weights(dev, &n, &s, &z, &p));
    refused(dev_fake_quant_weights(dev, &w, &s, &z, &bad));
    refused(dev_fake_quant_stored(dev, &n, &s, &z, &p));
    refused(dev_fake_quant_stored(dev, &w, &s, &z, &bad));
    refused(dev_fake_quant_weights_bwd(dev, &a, &a, &n, &p));
    refused(dev_fake_quant_weights_bwd(dev, &a, &a, &w, &bad));
    refused(dev_offset_step(dev, &n, &s, &z, &p, 0.1f));
    refused(dev_offset_step(dev, &w, &s, &z, &bad, 0.1f));
    const struct kv_quant kv = {.x = &x, .bits = 4};
    const struct kv_grads to = {.dx = &x}, to_n = {.dx = &n_x};
    refused(dev_fake_quant_kv_bwd(dev, &to, &n_x, &kv));
    refused(dev_fake_quant_kv_bwd(dev, &to_n, &x, &kv));
    refused(dev_fake_quant_kv_channel_bwd(dev, &n_x, &x, &x, 4, 1, false));
    refused(dev_fake_quant_kv_channel_bwd(dev, &x, &n_x, &x, 4, 1, false));
    const struct tensor wide = f3(2, 1, 64), n_wide = narrow(wide);
    const struct engine_quant engine = {.x = &wide, .target = TARGET_Q4_0, .side = KV_V};
    const struct kv_grads wide_grads = {.dx = &wide}, n_grads = {.dx = &n_wide};
    assert_int_equal(dev_fake_quant_engine(dev, &wide, &engine), OK);
    refused(dev_fake_quant_engine(dev, &n_wide, &engine));
    refused(dev_fake_quant_engine_bwd(dev, &wide_grads, &n_wide, &engine));
    refused(dev_fake_quant_engine_bwd(dev, &n_grads, &wide, &engine));
}

/* Codes, scales and zeros are all bytes of one buffer, gradients and values of the other. */
static void refinement(void **state)
{
    const struct tensor w = f2(3, 8), n_w = narrow(w), n = f2(3, 2), n_n = narrow(n),
                        c = tensor_2d(bytes, DT_U8, 3, 8), n_c = narrow(c),
                        s = tensor_2d(bytes, DT_F16, 3, 2), n_s = narrow(s),
                        z = tensor_2d(bytes, DT_U8, 3, 2), n_z = narrow(z),
                        o = tensor_2d(bytes + 64, DT_F16, 3, 8), n_o = narrow(o);
    assert_int_equal(dev_dequantize(dev, &w, &c, &s, &z, 4), OK);
    refused(dev_dequantize(dev, &n_w, &c, &s, &z, 4));
    refused(dev_dequantize(dev, &w, &n_c, &s, &z, 4));
    refused(dev_dequantize(dev, &w, &c, &n_s, &z, 4));
    refused(dev_dequantize(dev, &w, &c, &s, &n_z, 4));
    assert_int_equal(dev_group_dot(dev, &n, &w, &w, 4), OK);
    refused(dev_group_dot(dev, &n_n, &w, &w, 4));
    refused(dev_group_dot(dev, &n, &n_w, &w, 4));
    refused(dev_group_dot(dev, &n, &w, &n_w, 4));
    assert_int_equal(dev_code_step(dev, &c, &o, &w, 4, 0.1f), OK);
    refused(dev_code_step(dev, &n_c, &o, &w, 4, 0.1f));
    refused(dev_code_step(dev, &c, &n_o, &w, 4, 0.1f));
    refused(dev_code_step(dev, &c, &o, &n_w, 4, 0.1f));
    const struct tensor gaps = spaced(s), f_gaps = spaced(n);
    refused(dev_scale_steps(dev, &gaps, &s, &n, 11));
    refused(dev_scale_steps(dev, &s, &gaps, &n, 11));
    refused(dev_scale_steps(dev, &s, &s, &f_gaps, 11));
    const struct tensor g = tensor_1d(mem, DT_F32, 8), r = tensor_1d(mem, DT_F32, 3);
    const struct tensor target = tensor_1d(bytes + 64, DT_I32, 3);
    double loss[2];
    assert_int_equal(dev_rmsnorm_gain_bwd(dev, &g, &w, &w, &r), OK);
    refused(dev_rmsnorm_gain_bwd(dev, &g, &n_w, &w, &r));
    refused(dev_rmsnorm_gain_bwd(dev, &g, &w, &n_w, &r));
    refused(dev_rmsnorm_gain_bwd(dev, &r, &w, &w, &r));
    refused(dev_distill(dev, loss, &n_w, &w, &target, 1, 1));
    refused(dev_distill(dev, loss, &w, &n_w, &target, 1, 1));
}

static void few_bytes(void **state)
{
    float to[64] = {0};
    char *inside = (char *)to + 2;
    mem[0] = 5;
    assert_int_equal(dev_put(dev, to, mem, sizeof(*to)), OK);
    assert_true(to[0] == 5);
    refused(dev_put(dev, NULL, mem, sizeof(*to)));
    refused(dev_put(dev, to, NULL, sizeof(*to)));
    refused(dev_put(dev, inside, mem, sizeof(*to)));
    refused(dev_put(dev, to, mem, 0));
    refused(dev_put(dev, to, mem, 6));
    refused(dev_put(dev, to, mem, DEV_PUT_BYTES + 4));
}

static void devices(void **state)
{
    struct dev *d = NULL;
    assert_int_equal(dev_open(&d, &(struct dev_settings){"gpu", 1}), ERR_USAGE);
    assert_non_null(strstr(err_text(), "'gpu' is not available"));
    assert_null(d);
    err_clear();
    dev_close(&d);
    assert_int_equal(dev_open(&d, &(struct dev_settings){"cpu", 2}), OK);
    assert_string_equal(dev_name(d), "cpu");
    assert_int_equal(dev_threads(d), 2);
    assert_true(strlen(dev_about(d)) > 0);
    assert_int_equal(dev_attn_check(d, 4096), OK);
    dev_close(&d);
    assert_null(d);
}

static void failures_stay(void **state)
{
    struct dev *d = NULL;
    assert_int_equal(dev_open(&d, &(struct dev_settings){"ref", 1}), OK);
    const struct tensor a = f2(3, 4);
    d->ops.add = NULL; /* like a table without it */
    assert_int_equal(dev_add(d, &a, &a, &a), ERR_DEVICE);
    assert_string_equal(err_text(), "add: not supported on ref");
    err_clear();
    assert_int_equal(dev_sync(d), OK);
    dev_fail(d, ERR_MEMORY, "no memory for %d", 7);
    dev_fail(d, ERR_DEVICE, "later");
    assert_string_equal(err_text(), "device ref: no memory for 7");
    err_clear();
    assert_int_equal(dev_copy(d, &a, &a), ERR_MEMORY);
    assert_int_equal(dev_sync(d), ERR_MEMORY);
    err_clear();
    dev_close(&d);
}

static int setup(void **state)
{
    return dev_open(&dev, &(struct dev_settings){"ref", 1}) != OK;
}

static int teardown(void **state)
{
    dev_close(&dev);
    return 0;
}

/* With a GPU it opens; without one, or without nvcc, the message says what to do. */
static void cuda_opens_or_says_why(void **state)
{
    struct dev *d = NULL;
    const enum err e = dev_open(&d, &(struct dev_settings){.name = "cuda"});
    if (e == OK) {
        assert_string_equal(dev_name(d), "cuda");
        dev_close(&d);
        return;
    }
    assert_int_equal(e, ERR_SUPPORT);
    assert_null(d);
    assert_non_null(strstr(err_text(), "device cuda: "));
    assert_non_null(strstr(err_text(), "use --device cpu"));
    err_clear();
}

int main(void)
{
    if (DEBUG_ABORT) /* refusals abort */
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices),
        cmocka_unit_test(sums_of_products),
        cmocka_unit_test(experts),
        cmocka_unit_test(norms_and_rotation),
        cmocka_unit_test(attention),
        cmocka_unit_test(quantizers),
        cmocka_unit_test(training),
        cmocka_unit_test(narrow_elements),
        cmocka_unit_test(narrow_attention),
        cmocka_unit_test(narrow_quantizers),
        cmocka_unit_test(refinement),
        cmocka_unit_test(few_bytes),
        cmocka_unit_test(devices),
        cmocka_unit_test(failures_stay),
        cmocka_unit_test(cuda_opens_or_says_why),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
