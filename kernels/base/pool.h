/* SPDX-License-Identifier: MIT
 *
 * A persistent pthread pool. Work is cut into numbered chunks that do not depend on the
 * number of threads, so results that are reduced per chunk do not either. */
#ifndef WKVQ_POOL_H
#define WKVQ_POOL_H

#include "kernels/base/error.h"

#include <stdint.h>

struct pool; /* opaque; one caller at a time */

/* Threads including the caller: 0 = one per online core the process may use. */
enum err pool_open(struct pool **out, int threads);
void pool_close(struct pool **p);
int pool_threads(const struct pool *p);

/* Call fn(ctx, chunk, thread) once for every chunk in [0, chunks), thread in
 * [0, pool_threads). Chunks are handed out dynamically; each runs on exactly one thread.
 * The call returns when all are done. fn must not call pool_run. p NULL: all in this
 * thread. */
void pool_run(struct pool *p, int64_t chunks,
              void (*fn)(void *ctx, int64_t chunk, int thread), void *ctx);

#endif
