/* SPDX-License-Identifier: MIT
 *
 * Presets: names that set several keys, before the keys that are written out. A preset is
 * not a key of the recipe; states and artifacts record the keys that it sets. */
#include "kernels/base/mem.h"
#include "tools/cli/nearest.h"
#include "tools/recipe/recipe_priv.h"

#include <stdio.h>
#include <string.h>

struct preset {
    const char *name;
    const char *set[20]; /* KEY, VALUE, ..., NULL */
};

/* clang-format off */
static const struct preset presets[] = {
    /* weights only */
    {"paper-w4", {"weights.bits", "4", "kv.bits", "16", "activations.bits", "16"}},
    /* WKVQuant */
    {"paper-w4kv4", {"weights.bits", "4", "kv.bits", "4", "activations.bits", "16",
                     "kv.method", "channel_token", "kv.past_only", "true"}},
    /* temporary activations as well: everything dynamic and per token */
    {"paper-w4a4", {"weights.bits", "4", "kv.bits", "4", "activations.bits", "4",
                    "kv.method", "token", "kv.past_only", "false"}},
    /* cache only, as in KIVI: 2 bits, groups of 32, the last 128 tokens unquantized */
    {"kivi-like", {"weights.bits", "16", "kv.bits", "2", "activations.bits", "16",
                   "kv.method", "channel", "kv.group_size", "32", "kv.key_stage", "post_rope",
                   "kv.past_only", "true", "kv.window", "128", "kv.sink", "0"}},
};
/* clang-format on */

const char *recipe_preset_name(size_t i)
{
    return i < ARRAY_LEN(presets) ? presets[i].name : NULL;
}

/* Writes "a, b or c". */
static void names_text(char *out, size_t room)
{
    size_t used = 0;
    for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
        const char *before = !i ? "" : i + 1 < ARRAY_LEN(presets) ? ", " : " or ";
        used += (size_t)snprintf(out + used, room - used, "%s%s", before, presets[i].name);
    }
}

enum err recipe_preset(struct recipe *r, const char *name, const char *where)
{
    struct nearest best = {0};
    char names[128];
    for (size_t i = 0; i < ARRAY_LEN(presets); i++) {
        const struct preset *p = &presets[i];
        nearest_consider(&best, name, p->name);
        if (strcmp(p->name, name))
            continue;
        for (int k = 0; p->set[k]; k += 2)
            TRY(recipe_set(r, p->set[k], p->set[k + 1], where));
        return OK;
    }
    names_text(names, sizeof(names));
    FAIL(ERR_USAGE, "%s: preset: '%s': want %s%s%s%s", where, name, names,
         best.word ? "; did you mean '" : "", best.word ? best.word : "",
         best.word ? "'?" : "");
}
