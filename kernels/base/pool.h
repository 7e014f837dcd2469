/* SPDX-License-Identifier: MIT
 *
 * A persistent pool of pthreads. Work consists of numbered chunks whose size does not
 * depend on the number of threads, so a result that is summed per chunk does not depend
 * on it either. */
#ifndef WKVQ_POOL_H
#define WKVQ_POOL_H

#include "kernels/base/error.h"

#include <stdint.h>

struct pool; /* opaque; one thread at a time may call pool_run() */

/* threads includes the caller; 0: as many as cpus_available() says. ERR_MEMORY. */
enum err pool_open(struct pool **out, int threads);
void pool_close(struct pool **p);
int pool_threads(const struct pool *p);

/* Calls fn(ctx, chunk, thread) once for every chunk in [0, chunks), and returns when all
 * are done. thread is in [0, pool_threads), and no two running calls have the same.
 * Chunks are handed out dynamically. fn must not call pool_run(). p NULL: all run in this
 * thread. */
void pool_run(struct pool *p, int64_t chunks,
              void (*fn)(void *ctx, int64_t chunk, int thread), void *ctx);

#endif
