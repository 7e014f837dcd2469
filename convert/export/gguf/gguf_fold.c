/* SPDX-License-Identifier: MIT
 *
 * Folds the shift d of values into biases. The engine's cache then holds v - d. Attention's
 * weights sum to 1, so its output lacks d, which o_proj's bias brings back:
 *
 *   bv' = bv - d        bo' = bo + Wo d        d repeated for the query heads of a kv head
 *
 * Products are in f64 with the artifact's values of Wo, and rounded once, to F32. */
#include "convert/export/gguf/gguf_keys.h"
#include "kernels/base/mem.h"

/* out [rows] = the bias as F32, or zeros. */
static void read_bias(float *out, const struct packed_linear *q)
{
    for (int64_t i = 0; i < q->out; i++)
        out[i] = 0;
    if (q->bias.data)
        host_to_f32(out, q->bias.data, q->bias.dtype, q->out);
}

/* Returns the sum of a row of o_proj times d [kv heads][head_dim]. */
static double row_times_shift(const float *row, const float *d, const struct arch *a)
{
    const int64_t per_kv = a->n_heads / a->n_kv;
    double sum = 0;
    for (int64_t h = 0; h < a->n_heads; h++)
        for (int64_t i = 0; i < a->head_dim; i++)
            sum +=
                (double)row[h * a->head_dim + i] * (double)d[h / per_kv * a->head_dim + i];
    return sum;
}

/* row: scratch memory for a row of o_proj. */
static void fold_layer(struct gguf_folded *f, const struct packed_block *b,
                       const struct arch *a, float *row)
{
    const struct packed_linear *v = &b->lin[LIN_V], *o = &b->lin[LIN_O];
    read_bias(f->v, v);
    read_bias(f->o, o);
    for (int64_t i = 0; i < v->out; i++)
        f->v[i] = (float)((double)f->v[i] - (double)b->v_shift[i]);
    for (int64_t r = 0; r < o->out; r++) {
        packed_linear_unpack_row(row, o, r);
        f->o[r] = (float)((double)f->o[r] + row_times_shift(row, b->v_shift, a));
    }
}

enum err gguf_fold_shift(struct gguf_plan *p, const struct export_source *s)
{
    const struct arch *a = s->arch;
    const int64_t n_v = arch_out(a, LIN_V), n_o = arch_out(a, LIN_O);
    float *row = NULL, *at = NULL;
    enum err err = OK;
    FAIL_IF(!p->graph->has_biases, ERR_SUPPORT,
            "%s: --fold v-shift needs a bias of o_proj, which llama.cpp's %s does not have",
            s->dir, p->graph->arch);
    TRY_OUT(mem_alloc(&row, (size_t)arch_in(a, LIN_O), sizeof(*row)));
    TRY_OUT(mem_calloc(&p->folded, (size_t)a->n_layers, sizeof(*p->folded)));
    TRY_OUT(mem_alloc(&p->biases, (size_t)(a->n_layers * (n_v + n_o)), sizeof(*at)));
    at = p->biases;
    for (int64_t i = 0; i < a->n_layers; i++, at += n_v + n_o) {
        p->folded[i] = (struct gguf_folded){at, at + n_v};
        fold_layer(&p->folded[i], artifact_block(s->artifact, i), a, row);
    }
out:
    mem_free(row);
    return err;
}
