/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf.h"
#include "convert/checkpoint/hf_fused.h"
#include "convert/export/hub.h"
#include "convert/format/tensor_names.h"

#include <inttypes.h>
#include <stdio.h>

struct hub_module hub_module_of(const struct export_linear *l)
{
    struct hub_module m = {.part = l, .n = 1, .out = l->packed->out, .in = l->packed->in};
    snprintf(m.name, sizeof(m.name), "%s", l->name);
    return m;
}

struct hub_module hub_module_at(const struct export_source *s, int64_t i)
{
    const struct export_linear *l = &s->linear[i];
    const struct hf_fused *fused = s->arch->fused ? hf_fused_at(l->lin) : NULL;
    struct hub_module m = hub_module_of(l);
    if (!fused)
        return m;
    m.n = fused->n;
    for (int k = 1; k < m.n; k++)
        m.out += l[k].packed->out;
    layer_tensor_name(m.name, sizeof(m.name), l->layer, fused->module, "");
    return m;
}

bool hub_module_is_plain(const struct hub_module *m)
{
    bool plain = true;
    for (int k = 0; k < m->n; k++)
        plain = plain && m->part[k].packed->bits == 16;
    return plain;
}

static bool is_of_expert(const struct export_linear *l)
{
    return l->packed == &l->rows;
}

/* All experts of a layer, by the first projection of the first one. */
static void add_experts(json_t *list, const struct export_source *s,
                        const struct export_linear *l, bool patterns)
{
    char text[sizeof(l->name)];
    if (l != &s->linear[export_linear_at(s, l->layer, LIN_GATE)])
        return;
    if (patterns)
        snprintf(text, sizeof(text), "re:.*layers\\.%" PRId64 "\\..*experts\\..*",
                 l->layer);
    else
        hf_experts_module(text, sizeof(text), s->arch, l->layer);
    json_array_append_new(list, json_string(text));
}

void hub_add_plain_names(json_t *list, const struct export_source *s, bool patterns)
{
    for (int64_t i = 0; i < s->n_linears;) {
        const struct hub_module m = hub_module_at(s, i);
        const bool plain = hub_module_is_plain(&m);
        if (plain && is_of_expert(m.part))
            add_experts(list, s, m.part, patterns);
        else if (plain)
            json_array_append_new(list, json_string(m.name));
        i += m.n;
    }
}

enum err hub_module_check_words(const struct hub_module *m, int64_t rows,
                                const char *format)
{
    const bool whole = m->n > 1 || is_of_expert(m->part);
    for (int k = 0; whole && k < m->n; k++)
        FAIL_IF(m->part[k].packed->out % rows, ERR_SUPPORT,
                "%s has %" PRId64 " rows, and --format %s packs %" PRId64
                " of %s in a word; use --format dense",
                m->part[k].name, m->part[k].packed->out, format, rows, m->name);
    return OK;
}

/* Returns t as if part k were all of it. */
static struct hub_tensor part_of(const struct hub_tensor *t, int k)
{
    struct hub_tensor one = *t;
    one.linear = &t->linear[k];
    one.n_linears = 1;
    if (t->src)
        one.src = one.linear->weight;
    one.rows = (one.linear->packed->out + t->unit - 1) / t->unit;
    return one;
}

enum err hub_fill(const struct hub_tensor *t, uint8_t *dst, int64_t first, int64_t n,
                  void *scratch)
{
    int64_t begin = 0; /* row of t where part k begins */
    if (t->n_linears < 2 || !t->unit)
        return t->fill(t, dst, first, n, scratch);
    for (int k = 0; k < t->n_linears; k++) {
        const struct hub_tensor one = part_of(t, k);
        const int64_t from = first > begin ? first : begin;
        const int64_t end = begin + one.rows < first + n ? begin + one.rows : first + n;
        if (from < end)
            TRY(t->fill(&one, dst + (size_t)(from - first) * t->row_bytes, from - begin,
                        end - from, scratch));
        begin += one.rows;
    }
    return OK;
}
