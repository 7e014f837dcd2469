/* SPDX-License-Identifier: MIT */
#include "tools/preflight.h"

#include "kernels/base/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/statvfs.h>

static void report_weight_groups(const struct job *j)
{
    const int64_t G = j->recipe.weight_group;
    if (j->recipe.weight_bits == 16 || G == 0)
        return;
    for (int l = 0; l < N_LIN; l++) {
        const int64_t in = arch_in(&j->arch, l), rest = in % G;
        if (G > in)
            log_info("%s: %" PRId64 " columns, fewer than weights.group_size %" PRId64
                     ": one group a row",
                     lin_module[l], in, G);
        else if (rest)
            log_info("%s: %" PRId64 " columns in groups of %" PRId64
                     ": the last has %" PRId64,
                     lin_module[l], in, G, rest);
    }
}

static void report_kv_groups(const struct job *j)
{
    const int64_t d = j->arch.head_dim, G = kv_group(d, j->recipe.kv_group);
    if (j->recipe.kv_bits == 16)
        return;
    if (G < j->recipe.kv_group)
        log_verbose("kv.group_size %" PRId64 " is capped at the head's %" PRId64
                    " channels",
                    j->recipe.kv_group, d);
    if (d % G)
        log_info("keys and values: heads of %" PRId64 " channels in groups of %" PRId64
                 ": the last has %" PRId64,
                 d, G, d % G);
}

enum err preflight_shapes(const struct job *j)
{
    const enum err err = arch_check_length(&j->arch, j->recipe.seqlen);
    if (err)
        return err_add(err, "calibration.seqlen: ");
    report_weight_groups(j);
    report_kv_groups(j);
    if (j->recipe.crr_blocks >= j->arch.n_layers)
        log_info("crr.blocks: %" PRId64 ", the model has %" PRId64
                 " blocks: the loss looks through what is there",
                 j->recipe.crr_blocks, j->arch.n_layers);
    return OK;
}

/* The nearest directory above path that exists. */
static enum err existing_parent(char **out, const char *path)
{
    char *p = NULL;
    TRY(mem_strdup(&p, path));
    while (!file_is_dir(p)) {
        char *slash = strrchr(p, '/');
        if (!slash) {
            mem_free(p);
            return mem_strdup(out, ".");
        }
        slash[slash == p] = '\0'; /* "/" stays */
        if (slash == p)
            break;
    }
    *out = p;
    return OK;
}

enum err preflight_disk(const char *dir, uint64_t need, const char *what)
{
    char *parent = NULL;
    struct statvfs fs;
    TRY(existing_parent(&parent, dir));
    const int bad = statvfs(parent, &fs);
    mem_free(parent);
    FAIL_IF(bad, ERR_IO, "%s: %s", dir, strerror(errno));
    const double have = (double)fs.f_bavail * (double)fs.f_frsize;
    FAIL_IF(
        !((double)need <= have), ERR_IO,
        "%s: %s needs about %.1f MB, the disk has %.1f MB free; free some, or name another "
        "place",
        dir, what, 1e-6 * (double)need, 1e-6 * have);
    return OK;
}

enum err preflight_resources(struct calib_plan *plan, struct job *j, const char *dir)
{
    const uint64_t budget = recipe_memory(&j->recipe);
    TRY(calib_plan(plan, &j->arch, &j->settings));
    const uint64_t fixed =
        (uint64_t)plan->weights_bytes + plan->acts_bytes + plan->params_bytes;
    j->settings.memory_bytes = budget > fixed ? budget - fixed : 0;
    TRY(calib_plan(plan, &j->arch, &j->settings));
    if (fixed > budget)
        log_warn("one block and the %" PRId64
                 " behind it need %.2f GB, more than run.memory's "
                 "%.2f GB; going on with that",
                 j->recipe.crr_blocks, 1e-9 * (double)fixed, 1e-9 * (double)budget);
    /* The state itself: scales and zeros, about 3 bytes a group. */
    const uint64_t state_bytes =
        (uint64_t)(arch_block_params(&j->arch) * j->arch.n_layers / 8);
    return preflight_disk(
        dir, state_bytes + (plan->streams_on_disk ? plan->stream_bytes : 0), "calibration");
}

struct estimate {
    struct calib_bench step;
    double seconds, host_bytes, disk_bytes;
};

static enum err measure(struct estimate *e, struct job *j, const struct calib_plan *plan)
{
    log_info("measuring a training step");
    TRY(calib_bench_step(&e->step, j->dev, &j->arch, hf_source(j->model), &j->settings, 1));
    e->seconds = e->step.step_s * plan->total_flops / plan->flops_per_step;
    e->host_bytes =
        (double)plan->weights_bytes + (double)plan->acts_bytes + (double)plan->params_bytes;
    e->disk_bytes = plan->streams_on_disk ? (double)plan->stream_bytes : 0;
    if (!plan->streams_on_disk)
        e->host_bytes += (double)plan->stream_bytes;
    return OK;
}

static void print_json(const struct estimate *e, const struct calib_plan *plan)
{
    json_t *o = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:b, s:f, s:f}", "seconds",
        e->seconds, "step_seconds", e->step.step_s, "flops_per_step", plan->flops_per_step,
        "total_flops", plan->total_flops, "host_bytes", e->host_bytes, "weights_bytes",
        (json_int_t)plan->weights_bytes, "activations_bytes", (json_int_t)plan->acts_bytes,
        "parameters_bytes", (json_int_t)plan->params_bytes, "stream_bytes",
        (json_int_t)plan->stream_bytes, "streams_on_disk", plan->streams_on_disk,
        "disk_bytes", e->disk_bytes, "gemm_seconds", e->step.linear_gemm_s);
    json_dumpf(o, stdout, JSON_REAL_PRECISION(9));
    printf("\n");
    json_decref(o);
}

static void print_size(const char *name, double bytes, const char *where)
{
    if (bytes < 1e9)
        printf("%-13s %8.1f MB%s\n", name, 1e-6 * bytes, where);
    else
        printf("%-13s %8.2f GB%s\n", name, 1e-9 * bytes, where);
}

static void print_text(const struct estimate *e, const struct calib_plan *plan)
{
    char total[40];
    progress_time_text(total, sizeof(total), e->seconds);
    printf("%-13s %s (one step measured: %.3f s, %.1f GFLOP, %.0f GFLOP/s)\n", "time",
           total, e->step.step_s, 1e-9 * plan->flops_per_step,
           1e-9 * plan->flops_per_step / e->step.step_s);
    print_size("memory", e->host_bytes, ", of which");
    print_size("  weights", (double)plan->weights_bytes, "");
    print_size("  activations", (double)plan->acts_bytes, "");
    print_size("  parameters", (double)plan->params_bytes, "");
    print_size("  streams", (double)plan->stream_bytes,
               plan->streams_on_disk ? " on disk, not in memory" : "");
    print_size("disk", e->disk_bytes, " while it runs, beside the state");
}

enum err preflight_print_plan(struct job *j, const struct calib_plan *plan)
{
    struct estimate e = {.seconds = 0};
    TRY(measure(&e, j, plan));
    if (j->args->json)
        print_json(&e, plan);
    else
        print_text(&e, plan);
    return OK;
}
