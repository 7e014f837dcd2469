/* SPDX-License-Identifier: MIT */
#include "tools/bench/bench_ranks.h"

#include "tools/cli/launch.h"

#include <stdio.h>

enum err bench_join(const struct ranks **out, int64_t *threads, int64_t *here)
{
    int64_t share;
    *here = 1;
    TRY(mpi_open(out));
    if (!*out)
        return OK;
    mpi_share_machine(here, &share);
    if (*threads < 0)
        *threads = share;
    mpi_measure();
    return OK;
}

void bench_gather_ranks(struct bench_rank *all, const struct ranks *r,
                        const struct bench_rank *mine)
{
    r->gather(all, mine, sizeof(*mine));
}

static double compute_s(const struct bench_rank *r)
{
    return r->step_s - r->cost.wait_s - r->cost.transfer_s;
}

void bench_print_ranks(const struct bench_rank *all, int n)
{
    printf("\n  %4s %14s %14s %14s %14s\n", "rank", "compute", "wait", "transfer", "sent");
    for (int i = 0; i < n; i++)
        printf("  %4d %11.2f ms %11.2f ms %11.2f ms %11.2f MB\n", i,
               1e3 * compute_s(&all[i]), 1e3 * all[i].cost.wait_s,
               1e3 * all[i].cost.transfer_s, 1e-6 * all[i].cost.sent_bytes);
}

json_t *bench_ranks_json(const struct bench_rank *all, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(
            list, json_pack("{s:f, s:f, s:f, s:f}", "compute_s", compute_s(&all[i]),
                            "wait_s", all[i].cost.wait_s, "transfer_s",
                            all[i].cost.transfer_s, "sent_bytes", all[i].cost.sent_bytes));
    return list;
}
