/* SPDX-License-Identifier: MIT
 *
 * The processes of a sweep. A cell is a fork that inherits the tokenized texts, so that
 * they are there once however many cells run; the parent opens no device and starts no
 * threads before. */
#include "kernels/base/log.h"
#include "tools/child.h"
#include "tools/stop.h"
#include "tools/sweep.h"
#include "tools/sweep_results.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PARALLEL_MAX 64

struct crew {
    struct sweep *s;
    pid_t pid[PARALLEL_MAX];
    int cell[PARALLEL_MAX];
    int n, next, failed;
    enum err first;
    bool told; /* the processes were asked to stop */
};

static int cell_process(struct sweep *s, int i)
{
    json_t *result = NULL;
    enum err err = sweep_cell_run(&result, s, i);
    if (!err)
        err = sweep_results_leave(s, &s->run[i], result);
    json_decref(result);
    if (err && err != ERR_STOPPED)
        log_error("cell '%s': %s", s->plan.cell[i].name,
                  *err_text() ? err_text() : err_name(err));
    return err; /* the parent reads the code itself */
}

/* Cells [0, end) that this execution is about. */
static int wanted(const struct sweep *s, int end)
{
    int n = 0;
    for (int i = 0; i < end; i++)
        n += !s->run[i].idle;
    return n;
}

static enum err start(struct crew *c, int i)
{
    struct sweep *s = c->s;
    const pid_t parent = getpid();
    log_info("cell %d of %d: %s", wanted(s, i + 1), wanted(s, s->plan.n_cells),
             s->plan.cell[i].name);
    fflush(NULL);
    const pid_t pid = fork();
    FAIL_IF(pid < 0, ERR_IO, "cannot start a process: %s", strerror(errno));
    if (pid == 0) {
        /* A cell dies with its sweep, so that the next run finds the states free; a state
         * resumes from any instant. */
        child_follow(parent);
        const int code = cell_process(s, i);
        fflush(NULL);
        _exit(code);
    }
    c->pid[c->n] = pid;
    c->cell[c->n++] = i;
    return OK;
}

static void say_result(const struct sweep *s, int i)
{
    const size_t n = json_array_size(s->results);
    const json_t *row = json_array_get(s->results, n - 1);
    log_info("%s: perplexity %.4f, %.3f bits a weight, %.3f bits a cache element",
             s->plan.cell[i].name, json_number_value(json_object_get(row, "ppl")),
             json_number_value(json_object_get(row, "weight_bits")),
             json_number_value(json_object_get(row, "kv_bits")));
}

static void finish(struct crew *c, int k, int status)
{
    const int i = c->cell[k];
    enum err err = child_result(status);
    c->n--;
    c->pid[k] = c->pid[c->n];
    c->cell[k] = c->cell[c->n];
    if (!err)
        err = sweep_results_take(c->s, &c->s->run[i]);
    if (!err) {
        c->s->run[i].done = true;
        say_result(c->s, i);
        return;
    }
    if (err != ERR_STOPPED)
        c->failed++;
    if (!c->first)
        c->first =
            err_set(err, __FILE__, __LINE__, "cell '%s' failed: its message is above",
                    c->s->plan.cell[i].name);
    log_warn("cell '%s': %s; its state stays", c->s->plan.cell[i].name, err_name(err));
}

/* One look at the running processes. */
static void reap(struct crew *c)
{
    if (stop_asked(NULL) && !c->told) {
        for (int k = 0; k < c->n; k++)
            kill(c->pid[k], SIGTERM);
        c->told = true;
    }
    for (int k = c->n - 1; k >= 0; k--) {
        int status;
        if (waitpid(c->pid[k], &status, WNOHANG) == c->pid[k])
            finish(c, k, status);
    }
    if (c->n)
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
}

static enum err start_more(struct crew *c)
{
    const struct sweep *s = c->s;
    while (c->n < s->parallel && c->next < s->plan.n_cells) {
        const int i = c->next++;
        if (!s->run[i].done && !s->run[i].idle)
            TRY(start(c, i));
    }
    return OK;
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
    if (stop_asked(NULL)) {
        err_clear();
        FAIL(ERR_STOPPED, "interrupted; %s has what is done", s->out_dir);
    }
    if (c.failed > 1)
        return err_add(c.first, "%d cells failed; ", c.failed);
    return c.first;
}
