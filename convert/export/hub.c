/* SPDX-License-Identifier: MIT */
#include "convert/export/hub.h"

#include "convert/artifact/artifact_files.h"
#include "convert/checkpoint/hf.h"
#include "kernels/base/half.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_BITS 5 /* up to which a group's values are fewer than its columns */

/* --- the plan ----------------------------------------------------------------------- */

enum err hub_plan_new(struct hub_plan **out, struct export_job *j)
{
    TRY(mem_calloc(out, 1, sizeof(**out)));
    j->plan = *out;
    return OK;
}

void hub_release(struct export_job *j)
{
    struct hub_plan *p = j->plan;
    if (!p)
        return;
    out_plan_free(&p->tensors);
    mem_free(p->how);
    mem_free(p->config);
    mem_free(p->card);
    mem_free(p);
}

enum err hub_add(struct hub_plan *p, const struct hub_tensor *how, const char *name,
                 const char *tail, int n_dims, const int64_t *dim)
{
    struct out_tensor t = {.dtype = how->dtype, .n_dims = n_dims};
    const int n = snprintf(t.name, sizeof(t.name), "%s%s", name, tail);
    FAIL_IF(n < 0 || (size_t)n >= sizeof(t.name), ERR_SUPPORT,
            "tensor %.60s...: its name is longer than %zu characters", name,
            sizeof(t.name) - 1);
    FAIL_IF(n_dims > TENSOR_MAX_DIMS, ERR_SUPPORT,
            "tensor %s: %d dimensions, at most %d can be exported", name, n_dims,
            TENSOR_MAX_DIMS);
    for (int i = 0; i < n_dims; i++)
        t.dim[i] = dim[i];
    TRY(out_plan_add(&p->tensors, &t));
    if (p->tensors.n > p->room) {
        TRY(mem_resize(&p->how, p->room, p->tensors.room, sizeof(*p->how)));
        p->room = p->tensors.room;
    }
    struct hub_tensor *h = &p->how[p->tensors.n - 1];
    *h = *how;
    h->projection = how->linear && how->linear->layer >= 0;
    const size_t bytes = p->tensors.tensor[p->tensors.n - 1].bytes;
    h->rows = !bytes ? 0 : n_dims > 1 ? dim[0] : 1; /* [2^58, 0] has nothing to make */
    h->row_bytes = h->rows ? bytes / (size_t)h->rows : 0;
    h->step = how->step ? how->step : (int64_t)(((size_t)1 << 18) / (h->row_bytes + 1)) + 1;
    return OK;
}

/* --- tensors that are copied or converted -------------------------------------------- */

static enum err fill_copy(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                          int64_t n, void *scratch)
{
    memcpy(dst, t->src->data + (size_t)first * t->row_bytes, (size_t)n * t->row_bytes);
    return OK;
}

/* dst [n] = x, rounded to the type. False if a finite x becomes infinite. */
static bool narrow(uint8_t *dst, const float *x, int64_t n, enum dtype to)
{
    bool fits = true;
    if (to == DT_F32) {
        memcpy(dst, x, (size_t)n * sizeof(*x));
        return true;
    }
    for (int64_t i = 0; i < n; i++) {
        const uint16_t h = to == DT_F16 ? f16_from_f32(x[i]) : bf16_from_f32(x[i]);
        const float back = to == DT_F16 ? f16_to_f32(h) : bf16_to_f32(h);
        fits = fits && (isfinite(back) || !isfinite(x[i]));
        memcpy(dst + 2 * i, &h, sizeof(h));
    }
    return fits;
}

enum err hub_narrow(uint8_t *dst, const float *x, int64_t n, enum dtype to,
                    const char *name)
{
    FAIL_IF(!narrow(dst, x, n, to), ERR_SUPPORT,
            "%s holds a value beyond the range of %s; --format dense with --dtype bf16 or "
            "f32 holds it",
            name, dtype_name(to));
    return OK;
}

static enum err fill_convert(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                             int64_t n, void *scratch)
{
    const int64_t cols = (int64_t)(t->row_bytes / dtype_bytes(t->dtype));
    const size_t row = (size_t)cols * dtype_bytes(t->src->dtype);
    for (int64_t i = 0; i < n; i++) {
        host_to_f32(scratch, t->src->data + (size_t)(first + i) * row, t->src->dtype, cols);
        TRY(hub_narrow(dst + (size_t)i * t->row_bytes, scratch, cols, t->dtype,
                       t->src->name));
    }
    return OK;
}

static bool is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_F16 || t == DT_BF16;
}

static enum err add_plain(struct hub_plan *p, const struct st_tensor *t, enum dtype to)
{
    const bool convert = to != DT_OTHER && is_float(t->dtype) && t->dtype != to;
    const int64_t cols = t->n_dims ? t->dim[t->n_dims - 1] : 1;
    int64_t count = 1;
    FAIL_IF(t->dtype == DT_OTHER, ERR_SUPPORT, "tensor %s: dtype %s cannot be exported",
            t->name, t->dtype_name);
    for (int i = 1; i < t->n_dims && t->bytes; i++)
        count *= t->dim[i];
    if (t->n_dims == 1)
        count = cols;
    if (convert && t->bytes && (size_t)count * sizeof(float) > p->scratch)
        p->scratch = (size_t)count * sizeof(float);
    const struct hub_tensor how = {.src = t,
                                   .dtype = convert ? to : t->dtype,
                                   .fill = convert ? fill_convert : fill_copy};
    return hub_add(p, &how, t->name, "", t->n_dims, t->dim);
}

/* Adds the weight of a module of 16 bits. */
static enum err add_plain_module(struct hub_plan *p, const struct hub_module *m,
                                 enum dtype to)
{
    const struct st_tensor *t = m->part[0].weight;
    if (m->n == 1) {
        TRY(add_plain(p, t, to));
        p->how[p->tensors.n - 1].projection = true;
        return OK;
    }
    const bool convert = to != DT_OTHER && t->dtype != to;
    const int64_t dim[] = {m->out, m->in};
    const struct hub_tensor how = {.linear = m->part,
                                   .n_linears = m->n,
                                   .unit = 1,
                                   .src = t,
                                   .dtype = convert ? to : t->dtype,
                                   .fill = convert ? fill_convert : fill_copy};
    for (int k = 1; k < m->n; k++)
        FAIL_IF(m->part[k].weight->dtype != t->dtype, ERR_SUPPORT,
                "%s and %s are of different types, but are one tensor in a checkpoint; use "
                "--format dense",
                t->name, m->part[k].weight->name);
    if ((size_t)m->in * sizeof(float) > p->scratch)
        p->scratch = (size_t)m->in * sizeof(float);
    return hub_add(p, &how, m->name, ".weight", 2, dim);
}

enum err hub_add_rest(struct hub_plan *p, const struct export_source *s, enum dtype to)
{
    for (int64_t i = 0; i < s->n_rest; i++)
        TRY(add_plain(p, s->rest[i], to));
    for (int64_t i = 0; i < s->n_linears;) {
        const struct hub_module m = hub_module_at(s, i);
        if (hub_module_is_plain(&m))
            TRY(add_plain_module(p, &m, to));
        i += m.n;
    }
    return OK;
}

/* --- dequantized values -------------------------------------------------------------- */

/* Sets value [2^bits] of unit bytes: what the codes of one group stand for. */
static enum err group_table(uint8_t *table, const struct hub_tensor *t, int bits,
                            uint8_t zero, uint16_t scale)
{
    float value[1 << TABLE_BITS];
    for (int q = 0; q < 1 << bits; q++)
        value[q] = quant_weight_value((uint8_t)q, zero, f16_to_f32(scale));
    return hub_narrow(table, value, 1 << bits, t->dtype, t->linear->name);
}

/* dst [n] = the values of the codes. */
static void look_up(uint8_t *dst, const uint8_t *table, const uint8_t *codes, int64_t n,
                    size_t unit)
{
    for (int64_t i = 0; i < n && unit == sizeof(uint16_t); i++)
        memcpy(dst + 2 * i, table + 2 * codes[i], 2);
    for (int64_t i = 0; i < n && unit == sizeof(float); i++)
        memcpy(dst + 4 * i, table + 4 * codes[i], 4);
}

/* The same values as packed_linear_unpack_row(), with one conversion per code of a group. A
 * code that no column has may be beyond the type's range: then the long way decides. */
static bool fill_row_fast(const struct hub_tensor *t, uint8_t *dst, int64_t row,
                          uint8_t *codes)
{
    const struct packed_linear *p = t->linear->packed;
    const size_t unit = dtype_bytes(t->dtype);
    uint8_t *zeros = codes + p->in, table[(1 << TABLE_BITS) * sizeof(float)];
    export_row_codes(codes, p, row);
    export_row_zeros(zeros, p, row);
    for (int64_t g = 0, c = 0; g < p->groups; g++) {
        const int64_t end = g + 1 < p->groups ? c + p->group_size : p->in;
        if (group_table(table, t, p->bits, zeros[g], export_scale(p, row, g))) {
            err_clear();
            return false;
        }
        look_up(dst + (size_t)c * unit, table, codes + c, end - c, unit);
        c = end;
    }
    return true;
}

static enum err fill_values(const struct hub_tensor *t, uint8_t *dst, int64_t first,
                            int64_t n, void *scratch)
{
    const struct packed_linear *p = t->linear->packed;
    for (int64_t r = first; r < first + n; r++, dst += t->row_bytes) {
        if (p->bits <= TABLE_BITS && fill_row_fast(t, dst, r, scratch))
            continue;
        packed_linear_unpack_row(scratch, p, r);
        TRY(hub_narrow(dst, scratch, p->in, t->dtype, t->linear->name));
    }
    return OK;
}

bool hub_is_exact(enum dtype to, int bits, int scale_bits)
{
    static const int fraction[] = {[DT_F32] = 24, [DT_F16] = 11, [DT_BF16] = 8};
    return bits + scale_bits <= fraction[to];
}

enum err hub_add_values(struct hub_plan *p, const struct hub_module *m, enum dtype to)
{
    const struct hub_tensor how = {
        .linear = m->part, .n_linears = m->n, .unit = 1, .dtype = to, .fill = fill_values};
    const int64_t dim[] = {m->out, m->in};
    const size_t need = (size_t)m->in * sizeof(float);
    if (need > p->scratch)
        p->scratch = need;
    return hub_add(p, &how, m->name, ".weight", 2, dim);
}

/* --- config.json -------------------------------------------------------------------- */

static enum err check_f16(const struct st_tensor *src)
{
    float x[1024];
    if (!src || !is_float(src->dtype) || src->dtype == DT_F16)
        return OK;
    const size_t unit = dtype_bytes(src->dtype), n = src->bytes / unit;
    for (size_t i = 0; i < n; i += ARRAY_LEN(x)) {
        const size_t k = n - i < ARRAY_LEN(x) ? n - i : ARRAY_LEN(x);
        host_to_f32(x, src->data + i * unit, src->dtype, (int64_t)k);
        for (size_t c = 0; c < k; c++)
            FAIL_IF(
                isfinite(x[c]) && fabsf(x[c]) > F16_MAX, ERR_SUPPORT,
                "tensor %s holds %g, beyond float16's 65504; --format dense with --dtype "
                "bf16 or f32 holds it",
                src->name, (double)x[c]);
    }
    return OK;
}

/* Returns true if rounding t to a type changes one of its values. */
static bool changes(const struct st_tensor *t, enum dtype to)
{
    float x[1024], back[1024];
    uint8_t narrowed[sizeof(x)];
    const size_t unit = dtype_bytes(t->dtype), n = t->bytes / unit;
    for (size_t i = 0; i < n; i += ARRAY_LEN(x)) {
        const size_t k = n - i < ARRAY_LEN(x) ? n - i : ARRAY_LEN(x);
        host_to_f32(x, t->data + i * unit, t->dtype, (int64_t)k);
        narrow(narrowed, x, (int64_t)k, to);
        host_to_f32(back, narrowed, to, (int64_t)k);
        if (memcmp(x, back, k * sizeof(*x)))
            return true;
    }
    return false;
}

static void count_change(int64_t *count, const struct st_tensor *t, enum dtype to)
{
    count[t->dtype] += is_float(t->dtype) && t->dtype != to && changes(t, to);
}

enum err hub_note_rounded(struct export_job *j, enum dtype to, int64_t *n)
{
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    const struct hub_plan *p = j->plan;
    int64_t count[DT_OTHER + 1] = {0};
    *n = 0;
    for (size_t i = 0; i < p->tensors.n; i++) {
        const struct hub_tensor *t = &p->how[i];
        if (t->fill != fill_convert)
            continue;
        if (!t->linear)
            count_change(count, t->src, to);
        for (int k = 0; t->linear && k < t->n_linears; k++)
            count_change(count, t->linear[k].weight, to);
    }
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        const int64_t c = count[types[i]];
        *n += c;
        if (c)
            TRY(export_note(j, EXPORT_CHANGED,
                            "%" PRId64
                            " tensor%s without codes from %s to %s, rounded; --dtype "
                            "f32 holds every value",
                            c, plural(c), dtype_name(types[i]), dtype_name(to)));
    }
    return OK;
}

/* Engines round Gemma's factor of the embedding to torch_dtype, and so did read_gemma(). */
static enum err note_factor(struct export_job *j, const char *torch_dtype)
{
    const struct arch *a = j->source->arch;
    const enum dtype to = !strcmp(torch_dtype, "float16")    ? DT_F16
                          : !strcmp(torch_dtype, "bfloat16") ? DT_BF16
                                                             : DT_F32;
    const double factor = hf_gemma_factor(a->d_model, to);
    if (a->family != ARCH_GEMMA3 || factor == a->embed_scale)
        return OK;
    return export_note(
        j, EXPORT_CHANGED,
        "The factor of the embedding, the root of hidden_size, is %.7g in %s and "
        "%.7g in the checkpoint's type; engines round it to torch_dtype",
        factor, torch_dtype, a->embed_scale);
}

/* auto_map names a checkpoint's own Python files, which are not exported. Engines that trust
 * remote code would not find them; without it they use their own class of the model_type. */
static enum err set_config(struct hub_plan *p, const struct export_source *s, json_t *q,
                           const char *torch_dtype)
{
    json_t *o = json_copy(s->config);
    bool done = o && !json_object_set_new(o, "torch_dtype", json_string(torch_dtype));
    json_object_del(o, "auto_map");
    if (done && json_object_get(o, "dtype"))
        done = !json_object_set_new(o, "dtype", json_string(torch_dtype));
    if (done && q)
        done = !json_object_set(o, "quantization_config", q);
    char *text = done ? json_text_restored(o, JSON_INDENT(2)) : NULL;
    json_decref(o);
    FAIL_IF(!text, ERR_MEMORY, "config.json: out of memory");
    const enum err err = mem_alloc(&p->config, strlen(text) + 2, 1);
    if (!err)
        snprintf(p->config, strlen(text) + 2, "%s\n", text);
    free(text);
    return err;
}

/* Returns the bytes of the projections' codes, scales, zero points and values. compressed-tensors'
 * shapes are I64. */
static uint64_t projection_bytes(const struct hub_plan *p)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < p->tensors.n; i++)
        if (p->how[i].projection && p->how[i].dtype != DT_I64)
            bytes += p->tensors.tensor[i].bytes;
    return bytes;
}

/* A tensor of the plan, for a search by names. */
struct named {
    const char *name;
    size_t at;
};

static int compare_names(const void *pa, const void *pb)
{
    const struct named *a = pa, *b = pb;
    return strcmp(a->name, b->name);
}

static bool is_rest(const struct hub_tensor *t)
{
    return !t->linear && t->src;
}

/* Takes those marked out of the plan. */
static void take_out(struct hub_plan *p, const bool *out)
{
    size_t n = 0;
    for (size_t i = 0; i < p->tensors.n; i++) {
        if (out[i])
            continue;
        p->tensors.tensor[n] = p->tensors.tensor[i];
        p->how[n++] = p->how[i];
    }
    p->tensors.n = n;
}

/* A checkpoint may have tensors that are not the model's, under names that the format needs. */
static enum err drop_taken_names(struct export_job *j, struct hub_plan *p)
{
    enum err err = OK;
    struct named *list = NULL;
    bool *out = NULL;
    const char *first = NULL;
    int64_t count = 0;
    TRY_OUT(mem_alloc(&list, p->tensors.n, sizeof(*list)));
    TRY_OUT(mem_calloc(&out, p->tensors.n, sizeof(*out)));
    for (size_t i = 0; i < p->tensors.n; i++)
        list[i] = (struct named){p->tensors.tensor[i].name, i};
    qsort(list, p->tensors.n, sizeof(*list), compare_names);
    for (size_t i = 1; i < p->tensors.n; i++) {
        if (compare_names(&list[i - 1], &list[i]))
            continue;
        const size_t at = list[is_rest(&p->how[list[i].at]) ? i : i - 1].at;
        out[at] = is_rest(&p->how[at]);
        count += out[at];
        first = first ? first : list[i].name;
    }
    if (count)
        TRY_OUT(export_note(j, EXPORT_DROPPED,
                            "%" PRId64
                            " tensor%s of names that the format has for its own, not "
                            "part of the model; the first is %.100s",
                            count, plural(count), first));
    take_out(p, out);
out:
    mem_free(list);
    mem_free(out);
    return err;
}

enum err hub_finish(struct export_job *j, json_t *quantization, const char *torch_dtype)
{
    struct hub_plan *p = j->plan;
    enum err err = note_factor(j, torch_dtype);
    if (!err)
        err = drop_taken_names(j, p);
    if (!err)
        err = set_config(p, j->source, quantization, torch_dtype);
    json_decref(quantization);
    if (err)
        return err;
    for (size_t i = 0; !strcmp(torch_dtype, "float16") && i < p->tensors.n; i++) {
        const struct hub_tensor *t = &p->how[i];
        TRY(t->linear ? OK : check_f16(t->src));
        for (int k = 0; t->src && k < t->n_linears; k++)
            TRY(check_f16(t->linear[k].weight));
    }
    export_set_bits(j, projection_bytes(p));
    TRY(hub_card(&p->card, j));
    TRY(out_plan_cut(&p->tensors, j->options.shard_bytes));
    return hub_measure(j);
}
