/* SPDX-License-Identifier: MIT */
#include "tools/cli/hub_cache.h"

#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COMMIT_DIGITS 40
#define REF_LIMIT 256
#define PART_MAX 96 /* bytes of an organization, a name or a revision, as on the hub */
#define PREFIX "models--"

/* A name in its parts. */
struct hub_id {
    char org[PART_MAX + 1], name[PART_MAX + 1], revision[PART_MAX + 1];
    bool given; /* the revision was named */
};

/* --- names -------------------------------------------------------------------------- */

static bool is_plain_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           c == '-' || c == '_' || c == '.';
}

/* Copies n bytes if they are letters, digits, '-', '_' and '.', without a dot in front and
 * without "..", which would leave the cache. */
static bool take_part(char *out, const char *text, size_t n)
{
    if (!n || n > PART_MAX || *text == '.' || *text == '-')
        return false;
    for (size_t i = 0; i < n; i++)
        if (!is_plain_char(text[i]) || (i && text[i] == '.' && text[i - 1] == '.'))
            return false;
    memcpy(out, text, n);
    out[n] = '\0';
    return true;
}

/* Takes a revision, which may have several parts, as refs/pr/1. */
static bool take_revision(char *out, const char *text)
{
    char part[PART_MAX + 1];
    if (strlen(text) > PART_MAX)
        return false;
    for (const char *at = text;; at++) {
        const size_t n = strcspn(at, "/");
        if (!take_part(part, at, n))
            return false;
        at += n;
        if (!*at)
            break;
    }
    strcpy(out, text);
    return true;
}

static bool parse(struct hub_id *id, const char *name)
{
    const char *slash = strchr(name, '/');
    const char *end = name + strcspn(name, "@");
    if (!slash || slash > end || memchr(slash + 1, '/', (size_t)(end - slash - 1)))
        return false;
    id->given = *end == '@';
    return take_part(id->org, name, (size_t)(slash - name)) &&
           take_part(id->name, slash + 1, (size_t)(end - slash - 1)) &&
           take_revision(id->revision, id->given ? end + 1 : "main");
}

/* Returns the value of the variable whose name starts at `name`, in braces or not, and the length
 * of what names it; NULL: no such variable. */
static const char *value_at(const char *name, size_t *n)
{
    static const char of_names[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    const bool braces = *name == '{';
    const size_t length = strspn(name + braces, of_names);
    char text[64];
    *n = length + 2 * braces;
    if (!length || length >= sizeof(text) || (braces && name[1 + length] != '}'))
        return NULL;
    memcpy(text, name + braces, length);
    text[length] = '\0';
    return getenv(text);
}

static void write_expanded(FILE *f, const char *path)
{
    const char *home = getenv("HOME");
    if (home && *path == '~' && (path[1] == '/' || !path[1])) {
        fputs(home, f);
        path++;
    }
    while (*path) {
        size_t n = 0;
        const char *value = *path == '$' ? value_at(path + 1, &n) : NULL;
        if (value)
            fputs(value, f);
        else
            fputc(*path, f);
        path += value ? n + 1 : 1;
    }
}

/* Expands a leading ~ and variables, as the hub's own tools do: where no shell has done so, a value
 * such as ~/models would name a folder ~. What has no value stays as it is. */
static enum err expand(char **out, const char *path)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    if (f)
        write_expanded(f, path);
    const bool written = f && !fclose(f);
    const enum err err = written ? mem_strdup(out, text) : ERR_MEMORY;
    free(text);
    FAIL_IF(!written, ERR_MEMORY, "%s: cannot be expanded", path);
    return err;
}

static enum err cache_dir(char **out)
{
    static const struct {
        const char *variable, *below;
    } places[] = {{"HF_HUB_CACHE", NULL},
                  {"HUGGINGFACE_HUB_CACHE", NULL},
                  {"HF_HOME", "hub"},
                  {"XDG_CACHE_HOME", "huggingface/hub"},
                  {"HOME", ".cache/huggingface/hub"}};
    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        const char *dir = getenv(places[i].variable);
        if (!dir || !*dir)
            continue;
        char *expanded = NULL;
        TRY(expand(&expanded, dir));
        if (!places[i].below) {
            *out = expanded;
            return OK;
        }
        const enum err err = file_join(out, expanded, places[i].below);
        mem_free(expanded);
        return err;
    }
    FAIL(ERR_NOT_FOUND, "HOME is not set, so there is no cache of the hub");
}

/* --- the cache ---------------------------------------------------------------------- */

static bool is_commit(const char *text)
{
    return strlen(text) == COMMIT_DIGITS &&
           strspn(text, "0123456789abcdef") == COMMIT_DIGITS;
}

/* Reads the commit of a branch or tag. */
static enum err read_ref(char commit[COMMIT_DIGITS + 1], const char *path)
{
    char *text;
    size_t n;
    TRY(file_read_all(&text, &n, path, REF_LIMIT));
    text[strcspn(text, " \r\n")] = '\0';
    const bool good = is_commit(text);
    if (good)
        strcpy(commit, text);
    mem_free(text);
    FAIL_IF(!good, ERR_FORMAT, "%s: is not a commit of %d hexadecimal digits", path,
            COMMIT_DIGITS);
    return OK;
}

/* Finds the commit of the revision. */
static enum err find_commit(char commit[COMMIT_DIGITS + 1], const char *repo,
                            const struct hub_id *id)
{
    char *refs = NULL, *path = NULL;
    enum err err = file_join(&refs, repo, "refs");
    if (!err)
        err = file_join(&path, refs, id->revision);
    if (!err && file_is_regular(path))
        err = read_ref(commit, path);
    else if (!err && is_commit(id->revision))
        strcpy(commit, id->revision);
    else if (!err)
        err = err_set(ERR_NOT_FOUND, __FILE__, __LINE__, "%s: has no revision %s", repo,
                      id->revision);
    mem_free(refs);
    mem_free(path);
    return err;
}

/* Returns whether a directory has a file whose name ends so. */
static bool has_file(const char *dir, const char *end)
{
    bool found = false;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        const size_t n = strlen(e->d_name), m = strlen(end);
        found = n >= m && !strcmp(e->d_name + n - m, end);
    }
    if (d)
        closedir(d);
    return found;
}

/* Returns whether a download into the repository has not ended. */
static bool is_incomplete(const char *repo)
{
    char *blobs = NULL;
    const bool found = !file_join(&blobs, repo, "blobs") && has_file(blobs, ".incomplete");
    mem_free(blobs);
    return found;
}

/* Returns whether a file may be of those that a model is opened with. */
static bool is_of_model(const char *name)
{
    static const char *const end[] = {".json", ".safetensors", ".model", ".jinja",
                                      "merges.txt"};
    const size_t n = strlen(name);
    bool found = false;
    for (size_t i = 0; i < ARRAY_LEN(end); i++)
        found |= n >= strlen(end[i]) && !strcmp(name + n - strlen(end[i]), end[i]);
    return found;
}

/* Refuses a snapshot with a link to a blob that is missing. A blob that is not read may well be:
 * weights of another format are often deleted to save space. */
static enum err check_links(const char *dir)
{
    enum err err = OK;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && !err && (e = readdir(d));) {
        char *path = NULL;
        if (!is_of_model(e->d_name))
            continue;
        err = file_join(&path, dir, e->d_name);
        if (!err)
            err = file_check_link(path);
        mem_free(path);
    }
    if (d)
        closedir(d);
    return err;
}

/* Refuses a snapshot that lacks files. Which weights there must be is known to the one who
 * opens them. */
static enum err check_snapshot(const char *repo, const char *dir, const struct hub_id *id)
{
    const bool incomplete = is_incomplete(repo);
    enum err err = OK;
    if (!file_is_dir(dir))
        err = err_set(ERR_NOT_FOUND, __FILE__, __LINE__,
                      "%s: revision %s of the cache has this snapshot, but it is missing",
                      dir, id->revision);
    else if (!has_file(dir, "config.json"))
        err = err_set(ERR_NOT_FOUND, __FILE__, __LINE__, "%s: has no config.json%s", dir,
                      incomplete ? ", and a download has not ended (blobs/*.incomplete)"
                                 : "");
    else
        err = check_links(dir);
    if (!err && incomplete)
        log_warn("%s: a download has not ended (blobs/*.incomplete)", repo);
    return err;
}

static enum err find_snapshot(char **out, const char *repo, const struct hub_id *id)
{
    char commit[COMMIT_DIGITS + 1] = "";
    char *snapshots = NULL, *dir = NULL;
    TRY(find_commit(commit, repo, id));
    enum err err = file_join(&snapshots, repo, "snapshots");
    if (!err)
        err = file_join(&dir, snapshots, commit);
    if (!err)
        err = check_snapshot(repo, dir, id);
    mem_free(snapshots);
    if (err)
        mem_free(dir);
    else
        *out = dir;
    return err;
}

static enum err find_in_cache(char **out, const struct hub_id *id)
{
    char folder[2 * PART_MAX + 16];
    char *cache = NULL, *repo = NULL;
    snprintf(folder, sizeof(folder), PREFIX "%s--%s", id->org, id->name);
    enum err err = cache_dir(&cache);
    if (!err)
        err = file_join(&repo, cache, folder);
    if (!err && !file_is_dir(repo))
        err = err_set(ERR_NOT_FOUND, __FILE__, __LINE__, "%s: has no %s", cache, folder);
    if (!err)
        err = find_snapshot(out, repo, id);
    mem_free(cache);
    mem_free(repo);
    return err;
}

enum err hub_find(char **out, const char *name)
{
    struct hub_id id;
    if (file_exists(name) || !parse(&id, name))
        return mem_strdup(out, name);
    const enum err err = find_in_cache(out, &id);
    if (err && err != ERR_NOT_FOUND)
        return err_add(err, "%s, in the hub's cache: ", name);
    if (err)
        return err_add(err,
                       "%s: no such directory, and the hub's cache lacks it; `hf download "
                       "%s/%s%s%s` brings it: ",
                       name, id.org, id.name, id.given ? " --revision " : "",
                       id.given ? id.revision : "");
    log_info("%s: %s", name, *out);
    return OK;
}

enum err hub_name_of(char **out, const char *dir)
{
    *out = NULL;
    for (const char *at = strstr(dir, PREFIX); at; at = strstr(at + 1, PREFIX)) {
        const char *org = at + strlen(PREFIX), *name = strstr(org, "--");
        const char *end = org + strcspn(org, "/");
        if ((at > dir && at[-1] != '/') || !name || name + 2 >= end ||
            strncmp(end, "/snapshots/", 11))
            continue;
        TRY(mem_alloc(out, (size_t)(end - org), 1));
        snprintf(*out, (size_t)(end - org), "%.*s/%.*s", (int)(name - org), org,
                 (int)(end - name - 2), name + 2);
        return OK;
    }
    return OK;
}
