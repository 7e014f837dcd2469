/* SPDX-License-Identifier: MIT
 *
 * The pool: every chunk once, on a valid thread, round after round. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/base/pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#define CHUNKS 1000

struct work {
    atomic_int done[CHUNKS];
    atomic_bool bad_thread;
    int threads;
};

static void mark(void *ctx, int64_t chunk, int thread)
{
    struct work *w = ctx;
    atomic_fetch_add(&w->done[chunk], 1);
    if (thread < 0 || thread >= w->threads)
        atomic_store(&w->bad_thread, true);
}

static void run_rounds(struct pool *p, int threads)
{
    static struct work w;
    for (int round = 0; round < 200; round++) {
        const int64_t chunks = round * 37 % (CHUNKS + 1);
        memset(&w, 0, sizeof(w));
        w.threads = threads;
        pool_run(p, chunks, mark, &w);
        for (int64_t i = 0; i < CHUNKS; i++)
            assert_int_equal(atomic_load(&w.done[i]), i < chunks);
        assert_false(atomic_load(&w.bad_thread));
    }
}

static void every_chunk_once(void **state)
{
    for (int threads = 1; threads <= 5; threads += 2) {
        struct pool *p = NULL;
        assert_int_equal(pool_open(&p, threads), OK);
        assert_int_equal(pool_threads(p), threads);
        run_rounds(p, threads);
        pool_close(&p);
        assert_null(p);
    }
}

static void no_pool_is_one_thread(void **state)
{
    assert_int_equal(pool_threads(NULL), 1);
    run_rounds(NULL, 1);
    struct pool *none = NULL;
    pool_close(&none);
}

static void zero_is_all_cores(void **state)
{
    struct pool *p = NULL;
    assert_int_equal(pool_open(&p, 0), OK);
    assert_true(pool_threads(p) >= 1);
    run_rounds(p, pool_threads(p));
    pool_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_chunk_once),
        cmocka_unit_test(no_pool_is_one_thread),
        cmocka_unit_test(zero_is_all_cores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
