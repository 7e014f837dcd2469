/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/preflight.h"

#include "calib/model/shapes.h"
#include "convert/format/sizes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/size.h"
#include "tools/pipeline/show_plan.h"
#include "tools/state/state.h"
#include "tools/state/state_block.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

static void report_group(int64_t in, int64_t G)
{
    if (G > in)
        log_info("weights: rows of %" PRId64 ", fewer than a group of %" PRId64
                 ": one group a row",
                 in, G);
    else if (in % G)
        log_info("weights: rows of %" PRId64 " in groups of %" PRId64
                 ": the last has %" PRId64,
                 in, G, in % G);
}

/* Returns the size of the groups that divide a projection's rows; 0: none do. */
static int64_t groups_of(const struct weight_spec *w, int64_t layer, int lin)
{
    const struct lin_format f = weight_format(w, layer, lin);
    return f.bits < 16 ? f.group_size : 0;
}

/* A projection before this one has rows of the same length in groups of the same size. */
static bool group_seen(const struct job *j, const struct weight_spec *w, int64_t layer,
                       int lin)
{
    const int64_t in = arch_in(&j->arch, lin), G = groups_of(w, layer, lin);
    for (int l = 0; l <= lin; l++)
        for (int64_t i = 0; i < (l < lin ? j->arch.n_layers : layer); i++)
            if (arch_in(&j->arch, l) == in && groups_of(w, i, l) == G)
                return true;
    return false;
}

static void report_weight_groups(const struct job *j)
{
    const struct weight_spec w = recipe_weight_spec(&j->recipe);
    for (int l = 0; l < N_LIN; l++)
        for (int64_t i = 0; i < j->arch.n_layers; i++)
            if (groups_of(&w, i, l) && !group_seen(j, &w, i, l))
                report_group(arch_in(&j->arch, l), groups_of(&w, i, l));
}

static void report_kv_group(const struct job *j, int64_t group_size)
{
    const int64_t d = j->arch.head_dim, G = kv_group(d, group_size);
    if (G < group_size)
        log_verbose("kv.group_size %" PRId64 " is capped at the head's %" PRId64
                    " channels",
                    group_size, d);
    if (d % G)
        log_info("keys and values: heads of %" PRId64 " channels in groups of %" PRId64
                 ": the last has %" PRId64,
                 d, G, d % G);
}

/* Returns whether in T tokens a query reads something of a layer's cache quantized. The first
 * tokens that are quantized together and not all in the sink must be complete, and no longer
 * recent for the last query. */
static bool layer_is_read(const struct kv_spec *kv, int64_t layer, int64_t T)
{
    const struct kv_format k = kv_format(kv, layer, KV_K);
    const int64_t together = kv->method == KV_CHANNEL && k.bits < 16 ? k.group_size : 1;
    const int64_t end = (kv->sink / together + 1) * together;
    return end <= T - (kv->past_only ? kv->window : 0);
}

void preflight_cache(const struct job *j, const char *name, int64_t T)
{
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    for (int64_t i = 0; i < j->arch.n_layers; i++) {
        if (!kv_quantizes_layer(&kv, i) || layer_is_read(&kv, i, T))
            continue;
        log_warn("%s is %" PRId64 ", in which no query reads the cache of layer %" PRId64
                 " quantized (kv.window %" PRId64 ", kv.sink %" PRId64
                 "%s): nothing learns from its errors; give more tokens",
                 name, T, i, kv.past_only ? kv.window : 0, kv.sink,
                 kv.method == KV_CHANNEL ? ", whole blocks of kv.group_size keys" : "");
        return;
    }
}

void preflight_given(const struct job *j)
{
    const bool codes = j->refine.lr_round > 0;
    if (j->recipe.weight_method == WEIGHT_GIVEN &&
        (j->refine.lr[REFINE_SCALES] > 0 || codes))
        log_warn(
            "refinement changes the scales%s of the given weights, as refine.learn says; "
            "--set refine.learn=auto keeps them",
            codes ? " and codes" : "");
}

/* Reports cache formats that differ between keys and values or between layers. */
static void report_cache(const struct job *j)
{
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    int64_t before[2] = {-1, -1};
    for (int64_t i = 0; i < 2 * j->arch.n_layers; i++) {
        const enum kv_side side = (enum kv_side)(i % 2);
        const struct kv_format f = kv_format(&kv, i / 2, side);
        if (f.bits >= 16 || f.group_size == before[side])
            continue;
        if (f.group_size != before[!side])
            report_kv_group(j, f.group_size);
        before[side] = f.group_size;
    }
}

/* Warns before the calibration of what a fold will refuse behind it. Nothing else takes the
 * smoothing and shift of values that are calibrated beside weights of 16 bits. */
static void report_fold(const struct job *j)
{
    const struct weight_spec w = recipe_weight_spec(&j->recipe);
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    if (j->arch.n_experts && !weight_quantizes(&w) && kv_target_folds(kv.target))
        log_warn("kv.target %s with weights of 16 bits calibrates for `wkvq fold`, which "
                 "writes no checkpoint of a mixture of experts",
                 kv_target_name[kv.target]);
}

enum err preflight_shapes(const struct job *j)
{
    const enum err err = arch_check_length(&j->arch, j->recipe.seqlen);
    if (err)
        return err_add(err, "calibration.seqlen: ");
    report_weight_groups(j);
    report_cache(j);
    report_fold(j);
    if (j->recipe.crr_blocks >= j->arch.n_layers)
        log_info("crr.blocks: %" PRId64 ", but the model has %" PRId64 " blocks; the loss "
                 "uses as many as exist",
                 j->recipe.crr_blocks, j->arch.n_layers);
    return OK;
}

static uint64_t minus(uint64_t x, uint64_t y)
{
    return x > y ? x - y : 0;
}

static enum err device_of(dev_t *out, const char *dir)
{
    char *parent = NULL;
    struct stat st;
    TRY(file_existing_dir(&parent, dir));
    const int bad = stat(parent, &st);
    mem_free(parent);
    FAIL_IF(bad, ERR_IO, "%s: %s", dir, strerror(errno));
    *out = st.st_dev;
    return OK;
}

static enum err same_disk(bool *yes, const char *a, const char *b)
{
    dev_t x = 0, y = 0;
    TRY(device_of(&x, a));
    TRY(device_of(&y, b));
    *yes = x == y;
    return OK;
}

uint64_t preflight_missing(const char *dir, uint64_t need)
{
    struct stat st;
    DIR *d = opendir(dir);
    if (!d)
        return need;
    for (struct dirent *e; (e = readdir(d));)
        if (!fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISREG(st.st_mode))
            need = minus(need, 512 * (uint64_t)st.st_blocks);
    closedir(d);
    return need;
}

/* Memory that a run does not allocate itself: CUDA's context and cuBLAS if no device
 * reports them, and fragmentation. */
#define CONTEXT_BYTES (UINT64_C(768) << 20)
#define LOST_BYTES (UINT64_C(256) << 20)

/* The cells of a sweep start at different times, so what is free now says nothing about their
 * shares. Each has a context of its own. */
static uint64_t usable_of_card(uint64_t card, uint64_t taken, int64_t cells)
{
    if (cells < 2)
        return minus(card, taken + LOST_BYTES);
    return minus(card / (uint64_t)cells, CONTEXT_BYTES + LOST_BYTES);
}

/* Measures the memory of the open device, or takes that of the configured card. */
static void measure_card(struct plan_estimate *e, const struct job *j)
{
    uint64_t free_bytes = 0, total = 0, taken = CONTEXT_BYTES;
    e->own_memory =
        j->dev ? dev_memory(j->dev, &free_bytes, &total) : j->recipe.device == DEVICE_CUDA;
    if (!e->own_memory)
        return;
    if (j->dev)
        taken = minus(total, free_bytes);
    e->card_bytes = j->recipe.device_memory ? j->recipe.device_memory : total;
    if (total && e->card_bytes > total)
        e->card_bytes = total;
    e->usable_bytes = usable_of_card(e->card_bytes, taken, j->cells);
}

static void measure_host(struct plan_estimate *e, const struct job *j)
{
    limits_memory(&e->memory, "");
    limits_cpus(&e->cpus, "", limits_affinity());
    e->threads_set = j->recipe.threads > 0;
    e->threads = e->threads_set ? j->recipe.threads : (int64_t)e->cpus.amount;
}

/* Returns the threads of the cpu device that computes, or will; 0: a GPU does. */
static int cpu_threads(const struct plan_estimate *e, const struct job *j)
{
    if (j->dev)
        return dev_host_threads(j->dev);
    return e->own_memory ? 0 : (int)e->threads;
}

/* Makes the calibration's settings those of one step at the shapes of refinement, whose speed is
 * measured for a plan. */
static void resemble_refinement(struct calib_settings *s, const struct refine_settings *r)
{
    s->samples = 1;
    s->seqlen = r->seqlen;
    s->crr_blocks = 0;
}

/* Takes the types of the source's weights. Models of known shapes are published in 16 bits. */
static void take_stored(struct calib_settings *s, const struct job *j)
{
    for (int l = 0; l < N_LIN; l++)
        s->stored[l] = j->model ? hf_source(j->model)->stored[l] : DT_F16;
}

/* Returns whether products may widen their operands: without a device, on any CPU. */
static bool widens(const struct calib_settings *s, const struct job *j)
{
    return j->dev ? dev_widens(j->dev) : s->cpu_threads > 0;
}

/* Gives the streams the memory that the rest leaves. */
static enum err place_streams(struct calib_plan *plan, struct plan_estimate *e,
                              struct job *j)
{
    const uint64_t budget = recipe_memory(&j->recipe);
    struct calib_settings *s = &j->settings;
    char need[SIZE_TEXT], have[SIZE_TEXT];
    measure_card(e, j);
    measure_host(e, j);
    e->plan = plan;
    e->only_refines = j->only_refines;
    s->cpu_threads = cpu_threads(e, j);
    take_stored(s, j);
    j->refine.cpu_threads = s->cpu_threads;
    s->widens = j->refine.widens = widens(s, j);
    if (j->only_refines)
        resemble_refinement(s, &j->refine);
    s->device_bytes = 0;
    TRY(calib_plan(plan, &j->arch, s));
    const uint64_t fixed = plan_fixed_bytes(plan);
    s->device_bytes = minus(e->usable_bytes, fixed + DEV_UPLOAD_BYTES);
    s->memory_bytes = minus(budget, e->own_memory ? plan_host_bytes(plan) : fixed);
    TRY(calib_plan(plan, &j->arch, s));
    if (!e->own_memory && !j->only_refines && fixed > budget)
        log_warn("one block and the %" PRId64 " after it need %s, more than the %s of "
                 "run.memory; the run uses what it needs",
                 j->recipe.crr_blocks, size_text(need, (double)fixed),
                 size_text(have, (double)budget));
    return OK;
}

/* Plans the refinement, whose streams get what its other memory leaves. */
static enum err place_refinement(struct plan_estimate *e, struct job *j)
{
    const struct weight_spec w = recipe_weight_spec(&j->recipe);
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    const uint64_t budget = recipe_memory(&j->recipe);
    const int ranks = j->ranks ? j->ranks->size : 1;
    e->refines = recipe_refines(&j->recipe);
    if (!e->refines)
        return OK;
    TRY(refine_plan(&e->refine, &j->arch, &w, &kv, &j->refine, ranks));
    j->refine.memory_bytes =
        minus(budget, e->own_memory ? plan_refine_host_bytes(&e->refine)
                                    : plan_refine_fixed_bytes(&e->refine));
    e->teacher_on_disk = e->refine.teacher_bytes > j->refine.memory_bytes;
    const uint64_t streams = e->teacher_on_disk ? 0 : e->refine.teacher_bytes;
    j->refine.acts_bytes = e->own_memory
                               ? minus(e->usable_bytes, plan_refine_card_bytes(&e->refine))
                               : minus(j->refine.memory_bytes, streams);
    return refine_plan(&e->refine, &j->arch, &w, &kv, &j->refine, ranks);
}

/* Returns a further way out of too little memory, for a list: half as large activations. */
static const char *or_bf16(const struct job *j)
{
    return j->settings.act == DT_F32 ? ", set run.compute to bf16" : "";
}

/* Refuses a need of memory that is not there; what: "refinement", advice: the smaller settings that
 * help. */
static enum err too_little_card(const struct plan_estimate *e, const char *what,
                                uint64_t bytes, const char *advice)
{
    char need[SIZE_TEXT], have[SIZE_TEXT];
    FAIL(ERR_USAGE,
         "%s %s of GPU memory, but only %s are available; %s, or use --device cpu", what,
         size_text(need, (double)bytes), size_text(have, (double)e->usable_bytes), advice);
}

static enum err too_little_memory(const struct plan_estimate *e, const char *what,
                                  uint64_t bytes, const char *advice)
{
    char need[SIZE_TEXT], have[SIZE_TEXT];
    FAIL(ERR_USAGE,
         "%s %s of memory, but only %s are available (limit: %s); %s, or raise the limit; "
         "--memory SIZE tries it all the same",
         what, size_text(need, (double)bytes), size_text(have, (double)e->memory.amount),
         e->memory.name, advice);
}

static enum err check_refine_fit(const struct plan_estimate *e, const struct job *j)
{
    const struct refine_plan *p = &e->refine;
    const uint64_t host =
        e->own_memory ? plan_refine_host_bytes(p) : plan_refine_fixed_bytes(p);
    char advice[128];
    snprintf(advice, sizeof(advice),
             "give a smaller refine.seqlen%s, set refine.samples to 0", or_bf16(j));
    if (e->own_memory && plan_refine_card_bytes(p) > e->usable_bytes)
        return too_little_card(e, "refinement needs", plan_refine_card_bytes(p), advice);
    return j->recipe.memory ? OK : too_little_memory(e, "refinement needs", host, advice);
}

static enum err check_fit(const struct plan_estimate *e, const struct job *j)
{
    const uint64_t card = calib_plan_device_bytes(e->plan),
                   host =
                       e->own_memory ? plan_host_bytes(e->plan) : plan_fixed_bytes(e->plan);
    char what[80], advice[128];
    snprintf(what, sizeof(what), "one block and the %" PRId64 " after it need",
             j->recipe.crr_blocks);
    snprintf(advice, sizeof(advice), "give a smaller crr.blocks or calibration.seqlen%s",
             or_bf16(j));
    if (e->own_memory && card > e->usable_bytes)
        return too_little_card(e, what, card, advice);
    if (j->recipe.memory || !e->memory.amount || host <= e->memory.amount)
        return OK;
    if (e->own_memory)
        return too_little_memory(e, "the host's copies of one block need", host,
                                 "free some");
    return too_little_memory(e, what, host, advice);
}

static enum err check_memory(const struct plan_estimate *e, const struct job *j)
{
    if (plan_fits(e))
        return OK;
    if (!j->only_refines)
        TRY(check_fit(e, j));
    return check_refine_fit(e, j);
}

/* Returns whether the last block is stored. It is the last file of a calibration, so no
 * partial file is needed then. */
static bool is_finished(const struct job *j, const char *dir)
{
    char name[40], path[4096];
    if (recipe_refines(&j->recipe))
        state_refined_name(name, j->arch.n_layers - 1);
    else
        state_block_name(name, j->arch.n_layers - 1);
    const int n = snprintf(path, sizeof(path), "%s/%s", dir, name);
    return n > 0 && (size_t)n < sizeof(path) && file_exists(path);
}

/* Returns the bytes of all blocks, refined ones too, plus three partial files: two in turn, and
 * the temporary file of the one being written. */
static uint64_t state_need(const struct plan_estimate *e, const struct job *j)
{
    struct weight_spec refined = j->settings.weights;
    uint64_t sum = 0, partial = e->refines ? e->refine.saved_bytes : 0;
    refined.refined = true;
    for (int64_t i = 0; i < j->arch.n_layers; i++) {
        const uint64_t one = calib_partial_bytes(&j->arch, &j->settings, i);
        sum += state_block_bytes(&j->arch, i, &j->settings.weights) + STATE_TEXT_BYTES;
        if (e->refines)
            sum += state_block_bytes(&j->arch, i, &refined) + STATE_TEXT_BYTES;
        partial = one > partial ? one : partial;
    }
    return sum + 3 * (partial + STATE_TEXT_BYTES);
}

enum err preflight_resources(struct calib_plan *plan, struct job *j, const char *dir)
{
    struct plan_estimate e = {0};
    *plan = (struct calib_plan){0};
    j->state_bytes = 0;
    if (j->only_converts)
        return OK;
    TRY(place_streams(plan, &e, j));
    TRY(place_refinement(&e, j));
    if (!j->options.plan)
        TRY(check_memory(&e, j));
    if (!dir || is_finished(j, dir))
        return OK;
    j->state_bytes = preflight_missing(dir, state_need(&e, j));
    const uint64_t streams = plan_stream_disk_bytes(&e);
    return file_check_space(
        dir, j->state_bytes + streams,
        streams
            ? "the calibration, with activations that a larger run.memory keeps in memory"
            : "the calibration");
}

/* Checks disk space for the artifact. Streams are already closed when the artifact is
 * written. */
enum err preflight_artifact(const struct job *j, const char *state_dir, const char *out_dir,
                            uint64_t bytes)
{
    bool shared = false;
    TRY(same_disk(&shared, state_dir, out_dir));
    shared = shared && j->state_bytes;
    return file_check_space(out_dir, bytes + (shared ? j->state_bytes : 0),
                            shared ? "the artifact and the calibration's state"
                                   : "the artifact");
}

static enum err show(const struct plan_estimate *e, bool json)
{
    if (json)
        return show_plan_json(e);
    show_plan_text(e);
    return OK;
}

enum err preflight_print_plan(struct job *j, uint64_t artifact_bytes)
{
    const struct weight_spec weights = recipe_weight_spec(&j->recipe);
    struct plan_estimate e = {0};
    struct calib_plan plan;
    TRY(place_streams(&plan, &e, j));
    TRY(place_refinement(&e, j));
    e.state_bytes = state_need(&e, j);
    e.artifact_bytes = artifact_bytes;
    e.weight_bits = shape_weight_bits(&j->arch, &weights);
    if (plan_fits(&e)) {
        log_info("measuring a training step");
        TRY(calib_bench_step(&e.step, j->dev, &j->arch, hf_source(j->model), &j->settings,
                             1, NULL));
        e.measured = true;
    }
    if (recipe_files_shared(&j->recipe.data)) {
        e.text = j->text;
        e.windows = j->text_windows;
        e.n_texts = j->n_texts;
    }
    return show(&e, j->options.json);
}

enum err preflight_print_shape(const char *shape, const struct recipe_input *in, bool json)
{
    struct job j = {0};
    struct plan_estimate e = {0};
    struct calib_plan plan;
    enum err err = OK;
    TRY_OUT(recipe_from_input(&j.recipe, in));
    TRY_OUT(arch_of_shape(&j.arch, shape));
    j.settings = recipe_settings(&j.recipe, NULL);
    j.refine = recipe_refine_settings(&j.recipe, NULL);
    if (j.recipe.device == DEVICE_CUDA && !j.recipe.device_memory)
        FAIL_OUT(ERR_USAGE, "--shape with run.device=cuda plans without a GPU: give "
                            "run.device_memory, as in 24G");
    TRY_OUT(arch_check_length(&j.arch, j.recipe.seqlen));
    TRY_OUT(recipe_check_layers(&j.recipe, &j.arch));
    TRY_OUT(place_streams(&plan, &e, &j));
    TRY_OUT(place_refinement(&e, &j));
    e.state_bytes = state_need(&e, &j);
    err = show(&e, json);
out:
    recipe_free(&j.recipe);
    return err;
}
