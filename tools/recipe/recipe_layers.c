/* SPDX-License-Identifier: MIT
 *
 * Layers of a configuration: a file, then --set or the keys of a sweep's cell. Within one layer,
 * rules of a mix stand above the side's bits and group size. A later layer that gives one of
 * these means all projections, or all layers' keys and values. */
#include "kernels/base/log.h"
#include "tools/recipe/recipe.h"

#include <string.h>

static const struct side {
    const char *mixed, *bits, *group; /* keys */
    size_t mix;                       /* offset in struct recipe */
} side[] = {
    [MIX_WEIGHTS] = {"weights.mixed", "weights.bits", "weights.group_size",
                     offsetof(struct recipe, weight_mix)},
    [MIX_KV] = {"kv.mixed", "kv.bits", "kv.group_size", offsetof(struct recipe, kv_mix)}};

static bool sets(const char *pair, const char *key)
{
    const size_t n = strlen(key);
    return !strncmp(pair, key, n) && pair[n] == '=';
}

const char *recipe_mix_key(enum mix_of of)
{
    return side[of].mixed;
}

const char *recipe_ends_mix(enum mix_of of, const char *const *set, int n)
{
    const char *key = NULL;
    for (int i = 0; i < n; i++) {
        if (sets(set[i], side[of].mixed))
            return NULL;
        if (sets(set[i], side[of].bits))
            key = side[of].bits;
        else if (!key && sets(set[i], side[of].group))
            key = side[of].group;
    }
    return key;
}

bool recipe_has_mix(const struct recipe *r, enum mix_of of)
{
    return *(struct mix *const *)((const char *)r + side[of].mix) != NULL;
}

void recipe_end_mixes(struct recipe *r, const struct recipe_input *in, bool say)
{
    for (size_t of = 0; of < ARRAY_LEN(side); of++) {
        struct mix **own = (struct mix **)((char *)r + side[of].mix);
        const char *key = recipe_ends_mix((enum mix_of)of, in->set, in->n_set);
        if (!key || !*own)
            continue;
        mix_free(*own);
        *own = NULL;
        if (say)
            log_info("%s is set, so the rules of %s in %s no longer apply; to keep them, "
                     "set %s as well",
                     key, side[of].mixed, in->config, side[of].mixed);
    }
}
