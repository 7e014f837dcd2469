/* SPDX-License-Identifier: MIT
 *
 * The file of a sweep: one base configuration, and the cells that differ from it.
 *
 *   title: The method, each part taken away   # of the report
 *   base: {calibration: {samples: 32}, crr.blocks: 3}   # sections or dotted keys
 *   grid: {weights.group_size: [64, 128], kv.bits: [4, 8]}   # every combination
 *   cells:
 *     - {name: token only, set: {kv.method: token}}
 *   claims: ...            # sweep_claims.h
 *   eval: {data: wiki.test.raw, windows: 12, ctx: 2048} */
#ifndef WKVQ_SWEEP_PLAN_H
#define WKVQ_SWEEP_PLAN_H

#include "tools/recipe/recipe.h"

#include <jansson.h>

#define SWEEP_CELLS_MAX 1024

/* "KEY=VALUE" strings, owned. */
struct set_list {
    char **item;
    int n;
};

struct sweep_cell {
    char *name; /* owned, unique in the plan */
    int line;   /* line of its definition in the file */
    struct set_list set;
};

struct sweep_plan {
    const char *path; /* of the file, borrowed; NULL: made by `wkvq tune` */
    char *title;      /* owned; NULL: none */
    json_t
        *claims; /* array of {"claim", "better", "than", "by", "line"}, owned; NULL: none */
    struct set_list base;
    struct set_list budget; /* overrides the command line; not listed in a cell's set */
    struct recipe_files eval_data;
    int64_t eval_windows, eval_ctx; /* default 0 (all windows) and 2048 tokens */
    struct sweep_cell *cell;
    int n_cells;
};

/* Reads a sweep's file. Errors name file and line. ERR_USAGE: not a sweep, a name used
 * twice, or more than SWEEP_CELLS_MAX cells. ERR_FORMAT: not YAML. Keys and values are
 * checked later, when each cell's recipe is made. Free p whatever the result. */
enum err sweep_plan_load(struct sweep_plan *p, const char *path);
void sweep_plan_free(struct sweep_plan *p); /* accepts a zeroed one */

enum err set_list_add(struct set_list *l, const char *key, const char *value);
void set_list_free(struct set_list *l);

#endif
