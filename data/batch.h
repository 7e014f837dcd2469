/* SPDX-License-Identifier: MIT
 *
 * Windows of tokens: the random calibration segments of the literature, and evaluation
 * windows that do not overlap. All functions are thread-safe. */
#ifndef WKVQ_BATCH_H
#define WKVQ_BATCH_H

#include "kernels/base/error.h"
#include "kernels/base/rng.h"

#include <stddef.h>
#include <stdint.h>

/* One of the texts whose tokens stand one after another in the ids. */
struct batch_text {
    const char *name; /* for messages; borrowed */
    int64_t begin, n; /* its first token, and how many it has */
    double share;     /* of the windows, relative to the other texts; 0 or more, finite */
};

/* count [n_texts] = how many of n windows each text gives: n share / (sum of shares),
 * rounded so that the sum is n (largest remainder; ties: the earlier text). ERR_USAGE if
 * the shares do not sum to a positive finite value. */
enum err batch_shares(int64_t *count, int64_t n, const struct batch_text *text,
                      int n_texts);
/* What windows are drawn from. All is borrowed. */
struct batch_source {
    const struct batch_text *text; /* [n_texts] */
    int n_texts;
    /* [n_avoid] first tokens of windows, as long as those that are drawn, that no drawn
     * window may overlap: those of a refinement's guard */
    const int64_t *avoid;
    int64_t n_avoid;
};

/* Draws n windows of seqlen tokens that lie in one text each, and continues rng.
 *   offset [n]  the windows' first tokens, as indices in the ids
 *   from   [n]  the windows' texts, as indices in text; may be NULL
 * Each text gives as many as batch_shares() says. Texts take turns, so that any first
 * windows have the texts in about the same proportion. For each window in order, rng draws
 * randint(0, text.n - seqlen - 1), as GPTQ's recipe does for its only text after
 * random.seed(seed), and again while the window overlaps one to avoid. Windows may overlap
 * each other.
 * ERR_USAGE if a text that gives a window has no more than seqlen tokens, or too little
 * room beside the windows to avoid; the message names it, with both numbers. ERR_MEMORY.
 * rng is then unchanged. */
enum err batch_draw(int64_t *offset, int *from, int64_t n, int64_t seqlen,
                    const struct batch_source *source, struct mt19937 *rng);
/* Copies the windows to out [samples][seqlen]. */
void batch_gather(int32_t *out, const int32_t *ids, const int64_t *offset, int64_t samples,
                  int64_t seqlen);
/* Returns the number of whole windows of ctx tokens in n tokens: n / ctx. */
int64_t batch_windows(int64_t n, int64_t ctx);
/* Returns the CRC-32 of ids as little-endian int32. */
uint32_t batch_crc(const int32_t *ids, size_t n);

#endif
