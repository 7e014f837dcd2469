/* SPDX-License-Identifier: MIT */
#include "tools/recipe/recipe.h"

#include "kernels/base/limits.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"
#include "tools/cli/nearest.h"
#include "tools/cli/opt.h"
#include "tools/cli/size.h"
#include "tools/recipe/recipe_priv.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The order of a key's choices is the order of the enum that they stand for. */
_Static_assert(JOIN_AUTO == 0 && JOIN_ROWS == 1 && JOIN_FILE == 2, "calibration.join");
_Static_assert(BOS_AUTO == 0 && BOS_NEVER == 1 && BOS_ALWAYS == 2, "calibration.bos");
_Static_assert(WEIGHT_RTN == 0 && WEIGHT_LWC == 1 && WEIGHT_GPTQ == 2 && WEIGHT_GIVEN == 3,
               "weights.method");
_Static_assert(KV_TOKEN == 0 && KV_CHANNEL_TOKEN == 1 && KV_CHANNEL == 2, "kv.method");
_Static_assert(KEY_POST_ROPE == 0 && KEY_PRE_ROPE == 1, "kv.key_stage");
_Static_assert(ROTATE_V == 1 && ROTATE_K == 2 && ROTATE_KV == 3, "kv.rotate");
_Static_assert(TERMS_LAST == 0 && TERMS_ALL == 1, "crr.terms");
_Static_assert(LOSS_MAE == 0 && LOSS_MSE == 1, "crr.loss");
_Static_assert(SCHEDULE_CONSTANT == 0 && SCHEDULE_COSINE == 1, "optimizer.schedule");

const struct recipe_key *recipe_find_key(const char *name)
{
    for (int i = 0; i < recipe_n_keys; i++) {
        if (!strcmp(recipe_key[i].name, name))
            return &recipe_key[i];
    }
    return NULL;
}

/* Writes what is wanted in place of text, as the end of a sentence. */
static void wanted_text(char *out, size_t n, const struct recipe_key *k, const char *text)
{
    char list[128];
    switch (k->kind) {
    case KEY_INT:
        snprintf(out, n, "want a whole number from %.0f to %.0f", k->lo, k->hi);
        break;
    case KEY_COUNT:
        snprintf(out, n, "want auto, or a whole number from %.0f to %.0f", k->lo, k->hi);
        break;
    case KEY_REAL:
        if (k->least > 0)
            snprintf(out, n, "want 0, or a number from %g to %g: %s", k->least, k->hi,
                     k->why);
        else
            snprintf(out, n, "want a number from %g to %g", k->lo, k->hi);
        break;
    case KEY_BOOL:
        snprintf(out, n, "want true or false");
        break;
    case KEY_CHOICE:
        opt_choices_text(list, sizeof(list), k->choices);
        snprintf(out, n, "want %s%s", strchr(list, ',') ? "one of " : "", list);
        break;
    case KEY_BITS:
        snprintf(out, n, "want 2 to 8, or 16 for no quantization");
        break;
    case KEY_BYTES:
        size_wanted(out, n, text, SIZE_BUDGET_MIN, "auto, or ");
        break;
    case KEY_NAME:
        snprintf(out, n, "want a name of at most %d bytes", RECIPE_NAME_MAX - 1);
        break;
    case KEY_FILES:
        snprintf(out, n, "want a file name");
        break;
    case KEY_MIX: /* mix_parse reports it */
        break;
    }
}

static bool parse_number(double *out, const char *text)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out);
}

static bool parse_whole(int64_t *out, const char *text, double lo, double hi)
{
    double value;
    if (!parse_number(&value, text) || !(value >= lo && value <= hi) ||
        value != floor(value))
        return false;
    *out = (int64_t)value;
    return true;
}

static bool parse_count(int64_t *out, const char *text, double lo, double hi)
{
    if (!strcmp(text, "auto")) {
        *out = RECIPE_AUTO;
        return true;
    }
    return parse_whole(out, text, lo, hi);
}

static bool parse_bits(int64_t *out, const char *text)
{
    int64_t bits;
    if (!parse_whole(&bits, text, QUANT_BITS_MIN, QUANT_BITS_NONE) ||
        !quant_bits_setting_ok(bits))
        return false;
    *out = bits;
    return true;
}

static bool parse_bool(bool *out, const char *text)
{
    if (strcmp(text, "true") && strcmp(text, "false"))
        return false;
    *out = text[0] == 't';
    return true;
}

static bool parse_bytes_key(uint64_t *out, const char *text)
{
    if (!strcmp(text, "auto")) {
        *out = 0;
        return true;
    }
    return size_parse(out, text) && (double)*out >= SIZE_BUDGET_MIN;
}

static bool parse_name(char *out, const char *text)
{
    if (strlen(text) >= RECIPE_NAME_MAX)
        return false;
    strcpy(out, text);
    return true;
}

static bool parse_value(struct recipe *r, const struct recipe_key *k, const char *text)
{
    void *f = (char *)r + k->offset;
    double real;
    int index;
    switch (k->kind) {
    case KEY_INT:
        return parse_whole(f, text, k->lo, k->hi);
    case KEY_COUNT:
        return parse_count(f, text, k->lo, k->hi);
    case KEY_REAL:
        if (!parse_number(&real, text) || !(real >= k->lo && real <= k->hi) ||
            (real != 0 && real < k->least))
            return false;
        *(double *)f = real;
        return true;
    case KEY_BOOL:
        return parse_bool(f, text);
    case KEY_CHOICE:
        index = opt_choice(k->choices, text);
        if (index >= 0)
            *(int *)f = index;
        return index >= 0;
    case KEY_BITS:
        return parse_bits(f, text);
    case KEY_BYTES:
        return parse_bytes_key(f, text);
    case KEY_NAME:
        return parse_name(f, text);
    case KEY_MIX: /* handled by recipe_set_key */
    case KEY_FILES:
        break;
    }
    return false;
}

/* Sets a key that holds a mix. bad: the error code for text that is not a mix. */
static enum err set_mix(struct recipe *r, const struct recipe_key *k, const char *text,
                        enum err bad, const char *where)
{
    struct mix **own = (struct mix **)((char *)r + k->offset), *fresh;
    char place[640];
    snprintf(place, sizeof(place), "%.480s: %s", where, k->name);
    TRY(mix_parse(&fresh, k->of, text, bad, place));
    mix_free(*own);
    *own = fresh;
    return OK;
}

enum err recipe_set_key(struct recipe *r, const struct recipe_key *k, const char *text,
                        const char *where)
{
    char wanted[192];
    if (k->kind == KEY_MIX)
        return set_mix(r, k, text, ERR_USAGE, where);
    if (k->kind == KEY_FILES && *text)
        return recipe_files_add_typed((struct recipe_files *)((char *)r + k->offset), text);
    if (parse_value(r, k, text))
        return OK;
    wanted_text(wanted, sizeof(wanted), k, text);
    FAIL_IF(k->planned && opt_choice(k->planned, text) >= 0, ERR_SUPPORT,
            "%s: %s: '%s' is not supported by this version; %s", where, k->name, text,
            wanted);
    FAIL(ERR_USAGE, "%s: %s: '%s': %s", where, k->name, text, wanted);
}

enum err recipe_unknown_key(const char *name, const char *where)
{
    const struct recipe_key *alike[RECIPE_ALIKE_MAX];
    const int n = recipe_alike(alike, name, false);
    struct nearest best = {0};
    char list[512];
    recipe_alike_text(list, sizeof(list), alike, n);
    FAIL_IF(n, ERR_USAGE, "%s: unknown key '%s'; did you mean %s?", where, name, list);
    for (int i = 0; i < recipe_n_keys; i++)
        nearest_consider(&best, name, recipe_key[i].name);
    FAIL_IF(best.word, ERR_USAGE, "%s: unknown key '%s'; did you mean '%s'?", where, name,
            best.word);
    FAIL(ERR_USAGE, "%s: unknown key '%s'; `wkvq --print-reference` lists all keys", where,
         name);
}

enum err recipe_set(struct recipe *r, const char *name, const char *text, const char *where)
{
    const struct recipe_key *k = recipe_find_key(name);
    if (!strcmp(name, "preset"))
        return recipe_preset(r, text, where);
    if (!k)
        return recipe_unknown_key(name, where);
    if (k->kind == KEY_FILES)
        recipe_files_clear((struct recipe_files *)((char *)r + k->offset));
    return recipe_set_key(r, k, text, where);
}

void recipe_init(struct recipe *r)
{
    *r = (struct recipe){0};
    for (int i = 0; i < recipe_n_keys; i++) {
        if (*recipe_key[i].value)
            parse_value(r, &recipe_key[i], recipe_key[i].value);
    }
}

void recipe_free(struct recipe *r)
{
    recipe_files_clear(&r->data);
    mix_free(r->weight_mix);
    mix_free(r->kv_mix);
    r->weight_mix = r->kv_mix = NULL;
}

/* Writes a JSON scalar as one would type it. */
static void scalar_text(char *out, size_t n, const json_t *v)
{
    if (json_is_string(v))
        snprintf(out, n, "%s", json_string_value(v));
    else if (json_is_integer(v))
        snprintf(out, n, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v))
        snprintf(out, n, "%.17g", json_real_value(v));
    else
        snprintf(out, n, "%s", json_is_true(v) ? "true" : json_is_false(v) ? "false" : "?");
}

static enum err set_json(struct recipe *r, const char *section, const char *name,
                         const json_t *v, const char *where)
{
    char full[128], text[128];
    snprintf(full, sizeof(full), "%s.%s", section, name);
    const struct recipe_key *k = recipe_find_key(full);
    FAIL_IF(!k, ERR_FORMAT, "%s: config: unknown key '%s'", where, full);
    if (k->kind == KEY_FILES)
        return OK; /* file names mean nothing on another machine */
    if (k->kind == KEY_MIX) {
        FAIL_IF(!json_is_string(v), ERR_FORMAT, "%s: config: %s: want a text", where, full);
        return set_mix(r, k, json_string_value(v), ERR_FORMAT, where);
    }
    scalar_text(text, sizeof(text), v);
    FAIL_IF(!parse_value(r, k, text), ERR_FORMAT, "%s: config: %s: wrong value '%s'", where,
            full, text);
    return OK;
}

enum err recipe_load_json(struct recipe *r, const json_t *config, const char *where)
{
    const char *section, *name;
    json_t *keys, *v;
    r->eval_samples = 0; /* all were measured before the key existed */
    json_object_foreach((json_t *)(uintptr_t)config, section, keys)
    {
        FAIL_IF(!json_is_object(keys), ERR_FORMAT, "%s: config.%s: want an object", where,
                section);
        json_object_foreach(keys, name, v) TRY(set_json(r, section, name, v, where));
    }
    return OK;
}

/* where: "--set", or the place in a file. */
static enum err set_pair(struct recipe *r, const char *pair, const char *where)
{
    char name[128];
    const char *equals = strchr(pair, '=');
    FAIL_IF(!equals || equals == pair, ERR_USAGE,
            "%s %s: want KEY=VALUE, as in --set weights.group_size=64", where, pair);
    FAIL_IF((size_t)(equals - pair) >= sizeof(name), ERR_USAGE, "%s: key too long: %s",
            where, pair);
    snprintf(name, sizeof(name), "%.*s", (int)(equals - pair), pair);
    return recipe_set(r, name, equals + 1, where);
}

static enum err set_shortcuts(struct recipe *r, const struct recipe_input *in)
{
    if (in->threads >= 0)
        r->threads = in->threads;
    if (in->memory)
        r->memory = in->memory;
    if (in->device)
        TRY(recipe_set(r, "run.device", in->device, "--device"));
    if (in->join)
        TRY(recipe_set(r, "calibration.join", in->join, "--join"));
    if (in->text_field)
        TRY(recipe_set(r, "calibration.text_field", in->text_field, "--text-field"));
    if (in->bos)
        TRY(recipe_set(r, "calibration.bos", in->bos, "--bos"));
    if (in->n_data)
        recipe_files_clear(&r->data);
    for (int i = 0; i < in->n_data; i++) {
        FAIL_IF(!*in->data[i], ERR_USAGE, "--data '': want a file name");
        TRY(recipe_files_add_typed(&r->data, in->data[i]));
    }
    return recipe_files_check(&r->data, "--data");
}

static bool is_preset(const char *pair)
{
    return !strncmp(pair, "preset=", 7);
}

static const char *place_of(const struct recipe_input *in, int i)
{
    return in->set_from ? in->set_from[i] : "--set";
}

/* say: prints what --set ends. */
static enum err apply_typed(struct recipe *r, const struct recipe_input *in, bool say)
{
    int preset = -1;
    for (int i = 0; i < in->n_set; i++)
        if (is_preset(in->set[i]))
            preset = i;
    if (preset >= 0)
        TRY(set_pair(r, in->set[preset], place_of(in, preset)));
    if (in->config)
        TRY(recipe_read_yaml(r, in->config, preset >= 0));
    recipe_end_mixes(r, in, say);
    for (int i = 0; i < in->n_set; i++)
        if (!is_preset(in->set[i]))
            TRY(set_pair(r, in->set[i], place_of(in, i)));
    return set_shortcuts(r, in);
}

enum err recipe_apply_typed(struct recipe *r, const struct recipe_input *in)
{
    return apply_typed(r, in, false);
}

static enum err apply(struct recipe *r, const struct recipe_input *in, bool say)
{
    TRY(apply_typed(r, in, say));
    TRY(recipe_take_target(r));
    FAIL_IF(recipe_quantizes_kv(r) && r->window > 1 && !r->past_only, ERR_USAGE,
            "kv.window is %" PRId64
            ", but kv.past_only is false, which quantizes every token at once; set "
            "kv.past_only to true, or kv.window to 1",
            r->window);
    FAIL_IF(r->batch > r->samples, ERR_USAGE,
            "calibration.batch is %" PRId64 ", but calibration.samples is %" PRId64
            "; set calibration.batch to at most the samples",
            r->batch, r->samples);
    return OK;
}

enum err recipe_apply(struct recipe *r, const struct recipe_input *in)
{
    return apply(r, in, false);
}

enum err recipe_from_input(struct recipe *r, const struct recipe_input *in)
{
    recipe_init(r);
    return apply(r, in, true);
}

static enum err copy_mix(struct mix **out, enum mix_of of, const struct mix *from)
{
    char *text;
    TRY(mix_text(&text, from));
    const enum err err = mix_parse(out, of, text, ERR_FORMAT, "mix");
    mem_free(text);
    return err;
}

enum err recipe_copy(struct recipe *r, const struct recipe *from)
{
    *r = *from;
    r->data = (struct recipe_files){0};
    r->weight_mix = r->kv_mix = NULL;
    TRY(recipe_files_copy(&r->data, &from->data));
    TRY(copy_mix(&r->weight_mix, MIX_WEIGHTS, from->weight_mix));
    return copy_mix(&r->kv_mix, MIX_KV, from->kv_mix);
}

struct weight_spec recipe_weight_spec(const struct recipe *r)
{
    return (struct weight_spec){.method = (enum weight_method)r->weight_method,
                                .bits = (int)r->weight_bits,
                                .group_size = r->weight_group,
                                .round = (enum weight_round)r->weight_round,
                                .scale_bits = (int)r->scale_bits,
                                .head_bits = (int)r->head_bits,
                                .head_group = r->head_group,
                                .act_bits = (int)r->activation_bits,
                                .mixed = r->weight_mix};
}

struct kv_spec recipe_kv_spec(const struct recipe *r)
{
    return (struct kv_spec){.method = (enum kv_method)r->kv_method,
                            .bits = (int)r->kv_bits,
                            .group_size = r->kv_group,
                            .key_stage = (enum key_stage)r->key_stage,
                            .rotate = (enum kv_rotate)r->rotate,
                            .target = (enum kv_target)r->target,
                            .past_only = r->past_only,
                            .window = r->window,
                            .sink = r->sink,
                            .learn = r->learn,
                            .mixed = r->kv_mix};
}

bool recipe_quantizes_kv(const struct recipe *r)
{
    const struct kv_spec kv = recipe_kv_spec(r);
    return kv_quantizes(&kv);
}

const char *recipe_device(const struct recipe *r)
{
    return opt_choice_name(CHOICES_DEVICE, r->device);
}

uint64_t recipe_memory(const struct recipe *r)
{
    return r->memory ? r->memory : memory_available() / 4 * 3;
}
