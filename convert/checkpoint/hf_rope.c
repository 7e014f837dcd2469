/* SPDX-License-Identifier: MIT
 *
 * Reads the rotary embedding of config.json: rope_theta and rope_scaling (transformers 4),
 * or rope_parameters (5). Defaults are those of transformers' modeling_rope_utils. */
#include "convert/checkpoint/hf_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* A bound that accepts any number; arch_check() checks the real ones. */
#define REAL_LO (-1e300)
#define REAL_HI 1e300

#define ORIGINAL "original_max_position_embeddings"

/* config.json, and the object in it that describes the scaling. */
struct rope_reader {
    const json_t *config, *o;
    const char *config_where, *where;
    bool is_phi;
};

static enum err get_real(double *out, const struct rope_reader *r, const char *key)
{
    return json_get_real(out, r->o, key, REAL_LO, REAL_HI, r->where);
}

static enum err need_real(double *out, const struct rope_reader *r, const char *key)
{
    return json_need_real(out, r->o, key, REAL_LO, REAL_HI, r->where);
}

/* Reads which share of a head's channels is rotated, from config.json or the object in it.
 * Such a head has int(d share) rotated channels. */
static enum err read_rotary_share(struct arch *a, const json_t *o, const char *where,
                                  bool is_phi)
{
    double share = 1;
    if (!hf_is_given(o, "partial_rotary_factor"))
        return OK;
    TRY(json_get_real(&share, o, "partial_rotary_factor", REAL_LO, REAL_HI, where));
    FAIL_IF(share != 1 && !is_phi, ERR_SUPPORT,
            "%s: partial_rotary_factor is %g: with this model_type, only whole heads are "
            "rotated here (1)",
            where, share);
    FAIL_IF(!(share > 0) || !(share <= 1), ERR_FORMAT,
            "%s: partial_rotary_factor is %g, want a number above 0, at most 1", where,
            share);
    if (a->head_dim > INT32_MAX) /* refused by arch_check() */
        return OK;
    a->rotary_dim = (int64_t)((double)a->head_dim * share);
    FAIL_IF(!a->rotary_dim, ERR_FORMAT,
            "%s: partial_rotary_factor is %g, which rotates no channel of a head", where,
            share);
    return OK;
}

/* Reads the original length. Default: the whole length of the model. A field outside the
 * object has precedence, as in transformers. */
static enum err read_original(struct arch *a, const struct rope_reader *r)
{
    a->rope_original = a->max_positions;
    TRY(json_get_int(&a->rope_original, r->o, ORIGINAL, ANY_LO, ANY_HI, r->where));
    return json_get_int(&a->rope_original, r->config, ORIGINAL, ANY_LO, ANY_HI,
                        r->config_where);
}

static enum err read_llama3(struct arch *a, const struct rope_reader *r)
{
    TRY(need_real(&a->rope_factor, r, "factor"));
    TRY(need_real(&a->rope_low, r, "low_freq_factor"));
    TRY(need_real(&a->rope_high, r, "high_freq_factor"));
    return read_original(a, r);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

/* Reads the attention factor. Default: computed from the factor and, if both are given and
 * not 0, the two mscales. */
static enum err read_attention(struct arch *a, const struct rope_reader *r)
{
    double mscale = 0, all = 0;
    TRY(get_real(&mscale, r, "mscale"));
    TRY(get_real(&all, r, "mscale_all_dim"));
    a->rope_attention = mscale != 0 && all != 0 ? yarn_mscale(a->rope_factor, mscale) /
                                                      yarn_mscale(a->rope_factor, all)
                                                : yarn_mscale(a->rope_factor, 1);
    return get_real(&a->rope_attention, r, "attention_factor");
}

static enum err read_yarn(struct arch *a, const struct rope_reader *r)
{
    double fast = 0, slow = 0;
    TRY(read_original(a, r));
    FAIL_IF(!json_object_get(r->o, "factor"), ERR_FORMAT, "%s: factor is missing",
            r->where);
    if (a->rope_original > 0) /* if the factor is null */
        a->rope_factor = (double)a->max_positions / (double)a->rope_original;
    TRY(get_real(&a->rope_factor, r, "factor"));
    TRY(get_real(&fast, r, "beta_fast"));
    TRY(get_real(&slow, r, "beta_slow"));
    a->rope_high = fast != 0 ? fast : 32;
    a->rope_low = slow != 0 ? slow : 1;
    a->rope_truncate = !json_is_null(json_object_get(r->o, "truncate"));
    TRY(json_get_bool(&a->rope_truncate, r->o, "truncate", r->where));
    return read_attention(a, r);
}

static enum err read_factor(struct arch *a, const struct rope_reader *r)
{
    return need_real(&a->rope_factor, r, "factor");
}

/* Reads a list of r / 2 numbers to out, or only checks it if that is NULL. */
static enum err read_pair_factors(double *out, const struct arch *a,
                                  const struct rope_reader *r, const char *key)
{
    const size_t pairs = (size_t)arch_rotary_dim(a) / 2;
    json_t *list;
    TRY(json_get_array(&list, r->o, key, r->where));
    FAIL_IF(!list, ERR_FORMAT, "%s: %s is missing", r->where, key);
    FAIL_IF(
        json_array_size(list) != pairs, ERR_FORMAT,
        "%s: %s has %zu numbers, want one for each of the %zu pairs of rotated channels",
        r->where, key, json_array_size(list), pairs);
    for (size_t i = 0; i < pairs; i++) {
        const json_t *x = json_array_get(list, i);
        FAIL_IF(!json_is_number(x), ERR_FORMAT, "%s: %s[%zu] is %s, want a number",
                r->where, key, i, json_kind(x));
        if (out)
            out[i] = json_number_value(x);
    }
    return OK;
}

/* LongRoPE (Ding et al., arXiv 2402.13753): angles are divided by short_factor in texts of
 * at most the original length, and by long_factor in longer ones. Only the former are
 * supported, so max_positions is lowered to that length. */
static enum err read_longrope(struct arch *a, const struct rope_reader *r)
{
    a->rope_original = 4096; /* Phi3Config's; it has precedence over the object's field */
    TRY(json_get_int(&a->rope_original, r->config, ORIGINAL, ANY_LO, ANY_HI,
                     r->config_where));
    FAIL_IF(a->rope_original < 2, ERR_FORMAT,
            "%s: " ORIGINAL " is %" PRId64 ", want at least 2", r->config_where,
            a->rope_original);
    FAIL_IF(arch_rotary_dim(a) / 2 > ARCH_MAX_PAIRS, ERR_SUPPORT,
            "%s: rope_type longrope with %" PRId64
            " rotated channels; at most %d are supported",
            r->where, arch_rotary_dim(a), 2 * ARCH_MAX_PAIRS);
    TRY(read_pair_factors(a->rope_short, a, r, "short_factor"));
    TRY(read_pair_factors(NULL, a, r, "long_factor"));
    a->rope_factor = (double)a->max_positions / (double)a->rope_original;
    TRY(get_real(&a->rope_factor, r, "factor"));
    a->rope_attention = a->rope_factor > 1
                            ? sqrt(1 + log(a->rope_factor) / log((double)a->rope_original))
                            : 1;
    if (a->max_positions > a->rope_original)
        a->max_positions = a->rope_original;
    return get_real(&a->rope_attention, r, "attention_factor");
}

static enum err read_nothing(struct arch *a, const struct rope_reader *r)
{
    return OK;
}

/* A value of rope_type. */
struct kind {
    const char *name;
    enum rope_kind kind;
    enum err (*read)(struct arch *a, const struct rope_reader *r);
};

static const struct kind usual_kinds[] = {
    {"default", ROPE_DEFAULT, read_nothing}, {"linear", ROPE_LINEAR, read_factor},
    {"dynamic", ROPE_DYNAMIC, read_factor},  {"llama3", ROPE_LLAMA3, read_llama3},
    {"yarn", ROPE_YARN, read_yarn},          {NULL}};
/* "su" and "yarn" are the names that longrope had in phi3's first files. */
static const struct kind phi_kinds[] = {{"default", ROPE_DEFAULT, read_nothing},
                                        {"longrope", ROPE_LONGROPE, read_longrope},
                                        {"su", ROPE_LONGROPE, read_longrope},
                                        {"yarn", ROPE_LONGROPE, read_longrope},
                                        {NULL}};

static enum err read_kind(struct arch *a, const struct rope_reader *r)
{
    const char *kind = rope_name[ROPE_DEFAULT];
    TRY(json_get_string(&kind, r->o, "type", r->where));
    TRY(json_get_string(&kind, r->o, "rope_type", r->where));
    TRY(get_real(&a->rope_theta, r, "rope_theta"));
    TRY(read_rotary_share(a, r->o, r->where, r->is_phi));
    for (const struct kind *k = r->is_phi ? phi_kinds : usual_kinds; k->name; k++)
        if (!strcmp(kind, k->name)) {
            a->rope = k->kind;
            return k->read(a, r);
        }
    FAIL(ERR_SUPPORT, "%s: rope_type \"%.60s\" is not supported; supported are %s",
         r->where, kind,
         r->is_phi ? "default and longrope" : "default, linear, dynamic, llama3 and yarn");
}

/* Reads rope_parameters of two kinds of layers; r->o becomes that of the full ones, NULL: none.
 * Sliding layers differ by their base alone. */
static enum err read_by_layer(struct arch *a, struct rope_reader *r, const char *key)
{
    const char *kind = rope_name[ROPE_DEFAULT];
    json_t *full, *sliding;
    FAIL_IF(a->rope_theta_sliding == 0, ERR_SUPPORT,
            "%s: %s differs between kinds of layers; supported is one for all layers",
            r->config_where, key);
    TRY(json_get_object(&full, r->o, "full_attention", r->where));
    TRY(json_get_object(&sliding, r->o, "sliding_attention", r->where));
    r->o = full;
    if (!sliding)
        return OK;
    TRY(json_get_string(&kind, sliding, "type", r->where));
    TRY(json_get_string(&kind, sliding, "rope_type", r->where));
    FAIL_IF(strcmp(kind, rope_name[ROPE_DEFAULT]), ERR_SUPPORT,
            "%s: sliding_attention: rope_type \"%.60s\" is not supported; supported is "
            "default",
            r->where, kind);
    return json_get_real(&a->rope_theta_sliding, sliding, "rope_theta", REAL_LO, REAL_HI,
                         r->where);
}

/* Refuses what transformers reads in a way of its own where kinds of layers differ: it joins both
 * fields, and ignores rope_parameters that are not by kind. */
static enum err check_by_layer(const json_t *config, const char *where)
{
    json_t *old, *o;
    TRY(json_get_object(&old, config, "rope_scaling", where));
    TRY(json_get_object(&o, config, "rope_parameters", where));
    if (!o || json_object_size(o) == 0)
        return OK;
    FAIL_IF(
        old && json_object_size(old) > 0, ERR_SUPPORT,
        "%s: rope_scaling and rope_parameters are both given; with this model_type, only "
        "one of them may be",
        where);
    FAIL_IF(
        !hf_is_given(o, "full_attention") && !hf_is_given(o, "sliding_attention"),
        ERR_SUPPORT,
        "%s: rope_parameters: with this model_type, they are supported as full_attention "
        "and sliding_attention",
        where);
    return OK;
}

/* rope_scaling (transformers 4) wins over rope_parameters (5) unless it is null or empty.
 */
enum err hf_read_rope(struct arch *a, const json_t *config, const char *where, bool is_phi)
{
    const char *key = "rope_scaling";
    json_t *o;
    TRY(json_get_real(&a->rope_theta, config, "rope_theta", REAL_LO, REAL_HI, where));
    if (a->rope_theta_sliding != 0) {
        TRY(check_by_layer(config, where));
        TRY(json_get_real(&a->rope_theta_sliding, config, "rope_local_base_freq", REAL_LO,
                          REAL_HI, where));
    }
    TRY(read_rotary_share(a, config, where, is_phi));
    TRY(json_get_object(&o, config, key, where));
    if (!o || json_object_size(o) == 0) {
        key = "rope_parameters";
        TRY(json_get_object(&o, config, key, where));
    }
    if (!o || json_object_size(o) == 0)
        return OK;
    char place[512];
    snprintf(place, sizeof(place), "%s: %s", where, key);
    struct rope_reader r = {config, o, where, place, is_phi};
    if (hf_is_given(o, "full_attention") || hf_is_given(o, "sliding_attention"))
        TRY(read_by_layer(a, &r, key));
    return r.o ? read_kind(a, &r) : OK;
}
