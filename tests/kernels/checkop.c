/* SPDX-License-Identifier: MIT */
#include "tests/kernels/checkop.h"

#include "kernels/base/bytes.h"
#include "kernels/base/clock.h"
#include "kernels/base/half.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD 256 /* bytes of poison before and after a tensor */

const char *const ck_pattern_name[N_PATTERNS] = {
    "random", "zero", "one", "large", "small", "alternating", "mixed", "offset"};

enum role { ROLE_INPUT, ROLE_OUTPUT, ROLE_WORK };

struct ck_block {
    struct ck_block *next;
    struct tensor t;
    uint8_t *mem;
    size_t bytes; /* of mem, guards included */
    enum role role;
    uint32_t crc; /* of an input, from its last filling */
};

/* The harness cannot continue without memory. */
static void *must_have(void *p)
{
    if (!p) {
        fprintf(stderr, "checkop: no memory\n");
        exit(1);
    }
    return p;
}

/* A fixed distance would meet the same types and patterns again and again. Of the first `every`
 * cases the first is drawn, so that each operation has one. */
static bool drawn(const struct ck *c, int number)
{
    struct rng r;
    if (c->every <= 1)
        return true;
    rng_seed(&r, c->seed + (uint64_t)(number / c->every));
    const uint64_t at = rng_below(&r, (uint64_t)c->every);
    return number % c->every == (number < c->every ? 0 : (int)at);
}

bool ck_begin(struct ck *c, const char *fmt, ...)
{
    const int number = c->n_listed++;
    if (!drawn(c, number))
        return false;
    c->n_cases++;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->name, sizeof(c->name), fmt, ap);
    va_end(ap);
    rng_seed(&c->rng, c->seed * 1000003u + (uint64_t)number);
    c->case_failed = 0;
    err_clear();
    return true;
}

void ck_fail(struct ck *c, const char *fmt, ...)
{
    c->case_failed++;
    c->n_failed++;
    if (c->quiet || c->case_failed > 4)
        return;
    char text[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("FAIL %s (%s, seed %llu): %s: %s\n", c->op, c->level,
           (unsigned long long)c->seed, c->name, text);
}

int64_t ck_rows(const struct tensor *x)
{
    return x->n_dims == 1 ? 1 : x->dim[0];
}

int64_t ck_cols(const struct tensor *x)
{
    return tensor_count(x) / ck_rows(x);
}

/* Returns whether byte i after the start of the first row belongs to an element. */
static bool inside(const struct tensor *t, size_t i)
{
    const size_t unit = dtype_bytes(t->dtype);
    const size_t ld = (size_t)(t->n_dims == 1 ? t->dim[0] : t->ld) * unit;
    return i / ld < (size_t)ck_rows(t) && i % ld < (size_t)ck_cols(t) * unit;
}

static void check_guards(struct ck *c, const struct ck_block *b)
{
    for (size_t i = 0; i < b->bytes; i++) {
        if (b->mem[i] == CK_POISON || (i >= GUARD && inside(&b->t, i - GUARD)))
            continue;
        ck_fail(c, "a byte %ld after the start of a %s [%ld,%ld] (ld %ld) was overwritten",
                (long)i - GUARD, dtype_name(b->t.dtype), (long)ck_rows(&b->t),
                (long)ck_cols(&b->t), (long)b->t.ld);
        return;
    }
}

void ck_end(struct ck *c)
{
    for (struct ck_block *b = c->blocks, *next; b; b = next) {
        next = b->next;
        if (b->role != ROLE_WORK && !c->bench)
            check_guards(c, b);
        if (b->role == ROLE_INPUT && bytes_crc32(0, b->mem, b->bytes) != b->crc)
            ck_fail(c, "an input [%ld,%ld] was changed", (long)ck_rows(&b->t),
                    (long)ck_cols(&b->t));
        ck_memory_free(c, b->mem);
        free(b);
    }
    c->blocks = NULL;
    if (c->first && c->case_failed) {
        printf("%d failures, at the first\n", c->case_failed);
        exit(1);
    }
}

struct ck_shape ck_1d(int64_t n)
{
    return (struct ck_shape){DT_F32, 1, {n}, 0};
}

struct ck_shape ck_2d(enum dtype t, int64_t rows, int64_t cols, int64_t pad)
{
    return (struct ck_shape){t, 2, {rows, cols}, pad};
}

struct ck_shape ck_3d(enum dtype t, int64_t n0, int64_t n1, int64_t n2, int64_t pad)
{
    return (struct ck_shape){t, 3, {n0, n1, n2}, pad};
}

static struct ck_block *new_block(struct ck *c, struct ck_shape s, enum role role)
{
    struct ck_block *b = must_have(calloc(1, sizeof(*b)));
    const int64_t rows = s.n_dims == 1 ? 1 : s.dim[0];
    int64_t cols = s.n_dims == 1 ? s.dim[0] : 1;
    for (int i = 1; i < s.n_dims; i++)
        cols *= s.dim[i];
    b->bytes = (size_t)(rows * (cols + s.pad)) * dtype_bytes(s.dtype) + 2 * GUARD;
    b->mem = must_have(ck_memory(c, b->bytes));
    memset(b->mem, CK_POISON, b->bytes);
    b->role = role;
    b->t = (struct tensor){.data = b->mem + GUARD,
                           .dtype = s.dtype,
                           .n_dims = s.n_dims,
                           .dim = {s.dim[0], s.dim[1], s.dim[2]},
                           .ld = cols + s.pad};
    b->next = c->blocks;
    c->blocks = b;
    return b;
}

double *ck_doubles(struct ck *c, int64_t n)
{
    struct ck_block *b = new_block(c, ck_1d(2 * n + 2), ROLE_WORK);
    memset(b->t.data, 0, (size_t)n * sizeof(double));
    return b->t.data;
}

double ck_get(const struct tensor *x, int64_t row, int64_t col)
{
    const size_t at = (size_t)(row * x->ld + col) * dtype_bytes(x->dtype);
    float v;
    host_to_f32(&v, (const char *)x->data + at, x->dtype, 1);
    return (double)v;
}

void ck_set(const struct tensor *x, int64_t row, int64_t col, double v)
{
    const int64_t i = row * x->ld + col;
    if (x->dtype == DT_F32)
        ((float *)x->data)[i] = (float)v;
    else
        ((uint16_t *)x->data)[i] =
            x->dtype == DT_F16 ? f16_from_f32((float)v) : bf16_from_f32((float)v);
}

static double pattern_value(struct ck *c, enum ck_pattern p, int64_t row, int64_t col)
{
    switch (p) {
    case PAT_ZERO:
        return 0;
    case PAT_ONE:
        return 1;
    case PAT_LARGE:
        return 1e4 * rng_normal(&c->rng);
    case PAT_SMALL:
        return 1e-9 * rng_normal(&c->rng);
    case PAT_ALTERNATING:
        return (row + col) % 2 ? -0.75 : 0.75;
    case PAT_MIXED:
        return rng_normal(&c->rng) * pow(10, 8 * rng_uniform(&c->rng) - 4);
    case PAT_OFFSET:
        return 30 + 0.05 * rng_normal(&c->rng);
    default:
        return rng_normal(&c->rng);
    }
}

static void fill(struct ck *c, const struct tensor *x, enum ck_pattern p)
{
    for (int64_t r = 0; r < ck_rows(x); r++)
        for (int64_t k = 0; k < ck_cols(x); k++)
            ck_set(x, r, k, pattern_value(c, p, r, k));
}

struct tensor ck_in(struct ck *c, struct ck_shape s, enum ck_pattern p)
{
    struct ck_block *b = new_block(c, s, ROLE_INPUT);
    fill(c, &b->t, p);
    return b->t;
}

struct tensor ck_in_range(struct ck *c, struct ck_shape s, double lo, double hi)
{
    struct ck_block *b = new_block(c, s, ROLE_INPUT);
    for (int64_t r = 0; r < ck_rows(&b->t); r++)
        for (int64_t k = 0; k < ck_cols(&b->t); k++)
            ck_set(&b->t, r, k, lo + (hi - lo) * rng_uniform(&c->rng));
    return b->t;
}

struct tensor ck_in_empty(struct ck *c, struct ck_shape s)
{
    return new_block(c, s, ROLE_INPUT)->t;
}

struct ck_out ck_poisoned(struct ck *c, struct ck_shape s)
{
    struct ck_out o;
    for (int i = 0; i < N_SIDES; i++)
        o.side[i] = new_block(c, s, ROLE_OUTPUT)->t;
    return o;
}

struct ck_out ck_twins(struct ck *c, struct ck_shape s, enum ck_pattern p)
{
    struct ck_out o = ck_poisoned(c, s);
    fill(c, &o.side[0], p);
    for (int64_t r = 0; r < ck_rows(&o.side[0]); r++)
        for (int64_t k = 0; k < ck_cols(&o.side[0]); k++)
            ck_set(&o.side[1], r, k, ck_get(&o.side[0], r, k));
    return o;
}

struct ck_out ck_copies(struct ck *c, const struct tensor *x, int64_t pad)
{
    struct ck_shape s = {x->dtype, x->n_dims, {x->dim[0], x->dim[1], x->dim[2]}, pad};
    struct ck_out o = ck_poisoned(c, s);
    for (int i = 0; i < N_SIDES; i++)
        for (int64_t r = 0; r < ck_rows(x); r++)
            for (int64_t k = 0; k < ck_cols(x); k++)
                ck_set(&o.side[i], r, k, ck_get(x, r, k));
    return o;
}

void ck_seal(struct ck *c)
{
    for (struct ck_block *b = c->blocks; b; b = b->next)
        if (b->role == ROLE_INPUT)
            b->crc = bytes_crc32(0, b->mem, b->bytes);
}

int ck_first(struct ck *c)
{
    ck_seal(c);
    c->began = clock_s();
    return SIDE_REF;
}

int ck_next(struct ck *c, int side)
{
    ck_ok(c, dev_sync(c->dev[side]));
    const double t = clock_s();
    c->seconds[side] += t - c->began;
    c->runs[side]++;
    c->began = t;
    if (c->bench && side == SIDE_CPU && c->seconds[side] < 0.1)
        return side;
    return side + 1;
}

void ck_ok(struct ck *c, enum err e)
{
    if (e)
        ck_fail(c, "error %d: %s", e, err_text());
}

static void judge(struct ck *c, const char *what, const struct close *r)
{
    if (!close_pass(r) && !c->bench)
        ck_fail(c, "%s[%ld,%ld]: want %.9g, got %.9g, error %.3g times the allowed %.3g",
                what, (long)r->row, (long)r->col, r->want, r->got, r->ratio, r->allowed);
}

void ck_close(struct ck *c, const char *what, const struct ck_out *o,
              const double *magnitude, int64_t n)
{
    const struct tensor *want = &o->side[SIDE_REF];
    const struct close r =
        close_compare(&o->side[SIDE_CPU], want, magnitude, close_tolerance(want->dtype, n));
    judge(c, what, &r);
}

void ck_close_scalar(struct ck *c, const char *what, const double *side, double magnitude,
                     int64_t n)
{
    const struct close r =
        close_scalar(side[SIDE_CPU], side[SIDE_REF], magnitude, close_tolerance(DT_F32, n));
    judge(c, what, &r);
}

void ck_bits(struct ck *c, const char *what, const struct ck_out *o)
{
    const struct close r = close_bits(&o->side[SIDE_CPU], &o->side[SIDE_REF]);
    judge(c, what, &r);
}

void ck_run(struct ck *c, const struct ck_test *t)
{
    c->op = t->op;
    c->n_listed = c->n_cases = c->n_failed = 0;
    memset(c->seconds, 0, sizeof(c->seconds));
    memset(c->runs, 0, sizeof(c->runs));
    t->run(c);
}
