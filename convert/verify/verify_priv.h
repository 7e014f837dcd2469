/* SPDX-License-Identifier: MIT
 *
 * What the parts of verification share. Private to convert/verify. */
#ifndef WKVQ_VERIFY_PRIV_H
#define WKVQ_VERIFY_PRIV_H

#include "calib/model/ends.h"
#include "convert/verify/verify.h"
#include "kernels/base/pool.h"

struct verify {
    const struct verify_settings *s; /* defaults filled in */
    struct verify_report *r;
    struct artifact *a;
    const struct arch *arch;
    struct hf_model *model;  /* the source checkpoint; NULL if none was given */
    struct ends_source ends; /* of model, as the simulation has it */
    struct pool *pool;
    struct block_quant current; /* scales of block current_i, see verify_block */
    int64_t current_i;          /* -1: none */
};

/* *q = scales, zeros, s and delta of block i: from the state if there is one, recomputed if
 * the method is round to nearest, else the artifact's own. Borrowed until the next call. */
enum err verify_block(struct verify *v, int64_t i, const struct block_quant **q);
/* Records the sentence as the report's first difference, unless it has one. */
void verify_differs(struct verify *v, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The parts. Each sets its outcome; on error the outcome is not determined. */
enum err verify_structure(struct verify *v);
enum err verify_weights(struct verify *v);
/* Of the weights part, what needs no checkpoint: scales, zeros, chosen codes, refined gains, and
 * the cache's s and delta are those of the state. Fails the part or leaves its outcome. */
enum err verify_state(struct verify *v);
enum err verify_logits(struct verify *v);
enum err verify_perplexity(struct verify *v);

#endif
