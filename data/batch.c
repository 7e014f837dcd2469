/* SPDX-License-Identifier: MIT */
#include "data/batch.h"

#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

static double share_sum(const struct batch_text *text, int n_texts)
{
    double sum = 0;
    for (int t = 0; t < n_texts; t++)
        sum += text[t].share;
    return sum;
}

/* Returns the text whose exact number of windows is furthest above its count. */
static int most_short(const int64_t *count, int64_t n, const struct batch_text *text,
                      int n_texts, double sum)
{
    int best = -1;
    double most = -1;
    for (int t = 0; t < n_texts; t++) {
        const double missing = (double)n * text[t].share / sum - (double)count[t];
        if (text[t].share > 0 && missing > most)
            most = missing, best = t;
    }
    return best;
}

enum err batch_shares(int64_t *count, int64_t n, const struct batch_text *text, int n_texts)
{
    const double sum = share_sum(text, n_texts);
    int64_t left = n;
    FAIL_IF(!(sum > 0) || !isfinite(sum), ERR_USAGE,
            "the shares of the %d texts sum to %g; want a positive sum", n_texts, sum);
    for (int t = 0; t < n_texts; t++) {
        count[t] = (int64_t)floor((double)n * text[t].share / sum);
        left -= count[t];
    }
    for (; left > 0; left--)
        count[most_short(count, n, text, n_texts, sum)]++;
    return OK;
}

/* Returns the text of window i: the one that is furthest behind its share of the first
 * i + 1 windows. used [n_texts] are its windows so far. */
static int whose_turn(const int64_t *count, const int64_t *used, int64_t i, int64_t n,
                      int n_texts)
{
    int best = -1;
    int64_t most = 0;
    for (int t = 0; t < n_texts; t++) {
        const int64_t behind = count[t] * (i + 1) - n * used[t];
        if (used[t] < count[t] && (best < 0 || behind > most))
            most = behind, best = t;
    }
    return best;
}

static enum err check_lengths(const int64_t *count, int64_t seqlen,
                              const struct batch_text *text, int n_texts)
{
    for (int t = 0; t < n_texts; t++)
        FAIL_IF(count[t] && text[t].n <= seqlen, ERR_USAGE,
                "%s has %" PRId64 " tokens, and windows of %" PRId64
                " need at least one more than their length; give more text or a smaller "
                "seqlen",
                text[t].name, text[t].n, seqlen);
    return OK;
}

/* Tries for one window; enough where a hundredth of the text has room. */
#define TRIES 1000

static bool overlaps(int64_t at, int64_t seqlen, const struct batch_source *s)
{
    for (int64_t i = 0; i < s->n_avoid; i++)
        if (at < s->avoid[i] + seqlen && s->avoid[i] < at + seqlen)
            return true;
    return false;
}

static enum err draw_one(int64_t *offset, const struct batch_text *text, int64_t seqlen,
                         const struct batch_source *s, struct mt19937 *rng)
{
    for (int tries = 0; tries < TRIES; tries++) {
        *offset = text->begin + mt_randint(rng, 0, text->n - seqlen - 1);
        if (!overlaps(*offset, seqlen, s))
            return OK;
    }
    FAIL(ERR_USAGE,
         "%s has %" PRId64 " tokens, too few for windows of %" PRId64
         " that overlap none of the %" PRId64 " guard windows; give more text, or a "
         "smaller refine.guard or refine.seqlen",
         text->name, text->n, seqlen, s->n_avoid);
}

static enum err draw_all(int64_t *offset, int *from, int64_t n, int64_t seqlen,
                         const struct batch_source *s, struct mt19937 *rng, int64_t *count)
{
    int64_t *const used = count + s->n_texts;
    TRY(batch_shares(count, n, s->text, s->n_texts));
    TRY(check_lengths(count, seqlen, s->text, s->n_texts));
    for (int64_t i = 0; i < n; i++) {
        const int t = whose_turn(count, used, i, n, s->n_texts);
        used[t]++;
        TRY(draw_one(&offset[i], &s->text[t], seqlen, s, rng));
        if (from)
            from[i] = t;
    }
    return OK;
}

enum err batch_draw(int64_t *offset, int *from, int64_t n, int64_t seqlen,
                    const struct batch_source *source, struct mt19937 *rng)
{
    struct mt19937 next = *rng;
    int64_t *count = NULL;
    FAIL_IF(n < 0 || seqlen < 1, ERR_USAGE,
            "samples is %" PRId64 " and seqlen %" PRId64 "; both must be positive", n,
            seqlen);
    TRY(mem_calloc(&count, 2 * (size_t)source->n_texts, sizeof(*count)));
    const enum err err = draw_all(offset, from, n, seqlen, source, &next, count);
    mem_free(count);
    if (!err)
        *rng = next;
    return err;
}

void batch_gather(int32_t *out, const int32_t *ids, const int64_t *offset, int64_t samples,
                  int64_t seqlen)
{
    for (int64_t i = 0; i < samples; i++)
        memcpy(out + i * seqlen, ids + offset[i], (size_t)seqlen * sizeof(*out));
}

int64_t batch_windows(int64_t n, int64_t ctx)
{
    return ctx > 0 ? n / ctx : 0;
}

uint32_t batch_crc(const int32_t *ids, size_t n)
{
    uint8_t piece[4096];
    uint32_t crc = 0;
    for (size_t i = 0; i < n;) {
        size_t used = 0;
        for (; i < n && used < sizeof(piece); i++)
            for (int b = 0; b < 32; b += 8)
                piece[used++] = (uint8_t)((uint32_t)ids[i] >> b);
        crc = bytes_crc32(crc, piece, used);
    }
    return crc;
}
