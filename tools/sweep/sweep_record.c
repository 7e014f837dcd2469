/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_record.h"

#include "config.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/cli/hub_cache.h"
#include "tools/cli/opt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

#define RECORD_NAME "sweep.json"
#define RECORD_LIMIT ((size_t)16 << 20)

/* Writes the processor's name, or the architecture where Linux has no name for it. */
static void machine_name(char *out, size_t n)
{
    char line[512];
    struct utsname u;
    FILE *f = fopen("/proc/cpuinfo", "re");
    snprintf(out, n, "%s", uname(&u) ? "unknown" : u.machine);
    while (f && fgets(line, sizeof(line), f)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(out, n, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    if (f)
        fclose(f);
}

static json_t *file_names(const struct recipe_files *files)
{
    json_t *list = json_array();
    for (int i = 0; i < files->n; i++) {
        char *text = NULL;
        if (recipe_files_typed(&text, files, i))
            err_clear();
        else
            json_array_append_new(list, json_string(text));
        mem_free(text);
    }
    return list;
}

/* Returns the model's name on the hub if it lies in its cache, else the path. */
static json_t *model_name(const char *dir)
{
    char *name = NULL;
    if (hub_name_of(&name, dir))
        err_clear();
    json_t *text = json_string(name ? name : dir);
    mem_free(name);
    return text;
}

json_t *sweep_record_cell(const struct sweep *s, const struct sweep_run *run)
{
    const struct recipe_files none = {0};
    char machine[256], when[32];
    struct tm utc;
    const time_t now = time(NULL);
    machine_name(machine, sizeof(machine));
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    return json_pack("{s:s, s:s, s:s, s:I, s:s, s:o, s:o, s:o}", "finished", when,
                     "version", WKVQ_VERSION, "machine", machine, "cores",
                     (json_int_t)sweep_cell_threads(s, &run->recipe), "device",
                     opt_choice_name(CHOICES_DEVICE, run->recipe.device), "model",
                     model_name(s->model_dir), "data",
                     file_names(run->text < 0 ? &none : &run->recipe.data), "eval",
                     file_names(&s->eval_data));
}

json_t *sweep_record_set(const struct set_list *set)
{
    json_t *list = json_array();
    for (int i = 0; list && i < set->n; i++)
        json_array_append_new(list, json_string(set->item[i]));
    return list;
}

json_t *sweep_record_cells(const struct sweep *s)
{
    json_t *list = json_array();
    for (int i = 0; list && i < s->plan.n_cells; i++) {
        const struct sweep_cell *cell = &s->plan.cell[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:s, s:o}", "name", cell->name, "hash",
                                        s->run[i].hash, "spec", s->run[i].spec, "set",
                                        sweep_record_set(&cell->set)));
    }
    return list;
}

static json_t *record(const struct sweep *s)
{
    return json_pack("{s:s*, s:s*, s:O*, s:o}", "title", s->plan.title, "command",
                     s->settings.command, "claims", s->plan.claims, "cells",
                     sweep_record_cells(s));
}

static enum err write_record(const json_t *o, const char *path)
{
    char *text = json_text(o, JSON_INDENT(1));
    FAIL_IF(!text, ERR_MEMORY, "out of memory for " RECORD_NAME);
    const enum err err = file_write_all(path, text, strlen(text));
    free(text);
    return err;
}

/* Leaves of a record what the tasks of one sweep have in common: neither their commands nor the
 * hashes, which may depend on the machine. */
static json_t *common(const json_t *record)
{
    size_t i;
    json_t *o = json_deep_copy(record), *cell;
    json_object_del(o, "command");
    json_array_foreach(json_object_get(o, "cells"), i, cell) json_object_del(cell, "hash");
    return o;
}

/* A damaged record is another one. */
static bool is_same(const char *dir, const json_t *record)
{
    json_t *old = NULL;
    if (sweep_record_read(&old, dir))
        err_clear();
    json_t *a = common(old), *b = common(record);
    const bool same = json_equal(a, b);
    json_decref(a);
    json_decref(b);
    json_decref(old);
    return same;
}

enum err sweep_record_write(const struct sweep *s, bool replace)
{
    char *path = NULL;
    TRY(file_join(&path, s->out_dir, RECORD_NAME));
    json_t *o = record(s);
    const enum err err = replace || !is_same(s->out_dir, o) ? write_record(o, path) : OK;
    json_decref(o);
    mem_free(path);
    return err;
}

/* --- cells of the latest run -------------------------------------------------------- */

static json_t *find(const json_t *rows, const json_t *cell, const char *key)
{
    size_t i;
    json_t *row;
    const json_t *want = json_object_get(cell, key);
    json_array_foreach(rows, i, row)
    {
        if (json_equal(json_object_get(row, key), want))
            return row;
    }
    return NULL;
}

/* Returns a cell's result. On a machine that resolves run.compute otherwise than the one that wrote
 * the list, its hash is another, but what it was to compute is the same. */
static json_t *result_of(const json_t *rows, const json_t *cell)
{
    json_t *row = find(rows, cell, "hash");
    return row ? row : find(rows, cell, "spec");
}

/* Adds a cell's result as the list describes the cell. */
static enum err add_listed(json_t *now, json_t *row, const json_t *cells, size_t i)
{
    json_t *cell = json_array_get(cells, i), *copy = json_copy(row);
    json_object_set_new(copy, "cell", json_integer((json_int_t)i + 1));
    for (int k = 0; k < 2; k++) {
        const char *key = k ? "set" : "name";
        if (json_object_get(cell, key))
            json_object_set(copy, key, json_object_get(cell, key));
    }
    FAIL_IF(json_array_append_new(now, copy), ERR_MEMORY, "out of memory for results");
    return OK;
}

/* A listed result is a copy with the members of the original. */
static bool is_listed(const json_t *now, const json_t *row)
{
    size_t i;
    json_t *one;
    json_array_foreach(now, i, one)
    {
        if (json_object_get(one, "identity") == json_object_get(row, "identity"))
            return true;
    }
    return false;
}

static enum err split(json_t *now, json_t *earlier, const json_t *cells, const json_t *rows)
{
    json_t *row;
    FAIL_IF(!now || !earlier, ERR_MEMORY, "out of memory for results");
    if (!json_is_object(json_array_get(cells, 0))) {
        FAIL_IF(json_array_extend(now, (json_t *)(uintptr_t)rows), ERR_MEMORY,
                "out of memory for results");
        return OK;
    }
    for (size_t i = 0; i < json_array_size(cells); i++)
        if ((row = result_of(rows, json_array_get(cells, i))))
            TRY(add_listed(now, row, cells, i));
    for (size_t i = 0; i < json_array_size(rows); i++) {
        row = json_array_get(rows, i);
        FAIL_IF(!is_listed(now, row) && json_array_append(earlier, row), ERR_MEMORY,
                "out of memory for results");
    }
    return OK;
}

enum err sweep_record_split(json_t **now, json_t **earlier, const json_t *cells,
                            const json_t *rows)
{
    *now = json_array();
    *earlier = json_array();
    const enum err err = split(*now, *earlier, cells, rows);
    if (err) {
        json_decref(*now);
        json_decref(*earlier);
        *now = *earlier = NULL;
    }
    return err;
}

enum err sweep_record_read(json_t **out, const char *dir)
{
    char *path = NULL;
    *out = NULL;
    TRY(file_join(&path, dir, RECORD_NAME));
    enum err err = file_exists(path) ? json_load_file_strict(out, path, RECORD_LIMIT) : OK;
    if (*out && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        err = err_set(ERR_FORMAT, __FILE__, __LINE__, "%s: holds no object", path);
    }
    mem_free(path);
    return err;
}
