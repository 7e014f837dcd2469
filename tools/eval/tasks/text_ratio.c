/* SPDX-License-Identifier: MIT
 *
 * Similarity of two strings after Ratcliff and Obershelp, exactly as Python's
 * difflib.SequenceMatcher(None, a, b). It takes the longest common block, the earliest in a
 * and then in b if equal, then recurses to its left and right. If b has 200 characters or
 * more, those that make up more than 1 % of it cannot start a block, only extend one. */
#include "data/tokenizer/tok_text.h"
#include "kernels/base/mem.h"
#include "tools/eval/tasks/text_score.h"

#include <math.h>
#include <stdlib.h>

#define POPULAR_FROM 200
#define POPULAR_SHARE 100

struct chars {
    int32_t *c;
    int64_t n;
};

/* Index of a character's positions in b; those of item[i].c start at item[i]. */
struct place {
    int32_t c;
    int64_t j;
};

struct matcher {
    struct chars a, b;
    struct place *place; /* sorted by (c, j), without popular characters */
    int64_t n_places;
    /* [b.n + 1] length of the block that ends before j, in this row */
    int64_t *length, *next;
};

struct range {
    int64_t a, a_end, b, b_end;
};

static enum err chars_of(struct chars *out, struct span s)
{
    TRY(mem_alloc(&out->c, s.n + 1, sizeof(*out->c)));
    while (s.n) {
        int32_t c;
        const size_t used = utf8_next(&c, s.p, s.n);
        out->c[out->n++] = c < 0 ? 0xfffd : c;
        s.p += used;
        s.n -= used;
    }
    return OK;
}

static int compare(const void *pa, const void *pb)
{
    const struct place *a = pa, *b = pb;
    if (a->c != b->c)
        return a->c < b->c ? -1 : 1;
    return a->j < b->j ? -1 : a->j > b->j;
}

static int64_t run_end(const struct matcher *m, int64_t i)
{
    int64_t end = i;
    while (end < m->n_places && m->place[end].c == m->place[i].c)
        end++;
    return end;
}

static void drop_popular(struct matcher *m)
{
    const int64_t most = m->b.n / POPULAR_SHARE + 1;
    int64_t kept = 0;
    for (int64_t i = 0, end; i < m->n_places; i = end) {
        end = run_end(m, i);
        for (int64_t k = i; k < end && end - i <= most; k++)
            m->place[kept++] = m->place[k];
    }
    m->n_places = kept;
}

static enum err matcher_open(struct matcher *m, struct span a, struct span b)
{
    TRY(chars_of(&m->a, a));
    TRY(chars_of(&m->b, b));
    TRY(mem_alloc(&m->place, (size_t)m->b.n, sizeof(*m->place)));
    TRY(mem_calloc(&m->length, (size_t)m->b.n + 1, sizeof(*m->length)));
    TRY(mem_calloc(&m->next, (size_t)m->b.n + 1, sizeof(*m->next)));
    for (int64_t j = 0; j < m->b.n; j++)
        m->place[j] = (struct place){m->b.c[j], j};
    m->n_places = m->b.n;
    qsort(m->place, (size_t)m->n_places, sizeof(*m->place), compare);
    if (m->b.n >= POPULAR_FROM)
        drop_popular(m);
    return OK;
}

static void matcher_close(struct matcher *m)
{
    mem_free(m->a.c);
    mem_free(m->b.c);
    mem_free(m->place);
    mem_free(m->length);
    mem_free(m->next);
}

/* Returns the first position of (c, at least j). */
static int64_t find(const struct matcher *m, int32_t c, int64_t j)
{
    const struct place want = {c, j};
    int64_t low = 0, high = m->n_places;
    while (low < high) {
        const int64_t mid = low + (high - low) / 2;
        if (compare(&m->place[mid], &want) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

struct block {
    int64_t i, j, n;
};

/* Computes one row of the longest-common-substring table: blocks that end at a's character
 * i. */
static void extend_row(struct matcher *m, const struct range *r, int64_t i,
                       struct block *best)
{
    const int64_t first = find(m, m->a.c[i], r->b);
    for (int64_t k = first; k < m->n_places; k++) {
        const int64_t j = m->place[k].j;
        if (m->place[k].c != m->a.c[i] || j >= r->b_end)
            break;
        const int64_t n = (j > r->b ? m->length[j] : 0) + 1;
        m->next[j + 1] = n;
        if (n > best->n)
            *best = (struct block){i - n + 1, j - n + 1, n};
    }
}

/* Resets the previous row to zeros and swaps it with the current one. */
static void swap_rows(struct matcher *m, const struct range *r)
{
    for (int64_t j = r->b; j <= r->b_end; j++)
        m->length[j] = 0;
    int64_t *const t = m->length;
    m->length = m->next;
    m->next = t;
}

/* Longest common substring by dynamic programming: the block that ends at (i, j) is one
 * longer than that at (i - 1, j - 1). Only positions of a's character in b are visited.
 * Popular characters may extend the block at both ends afterwards. */
static struct block longest(struct matcher *m, const struct range *r)
{
    struct block x = {r->a, r->b, 0};
    for (int64_t i = r->a; i < r->a_end; i++) {
        extend_row(m, r, i, &x);
        swap_rows(m, r);
    }
    swap_rows(m, r);
    while (x.i > r->a && x.j > r->b && m->a.c[x.i - 1] == m->b.c[x.j - 1])
        x = (struct block){x.i - 1, x.j - 1, x.n + 1};
    while (x.i + x.n < r->a_end && x.j + x.n < r->b_end &&
           m->a.c[x.i + x.n] == m->b.c[x.j + x.n])
        x.n++;
    return x;
}

/* Counts the characters in common blocks. The pending ranges are disjoint and not empty, so
 * there are never more than a has characters. */
static enum err matched(int64_t *out, struct matcher *m)
{
    struct range *todo;
    int64_t n = 0, sum = 0;
    TRY(mem_alloc(&todo, (size_t)m->a.n + 2, sizeof(*todo)));
    todo[n++] = (struct range){0, m->a.n, 0, m->b.n};
    while (n) {
        const struct range r = todo[--n];
        const struct block x = longest(m, &r);
        sum += x.n;
        if (x.n && r.a < x.i && r.b < x.j)
            todo[n++] = (struct range){r.a, x.i, r.b, x.j};
        if (x.n && x.i + x.n < r.a_end && x.j + x.n < r.b_end)
            todo[n++] = (struct range){x.i + x.n, r.a_end, x.j + x.n, r.b_end};
    }
    mem_free(todo);
    *out = sum;
    return OK;
}

/* 2 M / (|a| + |b|), with M characters in common blocks. */
enum err score_ratio(double *out, struct span a, struct span b)
{
    struct matcher m = {0};
    int64_t same = 0;
    enum err err = matcher_open(&m, a, b);
    if (!err)
        err = matched(&same, &m);
    if (!err)
        *out = m.a.n + m.b.n ? 2.0 * (double)same / (double)(m.a.n + m.b.n) : 1;
    matcher_close(&m);
    return err;
}

enum err score_code(double *out, struct span answer, struct span want)
{
    double ratio;
    TRY(score_ratio(&ratio, score_code_line(answer), want));
    *out = rint(100 * ratio) / 100; /* rounds halves to even, as Python does */
    return OK;
}
