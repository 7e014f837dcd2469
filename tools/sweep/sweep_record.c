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
#define RECORD_LIMIT ((size_t)1 << 20)

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

static json_t *cell_names(const struct sweep *s)
{
    json_t *list = json_array();
    for (int i = 0; i < s->plan.n_cells; i++)
        json_array_append_new(list, json_string(s->plan.cell[i].name));
    return list;
}

static enum err write_record(const struct sweep *s, const char *path)
{
    json_t *o =
        json_pack("{s:s*, s:s*, s:O*, s:o}", "title", s->plan.title, "command",
                  s->settings.command, "claims", s->plan.claims, "cells", cell_names(s));
    char *text = json_text(o, JSON_INDENT(1));
    json_decref(o);
    FAIL_IF(!text, ERR_MEMORY, "out of memory for " RECORD_NAME);
    const enum err err = file_write_all(path, text, strlen(text));
    free(text);
    return err;
}

enum err sweep_record_write(const struct sweep *s, bool replace)
{
    char *path = NULL;
    TRY(file_join(&path, s->out_dir, RECORD_NAME));
    const enum err err = replace || !file_exists(path) ? write_record(s, path) : OK;
    mem_free(path);
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
