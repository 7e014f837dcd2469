/* SPDX-License-Identifier: MIT
 *
 * Samples the next token: greedy, or temperature with top-k and top-p. */
#include "convert/runtime/runtime.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

struct candidate {
    float logit;
    int32_t id;
};

/* Sorts by falling logit, then by id, so that the order is unique. */
static int by_logit(const void *pa, const void *pb)
{
    const struct candidate *a = pa, *b = pb;
    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

static int32_t greedy(const float *logits, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* Returns how many of n sorted candidates reach the share top_p together; *total is the sum
 * of their weights. */
static int64_t nucleus(double *total, const struct candidate *c, int64_t n,
                       const struct sampler *s)
{
    double all = 0, sum = 0;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        all += exp((double)(c[i].logit - c[0].logit) / (double)s->temperature);
    while (kept < n && (kept == 0 || sum < (double)s->top_p * all)) {
        sum += exp((double)(c[kept].logit - c[0].logit) / (double)s->temperature);
        kept++;
    }
    *total = sum;
    return kept;
}

/* Draws by inversion: u in [0, total) falls into the interval of one candidate, whose width
 * is its weight exp((logit - top) / temperature). The last one takes what rounding
 * leaves. */
static int32_t draw(const struct candidate *c, int64_t n, const struct sampler *s,
                    struct rng *rng)
{
    double total;
    const int64_t kept = nucleus(&total, c, n, s);
    double left = rng_uniform(rng) * total;
    for (int64_t i = 0; i + 1 < kept; i++) {
        left -= exp((double)(c[i].logit - c[0].logit) / (double)s->temperature);
        if (left < 0)
            return c[i].id;
    }
    return c[kept - 1].id;
}

enum err runtime_sample(int32_t *id, const struct sampler *s, struct rng *rng,
                        const float *logits, int64_t vocab)
{
    struct candidate *c;
    for (int64_t i = 0; i < vocab; i++)
        FAIL_IF(!isfinite(logits[i]), ERR_NUMERIC, "the logit of token %" PRId64 " is %g",
                i, (double)logits[i]);
    if (!(s->temperature > 0)) {
        *id = greedy(logits, vocab);
        return OK;
    }
    TRY(mem_alloc(&c, (size_t)vocab, sizeof(*c)));
    for (int64_t i = 0; i < vocab; i++)
        c[i] = (struct candidate){logits[i], (int32_t)i};
    qsort(c, (size_t)vocab, sizeof(*c), by_logit);
    *id = draw(c, s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab, s, rng);
    mem_free(c);
    return OK;
}
