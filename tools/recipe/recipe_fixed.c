/* SPDX-License-Identifier: MIT
 *
 * Keys of the quantization for a command that cannot choose it any more. */
#include "kernels/base/mem.h"
#include "tools/recipe/recipe.h"

#include <string.h>

static bool in_section(const struct recipe_key *k, const char *section)
{
    const size_t n = strlen(section);
    return !strncmp(k->name, section, n) && k->name[n] == '.';
}

static bool is_quantization(const struct recipe_key *k)
{
    return in_section(k, "weights") || in_section(k, "head") || in_section(k, "kv") ||
           in_section(k, "activations");
}

static void set_full_precision(struct recipe *r)
{
    r->weight_bits = r->head_bits = r->kv_bits = r->activation_bits = QUANT_BITS_NONE;
}

/* Returns whether the configuration itself, from the defaults on, leaves the key's side
 * unquantized. Its other keys then mean nothing. */
static bool is_off(const struct recipe *typed, const struct recipe_key *k)
{
    const struct weight_spec w = recipe_weight_spec(typed);
    if (in_section(k, "weights"))
        return !weight_quantizes(&w);
    if (in_section(k, "head"))
        return !weight_quantizes_head(&w);
    return in_section(k, "kv") && !recipe_quantizes_kv(typed);
}

/* Returns whether the key has an effect, or is one of a cache that kv.target replaces. */
static bool is_used(const struct recipe_fixed *f, const struct recipe *typed,
                    const struct recipe_key *k)
{
    if (in_section(k, "kv") && f->takes_target && typed->target)
        return true;
    if (in_section(k, "activations"))
        return f->rounds_inputs;
    return !is_quantization(k);
}

static enum err compare(const struct recipe_fixed *f, const struct recipe *runs,
                        const struct recipe *set, const struct recipe_key *k)
{
    enum err err = OK;
    char *have = NULL, *want = NULL;
    TRY_OUT(recipe_text(&have, runs, k));
    TRY_OUT(recipe_text(&want, set, k));
    if (strcmp(have, want) && !f->recipe)
        FAIL_OUT(ERR_USAGE, "%s is set to '%s', but %s runs in full precision; %s", k->name,
                 want, f->name, f->advice);
    if (strcmp(have, want))
        FAIL_OUT(ERR_USAGE, "%s is set to '%s', but %s is quantized already, with '%s'; %s",
                 k->name, want, f->name, have, f->advice);
out:
    mem_free(have);
    mem_free(want);
    return err;
}

/* Applying the keys over what runs shows those that would change it, a key that is set to its
 * default included. */
enum err recipe_check_fixed(const struct recipe_fixed *f, const struct recipe_input *in)
{
    enum err err = OK;
    struct recipe runs = {0}, set = {0}, typed = {0};
    recipe_init(&typed);
    TRY_OUT(recipe_apply_typed(&typed, in));
    recipe_init(&runs);
    set_full_precision(&runs);
    TRY_OUT(recipe_copy(&set, f->recipe ? f->recipe : &runs));
    TRY_OUT(recipe_apply_typed(&set, in));
    for (int i = 0; i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        if (!is_used(f, &typed, k) && (f->recipe || !is_off(&typed, k)))
            TRY_OUT(compare(f, f->recipe ? f->recipe : &runs, &set, k));
    }
out:
    recipe_free(&typed);
    recipe_free(&set);
    recipe_free(&runs);
    return err;
}
