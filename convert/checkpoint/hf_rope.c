/* SPDX-License-Identifier: MIT
 *
 * Reads the rotary embedding of config.json: rope_theta and rope_scaling (transformers 4),
 * or rope_parameters (5). Defaults are those of transformers' modeling_rope_utils. */
#include "convert/checkpoint/hf_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A bound that accepts any number; arch_check() checks the real ones. */
#define REAL_LO (-1e300)
#define REAL_HI 1e300

/* config.json, and the object in it that describes the scaling. */
struct rope_reader {
    const json_t *config, *o;
    const char *config_where, *where;
};

static enum err get_real(double *out, const struct rope_reader *r, const char *key)
{
    return json_get_real(out, r->o, key, REAL_LO, REAL_HI, r->where);
}

static enum err need_real(double *out, const struct rope_reader *r, const char *key)
{
    return json_need_real(out, r->o, key, REAL_LO, REAL_HI, r->where);
}

static enum err check_rotary_share(const json_t *o, const char *where)
{
    double share = 1;
    TRY(json_get_real(&share, o, "partial_rotary_factor", REAL_LO, REAL_HI, where));
    FAIL_IF(share != 1, ERR_SUPPORT,
            "%s: partial_rotary_factor is %g: only whole heads are rotated here (1)", where,
            share);
    return OK;
}

/* Reads the original length. Default: the whole length of the model. A field outside the
 * object has precedence, as in transformers. */
static enum err read_original(struct arch *a, const struct rope_reader *r)
{
    static const char key[] = "original_max_position_embeddings";
    a->rope_original = a->max_positions;
    TRY(json_get_int(&a->rope_original, r->o, key, ANY_LO, ANY_HI, r->where));
    return json_get_int(&a->rope_original, r->config, key, ANY_LO, ANY_HI, r->config_where);
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

static enum err read_nothing(struct arch *a, const struct rope_reader *r)
{
    return OK;
}

static enum err read_kind(struct arch *a, const struct rope_reader *r)
{
    static enum err (*const read[])(struct arch * a, const struct rope_reader *r) = {
        [ROPE_DEFAULT] = read_nothing, [ROPE_LINEAR] = read_factor,
        [ROPE_DYNAMIC] = read_factor,  [ROPE_LLAMA3] = read_llama3,
        [ROPE_YARN] = read_yarn,
    };
    const char *kind = rope_name[ROPE_DEFAULT];
    TRY(json_get_string(&kind, r->o, "type", r->where));
    TRY(json_get_string(&kind, r->o, "rope_type", r->where));
    TRY(get_real(&a->rope_theta, r, "rope_theta"));
    TRY(check_rotary_share(r->o, r->where));
    for (size_t i = 0; i < ARRAY_LEN(read); i++)
        if (!strcmp(kind, rope_name[i])) {
            a->rope = (enum rope_kind)i;
            return read[i](a, r);
        }
    FAIL(
        ERR_SUPPORT,
        "%s: rope_type \"%.60s\" is not supported; supported are default, linear, dynamic, "
        "llama3 and yarn",
        r->where, kind);
}

/* rope_scaling (transformers 4) wins over rope_parameters (5) unless it is null or empty.
 */
enum err hf_read_rope(struct arch *a, const json_t *config, const char *where)
{
    const char *key = "rope_scaling";
    json_t *o;
    TRY(json_get_real(&a->rope_theta, config, "rope_theta", REAL_LO, REAL_HI, where));
    TRY(check_rotary_share(config, where));
    TRY(json_get_object(&o, config, key, where));
    if (!o || json_object_size(o) == 0) {
        key = "rope_parameters";
        TRY(json_get_object(&o, config, key, where));
    }
    if (!o || json_object_size(o) == 0)
        return OK;
    FAIL_IF(hf_is_given(o, "full_attention") || hf_is_given(o, "sliding_attention"),
            ERR_SUPPORT,
            "%s: %s differs between kinds of layers; supported is one for all layers",
            where, key);
    char place[512];
    snprintf(place, sizeof(place), "%s: %s", where, key);
    const struct rope_reader r = {config, o, where, place};
    return read_kind(a, &r);
}
