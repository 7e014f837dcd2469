/* SPDX-License-Identifier: MIT */
#include "convert/artifact/writer.h"

#include "calib/model/ends.h"
#include "convert/artifact/artifact_files.h"
#include "convert/artifact/artifact_plan.h"
#include "convert/artifact/quantize.h"
#include "convert/format/artifact_spec.h"
#include "convert/format/bitpack.h"
#include "convert/output/outdir.h"
#include "kernels/base/half.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/pool.h"
#include "kernels/tensor/host_finite.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define PIECE_WEIGHTS ((int64_t)4 << 20)  /* weights packed between two writes */
#define CHUNK_WEIGHTS ((int64_t)64 << 10) /* and by one thread at a time */
#define SHARDS_MAX 99999

struct writer {
    struct hf_model *m;
    const struct arch *a;
    const struct artifact_settings *s;
    const struct quant_source *source;
    struct pool *pool;
    struct artifact_plan plan;
    struct outdir dir;
    struct manifest_file *file; /* [ARTIFACT_FILES_MAX + 1 + n_shards] */
    size_t n_files;

    int64_t layer; /* of q, -1: none yet */
    struct block_src src;
    const struct block_quant *q;
    struct block_quant rtn;  /* the block that q points to if there is no source */
    struct host_mat end[2];  /* embedding and head, if they are quantized; */
    struct qlinear end_q[2]; /* scales NULL: not computed yet */

    uint8_t *packed; /* rows of codes */
    float *rows;     /* [threads][widest] */
    uint8_t *codes;  /* [threads][widest] */
    int64_t widest;

    uint64_t done, total; /* bytes of the artifact, for progress */
    enum err (*progress)(void *ctx, double share);
    void *progress_ctx;
};

/* --- one block's scales ------------------------------------------------------------- */

static enum err check_linear(const struct writer *w, const struct qlinear *q, int lin)
{
    const int64_t out = arch_out(w->a, lin), in = arch_in(w->a, lin);
    const struct lin_format want = weight_format(&w->s->weights, w->layer, lin);
    const struct lin_format have = q->scales ? q->format : (struct lin_format){16, 0};
    FAIL_IF(have.bits != want.bits, ERR_MISMATCH,
            "block %" PRId64 ", %s: calibrated for %d bits, the artifact is to have %d",
            w->layer, lin_name[lin], have.bits, want.bits);
    if (want.bits >= 16)
        return OK;
    const int64_t groups = weight_groups(in, want.group_size);
    FAIL_IF(!qlinear_fits(q, out, in, want), ERR_MISMATCH,
            "block %" PRId64 ", %s: scales are for [%" PRId64 "][%" PRId64 "] in %" PRId64
            " groups, the model needs [%" PRId64 "][%" PRId64 "] in %" PRId64,
            w->layer, lin_name[lin], q->out, q->in, q->groups, out, in, groups);
    for (int64_t i = 0; i < out * groups; i++) {
        const float h = f16_to_f32(q->scales[i]);
        FAIL_IF(!(h > 0 && isfinite(h)), ERR_FORMAT,
                "block %" PRId64 ", %s: scale %" PRId64
                " is %g, want a positive finite number",
                w->layer, lin_name[lin], i, (double)h);
        FAIL_IF(!quant_scale_fits(q->scales[i], want.scale_bits), ERR_MISMATCH,
                "block %" PRId64 ", %s: scale %" PRId64
                " is %.9g, which has more than weights.scale_bits, %d significant bits",
                w->layer, lin_name[lin], i, (double)h, want.scale_bits);
        FAIL_IF(q->zeros[i] >> want.bits, ERR_FORMAT,
                "block %" PRId64 ", %s: zero %" PRId64 " is %d, beyond %d bits", w->layer,
                lin_name[lin], i, q->zeros[i], want.bits);
    }
    for (int64_t i = 0; q->codes && i < out * in; i++)
        FAIL_IF(q->codes[i] >> want.bits, ERR_FORMAT,
                "block %" PRId64 ", %s: code %" PRId64 " is %d, beyond %d bits", w->layer,
                lin_name[lin], i, q->codes[i], want.bits);
    return OK;
}

/* Warns about scales that were clamped: what their weights have beyond them is lost. */
static void warn_clamped(const struct qlinear *q, int scale_bits, const char *name)
{
    /* the largest finite fp16 in so many bits */
    const uint16_t top = quant_scale_round(0x7bff, scale_bits);
    const int64_t n = q->out * q->groups;
    int64_t clamped = 0;
    for (int64_t i = 0; q->scales && i < n; i++)
        clamped += q->scales[i] >= top;
    if (clamped)
        log_warn(
            "%s: %" PRId64 " of %" PRId64
            " scales are %g, the largest that fp16 holds, so larger weights lose their "
            "size; scale the tensor down in the checkpoint, or leave it at 16 bits with "
            "weights.mixed",
            name, clamped, n, (double)f16_to_f32(top));
}

static enum err check_channels(const struct writer *w, const float *scale,
                               const float *shift, const char *which)
{
    for (int64_t i = 0; i < w->q->n_channels; i++)
        FAIL_IF(!(scale[i] > 0 && isfinite(scale[i]) && isfinite(shift[i])), ERR_FORMAT,
                "block %" PRId64 ", %s: channel %" PRId64 " has scale %g and shift %g",
                w->layer, which, i, (double)scale[i], (double)shift[i]);
    return OK;
}

/* Checks that the block has the gains that a refined artifact stores. */
static enum err check_gains(const struct writer *w)
{
    for (int g = 0; w->s->weights.refined && g < N_GAINS; g++) {
        const float *gain = w->q->gain[g];
        const int64_t n = arch_gain(w->a, w->layer, (enum norm_gain)g);
        FAIL_IF(n && !gain, ERR_MISMATCH,
                "block %" PRId64
                ": the gains of its norms are missing, so it is not refined",
                w->layer);
        for (int64_t i = 0; i < n; i++)
            FAIL_IF(!isfinite(gain[i]), ERR_FORMAT,
                    "block %" PRId64 ": gain %" PRId64 " of a norm is %g", w->layer, i,
                    (double)gain[i]);
    }
    return OK;
}

static enum err check_block(const struct writer *w)
{
    const int64_t channels = w->a->n_kv * w->a->head_dim;
    FAIL_IF(w->q->n_channels != channels, ERR_MISMATCH,
            "block %" PRId64 ": %" PRId64 " key/value channels, the model has %" PRId64,
            w->layer, w->q->n_channels, channels);
    for (int i = 0; i < N_LIN; i++)
        TRY(check_linear(w, &w->q->lin[i], i));
    for (int i = 0; i < N_LIN; i++)
        if (!w->src.given[i])
            warn_clamped(&w->q->lin[i],
                         weight_format(&w->s->weights, w->layer, i).scale_bits,
                         w->src.lin[i].name);
    TRY(check_gains(w));
    TRY(check_channels(w, w->q->k_scale, w->q->k_shift, "keys"));
    return check_channels(w, w->q->v_scale, w->q->v_shift, "values");
}

static enum err load_block(struct writer *w, int64_t layer)
{
    const struct model_source *src = hf_source(w->m);
    if (w->layer == layer)
        return OK;
    if (w->layer >= 0)
        src->release(src->ctx, w->layer);
    w->layer = layer;
    TRY(src->block(src->ctx, layer, &w->src));
    if (w->source->block) {
        TRY(w->source->block(w->source->ctx, layer, &w->q));
    } else {
        block_quant_free(&w->rtn);
        TRY(quant_block_rtn_on(w->pool, &w->rtn, w->a, &w->src, layer, &w->s->weights,
                               &w->s->kv));
        w->q = &w->rtn;
    }
    return check_block(w);
}

/* --- embedding and head ------------------------------------------------------------- */

/* Returns whether a packed tensor is one of the embedding or the head. */
static bool of_end(const struct out_content *is)
{
    return is->kind != OUT_CARRY && (is->lin == OUT_EMBED || is->lin == OUT_HEAD);
}

static enum err load_end(struct writer *w, int lin)
{
    const struct model_source *src = hf_source(w->m);
    struct host_mat norm;
    struct qlinear *q = &w->end_q[lin - OUT_EMBED];
    if (q->scales)
        return OK;
    TRY(src->ends(src->ctx, &w->end[0], &norm, &w->end[1]));
    TRY(ends_quantize(q, w->pool, &w->end[lin - OUT_EMBED], head_format(&w->s->weights)));
    warn_clamped(q, q->format.scale_bits, w->end[lin - OUT_EMBED].name);
    return OK;
}

/* The quantized matrix of a packed tensor, and its source. */
static const struct qlinear *quant_of(const struct writer *w, const struct out_content *is)
{
    return of_end(is) ? &w->end_q[is->lin - OUT_EMBED] : &w->q->lin[is->lin];
}

static const struct host_mat *source_of(const struct writer *w,
                                        const struct out_content *is)
{
    return of_end(is) ? &w->end[is->lin - OUT_EMBED] : &w->src.lin[is->lin];
}

/* --- one tensor's bytes ------------------------------------------------------------- */

static enum err report(struct writer *w, size_t bytes)
{
    w->done += bytes;
    if (!w->progress)
        return OK;
    return w->progress(w->progress_ctx, w->total ? (double)w->done / (double)w->total : 1);
}

/* Returns the bytes to store for a tensor that is copied; a rotation may be folded into
 * them. */
static enum err carried_bytes(const uint8_t **out, struct writer *w,
                              const struct out_content *is)
{
    *out = is->src->data;
    if (!(w->s->kv.rotate & ROTATE_V) || is->layer < 0 || is->layer >= w->a->n_layers)
        return OK;
    TRY(load_block(w, is->layer));
    const struct host_mat *const rotated[] = {&w->src.lin[LIN_V], &w->src.lin[LIN_O],
                                              &w->src.bias[LIN_V]};
    for (size_t i = 0; i < ARRAY_LEN(rotated); i++)
        if (rotated[i]->data && !strcmp(rotated[i]->name, is->src->name))
            *out = rotated[i]->data;
    return OK;
}

/* Refuses a copied value that is NaN or infinite, n bytes of tensor t. */
static enum err check_finite(const struct out_tensor *t, const void *data, size_t n)
{
    return host_check_finite(t->name, data, t->dtype, (int64_t)(n / dtype_bytes(t->dtype)),
                             t->n_dims == 2 ? t->dim[1] : 1);
}

/* Copies the weights of all experts of a layer, one after the other. */
static enum err write_experts(struct writer *w, struct st_writer *f,
                              const struct out_tensor *t, int64_t layer)
{
    TRY(load_block(w, layer));
    for (int l = 0; l < N_LIN; l++) {
        const struct host_mat *m = &w->src.lin[l];
        if (!m->part || strcmp(m->name, t->name))
            continue;
        const size_t bytes = t->bytes / (size_t)(m->rows / m->part_rows);
        for (int64_t r = 0; r < m->rows; r += m->part_rows) {
            TRY(check_finite(t, host_mat_row(m, r), bytes));
            TRY(st_write(f, host_mat_row(m, r), bytes));
            TRY(report(w, bytes));
        }
    }
    return OK;
}

static enum err write_carried(struct writer *w, struct st_writer *f,
                              const struct out_tensor *t, const struct out_content *is)
{
    const uint8_t *data;
    if (!is->src->data)
        return write_experts(w, f, t, is->layer);
    TRY(carried_bytes(&data, w, is));
    TRY(check_finite(t, data, t->bytes));
    for (size_t at = 0; at < t->bytes;) {
        const size_t n = t->bytes - at < (1u << 22) ? t->bytes - at : 1u << 22;
        TRY(st_write(f, data + at, n));
        TRY(report(w, n));
        at += n;
    }
    hf_release(w->m, is->src);
    return OK;
}

/* A unit of work: rows of one projection, packed by all threads. */
struct pack {
    struct writer *w;
    const struct host_mat *m;
    const struct qlinear *q;
    int64_t first, rows, rows_per_chunk, row_bytes;
    atomic_int_least64_t bad; /* a row with a non-finite value, or -1 */
};

static void pack_chunk(void *ctx, int64_t chunk, int thread)
{
    struct pack *p = ctx;
    const int64_t begin = chunk * p->rows_per_chunk, n = p->m->cols;
    const int64_t end =
        begin + p->rows_per_chunk < p->rows ? begin + p->rows_per_chunk : p->rows;
    float *row = p->w->rows + thread * p->w->widest;
    uint8_t *codes = p->w->codes + thread * p->w->widest;
    const int bits = p->q->format.bits;
    for (int64_t i = begin; i < end; i++) {
        const int64_t r = p->first + i;
        if (p->q->codes) {
            bitpack_row(p->w->packed + i * p->row_bytes, p->q->codes + r * n, n, bits);
            continue;
        }
        host_to_f32(row, host_mat_row(p->m, r), p->m->dtype, n);
        if (!quant_row_codes(codes, row, p->q->scales + r * p->q->groups,
                             p->q->zeros + r * p->q->groups, n, bits,
                             p->q->format.group_size))
            atomic_store(&p->bad, r);
        else
            bitpack_row(p->w->packed + i * p->row_bytes, codes, n, bits);
    }
}

static enum err write_qweight(struct writer *w, struct st_writer *f,
                              const struct out_content *is, int64_t row_bytes)
{
    const struct host_mat *m = source_of(w, is);
    struct pack p = {.w = w, .m = m, .q = quant_of(w, is), .row_bytes = row_bytes};
    const int64_t piece = PIECE_WEIGHTS / m->cols + 1;
    p.rows_per_chunk = CHUNK_WEIGHTS / m->cols + 1;
    atomic_init(&p.bad, -1);
    TRY(mem_alloc(&w->packed, (size_t)(piece * p.row_bytes), 1));
    enum err err = OK;
    for (; p.first < m->rows && !err; p.first += p.rows) {
        p.rows = m->rows - p.first < piece ? m->rows - p.first : piece;
        pool_run(w->pool, (p.rows + p.rows_per_chunk - 1) / p.rows_per_chunk, pack_chunk,
                 &p);
        if (atomic_load(&p.bad) >= 0)
            err = err_set(ERR_FORMAT, __FILE__, __LINE__,
                          "%s: row %" PRId64 " holds a value that is not finite", m->name,
                          (int64_t)atomic_load(&p.bad));
        else
            err = st_write(f, w->packed, (size_t)(p.rows * p.row_bytes));
        if (!err)
            err = report(w, (size_t)(p.rows * p.row_bytes));
    }
    mem_free(w->packed);
    w->packed = NULL;
    const struct st_tensor *src = hf_find(w->m, m->name);
    if (src)
        hf_release(w->m, src);
    return err;
}

/* Scales and channels are written as they are in memory. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the formats are little-endian");

static enum err write_plain(struct writer *w, struct st_writer *f, const void *data,
                            size_t bytes)
{
    TRY(st_write(f, data, bytes));
    return report(w, bytes);
}

static enum err write_zeros(struct writer *w, struct st_writer *f, const struct qlinear *q)
{
    enum err err = OK;
    uint8_t *row = NULL;
    const int64_t n = bitpack_bytes(q->groups, q->format.bits);
    TRY(mem_alloc(&row, (size_t)n, 1));
    for (int64_t r = 0; r < q->out && !err; r++) {
        bitpack_row(row, q->zeros + r * q->groups, q->groups, q->format.bits);
        err = st_write(f, row, (size_t)n);
    }
    mem_free(row);
    return err ? err : report(w, (size_t)(q->out * n));
}

/* Writes tensor number i of the plan. */
static enum err write_tensor(void *ctx, struct st_writer *f, size_t i)
{
    struct writer *w = ctx;
    const struct out_tensor *t = &w->plan.out.tensor[i];
    const struct out_content *is = &w->plan.content[i];
    const int64_t last = w->a->n_layers - 1; /* it holds the final norm's gain */
    if (is->kind != OUT_CARRY)
        TRY(of_end(is) ? load_end(w, is->lin)
                       : load_block(w, is->layer < last ? is->layer : last));
    switch (is->kind) {
    case OUT_CARRY:
        return write_carried(w, f, t, is);
    case OUT_GAIN:
        return write_plain(w, f, w->q->gain[is->gain], t->bytes);
    case OUT_QWEIGHT:
        return write_qweight(w, f, is, t->dim[1]);
    case OUT_SCALES:
        return write_plain(w, f, quant_of(w, is)->scales, t->bytes);
    case OUT_ZEROS:
        return write_zeros(w, f, quant_of(w, is));
    case OUT_K_SCALE:
        return write_plain(w, f, w->q->k_scale, t->bytes);
    case OUT_K_SHIFT:
        return write_plain(w, f, w->q->k_shift, t->bytes);
    case OUT_V_SCALE:
        return write_plain(w, f, w->q->v_scale, t->bytes);
    default:
        return write_plain(w, f, w->q->v_shift, t->bytes);
    }
}

/* --- files -------------------------------------------------------------------------- */

/* Lists the shards, once they are written or measured. */
static void list_shards(struct writer *w)
{
    for (int k = 0; k < w->plan.out.n_shards; k++) {
        const struct out_shard *shard = &w->plan.out.shard[k];
        w->file[w->n_files++] =
            (struct manifest_file){shard->name, shard->bytes, shard->crc};
    }
}

/* Writes the manifest; dir NULL: only its size is computed. */
static enum err write_manifest(uint64_t *bytes, const struct writer *w, const char *dir)
{
    const struct out_plan *p = &w->plan.out;
    struct manifest_tensor *list = NULL;
    TRY(mem_calloc(&list, p->n, sizeof(*list)));
    for (size_t i = 0; i < p->n; i++) {
        const struct out_tensor *t = &p->tensor[i];
        list[i] = (struct manifest_tensor){.name = t->name,
                                           .file = p->shard[t->shard].name,
                                           .dtype = dtype_name(t->dtype),
                                           .n_dims = t->n_dims,
                                           .bytes = t->bytes,
                                           .crc = t->crc};
        memcpy(list[i].dim, t->dim, sizeof(t->dim));
    }
    const struct manifest_input in = {
        w->s->config_json, w->s->provenance_json, list, p->n, w->file, w->n_files};
    const enum err err = manifest_write(bytes, dir, &in);
    mem_free(list);
    return err;
}

/* Plans the tensors and their files. */
static enum err make_plan(struct writer *w)
{
    TRY(spec_check(&w->s->weights, &w->s->kv, "artifact"));
    TRY(mix_check_layers(w->s->kv.mixed, w->a->n_layers, ERR_USAGE, "kv.mixed"));
    TRY(mix_check_layers(w->s->weights.mixed, w->a->n_layers, ERR_USAGE, "weights.mixed"));
    TRY(artifact_plan_make(&w->plan, w->m, w->s));
    const int shards = w->plan.out.n_shards;
    FAIL_IF(shards > SHARDS_MAX, ERR_USAGE,
            "a shard size of %" PRIu64 " bytes gives %d files; choose a larger one",
            w->s->shard_bytes, shards);
    return mem_calloc(&w->file, (size_t)shards + 1 + ARTIFACT_FILES_MAX, sizeof(*w->file));
}

static enum err prepare(struct writer *w)
{
    TRY(make_plan(w));
    for (size_t i = 0; i < w->plan.out.n; i++)
        w->total += w->plan.out.tensor[i].bytes;
    for (int i = 0; i < N_LIN; i++)
        if (arch_in(w->a, i) > w->widest)
            w->widest = arch_in(w->a, i);
    TRY(pool_open(&w->pool, w->s->threads));
    const size_t n = (size_t)w->widest * (size_t)pool_threads(w->pool);
    TRY(mem_alloc(&w->rows, n, sizeof(*w->rows)));
    return mem_alloc(&w->codes, n, 1);
}

/* Writes all files but the shards; dir NULL: only their sizes are computed. */
static enum err write_rest(uint64_t *manifest_bytes, struct writer *w, const char *dir,
                           const char *model_dir)
{
    list_shards(w);
    if (w->plan.out.n_shards > 1)
        TRY(artifact_write_index(dir, &w->plan.out, &w->file[w->n_files++]));
    size_t n = 0;
    TRY(artifact_write_files(dir, model_dir, w->a, w->s, w->file + w->n_files, &n));
    w->n_files += n;
    return write_manifest(manifest_bytes, w, dir);
}

static enum err write_all(struct writer *w, const char *model_dir)
{
    uint64_t manifest_bytes;
    TRY(out_plan_write(&w->plan.out, w->dir.tmp, write_tensor, w));
    return write_rest(&manifest_bytes, w, w->dir.tmp, model_dir);
}

static void release(struct writer *w)
{
    outdir_abort(&w->dir);
    block_quant_free(&w->rtn);
    for (int i = 0; i < 2; i++)
        qlinear_free(&w->end_q[i]);
    artifact_plan_free(&w->plan);
    pool_close(&w->pool);
    mem_free(w->rows);
    mem_free(w->codes);
    mem_free(w->file);
}

enum err artifact_write(const char *out_dir, struct hf_model *m, const char *model_dir,
                        const struct quant_source *q, const struct artifact_settings *s,
                        enum err (*progress)(void *ctx, double share), void *progress_ctx)
{
    static const struct quant_source none = {0};
    enum err err = OK;
    struct writer w = {
        .m = m, .a = hf_arch(m), .s = s, .source = q ? q : &none, .layer = -1};
    w.progress = progress;
    w.progress_ctx = progress_ctx;
    TRY_OUT(hf_rotate_values(m, &s->kv));
    TRY_OUT(prepare(&w));
    TRY_OUT(outdir_open(&w.dir, out_dir, s->force ? OUTDIR_REPLACE : OUTDIR_KEEP));
    TRY_OUT(write_all(&w, model_dir));
    TRY_OUT(outdir_commit(&w.dir));
out:
    release(&w);
    return err;
}

enum err artifact_bytes(uint64_t *out, struct hf_model *m, const char *model_dir,
                        const struct artifact_settings *s)
{
    enum err err = OK;
    uint64_t sum = 0;
    struct writer w = {.m = m, .a = hf_arch(m), .s = s};
    TRY_OUT(make_plan(&w));
    TRY_OUT(out_plan_measure(&w.plan.out));
    TRY_OUT(write_rest(&sum, &w, NULL, model_dir));
    for (size_t i = 0; i < w.n_files; i++)
        sum += w.file[i].bytes;
    *out = sum;
out:
    release(&w);
    return err;
}
