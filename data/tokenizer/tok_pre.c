/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_pre.h"

#include "kernels/base/mem.h"

#include <string.h>

int32_t byte_level_char(uint8_t byte)
{
    /* Printable bytes of Latin-1 represent themselves. The other 68 are mapped in order to
     * U+0100 and the following characters. */
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x121 + (byte - 0x7F);
    return byte == 0xAD ? 0x143 : byte;
}

int byte_level_byte(int32_t c)
{
    if (c >= 0x100 && c <= 0x120)
        return c - 0x100;
    if (c >= 0x121 && c <= 0x142)
        return c - 0x121 + 0x7F;
    if (c == 0x143)
        return 0xAD;
    return c > 0x20 && c < 0x100 && byte_level_char((uint8_t)c) == c ? c : -1;
}

enum err byte_level_map(struct text *out, const char *s, size_t n)
{
    out->n = 0;
    FAIL_IF(n > SIZE_MAX / 2, ERR_MEMORY, "text of %zu bytes", n);
    TRY(text_reserve(out, 2 * n + 4));
    for (size_t i = 0; i < n; i++)
        out->n += utf8_put(out->p + out->n, byte_level_char((uint8_t)s[i]));
    return OK;
}

/* Returns the next position of `what` in s, or NULL. */
static const char *find(const char *s, size_t n, const char *what)
{
    return n ? memmem(s, n, what, strlen(what)) : NULL;
}

/* growth may be NULL: no limit. */
static enum err add_replaced(struct text *out, struct text_growth *growth, const char *s,
                             size_t n, const char *from, const char *to)
{
    const char *const end = s + n;
    const size_t n_from = strlen(from), n_to = strlen(to);
    for (const char *hit; (hit = find(s, (size_t)(end - s), from));) {
        if (growth)
            TRY(text_grow(growth, n_from, n_to));
        TRY(text_add(out, s, (size_t)(hit - s)));
        TRY(text_add(out, to, n_to));
        s = hit + n_from;
    }
    return text_add(out, s, (size_t)(end - s));
}

enum err text_add_replaced(struct text *out, const char *s, size_t n, const char *from,
                           const char *to)
{
    return add_replaced(out, NULL, s, n, from, to);
}

static enum err add_matches_replaced(struct text *out, struct step_work *work,
                                     const char *s, size_t n, const struct regex *regex,
                                     const char *to)
{
    const size_t n_to = strlen(to);
    size_t start, end, at = 0;
    if (!n) /* nothing is searched for in an empty text */
        return OK;
    TRY(step_work_regex(work));
    struct regex_matches m = {.regex = regex, .work = work->regex, .s = s, .n = n};
    for (bool found;;) {
        TRY(regex_next(&found, &start, &end, &m));
        if (!found)
            return text_add(out, s + at, n - at);
        TRY(text_grow(&work->growth, end - start, n_to));
        TRY(text_add(out, s + at, start - at));
        TRY(text_add(out, to, n_to));
        at = end;
    }
}

enum err text_add_rewritten(struct text *out, struct step_work *work, const char *s,
                            size_t n, const char *from, const struct regex *regex,
                            const char *to)
{
    return regex ? add_matches_replaced(out, work, s, n, regex, to)
                 : add_replaced(out, &work->growth, s, n, from, to);
}

enum err step_work_regex(struct step_work *w)
{
    return w->regex ? OK : regex_work_open(&w->regex, w->growth.bytes);
}

void step_work_free(struct step_work *w)
{
    regex_work_close(&w->regex);
}

static enum err add_stripped(struct text *out, const struct normal_step *step,
                             const char *s, size_t n)
{
    size_t start = 0, end = n, k;
    int32_t c;
    while (step->left && start < n) {
        k = utf8_next(&c, s + start, n - start);
        if (!char_is_space(c))
            break;
        start += k;
    }
    while (step->right && end > start) {
        for (k = 1; k < 4 && k < end - start && ((uint8_t)s[end - k] & 0xC0) == 0x80;)
            k++;
        utf8_next(&c, s + end - k, k);
        if (!char_is_space(c))
            break;
        end -= k;
    }
    return text_add(out, s + start, end - start);
}

static enum err normal_step_run(struct text *out, struct step_work *work,
                                const struct normal_step *step, const char *s, size_t n)
{
    out->n = 0;
    switch (step->kind) {
    case NORMAL_FORM:
        TRY(text_normalize(out, s, n, step->form));
        return text_grow(&work->growth, n, out->n);
    case NORMAL_STRIP:
        return add_stripped(out, step, s, n);
    case NORMAL_CHARSMAP:
        return charsmap_add(out, &work->growth, &step->map, s, n);
    case NORMAL_PREPEND:
        if (n)
            TRY(text_add(out, step->to, strlen(step->to)));
        TRY(text_add(out, s, n));
        return text_grow(&work->growth, n, out->n);
    default:
        return text_add_rewritten(out, work, s, n, step->from, step->regex, step->to);
    }
}

enum err normalizer_run(struct text *out, struct text *spare, struct step_work *work,
                        const struct normalizer *m, const char *s, size_t n)
{
    out->n = 0;
    TRY(text_add(out, s, n));
    for (int i = 0; i < m->n; i++) {
        TRY(normal_step_run(spare, work, &m->step[i], out->p, out->n));
        const struct text swap = *out;
        *out = *spare;
        *spare = swap;
    }
    return OK;
}

void normalizer_free(struct normalizer *m)
{
    for (int i = 0; i < m->n; i++) {
        mem_free(m->step[i].from);
        mem_free(m->step[i].to);
        regex_close(&m->step[i].regex);
        charsmap_free(&m->step[i].map);
    }
    *m = (struct normalizer){0};
}

static enum err run_from(struct pre_run *run, int k, const char *s, size_t n, bool first);

/* Passes a piece on to the steps after k. Those after ByteLevel see its characters. */
static enum err pass_piece(struct pre_run *run, int k, const char *s, size_t n, bool first)
{
    if (run->pre->step[k].kind != PRE_BYTE_LEVEL || !run->pre->mapped || !n)
        return run_from(run, k + 1, s, n, first);
    TRY(byte_level_map(&run->mapped, s, n));
    return run_from(run, k + 1, run->mapped.p, run->mapped.n, first);
}

static enum err cut_by_scan(struct pre_run *run, int k, scan_fn *scan, const char *s,
                            size_t n, bool first)
{
    for (size_t at = 0, length; at < n; at += length) {
        length = scan(s + at, n - at);
        TRY(pass_piece(run, k, s + at, length, first && at == 0));
    }
    return OK;
}

/* A text that a step divides. */
struct cut {
    struct pre_run *run;
    int k;
    const char *s;
    bool first;
};

static enum err cut_piece(void *ctx, size_t start, size_t end)
{
    const struct cut *c = ctx;
    return run_from(c->run, c->k + 1, c->s + start, end - start, c->first && start == 0);
}

static enum err cut_by_pattern(struct pre_run *run, int k, const char *s, size_t n,
                               bool first)
{
    const struct pre_step *step = &run->pre->step[k];
    struct cut c = {run, k, s, first};
    if (step->regex)
        TRY(step_work_regex(run->work));
    return split_text(step, run->work->regex, s, n, cut_piece, &c);
}

static bool starts_with(const char *s, size_t n, const char *what)
{
    return n >= strlen(what) && !memcmp(s, what, strlen(what));
}

static enum err run_metaspace(struct pre_run *run, int k, const char *s, size_t n,
                              bool first)
{
    const struct pre_step *step = &run->pre->step[k];
    struct text *t = &run->spare[k];
    const bool wanted =
        step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && first);
    t->n = 0;
    if (wanted && s[0] != ' ' && !starts_with(s, n, step->literal))
        TRY(text_add(t, step->literal, strlen(step->literal)));
    TRY(text_add_replaced(t, s, n, " ", step->literal));
    TRY(text_grow(&run->work->growth, n, t->n));
    if (step->split)
        return cut_by_pattern(run, k, t->p, t->n, first);
    return run_from(run, k + 1, t->p, t->n, first);
}

static enum err run_byte_level(struct pre_run *run, int k, const char *s, size_t n,
                               bool first)
{
    const struct pre_step *step = &run->pre->step[k];
    struct text *t = &run->spare[k];
    if (step->prefix_space && s[0] != ' ') {
        t->n = 0;
        TRY(text_add(t, " ", 1));
        TRY(text_add(t, s, n));
        s = t->p;
        n = t->n;
    }
    if (step->scan)
        return cut_by_scan(run, k, step->scan, s, n, first);
    return pass_piece(run, k, s, n, first);
}

static enum err run_from(struct pre_run *run, int k, const char *s, size_t n, bool first)
{
    if (!n)
        return OK;
    if (k == run->pre->n)
        return run->word(run->ctx, s, n);
    switch (run->pre->step[k].kind) {
    case PRE_SCAN:
        return cut_by_scan(run, k, run->pre->step[k].scan, s, n, first);
    case PRE_SPLIT:
        return cut_by_pattern(run, k, s, n, first);
    case PRE_METASPACE:
        return run_metaspace(run, k, s, n, first);
    default:
        return run_byte_level(run, k, s, n, first);
    }
}

enum err pre_run_text(struct pre_run *run, const char *s, size_t n, bool first)
{
    return run_from(run, 0, s, n, first);
}

void pre_run_free(struct pre_run *run)
{
    for (int i = 0; i < TOK_MAX_STEPS; i++)
        text_free(&run->spare[i]);
    text_free(&run->mapped);
}

void pre_tokenizer_free(struct pre_tokenizer *p)
{
    for (int i = 0; i < p->n; i++) {
        mem_free(p->step[i].literal);
        regex_close(&p->step[i].regex);
    }
    *p = (struct pre_tokenizer){0};
}
