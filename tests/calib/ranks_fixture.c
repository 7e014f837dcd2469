/* SPDX-License-Identifier: MIT */
#include "tests/calib/ranks_fixture.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static pthread_barrier_t barrier;
static const void *shown[RANKS_MOST]; /* of each rank, between two barriers */
static const int *counts[RANKS_MOST];
static int n_ranks;
static _Thread_local int me;
static _Thread_local int64_t sent, received; /* bytes to, from other ranks */

static void meet(void)
{
    pthread_barrier_wait(&barrier);
}

static void broadcast(void *data, size_t bytes, int root)
{
    shown[me] = data;
    meet();
    if (me != root) {
        memcpy(data, shown[root], bytes);
        received += (int64_t)bytes;
    }
    meet();
}

static void gather(void *all, const void *mine, size_t bytes)
{
    shown[me] = mine;
    meet();
    for (int q = 0; q < n_ranks; q++)
        memcpy((char *)all + (size_t)q * bytes, shown[q], bytes);
    meet();
}

static void exchange(float *to, const int *to_n, const float *from, const int *from_n)
{
    shown[me] = from;
    counts[me] = from_n;
    meet();
    for (int q = 0; q < n_ranks; q++) {
        const float *at = shown[q];
        for (int k = 0; k < me; k++)
            at += counts[q][k];
        assert_int_equal(to_n[q], counts[q][me]);
        memcpy(to, at, (size_t)to_n[q] * sizeof(*to));
        to += to_n[q];
        sent += q == me ? 0 : (int64_t)from_n[q] * (int64_t)sizeof(*to);
    }
    meet();
}

static void join(float *all, const int *n, const float *mine)
{
    shown[me] = mine;
    meet();
    sent += (n_ranks - 1) * n[me] * (int64_t)sizeof(*all);
    for (int q = 0; q < n_ranks; q++) {
        memcpy(all, shown[q], (size_t)n[q] * sizeof(*all));
        all += n[q];
    }
    meet();
}

int64_t ranks_sent(void)
{
    return sent;
}

int64_t ranks_received(void)
{
    return received;
}

struct thread {
    pthread_t id;
    struct ranks ranks;
    void (*work)(void *ctx, const struct ranks *me);
    void *ctx;
};

static void *run_thread(void *arg)
{
    const struct thread *t = arg;
    me = t->ranks.rank;
    sent = received = 0;
    t->work(t->ctx, t->ranks.size > 1 ? &t->ranks : NULL);
    return NULL;
}

void ranks_run(int n, void (*work)(void *ctx, const struct ranks *me), void *const *ctx)
{
    struct thread t[RANKS_MOST];
    n_ranks = n;
    pthread_barrier_init(&barrier, NULL, (unsigned)n);
    for (int i = 0; i < n; i++) {
        t[i] = (struct thread){.ranks = {i, n, broadcast, gather, exchange, join},
                               .work = work,
                               .ctx = ctx[i]};
        assert_int_equal(pthread_create(&t[i].id, NULL, run_thread, &t[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(t[i].id, NULL);
    pthread_barrier_destroy(&barrier);
}
