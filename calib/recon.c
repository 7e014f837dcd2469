/* SPDX-License-Identifier: MIT
 *
 * The chain of blocks under the loss: memory, forward, and backward in reverse. Resident
 * full-precision blocks form a ring of max(depth, 1) slots, block i in slot i % slots: when
 * training moves on by one block, exactly one slot is reloaded. */
#include "calib/recon.h"

#include "calib/cost.h"
#include "calib/finite.h"
#include "kernels/base/mem.h"

/* Depth 0 still needs a slot: the full-precision stream moves through each block. */
static int64_t full_slots(int64_t depth)
{
    return depth > 1 ? depth : 1;
}

size_t recon_bytes(const struct arch *a, const struct calib_settings *s)
{
    const int64_t n = cost_reach(a, s->crr_blocks, 0);
    const size_t state = (size_t)(s->seqlen * a->d_model) * sizeof(float);
    const size_t rope = (size_t)(s->seqlen * a->head_dim) * sizeof(float);
    return (size_t)(n + 3) * state + rope + block_acts_bytes(a, s->seqlen, s->act, true) +
           (size_t)n * block_acts_bytes(a, s->seqlen, s->act, false) +
           block_scratch_bytes(a, s->seqlen, s->act) +
           dev_report_bytes(s->batch * (n + 1)) +
           (size_t)full_slots(n) * block_weights_bytes(a, s->act);
}

/* Only the first block has a quantized cache; rope tables and scratch are shared by all. */
static enum err open_blocks(struct recon *r, const struct calib_settings *s)
{
    const int64_t slots = full_slots(r->depth);
    TRY(mem_calloc(&r->acts, (size_t)r->depth + 1, sizeof(*r->acts)));
    TRY(mem_calloc(&r->full, (size_t)slots, sizeof(*r->full)));
    TRY(mem_calloc(&r->full_index, (size_t)slots, sizeof(*r->full_index)));
    TRY(block_rope_alloc(&r->cos, &r->sin, r->dev, r->arch, r->T));
    TRY(block_scratch_open(&r->scratch, r->dev, r->arch, r->T, s->act));
    for (int64_t j = 0; j <= r->depth; j++) {
        TRY(block_acts_alloc(&r->acts[j], r->dev, r->arch, r->T, s->act,
                             j ? NULL : &s->kv));
        r->acts[j].cos = r->cos;
        r->acts[j].sin = r->sin;
    }
    for (int64_t j = 0; j < slots; j++) {
        TRY(block_weights_alloc(&r->full[j], r->dev, r->arch, s->act));
        r->full_index[j] = -1;
    }
    return OK;
}

/* Places x, dy and the outputs in one allocation. */
static enum err open_states(struct recon *r)
{
    const int64_t dims[] = {r->depth + 3, r->T, r->arch->d_model};
    size_t bytes;
    TRY(size_product(&bytes, dims, 3, sizeof(float)));
    TRY(dev_alloc(r->dev, &r->states, bytes));
    TRY(mem_alloc(&r->out, (size_t)r->depth + 1, sizeof(*r->out)));
    const int64_t one = r->T * r->arch->d_model;
    float *at = r->states;
    r->x = tensor_2d(at, DT_F32, r->T, r->arch->d_model);
    r->dy = tensor_2d(at + one, DT_F32, r->T, r->arch->d_model);
    for (int64_t j = 0; j <= r->depth; j++)
        r->out[j] = tensor_2d(at + (j + 2) * one, DT_F32, r->T, r->arch->d_model);
    return OK;
}

/* Steps wait where page-locked memory is too short for a report. */
static enum err open_report(struct recon *r, const struct calib_settings *s)
{
    const enum err err = dev_report_open(&r->report, r->dev, s->batch * (r->depth + 1));
    if (err != ERR_MEMORY)
        return err;
    err_clear();
    dev_report_close(&r->report);
    return OK;
}

enum err recon_open(struct recon *r, struct dev *d, const struct arch *a,
                    const struct calib_settings *s)
{
    *r = (struct recon){.dev = d,
                        .arch = a,
                        .terms = s->crr_terms,
                        .loss = s->crr_loss,
                        .depth = cost_reach(a, s->crr_blocks, 0),
                        .T = s->seqlen};
    TRY(open_blocks(r, s));
    TRY(open_states(r));
    return dev_queues(d) ? open_report(r, s) : OK;
}

void recon_close(struct recon *r)
{
    for (int64_t j = 0; r->acts && j <= r->depth; j++)
        block_acts_free(&r->acts[j]);
    for (int64_t j = 0; r->full && j < full_slots(r->depth); j++)
        block_weights_free(&r->full[j]);
    block_scratch_close(&r->scratch);
    dev_report_close(&r->report);
    if (r->dev) {
        dev_free(r->dev, r->states);
        dev_free(r->dev, r->cos.data);
    }
    mem_free(r->acts);
    mem_free(r->full);
    mem_free(r->full_index);
    mem_free(r->out);
    *r = (struct recon){0};
}

enum err recon_full(struct recon *r, const struct block_weights **w,
                    const struct model_source *src, int64_t i)
{
    const int64_t slot = i % full_slots(r->depth);
    if (r->full_index[slot] != i) {
        struct block_src from;
        src = source_full(src);
        r->full_index[slot] = -1;
        TRY(src->block(src->ctx, i, &from));
        TRY(block_weights_load(&r->full[slot], r->arch, i, &from));
        TRY(finite_weights(&r->full[slot], r->arch, &from, i));
        source_drop(src, i);
        r->full_index[slot] = i;
    }
    *w = &r->full[slot];
    return OK;
}

enum err recon_plain(struct recon *r, const struct block_weights *w,
                     const struct block_kv *kv, const struct tensor **out)
{
    TRY(block_forward(&r->acts[0], r->scratch, r->arch, w, kv, &r->out[0], &r->x));
    *out = &r->out[0];
    return OK;
}

enum err recon_cache(struct recon *r, const struct block_weights *w,
                     const struct block_kv *kv)
{
    return block_forward_cache(&r->acts[0], r->arch, w, kv, &r->x);
}

enum err recon_quantized(struct recon *r, struct fakequant *f, const struct tensor **out)
{
    return recon_plain(r, &f->wq, &f->kv, out);
}

int64_t recon_reach(const struct recon *r, int64_t i)
{
    return cost_reach(r->arch, r->depth, i);
}

bool recon_reads_late(const struct recon *r, const struct fakequant *f,
                      const struct ranks *ranks)
{
    return r->report.dev && !ranks && !f->learn_round;
}

int64_t recon_terms(const struct recon *r, int64_t i)
{
    return r->terms == TERMS_ALL ? recon_reach(r, i) + 1 : 1;
}

/* Adds term j, the error of out_j against the full-precision model's, to *loss or the report, and
 * its gradient to r->dy. first: writes r->dy. With all n + 1 terms each counts 1 / (n + 1), so
 * losses of both kinds of `crr.terms` have one magnitude. */
static enum err add_term(struct recon *r, double *loss, const struct recon_targets *t,
                         int64_t j, int64_t n, bool grads, bool first)
{
    struct tensor target;
    double share = 0;
    const float share_of_term = r->terms == TERMS_ALL ? 1.0f / (float)(n + 1) : 1.0f;
    TRY(t->stage(t->ctx, &target, j));
    const struct loss_inputs term = {.y = &r->out[j],
                                     .t = &target,
                                     .kind = r->loss,
                                     .weight = share_of_term * t->weight,
                                     .accumulate = !first};
    const struct tensor *dy = grads ? &r->dy : NULL;
    if (t->late)
        return dev_report_loss(&r->report, t->late_at + n - j, dy, &term);
    TRY(dev_loss(r->dev, &share, dy, &term));
    *loss += share;
    return OK;
}

/* Runs the chain B_{i+n} o ... o B_{i+1} o B^_i, of which only the first block is
 * quantized; r->out[0 .. n] are its outputs. A block's activations stay for the
 * backward. */
static enum err forward(struct recon *r, struct fakequant *f,
                        const struct model_source *src, int64_t i, int64_t n)
{
    const struct tensor *out;
    const struct block_weights *w;
    TRY(recon_quantized(r, f, &out));
    for (int64_t j = 1; j <= n; j++) {
        TRY(recon_full(r, &w, src, i + j));
        TRY(block_forward(&r->acts[j], r->scratch, r->arch, w, NULL, &r->out[j],
                          &r->out[j - 1]));
    }
    return OK;
}

enum err recon_loss(struct recon *r, double *loss, struct fakequant *f,
                    const struct model_source *src, int64_t i,
                    const struct recon_targets *t, bool grads)
{
    const int64_t n = recon_reach(r, i);
    const struct block_weights *w;
    double sum = 0;
    TRY(forward(r, f, src, i, n));
    /* From the last output back: r->dy is the gradient of out_j when block j is reached.
     * The blocks after the first pass gradients on to their inputs but learn nothing, so
     * they need no weight gradients: half of the backward's products. */
    TRY(add_term(r, &sum, t, n, n, grads, true));
    for (int64_t j = n; j > 0; j--) {
        if (grads) {
            TRY(recon_full(r, &w, src, i + j));
            TRY(block_backward(&r->acts[j], r->scratch, r->arch, w, &r->dy, &r->dy));
        }
        if (r->terms == TERMS_ALL)
            TRY(add_term(r, &sum, t, j - 1, n, grads, false));
    }
    *loss = sum;
    if (!grads)
        return OK;
    TRY(block_backward_params(&r->acts[0], r->scratch, r->arch, &f->wq, &f->kv, &f->grads,
                              &r->dy));
    /* From dL/dW^ to the clipping logits. */
    return fakequant_clip_grads(f);
}
