/* SPDX-License-Identifier: MIT */
#include "kernels/tensor/mix.h"

#include "kernels/base/mem.h"
#include "kernels/tensor/quant.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define KINDS_MAX 7

static const char *const weight_kinds[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                           "gate_proj", "up_proj", "down_proj"};
static const char *const kv_kinds[] = {"k", "v"};

/* bits 0: no rule applies. */
struct row {
    struct mix_format kind[KINDS_MAX];
};

struct mix {
    enum mix_of of;
    int64_t n;       /* number of layers up to the last one that a rule names */
    struct row *row; /* [n] */
    struct row rest; /* the format of all later layers */
};

static int n_kinds(enum mix_of of)
{
    return of == MIX_WEIGHTS ? (int)ARRAY_LEN(weight_kinds) : (int)ARRAY_LEN(kv_kinds);
}

static const char *kind_name(enum mix_of of, int kind)
{
    return of == MIX_WEIGHTS ? weight_kinds[kind] : kv_kinds[kind];
}

enum err mix_new(struct mix **out, enum mix_of of)
{
    struct mix *m = NULL;
    TRY(mem_calloc(&m, 1, sizeof(*m)));
    m->of = of;
    *out = m;
    return OK;
}

void mix_free(struct mix *m)
{
    if (m)
        mem_free(m->row);
    mem_free(m);
}

static enum err grow(struct mix *m, int64_t n)
{
    if (n <= m->n)
        return OK;
    TRY(mem_resize(&m->row, (size_t)m->n, (size_t)n, sizeof(*m->row)));
    for (; m->n < n; m->n++)
        m->row[m->n] = m->rest;
    return OK;
}

enum err mix_set(struct mix *m, int64_t first, int64_t last, int kind, struct mix_format f)
{
    const bool all = first == MIX_ALL_LAYERS;
    if (all)
        m->rest.kind[kind] = f;
    else
        TRY(grow(m, last + 1));
    for (int64_t i = all ? 0 : first; i < (all ? m->n : last + 1); i++)
        m->row[i].kind[kind] = f;
    return OK;
}

bool mix_find(struct mix_format *out, const struct mix *m, int64_t layer, int kind)
{
    if (!m)
        return false;
    const struct mix_format f = (layer < m->n ? &m->row[layer] : &m->rest)->kind[kind];
    if (f.bits)
        *out = f;
    return f.bits != 0;
}

bool mix_quantizes(const struct mix *m)
{
    struct mix_format f;
    for (int64_t i = 0; m && i <= m->n; i++)
        for (int kind = 0; kind < n_kinds(m->of); kind++)
            if (mix_find(&f, m, i, kind) && f.bits < 16)
                return true;
    return false;
}

/* --- text to rules ------------------------------------------------------------------- */

struct rule {
    const char *text; /* [n], not NUL-terminated */
    size_t n;
    int64_t first, last;
    int kind;
    struct mix_format format;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Reads a number of digits only, at most `most`, and moves *at past it. */
static bool read_number(int64_t *out, const char **at, const char *end, int64_t most)
{
    const char *p = *at;
    int64_t v = 0;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        v = v * 10 + (*p - '0');
        if (v > most)
            return false;
    }
    if (p == *at)
        return false;
    *at = p;
    *out = v;
    return true;
}

/* Reads [LAYERS.]; a kind does not start with a digit. */
static bool read_layers(struct rule *r, const char **at, const char *end)
{
    r->first = r->last = MIX_ALL_LAYERS;
    if (*at == end || **at < '0' || **at > '9')
        return true;
    if (!read_number(&r->first, at, end, MIX_LAYERS_MAX - 1))
        return false;
    r->last = r->first;
    if (*at < end && **at == '-') {
        ++*at;
        if (!read_number(&r->last, at, end, MIX_LAYERS_MAX - 1) || r->last < r->first)
            return false;
    }
    return *at < end && *(*at)++ == '.';
}

static bool read_kind(struct rule *r, enum mix_of of, const char **at, const char *end)
{
    for (r->kind = 0; r->kind < n_kinds(of); r->kind++) {
        const char *name = kind_name(of, r->kind);
        const size_t n = strlen(name);
        if ((size_t)(end - *at) > n && !memcmp(*at, name, n) && (*at)[n] == '=') {
            *at += n + 1;
            return true;
        }
    }
    return false;
}

static bool read_bits(struct rule *r, const char **at, const char *end)
{
    int64_t bits;
    if (!read_number(&bits, at, end, QUANT_BITS_NONE) || !quant_bits_setting_ok(bits))
        return false;
    r->format.bits = (int)bits;
    return *at == end || **at == ':';
}

static bool read_group(struct rule *r, enum mix_of of, const char **at, const char *end)
{
    r->format.group_size = MIX_NO_GROUP;
    if (*at == end)
        return true;
    ++*at;
    return read_number(&r->format.group_size, at, end, QUANT_GROUP_MAX) && *at == end &&
           (r->format.group_size > 0 || of == MIX_WEIGHTS);
}

/* Reads one rule. Returns what is wrong with it, or NULL. */
static const char *read_rule(struct rule *r, enum mix_of of)
{
    const char *at = r->text, *end = r->text + r->n;
    const bool weights = of == MIX_WEIGHTS;
    if (!r->n)
        return weights ? "is empty; want [LAYERS.]KIND=BITS[:GROUP], as in "
                         "0-3.down_proj=5:128"
                       : "is empty; want [LAYERS.]KIND=BITS[:GROUP], as in 0-3.k=5:64";
    if (!read_layers(r, &at, end))
        return weights ? "want layers from 0 to 4095 and a point, as in 7. or 0-3., in "
                         "front of the kind"
                       : "want layers from 0 to 4095 and a point, as in 7. or 0-3., in "
                         "front of k or v";
    if (!read_kind(r, of, &at, end))
        return weights ? "want q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or "
                         "down_proj and =, as in v_proj=8"
                       : "want k or v and =, as in k=5";
    if (!read_bits(r, &at, end))
        return "want 2 to 8 bits, or 16 for unquantized";
    if (!read_group(r, of, &at, end))
        return weights ? "want a group size from 0 (the row) to 16777216 after the colon"
                       : "want a group size from 1 to 16777216 after the colon";
    return NULL;
}

/* The rule up to the next comma. Moves *at past the comma, or sets it to NULL at the
 * end. */
static struct rule cut_rule(const char **at)
{
    const char *begin = *at, *comma = strchr(begin, ',');
    const char *end = comma ? comma : begin + strlen(begin);
    *at = comma ? comma + 1 : NULL;
    while (begin < end && is_blank(*begin))
        begin++;
    while (end > begin && is_blank(end[-1]))
        end--;
    return (struct rule){.text = begin, .n = (size_t)(end - begin)};
}

static enum err parse_rules(struct mix *m, const char *text, enum err bad,
                            const char *where)
{
    for (const char *at = text; at;) {
        struct rule r = cut_rule(&at);
        const char *wrong = read_rule(&r, m->of);
        FAIL_IF(wrong, bad, "%s: rule '%.*s': %s", where, (int)(r.n < 60 ? r.n : 60),
                r.text, wrong);
        TRY(mix_set(m, r.first, r.last, r.kind, r.format));
    }
    return OK;
}

enum err mix_parse(struct mix **out, enum mix_of of, const char *text, enum err bad,
                   const char *where)
{
    struct mix *m = NULL;
    const char *at = text;
    while (is_blank(*at))
        at++;
    if (!*at) {
        *out = NULL;
        return OK;
    }
    TRY(mix_new(&m, of));
    const enum err err = parse_rules(m, text, bad, where);
    if (err)
        mix_free(m);
    else
        *out = m;
    return err;
}

/* --- rules to text ------------------------------------------------------------------- */

static bool same(struct mix_format a, struct mix_format b)
{
    return a.bits == b.bits && a.group_size == b.group_size;
}

/* A text that grows. */
struct text {
    char *at; /* NUL-terminated */
    size_t n, room;
};

static enum err put_rule(struct text *t, const struct mix *m, int64_t first, int64_t last,
                         int kind)
{
    char rule[128], layers[64] = "", group[32] = "";
    const struct mix_format f =
        (first == MIX_ALL_LAYERS ? &m->rest : &m->row[first])->kind[kind];
    if (first < last)
        snprintf(layers, sizeof(layers), "%" PRId64 "-%" PRId64 ".", first, last);
    else if (first != MIX_ALL_LAYERS)
        snprintf(layers, sizeof(layers), "%" PRId64 ".", first);
    if (f.group_size != MIX_NO_GROUP)
        snprintf(group, sizeof(group), ":%" PRId64, f.group_size);
    const int n = snprintf(rule, sizeof(rule), "%s%s%s=%d%s", t->n ? ", " : "", layers,
                           kind_name(m->of, kind), f.bits, group);
    if (t->n + (size_t)n >= t->room) {
        const size_t room = 2 * t->room + sizeof(rule);
        TRY(mem_resize(&t->at, t->room, room, 1));
        t->room = room;
    }
    memcpy(t->at + t->n, rule, (size_t)n + 1);
    t->n += (size_t)n;
    return OK;
}

/* Appends the rule for all layers, then the ranges of layers that differ from it. */
static enum err put_kind(struct text *t, const struct mix *m, int kind)
{
    const struct mix_format all = m->rest.kind[kind];
    if (all.bits)
        TRY(put_rule(t, m, MIX_ALL_LAYERS, MIX_ALL_LAYERS, kind));
    for (int64_t i = 0, end; i < m->n; i = end) {
        const struct mix_format f = m->row[i].kind[kind];
        for (end = i + 1; end < m->n && same(m->row[end].kind[kind], f);)
            end++;
        if (f.bits && !same(f, all))
            TRY(put_rule(t, m, i, end - 1, kind));
    }
    return OK;
}

enum err mix_text(char **out, const struct mix *m)
{
    struct text t = {0};
    enum err err = mem_strdup(&t.at, "");
    t.room = 1;
    for (int kind = 0; m && !err && kind < n_kinds(m->of); kind++)
        err = put_kind(&t, m, kind);
    if (err)
        mem_free(t.at);
    else
        *out = t.at;
    return err;
}

enum err mix_check_layers(const struct mix *m, int64_t n_layers, enum err bad,
                          const char *where)
{
    struct text t = {0};
    if (!m)
        return OK;
    for (int64_t i = n_layers; i < m->n; i++)
        for (int kind = 0; kind < n_kinds(m->of); kind++) {
            if (same(m->row[i].kind[kind], m->rest.kind[kind]))
                continue;
            TRY(put_rule(&t, m, i, i, kind));
            err_set(bad, __FILE__, __LINE__,
                    "%s: rule '%s': the model has layers 0 to %" PRId64, where, t.at,
                    n_layers - 1);
            mem_free(t.at);
            return bad;
        }
    return OK;
}
