/* SPDX-License-Identifier: MIT
 *
 * Prints how far a sweep is, from the files of its cells. */
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/state/state.h"
#include "tools/sweep/sweep_measures.h"
#include "tools/sweep/sweep_results.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 4096

static enum err exists(bool *yes, const struct sweep *s, const struct sweep_run *run,
                       const char *suffix)
{
    char *path = NULL;
    TRY(sweep_path(&path, s, run, suffix));
    *yes = file_exists(path);
    mem_free(path);
    return OK;
}

/* Prints " (3 of 30 blocks)" if the cell has a state. It may be removed at any moment. */
static enum err print_blocks(const struct sweep *s, const struct sweep_run *run)
{
    struct state *state = NULL;
    char *path = NULL;
    TRY(sweep_path(&path, s, run, ".state"));
    if (!state_open_read(&state, path, NULL))
        printf(" (%" PRId64 " of %" PRId64 " blocks)", state_done(state),
               state_blocks(state));
    err_clear();
    state_close(&state);
    mem_free(path);
    return OK;
}

/* Prints " (2 of 5 further measures)" if the cell has its perplexity. */
static enum err print_measures(const struct sweep *s, const struct sweep_run *run)
{
    json_t *row;
    TRY(sweep_results_begun(&row, s, run));
    if (row)
        printf(" (%d of %d further measures)", sweep_measures_count(row, run),
               run->n_asked);
    json_decref(row);
    return OK;
}

static enum err print_message(const struct sweep *s, const struct sweep_run *run)
{
    char *path = NULL, *text = NULL;
    size_t n;
    TRY(sweep_path(&path, s, run, ".failed"));
    if (!file_read_all(&text, &n, path, MESSAGE_MAX))
        printf(": %.*s", (int)strcspn(text, "\n"), text);
    err_clear();
    mem_free(text);
    mem_free(path);
    return OK;
}

/* Writes how far a cell is, in a word. */
static enum err status_of(const char **word, bool *failed, const struct sweep *s,
                          const struct sweep_run *run)
{
    bool begun;
    TRY(exists(failed, s, run, ".failed"));
    TRY(exists(&begun, s, run, ".lock"));
    *word = run->done ? "done" : *failed ? "failed" : begun ? "begun" : "to do";
    return OK;
}

static enum err print_cell(const struct sweep *s, int i)
{
    const struct sweep_run *run = &s->run[i];
    const char *word;
    bool failed;
    TRY(status_of(&word, &failed, s, run));
    printf("%-8s %s  %s", word, run->hash, s->plan.cell[i].name);
    if (!run->done)
        TRY(print_blocks(s, run));
    if (!run->done && run->n_asked)
        TRY(print_measures(s, run));
    if (!run->done && failed)
        TRY(print_message(s, run));
    printf("\n");
    return OK;
}

enum err sweep_print_plan(const struct sweep *s)
{
    for (int i = 0; i < s->plan.n_cells; i++)
        TRY(print_cell(s, i));
    return OK;
}

void sweep_print_cells(const struct sweep *s)
{
    for (int i = 0; i < s->plan.n_cells; i++)
        if (!s->run[i].done)
            printf("%d\t%s\t%s\n", i + 1, s->run[i].hash, s->plan.cell[i].name);
}

enum err sweep_print_json(const struct sweep *s, bool undone_only)
{
    enum err err = OK;
    json_t *list = json_array();
    for (int i = 0; i < s->plan.n_cells; i++) {
        const char *word;
        bool failed;
        if (undone_only && s->run[i].done)
            continue;
        TRY_OUT(status_of(&word, &failed, s, &s->run[i]));
        json_array_append_new(list, json_pack("{s:i, s:s, s:s, s:s}", "cell", i + 1, "hash",
                                              s->run[i].hash, "name", s->plan.cell[i].name,
                                              "status", word));
    }
    err = json_print(list, JSON_COMPACT);
out:
    json_decref(list);
    return err;
}
