/* SPDX-License-Identifier: MIT
 *
 * `--plan`: the resources that a calibration needs, on standard output. */
#ifndef WKVQ_SHOW_PLAN_H
#define WKVQ_SHOW_PLAN_H

#include "calib/calib.h"
#include "calib/refine/refine.h"
#include "data/batch.h"
#include "kernels/base/limits.h"

struct plan_estimate {
    const struct calib_plan *plan;
    bool refines;
    bool only_refines;         /* plan is of one step, measured in place of refinement's */
    struct refine_plan refine; /* zero unless the recipe refines */
    bool teacher_on_disk;      /* the streams of refinement exceed the memory */
    /* the device has its own memory (GPU) for weights, activations and parameters */
    bool own_memory;
    uint64_t card_bytes; /* with own_memory: its total, and the usable part */
    uint64_t usable_bytes;
    struct limit memory, cpus; /* of the host, with the name of the limit that binds */
    int64_t threads;
    uint64_t state_bytes; /* bytes on disk of a complete calibration's state */
    /* Those of the artifact, and its bits per quantized weight; 0: the command writes none. */
    uint64_t artifact_bytes;
    double weight_bits;
    bool threads_set; /* threads come from run.threads, not from cpus */
    bool measured;    /* step holds a measurement */
    struct calib_bench step;
    /* Texts with shares, and the windows that each gives; borrowed. n_texts 0: no shares */
    const struct batch_text *text;
    const int64_t *windows;
    int n_texts;
};

/* Returns the bytes that must be in memory: weights, activations and parameters of the
 * blocks being trained, and what the host holds besides. */
uint64_t plan_fixed_bytes(const struct calib_plan *p);
/* Returns what the host holds beside a device with its own memory: without streams. */
uint64_t plan_host_bytes(const struct calib_plan *p);
/* Returns the same for refinement: of the device; with what a device with its own memory needs
 * besides; of the host, the layers and the copy of the progress that is saved; device and host
 * together. */
uint64_t plan_refine_device_bytes(const struct refine_plan *p);
uint64_t plan_refine_card_bytes(const struct refine_plan *p);
uint64_t plan_refine_host_bytes(const struct refine_plan *p);
uint64_t plan_refine_fixed_bytes(const struct refine_plan *p);
/* Returns the bytes of streams on disk at a time: calibration closes its own before refinement
 * opens others. */
uint64_t plan_stream_disk_bytes(const struct plan_estimate *e);
/* Returns whether the plan fits in the device's memory, or in the host's without one. */
bool plan_fits(const struct plan_estimate *e);
/* Prints the estimates on standard output, as JSON or text. ERR_MEMORY. */
enum err show_plan_json(const struct plan_estimate *e);
void show_plan_text(const struct plan_estimate *e);

#endif
