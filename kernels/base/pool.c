/* SPDX-License-Identifier: MIT
 *
 * The thread pool. pool_run() publishes a job and starts a new round; helpers and the
 * caller take chunk numbers from one atomic counter until none is left. A helper that
 * finds no new round pauses for a while and then sleeps, so that short jobs in a row need
 * no wake-up:
 *
 *   caller:  job, next = 0, busy = helpers, round++, wake sleepers, run chunks,
 *            wait until busy == 0
 *   helper:  wait for round to change, run chunks, busy--, wake the caller if it waits */
#include "kernels/base/pool.h"

#include "kernels/base/limits.h"
#include "kernels/base/mem.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

/* Pauses before a waiting thread sleeps: on x86-64 20 to 50 us, about the cost of a wake-up,
 * and less where a pause is shorter. A thread sets `sleeping` or `waiting` before it sleeps,
 * so that a round among threads that still spin needs no lock and no system call. */
#define SPINS 2000

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t *thread;
    struct start *start; /* [threads]; not the helpers' own, since a call of free would make
                            each reserve an arena of 64 MiB */
    int threads, started;
    atomic_uint round;   /* counts pool_run calls */
    atomic_int busy;     /* helpers still in this round */
    atomic_int sleeping; /* helpers that wait for `wake`, or are about to */
    atomic_bool waiting; /* the caller waits for `done`, or is about to */
    atomic_llong next;   /* next chunk to hand out */
    int64_t chunks;
    void (*fn)(void *, int64_t, int);
    void *ctx;
    bool quit;
};

struct start {
    struct pool *pool;
    int index;
};

/* Tells the core that its thread spins, so that it saves power and leaves its resources to a
 * thread beside it. */
static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void drain(struct pool *p, int thread)
{
    for (;;) {
        const int64_t chunk = atomic_fetch_add(&p->next, 1);
        if (chunk >= p->chunks)
            return;
        p->fn(p->ctx, chunk, thread);
    }
}

/* Returns the number of the round after `seen`. A helper counts itself as sleeping before
 * it looks at the round for the last time, and the caller looks at the count after it has
 * begun a round: one of them sees the other. */
static unsigned next_round(struct pool *p, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&p->round) != seen)
            return atomic_load(&p->round);
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleeping, 1);
    while (atomic_load(&p->round) == seen)
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleeping, 1);
    pthread_mutex_unlock(&p->lock);
    return atomic_load(&p->round);
}

static void begin_round(struct pool *p)
{
    atomic_fetch_add(&p->round, 1);
    if (!atomic_load(&p->sleeping))
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

/* Called by a helper that has no more chunks in this round. */
static void end_round(struct pool *p)
{
    if (atomic_fetch_sub(&p->busy, 1) != 1 || !atomic_load(&p->waiting))
        return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->lock);
}

static void await_helpers(struct pool *p)
{
    for (int i = 0; i < SPINS; i++) {
        if (!atomic_load(&p->busy))
            return;
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->busy))
        pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}

static void *helper_main(void *arg)
{
    const struct start s = *(const struct start *)arg;
    struct pool *p = s.pool;
    unsigned seen = 0;
    for (;;) {
        seen = next_round(p, seen);
        if (p->quit)
            return NULL;
        drain(p, s.index);
        end_round(p);
    }
}

enum err pool_open(struct pool **out, int threads)
{
    enum err err = OK;
    struct pool *p = NULL;
    TRY(mem_calloc(&p, 1, sizeof(*p)));
    p->threads = threads > 0 ? threads : cpus_available();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    TRY_OUT(mem_calloc(&p->thread, (size_t)p->threads, sizeof(*p->thread)));
    TRY_OUT(mem_calloc(&p->start, (size_t)p->threads, sizeof(*p->start)));
    for (int i = 1; i < p->threads; i++) {
        p->start[i] = (struct start){.pool = p, .index = i};
        const int failed = pthread_create(&p->thread[i], NULL, helper_main, &p->start[i]);
        if (failed)
            FAIL_OUT(ERR_MEMORY,
                     "cannot start thread %d of %d: %s; raise the limit of processes or of "
                     "memory, or use --threads %d",
                     i + 1, p->threads, strerror(failed), i);
        p->started = i;
    }
    *out = p;
    return OK;
out:
    pool_close(&p);
    return err;
}

void pool_close(struct pool **pp)
{
    struct pool *p = *pp;
    if (!p)
        return;
    p->quit = true;
    begin_round(p);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    mem_free(p->thread);
    mem_free(p->start);
    mem_free(p);
    *pp = NULL;
}

int pool_threads(const struct pool *p)
{
    return p ? p->threads : 1;
}

void pool_run(struct pool *p, int64_t chunks,
              void (*fn)(void *ctx, int64_t chunk, int thread), void *ctx)
{
    if (!p || p->threads == 1 || chunks <= 1) {
        for (int64_t i = 0; i < chunks; i++)
            fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->chunks = chunks;
    atomic_store(&p->next, 0);
    atomic_store(&p->busy, p->threads - 1);
    begin_round(p);
    drain(p, 0);
    await_helpers(p);
}
