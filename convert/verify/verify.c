/* SPDX-License-Identifier: MIT
 *
 * Runs the four parts of verification in order. The structure part is here: checksums, and
 * whether every number is finite. */
#include "convert/verify/verify.h"

#include "convert/verify/verify_priv.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/host_finite.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void verify_differs(struct verify *v, const char *fmt, ...)
{
    va_list ap;
    if (v->r->first_difference[0])
        return;
    va_start(ap, fmt);
    vsnprintf(v->r->first_difference, sizeof(v->r->first_difference), fmt, ap);
    va_end(ap);
}

/* --- structure ---------------------------------------------------------------------- */

/* Checks that every value of an unquantized tensor is finite. */
static void check_plain(struct verify *v, const struct host_mat *w)
{
    if (!w->data)
        return;
    v->r->n_tensors++;
    if (!host_check_finite(w->name, w->data, w->dtype, w->rows * w->cols, w->cols))
        return;
    v->r->structure = VERIFY_FAIL;
    verify_differs(v, "%s", err_text());
    err_clear();
}

/* Checks that every scale of a packed matrix is positive and finite. */
static void check_scales(struct verify *v, const struct packed_linear *p)
{
    v->r->n_tensors += 3;
    for (int64_t k = 0; k < p->out * p->groups; k++) {
        const float h =
            f16_to_f32((uint16_t)(p->scales[2 * k] | p->scales[2 * k + 1] << 8));
        if (!(h > 0) || !isfinite(h)) {
            v->r->structure = VERIFY_FAIL;
            verify_differs(v, "scales of %s: value %" PRId64 " is %g", p->w.name, k,
                           (double)h);
            return;
        }
    }
}

static void check_matrix(struct verify *v, const struct packed_linear *p)
{
    if (p->bits == 16)
        check_plain(v, &p->w);
    else
        check_scales(v, p);
}

/* side: 'k' or 'v', for the message. */
static void check_channels(struct verify *v, const float *s, const float *delta, int64_t i,
                           char side)
{
    const int64_t n = v->arch->n_kv * v->arch->head_dim;
    v->r->n_tensors += 2;
    for (int64_t c = 0; c < n; c++)
        if (!(s[c] > 0) || !isfinite(s[c]) || !isfinite(delta[c])) {
            v->r->structure = VERIFY_FAIL;
            verify_differs(
                v, "layer %" PRId64 ": %c_scale %g, %c_shift %g of channel %" PRId64, i,
                side, (double)s[c], side, (double)delta[c], c);
            return;
        }
}

static void check_block(struct verify *v, int64_t i)
{
    const struct packed_block *b = artifact_block(v->a, i);
    for (int l = 0; l < N_LIN; l++) {
        v->r->n_linears++;
        check_matrix(v, &b->lin[l]);
        check_plain(v, &b->lin[l].bias);
    }
    check_plain(v, &b->router);
    for (int g = 0; g < N_BLOCK_GAINS; g++)
        check_plain(v, &b->norm[g]);
    if (kv_quantizes(artifact_kv_spec(v->a))) {
        check_channels(v, b->k_scale, b->k_shift, i, 'k');
        check_channels(v, b->v_scale, b->v_shift, i, 'v');
    }
}

enum err verify_structure(struct verify *v)
{
    const struct packed_linear *embed = artifact_embed(v->a), *head = artifact_head(v->a);
    const struct host_mat norm = artifact_final_norm(v->a);
    v->r->structure = VERIFY_PASS;
    check_matrix(v, embed);
    check_plain(v, &norm);
    if (head != embed)
        check_matrix(v, head);
    for (int64_t i = 0; i < v->arch->n_layers; i++)
        check_block(v, i);
    return OK;
}

/* --- scales to verify against ------------------------------------------------------- */

/* True if scales follow from the checkpoint, without a state. */
static bool is_plain_rtn(const struct verify *v)
{
    const enum weight_method method = artifact_weight_spec(v->a)->method;
    return v->model && (method == WEIGHT_RTN || method == WEIGHT_GIVEN) &&
           !weight_chooses_codes(artifact_weight_spec(v->a)) &&
           weight_quantizes(artifact_weight_spec(v->a));
}

/* Replaces the scales of block i by those of round to nearest, which follow from the source
 * alone. */
static enum err rtn_scales(struct verify *v, int64_t i)
{
    struct block_quant rtn = {0};
    struct block_src src;
    const struct model_source *m = hf_source(v->model);
    TRY(m->block(m->ctx, i, &src));
    TRY(quant_block_rtn(&rtn, v->arch, &src, i, artifact_weight_spec(v->a),
                        artifact_kv_spec(v->a)));
    for (int l = 0; l < N_LIN; l++) {
        const struct qlinear own = v->current.lin[l];
        v->current.lin[l] = rtn.lin[l];
        rtn.lin[l] = own;
    }
    block_quant_free(&rtn);
    return OK;
}

enum err verify_block(struct verify *v, int64_t i, const struct block_quant **q)
{
    if (v->s->state)
        return v->s->state->block(v->s->state->ctx, i, q);
    if (v->current_i != i) {
        block_quant_free(&v->current);
        v->current_i = -1;
        TRY(artifact_block_quant(&v->current, v->a, i));
        if (is_plain_rtn(v))
            TRY(rtn_scales(v, i));
        v->current_i = i;
    }
    *q = &v->current;
    return OK;
}

/* --- all parts ---------------------------------------------------------------------- */

static struct verify_settings with_defaults(const struct verify_settings *given)
{
    struct verify_settings s = *given;
    if (!s.logit_tokens)
        s.logit_tokens = 256;
    if (!s.windows)
        s.windows = 1;
    if (!s.ctx)
        s.ctx = 512;
    if (!(s.max_kl > 0))
        s.max_kl = 1e-3;
    if (!(s.max_ppl_gap > 0))
        s.max_ppl_gap = 0.005;
    if (!(s.max_block_error > 0))
        s.max_block_error = 0.01;
    if (!(s.min_cosine > 0))
        s.min_cosine = 0.999;
    if (!(s.min_head_cosine > 0))
        s.min_head_cosine = 0.5;
    return s;
}

/* An artifact that cannot be opened is an error. One that opens, but whose bytes do not
 * match its manifest, fails verification: *whole = false. */
static enum err open_artifact(struct verify *v, const char *dir, bool *whole)
{
    TRY(artifact_open(&v->a, dir, 0));
    artifact_close(&v->a);
    const enum err err = artifact_open(&v->a, dir, ARTIFACT_CHECK | ARTIFACT_LOAD);
    *whole = !err;
    if (err != ERR_FORMAT)
        return err;
    v->r->structure = VERIFY_FAIL;
    verify_differs(v, "%s", err_text());
    err_clear();
    return OK;
}

/* Copies the artifact's sizes into the report. */
static void report_sizes(struct verify *v)
{
    struct artifact_sizes sizes;
    artifact_measure(&sizes, v->a);
    v->r->weight_bits = sizes.weight_bits;
    v->r->kv_bits = sizes.kv_bits;
    v->r->total_bytes = sizes.total_bytes;
    v->r->target = artifact_kv_spec(v->a)->target;
    v->r->inputs_left = weight_rounds_inputs(artifact_weight_spec(v->a));
}

static enum err check_same_model(const struct verify *v)
{
    const struct arch *have = v->arch, *want = hf_arch(v->model);
    struct arch_difference d;
    FAIL_IF(
        have->family != want->family, ERR_MISMATCH,
        "%s is a \"%s\" model, but the artifact holds a \"%s\" model; give the checkpoint that "
        "it was made from",
        v->s->against, want->model_type, have->model_type);
    FAIL_IF(arch_differs(&d, have, want), ERR_MISMATCH,
            "%s has %s %.9g, but the artifact has %.9g: it was not made from this "
            "checkpoint",
            v->s->against, d.field, d.b, d.a);
    return OK;
}

static enum err run_parts(struct verify *v, const char *dir)
{
    bool whole;
    TRY(open_artifact(v, dir, &whole));
    if (!whole)
        return OK;
    v->arch = artifact_arch(v->a);
    report_sizes(v);
    if (v->s->against) {
        const bool given = artifact_weight_spec(v->a)->method == WEIGHT_GIVEN;
        TRY(given ? hf_open_packed(&v->model, v->s->against, VERIFY_WANTS_GIVEN)
                  : hf_open(&v->model, v->s->against));
        TRY(check_same_model(v));
        TRY(hf_rotate_values(v->model, artifact_kv_spec(v->a)));
    }
    TRY(pool_open(&v->pool, v->s->threads));
    TRY(verify_structure(v));
    if (v->r->structure != VERIFY_PASS)
        return OK;
    if (v->model)
        TRY(verify_weights(v));
    else if (v->s->state)
        TRY(verify_state(v));
    if (!v->s->ids)
        return OK;
    if (v->model)
        TRY(ends_source_open(&v->ends, hf_source(v->model),
                             head_format(artifact_weight_spec(v->a)), v->s->threads));
    TRY(verify_logits(v));
    return verify_perplexity(v);
}

enum err verify_run(struct verify_report *out, const char *artifact_dir,
                    const struct verify_settings *s)
{
    const struct verify_settings settings = with_defaults(s);
    struct verify_report r = {.structure = VERIFY_SKIP,
                              .weights = VERIFY_SKIP,
                              .logits = VERIFY_SKIP,
                              .perplexity = VERIFY_SKIP};
    struct verify v = {.s = &settings, .r = &r, .current_i = -1};
    const enum err err = run_parts(&v, artifact_dir);
    block_quant_free(&v.current);
    pool_close(&v.pool);
    ends_source_close(&v.ends);
    hf_close(&v.model);
    artifact_close(&v.a);
    TRY(err);
    r.passed = r.structure != VERIFY_FAIL && r.weights != VERIFY_FAIL &&
               r.logits != VERIFY_FAIL && r.perplexity != VERIFY_FAIL;
    *out = r;
    return OK;
}
