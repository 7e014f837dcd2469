/* SPDX-License-Identifier: MIT
 *
 * One block on a device, and what tests compare of it: gradients with finite differences, and the
 * cpu device with ref. */
#ifndef WKVQ_BLOCK_BENCH_H
#define WKVQ_BLOCK_BENCH_H

#include "calib/model/block.h"
#include "tests/model/model_fixture.h"

/* One block with everything it needs on a device. */
struct bench {
    struct dev *d;
    struct fixture f;
    int64_t T;
    enum dtype act;
    struct block_weights w;
    struct block_kv kv;
    bool quantized;
    struct block_acts acts;
    struct block_scratch *scratch;
    struct tensor cos, sin, x, out, dout;
    struct block_grads g;
};

/* An architecture of one layer. */
struct arch arch_of(int64_t heads, int64_t kv, int64_t d, int64_t D, int64_t F);
/* spec NULL: full precision. The same seed gives the same values on every device. */
void bench_open(struct bench *b, const char *device, struct arch a, int64_t T,
                enum dtype act, const struct kv_spec *spec);
void bench_close(struct bench *b);
/* b->out = the block of b->x. */
void forward(struct bench *b);

/* Checks the gradients of the block's input and weights on ref by finite differences. */
void check_slopes(struct arch a, int64_t T);
/* Fails unless tensors of two benches agree, in the Euclidean norm. */
void same(const char *what, struct bench *x, const struct tensor *tx, struct bench *y,
          const struct tensor *ty, double bound);
/* Checks forward and backward on cpu against ref: 8 bits, so that a code that differs by one
 * because its input rounds differently is a small change. */
void compare_devices(struct arch a, int64_t T, enum dtype act, const struct kv_spec *spec,
                     double bound);

#endif
