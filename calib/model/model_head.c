/* SPDX-License-Identifier: MIT
 *
 * The final norm and the head. */
#include "calib/model/model_priv.h"

int64_t model_logit_rows(const struct arch *a, int64_t T, int64_t bytes)
{
    const int64_t fit = bytes / (a->vocab * (int64_t)sizeof(float));
    return fit < 1 ? 1 : fit > T ? T : fit;
}

static void head_layout(struct head *e, struct carve *c, const struct model_pass *k)
{
    const int64_t V = k->r->arch->vocab, D = k->r->arch->d_model;
    e->w = carve_2d(c, k->r->act, V, D);
    e->norm = carve_1d(c, DT_F32, D);
    e->logits = carve_2d(c, DT_F32, model_logit_rows(k->r->arch, k->T, LOGITS_BYTES), V);
    e->target = carve_1d(c, DT_I32, k->T);
    e->nll = carve_1d(c, DT_F32, k->T);
}

static enum err head_alloc(struct head *e, struct model_pass *k)
{
    struct carve c = {0};
    head_layout(e, &c, k);
    TRY(dev_alloc(k->r->dev, &e->memory, c.used));
    c = (struct carve){.base = e->memory};
    head_layout(e, &c, k);
    return OK;
}

enum err head_load(struct head *e, struct model_pass *k)
{
    const struct model_source *src = k->r->src;
    const int64_t V = k->r->arch->vocab, D = k->r->arch->d_model;
    struct host_mat embed, norm, w;
    TRY(src->ends(src->ctx, &embed, &norm, &w));
    TRY(host_mat_check(&norm, "final norm", D, 1));
    host_mat_set_gain(&norm, k->final_gain);
    TRY(host_mat_check(&w, "head", V, D));
    TRY(head_alloc(e, k));
    TRY(host_gain_upload(k->r->dev, &e->norm, &norm, k->r->arch));
    return host_mat_upload(k->r->dev, &e->w, &w);
}

/* Writes the normalized states of x to k->acts.n1. */
static enum err normalize(struct head *e, struct model_pass *k, const struct tensor *x)
{
    const struct tensor y = tensor_rows(k->acts.n1, 0, x->dim[0]);
    const struct tensor s = tensor_rows(k->acts.s1, 0, x->dim[0]);
    return model_last(k->r->dev, k->r->arch, &y, &s, x, &e->norm);
}

/* *logits = those of rows [t, t + rows) of the normalized states; rows fit e->logits. */
static enum err head_piece(struct tensor *logits, struct head *e, struct model_pass *k,
                           int64_t t, int64_t rows)
{
    const struct tensor x = tensor_rows(k->acts.n1, t, rows);
    *logits = tensor_rows(e->logits, 0, rows);
    return dev_gemm(k->r->dev, GEMM_NT, logits, &x, &e->w, false);
}

/* Returns how many of the `left` last rows the next piece has. */
static int64_t piece_rows(const struct head *e, int64_t left)
{
    return left < e->logits.dim[0] ? left : e->logits.dim[0];
}

enum err head_logits(struct head *e, struct model_pass *k, const struct tensor *x,
                     float *logits)
{
    const int64_t rows = x->dim[0], V = k->r->arch->vocab;
    struct tensor piece;
    TRY(normalize(e, k, x));
    for (int64_t t = 0, n; t < rows; t += n) {
        n = piece_rows(e, rows - t);
        TRY(head_piece(&piece, e, k, t, n));
        TRY(dev_download(k->r->dev, logits + t * V, piece.data,
                         (size_t)(n * V) * sizeof(*logits)));
    }
    return OK;
}

enum err head_nll(struct head *e, struct model_pass *k, const struct tensor *x,
                  const int32_t *target, float *nll)
{
    const int64_t rows = x->dim[0];
    struct dev *d = k->r->dev;
    struct tensor piece;
    TRY(normalize(e, k, x));
    TRY(dev_upload(d, e->target.data, target, (size_t)rows * sizeof(*target)));
    for (int64_t t = 0, n; t < rows; t += n) {
        n = piece_rows(e, rows - t);
        const struct tensor wanted = tensor_rows(e->target, t, n);
        const struct tensor loss = tensor_rows(e->nll, t, n);
        TRY(head_piece(&piece, e, k, t, n));
        TRY(dev_cross_entropy(d, &loss, &piece, &wanted));
    }
    return dev_download(d, nll, e->nll.data, (size_t)rows * sizeof(*nll));
}
