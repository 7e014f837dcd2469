/* SPDX-License-Identifier: MIT
 *
 * GGUF, one file: llama.cpp and what is built on it. */
#include "convert/checkpoint/hf.h"
#include "convert/export/export_formats.h"
#include "convert/export/gguf/gguf_blocks.h"
#include "convert/export/gguf/gguf_keys.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define PIECE_BYTES ((int64_t)4 << 20)   /* written at a time */
#define CHUNK_VALUES ((int64_t)64 << 10) /* packed by one thread at a time */

/* --- what becomes of the weights ---------------------------------------------------- */

/* What rounding of m = -z h costs. */
struct minima {
    int64_t groups, inexact;
    double worst; /* in units of h */
};

static enum err count_minima(struct minima *m, const struct export_linear *l,
                             uint8_t *zeros, uint16_t *scales)
{
    const struct packed_linear *q = l->packed;
    for (int64_t r = 0; r < q->out; r++) {
        export_row_zeros(zeros, q, r);
        export_row_scales(scales, q, r);
        for (int64_t g = 0; g < q->groups; g++) {
            const float h = f16_to_f32(scales[g]),
                        low = f16_to_f32(gguf_minimum(zeros[g], scales[g]));
            const float off = fabsf(low + (float)zeros[g] * h) / h;
            FAIL_IF(!isfinite(low), ERR_SUPPORT,
                    "%s: row %" PRId64
                    ": the minimum %g of a group is beyond fp16's range; "
                    "give --weights q8_0",
                    l->name, r, -(double)zeros[g] * (double)h);
            m->inexact += off > 0;
            m->worst = fmax(m->worst, (double)off);
        }
    }
    m->groups += q->out * q->groups;
    return OK;
}

#define SHARE_TEXT 16

/* Writes a share of 0 to 100 %, which is neither where it is more or less. */
static void share_text(char out[SHARE_TEXT], double percent)
{
    if (percent > 0 && percent < 0.5)
        snprintf(out, SHARE_TEXT, "< 1 %%");
    else if (percent < 100 && percent >= 99.5)
        snprintf(out, SHARE_TEXT, "> 99 %%");
    else
        snprintf(out, SHARE_TEXT, "%.0f %%", percent);
}

static enum err note_minima(struct export_job *j, const struct gguf_plan *p)
{
    enum err err = OK;
    struct minima m = {0};
    char share[SHARE_TEXT];
    uint8_t *zeros = NULL;
    uint16_t *scales = NULL;
    int64_t most = 0;
    for (size_t i = 0; i < p->n; i++)
        if (gguf_type_is_blocks(p->item[i].type) &&
            p->item[i].linear->packed->groups > most)
            most = p->item[i].linear->packed->groups;
    if (!most) /* nothing is quantized */
        return OK;
    TRY_OUT(mem_alloc(&zeros, (size_t)most, 1));
    TRY_OUT(mem_alloc(&scales, (size_t)most, sizeof(*scales)));
    for (size_t i = 0; i < p->n; i++)
        if (p->item[i].type == GGUF_Q4_1 || p->item[i].type == GGUF_Q5_1)
            TRY_OUT(count_minima(&m, p->item[i].linear, zeros, scales));
    share_text(share, 100 * (double)m.inexact / (double)m.groups);
    if (!m.inexact)
        TRY_OUT(export_note(j, EXPORT_CARRIED,
                            "The weights, exactly: codes, scales and zero points"));
    else
        TRY_OUT(
            export_note(j, EXPORT_CHANGED,
                        "The product of zero point and scale, which Q4_1 and Q5_1 store "
                        "as fp16, is rounded in %s of groups: a weight is off by at "
                        "most %.4f of its scale; --weights q8_0 is exact",
                        share, m.worst));
out:
    mem_free(zeros);
    mem_free(scales);
    return err;
}

static enum err note_types(struct export_job *j, const struct gguf_plan *p)
{
    static const enum gguf_type types[] = {GGUF_Q4_1, GGUF_Q5_1, GGUF_Q8_0,
                                           GGUF_F16,  GGUF_BF16, GGUF_F32};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        int64_t n = 0;
        for (size_t k = 0; k < p->n; k++)
            n += p->item[k].linear && p->item[k].linear->layer >= 0 &&
                 p->item[k].type == types[i];
        if (n)
            TRY(export_note(j, EXPORT_CARRIED, "%" PRId64 " projection%s as %s", n,
                            plural(n), gguf_type_name(types[i])));
    }
    return OK;
}

/* What becomes of a quantized embedding and head. */
static enum err note_ends(struct export_job *j, const struct gguf_plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct gguf_item *t = &p->item[i];
        if (!t->linear || t->linear->layer >= 0)
            continue;
        if (gguf_type_is_blocks(t->type))
            TRY(export_note(j, EXPORT_CARRIED, "%s, of %d bits, as %s", t->linear->name,
                            t->linear->packed->bits, gguf_type_name(t->type)));
        else
            TRY(export_note(j, EXPORT_CHANGED,
                            "%s, of %d bits, as values in F16, rounded: blocks hold 2 to 7 "
                            "bits, in groups that are multiples of %d columns",
                            t->linear->name, t->linear->packed->bits, GGUF_BLOCK));
    }
    return OK;
}

/* --- what becomes of the rest ------------------------------------------------------- */

/* llama.cpp's rotation of a quantized cache meets ours. */
static enum err note_rotation(struct export_job *j)
{
    const struct export_source *s = j->source;
    const bool rotates = s->arch->head_dim % ROTATED_HEADS == 0;
    if ((s->kv->rotate & ROTATE_V) && rotates)
        TRY(export_note(
            j, EXPORT_CHANGED,
            "llama.cpp rotates the values of a quantized cache once more, which "
            "undoes our rotation; LLAMA_ATTN_ROT_DISABLE=1 stops that, for keys, "
            "too"));
    if (!(s->kv->rotate & ROTATE_K) || rotates)
        return OK;
    FAIL_IF(!j->options.drop_cache, ERR_SUPPORT,
            "%s: kv.rotate k with head_dim %" PRId64 ": llama.cpp rotates keys only if "
            "head_dim is a multiple of %d; give --kv drop to export the weights without it",
            s->dir, s->arch->head_dim, ROTATED_HEADS);
    return export_note(
        j, EXPORT_DROPPED,
        "The rotation of keys: llama.cpp has none for a head_dim of %" PRId64,
        s->arch->head_dim);
}

static bool is_held(const struct gguf_plan *p, const char *name)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->item[i].m.name && !strcmp(p->item[i].m.name, name))
            return true;
    return false;
}

/* llama.cpp refuses a file with a tensor that it does not know. */
static enum err note_unknown(struct export_job *j, const struct gguf_plan *p)
{
    int64_t n = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < j->source->n_rest; i++) {
        const char *name = j->source->rest[i]->name;
        if (is_held(p, name))
            continue;
        first = n++ ? first : name;
    }
    return n ? export_note(j, EXPORT_DROPPED,
                           "%" PRId64 " tensors that llama.cpp does not use, such as %.80s",
                           n, first)
             : OK;
}

static enum err note_context(struct export_job *j)
{
    const struct arch *a = j->source->arch;
    const int64_t n = gguf_context(a);
    return n < a->max_positions
               ? export_note(j, EXPORT_CHANGED,
                             "context_length is the sliding window, %" PRId64
                             ", because llama.cpp's %s has no sliding window",
                             n, a->family == ARCH_QWEN2 ? "qwen2" : "graph")
               : OK;
}

static enum err note_experts(struct export_job *j)
{
    const int64_t n = j->source->arch->n_experts;
    return n > GGUF_MAX_EXPERTS_BEFORE
               ? export_note(j, EXPORT_CARRIED,
                             "%" PRId64 " experts of a layer: llama.cpp before August 2026 "
                             "has at most %d, and stops",
                             n, GGUF_MAX_EXPERTS_BEFORE)
               : OK;
}

/* llama.cpp's graph of Gemma 3 takes the root of the width as it is, while Hugging Face's rounds it
 * to the dtype of the embedding. */
static enum err note_embed_scale(struct export_job *j)
{
    const struct arch *a = j->source->arch;
    const double whole = hf_gemma_factor(a->d_model, DT_F32);
    return a->family == ARCH_GEMMA3 && a->embed_scale != whole
               ? export_note(
                     j, EXPORT_CHANGED,
                     "The factor of the embedding is %.8g, because llama.cpp does not "
                     "round it; the model's is %.8g",
                     whole, a->embed_scale)
               : OK;
}

static enum err note_all(struct export_job *j, const struct gguf_plan *p)
{
    TRY(note_types(j, p));
    TRY(note_ends(j, p));
    TRY(note_minima(j, p));
    TRY(note_rotation(j));
    TRY(note_unknown(j, p));
    TRY(note_context(j));
    TRY(note_experts(j));
    TRY(note_embed_scale(j));
    if (p->copy.n_keys)
        TRY(export_note(
            j, EXPORT_CHANGED, "The tokenizer is that of --gguf-vocab, %s",
            p->copy.compared
                ? "with the artifact's tokens; its words and merges were not compared"
                : "and was not compared with the artifact's"));
    else if (p->vocab.model)
        TRY(export_note(j, EXPORT_CARRIED, "The tokenizer, as %s with pre-tokenizer %s",
                        p->vocab.model, p->vocab.pre));
    else
        TRY(export_note(j, EXPORT_DROPPED, "The tokenizer: the file takes token ids only"));
    for (int i = 0; i < p->vocab.n_notes; i++)
        TRY(export_note(j, EXPORT_DROPPED, "%s", p->vocab.note[i]));
    return OK;
}

/* --- the check ---------------------------------------------------------------------- */

static enum err read_weights(bool *only_q8, const char *option)
{
    *only_q8 = option && !strcmp(option, "q8_0");
    FAIL_IF(
        option && !*only_q8 && strcmp(option, "q4_1") != 0, ERR_USAGE,
        "--weights %.60s: want q4_1 (Q4_1 up to 4 bits, Q5_1 for 5, Q8_0 above) or q8_0",
        option);
    return OK;
}

static uint64_t projection_bytes(const struct gguf_plan *p)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < p->n; i++)
        if (p->item[i].linear && p->item[i].linear->layer >= 0)
            bytes += (uint64_t)p->item[i].rows *
                     gguf_row_bytes(p->item[i].type, p->item[i].cols);
    return bytes;
}

/* Refuses values of embedding or head that are beyond F16's range. */
static enum err check_values(const struct gguf_item *t)
{
    const struct packed_linear *q = t->linear->packed;
    float *x;
    TRY(mem_alloc(&x, (size_t)q->in, sizeof(*x)));
    enum err err = OK;
    for (int64_t r = 0; r < q->out && !err; r++) {
        packed_linear_unpack_row(x, q, r);
        for (int64_t c = 0; c < q->in; c++)
            if (!isfinite(f16_to_f32(f16_from_f32(x[c]))))
                FAIL_OUT(ERR_SUPPORT,
                         "%s: row %" PRId64 " holds %g, beyond float16's 65504, and GGUF's "
                         "blocks hold 2 to 7 bits in groups that are multiples of %d; "
                         "convert again with such head.bits and head.group_size",
                         t->linear->name, r, (double)x[c], GGUF_BLOCK);
    }
out:
    mem_free(x);
    return err;
}

static enum err check_ends(const struct gguf_plan *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct gguf_item *t = &p->item[i];
        if (t->linear && t->linear->layer < 0 && !gguf_type_is_blocks(t->type))
            TRY(check_values(t));
    }
    return OK;
}

static enum err read_vocab(struct gguf_plan *p, const struct export_job *j)
{
    const char *pre = j->options.gguf_pre;
    if (j->options.gguf_vocab)
        return gguf_copy_open(&p->copy, j->options.gguf_vocab, j->source);
    if (pre && !strcmp(pre, "none"))
        return OK;
    return gguf_vocab_read(&p->vocab, j->source->dir, j->source->arch, pre);
}

static enum err check(struct export_job *j)
{
    struct gguf_plan *p = NULL;
    bool only_q8;
    TRY(read_weights(&only_q8, j->options.gguf_weights));
    TRY(mem_calloc(&p, 1, sizeof(*p)));
    j->plan = p;
    TRY(gguf_check_arch(p, j->source));
    if (j->options.fold_v_shift && j->source->calibrated.v_shift)
        TRY(gguf_fold_shift(p, j->source));
    TRY(gguf_list_tensors(p, j->source, only_q8));
    TRY(check_ends(p));
    TRY(read_vocab(p, j));
    TRY(gguf_open(&p->w));
    TRY(gguf_add_keys(p, j));
    TRY(note_all(j, p));
    j->bytes = gguf_bytes(p->w);
    export_set_bits(j, projection_bytes(p));
    return OK;
}

static void release(struct export_job *j)
{
    struct gguf_plan *p = j->plan;
    if (!p)
        return;
    gguf_vocab_free(&p->vocab);
    gguf_copy_free(&p->copy);
    gguf_abort(&p->w);
    mem_free(p->item);
    mem_free(p->rope);
    mem_free(p->folded);
    mem_free(p->biases);
    mem_free(p);
}

/* --- writing ------------------------------------------------------------------------ */

/* Rows of one tensor, packed by all threads. */
struct packing {
    const struct gguf_item *t;
    uint8_t *dst;
    uint64_t row_bytes;
    int64_t first, rows, rows_per_chunk;
    uint8_t *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
};

static int64_t source_row(const struct gguf_item *t, int64_t r)
{
    return t->head_dim ? gguf_row_source(r, t->head_dim) : r;
}

/* scratch: scales, codes and zeros of a row. */
static void pack_codes(uint8_t *dst, const struct gguf_item *t, int64_t r, uint8_t *scratch)
{
    const struct packed_linear *q = t->linear->packed;
    uint16_t *scales = (uint16_t *)(void *)scratch;
    uint8_t *codes = scratch + 2 * q->groups, *zeros = codes + q->in;
    export_row_scales(scales, q, r);
    export_row_codes(codes, q, r);
    export_row_zeros(zeros, q, r);
    gguf_pack_row(dst, t->type,
                  &(struct gguf_row){codes, zeros, scales, q->in,
                                     q->group_size ? q->group_size : q->in});
}

/* dst [cols] = the values of a row as F16, which check_ends() has tried. scratch: F32. */
static void pack_values(uint8_t *dst, const struct gguf_item *t, int64_t r,
                        uint8_t *scratch)
{
    float *x = (float *)(void *)scratch;
    packed_linear_unpack_row(x, t->linear->packed, r);
    for (int64_t c = 0; c < t->cols; c++) {
        const uint16_t h = f16_from_f32(x[c]);
        memcpy(dst + 2 * c, &h, sizeof(h));
    }
}

static size_t scratch_bytes(const struct gguf_item *t)
{
    const struct packed_linear *q = t->linear ? t->linear->packed : NULL;
    const size_t codes = q ? (size_t)(3 * q->groups + q->in) : 0;
    const size_t values = q ? (size_t)q->in * sizeof(float) : 0;
    const size_t n = codes > values ? codes : values;
    return (n + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

static void pack_chunk(void *ctx, int64_t chunk, int thread)
{
    const struct packing *p = ctx;
    const struct gguf_item *t = p->t;
    const int64_t begin = chunk * p->rows_per_chunk;
    uint8_t *scratch = p->scratch + (size_t)thread * p->scratch_bytes;
    for (int64_t i = begin; i < begin + p->rows_per_chunk && i < p->rows; i++) {
        const int64_t r = source_row(t, p->first + i);
        uint8_t *dst = p->dst + (size_t)i * p->row_bytes;
        if (gguf_type_is_blocks(t->type))
            pack_codes(dst, t, r, scratch);
        else if (t->linear && t->linear->packed->bits < 16)
            pack_values(dst, t, r, scratch);
        else
            memcpy(dst, (const uint8_t *)t->m.data + (size_t)r * p->row_bytes,
                   p->row_bytes);
    }
}

static enum err write_rows(struct export_job *j, struct gguf_writer *w, struct packing *p)
{
    const int64_t piece = PIECE_BYTES / (int64_t)(p->row_bytes + 1) + 1;
    for (; p->first < p->t->rows; p->first += p->rows) {
        p->rows = p->t->rows - p->first < piece ? p->t->rows - p->first : piece;
        pool_run(j->pool, (p->rows + p->rows_per_chunk - 1) / p->rows_per_chunk, pack_chunk,
                 p);
        TRY(gguf_write(w, p->dst, (size_t)p->rows * p->row_bytes));
        TRY(export_advance(j, (uint64_t)p->rows * p->row_bytes));
    }
    return OK;
}

static enum err write_matrix(struct export_job *j, struct gguf_writer *w,
                             const struct gguf_item *t)
{
    enum err err = OK;
    struct packing p = {.t = t, .row_bytes = gguf_row_bytes(t->type, t->cols)};
    const int64_t piece = PIECE_BYTES / (int64_t)(p.row_bytes + 1) + 1;
    p.rows_per_chunk = CHUNK_VALUES / t->cols + 1;
    p.scratch_bytes = scratch_bytes(t);
    TRY_OUT(mem_alloc(&p.dst, (size_t)piece, p.row_bytes));
    TRY_OUT(mem_alloc(&p.scratch, (size_t)pool_threads(j->pool), p.scratch_bytes));
    TRY_OUT(write_rows(j, w, &p));
    if (t->linear)
        export_release(j->source, t->linear);
    else
        artifact_release(j->source->artifact, t->m.name);
out:
    mem_free(p.dst);
    mem_free(p.scratch);
    return err;
}

static enum err write_widened(struct export_job *j, struct gguf_writer *w,
                              const struct gguf_item *t)
{
    const size_t n = (size_t)(t->rows * t->cols);
    float *x = NULL;
    enum err err = OK;
    TRY(mem_alloc(&x, 2 * n, sizeof(*x)));
    host_to_f32(x, t->m.data, t->m.dtype, (int64_t)n);
    for (int64_t i = 0; i < (int64_t)n; i++)
        x[(int64_t)n + i] = x[source_row(t, i)] + (t->plus_one ? 1 : 0);
    err = gguf_write(w, x + n, n * sizeof(*x));
    mem_free(x);
    return err ? err : export_advance(j, n * sizeof(float));
}

static enum err write_file(struct export_job *j, const char *out)
{
    struct gguf_plan *p = j->plan;
    j->total = 0;
    for (size_t i = 0; i < p->n; i++)
        j->total +=
            (uint64_t)p->item[i].rows * gguf_row_bytes(p->item[i].type, p->item[i].cols);
    TRY(gguf_begin(p->w, out));
    for (size_t i = 0; i < p->n; i++) {
        const struct gguf_item *t = &p->item[i];
        TRY(t->widens ? write_widened(j, p->w, t) : write_matrix(j, p->w, t));
    }
    return gguf_commit(&p->w);
}

const struct export_format export_gguf = {
    .name = "gguf",
    .engines = "llama.cpp, Ollama, LM Studio",
    .holds =
        "2 to 7 bits; group sizes that are multiples of 32, also ragged, or whole rows; "
        "mixtures of experts",
    .is_file = true,
    .cache = EXPORT_ENGINE_ROTATES_K | EXPORT_FOLDS_V_SHIFT | EXPORT_LLAMA_CPP,
    .check = check,
    .write = write_file,
    .release = release,
};
