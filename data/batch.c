/* SPDX-License-Identifier: MIT */
#include "data/batch.h"

#include "kernels/base/bytes.h"
#include "kernels/base/rng.h"

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>

enum err batch_random_offsets(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                              uint64_t seed)
{
    struct mt19937 m;
    FAIL_IF(samples < 0 || seqlen < 1, ERR_USAGE,
            "samples is %" PRId64 " and seqlen %" PRId64 "; both must be positive", samples,
            seqlen);
    FAIL_IF(n <= seqlen, ERR_USAGE,
            "the text has %" PRId64 " tokens, and windows of %" PRId64
            " need at least one more than their length; give more text or a smaller seqlen",
            n, seqlen);
    mt_seed(&m, seed);
    for (int64_t i = 0; i < samples; i++)
        offset[i] = mt_randint(&m, 0, n - seqlen - 1);
    return OK;
}

#define TRIES 1000 /* for one window: enough for a text with a hundredth of its room left */

static bool overlaps(int64_t at, int64_t seqlen, const int64_t *avoid, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (at < avoid[i] + seqlen && avoid[i] < at + seqlen)
            return true;
    return false;
}

enum err batch_random_apart(int64_t *offset, int64_t samples, int64_t seqlen, int64_t n,
                            uint64_t seed, const int64_t *avoid, int64_t n_avoid)
{
    struct mt19937 m;
    TRY(batch_random_offsets(offset, 0, seqlen, n, seed));
    mt_seed(&m, seed);
    for (int64_t i = 0; i < samples; i++) {
        int tries = 0;
        do
            offset[i] = mt_randint(&m, 0, n - seqlen - 1);
        while (overlaps(offset[i], seqlen, avoid, n_avoid) && ++tries < TRIES);
        FAIL_IF(tries == TRIES, ERR_USAGE,
                "the text has %" PRId64 " tokens, too few for windows of %" PRId64
                " that overlap none of the %" PRId64
                " guard windows; give more text, or a smaller refine.guard or "
                "refine.seqlen",
                n, seqlen, n_avoid);
    }
    return OK;
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
