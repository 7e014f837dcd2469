/* SPDX-License-Identifier: MIT
 *
 * compressed-tensors, pack-quantized: llm-compressor, AutoRound, and our own export.
 *
 *   NAME.weight_packed      I32 [out][words of in]      codes along in
 *   NAME.weight_scale       F16, BF16, F32 [out][groups]
 *   NAME.weight_zero_point  I32 [words of out][groups]  along out; missing if symmetric.
 *                           Early versions: I8 [out][groups], signed
 *   NAME.weight_shape       I64 [2]
 *   NAME.weight_g_idx       I32 [in]; only with activation order
 *
 * Packed codes and zero points are unsigned: the library subtracts 2^(bits - 1) from both. */
#include "convert/checkpoint/pack_layout.h"
#include "convert/checkpoint/packed/packed.h"
#include "convert/format/bitpack.h"

#include <inttypes.h>
#include <string.h>

/* --- config.json -------------------------------------------------------------------- */

static bool describes(const json_t *o)
{
    return !strcmp(json_member_text(o, "quant_method"), PACK_COMPRESSED);
}

/* Refuses a member that is present and not null. */
static enum err refuse_given(const json_t *o, const char *key, const char *why,
                             const char *where)
{
    const json_t *v = json_object_get(o, key);
    FAIL_IF(v && !json_is_null(v), ERR_SUPPORT, "%s: %s is given, but %s", where, key, why);
    return OK;
}

static enum err want_text(const json_t *o, const char *key, const char *want,
                          const char *where)
{
    const char *text = want;
    TRY(json_get_string(&text, o, key, where));
    FAIL_IF(strcmp(text, want), ERR_SUPPORT, "%s: %s is \"%.40s\"; only \"%s\" is read",
            where, key, text, want);
    return OK;
}

static enum err read_group_size(int64_t *out, const json_t *w, const char *where)
{
    const char *strategy = NULL;
    TRY(json_need_string(&strategy, w, "strategy", where));
    *out = 0;
    if (!strcmp(strategy, "channel"))
        return OK;
    FAIL_IF(strcmp(strategy, "group"), ERR_SUPPORT,
            "%s: strategy is \"%.40s\"; \"group\" and \"channel\" are read", where,
            strategy);
    return packed_read_group_size(out, w, where);
}

static enum err read_scheme(struct packed_scheme *s, const json_t *group, const char *where)
{
    json_t *w = NULL;
    int64_t bits = 0;
    bool dynamic = false;
    *s = (struct packed_scheme){.symmetric = true};
    TRY(json_get_object(&w, group, "weights", where));
    FAIL_IF(!w, ERR_FORMAT, "%s: weights is missing", where);
    TRY(refuse_given(group, "input_activations",
                     "activations stay unquantized in an artifact", where));
    TRY(refuse_given(group, "output_activations",
                     "activations stay unquantized in an artifact", where));
    TRY(want_text(group, "format", PACK_COMPRESSED_FORMAT, where));
    TRY(want_text(w, "type", "int", where));
    TRY(json_need_int(&bits, w, "num_bits", 1, 64, where));
    FAIL_IF(bits != 2 && bits != 4 && bits != 8, ERR_SUPPORT,
            "%s: num_bits is %" PRId64
            "; 2, 4 and 8 are read, because versions of the library pack other widths "
            "differently",
            where, bits);
    TRY(json_get_bool(&s->symmetric, w, "symmetric", where));
    TRY(json_get_bool(&dynamic, w, "dynamic", where));
    FAIL_IF(dynamic, ERR_SUPPORT, "%s: dynamic is true, but weights are static", where);
    s->bits = (int)bits;
    return read_group_size(&s->group_size, w, where);
}

static enum err read_config(struct packed_config *c, const json_t *o, const char *where)
{
    json_t *groups = NULL, *group;
    const char *name, *format = PACK_COMPRESSED_FORMAT;
    TRY(json_get_string(&format, o, "format", where));
    if (strcmp(format, "mixed-precision")) /* each group then has its own */
        TRY(want_text(o, "format", PACK_COMPRESSED_FORMAT, where));
    TRY(json_get_object(&groups, o, "config_groups", where));
    FAIL_IF(!json_object_size(groups), ERR_FORMAT, "%s: config_groups is missing or empty",
            where);
    json_object_foreach(groups, name, group)
    {
        char place[700];
        FAIL_IF(c->n_schemes == PACKED_SCHEMES_MAX, ERR_SUPPORT,
                "%s: more than %d config_groups", where, PACKED_SCHEMES_MAX);
        snprintf(place, sizeof(place), "%.560s: config_groups.%.60s", where, name);
        TRY(read_scheme(&c->scheme[c->n_schemes++], group, place));
    }
    return OK;
}

/* --- one projection ----------------------------------------------------------------- */

static int64_t words(int64_t n, int bits)
{
    return (bitpack_bytes(n, bits) + 3) / 4;
}

static enum err read_shape(struct packed_lin *l)
{
    const struct st_tensor *t = &l->part[PART_SHAPE];
    int64_t dim[2];
    FAIL_IF(!t->data, ERR_NOT_FOUND, "tensor %s is packed, but its weight_shape is missing",
            l->part[PART_CODES].name);
    TRY(packed_check_part(l, PART_SHAPE, DT_I64, 2, -1));
    memcpy(dim, t->data, sizeof(dim));
    FAIL_IF(dim[0] < 1 || dim[1] < 1 || dim[0] > INT32_MAX || dim[1] > INT32_MAX,
            ERR_FORMAT, "tensor %s says [%" PRId64 ", %" PRId64 "], want positive sizes",
            t->name, dim[0], dim[1]);
    l->out = dim[0];
    l->in = dim[1];
    return OK;
}

/* Returns whether the parts have the shapes of scheme s. Which projection has which scheme
 * follows from them; the patterns of names in config.json need no reading. */
static bool fits(const struct packed_lin *l, const struct packed_scheme *s)
{
    const struct st_tensor *codes = &l->part[PART_CODES], *h = &l->part[PART_SCALES];
    return codes->n_dims == 2 && h->n_dims == 2 && codes->dim[1] == words(l->in, s->bits) &&
           h->dim[1] == weight_groups(l->in, s->group_size) &&
           s->symmetric == !l->part[PART_ZEROS].data;
}

static enum err measure(struct packed_lin *l)
{
    const struct packed_config *c = l->config;
    const struct packed_scheme *s = &c->scheme[0];
    TRY(read_shape(l));
    for (int i = 0; i < c->n_schemes; i++)
        if (fits(l, &c->scheme[i])) {
            s = &c->scheme[i];
            break;
        }
    const int64_t groups = weight_groups(l->in, s->group_size);
    l->format = (struct lin_format){s->bits, s->group_size, 0};
    l->symmetric = s->symmetric;
    TRY(packed_check_part(l, PART_CODES, DT_I32, l->out, words(l->in, s->bits)));
    TRY(packed_check_scales(l, l->out, groups));
    FAIL_IF(s->symmetric && l->part[PART_ZEROS].data, ERR_SUPPORT,
            "tensor %s is present, although symmetric is true in config.json",
            l->part[PART_ZEROS].name);
    if (s->symmetric)
        return OK;
    FAIL_IF(
        !l->part[PART_ZEROS].data, ERR_NOT_FOUND,
        "tensor %s needs a weight_zero_point, because symmetric is false in config.json",
        l->part[PART_CODES].name);
    if (l->part[PART_ZEROS].dtype == DT_I8)
        return packed_check_part(l, PART_ZEROS, DT_I8, l->out, groups);
    return packed_check_part(l, PART_ZEROS, DT_I32, words(l->out, s->bits), groups);
}

static int64_t scale_at(const struct packed_lin *l, int64_t r, int64_t g)
{
    return r * l->part[PART_SCALES].dim[1] + g;
}

static int zero(const struct packed_lin *l, int64_t r, int64_t g)
{
    const struct st_tensor *t = &l->part[PART_ZEROS];
    const int bits = l->format.bits, per = PACK_WORD_BITS / bits;
    if (t->dtype == DT_I8)
        return (int8_t)t->data[r * t->dim[1] + g] + (1 << (bits - 1));
    const uint32_t word = packed_word(l, PART_ZEROS, r / per * t->dim[1] + g);
    return (int)(word >> r % per * bits & ((1u << bits) - 1));
}

static void rows(const struct packed_lin *l, uint8_t *codes, int64_t first, int64_t n)
{
    const struct st_tensor *t = &l->part[PART_CODES];
    for (int64_t r = 0; r < n; r++)
        bitpack_unpack_row(codes + r * l->in, t->data + (first + r) * t->dim[1] * 4, l->in,
                           l->format.bits);
}

const struct packed_layout packed_compressed = {
    .about = PACK_COMPRESSED,
    .tail = {[PART_CODES] = PACK_COMPRESSED_CODES,
             [PART_SCALES] = PACK_COMPRESSED_SCALES,
             [PART_ZEROS] = PACK_COMPRESSED_ZEROS,
             [PART_SHAPE] = PACK_COMPRESSED_SHAPE,
             [PART_G_IDX] = PACK_COMPRESSED_G_IDX},
    .describes = describes,
    .read_config = read_config,
    .measure = measure,
    .scale_at = scale_at,
    .zero = zero,
    .rows = rows,
};
