/* SPDX-License-Identifier: MIT
 *
 * "Did you mean": the candidate closest to a mistyped word. */
#ifndef WKVQ_NEAREST_H
#define WKVQ_NEAREST_H

#include <stddef.h>

/* Edit distance (insert, delete, replace, swap of neighbours). Words longer than 63 bytes
 * count as far from everything. */
int nearest_distance(const char *a, const char *b);

/* The running best of a search; start from {0}. */
struct nearest {
    const char *word; /* borrowed; NULL when nothing was close enough to be offered */
    int distance;
};
/* Consider candidate for word; it must be within about a third of the word's length. */
void nearest_consider(struct nearest *n, const char *word, const char *candidate);

#endif
