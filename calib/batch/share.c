/* SPDX-License-Identifier: MIT */
#include "calib/batch/share.h"

#include "calib/batch/linked_sum.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/dev_link.h"

#include <inttypes.h>
#include <string.h>

/* Floats of a slice of gradients, over all samples of a step: the buffers have a few times as
 * many, however large the block is. */
#define SAMPLES_FLOATS (1 << 22)

/* That of rank R is the batch's size. */
int64_t share_begin(const struct share *h, int64_t r)
{
    return r * h->batch / h->ranks->size;
}

enum err share_open(struct share *h, const struct ranks *ranks, int64_t batch, int64_t most,
                    const char *key)
{
    *h = (struct share){.ranks = ranks, .batch = batch, .to = batch};
    TRY(mem_calloc(&h->loss, (size_t)most, sizeof(*h->loss)));
    if (!ranks)
        return OK;
    FAIL_IF(batch < ranks->size, ERR_USAGE,
            "%s is %" PRId64
            ", but there are %d ranks, and each must have a sample of every "
            "step; raise it, or start fewer",
            key, batch, ranks->size);
    h->from = share_begin(h, ranks->rank);
    h->to = share_begin(h, ranks->rank + 1);
    return mem_calloc(&h->all_loss, (size_t)most * (size_t)ranks->size,
                      sizeof(*h->all_loss));
}

void share_close(struct share *h)
{
    mem_free(h->loss);
    mem_free(h->all_loss);
    mem_free(h->gradient);
    mem_free(h->buffer);
    mem_free(h->state);
    mem_free(h->row);
    linked_close(&h->linked);
    *h = (struct share){0};
}

bool share_own(const struct share *h, int64_t i)
{
    return i % h->batch >= h->from && i % h->batch < h->to;
}

int64_t share_local(const struct share *h, int64_t i)
{
    return i / h->batch * (h->to - h->from) + i % h->batch - h->from;
}

int64_t share_count(const struct share *h, int64_t n)
{
    int64_t own = 0;
    for (int64_t i = 0; i < n; i++)
        own += share_own(h, i);
    return own;
}

static int owner_of(const struct share *h, int64_t i)
{
    int r = 0;
    while (share_begin(h, r + 1) <= i % h->batch)
        r++;
    return r;
}

/* Makes room for bytes at *p, which has *room; its contents are lost if it grows. */
static enum err grow(void **p, size_t *room, size_t bytes)
{
    char *larger = NULL;
    if (bytes <= *room)
        return OK;
    mem_free(*p);
    *p = NULL;
    *room = 0;
    TRY(mem_alloc(&larger, bytes, 1));
    *p = larger;
    *room = bytes;
    return OK;
}

enum err share_sample(struct share *h, struct dev *d, const struct tensor *x, int64_t i)
{
    const size_t bytes = (size_t)tensor_count(x) * dtype_bytes(x->dtype);
    if (!h->ranks)
        return OK;
    TRY(grow(&h->state, &h->state_bytes, bytes));
    if (share_own(h, i))
        TRY(dev_download(d, h->state, x->data, bytes));
    h->ranks->broadcast(h->state, bytes, owner_of(h, i));
    TRY(dev_upload(d, x->data, h->state, bytes));
    return dev_sync(d);
}

void share_losses(struct share *h, int64_t first, int64_t n)
{
    if (!h->ranks)
        return;
    h->ranks->gather(h->all_loss, h->loss, (size_t)n * sizeof(*h->loss));
    for (int64_t k = 0; k < n; k++)
        h->loss[k] = h->all_loss[owner_of(h, first + k) * n + k];
}

static void add_row(double *sum, const double *x, int64_t n)
{
    for (int64_t c = 0; c < n; c++)
        sum[c] += x[c];
}

/* A row is sent when the batch is through, since every rank must compute its own before it waits
 * for those of others. */
enum err share_add(struct share *h, double *sum, const double *x, int64_t n, int64_t i,
                   int64_t samples)
{
    const int64_t own = h->to - h->from, at = i % h->batch;
    const size_t bytes = (size_t)n * sizeof(*x);
    if (!h->ranks) {
        add_row(sum, x, n);
        return OK;
    }
    TRY(grow(&h->row, &h->row_bytes, (size_t)(own + 1) * bytes));
    double *row = h->row, *arrived = row + own * n;
    if (share_own(h, i))
        memcpy(row + (at - h->from) * n, x, bytes);
    for (int64_t k = 0; k <= at && (at == h->batch - 1 || i == samples - 1); k++) {
        double *one = share_own(h, k) ? row + (k - h->from) * n : arrived;
        h->ranks->broadcast(one, bytes, owner_of(h, k));
        add_row(sum, one, n);
    }
    return OK;
}

bool share_any(const struct share *h, bool yes)
{
    char mine = (char)yes, all[RANKS_MAX];
    if (!h->ranks)
        return yes;
    h->ranks->gather(all, &mine, 1);
    return memchr(all, 1, (size_t)h->ranks->size) != NULL;
}

/* --- gradients ---------------------------------------------------------------------- */

int64_t share_floats(const struct tensor *const *grad, int n)
{
    int64_t floats = 0;
    for (int i = 0; i < n; i++)
        floats += grad[i] ? tensor_count(grad[i]) : 0;
    return floats;
}

/* Makes room for the gradients of this rank's samples of a step, for the largest yet. */
static enum err make_room(struct share *h, int64_t floats)
{
    if (floats <= h->floats)
        return OK;
    mem_free(h->gradient);
    h->gradient = NULL;
    h->floats = 0;
    TRY(mem_alloc(&h->gradient, (size_t)(floats * (h->to - h->from)), sizeof(float)));
    h->floats = floats;
    return OK;
}

enum err share_link(struct share *h, struct dev *d, int64_t floats, uint64_t reserve)
{
    bool made;
    if (!h->ranks || !dev_linked(d) || !floats)
        return OK;
    TRY(linked_open(&h->linked, h, d, floats, reserve, &made));
    if (!share_any(h, !made))
        return OK;
    linked_close(&h->linked);
    if (!h->ranks->rank)
        log_info("gradients pass through host memory: a rank has too little device memory");
    return OK;
}

enum err share_keep(struct share *h, struct dev *d, const struct tensor *const *grad, int n,
                    int64_t k)
{
    if (h->linked.dev)
        return linked_keep(h, grad, n, k);
    TRY(make_room(h, share_floats(grad, n)));
    float *to = h->gradient + (k - h->from) * h->floats;
    for (int i = 0; i < n; i++) {
        if (!grad[i])
            continue;
        const int64_t floats = tensor_count(grad[i]);
        TRY(dev_download(d, to, grad[i]->data, (size_t)floats * sizeof(float)));
        to += floats;
    }
    return OK;
}

/* Rank p adds up this part of a slice; part R is its end. */
int64_t share_part(const struct share *h, int64_t p, int64_t n)
{
    return p * n / h->ranks->size;
}

int64_t share_samples(const struct share *h, int r, int64_t n)
{
    const int64_t from = share_begin(h, r), to = share_begin(h, r + 1);
    return to < n ? to - from : n > from ? n - from : 0;
}

struct buffers {
    float *from, *to, *sum, *slice;
};

/* Sends part p of this rank's samples to rank p, adds up what arrives, and sends the sum to
 * all: b->slice [n] is the sum of floats [at, at + n) over the samples of the step. */
static void sum_slice(struct share *h, const struct buffers *b, int64_t at, int64_t n,
                      int64_t samples)
{
    const struct ranks *r = h->ranks;
    const int64_t mine = share_part(h, r->rank + 1, n) - share_part(h, r->rank, n);
    const int64_t own = share_samples(h, r->rank, samples);
    int to_n[RANKS_MAX], from_n[RANKS_MAX], sum_n[RANKS_MAX];
    float *put = b->from;
    for (int q = 0; q < r->size; q++) {
        const int64_t begin = share_part(h, q, n), length = share_part(h, q + 1, n) - begin;
        sum_n[q] = (int)length;
        from_n[q] = (int)(own * length);
        to_n[q] = (int)(share_samples(h, q, samples) * mine);
        for (int64_t k = 0; k < own; k++, put += length)
            memcpy(put, h->gradient + k * h->floats + at + begin,
                   (size_t)length * sizeof(*put));
    }
    r->exchange(b->to, to_n, b->from, from_n);
    memcpy(b->sum, b->to, (size_t)mine * sizeof(*b->sum));
    for (int64_t k = 1; k < samples; k++)
        for (int64_t j = 0; j < mine; j++)
            b->sum[j] += b->to[k * mine + j];
    r->join(b->slice, sum_n, b->sum);
}

static enum err open_buffers(struct buffers *b, struct share *h, int64_t n)
{
    const int64_t own = h->to - h->from, most = n / h->ranks->size + 1;
    if (!h->buffer)
        TRY(mem_alloc(&h->buffer, (size_t)(own * n + h->batch * most + most + n),
                      sizeof(*h->buffer)));
    b->from = h->buffer;
    b->to = b->from + own * n;
    b->sum = b->to + h->batch * most;
    b->slice = b->sum + most;
    return OK;
}

enum err share_place(struct dev *d, const struct tensor *const *to, int tensors,
                     const struct slice *x, slice_put *put)
{
    int64_t base = 0;
    for (int i = 0; i < tensors; i++) {
        const int64_t end = base + (to[i] ? tensor_count(to[i]) : 0);
        const int64_t first = x->at > base ? x->at : base;
        const int64_t last = x->at + x->n < end ? x->at + x->n : end;
        if (first < last)
            TRY(put(d, (float *)to[i]->data + (first - base), x->sum + (first - x->at),
                    last - first));
        base = end;
    }
    return OK;
}

static enum err upload(struct dev *d, float *to, const float *from, int64_t n)
{
    return dev_upload(d, to, from, (size_t)n * sizeof(*from));
}

enum err share_sum(struct share *h, struct dev *d, const struct tensor *const *sum, int n,
                   int64_t samples)
{
    struct buffers b;
    const int64_t floats = share_floats(sum, n);
    const int64_t most =
        h->batch < SAMPLES_FLOATS / 4096 ? SAMPLES_FLOATS / h->batch : 4096;
    if (h->linked.dev)
        return linked_add_up(h, sum, n, samples);
    TRY(make_room(h, floats));
    TRY(open_buffers(&b, h, most));
    for (int64_t at = 0; at < floats; at += most) {
        const int64_t length = floats - at < most ? floats - at : most;
        sum_slice(h, &b, at, length, samples);
        TRY(share_place(d, sum, n, &(struct slice){b.slice, at, length}, upload));
        TRY(dev_sync(d));
    }
    return OK;
}
