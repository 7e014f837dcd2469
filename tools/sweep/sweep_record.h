/* SPDX-License-Identifier: MIT
 *
 * What a sweep's directory says besides figures: OUT/sweep.json about the latest run, and
 * the member run of each result.
 *
 *   sweep.json  {"title", "command", "claims", "cells": [{"name", "hash", "spec", "set"}] in
 *               the order of the sweep's file}; earlier versions listed names alone
 *   run         {"finished": UTC, "version", "machine", "cores": threads of the cell,
 *                "device", "model",
 *                "data": files, "eval": files} */
#ifndef WKVQ_SWEEP_RECORD_H
#define WKVQ_SWEEP_RECORD_H

#include "tools/sweep/sweep.h"

/* Returns the member run of a cell that ends now. NULL: out of memory. */
json_t *sweep_record_cell(const struct sweep *s, const struct sweep_run *run);
/* Returns the overrides of a cell as a list of texts. NULL: out of memory. */
json_t *sweep_record_set(const struct set_list *set);
/* Returns the list of cells that sweep.json has. NULL: out of memory. */
json_t *sweep_record_cells(const struct sweep *s);
/* Divides results by `cells`, the list of sweep.json: *now has those of its cells in their order,
 * with their names, numbers and overrides there, and *earlier all others, which other runs left.
 * All results are of now if the list has no hashes, or is NULL. Release both with json_decref;
 * NULL after an error. ERR_MEMORY. */
enum err sweep_record_split(json_t **now, json_t **earlier, const json_t *cells,
                            const json_t *rows);
/* Writes OUT/sweep.json. replace false: keeps one of the same cells and claims, as the tasks of one
 * sweep differ in their command alone. */
enum err sweep_record_write(const struct sweep *s, bool replace);
/* Reads sweep.json of a directory. *out is NULL if there is none; release it with
 * json_decref. ERR_FORMAT if it is not an object. */
enum err sweep_record_read(json_t **out, const char *dir);

#endif
