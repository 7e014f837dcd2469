/* SPDX-License-Identifier: MIT */
#include "calib/model/ends.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/clip.h"
#include "kernels/tensor/host_finite.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>

#define CHUNK_ROWS 64 /* a unit of work */

/* A matrix whose rows the threads share. */
struct rows {
    const struct host_mat *m;
    struct qlinear *q;
    float *values;            /* [rows][cols], NULL: not wanted */
    float *row;               /* [threads][cols] */
    atomic_int_least64_t bad; /* a row with a non-finite value, -1: none */
};

/* Sets scale and zero of every group of row r, and its values if wanted. */
static void quantize_row(const struct rows *j, int64_t r, const float *w)
{
    const struct qlinear *q = j->q;
    const int64_t step = qlinear_group(q);
    float *to = j->values ? j->values + r * q->in : NULL;
    for (int64_t g = 0, c = 0; c < q->in; g++) {
        const int64_t n = q->in - c < step ? q->in - c : step;
        const struct clip_group group = {.w = w + c, .n = n, .format = q->format};
        uint16_t *scale = q->scales + r * q->groups + g;
        uint8_t *zero = q->zeros + r * q->groups + g;
        clip_scale(scale, zero, &group);
        const float h = f16_to_f32(*scale);
        for (const int64_t end = c + n; c < end; c++)
            if (to)
                to[c] = quant_weight_value(
                    quant_weight_code(w[c], h, *zero, q->format.bits), *zero, h);
    }
}

static void quantize_rows(void *ctx, int64_t chunk, int thread)
{
    struct rows *j = ctx;
    const int64_t n = j->m->cols, begin = chunk * CHUNK_ROWS;
    const int64_t end = begin + CHUNK_ROWS < j->m->rows ? begin + CHUNK_ROWS : j->m->rows;
    const size_t row_bytes = (size_t)n * dtype_bytes(j->m->dtype);
    float *row = j->row + thread * n;
    for (int64_t r = begin; r < end; r++) {
        host_to_f32(row, (const char *)j->m->data + (size_t)r * row_bytes, j->m->dtype, n);
        if (host_find_nonfinite(row, DT_F32, n) < 0)
            quantize_row(j, r, row);
        else
            atomic_store(&j->bad, r);
    }
}

static enum err quantize(struct qlinear *q, float *values, struct pool *p,
                         const struct host_mat *m, struct lin_format f)
{
    struct rows j = {.m = m, .q = q, .values = values};
    struct qlinear fresh = {0};
    enum err err = OK;
    atomic_init(&j.bad, -1);
    TRY(qlinear_alloc(&fresh, m->rows, m->cols, f));
    j.q = &fresh;
    TRY_OUT(mem_alloc(&j.row, (size_t)m->cols * (size_t)(p ? pool_threads(p) : 1),
                      sizeof(*j.row)));
    pool_run(p, (m->rows + CHUNK_ROWS - 1) / CHUNK_ROWS, quantize_rows, &j);
    if (atomic_load(&j.bad) >= 0)
        FAIL_OUT(ERR_FORMAT, "%s: row %" PRId64 " holds a value that is not finite",
                 m->name, (int64_t)atomic_load(&j.bad));
    *q = fresh;
    fresh = (struct qlinear){0};
out:
    mem_free(j.row);
    qlinear_free(&fresh);
    return err;
}

enum err ends_quantize(struct qlinear *q, struct pool *p, const struct host_mat *m,
                       struct lin_format f)
{
    return quantize(q, NULL, p, m, f);
}

enum err ends_values(struct host_mat *out, struct pool *p, const struct host_mat *m,
                     struct lin_format f)
{
    struct qlinear q = {0};
    float *values = NULL;
    const int64_t dims[] = {m->rows, m->cols};
    size_t n;
    if (f.bits >= 16) {
        *out = *m;
        return OK;
    }
    TRY(size_product(&n, dims, 2, sizeof(*values)));
    TRY(mem_alloc(&values, n, 1));
    const enum err err = quantize(&q, values, p, m, f);
    qlinear_free(&q);
    if (err) {
        mem_free(values);
        return err;
    }
    *out = (struct host_mat){values, DT_F32, m->rows, m->cols, m->name};
    return OK;
}

void ends_free(struct host_mat *out, const struct host_mat *m)
{
    if (out->data != m->data)
        mem_free((void *)(uintptr_t)out->data);
    *out = (struct host_mat){0};
}

/* --- a source ----------------------------------------------------------------------- */

static enum err source_block(void *ctx, int64_t i, struct block_src *out)
{
    const struct ends_source *s = ctx;
    return s->from->block(s->from->ctx, i, out);
}

static enum err source_ends(void *ctx, struct host_mat *embed, struct host_mat *final_norm,
                            struct host_mat *head)
{
    const struct ends_source *s = ctx;
    *embed = s->embed;
    *final_norm = s->norm;
    *head = s->head;
    return OK;
}

static void source_release(void *ctx, int64_t i)
{
    const struct ends_source *s = ctx;
    if (s->from->release)
        s->from->release(s->from->ctx, i);
}

static void source_prefetch(void *ctx, int64_t i)
{
    const struct ends_source *s = ctx;
    if (s->from->prefetch)
        s->from->prefetch(s->from->ctx, i);
}

size_t ends_source_bytes(const struct arch *a, struct lin_format f)
{
    const size_t one = (size_t)(a->vocab * a->d_model) * sizeof(float);
    return f.bits >= 16 ? 0 : a->tied ? one : 2 * one;
}

static enum err fill(struct ends_source *s, struct lin_format f, struct pool *p)
{
    struct host_mat embed, head;
    TRY(s->from->ends(s->from->ctx, &embed, &s->norm, &head));
    if (f.bits >= 16) {
        s->embed = embed;
        s->head = head;
        return OK;
    }
    s->owned = true;
    TRY(ends_values(&s->embed, p, &embed, f));
    if (head.data == embed.data)
        s->head = s->embed;
    else
        TRY(ends_values(&s->head, p, &head, f));
    return OK;
}

enum err ends_source_open(struct ends_source *s, const struct model_source *from,
                          struct lin_format f, int threads)
{
    struct pool *p = NULL;
    *s = (struct ends_source){.from = from};
    s->source = (struct model_source){.ctx = s,
                                      .block = source_block,
                                      .ends = source_ends,
                                      .release = source_release,
                                      .prefetch = source_prefetch,
                                      .makes_blocks = from->makes_blocks};
    TRY(pool_open(&p, threads));
    const enum err err = fill(s, f, p);
    pool_close(&p);
    return err;
}

void ends_source_close(struct ends_source *s)
{
    if (s->owned) {
        const bool tied = s->head.data == s->embed.data;
        mem_free((void *)(uintptr_t)s->embed.data);
        if (!tied)
            mem_free((void *)(uintptr_t)s->head.data);
    }
    *s = (struct ends_source){0};
}
