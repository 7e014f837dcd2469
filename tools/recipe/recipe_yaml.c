/* SPDX-License-Identifier: MIT
 *
 * Reads a configuration from a YAML file. */
#include "data/yaml.h"
#include "kernels/base/mem.h"
#include "tools/cli/nearest.h"
#include "tools/recipe/recipe.h"
#include "tools/recipe/recipe_priv.h"

#include <string.h>

/* A file in work. */
struct source {
    const char *path;
    int *line; /* [recipe_n_keys] where each key is set; 0: not yet */
};

/* Sets the texts from a file name, a text with its share, or a list of either. */
static enum err set_files(struct recipe_files *files, const char *name,
                          const struct yaml *node, const char *path)
{
    char where[640];
    const bool list = node->kind == YAML_LIST;
    const struct yaml *item = list ? node->child : node;
    recipe_files_clear(files);
    for (size_t i = 0; i < (list ? node->n : 1); i++) {
        snprintf(where, sizeof(where), "%.400s: line %d: %s", path, item[i].line, name);
        TRY(recipe_files_add_yaml(files, &item[i], where));
    }
    snprintf(where, sizeof(where), "%.400s: line %d: %s", path, node->line, name);
    return recipe_files_check(files, where);
}

/* A key stands once, whether it is written with its section or below it: of two values one would
 * be lost without a word. */
static enum err mark_line(const struct source *file, const struct recipe_key *k, int line,
                          const char *where)
{
    int *first = &file->line[k - recipe_key];
    FAIL_IF(*first, ERR_USAGE, "%s: %s is set a second time, after line %d; remove one",
            where, k->name, *first);
    *first = line;
    return OK;
}

/* Sets one key; full: its name with the section. */
static enum err set_node(struct recipe *r, const char *full, const struct yaml *node,
                         const struct source *file)
{
    char where[512];
    snprintf(where, sizeof(where), "%.400s: line %d", file->path, node->line);
    const struct recipe_key *k = recipe_find_key(full);
    if (!k)
        return recipe_unknown_key(full, where);
    TRY(mark_line(file, k, node->line, where));
    if (k->kind == KEY_FILES)
        return set_files((struct recipe_files *)((char *)r + k->offset), full, node,
                         file->path);
    FAIL_IF(node->kind == YAML_MAP, ERR_USAGE, "%s: %s: want a value, not further keys",
            where, full);
    FAIL_IF(node->kind == YAML_LIST, ERR_USAGE, "%s: %s: want one value, not a list", where,
            full);
    FAIL_IF(node->quoted &&
                (k->kind == KEY_INT || k->kind == KEY_REAL || k->kind == KEY_BITS),
            ERR_USAGE, "%s: %s: '%s' is in quotes; want a number", where, full, node->text);
    return recipe_set_key(r, k, node->text, where);
}

/* Writes the part of a key's name before the dot. */
static void section_of(char out[32], const struct recipe_key *k)
{
    snprintf(out, 32, "%.*s", (int)strcspn(k->name, "."), k->name);
}

static bool is_section(const char *name)
{
    char section[32];
    for (int i = 0; i < recipe_n_keys; i++) {
        section_of(section, &recipe_key[i]);
        if (!strcmp(section, name))
            return true;
    }
    return false;
}

static enum err unknown_section(const char *name, const char *path, int line)
{
    struct nearest best = {0};
    char where[512];
    char section[32], closest[32];
    if (strchr(name, '.')) {
        snprintf(where, sizeof(where), "%.400s: line %d", path, line);
        return recipe_unknown_key(name, where);
    }
    for (int i = 0; i < recipe_n_keys; i++) {
        section_of(section, &recipe_key[i]);
        nearest_consider(&best, name, section);
        if (best.word == section) {
            memcpy(closest, section, sizeof(closest));
            best.word = closest;
        }
    }
    FAIL_IF(best.word, ERR_USAGE, "%s: line %d: unknown section '%s'; did you mean '%s'?",
            path, line, name, best.word);
    FAIL(ERR_USAGE,
         "%s: line %d: unknown section '%s'; `wkvq --print-reference` lists all keys", path,
         line, name);
}

/* Sets the keys of a section, or a key that is written with its section. */
static enum err set_section(struct recipe *r, const char *name, const struct yaml *node,
                            const struct source *file)
{
    char full[128];
    const char *path = file->path;
    if (recipe_find_key(name)) /* "kv.bits: 4" */
        return set_node(r, name, node, file);
    if (!is_section(name))
        return unknown_section(name, path, node->line);
    FAIL_IF(node->kind != YAML_MAP, ERR_USAGE,
            "%s: line %d: %s: want keys below it, as in '%s: {KEY: VALUE}'", path,
            node->line, name, name);
    for (size_t i = 0; i < node->n; i++) {
        snprintf(full, sizeof(full), "%s.%s", name, node->key[i]);
        TRY(set_node(r, full, &node->child[i], file));
    }
    return OK;
}

static enum err set_preset(struct recipe *r, const struct yaml *node, const char *path)
{
    char where[512];
    snprintf(where, sizeof(where), "%.400s: line %d", path, node->line);
    FAIL_IF(node->kind != YAML_TEXT, ERR_USAGE, "%s: preset: want a name", where);
    return recipe_preset(r, node->text, where);
}

enum err recipe_read_yaml(struct recipe *r, const char *path, bool preset)
{
    enum err err = OK;
    struct yaml *root = NULL;
    struct source file = {.path = path};
    TRY(yaml_load_file(&root, path));
    TRY_OUT(mem_calloc(&file.line, (size_t)recipe_n_keys, sizeof(*file.line)));
    if (root->kind != YAML_MAP)
        FAIL_OUT(ERR_USAGE, "%s: line %d: want 'section: {key: value}' at the top", path,
                 root->line);
    for (size_t i = 0; i < root->n && !preset; i++)
        if (!strcmp(root->key[i], "preset"))
            TRY_OUT(set_preset(r, &root->child[i], path));
    for (size_t i = 0; i < root->n; i++)
        if (strcmp(root->key[i], "preset"))
            TRY_OUT(set_section(r, root->key[i], &root->child[i], &file));
out:
    mem_free(file.line);
    yaml_free(&root);
    return err;
}

enum err recipe_load_yaml(struct recipe *r, const char *path)
{
    return recipe_read_yaml(r, path, false);
}
