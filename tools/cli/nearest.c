/* SPDX-License-Identifier: MIT */
#include "tools/cli/nearest.h"

#include <stdint.h>
#include <string.h>

#define WORD_MAX 64

static int min3(int a, int b, int c)
{
    const int ab = a < b ? a : b;
    return ab < c ? ab : c;
}

int nearest_distance(const char *a, const char *b)
{
    const size_t n = strlen(a), m = strlen(b);
    int d[3][WORD_MAX] = {0};
    if (n >= WORD_MAX || m >= WORD_MAX)
        return WORD_MAX;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (int)j;
    /* Three rolling rows, because a swap of neighbours looks two rows back. */
    for (size_t i = 1; i <= n; i++) {
        int *row = d[i % 3];
        const int *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            const int differs = a[i - 1] != b[j - 1];
            row[j] = min3(up[j] + 1, row[j - 1] + 1, up[j - 1] + differs);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min3(row[j], up2[j - 2] + 1, row[j]);
        }
    }
    return d[n % 3][m];
}

void nearest_consider(struct nearest *n, const char *word, const char *candidate)
{
    const int distance = nearest_distance(word, candidate);
    const int limit = 1 + (int)strlen(word) / 3;
    if (distance > limit || (n->word && distance >= n->distance))
        return;
    n->word = candidate;
    n->distance = distance;
}
