/* SPDX-License-Identifier: MIT
 *
 * Memory of a model at inference, term by term, computed from its shapes. It includes the
 * terms of the paper's table and the ones missing there. */
#ifndef WKVQ_INSPECT_MEMORY_H
#define WKVQ_INSPECT_MEMORY_H

#include "calib/model/arch.h"
#include "kernels/tensor/qtensor.h"

#include <jansson.h>

#define MEMORY_LIST_MAX 16

/* Parses --batch or --length, such as "1,16". */
struct memory_list {
    int64_t value[MEMORY_LIST_MAX];
    int n;
};
/* Errors: ERR_USAGE naming the option. */
enum err memory_list_parse(struct memory_list *l, const char *option, const char *text,
                           int64_t most);

/* Bytes. */
struct memory_terms {
    uint64_t projections, weight_scales; /* codes (or weights), and scales and zeros */
    uint64_t rest;                       /* embedding, head, norms, at 16 bits */
    uint64_t cache, cache_scales;        /* codes (or elements), and scales and minima */
};
struct memory_terms memory_terms_of(const struct arch *a, const struct weight_spec *w,
                                    const struct kv_spec *kv, int64_t batch,
                                    int64_t length);
uint64_t memory_total(const struct memory_terms *t);
/* Returns bytes as the paper counts them: projections and cache, without scales, embedding
 * and head. */
uint64_t memory_paper(const struct memory_terms *t);

/* A format in the table. */
struct memory_row {
    const char *name; /* "W4KV4" */
    struct weight_spec weights;
    struct kv_spec kv;
};
/* Formats: 16 bits, and the paper's three at 4 bits. */
extern const struct memory_row memory_rows[];
extern const int memory_n_rows;

/* Prints the table at every batch and length, or returns it as a JSON array (NULL: out of
 * memory). */
void memory_print(const struct arch *a, const struct memory_row *row, int n,
                  const struct memory_list *batch, const struct memory_list *length);
json_t *memory_table_json(const struct arch *a, const struct memory_row *row, int n,
                          const struct memory_list *batch,
                          const struct memory_list *length);

#endif
