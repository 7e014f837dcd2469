/* SPDX-License-Identifier: MIT
 *
 * The decoder, block by block over all windows. Each weight is read once; the hidden states
 * of every window stay on the device:
 *
 *   for each block b        load its weights; quantize them and set the cache as quant says
 *     for each window i     h[spare] = block(h[i]); then h[i] and the spare swap places
 *   head                    norm, logits by rows that fit LOGITS_BYTES, loss or logits out
 *
 *   h   | h[0] | h[1] | ... | h[n-1] | h[n] |     n windows and a spare, [T,D] F32 each
 *          ^                           |
 *          +------ block writes here --+          views are swapped, nothing is copied
 *
 * Everything that runs the model uses one struct model_pass: logits, losses, losses of packed
 * windows (model_packed.c), logits by pieces, and keys and values. */
#include "calib/model/block_scratch.h"
#include "calib/model/model_priv.h"

#include <inttypes.h>
#include <string.h>

/* --- opening ------------------------------------------------------------------------ */

void pass_close(struct model_pass *k)
{
    struct dev *d = k->r->dev;
    block_weights_free(&k->w);
    block_weights_free(&k->full);
    block_acts_free(&k->acts);
    block_acts_free(&k->text);
    block_scratch_close(&k->scratch);
    dev_free(d, k->cos.data);
    dev_free(d, k->x);
    dev_free(d, k->kv_params);
    mem_free(k->final_gain);
    mem_free(k->h);
}

static enum err open_states(struct model_pass *k)
{
    const int64_t dims[] = {k->n + 1, k->T, k->r->arch->d_model};
    size_t bytes;
    TRY(size_product(&bytes, dims, 3, sizeof(float)));
    TRY(dev_alloc(k->r->dev, &k->x, bytes));
    TRY(mem_alloc(&k->h, (size_t)k->n + 1, sizeof(*k->h)));
    const int64_t one = k->T * k->r->arch->d_model;
    for (int64_t i = 0; i <= k->n; i++)
        k->h[i] = tensor_2d((float *)k->x + i * one, DT_F32, k->T, k->r->arch->d_model);
    return OK;
}

static enum err open_quant(struct model_pass *k)
{
    const struct arch *a = k->r->arch;
    const int64_t n = a->n_kv * a->head_dim;
    TRY(block_weights_alloc(&k->full, k->r->dev, a, DT_F32));
    TRY(dev_alloc(k->r->dev, &k->kv_params, 4 * (size_t)n * sizeof(float)));
    struct tensor *const p[] = {&k->kv.k_s, &k->kv.k_shift, &k->kv.v_s, &k->kv.v_shift};
    for (int i = 0; i < 4; i++)
        *p[i] = tensor_1d((float *)k->kv_params + i * n, DT_F32, n);
    return OK;
}

static enum err embed_windows(struct model_pass *k, const int32_t *ids)
{
    const struct model_source *src = k->r->src;
    struct host_mat embed, norm, head;
    TRY(src->ends(src->ctx, &embed, &norm, &head));
    TRY(host_mat_check(&embed, "embedding", k->r->arch->vocab, k->r->arch->d_model));
    for (int64_t i = 0; i < k->n; i++)
        TRY(model_embed(k->r->dev, k->r->arch, &k->h[i], &embed, ids + i * k->T));
    return OK;
}

/* Blocks may differ in what is quantized, so activations have room for everything. */
static const struct kv_spec any_kv = {.bits = 8, .key_stage = KEY_PRE_ROPE};

/* In packed windows, only the texts have a cache and a rotary embedding. */
static enum err open_acts(struct model_pass *k)
{
    const struct model_run *r = k->r;
    const struct kv_spec *kv = r->quant ? &any_kv : NULL;
    struct block_acts *rotated = k->packed ? &k->text : &k->acts;
    TRY(block_acts_alloc(&k->acts, r->dev, r->arch, k->T, r->act, k->packed ? NULL : kv));
    if (k->packed)
        TRY(block_text_alloc(&k->text, r->dev, r->arch, k->longest, r->act, kv));
    rotated->varies = true; /* a task has many lengths */
    rotated->cos = k->cos;
    rotated->sin = k->sin;
    return OK;
}

static enum err pass_fill(struct model_pass *k, const int32_t *ids)
{
    const struct model_run *r = k->r;
    FAIL_IF(k->n < 1, ERR_USAGE, "no window of %" PRId64 " tokens to run the model on",
            k->T);
    TRY(arch_check_length(r->arch, k->longest));
    TRY(block_weights_alloc(&k->w, r->dev, r->arch, r->act));
    TRY(block_scratch_open(&k->scratch, r->dev, r->arch, k->T, r->act));
    TRY(block_rope_alloc(&k->cos, &k->sin, r->dev, r->arch, k->longest));
    TRY(open_acts(k));
    if (r->quant)
        TRY(open_quant(k));
    TRY(open_states(k));
    return embed_windows(k, ids);
}

enum err pass_open(struct model_pass *k, const struct model_run *r, const int32_t *ids,
                   int64_t n, int64_t T, const struct packed_windows *packed)
{
    *k = (struct model_pass){.r = r,
                             .n = n,
                             .T = T,
                             .packed = packed,
                             .longest = packed ? packed->longest : T,
                             .total = (r->arch->n_layers + 1) * n};
    const enum err err = pass_fill(k, ids);
    if (err)
        pass_close(k);
    return err;
}

void pass_step(struct model_pass *k)
{
    k->done++;
    if (k->r->progress)
        k->r->progress(k->r->progress_ctx, (double)k->done / (double)k->total);
}

/* --- one block ---------------------------------------------------------------------- */

/* Replaces the source weight by the values of chosen codes: dev_fake_quant_stored finds
 * them again. */
static enum err load_values(struct model_pass *k, const struct block_quant *q, int l)
{
    const struct tensor w = block_weights_lin(&k->full, k->r->arch, l);
    return dev_upload_values(k->r->dev, &w, &q->lin[l]);
}

/* Writes w^ of projection l to k->w, from its scales, zeros and F32 weight. buffer: device
 * memory for scales and zeros. */
static enum err apply_lin(struct model_pass *k, const struct block_quant *q, int l,
                          void *buffer)
{
    const struct qlinear *lin = &q->lin[l];
    struct dev *d = k->r->dev;
    const size_t n = (size_t)lin->out * (size_t)lin->groups;
    if (lin->codes)
        TRY(load_values(k, q, l));
    uint8_t *zeros_at = (uint8_t *)buffer + n * sizeof(*lin->scales);
    TRY(dev_upload(d, buffer, lin->scales, n * sizeof(*lin->scales)));
    TRY(dev_upload(d, zeros_at, lin->zeros, n));
    const struct tensor scales = tensor_2d(buffer, DT_F16, lin->out, lin->groups);
    const struct tensor zeros = tensor_2d(zeros_at, DT_U8, lin->out, lin->groups);
    const struct tensor wq = block_weights_lin(&k->w, k->r->arch, l);
    const struct tensor w = block_weights_lin(&k->full, k->r->arch, l);
    const struct weight_quant p = {
        .w = &w, .bits = lin->format.bits, .group_size = lin->format.group_size};
    TRY(dev_fake_quant_stored(d, &wq, &scales, &zeros, &p));
    return dev_sync(d);
}

static enum err quantize_lin(struct model_pass *k, const struct block_quant *q, int l)
{
    const struct qlinear *lin = &q->lin[l];
    const int64_t out = arch_out(k->r->arch, l), in = arch_in(k->r->arch, l);
    const int64_t groups = weight_groups(in, lin->format.group_size);
    FAIL_IF(lin->out != out || lin->in != in || lin->groups != groups, ERR_MISMATCH,
            "%s: scales are for [%" PRId64 ", %" PRId64 "] in %" PRId64
            " groups, the model has [%" PRId64 ", %" PRId64 "] in %" PRId64,
            lin_module[l], lin->out, lin->in, lin->groups, out, in, groups);
    void *buffer = NULL;
    TRY(dev_alloc(k->r->dev, &buffer, (size_t)(out * groups) * 3));
    const enum err err = apply_lin(k, q, l, buffer);
    dev_free(k->r->dev, buffer);
    return err;
}

/* Quantizes the projections that have scales. */
static enum err quantize_weights(struct model_pass *k, const struct block_quant *q,
                                 const struct block_src *src)
{
    bool loaded = false;
    for (int l = 0; l < N_LIN; l++) {
        if (!q->lin[l].scales)
            continue;
        if (!loaded)
            TRY(block_weights_load(&k->full, k->r->arch, k->w.layer, src));
        loaded = true;
        TRY(quantize_lin(k, q, l));
    }
    return OK;
}

static enum err load_kv(struct model_pass *k, const struct block_quant *q)
{
    const int64_t n = k->kv.k_s.dim[0];
    FAIL_IF(q->n_channels != n, ERR_MISMATCH,
            "KV parameters are for %" PRId64 " channels, the model has %" PRId64,
            q->n_channels, n);
    const size_t bytes = (size_t)n * sizeof(float);
    k->kv.scale[KV_K] = q->k_scale[0];
    k->kv.scale[KV_V] = q->v_scale[0];
    TRY(dev_upload(k->r->dev, k->kv.k_s.data, q->k_scale, bytes));
    TRY(dev_upload(k->r->dev, k->kv.k_shift.data, q->k_shift, bytes));
    TRY(dev_upload(k->r->dev, k->kv.v_s.data, q->v_scale, bytes));
    return dev_upload(k->r->dev, k->kv.v_shift.data, q->v_shift, bytes);
}

/* Keeps the final norm's gain, because the last block's q is only borrowed. */
static enum err keep_final_gain(struct model_pass *k, const struct block_quant *q)
{
    const size_t n = (size_t)k->r->arch->d_model;
    if (!q->gain[GAIN_FINAL])
        return OK;
    if (!k->final_gain)
        TRY(mem_alloc(&k->final_gain, n, sizeof(*k->final_gain)));
    memcpy(k->final_gain, q->gain[GAIN_FINAL], n * sizeof(*k->final_gain));
    return OK;
}

static enum err quantize_block(struct model_pass *k, int64_t i, const struct block_quant *q,
                               const struct block_src *src)
{
    kv_set_unquantized(&k->kv.spec);
    if (!q)
        return OK;
    TRY(keep_final_gain(k, q));
    TRY(quantize_weights(k, q, src));
    k->kv.spec = q->kv;
    k->kv.layer = i;
    return kv_quantized(&k->kv) ? load_kv(k, q) : OK;
}

/* Loads weights and cache settings of block i. */
static enum err load_block(struct model_pass *k, int64_t i)
{
    const struct model_source *src = k->r->src;
    const struct block_quant *q = NULL;
    struct block_src views;
    TRY(src->block(src->ctx, i, &views));
    enum err err = k->r->quant ? k->r->quant->block(k->r->quant->ctx, i, &q) : OK;
    if (!err && q)
        block_src_set_gains(&views, q);
    if (!err)
        err = block_weights_load(&k->w, k->r->arch, i, &views);
    if (!err)
        err = quantize_block(k, i, q, &views);
    if (src->release)
        src->release(src->ctx, i);
    return err ? err_add(err, "block %" PRId64 ": ", i) : OK;
}

/* Returns how the block in work quantizes its cache. A text that is one chunk reads
 * nothing back, so there is nothing to simulate unless the caller wants the cache
 * itself. */
static const struct block_kv *block_cache(struct model_pass *k)
{
    const int64_t chunk = k->r->chunk;
    const bool whole = chunk <= 0 || chunk >= k->longest;
    k->kv.act_bits = k->r->act_bits;
    if (!kv_quantized(&k->kv) || (whole && k->kv.spec.past_only && !k->keep_cache)) {
        kv_set_unquantized(&k->kv.spec);
        return &k->kv;
    }
    k->kv.chunk = whole ? k->longest : chunk;
    return &k->kv;
}

/* Calls r->hidden with window i's hidden states, if set. */
static enum err show_hidden(struct model_pass *k, int64_t i, int64_t block)
{
    const size_t n = (size_t)(k->T * k->r->arch->d_model);
    float *host;
    if (!k->r->hidden || k->packed)
        return OK;
    TRY(mem_alloc(&host, n, sizeof(*host)));
    const enum err err = dev_download(k->r->dev, host, k->h[i].data, n * sizeof(*host));
    if (!err)
        k->r->hidden(k->r->hidden_ctx, i, block, host);
    mem_free(host);
    return err;
}

/* out = the block in work of x, of window i. */
static enum err run_block(struct model_pass *k, int64_t i, const struct tensor *out,
                          const struct tensor *x)
{
    const struct model_run *r = k->r;
    const struct block_kv *kv = block_cache(k);
    if (!k->packed)
        return block_forward(&k->acts, k->scratch, r->arch, &k->w, kv, out, x);
    const struct packed_windows *p = k->packed;
    const int64_t n = packed_window_rows(p, i);
    const struct tensor to = tensor_rows(*out, 0, n), from = tensor_rows(*x, 0, n);
    const struct packed_rows rows = {&to, &from, p->sequence + p->start[i],
                                     p->start[i + 1] - p->start[i], &k->text};
    return block_forward_packed(&k->acts, k->scratch, r->arch, &k->w, kv, &rows);
}

/* Runs window i through the block in work, into the spare, and swaps the two. */
static enum err pass_window(struct model_pass *k, int64_t i)
{
    const struct tensor x = k->h[i], spare = k->h[k->n];
    TRY(run_block(k, i, &spare, &x));
    k->h[i] = spare;
    k->h[k->n] = x;
    pass_step(k);
    return OK;
}

enum err pass_blocks(struct model_pass *k)
{
    for (int64_t i = 0; i < k->n; i++)
        TRY(show_hidden(k, i, -1));
    for (int64_t b = 0; b < k->r->arch->n_layers; b++) {
        TRY(load_block(k, b));
        for (int64_t i = 0; i < k->n; i++) {
            TRY(pass_window(k, i));
            TRY(show_hidden(k, i, b));
        }
    }
    return OK;
}

/* --- runs --------------------------------------------------------------------------- */

/* Where a run writes: host logits [n][T][V], or losses [n][T-1]. One of the two is set. */
struct run_output {
    float *logits, *nll;
};

static enum err put_window(struct model_pass *k, struct head *e, const int32_t *ids,
                           int64_t i, const struct run_output *out)
{
    const struct tensor predicting = tensor_rows(k->h[i], 0, k->T - 1);
    const int64_t logits = k->T * k->r->arch->vocab;
    if (out->logits)
        TRY(head_logits(e, k, &k->h[i], out->logits + i * logits));
    else
        TRY(head_nll(e, k, &predicting, ids + i * k->T + 1, out->nll + i * (k->T - 1)));
    pass_step(k);
    return OK;
}

static enum err run_model(const struct model_run *r, const int32_t *ids, int64_t n,
                          int64_t T, const struct run_output *out)
{
    struct model_pass k;
    struct head e = {0};
    TRY(pass_open(&k, r, ids, n, T, NULL));
    enum err err = pass_blocks(&k);
    if (!err)
        err = head_load(&e, &k);
    for (int64_t i = 0; i < n && !err; i++)
        err = put_window(&k, &e, ids, i, out);
    dev_free(r->dev, e.memory);
    pass_close(&k);
    return err;
}

enum err model_logits(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                      int64_t T, float *logits)
{
    return run_model(r, ids, n_windows, T, &(struct run_output){.logits = logits});
}

enum err model_nll(const struct model_run *r, const int32_t *ids, int64_t n_windows,
                   int64_t T, float *nll)
{
    FAIL_IF(T < 2, ERR_USAGE, "a window of %" PRId64 " tokens predicts nothing; want 2", T);
    return run_model(r, ids, n_windows, T, &(struct run_output){.nll = nll});
}

/* --- logits by pieces --------------------------------------------------------------- */

struct model_states {
    struct model_run run;
    struct model_pass pass;
    struct head head;
};

static enum err states_fill(struct model_states *s)
{
    TRY(pass_blocks(&s->pass));
    block_weights_free(&s->pass.w); /* only the head is needed now */
    block_weights_free(&s->pass.full);
    return head_load(&s->head, &s->pass);
}

enum err model_states_open(struct model_states **out, const struct model_run *r,
                           const int32_t *ids, int64_t n_windows, int64_t T)
{
    struct model_states *s;
    TRY(mem_calloc(&s, 1, sizeof(*s)));
    s->run = *r;
    enum err err = pass_open(&s->pass, &s->run, ids, n_windows, T, NULL);
    if (err) {
        mem_free(s);
        return err;
    }
    err = states_fill(s);
    if (err)
        model_states_close(&s);
    else
        *out = s;
    return err;
}

void model_states_close(struct model_states **ps)
{
    struct model_states *s = *ps;
    *ps = NULL;
    if (!s)
        return;
    dev_free(s->run.dev, s->head.memory);
    pass_close(&s->pass);
    mem_free(s);
}

enum err model_states_logits(struct model_states *s, int64_t i, int64_t t, int64_t rows,
                             float *logits)
{
    FAIL_IF(i < 0 || i >= s->pass.n || t < 0 || rows > s->pass.T - t, ERR_SHAPE,
            "tokens %" PRId64 " + %" PRId64 " of window %" PRId64 ": there are %" PRId64
            " windows of %" PRId64,
            t, rows, i, s->pass.n, s->pass.T);
    const struct tensor x = tensor_rows(s->pass.h[i], t, rows);
    return head_logits(&s->head, &s->pass, &x, logits);
}

/* --- keys and values ---------------------------------------------------------------- */

/* host [T][K*d] F32 = heads of one layer; stage is device scratch. */
static enum err download_heads(struct model_pass *k, float *host, const struct tensor *x,
                               void *stage)
{
    const int64_t n = k->r->arch->n_kv * k->r->arch->head_dim;
    const struct tensor flat = tensor_3d(stage, DT_F32, k->T, x->dim[1], x->dim[2]);
    TRY(dev_copy(k->r->dev, &flat, x));
    return dev_download(k->r->dev, host, stage, (size_t)(k->T * n) * sizeof(float));
}

static enum err kv_layers(struct model_pass *k, float *keys, float *values, void *stage)
{
    const struct arch *a = k->r->arch;
    const int64_t n = a->n_kv * a->head_dim, layer = k->T * n, q = a->n_heads * a->head_dim;
    for (int64_t b = 0; b < a->n_layers; b++) {
        TRY(load_block(k, b));
        TRY(pass_window(k, 0));
        const bool quantized = kv_quantized(&k->kv);
        const struct tensor kx = quantized ? k->acts.kq : tensor_cols(k->acts.qkv, q, n);
        const struct tensor vx =
            quantized ? k->acts.vq : tensor_cols(k->acts.qkv, q + n, n);
        const struct tensor kh = tensor_heads(kx, a->n_kv), vh = tensor_heads(vx, a->n_kv);
        if (keys)
            TRY(download_heads(k, keys + b * layer, &kh, stage));
        if (values)
            TRY(download_heads(k, values + b * layer, &vh, stage));
    }
    return OK;
}

enum err model_kv(const struct model_run *r, const int32_t *ids, int64_t T, float *keys,
                  float *values)
{
    struct model_pass k;
    TRY(pass_open(&k, r, ids, 1, T, NULL));
    k.keep_cache = true;
    void *stage = NULL;
    const size_t n = (size_t)T * (size_t)(r->arch->n_kv * r->arch->head_dim);
    enum err err = dev_alloc(r->dev, &stage, n * sizeof(float));
    if (!err)
        err = kv_layers(&k, keys, values, stage);
    dev_free(r->dev, stage);
    pass_close(&k);
    return err;
}
