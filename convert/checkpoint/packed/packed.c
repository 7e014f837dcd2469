/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/packed/packed.h"

#include "kernels/base/half.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHT ".weight"
#define NAME_MAX_LENGTH 200

/* --- parts -------------------------------------------------------------------------- */

static int base_length(const struct packed_lin *l)
{
    return (int)(strlen(l->name) - strlen(WEIGHT));
}

static enum err check_type(const struct packed_lin *l, enum packed_part i, bool fits,
                           const char *want)
{
    FAIL_IF(!fits, ERR_FORMAT, "tensor %.*s%s has dtype %s, want %s", base_length(l),
            l->name, l->layout->tail[i], l->part[i].dtype_name, want);
    return OK;
}

static enum err check_dims(const struct packed_lin *l, enum packed_part i, int64_t dim0,
                           int64_t dim1)
{
    const struct st_tensor *t = &l->part[i];
    const int n_dims = dim1 < 0 ? 1 : 2;
    const bool fits =
        t->n_dims == n_dims && t->dim[0] == dim0 && (n_dims == 1 || t->dim[1] == dim1);
    char want[64];
    if (n_dims == 1)
        snprintf(want, sizeof(want), "[%" PRId64 "]", dim0);
    else
        snprintf(want, sizeof(want), "[%" PRId64 ", %" PRId64 "]", dim0, dim1);
    FAIL_IF(!fits, ERR_FORMAT,
            "tensor %.*s%s has %d dimensions and shape [%" PRId64 ", %" PRId64
            "], want shape %s",
            base_length(l), l->name, l->layout->tail[i], t->n_dims,
            t->n_dims > 0 ? t->dim[0] : 0, t->n_dims > 1 ? t->dim[1] : 1, want);
    return OK;
}

enum err packed_check_part(const struct packed_lin *l, enum packed_part i, enum dtype dtype,
                           int64_t dim0, int64_t dim1)
{
    TRY(check_type(l, i, l->part[i].dtype == dtype, dtype_name(dtype)));
    return check_dims(l, i, dim0, dim1);
}

enum err packed_check_scales(const struct packed_lin *l, int64_t dim0, int64_t dim1)
{
    const enum dtype t = l->part[PART_SCALES].dtype;
    TRY(check_type(l, PART_SCALES, t == DT_F16 || t == DT_BF16 || t == DT_F32,
                   "F16, BF16 or F32"));
    return check_dims(l, PART_SCALES, dim0, dim1);
}

enum err packed_read_group_size(int64_t *out, const json_t *o, const char *where)
{
    TRY(json_need_int(out, o, "group_size", -1, QUANT_GROUP_MAX, where));
    FAIL_IF(*out == 0, ERR_FORMAT, "%s: group_size is 0, want 1 or more, or -1 for the row",
            where);
    *out = *out < 0 ? 0 : *out;
    return OK;
}

int64_t packed_scale_by_group(const struct packed_lin *l, int64_t r, int64_t g)
{
    return g * l->out + r;
}

enum err packed_find_group(struct packed_lin *l, int64_t groups)
{
    const int64_t usual = l->config->scheme[0].group_size;
    l->format.group_size = usual;
    if (groups == weight_groups(l->in, usual))
        return OK;
    FAIL_IF(groups < 1 || l->in % groups, ERR_FORMAT,
            "tensor %s has %" PRId64 " groups for %" PRId64
            " columns, but group_size is %" PRId64 " in config.json",
            l->part[PART_SCALES].name, groups, l->in, usual ? usual : -1);
    l->format.group_size = groups == 1 ? 0 : l->in / groups;
    return OK;
}

enum err packed_check_codes(const struct packed_lin *l, const char *want)
{
    const struct st_tensor *t = &l->part[PART_CODES];
    FAIL_IF(t->n_dims != 2 || t->dim[0] < 1 || t->dim[1] < 1, ERR_FORMAT,
            "tensor %s has %d dimensions, want %s", t->name, t->n_dims, want);
    return OK;
}

enum err packed_check_by_group(struct packed_lin *l, int64_t words0, int64_t words1,
                               int64_t zero_words)
{
    const struct st_tensor *h = &l->part[PART_SCALES];
    FAIL_IF(h->n_dims != 2, ERR_FORMAT, "tensor %s has %d dimensions, want [groups, rows]",
            h->name, h->n_dims);
    TRY(packed_find_group(l, h->dim[0]));
    FAIL_IF(!l->part[PART_ZEROS].data, ERR_NOT_FOUND,
            "tensor %s needs qzeros, which are missing", l->part[PART_CODES].name);
    TRY(packed_check_part(l, PART_CODES, DT_I32, words0, words1));
    TRY(packed_check_scales(l, h->dim[0], l->out));
    return packed_check_part(l, PART_ZEROS, DT_I32, h->dim[0], zero_words);
}

uint32_t packed_word(const struct packed_lin *l, enum packed_part i, int64_t at)
{
    const uint8_t *p = l->part[i].data + 4 * at;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* --- groups ------------------------------------------------------------------------- */

static int64_t group_columns(const struct packed_lin *l)
{
    return l->format.group_size > 0 ? l->format.group_size : l->in;
}

/* Returns the stored group of a column. */
static int64_t stored_group(const struct packed_lin *l, int64_t column)
{
    if (!l->part[PART_G_IDX].data)
        return column / group_columns(l);
    return (int32_t)packed_word(l, PART_G_IDX, column);
}

/* A group of the artifact is a run of columns, so all of a run must be in one stored
 * group. */
static enum err check_g_idx(const struct packed_lin *l)
{
    const int64_t G = group_columns(l), groups = weight_groups(l->in, G);
    const int base = base_length(l);
    const char *tail = l->layout->tail[PART_G_IDX];
    for (int64_t c = 0; c < l->in; c++) {
        const int64_t g = stored_group(l, c);
        FAIL_IF(g < 0 || g >= groups, ERR_FORMAT,
                "tensor %.*s%s: column %" PRId64 " is in group %" PRId64
                ", but there are %" PRId64 " groups",
                base, l->name, tail, c, g, groups);
        FAIL_IF(g != stored_group(l, c / G * G), ERR_SUPPORT,
                "tensor %.*s%s: columns %" PRId64 " and %" PRId64
                " are in different groups (activation order), but an artifact's groups are "
                "runs of %" PRId64
                " columns; quantize without activation order (desc_act: false), or with "
                "static groups",
                base, l->name, tail, c / G * G, c, G);
    }
    return OK;
}

/* --- scales and zero points --------------------------------------------------------- */

static float scale_value(const struct packed_lin *l, int64_t r, int64_t g)
{
    const struct st_tensor *t = &l->part[PART_SCALES];
    float x;
    host_to_f32(&x, t->data + (size_t)l->layout->scale_at(l, r, g) * dtype_bytes(t->dtype),
                t->dtype, 1);
    return x;
}

/* *h = |x| as fp16. */
static enum err take_scale(uint16_t *h, const struct packed_lin *l, float x, int64_t r,
                           int64_t g)
{
    const uint16_t half = f16_from_f32(fabsf(x));
    const float value = f16_to_f32(half);
    FAIL_IF(!isfinite(x) || x == 0, ERR_FORMAT,
            "tensor %.*s%s: the scale of row %" PRId64 ", group %" PRId64
            " is %g, want a finite number other than 0",
            base_length(l), l->name, l->layout->tail[PART_SCALES], r, g, (double)x);
    FAIL_IF(value == 0 || !isfinite(value), ERR_SUPPORT,
            "tensor %.*s%s: the scale of row %" PRId64 ", group %" PRId64
            " is %g, which fp16 cannot hold",
            base_length(l), l->name, l->layout->tail[PART_SCALES], r, g, (double)x);
    *h = half;
    return OK;
}

static enum err take_zero(uint8_t *z, const struct packed_lin *l, int64_t r, int64_t g)
{
    const int bits = l->format.bits;
    const int zero = l->symmetric ? 1 << (bits - 1) : l->layout->zero(l, r, g);
    FAIL_IF(zero < 0 || zero >> bits, ERR_FORMAT,
            "tensor %.*s%s: the zero point of row %" PRId64 ", group %" PRId64
            " is %d, beyond %d bits",
            base_length(l), l->name, l->layout->tail[PART_ZEROS], r, g, zero, bits);
    *z = (uint8_t)zero;
    return OK;
}

/* (q - z) h with h < 0 is ((Q - q) - (Q - z)) |h|, so such a group is mirrored. */
static uint8_t mirrored(uint8_t code, int bits)
{
    return (uint8_t)((1 << bits) - 1 - code);
}

/* Fills scales and zeros, and mirror [out][groups] where a group is mirrored. */
static enum err read_groups(struct qlinear *q, uint8_t *mirror, const struct packed_lin *l,
                            struct packed_changes *changes)
{
    const int64_t G = group_columns(l);
    for (int64_t i = 0; i < q->out; i++)
        for (int64_t j = 0; j < q->groups; j++) {
            const int64_t at = i * q->groups + j, g = stored_group(l, j * G);
            const int64_t r = l->first + i;
            const float x = scale_value(l, r, g);
            TRY(take_scale(&q->scales[at], l, x, r, g));
            TRY(take_zero(&q->zeros[at], l, r, g));
            changes->off_centre += q->zeros[at] != 1 << (l->format.bits - 1);
            mirror[at] = x < 0;
            if (mirror[at])
                q->zeros[at] = mirrored(q->zeros[at], l->format.bits);
            const double off =
                fabs((double)f16_to_f32(q->scales[at]) / fabs((double)x) - 1);
            changes->groups++;
            changes->rounded += off > 0;
            changes->mirrored += x < 0;
            changes->worst = off > changes->worst ? off : changes->worst;
        }
    return OK;
}

static void read_codes(struct qlinear *q, const uint8_t *mirror, const struct packed_lin *l)
{
    const int64_t G = group_columns(l);
    for (int64_t first = 0; first < q->out; first += PACKED_ROWS)
        l->layout->rows(l, q->codes + first * q->in, l->first + first,
                        q->out - first < PACKED_ROWS ? q->out - first : PACKED_ROWS);
    for (int64_t at = 0; at < q->out * q->groups; at++) {
        const int64_t begin = at % q->groups * G;
        const int64_t n = q->in - begin < G ? q->in - begin : G;
        uint8_t *codes = q->codes + at / q->groups * q->in + begin;
        for (int64_t c = 0; mirror[at] && c < n; c++)
            codes[c] = mirrored(codes[c], l->format.bits);
    }
}

static enum err read_lin(struct qlinear *out, const struct packed_lin *l, bool codes,
                         struct packed_changes *changes)
{
    enum err err = OK;
    struct qlinear q = {0};
    uint8_t *mirror = NULL;
    TRY_OUT(qlinear_alloc(&q, l->rows, l->in, l->format));
    TRY_OUT(mem_alloc(&mirror, (size_t)(q.out * q.groups), 1));
    TRY_OUT(read_groups(&q, mirror, l, changes));
    if (codes) {
        TRY_OUT(qlinear_alloc_codes(&q));
        read_codes(&q, mirror, l);
    }
    *out = q;
    q = (struct qlinear){0};
out:
    qlinear_free(&q);
    mem_free(mirror);
    return err;
}

/* Copies part, whose rows begin at `row` of q. */
static void put_rows(struct qlinear *q, const struct qlinear *part, int64_t row)
{
    const size_t groups = (size_t)(part->out * part->groups);
    memcpy(q->scales + row * q->groups, part->scales, groups * sizeof(*q->scales));
    memcpy(q->zeros + row * q->groups, part->zeros, groups);
    memcpy(q->codes + row * q->in, part->codes, (size_t)(part->out * part->in));
}

static enum err read_joined(struct qlinear *out, const struct packed_lin *l)
{
    enum err err = OK;
    struct qlinear q = {0};
    int64_t row = 0;
    TRY_OUT(qlinear_alloc(&q, l->rows, l->in, l->format));
    TRY_OUT(qlinear_alloc_codes(&q));
    for (int64_t k = 0; k < l->n_joined; k++) {
        struct qlinear part;
        TRY_OUT(packed_read(&part, &l->joined[k]));
        put_rows(&q, &part, row);
        row += part.out;
        qlinear_free(&part);
    }
    *out = q;
    return OK;
out:
    qlinear_free(&q);
    return err;
}

enum err packed_read(struct qlinear *q, const struct packed_lin *l)
{
    struct packed_changes changes = {0};
    return l->joined ? read_joined(q, l) : read_lin(q, l, true, &changes);
}

/* --- finding ------------------------------------------------------------------------ */

static bool ends_with(const char *name, const char *tail)
{
    const size_t n = strlen(name), m = strlen(tail);
    return n > m && !strcmp(name + n - m, tail);
}

/* Sets the parts of l; codes is the place of its codes. */
static enum err find_parts(struct packed_lin *l, const struct hf_files *f,
                           const struct hf_place *codes)
{
    char name[NAME_MAX_LENGTH + 64];
    const struct packed_layout *y = l->layout;
    const int n = (int)(strlen(codes->t->name) - strlen(y->tail[PART_CODES]));
    FAIL_IF(n > NAME_MAX_LENGTH, ERR_SUPPORT,
            "tensor %.60s...: its name is longer than %d characters", codes->t->name,
            NAME_MAX_LENGTH);
    snprintf(name, sizeof(name), "%.*s%s", n, codes->t->name, WEIGHT);
    FAIL_IF(hf_files_find(f, name), ERR_FORMAT,
            "tensor %s stands beside its packed form %s; delete the one that does not "
            "belong to the checkpoint",
            name, codes->t->name);
    TRY(mem_strdup(&l->name, name));
    for (int i = 0; i < N_PARTS; i++) {
        if (!y->tail[i])
            continue;
        snprintf(name, sizeof(name), "%.*s%s", n, codes->t->name, y->tail[i]);
        const struct hf_place *p = hf_files_find(f, name);
        if (!p)
            continue;
        l->part[i] = *p->t;
        l->file[i] = p->file;
        l->slot[i] = p->t - f->tensor;
    }
    FAIL_IF(!l->part[PART_SCALES].data, ERR_NOT_FOUND,
            "tensor %.*s%s is missing; it holds the scales of %s", n, codes->t->name,
            y->tail[PART_SCALES], codes->t->name);
    return OK;
}

static enum err check_lin(struct packed_lin *l, struct packed_changes *changes)
{
    struct qlinear q = {0};
    TRY(l->layout->measure(l));
    l->rows = l->out;
    if (l->part[PART_G_IDX].data) {
        TRY(packed_check_part(l, PART_G_IDX, DT_I32, l->in, -1));
        TRY(check_g_idx(l));
    }
    TRY(read_lin(&q, l, false, changes));
    qlinear_free(&q);
    return OK;
}

static int compare_lin(const void *pa, const void *pb)
{
    const struct packed_lin *a = pa, *b = pb;
    return strcmp(a->name, b->name);
}

void packed_sort(struct packed *p)
{
    qsort(p->lin, (size_t)p->n, sizeof(*p->lin), compare_lin);
}

static enum err find_all(struct packed *p, const struct hf_files *f, const char *dir)
{
    const char *tail = p->config.layout->tail[PART_CODES];
    int64_t n = 0;
    for (int64_t i = 0; i < f->n_places; i++)
        n += ends_with(f->by_name[i].t->name, tail);
    FAIL_IF(!n, ERR_FORMAT,
            "%s: config.json describes weights packed by %s, but no tensor ends in %s", dir,
            p->config.layout->about, tail);
    TRY(mem_calloc(&p->lin, (size_t)n, sizeof(*p->lin)));
    for (int64_t i = 0; i < f->n_places; i++) {
        const struct hf_place *at = &f->by_name[i];
        if (!ends_with(at->t->name, tail))
            continue;
        struct packed_lin *l = &p->lin[p->n++];
        l->layout = p->config.layout;
        l->config = &p->config;
        enum err err = find_parts(l, f, at);
        if (!err)
            err = check_lin(l, &p->changes);
        if (err)
            return err_add(err, "%s: ", st_path(f->file[at->file]));
    }
    packed_sort(p);
    return OK;
}

/* --- the list of tensors ------------------------------------------------------------ */

/* Puts NAME.weight in the place of the codes. The other parts lose their names, by which
 * hf_files_compact() drops them. */
static void replace(struct hf_files *f, const struct packed_lin *l)
{
    for (int i = 0; i < N_PARTS; i++)
        if (l->part[i].data)
            f->tensor[l->slot[i]].name = NULL;
    f->tensor[l->slot[PART_CODES]] = (struct st_tensor){.name = l->name,
                                                        .dtype_name = "F32",
                                                        .dtype = DT_F32,
                                                        .n_dims = 2,
                                                        .dim = {l->out, l->in}};
}

/* Drops the scales of an engine's cache, whose names an artifact uses for its own. */
static void drop_cache_scales(struct hf_files *f)
{
    static const char *const tail[] = {".self_attn.k_scale", ".self_attn.v_scale",
                                       ".self_attn.q_scale"};
    const char *first = NULL;
    for (int64_t i = 0; i < f->n_places; i++)
        for (size_t k = 0; k < ARRAY_LEN(tail); k++) {
            struct st_tensor *t = &f->tensor[f->place[i].t - f->tensor];
            if (!t->name || !ends_with(t->name, tail[k]))
                continue;
            first = first ? first : t->name;
            t->name = NULL;
        }
    if (first)
        log_info(
            "%s: scales of an engine's cache (kv_cache_scheme) are left out; the first "
            "is %s",
            st_path(f->file[0]), first);
}

const struct packed_lin *packed_find(const struct packed *p, const char *weight)
{
    const struct packed_lin key = {.name = (char *)(uintptr_t)weight};
    if (!p->n)
        return NULL;
    return bsearch(&key, p->lin, (size_t)p->n, sizeof(*p->lin), compare_lin);
}

void packed_tell(const struct packed_lin *l, const struct hf_files *f,
                 void (*tell)(const struct st_file *f, const struct st_tensor *t))
{
    for (int64_t k = 0; k < l->n_joined; k++)
        packed_tell(&l->joined[k], f, tell);
    for (int i = 0; i < N_PARTS; i++)
        if (l->part[i].data)
            tell(f->file[l->file[i]], &l->part[i]);
}

/* Sets *to to a part of l, which has its own name. */
static enum err take_rows(struct packed_lin *to, const struct packed_lin *l,
                          const char *name, int64_t first, int64_t rows)
{
    FAIL_IF(first % PACKED_ALIGN || rows % PACKED_ALIGN, ERR_SUPPORT,
            "tensor %s: its part %s is rows %" PRId64 " to %" PRId64
            ", but packed codes can be split at multiples of %d only",
            l->part[PART_CODES].name, name, first, first + rows, PACKED_ALIGN);
    *to = *l;
    to->first = first;
    to->rows = rows;
    to->name = NULL;
    return mem_strdup(&to->name, name);
}

enum err packed_split(struct packed_parts *to, struct packed *p, const char *whole, int n,
                      const char *const *part, const int64_t *rows)
{
    const struct packed_lin *found = packed_find(p, whole);
    int64_t first = 0;
    if (!found)
        return OK;
    for (int k = 0; k < n; first += rows[k++]) {
        TRY(take_rows(&to->lin[to->n], found, part[k], first, rows[k]));
        to->n++;
    }
    p->lin[found - p->lin].rows = 0;
    return OK;
}

enum err packed_replace(struct packed *p, const struct packed_parts *by)
{
    int64_t n = 0;
    TRY(mem_resize(&p->lin, (size_t)p->n, (size_t)(p->n + by->n), sizeof(*p->lin)));
    for (int64_t i = 0; i < p->n; i++)
        if (p->lin[i].rows)
            p->lin[n++] = p->lin[i];
        else
            mem_free(p->lin[i].name);
    for (int64_t i = 0; i < by->n; i++)
        p->lin[n++] = by->lin[i];
    p->n = n;
    packed_sort(p);
    return OK;
}

enum err packed_open(struct packed *out, struct hf_files *f, const char *dir,
                     const char *wants)
{
    TRY(packed_read_config(&out->config, dir, wants));
    TRY(find_all(out, f, dir));
    for (int64_t i = 0; i < out->n; i++)
        replace(f, &out->lin[i]);
    drop_cache_scales(f);
    hf_files_compact(f);
    return OK;
}

void packed_close(struct packed *p)
{
    for (int64_t i = 0; i < p->n; i++) {
        struct packed_lin *l = &p->lin[i];
        for (int64_t k = 0; k < l->n_joined; k++)
            mem_free(l->joined[k].name);
        mem_free(l->joined);
        mem_free(l->name);
    }
    mem_free(p->lin);
    *p = (struct packed){0};
}
