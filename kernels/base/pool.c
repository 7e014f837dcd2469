/* SPDX-License-Identifier: MIT */
#include "kernels/base/pool.h"

#include "kernels/base/mem.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

/* Pauses a waiting thread makes before it sleeps: about 20 us, less than a wake-up costs.
 */
#define SPINS 2000

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t *thread;
    int threads, started;
    atomic_uint round; /* counts pool_run calls */
    atomic_int busy;   /* helpers still in this round */
    atomic_llong next; /* next chunk to hand out */
    int64_t chunks;
    void (*fn)(void *, int64_t, int);
    void *ctx;
    bool quit;
};

struct start {
    struct pool *pool;
    int index;
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
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

static void *helper_main(void *arg)
{
    struct start s = *(struct start *)arg;
    struct pool *p = s.pool;
    mem_free(arg);
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load(&p->round) == seen; i++)
            pause_cpu();
        pthread_mutex_lock(&p->lock);
        while (atomic_load(&p->round) == seen)
            pthread_cond_wait(&p->wake, &p->lock);
        seen = atomic_load(&p->round);
        const bool quit = p->quit;
        pthread_mutex_unlock(&p->lock);
        if (quit)
            return NULL;
        drain(p, s.index);
        if (atomic_fetch_sub(&p->busy, 1) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static int usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set))
        return 1;
    return CPU_COUNT(&set);
}

enum err pool_open(struct pool **out, int threads)
{
    enum err err = OK;
    struct pool *p = NULL;
    TRY(mem_calloc(&p, 1, sizeof(*p)));
    p->threads = threads > 0 ? threads : usable_cores();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    TRY_OUT(mem_calloc(&p->thread, (size_t)p->threads, sizeof(*p->thread)));
    for (int i = 1; i < p->threads; i++) {
        struct start *s = NULL;
        TRY_OUT(mem_alloc(&s, 1, sizeof(*s)));
        *s = (struct start){.pool = p, .index = i};
        if (pthread_create(&p->thread[i], NULL, helper_main, s)) {
            mem_free(s);
            FAIL_OUT(ERR_MEMORY, "cannot start thread %d of %d", i + 1, p->threads);
        }
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
    pthread_mutex_lock(&p->lock);
    p->quit = true;
    atomic_fetch_add(&p->round, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->thread[i], NULL);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    mem_free(p->thread);
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
    pthread_mutex_lock(&p->lock);
    p->fn = fn;
    p->ctx = ctx;
    p->chunks = chunks;
    atomic_store(&p->next, 0);
    atomic_store(&p->busy, p->threads - 1);
    atomic_fetch_add(&p->round, 1);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    drain(p, 0);
    for (int i = 0; i < SPINS && atomic_load(&p->busy); i++)
        pause_cpu();
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->busy))
        pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
