/* SPDX-License-Identifier: MIT
 *
 * A deliberate race: two threads of a pool add to a plain number. A working thread
 * sanitizer ends this program with its own status, 66. */
#include "kernels/base/pool.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

struct race {
    atomic_int here, turn;
    long sum;
};

/* Both threads must be here, and then they add one after the other: the sanitizer overlooks
 * two accesses at the very same time. Relaxed, because waiting must not order the
 * additions. */
static void add(void *ctx, int64_t chunk, int thread)
{
    struct race *r = ctx;
    atomic_fetch_add_explicit(&r->here, 1, memory_order_relaxed);
    while (atomic_load_explicit(&r->here, memory_order_relaxed) < 2 ||
           atomic_load_explicit(&r->turn, memory_order_relaxed) < chunk)
        sched_yield();
    r->sum += chunk + 1;
    atomic_fetch_add_explicit(&r->turn, 1, memory_order_relaxed);
}

int main(void)
{
    struct race r = {0};
    struct pool *p = NULL;
    if (pool_open(&p, 2))
        return 1;
    pool_run(p, 2, add, &r);
    pool_close(&p);
    printf("sum %ld\n", r.sum);
    return 0;
}
