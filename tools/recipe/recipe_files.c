/* SPDX-License-Identifier: MIT
 *
 * The list of calibration texts, and their shares of the windows. */
#include "tools/recipe/recipe_files.h"
#include "data/yaml.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_SHARE (-1.0)
#define SHARE_MAX 1e6

static enum err add(struct recipe_files *files, const char *path, size_t n, double share)
{
    const size_t had = (size_t)files->n;
    TRY(mem_resize(&files->path, had, had + 1, sizeof(*files->path)));
    TRY(mem_resize(&files->share, had, had + 1, sizeof(*files->share)));
    TRY(mem_alloc(&files->path[had], n + 1, 1));
    memcpy(files->path[had], path, n);
    files->path[had][n] = '\0';
    files->share[had] = share;
    files->n++;
    return OK;
}

enum err recipe_files_add(struct recipe_files *files, const char *path)
{
    return add(files, path, strlen(path), NO_SHARE);
}

enum err recipe_files_copy(struct recipe_files *to, const struct recipe_files *from)
{
    *to = (struct recipe_files){0};
    for (int i = 0; i < from->n; i++)
        TRY(add(to, from->path[i], strlen(from->path[i]), recipe_files_share(from, i)));
    return OK;
}

void recipe_files_clear(struct recipe_files *files)
{
    for (int i = 0; i < files->n; i++)
        mem_free(files->path[i]);
    mem_free(files->path);
    mem_free(files->share);
    *files = (struct recipe_files){0};
}

double recipe_files_share(const struct recipe_files *files, int i)
{
    return files->share ? files->share[i] : NO_SHARE;
}

bool recipe_files_shared(const struct recipe_files *files)
{
    return files->n && recipe_files_share(files, 0) >= 0;
}

bool recipe_files_same(const struct recipe_files *a, const struct recipe_files *b)
{
    bool same = a->n == b->n && recipe_files_shared(a) == recipe_files_shared(b);
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->path[i], b->path[i]);
    return same;
}

static bool parse_share(double *out, const char *text)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && *out >= 0 && *out <= SHARE_MAX;
}

enum err recipe_files_add_typed(struct recipe_files *files, const char *text)
{
    double share;
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || !parse_share(&share, colon + 1) || file_exists(text))
        return recipe_files_add(files, text);
    return add(files, text, (size_t)(colon - text), share);
}

static enum err add_map(struct recipe_files *files, const struct yaml *map,
                        const char *where)
{
    double share;
    const struct yaml *file = yaml_child(map, "file"), *part = yaml_child(map, "share");
    FAIL_IF(!file || file->kind != YAML_TEXT || !*file->text, ERR_USAGE,
            "%s: a text lacks its file name; want '{file: NAME, share: NUMBER}'", where);
    FAIL_IF(!part, ERR_USAGE,
            "%s: '%s' lacks its share; want '{file: NAME, share: NUMBER}'", where,
            file->text);
    FAIL_IF(map->n != 2, ERR_USAGE, "%s: '%s': want file and share, nothing else", where,
            file->text);
    FAIL_IF(part->kind != YAML_TEXT || !parse_share(&share, part->text), ERR_USAGE,
            "%s: '%s': share is '%s'; want a number above 0, at most %g", where, file->text,
            part->kind == YAML_TEXT ? part->text : "no number", SHARE_MAX);
    return add(files, file->text, strlen(file->text), share);
}

enum err recipe_files_add_yaml(struct recipe_files *files, const struct yaml *node,
                               const char *where)
{
    if (node->kind == YAML_MAP)
        return add_map(files, node, where);
    FAIL_IF(node->kind != YAML_TEXT || !*node->text, ERR_USAGE,
            "%s: want file names, or texts as in '{file: NAME, share: NUMBER}'", where);
    return recipe_files_add_typed(files, node->text);
}

enum err recipe_files_check(const struct recipe_files *files, const char *where)
{
    for (int i = 0; i < files->n; i++) {
        const double share = recipe_files_share(files, i);
        const bool has = share >= 0;
        FAIL_IF(has != recipe_files_shared(files), ERR_USAGE,
                "%s: '%s' has %s share, but '%s' has %s; give all texts a share, or none",
                where, files->path[i], has ? "a" : "no", files->path[0],
                has ? "none" : "one");
        FAIL_IF(has && !(share > 0), ERR_USAGE,
                "%s: '%s' has a share of 0, so no window of it would be drawn; give it a "
                "positive share, or leave it out",
                where, files->path[i]);
    }
    return OK;
}

/* Writes PATH:SHARE with the fewest digits that read back as the same number. */
static void put_share(char *out, size_t n, const char *path, double share)
{
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, n, "%s:%.*g", path, digits, share);
        if (strtod(strrchr(out, ':') + 1, NULL) == share)
            return;
    }
}

enum err recipe_files_typed(char **out, const struct recipe_files *files, int i)
{
    const size_t n = strlen(files->path[i]) + 32;
    TRY(mem_alloc(out, n, 1));
    const double share = recipe_files_share(files, i);
    if (share < 0)
        strcpy(*out, files->path[i]);
    else
        put_share(*out, n, files->path[i], share);
    return OK;
}
