/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_claims.h"

#include "tools/cli/opt.h"

#include <inttypes.h>
#include <string.h>

#define MEASURES "quality|perplexity|zeroshot|longbench|memory"

static enum err need_text(const char **out, const struct yaml *map, const char *key,
                          const char *path)
{
    const struct yaml *v = yaml_child(map, key);
    FAIL_IF(
        !v || v->kind != YAML_TEXT || !*v->text, ERR_USAGE,
        "%s: line %d: want a claim, as in '{claim: rotation helps, better: rotated, than: "
        "plain, by: perplexity}'",
        path, map->line);
    *out = v->text;
    return OK;
}

/* Makes the list of the one or two cells of `than`. */
static enum err read_than(json_t **out, const struct yaml *map, const char *path)
{
    const struct yaml *than = yaml_child(map, "than");
    const bool list = than && than->kind == YAML_LIST;
    const size_t n = list ? than->n : 1;
    bool good = than && (n == 1 || n == 2);
    *out = json_array();
    for (size_t i = 0; good && i < n; i++) {
        const struct yaml *name = list ? &than->child[i] : than;
        good = name->kind == YAML_TEXT && *name->text;
        if (good)
            json_array_append_new(*out, json_string(name->text));
    }
    FAIL_IF(!good, ERR_USAGE, "%s: line %d: than: want a cell's name, or a list of two",
            path, map->line);
    return OK;
}

static enum err read_claim(struct sweep_plan *p, const struct yaml *map, const char *path)
{
    const char *text = NULL, *better = NULL, *by = "quality";
    json_t *than = NULL;
    FAIL_IF(map->kind != YAML_MAP, ERR_USAGE, "%s: line %d: want a claim with its keys",
            path, map->line);
    TRY(need_text(&text, map, "claim", path));
    TRY(need_text(&better, map, "better", path));
    if (yaml_child(map, "by"))
        TRY(need_text(&by, map, "by", path));
    FAIL_IF(
        opt_choice(MEASURES, by) < 0, ERR_USAGE,
        "%s: line %d: by: '%s' is unknown; want quality, perplexity, zeroshot, longbench "
        "or memory",
        path, map->line, by);
    FAIL_IF(map->n != (yaml_child(map, "by") ? 4u : 3u), ERR_USAGE,
            "%s: line %d: want claim, better, than and by, nothing else", path, map->line);
    const enum err err = read_than(&than, map, path);
    if (err) {
        json_decref(than);
        return err;
    }
    FAIL_IF(json_array_append_new(p->claims, json_pack("{s:s, s:s, s:o, s:s, s:i}", "claim",
                                                       text, "better", better, "than", than,
                                                       "by", by, "line", map->line)),
            ERR_MEMORY, "out of memory for a claim");
    return OK;
}

enum err sweep_claims_read(struct sweep_plan *p, const struct yaml *list, const char *path)
{
    FAIL_IF(list->kind != YAML_LIST, ERR_USAGE, "%s: line %d: claims: want a list", path,
            list->line);
    p->claims = json_array();
    FAIL_IF(!p->claims, ERR_MEMORY, "out of memory for claims");
    for (size_t i = 0; i < list->n; i++)
        TRY(read_claim(p, &list->child[i], path));
    return OK;
}

static enum err check_cell(const struct sweep_plan *p, const json_t *claim,
                           const json_t *name, const char *path)
{
    for (int i = 0; i < p->n_cells; i++)
        if (!strcmp(p->cell[i].name, json_string_value(name)))
            return OK;
    FAIL(ERR_USAGE, "%s: line %d: a claim about '%s', but no cell has this name", path,
         (int)json_integer_value(json_object_get(claim, "line")), json_string_value(name));
}

enum err sweep_claims_check(const struct sweep_plan *p, const char *path)
{
    size_t i, k;
    json_t *claim, *name;
    json_array_foreach(p->claims, i, claim)
    {
        TRY(check_cell(p, claim, json_object_get(claim, "better"), path));
        json_array_foreach(json_object_get(claim, "than"), k, name)
            TRY(check_cell(p, claim, name, path));
    }
    return OK;
}
