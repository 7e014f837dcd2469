/* SPDX-License-Identifier: MIT
 *
 * Split: a pattern divides a text into matches and the gaps between them, and the behavior
 * says which of these parts make up a piece. */
#include "data/tokenizer/tok_pre.h"

#include <string.h>

/* A match, or a gap between two. Matches may be empty. */
struct part {
    size_t start, end;
    bool match;
};

struct parts {
    const struct pre_step *step;
    struct regex_matches regex;
    const char *s;
    size_t n, at;     /* the parts before `at` have been taken */
    struct part next; /* a match that comes after the gap before it */
    bool has_next;
};

static bool find_literal(size_t *start, size_t *end, const struct parts *p)
{
    const size_t k = strlen(p->step->literal);
    const char *hit =
        p->at < p->n ? memmem(p->s + p->at, p->n - p->at, p->step->literal, k) : NULL;
    *start = hit ? (size_t)(hit - p->s) : p->n;
    *end = *start + k;
    return hit != NULL;
}

static bool find_char(size_t *start, size_t *end, const struct parts *p)
{
    size_t k;
    int32_t c;
    for (*start = p->at; *start < p->n; *start += k) {
        k = utf8_next(&c, p->s + *start, p->n - *start);
        *end = *start + k;
        if (p->step->is(c))
            return true;
    }
    return false;
}

static enum err find_match(bool *found, size_t *start, size_t *end, struct parts *p)
{
    if (p->step->regex)
        return regex_next(found, start, end, &p->regex);
    if (p->step->literal)
        *found = find_literal(start, end, p);
    else if (p->step->is)
        *found = find_char(start, end, p);
    else { /* a scanner leaves no gaps */
        *found = p->at < p->n;
        *start = p->at;
        *end = *found ? p->at + p->step->scan(p->s + p->at, p->n - p->at) : p->at;
    }
    return OK;
}

/* Takes the next part; *more is false after the last. */
static enum err next_part(bool *more, struct part *out, struct parts *p)
{
    size_t start, end;
    *more = true;
    if (p->has_next) {
        p->has_next = false;
        *out = p->next;
        p->at = out->end;
        return OK;
    }
    bool found;
    TRY(find_match(&found, &start, &end, p));
    if (!found)
        start = end = p->n;
    *out = (struct part){p->at, start, false};
    if (start == p->at) {
        *more = found;
        *out = (struct part){start, end, true};
    } else if (found) {
        p->next = (struct part){start, end, true};
        p->has_next = true;
    }
    p->at = out->end;
    return OK;
}

/* Returns true if a part is joined to the piece that ends with the part before it. */
static bool joins(enum split_behavior behavior, bool before, bool match)
{
    switch (behavior) {
    case SPLIT_CONTIGUOUS:
        return match == before;
    case SPLIT_WITH_PREVIOUS:
        return match && !before;
    case SPLIT_WITH_NEXT:
        return !match && before;
    default:
        return false;
    }
}

enum err split_text(const struct pre_step *step, struct regex_work *work, const char *s,
                    size_t n, enum err (*each)(void *ctx, size_t start, size_t end),
                    void *ctx)
{
    struct parts parts = {.step = step, .s = s, .n = n};
    struct part part, piece = {0};
    bool more, has_piece = false, before = false;
    parts.regex =
        (struct regex_matches){.regex = step->regex, .work = work, .s = s, .n = n};
    for (;;) {
        TRY(next_part(&more, &part, &parts));
        if (!more)
            break;
        part.match ^= step->invert;
        if (step->behavior == SPLIT_REMOVED && part.match)
            continue;
        if (has_piece && joins(step->behavior, before, part.match)) {
            piece.end = part.end;
        } else {
            if (has_piece)
                TRY(each(ctx, piece.start, piece.end));
            piece = part;
            has_piece = true;
        }
        before = part.match;
    }
    return has_piece ? each(ctx, piece.start, piece.end) : OK;
}
