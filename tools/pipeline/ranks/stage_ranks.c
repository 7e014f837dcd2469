/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/ranks/stage_ranks.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/dev_link.h"
#include "tools/cli/launch.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/stages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NOTHING (-1)

/* What the ranks do next. */
struct call {
    /* The block that calibration begins with; after the last block: refinement. NOTHING: the rest
     * is rank 0's. */
    int64_t first;
    uint32_t progress; /* of rank 0's state */
};

/* Seconds until another machine surely sees a new directory of a shared disk; WKVQ_STATE_WAIT
 * is for disks that take longer. */
#define SEEN_S 60
#define SEEN_S_MAX 86400

bool stage_is_worker(const struct job *j)
{
    return j->ranks && j->ranks->rank > 0;
}

static enum err check_batch(const char *key, int64_t batch, const struct ranks *ranks)
{
    FAIL_IF(
        batch < ranks->size, ERR_USAGE,
        "%s is %d, but there are %d ranks, and each must have a sample of every step; raise "
        "it, or start fewer",
        key, (int)batch, ranks->size);
    return OK;
}

static enum err check_batches(const struct job *j)
{
    const struct recipe *r = &j->recipe;
    if (!j->only_refines)
        TRY(check_batch("calibration.batch", r->batch, j->ranks));
    return recipe_refines(r) ? check_batch("refine.batch", r->refine.batch, j->ranks) : OK;
}

static enum err seen_seconds(int64_t *seconds)
{
    const char *given = getenv("WKVQ_STATE_WAIT");
    char *end = NULL;
    *seconds = given ? strtoll(given, &end, 10) : SEEN_S;
    FAIL_IF(given && (end == given || *end || *seconds < 0 || *seconds > SEEN_S_MAX),
            ERR_USAGE, "WKVQ_STATE_WAIT is \"%s\", not a number of seconds from 0 to %d",
            given, SEEN_S_MAX);
    return OK;
}

static enum err check_rank(const struct job *j)
{
    int64_t seconds;
    TRY(seen_seconds(&seconds));
    return check_batches(j);
}

/* Every rank refuses if one does: the others would wait for it, and it for them. */
static enum err check_every_rank(const struct job *j)
{
    const enum err err = check_rank(j);
    char refused = err != OK, all[RANKS_MAX];
    j->ranks->gather(all, &refused, 1);
    for (int r = 0; r < j->ranks->size && !err; r++)
        FAIL_IF(all[r], ERR_MISMATCH,
                "rank %d refuses its configuration, and rank %d does not; all ranks must "
                "read the same files",
                r, j->ranks->rank);
    return err;
}

enum err stage_join(struct job *j)
{
    int64_t here, threads;
    TRY(mpi_open(&j->ranks));
    if (!j->ranks)
        return OK;
    const enum err err = check_every_rank(j);
    if (err) {
        mpi_close(); /* all ranks are here */
        return err;
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

static void log_calibration(const struct job *j)
{
    struct calib_ranks_plan p;
    calib_plan_ranks(&p, &j->arch, &j->settings, j->ranks->size);
    log_info(
        "calibration, each rank: %d of the %d samples of a step; %.1f MB more for gradients, "
        "of linked GPUs or of the host; %.1f MB sent and received a step, and %.1f MB "
        "received a block for start values; %d ranks are at most %.2f times as fast as one "
        "with as many threads",
        (int)p.step_samples, (int)j->settings.batch, 1e-6 * p.gradient_bytes,
        1e-6 * p.step_bytes, 1e-6 * p.block_bytes, j->ranks->size, p.speedup);
}

static void log_refinement(const struct job *j)
{
    const struct weight_spec w = recipe_weight_spec(&j->recipe);
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    struct refine_ranks_plan p;
    refine_plan_ranks(&p, &j->arch, &w, &kv, &j->refine, j->ranks->size);
    log_info(
        "refinement, each rank: %d of the %d windows of a step; %.1f MB more for gradients, "
        "of linked GPUs or of the host; %.1f MB sent and received a step, and %.1f MB "
        "received once for the teacher's states; %d ranks are at most %.2f times as fast as "
        "one with as many threads",
        (int)p.step_windows, (int)j->refine.batch, 1e-6 * p.gradient_bytes,
        1e-6 * p.step_bytes, 1e-6 * p.teacher_bytes, j->ranks->size, p.speedup);
}

void stage_log_ranks(const struct job *j)
{
    if (!j->ranks)
        return;
    if (!j->only_refines)
        log_calibration(j);
    if (recipe_refines(&j->recipe))
        log_refinement(j);
    log_info(
        "time above is that of one rank alone, as a calibration's memory and streams are; a "
        "refinement's memory is that of a rank");
}

/* Devices that compute differently would give every rank other parameters, and nobody would
 * notice. */
static enum err check_alike(const struct job *j)
{
    char mine[640] = "", first[640];
    snprintf(mine, sizeof(mine), "device %s, %d threads, %s", dev_name(j->dev),
             dev_threads(j->dev), dev_about(j->dev));
    char *steps = strstr(mine, "; steps: "); /* how they are started changes no result */
    if (steps)
        *steps = '\0';
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
    mpi_link_devices(j->dev, j->ranks);
    return OK;
}

/* Every rank calls it at the same place. */
static void part(struct job *j)
{
    dev_unlink(j->dev);
    j->ranks = NULL;
    mpi_close();
}

void stage_dismiss(struct job *j)
{
    struct call call = {.first = NOTHING};
    if (!j->ranks)
        return;
    j->ranks->broadcast(&call, sizeof(call), 0);
    part(j);
}

/* A stop and a value that is not finite are found by all ranks at the same place. */
void stage_part(struct job *j, enum err err)
{
    if (!j->ranks || (err && err != ERR_STOPPED && err != ERR_NUMERIC))
        return; /* main() ends them all after the message */
    part(j);
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
    int64_t seconds;
    TRY(seen_seconds(&seconds));
    for (int64_t i = 0;
         (err = open_alike(s, j, state_dir, progress)) == ERR_NOT_FOUND && i < 10 * seconds;
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
    state_calib_io(&io, s, NULL, stop_asked, NULL);
    io.save_block = save_no_block;
    io.save_partial = save_no_partial;
    io.ranks = j->ranks;
    return calib_run(j->dev, &j->arch, hf_source(j->model), &j->settings, j->windows, first,
                     &io);
}

/* Does beside rank 0 what it has called for. */
static enum err take_part(struct job *j, const char *state_dir, const struct call *call)
{
    struct state *s = NULL;
    char ready = 1, all[RANKS_MAX];
    TRY(check_alike(j));
    TRY(open_seen(&s, j, state_dir, call->progress));
    enum err err = check_identity(s, j);
    if (!err) {
        j->ranks->gather(all, &ready, 1);
        mpi_link_devices(j->dev, j->ranks);
        stop_watch(STOP_AT_STEP);
        err = call->first < j->arch.n_layers ? calibrate_beside(j, s, call->first)
                                             : stage_refine(j, s);
    }
    state_close(&s);
    return err;
}

enum err stage_work(struct job *j, const char *state_dir)
{
    struct call call;
    enum err err = OK;
    bool planned;
    if (j->options.plan)
        return OK;
    if (!j->only_refines)
        TRY(stage_prepare(&planned, j, state_dir));
    do {
        j->ranks->broadcast(&call, sizeof(call), 0);
        if (call.first != NOTHING)
            err = take_part(j, state_dir, &call);
    } while (!err && call.first != NOTHING && call.first < j->arch.n_layers);
    stage_part(j, err);
    if (j->ranks)
        return err;
    err_clear(); /* rank 0 reports it */
    return OK;
}
