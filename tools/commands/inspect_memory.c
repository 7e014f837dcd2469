/* SPDX-License-Identifier: MIT */
#include "tools/commands/inspect_memory.h"

#include "convert/format/sizes.h"
#include "kernels/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Decimal units of a table. */
struct unit {
    double bytes;
    const char *name, *power;
};

/* Formats in groups of 128, as in the default recipe. W4A4's activations are temporary, so
 * it stores the same as W4KV4. */
#define W4                                                                                 \
    {                                                                                      \
        WEIGHT_LWC, 4, 128                                                                 \
    }
#define KV4                                                                                \
    {                                                                                      \
        .method = KV_CHANNEL_TOKEN, .bits = 4, .group_size = 128                           \
    }
const struct memory_row memory_rows[] = {
    {"FP16", {.bits = 16}, {.bits = 16}},
    {"W4", W4, {.bits = 16}},
    {"W4KV4", W4, KV4},
    {"W4A4", W4, KV4},
};
const int memory_n_rows = ARRAY_LEN(memory_rows);

enum err memory_list_parse(struct memory_list *l, const char *option, const char *text,
                           int64_t most)
{
    l->n = 0;
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        const long long v = strtoll(at, &end, 10);
        FAIL_IF(end == at || (*end && *end != ',') || errno || v < 1 || v > most, ERR_USAGE,
                "--%s=%s: want whole numbers from 1 to %" PRId64 ", as in 1,16", option,
                text, most);
        FAIL_IF(l->n == MEMORY_LIST_MAX, ERR_USAGE, "--%s=%s: at most %d numbers", option,
                text, MEMORY_LIST_MAX);
        l->value[l->n++] = v;
        if (!*end)
            return OK;
        at = end;
    }
}

/* Returns the largest unit of which every row has at least half a one, so that its parts show. */
static const struct unit *unit_for(uint64_t least)
{
    static const struct unit units[] = {
        {1e9, "GB", "10^9"}, {1e6, "MB", "10^6"}, {1e3, "kB", "10^3"}};
    size_t i = 0;
    while (i + 1 < ARRAY_LEN(units) && (double)least < 0.5 * units[i].bytes)
        i++;
    return &units[i];
}

static void print_cell(const struct unit *u, uint64_t bytes, int width)
{
    printf(" %*.2f", width, (double)bytes / u->bytes);
}

static void print_row(const struct unit *u, const char *name, const struct memory_terms *t)
{
    printf("  %-8s", name);
    print_cell(u, t->projections, 11);
    print_cell(u, t->weight_scales, 7);
    print_cell(u, t->rest, 6);
    print_cell(u, t->cache, 8);
    print_cell(u, t->cache_scales, 7);
    print_cell(u, memory_total(t), 9);
    print_cell(u, memory_paper(t), 9);
    printf("\n");
}

/* The rows of one batch and length. */
static void print_table(const struct arch *a, const struct memory_row *row, int n,
                        int64_t batch, int64_t length)
{
    uint64_t least = UINT64_MAX;
    for (int i = 0; i < n; i++) {
        const struct memory_terms t =
            memory_terms_of(a, &row[i].weights, &row[i].kv, batch, length);
        least = memory_total(&t) < least ? memory_total(&t) : least;
    }
    const struct unit *u = unit_for(least);
    printf("batch %" PRId64 ", length %" PRId64 ", %s of %s bytes\n"
           "           projections  scales   rest    cache  scales     total  "
           "as paper\n",
           batch, length, u->name, u->power);
    for (int i = 0; i < n; i++) {
        const struct memory_terms t =
            memory_terms_of(a, &row[i].weights, &row[i].kv, batch, length);
        print_row(u, row[i].name, &t);
    }
}

void memory_print(const struct arch *a, const struct memory_row *row, int n,
                  const struct memory_list *batch, const struct memory_list *length)
{
    for (int b = 0; b < batch->n; b++)
        for (int l = 0; l < length->n; l++)
            print_table(a, row, n, batch->value[b], length->value[l]);
    printf("rest: embedding and head as the format has them, norms at 16 bits. as paper: "
           "projections and cache only, without scales\n");
}

static json_t *row_json(const struct arch *a, const struct memory_row *r, int64_t batch,
                        int64_t length)
{
    const struct memory_terms t = memory_terms_of(a, &r->weights, &r->kv, batch, length);
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "format", r->name, "batch",
        (json_int_t)batch, "length", (json_int_t)length, "projection_bytes",
        (json_int_t)t.projections, "weight_scale_bytes", (json_int_t)t.weight_scales,
        "rest_bytes", (json_int_t)t.rest, "cache_bytes", (json_int_t)t.cache,
        "cache_scale_bytes", (json_int_t)t.cache_scales, "total_bytes",
        (json_int_t)memory_total(&t), "paper_bytes", (json_int_t)memory_paper(&t));
}

json_t *memory_table_json(const struct arch *a, const struct memory_row *row, int n,
                          const struct memory_list *batch, const struct memory_list *length)
{
    json_t *list = json_array();
    for (int b = 0; b < batch->n; b++)
        for (int l = 0; l < length->n; l++)
            for (int i = 0; i < n; i++)
                json_array_append_new(
                    list, row_json(a, &row[i], batch->value[b], length->value[l]));
    return list;
}
