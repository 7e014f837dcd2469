/* SPDX-License-Identifier: MIT
 *
 * `--plan`: what a calibration will need, on standard output. */
#ifndef WKVQ_SHOW_PLAN_H
#define WKVQ_SHOW_PLAN_H

#include "calib/calib.h"
#include "kernels/base/limits.h"

struct plan_estimate {
    const struct calib_plan *plan;
    bool own_memory;     /* of a GPU: weights, activations, parameters are there */
    uint64_t card_bytes; /* own_memory: what it has, and what of that can be used */
    uint64_t usable_bytes;
    struct limit memory, cpus; /* of the host, and which limit binds */
    int64_t threads;
    uint64_t state_bytes; /* of a whole calibration's state, on disk */
    bool threads_set;     /* by run.threads, not by cpus */
    bool measured;        /* step is */
    struct calib_bench step;
};

/* Bytes that must be in memory: weights, activations and parameters of the blocks in work.
 */
uint64_t plan_fixed_bytes(const struct calib_plan *p);
/* Whether what must be on the device, or in the host's memory without one, has room. */
bool plan_fits(const struct plan_estimate *e);
/* To standard output. ERR_MEMORY. */
enum err show_plan_json(const struct plan_estimate *e);
void show_plan_text(const struct plan_estimate *e);

#endif
