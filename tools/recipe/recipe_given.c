/* SPDX-License-Identifier: MIT
 *
 * The configuration that follows from weights another tool quantized. */
#include "kernels/base/mem.h"
#include "tools/recipe/recipe.h"

#include <string.h>

static bool alike(struct lin_format a, struct lin_format b)
{
    return a.bits == b.bits && (a.bits == 16 || a.group_size == b.group_size);
}

/* Returns the number of projections in format f. */
static int64_t count_format(const struct hf_model *m, struct lin_format f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++)
        for (int l = 0; l < N_LIN; l++)
            n += alike(hf_lin_format(m, i, l), f);
    return n;
}

/* Returns the quantized format that most projections have; the first of equals. */
static struct lin_format common_format(const struct hf_model *m)
{
    struct lin_format best = {.bits = 16};
    int64_t most = 0;
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct lin_format f = hf_lin_format(m, i, l);
            const int64_t n = f.bits < 16 && !alike(f, best) ? count_format(m, f) : 0;
            if (n <= most)
                continue;
            most = n;
            best = f;
        }
    return best;
}

/* Returns whether all layers have f for projection l. */
static bool in_all_layers(const struct hf_model *m, int l, struct lin_format f)
{
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++)
        if (!alike(hf_lin_format(m, i, l), f))
            return false;
    return true;
}

/* Adds rules for the layers in which projection l is not in the common format. */
static enum err add_rules(struct mix *mix, const struct hf_model *m, int l,
                          struct lin_format common)
{
    const struct lin_format first = hf_lin_format(m, 0, l);
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++) {
        const struct lin_format f = hf_lin_format(m, i, l);
        const struct mix_format rule = {f.bits, f.bits == 16 ? MIX_NO_GROUP : f.group_size};
        const bool all = !i && in_all_layers(m, l, first);
        if (alike(f, common))
            continue;
        TRY(mix_set(mix, all ? MIX_ALL_LAYERS : i, all ? MIX_ALL_LAYERS : i, l, rule));
        if (all)
            break;
    }
    return OK;
}

/* Sets weights.* of r to the formats of m. */
static enum err set_formats(struct recipe *r, const struct hf_model *m)
{
    const struct lin_format common = common_format(m);
    struct mix *mix = NULL;
    bool mixed = false;
    for (int l = 0; l < N_LIN; l++)
        mixed = mixed || !in_all_layers(m, l, common);
    if (mixed)
        TRY(mix_new(&mix, MIX_WEIGHTS));
    for (int l = 0; mixed && l < N_LIN; l++) {
        const enum err err = add_rules(mix, m, l, common);
        if (err) {
            mix_free(mix);
            return err;
        }
    }
    mix_free(r->weight_mix);
    r->weight_mix = mix;
    r->weight_method = WEIGHT_GIVEN;
    r->weight_round = ROUND_NEAREST;
    r->weight_bits = common.bits;
    r->weight_group = common.group_size;
    r->scale_bits = QUANT_SCALE_BITS;
    return OK;
}

/* Keys that differ from what given weights decide, and the --set options that change them. */
struct conflicts {
    int n;
    char is[400], cure[400];
};

/* why: what they have instead, or why they cannot have this. */
static void add_conflict(struct conflicts *c, const char *key, const char *typed,
                         const char *why, const char *cure)
{
    const size_t is = strlen(c->is), n = strlen(c->cure);
    snprintf(c->is + is, sizeof(c->is) - is, "%s%s is %.60s (%.70s)", c->n ? ", " : "", key,
             typed, why);
    snprintf(c->cure + n, sizeof(c->cure) - n, " --set %s=%s", key, cure);
    c->n++;
}

/* Adds a key that is neither at its default nor what the weights are. A mix that is not theirs
 * is best left out. */
static enum err compare_key(struct conflicts *c, const struct recipe *was,
                            const struct recipe *is, const struct recipe_key *k)
{
    enum err err = OK;
    struct recipe fresh = {0};
    char *typed = NULL, *given = NULL, *usual = NULL, there[80];
    recipe_init(&fresh);
    TRY_OUT(recipe_text(&typed, was, k));
    TRY_OUT(recipe_text(&given, is, k));
    TRY_OUT(recipe_text(&usual, &fresh, k));
    snprintf(there, sizeof(there), "%.60s there", *given ? given : "none");
    if (strcmp(typed, given) && strcmp(typed, usual))
        add_conflict(c, k->name, typed, there, k->kind == KEY_MIX ? "" : given);
out:
    recipe_free(&fresh);
    mem_free(typed);
    mem_free(given);
    mem_free(usual);
    return err;
}

/* A rotation of values is a product with v_proj and o_proj, whose codes are given. */
static void compare_rotation(struct conflicts *c, const struct recipe *was)
{
    static const char why[] = "the rotation of values changes v_proj and o_proj";
    if (was->rotate == ROTATE_KV)
        add_conflict(c, "kv.rotate", "kv", why, "k");
    else if (was->rotate == ROTATE_V)
        add_conflict(c, "kv.rotate", "v", why, "none");
}

enum err recipe_take_formats(struct recipe *r, const struct hf_model *m, const char *dir)
{
    static const char *const keys[] = {"weights.method",     "weights.bits",
                                       "weights.group_size", "weights.scale_bits",
                                       "weights.mixed",      "weights.round"};
    struct recipe was = {0};
    struct conflicts c = {0};
    TRY(recipe_copy(&was, r));
    enum err err = set_formats(r, m);
    for (int i = 0; i < recipe_n_keys && !err; i++)
        for (size_t k = 0; k < ARRAY_LEN(keys) && !err; k++)
            if (!strcmp(recipe_key[i].name, keys[k]))
                err = compare_key(&c, &was, r, &recipe_key[i]);
    compare_rotation(&c, &was);
    recipe_free(&was);
    TRY(err);
    FAIL_IF(
        c.n, ERR_USAGE,
        "the weights of %.200s are given and decide what they are: %s; leave %s out, or "
        "add%s",
        dir, c.is, c.n > 1 ? "these keys" : "this key", c.cure);
    return OK;
}
