/* SPDX-License-Identifier: MIT
 *
 * The beginning of the page: its title, the finding in a sentence, and what was run. */
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/report/html.h"
#include "tools/report/report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DATE_BYTES 10 /* of "2026-11-29T..." */
#define NAMED_MAX 6   /* cells that a sentence names */

enum err report_title(char **out, const struct report *r, const char *dir)
{
    const char *model = report_text(r->row[r->base].json, "run.model");
    const char *title = report_text(r->about, "title");
    size_t n;
    char *base = NULL;
    if (!title)
        title = file_base_name(dir);
    if (!model)
        return mem_strdup(out, title);
    TRY(mem_strdup(&base, model));
    for (n = strlen(base); n > 1 && base[n - 1] == '/'; n--)
        base[n - 1] = '\0';
    const char *name = file_base_name(base);
    n = strlen(name) + strlen(title) + 3;
    const enum err err = mem_alloc(out, n, 1);
    if (!err)
        snprintf(*out, n, "%s: %s", name, title);
    mem_free(base);
    return err;
}

/* --- the finding -------------------------------------------------------------------- */

/* Returns whether the finding is about a cell: those with weights and cache quantized, or,
 * without any, those with either. An artifact that differs from its calibration proves nothing. */
static bool counts(const struct report *r, const struct report_row *row)
{
    bool both = false;
    if (sweep_fault_of(row->json))
        return false;
    for (int i = 0; i < r->n; i++)
        both |= r->row[i].weight_bits < 16 && r->row[i].kv_bits < 16 &&
                !sweep_fault_of(r->row[i].json);
    return both ? row->weight_bits < 16 && row->kv_bits < 16 : report_quantized(row);
}

/* Returns the cell of the lowest perplexity of the n that count; NULL if none does. */
static const struct report_row *best_of(int *n, const struct report *r)
{
    const struct report_row *best = NULL;
    *n = 0;
    for (int i = 0; i < r->n; i++) {
        if (!counts(r, &r->row[i]))
            continue;
        ++*n;
        if (!best || r->row[i].ppl < best->ppl)
            best = &r->row[i];
    }
    return best;
}

static void put_name(FILE *f, const struct report_row *row)
{
    fputs("<strong>", f);
    html_text(f, row->name);
    fputs("</strong>", f);
}

/* Writes how a cell compares with full precision. */
static void put_loss(FILE *f, const struct report_row *best, const struct report_row *full)
{
    const struct estimate d = report_difference(best, full);
    fprintf(f, ", against %.3f in full precision", full->ppl);
    if (isfinite(d.stderr_))
        fprintf(f, " (%+.4f &plusmn; %.4f nats per token)", d.mean, d.stderr_);
    if (best->measured && full->measured && best->bytes < full->bytes)
        fprintf(f, ", in %.0f&nbsp;%% of its bytes", 100 * best->bytes / full->bytes);
}

/* Writes which of the n cells do not differ significantly from the best one, by their names if
 * they are few. */
static void put_equals(FILE *f, const struct report *r, const struct report_row *best,
                       int n)
{
    const struct report_row *equal[NAMED_MAX];
    int equals = 0, worse = 0;
    for (int i = 0; i < r->n; i++) {
        const struct estimate d = report_difference(&r->row[i], best);
        if (!counts(r, &r->row[i]) || !isfinite(d.stderr_))
            continue;
        if (report_significant(d))
            worse++;
        else if (equals++ < NAMED_MAX)
            equal[equals - 1] = &r->row[i];
    }
    if (equals > NAMED_MAX)
        fprintf(f, "<p>%d other cells do not differ from it significantly.</p>\n", equals);
    else if (equals) {
        fputs("<p>No significant difference to it: ", f);
        for (int i = 0; i < equals; i++) {
            fputs(!i ? "" : i + 1 < equals ? ", " : " and ", f);
            put_name(f, equal[i]);
        }
        fputs(".</p>\n", f);
    } else if (worse == n - 1)
        fputs("<p>All others are worse by more than two standard "
              "errors.</p>\n",
              f);
}

/* Names the cells that the finding leaves out. */
static void put_faults(FILE *f, const struct report *r)
{
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        if (!sweep_fault_of(r->row[i].json))
            continue;
        fputs(n++ ? ", "
                  : "<p>Left out of finding and claims, because the verification failed: ",
              f);
        put_name(f, &r->row[i]);
    }
    fputs(n ? ".</p>\n" : "", f);
}

static void put_finding(FILE *f, const struct report *r)
{
    int n;
    const struct report_row *best = best_of(&n, r);
    const struct report_row *full = best ? report_full_precision(r, best) : NULL;
    if (!best)
        return;
    fputs("<p class=\"finding\">", f);
    if (n > 1)
        fprintf(f, "Of %d cells with %s quantized, ", n,
                best->weight_bits < 16 && best->kv_bits < 16 ? "weights and cache"
                                                             : "weights or cache");
    put_name(f, best);
    fprintf(f, n > 1 ? " has the lowest perplexity, %.3f" : " has a perplexity of %.3f",
            best->ppl);
    if (full)
        put_loss(f, best, full);
    fputs(".</p>\n", f);
    if (n > 1)
        put_equals(f, r, best, n);
}

void report_finding(FILE *f, const struct report *r)
{
    put_finding(f, r);
    put_faults(f, r);
}

/* --- what was run ------------------------------------------------------------------- */

/* Writes a text about a row to out; nothing if the row does not say. */
typedef void row_text(char *out, size_t n, const struct report_row *row);

/* Writes <dt> and the different texts of all rows. */
static void put_fact(FILE *f, const struct report *r, const char *term, row_text *text)
{
    char(*seen)[512] = calloc((size_t)r->n, sizeof(*seen));
    int n = 0;
    for (int i = 0; seen && i < r->n; i++) {
        int k = 0;
        seen[n][0] = '\0';
        text(seen[n], sizeof(seen[n]), &r->row[i]);
        while (k < n && strcmp(seen[k], seen[n]))
            k++;
        n += k == n && *seen[n];
    }
    for (int i = 0; i < n && i < 4; i++) {
        fprintf(f, i ? "; " : "<dt>%s</dt><dd>", term);
        html_text(f, seen[i]);
    }
    if (n > 4)
        fprintf(f, "; %d more", n - 4);
    fputs(n ? "</dd>\n" : "", f);
    free(seen);
}

static void model_text(char *out, size_t n, const struct report_row *row)
{
    const char *model = report_text(row->json, "run.model");
    const json_t *bytes = json_object_get(
        json_object_get(json_object_get(row->json, "identity"), "checkpoint"), "bytes");
    if (model && json_is_integer(bytes))
        snprintf(out, n, "%s (%.1f MB)", model, 1e-6 * json_number_value(bytes));
    else if (model)
        snprintf(out, n, "%s", model);
}

/* Appends the base names of files. */
static void add_files(char *out, size_t n, const json_t *files)
{
    size_t i;
    const json_t *file;
    json_array_foreach(files, i, file)
    {
        const size_t at = strlen(out);
        const char *name = json_string_value(file);
        snprintf(out + at, n - at, "%s%s", i ? ", " : "",
                 name ? file_base_name(name) : "?");
    }
}

static void calibration_text(char *out, size_t n, const struct report_row *row)
{
    const json_t *files = json_object_get(json_object_get(row->json, "run"), "data");
    const json_t *c = json_object_get(
        json_object_get(json_object_get(row->json, "identity"), "config"), "calibration");
    if (!json_array_size(json_object_get(row->json, "blocks")))
        return; /* it learned nothing */
    add_files(out, n, files);
    const size_t at = strlen(out);
    const int64_t epochs = json_integer_value(json_object_get(c, "epochs"));
    snprintf(out + at, n - at,
             "%s%" PRId64 " samples of %" PRId64 " tokens, %" PRId64 " epoch%s",
             at ? ": " : "", (int64_t)json_integer_value(json_object_get(c, "samples")),
             (int64_t)json_integer_value(json_object_get(c, "seqlen")), epochs,
             plural(epochs));
}

static void evaluation_text(char *out, size_t n, const struct report_row *row)
{
    const json_t *ctx = json_object_get(row->json, "ctx");
    add_files(out, n, json_object_get(json_object_get(row->json, "run"), "eval"));
    const size_t at = strlen(out);
    if (json_is_integer(ctx))
        snprintf(out + at, n - at, "%s%" PRId64 " windows of %" PRId64 " tokens",
                 at ? ": " : "", row->windows, (int64_t)json_integer_value(ctx));
}

static void machine_text(char *out, size_t n, const struct report_row *row)
{
    const json_t *run = json_object_get(row->json, "run");
    const char *machine = report_text(run, "machine"), *device = report_text(run, "device");
    const json_t *cores = json_object_get(run, "cores");
    if (machine && device && json_is_integer(cores))
        snprintf(out, n, "%s, %" PRId64 " thread%s, device %s", machine,
                 (int64_t)json_integer_value(cores), plural(json_integer_value(cores)),
                 device);
}

static void version_text(char *out, size_t n, const struct report_row *row)
{
    const char *version = report_text(row->json, "run.version");
    if (version)
        snprintf(out, n, "wkvq %s", version);
}

/* Returns whether an earlier row has the same result: that of a cell of the same configuration. */
static bool is_twin(const struct report *r, int i)
{
    const json_t *identity = json_object_get(r->row[i].json, "identity");
    for (int k = 0; k < i; k++)
        if (json_object_get(r->row[k].json, "identity") == identity)
            return true;
    return false;
}

/* Writes the days on which the first and the last cell ended. */
static void put_dates(FILE *f, const struct report *r)
{
    const char *first = NULL, *last = NULL;
    double seconds = 0;
    for (int i = 0; i < r->n; i++) {
        const char *when = report_text(r->row[i].json, "run.finished");
        seconds += is_twin(r, i) ? 0 : r->row[i].seconds;
        if (!when || strlen(when) < DATE_BYTES)
            continue;
        first = !first || strcmp(when, first) < 0 ? when : first;
        last = !last || strcmp(when, last) > 0 ? when : last;
    }
    if (!first)
        return;
    fputs("<dt>Date</dt><dd>", f);
    html_text_bytes(f, first, DATE_BYTES);
    if (strncmp(first, last, DATE_BYTES)) {
        fputs(" to ", f);
        html_text_bytes(f, last, DATE_BYTES);
    }
    fprintf(f, "; %d cell%s took %.0f %s</dd>\n", r->n, plural(r->n),
            seconds < 180 ? seconds : seconds / 60, seconds < 180 ? "s" : "min");
}

void report_facts(FILE *f, const struct report *r)
{
    const char *command = report_text(r->about, "command");
    fputs("<dl>\n", f);
    put_fact(f, r, "Model", model_text);
    put_fact(f, r, "Calibrated on", calibration_text);
    put_fact(f, r, "Evaluated on", evaluation_text);
    put_fact(f, r, "Machine", machine_text);
    put_fact(f, r, "Version", version_text);
    put_dates(f, r);
    if (command) {
        fputs("<dt>Command</dt><dd><code>", f);
        html_text(f, command);
        fputs("</code></dd>\n", f);
    }
    fputs("</dl>\n", f);
}
