/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench calibrate`: a training step on made-up weights, by part, and beside it the
 * time that its matrix products take alone: the same shapes, library, threads and run. */
#include "calib/calib.h"
#include "tools/bench_shape.h"
#include "tools/cmd_bench.h"
#include "tools/recipe.h"

#include <inttypes.h>
#include <stdio.h>

#define MAX_PRODUCTS 32

struct calibrate {
    struct dev *dev;
    struct arch arch;
    struct calib_settings settings;
    struct calib_bench step;
    struct calib_plan plan;
    struct bench_product product[MAX_PRODUCTS];
    int n;
    double products_s, products_flops; /* of a step, each product alone */
};

static void add(struct calibrate *c, enum gemm_kind kind, int64_t m, int64_t n, int64_t k,
                enum dtype out, double times)
{
    if (times > 0 && c->n < MAX_PRODUCTS)
        c->product[c->n++] =
            (struct bench_product){kind, m, n, k, c->settings.act, out, times};
}

/* [out, in] weights of `blocks` + 1 blocks: forward, input gradient (not of the trained
 * block's q, k, v), weight gradient of the trained block. */
static void add_linear(struct calibrate *c, int64_t out, int64_t in, bool has_dx)
{
    const int64_t T = c->settings.seqlen;
    const double behind = (double)c->settings.crr_blocks;
    const enum dtype act = c->settings.act;
    add(c, GEMM_NT, T, out, in, act, behind + 1);
    add(c, GEMM_NN, T, in, out, act, behind + has_dx);
    add(c, GEMM_TN, out, in, T, DT_F32, 1);
}

/* Two products a head forward and five backward, each needed for half of the pairs. */
static void add_attention(struct calibrate *c)
{
    const int64_t T = c->settings.seqlen, d = c->arch.head_dim;
    const double half =
        0.5 * (double)c->arch.n_heads * (double)(c->settings.crr_blocks + 1);
    add(c, GEMM_NT, T, T, d, c->settings.act, 3 * half); /* S, again S, dP */
    add(c, GEMM_NN, T, d, T, c->settings.act, 2 * half); /* O, dQ */
    add(c, GEMM_TN, T, d, T, DT_F32, 2 * half);          /* dK, dV */
}

static enum err time_products(struct calibrate *c)
{
    const struct arch *a = &c->arch;
    const int64_t D = a->d_model, qkv = (a->n_heads + 2 * a->n_kv) * a->head_dim;
    add_linear(c, qkv, D, false);
    add_linear(c, D, a->n_heads * a->head_dim, true);
    add_linear(c, 2 * a->d_ff, D, true);
    add_linear(c, D, a->d_ff, true);
    add_attention(c);
    for (int i = 0; i < c->n; i++) {
        double seconds;
        TRY(bench_product_time(&seconds, c->dev, &c->product[i]));
        c->products_s += seconds * c->product[i].times;
        c->products_flops += bench_product_flops(&c->product[i]) * c->product[i].times;
    }
    return OK;
}

static const struct {
    const char *name, *key;
    size_t offset;
} parts[] = {
    {"linear layers", "linear_s", offsetof(struct calib_bench, linear_gemm_s)},
    {"attention forward", "attention_forward_s",
     offsetof(struct calib_bench, attention_fwd_s)},
    {"attention backward", "attention_backward_s",
     offsetof(struct calib_bench, attention_bwd_s)},
    {"fake quantization", "fakequant_s", offsetof(struct calib_bench, fakequant_s)},
    {"norms, rope, gate", "elementwise_s", offsetof(struct calib_bench, norm_rope_act_s)},
    {"loss", "loss_s", offsetof(struct calib_bench, loss_s)},
    {"optimizer", "optimizer_s", offsetof(struct calib_bench, optimizer_s)},
    {"copies", "copy_s", offsetof(struct calib_bench, copy_s)},
};

static double part_seconds(const struct calibrate *c, size_t i)
{
    return *(const double *)((const char *)&c->step + parts[i].offset);
}

static void print_text(const struct calibrate *c, const struct args *a)
{
    const double step = c->step.step_s;
    double rest = step;
    printf("%s\n", dev_about(c->dev));
    printf("%s, %" PRId64 " tokens, %" PRId64 " blocks behind, %s\n\n", a->shape,
           c->settings.seqlen, c->settings.crr_blocks, dtype_name(c->settings.act));
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const double s = part_seconds(c, i);
        printf("  %-20s %10.2f ms  %5.1f %%\n", parts[i].name, s * 1e3, 100 * s / step);
        rest -= s;
    }
    printf("  %-20s %10.2f ms  %5.1f %%\n", "between", rest * 1e3, 100 * rest / step);
    printf("  %-20s %10.2f ms\n\n", "step", step * 1e3);
    printf("  work                 %10.1f GFLOP a step, %.1f GFLOP/s\n",
           c->plan.flops_per_step * 1e-9, c->plan.flops_per_step / step * 1e-9);
    printf("  products alone       %10.2f ms, %.1f GFLOP/s: %.1f %% of the step\n",
           c->products_s * 1e3, c->products_flops / c->products_s * 1e-9,
           100 * c->products_s / step);
}

static enum err print_json(const struct calibrate *c, const struct args *a)
{
    json_t *by_part = json_object();
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        json_object_set_new(by_part, parts[i].key, json_real(part_seconds(c, i)));
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:I, s:s, s:f, s:o, s:f, s:f, s:f, s:f}", "device",
        dev_about(c->dev), "shape", a->shape, "seqlen", (json_int_t)c->settings.seqlen,
        "blocks", (json_int_t)c->settings.crr_blocks, "compute",
        dtype_name(c->settings.act), "step_s", c->step.step_s, "parts", by_part, "flops",
        c->plan.flops_per_step, "products_flops", c->products_flops, "products_s",
        c->products_s, "products_share", c->products_s / c->step.step_s);
    FAIL_IF(!o, ERR_MEMORY, "no memory for the report");
    json_dumpf(o, stdout, JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(o);
    return OK;
}

static enum err settings_of(struct calibrate *c, const struct args *a, enum dtype act)
{
    struct recipe r;
    recipe_init(&r);
    c->settings = recipe_settings(&r, c->dev);
    recipe_free(&r);
    c->settings.act = act;
    c->settings.seqlen = a->seqlen;
    c->settings.crr_blocks = a->blocks;
    c->settings.samples = 1;
    if (c->arch.n_layers <= a->blocks)
        FAIL(ERR_USAGE, "--blocks %" PRId64 ": %s has %" PRId64 " blocks", a->blocks,
             a->shape, c->arch.n_layers);
    return calib_plan(&c->plan, &c->arch, &c->settings);
}

enum err bench_calibrate(struct args *a)
{
    struct calibrate c = {0};
    struct bench_weights w = {0};
    enum dtype act;
    enum err err = OK;
    TRY_OUT(bench_shape(&c.arch, a->shape));
    TRY_OUT(bench_open(&c.dev, &act, a));
    TRY_OUT(settings_of(&c, a, act));
    TRY_OUT(bench_weights_open(&w, &c.arch));
    TRY_OUT(calib_bench_step(&c.step, c.dev, &c.arch, &w.source, &c.settings, a->steps));
    TRY_OUT(time_products(&c));
    if (a->json)
        TRY_OUT(print_json(&c, a));
    else
        print_text(&c, a);
out:
    bench_weights_close(&w);
    dev_close(&c.dev);
    return err;
}
