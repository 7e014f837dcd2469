/* SPDX-License-Identifier: MIT */
#include "convert/format/artifact_spec.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <string.h>

#define COUNT_MAX ((int64_t)1 << 30)

static const char *const weight_names[] = {[WEIGHT_RTN] = "rtn",
                                           [WEIGHT_LWC] = "lwc",
                                           [WEIGHT_GPTQ] = "gptq",
                                           [WEIGHT_GIVEN] = "given"};
static const char *const round_names[] = {
    [ROUND_NEAREST] = "nearest", [ROUND_LEARNED] = "learned"};
static const char *const kv_names[] = {
    [KV_TOKEN] = "token", [KV_CHANNEL_TOKEN] = "channel_token"};
static const char *const stage_names[] = {
    [KEY_POST_ROPE] = "post_rope", [KEY_PRE_ROPE] = "pre_rope"};
static const char *const rotate_names[] = {
    [ROTATE_NONE] = "none", [ROTATE_V] = "v", [ROTATE_K] = "k", [ROTATE_KV] = "kv"};

enum err spec_check(const struct weight_spec *w, const struct kv_spec *kv,
                    const char *where)
{
    FAIL_IF(!quant_bits_setting_ok(w->bits), ERR_FORMAT,
            "%s: weights.bits is %d, want 2 to 8 or 16", where, w->bits);
    FAIL_IF(w->scale_bits < 0 || w->scale_bits > QUANT_SCALE_BITS, ERR_FORMAT,
            "%s: weights.scale_bits is %d, want 1 to %d", where, w->scale_bits,
            QUANT_SCALE_BITS);
    FAIL_IF(w->head_bits && !quant_bits_setting_ok(w->head_bits), ERR_FORMAT,
            "%s: head.bits is %d, want 2 to 8 or 16", where, w->head_bits);
    FAIL_IF(w->act_bits && !quant_bits_setting_ok(w->act_bits), ERR_FORMAT,
            "%s: activations.bits is %d, want 2 to 8 or 16", where, w->act_bits);
    FAIL_IF(w->head_group < 0 || w->head_group > COUNT_MAX, ERR_FORMAT,
            "%s: head.group_size is %" PRId64 ", want 0 (the row) or more", where,
            w->head_group);
    FAIL_IF(!quant_bits_setting_ok(kv->bits), ERR_FORMAT,
            "%s: kv.bits is %d, want 2 to 8 or 16", where, kv->bits);
    FAIL_IF(
        kv->method == KV_CHANNEL, ERR_SUPPORT,
        "%s: kv.method is channel, which is for simulation: no runtime reads such a cache",
        where);
    FAIL_IF(w->group_size < 0 || w->group_size > COUNT_MAX, ERR_FORMAT,
            "%s: weights.group_size is %" PRId64 ", want 0 (the row) or more", where,
            w->group_size);
    FAIL_IF(kv->group_size < 0 || kv->group_size > COUNT_MAX, ERR_FORMAT,
            "%s: kv.group_size is %" PRId64 ", want 0 (the head) or more", where,
            kv->group_size);
    FAIL_IF(
        kv->window < 0 || kv->window > COUNT_MAX || kv->sink < 0 || kv->sink > COUNT_MAX,
        ERR_FORMAT, "%s: kv.window is %" PRId64 " and kv.sink %" PRId64 ", want 0 or more",
        where, kv->window, kv->sink);
    return OK;
}

/* Returns the first format version that knows this engine. */
static int target_version(enum kv_target target)
{
    return !target ? 1 : kv_target_folds(target) ? 7 : 9;
}

/* Returns the first format version that can express these settings. */
static int version_of(const struct weight_spec *w, const struct kv_spec *kv)
{
    if (target_version(kv->target) > 8)
        return target_version(kv->target);
    if (weight_rounds_inputs(w))
        return 8;
    if (kv->target)
        return target_version(kv->target);
    if (w->method == WEIGHT_GIVEN)
        return 6;
    if (weight_quantizes_head(w))
        return 5;
    if (w->refined)
        return 4;
    if (w->mixed || kv->mixed)
        return 3;
    return kv->rotate ? 2 : 1;
}

/* Sets o.mixed if there is a mix. False: out of memory. */
static bool put_mix(json_t *o, const struct mix *m)
{
    char *text;
    if (!m)
        return true;
    if (mix_text(&text, m))
        return false;
    const bool done = !json_object_set_new(o, "mixed", json_string(text));
    mem_free(text);
    return done;
}

/* Sets o.scale_bits where scales have fewer than fp16. Readers need no later version for
 * it: it says how scales were rounded, not how they are read. */
static bool put_scale_bits(json_t *o, int scale_bits)
{
    return !scale_bits || scale_bits == QUANT_SCALE_BITS ||
           !json_object_set_new(o, "scale_bits", json_integer(scale_bits));
}

/* Describes a quantized head. Embedding and head are then converted, too. */
static bool put_head(json_t *o, const struct weight_spec *w)
{
    if (!weight_quantizes_head(w))
        return true;
    return !json_object_set_new(o, "head",
                                json_pack("{s:i, s:I}", "bits", w->head_bits, "group_size",
                                          (json_int_t)w->head_group)) &&
           !json_array_clear(json_object_get(o, "modules_to_not_convert"));
}

static bool put_activations(json_t *o, const struct weight_spec *w)
{
    return !weight_rounds_inputs(w) ||
           !json_object_set_new(o, "activations", json_pack("{s:i}", "bits", w->act_bits));
}

static bool put_rotate(json_t *o, enum kv_rotate rotate)
{
    return !rotate || !json_object_set_new(o, "rotate", json_string(rotate_names[rotate]));
}

static bool put_target(json_t *o, enum kv_target target)
{
    return !target ||
           !json_object_set_new(o, "target", json_string(kv_target_name[target]));
}

static bool put_refined(json_t *o, bool refined)
{
    return !refined || !json_object_set_new(o, "refined", json_true());
}

json_t *spec_to_json(const struct weight_spec *w, const struct kv_spec *kv)
{
    json_t *o = json_pack(
        "{s:s, s:i, s:{s:s, s:i, s:I, s:s}, s:{s:s, s:i, s:I, s:s, s:b, s:I, s:I, s:b}, "
        "s:[s]}",
        "format", ARTIFACT_FORMAT, "format_version", version_of(w, kv), "weights", "method",
        weight_names[w->method], "bits", w->bits, "group_size", (json_int_t)w->group_size,
        "round", round_names[w->round], "kv", "method", kv_names[kv->method], "bits",
        kv->bits, "group_size", (json_int_t)kv->group_size, "key_stage",
        stage_names[kv->key_stage], "past_only", (int)kv->past_only, "window",
        (json_int_t)kv->window, "sink", (json_int_t)kv->sink, "learn", (int)kv->learn,
        "modules_to_not_convert", "lm_head");
    json_t *jw = json_object_get(o, "weights"), *jkv = json_object_get(o, "kv");
    if (o && (!put_head(o, w) || !put_activations(o, w) ||
              !put_scale_bits(jw, w->scale_bits) || !put_refined(jw, w->refined) ||
              !put_mix(jw, w->mixed) || !put_rotate(jkv, kv->rotate) ||
              !put_target(jkv, kv->target) || !put_mix(jkv, kv->mixed))) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static enum err need_choice(int *out, const json_t *o, const char *key,
                            const char *const *names, int n, const char *where)
{
    const char *text = NULL;
    TRY(json_need_string(&text, o, key, where));
    for (int i = 0; i < n; i++)
        if (!strcmp(text, names[i])) {
            *out = i;
            return OK;
        }
    FAIL(ERR_FORMAT, "%s: %s is \"%.40s\", want \"%s\" or \"%s\"", where, key, text,
         names[0], names[n - 1]);
}

static enum err need_bits(int *out, const json_t *o, const char *where)
{
    int64_t v = 0;
    TRY(json_need_int(&v, o, "bits", 2, 16, where));
    *out = (int)v;
    return OK;
}

/* Reads the head's format. It came with version 5. */
static enum err head_from_json(struct weight_spec *w, const json_t *q, int64_t version,
                               const char *where)
{
    json_t *o = NULL;
    char place[600];
    TRY(json_get_object(&o, q, "head", where));
    if (!o)
        return OK;
    FAIL_IF(version < 5, ERR_FORMAT, "%s.head needs format_version 5, not %" PRId64, where,
            version);
    snprintf(place, sizeof(place), "%.500s.head", where);
    TRY(need_bits(&w->head_bits, o, place));
    return json_need_int(&w->head_group, o, "group_size", 0, COUNT_MAX, place);
}

/* Reads how the projections' inputs are rounded. It came with version 8. */
static enum err activations_from_json(struct weight_spec *w, const json_t *q,
                                      int64_t version, const char *where)
{
    json_t *o = NULL;
    char place[600];
    TRY(json_get_object(&o, q, "activations", where));
    if (!o)
        return OK;
    FAIL_IF(version < 8, ERR_FORMAT, "%s.activations needs format_version 8, not %" PRId64,
            where, version);
    snprintf(place, sizeof(place), "%.500s.activations", where);
    return need_bits(&w->act_bits, o, place);
}

static enum err need_bool(bool *out, const json_t *o, const char *key, const char *where)
{
    FAIL_IF(!json_object_get(o, key), ERR_FORMAT, "%s: %s is missing", where, key);
    return json_get_bool(out, o, key, where);
}

/* Reads a mix. In files before version 3 the member has no meaning and is ignored. */
static enum err mix_from_json(const struct mix **out, enum mix_of of, const json_t *o,
                              int64_t version, const char *where)
{
    const char *text = NULL;
    struct mix *m;
    char place[640];
    TRY(json_get_string(&text, o, "mixed", where));
    if (!text)
        return OK;
    snprintf(place, sizeof(place), "%.600s.mixed", where);
    FAIL_IF(version < 3, ERR_FORMAT, "%s needs format_version 3, not %" PRId64, place,
            version);
    TRY(mix_parse(&m, of, text, ERR_FORMAT, place));
    *out = m;
    return OK;
}

/* Reads the engine that a cache is for. It came with version 7, and decides all other members. */
static enum err target_from_json(struct kv_spec *kv, const json_t *o, int64_t version,
                                 const char *where)
{
    int target = TARGET_WKVQ;
    if (!json_object_get(o, "target"))
        return OK;
    FAIL_IF(version < 7, ERR_FORMAT, "%s.target needs format_version 7, not %" PRId64,
            where, version);
    TRY(need_choice(&target, o, "target", kv_target_name, N_KV_TARGETS, where));
    kv->target = (enum kv_target)target;
    const int first = target_version(kv->target);
    FAIL_IF(version < first, ERR_FORMAT,
            "%s.target: %s needs format_version %d, not %" PRId64, where,
            kv_target_name[target], first, version);
    const struct kv_spec want = kv_target_spec(kv->target);
    FAIL_IF(kv->target && (kv->method != want.method || kv->bits != want.bits ||
                           kv->group_size != want.group_size || kv->rotate != want.rotate ||
                           kv->key_stage != want.key_stage || kv->mixed ||
                           kv->past_only != want.past_only || kv->sink != want.sink ||
                           (want.past_only && kv->window != want.window)),
            ERR_FORMAT,
            "%s: target is %s, but the other members are not those of its cache", where,
            kv_target_name[target]);
    return OK;
}

static enum err kv_from_json(struct kv_spec *kv, const json_t *o, const char *where)
{
    int method = 0, stage = 0, rotate = ROTATE_NONE;
    TRY(need_choice(&method, o, "method", kv_names, 2, where));
    TRY(need_choice(&stage, o, "key_stage", stage_names, 2, where));
    if (json_object_get(o, "rotate"))
        TRY(need_choice(&rotate, o, "rotate", rotate_names, 4, where));
    kv->rotate = (enum kv_rotate)rotate;
    kv->method = (enum kv_method)method;
    kv->key_stage = (enum key_stage)stage;
    TRY(need_bits(&kv->bits, o, where));
    TRY(json_need_int(&kv->group_size, o, "group_size", 0, COUNT_MAX, where));
    TRY(need_bool(&kv->past_only, o, "past_only", where));
    TRY(json_need_int(&kv->window, o, "window", 0, COUNT_MAX, where));
    TRY(json_need_int(&kv->sink, o, "sink", 0, COUNT_MAX, where));
    return need_bool(&kv->learn, o, "learn", where);
}

static enum err weights_from_json(struct weight_spec *w, const json_t *o, const char *where)
{
    int method = 0, round = ROUND_NEAREST;
    int64_t scale_bits = QUANT_SCALE_BITS;
    TRY(need_choice(&method, o, "method", weight_names, ARRAY_LEN(weight_names), where));
    w->method = (enum weight_method)method;
    TRY(need_bits(&w->bits, o, where));
    TRY(json_need_int(&w->group_size, o, "group_size", 0, COUNT_MAX, where));
    if (json_object_get(o, "scale_bits")) /* absent: all of fp16's */
        TRY(json_need_int(&scale_bits, o, "scale_bits", 1, QUANT_SCALE_BITS, where));
    w->scale_bits = (int)scale_bits;
    if (!json_object_get(o, "round")) /* absent from early artifacts */
        return OK;
    TRY(need_choice(&round, o, "round", round_names, 2, where));
    w->round = (enum weight_round)round;
    return OK;
}

static enum err refined_from_json(bool *out, const json_t *o, int64_t version,
                                  const char *where)
{
    TRY(json_get_bool(out, o, "refined", where));
    FAIL_IF(*out && version < 4, ERR_FORMAT,
            "%s.refined needs format_version 4, not %" PRId64, where, version);
    return OK;
}

bool spec_is_ours(const json_t *q)
{
    const bool old = json_object_get(q, "quant_method") != NULL;
    return !strcmp(json_member_text(q, old ? "quant_method" : "format"), ARTIFACT_FORMAT);
}

static enum err read_version(int64_t *out, const json_t *q, const char *where)
{
    FAIL_IF(!spec_is_ours(q), ERR_FORMAT,
            "%s: format is \"%.40s\", want \"" ARTIFACT_FORMAT "\" and no quant_method",
            where, json_member_text(q, "format"));
    TRY(json_need_int(out, q, "format_version", 1, INT32_MAX, where));
    FAIL_IF(*out > ARTIFACT_VERSION, ERR_SUPPORT,
            "%s: format_version is %" PRId64 ", this program reads up to %d", where, *out,
            ARTIFACT_VERSION);
    return OK;
}

static enum err read_parts(struct weight_spec *w, struct kv_spec *kv, const json_t *q,
                           const char *where)
{
    int64_t version = 0;
    json_t *jw = NULL, *jkv = NULL;
    char place[600];
    TRY(read_version(&version, q, where));
    TRY(json_get_object(&jw, q, "weights", where));
    TRY(json_get_object(&jkv, q, "kv", where));
    FAIL_IF(!jw || !jkv, ERR_FORMAT, "%s: %s is missing", where, jw ? "kv" : "weights");
    snprintf(place, sizeof(place), "%.500s.weights", where);
    TRY(weights_from_json(w, jw, place));
    FAIL_IF(w->method == WEIGHT_GIVEN && version < 6, ERR_FORMAT,
            "%s.method: given needs format_version 6, not %" PRId64, place, version);
    TRY(mix_from_json(&w->mixed, MIX_WEIGHTS, jw, version, place));
    TRY(refined_from_json(&w->refined, jw, version, place));
    TRY(head_from_json(w, q, version, where));
    TRY(activations_from_json(w, q, version, where));
    snprintf(place, sizeof(place), "%.500s.kv", where);
    TRY(kv_from_json(kv, jkv, place));
    TRY(mix_from_json(&kv->mixed, MIX_KV, jkv, version, place));
    TRY(target_from_json(kv, jkv, version, place));
    return spec_check(w, kv, where);
}

enum err spec_from_json(struct weight_spec *w, struct kv_spec *kv, const json_t *q,
                        const char *where)
{
    struct weight_spec weights = {0};
    struct kv_spec cache = {0};
    const enum err err = read_parts(&weights, &cache, q, where);
    if (err) {
        spec_free(&weights, &cache);
        return err;
    }
    *w = weights;
    *kv = cache;
    return OK;
}

void spec_free(struct weight_spec *w, struct kv_spec *kv)
{
    mix_free((struct mix *)(uintptr_t)w->mixed);
    mix_free((struct mix *)(uintptr_t)kv->mixed);
    w->mixed = kv->mixed = NULL;
}
