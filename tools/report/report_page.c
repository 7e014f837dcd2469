/* SPDX-License-Identifier: MIT */
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/report/html.h"
#include "tools/report/plot.h"
#include "tools/report/report.h"

#include <stdlib.h>

/* Writes the parts that have pictures, and the tables that belong to them. */
static enum err put_pictures(FILE *f, const struct report *r, bool plots)
{
    if (plots)
        TRY(report_sizes(f, r));
    if (r->n > 1) {
        fputs("<h2>Difference to ", f);
        html_text(f, r->row[r->base].name);
        fputs("</h2>\n", f);
    }
    if (plots)
        TRY(report_difference_picture(f, r));
    report_differences(f, r);
    if (plots)
        TRY(report_layers(f, r));
    return plots ? report_losses(f, r) : OK;
}

static enum err put_page(FILE *f, const struct report *r, const char *title)
{
    const bool plots = plot_available();
    html_begin(f, title);
    TRY(report_claims(f, r, true));
    report_finding(f, r);
    report_facts(f, r);
    if (!plots) {
        log_warn("gnuplot is not installed, so the page has tables only; Debian's package "
                 "is gnuplot-nox");
        fputs(
            "<p class=\"soft\">No pictures: gnuplot was not installed where this page was "
            "made.</p>\n",
            f);
    }
    TRY(report_claims(f, r, false));
    report_results(f, r);
    TRY(report_measures(f, r));
    TRY(put_pictures(f, r, plots));
    report_commands(f, r);
    report_earlier(f, r);
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

enum err report_write(const char *path, const struct report *r, const char *title,
                      const char *dir)
{
    char *own = NULL;
    if (!title)
        TRY(report_title(&own, r, dir));
    const enum err err = write_page(path, r, title ? title : own);
    mem_free(own);
    return err;
}
