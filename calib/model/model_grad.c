/* SPDX-License-Identifier: MIT
 *
 * Forward block by block over all windows, storing each block's input on the host; then
 * backward block by block, running each block's forward again from that input. Only one
 * block's weights and one window's activations are on the device at a time. */
#include "calib/model/model_grad.h"

#include "calib/model/carve.h"
#include "calib/model/model.h"

#include <inttypes.h>
#include <math.h>

struct pass {
    struct dev *dev;
    const struct arch *arch;
    const struct model_source *src;
    const struct model_visitor *visitor;
    const int32_t *ids;
    int64_t n, T;
    struct block_weights w;
    struct block_acts acts;
    struct block_scratch *scratch;
    struct tensor cos, sin;
    void *memory;
    struct tensor x, out; /* [T,D] F32 */
    struct tensor *g;     /* [n] [T,D] F32: hidden states, then their gradients */
    float *states;        /* host [layers][n][T][D], each block's input */
    double loss;          /* sum over tokens */
};

static void close_pass(struct pass *p)
{
    block_weights_free(&p->w);
    block_acts_free(&p->acts);
    block_scratch_close(&p->scratch);
    dev_free(p->dev, p->cos.data);
    dev_free(p->dev, p->memory);
    mem_free(p->g);
    mem_free(p->states);
}

static void layout(struct pass *p, struct carve *c)
{
    const int64_t D = p->arch->d_model;
    p->x = carve_2d(c, DT_F32, p->T, D);
    p->out = carve_2d(c, DT_F32, p->T, D);
    for (int64_t i = 0; i < p->n; i++)
        p->g[i] = carve_2d(c, DT_F32, p->T, D);
}

static enum err open_pass(struct pass *p)
{
    const int64_t dims[] = {p->arch->n_layers, p->n, p->T, p->arch->d_model};
    struct carve c = {0};
    size_t bytes;
    TRY(arch_check_length(p->arch, p->T));
    TRY(size_product(&bytes, dims, 4, sizeof(*p->states)));
    TRY(mem_alloc(&p->states, bytes / sizeof(*p->states), sizeof(*p->states)));
    TRY(mem_alloc(&p->g, (size_t)p->n, sizeof(*p->g)));
    layout(p, &c);
    TRY(dev_alloc(p->dev, &p->memory, c.used));
    c = (struct carve){.base = p->memory};
    layout(p, &c);
    TRY(block_weights_alloc(&p->w, p->dev, p->arch, DT_F32));
    TRY(block_acts_alloc(&p->acts, p->dev, p->arch, p->T, DT_F32, NULL));
    TRY(block_scratch_open(&p->scratch, p->dev, p->arch, p->T, DT_F32));
    TRY(block_rope_alloc(&p->cos, &p->sin, p->dev, p->arch, p->T));
    p->acts.cos = p->cos;
    p->acts.sin = p->sin;
    return OK;
}

static size_t state_bytes(const struct pass *p)
{
    return (size_t)(p->T * p->arch->d_model) * sizeof(float);
}

/* Input of block `block` in window i, on the host. */
static float *state_at(const struct pass *p, int64_t block, int64_t i)
{
    return p->states + (block * p->n + i) * p->T * p->arch->d_model;
}

static enum err asked_to_stop(const struct pass *p)
{
    const struct model_visitor *v = p->visitor;
    FAIL_IF(v->stop && v->stop(v->ctx), ERR_STOPPED,
            "stopped while gradients were computed");
    return OK;
}

/* --- forward ------------------------------------------------------------------------ */

static enum err load_block(struct pass *p, struct block_src *views, int64_t b)
{
    TRY(p->src->block(p->src->ctx, b, views));
    const enum err err = block_weights_load(&p->w, p->arch, b, views);
    return err ? err_add(err, "block %" PRId64 ": ", b) : OK;
}

static void release_block(const struct pass *p, int64_t b)
{
    if (p->src->release)
        p->src->release(p->src->ctx, b);
}

static enum err forward_block(struct pass *p, int64_t b)
{
    struct block_src views;
    TRY(load_block(p, &views, b));
    for (int64_t i = 0; i < p->n; i++) {
        TRY(dev_download(p->dev, state_at(p, b, i), p->g[i].data, state_bytes(p)));
        TRY(block_forward(&p->acts, p->scratch, p->arch, &p->w, NULL, &p->out, &p->g[i]));
        TRY(dev_copy(p->dev, &p->g[i], &p->out));
        TRY(asked_to_stop(p));
    }
    release_block(p, b);
    return OK;
}

static enum err forward(struct pass *p)
{
    struct host_mat embed, norm, head;
    TRY(p->src->ends(p->src->ctx, &embed, &norm, &head));
    for (int64_t i = 0; i < p->n; i++)
        TRY(model_embed(p->dev, p->arch, &p->g[i], &embed, p->ids + i * p->T));
    for (int64_t b = 0; b < p->arch->n_layers; b++)
        TRY(forward_block(p, b));
    return OK;
}

/* --- the head ----------------------------------------------------------------------- */

struct head {
    void *memory;
    struct tensor norm, w;  /* [D], [V,D] F32 */
    struct tensor y, dy, s; /* [T,D], [T,D], [T]: normalized states */
    struct tensor logits;   /* [piece,V] */
    float *host;            /* [piece][V] */
};

static void head_layout(struct head *e, struct carve *c, const struct pass *p)
{
    const int64_t V = p->arch->vocab, D = p->arch->d_model;
    e->w = carve_2d(c, DT_F32, V, D);
    e->norm = carve_1d(c, DT_F32, D);
    e->y = carve_2d(c, DT_F32, p->T, D);
    e->dy = carve_2d(c, DT_F32, p->T, D);
    e->s = carve_1d(c, DT_F32, p->T);
    e->logits = carve_2d(c, DT_F32, model_logit_rows(p->arch, p->T, LOGITS_BYTES), V);
}

static enum err head_load(struct head *e, struct pass *p)
{
    struct carve c = {0};
    struct host_mat embed, norm, w;
    TRY(p->src->ends(p->src->ctx, &embed, &norm, &w));
    TRY(host_mat_check(&norm, "final norm", p->arch->d_model, 1));
    TRY(host_mat_check(&w, "head", p->arch->vocab, p->arch->d_model));
    head_layout(e, &c, p);
    TRY(dev_alloc(p->dev, &e->memory, c.used));
    c = (struct carve){.base = e->memory};
    head_layout(e, &c, p);
    TRY(mem_alloc(&e->host, (size_t)tensor_count(&e->logits), sizeof(*e->host)));
    TRY(host_gain_upload(p->dev, &e->norm, &norm, p->arch));
    return host_mat_upload(p->dev, &e->w, &w);
}

/* Replaces the logits x of one token by the gradient of its loss and returns the loss:
 *   loss = log sum_i exp(x_i) - x_target      dloss/dx_i = softmax(x)_i - [i = target]
 * The maximum is subtracted before exp, so that large logits do not overflow. */
static double softmax_grad(float *x, int64_t n, int32_t target)
{
    const float at = x[target];
    double top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        top = fmax(top, (double)x[i]);
    for (int64_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - (float)top);
        sum += (double)x[i];
    }
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] / sum);
    x[target] -= 1;
    return top + log(sum) - (double)at;
}

/* Computes e->dy of rows [t, t + rows); the next token of row r is ids[r + 1]. logits = y
 * W^T, so dy = dlogits W. The head's own gradient is not needed. */
static enum err head_piece(struct head *e, struct pass *p, const int32_t *ids, int64_t t,
                           int64_t rows)
{
    const int64_t V = p->arch->vocab;
    const size_t bytes = (size_t)(rows * V) * sizeof(float);
    const struct tensor y = tensor_rows(e->y, t, rows), dy = tensor_rows(e->dy, t, rows);
    const struct tensor logits = tensor_rows(e->logits, 0, rows);
    TRY(dev_gemm(p->dev, GEMM_NT, &logits, &y, &e->w, false));
    TRY(dev_download(p->dev, e->host, logits.data, bytes));
    for (int64_t r = 0; r < rows; r++)
        p->loss += softmax_grad(e->host + r * V, V, ids[t + r + 1]);
    TRY(dev_upload(p->dev, logits.data, e->host, bytes));
    return dev_gemm(p->dev, GEMM_NN, &dy, &logits, &e->w, false);
}

/* Replaces window i's hidden states by their gradient. The last token predicts nothing. */
static enum err head_window(struct head *e, struct pass *p, int64_t i)
{
    const int64_t piece = e->logits.dim[0], rows = p->T - 1;
    TRY(model_last(p->dev, p->arch, &e->y, &e->s, &p->g[i], &e->norm));
    TRY(dev_zero(p->dev, e->dy.data, state_bytes(p)));
    for (int64_t t = 0; t < rows; t += piece)
        TRY(head_piece(e, p, p->ids + i * p->T, t, rows - t < piece ? rows - t : piece));
    TRY(dev_copy(p->dev, &p->x, &p->g[i]));
    const struct last_grads grads = {.dx = &p->g[i], .dy = &e->dy};
    return model_last_bwd(p->dev, p->arch, &grads, &e->s, &p->x, &e->norm);
}

static enum err head_backward(struct pass *p)
{
    struct head e = {0};
    enum err err = head_load(&e, p);
    for (int64_t i = 0; i < p->n && !err; i++) {
        err = head_window(&e, p, i);
        if (!err)
            err = asked_to_stop(p);
    }
    dev_free(p->dev, e.memory);
    mem_free(e.host);
    TRY(err);
    FAIL_IF(!isfinite(p->loss), ERR_NUMERIC,
            "the loss of the full-precision model is %g; check the checkpoint's values",
            p->loss);
    return OK;
}

/* --- backward ----------------------------------------------------------------------- */

/* Repeats window i's forward through block b from its stored input, then its backward. One
 * forward more for each block is the price of keeping activations of one block only. */
static enum err backward_window(struct pass *p, int64_t b, int64_t i)
{
    const struct model_visitor *v = p->visitor;
    const struct block_watch watch = {v->ctx, v->grad};
    TRY(dev_upload(p->dev, p->x.data, state_at(p, b, i), state_bytes(p)));
    TRY(block_forward(&p->acts, p->scratch, p->arch, &p->w, NULL, &p->out, &p->x));
    TRY(v->window(v->ctx, b, &p->acts));
    TRY(block_backward_watched(&p->acts, p->scratch, p->arch, &p->w, &p->g[i], &p->g[i],
                               &watch));
    return asked_to_stop(p);
}

static enum err backward_block(struct pass *p, int64_t b)
{
    const struct model_visitor *v = p->visitor;
    struct block_src views;
    TRY(load_block(p, &views, b));
    for (int64_t i = 0; i < p->n; i++)
        TRY(backward_window(p, b, i));
    TRY(v->block(v->ctx, b, &views));
    release_block(p, b);
    return OK;
}

static enum err forward_and_back(struct pass *p)
{
    TRY(open_pass(p));
    TRY(forward(p));
    TRY(head_backward(p));
    for (int64_t b = p->arch->n_layers - 1; b >= 0; b--)
        TRY(backward_block(p, b));
    return OK;
}

/* The loss is a sum over tokens, so gradients are those of single tokens and do not shrink
 * with the length of the text. */
enum err model_backward(double *nll, struct dev *d, const struct arch *a,
                        const struct model_source *src, const struct model_windows *text,
                        const struct model_visitor *v)
{
    const int64_t n = text->n, T = text->T;
    struct pass p = {
        .dev = d, .arch = a, .src = src, .visitor = v, .ids = text->ids, .n = n, .T = T};
    FAIL_IF(n < 1 || T < 2, ERR_USAGE, "want a window of at least 2 tokens");
    const enum err err = forward_and_back(&p);
    close_pass(&p);
    if (!err)
        *nll = p.loss / (double)(n * (T - 1));
    return err;
}
