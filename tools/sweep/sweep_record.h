/* SPDX-License-Identifier: MIT
 *
 * What a sweep's directory says besides figures: OUT/sweep.json about the latest run, and
 * the member run of each result.
 *
 *   sweep.json  {"title", "command", "claims", "cells": names in the order of the
 *               sweep's file}
 *   run         {"finished": UTC, "version", "machine", "cores": threads of the cell,
 *                "device", "model",
 *                "data": files, "eval": files} */
#ifndef WKVQ_SWEEP_RECORD_H
#define WKVQ_SWEEP_RECORD_H

#include "tools/sweep/sweep.h"

/* Returns the member run of a cell that ends now. NULL: out of memory. */
json_t *sweep_record_cell(const struct sweep *s, const struct sweep_run *run);
/* Writes OUT/sweep.json. replace false: keeps one that exists. */
enum err sweep_record_write(const struct sweep *s, bool replace);
/* Reads sweep.json of a directory. *out is NULL if there is none; release it with
 * json_decref. ERR_FORMAT if it is not an object. */
enum err sweep_record_read(json_t **out, const char *dir);

#endif
