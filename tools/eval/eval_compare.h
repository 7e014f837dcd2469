/* SPDX-License-Identifier: MIT
 *
 * Compares two models on the same windows: the difference of their losses, and of their
 * predictions. */
#ifndef WKVQ_EVAL_COMPARE_H
#define WKVQ_EVAL_COMPARE_H

#include "tools/eval/eval.h"
#include "tools/eval/statistics.h"

/* Estimates are means over windows, with standard errors. */
struct compare_result {
    struct estimate nll[2], difference; /* nats; the first model minus the second */
    struct estimate kl;                 /* KL(second || first), nats */
    struct estimate top1; /* share of tokens with the same most likely next token */
    int64_t tokens, windows;
    double seconds;
};

/* Sums of one row of logits of both models. */
struct compare_row {
    double nll[2], kl;
    bool same; /* among equal logits the first counts as most likely */
};
void compare_row(struct compare_row *out, const float *a, const float *b, int64_t vocab,
                 int32_t target);

/* Compares both on a->windows windows (0: all) of a->job->ids. Both evals must have the
 * same ctx. */
enum err eval_compare(struct compare_result *out, struct eval *a, struct eval *b);

#endif
