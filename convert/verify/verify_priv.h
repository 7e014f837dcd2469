/* SPDX-License-Identifier: MIT
 *
 * Inside verification: what its parts share. Private to convert/verify. */
#ifndef WKVQ_VERIFY_PRIV_H
#define WKVQ_VERIFY_PRIV_H

#include "convert/verify/verify.h"
#include "kernels/base/pool.h"

struct verify {
    const struct verify_settings *s; /* defaults filled in */
    struct verify_report *r;
    struct artifact *a;
    const struct arch *arch;
    struct hf_model *model; /* NULL without --against */
    struct pool *pool;
    /* Block i's scales as calibration has them, or as the artifact has. */
    struct block_quant current;
    int64_t current_i; /* -1: none */
};

/* Scales, zeros, s and delta of block i: the state's, else those of round to nearest where
 * that is the method, else the artifact's own. Borrowed until the next call. */
enum err verify_block(struct verify *v, int64_t i, const struct block_quant **q);
/* Remember what differs first, for the report. */
void verify_differs(struct verify *v, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The parts. Each sets its outcome; errors are about reaching one. */
enum err verify_structure(struct verify *v);
enum err verify_weights(struct verify *v);
enum err verify_logits(struct verify *v);
enum err verify_perplexity(struct verify *v);

#endif
