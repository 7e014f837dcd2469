/* SPDX-License-Identifier: MIT
 *
 * Runs the cells of a sweep in processes. Each cell is a fork that inherits the tokenized
 * texts, so memory holds them once. The parent opens no device and starts no threads before
 * it forks. */
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/child.h"
#include "tools/cli/stop.h"
#include "tools/sweep/sweep.h"
#include "tools/sweep/sweep_columns.h"
#include "tools/sweep/sweep_gpus.h"
#include "tools/sweep/sweep_record.h"
#include "tools/sweep/sweep_results.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* The cells of a sweep that was killed are about to end. A cell that another process works on is
 * left to it, and looked at again after all others, for longer than at first. */
#define AGAIN_SECONDS 5
/* A batch system may start a cell again while the lock of its node's last process lives on, for
 * as long as a file server keeps the locks of a client that it lost. */
#define REQUEUED_TENTHS 1200

struct crew {
    struct sweep *s;
    pid_t pid[SWEEP_PARALLEL_MAX];
    int cell[SWEEP_PARALLEL_MAX];
    int slot[SWEEP_PARALLEL_MAX]; /* different for cells that run at the same time */
    int n, next, failed, interrupted;
    /* [s->plan.n_cells], shared with the cells' processes: others work on these */
    bool *elsewhere;
    bool again;     /* only these are left */
    enum err first; /* first failure, and its cell */
    int first_cell;
    bool told; /* the processes were asked to stop */
};

/* Arguments of a cell's process. */
struct order {
    struct sweep *s;
    int cell;
    bool *elsewhere;         /* set if another process works on the cell */
    bool again;              /* the cell was looked at before */
    char gpu[SWEEP_GPU_MAX]; /* "": the process sees what its parent sees */
};

/* Keeps the message of a failed cell for --plan, or removes the one of its last run. */
static enum err note_failure(const struct sweep *s, int i, enum err err)
{
    char *path = NULL, *text = NULL;
    if (err == ERR_STOPPED || sweep_path(&path, s, &s->run[i], ".failed"))
        return err;
    if (!err)
        unlink(path);
    else if (!mem_strdup(&text, err_text())) {
        if (file_write_all(path, text, strlen(text)))
            log_warn("%s: cannot write the cell's message", path);
        err_set(err, __FILE__, __LINE__, "%s", text);
    }
    mem_free(text);
    mem_free(path);
    return err;
}

static enum err run_cell(struct sweep *s, int i)
{
    json_t *result = NULL;
    note_failure(s, i, OK);
    enum err err = sweep_cell_run(&result, s, i);
    if (!err)
        err = sweep_results_leave(s, &s->run[i], result);
    json_decref(result);
    if (err && !*err_text())
        err_set(err, __FILE__, __LINE__, "%s", err_name(err));
    return err ? note_failure(s, i, err) : OK;
}

/* The lock keeps two processes from running one cell. It also names cells in work. */
static enum err hold(struct lock *l, bool *held, const struct sweep *s, int i, int tenths)
{
    char *path = NULL;
    TRY(sweep_path(&path, s, &s->run[i], ".lock"));
    const enum err err = lock_try(l, held, path, "this cell", tenths);
    mem_free(path);
    return err;
}

/* Looks again for the result of a cell that is held, so nobody else can finish it meanwhile. */
static enum err is_finished(bool *yes, struct sweep *s, int i)
{
    TRY(sweep_results_again(s));
    *yes = sweep_results_has(s, &s->run[i]);
    return OK;
}

/* *had: another process has finished the cell. It may hold the lock still, until it has seen that
 * it cannot list the result beside this sweep. */
static enum err hold_or_find(struct lock *l, bool *held, bool *had, const struct order *o)
{
    enum err err = OK;
    for (int i = o->again ? AGAIN_SECONDS : 1; i > 0; i--) {
        *held = false;
        err_clear();
        TRY(is_finished(had, o->s, o->cell));
        if (*had)
            return OK;
        err = hold(l, held, o->s, o->cell, 10);
        if (!err || !*held)
            break;
    }
    return err ? err : is_finished(had, o->s, o->cell);
}

/* Says in the end who works on the cell: the error of its lock. */
static void leave_to_other(const struct order *o)
{
    const char *name = o->s->plan.cell[o->cell].name;
    if (o->again)
        log_warn("cell '%s': %s", name, err_text());
    else
        log_info("cell '%s': another process works on it; this sweep looks again after its "
                 "other cells",
                 name);
    err_clear();
    *o->elsewhere = true;
}

static enum err cell_process(void *ctx)
{
    const struct order *o = ctx;
    const char *name = o->s->plan.cell[o->cell].name;
    struct lock l = {.fd = -1};
    bool held, had = false;
    if (*o->gpu)
        setenv("CUDA_VISIBLE_DEVICES", o->gpu, 1);
    enum err err = hold_or_find(&l, &held, &had, o);
    if (err && held) {
        leave_to_other(o);
        return OK;
    }
    if (had)
        log_info("cell '%s': another process has finished it", name);
    else if (!err)
        err = run_cell(o->s, o->cell);
    lock_release(&l);
    return err ? err_add(err, "cell '%s': ", name) : OK;
}

/* Cells [0, end) of this execution. */
static int wanted(const struct sweep *s, int end)
{
    int n = 0;
    for (int i = 0; i < end; i++)
        n += !s->run[i].skip;
    return n;
}

/* Returns the lowest slot that no running cell has. */
static int free_slot(const struct crew *c)
{
    for (int slot = 0, k = 0;; slot++) {
        for (k = 0; k < c->n && c->slot[k] != slot; k++)
            ;
        if (k == c->n)
            return slot;
    }
}

static enum err start(struct crew *c, int i)
{
    struct sweep *s = c->s;
    struct order o = {s, i, &c->elsewhere[i], c->again, ""};
    c->elsewhere[i] = false;
    c->slot[c->n] = free_slot(c);
    if (s->parallel > 1 && s->run[i].recipe.device == DEVICE_CUDA)
        sweep_gpu(o.gpu, c->slot[c->n]);
    log_info("cell %d of %d: %s%s%s", wanted(s, i + 1), wanted(s, s->plan.n_cells),
             s->plan.cell[i].name, *o.gpu ? ", on GPU " : "", o.gpu);
    /* Runs in the cell's process. It dies with the parent, so that the next run finds the
     * states unlocked. A state can be resumed from any instant. */
    TRY(child_start(&c->pid[c->n], cell_process, &o));
    c->cell[c->n++] = i;
    return OK;
}

static void say_result(const struct sweep *s, int i)
{
    const json_t *row = sweep_results_find(s, &s->run[i]);
    log_info("%s: perplexity %.4f, %.3f bits per weight, %.3f bits per cache element",
             s->plan.cell[i].name, json_number_value(json_object_get(row, "ppl")),
             json_number_value(json_object_get(row, "weight_bits")),
             json_number_value(json_object_get(row, "kv_bits")));
}

/* Returns whether the cell left a state. */
static bool has_state(const struct crew *c, int i)
{
    char *path = NULL;
    if (sweep_path(&path, c->s, &c->s->run[i], ".state"))
        return false;
    const bool yes = file_is_dir(path);
    mem_free(path);
    return yes;
}

/* Reports the result of a finished process. A failed cell has logged its message, and the
 * other cells continue. */
static void failed(struct crew *c, int i, enum err err, const char *why)
{
    const char *name = c->s->plan.cell[i].name;
    if (why)
        log_error("cell '%s': %s", name, why);
    log_warn("cell '%s' failed%s", name, has_state(c, i) ? "; its state is kept" : "");
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
        log_warn("cell '%s': interrupted; the same command %s", c->s->plan.cell[i].name,
                 has_state(c, i) ? "resumes it from its state" : "runs it again");
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
    c->slot[k] = c->slot[c->n];
    if (end->err) {
        ended_badly(c, i, end);
        return;
    }
    if (c->elsewhere[i])
        return;
    const enum err err = sweep_results_take(c->s, &c->s->run[i]);
    if (err) {
        failed(c, i, err, err_text());
        return;
    }
    sweep_set_done(c->s, i);
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

/* Returns whether an earlier cell of this execution computes the result of cell i. */
static bool has_earlier(const struct sweep *s, int i)
{
    for (int k = 0; k < i; k++)
        if (!s->run[k].skip && !strcmp(s->run[k].hash, s->run[i].hash))
            return true;
    return false;
}

static enum err start_more(struct crew *c)
{
    const struct sweep *s = c->s;
    while (c->n < s->parallel && c->next < s->plan.n_cells) {
        const int i = c->next++;
        if (c->again ? c->elsewhere[i]
                     : !s->run[i].done && !s->run[i].skip && !has_earlier(s, i))
            TRY(start(c, i));
    }
    return OK;
}

static int count_elsewhere(const struct crew *c, int *last)
{
    int n = 0;
    for (int i = 0; i < c->s->plan.n_cells; i++) {
        n += c->elsewhere[i];
        *last = c->elsewhere[i] ? i : *last;
    }
    return n;
}

/* Returns whether cells are left to start. When no cell runs any more, those that others work on
 * are looked at once more. */
static bool is_left(struct crew *c)
{
    int last;
    if (c->n || c->next < c->s->plan.n_cells)
        return true;
    if (c->again || !count_elsewhere(c, &last))
        return false;
    c->again = true;
    c->next = 0;
    return true;
}

/* ERR_USAGE where other processes work on cells still. Each was named. */
static enum err left_to_others(const struct crew *c)
{
    int last = 0;
    const int n = count_elsewhere(c, &last);
    FAIL_IF(n == 1, ERR_USAGE,
            "another process works on cell '%s', and no cell failed; run the same command "
            "again when it has ended",
            c->s->plan.cell[last].name);
    FAIL_IF(n, ERR_USAGE,
            "other processes work on %d cells, and none failed; run the same command again "
            "when they have ended",
            n);
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
            "%d cell%s interrupted; %s has the finished ones", c->interrupted,
            c->interrupted == 1 ? " was" : "s were", s->out_dir);
    return c->failed ? c->first : left_to_others(c);
}

static enum err run_all(struct crew *c)
{
    enum err err = OK;
    stop_keeps(c->s->out_dir);
    stop_watch(STOP_AT_STEP);
    do {
        if (!err && !stop_asked(NULL))
            err = start_more(c);
        reap(c);
    } while (c->n || (!err && !stop_asked(NULL) && is_left(c)));
    stop_watch(STOP_AT_ONCE);
    return err ? err : outcome(c);
}

static enum err check_verified(const struct sweep *s, int i)
{
    const char *fault = sweep_fault_of(sweep_results_find(s, &s->run[i]));
    FAIL_IF(fault, ERR_VERIFY, "cell '%s': verification failed: %s", s->plan.cell[i].name,
            fault);
    return OK;
}

enum err sweep_check_verified(const struct sweep *s)
{
    int n = 0, first = 0;
    for (int i = s->plan.n_cells - 1; i >= 0; i--)
        if (!s->run[i].skip && check_verified(s, i)) {
            n++;
            first = i;
        }
    err_clear();
    if (!n)
        return OK;
    const enum err err = check_verified(s, first);
    return n > 1 ? err_add(err, "%d cells failed their verification; ", n) : err;
}

enum err sweep_execute(struct sweep *s)
{
    const size_t bytes = (size_t)s->plan.n_cells * sizeof(bool);
    TRY(sweep_record_write(s, true));
    struct crew c = {.s = s,
                     .elsewhere = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                                       MAP_SHARED | MAP_ANONYMOUS, -1, 0)};
    FAIL_IF(c.elsewhere == MAP_FAILED, ERR_MEMORY, "cannot share memory: %s",
            strerror(errno));
    const enum err err = run_all(&c);
    munmap(c.elsewhere, bytes);
    return err;
}

/* Removes the lock file of a cell that another process finished while this one waited. */
static enum err drop_lock(const struct sweep *s, int i)
{
    char *path = NULL;
    TRY(sweep_path(&path, s, &s->run[i], ".lock"));
    unlink(path);
    mem_free(path);
    return OK;
}

static enum err work_alone(struct sweep *s, int i)
{
    bool had;
    TRY(is_finished(&had, s, i));
    if (had) {
        TRY(drop_lock(s, i));
    } else {
        log_info("cell %d of %d: %s", i + 1, s->plan.n_cells, s->plan.cell[i].name);
        stop_watch(STOP_AT_STEP);
        const enum err err = run_cell(s, i);
        stop_watch(STOP_AT_ONCE);
        TRY(err);
    }
    TRY(sweep_results_join(s));
    sweep_set_done(s, i);
    say_result(s, i);
    return OK;
}

enum err sweep_execute_cell(struct sweep *s, int i)
{
    bool held;
    struct lock l = {.fd = -1};
    const char *name = s->plan.cell[i].name;
    const int twin = sweep_twin(s, i);
    if (s->run[i].done) {
        log_info("cell %d, '%s', is done", i + 1, name);
        return check_verified(s, i);
    }
    if (twin >= 0) {
        log_info("cell %d, '%s', has no run of its own: its result is that of cell %d",
                 i + 1, name, twin + 1);
        return OK;
    }
    enum err err = hold(&l, &held, s, i, REQUEUED_TENTHS);
    if (!err)
        err = work_alone(s, i);
    lock_release(&l);
    return err ? err_add(err, "cell '%s': ", name) : check_verified(s, i);
}
