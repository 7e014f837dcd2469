/* SPDX-License-Identifier: MIT
 *
 * A step on several ranks: what it costs each of them. */
#ifndef WKVQ_BENCH_RANKS_H
#define WKVQ_BENCH_RANKS_H

#include "data/json.h"
#include "kernels/base/error.h"
#include "kernels/base/ranks.h"

#include <stdint.h>

/* Joins the processes that mpirun has started, and measures their transfers from now on. *out =
 * NULL: this one alone. *threads, if it is negative, = this process's share of the machine. *here =
 * processes on it. ERR_SUPPORT: this build has no MPI. */
enum err bench_join(const struct ranks **out, int64_t *threads, int64_t *here);

struct bench_rank {
    double step_s;
    struct ranks_cost cost; /* of the step */
};
/* all [size] = mine of every rank. Collective. */
void bench_gather_ranks(struct bench_rank *all, const struct ranks *r,
                        const struct bench_rank *mine);
/* Prints a line for each of n ranks. */
void bench_print_ranks(const struct bench_rank *all, int n);
/* Makes an array with an object for each of n ranks; a new reference. */
json_t *bench_ranks_json(const struct bench_rank *all, int n);

#endif
