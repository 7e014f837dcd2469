/* SPDX-License-Identifier: MIT */
#include "calib/batch/linked_sum.h"

#include "kernels/base/mem.h"
#include "kernels/dev_link.h"

/* Floats that are added up at a time: the buffers have as many for each of a rank's samples. */
#define SLICE_FLOATS ((int64_t)1 << 22)

static size_t bytes_of(int64_t floats)
{
    return (size_t)floats * sizeof(float);
}

enum err linked_open(struct linked_sum *s, const struct share *h, struct dev *d,
                     int64_t floats, uint64_t reserve, bool *made)
{
    const int64_t own = h->to - h->from;
    const int64_t slice = floats < SLICE_FLOATS ? floats : SLICE_FLOATS;
    const int64_t part = slice / h->ranks->size + 1;
    const int64_t all = own * floats + h->batch * part + slice;
    uint64_t free_bytes, total;
    void *memory = NULL;
    *s = (struct linked_sum){0};
    *made = false;
    /* Beside what is known there are libraries' own buffers, a graph's nodes and fragments: half of
     * the rest stays free for them. */
    if (dev_memory(d, &free_bytes, &total) &&
        (free_bytes < reserve || bytes_of(all) > (free_bytes - reserve) / 2))
        return OK;
    const enum err err = dev_alloc(d, &memory, bytes_of(all));
    if (err == ERR_MEMORY)
        err_clear();
    if (err)
        return err == ERR_MEMORY ? OK : err;
    float *p = memory;
    *s = (struct linked_sum){.dev = d,
                             .memory = memory,
                             .gradient = p,
                             .arrived = p + own * floats,
                             .slice = p + own * floats + h->batch * part,
                             .floats = floats,
                             .slice_floats = slice};
    *made = true;
    return OK;
}

void linked_close(struct linked_sum *s)
{
    if (s->dev)
        dev_free(s->dev, s->memory);
    *s = (struct linked_sum){0};
}

/* Copies n floats on the device. */
static enum err copy(struct dev *d, float *to, const float *from, int64_t n)
{
    const struct tensor y = tensor_2d(to, DT_F32, 1, n);
    const struct tensor x = tensor_2d((void *)(uintptr_t)from, DT_F32, 1, n);
    return dev_copy(d, &y, &x);
}

enum err linked_keep(struct share *h, const struct tensor *const *grad, int n, int64_t k)
{
    const struct linked_sum *s = &h->linked;
    float *to = s->gradient + (k - h->from) * s->floats;
    const float *end = to + s->floats;
    for (int i = 0; i < n; i++) {
        const int64_t floats = grad[i] ? tensor_count(grad[i]) : 0;
        FAIL_IF(floats > end - to, ERR_SHAPE, "more gradients than room was made for");
        if (floats)
            TRY(copy(s->dev, to, grad[i]->data, floats));
        to += floats;
    }
    return OK;
}

/* Floats from and to every rank. */
struct transfer {
    float *to[RANKS_MAX];
    const float *from[RANKS_MAX];
    int64_t to_n[RANKS_MAX], from_n[RANKS_MAX];
};

static enum err run(const struct linked_sum *s, const struct transfer *t)
{
    return dev_transfer(s->dev, t->to, t->to_n, t->from, t->from_n);
}

/* Returns the floats of rank q's part of a slice of n. */
static int64_t length_of(const struct share *h, int q, int64_t n)
{
    return share_part(h, q + 1, n) - share_part(h, q, n);
}

/* Sends every rank its part of this rank's k-th sample, and receives this rank's part of theirs.
 * at, n: the slice. */
static enum err exchange_sample(const struct share *h, int64_t k, int64_t at, int64_t n,
                                int64_t samples)
{
    const struct linked_sum *s = &h->linked;
    const int me = h->ranks->rank;
    const int64_t mine = length_of(h, me, n);
    struct transfer t;
    for (int q = 0; q < h->ranks->size; q++) {
        t.from[q] = s->gradient + k * s->floats + at + share_part(h, q, n);
        t.from_n[q] = k < share_samples(h, me, samples) ? length_of(h, q, n) : 0;
        t.to[q] = s->arrived + (share_begin(h, q) + k) * mine;
        t.to_n[q] = k < share_samples(h, q, samples) ? mine : 0;
    }
    return run(s, &t);
}

/* Sends this rank's sums to all: s->slice [n] is complete. */
static enum err join_parts(const struct share *h, int64_t n)
{
    const struct linked_sum *s = &h->linked;
    struct transfer t;
    for (int q = 0; q < h->ranks->size; q++) {
        t.from[q] = s->arrived;
        t.from_n[q] = length_of(h, h->ranks->rank, n);
        t.to[q] = s->slice + share_part(h, q, n);
        t.to_n[q] = length_of(h, q, n);
    }
    return run(s, &t);
}

/* s->slice [n] = floats [at, at + n) of the gradients, summed over the samples of a step. */
static enum err sum_slice(const struct share *h, int64_t at, int64_t n, int64_t samples)
{
    const struct linked_sum *s = &h->linked;
    const int64_t mine = length_of(h, h->ranks->rank, n);
    int64_t most = 0; /* samples of a rank */
    for (int q = 0; q < h->ranks->size; q++)
        most = share_samples(h, q, samples) > most ? share_samples(h, q, samples) : most;
    for (int64_t k = 0; k < most; k++)
        TRY(exchange_sample(h, k, at, n, samples));
    const struct tensor sum = tensor_2d(s->arrived, DT_F32, 1, mine);
    for (int64_t k = 1; k < samples && mine; k++) {
        const struct tensor one = tensor_2d(s->arrived + k * mine, DT_F32, 1, mine);
        TRY(dev_add(s->dev, &sum, &sum, &one));
    }
    return join_parts(h, n);
}

enum err linked_add_up(struct share *h, const struct tensor *const *sum, int n,
                       int64_t samples)
{
    const struct linked_sum *s = &h->linked;
    const int64_t floats = share_floats(sum, n);
    FAIL_IF(floats > s->floats, ERR_SHAPE, "more gradients than room was made for");
    for (int64_t at = 0; at < floats; at += s->slice_floats) {
        const int64_t left = floats - at;
        const int64_t length = left < s->slice_floats ? left : s->slice_floats;
        TRY(sum_slice(h, at, length, samples));
        TRY(share_place(s->dev, sum, n, &(struct slice){s->slice, at, length}, copy));
    }
    return OK;
}
