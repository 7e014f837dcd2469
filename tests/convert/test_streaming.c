/* SPDX-License-Identifier: MIT
 *
 * Exports and folds pass over the weights once: what they map of a file is released behind
 * them, and their progress counts every byte. */
#include "convert/artifact/writer.h"
#include "convert/export/export.h"
#include "convert/fold/fold.h"
#include "kernels/base/mem.h"
#include "tests/convert/tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/convert/dir_fixture.h"

/* Wide enough that a tensor has many pages: the system maps 64 KiB around each that is read, and a
 * released tensor keeps parts of pages at both ends. */
static const struct tiny_model wide = {"llama", 8,    384,   768,    4, 4,
                                       96,      1024, false, DT_F16, 5};
static const struct weight_spec whole = {WEIGHT_RTN, 16, 0};
static const struct kv_spec cache = {
    KV_CHANNEL_TOKEN, 4, 32, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE};

static char model_dir[128], artifact_dir[128], out_dir[128];

/* KiB of the file whose name ends so that are in this process's memory. */
static long resident(const char *file)
{
    char line[512];
    unsigned long first, end;
    long all = 0, kib;
    bool inside = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "%lx-%lx ", &first, &end) == 2) /* a mapping, of no file too */
            inside = strstr(line, file) != NULL;
        else if (inside && sscanf(line, "Rss: %ld kB", &kib) == 1)
            all += kib;
    }
    if (f)
        fclose(f);
    return all;
}

/* What progress was told, and the most that was resident then. */
struct watch {
    const char *file;
    double last;
    int calls;
    bool fell;
    long most;
};

static enum err look(void *ctx, double share)
{
    struct watch *w = ctx;
    const long now = resident(w->file);
    w->most = now > w->most ? now : w->most;
    w->fell |= !(share >= w->last);
    w->last = share;
    w->calls++;
    return OK;
}

/* Progress rose to exactly 1 in many steps, and never more than this part of the file was there. */
static void check_watch(const struct watch *w, const char *format, int part)
{
    const long bound = (long)(file_size(w->file) / 1024 / part);
    if (w->fell || w->last != 1 || w->calls < 8 * N_LIN)
        fail_msg("%s: %d calls, the last with %g", format, w->calls, w->last);
    if (!(w->most > 0 && w->most <= bound))
        fail_msg("%s: %ld KiB of the file were resident, want at most 1/%d, %ld", format,
                 w->most, part, bound);
}

static int set_up(void **state)
{
    static const struct artifact_settings s = {.weights = {WEIGHT_RTN, 4, 128},
                                               .kv = {KV_TOKEN, 16},
                                               .config_json = "{}",
                                               .provenance_json = "{}",
                                               .threads = 1};
    struct hf_model *m = NULL;
    if (make_dir(state))
        return -1;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    snprintf(artifact_dir, sizeof(artifact_dir), "%s/artifact", dir);
    snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
    ok(tiny_model_write(model_dir, &wide));
    ok(hf_open(&m, model_dir));
    ok(artifact_write(artifact_dir, m, model_dir, NULL, &s, NULL, NULL));
    hf_close(&m);
    return 0;
}

static int tear_down(void **state)
{
    return !scratch_remove(model_dir) || !scratch_remove(artifact_dir) ||
           !scratch_remove(out_dir) || drop_dir(state);
}

static void export_as(const char *format)
{
    char file[200], gguf[200];
    struct export_source *s = NULL;
    struct watch w = {.file = file};
    struct export_job j = {
        .format = export_find(format),
        .options = {.drop_cache = true, .dtype = DT_F16, .threads = 1, .gguf_pre = "none"},
        .progress = look,
        .progress_ctx = &w};
    snprintf(file, sizeof(file), "%s/model.safetensors", artifact_dir);
    snprintf(gguf, sizeof(gguf), "%s/a.gguf", dir);
    ok(export_open(&s, artifact_dir));
    j.source = s;
    ok(export_check(&j));
    ok(export_write(&j, j.format->is_file ? gguf : out_dir));
    export_job_free(&j);
    export_close(&s);
    check_watch(&w, format, 4);
    assert_true(j.format->is_file ? !remove(gguf) : scratch_remove(out_dir));
}

static void test_exports(void **state)
{
    export_as("gguf");
    export_as("dense");
    export_as("compressed-tensors");
    export_as("awq");
}

/* Scales of 1, and shifts of the values. */
static enum err shifted(void *ctx, int64_t i, const struct block_quant **q)
{
    static struct block_quant b;
    struct hf_model *m = ctx;
    const struct model_source *source = hf_source(m);
    struct block_src src;
    *q = &b;
    block_quant_free(&b);
    if (i < 0)
        return OK;
    TRY(source->block(source->ctx, i, &src));
    TRY(quant_block_rtn(&b, hf_arch(m), &src, i, &whole, &cache));
    for (int64_t c = 0; c < b.n_channels; c++)
        b.v_shift[c] = 0.5f;
    source->release(source->ctx, i);
    return OK;
}

static void test_fold(void **state)
{
    char file[200];
    struct hf_model *m = NULL;
    struct watch w = {.file = file};
    struct fold_report r = {0};
    const struct block_quant *last;
    const struct fold_options options = {.progress = look, .progress_ctx = &w};
    snprintf(file, sizeof(file), "%s/model.safetensors", model_dir);
    ok(hf_open(&m, model_dir));
    const struct quant_source q = {m, shifted};
    ok(fold_write(&r, out_dir, m, model_dir, &q, &options));
    assert_true(r.biases);
    ok(shifted(m, -1, &last)); /* frees the last one */
    hf_close(&m);
    check_watch(&w, "fold", 10);
}

/* The bounds are for pages of 4 KiB, around each of which the system maps 16. */
static bool can_measure(void)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    const bool found = f != NULL;
    if (f)
        fclose(f);
    return found && sysconf(_SC_PAGESIZE) <= 4096;
}

int main(void)
{
    if (!can_measure())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exports),
        cmocka_unit_test(test_fold),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
