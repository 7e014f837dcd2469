/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/show_plan.h"

#include "data/json.h"
#include "tools/cli/progress.h"
#include "tools/cli/size.h"

#include <inttypes.h>
#include <stdio.h>

static const char *const place_name[] = {"device", "memory", "disk"};

uint64_t plan_fixed_bytes(const struct calib_plan *p)
{
    return (uint64_t)p->weights_bytes + p->acts_bytes + p->params_bytes + p->host_bytes +
           p->saved_bytes;
}

uint64_t plan_host_bytes(const struct calib_plan *p)
{
    return (uint64_t)p->host_bytes + p->saved_bytes + DEV_UPLOAD_BYTES;
}

static double host_bytes(const struct plan_estimate *e)
{
    const struct calib_plan *p = e->plan;
    const double streams = p->streams == STREAM_MEMORY ? (double)p->stream_bytes : 0;
    return streams + (e->own_memory ? (double)plan_host_bytes(p)
                                    : (double)plan_fixed_bytes(p) + (double)p->slot_bytes);
}

uint64_t plan_stream_disk_bytes(const struct plan_estimate *e)
{
    const bool calibration = !e->only_refines && e->plan->streams == STREAM_DISK;
    const uint64_t first = calibration ? e->plan->stream_bytes : 0;
    const uint64_t second = e->teacher_on_disk ? e->refine.teacher_bytes : 0;
    return first > second ? first : second;
}

/* The streams are closed before the artifact is written. */
static uint64_t disk_bytes(const struct plan_estimate *e)
{
    const uint64_t streams = plan_stream_disk_bytes(e);
    return e->state_bytes + (streams > e->artifact_bytes ? streams : e->artifact_bytes);
}

static double all_seconds(const struct plan_estimate *e)
{
    const double calibration = e->only_refines ? 0 : e->plan->total_flops;
    return e->step.step_s * (calibration + e->refine.total_flops) / e->plan->flops_per_step;
}

uint64_t plan_refine_device_bytes(const struct refine_plan *p)
{
    return (uint64_t)p->codes_bytes + p->params_bytes + p->work_bytes;
}

uint64_t plan_refine_card_bytes(const struct refine_plan *p)
{
    return plan_refine_device_bytes(p) + DEV_UPLOAD_BYTES;
}

uint64_t plan_refine_host_bytes(const struct refine_plan *p)
{
    return (uint64_t)p->host_bytes + p->saved_bytes;
}

uint64_t plan_refine_fixed_bytes(const struct refine_plan *p)
{
    return plan_refine_device_bytes(p) + plan_refine_host_bytes(p);
}

static bool refine_fits(const struct plan_estimate *e)
{
    const uint64_t memory = e->memory.amount;
    if (e->own_memory)
        return plan_refine_card_bytes(&e->refine) <= e->usable_bytes &&
               (!memory || plan_refine_host_bytes(&e->refine) <= memory);
    return !memory || plan_refine_fixed_bytes(&e->refine) <= memory;
}

static bool card_fits(const struct plan_estimate *e)
{
    return calib_plan_device_bytes(e->plan) <= e->usable_bytes;
}

static bool host_fits(const struct plan_estimate *e)
{
    const uint64_t need =
        e->own_memory ? plan_host_bytes(e->plan) : plan_fixed_bytes(e->plan);
    return !e->memory.amount || need <= e->memory.amount;
}

static bool calib_fits(const struct plan_estimate *e)
{
    return host_fits(e) && (!e->own_memory || card_fits(e));
}

bool plan_fits(const struct plan_estimate *e)
{
    return refine_fits(e) && (e->only_refines || calib_fits(e));
}

static void add_device(json_t *o, const struct plan_estimate *e)
{
    json_object_set_new(o, "device_bytes",
                        json_integer((json_int_t)calib_plan_device_bytes(e->plan)));
    json_object_set_new(o, "device_usable_bytes",
                        json_integer((json_int_t)e->usable_bytes));
}

static void add_refine(json_t *o, const struct plan_estimate *e)
{
    const struct refine_plan *p = &e->refine;
    json_object_set_new(
        o, "refinement",
        json_pack("{s:I, s:f, s:f, s:I, s:I, s:I, s:b, s:I}", "steps", (json_int_t)p->steps,
                  "flops_per_step", p->flops_per_step, "total_flops", p->total_flops,
                  "device_bytes", (json_int_t)plan_refine_device_bytes(p), "host_bytes",
                  (json_int_t)plan_refine_host_bytes(p), "stream_bytes",
                  (json_int_t)p->teacher_bytes, "streams_on_disk", e->teacher_on_disk,
                  "activations_bytes", (json_int_t)(p->keeps_acts ? p->acts_bytes : 0)));
}

static void add_machine(json_t *o, const struct plan_estimate *e)
{
    json_object_set_new(o, "fits", json_boolean(plan_fits(e)));
    json_object_set_new(o, "memory_available_bytes",
                        json_integer((json_int_t)e->memory.amount));
    json_object_set_new(o, "memory_limit", json_string(e->memory.name));
    json_object_set_new(o, "threads", json_integer((json_int_t)e->threads));
    json_object_set_new(o, "threads_limit",
                        json_string(e->threads_set ? "run.threads" : e->cpus.name));
}

/* disk_bytes is what the text calls "disk"; the other sizes are its parts. */
static void add_disk(json_t *o, const struct plan_estimate *e)
{
    json_object_set_new(o, "disk_bytes", json_integer((json_int_t)disk_bytes(e)));
    json_object_set_new(o, "state_bytes", json_integer((json_int_t)e->state_bytes));
    json_object_set_new(o, "disk_stream_bytes",
                        json_integer((json_int_t)plan_stream_disk_bytes(e)));
    if (!e->artifact_bytes)
        return;
    json_object_set_new(o, "artifact_bytes", json_integer((json_int_t)e->artifact_bytes));
    json_object_set_new(o, "artifact_weight_bits", json_real(e->weight_bits));
}

static void add_time(json_t *o, const struct plan_estimate *e)
{
    json_object_set_new(o, "seconds", json_real(all_seconds(e)));
    json_object_set_new(o, "step_seconds", json_real(e->step.step_s));
    json_object_set_new(o, "gemm_seconds", json_real(e->step.linear_gemm_s));
}

static void add_texts(json_t *o, const struct plan_estimate *e)
{
    json_t *list = json_array();
    for (int i = 0; i < e->n_texts; i++)
        json_array_append_new(list, json_pack("{s:s, s:f, s:I, s:I}", "file",
                                              e->text[i].name, "share", e->text[i].share,
                                              "tokens", (json_int_t)e->text[i].n, "windows",
                                              (json_int_t)e->windows[i]));
    json_object_set_new(o, "texts", list);
}

/* Returns what only a calibration needs. NULL: out of memory. */
static json_t *calibration_json(const struct plan_estimate *e)
{
    const struct calib_plan *p = e->plan;
    json_t *o = json_pack("{s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:s, s:b}", "flops_per_step",
                          p->flops_per_step, "total_flops", p->total_flops, "host_bytes",
                          host_bytes(e), "weights_bytes", (json_int_t)p->weights_bytes,
                          "activations_bytes", (json_int_t)p->acts_bytes,
                          "parameters_bytes", (json_int_t)p->params_bytes, "stream_bytes",
                          (json_int_t)p->stream_bytes, "streams", place_name[p->streams],
                          "streams_on_disk", p->streams == STREAM_DISK);
    if (o && e->own_memory)
        add_device(o, e);
    return o;
}

enum err show_plan_json(const struct plan_estimate *e)
{
    json_t *o = e->only_refines ? json_object() : calibration_json(e);
    if (o && e->refines)
        add_refine(o, e);
    if (o) {
        add_machine(o, e);
        add_disk(o, e);
    }
    if (o && e->n_texts)
        add_texts(o, e);
    if (o && e->measured)
        add_time(o, e);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

static void print_size(const char *name, double bytes, const char *where)
{
    char text[SIZE_TEXT];
    printf("%-13s %11s%s\n", name, size_text(text, bytes), where);
}

static void print_disk(const struct plan_estimate *e)
{
    char bits[64];
    print_size("disk", (double)disk_bytes(e),
               e->artifact_bytes ? " at most: the state, and the larger of the other two"
                                 : " at most, of which");
    print_size("  state", (double)e->state_bytes, "");
    print_size("  streams", (double)plan_stream_disk_bytes(e),
               e->only_refines ? " while the refinement runs"
                               : " while the calibration runs");
    snprintf(bits, sizeof(bits), " afterwards, %.3f bits per weight", e->weight_bits);
    if (e->artifact_bytes)
        print_size("  artifact", (double)e->artifact_bytes, bits);
}

static void print_time(const struct plan_estimate *e)
{
    char total[40];
    const double step = e->step.step_s, flops = e->plan->flops_per_step;
    if (!e->measured) {
        printf("%-13s %.1f GFLOP a step, %.3g in all\n", "work", 1e-9 * flops,
               e->plan->total_flops);
        return;
    }
    progress_time_text(total, sizeof(total), all_seconds(e));
    printf("%-13s %s (one step measured: %.3f s, %.1f GFLOP, %.0f GFLOP/s)\n", "time",
           total, step, 1e-9 * flops, 1e-9 * flops / step);
}

static void print_parts(const struct calib_plan *p)
{
    print_size("  weights", (double)p->weights_bytes, "");
    print_size("  activations", (double)p->acts_bytes, "");
    print_size("  parameters", (double)p->params_bytes, "");
}

static void print_card(const struct plan_estimate *e)
{
    const struct calib_plan *p = e->plan;
    char has[128], usable[SIZE_TEXT], card[SIZE_TEXT];
    snprintf(has, sizeof(has), " of %s (card: %s)%s, of which",
             size_text(usable, (double)e->usable_bytes),
             size_text(card, (double)e->card_bytes),
             card_fits(e) ? "" : ": IT DOES NOT FIT");
    print_size("GPU memory", (double)calib_plan_device_bytes(p), has);
    print_parts(p);
    print_size("  upload", DEV_UPLOAD_BYTES, ", and as much page-locked");
    if (p->streams == STREAM_DEVICE)
        print_size("  streams", (double)p->stream_bytes, "");
    else
        print_size("  slots", (double)p->slot_bytes, " of streams");
    print_size("memory", host_bytes(e),
               !host_fits(e)                 ? ": IT DOES NOT FIT"
               : p->streams == STREAM_MEMORY ? ", streams, page-locked"
                                             : "");
}

/* Returns what the process needs in memory to refine, where the device has none of its own. */
static double refine_bytes(const struct plan_estimate *e)
{
    const struct refine_plan *p = &e->refine;
    return (double)plan_refine_fixed_bytes(p) +
           (p->keeps_acts ? (double)p->acts_bytes : 0) +
           (e->teacher_on_disk ? 0 : (double)p->teacher_bytes);
}

static void print_refine(const struct plan_estimate *e)
{
    const struct refine_plan *p = &e->refine;
    const char *bad = refine_fits(e) ? "" : ": IT DOES NOT FIT";
    const char *host = e->own_memory ? " on the host" : "";
    char saved[64];
    printf("%-13s %" PRId64 " steps of %.1f GFLOP, %.3g in all%s\n", "refinement", p->steps,
           1e-9 * p->flops_per_step, p->total_flops, e->own_memory ? bad : "");
    if (e->own_memory) {
        print_size("  memory", (double)plan_refine_device_bytes(p), " of the GPU");
    } else {
        print_size("  memory", refine_bytes(e),
                   *bad ? ": IT DOES NOT FIT, of which" : ", of which");
        print_size("  codes", (double)p->codes_bytes, "");
        print_size("  parameters", (double)p->params_bytes, "");
        print_size("  step", (double)p->work_bytes, " of a layer, states and head");
    }
    if (p->keeps_acts)
        print_size("  kept", (double)p->acts_bytes, " of activations, which fit");
    print_size("  layers", (double)p->host_bytes, host);
    snprintf(saved, sizeof(saved), "%s while it is saved", host);
    print_size("  progress", (double)p->saved_bytes, saved);
    print_size("  streams", (double)p->teacher_bytes,
               e->teacher_on_disk ? " on disk, not in memory" : "");
}

/* Prints available memory and threads, each with the limit that determines it. */
static void print_machine(const struct plan_estimate *e)
{
    char limit[sizeof(e->memory.name) + 16];
    snprintf(limit, sizeof(limit), " (limit: %s)", e->memory.name);
    print_size("available", (double)e->memory.amount, limit);
    printf("%-13s %8" PRId64 " (limit: %s)\n", "threads", e->threads,
           e->threads_set ? "run.threads" : e->cpus.name);
}

static void print_texts(const struct plan_estimate *e)
{
    for (int i = 0; i < e->n_texts; i++)
        printf("%-13s %8" PRId64 " of %s (share %.6g, %" PRId64 " tokens)\n",
               i ? "" : "windows", e->windows[i], e->text[i].name, e->text[i].share,
               e->text[i].n);
}

static void print_calibration(const struct plan_estimate *e)
{
    const struct calib_plan *p = e->plan;
    if (e->own_memory) {
        print_card(e);
    } else {
        print_size("memory", host_bytes(e),
                   calib_fits(e) ? ", of which" : ": IT DOES NOT FIT, of which");
        print_parts(p);
        if (p->host_bytes)
            print_size("  source", (double)p->host_bytes,
                       " of weights as they are prepared");
        print_size("  progress", (double)p->saved_bytes, " while it is saved or restored");
        if (p->slot_bytes)
            print_size("  slots", (double)p->slot_bytes, " of streams");
        print_size("  streams", (double)p->stream_bytes,
                   p->streams == STREAM_DISK ? " on disk, not in memory" : "");
    }
}

void show_plan_text(const struct plan_estimate *e)
{
    if (e->measured || !e->only_refines)
        print_time(e);
    print_texts(e);
    if (!e->only_refines)
        print_calibration(e);
    if (e->refines)
        print_refine(e);
    print_machine(e);
    print_disk(e);
}
