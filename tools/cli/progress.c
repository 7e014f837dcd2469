/* SPDX-License-Identifier: MIT */
#include "tools/cli/progress.h"

#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/pace.h"
#include "tools/cli/stop.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_S 0.1 /* seconds between updates on a terminal */
#define REPORT_S 30  /* seconds between plain lines inside an epoch, elsewhere */

struct progress {
    FILE *json;
    const char *json_path; /* borrowed */
    bool lost;             /* it was said that lines are lost */
    const char *cell;      /* of a sweep; NULL: none */
    bool terminal, quiet, drawn;
    const char *phase;
    double last_s; /* clock, in seconds: last line or redraw */
    struct pace pace;
};

void progress_time_text(char *out, size_t n, double seconds)
{
    const int64_t s = seconds >= 0 && seconds < 1e9 ? llround(seconds) : 0;
    if (s >= 3600)
        snprintf(out, n, "%" PRId64 " h %02" PRId64 " min", s / 3600, s / 60 % 60);
    else if (s >= 60)
        snprintf(out, n, "%" PRId64 " min %02" PRId64 " s", s / 60, s % 60);
    else
        snprintf(out, n, "%" PRId64 " s", s);
}

/* --- the line ----------------------------------------------------------------------- */

static int terminal_columns(void)
{
    struct winsize w;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &w) || w.ws_col < 20)
        return 80;
    return w.ws_col;
}

static void erase(struct progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
}

static void draw(struct progress *p, const char *line)
{
    fprintf(stderr, "\r%.*s\033[K", terminal_columns() - 1, line);
    fflush(stderr);
    p->drawn = true;
}

/* Prints log lines above the progress line. */
static void sink(void *ctx, enum log_level level, const char *line)
{
    struct progress *p = ctx;
    erase(p);
    log_write(level, line);
}

static bool due(struct progress *p)
{
    const double now = clock_s();
    if (now - p->last_s < (p->terminal ? REDRAW_S : REPORT_S))
        return false;
    p->last_s = now;
    return true;
}

static void show(struct progress *p, const char *line)
{
    if (p->quiet || !due(p))
        return;
    if (p->terminal)
        draw(p, line);
    else
        log_info("%s", line);
}

/* --- opening and phases ------------------------------------------------------------- */

enum err progress_open_file(FILE **out, const char *log_json)
{
    *out = fopen(log_json, "ae");
    FAIL_IF(!*out, ERR_USAGE, "--log-json %s: %s", log_json, strerror(errno));
    /* line-buffered, so that a kill loses no line */
    setvbuf(*out, NULL, _IOLBF, 1 << 16);
    return OK;
}

enum err progress_open(struct progress **out, bool quiet, const char *log_json,
                       const char *cell)
{
    struct progress *p = NULL;
    TRY(mem_calloc(&p, 1, sizeof(*p)));
    p->quiet = quiet;
    p->json_path = log_json;
    p->cell = cell;
    p->terminal = isatty(STDERR_FILENO);
    const enum err err = log_json ? progress_open_file(&p->json, log_json) : OK;
    if (err) {
        mem_free(p);
        return err;
    }
    log_set_sink(sink, p);
    *out = p;
    return OK;
}

/* Says once why the file lacks lines: the work itself continues without them. */
static void say_lost(struct progress *p)
{
    if (!p->lost)
        log_warn("--log-json %s: cannot write: %s; it lacks events of this run",
                 p->json_path, strerror(errno));
    p->lost = true;
}

void progress_close(struct progress **pp)
{
    struct progress *p = *pp;
    if (!p)
        return;
    erase(p);
    log_set_sink(NULL, NULL);
    if (p->json && fclose(p->json))
        say_lost(p);
    mem_free(p);
    *pp = NULL;
}

/* Writes o as one line and releases it. NULL: memory was refused, and the line is lost. The end of
 * the line flushes it, so that an error is seen here. */
static void write_line(struct progress *p, json_t *o)
{
    if (!o)
        return;
    if (p->cell)
        json_object_set_new(o, "cell", json_string(p->cell));
    const bool written =
        !json_dumpf(o, p->json, JSON_REAL_PRECISION(9)) && fputc('\n', p->json) != EOF;
    if (!written)
        say_lost(p);
    json_decref(o);
}

void progress_phase(struct progress *p, const char *name)
{
    erase(p);
    p->phase = name;
    p->last_s = clock_s();
    p->pace = (struct pace){0};
    if (p->json)
        write_line(p, json_pack("{s:I, s:s, s:s}", "time", (json_int_t)time(NULL), "event",
                                "phase", "phase", name));
}

void progress_end(struct progress *p)
{
    erase(p);
}

/* Returns the seconds left when `done` of the whole is done, `restored` of it by an earlier run in
 * the midst of this one; -1: too early to say. */
static double eta_s(struct progress *p, double done, double restored)
{
    return pace_left(&p->pace, clock_s(), done - restored, 1 - done);
}

static void eta_text(char *out, size_t n, double seconds)
{
    if (seconds < 0)
        snprintf(out, n, "?");
    else
        progress_time_text(out, n, seconds);
}

void progress_share(void *ctx, double share)
{
    struct progress *p = ctx;
    char line[160], eta[32];
    eta_text(eta, sizeof(eta), eta_s(p, share, 0));
    snprintf(line, sizeof(line), "%s: %3.0f%%, %s left", p->phase, 100 * share, eta);
    show(p, line);
}

enum err progress_write(void *ctx, double share)
{
    progress_share(ctx, share);
    return stop_check();
}

/* --- calibration -------------------------------------------------------------------- */

static const char *event_name(const struct calib_event *e)
{
    static const char *const name[] = {
        [CALIB_PREPARE] = "prepare", [CALIB_SCAN] = "prepare", [CALIB_STEP] = "step",
        [CALIB_EVAL] = "eval",       [CALIB_EPOCH] = "epoch",  [CALIB_BLOCK] = "block",
        [CALIB_ADVANCE] = "advance"};
    return (size_t)e->kind < ARRAY_LEN(name) ? name[e->kind] : "?";
}

static void add_stats(json_t *o, const struct calib_block_stats *s)
{
    json_object_set_new(o, "start_loss", json_finite(s->start_loss));
    json_object_set_new(o, "best_loss", json_finite(s->best_loss));
    json_object_set_new(o, "best_epoch", json_integer(s->best_epoch));
    json_object_set_new(o, "seconds", json_finite(s->seconds));
    json_object_set_new(o, "seconds_gemm", json_finite(s->seconds_gemm));
}

static void write_refine_event(struct progress *p, const struct refine_event *e)
{
    if (p->json)
        write_line(p, json_pack("{s:I, s:s, s:I, s:I, s:o, s:o, s:o}", "time",
                                (json_int_t)time(NULL), "event", "refine", "step",
                                (json_int_t)e->step, "steps", (json_int_t)e->steps, "loss",
                                json_finite(e->loss), "guard", json_finite(e->guard),
                                "done", json_finite(e->done)));
}

void progress_refine(void *ctx, const struct refine_event *e)
{
    struct progress *p = ctx;
    char line[160], eta[32];
    write_refine_event(p, e);
    if (isfinite(e->guard))
        log_info("refinement, step %" PRId64 " of %" PRId64
                 ": divergence on the guard's windows %.4f nats, %.4f at the start",
                 e->step, e->steps, e->guard, e->start);
    eta_text(eta, sizeof(eta), eta_s(p, e->done, 0));
    if (isfinite(e->loss))
        snprintf(line, sizeof(line),
                 "refine: step %" PRId64 "/%" PRId64 ", loss %.4f, %.1f%%, %s left",
                 e->step, e->steps, e->loss, 100 * e->done, eta);
    else
        snprintf(line, sizeof(line), "refine: %.1f%%, %s left", 100 * e->done, eta);
    show(p, line);
}

static void write_event(struct progress *p, const struct calib_event *e, double eta)
{
    if (!p->json)
        return;
    json_t *o = json_pack("{s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "time",
                          (json_int_t)time(NULL), "event", event_name(e), "block",
                          (json_int_t)e->block, "blocks", (json_int_t)e->n_blocks, "epoch",
                          (json_int_t)e->epoch, "epochs", (json_int_t)e->epochs, "sample",
                          (json_int_t)e->sample, "samples", (json_int_t)e->samples, "loss",
                          json_finite(e->loss), "done", json_finite(e->done),
                          "tokens_per_s", json_finite(e->tokens_per_s));
    if (o && eta >= 0)
        json_object_set_new(o, "eta_s", json_finite(eta));
    if (o && e->kind == CALIB_BLOCK && e->stats)
        add_stats(o, e->stats);
    write_line(p, o);
}

static void say_block(const struct calib_event *e)
{
    const struct calib_block_stats *s = e->stats;
    char time_text[32];
    progress_time_text(time_text, sizeof(time_text), s->seconds);
    if (s->best_epoch == 0)
        log_info("block %" PRId64 "/%" PRId64
                 ": loss %.6g, no improvement, start values kept "
                 "(%s)",
                 e->block + 1, e->n_blocks, s->start_loss, time_text);
    else
        log_info("block %" PRId64 "/%" PRId64
                 ": loss %.6g -> %.6g (%.1f%% less), best epoch "
                 "%" PRId64 " (%s)",
                 e->block + 1, e->n_blocks, s->start_loss, s->best_loss,
                 100 * (1 - s->best_loss / s->start_loss), s->best_epoch, time_text);
}

static void say_step(struct progress *p, const struct calib_event *e, double eta)
{
    static const char *const doing[] = {
        [CALIB_PREPARE] = "preparing", [CALIB_SCAN] = "preparing",
        [CALIB_STEP] = "training",     [CALIB_EVAL] = "measuring",
        [CALIB_EPOCH] = "measuring",   [CALIB_BLOCK] = "block finished",
        [CALIB_ADVANCE] = "moving on"};
    const int64_t sample = e->sample < e->samples ? e->sample + 1 : e->samples;
    const bool has_loss = e->kind == CALIB_STEP || e->kind == CALIB_EVAL;
    char line[240], left[32], loss[40] = "";
    eta_text(left, sizeof(left), eta);
    if (has_loss)
        snprintf(loss, sizeof(loss), " loss %.4g,", e->loss);
    snprintf(line, sizeof(line),
             "block %" PRId64 "/%" PRId64 ", epoch %" PRId64 "/%" PRId64 ", %s %" PRId64
             "/%" PRId64 ",%s %.0f tokens/s, %s left",
             e->block + 1, e->n_blocks, e->epoch, e->epochs, doing[e->kind], sample,
             e->samples, loss, e->tokens_per_s, left);
    show(p, line);
}

/* Logs an epoch. A terminal shows the progress line instead. */
static void say_epoch(const struct progress *p, const struct calib_event *e, double eta)
{
    char left[32];
    eta_text(left, sizeof(left), eta);
    log_line(p->terminal ? LOG_VERBOSE : LOG_INFO,
             "block %" PRId64 "/%" PRId64 ", epoch %" PRId64 "/%" PRId64
             ": loss %.6g, %.0f tokens/s, %.1f%%, %s left",
             e->block + 1, e->n_blocks, e->epoch, e->epochs, e->loss, e->tokens_per_s,
             100 * e->done, left);
}

void progress_calib(void *ctx, const struct calib_event *e)
{
    struct progress *p = ctx;
    const double eta = eta_s(p, e->done, e->restored);
    write_event(p, e, eta);
    if (e->kind == CALIB_BLOCK && e->stats)
        say_block(e);
    else if (e->kind == CALIB_EPOCH)
        say_epoch(p, e, eta);
    else
        say_step(p, e, eta);
}
