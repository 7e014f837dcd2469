/* SPDX-License-Identifier: MIT
 *
 * The table of `wkvq inspect --memory`: memory of a model at inference, term by term
 * (convert/format/sizes.h), at batches and lengths. */
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
