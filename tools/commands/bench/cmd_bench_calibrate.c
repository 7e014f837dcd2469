/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench calibrate`: a training step on random weights, by parts, and the time of its
 * matrix products alone. Both have the same shapes, library, threads and run. */
#include "calib/calib.h"
#include "data/json.h"
#include "kernels/base/mem.h"
#include "kernels/dev_link.h"
#include "tools/bench/bench_data.h"
#include "tools/bench/bench_gemm.h"
#include "tools/bench/bench_ranks.h"
#include "tools/cli/launch.h"
#include "tools/commands/bench/cmd_bench.h"
#include "tools/recipe/recipe.h"

#include <inttypes.h>
#include <stdio.h>

/* Samples of the extrapolated run; the step itself needs one. */
#define RUN_SAMPLES 128

struct calibrate {
    struct dev *dev;
    struct arch arch;
    struct calib_settings settings;
    struct calib_plan plan;
    double run_flops; /* of the extrapolated run */
    struct calib_bench step;
    struct bench_gemm gemm;
    const struct ranks *ranks; /* NULL: one process */
    struct bench_rank each[RANKS_MAX];
};

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

/* Returns the time spent between the operations. */
static double rest_seconds(const struct calibrate *c)
{
    double rest = c->step.parts_step_s;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        rest -= part_seconds(c, i);
    return rest > 0 ? rest : 0;
}

/* Returns the time of a complete calibration at the speed of the step. */
static double run_seconds_of(const struct calibrate *c)
{
    return c->step.step_s * c->run_flops / c->plan.flops_per_step;
}

static double linear_flops(const struct calibrate *c)
{
    return c->plan.flops_per_step - c->plan.attention_flops_per_step;
}

static double gemm_only(const struct calibrate *c)
{
    return c->gemm.linear_s + c->gemm.attention_s;
}

static void print_part(const struct calibrate *c, const char *name, double seconds)
{
    printf("  %-20s %10.2f ms  %5.1f %%\n", name, seconds * 1e3,
           100 * seconds / c->step.parts_step_s);
}

static void print_gemm(const char *name, double seconds, double flops)
{
    printf("  %-20s %10.2f ms  %8.1f GFLOP  %8.1f GFLOP/s\n", name, seconds * 1e3,
           flops * 1e-9, flops / seconds * 1e-9);
}

static void print_text(const struct calibrate *c, const struct args *a)
{
    printf("%s\n", dev_about(c->dev));
    printf("%s, %" PRId64 " tokens, %" PRId64 " blocks after it, %s; median of %" PRId64
           "\n\n",
           a->shape, c->settings.seqlen, c->settings.crr_blocks,
           dtype_name(c->settings.act), a->steps);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        print_part(c, parts[i].name, part_seconds(c, i));
    print_part(c, "rest", rest_seconds(c));
    if (c->step.parts_step_s != c->step.step_s)
        print_part(c, "... waiting each time", c->step.parts_step_s);
    print_gemm("step", c->step.step_s, c->plan.flops_per_step);
    printf("  %d samples, %" PRId64 " epochs, all blocks, at that speed: %.1f min\n",
           RUN_SAMPLES, c->settings.epochs, run_seconds_of(c) / 60);
    printf("\nGEMM alone, the same products in the same order:\n");
    print_gemm("linear layers", c->gemm.linear_s, c->gemm.linear_flops);
    print_gemm("attention, halved", c->gemm.attention_s, c->gemm.attention_flops);
    print_gemm("all", gemm_only(c), c->gemm.linear_flops + c->gemm.attention_flops);
    printf("  %.1f %% of the step\n", 100 * gemm_only(c) / c->step.step_s);
    if (c->ranks)
        bench_print_ranks(c->each, c->ranks->size);
}

static json_t *parts_json(const struct calibrate *c)
{
    json_t *o = json_object();
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        json_object_set_new(o, parts[i].key, json_real(part_seconds(c, i)));
    json_object_set_new(o, "rest_s", json_real(rest_seconds(c)));
    return o;
}

static enum err print_json(const struct calibrate *c, const struct args *a)
{
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:s, s:f, s:i, s:I, s:f, s:f, s:o, s:f, s:f, s:f, s:f, "
        "s:f, s:f, s:f, s:f}",
        "device", dev_about(c->dev), "shape", a->shape, "seqlen",
        (json_int_t)c->settings.seqlen, "blocks", (json_int_t)c->settings.crr_blocks,
        "steps", (json_int_t)a->steps, "compute", dtype_name(c->settings.act), "run_s",
        run_seconds_of(c), "run_samples", RUN_SAMPLES, "run_epochs",
        (json_int_t)c->settings.epochs, "step_s", c->step.step_s, "parts_step_s",
        c->step.parts_step_s, "parts", parts_json(c), "flops", c->plan.flops_per_step,
        "linear_flops", linear_flops(c), "attention_flops",
        c->plan.attention_flops_per_step, "gemm_only_s", gemm_only(c), "gemm_only_flops",
        c->gemm.linear_flops + c->gemm.attention_flops, "gemm_only_linear_s",
        c->gemm.linear_s, "gemm_only_attention_s", c->gemm.attention_s, "gemm_only_share",
        gemm_only(c) / c->step.step_s);
    if (c->ranks)
        json_object_set_new(o, "ranks", bench_ranks_json(c->each, c->ranks->size));
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

/* Makes the default recipe with the sizes of the options. */
static enum err settings_of(struct calibrate *c, const struct args *a, enum dtype act)
{
    struct recipe r;
    recipe_init(&r);
    c->settings = recipe_settings(&r, c->dev);
    recipe_free(&r);
    c->settings.act = act;
    c->settings.cpu_threads = dev_host_threads(c->dev);
    c->settings.widens = dev_widens(c->dev);
    for (int l = 0; l < N_LIN; l++)
        c->settings.stored[l] = BENCH_STORED;
    c->settings.seqlen = a->seqlen;
    c->settings.crr_blocks = a->blocks;
    FAIL_IF(c->arch.n_layers <= a->blocks, ERR_USAGE,
            "--blocks %" PRId64 ": %s has %" PRId64 " blocks", a->blocks, a->shape,
            c->arch.n_layers);
    c->settings.samples = RUN_SAMPLES;
    TRY(calib_plan(&c->plan, &c->arch, &c->settings));
    c->run_flops = c->plan.total_flops;
    c->settings.samples = 1;
    return calib_plan(&c->plan, &c->arch, &c->settings);
}

/* The products run after the step, so the larger of both counts. */
static enum err check_memory(const struct calibrate *c)
{
    const size_t products = bench_gemm_bytes(&c->arch, &c->settings);
    const size_t step = c->plan.weights_bytes + c->plan.acts_bytes + c->plan.params_bytes;
    uint64_t left;
    return bench_fits(&left, c->dev, step > products ? step : products,
                      bench_weights_bytes(&c->arch), "--blocks or --seqlen");
}

enum err bench_calibrate(struct args *a)
{
    struct calibrate c = {0};
    struct bench_weights w = {0};
    enum dtype act;
    int64_t here;
    enum err err = OK;
    TRY_OUT(arch_of_shape(&c.arch, a->shape));
    TRY_OUT(bench_join(&c.ranks, &a->threads, &here));
    TRY_OUT(bench_open(&c.dev, &act, a->device, (int)a->threads, a->compute));
    mpi_link_devices(c.dev, c.ranks);
    TRY_OUT(settings_of(&c, a, act));
    TRY_OUT(check_memory(&c));
    TRY_OUT(bench_weights_open(&w, &c.arch));
    TRY_OUT(calib_bench_step(&c.step, c.dev, &c.arch, &w.source, &c.settings, a->steps,
                             c.ranks));
    TRY_OUT(bench_gemm_step(&c.gemm, c.dev, &c.arch, &c.settings, a->steps));
    if (c.ranks)
        bench_gather_ranks(c.each, c.ranks,
                           &(struct bench_rank){c.step.step_s, c.step.cost});
    dev_unlink(c.dev);
    if (c.ranks && c.ranks->rank > 0)
        goto out;
    if (a->json)
        TRY_OUT(print_json(&c, a));
    else
        print_text(&c, a);
out:
    bench_weights_close(&w);
    dev_close(&c.dev);
    return err;
}
