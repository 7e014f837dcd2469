/* SPDX-License-Identifier: MIT
 *
 * Prints how far a sweep is, from the files of its cells. */
#include "data/json.h"
#include "data/tokenizer/tok_text.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tools/state/state.h"
#include "tools/sweep/sweep_columns.h"
#include "tools/sweep/sweep_measures.h"
#include "tools/sweep/sweep_results.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_MAX 4096
#define VERIFY_FAILED "verification failed: "

static enum err exists(bool *yes, const struct sweep *s, const struct sweep_run *run,
                       const char *suffix)
{
    char *path = NULL;
    TRY(sweep_path(&path, s, run, suffix));
    *yes = file_exists(path);
    mem_free(path);
    return OK;
}

/* How far a cell is. */
struct progress {
    const char *status;     /* "done", "failed", "begun" or "to do" */
    int64_t done, n_blocks; /* its finished blocks of n_blocks; 0: it has no state */
    /* Its further measures. -1: none is asked, its perplexity is not known, or it is done. */
    int measures;
    /* Why its last run failed, with a NUL; empty: it did not fail. */
    struct text message;
};

/* A state may be removed at any moment. */
static enum err read_blocks(struct progress *p, const struct sweep *s,
                            const struct sweep_run *run)
{
    struct state *state = NULL;
    char *path = NULL;
    TRY(sweep_path(&path, s, run, ".state"));
    if (!state_open_read(&state, path, NULL)) {
        p->done = state_done(state);
        p->n_blocks = state_blocks(state);
    }
    err_clear();
    state_close(&state);
    mem_free(path);
    return OK;
}

static enum err read_measures(struct progress *p, const struct sweep *s,
                              const struct sweep_run *run)
{
    json_t *row = NULL;
    if (run->n_asked)
        TRY(sweep_results_begun(&row, s, run));
    if (row)
        p->measures = sweep_measures_count(row, run);
    json_decref(row);
    return OK;
}

/* A message names files, whose names may be any bytes, but JSON is UTF-8. */
static enum err read_message(struct progress *p, const struct sweep *s,
                             const struct sweep_run *run)
{
    char *path = NULL, *text = NULL;
    size_t n;
    enum err err = OK;
    TRY(sweep_path(&path, s, run, ".failed"));
    if (file_read_all(&text, &n, path, MESSAGE_MAX))
        err_clear();
    else
        err = utf8_repair(&p->message, text, strcspn(text, "\n"));
    if (text && !err)
        err = text_add(&p->message, "", 1);
    mem_free(text);
    mem_free(path);
    return err;
}

/* A cell with a result is not run again, even if its artifact is not to be used. */
static enum err read_verdict(struct progress *p, const struct sweep *s,
                             const struct sweep_run *run)
{
    const char *fault = sweep_fault_of(sweep_results_find(s, run));
    if (!fault)
        return OK;
    p->status = "failed";
    TRY(text_add(&p->message, VERIFY_FAILED, sizeof(VERIFY_FAILED) - 1));
    return text_add(&p->message, fault, strlen(fault) + 1);
}

/* Reads how far a cell is. Release p->message whatever the result. */
static enum err read_progress(struct progress *p, const struct sweep *s,
                              const struct sweep_run *run)
{
    bool failed, begun;
    *p = (struct progress){.status = "done", .measures = -1};
    if (run->done)
        return read_verdict(p, s, run);
    TRY(exists(&failed, s, run, ".failed"));
    TRY(exists(&begun, s, run, ".lock"));
    p->status = failed ? "failed" : begun ? "begun" : "to do";
    TRY(read_blocks(p, s, run));
    TRY(read_measures(p, s, run));
    return failed ? read_message(p, s, run) : OK;
}

static void print_cell(const struct sweep *s, int i, const struct progress *p)
{
    const struct sweep_run *run = &s->run[i];
    printf("%-8s %s  %s", p->status, run->hash, s->plan.cell[i].name);
    if (p->n_blocks)
        printf(" (%" PRId64 " of %" PRId64 " blocks)", p->done, p->n_blocks);
    if (p->measures >= 0)
        printf(" (%d of %d further measures)", p->measures, run->n_asked);
    if (p->message.n)
        printf(": %s", p->message.p);
    printf("\n");
}

enum err sweep_print_plan(const struct sweep *s)
{
    for (int i = 0; i < s->plan.n_cells; i++) {
        struct progress p;
        const enum err err = read_progress(&p, s, &s->run[i]);
        if (!err)
            print_cell(s, i, &p);
        text_free(&p.message);
        TRY(err);
    }
    return OK;
}

void sweep_print_cells(const struct sweep *s)
{
    for (int i = 0; i < s->plan.n_cells; i++)
        if (sweep_is_open(s, i))
            printf("%d\t%s\t%s\n", i + 1, s->run[i].hash, s->plan.cell[i].name);
}

/* Returns null if there is nothing to count. */
static json_t *count_json(bool any, int64_t done, int64_t total)
{
    return any ? json_pack("{s:I, s:I}", "done", (json_int_t)done, "total",
                           (json_int_t)total)
               : json_null();
}

static json_t *cell_json(const struct sweep *s, int i, const struct progress *p)
{
    const struct sweep_run *run = &s->run[i];
    return json_pack("{s:i, s:s, s:s, s:s, s:o, s:o, s:s?}", "cell", i + 1, "hash",
                     run->hash, "name", s->plan.cell[i].name, "status", p->status, "blocks",
                     count_json(p->n_blocks > 0, p->done, p->n_blocks), "measures",
                     count_json(p->measures >= 0, p->measures, run->n_asked), "message",
                     p->message.p);
}

enum err sweep_print_json(const struct sweep *s, bool open_only)
{
    enum err err = OK;
    json_t *list = json_array();
    for (int i = 0; i < s->plan.n_cells && !err; i++) {
        struct progress p;
        if (open_only && !sweep_is_open(s, i))
            continue;
        err = read_progress(&p, s, &s->run[i]);
        if (!err)
            json_array_append_new(list, cell_json(s, i, &p));
        text_free(&p.message);
    }
    if (!err)
        err = json_print(list, JSON_COMPACT);
    json_decref(list);
    return err;
}
