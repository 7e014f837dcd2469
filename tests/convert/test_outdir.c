/* SPDX-License-Identifier: MIT
 *
 * The place of an output: while the disk fails nothing is lost, of model cards only a writer's own
 * is removed, and what a run elsewhere left is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "convert/artifact/writer.h"
#include "convert/output/outdir.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "tests/base/dead.h"
#include "tests/convert/tiny_model.h"
#include "tests/scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char dir[96], model_dir[128], out_dir[128];
/* The system cannot exchange directories, and none gets the name of out_dir. */
static bool failing_disk;

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __real_renameat2(int from_fd, const char *from, int to_fd, const char *to,
                     unsigned flags);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to,
                     unsigned flags);

int __wrap_rename(const char *from, const char *to)
{
    if (!failing_disk || strcmp(file_base_name(to), file_base_name(out_dir)))
        return __real_rename(from, to);
    errno = EIO;
    return -1;
}

int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to,
                     unsigned flags)
{
    if (!failing_disk)
        return __real_renameat2(from_fd, from, to_fd, to, flags);
    errno = ENOSYS;
    return -1;
}

static void quiet(void *ctx, enum log_level level, const char *line)
{
}

static int setup(void **state)
{
    log_set_sink(quiet, NULL);
    if (!scratch_dir(dir, sizeof(dir)))
        return -1;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
    return 0;
}

static int teardown(void **state)
{
    log_set_sink(NULL, NULL);
    (void)scratch_remove(model_dir);
    (void)scratch_remove(out_dir);
    return !scratch_remove(dir);
}

static enum err write_bits(int bits)
{
    struct hf_model *m = NULL;
    const struct artifact_settings s = {
        .weights = {WEIGHT_RTN, bits, 16},
        .kv = {KV_TOKEN, 4, 4, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE},
        .threads = 1,
        .force = true};
    TRY(hf_open(&m, model_dir));
    const enum err err = artifact_write(out_dir, m, model_dir, NULL, &s, NULL, NULL);
    hf_close(&m);
    return err;
}

static int replace_and_fail(void *ctx)
{
    failing_disk = true;
    return write_bits(3) != ERR_IO;
}

static void the_old_artifact_survives(void **state)
{
    uint32_t before, after;
    uint64_t bytes;
    char path[160];
    assert_int_equal(tiny_model_write(model_dir, &tiny_default), OK);
    assert_int_equal(write_bits(4), OK);
    snprintf(path, sizeof(path), "%s/model.safetensors", out_dir);
    assert_int_equal(file_crc32(&before, &bytes, path), OK);
    assert_int_equal(dead_run(replace_and_fail, NULL), 0);
    assert_false(file_exists(out_dir));
    assert_int_equal(outdir_recover(out_dir), OK);
    assert_int_equal(file_crc32(&after, &bytes, path), OK);
    assert_int_equal(after, before);
    assert_int_equal(write_bits(3), OK);
}

/* Opens a staging directory of out_dir, and returns paths inside it. */
static void open_stage(struct outdir *d, char stage[200], char card[240])
{
    assert_int_equal(outdir_open(d, out_dir, OUTDIR_NEW), OK);
    snprintf(stage, 200, "%s", d->stage);
    snprintf(card, 240, "%s/data/%s", stage, OUTDIR_CARD);
}

static void a_written_card_is_ours(void **state)
{
    struct outdir d;
    char stage[200], card[240], final[160];
    open_stage(&d, stage, card);
    assert_int_equal(outdir_write_card(&d, "# card\n"), OK);
    assert_true(file_exists(card));
    outdir_abort(&d);
    assert_false(file_exists(stage));
    open_stage(&d, stage, card);
    assert_int_equal(outdir_write_card(&d, "# card\n"), OK);
    assert_int_equal(outdir_commit(&d), OK);
    snprintf(final, sizeof(final), "%s/%s", out_dir, OUTDIR_CARD);
    assert_int_equal(file_size(final), 7);
    assert_false(file_exists(stage));
}

/* As after the exchange of directories, when STAGE/data is what a person had. */
static void another_card_is_kept(void **state)
{
    struct outdir d;
    char stage[200], card[240];
    open_stage(&d, stage, card);
    assert_int_equal(file_write_all(card, "mine", 4), OK);
    outdir_abort(&d);
    assert_int_equal(file_size(card), 4);
    *strrchr(card, '/') = '\0';
    assert_true(scratch_remove(card) && scratch_remove(stage));
}

static int warnings;

static void count_warnings(void *ctx, enum log_level level, const char *line)
{
    warnings += level == LOG_WARN &&
                strstr(line, ".tmp.4711-1a2b-00000000: 2.0 MB of a run") &&
                strstr(line, "remove the directory if that run has ended");
}

/* As after a reboot: the tag is of no process that this host could know. */
static void a_stage_of_elsewhere_is_named_and_stays(void **state)
{
    struct outdir d;
    char stage[200], data[240], file[280], mine[200], card[240];
    bool taken;
    snprintf(stage, sizeof(stage), "%s.tmp.4711-1a2b-00000000", out_dir);
    snprintf(data, sizeof(data), "%s/data", stage);
    snprintf(file, sizeof(file), "%s/model.safetensors", data);
    assert_int_equal(file_make_new_dir(&taken, stage), OK);
    assert_int_equal(file_make_new_dir(&taken, data), OK);
    assert_int_equal(file_write_all(file, "", 0), OK);
    assert_int_equal(truncate(file, 2000000), 0);
    log_set_sink(count_warnings, NULL);
    for (int i = 0; i < 2; i++) {
        open_stage(&d, mine, card);
        outdir_abort(&d);
    }
    assert_int_equal(warnings, 1);
    assert_int_equal(file_size(file), 2000000);
    assert_true(scratch_remove(data) && scratch_remove(stage));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_written_card_is_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(another_card_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(the_old_artifact_survives, setup, teardown),
        cmocka_unit_test_setup_teardown(a_stage_of_elsewhere_is_named_and_stays, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
