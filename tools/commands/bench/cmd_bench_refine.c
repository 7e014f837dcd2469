/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench calibrate --refine`: a step of end-to-end refinement on random weights, by parts. */
#include "data/json.h"
#include "kernels/base/mem.h"
#include "kernels/dev_link.h"
#include "tools/bench/bench_ranks.h"
#include "tools/bench/bench_refine.h"
#include "tools/cli/launch.h"
#include "tools/commands/bench/cmd_bench.h"
#include "tools/recipe/recipe.h"

#include <inttypes.h>
#include <stdio.h>

struct measured {
    struct dev *dev;
    struct arch arch;
    struct weight_spec weights;
    struct kv_spec kv;
    struct refine_settings settings;
    struct refine_plan plan;
    struct bench_refine step;
    const struct ranks *ranks; /* NULL: one process */
    int64_t here;              /* processes on this machine */
    struct bench_rank each[RANKS_MAX];
};

static const struct {
    const char *name, *key;
    enum dev_part part;
} parts[] = {
    {"matrix products", "gemm_s", DEV_GEMM},
    {"attention forward", "attention_forward_s", DEV_ATTENTION},
    {"attention backward", "attention_backward_s", DEV_ATTENTION_BWD},
    {"codes, fake quantization", "quantization_s", DEV_FAKE_QUANT},
    {"norms, rope, gate", "elementwise_s", DEV_ELEMENTWISE},
    {"loss", "loss_s", DEV_LOSS},
    {"optimizer", "optimizer_s", DEV_OPTIMIZER},
    {"copies", "copy_s", DEV_COPY},
};

static double rest_seconds(const struct measured *m)
{
    double rest = m->step.step_s;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        rest -= m->step.part_s[parts[i].part];
    return rest > 0 ? rest : 0;
}

static void print_part(const struct measured *m, const char *name, double seconds)
{
    printf("  %-24s %10.2f ms  %5.1f %%\n", name, 1e3 * seconds,
           100 * seconds / m->step.step_s);
}

static void print_text(const struct measured *m, const struct args *a)
{
    const double flops = m->plan.flops_per_step;
    printf("%s\n", dev_about(m->dev));
    printf("%s, %" PRId64 " layers, %" PRId64 " x %" PRId64
           " tokens, %s; median of %" PRId64 "\n\n",
           a->shape, m->arch.n_layers, m->settings.batch, m->settings.seqlen,
           dtype_name(m->settings.act), a->steps);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        print_part(m, parts[i].name, m->step.part_s[parts[i].part]);
    print_part(m, "rest", rest_seconds(m));
    printf("  %-24s %10.2f ms  %8.1f GFLOP  %8.1f GFLOP/s\n", "step", 1e3 * m->step.step_s,
           1e-9 * flops, 1e-9 * flops / m->step.step_s);
    if (m->ranks)
        bench_print_ranks(m->each, m->ranks->size);
}

static enum err print_json(const struct measured *m, const struct args *a)
{
    const double attention = m->plan.attention_flops_per_step;
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:f, s:f, s:f, s:b}", "device",
        dev_about(m->dev), "shape", a->shape, "layers", (json_int_t)m->arch.n_layers,
        "seqlen", (json_int_t)m->settings.seqlen, "batch", (json_int_t)m->settings.batch,
        "steps", (json_int_t)a->steps, "compute", dtype_name(m->settings.act), "step_s",
        m->step.step_s, "flops", m->plan.flops_per_step, "attention_flops", attention,
        "keeps_activations", m->plan.keeps_acts);
    json_t *p = json_object();
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        json_object_set_new(p, parts[i].key, json_real(m->step.part_s[parts[i].part]));
    json_object_set_new(p, "rest_s", json_real(rest_seconds(m)));
    json_object_set_new(o, "parts", p);
    if (m->ranks)
        json_object_set_new(o, "ranks", bench_ranks_json(m->each, m->ranks->size));
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

/* Takes the formats of the default recipe, and the sizes of the options. */
static enum err settings_of(struct measured *m, const struct args *a, enum dtype act)
{
    struct recipe r;
    recipe_init(&r);
    if (m->ranks && r.refine.batch < m->ranks->size)
        r.refine.batch = m->ranks->size;
    r.refine.samples = r.refine.batch;
    m->weights = recipe_weight_spec(&r);
    m->kv = recipe_kv_spec(&r);
    m->settings = recipe_refine_settings(&r, m->dev);
    recipe_free(&r);
    m->settings.act = act;
    m->settings.cpu_threads = dev_host_threads(m->dev);
    m->settings.widens = dev_widens(m->dev);
    m->settings.seqlen = a->seqlen;
    FAIL_IF(a->layers > m->arch.n_layers, ERR_USAGE,
            "--layers %" PRId64 ": %s has %" PRId64 " layers", a->layers, a->shape,
            m->arch.n_layers);
    if (a->layers)
        m->arch.n_layers = a->layers;
    return refine_plan(&m->plan, &m->arch, &m->weights, &m->kv, &m->settings,
                       m->ranks ? m->ranks->size : 1);
}

/* Gives the activations half of the memory that is left, divided among the processes of this
 * machine, and plans with them. */
static enum err plan_memory(struct measured *m)
{
    const struct refine_plan *p = &m->plan;
    const size_t ends = (size_t)(m->arch.vocab * m->arch.d_model) * sizeof(uint16_t);
    uint64_t left;
    TRY(bench_fits(&left, m->dev, p->codes_bytes + p->params_bytes + p->work_bytes,
                   p->teacher_bytes + bench_weights_bytes(&m->arch) + ends,
                   "--layers or --seqlen"));
    m->settings.acts_bytes = left / 2 / (uint64_t)m->here;
    return refine_plan(&m->plan, &m->arch, &m->weights, &m->kv, &m->settings,
                       m->ranks ? m->ranks->size : 1);
}

enum err bench_refine(struct args *a)
{
    struct measured m = {0};
    struct bench_weights w = {0};
    enum dtype act;
    enum err err = OK;
    TRY_OUT(arch_of_shape(&m.arch, a->shape));
    TRY_OUT(bench_join(&m.ranks, &a->threads, &m.here));
    TRY_OUT(bench_open(&m.dev, &act, a->device, (int)a->threads, a->compute));
    mpi_link_devices(m.dev, m.ranks);
    TRY_OUT(settings_of(&m, a, act));
    TRY_OUT(plan_memory(&m));
    TRY_OUT(bench_weights_open(&w, &m.arch));
    TRY_OUT(bench_weights_add_ends(&w));
    TRY_OUT(bench_refine_step(&m.step, m.dev, &w, &m.weights, &m.kv, &m.settings, a->steps,
                              m.ranks));
    if (m.ranks)
        bench_gather_ranks(m.each, m.ranks,
                           &(struct bench_rank){m.step.mean_s, m.step.cost});
    dev_unlink(m.dev);
    if (m.ranks && m.ranks->rank > 0)
        goto out;
    if (a->json)
        TRY_OUT(print_json(&m, a));
    else
        print_text(&m, a);
out:
    bench_weights_close(&w);
    dev_close(&m.dev);
    return err;
}
