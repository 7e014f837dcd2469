/* SPDX-License-Identifier: MIT
 *
 * With H the Hessian (2 / samples) sum x x^T of the input and H^-1 = U^T U, U upper
 * triangular, GPTQ goes through the columns in order:
 *
 *   q_i  = quantize(w_i)          e_i = (w_i - q_i) / U_ii
 *   w_j -= e_i U_ij               for all j > i: the error moves to later columns
 *
 * Rows of W are independent of each other; columns are not. The update is therefore done in
 * steps of GPTQ_COLUMNS columns:
 *
 *             done      step      later columns
 *   W [out] | codes | w w w w w | . . . . . . . . . |
 *                     |       \
 *                     |        errors E [out, width], one upload
 *                     v         \
 *         host: rows in parallel,  device: W_later -= E U[step, later], one GEMM
 *         updates inside the step
 *
 * A group's scale is set when its first column is reached, from the weights as the updates
 * left them. Groups wider than a step are scanned first (scale_wide_group). With act_order,
 * or when scales are given, all scales are fixed before the first step. */
#include "calib/start/gptq_solve.h"

#include "kernels/base/mem.h"
#include "kernels/cholesky.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* --- the input's factor ------------------------------------------------------------- */

/* Sets the diagonal of inputs that were always 0 to 1, since their weights do not matter.
 * Returns the mean of the diagonal. */
static double fix_dead(struct gptq_input *x)
{
    double sum = 0;
    for (int64_t i = 0; i < x->n; i++) {
        double *diagonal = &x->h[i * x->n + i];
        x->dead[i] = *diagonal == 0;
        if (x->dead[i])
            *diagonal = 1;
        sum += *diagonal;
    }
    return sum / (double)x->n;
}

struct ranked {
    double diagonal;
    int64_t column;
};

static int larger_first(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->diagonal != y->diagonal)
        return x->diagonal > y->diagonal ? -1 : 1;
    return x->column < y->column ? -1 : 1;
}

static enum err rank_columns(struct gptq_input *x)
{
    struct ranked *r = NULL;
    TRY(mem_alloc(&r, (size_t)x->n, sizeof(*r)));
    for (int64_t i = 0; i < x->n; i++)
        r[i] = (struct ranked){x->h[i * x->n + i], i};
    qsort(r, (size_t)x->n, sizeof(*r), larger_first);
    for (int64_t i = 0; i < x->n; i++)
        x->order[i] = r[i].column;
    mem_free(r);
    return OK;
}

/* Brings rows and columns of h into x->order, in place: first the columns, row by row, then
 * whole rows along the cycles of the permutation. */
static enum err permute(struct gptq_input *x)
{
    enum err err = OK;
    const int64_t n = x->n;
    double *row = NULL;
    bool *done = NULL;
    TRY(mem_alloc(&row, (size_t)n, sizeof(*row)));
    TRY_OUT(mem_calloc(&done, (size_t)n, sizeof(*done)));
    for (int64_t i = 0; i < n; i++) {
        double *at = x->h + i * n;
        for (int64_t j = 0; j < n; j++)
            row[j] = at[x->order[j]];
        memcpy(at, row, (size_t)n * sizeof(*row));
    }
    for (int64_t first = 0; first < n; first++) {
        if (done[first])
            continue;
        memcpy(row, x->h + first * n, (size_t)n * sizeof(*row));
        int64_t i = first;
        for (; x->order[i] != first; i = x->order[i]) {
            memcpy(x->h + i * n, x->h + x->order[i] * n, (size_t)n * sizeof(*row));
            done[i] = true;
        }
        memcpy(x->h + i * n, row, (size_t)n * sizeof(*row));
        done[i] = true;
    }
out:
    mem_free(row);
    mem_free(done);
    return err;
}

enum err gptq_factor(struct gptq_input *x, const struct gptq_settings *s, int threads)
{
    const double mean = fix_dead(x);
    FAIL_IF(!isfinite(mean), ERR_NUMERIC,
            "weights.method: gptq: its inputs are infinite or NaN; check the checkpoint's "
            "values in this block");
    for (int64_t i = 0; i < x->n; i++)
        x->order[i] = i;
    if (s->act_order) {
        TRY(rank_columns(x));
        TRY(permute(x));
    }
    for (int64_t i = 0; i < x->n; i++)
        x->h[i * x->n + i] += s->damp * mean;
    const enum err err = cholesky_of_inverse(x->h, x->n, threads);
    if (err == ERR_NUMERIC)
        return err_add(err,
                       "weights.method: gptq: raise weights.damp, which is %g, in a new "
                       "state directory: ",
                       s->damp);
    return err ? err_add(err, "weights.method: gptq: ") : OK;
}

/* --- one projection ----------------------------------------------------------------- */

struct solve {
    struct gptq_work *k;
    struct qlinear *q;
    const struct gptq_input *x;
    struct tensor w; /* device [out, n], columns in x->order */
    int bits;
    int64_t group;            /* columns */
    bool given;               /* all scales and zeros are set before the first step */
    bool scaled;              /* those of the current step are set */
    int64_t first, width;     /* columns of the step */
    float *u;                 /* host [width][width]: U of the step's columns */
    atomic_int_least64_t bad; /* a row whose weights are not finite, -1: none */
};

static void set_scale(const struct solve *s, int64_t row, int64_t group, float lo, float hi)
{
    const int64_t at = row * s->q->groups + group;
    s->q->scales[at] = quant_weight_scale(lo, hi, s->bits, s->q->format.scale_bits);
    s->q->zeros[at] = quant_weight_zero(lo, f16_to_f32(s->q->scales[at]), s->bits);
}

static void widen(float *lo, float *hi, const float *w, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        *lo = w[i] < *lo ? w[i] : *lo;
        *hi = w[i] > *hi ? w[i] : *hi;
    }
}

/* Sets scale and zero of a group from n of its columns. */
static void scale_from(const struct solve *s, int64_t row, int64_t group, const float *w,
                       int64_t n)
{
    float lo = 0, hi = 0;
    widen(&lo, &hi, w, n);
    set_scale(s, row, group, lo, hi);
}

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Quantizes one row of the step. Its weights are replaced by the negative errors -e.
 * Returns false for a weight that is not finite. */
static bool quantize_row(const struct solve *s, int64_t row, float *w)
{
    const int64_t n = s->x->n, width = s->width;
    for (int64_t i = 0; i < width; i++) {
        const int64_t column = s->x->order[s->first + i], group = column / s->group;
        if (!isfinite(w[i]))
            return false;
        if (!s->scaled && column % s->group == 0)
            scale_from(s, row, group, w + i, min_i64(s->group, n - column));
        const float h = f16_to_f32(s->q->scales[row * s->q->groups + group]);
        const uint8_t z = s->q->zeros[row * s->q->groups + group];
        const uint8_t code = quant_weight_code(w[i], h, z, s->bits);
        const float *u = s->u + i * width;
        const float error = (w[i] - quant_weight_value(code, z, h)) / u[i];
        s->q->codes[row * n + column] = code;
        w[i] = -error;
        for (int64_t j = i + 1; j < width; j++)
            w[j] -= error * u[j];
    }
    return true;
}

static void quantize_chunk(void *ctx, int64_t row, int thread)
{
    struct solve *s = ctx;
    if (!quantize_row(s, row, s->k->stage + row * s->width))
        atomic_store(&s->bad, row);
}

/* Downloads columns [first, first + n) of the weight to the stage, [out][n]. */
static enum err fetch(const struct solve *s, int64_t first, int64_t n)
{
    const struct tensor from = tensor_cols(s->w, first, n);
    const struct tensor to = tensor_2d(s->k->block.data, DT_F32, s->q->out, n);
    TRY(dev_copy(s->k->dev, &to, &from));
    return dev_download(s->k->dev, s->k->stage, to.data,
                        (size_t)(s->q->out * n) * sizeof(float));
}

/* Sets the scales of a group wider than a step, from all of its columns as they are now. */
static enum err scale_wide_group(struct solve *s, int64_t first)
{
    const int64_t out = s->q->out, end = min_i64(first + s->group, s->x->n);
    float *lo = s->k->range, *hi = lo + out;
    memset(lo, 0, 2 * (size_t)out * sizeof(*lo));
    for (int64_t c = first; c < end; c += GPTQ_COLUMNS) {
        const int64_t n = min_i64(GPTQ_COLUMNS, end - c);
        TRY(fetch(s, c, n));
        for (int64_t r = 0; r < out; r++)
            widen(&lo[r], &hi[r], s->k->stage + r * n, n);
    }
    for (int64_t r = 0; r < out; r++)
        set_scale(s, r, first / s->group, lo[r], hi[r]);
    return OK;
}

static void load_diagonal(const struct solve *s)
{
    for (int64_t i = 0; i < s->width; i++)
        for (int64_t j = 0; j < s->width; j++)
            s->u[i * s->width + j] =
                (float)s->x->h[(s->first + i) * s->x->n + s->first + j];
}

/* Updates the columns after the step: w += (-e) U. */
static enum err spread(const struct solve *s)
{
    const int64_t after = s->first + s->width, left = s->x->n - after;
    const struct tensor errors = tensor_2d(s->k->block.data, DT_F32, s->q->out, s->width);
    if (!left)
        return OK;
    TRY(dev_upload(s->k->dev, errors.data, s->k->stage,
                   (size_t)(s->q->out * s->width) * sizeof(float)));
    const struct tensor u =
        tensor_cols(tensor_rows(s->k->u, s->first, s->width), after, left);
    const struct tensor w = tensor_cols(s->w, after, left);
    return dev_gemm(s->k->dev, GEMM_NN, &w, &errors, &u, true);
}

/* Returns the end of a step, which holds whole groups or a part of one wide group. */
static int64_t step_end(const struct solve *s, int64_t first)
{
    if (s->given)
        return min_i64(first + GPTQ_COLUMNS, s->x->n);
    if (s->group <= GPTQ_COLUMNS)
        return min_i64(first + GPTQ_COLUMNS / s->group * s->group, s->x->n);
    const int64_t group_end = (first / s->group + 1) * s->group;
    return min_i64(min_i64(first + GPTQ_COLUMNS, group_end), s->x->n);
}

static enum err run_step(struct solve *s)
{
    const bool wide = !s->given && s->group > GPTQ_COLUMNS;
    if (wide && s->first % s->group == 0)
        TRY(scale_wide_group(s, s->first));
    TRY(fetch(s, s->first, s->width));
    load_diagonal(s);
    s->scaled = s->given || wide;
    pool_run(s->k->pool, s->q->out, quantize_chunk, s);
    const int64_t bad = atomic_load(&s->bad);
    FAIL_IF(bad >= 0, ERR_NUMERIC,
            "weights.method: gptq: row %" PRId64
            " becomes infinite or NaN in one of the columns from %" PRId64
            " on; raise weights.damp, in a new state directory",
            bad, s->first);
    return spread(s);
}

/* Clears dead columns of a row. If scales are set beforehand, sets them and brings the
 * columns into x->order. */
static void prepare_row(struct solve *s, int64_t row, float *w, float *scratch)
{
    const int64_t n = s->x->n;
    for (int64_t c = 0; c < n; c++)
        w[c] = s->x->dead[c] ? 0 : w[c];
    if (!s->given)
        return;
    for (int64_t c = 0; c < n && !s->k->scaled; c += s->group)
        scale_from(s, row, c / s->group, w + c, min_i64(s->group, n - c));
    memcpy(scratch, w, (size_t)n * sizeof(*w));
    for (int64_t i = 0; i < n; i++)
        w[i] = scratch[s->x->order[i]];
}

static enum err prepare(struct solve *s)
{
    const int64_t out = s->q->out, n = s->x->n;
    const size_t bytes = (size_t)(out * n) * sizeof(float);
    float *scratch = NULL;
    TRY(mem_alloc(&scratch, (size_t)n, sizeof(*scratch)));
    enum err err = dev_download(s->k->dev, s->k->stage, s->w.data, bytes);
    for (int64_t r = 0; r < out && !err; r++)
        prepare_row(s, r, s->k->stage + r * n, scratch);
    mem_free(scratch);
    return err ? err : dev_upload(s->k->dev, s->w.data, s->k->stage, bytes);
}

enum err gptq_linear(struct gptq_work *k, struct qlinear *q, const struct tensor *weight,
                     const struct gptq_input *x, const struct gptq_settings *settings)
{
    enum err err = OK;
    struct solve s = {.k = k,
                      .q = q,
                      .x = x,
                      .w = *weight,
                      .bits = q->format.bits,
                      .group = qlinear_group(q),
                      .given = settings->act_order || k->scaled};
    atomic_init(&s.bad, -1);
    TRY(mem_alloc(&s.u, GPTQ_COLUMNS * GPTQ_COLUMNS, sizeof(*s.u)));
    TRY_OUT(prepare(&s));
    for (; s.first < x->n; s.first += s.width) {
        s.width = step_end(&s, s.first) - s.first;
        TRY_OUT(run_step(&s));
    }
out:
    mem_free(s.u);
    return err;
}
