/* SPDX-License-Identifier: MIT
 *
 * "Did you mean": the known word closest to a mistyped one. Pure functions. */
#ifndef WKVQ_NEAREST_H
#define WKVQ_NEAREST_H

#include <stddef.h>

/* Returns the edit distance (insert, delete, replace, swap of neighbours). Words longer
 * than 63 bytes are far from everything. */
int nearest_distance(const char *a, const char *b);

/* Best candidate so far; start from {0}. */
struct nearest {
    const char *word; /* borrowed; NULL if no candidate was close enough */
    int distance;
};
/* Keeps candidate if it is the closest so far and within about a third of word's length. */
void nearest_consider(struct nearest *n, const char *word, const char *candidate);

#endif
