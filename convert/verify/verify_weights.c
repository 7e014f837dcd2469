/* SPDX-License-Identifier: MIT
 *
 * Compares every weight of the artifact with the source checkpoint, bit for bit: packed
 * weights with the source quantized under the scales of calibration, unquantized tensors
 * with the bytes of the source, s and delta with those of calibration. */
#include "convert/artifact/quantize.h"
#include "convert/format/bitpack.h"
#include "convert/verify/verify_priv.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <string.h>

/* Result of comparing one row. */
struct row_result {
    int64_t differing; /* elements */
    int64_t first;     /* column of the first one, -1: none */
    float have, want;
    bool broken; /* the source holds a non-finite value */
};

struct row_job {
    const struct packed_linear *p;
    const struct host_mat *src;
    const struct qlinear *q;
    struct row_result *result; /* [out] */
    char *scratch;             /* [threads][row_bytes] */
    size_t row_bytes;
};

static uint16_t half_at(const uint8_t *p, int64_t i)
{
    return (uint16_t)(p[2 * i] | p[2 * i + 1] << 8);
}

struct row_scratch {
    float *w;             /* [in] source */
    uint8_t *want, *have; /* [in] codes */
    uint8_t *zeros;       /* [groups] of the artifact */
};

static struct row_scratch scratch_of(const struct row_job *j, int thread)
{
    struct row_scratch s;
    s.w = (float *)(j->scratch + (size_t)thread * j->row_bytes);
    s.want = (uint8_t *)(s.w + j->p->in);
    s.have = s.want + j->p->in;
    s.zeros = s.have + j->p->in;
    return s;
}

/* Compares w^, not codes: different codes may stand for one value. */
static void compare_row(const struct row_job *j, int64_t r, const struct row_scratch *s,
                        struct row_result *out)
{
    const struct packed_linear *p = j->p;
    const int64_t step = p->group_size > 0 ? p->group_size : p->in;
    for (int64_t g = 0, c = 0; c < p->in; g++) {
        const int64_t at = r * p->groups + g;
        const float h = f16_to_f32(half_at(p->scales, at));
        const float hw = f16_to_f32(j->q->scales[at]);
        const uint8_t zw = j->q->zeros[at];
        for (const int64_t end = p->in - c < step ? p->in : c + step; c < end; c++) {
            const float have = quant_weight_value(s->have[c], s->zeros[g], h);
            const float want = quant_weight_value(s->want[c], zw, hw);
            if (f32_bits(have) == f32_bits(want))
                continue;
            if (out->differing++ == 0) {
                out->first = c;
                out->have = have;
                out->want = want;
            }
        }
    }
}

static void check_row(void *ctx, int64_t r, int thread)
{
    const struct row_job *j = ctx;
    const struct packed_linear *p = j->p;
    const struct row_scratch s = scratch_of(j, thread);
    struct row_result *out = &j->result[r];
    *out = (struct row_result){.first = -1};
    host_to_f32(s.w, host_mat_row(j->src, r), j->src->dtype, p->in);
    if (j->q->codes)
        memcpy(s.want, j->q->codes + r * p->in, (size_t)p->in);
    else
        out->broken =
            !quant_row_codes(s.want, s.w, j->q->scales + r * p->groups,
                             j->q->zeros + r * p->groups, p->in, p->bits, p->group_size);
    bitpack_unpack_row(s.have, p->qweight + r * bitpack_bytes(p->in, p->bits), p->in,
                       p->bits);
    bitpack_unpack_row(s.zeros, p->zeros + r * bitpack_bytes(p->groups, p->bits), p->groups,
                       p->bits);
    if (!out->broken)
        compare_row(j, r, &s, out);
}

static void report_rows(struct verify *v, const struct row_job *j)
{
    const struct packed_linear *p = j->p;
    v->r->weights_compared += p->out * p->in;
    for (int64_t r = 0; r < p->out; r++) {
        const struct row_result *x = &j->result[r];
        v->r->weights_differing += x->broken ? p->in : x->differing;
        if (x->broken)
            verify_differs(v, "%s: row %" PRId64 " of the source is not finite",
                           j->src->name, r);
        else if (x->differing)
            verify_differs(v, "%s [%" PRId64 "][%" PRId64 "]: packed %.9g, calibrated %.9g",
                           j->src->name, r, x->first, (double)x->have, (double)x->want);
    }
}

static bool rows_differ(const struct row_job *j)
{
    for (int64_t r = 0; r < j->p->out; r++)
        if (j->result[r].broken || j->result[r].differing)
            return true;
    return false;
}

/* learned: the values may have been learned. Where they are not q's, they are not checked. */
static enum err check_packed(struct verify *v, const struct packed_linear *p,
                             const struct host_mat *src, const struct qlinear *q,
                             bool learned)
{
    enum err err = OK;
    struct row_job j = {.p = p, .src = src, .q = q};
    const struct lin_format format = {p->bits, p->group_size};
    FAIL_IF(!qlinear_fits(q, p->out, p->in, format), ERR_MISMATCH,
            "%s: the state has scales of another shape or format", src->name);
    j.row_bytes = (size_t)p->in * (sizeof(float) + 2) + (size_t)p->groups;
    j.row_bytes = (j.row_bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    TRY_OUT(mem_alloc(&j.result, (size_t)p->out, sizeof(*j.result)));
    TRY_OUT(mem_alloc(&j.scratch, (size_t)pool_threads(v->pool), j.row_bytes));
    pool_run(v->pool, p->out, check_row, &j);
    if (learned && rows_differ(&j))
        v->r->weights_unchecked += p->out * p->in;
    else
        report_rows(v, &j);
out:
    mem_free(j.result);
    mem_free(j.scratch);
    return err;
}

/* Codes of GPTQ and learned rounding do not follow from source and scales: without a state
 * they cannot be checked. Neither can refined scales, but refinement leaves given weights as they
 * are unless it is told otherwise. given: those of the source, or NULL. */
static enum err check_codes(struct verify *v, const struct packed_linear *p,
                            const struct host_mat *src, const struct qlinear *q,
                            const struct qlinear *given)
{
    const struct lin_format format = {p->bits, p->group_size};
    if (v->s->state || !weight_chooses_codes(artifact_weight_spec(v->a)))
        return check_packed(v, p, src, q, false);
    if (given && qlinear_fits(given, p->out, p->in, format))
        return check_packed(v, p, src, given, true);
    v->r->weights_unchecked += p->out * p->in;
    return OK;
}

/* Returns how many values of row r differ; a and b have one type and shape. */
static int64_t differing_in_row(const struct host_mat *a, const struct host_mat *b,
                                int64_t r)
{
    const size_t unit = dtype_bytes(a->dtype);
    const char *x = host_mat_row(a, r), *y = host_mat_row(b, r);
    int64_t count = 0;
    if (!memcmp(x, y, (size_t)a->cols * unit))
        return 0;
    for (size_t i = 0; i < (size_t)a->cols; i++)
        count += memcmp(x + i * unit, y + i * unit, unit) != 0;
    return count;
}

static int64_t differing_values(const struct host_mat *a, const struct host_mat *b)
{
    int64_t count = 0;
    for (int64_t r = 0; r < a->rows; r++)
        count += differing_in_row(a, b, r);
    return count;
}

/* Compares a tensor that is copied into artifacts unchanged. */
static void check_same(struct verify *v, const struct host_mat *have,
                       const struct host_mat *want)
{
    const bool wanted = host_mat_given(want);
    const int64_t n = wanted ? want->rows * want->cols : 0;
    if (!wanted && !have->data)
        return;
    v->r->weights_compared += n;
    const bool alike = have->data && wanted && have->dtype == want->dtype &&
                       have->rows == want->rows && have->cols == want->cols;
    const int64_t differing = alike ? differing_values(have, want)
                              : n   ? n
                                    : have->rows * have->cols;
    if (!differing)
        return;
    v->r->weights_differing += differing;
    verify_differs(v, "%s differs from the source", have->data ? have->name : want->name);
}

/* An unquantized projection; the state must not have scales for it. */
static enum err check_plain(struct verify *v, const struct host_mat *have,
                            const struct host_mat *want, const struct qlinear *q)
{
    FAIL_IF(q->scales, ERR_MISMATCH,
            "%s: the state has %d bits, the artifact 16; give the state it was made from",
            want->name, q->format.bits);
    check_same(v, have, want);
    return OK;
}

static void check_channels(struct verify *v, int64_t i, const char *name, const float *have,
                           const float *want)
{
    const int64_t n = v->arch->n_kv * v->arch->head_dim;
    v->r->weights_compared += n;
    for (int64_t c = 0; c < n; c++)
        if (f32_bits(have[c]) != f32_bits(want[c])) {
            v->r->weights_differing++;
            verify_differs(v, "layer %" PRId64 ": %s[%" PRId64 "] is %.9g, calibrated %.9g",
                           i, name, c, (double)have[c], (double)want[c]);
        }
}

static void check_cache(struct verify *v, int64_t i, const struct packed_block *b,
                        const struct block_quant *q)
{
    check_channels(v, i, "k_scale", b->k_scale, q->k_scale);
    check_channels(v, i, "k_shift", b->k_shift, q->k_shift);
    check_channels(v, i, "v_scale", b->v_scale, q->v_scale);
    check_channels(v, i, "v_shift", b->v_shift, q->v_shift);
}

/* Compares a norm's gain with the source's, or with the refined one; without a state that one
 * is unknown. */
static void check_gain(struct verify *v, const struct host_mat *have,
                       const struct host_mat *source, const float *refined)
{
    struct host_mat want = *source;
    host_mat_set_gain(&want, refined);
    if (artifact_weight_spec(v->a)->refined && !v->s->state)
        v->r->weights_unchecked += have->data ? have->rows : 0;
    else
        check_same(v, have, &want);
}

/* q: of the last block, which holds the final norm's gain. */
static enum err check_final_norm(struct verify *v, const struct block_quant *q)
{
    const struct model_source *m = hf_source(v->model);
    struct host_mat embed, norm, head;
    const struct host_mat have = artifact_final_norm(v->a);
    TRY(m->ends(m->ctx, &embed, &norm, &head));
    check_gain(v, &have, &norm, q->gain[GAIN_FINAL]);
    return OK;
}

static enum err check_block(struct verify *v, int64_t i)
{
    const struct packed_block *b = artifact_block(v->a, i);
    const struct model_source *m = hf_source(v->model);
    const struct block_quant *q;
    struct block_src src;
    TRY(verify_block(v, i, &q));
    TRY(m->block(m->ctx, i, &src));
    for (int l = 0; l < N_LIN; l++) {
        if (b->lin[l].bits < 16)
            TRY(check_codes(v, &b->lin[l], &src.lin[l], &q->lin[l], src.given[l]));
        else
            TRY(check_plain(v, &b->lin[l].w, &src.lin[l], &q->lin[l]));
        check_same(v, &b->lin[l].bias, &src.bias[l]);
    }
    check_same(v, &b->router, &src.router);
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        check_gain(v, &b->norm[g], &src.norm[g], q->gain[g]);
    if (i == v->arch->n_layers - 1)
        TRY(check_final_norm(v, q));
    if (kv_quantizes(artifact_kv_spec(v->a)))
        check_cache(v, i, b, q);
    if (m->release)
        m->release(m->ctx, i);
    return OK;
}

/* Embedding or head; scales and zeros of packed ones follow from the source. */
static enum err check_end(struct verify *v, const struct packed_linear *p,
                          const struct host_mat *src)
{
    struct qlinear q = {0};
    if (p->bits == 16) {
        check_same(v, &p->w, src);
        return OK;
    }
    TRY(ends_quantize(&q, v->pool, src, head_format(artifact_weight_spec(v->a))));
    const enum err err = check_packed(v, p, src, &q, false);
    qlinear_free(&q);
    return err;
}

enum err verify_weights(struct verify *v)
{
    const struct model_source *m = hf_source(v->model);
    struct host_mat embed, norm, head;
    const struct packed_linear *e = artifact_embed(v->a), *h = artifact_head(v->a);
    TRY(m->ends(m->ctx, &embed, &norm, &head));
    TRY(check_end(v, e, &embed));
    if (head.data != embed.data || h != e)
        TRY(check_end(v, h, &head));
    for (int64_t i = 0; i < v->arch->n_layers; i++)
        TRY(check_block(v, i));
    v->r->weights = v->r->weights_differing ? VERIFY_FAIL : VERIFY_PASS;
    return OK;
}

/* --- a state alone ------------------------------------------------------------------ */

/* Compares what the artifact has of one row with a state's: scales, zeros, and codes if the state
 * chose them. codes, zeros: room for the row's. */
static int64_t differing_codes(const struct packed_linear *p, const struct qlinear *q,
                               int64_t r, uint8_t *codes, uint8_t *zeros)
{
    int64_t differing = 0;
    bitpack_unpack_row(zeros, p->zeros + r * bitpack_bytes(p->groups, p->bits), p->groups,
                       p->bits);
    for (int64_t g = 0; g < p->groups; g++) {
        const int64_t at = r * p->groups + g;
        differing += half_at(p->scales, at) != q->scales[at] || zeros[g] != q->zeros[at];
    }
    if (!q->codes)
        return differing;
    bitpack_unpack_row(codes, p->qweight + r * bitpack_bytes(p->in, p->bits), p->in,
                       p->bits);
    for (int64_t c = 0; c < p->in; c++)
        differing += codes[c] != q->codes[r * p->in + c];
    return differing;
}

static enum err check_lin_state(struct verify *v, const struct packed_linear *p,
                                const struct qlinear *q)
{
    uint8_t *codes = NULL;
    int64_t differing = 0;
    const struct lin_format format = {p->bits, p->group_size};
    FAIL_IF(p->bits == 16 ? q->scales != NULL : !qlinear_fits(q, p->out, p->in, format),
            ERR_MISMATCH, "%s: the state has scales of another shape or format", p->w.name);
    if (p->bits == 16)
        return OK;
    TRY(mem_alloc(&codes, (size_t)(p->in + p->groups), 1));
    for (int64_t r = 0; r < p->out; r++)
        differing += differing_codes(p, q, r, codes, codes + p->in);
    mem_free(codes);
    v->r->weights_compared += p->out * (p->groups + (q->codes ? p->in : 0));
    v->r->weights_differing += differing;
    if (differing)
        verify_differs(v, "%s: %" PRId64 " scales, zeros or codes are not the state's",
                       p->w.name, differing);
    return OK;
}

/* Compares a norm's gain if refinement learned it; others are the checkpoint's. */
static void check_gain_state(struct verify *v, const struct host_mat *have,
                             const float *refined)
{
    struct host_mat want = *have;
    if (!refined)
        return;
    host_mat_set_gain(&want, refined);
    check_same(v, have, &want);
}

static enum err check_block_state(struct verify *v, int64_t i)
{
    const struct packed_block *b = artifact_block(v->a, i);
    const struct host_mat norm = artifact_final_norm(v->a);
    const struct block_quant *q;
    TRY(verify_block(v, i, &q));
    for (int l = 0; l < N_LIN; l++)
        TRY(check_lin_state(v, &b->lin[l], &q->lin[l]));
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        check_gain_state(v, &b->norm[g], q->gain[g]);
    if (i == v->arch->n_layers - 1)
        check_gain_state(v, &norm, q->gain[GAIN_FINAL]);
    if (kv_quantizes(artifact_kv_spec(v->a)))
        check_cache(v, i, b, q);
    return OK;
}

/* Says FAIL or nothing: without the checkpoint, the weights themselves are not compared. */
enum err verify_state(struct verify *v)
{
    for (int64_t i = 0; i < v->arch->n_layers; i++)
        TRY(check_block_state(v, i));
    if (v->r->weights_differing)
        v->r->weights = VERIFY_FAIL;
    return OK;
}
