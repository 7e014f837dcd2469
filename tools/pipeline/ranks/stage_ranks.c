/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/ranks/stage_ranks.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/launch.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/stages.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define NOTHING (-1)

/* Where the ranks begin. */
struct call {
    int64_t first;     /* block; NOTHING: there is no calibration */
    uint32_t progress; /* of rank 0's state */
};

/* Tenths of a second until another machine surely sees a new directory of a shared disk. */
#define SEEN_TENTHS 600

bool stage_is_worker(const struct job *j)
{
    return j->ranks && j->ranks->rank > 0;
}

enum err stage_join(struct job *j)
{
    int64_t here, threads;
    TRY(mpi_open(&j->ranks));
    if (!j->ranks)
        return OK;
    if (j->recipe.batch < j->ranks->size) {
        const int n = j->ranks->size;
        mpi_close(); /* all ranks are here */
        FAIL(
            ERR_USAGE,
            "calibration.batch is %d, but there are %d ranks, and each must have a sample of "
            "every step; raise it, or start fewer",
            (int)j->recipe.batch, n);
    }
    mpi_share_machine(&here, &threads);
    if (!j->recipe.threads)
        j->recipe.threads = threads;
    if (here > 1) /* else a plan that does not fit is still refused */
        j->recipe.memory = recipe_memory(&j->recipe) / (uint64_t)here;
    if (stage_is_worker(j))
        log_set_level(LOG_ERROR);
    else
        log_info("%d ranks of %d threads", j->ranks->size, (int)j->recipe.threads);
    return OK;
}

void stage_log_ranks(const struct job *j)
{
    struct calib_ranks_plan p;
    if (!j->ranks)
        return;
    calib_plan_ranks(&p, &j->arch, &j->settings, j->ranks->size);
    log_info(
        "each rank: %d of the %d samples of a step; %.1f MB more of host memory for "
        "gradients; %.1f MB sent and received a step, and %.1f MB received a block for "
        "start values",
        (int)p.step_samples, (int)j->settings.batch, 1e-6 * p.gradient_bytes,
        1e-6 * p.step_bytes, 1e-6 * p.block_bytes);
    log_info(
        "%d ranks are at most %.2f times as fast as one with as many threads; time and "
        "streams above are those of one rank alone",
        j->ranks->size, p.speedup);
}

/* Devices that compute differently would give every rank other parameters, and nobody would
 * notice. */
static enum err check_alike(const struct job *j)
{
    char mine[256], first[256];
    snprintf(mine, sizeof(mine), "device %s, %d threads, %s", dev_name(j->dev),
             dev_threads(j->dev), dev_about(j->dev));
    memcpy(first, mine, sizeof(first));
    j->ranks->broadcast(first, sizeof(first), 0);
    FAIL_IF(
        strcmp(first, mine), ERR_SUPPORT,
        "rank %d computes with %s, but rank 0 with %s; all must compute alike, so choose "
        "machines of one kind and set run.threads and run.compute",
        j->ranks->rank, mine, first);
    return OK;
}

enum err stage_call(struct job *j, const struct state *s)
{
    struct call call = {.first = state_done(s)};
    char ready = 1, all[RANKS_MAX];
    if (!j->ranks)
        return OK;
    TRY(state_progress_crc(&call.progress, s));
    j->ranks->broadcast(&call, sizeof(call), 0);
    TRY(check_alike(j));
    j->ranks->gather(all, &ready, 1);
    return OK;
}

void stage_dismiss(struct job *j)
{
    struct call call = {.first = NOTHING};
    if (!j->ranks)
        return;
    j->ranks->broadcast(&call, sizeof(call), 0);
    j->ranks = NULL;
    mpi_close();
}

/* A stop and a value that is not finite are found by all ranks at the same place. */
void stage_part(struct job *j, enum err err)
{
    if (!j->ranks || (err && err != ERR_STOPPED && err != ERR_NUMERIC))
        return; /* main() ends them all after the message */
    j->ranks = NULL;
    mpi_close();
}

/* Opens the state if it is as far as rank 0's, whose next step the others must join. */
static enum err open_alike(struct state **s, struct job *j, const char *state_dir,
                           uint32_t progress)
{
    uint32_t seen;
    TRY(state_open_read(s, state_dir, &j->arch));
    enum err err = state_progress_crc(&seen, *s);
    if (!err && seen != progress)
        err =
            err_set(ERR_NOT_FOUND, __FILE__, __LINE__,
                    "rank %d: the state %s is not the one that rank 0 has; all ranks need "
                    "one -o, on a file system that they share",
                    j->ranks->rank, state_dir);
    if (err)
        state_close(s);
    return err;
}

/* Opens the state that rank 0 has, as soon as this machine sees it. */
static enum err open_seen(struct state **s, struct job *j, const char *state_dir,
                          uint32_t progress)
{
    enum err err;
    for (int i = 0;
         (err = open_alike(s, j, state_dir, progress)) == ERR_NOT_FOUND && i < SEEN_TENTHS;
         i++) {
        err_clear();
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
    return err;
}

/* Every rank must have read the same model and the same text. */
static enum err check_identity(const struct state *s, struct job *j)
{
    json_t *identity;
    TRY(job_identity(&identity, j));
    const bool same = json_equal(identity, state_identity(s));
    json_decref(identity);
    FAIL_IF(!same, ERR_MISMATCH,
            "rank %d has another model, text or configuration than rank 0; all ranks must "
            "read the same files",
            j->ranks->rank);
    return OK;
}

/* Rank 0 saves. */
static enum err save_no_block(void *ctx, int64_t block, const struct block_quant *q,
                              const struct calib_block_stats *stats)
{
    return OK;
}

static enum err save_no_partial(void *ctx, int64_t block, const struct named_tensor *t,
                                int n)
{
    return OK;
}

static enum err calibrate_beside(struct job *j, struct state *s, int64_t first)
{
    struct calib_io io;
    char ready = 1, all[RANKS_MAX];
    TRY(check_identity(s, j));
    state_calib_io(&io, s, NULL, stop_asked, NULL);
    io.save_block = save_no_block;
    io.save_partial = save_no_partial;
    io.ranks = j->ranks;
    j->ranks->gather(all, &ready, 1);
    stop_watch(STOP_AT_STEP);
    return calib_run(j->dev, &j->arch, hf_source(j->model), &j->settings, j->windows, first,
                     &io);
}

enum err stage_work(struct job *j, const char *state_dir)
{
    struct state *s = NULL;
    struct call call;
    bool planned;
    if (j->options.plan)
        return OK;
    TRY(stage_prepare(&planned, j, state_dir));
    j->ranks->broadcast(&call, sizeof(call), 0);
    enum err err = OK;
    if (call.first >= 0 && call.first < j->arch.n_layers) {
        TRY(check_alike(j));
        err = open_seen(&s, j, state_dir, call.progress);
        if (!err)
            err = calibrate_beside(j, s, call.first);
        state_close(&s);
    }
    stage_part(j, err);
    if (j->ranks)
        return err;
    err_clear(); /* rank 0 reports it */
    return OK;
}
