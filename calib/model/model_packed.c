/* SPDX-License-Identifier: MIT
 *
 * Losses of packed windows. Only rows with a target pass the head, and they are brought together
 * first, because the head is read once for each product. */
#include "calib/model/model_priv.h"

#include <inttypes.h>

/* Returns the sequence among [first, i) that has its rows at `from`, or NULL. */
static const struct sequence *sequence_at(const struct packed_windows *w, int64_t first,
                                          int64_t i, int64_t from)
{
    for (int64_t k = first; k < i; k++)
        if (w->sequence[k].first == from)
            return &w->sequence[k];
    return NULL;
}

/* Checks sequence i of a window whose sequences start at `first`; its rows begin at `row`. */
static enum err check_sequence(const struct packed_windows *w, int64_t first, int64_t i,
                               int64_t row)
{
    const struct sequence *q = &w->sequence[i];
    const struct sequence *before = sequence_at(w, first, i, q->from);
    FAIL_IF(q->n < 1 || q->first != row || q->n > w->rows - row, ERR_SHAPE,
            "text %" PRId64 ": rows %" PRId64 " + %" PRId64 " of %" PRId64
            ", where %" PRId64 " is next",
            i, q->first, q->n, w->rows, row);
    FAIL_IF(q->past < 0 || q->past > w->longest - q->n ||
                (q->past && (!before || before->past || q->past > before->n)),
            ERR_SHAPE,
            "text %" PRId64 " has %" PRId64 " tokens of the text at row %" PRId64
            " and %" PRId64 " of its own; the longest may have %" PRId64,
            i, q->past, q->from, q->n, w->longest);
    return OK;
}

static enum err check_windows(const struct packed_windows *w)
{
    FAIL_IF(w->n < 1 || w->rows < 1, ERR_USAGE, "no packed window to run the model on");
    for (int64_t i = 0; i < w->n; i++) {
        int64_t row = 0;
        FAIL_IF(w->start[i + 1] <= w->start[i], ERR_SHAPE,
                "packed window %" PRId64 " has no text", i);
        for (int64_t k = w->start[i]; k < w->start[i + 1]; k++) {
            TRY(check_sequence(w, w->start[i], k, row));
            row += w->sequence[k].n;
        }
    }
    return OK;
}

/* The rows of a window that have a target. */
struct scored {
    int32_t *target; /* [R], the first n are used */
    float *nll;      /* [R] */
    int64_t n;
};

/* Copies the states of rows with a target to the front of the spare. */
static enum err gather(struct model_pass *k, const int32_t *target, int64_t i,
                       struct scored *s)
{
    const struct tensor *x = &k->h[i], *spare = &k->h[k->n];
    s->n = 0;
    for (int64_t t = 0, end; t < k->T; t = end + 1) {
        for (end = t; end < k->T && target[end] >= 0; end++)
            s->target[s->n + end - t] = target[end];
        if (end > t) {
            const struct tensor to = tensor_rows(*spare, s->n, end - t);
            const struct tensor from = tensor_rows(*x, t, end - t);
            TRY(dev_copy(k->r->dev, &to, &from));
        }
        s->n += end - t;
    }
    return OK;
}

static enum err score_window(struct model_pass *k, struct head *e, int64_t i,
                             struct scored *s, float *nll)
{
    const int32_t *target = k->packed->target + i * k->T;
    TRY(gather(k, target, i, s));
    const struct tensor x = tensor_rows(k->h[k->n], 0, s->n);
    if (s->n)
        TRY(head_nll(e, k, &x, s->target, s->nll));
    for (int64_t t = 0, from = 0; t < k->T; t++)
        nll[t] = target[t] >= 0 ? s->nll[from++] : 0;
    pass_step(k);
    return OK;
}

static enum err score_windows(struct model_pass *k, float *nll)
{
    struct head e = {0};
    struct scored s = {0};
    enum err err = OK;
    TRY_OUT(mem_alloc(&s.target, (size_t)k->T, sizeof(*s.target)));
    TRY_OUT(mem_alloc(&s.nll, (size_t)k->T, sizeof(*s.nll)));
    TRY_OUT(head_load(&e, k));
    for (int64_t i = 0; i < k->n; i++)
        TRY_OUT(score_window(k, &e, i, &s, nll + i * k->T));
out:
    dev_free(k->r->dev, e.memory);
    mem_free(s.target);
    mem_free(s.nll);
    return err;
}

enum err model_nll_packed(const struct model_run *r, const struct packed_windows *w,
                          float *nll)
{
    struct model_pass k;
    TRY(check_windows(w));
    TRY(pass_open(&k, r, w->ids, w->n, w->rows, w));
    enum err err = pass_blocks(&k);
    if (!err)
        err = score_windows(&k, nll);
    pass_close(&k);
    return err;
}
