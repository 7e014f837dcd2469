/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_results.h"

#include "convert/output/outdir.h"
#include "data/json.h"
#include "data/jsonl.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/state/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RESULT_LIMIT ((size_t)64 << 20)
#define LOCK_TENTHS 50
#define LOCK_NAME "lock"
#define LIST_NAME "results.jsonl"

static enum err check_row(const json_t *row, const char *where)
{
    FAIL_IF(!json_is_object(row) || !json_object_get(row, "identity") ||
                !json_is_string(json_object_get(row, "name")),
            ERR_FORMAT, "%s: not a cell's result", where);
    return OK;
}

static enum err read_rows(json_t *list, const char *path)
{
    enum err err = OK;
    struct jsonl f;
    json_t *row;
    FAIL_IF(file_exists(path) && !file_is_regular(path), ERR_NOT_FOUND,
            "%s: not a regular file", path);
    TRY(jsonl_open(&f, path));
    while (!(err = jsonl_next(&row, &f)) && row) {
        err = check_row(row, f.where);
        if (!err)
            json_array_append(list, row);
        json_decref(row);
        if (err)
            break;
    }
    jsonl_close(&f);
    return err;
}

enum err sweep_results_read(json_t **out, const char *dir)
{
    enum err err = OK;
    char *path = NULL;
    json_t *list = json_array();
    FAIL_IF(!list, ERR_MEMORY, "out of memory for results");
    TRY_OUT(file_join(&path, dir, LIST_NAME));
    TRY_OUT(read_rows(list, path));
    *out = list;
    list = NULL;
out:
    json_decref(list);
    mem_free(path);
    return err;
}

/* --- writing ------------------------------------------------------------------------ */

static enum err write_jsonl(const struct sweep *s)
{
    enum err err = OK;
    struct file_writer *w = NULL;
    char *path = NULL;
    size_t i;
    json_t *row;
    TRY(file_join(&path, s->out_dir, LIST_NAME));
    TRY_OUT(file_writer_open(&w, path));
    json_array_foreach(s->results, i, row)
    {
        char *line = json_text(row, JSON_COMPACT | JSON_REAL_PRECISION(17));
        err = line ? file_printf(w, "%s\n", line)
                   : err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for results");
        free(line);
        if (err)
            goto out;
    }
    TRY_OUT(file_writer_commit(&w));
out:
    file_writer_abort(&w);
    mem_free(path);
    return err;
}

/* Writes a CSV field as in RFC 4180. */
static enum err csv_text(struct file_writer *w, const char *text)
{
    TRY(file_printf(w, "\""));
    for (const char *p = text; *p; p++)
        TRY(file_printf(w, *p == '"' ? "\"\"" : "%c", *p));
    return file_printf(w, "\"");
}

static enum err csv_number(struct file_writer *w, const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return json_is_number(v) ? file_printf(w, ",%.9g", json_number_value(v))
                             : file_printf(w, ",");
}

static enum err csv_row(struct file_writer *w, const json_t *row)
{
    static const char *const columns[] = {"ppl",     "stderr", "nll",    "weight_bits",
                                          "kv_bits", "bytes",  "seconds"};
    size_t i;
    json_t *item;
    TRY(csv_text(w, json_string_value(json_object_get(row, "name"))));
    for (size_t c = 0; c < ARRAY_LEN(columns); c++)
        TRY(csv_number(w, row, columns[c]));
    TRY(file_printf(w, ",\""));
    json_array_foreach(json_object_get(row, "set"), i, item)
    {
        const char *text = json_string_value(item);
        for (const char *p = text ? text : ""; *p; p++)
            TRY(file_printf(w, *p == '"' ? "\"\"" : "%c", *p));
        if (i + 1 < json_array_size(json_object_get(row, "set")))
            TRY(file_printf(w, " "));
    }
    return file_printf(w, "\"\r\n");
}

static enum err write_csv(const struct sweep *s)
{
    enum err err = OK;
    struct file_writer *w = NULL;
    char *path = NULL;
    size_t i;
    json_t *row;
    TRY(file_join(&path, s->out_dir, "results.csv"));
    TRY_OUT(file_writer_open(&w, path));
    TRY_OUT(
        file_printf(w, "name,ppl,stderr,nll,weight_bits,kv_bits,bytes,seconds,set\r\n"));
    json_array_foreach(s->results, i, row)
    {
        TRY_OUT(csv_row(w, row));
    }
    TRY_OUT(file_writer_commit(&w));
out:
    file_writer_abort(&w);
    mem_free(path);
    return err;
}

enum err sweep_results_leave(const struct sweep *s, const struct sweep_run *run,
                             const json_t *result)
{
    char *path = NULL;
    char *text = json_text(result, JSON_COMPACT | JSON_REAL_PRECISION(17));
    FAIL_IF(!text, ERR_MEMORY, "out of memory for the result");
    enum err err = sweep_path(&path, s, run, ".json");
    if (!err)
        err = file_write_all(path, text, strlen(text));
    free(text);
    mem_free(path);
    return err;
}

static void remove_files(const struct sweep *s, const char *hash)
{
    static const char *const suffix[] = {"", ".state", ".json"};
    for (size_t i = s->settings.keep ? 1 : 0; i < ARRAY_LEN(suffix); i++) {
        char *path = NULL;
        struct sweep_run run = {.done = true};
        snprintf(run.hash, sizeof(run.hash), "%s", hash);
        if (sweep_path(&path, s, &run, suffix[i]))
            continue;
        if (i == 2)
            unlink(path);
        else if (i == 1 ? state_discard(path) : outdir_remove(path))
            log_warn("%s: cannot remove: %s", path, err_text());
        err_clear();
        mem_free(path);
    }
}

/* Lists a result. The list is written first and the cell's files are removed afterwards, so
 * a kill in between loses nothing. */
static enum err take(struct sweep *s, const char *hash, const char *path)
{
    json_t *row;
    TRY(json_load_file_strict(&row, path, RESULT_LIMIT));
    const enum err err = check_row(row, path);
    if (err) {
        json_decref(row);
        return err;
    }
    FAIL_IF(json_array_append_new(s->results, row), ERR_MEMORY,
            "%s: out of memory for the result", path);
    if (s->settings.plan_only)
        return OK;
    TRY(write_jsonl(s));
    TRY(write_csv(s));
    remove_files(s, hash);
    return OK;
}

enum err sweep_results_take(struct sweep *s, const struct sweep_run *run)
{
    char *path = NULL;
    TRY(sweep_path(&path, s, run, ".json"));
    const enum err err = take(s, run->hash, path);
    mem_free(path);
    return err;
}

/* --- opening ------------------------------------------------------------------------ */

static bool listed(const struct sweep *s, const char *hash)
{
    size_t i;
    json_t *row;
    json_array_foreach(s->results, i, row)
    {
        const char *have = json_string_value(json_object_get(row, "hash"));
        if (have && !strcmp(have, hash))
            return true;
    }
    return false;
}

/* Takes over cells/HASH.json of a sweep that was killed between the end of a cell and the
 * update of the list. */
static enum err take_left(struct sweep *s, const char *cells, const char *name)
{
    char hash[20];
    char *path = NULL;
    const size_t n = strlen(name);
    if (n != 16 + 5 || strcmp(name + 16, ".json"))
        return OK;
    snprintf(hash, sizeof(hash), "%.16s", name);
    TRY(file_join(&path, cells, name));
    enum err err = OK;
    if (!listed(s, hash))
        err = take(s, hash, path);
    else if (!s->settings.plan_only)
        remove_files(s, hash);
    mem_free(path);
    return err;
}

static enum err take_all_left(struct sweep *s, const char *cells)
{
    enum err err = OK;
    struct dirent *e;
    DIR *d = opendir(cells);
    FAIL_IF(!d, ERR_IO, "%s: cannot read: %s", cells, strerror(errno));
    while (!err && (e = readdir(d)))
        err = take_left(s, cells, e->d_name);
    closedir(d);
    return err;
}

/* The cells of a killed sweep are about to end, and hold its lock until then. */
static enum err take_lock(struct sweep *s)
{
    char *path = NULL;
    TRY(file_join(&path, s->out_dir, LOCK_NAME));
    const enum err err = lock_take(&s->lock, path, "this sweep", LOCK_TENTHS);
    mem_free(path);
    return err;
}

/* Is a name in OUT the lock of a sweep, which is empty, or its list, which is read before
 * anything is written? */
static bool is_mark(int dir, const char *name)
{
    struct stat st;
    const bool lock = !strcmp(name, LOCK_NAME);
    if (!lock && strcmp(name, LIST_NAME))
        return false;
    return !fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode) &&
           (!lock || !st.st_size);
}

/* What a directory holds: names that do not begin with a dot. */
struct entries {
    int n;
    bool marked;
};

static struct entries look_into(const char *path)
{
    struct entries c = {0};
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        c.n += e->d_name[0] != '.';
        c.marked |= is_mark(dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
    return c;
}

/* ERR_USAGE where out_dir has files and is no sweep's. A kill can leave an empty cells/
 * alone. */
static enum err check_place(const char *out_dir, const char *cells)
{
    const struct entries c = look_into(out_dir);
    const bool sweep =
        file_is_dir(cells) && (c.marked || (c.n == 1 && !look_into(cells).n));
    FAIL_IF(c.n && !sweep, ERR_USAGE,
            "%s: holds something that is not a sweep; name another -o OUT", out_dir);
    return OK;
}

/* The empty lock says whose directory this is. */
static enum err make_mark(const char *out_dir)
{
    char *path = NULL;
    struct lock l = {.fd = -1};
    TRY(file_join(&path, out_dir, LOCK_NAME));
    const enum err err =
        file_is_plain(path) ? OK : lock_take(&l, path, "this sweep", LOCK_TENTHS);
    lock_release(&l);
    mem_free(path);
    return err;
}

enum err sweep_results_make(const char *out_dir)
{
    char *cells = NULL;
    TRY(file_join(&cells, out_dir, "cells"));
    enum err err = check_place(out_dir, cells);
    if (!err)
        err = file_make_dir(cells);
    if (!err)
        err = make_mark(out_dir);
    mem_free(cells);
    return err;
}

enum err sweep_results_open(struct sweep *s)
{
    enum err err = OK;
    char *list = NULL, *cells = NULL;
    TRY_OUT(file_join(&list, s->out_dir, LIST_NAME));
    TRY_OUT(file_join(&cells, s->out_dir, "cells"));
    if (s->settings.plan_only) {
        TRY_OUT(check_place(s->out_dir, cells));
    } else {
        TRY_OUT(sweep_results_make(s->out_dir));
        TRY_OUT(take_lock(s));
    }
    if (file_exists(list)) {
        TRY_OUT(sweep_results_read(&s->results, s->out_dir));
    } else {
        s->results = json_array();
        if (!s->results)
            FAIL_OUT(ERR_MEMORY, "out of memory for results");
    }
    if (file_is_dir(cells))
        TRY_OUT(take_all_left(s, cells));
out:
    mem_free(list);
    mem_free(cells);
    return err;
}

void sweep_results_close(struct sweep *s)
{
    json_decref(s->results);
    s->results = NULL;
    lock_release(&s->lock);
}

bool sweep_results_has(const struct sweep *s, const struct sweep_run *run)
{
    size_t i;
    json_t *row;
    json_array_foreach(s->results, i, row)
    {
        if (json_equal(json_object_get(row, "identity"), run->identity))
            return true;
    }
    return false;
}
