/* SPDX-License-Identifier: MIT */
#include "tools/cli/progress.h"

#include "kernels/base/clock.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

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
    bool terminal, quiet, drawn;
    const char *phase;
    double start_s, last_s; /* clock, in seconds: start of the phase; last line or redraw */
    double first_done;      /* share at the start; a resumed run does not start at 0 */
    bool started;
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
    fprintf(stderr, "%s%s\n",
            level == LOG_ERROR  ? "error: "
            : level == LOG_WARN ? "warning: "
                                : "",
            line);
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

enum err progress_open(struct progress **out, bool quiet, const char *log_json)
{
    struct progress *p = NULL;
    TRY(mem_calloc(&p, 1, sizeof(*p)));
    p->quiet = quiet;
    p->terminal = isatty(STDERR_FILENO);
    if (log_json) {
        p->json = fopen(log_json, "ae");
        if (!p->json) {
            mem_free(p);
            FAIL(ERR_USAGE, "--log-json %s: %s", log_json, strerror(errno));
        }
        /* line-buffered, so that a kill loses no line */
        setvbuf(p->json, NULL, _IOLBF, 1 << 16);
    }
    log_set_sink(sink, p);
    *out = p;
    return OK;
}

void progress_close(struct progress **pp)
{
    struct progress *p = *pp;
    if (!p)
        return;
    erase(p);
    log_set_sink(NULL, NULL);
    if (p->json)
        fclose(p->json);
    mem_free(p);
    *pp = NULL;
}

void progress_phase(struct progress *p, const char *name)
{
    erase(p);
    p->phase = name;
    p->start_s = p->last_s = clock_s();
    p->started = false;
    if (p->json) {
        fprintf(p->json, "{\"time\": %lld, \"event\": \"phase\", \"phase\": \"%s\"}\n",
                (long long)time(NULL), name);
    }
}

void progress_end(struct progress *p)
{
    erase(p);
}

/* Returns the seconds left when `done` of the whole is done; -1: too early to say. */
static double eta_s(struct progress *p, double done)
{
    if (!p->started) {
        p->started = true;
        p->first_done = done;
        p->start_s = clock_s();
        return -1;
    }
    const double gained = done - p->first_done;
    if (!(gained > 1e-4))
        return -1;
    return (clock_s() - p->start_s) * (1 - done) / gained;
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
    eta_text(eta, sizeof(eta), eta_s(p, share));
    snprintf(line, sizeof(line), "%s: %3.0f%%, %s left", p->phase, 100 * share, eta);
    show(p, line);
}

/* --- calibration -------------------------------------------------------------------- */

static const char *event_name(const struct calib_event *e)
{
    static const char *const name[] = {"prepare", "step",  "eval",
                                       "epoch",   "block", "advance"};
    return (size_t)e->kind < ARRAY_LEN(name) ? name[e->kind] : "?";
}

/* Prints a number, or null, because JSON has no NaN. */
static void print_number(FILE *f, const char *key, double value)
{
    if (isfinite(value))
        fprintf(f, ", \"%s\": %.9g", key, value);
    else
        fprintf(f, ", \"%s\": null", key);
}

static void write_json(struct progress *p, const struct calib_event *e, double eta)
{
    if (!p->json)
        return;
    fprintf(p->json,
            "{\"time\": %lld, \"event\": \"%s\", \"block\": %" PRId64
            ", \"blocks\": %" PRId64 ", \"epoch\": %" PRId64 ", \"epochs\": %" PRId64
            ", \"sample\": %" PRId64 ", \"samples\": %" PRId64,
            (long long)time(NULL), event_name(e), e->block, e->n_blocks, e->epoch,
            e->epochs, e->sample, e->samples);
    print_number(p->json, "loss", e->loss);
    print_number(p->json, "done", e->done);
    print_number(p->json, "tokens_per_s", e->tokens_per_s);
    if (eta >= 0)
        print_number(p->json, "eta_s", eta);
    if (e->kind == CALIB_BLOCK && e->stats) {
        print_number(p->json, "start_loss", e->stats->start_loss);
        print_number(p->json, "best_loss", e->stats->best_loss);
        fprintf(p->json, ", \"best_epoch\": %" PRId64, e->stats->best_epoch);
        print_number(p->json, "seconds", e->stats->seconds);
        print_number(p->json, "seconds_gemm", e->stats->seconds_gemm);
    }
    fprintf(p->json, "}\n");
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
    static const char *const doing[] = {"preparing", "training",       "measuring",
                                        "measuring", "block finished", "moving on"};
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
    const double eta = eta_s(p, e->done);
    write_json(p, e, eta);
    if (e->kind == CALIB_BLOCK && e->stats)
        say_block(e);
    else if (e->kind == CALIB_EPOCH)
        say_epoch(p, e, eta);
    else
        say_step(p, e, eta);
}
