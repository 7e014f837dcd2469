/* SPDX-License-Identifier: MIT
 *
 * Damaged and hostile artifacts. Every flipped byte is found and its place named. A correct
 * manifest over wrong tensors is refused, without reads out of bounds. */
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"
#include "convert/format/manifest.h"
#include "data/json_seal.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tests/convert/tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/convert/dir_fixture.h"

static char model_dir[128], out_dir[128], path[200];

static const char *in_out(const char *name)
{
    snprintf(path, sizeof(path), "%s/%s", out_dir, name);
    return path;
}

static int set_up(void **state)
{
    static const struct artifact_settings s = {
        .weights = {WEIGHT_RTN, 4, 16},
        .kv = {KV_TOKEN, 4, 4, KEY_POST_ROPE, true, 1, 0, true, ROTATE_NONE}};
    struct hf_model *m = NULL;
    if (make_dir(state))
        return -1;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
    err_clear();
    ok(tiny_model_write(model_dir, &tiny_default));
    ok(hf_open(&m, model_dir));
    ok(artifact_write(out_dir, m, model_dir, NULL, &s, NULL, NULL));
    hf_close(&m);
    return 0;
}

static int tear_down(void **state)
{
    return !scratch_remove(model_dir) || !scratch_remove(out_dir) || !scratch_remove(dir);
}

/* Overwrites in place, because file_write_all() would fsync thousands of times. */
static void put(const char *name, const char *data, size_t n)
{
    FILE *f = fopen(in_out(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void refused(bool check_crc, enum err want, const char *file, const char *word)
{
    struct artifact *a = NULL;
    err_clear();
    const enum err have = artifact_open(&a, out_dir, check_crc ? ARTIFACT_CHECK : 0);
    artifact_close(&a);
    if (have != want || !strstr(err_text(), file) || !strstr(err_text(), word))
        fail_msg("want %s: %s, \"%s\"; have %s: %s", err_name(want), file, word,
                 err_name(have), err_text());
}

static void test_flips_in_weights(void **state)
{
    char *good = NULL;
    size_t n = 0;
    struct st_file *f = NULL;
    ok(file_read_all(&good, &n, in_out("model.safetensors"), 1 << 20));
    ok(st_open(&f, path));
    size_t header = n;
    for (int64_t i = 0; i < st_count(f); i++)
        header -= st_at(f, i)->bytes;
    /* every tensor: its first and last byte */
    for (int64_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_at(f, i);
        const size_t at = header + (size_t)(t->data - st_at(f, 0)->data);
        for (int last = 0; last < 2; last++) {
            const size_t k = at + (last ? t->bytes - 1 : 0);
            good[k] ^= 4;
            put("model.safetensors", good, n);
            refused(true, ERR_FORMAT, "model.safetensors", t->name);
            good[k] ^= 4;
        }
    }
    for (size_t k = 0; k < header; k += 7) {
        good[k] ^= 1;
        put("model.safetensors", good, n);
        refused(true, ERR_FORMAT, "", ""); /* ERR_SUPPORT cannot come from one bit here */
        good[k] ^= 1;
    }
    good[header - 1] ^= 0x29; /* a space of the padding to a tab: still valid JSON */
    put("model.safetensors", good, n);
    refused(true, ERR_FORMAT, "model.safetensors", "header is damaged");
    st_close(&f);
    mem_free(good);
}

static void test_flips_elsewhere(void **state)
{
    static const char *const names[] = {"manifest.json", "config.json", "tokenizer.json",
                                        "generation_config.json"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char *good = NULL;
        size_t n = 0;
        ok(file_read_all(&good, &n, in_out(names[i]), 1 << 20));
        for (size_t k = 0; k < n; k += i ? 1 : 5) {
            good[k] ^= 2;
            put(names[i], good, n);
            refused(true, ERR_FORMAT, i < 2 ? "" : names[i], "");
            good[k] ^= 2;
        }
        for (size_t k = 0; k < n; k += n / 9 + 1) {
            put(names[i], good, k);
            refused(false, ERR_FORMAT, names[i], "");
        }
        unlink(in_out(names[i]));
        refused(false, ERR_NOT_FOUND, names[i], "");
        put(names[i], good, n);
        mem_free(good);
    }
}

static void test_truncated_weights(void **state)
{
    char *good = NULL;
    size_t n = 0;
    ok(file_read_all(&good, &n, in_out("model.safetensors"), 1 << 20));
    for (size_t k = 0; k < n; k += n / 97) {
        put("model.safetensors", good, k);
        refused(false, ERR_FORMAT, "model.safetensors", "");
    }
    unlink(in_out("model.safetensors"));
    refused(false, ERR_NOT_FOUND, "model.safetensors", "");
    mem_free(good);
}

/* --- a consistent lie --------------------------------------------------------------- */

struct edit {
    struct named_tensor *t;
    int64_t n;
};

static struct named_tensor *find(struct edit *e, const char *name)
{
    for (int64_t i = 0; i < e->n; i++)
        if (!strcmp(e->t[i].name, name))
            return &e->t[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void load(struct edit *e)
{
    struct st_file *f = NULL;
    ok(st_open(&f, in_out("model.safetensors")));
    e->n = st_count(f);
    ok(mem_calloc(&e->t, (size_t)e->n, sizeof(*e->t)));
    for (int64_t i = 0; i < e->n; i++) {
        const struct st_tensor *t = st_at(f, i);
        void *data = NULL;
        ok(mem_alloc(&data, t->bytes, 1));
        memcpy(data, t->data, t->bytes);
        snprintf(e->t[i].name, sizeof(e->t[i].name), "%s", t->name);
        e->t[i].t.data = data;
        e->t[i].t.dtype = t->dtype;
        e->t[i].t.n_dims = t->n_dims;
        memcpy(e->t[i].t.dim, t->dim, sizeof(e->t[i].t.dim));
    }
    st_close(&f);
}

/* Writes the tensors and a manifest that agrees with them and with config.json, except for
 * the changes that lie() (may be NULL) makes to its list. */
static void store_lying(struct edit *e,
                        void (*lie)(struct manifest_tensor *list, size_t *n))
{
    size_t n = (size_t)e->n;
    struct manifest *m = NULL;
    struct manifest_tensor *list = NULL;
    struct manifest_file files[16];
    ok(manifest_open(&m, out_dir));
    ok(st_save(in_out("model.safetensors"), e->t, e->n, NULL, 0));
    ok(mem_calloc(&list, (size_t)e->n, sizeof(*list)));
    for (int64_t i = 0; i < e->n; i++) {
        const struct tensor *t = &e->t[i].t;
        const size_t bytes = (size_t)tensor_count(t) * dtype_bytes(t->dtype);
        list[i] = (struct manifest_tensor){.name = e->t[i].name,
                                           .file = "model.safetensors",
                                           .dtype = dtype_name(t->dtype),
                                           .n_dims = t->n_dims,
                                           .bytes = bytes,
                                           .crc = bytes_crc32(0, t->data, bytes)};
        memcpy(list[i].dim, t->dim, sizeof(t->dim));
    }
    for (size_t k = 0; k < m->n_files; k++) {
        files[k].name = m->file[k].name;
        ok(file_crc32(&files[k].crc, &files[k].bytes, in_out(m->file[k].name)));
    }
    if (lie)
        lie(list, &n);
    const struct manifest_input in = {NULL, NULL, list, n, files, m->n_files};
    uint64_t bytes = 0;
    ok(manifest_write(&bytes, out_dir, &in));
    mem_free(list);
    manifest_close(&m);
}

static void store(struct edit *e)
{
    store_lying(e, NULL);
}

static void drop(struct edit *e)
{
    for (int64_t i = 0; i < e->n; i++)
        mem_free(e->t[i].t.data);
    mem_free(e->t);
}

#define Q0 "model.layers.0.self_attn.q_proj"

static void test_wrong_values(void **state)
{
    static const uint16_t bad_scale[] = {0, 0x7c00, 0x7e00, 0xbc00, 0x8000};
    static const float bad_channel[] = {0, -1, INFINITY, NAN};
    struct edit e;
    load(&e);
    uint8_t *scales = find(&e, Q0 ".scales")->t.data;
    for (size_t i = 0; i < ARRAY_LEN(bad_scale); i++) {
        uint16_t keep;
        memcpy(&keep, scales + 6, 2);
        memcpy(scales + 6, &bad_scale[i], 2);
        store(&e);
        refused(true, ERR_FORMAT, "model.safetensors", Q0 ".scales: scale 3");
        memcpy(scales + 6, &keep, 2);
    }
    float *k_scale = find(&e, "model.layers.1.self_attn.k_scale")->t.data;
    for (size_t i = 0; i < ARRAY_LEN(bad_channel); i++) {
        k_scale[2] = bad_channel[i];
        store(&e);
        refused(true, ERR_FORMAT, "model.safetensors", "k_scale: channel 2");
    }
    k_scale[2] = 1;
    float *v_shift = find(&e, "model.layers.1.self_attn.v_shift")->t.data;
    v_shift[0] = NAN;
    store(&e);
    refused(true, ERR_FORMAT, "model.safetensors", "v_shift: channel 0");
    v_shift[0] = -3; /* a shift may be negative */
    store(&e);
    struct artifact *a = NULL;
    ok(artifact_open(&a, out_dir, ARTIFACT_CHECK));
    artifact_close(&a);
    /* 53 columns: the last byte of a row holds one code in its low nibble */
    uint8_t *down = find(&e, "model.layers.0.mlp.down_proj.qweight")->t.data;
    down[2 * 27 - 1] |= 0x10;
    store(&e);
    refused(true, ERR_FORMAT, "down_proj.qweight", "row 1 ");
    drop(&e);
}

static void test_wrong_shapes(void **state)
{
    static const char *const names[] = {Q0 ".qweight",
                                        Q0 ".scales",
                                        Q0 ".zeros",
                                        "model.layers.1.self_attn.v_scale",
                                        "model.layers.1.input_layernorm.weight",
                                        "model.norm.weight",
                                        "lm_head.weight"};
    struct edit e;
    load(&e);
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        struct named_tensor *t = find(&e, names[i]), keep = *t;
        t->t.dim[0]--;
        store(&e);
        refused(true, ERR_FORMAT, "model.safetensors", names[i]);
        *t = keep;
        t->t.n_dims = 3; /* the same bytes in another shape */
        t->t.dim[2] = keep.t.n_dims == 2 ? 1 : keep.t.dim[0];
        if (keep.t.n_dims == 1)
            t->t.dim[0] = t->t.dim[1] = 1;
        store(&e);
        refused(true, ERR_FORMAT, "model.safetensors", names[i]);
        *t = keep;
        t->t.dtype = keep.t.dtype == DT_U8 ? DT_I8 : DT_U8;
        t->t.dim[keep.t.n_dims - 1] *= (int64_t)dtype_bytes(keep.t.dtype);
        store(&e);
        refused(true, ERR_FORMAT, "model.safetensors", names[i]);
        *t = keep;
        snprintf(t->name, sizeof(t->name), "elsewhere");
        store(&e);
        refused(true, ERR_NOT_FOUND, out_dir, names[i]);
        *t = keep;
    }
    store(&e);
    struct artifact *a = NULL;
    ok(artifact_open(&a, out_dir, ARTIFACT_CHECK));
    artifact_close(&a);
    drop(&e);
}

static void lie_count(struct manifest_tensor *list, size_t *n)
{
    --*n;
}

static void lie_shape(struct manifest_tensor *list, size_t *n)
{
    list[3].dim[0] += 1;
}

static void lie_dims(struct manifest_tensor *list, size_t *n)
{
    list[3].n_dims++;
    list[3].dim[list[3].n_dims - 1] = 1;
}

static void lie_dtype(struct manifest_tensor *list, size_t *n)
{
    list[3].dtype = "I8";
}

static void lie_bytes(struct manifest_tensor *list, size_t *n)
{
    list[3].bytes++;
}

static void lie_name(struct manifest_tensor *list, size_t *n)
{
    list[3].name = "another";
}

static void lie_file(struct manifest_tensor *list, size_t *n)
{
    list[3].file = "config.json";
}

static void test_wrong_manifest(void **state)
{
    static const struct {
        void (*lie)(struct manifest_tensor *list, size_t *n);
        const char *word;
    } lies[] = {
        {lie_count, "the manifest lists"}, {lie_shape, "another shape"},
        {lie_dims, "another shape"},       {lie_dtype, "the manifest says I8"},
        {lie_bytes, "the manifest says"},  {lie_name, "another is missing"},
        {lie_file, "not a tensor file"},
    };
    struct edit e;
    load(&e);
    for (size_t i = 0; i < ARRAY_LEN(lies); i++) {
        store_lying(&e, lies[i].lie);
        refused(false, ERR_FORMAT, out_dir, lies[i].word);
    }
    drop(&e);
}

/* --- any bytes ---------------------------------------------------------------------- */

/* Uses everything that a successful open returned. */
static void exercise(struct artifact *a)
{
    struct artifact_sizes m;
    artifact_measure(&m, a);
    const struct model_source *src = artifact_source(a);
    for (int64_t i = 0; i < artifact_arch(a)->n_layers; i++) {
        struct block_src b;
        struct block_quant q;
        ok(src->block(src->ctx, i, &b));
        ok(artifact_block_quant(&q, a, i));
        (void)bytes_crc32(0, b.norm[GAIN_ATTENTION].data,
                          (size_t)b.norm[GAIN_ATTENTION].rows *
                              dtype_bytes(b.norm[GAIN_ATTENTION].dtype));
        block_quant_free(&q);
        src->release(src->ctx, i);
    }
    struct host_mat e, n, h;
    ok(src->ends(src->ctx, &e, &n, &h));
    (void)bytes_crc32(0, h.data, (size_t)(h.rows * h.cols) * dtype_bytes(h.dtype));
}

/* Appends the correct CRC, so that only the change itself can be refused. */
static void fix_manifest(char *text, size_t n)
{
    char seal[JSON_SEAL_BYTES + 1];
    if (n <= JSON_SEAL_BYTES)
        return;
    json_seal(seal, bytes_crc32(0, text, n - JSON_SEAL_BYTES));
    memcpy(text + n - JSON_SEAL_BYTES, seal, JSON_SEAL_BYTES);
}

static void mutate(const char *name, int rounds, uint64_t seed, size_t limit)
{
    static const char digits[] = "0123456789,:{}[]\"-e.";
    char *good = NULL, *bad = NULL;
    size_t n = 0;
    int opened = 0;
    struct rng r;
    rng_seed(&r, seed);
    ok(file_read_all(&good, &n, in_out(name), 1 << 20));
    ok(mem_alloc(&bad, n, 1));
    if (limit > n)
        limit = n;
    for (int i = 0; i < rounds; i++) {
        struct artifact *a = NULL;
        memcpy(bad, good, n);
        for (uint64_t k = 1 + rng_below(&r, 3); k; k--)
            bad[rng_below(&r, limit)] = rng_below(&r, 3)
                                            ? digits[rng_below(&r, sizeof(digits) - 1)]
                                            : (char)rng_u64(&r);
        if (!strcmp(name, MANIFEST_NAME))
            fix_manifest(bad, n);
        put(name, bad, n);
        err_clear();
        const enum err e = artifact_open(&a, out_dir, 0);
        assert_true(e == OK || err_exit_status(e) == 2);
        if (!e) {
            exercise(a);
            opened++;
        } else
            assert_true(strlen(err_text()) > 0);
        artifact_close(&a);
    }
    print_message("%s: %d of %d opened\n", name, opened, rounds);
    put(name, good, n);
    mem_free(good);
    mem_free(bad);
}

static void test_mutations(void **state)
{
    mutate("model.safetensors", 1500, 1, 6000); /* the header, and some data */
    mutate("manifest.json", 1500, 2, SIZE_MAX);
    mutate("config.json", 500, 3, SIZE_MAX);
}

/* Changes config.json and corrects its size and CRC in the manifest, so that the binder
 * sees its numbers. */
static void test_hostile_config(void **state)
{
    char *good = NULL, *bad = NULL;
    size_t n = 0;
    struct rng r;
    struct edit e;
    int opened = 0;
    rng_seed(&r, 4);
    load(&e);
    ok(file_read_all(&good, &n, in_out("config.json"), 1 << 20));
    ok(mem_alloc(&bad, n, 1));
    for (int i = 0; i < 200; i++) {
        struct artifact *a = NULL;
        memcpy(bad, good, n);
        for (int tries = 0; tries < 40; tries++) { /* change a digit */
            const size_t k = (size_t)rng_below(&r, n);
            if (bad[k] >= '0' && bad[k] <= '9') {
                bad[k] = "0123456789"[rng_below(&r, 10)];
                if (rng_below(&r, 2))
                    break;
            }
        }
        put("config.json", bad, n);
        store(&e);
        err_clear();
        const enum err have = artifact_open(&a, out_dir, ARTIFACT_CHECK);
        assert_true(have == OK || err_exit_status(have) == 2);
        if (!have) {
            exercise(a);
            opened++;
        }
        artifact_close(&a);
    }
    print_message("config.json: %d of 200 opened\n", opened);
    assert_true(opened > 0 && opened < 200);
    drop(&e);
    mem_free(good);
    mem_free(bad);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_flips_in_weights),  TEST(test_flips_elsewhere),
        TEST(test_truncated_weights), TEST(test_wrong_values),
        TEST(test_wrong_shapes),      TEST(test_wrong_manifest),
        TEST(test_mutations),         TEST(test_hostile_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
