/* SPDX-License-Identifier: MIT
 *
 * Every operation of a device on operands of a model's shapes, with the bytes or flops that it
 * takes at least (docs/performance.md). */
#ifndef WKVQ_BENCH_OPS_H
#define WKVQ_BENCH_OPS_H

#include "tools/bench/bench_data.h"

#define BENCH_GROUP 128
/* Rows that dev_gather() adds up for a token. */
#define BENCH_EXPERTS 2

struct bench_ops {
    struct dev *dev; /* borrowed */
    enum dtype act;
    struct arch arch;
    int64_t T;
    struct tensor x, h, y, dy, s, gain, dgain; /* [T,D] F32, F32, act, act; [T]; [D] */
    struct tensor gu, dgu, m, dm;              /* [T,2F], [T,2F], [T,F], [T,F] act */
    struct tensor w, dw, v, wq, wact;          /* [2F,D] F32, F32, F32, act, act */
    struct tensor stored;                      /* [2F,D] as a checkpoint has weights */
    struct tensor codes, offsets;              /* U8 [2F,D/2], two a byte; F16 [2F,D] */
    struct tensor scales, zeros, moved; /* [2F,G] F16, U8, F16; G: groups of a row of w */
    struct tensor a, b, da, db;         /* [2F,G] */
    struct tensor moment;               /* second operand of a [2F,G] operation */
    struct tensor qkv, dqkv, kq, vq, dkq, dvq, o, d_o, lse;
    struct tensor cos, sin, ks, kd, dks, dkd; /* [T,d/2]; [K d] */
    struct tensor bias, logits, nll, target;  /* [2F]; [R,V] act, [R], [R] I32 */
    struct tensor student, teacher;           /* [R,V] */
    struct tensor index, share, dshare;       /* [T,BENCH_EXPERTS] I32, F32, F32 */
    double bytes, flops;                      /* of the last operation; one of them is 0 */
    void *memory[64];
    int n_memory;
};

struct bench_op {
    const char *name; /* NULL ends a table */
    enum err (*run)(struct bench_ops *b);
};
extern const struct bench_op bench_ops_model[], bench_ops_quant[], bench_ops_train[];
/* Only for a device that dev_engine_check() accepts. */
extern const struct bench_op bench_ops_engine[];

/* Makes the operands, from dev, act, arch and T. On failure too the caller closes b. */
enum err bench_ops_open(struct bench_ops *b);
void bench_ops_close(struct bench_ops *b); /* accepts a zeroed one */

double bench_bytes(const struct tensor *t);
/* n heads of d channels from a matrix of heads. */
struct tensor bench_heads(const struct tensor *x, int64_t first, int64_t n, int64_t d);

#endif
