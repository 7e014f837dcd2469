/* SPDX-License-Identifier: MIT */
#include "config.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands/commands.h"
#include "tools/report/html.h"
#include "tools/report/plot.h"
#include "tools/report/report.h"

#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Report:"},
    {OPT_TEXT, 'o', "output", "FILE.html", offsetof(struct args, out),
     .help = "File for the page (default: DIR/report.html)"},
    {OPT_TEXT, 'b', "base", "NAME", offsetof(struct args, base),
     .help = "Cell that the others are compared with (default: the first)"},
    {OPT_TEXT, 't', "title", "TEXT", offsetof(struct args, title),
     .help = "Title of the page (default: the directory's name)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_report, NULL};

static enum err put_pictures(FILE *f, const struct report *r)
{
    if (!plot_available()) {
        log_warn("gnuplot is not installed, so the page has tables only; Debian's package "
                 "is gnuplot-nox");
        fputs(
            "<p class=\"soft\">No pictures: gnuplot was not installed where this page was "
            "made.</p>\n",
            f);
        return OK;
    }
    TRY(report_difference_picture(f, r));
    TRY(report_pareto(f, r));
    TRY(report_losses(f, r));
    return report_cosines(f, r);
}

static enum err put_page(FILE *f, const struct report *r, const char *title)
{
    html_begin(f, title);
    fprintf(f, "<p class=\"soft\">%d cells, by wkvq %s.</p>\n", r->n, WKVQ_VERSION);
    report_tables(f, r);
    report_differences(f, r);
    TRY(put_pictures(f, r));
    report_commands(f, r);
    html_end(f);
    return OK;
}

static enum err write_page(const char *path, const struct report *r, const char *title)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for the page");
    enum err err = put_page(f, r, title);
    const bool broken = ferror(f);
    if ((fclose(f) || broken) && !err)
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for the page");
    if (!err)
        err = file_write_all(path, text, n);
    free(text);
    return err;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct report r = {0};
    char *path = NULL, *dir = NULL;
    TRY_OUT(mem_strdup(&dir, a->pos.item[0]));
    for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/'; n--)
        dir[n - 1] = '\0';
    TRY_OUT(a->out ? mem_strdup(&path, a->out) : file_join(&path, dir, "report.html"));
    TRY_OUT(report_open(&r, dir, a->base));
    TRY_OUT(write_page(path, &r, a->title ? a->title : file_base_name(dir)));
    if (a->json)
        printf("{\"cells\": %d}\n", r.n);
    log_info("%s: %d cells", path, r.n);
out:
    report_close(&r);
    mem_free(path);
    mem_free(dir);
    return err;
}

const struct command cmd_report = {
    .name = "report",
    .operands = "DIR",
    .summary = "Make one HTML page of a sweep's results",
    .details = "The page needs no network and no other file. It has tables, pictures, and "
               "differences to the first cell with paired standard errors. It also lists "
               "the commands that reproduce each cell. Pictures are drawn by gnuplot "
               "(Debian: gnuplot-nox); without it the page has tables only.\n\n"
               "  wkvq report ablation -o ablation.html\n"
               "  wkvq report k --base crr.blocks=5\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .run = run,
};
