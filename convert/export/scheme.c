/* SPDX-License-Identifier: MIT
 *
 * Chooses bits and groups that engines have, so that every value stays the same. A group of
 * 128 columns is two groups of 64 with the same scale and zero point. A 3-bit code with its
 * scale and zero point is also a 4-bit one. */
#include "convert/export/hub.h"

#include <inttypes.h>
#include <string.h>

#define GROUP_MIN 32  /* engines have kernels for groups of 32, 64 and 128 columns */
#define GROUP_MAX 128 /* and for whole rows */

/* Projections that engines compute in one product. */
static const int fused[N_LIN] = {
    [LIN_Q] = 0,    [LIN_K] = 0,  [LIN_V] = 0,    [LIN_O] = 1,
    [LIN_GATE] = 2, [LIN_UP] = 2, [LIN_DOWN] = 3,
};

/* Experts have one kernel, which takes one format for all three products. */
static int set_of(const struct arch *a, int lin)
{
    return arch_of_experts(a, lin) ? fused[LIN_GATE] : fused[lin];
}

static int64_t gcd(int64_t a, int64_t b)
{
    while (b) {
        const int64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static bool whole_rows(const struct packed_linear *p)
{
    return p->groups == 1;
}

/* Returns the largest group, in columns, that never crosses the border of two groups of p
 * and divides its rows. */
static int64_t finest(const struct packed_linear *p)
{
    return whole_rows(p) ? p->in : gcd(p->group_size, p->in);
}

/* Two projections of one class get one group size: those of the same group size in the
 * artifact, or all of them. */
static bool same_class(const struct packed_linear *a, const struct packed_linear *b,
                       bool one_group)
{
    return a->bits < 16 && b->bits < 16 && (one_group || a->group_size == b->group_size);
}

/* Returns the group of all projections of p's class; 0 if all have one group per row. */
static int64_t class_group(const struct export_source *s, const struct packed_linear *p,
                           bool one_group)
{
    int64_t group = 0;
    bool rows = true;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const struct packed_linear *o = s->linear[i].packed;
        if (!same_class(o, p, one_group))
            continue;
        rows = rows && whole_rows(o);
        group = gcd(group, finest(o));
    }
    return rows ? 0 : gcd(group, GROUP_MAX);
}

static enum err check_bits(const struct export_job *j, const struct export_linear *l,
                           int most)
{
    FAIL_IF(l->packed->bits < 16 && l->packed->bits > most, ERR_SUPPORT,
            "%s has %d bits, and --format %s holds at most %d; %s", l->name,
            l->packed->bits, j->format->name, most,
            most < 8 ? "use --format compressed-tensors, which holds 8"
                     : "use --format dense");
    return OK;
}

/* Refuses a set of a layer of which only some are quantized. */
static enum err check_set(const struct export_source *s, int64_t layer, int set)
{
    const struct export_linear *full = NULL, *packed = NULL;
    for (int i = 0; i < N_LIN; i++) {
        const struct export_linear *l = &s->linear[export_linear_at(s, layer, i)];
        if (set_of(s->arch, i) == set && l->packed->bits == 16)
            full = l;
        else if (set_of(s->arch, i) == set)
            packed = l;
    }
    FAIL_IF(full && packed, ERR_SUPPORT,
            "%s has 16 bits and %s %d, but engines fuse them and need one format; quantize "
            "both or neither in weights.mixed, or use --format dense",
            full->name, packed->name, packed->packed->bits);
    return OK;
}

/* Gives the projections of a set the most bits and the smallest group among them. scheme
 * [N_LIN]: of one layer. */
static enum err unify(struct scheme *scheme, const struct export_source *s, int64_t layer,
                      int set)
{
    struct scheme all = {0};
    bool rows = true;
    TRY(check_set(s, layer, set));
    for (int i = 0; i < N_LIN; i++) {
        if (set_of(s->arch, i) != set)
            continue;
        const int64_t in = arch_in(s->arch, i);
        all.bits = scheme[i].bits > all.bits ? scheme[i].bits : all.bits;
        all.group = gcd(all.group, scheme[i].group ? scheme[i].group : in);
        rows = rows && !scheme[i].group;
    }
    all.group = rows ? 0 : gcd(all.group, GROUP_MAX);
    for (int i = 0; i < N_LIN; i++)
        if (set_of(s->arch, i) == set)
            scheme[i] = all;
    return OK;
}

/* Returns the projection that makes the groups of l so small: l itself, or the first with no larger
 * ones, of those with the same group size if there is one. */
static const struct export_linear *smallest(const struct export_source *s,
                                            const struct export_linear *l, int64_t group)
{
    const struct export_linear *found = NULL;
    if (l->layer < 0 || gcd(finest(l->packed), GROUP_MAX) <= group)
        return l;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const struct packed_linear *p = s->linear[i].packed;
        if (p->bits == 16 || gcd(finest(p), GROUP_MAX) > group)
            continue;
        if (same_class(p, l->packed, false))
            return &s->linear[i];
        found = found ? found : &s->linear[i];
    }
    return found ? found : l;
}

static enum err check_group(const struct export_job *j, const struct export_linear *l,
                            const struct scheme *s)
{
    if (s->bits == 16 || !s->group || s->group >= GROUP_MIN)
        return OK;
    const struct export_linear *least = smallest(j->source, l, s->group);
    const int64_t in = least->packed->in;
    FAIL(
        ERR_SUPPORT,
        "%s: group_size %" PRId64 " on rows of %" PRId64
        " columns leaves equal groups of %" PRId64
        ", and engines need 32, 64 or 128%s; choose %s.group_size %s0 (whole rows), or use "
        "--format dense",
        least->name, least->packed->group_size, in, s->group,
        least == l ? "" : ", of one size for all projections that share it",
        l->layer < 0 ? "head" : "weights", in % GROUP_MIN ? "" : "32, 64, 128 or ");
}

static enum err note_changes(struct export_job *j, const struct scheme *scheme)
{
    int64_t wider = 0, smaller = 0, least = INT64_MAX;
    const struct export_source *s = j->source;
    for (int64_t i = 0; i < s->n_linears; i++) {
        const struct packed_linear *p = s->linear[i].packed;
        const struct scheme to = scheme_of(scheme, &s->linear[i]);
        if (p->bits == 16)
            continue;
        wider += to.bits > p->bits;
        if (scheme_groups(p, to.group) != p->groups) {
            smaller++;
            least = to.group < least ? to.group : least;
        }
    }
    if (smaller)
        TRY(export_note(j, EXPORT_CHANGED,
                        "The groups of %" PRId64 " of %" PRId64
                        " projections are split, to %" PRId64
                        " columns at least; all values stay the same",
                        smaller, s->n_linears, least));
    if (wider)
        TRY(export_note(j, EXPORT_CHANGED,
                        "The codes of %" PRId64 " of %" PRId64
                        " projections are stored with more bits; all values stay the same",
                        wider, s->n_linears));
    return OK;
}

/* The experts of a layer have one scheme, so that the first one stands for all. */
static const struct export_linear *linear_of_scheme(const struct export_source *s,
                                                    int64_t i)
{
    return &s->linear[export_linear_at(s, i / N_LIN, (int)(i % N_LIN))];
}

enum err schemes_find(struct scheme *scheme, struct export_job *j, int most, bool one_group)
{
    const struct export_source *s = j->source;
    const int64_t n = s->arch->n_layers * N_LIN;
    for (int64_t i = 0; i < n; i++) {
        const struct export_linear *l = linear_of_scheme(s, i);
        TRY(check_bits(j, l, most));
        const int bits = l->packed->bits;
        scheme[i] = (struct scheme){bits <= 4 ? 4 : bits <= 8 ? 8 : 16, 0};
        if (bits < 16)
            scheme[i].group = class_group(s, l->packed, one_group);
    }
    for (int64_t layer = 0; layer < s->arch->n_layers; layer++) {
        TRY(unify(scheme + layer * N_LIN, s, layer, fused[LIN_Q]));
        TRY(unify(scheme + layer * N_LIN, s, layer, fused[LIN_GATE]));
    }
    for (int64_t i = 0; i < n; i++)
        TRY(check_group(j, linear_of_scheme(s, i), &scheme[i]));
    return note_changes(j, scheme);
}

enum err scheme_of_head(struct scheme *out, const struct export_job *j)
{
    const struct export_linear *l = &j->source->end[1];
    *out =
        (struct scheme){4, whole_rows(l->packed) ? 0 : gcd(finest(l->packed), GROUP_MAX)};
    return check_group(j, l, out);
}

struct scheme scheme_of(const struct scheme *scheme, const struct export_linear *l)
{
    return scheme[l->layer * N_LIN + l->lin];
}

bool scheme_same(struct scheme a, struct scheme b)
{
    return a.bits == b.bits && a.group == b.group;
}

bool scheme_is_new(const struct scheme *scheme, int64_t i)
{
    bool is_new = scheme[i].bits < 16;
    for (int64_t k = 0; k < i && is_new; k++)
        is_new = !scheme_same(scheme[k], scheme[i]);
    return is_new;
}

int64_t scheme_source_group(const struct packed_linear *p, int64_t group, int64_t g)
{
    return whole_rows(p) ? 0 : g * group / p->group_size;
}

int64_t scheme_groups(const struct packed_linear *p, int64_t group)
{
    return group ? p->in / group : 1;
}
