/* SPDX-License-Identifier: MIT */
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/commands/commands.h"
#include "tools/report/report.h"

#include <stdio.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Report:"},
    {OPT_TEXT, 'o', "output", "FILE.html", offsetof(struct args, out),
     .help = "File for the page (default: DIR/report.html)"},
    {OPT_TEXT, 'b', "base", "NAME", offsetof(struct args, base),
     .help = "Cell that the others are compared with (default: the first)"},
    {OPT_TEXT, 't', "title", "TEXT", offsetof(struct args, title),
     .help = "Title of the page (default: the model and the sweep's title)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options, opt_report, NULL};

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
    TRY_OUT(report_write(path, &r, a->title, dir));
    if (a->json)
        printf("{\"cells\": %d}\n", r.n);
    log_info("%s: %d cell%s", path, r.n, plural(r.n));
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
    .details =
        "The page needs no network and no other file. It says what was run and what was "
        "found, and has tables, pictures, differences to the first cell with paired "
        "standard errors, and the command of each cell. Pictures are drawn by gnuplot "
        "(Debian: gnuplot-nox); without it the page has tables only.\n\n"
        "  wkvq report ablation -o ablation.html\n"
        "  wkvq report k --base crr.blocks=5\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .run = run,
};
