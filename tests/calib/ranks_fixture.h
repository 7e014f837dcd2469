/* SPDX-License-Identifier: MIT
 *
 * Ranks as threads, which exchange data in memory. */
#ifndef WKVQ_TESTS_RANKS_FIXTURE_H
#define WKVQ_TESTS_RANKS_FIXTURE_H

#include "kernels/base/ranks.h"

#include <stdint.h>

enum { RANKS_MOST = 4 };

/* Calls work(ctx[i], rank i) on n threads, and waits for all. The rank is NULL if n is 1. */
void ranks_run(int n, void (*work)(void *ctx, const struct ranks *me), void *const *ctx);
/* Returns the bytes that the calling rank has sent to others in exchange() and join(), and those
 * that it has received in broadcast(). */
int64_t ranks_sent(void);
int64_t ranks_received(void);

#endif
