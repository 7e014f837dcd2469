/* SPDX-License-Identifier: MIT
 *
 * Times the training step of a calibration, by part: the same code on random activations,
 * with the weights of block 0 for every block. */
#include "calib/calib.h"

#include "calib/batch/batch_sum.h"
#include "calib/calibration.h"
#include "calib/cost.h"
#include "kernels/base/clock.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"

#include <stdlib.h>

struct bench {
    struct dev *dev;
    const struct calib_settings *s;
    struct fakequant f;
    struct recon r;
    struct arch arch;         /* cut to the blocks that a full step needs */
    struct model_source same; /* block 0 for every block */
    const struct model_source *from;
    void *target_memory;
    struct tensor target; /* [T,D] act */
    struct share share;   /* a sample of a step for each rank */
    bool late;            /* steps are those of late.c; the only wait is that at the end */
    struct fq_step move;
};

static enum err block_zero(void *ctx, int64_t i, struct block_src *out)
{
    const struct model_source *from = ctx;
    return from->block(from->ctx, 0, out);
}

static enum err stage(void *ctx, struct tensor *t, int64_t j)
{
    *t = ((struct bench *)ctx)->target;
    return OK;
}

/* Fills x and the target with normal values. */
static enum err fill(struct bench *b)
{
    const int64_t n = tensor_count(&b->r.x);
    struct rng rng;
    float *host = NULL;
    enum err err = OK;
    TRY(mem_alloc(&host, (size_t)n, sizeof(*host)));
    rng_seed(&rng, 1);
    for (int64_t i = 0; i < n; i++)
        host[i] = (float)rng_normal(&rng);
    TRY_OUT(dev_upload(b->dev, b->r.x.data, host, (size_t)n * sizeof(*host)));
    TRY_OUT(dev_sync(b->dev));
    TRY_OUT(dev_alloc(b->dev, &b->target_memory, (size_t)n * dtype_bytes(b->s->act)));
    b->target = tensor_2d(b->target_memory, b->s->act, b->r.x.dim[0], b->r.x.dim[1]);
    TRY_OUT(dev_copy(b->dev, &b->target, &b->r.x));
out:
    mem_free(host);
    return err;
}

/* Steps are late where those of a calibration are. */
static enum err choose_steps(struct bench *b)
{
    b->late = recon_reads_late(&b->r, &b->f, b->share.ranks);
    b->move =
        (struct fq_step){.lr = {b->s->lr_clip, b->s->lr_smooth, b->s->lr_shift, 1e-3f},
                         .weight_decay = b->s->weight_decay,
                         .unless = b->late ? b->r.report.bad : NULL};
    return b->late ? dev_alloc(b->dev, (void **)&b->move.rates,
                               N_FQ_KINDS * sizeof(*b->move.rates))
                   : OK;
}

static enum err open_bench(struct bench *b, struct dev *d, const struct arch *a,
                           const struct model_source *src, const struct calib_settings *s,
                           const struct ranks *ranks)
{
    struct block_src block;
    const int64_t samples = ranks ? ranks->size : 1;
    b->dev = d;
    b->s = s;
    b->arch = *a;
    b->arch.n_layers = cost_reach(a, s->crr_blocks, 0) + 1;
    b->same = (struct model_source){.ctx = (void *)(uintptr_t)src, .block = block_zero};
    TRY(arch_check_length(a, s->seqlen));
    TRY(share_open(&b->share, ranks, samples, samples, "the number of samples"));
    TRY(fakequant_open(&b->f, d, &b->arch, s));
    TRY(recon_open(&b->r, d, &b->arch, s));
    TRY(fill(b));
    TRY(src->block(src->ctx, 0, &block));
    TRY(fakequant_load(&b->f, &block, 0));
    TRY(share_link(&b->share, d, fakequant_gradients_most(&b->arch, s),
                   block_later_bytes(&b->arch, s->seqlen, s->act)));
    TRY(choose_steps(b));
    return fakequant_start(&b->f, NULL, NULL, NULL, NULL, NULL);
}

static void close_bench(struct bench *b)
{
    dev_forget(b->dev);
    dev_free(b->dev, b->move.rates);
    fakequant_close(&b->f);
    recon_close(&b->r);
    dev_free(b->dev, b->target_memory);
    share_close(&b->share);
}

/* Adds up the gradients of the ranks' samples. */
static enum err sum_gradients(struct bench *b)
{
    const struct tensor *grad[FQ_SUMS];
    if (!b->share.ranks)
        return OK;
    fakequant_gradients(&b->f, grad);
    TRY(share_keep(&b->share, b->dev, grad, FQ_SUMS, b->share.from));
    return share_sum(&b->share, b->dev, grad, FQ_SUMS, b->share.batch);
}

/* Checks the gradients as a training step does. */
static enum err check_gradients(struct bench *b)
{
    bool bad;
    char name[128];
    return b->late ? fakequant_report_gradients(&b->f, &b->r.report)
                   : fakequant_bad_gradient(&b->f, name, sizeof(name), &bad);
}

static enum err compute(void *ctx)
{
    struct bench *b = ctx;
    const struct recon_targets t = {b, stage, 1, b->late, 0};
    double loss;
    TRY(fakequant_apply(&b->f));
    TRY(recon_loss(&b->r, &loss, &b->f, &b->same, 0, &t, calib_learns(b->s, 0)));
    TRY(sum_gradients(b));
    TRY(check_gradients(b));
    return fakequant_step(&b->f, &b->move);
}

static enum err step(struct bench *b, int64_t number)
{
    b->move.step = number;
    if (b->late)
        TRY(fakequant_put_rates(&b->f, &b->move));
    TRY(b->late && !b->arch.n_experts ? dev_repeat(b->dev, 0, compute, b) : compute(b));
    return dev_sync(b->dev);
}

/* Times one step by the clock and by the device's counters of its parts. */
static enum err timed_step(struct calib_bench *out, struct bench *b, int64_t number)
{
    const struct ranks *r = b->share.ranks;
    struct ranks_cost before = {0}, after = {0};
    double part[N_DEV_PARTS];
    if (r)
        r->cost(&before);
    for (int i = 0; i < N_DEV_PARTS; i++)
        part[i] = dev_part_seconds(b->dev, (enum dev_part)i);
    const double begin = clock_s();
    TRY(step(b, number));
    const double all = clock_s() - begin;
    if (r)
        r->cost(&after);
    for (int i = 0; i < N_DEV_PARTS; i++)
        part[i] = dev_part_seconds(b->dev, (enum dev_part)i) - part[i];
    *out = (struct calib_bench){.step_s = all,
                                .parts_step_s = all,
                                .linear_gemm_s = part[DEV_GEMM],
                                .attention_fwd_s = part[DEV_ATTENTION],
                                .attention_bwd_s = part[DEV_ATTENTION_BWD],
                                .fakequant_s = part[DEV_FAKE_QUANT],
                                .loss_s = part[DEV_LOSS],
                                .optimizer_s = part[DEV_OPTIMIZER],
                                .norm_rope_act_s = part[DEV_ELEMENTWISE],
                                .copy_s = part[DEV_COPY],
                                .cost = {after.wait_s - before.wait_s,
                                         after.transfer_s - before.transfer_s,
                                         after.sent_bytes - before.sent_bytes}};
    return OK;
}

static int by_time(const void *x, const void *y)
{
    const double a = ((const struct calib_bench *)x)->step_s;
    const double b = ((const struct calib_bench *)y)->step_s;
    return (a > b) - (a < b);
}

/* *out = the median step with its own parts, so that they add up; of an even number the
 * faster of the middle two. */
static enum err median_step(struct calib_bench *out, struct bench *b, int64_t steps,
                            int64_t first)
{
    struct calib_bench *each = NULL;
    enum err err = OK;
    TRY(mem_alloc(&each, (size_t)steps, sizeof(*each)));
    for (int64_t i = 0; i < steps; i++)
        TRY_OUT(timed_step(&each[i], b, first + i));
    qsort(each, (size_t)steps, sizeof(*each), by_time);
    *out = each[(steps - 1) / 2];
out:
    mem_free(each);
    return err;
}

/* A GPU's first step loads kernels, its second one records them (kernels/dev_step.h), and its clock
 * rises. A measurement of fewer than three steps is only a trial. */
static int64_t warm_up_steps(struct dev *d, int64_t steps)
{
    uint64_t free_bytes, total;
    if (!dev_memory(d, &free_bytes, &total))
        return 1;
    return steps >= 3 ? 3 : 2;
}

static enum err measure(struct calib_bench *out, struct bench *b, int64_t steps)
{
    const int64_t warm_up = warm_up_steps(b->dev, steps);
    for (int64_t i = 1; i <= warm_up; i++)
        TRY(step(b, i));
    TRY(median_step(out, b, steps, warm_up + 1));
    const double step_s = out->step_s;
    const struct ranks_cost cost = out->cost;
    if (!dev_set_synchronous(b->dev, true))
        return OK;
    const enum err err = median_step(out, b, steps, steps + warm_up + 1);
    dev_set_synchronous(b->dev, false);
    out->step_s = step_s;
    out->cost = cost;
    return err;
}

enum err calib_bench_step(struct calib_bench *out, struct dev *d, const struct arch *a,
                          const struct model_source *src, const struct calib_settings *s,
                          int64_t steps, const struct ranks *ranks)
{
    struct bench b = {0};
    struct calib_settings own = *s;
    /* A step of GPTQ costs as much as one of rounded weights, which need no codes. */
    if (own.weights.method == WEIGHT_GPTQ)
        own.weights.method = WEIGHT_RTN;
    enum err err = open_bench(&b, d, a, src, &own, ranks);
    if (!err)
        err = measure(out, &b, steps);
    if (b.dev)
        close_bench(&b);
    return err;
}
