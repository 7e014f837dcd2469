/* SPDX-License-Identifier: MIT
 *
 * Claims of the sweep's file (tools/sweep/sweep_claims.h), and whether they held. */
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
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

#define MEASURES_MAX 64 /* by which one claim is judged */

/* A claim, judged by one measure. */
struct claim {
    const char *text;
    const struct report_row *better, *than[2]; /* than[1] NULL: one cell */
    struct report_measure by;
    int rows; /* of this claim, in its first row; else 0 */
    struct estimate difference;
    double exact; /* p of McNemar's test; NAN: two standard errors decide */
    enum verdict verdict;
};

/* All judgements, in the order of the table. */
struct claims {
    struct claim *item;
    int n, n_claims; /* judgements; claims of the file */
};

/* A cell whose verification failed proves nothing. */
static const struct report_row *find(const struct report *r, const json_t *name)
{
    const char *text = json_string_value(name);
    for (int i = 0; text && i < r->n; i++)
        if (!strcmp(r->row[i].name, text))
            return sweep_fault_of(r->row[i].json) ? NULL : &r->row[i];
    return NULL;
}

/* Returns whether a larger figure is better. */
static bool rises(const struct report_measure *m)
{
    return m->kind == REPORT_ZEROSHOT || m->kind == REPORT_LONGBENCH;
}

/* Two cells on one zero-shot set are judged by the exact test: where few questions are answered
 * differently, the standard error says too little. */
static enum err judge(struct claim *c, const struct report *r)
{
    TRY(report_compare(&c->difference, r, &c->by, c->better, c->than[0], c->than[1]));
    if (!c->than[1])
        c->exact = report_compare_exactly(r, &c->by, c->better, c->than[0]);
    const struct estimate x = c->difference;
    const bool apart =
        isnan(c->exact) ? report_significant(x) : c->exact <= LEVEL_OF_TWO_ERRORS;
    const bool better = rises(&c->by) ? x.mean > 0 : x.mean < 0;
    c->verdict = !isfinite(x.mean) || !isfinite(x.stderr_) ? UNMEASURED
                 : !apart                                  ? OPEN
                 : better                                  ? HELD
                                                           : FAILED;
    return OK;
}

/* Lists the measures that `by` names: quality is all of them but memory. */
static int measures_of(struct report_measure m[MEASURES_MAX], const struct report *r,
                       const char *by)
{
    static const struct {
        const char *by;
        struct report_measure measure;
    } one[] = {{"perplexity", {REPORT_TEXT, NULL}},
               {"zeroshot", {REPORT_ZEROSHOT, NULL}},
               {"longbench", {REPORT_LONGBENCH, NULL}},
               {"memory", {REPORT_MEMORY, NULL}}};
    int n = 0;
    for (size_t i = 0; i < ARRAY_LEN(one); i++)
        if (!strcmp(one[i].by, by)) {
            m[0] = one[i].measure;
            return 1;
        }
    m[n++] = one[0].measure;
    for (int i = 0; i < r->columns.n && n < MEASURES_MAX - 2; i++)
        if (!strcmp(r->columns.item[i].task, "ppl"))
            m[n++] = (struct report_measure){REPORT_TEXT, r->columns.item[i].name};
    for (size_t i = 1; i < 3; i++)
        if (report_has_measure(r, &one[i].measure))
            m[n++] = one[i].measure;
    return n;
}

static enum err add_claim(struct claims *all, const struct claim *claim,
                          const struct report *r, const char *by)
{
    struct report_measure m[MEASURES_MAX];
    const int n = measures_of(m, r, by);
    const bool whole = claim->better && claim->than[0];
    TRY(mem_resize(&all->item, (size_t)all->n, (size_t)(all->n + n), sizeof(*all->item)));
    for (int i = 0; i < n; i++) {
        struct claim *c = &all->item[all->n++];
        *c = *claim;
        c->by = m[i];
        c->rows = i ? 0 : n;
        if (whole)
            TRY(judge(c, r));
    }
    return OK;
}

static enum err read_claim(struct claims *all, const json_t *o, const struct report *r)
{
    const json_t *than = json_object_get(o, "than");
    const char *by = report_text(o, "by");
    struct claim c = {
        .text = report_text(o, "claim"),
        .better = find(r, json_object_get(o, "better")),
        .than = {find(r, json_array_get(than, 0)), find(r, json_array_get(than, 1))},
        .difference = {NAN, NAN},
        .exact = NAN,
        .verdict = UNMEASURED};
    FAIL_IF(!c.text || !by, ERR_FORMAT, "sweep.json: a claim without its texts");
    if (json_array_size(than) > 1 && !c.than[1])
        c.than[0] = NULL;
    return add_claim(all, &c, r, by);
}

static void put_unit(FILE *f, const struct claim *c)
{
    static const char *const unit[] = {"nats per token", "points of zero-shot accuracy",
                                       "points of LongBench", "MB of memory"};
    fputs("<td>", f);
    html_text(f, unit[c->by.kind]);
    if (c->by.name) {
        fputs(", ", f);
        html_text(f, c->by.name);
    }
    if (!isnan(c->exact))
        fprintf(f, ", exact p %.4f", c->exact);
    fputs("</td>", f);
}

static void put_claim(FILE *f, const struct claim *c)
{
    const bool memory = c->by.kind == REPORT_MEMORY;
    const int digits = memory ? 1 : rises(&c->by) ? 2 : 5;
    fputs("<tr>", f);
    if (c->rows) {
        fprintf(f, "<th scope=\"rowgroup\" rowspan=\"%d\">", c->rows);
        html_text(f, c->text);
        fputs("</th>", f);
    }
    fprintf(f, "<td class=\"%s\">%s</td>", verdicts[c->verdict].style,
            verdicts[c->verdict].text);
    html_signed(f, digits, (memory ? 1e-6 : 1) * c->difference.mean);
    html_number(f, digits, memory ? NAN : c->difference.stderr_);
    put_unit(f, c);
    fputs("</tr>\n", f);
}

static bool same_measure(const struct report_measure *a, const struct report_measure *b)
{
    return a->kind == b->kind &&
           (a->name && b->name ? !strcmp(a->name, b->name) : a->name == b->name);
}

/* Writes how many judgements by a measure had each verdict; m NULL: by any. */
static void put_counts(FILE *f, const struct claims *all, const struct report_measure *m)
{
    static const char *const words[] = {"held", "did not hold",
                                        "showed no significant difference",
                                        "could not be measured"};
    int count[ARRAY_LEN(words)] = {0}, kinds = 0, at = 0;
    for (int i = 0; i < all->n; i++)
        count[all->item[i].verdict] += !m || same_measure(&all->item[i].by, m);
    for (size_t v = 0; v < ARRAY_LEN(words); v++)
        kinds += count[v] > 0;
    for (size_t v = 0; v < ARRAY_LEN(words); v++)
        if (count[v]) {
            fputs(!at ? "" : at + 1 < kinds ? ", " : " and ", f);
            fprintf(f, "%d %s", count[v], words[v]);
            at++;
        }
}

/* Returns whether no judgement before number i is by the same measure. */
static bool is_first(const struct claims *all, int i)
{
    for (int k = 0; k < i; k++)
        if (same_measure(&all->item[k].by, &all->item[i].by))
            return false;
    return true;
}

/* Writes how many claims had each verdict, by measure if there are several for a claim. */
static void put_summary(FILE *f, const struct claims *all)
{
    static const char *const by[] = {"perplexity", "zero-shot accuracy", "LongBench",
                                     "memory"};
    const int n = all->n_claims;
    fprintf(f, "<p class=\"finding\">Of %d claim%s, ", n, plural(n));
    if (all->n == n)
        put_counts(f, all, NULL);
    for (int i = 0; i < all->n && all->n > n; i++) {
        const struct report_measure *m = &all->item[i].by;
        if (!is_first(all, i))
            continue;
        fprintf(f, "%sby %s", i ? "; " : "", by[m->kind]);
        if (m->name) {
            fputs(" of ", f);
            html_text(f, m->name);
        }
        fputs(" ", f);
        put_counts(f, all, m);
    }
    fputs(".</p>\n", f);
}

/* Reads and judges all claims. Release all->item with mem_free after an error as well. */
static enum err read_claims(struct claims *all, const struct report *r)
{
    const json_t *list = json_object_get(r->about, "claims");
    *all = (struct claims){.n_claims = (int)json_array_size(list)};
    for (size_t i = 0; i < json_array_size(list); i++)
        TRY(read_claim(all, json_array_get(list, i), r));
    return OK;
}

static void put_claims(FILE *f, const struct claims *all)
{
    fputs("<h2>Claims</h2>\n", f);
    html_table(f, "Claims", "<Claim|<Verdict|Difference|&plusmn;|<Unit");
    for (int i = 0; i < all->n; i++)
        put_claim(f, &all->item[i]);
    html_table_end(f);
    fputs(
        "<p class=\"soft\">A claim says that one cell is better than another, or than the "
        "mean of two, which is: nearer to the better of them. If it is, the difference "
        "of losses and of memory is below 0, and that of accuracy and scores above. It "
        "held or did not hold if the difference exceeds two standard errors, paired "
        "over windows or questions. Two cells on one zero-shot set are judged by McNemar's "
        "exact test instead: how likely (p) a difference as large is if each question that "
        "only one of them answers rightly were either's with probability 1/2; p must be at "
        "most 0.0455, which is what two standard errors are. Where two cells do not differ at "
        "all, about one judgement in 20 does so by chance; with 12 windows it is one in 14, "
        "with 4 windows one in 7, and more where few questions are answered differently. "
        "Memory is that of weights, and of the cache for one text of the evaluation's "
        "length, counted from shapes without an error.</p>\n",
        f);
}

enum err report_claims(FILE *f, const struct report *r, bool summary)
{
    struct claims all;
    enum err err = OK;
    if (!json_array_size(json_object_get(r->about, "claims")))
        return OK;
    err = read_claims(&all, r);
    if (!err && summary)
        put_summary(f, &all);
    else if (!err)
        put_claims(f, &all);
    mem_free(all.item);
    return err;
}
