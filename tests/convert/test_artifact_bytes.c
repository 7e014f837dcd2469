/* SPDX-License-Identifier: MIT
 *
 * The computed size of an artifact is exactly that of the written one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "convert/artifact/writer.h"
#include "kernels/base/file/file.h"
#include "tests/convert/dir_fixture.h"
#include "tests/convert/tiny_model.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char model_dir[128], out_dir[128];

static int set_up(void **state)
{
    if (make_dir(state))
        return -1;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
    err_clear();
    return 0;
}

static int tear_down(void **state)
{
    (void)scratch_remove(model_dir);
    (void)scratch_remove(out_dir);
    return !scratch_remove(dir);
}

static uint64_t bytes_of_files(const char *path)
{
    uint64_t total = 0;
    struct dirent **e = NULL;
    const int n = scandir(path, &e, NULL, alphasort);
    assert_true(n > 2);
    for (int i = 0; i < n; i++) {
        char file[400];
        snprintf(file, sizeof(file), "%s/%s", path, e[i]->d_name);
        total += file_is_dir(file) ? 0 : (uint64_t)file_size(file);
        free(e[i]);
    }
    free(e);
    return total;
}

static void check(const struct tiny_model *t, const struct artifact_settings *s)
{
    struct hf_model *m = NULL;
    uint64_t predicted = 0;
    ok(tiny_model_write(model_dir, t));
    ok(hf_open(&m, model_dir));
    ok(artifact_bytes(&predicted, m, model_dir, s));
    assert_false(file_exists(out_dir)); /* nothing was written */
    ok(artifact_write(out_dir, m, model_dir, NULL, s, NULL, NULL));
    hf_close(&m);
    assert_int_equal(predicted, bytes_of_files(out_dir));
    assert_true(scratch_remove(out_dir));
}

static struct artifact_settings settings(int bits, int64_t group)
{
    return (struct artifact_settings){
        .weights = {WEIGHT_RTN, bits, group},
        .kv = {KV_TOKEN, 4, 4, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE},
        .config_json = "{\"weights\": {\"bits\": 4}}",
        .provenance_json = "{\"data\": \"none\"}",
        .threads = 2,
    };
}

/* All settings that change the size: groups, bits, mixes, a cache in full precision, shards,
 * tied embeddings, types and families. */
static void test_every_kind(void **state)
{
    static const int64_t group[] = {128, 64, 16, 0};
    static const uint64_t shard[] = {0, 4000, 1};
    struct mix *mixed = NULL;
    struct tiny_model t = tiny_default;
    ok(mix_parse(&mixed, MIX_WEIGHTS, "v_proj=8:8, 1.down_proj=16", ERR_USAGE, "test"));
    for (int i = 0; i < 24; i++) {
        struct artifact_settings s = settings(i % 2 ? 4 : 3, group[i % 4]);
        s.shard_bytes = shard[i % 3];
        s.weights.mixed = i % 5 == 1 ? mixed : NULL;
        s.kv.bits = i % 5 == 2 ? 16 : 4;
        t.tied = i % 2;
        t.dtype = i % 3 ? DT_BF16 : DT_F32;
        t.type = i % 4 == 3 ? "qwen3" : i % 4 == 2 ? "qwen2" : "llama";
        check(&t, &s);
    }
    mix_free(mixed);
}

static void test_wrong_settings(void **state)
{
    struct hf_model *m = NULL;
    struct artifact_settings wrong = settings(1, 16);
    uint64_t bytes = 7;
    ok(tiny_model_write(model_dir, &tiny_default));
    ok(hf_open(&m, model_dir));
    assert_int_equal(artifact_bytes(&bytes, m, model_dir, &wrong), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "weights.bits is 1"));
    assert_int_equal(bytes, 7);
    hf_close(&m);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {TEST(test_every_kind), TEST(test_wrong_settings)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
