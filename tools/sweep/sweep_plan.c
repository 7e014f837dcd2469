/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_plan.h"

#include "data/yaml.h"
#include "kernels/base/mem.h"
#include "tools/cli/nearest.h"
#include "tools/sweep/sweep_claims.h"

#include <stdlib.h>
#include <string.h>

enum err set_list_add(struct set_list *l, const char *key, const char *value)
{
    char *item;
    TRY(mem_resize(&l->item, (size_t)l->n, (size_t)l->n + 1, sizeof(*l->item)));
    const size_t n = strlen(key) + strlen(value) + 2;
    TRY(mem_alloc(&item, n, 1));
    snprintf(item, n, "%s=%s", key, value);
    l->item[l->n++] = item;
    return OK;
}

void set_list_free(struct set_list *l)
{
    for (int i = 0; i < l->n; i++)
        mem_free(l->item[i]);
    mem_free(l->item);
    *l = (struct set_list){0};
}

void sweep_plan_free(struct sweep_plan *p)
{
    mem_free(p->title);
    json_decref(p->claims);
    set_list_free(&p->base);
    set_list_free(&p->budget);
    recipe_files_clear(&p->eval_data);
    for (int i = 0; i < p->n_cells; i++) {
        mem_free(p->cell[i].name);
        set_list_free(&p->cell[i].set);
    }
    mem_free(p->cell);
    *p = (struct sweep_plan){0};
}

/* Returns whether "KEY=..." is in the list. */
static bool has_key(const struct set_list *l, const char *key)
{
    const size_t n = strlen(key);
    for (int i = 0; i < l->n; i++)
        if (!strncmp(l->item[i], key, n) && l->item[i][n] == '=')
            return true;
    return false;
}

/* Adds "weights.bits=3" for both "weights: {bits: 3}" and "weights.bits: 3". */
static enum err flatten(struct set_list *l, const struct yaml *map, const char *section,
                        const char *path)
{
    char key[128];
    FAIL_IF(map->kind != YAML_MAP, ERR_USAGE,
            "%s: line %d: want configuration keys, as in 'weights.bits: 4'", path,
            map->line);
    for (size_t i = 0; i < map->n; i++) {
        const struct yaml *v = &map->child[i];
        snprintf(key, sizeof(key), "%s%s%s", section, *section ? "." : "", map->key[i]);
        FAIL_IF(v->kind == YAML_LIST || (v->kind == YAML_MAP && *section), ERR_USAGE,
                "%s: line %d: %s: want one value", path, v->line, key);
        FAIL_IF(has_key(l, key), ERR_USAGE,
                "%s: line %d: %s is set a second time; remove one", path, v->line, key);
        if (v->kind == YAML_MAP)
            TRY(flatten(l, v, key, path));
        else
            TRY(set_list_add(l, key, v->text));
    }
    return OK;
}

/* Lists of cells have a line for each, with tabs between its parts. */
static enum err check_name(const char *name, const char *path, int line)
{
    for (const char *p = name; *p; p++)
        FAIL_IF((unsigned char)*p < 0x20 || *p == 0x7f, ERR_USAGE,
                "%s: line %d: a cell's name has the control character 0x%02x; use blanks",
                path, line, (unsigned)*p);
    return OK;
}

static enum err new_cell(struct sweep_cell **out, struct sweep_plan *p, const char *name,
                         const char *path, int line)
{
    TRY(check_name(name, path, line));
    for (int i = 0; i < p->n_cells; i++)
        FAIL_IF(!strcmp(p->cell[i].name, name), ERR_USAGE,
                "%s: line %d: a cell named '%s' exists already, from line %d; give each "
                "cell its own name",
                path, line, name, p->cell[i].line);
    FAIL_IF(p->n_cells == SWEEP_CELLS_MAX, ERR_USAGE, "%s: line %d: more than %d cells",
            path, line, SWEEP_CELLS_MAX);
    TRY(mem_resize(&p->cell, (size_t)p->n_cells, (size_t)p->n_cells + 1, sizeof(*p->cell)));
    struct sweep_cell *c = &p->cell[p->n_cells];
    *c = (struct sweep_cell){.line = line};
    TRY(mem_strdup(&c->name, name));
    p->n_cells++;
    *out = c;
    return OK;
}

static enum err read_cell(struct sweep_plan *p, const struct yaml *node, const char *path)
{
    struct sweep_cell *c;
    const bool is_map = node->kind == YAML_MAP;
    const struct yaml *name = is_map ? yaml_child(node, "name") : NULL;
    const struct yaml *set = is_map ? yaml_child(node, "set") : NULL;
    FAIL_IF(!name || name->kind != YAML_TEXT || !*name->text, ERR_USAGE,
            "%s: line %d: want a cell, as in '{name: token only, set: {kv.method: token}}'",
            path, node->line);
    FAIL_IF(node->n != (set ? 2u : 1u), ERR_USAGE,
            "%s: line %d: cell '%s': want name and set, nothing else", path, node->line,
            name->text);
    TRY(new_cell(&c, p, name->text, path, node->line));
    return set ? flatten(&c->set, set, "", path) : OK;
}

static enum err read_cells(struct sweep_plan *p, const struct yaml *node, const char *path)
{
    FAIL_IF(node->kind != YAML_LIST, ERR_USAGE, "%s: line %d: cells: want a list", path,
            node->line);
    for (size_t i = 0; i < node->n; i++)
        TRY(read_cell(p, &node->child[i], path));
    return OK;
}

/* Makes a grid point's name from all keys that it sets. */
static enum err join_sets(char **out, const struct set_list *set)
{
    size_t n = 1;
    for (int i = 0; i < set->n; i++)
        n += strlen(set->item[i]) + 1;
    TRY(mem_alloc(out, n, 1));
    char *end = *out;
    *end = '\0';
    for (int i = 0; i < set->n; i++)
        end += sprintf(end, "%s%s", i ? " " : "", set->item[i]);
    return OK;
}

/* Adds one combination. Digit i of index chooses the value of key i. */
static enum err read_point(struct sweep_plan *p, const struct yaml *grid, size_t index,
                           const char *path)
{
    char *name = NULL;
    struct set_list set = {0};
    enum err err = OK;
    struct sweep_cell *c;
    for (size_t i = 0, span = 1; i < grid->n; i++, span = 1) {
        for (size_t k = i + 1; k < grid->n; k++)
            span *= grid->child[k].n;
        const struct yaml *v = &grid->child[i].child[index / span % grid->child[i].n];
        TRY_OUT(set_list_add(&set, grid->key[i], v->text));
    }
    TRY_OUT(join_sets(&name, &set));
    TRY_OUT(new_cell(&c, p, name, path, grid->line));
    c->set = set;
    set = (struct set_list){0};
out:
    mem_free(name);
    set_list_free(&set);
    return err;
}

static enum err read_grid(struct sweep_plan *p, const struct yaml *grid, const char *path)
{
    size_t points = 1;
    FAIL_IF(grid->kind != YAML_MAP || !grid->n, ERR_USAGE,
            "%s: line %d: grid: want keys with lists, as in '{weights.bits: [3, 4]}'", path,
            grid->line);
    for (size_t i = 0; i < grid->n; i++) {
        const struct yaml *list = &grid->child[i];
        bool texts = list->kind == YAML_LIST && list->n;
        for (size_t k = 0; texts && k < list->n; k++)
            texts = list->child[k].kind == YAML_TEXT;
        FAIL_IF(!texts, ERR_USAGE, "%s: line %d: grid: %s: want a list of values", path,
                list->line, grid->key[i]);
        /* each factor is below 2^32, so the cap comes before an overflow */
        points *= list->n;
        FAIL_IF(points > SWEEP_CELLS_MAX, ERR_USAGE,
                "%s: line %d: the grid has more than %d points", path, grid->line,
                SWEEP_CELLS_MAX);
    }
    for (size_t i = 0; i < points; i++)
        TRY(read_point(p, grid, i, path));
    return OK;
}

static enum err read_count(int64_t *out, const struct yaml *node, const char *what,
                           int64_t lo, const char *path)
{
    char *end = NULL;
    const long long v = node->kind == YAML_TEXT ? strtoll(node->text, &end, 10) : -1;
    FAIL_IF(!end || end == node->text || *end || v < lo || v > 1 << 24, ERR_USAGE,
            "%s: line %d: eval.%s: want a whole number from %lld to %d", path, node->line,
            what, (long long)lo, 1 << 24);
    *out = v;
    return OK;
}

static enum err read_eval_data(struct sweep_plan *p, const struct yaml *node,
                               const char *path)
{
    const struct yaml *item = node->kind == YAML_LIST ? node->child : node;
    const size_t n = node->kind == YAML_LIST ? node->n : 1;
    for (size_t i = 0; i < n; i++) {
        FAIL_IF(item[i].kind != YAML_TEXT || !*item[i].text, ERR_USAGE,
                "%s: line %d: eval.data: want a file name or a list of them", path,
                item[i].line);
        TRY(recipe_files_add(&p->eval_data, item[i].text));
    }
    return OK;
}

static enum err read_eval(struct sweep_plan *p, const struct yaml *map, const char *path)
{
    FAIL_IF(map->kind != YAML_MAP, ERR_USAGE,
            "%s: line %d: eval: want '{data: FILE, windows: N, ctx: N}'", path, map->line);
    for (size_t i = 0; i < map->n; i++) {
        const struct yaml *v = &map->child[i];
        if (!strcmp(map->key[i], "data"))
            TRY(read_eval_data(p, v, path));
        else if (!strcmp(map->key[i], "windows"))
            TRY(read_count(&p->eval_windows, v, "windows", 0, path));
        else if (!strcmp(map->key[i], "ctx"))
            TRY(read_count(&p->eval_ctx, v, "ctx", 2, path));
        else
            FAIL(ERR_USAGE, "%s: line %d: eval: unknown key '%s'; want data, windows, ctx",
                 path, v->line, map->key[i]);
    }
    return OK;
}

static enum err read_title(struct sweep_plan *p, const struct yaml *node, const char *path)
{
    FAIL_IF(node->kind != YAML_TEXT || !*node->text, ERR_USAGE,
            "%s: line %d: title: want a text", path, node->line);
    return mem_strdup(&p->title, node->text);
}

static enum err read_part(struct sweep_plan *p, const char *key, const struct yaml *v,
                          const char *path)
{
    static const char *const parts[] = {"title", "base", "grid", "cells", "claims", "eval"};
    struct nearest best = {0};
    if (!strcmp(key, "title"))
        return read_title(p, v, path);
    if (!strcmp(key, "base"))
        return flatten(&p->base, v, "", path);
    if (!strcmp(key, "grid"))
        return read_grid(p, v, path);
    if (!strcmp(key, "cells"))
        return read_cells(p, v, path);
    if (!strcmp(key, "claims"))
        return sweep_claims_read(p, v, path);
    if (!strcmp(key, "eval"))
        return read_eval(p, v, path);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        nearest_consider(&best, key, parts[i]);
    FAIL_IF(best.word, ERR_USAGE, "%s: line %d: unknown key '%s'; did you mean '%s'?", path,
            v->line, key, best.word);
    FAIL(ERR_USAGE,
         "%s: line %d: unknown key '%s'; want title, base, grid, cells, claims, "
         "eval",
         path, v->line, key);
}

enum err sweep_plan_load(struct sweep_plan *p, const char *path)
{
    enum err err = OK;
    struct yaml *root = NULL;
    *p = (struct sweep_plan){.path = path, .eval_ctx = 2048};
    TRY(yaml_load_file(&root, path));
    if (root->kind != YAML_MAP)
        FAIL_OUT(ERR_USAGE, "%s: line %d: want base, grid or cells at the top", path,
                 root->line);
    for (size_t i = 0; i < root->n; i++)
        TRY_OUT(read_part(p, root->key[i], &root->child[i], path));
    if (!p->n_cells)
        FAIL_OUT(ERR_USAGE, "%s: no cells: give grid or cells", path);
    TRY_OUT(sweep_claims_check(p, path));
out:
    yaml_free(&root);
    return err;
}
