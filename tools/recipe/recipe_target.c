/* SPDX-License-Identifier: MIT
 *
 * The settings of the cache that follow from the engine it is calibrated for. */
#include "kernels/base/mem.h"
#include "tools/recipe/recipe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct recipe_key *key_of(const char *name)
{
    const struct recipe_key *k = recipe_key;
    while (strcmp(k->name, name) != 0)
        k++;
    return k;
}

/* Refuses a value that is neither the key's default nor the engine's, and sets the engine's. */
static enum err fix(struct recipe *r, const char *name, const char *value)
{
    const struct recipe_key *k = key_of(name);
    char *text;
    enum err err = OK;
    TRY(recipe_text(&text, r, k));
    if (strcmp(text, value) != 0 && strcmp(text, k->value) != 0)
        FAIL_OUT(
            ERR_USAGE,
            "%s is %s, but kv.target is %s, whose cache has %s; give `--set %s=%s`, or "
            "set kv.target to wkvq",
            name, text, kv_target_name[r->target], *value ? value : "one format", name,
            value);
    if (k->kind != KEY_MIX)
        TRY_OUT(recipe_set(r, name, value, "kv.target"));
out:
    mem_free(text);
    return err;
}

static enum err fix_number(struct recipe *r, const char *name, int64_t value)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRId64, value);
    return fix(r, name, text);
}

/* The method is token, except where weights are not quantized and smoothing and shift of values
 * can be learned, to be folded into the weights before those are quantized (`wkvq fold`). */
enum err recipe_take_target(struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    const struct kv_spec kv = kv_target_spec((enum kv_target)r->target);
    const bool folds = !weight_quantizes(&w) && kv_target_folds(kv.target);
    if (!r->target)
        return OK;
    TRY(fix_number(r, "kv.bits", kv.bits));
    TRY(fix_number(r, "kv.group_size", kv.group_size));
    TRY(fix(r, "kv.mixed", ""));
    TRY(fix(r, "kv.past_only", kv.past_only ? "true" : "false"));
    TRY(fix(r, "kv.key_stage", "post_rope"));
    TRY(fix_number(r, "kv.window", kv.window));
    TRY(fix_number(r, "kv.sink", kv.sink));
    TRY(fix(r, "kv.rotate", "none"));
    return fix(r, "kv.method", folds ? "channel_token" : "token");
}
