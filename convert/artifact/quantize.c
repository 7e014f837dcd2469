/* SPDX-License-Identifier: MIT */
#include "convert/artifact/quantize.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "kernels/tensor/rounder.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#define LANES 16
#define RTN_ROWS 16 /* of a unit of work */

/* Returns c ? a : b. Compilers turn the plain form into branches, which do not
 * vectorize. */
static inline float pick(bool c, float a, float b)
{
    const uint32_t mask = 0u - (uint32_t)c;
    return f32_from_bits((f32_bits(a) & mask) | (f32_bits(b) & ~mask));
}

struct range {
    float lo, hi;
};

/* Returns min(0, w) and max(0, w) over n values, in independent lanes. */
static struct range row_range(const float *w, int64_t n)
{
    float lo[LANES] = {0}, hi[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const float x = w[i + l];
            lo[l] = pick(x < lo[l], x, lo[l]);
            hi[l] = pick(x > hi[l], x, hi[l]);
        }
    struct range r = {0, 0};
    for (; i < n; i++) {
        r.lo = w[i] < r.lo ? w[i] : r.lo;
        r.hi = w[i] > r.hi ? w[i] : r.hi;
    }
    for (int l = 0; l < LANES; l++) {
        r.lo = lo[l] < r.lo ? lo[l] : r.lo;
        r.hi = hi[l] > r.hi ? hi[l] : r.hi;
    }
    return r;
}

/* Tests the exponent's bits, which vectorizes; all ones are infinity or NaN. */
static bool all_finite(const float *w, int64_t n)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= (f32_bits(w[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

/* Round to nearest without clipping: a group's range is [min(0, min w), max(0, max w)], and
 * quant.h gives scale and zero. */
bool quant_row_rtn(uint16_t *scales, uint8_t *zeros, const float *w, int64_t n,
                   struct lin_format f)
{
    const int64_t step = f.group_size > 0 ? f.group_size : n;
    for (int64_t begin = 0, g = 0; begin < n; begin += step, g++) {
        const struct range r = row_range(w + begin, n - begin < step ? n - begin : step);
        scales[g] = quant_weight_scale(r.lo, r.hi, f.bits, f.scale_bits);
        zeros[g] = quant_weight_zero(r.lo, f16_to_f32(scales[g]), f.bits);
    }
    return all_finite(w, n);
}

/* codes = quant_weight_code of each. Clamping u to [-z, Q - z] before rounding equals
 * clamping round(u) + z to [0, Q] after it, because the bounds are integers. */
static void group_codes(uint8_t *restrict codes, const float *restrict w, int64_t n,
                        float h, uint8_t z, int bits)
{
    const float lo = -(float)z, hi = (float)((1 << bits) - 1 - z);
    for (int64_t i = 0; i < n; i++) {
        const float u = w[i] / h, v = pick(u < lo, lo, u);
        codes[i] = (uint8_t)(f32_bits(pick(v > hi, hi, v) + ROUNDER) + z);
    }
}

bool quant_row_codes(uint8_t *codes, const float *w, const uint16_t *scales,
                     const uint8_t *zeros, int64_t n, int bits, int64_t group_size)
{
    const int64_t step = group_size > 0 ? group_size : n;
    if (!all_finite(w, n))
        return false;
    for (int64_t begin = 0, g = 0; begin < n; begin += step, g++)
        group_codes(codes + begin, w + begin, n - begin < step ? n - begin : step,
                    f16_to_f32(scales[g]), zeros[g], bits);
    return true;
}

static enum err not_finite(const struct host_mat *m, int64_t r)
{
    FAIL(ERR_FORMAT, "%s: row %" PRId64 " holds a value that is not finite", m->name, r);
}

/* One projection, whose rows the threads share. */
struct rtn {
    struct qlinear *q;
    const struct host_mat *m;
    float *row;               /* [threads][cols] */
    atomic_int_least64_t bad; /* a row with a non-finite value, -1: none */
};

static void rtn_rows(void *ctx, int64_t chunk, int thread)
{
    struct rtn *k = ctx;
    const int64_t n = k->m->cols, begin = chunk * RTN_ROWS;
    const int64_t end = begin + RTN_ROWS < k->m->rows ? begin + RTN_ROWS : k->m->rows;
    float *row = k->row + thread * n;
    for (int64_t r = begin; r < end; r++) {
        host_to_f32(row, host_mat_row(k->m, r), k->m->dtype, n);
        if (!quant_row_rtn(k->q->scales + r * k->q->groups, k->q->zeros + r * k->q->groups,
                           row, n, k->q->format))
            atomic_store(&k->bad, r);
    }
}

static enum err linear_rtn(struct pool *p, struct qlinear *q, const struct host_mat *m,
                           struct lin_format format)
{
    struct rtn k = {.q = q, .m = m};
    atomic_init(&k.bad, -1);
    TRY(qlinear_alloc(q, m->rows, m->cols, format));
    TRY(mem_alloc(&k.row, (size_t)m->cols * (size_t)(p ? pool_threads(p) : 1),
                  sizeof(*k.row)));
    pool_run(p, (m->rows + RTN_ROWS - 1) / RTN_ROWS, rtn_rows, &k);
    mem_free(k.row);
    const int64_t bad = atomic_load(&k.bad);
    return bad < 0 ? OK : not_finite(m, bad);
}

/* Scales and zeros that the checkpoint stores. */
static enum err linear_given(struct qlinear *q, const struct block_src *src, int lin,
                             struct lin_format format)
{
    const struct qlinear *from = src->given[lin];
    const struct host_mat *m = &src->lin[lin];
    FAIL_IF(!from || !qlinear_fits(from, m->rows, m->cols, format), ERR_MISMATCH,
            "%s: the checkpoint stores no codes of it in this format", m->name);
    TRY(qlinear_alloc(q, m->rows, m->cols, format));
    const size_t n = (size_t)(q->out * q->groups);
    memcpy(q->scales, from->scales, n * sizeof(*q->scales));
    memcpy(q->zeros, from->zeros, n);
    return OK;
}

enum err quant_block_rtn_on(struct pool *p, struct block_quant *out, const struct arch *a,
                            const struct block_src *src, int64_t layer,
                            const struct weight_spec *w, const struct kv_spec *kv)
{
    enum err err = OK;
    struct block_quant b = {0};
    TRY(block_quant_alloc(&b, a->n_kv * a->head_dim));
    b.kv = *kv;
    for (int i = 0; i < N_LIN; i++) {
        const struct lin_format format = weight_format(w, layer, i);
        if (format.bits < 16 && w->method == WEIGHT_GIVEN)
            TRY_OUT(linear_given(&b.lin[i], src, i, format));
        else if (format.bits < 16)
            TRY_OUT(linear_rtn(p, &b.lin[i], &src->lin[i], format));
    }
    *out = b;
    return OK;
out:
    block_quant_free(&b);
    return err;
}

enum err quant_block_rtn(struct block_quant *out, const struct arch *a,
                         const struct block_src *src, int64_t layer,
                         const struct weight_spec *w, const struct kv_spec *kv)
{
    return quant_block_rtn_on(NULL, out, a, src, layer, w, kv);
}
