/* SPDX-License-Identifier: MIT
 *
 * The settings of the cache that follow from the engine it is calibrated for. */
#include "kernels/base/mem.h"
#include "tools/recipe/recipe.h"

#include <string.h>

/* What kv_target_spec() has, as one types it. A key at its default follows. The method is token,
 * except where weights are not quantized: then smoothing and shift of values are learned, to be
 * folded into the weights before those are quantized (`wkvq fold`). */
static const struct {
    const char *key, *value;
} fixed[] = {{"kv.bits", "4"},          {"kv.group_size", "32"},       {"kv.mixed", ""},
             {"kv.past_only", "false"}, {"kv.key_stage", "post_rope"}, {"kv.window", "1"},
             {"kv.sink", "0"},          {"kv.rotate", "none"}};

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
        FAIL_OUT(ERR_USAGE,
                 "%s is %s, but kv.target is %s, whose cache has %s; leave the key out, or "
                 "set kv.target to wkvq",
                 name, text, kv_target_name[r->target], *value ? value : "one format");
    if (k->kind != KEY_MIX)
        TRY_OUT(recipe_set(r, name, value, "kv.target"));
out:
    mem_free(text);
    return err;
}

enum err recipe_take_target(struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    if (!r->target)
        return OK;
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++)
        TRY(fix(r, fixed[i].key, fixed[i].value));
    return fix(r, "kv.method", weight_quantizes(&w) ? "token" : "channel_token");
}
