/* SPDX-License-Identifier: MIT */
#include "tools/state/state_diff.h"

#include "data/json.h"
#include "tools/recipe/recipe.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_MAX_LENGTH 160

struct difference {
    char path[PATH_MAX_LENGTH];
    const json_t *have, *run;
};

/* Writes a path one level deeper: "config" + "weights" = "config.weights". */
static void deeper(char out[PATH_MAX_LENGTH], const char *path, const char *key)
{
    const int n = snprintf(out, PATH_MAX_LENGTH, "%s%s%s", path, *path ? "." : "", key);
    if (n >= PATH_MAX_LENGTH)
        memcpy(out + PATH_MAX_LENGTH - 4, "...", 4);
}

static bool find(struct difference *d, const char *path, const json_t *have,
                 const json_t *run);

static bool find_in_object(struct difference *d, const char *path, const json_t *have,
                           const json_t *run)
{
    char below[PATH_MAX_LENGTH];
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)run, key, value)
    {
        deeper(below, path, key);
        if (find(d, below, json_object_get(have, key), value))
            return true;
    }
    json_object_foreach((json_t *)(uintptr_t)have, key, value)
    {
        deeper(below, path, key);
        if (!json_object_get(run, key) && find(d, below, value, NULL))
            return true;
    }
    return false;
}

static bool find_in_array(struct difference *d, const char *path, const json_t *have,
                          const json_t *run)
{
    char below[PATH_MAX_LENGTH], index[32];
    for (size_t i = 0; i < json_array_size(run); i++) {
        snprintf(index, sizeof(index), "%zu", i);
        deeper(below, path, index);
        if (find(d, below, json_array_get(have, i), json_array_get(run, i)))
            return true;
    }
    return false;
}

static bool find(struct difference *d, const char *path, const json_t *have,
                 const json_t *run)
{
    /* A section of which only one side has keys is an object on that side alone. */
    if ((json_is_object(have) || !have) && (json_is_object(run) || !run) && (have || run))
        return find_in_object(d, path, have, run);
    if (json_is_array(have) && json_is_array(run) &&
        json_array_size(have) == json_array_size(run))
        return find_in_array(d, path, have, run);
    if (have && run && json_equal(have, run))
        return false;
    /* JSON keeps 1.0 a real, so equal configurations have equal types. */
    snprintf(d->path, sizeof(d->path), "%s", path);
    d->have = have;
    d->run = run;
    return true;
}

/* Returns what an absent member stands for: what its key was fixed at before it existed, or
 * else its default. */
static const char *absent(const char *path)
{
    const size_t prefix = strlen("config.");
    for (int i = 0; i < recipe_n_keys; i++)
        if (!strncmp(path, "config.", prefix) &&
            !strcmp(path + prefix, recipe_key[i].name) && *recipe_key[i].value)
            return recipe_key[i].kind == KEY_COUNT ? "0" : recipe_key[i].value;
    return "nothing";
}

static void value_text(char *out, size_t n, const json_t *v, const char *path)
{
    char *text = v ? json_text(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(10)) : NULL;
    snprintf(out, n, "%.80s", text ? text : absent(path));
    free(text);
}

enum err state_compare(const char *where, const json_t *have, const json_t *run)
{
    struct difference d;
    char old[100], now[100];
    if (!find(&d, "", have, run))
        return OK;
    value_text(old, sizeof(old), d.have, d.path);
    value_text(now, sizeof(now), d.run, d.path);
    FAIL(ERR_MISMATCH,
         "%s: this state belongs to another run: %s is %s in the state and %s in this run; "
         "use the same value, name another state directory, or delete this one to start "
         "over",
         where, d.path, old, now);
}
