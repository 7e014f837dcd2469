/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/text_score.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/choice_text.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* --- normalization ------------------------------------------------------------------ */

static bool is_punctuation(int32_t c)
{
    return c > ' ' && c < 0x7f && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", (int)c);
}

/* Returns whether Python's \w matches. Unlike char_is_word, it excludes combining marks. */
static bool is_word(int32_t c)
{
    const enum char_class k = char_class(c);
    return c == '_' || k == CHAR_LETTER || k == CHAR_NUMBER;
}

/* Writes lower case without punctuation. Python's only context-dependent mapping (a sigma
 * at a word's end) is omitted; both texts are mapped the same way. */
static enum err lower_without_punctuation(struct text *out, struct span s)
{
    while (s.n) {
        int32_t c;
        const size_t used = utf8_next(&c, s.p, s.n);
        s.p += used;
        s.n -= used;
        c = c < 0 ? 0xfffd : utf8proc_tolower(c);
        if (!is_punctuation(c))
            TRY(text_add_char(out, c));
    }
    return OK;
}

static bool is_article(const char *p, size_t n)
{
    return (n == 1 && p[0] == 'a') || (n == 2 && !memcmp(p, "an", 2)) ||
           (n == 3 && !memcmp(p, "the", 3));
}

/* Returns the length of the run of word characters, or of others, at the start of s. */
static size_t run_length(struct span s, bool word)
{
    size_t at = 0;
    while (at < s.n) {
        int32_t c;
        const size_t used = utf8_next(&c, s.p + at, s.n - at);
        if (is_word(c) != word)
            break;
        at += used;
    }
    return at;
}

/* Replaces each article between two word boundaries by a space. */
static enum err drop_articles(struct text *out, struct span s)
{
    for (bool word = false; s.n; word = !word) {
        const size_t n = run_length(s, word);
        if (word && is_article(s.p, n))
            TRY(text_add(out, " ", 1));
        else
            TRY(text_add(out, s.p, n));
        s.p += n;
        s.n -= n;
    }
    return OK;
}

static enum err single_spaces(struct text *out, struct span s)
{
    bool gap = false;
    while (s.n) {
        int32_t c;
        const size_t used = utf8_next(&c, s.p, s.n);
        if (python_is_space(c)) {
            gap = out->n > 0;
        } else {
            if (gap)
                TRY(text_add(out, " ", 1));
            TRY(text_add(out, s.p, used));
            gap = false;
        }
        s.p += used;
        s.n -= used;
    }
    return OK;
}

enum err score_normalize(char **out, size_t *n, struct span s)
{
    enum err err = OK;
    struct text low = {0}, bare = {0}, done = {0};
    TRY_OUT(lower_without_punctuation(&low, s));
    TRY_OUT(drop_articles(&bare, (struct span){low.p, low.n}));
    TRY_OUT(single_spaces(&done, (struct span){bare.p, bare.n}));
    *n = done.n;
    TRY_OUT(text_add(&done, "", 1));
    *out = done.p;
    done = (struct text){0};
out:
    text_free(&low);
    text_free(&bare);
    text_free(&done);
    return err;
}

/* --- F1 ----------------------------------------------------------------------------- */

struct words {
    char *text;
    struct span *item; /* pieces of text, sorted */
    size_t n;
};

static int order(struct span a, struct span b)
{
    const int o = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);
    return o ? o : (a.n > b.n) - (a.n < b.n);
}

static int compare(const void *a, const void *b)
{
    return order(*(const struct span *)a, *(const struct span *)b);
}

static void words_free(struct words *w)
{
    mem_free(w->text);
    mem_free(w->item);
}

/* Splits a text into sorted words. */
static enum err words_of(struct words *w, struct span s)
{
    size_t n;
    TRY(score_normalize(&w->text, &n, s));
    TRY(mem_alloc(&w->item, n / 2 + 1, sizeof(*w->item)));
    for (size_t at = 0; at < n;) {
        const char *p = w->text + at, *end = memchr(p, ' ', n - at);
        const size_t bytes = end ? (size_t)(end - p) : n - at;
        w->item[w->n++] = (struct span){p, bytes};
        at += bytes + 1;
    }
    qsort(w->item, w->n, sizeof(*w->item), compare);
    return OK;
}

/* Counts the common words, each as often as both texts have it. */
static size_t common(const struct words *a, const struct words *b)
{
    size_t i = 0, j = 0, same = 0;
    while (i < a->n && j < b->n) {
        const int o = order(a->item[i], b->item[j]);
        same += o == 0;
        i += o <= 0;
        j += o >= 0;
    }
    return same;
}

enum err score_f1(double *out, struct span answer, struct span want)
{
    struct words a = {0}, b = {0};
    enum err err = words_of(&a, answer);
    if (!err)
        err = words_of(&b, want);
    if (!err) {
        const double same = (double)common(&a, &b);
        const double precision = same / (double)a.n, recall = same / (double)b.n;
        *out = same > 0 ? 2 * precision * recall / (precision + recall) : 0;
    }
    words_free(&a);
    words_free(&b);
    return err;
}

/* --- lines -------------------------------------------------------------------------- */

static struct span take_line(struct span *s)
{
    const char *end = s->n ? memchr(s->p, '\n', s->n) : NULL;
    const struct span line = {s->p, end ? (size_t)(end - s->p) : s->n};
    const size_t used = line.n + (end != NULL);
    s->p += used;
    s->n -= used;
    return line;
}

static struct span skip_newlines(struct span s)
{
    while (s.n && *s.p == '\n') {
        s.p++;
        s.n--;
    }
    return s;
}

struct span score_first_line(struct span s)
{
    s = skip_newlines(s);
    return take_line(&s);
}

static bool is_code(struct span line)
{
    for (size_t i = 0; i < line.n; i++)
        if (line.p[i] == '`' || line.p[i] == '#' ||
            (line.p[i] == '/' && i + 1 < line.n && line.p[i + 1] == '/'))
            return false;
    return true;
}

struct span score_code_line(struct span s)
{
    s = skip_newlines(s);
    while (s.n) {
        const struct span line = take_line(&s);
        if (is_code(line))
            return line;
    }
    return (struct span){"", 0};
}
