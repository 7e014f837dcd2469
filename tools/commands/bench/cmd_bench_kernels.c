/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench kernels`: every operation at a model's shapes, relative to the copy bandwidth
 * and the matrix product rate just measured on this machine. */
#include "data/json.h"
#include "kernels/base/clock.h"
#include "tools/bench/bench_data.h"
#include "tools/commands/bench/cmd_bench.h"

#include <math.h>
#include <stdio.h>

#define BITS 4
#define GROUP 128
/* Measurement runs after one for warm-up: until this many seconds have passed, within these
 * bounds on the number of runs. A run repeats the operation for this long before it waits,
 * so that the wait for a GPU does not count. */
#define RUN_SECONDS 0.2
#define MIN_RUNS 5
#define MAX_RUNS 201
#define REPEAT_SECONDS 0.002
#define MAX_REPEATS 1000
/* Rows of logits: as many as evaluation computes at a time, or fewer. */
#define LOGIT_ROWS 64
/* Bytes of a copy, read and written; larger than caches. */
#define COPY_BYTES (256 << 20)
/* The width of the square matrices whose product is the limit: on a GPU larger, because a
 * product of 2048 leaves parts of it idle. */
#define CUBE 2048
#define CUBE_GPU 8192

struct bench {
    struct dev *dev;
    const struct args *args;
    enum dtype act;
    struct arch arch;
    int64_t T, D, F, G;                        /* G: groups per row of w */
    struct tensor x, h, y, dy, s, gain;        /* [T,D] F32, F32, act, act; [T]; [D] */
    struct tensor gu, dgu, m, dm;              /* [T,2F], [T,2F], [T,F], [T,F] act */
    struct tensor w, dw, v, wq, wact;          /* [2F,D] F32, F32, F32, act, act */
    struct tensor stored;                      /* [2F,D] as a checkpoint has weights */
    struct tensor scales, zeros, a, b, da, db; /* [2F,G] */
    struct tensor moment;                      /* second operand of a [2F,G] operation */
    struct tensor qkv, dqkv, kq, vq, dkq, dvq, o, d_o, lse;
    struct tensor cos, sin, ks, kd, dks, dkd; /* [T,d/2]; [K d] */
    struct tensor bias, logits, nll, target;  /* [2F]; [R,V] act, [R], [R] I32 */
    double bytes, flops;                      /* of the last operation; one of them is 0 */
    double copy_bps, gemm_flops;              /* the measured limits */
};

static double bytes_of(const struct tensor *t)
{
    return (double)tensor_count(t) * (double)dtype_bytes(t->dtype);
}

static struct tensor heads(const struct tensor *x, int64_t first, int64_t n, int64_t d)
{
    return tensor_heads(tensor_cols(*x, first * d, n * d), n);
}

static enum err run_copy(struct bench *b)
{
    b->bytes = bytes_of(&b->w) + bytes_of(&b->wq);
    return dev_copy(b->dev, &b->wq, &b->w);
}

static enum err run_rmsnorm(struct bench *b)
{
    b->bytes = bytes_of(&b->x) + bytes_of(&b->h) + 2 * bytes_of(&b->y);
    const struct rmsnorm_inputs in = {
        .x = &b->x, .add = &b->dy, .g = &b->gain, .eps = 1e-5f};
    return dev_rmsnorm(b->dev, &b->y, &b->s, &b->h, &in);
}

static enum err run_rmsnorm_bwd(struct bench *b)
{
    b->bytes = 3 * bytes_of(&b->h) + bytes_of(&b->dy);
    const struct rmsnorm_grads grads = {.dx = &b->h, .accumulate = true};
    return dev_rmsnorm_bwd(b->dev, &grads, &b->dy, &b->x, &b->s, &b->gain);
}

static enum err run_add(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->h) + bytes_of(&b->dy);
    return dev_add(b->dev, &b->h, &b->x, &b->dy);
}

/* Values keep their size over any number of runs. */
static enum err run_scale(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->y);
    return dev_scale(b->dev, &b->y, -1);
}

static enum err run_rope(struct bench *b)
{
    const struct tensor q = heads(&b->qkv, 0, b->arch.n_heads, b->arch.head_dim);
    b->bytes = 2 * bytes_of(&q) + bytes_of(&b->cos) + bytes_of(&b->sin);
    return dev_rope(b->dev, &q, &b->cos, &b->sin, false);
}

/* A matrix that is its own inverse, so values keep their size. */
static enum err run_hadamard(struct bench *b)
{
    const struct tensor q = heads(&b->qkv, 0, b->arch.n_heads, b->arch.head_dim);
    b->bytes = 2 * bytes_of(&q);
    return dev_hadamard(b->dev, &q);
}

static enum err run_silu(struct bench *b)
{
    b->bytes = bytes_of(&b->gu) + bytes_of(&b->m);
    return dev_gate(b->dev, GATE_SILU, &b->m, &b->gu);
}

static enum err run_silu_bwd(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->gu) + bytes_of(&b->dm);
    return dev_gate_bwd(b->dev, GATE_SILU, &b->dgu, &b->dm, &b->gu);
}

static struct weight_quant weight_of(const struct bench *b)
{
    return (struct weight_quant){
        .w = &b->stored, .a = &b->a, .b = &b->b, .bits = BITS, .group_size = GROUP};
}

static enum err run_fake_quant_weights(struct bench *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bytes_of(&b->stored) + bytes_of(&b->wq) + 2 * bytes_of(&b->a) +
               bytes_of(&b->scales) + bytes_of(&b->zeros);
    return dev_fake_quant_weights(b->dev, &b->wq, &b->scales, &b->zeros, &p);
}

static enum err run_fake_quant_weights_bwd(struct bench *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bytes_of(&b->stored) + bytes_of(&b->dw) + 4 * bytes_of(&b->a);
    return dev_fake_quant_weights_bwd(b->dev, &b->da, &b->db, &b->dw, &p);
}

static enum err run_offset_step(struct bench *b)
{
    struct weight_quant p = weight_of(b);
    p.v = &b->v;
    b->bytes = bytes_of(&b->stored) + bytes_of(&b->dw) + 2 * bytes_of(&b->v) +
               bytes_of(&b->scales) + bytes_of(&b->zeros);
    return dev_offset_step(b->dev, &b->dw, &b->scales, &b->zeros, &p, 1e-3f);
}

static enum err run_fake_quant_stored(struct bench *b)
{
    const struct weight_quant p = weight_of(b);
    b->bytes = bytes_of(&b->stored) + bytes_of(&b->wq) + bytes_of(&b->scales) +
               bytes_of(&b->zeros);
    return dev_fake_quant_stored(b->dev, &b->wq, &b->scales, &b->zeros, &p);
}

static enum err run_fake_quant_kv(struct bench *b)
{
    const struct tensor k = heads(&b->qkv, b->arch.n_heads, b->arch.n_kv, b->arch.head_dim);
    const struct kv_quant p = {
        .x = &k, .s = &b->ks, .shift = &b->kd, .bits = BITS, .group_size = GROUP};
    b->bytes = 2 * bytes_of(&b->kq);
    return dev_fake_quant_kv(b->dev, &b->kq, &p);
}

static enum err run_fake_quant_kv_channel(struct bench *b)
{
    const struct tensor k = heads(&b->qkv, b->arch.n_heads, b->arch.n_kv, b->arch.head_dim);
    b->bytes = 2 * bytes_of(&b->kq);
    return dev_fake_quant_kv_channel(b->dev, &b->kq, &k, BITS, GROUP);
}

static enum err run_fake_quant_kv_bwd(struct bench *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor k = heads(&b->qkv, H, K, d), dk = heads(&b->dqkv, H, K, d);
    const struct kv_quant p = {
        .x = &k, .s = &b->ks, .shift = &b->kd, .bits = BITS, .group_size = GROUP};
    b->bytes = 4 * bytes_of(&b->kq);
    return dev_fake_quant_kv_bwd(
        b->dev,
        &(struct kv_grads){
            .dx = &dk, .dls = &b->dks, .dshift = &b->dkd, .accumulate = true},
        &b->dkq, &p);
}

/* Returns the flops of one product: half of T x T pairs, d multiplications and additions
 * each. */
static double attention_flops(const struct bench *b)
{
    return (double)b->T * (double)(b->T + 1) * (double)(b->arch.n_heads * b->arch.head_dim);
}

static enum err run_attn(struct bench *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor q = heads(&b->qkv, 0, H, d), k = heads(&b->qkv, H, K, d);
    const struct tensor v = heads(&b->qkv, H + K, K, d);
    const struct attn_mask mask = {.window = 1};
    b->flops = 2 * attention_flops(b);
    return dev_attn(b->dev, &b->o, &b->lse,
                    &(struct attn_inputs){.q = &q,
                                          .k = &k,
                                          .v = &v,
                                          .kq = &b->kq,
                                          .vq = &b->vq,
                                          .mask = &mask,
                                          .scale = 1 / sqrtf((float)d)});
}

static enum err run_attn_bwd(struct bench *b)
{
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const struct tensor q = heads(&b->qkv, 0, H, d), k = heads(&b->qkv, H, K, d);
    const struct tensor v = heads(&b->qkv, H + K, K, d);
    const struct tensor dq = heads(&b->dqkv, 0, H, d), dk = heads(&b->dqkv, H, K, d);
    const struct tensor dv = heads(&b->dqkv, H + K, K, d);
    const struct attn_mask mask = {.window = 1};
    b->flops = 5 * attention_flops(b);
    return dev_attn_bwd(
        b->dev,
        &(struct attn_grads){
            .dq = &dq, .dk = &dk, .dv = &dv, .dkq = &b->dkq, .dvq = &b->dvq},
        &b->d_o, &b->o, &b->lse,
        &(struct attn_inputs){.q = &q,
                              .k = &k,
                              .v = &v,
                              .kq = &b->kq,
                              .vq = &b->vq,
                              .mask = &mask,
                              .scale = 1 / sqrtf((float)d)});
}

static enum err run_gemm_nt(struct bench *b)
{
    b->flops = 4.0 * (double)b->T * (double)b->F * (double)b->D;
    return dev_gemm(b->dev, GEMM_NT, &b->gu, &b->y, &b->wact, false);
}

static enum err run_gemm_nn(struct bench *b)
{
    b->flops = 4.0 * (double)b->T * (double)b->F * (double)b->D;
    return dev_gemm(b->dev, GEMM_NN, &b->y, &b->gu, &b->wact, false);
}

/* The product of gemm_nn with a residual sum. */
static enum err run_gemm_add(struct bench *b)
{
    b->flops = 4.0 * (double)b->T * (double)b->F * (double)b->D;
    return dev_gemm_add(b->dev, GEMM_NN, &b->h, &b->x, &b->gu, &b->wact, &b->y);
}

static enum err run_gemm_tn(struct bench *b)
{
    b->flops = 4.0 * (double)b->T * (double)b->F * (double)b->D;
    return dev_gemm(b->dev, GEMM_TN, &b->dw, &b->gu, &b->y, false);
}

static enum err run_bias(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->dgu) + bytes_of(&b->bias);
    return dev_bias(b->dev, &b->dgu, &b->bias);
}

static enum err run_exp(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->ks);
    return dev_exp(b->dev, &b->dks, &b->kd);
}

static enum err run_cross_entropy(struct bench *b)
{
    b->bytes = bytes_of(&b->logits);
    return dev_cross_entropy(b->dev, &b->nll, &b->logits, &b->target);
}

static enum err run_loss(struct bench *b)
{
    double loss;
    b->bytes = 2 * bytes_of(&b->x) + bytes_of(&b->dy);
    const struct loss_inputs in = {.y = &b->x, .t = &b->dy, .kind = LOSS_MAE, .weight = 1};
    return dev_loss(b->dev, &loss, &b->h, &in);
}

static enum err run_finite(struct bench *b)
{
    bool finite;
    b->bytes = bytes_of(&b->dw);
    return dev_all_finite(b->dev, &finite, &b->dw);
}

static enum err run_adamw(struct bench *b)
{
    const struct adamw o = {1e-3f, 0.9f, 0.999f, 1e-8f, 0, 1};
    b->bytes = 7 * bytes_of(&b->a);
    return dev_adamw(b->dev, &b->a, &b->da, &b->b, &b->moment, &o);
}

static enum err run_minmax(struct bench *b)
{
    b->bytes = bytes_of(&b->kq);
    return dev_col_minmax(b->dev, &b->dks, &b->dkd, &b->kq);
}

static const struct {
    const char *name;
    enum err (*run)(struct bench *b);
} operations[] = {
    {"gemm_nt", run_gemm_nt},
    {"gemm_nn", run_gemm_nn},
    {"gemm_add", run_gemm_add},
    {"gemm_tn", run_gemm_tn},
    {"attn", run_attn},
    {"attn_bwd", run_attn_bwd},
    {"copy", run_copy},
    {"bias", run_bias},
    {"rmsnorm", run_rmsnorm},
    {"rmsnorm_bwd", run_rmsnorm_bwd},
    {"add", run_add},
    {"scale", run_scale},
    {"rope", run_rope},
    {"hadamard", run_hadamard},
    {"gate", run_silu},
    {"gate_bwd", run_silu_bwd},
    {"fake_quant_weights", run_fake_quant_weights},
    {"fake_quant_stored", run_fake_quant_stored},
    {"fake_quant_weights_bwd", run_fake_quant_weights_bwd},
    {"offset_step", run_offset_step},
    {"fake_quant_kv", run_fake_quant_kv},
    {"fake_quant_kv_channel", run_fake_quant_kv_channel},
    {"fake_quant_kv_bwd", run_fake_quant_kv_bwd},
    {"col_minmax", run_minmax},
    {"exp", run_exp},
    {"loss", run_loss},
    {"adamw", run_adamw},
    {"all_finite", run_finite},
    {"cross_entropy", run_cross_entropy},
};

struct timing {
    double median, best;
};

/* *seconds: of one operation, when n of them run before a wait. */
static enum err repeat(double *seconds, struct bench *b, enum err (*run)(struct bench *b),
                       int n)
{
    const double begin = clock_s();
    for (int i = 0; i < n; i++)
        TRY(run(b));
    TRY(dev_sync(b->dev));
    const double took = (clock_s() - begin) / n;
    *seconds = took > 1e-9 ? took : 1e-9;
    return OK;
}

static enum err time_run(struct timing *out, struct bench *b,
                         enum err (*run)(struct bench *b))
{
    double took[MAX_RUNS], once;
    int n = 0;
    b->bytes = b->flops = 0;
    TRY(repeat(&once, b, run, 1));
    TRY(repeat(&once, b, run, 1));
    const double wanted = REPEAT_SECONDS / once;
    const int repeats = wanted < 1 ? 1 : wanted < MAX_REPEATS ? (int)wanted : MAX_REPEATS;
    const double start = clock_s();
    while (n < MAX_RUNS && (n < MIN_RUNS || clock_s() - start < RUN_SECONDS))
        TRY(repeat(&took[n++], b, run, repeats));
    out->median = bench_median(took, n);
    out->best = took[0]; /* sorted above */
    return OK;
}

static enum err run_big_copy(struct bench *b)
{
    b->bytes = 2 * bytes_of(&b->da);
    return dev_copy(b->dev, &b->db, &b->da);
}

/* Measures the limits. They are the fastest of several runs, while operations report their
 * median. A plain copy larger than caches gives bytes read and written per second. */
static enum err measure_copy(struct bench *b)
{
    enum err err = OK;
    struct timing t;
    TRY_OUT(bench_tensor(&b->da, b->dev, DT_F32, COPY_BYTES >> 16, 1 << 14));
    TRY_OUT(bench_tensor(&b->db, b->dev, DT_F32, COPY_BYTES >> 16, 1 << 14));
    TRY_OUT(time_run(&t, b, run_big_copy));
    b->copy_bps = b->bytes / t.best;
out:
    dev_free(b->dev, b->da.data);
    dev_free(b->dev, b->db.data);
    b->da = b->db = (struct tensor){0};
    return err;
}

static enum err run_cube(struct bench *b)
{
    const double n = (double)b->y.dim[0];
    b->flops = 2 * n * n * n;
    return dev_gemm(b->dev, GEMM_NT, &b->y, &b->qkv, &b->dqkv, false);
}

/* Measures the product of large square matrices. */
static enum err measure_gemm(struct bench *b)
{
    struct tensor *const cube[] = {&b->y, &b->qkv, &b->dqkv};
    struct timing t;
    uint64_t free_bytes, total;
    enum err err = OK;
    const int64_t n = dev_memory(b->dev, &free_bytes, &total) ? CUBE_GPU : CUBE;
    for (size_t i = 0; i < ARRAY_LEN(cube); i++)
        TRY_OUT(bench_tensor(cube[i], b->dev, b->act, n, n));
    TRY_OUT(time_run(&t, b, run_cube));
    b->gemm_flops = b->flops / t.best;
out:
    for (size_t i = 0; i < ARRAY_LEN(cube); i++) {
        dev_free(b->dev, cube[i]->data);
        *cube[i] = (struct tensor){0};
    }
    return err;
}

/* Makes the operands as matrices of the types and values that the operations accept. */
static enum err arrange(struct bench *b)
{
    const int64_t d = b->arch.head_dim;
    b->scales.dtype = DT_F16;
    b->zeros.dtype = DT_U8;
    struct tensor *const kv[] = {&b->kq, &b->vq, &b->dkq, &b->dvq};
    for (size_t i = 0; i < ARRAY_LEN(kv); i++)
        *kv[i] = tensor_heads(*kv[i], b->arch.n_kv);
    b->o = tensor_heads(b->o, b->arch.n_heads);
    b->d_o = tensor_heads(b->d_o, b->arch.n_heads);
    b->target.dtype = DT_I32;
    TRY(dev_zero(b->dev, b->target.data, (size_t)bytes_of(&b->target)));
    /* a rotation by angle zero, which can be repeated */
    const struct tensor cos = tensor_1d(b->cos.data, DT_F32, b->T * d / 2);
    TRY(dev_zero(b->dev, b->cos.data, (size_t)bytes_of(&b->cos)));
    TRY(dev_zero(b->dev, b->sin.data, (size_t)bytes_of(&b->sin)));
    TRY(dev_exp(b->dev, &cos, &cos));
    /* second moments and smoothing factors are positive */
    TRY(dev_exp(b->dev, &b->moment, &b->moment));
    return dev_exp(b->dev, &b->ks, &b->ks);
}

/* Lists every buffer with its type, rows and columns. */
static enum err fill(struct bench *b)
{
    const int64_t T = b->T, D = b->D, F = b->F, G = b->G, act = b->act;
    const int64_t H = b->arch.n_heads, K = b->arch.n_kv, d = b->arch.head_dim;
    const int64_t R = T < LOGIT_ROWS ? T : LOGIT_ROWS;
    const struct {
        struct tensor *t;
        int64_t type, rows, cols;
    } wanted[] = {
        {&b->x, DT_F32, T, D},
        {&b->h, DT_F32, T, D},
        {&b->y, act, T, D},
        {&b->dy, act, T, D},
        {&b->s, DT_F32, 1, T},
        {&b->gain, DT_F32, 1, D},
        {&b->gu, act, T, 2 * F},
        {&b->dgu, act, T, 2 * F},
        {&b->m, act, T, F},
        {&b->dm, act, T, F},
        {&b->w, DT_F32, 2 * F, D},
        {&b->stored, BENCH_STORED, 2 * F, D},
        {&b->dw, DT_F32, 2 * F, D},
        {&b->v, DT_F32, 2 * F, D},
        {&b->wq, act, 2 * F, D},
        {&b->wact, act, 2 * F, D},
        {&b->scales, DT_BF16, 2 * F, G},
        {&b->zeros, DT_BF16, 2 * F, G},
        {&b->a, DT_F32, 2 * F, G},
        {&b->b, DT_F32, 2 * F, G},
        {&b->da, DT_F32, 2 * F, G},
        {&b->db, DT_F32, 2 * F, G},
        {&b->moment, DT_F32, 2 * F, G},
        {&b->qkv, act, T, (H + 2 * K) * d},
        {&b->dqkv, act, T, (H + 2 * K) * d},
        {&b->kq, act, T, K * d},
        {&b->vq, act, T, K * d},
        {&b->dkq, act, T, K * d},
        {&b->dvq, act, T, K * d},
        {&b->o, act, T, H * d},
        {&b->d_o, act, T, H * d},
        {&b->lse, DT_F32, H, T},
        {&b->cos, DT_F32, T, d / 2},
        {&b->sin, DT_F32, T, d / 2},
        {&b->ks, DT_F32, 1, K * d},
        {&b->kd, DT_F32, 1, K * d},
        {&b->dks, DT_F32, 1, K * d},
        {&b->dkd, DT_F32, 1, K * d},
        {&b->bias, DT_F32, 1, 2 * F},
        {&b->logits, act, R, b->arch.vocab},
        {&b->nll, DT_F32, 1, R},
        {&b->target, DT_F32, 1, R},
    };
    for (size_t i = 0; i < ARRAY_LEN(wanted); i++)
        TRY(bench_tensor(wanted[i].t, b->dev, (enum dtype)wanted[i].type, wanted[i].rows,
                         wanted[i].cols));
    return arrange(b);
}

static void release(struct bench *b)
{
    struct tensor *const all[] = {
        &b->x,    &b->h,      &b->y,      &b->dy,  &b->s,      &b->gain, &b->gu,
        &b->dgu,  &b->moment, &b->m,      &b->dm,  &b->w,      &b->dw,   &b->wq,
        &b->wact, &b->scales, &b->zeros,  &b->a,   &b->b,      &b->da,   &b->db,
        &b->qkv,  &b->dqkv,   &b->kq,     &b->vq,  &b->dkq,    &b->dvq,  &b->o,
        &b->d_o,  &b->lse,    &b->cos,    &b->sin, &b->ks,     &b->kd,   &b->dks,
        &b->dkd,  &b->bias,   &b->logits, &b->nll, &b->target, &b->v,    &b->stored};
    for (size_t i = 0; b->dev && i < ARRAY_LEN(all); i++)
        dev_free(b->dev, all[i]->data);
    dev_close(&b->dev);
}

static void print_operation(const struct bench *b, const char *name, double s)
{
    const bool moves = b->flops == 0;
    const double rate = (moves ? b->bytes : b->flops) / s;
    printf("%-14s %10.3f ms  %8.1f %-7s  %5.1f %% of %s\n", name, s * 1e3, rate * 1e-9,
           moves ? "GB/s" : "GFLOP/s", 100 * rate / (moves ? b->copy_bps : b->gemm_flops),
           moves ? "a copy" : "gemm");
}

static json_t *operation_json(const struct bench *b, const char *name, double s)
{
    const double floor = b->bytes / b->copy_bps + b->flops / b->gemm_flops;
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "op", name, "seconds", s, "bytes",
                     b->bytes, "flops", b->flops, "floor_s", floor, "share", floor / s);
}

static enum err measure(struct bench *b, json_t *ops)
{
    for (size_t i = 0; i < ARRAY_LEN(operations); i++) {
        struct timing t;
        TRY(time_run(&t, b, operations[i].run));
        if (ops)
            json_array_append_new(ops, operation_json(b, operations[i].name, t.median));
        else
            print_operation(b, operations[i].name, t.median);
    }
    return OK;
}

static enum err report(struct bench *b)
{
    if (!b->args->json) {
        printf("%s\n%s, %lld tokens, %s; copy %.1f GB/s (read and written), gemm %.1f "
               "GFLOP/s\n\n",
               dev_about(b->dev), b->args->shape, (long long)b->T, dtype_name(b->act),
               b->copy_bps * 1e-9, b->gemm_flops * 1e-9);
        return measure(b, NULL);
    }
    json_t *ops = json_array();
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:s, s:f, s:f, s:o}", "device", dev_about(b->dev),
                  "shape", b->args->shape, "seqlen", (json_int_t)b->T, "compute",
                  dtype_name(b->act), "copy_bytes_per_s", b->copy_bps, "gemm_flops_per_s",
                  b->gemm_flops, "operations", ops);
    FAIL_IF(!o, ERR_MEMORY, "no memory for the report");
    enum err err = measure(b, ops);
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

enum err bench_kernels(struct args *a)
{
    struct bench b = {.args = a};
    enum err err = OK;
    TRY_OUT(arch_of_shape(&b.arch, a->shape));
    TRY_OUT(bench_open(&b.dev, &b.act, a->device, (int)a->threads, a->compute));
    b.T = a->seqlen;
    b.D = b.arch.d_model;
    b.F = b.arch.d_ff;
    b.G = (b.D + GROUP - 1) / GROUP;
    TRY_OUT(measure_copy(&b));
    TRY_OUT(measure_gemm(&b));
    TRY_OUT(fill(&b));
    TRY_OUT(report(&b));
out:
    release(&b);
    return err;
}
