/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_results.h"

#include "convert/output/outdir.h"
#include "data/json.h"
#include "data/jsonl.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/state/state.h"
#include "tools/sweep/sweep_columns.h"
#include "tools/sweep/sweep_measures.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RESULT_LIMIT ((size_t)64 << 20)
#define LOCK_TENTHS 50
#define JOIN_TENTHS 300 /* 1000 processes list a result in some milliseconds each */

static enum err check_row(const json_t *row, const char *where)
{
    FAIL_IF(!json_is_object(row) || !json_object_get(row, "identity") ||
                !json_is_string(json_object_get(row, "name")),
            ERR_FORMAT, "%s: not a cell's result", where);
    return OK;
}

static int64_t cell_of(const json_t *row)
{
    return json_integer_value(json_object_get(row, "cell"));
}

/* Inserts a row before the first one of a later cell, and takes it. Cells end in any order, and
 * the page shall not depend on it. */
static enum err insert(json_t *list, json_t *row)
{
    size_t at = 0;
    while (at < json_array_size(list) && cell_of(json_array_get(list, at)) <= cell_of(row))
        at++;
    FAIL_IF(json_array_insert_new(list, at, row), ERR_MEMORY, "out of memory for results");
    return OK;
}

static size_t measures_of(const json_t *row)
{
    return json_array_size(json_object_get(row, "measures"));
}

/* Inserts a row in place of an earlier one of the same cell, unless that has more measures. A
 * process may have listed them since the row was read. Takes the row. */
static enum err replace(json_t *list, json_t *row)
{
    size_t i;
    json_t *have;
    const json_t *hash = json_object_get(row, "hash");
    json_array_foreach(list, i, have)
    {
        if (!hash || !json_equal(json_object_get(have, "hash"), hash))
            continue;
        if (measures_of(have) > measures_of(row)) {
            json_decref(row);
            return OK;
        }
        json_array_remove(list, i);
        break;
    }
    return insert(list, row);
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

/* *out = the rows of results.jsonl; none if it is missing. */
static enum err read_list(json_t **out, const char *dir)
{
    enum err err = OK;
    char *path = NULL;
    json_t *list = json_array();
    FAIL_IF(!list, ERR_MEMORY, "out of memory for results");
    TRY_OUT(file_join(&path, dir, SWEEP_LIST));
    if (file_exists(path))
        TRY_OUT(read_rows(list, path));
    *out = list;
    list = NULL;
out:
    json_decref(list);
    mem_free(path);
    return err;
}

/* *hash = that of a result's name, HASH.json. false: another file. */
static bool is_result(char hash[SWEEP_HASH_MAX], const char *name)
{
    const size_t n = strlen(name);
    snprintf(hash, SWEEP_HASH_MAX, "%.16s", name);
    return n == 16 + 5 && !strcmp(name + 16, ".json");
}

/* *row NULL: the process that lists results has removed the file. */
static enum err read_left(json_t **row, const char *path)
{
    *row = NULL;
    enum err err = json_load_file_strict(row, path, RESULT_LIMIT);
    if (err && !file_exists(path)) {
        err_clear();
        return OK;
    }
    if (!err)
        err = check_row(*row, path);
    if (err) {
        json_decref(*row);
        *row = NULL;
    }
    return err;
}

/* Calls fn for each result in cells, which may be missing. */
static enum err each_left(const char *cells,
                          enum err (*fn)(void *ctx, const char *hash, const char *path),
                          void *ctx)
{
    enum err err = OK;
    char hash[SWEEP_HASH_MAX];
    struct dirent *e;
    DIR *d = opendir(cells);
    FAIL_IF(!d && errno != ENOENT, ERR_IO, "%s: cannot read: %s", cells, strerror(errno));
    while (d && !err && (e = readdir(d))) {
        char *path = NULL;
        if (!is_result(hash, e->d_name))
            continue;
        err = file_join(&path, cells, e->d_name);
        if (!err)
            err = fn(ctx, hash, path);
        mem_free(path);
    }
    if (d)
        closedir(d);
    return err;
}

static enum err add_left(void *list, const char *hash, const char *path)
{
    json_t *row;
    (void)hash;
    TRY(read_left(&row, path));
    return row ? insert(list, row) : OK;
}

/* Adds the rows of left. */
static enum err merge(json_t *list, const json_t *left)
{
    size_t i;
    json_t *row;
    json_array_foreach(left, i, row) TRY(replace(list, json_incref(row)));
    return OK;
}

/* Results are removed from cells/ after they are listed, so none is missed if cells/ is read
 * first. */
static enum err read_all(json_t **out, const char *dir)
{
    enum err err = OK;
    char *cells = NULL;
    json_t *list = NULL, *left = json_array();
    FAIL_IF(!left, ERR_MEMORY, "out of memory for results");
    TRY_OUT(file_join(&cells, dir, "cells"));
    TRY_OUT(each_left(cells, add_left, left));
    TRY_OUT(read_list(&list, dir));
    TRY_OUT(merge(list, left));
    *out = list;
    list = NULL;
out:
    json_decref(list);
    json_decref(left);
    mem_free(cells);
    return err;
}

enum err sweep_results_read(json_t **out, const char *dir)
{
    char *path = NULL;
    TRY(read_all(out, dir));
    enum err err = file_join(&path, dir, SWEEP_LIST);
    if (!err && !json_array_size(*out) && !file_exists(path))
        err = err_set(ERR_NOT_FOUND, __FILE__, __LINE__, "%s: no such file", path);
    mem_free(path);
    if (err) {
        json_decref(*out);
        *out = NULL;
    }
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
    TRY(file_join(&path, s->out_dir, SWEEP_LIST));
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

static enum err write_csv(const struct sweep *s)
{
    char *path = NULL;
    TRY(file_join(&path, s->out_dir, "results.csv"));
    const enum err err = sweep_columns_csv(path, s->results);
    mem_free(path);
    return err;
}

static enum err write_result(const struct sweep *s, const struct sweep_run *run,
                             const json_t *result, const char *suffix)
{
    char *path = NULL;
    char *text = json_text(result, JSON_COMPACT | JSON_REAL_PRECISION(17));
    FAIL_IF(!text, ERR_MEMORY, "out of memory for the result");
    enum err err = sweep_path(&path, s, run, suffix);
    if (!err)
        err = file_write_all(path, text, strlen(text));
    free(text);
    mem_free(path);
    return err;
}

enum err sweep_results_leave(const struct sweep *s, const struct sweep_run *run,
                             const json_t *result)
{
    return write_result(s, run, result, ".json");
}

enum err sweep_results_keep(const struct sweep *s, const struct sweep_run *run,
                            const json_t *result)
{
    return write_result(s, run, result, ".part");
}

enum remains { ARTIFACT, STATE, FILES };

/* Removes one of a cell's paths. */
static void remove_path(const char *path, enum remains kind)
{
    if (kind == FILES) {
        unlink(path);
        (void)file_remove_dead_temps(path);
    } else if (kind == STATE ? state_discard(path) : outdir_remove(path)) {
        log_warn("%s: cannot remove: %s", path, err_text());
    }
}

/* Removes what a listed cell needs no longer. --keep keeps its artifact, or else its state. */
static void remove_files(const struct sweep *s, const char *hash)
{
    static const char *const suffix[] = {"",        ".state",      ".json", ".part",
                                         ".failed", SWEEP_ANSWERS, ".lock"};
    bool keep = s->settings.keep;
    for (size_t i = 0; i < ARRAY_LEN(suffix); i++) {
        char *path = NULL;
        struct sweep_run run = {.done = true};
        snprintf(run.hash, sizeof(run.hash), "%s", hash);
        if (sweep_path(&path, s, &run, suffix[i]))
            continue;
        const enum remains kind = i < FILES ? (enum remains)i : FILES;
        if (!keep || kind == FILES)
            remove_path(path, kind);
        else if (kind == ARTIFACT && file_is_dir(path))
            keep = false;
        err_clear();
        mem_free(path);
    }
}

/* Lists a result. The list is written first and the cell's files are removed afterwards, so
 * a kill in between loses nothing. */
static enum err take(struct sweep *s, const char *hash, const char *path)
{
    json_t *row;
    TRY(read_left(&row, path));
    FAIL_IF(!row, ERR_NOT_FOUND, "%s: no such file", path);
    TRY(replace(s->results, row));
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

/* Takes over cells/HASH.json of a process that ended, or was killed, before it was listed. */
static enum err take_left(void *ctx, const char *hash, const char *path)
{
    return take(ctx, hash, path);
}

static enum err take_all_left(struct sweep *s)
{
    char *cells = NULL;
    TRY(file_join(&cells, s->out_dir, "cells"));
    const enum err err = each_left(cells, take_left, s);
    mem_free(cells);
    return err;
}

/* The cells of a killed sweep are about to end, and hold its lock until then. */
static enum err take_lock(struct sweep *s, int tenths)
{
    char *path = NULL;
    TRY(file_join(&path, s->out_dir, SWEEP_LOCK));
    const enum err err = lock_take(&s->lock, path, "this sweep", tenths);
    mem_free(path);
    return err;
}

enum err sweep_results_again(struct sweep *s)
{
    json_t *list;
    TRY(read_all(&list, s->out_dir));
    json_decref(s->results);
    s->results = list;
    return OK;
}

enum err sweep_results_join(struct sweep *s)
{
    if (take_lock(s, JOIN_TENTHS)) {
        log_info("%s; it lists the result when it is run again", err_text());
        err_clear();
        return sweep_results_again(s);
    }
    enum err err = sweep_results_again(s);
    if (!err)
        err = take_all_left(s);
    lock_release(&s->lock);
    return err;
}

/* Says what there is of OUT before it is made. */
static enum sweep_made missing(const char *out_dir)
{
    if (!file_exists(out_dir))
        return SWEEP_MADE_OUT;
    return sweep_place_is_empty(out_dir) ? SWEEP_MADE_CELLS : SWEEP_MADE_NOTHING;
}

void sweep_results_undo(struct sweep *s)
{
    char *cells = NULL, *lock = NULL;
    if (s->made != SWEEP_MADE_NOTHING && !file_join(&cells, s->out_dir, "cells") &&
        !file_join(&lock, s->out_dir, SWEEP_LOCK) && !rmdir(cells) && !unlink(lock) &&
        s->made == SWEEP_MADE_OUT)
        rmdir(s->out_dir);
    mem_free(cells);
    mem_free(lock);
}

enum err sweep_results_open(struct sweep *s)
{
    const struct sweep_settings *own = &s->settings;
    const bool alone = !own->plan_only && !own->share;
    s->made = alone ? missing(s->out_dir) : SWEEP_MADE_NOTHING;
    TRY(own->plan_only ? sweep_place_check(s->out_dir) : sweep_place_make(s->out_dir));
    if (own->plan_only || own->share)
        return sweep_results_again(s);
    TRY(take_lock(s, LOCK_TENTHS));
    TRY(sweep_results_again(s));
    return take_all_left(s);
}

void sweep_results_close(struct sweep *s)
{
    json_decref(s->results);
    s->results = NULL;
    lock_release(&s->lock);
}

const json_t *sweep_results_find(const struct sweep *s, const struct sweep_run *run)
{
    size_t i;
    json_t *row;
    json_array_foreach(s->results, i, row)
    {
        if (json_equal(json_object_get(row, "identity"), run->identity))
            return row;
    }
    return NULL;
}

enum err sweep_results_begun(json_t **out, const struct sweep *s,
                             const struct sweep_run *run)
{
    char *path = NULL;
    *out = NULL;
    TRY(sweep_path(&path, s, run, ".part"));
    const enum err err = file_exists(path) ? read_left(out, path) : OK;
    mem_free(path);
    TRY(err);
    if (*out && !json_equal(json_object_get(*out, "identity"), run->identity)) {
        json_decref(*out);
        *out = NULL;
    }
    if (!*out)
        *out = json_deep_copy(sweep_results_find(s, run));
    return OK;
}

bool sweep_results_has(const struct sweep *s, const struct sweep_run *run)
{
    const json_t *row = sweep_results_find(s, run);
    return row && sweep_measures_count(row, run) == run->n_asked;
}
