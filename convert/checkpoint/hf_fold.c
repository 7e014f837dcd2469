/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_fold.h"

#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/hadamard.h"

static double read_at(const struct host_mat *m, int64_t i)
{
    float x;
    const char *at = (const char *)m->data + (size_t)i * dtype_bytes(m->dtype);
    host_to_f32(&x, at, m->dtype, 1);
    return (double)x;
}

static void write_at(void *data, enum dtype t, int64_t i, double x)
{
    const float f = (float)x;
    const uint16_t h = t == DT_F16 ? f16_from_f32(f) : bf16_from_f32(f);
    if (t == DT_F32)
        memcpy((char *)data + i * 4, &f, 4);
    else
        memcpy((char *)data + i * 2, &h, 2);
}

/* out = R m for each group of d rows; work [d][cols]. */
static void rotate_rows(void *out, const struct host_mat *m, int64_t d, double *work)
{
    const int64_t n = d * m->cols;
    for (int64_t at = 0; at < m->rows * m->cols; at += n) {
        for (int64_t i = 0; i < n; i++)
            work[i] = read_at(m, at + i);
        hadamard_f64(work, d, m->cols);
        for (int64_t i = 0; i < n; i++)
            write_at(out, m->dtype, at + i, work[i]);
    }
}

/* out = m R for each group of d columns; work [d]. */
static void rotate_cols(void *out, const struct host_mat *m, int64_t d, double *work)
{
    for (int64_t at = 0; at < m->rows * m->cols; at += d) {
        for (int64_t i = 0; i < d; i++)
            work[i] = read_at(m, at + i);
        hadamard_f64(work, d, 1);
        for (int64_t i = 0; i < d; i++)
            write_at(out, m->dtype, at + i, work[i]);
    }
}

static size_t bytes_of(const struct host_mat *m)
{
    return m->data ? (size_t)(m->rows * m->cols) * dtype_bytes(m->dtype) : 0;
}

enum err fold_values(struct block_src *b, void **memory, const struct arch *a)
{
    struct host_mat *v = &b->lin[LIN_V], *o = &b->lin[LIN_O], *bias = &b->bias[LIN_V];
    const size_t v_bytes = bytes_of(v), o_bytes = bytes_of(o), bias_bytes = bytes_of(bias);
    double *work = NULL;
    char *out = NULL;
    TRY(mem_alloc(&work, (size_t)a->head_dim, (size_t)v->cols * sizeof(*work)));
    const enum err err = mem_alloc(&out, v_bytes + o_bytes + bias_bytes, 1);
    if (!err) {
        rotate_rows(out, v, a->head_dim, work);
        rotate_cols(out + v_bytes, o, a->head_dim, work);
        if (bias->data)
            rotate_rows(out + v_bytes + o_bytes, bias, a->head_dim, work);
        v->data = out;
        o->data = out + v_bytes;
        if (bias->data)
            bias->data = out + v_bytes + o_bytes;
        *memory = out;
    }
    mem_free(work);
    return err;
}
