/* SPDX-License-Identifier: MIT
 *
 * Runs the cells of a sweep in processes. Each cell is a fork that inherits the tokenized
 * texts, so memory holds them once. The parent opens no device and starts no threads before
 * it forks. */
#include "kernels/base/log.h"
#include "tools/cli/child.h"
#include "tools/cli/stop.h"
#include "tools/sweep/sweep.h"
#include "tools/sweep/sweep_results.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

struct crew {
    struct sweep *s;
    pid_t pid[SWEEP_PARALLEL_MAX];
    int cell[SWEEP_PARALLEL_MAX];
    int n, next, failed, interrupted;
    enum err first; /* first failure, and its cell */
    int first_cell;
    bool told; /* the processes were asked to stop */
};

/* Arguments of a cell's process. */
struct order {
    struct sweep *s;
    int cell;
};

static enum err cell_process(void *ctx)
{
    const struct order *o = ctx;
    json_t *result = NULL;
    enum err err = sweep_cell_run(&result, o->s, o->cell);
    if (!err)
        err = sweep_results_leave(o->s, &o->s->run[o->cell], result);
    json_decref(result);
    if (err && !*err_text())
        err_set(err, __FILE__, __LINE__, "%s", err_name(err));
    return err ? err_add(err, "cell '%s': ", o->s->plan.cell[o->cell].name) : OK;
}

/* Cells [0, end) of this execution. */
static int wanted(const struct sweep *s, int end)
{
    int n = 0;
    for (int i = 0; i < end; i++)
        n += !s->run[i].skip;
    return n;
}

static enum err start(struct crew *c, int i)
{
    struct sweep *s = c->s;
    struct order o = {s, i};
    log_info("cell %d of %d: %s", wanted(s, i + 1), wanted(s, s->plan.n_cells),
             s->plan.cell[i].name);
    /* Runs in the cell's process. It dies with the parent, so that the next run finds the
     * states unlocked. A state can be resumed from any instant. */
    TRY(child_start(&c->pid[c->n], cell_process, &o));
    c->cell[c->n++] = i;
    return OK;
}

static void say_result(const struct sweep *s, int i)
{
    const size_t n = json_array_size(s->results);
    const json_t *row = json_array_get(s->results, n - 1);
    log_info("%s: perplexity %.4f, %.3f bits per weight, %.3f bits per cache element",
             s->plan.cell[i].name, json_number_value(json_object_get(row, "ppl")),
             json_number_value(json_object_get(row, "weight_bits")),
             json_number_value(json_object_get(row, "kv_bits")));
}

/* Reports the result of a finished process. A failed cell has logged its message, and the
 * other cells continue. */
static void failed(struct crew *c, int i, enum err err, const char *why)
{
    const char *name = c->s->plan.cell[i].name;
    if (why)
        log_error("cell '%s': %s", name, why);
    log_warn("cell '%s': %s; its state is kept", name, err_name(err));
    if (!c->failed++) {
        c->first = err;
        c->first_cell = i;
    }
    err_clear();
}

/* Logs why a process was killed, since it could not log a message itself. */
static void ended_badly(struct crew *c, int i, const struct child_end *end)
{
    char why[128];
    if (end->err == ERR_STOPPED) {
        c->interrupted++;
        log_warn("cell '%s': interrupted; its state is kept, and the same command resumes "
                 "it",
                 c->s->plan.cell[i].name);
        return;
    }
    snprintf(why, sizeof(why), "its process %s", end->why);
    failed(c, i, end->err, end->told ? NULL : why);
}

static void finish(struct crew *c, int k, const struct child_end *end)
{
    const int i = c->cell[k];
    c->n--;
    c->pid[k] = c->pid[c->n];
    c->cell[k] = c->cell[c->n];
    if (end->err) {
        ended_badly(c, i, end);
        return;
    }
    const enum err err = sweep_results_take(c->s, &c->s->run[i]);
    if (err) {
        failed(c, i, err, err_text());
        return;
    }
    c->s->run[i].done = true;
    say_result(c->s, i);
}

/* Polls the running processes once. */
static void reap(struct crew *c)
{
    if (stop_asked(NULL) && !c->told) {
        for (int k = 0; k < c->n; k++)
            kill(c->pid[k], SIGTERM);
        c->told = true;
    }
    for (int k = c->n - 1; k >= 0; k--) {
        struct child_end end;
        if (child_ended(&end, c->pid[k]))
            finish(c, k, &end);
    }
    if (c->n)
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
}

static enum err start_more(struct crew *c)
{
    const struct sweep *s = c->s;
    while (c->n < s->parallel && c->next < s->plan.n_cells) {
        const int i = c->next++;
        if (!s->run[i].done && !s->run[i].skip)
            TRY(start(c, i));
    }
    return OK;
}

/* Returns the error of the whole sweep: an interruption, failed cells, or interrupted
 * cells. */
static enum err outcome(const struct crew *c)
{
    const struct sweep *s = c->s;
    FAIL_IF(stop_asked(NULL), ERR_STOPPED, "interrupted; %s has the finished cells",
            s->out_dir);
    if (c->failed)
        err_set(c->first, __FILE__, __LINE__, "cell '%s' failed: its message is above",
                s->plan.cell[c->first_cell].name);
    if (c->failed > 1)
        err_add(c->first, "%d cells failed; ", c->failed);
    FAIL_IF(!c->failed && c->interrupted, ERR_STOPPED,
            "%d cells were interrupted; %s has the finished ones", c->interrupted,
            s->out_dir);
    return c->first;
}

enum err sweep_execute(struct sweep *s)
{
    struct crew c = {.s = s};
    enum err err = OK;
    stop_watch(STOP_AT_STEP);
    do {
        if (!err && !stop_asked(NULL))
            err = start_more(&c);
        reap(&c);
    } while (c.n || (!err && !stop_asked(NULL) && c.next < s->plan.n_cells));
    stop_watch(STOP_AT_ONCE);
    TRY(err);
    return outcome(&c);
}
