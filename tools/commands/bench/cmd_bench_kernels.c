/* SPDX-License-Identifier: MIT
 *
 * `wkvq bench kernels`: every operation at a model's shapes, relative to the copy bandwidth
 * and the matrix product rate just measured on this machine. */
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/dev_engine.h"
#include "tools/bench/bench_ops.h"
#include "tools/commands/bench/cmd_bench.h"

#include <stdio.h>

/* Measurement runs after one for warm-up: until this many seconds have passed, within these
 * bounds on the number of runs. A run repeats the operation for this long before it waits,
 * so that the wait for a GPU does not count. */
#define RUN_SECONDS 0.2
#define MIN_RUNS 5
#define MAX_RUNS 201
#define REPEAT_SECONDS 0.002
#define MAX_REPEATS 1000
/* Bytes of a copy, read and written; larger than caches. */
#define COPY_BYTES (256 << 20)
/* The width of the square matrices whose product is the limit: on a GPU larger, because a
 * product of 2048 leaves parts of it idle. */
#define CUBE 2048
#define CUBE_GPU 8192

struct bench {
    const struct args *args;
    struct bench_ops ops;
    double copy_bps, gemm_flops; /* the measured limits */
};

struct timing {
    double median, best;
};

/* *seconds: of one operation, when n of them run before a wait. */
static enum err repeat(double *seconds, struct bench_ops *b,
                       enum err (*run)(struct bench_ops *b), int n)
{
    const double begin = clock_s();
    for (int i = 0; i < n; i++)
        TRY(run(b));
    TRY(dev_sync(b->dev));
    const double took = (clock_s() - begin) / n;
    *seconds = took > 1e-9 ? took : 1e-9;
    return OK;
}

static enum err time_run(struct timing *out, struct bench_ops *b,
                         enum err (*run)(struct bench_ops *b))
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

static enum err run_big_copy(struct bench_ops *b)
{
    b->bytes = 2 * bench_bytes(&b->da);
    return dev_copy(b->dev, &b->db, &b->da);
}

/* Measures the limits. They are the fastest of several runs, while operations report their
 * median. A plain copy larger than caches gives bytes read and written per second. */
static enum err measure_copy(double *bps, struct dev *d)
{
    enum err err = OK;
    struct bench_ops b = {.dev = d};
    struct timing t;
    TRY_OUT(bench_tensor(&b.da, d, DT_F32, COPY_BYTES >> 16, 1 << 14));
    TRY_OUT(bench_tensor(&b.db, d, DT_F32, COPY_BYTES >> 16, 1 << 14));
    TRY_OUT(time_run(&t, &b, run_big_copy));
    *bps = b.bytes / t.best;
out:
    dev_free(d, b.da.data);
    dev_free(d, b.db.data);
    return err;
}

static enum err run_cube(struct bench_ops *b)
{
    const double n = (double)b->y.dim[0];
    b->flops = 2 * n * n * n;
    return dev_gemm(b->dev, GEMM_NT, &b->y, &b->qkv, &b->dqkv, false);
}

/* Measures the product of large square matrices. */
static enum err measure_gemm(double *flops, struct dev *d, enum dtype act)
{
    struct bench_ops b = {.dev = d};
    struct tensor *const cube[] = {&b.y, &b.qkv, &b.dqkv};
    struct timing t;
    uint64_t free_bytes, total;
    enum err err = OK;
    const int64_t n = dev_memory(d, &free_bytes, &total) ? CUBE_GPU : CUBE;
    for (size_t i = 0; i < ARRAY_LEN(cube); i++)
        TRY_OUT(bench_tensor(cube[i], d, act, n, n));
    TRY_OUT(time_run(&t, &b, run_cube));
    *flops = b.flops / t.best;
out:
    for (size_t i = 0; i < ARRAY_LEN(cube); i++)
        dev_free(d, cube[i]->data);
    return err;
}

static void print_operation(const struct bench *b, const char *name, double s)
{
    const bool moves = b->ops.flops == 0;
    const double rate = (moves ? b->ops.bytes : b->ops.flops) / s;
    printf("%-25s %10.3f ms  %8.1f %-7s  %5.1f %% of %s\n", name, s * 1e3, rate * 1e-9,
           moves ? "GB/s" : "GFLOP/s", 100 * rate / (moves ? b->copy_bps : b->gemm_flops),
           moves ? "a copy" : "gemm");
}

static json_t *operation_json(const struct bench *b, const char *name, double s)
{
    const double floor = b->ops.bytes / b->copy_bps + b->ops.flops / b->gemm_flops;
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "op", name, "seconds", s, "bytes",
                     b->ops.bytes, "flops", b->ops.flops, "floor_s", floor, "share",
                     floor / s);
}

static enum err measure(struct bench *b, json_t *ops, const struct bench_op *op)
{
    for (; op->name; op++) {
        struct timing t;
        TRY(time_run(&t, &b->ops, op->run));
        if (ops)
            json_array_append_new(ops, operation_json(b, op->name, t.median));
        else
            print_operation(b, op->name, t.median);
    }
    return OK;
}

/* ops NULL: they are printed. */
static enum err measure_all(struct bench *b, json_t *ops)
{
    TRY(measure(b, ops, bench_ops_model));
    TRY(measure(b, ops, bench_ops_quant));
    TRY(measure(b, ops, bench_ops_train));
    if (!dev_engine_check(b->ops.dev, TARGET_Q4_0))
        return measure(b, ops, bench_ops_engine);
    err_clear();
    return OK;
}

static enum err report(struct bench *b)
{
    if (!b->args->json) {
        printf("%s\n%s, %lld tokens, %s; copy %.1f GB/s (read and written), gemm %.1f "
               "GFLOP/s\n\n",
               dev_about(b->ops.dev), b->args->shape, (long long)b->ops.T,
               dtype_name(b->ops.act), b->copy_bps * 1e-9, b->gemm_flops * 1e-9);
        return measure_all(b, NULL);
    }
    json_t *ops = json_array();
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:s, s:f, s:f, s:o}", "device", dev_about(b->ops.dev),
                  "shape", b->args->shape, "seqlen", (json_int_t)b->ops.T, "compute",
                  dtype_name(b->ops.act), "copy_bytes_per_s", b->copy_bps,
                  "gemm_flops_per_s", b->gemm_flops, "operations", ops);
    FAIL_IF(!o, ERR_MEMORY, "no memory for the report");
    enum err err = measure_all(b, ops);
    if (!err)
        err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

enum err bench_kernels(struct args *a)
{
    struct bench b = {.args = a};
    enum err err = OK;
    TRY_OUT(arch_of_shape(&b.ops.arch, a->shape));
    TRY_OUT(bench_open(&b.ops.dev, &b.ops.act, a->device, (int)a->threads, a->compute));
    b.ops.T = a->seqlen;
    TRY_OUT(measure_copy(&b.copy_bps, b.ops.dev));
    TRY_OUT(measure_gemm(&b.gemm_flops, b.ops.dev, b.ops.act));
    TRY_OUT(bench_ops_open(&b.ops));
    TRY_OUT(report(&b));
out:
    bench_ops_close(&b.ops);
    dev_close(&b.ops.dev);
    return err;
}
