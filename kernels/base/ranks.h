/* SPDX-License-Identifier: MIT
 *
 * Processes that work on one job together, as under mpirun. All functions are collective:
 * every rank calls them in the same order and with the same sizes, and waits for the others.
 * They have no errors, because a failed transport ends all processes with its own message.
 * A pointer to struct ranks that is NULL stands for one process alone. */
#ifndef WKVQ_RANKS_H
#define WKVQ_RANKS_H

#include <stddef.h>

#define RANKS_MAX 1024

/* What the functions of struct ranks have cost this process so far. */
struct ranks_cost {
    double wait_s;     /* until the other ranks had come, if that is measured */
    double transfer_s; /* else with the wait */
    double sent_bytes; /* to other ranks */
};

struct ranks {
    int rank, size; /* 0 <= rank < size, 1 < size <= RANKS_MAX */
    /* data [bytes] of rank root goes to all. */
    void (*broadcast)(void *data, size_t bytes, int root);
    /* all [size][bytes] = mine [bytes] of every rank. */
    void (*gather)(void *all, const void *mine, size_t bytes);
    /* Sends from_n[q] floats to every rank q, which stand one after another in from, and
     * receives to_n[q] from it, one after another in to. */
    void (*exchange)(float *to, const int *to_n, const float *from, const int *from_n);
    /* all = mine of every rank, one after another; rank q has n[q] floats. */
    void (*join)(float *all, const int *n, const float *mine);
    void (*cost)(struct ranks_cost *out); /* may be NULL; not collective */
};

#endif
