/* SPDX-License-Identifier: MIT
 *
 * `--plan`: what a calibration will need, on standard output. */
#ifndef WKVQ_SHOW_PLAN_H
#define WKVQ_SHOW_PLAN_H

#include "calib/calib.h"

#include <stdio.h>

struct estimate {
    const struct calib_plan *plan;
    bool own_memory;     /* of a GPU: weights, activations, parameters are there */
    uint64_t card_bytes; /* own_memory: what it has, and what of that can be used */
    uint64_t usable_bytes;
    bool measured; /* step is */
    struct calib_bench step;
};

/* Whether what has to be on the device is. */
bool estimate_fits(const struct estimate *e);
/* To standard output. ERR_MEMORY. */
enum err show_plan_json(const struct estimate *e);
void show_plan_text(const struct estimate *e);

#endif
