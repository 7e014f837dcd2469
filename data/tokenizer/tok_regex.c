/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_regex.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/mem.h"

#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include <oniguruma.h>

#define MAX_PATTERN_BYTES 16384
#define MAX_PARSE_DEPTH 500
/* Entries of about 40 bytes. A run of characters that is given back one by one takes one
 * for each. */
#define MAX_STACK 2000000u
/* Backtracks of each search that need no account: an ordinary word takes a few. */
#define FREE_BACKTRACKS 256u
/* The account of a text. The reference has the first number as limit for each match. */
#define BACKTRACKS 10000000u
#define BACKTRACKS_PER_BYTE 64u
/* CPU time, because a single backtrack can cost a pass over the text. Published patterns
 * take about a tenth of a microsecond per byte. */
#define SECONDS 2.0
#define SECONDS_PER_BYTE 4e-6
#define SEARCHES_PER_CHECK 256

struct regex {
    regex_t *code;
    char *pattern;
    char *name; /* where it stands, and the pattern, for messages */
};

struct regex_work {
    OnigRegion *region;
    OnigMatchParam *limits;
    size_t bytes;
    uint64_t spent; /* backtracks */
    uint64_t n_searches;
    double start; /* CPU time at the first check; negative before it */
};

/* Read after pthread_once(). */
static int init_code;
static bool punct_has_symbols; /* [:punct:] matches "$", as in the reference's version */
static pthread_once_t init_once = PTHREAD_ONCE_INIT;

static void init(void)
{
    static const UChar pattern[] = "[[:punct:]]", text[] = "$";
    OnigEncoding utf8 = ONIG_ENCODING_UTF8;
    regex_t *r = NULL;
    init_code = onig_initialize(&utf8, 1);
    onig_set_parse_depth_limit(MAX_PARSE_DEPTH);
    if (!onig_new(&r, pattern, pattern + sizeof(pattern) - 1, ONIG_OPTION_NONE,
                  ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, NULL))
        punct_has_symbols =
            onig_match(r, text, text + 1, text, NULL, ONIG_OPTION_NONE) == 1;
    onig_free(r);
}

static enum err set_name(struct regex *r, const char *pattern, const char *where)
{
    struct text name = {0};
    const size_t n = strlen(pattern), shown = n < 300 ? n : 300;
    enum err err = text_add(&name, where, strlen(where));
    if (!err)
        err = text_add(&name, ": the pattern ", 14);
    if (!err)
        err = text_add(&name, pattern, shown);
    if (!err)
        err = text_add(&name, n > shown ? "..." : "", n > shown ? 4 : 1);
    if (err)
        text_free(&name);
    r->name = name.p;
    return err;
}

static enum err compile(struct regex *r, const char *pattern)
{
    UChar why[ONIG_MAX_ERROR_MESSAGE_LEN] = {0};
    OnigErrorInfo info = {0};
    const UChar *const start = (const UChar *)pattern;
    FAIL_IF(pthread_once(&init_once, init) || init_code != ONIG_NORMAL, ERR_MEMORY,
            "Oniguruma does not start");
    FAIL_IF(!punct_has_symbols && strstr(pattern, "punct:]"), ERR_SUPPORT,
            "%s has [:punct:], which Oniguruma %s reads in another way than the reference: "
            "without symbols such as $",
            r->name, onig_version());
    const int code = onig_new(&r->code, start, start + strlen(pattern), ONIG_OPTION_NONE,
                              ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
    if (code == ONIG_NORMAL)
        return OK;
    r->code = NULL;
    FAIL_IF(code == ONIGERR_MEMORY, ERR_MEMORY, "%s: out of memory", r->name);
    onig_error_code_to_str(why, code, &info);
    FAIL(ERR_FORMAT, "%s is not a regular expression of Oniguruma: %s", r->name,
         (const char *)why);
}

enum err regex_open(struct regex **out, const char *pattern, const char *where)
{
    struct regex *r = NULL;
    FAIL_IF(strlen(pattern) > MAX_PATTERN_BYTES, ERR_SUPPORT,
            "%s: a pattern of %zu bytes, the limit is %d", where, strlen(pattern),
            MAX_PATTERN_BYTES);
    TRY(mem_calloc(&r, 1, sizeof(*r)));
    enum err err = mem_strdup(&r->pattern, pattern);
    if (!err)
        err = set_name(r, pattern, where);
    if (!err)
        err = compile(r, pattern);
    if (err)
        regex_close(&r);
    *out = r;
    return err;
}

void regex_close(struct regex **pr)
{
    struct regex *r = *pr;
    if (!r)
        return;
    if (r->code)
        onig_free(r->code);
    mem_free(r->name);
    mem_free(r->pattern);
    mem_free(r);
    *pr = NULL;
}

const char *regex_pattern(const struct regex *r)
{
    return r->pattern;
}

enum err regex_work_open(struct regex_work **out, size_t bytes)
{
    struct regex_work *w = NULL;
    TRY(mem_calloc(&w, 1, sizeof(*w)));
    w->bytes = bytes;
    w->start = -1;
    w->region = onig_region_new();
    w->limits = onig_new_match_param();
    if (!w->region || !w->limits) {
        regex_work_close(&w);
        FAIL(ERR_MEMORY, "out of memory in Oniguruma");
    }
    onig_initialize_match_param(w->limits);
    onig_set_match_stack_limit_size_of_match_param(w->limits, MAX_STACK);
    *out = w;
    return OK;
}

void regex_work_close(struct regex_work **pw)
{
    struct regex_work *w = *pw;
    if (!w)
        return;
    if (w->region)
        onig_region_free(w->region, 1);
    if (w->limits)
        onig_free_match_param(w->limits);
    mem_free(w);
    *pw = NULL;
}

static int search_once(const struct regex_matches *m, uint64_t limit)
{
    const UChar *const s = (const UChar *)m->s, *const end = s + m->n;
    onig_set_retry_limit_in_match_of_match_param(m->work->limits, limit);
    onig_set_retry_limit_in_search_of_match_param(m->work->limits, limit);
    onig_region_clear(m->work->region);
    return onig_search_with_param(m->regex->code, s, end, s + m->next, end, m->work->region,
                                  ONIG_OPTION_NONE, m->work->limits);
}

static bool is_over(int code)
{
    return code == ONIGERR_RETRY_LIMIT_IN_MATCH_OVER ||
           code == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER;
}

static double cpu_time(void)
{
    struct timespec t = {0};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum err check_time(const struct regex_matches *m)
{
    struct regex_work *w = m->work;
    const double now = cpu_time(), most = SECONDS + SECONDS_PER_BYTE * (double)w->bytes;
    if (w->start < 0)
        w->start = now;
    FAIL_IF(now - w->start > most, ERR_SUPPORT,
            "%s backtracks too much: it takes more than %.0f s for a text of %zu bytes",
            m->regex->name, most, w->bytes);
    return OK;
}

/* Searches from m->next. Oniguruma does not report how many backtracks a search took. So
 * it first has a few, which cost nothing. A search that needs more is repeated with four
 * times as many, and each of these limits is charged in full. */
static enum err search(int *code, const struct regex_matches *m)
{
    struct regex_work *w = m->work;
    const uint64_t most = BACKTRACKS + (uint64_t)BACKTRACKS_PER_BYTE * w->bytes;
    *code = search_once(m, FREE_BACKTRACKS);
    if (++w->n_searches % SEARCHES_PER_CHECK == 0)
        TRY(check_time(m));
    for (uint64_t limit = 4 * FREE_BACKTRACKS; is_over(*code); limit *= 4) {
        TRY(check_time(m));
        FAIL_IF(limit > most - w->spent, ERR_SUPPORT,
                "%s backtracks too much: more than %llu times in a text of %zu bytes",
                m->regex->name, (unsigned long long)most, w->bytes);
        w->spent += limit;
        *code = search_once(m, limit);
    }
    FAIL_IF(*code == ONIGERR_MATCH_STACK_LIMIT_OVER, ERR_SUPPORT,
            "%s backtracks too much: it keeps more than %u places to return to in a text "
            "of %zu bytes",
            m->regex->name, MAX_STACK, w->bytes);
    FAIL_IF(*code == ONIGERR_MEMORY, ERR_MEMORY, "%s: out of memory", m->regex->name);
    return OK;
}

/* Sets *start and *end to the match in the region, or fails for another error code. */
static enum err take_match(size_t *start, size_t *end, const struct regex_matches *m,
                           int code)
{
    UChar why[ONIG_MAX_ERROR_MESSAGE_LEN] = {0};
    if (code < 0)
        onig_error_code_to_str(why, code);
    FAIL_IF(code < 0, ERR_SUPPORT, "%s cannot be searched for: %s", m->regex->name,
            (const char *)why);
    const int from = m->work->region->beg[0], to = m->work->region->end[0];
    /* \K inside a lookahead moves the start of a match past its end. */
    FAIL_IF(from > to || (size_t)from < m->last_end, ERR_SUPPORT,
            "%s has a match that ends before it starts", m->regex->name);
    *start = (size_t)from;
    *end = (size_t)to;
    return OK;
}

/* Returns the position after the character at m->next, or one after the end. */
static size_t after_char(const struct regex_matches *m)
{
    int32_t c;
    return m->next + (m->next < m->n ? utf8_next(&c, m->s + m->next, m->n - m->next) : 1);
}

enum err regex_next(bool *found, size_t *start, size_t *end, struct regex_matches *m)
{
    int code;
    *found = false;
    FAIL_IF(m->n > INT_MAX, ERR_SUPPORT, "%s: a text of %zu bytes, the limit is 2 GiB",
            m->regex->name, m->n);
    while (m->next <= m->n) {
        TRY(search(&code, m));
        if (code == ONIG_MISMATCH)
            break;
        TRY(take_match(start, end, m, code));
        if (*start == *end && m->any && *end == m->last_end) {
            m->next = after_char(m);
            continue;
        }
        m->next = m->last_end = *end;
        m->any = *found = true;
        return OK;
    }
    m->next = m->n + 1;
    return OK;
}
