/* SPDX-License-Identifier: MIT
 *
 * Two models on the same windows: how far apart their losses are, and their predictions. */
#ifndef WKVQ_EVAL_COMPARE_H
#define WKVQ_EVAL_COMPARE_H

#include "tools/eval/eval.h"
#include "tools/eval/statistics.h"

/* Estimates are means over windows. */
struct compare_result {
    struct estimate nll[2], difference; /* nats; of the first minus the second */
    struct estimate kl;                 /* KL(second || first), nats */
    struct estimate top1; /* share of tokens with the same likeliest next one */
    int64_t tokens, windows;
    double seconds;
};

/* What one row of logits of both adds up to. */
struct compare_row {
    double nll[2], kl;
    bool same; /* the first among equals counts as likeliest */
};
void compare_row(struct compare_row *out, const float *a, const float *b, int64_t vocab,
                 int32_t target);

/* Over a->windows windows (0: all) of a->job->ids. Both evals have the same ctx. */
enum err eval_compare(struct compare_result *out, struct eval *a, struct eval *b);

#endif
