/* SPDX-License-Identifier: MIT */
#include "convert/fold/fold.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/hadamard.h"

#define R KV_TARGET_V_ROTATION

enum err fold_v(float *out, const struct host_mat *v, const float *s)
{
    const int64_t n = R * v->cols;
    double *work = NULL;
    TRY(mem_alloc(&work, (size_t)n, sizeof(*work)));
    host_to_f32(out, v->data, v->dtype, v->rows * v->cols);
    for (int64_t r = 0; r < v->rows; r += R) {
        float *part = out + r * v->cols;
        for (int64_t i = 0; i < n; i++)
            work[i] = (double)part[i];
        hadamard_f64(work, R, v->cols);
        for (int64_t i = 0; i < n; i++)
            work[i] /= (double)s[r + i / v->cols];
        hadamard_f64(work, R, v->cols);
        for (int64_t i = 0; i < n; i++)
            part[i] = (float)work[i];
    }
    mem_free(work);
    return OK;
}

static void read_vector(float *out, const struct host_mat *m, int64_t n)
{
    for (int64_t i = 0; i < n && !m->data; i++)
        out[i] = 0;
    if (m->data)
        host_to_f32(out, m->data, m->dtype, n);
}

void fold_v_bias(float *out, const struct host_mat *bias, const float *s,
                 const float *shift, int64_t n)
{
    read_vector(out, bias, n);
    for (int64_t c = 0; c < n; c += R) {
        double x[R];
        for (int64_t i = 0; i < R; i++)
            x[i] = (double)out[c + i];
        hadamard_f64(x, R, 1);
        for (int64_t i = 0; i < R; i++)
            x[i] = (x[i] - (double)shift[c + i]) / (double)s[c + i];
        hadamard_f64(x, R, 1);
        for (int64_t i = 0; i < R; i++)
            out[c + i] = (float)x[i];
    }
}

/* Folds R columns of a row of o_proj; s and shift are those of their kv head's channels. Returns
 * their share of Wo R shift. */
static double fold_columns(float *x, const float *s, const float *shift)
{
    double work[R], sum = 0;
    for (int64_t i = 0; i < R; i++)
        work[i] = (double)x[i];
    hadamard_f64(work, R, 1);
    for (int64_t i = 0; i < R; i++) {
        sum += work[i] * (double)shift[i];
        work[i] *= (double)s[i];
    }
    hadamard_f64(work, R, 1);
    for (int64_t i = 0; i < R; i++)
        x[i] = (float)work[i];
    return sum;
}

void fold_o(float *out, float *bias, const struct block_src *b, const struct arch *a,
            const float *s, const float *shift)
{
    const struct host_mat *o = &b->lin[LIN_O];
    const int64_t d = a->head_dim, share = a->n_heads / a->n_kv;
    host_to_f32(out, o->data, o->dtype, o->rows * o->cols);
    read_vector(bias, &b->bias[LIN_O], o->rows);
    for (int64_t r = 0; r < o->rows; r++) {
        double sum = (double)bias[r];
        for (int64_t c = 0; c < o->cols; c += R) {
            const int64_t of = c / d / share * d + c % d; /* the kv head's channel */
            sum += fold_columns(out + r * o->cols + c, s + of, shift + of);
        }
        bias[r] = (float)sum;
    }
}
