/* SPDX-License-Identifier: MIT
 *
 * Claims of the sweep's file (tools/sweep/sweep_claims.h), and whether they held. */
#include "kernels/base/mem.h"
#include "tools/report/html.h"
#include "tools/report/report.h"

#include <math.h>
#include <string.h>

enum verdict { HELD, FAILED, OPEN, UNMEASURED };

static const struct {
    const char *text, *style;
} verdicts[] = {{"\xe2\x9c\x93 held", "held"},
                {"\xe2\x9c\x97 did not hold", "failed"},
                {"\xe2\x89\x88 no significant difference", "open"},
                {"not measured", "open"}};

/* A claim, and the difference that decides it: below 0 if it holds. */
struct claim {
    const char *text, *by;
    const struct report_row *better, *than[2]; /* than[1] NULL: one cell */
    struct estimate difference;
    enum verdict verdict;
};

static const struct report_row *find(const struct report *r, const json_t *name)
{
    const char *text = json_string_value(name);
    for (int i = 0; text && i < r->n; i++)
        if (!strcmp(r->row[i].name, text))
            return &r->row[i];
    return NULL;
}

/* Returns the bytes of weights and of the cache at the length of the evaluation, counted from
 * shapes, so that all cells are counted alike. */
static double memory_of(const struct report_row *row)
{
    const json_t *memory = json_object_get(row->json, "memory");
    return json_number_value(json_object_get(memory, "weights")) +
           json_number_value(json_object_get(row->json, "ctx")) * row->cache;
}

/* Computes the difference to the mean of two cells, paired over windows. */
static enum err difference_to_mean(struct estimate *out, const struct report_row *a,
                                   const struct report_row *b, const struct report_row *c)
{
    double *mean;
    *out = (struct estimate){NAN, NAN};
    if (!isfinite(report_difference(a, b).mean) || !isfinite(report_difference(a, c).mean))
        return OK;
    TRY(mem_alloc(&mean, (size_t)a->windows, sizeof(*mean)));
    for (int64_t i = 0; i < a->windows; i++)
        mean[i] = 0.5 * (b->nll[i] + c->nll[i]);
    *out = estimate_difference(a->nll, mean, a->windows);
    mem_free(mean);
    return OK;
}

static enum err measure(struct claim *c)
{
    const struct report_row *b = c->than[0], *d = c->than[1] ? c->than[1] : b;
    if (!strcmp(c->by, "memory"))
        c->difference = (struct estimate){
            memory_of(c->better) - 0.5 * (memory_of(b) + memory_of(d)), 0};
    else if (c->than[1])
        TRY(difference_to_mean(&c->difference, c->better, b, d));
    else
        c->difference = report_difference(c->better, b);
    const struct estimate x = c->difference;
    c->verdict = !isfinite(x.mean) || !isfinite(x.stderr_) ? UNMEASURED
                 : !report_significant(x)                  ? OPEN
                 : x.mean < 0                              ? HELD
                                                           : FAILED;
    return OK;
}

static enum err read_claim(struct claim *c, const json_t *o, const struct report *r)
{
    const json_t *than = json_object_get(o, "than");
    *c = (struct claim){
        .text = report_text(o, "claim"),
        .by = report_text(o, "by"),
        .better = find(r, json_object_get(o, "better")),
        .than = {find(r, json_array_get(than, 0)), find(r, json_array_get(than, 1))},
        .difference = {NAN, NAN},
        .verdict = UNMEASURED};
    const bool whole = c->better && c->than[0] && (json_array_size(than) < 2 || c->than[1]);
    FAIL_IF(!c->text || !c->by, ERR_FORMAT, "sweep.json: a claim without its texts");
    return whole ? measure(c) : OK;
}

static void put_claim(FILE *f, const struct claim *c)
{
    const bool memory = !strcmp(c->by, "memory");
    fputs("<tr>", f);
    html_row_name(f, c->text);
    fprintf(f, "<td class=\"%s\">%s</td>", verdicts[c->verdict].style,
            verdicts[c->verdict].text);
    html_signed(f, memory ? 1 : 5, (memory ? 1e-6 : 1) * c->difference.mean);
    html_number(f, 5, memory ? NAN : c->difference.stderr_);
    html_cell(f, memory ? "MB of memory" : "nats per token");
    fputs("</tr>\n", f);
}

/* Writes how many claims had each verdict. */
static void put_summary(FILE *f, const int *count, int n)
{
    static const char *const words[] = {"held", "did not hold",
                                        "showed no significant difference",
                                        "could not be measured"};
    int kinds = 0, at = 0;
    for (size_t v = 0; v < ARRAY_LEN(words); v++)
        kinds += count[v] > 0;
    fprintf(f, "<p class=\"finding\">Of %d claim%s, ", n, n == 1 ? "" : "s");
    for (size_t v = 0; v < ARRAY_LEN(words); v++)
        if (count[v]) {
            fputs(!at ? "" : at + 1 < kinds ? ", " : " and ", f);
            fprintf(f, "%d %s", count[v], words[v]);
            at++;
        }
    fputs(".</p>\n", f);
}

/* Reads all claims. Release *out with mem_free. */
static enum err read_claims(struct claim **out, int *count, const struct report *r)
{
    const json_t *list = json_object_get(r->about, "claims");
    struct claim *c;
    TRY(mem_calloc(&c, json_array_size(list), sizeof(*c)));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const enum err err = read_claim(&c[i], json_array_get(list, i), r);
        if (err) {
            mem_free(c);
            return err;
        }
        count[c[i].verdict]++;
    }
    *out = c;
    return OK;
}

enum err report_claims(FILE *f, const struct report *r, bool summary)
{
    const int n = (int)json_array_size(json_object_get(r->about, "claims"));
    int count[ARRAY_LEN(verdicts)] = {0};
    struct claim *c;
    if (!n)
        return OK;
    TRY(read_claims(&c, count, r));
    if (summary) {
        put_summary(f, count, n);
        mem_free(c);
        return OK;
    }
    fputs("<h2>Claims</h2>\n", f);
    html_table(f, "Claims", "<Claim|<Verdict|Difference|&plusmn;|<Unit");
    for (int i = 0; i < n; i++)
        put_claim(f, &c[i]);
    html_table_end(f);
    fputs(
        "<p class=\"soft\">A claim says that one cell is better than another, or than the "
        "mean of two, which is: nearer to the better of them. The difference is below 0 "
        "if it is. It held or did not hold if the difference exceeds two standard errors, "
        "paired over windows. Memory is that of weights, and of the cache for one text of "
        "the evaluation's length, counted from shapes without an error.</p>\n",
        f);
    mem_free(c);
    return OK;
}
