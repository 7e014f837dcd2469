/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_decode.h"

#include "kernels/base/mem.h"

#include <string.h>

enum err pieces_close(struct pieces *p)
{
    if (p->n == p->cap) {
        const size_t cap = p->cap ? p->cap * 2 : 64;
        TRY(mem_resize(&p->end, p->n, cap, sizeof(*p->end)));
        p->cap = cap;
    }
    p->end[p->n++] = p->text.n;
    return OK;
}

void pieces_free(struct pieces *p)
{
    text_free(&p->text);
    mem_free(p->end);
    *p = (struct pieces){0};
}

static const char *piece(size_t *n, const struct pieces *p, size_t i)
{
    const size_t start = i ? p->end[i - 1] : 0;
    *n = p->end[i] - start;
    return p->text.p + start;
}

/* Appends the bytes that a token's characters represent. A token with any other character
 * is appended unchanged. */
static enum err add_byte_level(struct text *out, const char *s, size_t n)
{
    const size_t mark = out->n;
    int32_t c;
    TRY(text_reserve(out, n));
    for (size_t at = 0; at < n;) {
        at += utf8_next(&c, s + at, n - at);
        const int byte = byte_level_byte(c);
        if (byte < 0) {
            out->n = mark;
            return text_add(out, s, n);
        }
        out->p[out->n++] = (char)byte;
    }
    return OK;
}

static enum err run_byte_level(struct pieces *out, const struct pieces *in)
{
    enum err err = OK;
    struct text bytes = {0};
    size_t n;
    for (size_t i = 0; i < in->n; i++) {
        const char *s = piece(&n, in, i);
        TRY_OUT(add_byte_level(&bytes, s, n));
    }
    TRY_OUT(utf8_repair(&out->text, bytes.p, bytes.n));
    TRY_OUT(pieces_close(out));
out:
    text_free(&bytes);
    return err;
}

/* Returns the value of a hexadecimal digit, or -1. */
static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the byte that "<0x0A>" names, or -1 for another token. */
static int byte_token(const char *s, size_t n)
{
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
        return -1;
    const int hi = hex_digit(s[3]), lo = hex_digit(s[4]);
    if (s[3] == '+' && lo >= 0) /* the reference's number parser takes a sign */
        return lo;
    return hi < 0 || lo < 0 ? -1 : hi << 4 | lo;
}

/* Ends a run of byte tokens: it becomes its text, or one U+FFFD per byte if it is not
 * valid. */
static enum err flush_bytes(struct pieces *out, struct text *bytes)
{
    if (!bytes->n)
        return OK;
    if (utf8_valid(bytes->p, bytes->n)) {
        TRY(text_add(&out->text, bytes->p, bytes->n));
        TRY(pieces_close(out));
    } else {
        for (size_t i = 0; i < bytes->n; i++) {
            TRY(text_add_char(&out->text, 0xFFFD));
            TRY(pieces_close(out));
        }
    }
    bytes->n = 0;
    return OK;
}

static enum err run_byte_fallback(struct pieces *out, const struct pieces *in)
{
    enum err err = OK;
    struct text bytes = {0};
    size_t n;
    for (size_t i = 0; i < in->n; i++) {
        const char *s = piece(&n, in, i);
        const int byte = byte_token(s, n);
        if (byte >= 0) {
            const char b = (char)byte;
            TRY_OUT(text_add(&bytes, &b, 1));
            continue;
        }
        TRY_OUT(flush_bytes(out, &bytes));
        TRY_OUT(text_add(&out->text, s, n));
        TRY_OUT(pieces_close(out));
    }
    TRY_OUT(flush_bytes(out, &bytes));
out:
    text_free(&bytes);
    return err;
}

static enum err strip_piece(struct text *out, const struct decode_step *step, const char *s,
                            size_t n)
{
    const size_t k = strlen(step->from);
    for (int64_t i = 0; i < step->start && n >= k && !memcmp(s, step->from, k); i++) {
        s += k;
        n -= k;
    }
    for (int64_t i = 0; i < step->stop && n >= k && !memcmp(s + n - k, step->from, k); i++)
        n -= k;
    return text_add(out, s, n);
}

static enum err run_piece(struct text *out, struct step_work *work,
                          const struct decode_step *step, const char *s, size_t n,
                          bool is_first)
{
    switch (step->kind) {
    case DECODE_REPLACE:
        return text_add_rewritten(out, work, s, n, step->from, step->regex, step->to);
    case DECODE_STRIP:
        return strip_piece(out, step, s, n);
    case DECODE_METASPACE:
        return text_add_replaced(out, s, n, step->from,
                                 is_first && step->drop_first ? "" : " ");
    default:
        return text_add(out, s, n);
    }
}

static enum err run_step(struct pieces *out, struct step_work *work,
                         const struct decode_step *step, const struct pieces *in)
{
    size_t n;
    if (step->kind == DECODE_BYTE_LEVEL)
        return run_byte_level(out, in);
    if (step->kind == DECODE_BYTE_FALLBACK)
        return run_byte_fallback(out, in);
    for (size_t i = 0; i < in->n; i++) {
        const char *s = piece(&n, in, i);
        TRY(run_piece(&out->text, work, step, s, n, i == 0));
        if (step->kind != DECODE_FUSE)
            TRY(pieces_close(out));
    }
    return step->kind == DECODE_FUSE ? pieces_close(out) : OK;
}

static enum err join_by_spaces(struct text *out, const struct pieces *p)
{
    size_t n;
    for (size_t i = 0; i < p->n; i++) {
        const char *s = piece(&n, p, i);
        if (i)
            TRY(text_add(out, " ", 1));
        TRY(text_add(out, s, n));
    }
    return OK;
}

enum err decoder_run(struct text *out, const struct decoder *d, struct pieces *p)
{
    enum err err = OK;
    struct pieces next = {0};
    struct step_work work = {.growth.bytes = p->text.n};
    if (d->is_null)
        return join_by_spaces(out, p);
    for (int i = 0; i < d->n; i++) {
        next.text.n = next.n = 0;
        TRY_OUT(run_step(&next, &work, &d->step[i], p));
        const struct pieces swap = *p;
        *p = next;
        next = swap;
    }
    TRY_OUT(text_add(out, p->text.p, p->text.n));
out:
    pieces_free(&next);
    step_work_free(&work);
    return err;
}

void decoder_free(struct decoder *d)
{
    for (int i = 0; i < d->n; i++) {
        mem_free(d->step[i].from);
        mem_free(d->step[i].to);
        regex_close(&d->step[i].regex);
    }
    *d = (struct decoder){0};
}
