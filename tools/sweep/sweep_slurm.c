/* SPDX-License-Identifier: MIT
 *
 * Submits a sweep to Slurm as one array job, a task a cell. Slurm does the rest: it queues,
 * throttles, and starts preempted tasks and those of lost nodes again. */
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/cli/child.h"
#include "tools/sweep/sweep.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SCRIPT_NAME "slurm.sh"

/* sbatch's arguments, owned and NULL-terminated. */
struct words {
    char **item;
    int n;
};

static enum err add(struct words *w, const char *text, size_t n)
{
    char *copy = NULL;
    TRY(mem_resize(&w->item, w->n ? (size_t)w->n + 1 : 0, (size_t)w->n + 2,
                   sizeof(*w->item)));
    TRY(mem_calloc(&copy, n + 1, 1));
    memcpy(copy, text, n);
    w->item[w->n++] = copy;
    w->item[w->n] = NULL;
    return OK;
}

static void free_words(struct words *w)
{
    for (int i = 0; i < w->n; i++)
        mem_free(w->item[i]);
    mem_free(w->item);
}

/* --- texts, through a stream in memory ---------------------------------------------- */

struct text {
    const struct sweep *s;
    int argc;
    char **argv;
};

/* Writes "--array=1-3,5%2": the cells that are to be run. */
static void put_array(FILE *f, const struct text *t)
{
    const struct sweep *s = t->s;
    const char *comma = "";
    fputs("--array=", f);
    for (int i = 0, end; i < s->plan.n_cells; i = end) {
        for (end = i; end < s->plan.n_cells && sweep_is_open(s, end); end++)
            ;
        if (end == i) {
            end++;
            continue;
        }
        fprintf(f, "%s%d", comma, i + 1);
        if (end > i + 1)
            fprintf(f, "-%d", end);
        comma = ",";
    }
    if (s->settings.parallel)
        fprintf(f, "%%%" PRId64, s->settings.parallel);
}

/* sbatch replaces %A and %a by the job and the task, and %% by %. */
static void put_log(FILE *f, const struct text *t)
{
    fputs("--output=", f);
    for (const char *p = t->s->out_dir; *p; p++)
        fprintf(f, *p == '%' ? "%%%%" : "%c", *p);
    fputs("/logs/%A_%a.log", f);
}

/* A task may start days later, when the sweep's file has other cells. --array among the options
 * of sbatch can name cells that are done. */
static void put_expected(FILE *f, const struct sweep *s)
{
    fputs("case $SLURM_ARRAY_TASK_ID in\n", f);
    for (int i = 0; i < s->plan.n_cells; i++)
        fprintf(f, "%d) cell=%s ;;\n", i + 1, s->run[i].spec);
    fputs("*) cell=none ;;\nesac\n", f);
}

/* exec: Slurm's signals then reach the program itself, once. */
static void put_script(FILE *f, const struct text *t)
{
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    fputs("#!/bin/sh\n# Written by `wkvq sweep --slurm`: one task of its array job.\n", f);
    put_expected(f, t->s);
    fputs("exec", f);
    sweep_put_word(f, n > 0 ? self : "wkvq");
    fputs(" sweep --cell \"$SLURM_ARRAY_TASK_ID\" --expect \"$cell\"", f);
    for (int i = 1; i < t->argc; i++)
        sweep_put_word(f, t->argv[i]);
    fputc('\n', f);
}

/* Release *out with free(). */
static enum err make_text(char **out, void (*put)(FILE *f, const struct text *t),
                          const struct text *t)
{
    size_t n;
    FILE *f = open_memstream(out, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for a job");
    put(f, t);
    const bool failed = ferror(f);
    FAIL_IF(fclose(f) || failed, ERR_MEMORY, "out of memory for a job");
    return OK;
}

static enum err add_text(struct words *w, void (*put)(FILE *f, const struct text *t),
                         const struct text *t)
{
    char *text = NULL;
    enum err err = make_text(&text, put, t);
    if (!err)
        err = add(w, text, strlen(text));
    free(text);
    return err;
}

/* --- submission --------------------------------------------------------------------- */

/* Adds words separated by blanks. */
static enum err add_options(struct words *w, const char *options)
{
    static const char blanks[] = " \t\n";
    for (const char *p = options + strspn(options, blanks); *p; p += strspn(p, blanks)) {
        const size_t n = strcspn(p, blanks);
        TRY(add(w, p, n));
        p += n;
    }
    return OK;
}

/* Writes the script to path, and makes the directory of the tasks' output. */
static enum err write_files(const char *path, const struct text *t)
{
    char *text = NULL, *logs = NULL;
    enum err err = file_join(&logs, t->s->out_dir, "logs");
    if (!err)
        err = file_make_dir(logs);
    if (!err)
        err = make_text(&text, put_script, t);
    if (!err)
        err = file_write_all(path, text, strlen(text));
    free(text);
    mem_free(logs);
    return err;
}

/* A name that begins with a dash must not become an option of sbatch. */
static void put_script_name(FILE *f, const struct text *t)
{
    fprintf(f, "%s%s/" SCRIPT_NAME, *t->s->out_dir == '-' ? "./" : "", t->s->out_dir);
}

static enum err make_words(struct words *w, const struct text *t, const char *options)
{
    TRY(add_options(w, "sbatch --job-name=wkvq-sweep --requeue --open-mode=append"));
    TRY(add_text(w, put_log, t));
    TRY(add_text(w, put_array, t));
    TRY(add_options(w, options));
    return add_text(w, put_script_name, t);
}

static enum err run_sbatch(void *ctx)
{
    const struct words *w = ctx;
    execvp(w->item[0], w->item);
    FAIL_IF(errno == ENOENT, ERR_NOT_FOUND,
            "sbatch: no such program; --slurm is for a machine that submits jobs to Slurm");
    FAIL(ERR_IO, "sbatch: cannot start: %s", strerror(errno));
}

static int open_cells(const struct sweep *s)
{
    int n = 0;
    for (int i = 0; i < s->plan.n_cells; i++)
        n += sweep_is_open(s, i);
    return n;
}

enum err sweep_submit(const struct sweep *s, const char *options, int argc, char **argv)
{
    const struct text t = {s, argc, argv};
    struct words w = {0};
    char *script = NULL;
    enum err err = OK;
    const int n = open_cells(s);
    if (!n) {
        TRY(sweep_check_verified(s));
        log_info("all cells are done");
        return OK;
    }
    TRY(file_join(&script, s->out_dir, SCRIPT_NAME));
    TRY_OUT(write_files(script, &t));
    TRY_OUT(make_words(&w, &t, options));
    if ((err = child_run(run_sbatch, &w))) {
        err_clear();
        FAIL_OUT(err, "nothing was submitted: sbatch failed, and its message is above");
    }
    log_info("%d cell%s submitted; --plan instead of --slurm shows how far they are, and "
             "`wkvq report %s` makes a page of those that are done",
             n, plural(n), s->out_dir);
out:
    free_words(&w);
    mem_free(script);
    return err;
}
