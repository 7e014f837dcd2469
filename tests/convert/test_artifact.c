/* SPDX-License-Identifier: MIT
 *
 * Artifacts of a tiny model: what is read equals what was written, bit for bit, and no
 * incomplete file or directory appears. */
#include "convert/artifact/reader.h"
#include "convert/artifact/writer.h"
#include "convert/format/artifact_names.h"
#include "convert/format/bitpack.h"
#include "convert/format/sizes.h"
#include "data/json.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "kernels/tensor/quant.h"
#include "tests/convert/tiny_model.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/convert/dir_fixture.h"

static char model_dir[128], out_dir[128], other_dir[128];

static void remove_all(void)
{
    (void)scratch_remove(model_dir);
    (void)scratch_remove(out_dir);
    (void)scratch_remove(other_dir);
}

static int set_up(void **state)
{
    if (make_dir(state))
        return -1;
    snprintf(model_dir, sizeof(model_dir), "%s/model", dir);
    snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
    snprintf(other_dir, sizeof(other_dir), "%s/other", dir);
    err_clear();
    return 0;
}

static int tear_down(void **state)
{
    remove_all();
    return !scratch_remove(dir);
}

static void refused(enum err have, enum err want, const char *word)
{
    if (have != want || !strstr(err_text(), word))
        fail_msg("want %s, \"%s\"; have %s: %s", err_name(want), word, err_name(have),
                 err_text());
    err_clear();
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

static enum err try_write(const char *out, const struct artifact_settings *s,
                          const struct quant_source *q)
{
    struct hf_model *m = NULL;
    TRY(hf_open(&m, model_dir));
    const enum err err = artifact_write(out, m, model_dir, q, s, NULL, NULL);
    hf_close(&m);
    return err;
}

static void make(const struct tiny_model *t, const char *out,
                 const struct artifact_settings *s)
{
    ok(tiny_model_write(model_dir, t));
    ok(try_write(out, s, NULL));
}

/* Compares all data of block i with the checkpoint and the definition. */
static void check_block(const struct artifact *a, const struct model_source *src, int64_t i)
{
    const struct weight_spec *w = artifact_weight_spec(a);
    struct block_src b;
    struct block_quant want, have;
    ok(src->block(src->ctx, i, &b));
    ok(quant_block_rtn(&want, artifact_arch(a), &b, i, w, artifact_kv_spec(a)));
    ok(artifact_block_quant(&have, a, i));
    for (int l = 0; l < N_LIN; l++) {
        const struct packed_linear *p = &artifact_block(a, i)->lin[l];
        const int64_t n = p->out * p->in;
        float *plain = NULL, *unpacked = NULL;
        ok(mem_alloc(&plain, (size_t)n, sizeof(*plain)));
        ok(mem_alloc(&unpacked, (size_t)n, sizeof(*unpacked)));
        host_to_f32(plain, b.lin[l].data, b.lin[l].dtype, n);
        packed_linear_unpack(unpacked, p);
        for (int64_t k = 0; k < n && p->bits < 16; k++) {
            const int64_t step = qlinear_group(&want.lin[l]);
            const int64_t g = k / p->in * p->groups + k % p->in / step;
            const float h = f16_to_f32(want.lin[l].scales[g]);
            const uint8_t z = want.lin[l].zeros[g];
            plain[k] = quant_weight_value(quant_weight_code(plain[k], h, z, p->bits), z, h);
        }
        assert_memory_equal(unpacked, plain, (size_t)n * sizeof(*plain));
        assert_int_equal(p->bits, weight_format(w, i, l).bits);
        if (p->bits < 16) {
            assert_true(qlinear_fits(&have.lin[l], p->out, p->in, weight_format(w, i, l)));
            assert_memory_equal(have.lin[l].scales, want.lin[l].scales,
                                (size_t)(p->out * p->groups) * 2);
            assert_memory_equal(have.lin[l].zeros, want.lin[l].zeros,
                                (size_t)(p->out * p->groups));
        }
        mem_free(plain);
        mem_free(unpacked);
    }
    for (int64_t c = 0; c < have.n_channels; c++) {
        assert_true(have.k_scale[c] == 1 && have.v_scale[c] == 1);
        assert_true(have.k_shift[c] == 0 && have.v_shift[c] == 0);
    }
    assert_memory_equal(artifact_block(a, i)->norm[GAIN_MLP].data, b.norm[GAIN_MLP].data,
                        (size_t)b.norm[GAIN_MLP].rows *
                            dtype_bytes(b.norm[GAIN_MLP].dtype));
    block_quant_free(&want);
    block_quant_free(&have);
}

static void check_artifact(const char *out, unsigned how)
{
    struct hf_model *m = NULL;
    struct artifact *a = NULL;
    struct host_mat embed, norm, head;
    bool is;
    ok(artifact_is(&is, out));
    assert_true(is);
    ok(hf_open(&m, model_dir));
    ok(artifact_open(&a, out, how));
    const struct model_source *src = hf_source(m);
    assert_int_equal(artifact_arch(a)->n_layers, hf_arch(m)->n_layers);
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++)
        check_block(a, src, i);
    ok(src->ends(src->ctx, &embed, &norm, &head));
    const struct host_mat have = artifact_head(a)->w;
    assert_int_equal(have.dtype, head.dtype);
    assert_memory_equal(have.data, head.data,
                        (size_t)(head.rows * head.cols) * dtype_bytes(head.dtype));
    if (hf_arch(m)->tied)
        assert_ptr_equal(artifact_head(a), artifact_embed(a));
    artifact_close(&a);
    hf_close(&m);
}

static void test_round_trip(void **state)
{
    static const int64_t groups[] = {0, 16, 5, 64};
    for (int bits = 2; bits <= 9; bits++)
        for (size_t g = 0; g < ARRAY_LEN(groups); g++) {
            const struct artifact_settings s = settings(bits == 9 ? 16 : bits, groups[g]);
            make(&tiny_default, out_dir, &s);
            check_artifact(out_dir, ARTIFACT_CHECK | (g % 2 ? ARTIFACT_LOAD : 0));
            remove_all();
        }
}

/* Base bits, and what differs from them. */
static void test_mixed(void **state)
{
    static const char *const text[] = {
        "v_proj=8:5, 0.down_proj=3:0, 1.o_proj=6, 1.q_proj=2, 0.k_proj=16",
        "1.gate_proj=5:7, v_proj=4"};
    for (int i = 0; i < 2; i++) {
        struct artifact_settings s = settings(i ? 16 : 4, 16);
        struct mix *m = NULL;
        ok(mix_parse(&m, MIX_WEIGHTS, text[i], ERR_USAGE, "mix"));
        s.weights.mixed = m;
        make(&tiny_default, out_dir, &s);
        check_artifact(out_dir, ARTIFACT_CHECK | ARTIFACT_LOAD);
        remove_all();
        mix_free(m);
    }
}

static void test_families(void **state)
{
    static const char *const types[] = {"llama", "qwen2", "qwen3", "olmo2"};
    static const enum dtype dtypes[] = {DT_F32, DT_F16, DT_BF16, DT_F32};
    for (size_t i = 0; i < ARRAY_LEN(types); i++) {
        struct tiny_model t = tiny_default;
        t.type = types[i];
        t.dtype = dtypes[i];
        t.tied = i == 1;
        t.n_layers = 11; /* two digits: layers stay in numerical order */
        const struct artifact_settings s = settings(4, 16);
        make(&t, out_dir, &s);
        check_artifact(out_dir, ARTIFACT_CHECK | ARTIFACT_LOAD);
        struct artifact *a = NULL;
        ok(artifact_open(&a, out_dir, 0));
        const struct packed_block *b = artifact_block(a, 10);
        assert_int_equal(b->lin[LIN_V].bias.data != NULL, i == 1);
        assert_int_equal(b->norm[GAIN_Q].data != NULL, i >= 2);
        assert_int_equal(b->norm[GAIN_MLP].data != NULL, i < 3);
        assert_int_equal(b->norm[GAIN_MLP_OUT].data != NULL, i == 3);
        artifact_close(&a);
        remove_all();
    }
}

/* CRC of every file in a directory, names included. */
static uint32_t fingerprint(const char *path)
{
    struct dirent **e = NULL;
    uint32_t all = 0;
    const int n = scandir(path, &e, NULL, alphasort);
    assert_true(n > 2);
    for (int i = 0; i < n; i++) {
        char *file = NULL;
        uint32_t crc = 0;
        uint64_t bytes;
        ok(file_join(&file, path, e[i]->d_name));
        if (!file_is_dir(file))
            ok(file_crc32(&crc, &bytes, file));
        all = bytes_crc32(all, e[i]->d_name, strlen(e[i]->d_name));
        all = bytes_crc32(all, &crc, sizeof(crc));
        mem_free(file);
        free(e[i]);
    }
    free(e);
    return all;
}

static void test_same_bytes(void **state)
{
    struct artifact_settings s = settings(4, 16);
    make(&tiny_default, out_dir, &s);
    s.threads = 1;
    ok(try_write(other_dir, &s, NULL));
    assert_int_equal(fingerprint(out_dir), fingerprint(other_dir));
    s.weights.bits = 3;
    s.force = true;
    ok(try_write(other_dir, &s, NULL));
    assert_int_not_equal(fingerprint(out_dir), fingerprint(other_dir));
}

static void test_shards(void **state)
{
    struct artifact_settings s = settings(4, 16);
    char path[160];
    s.shard_bytes = 4000;
    make(&tiny_default, out_dir, &s);
    check_artifact(out_dir, ARTIFACT_CHECK | ARTIFACT_LOAD);
    snprintf(path, sizeof(path), "%s/model.safetensors", out_dir);
    assert_false(file_exists(path));
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", out_dir);
    json_t *o = NULL;
    ok(json_load_file_strict(&o, path, 1 << 20));
    const json_t *map = json_object_get(o, "weight_map");
    const char *file =
        json_string_value(json_object_get(map, "model.layers.1.mlp.down_proj.qweight"));
    assert_non_null(file);
    struct st_file *f = NULL;
    snprintf(path, sizeof(path), "%s/%s", out_dir, file);
    ok(st_open(&f, path));
    assert_non_null(st_find(f, "model.layers.1.mlp.down_proj.qweight"));
    uint64_t data = 0;
    for (int64_t i = 0; i < st_count(f); i++)
        data += st_at(f, i)->bytes;
    assert_true(data <= 4000 || st_count(f) == 1);
    st_close(&f);
    json_decref(o);
}

/* Scales, zeros, s and delta from calibration, not from rounding. */
struct made_up {
    struct block_quant q;
    int64_t asked[8], n;
};

static enum err made_up_block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct made_up *m = ctx;
    m->asked[m->n++ % 8] = i;
    *q = &m->q;
    return OK;
}

static void make_up(struct made_up *m, const struct artifact_settings *s,
                    struct hf_model *hf)
{
    const struct model_source *src = hf_source(hf);
    struct block_src b;
    ok(src->block(src->ctx, 0, &b));
    ok(quant_block_rtn(&m->q, hf_arch(hf), &b, 0, &s->weights, &s->kv));
    for (int64_t c = 0; c < m->q.n_channels; c++) {
        m->q.k_scale[c] = 1 + 0.25f * (float)c;
        m->q.k_shift[c] = -0.5f * (float)c;
        m->q.v_scale[c] = 2 + (float)c;
        m->q.v_shift[c] = (float)c / 3;
    }
    for (int64_t i = 0; i < m->q.lin[LIN_UP].out * m->q.lin[LIN_UP].groups; i++) {
        m->q.lin[LIN_UP].scales[i] = (uint16_t)(0x2000 + i);
        m->q.lin[LIN_UP].zeros[i] = (uint8_t)(i % 8);
    }
}

static void test_calibrated(void **state)
{
    const struct artifact_settings s = settings(3, 16);
    struct made_up m = {0};
    struct hf_model *hf = NULL;
    struct block_quant have = {0};
    struct artifact *a = NULL;
    ok(tiny_model_write(model_dir, &tiny_default));
    ok(hf_open(&hf, model_dir));
    make_up(&m, &s, hf);
    const struct quant_source q = {&m, made_up_block};
    ok(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL));
    assert_int_equal(m.n, 2); /* each block once, in order */
    assert_int_equal(m.asked[0], 0);
    assert_int_equal(m.asked[1], 1);
    ok(artifact_open(&a, out_dir, ARTIFACT_CHECK));
    ok(artifact_block_quant(&have, a, 1));
    const size_t bytes = (size_t)have.n_channels * sizeof(float);
    assert_memory_equal(have.k_scale, m.q.k_scale, bytes);
    assert_memory_equal(have.k_shift, m.q.k_shift, bytes);
    assert_memory_equal(have.v_scale, m.q.v_scale, bytes);
    assert_memory_equal(have.v_shift, m.q.v_shift, bytes);
    const struct qlinear *up = &m.q.lin[LIN_UP];
    assert_memory_equal(have.lin[LIN_UP].scales, up->scales,
                        (size_t)(up->out * up->groups) * 2);
    assert_memory_equal(have.lin[LIN_UP].zeros, up->zeros, (size_t)(up->out * up->groups));
    block_quant_free(&have);
    artifact_close(&a);
    hf_close(&hf);
    block_quant_free(&m.q);
}

static void test_bad_calibration(void **state)
{
    const struct artifact_settings s = settings(4, 16);
    struct made_up m = {0};
    struct hf_model *hf = NULL;
    ok(tiny_model_write(model_dir, &tiny_default));
    ok(hf_open(&hf, model_dir));
    make_up(&m, &s, hf);
    const struct quant_source q = {&m, made_up_block};
    m.q.lin[LIN_K].scales[3] = 0x7c00;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_FORMAT,
            "block 0, k");
    m.q.lin[LIN_K].scales[3] = 0;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_FORMAT,
            "scale 3");
    m.q.lin[LIN_K].scales[3] = 0x3c00;
    m.q.lin[LIN_K].zeros[1] = 16;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_FORMAT,
            "zero 1");
    m.q.lin[LIN_K].zeros[1] = 15;
    m.q.v_scale[2] = 0;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_FORMAT,
            "channel 2");
    m.q.v_scale[2] = 1;
    m.q.k_shift[0] = NAN;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_FORMAT, "keys");
    m.q.k_shift[0] = 0;
    m.q.lin[LIN_K].format.bits = 3;
    refused(artifact_write(out_dir, hf, model_dir, &q, &s, NULL, NULL), ERR_MISMATCH,
            "3 bits");
    m.q.lin[LIN_K].format.bits = 4;
    const struct artifact_settings wide = settings(4, 8);
    refused(artifact_write(out_dir, hf, model_dir, &q, &wide, NULL, NULL), ERR_MISMATCH,
            "groups");
    assert_false(file_exists(out_dir));
    hf_close(&hf);
    block_quant_free(&m.q);
}

static int count_entries(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void test_existing(void **state)
{
    struct artifact_settings s = settings(4, 16);
    char path[160];
    ok(tiny_model_write(model_dir, &tiny_default));
    ok(file_make_dir(out_dir)); /* an empty directory is fine */
    ok(try_write(out_dir, &s, NULL));
    const uint32_t before = fingerprint(out_dir);
    refused(try_write(out_dir, &s, NULL), ERR_USAGE, "--force");
    assert_int_equal(fingerprint(out_dir), before);
    s.force = true;
    s.weights.bits = 2;
    s.shard_bytes = 4000;
    ok(try_write(out_dir, &s, NULL)); /* other files than before */
    check_artifact(out_dir, ARTIFACT_CHECK | ARTIFACT_LOAD);
    snprintf(path, sizeof(path), "%s/notes.txt", out_dir);
    ok(file_write_all(path, "x", 1));
    refused(try_write(out_dir, &s, NULL), ERR_USAGE, "notes.txt");
    assert_true(file_exists(path));
    refused(try_write(model_dir, &s, NULL), ERR_USAGE, "not an artifact");
    snprintf(path, sizeof(path), "%s/model/config.json", dir);
    refused(try_write(path, &s, NULL), ERR_USAGE, "not a directory");
    assert_int_equal(count_entries(dir), 2);
}

static void test_disk_full(void **state)
{
    struct artifact_settings s = settings(4, 16);
    struct rlimit old, small = {6000, RLIM_INFINITY};
    ok(tiny_model_write(model_dir, &tiny_default));
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &small);
    const enum err e = try_write(out_dir, &s, NULL);
    setrlimit(RLIMIT_FSIZE, &old);
    refused(
        e, ERR_IO,
        "model.safetensors: cannot write: File too large; files may have at most 6000 bytes");
    assert_int_equal(count_entries(dir), 1); /* the model alone */
    snprintf(other_dir, sizeof(other_dir), "%s/model/config.json/out", dir);
    refused(try_write(other_dir, &s, NULL), ERR_USAGE, "Not a directory");
    snprintf(other_dir, sizeof(other_dir), "%s/other", dir);
}

static void test_not_finite(void **state)
{
    struct artifact_settings s = settings(4, 16);
    char path[160];
    char *bytes = NULL;
    size_t n = 0;
    ok(tiny_model_write(model_dir, &tiny_default));
    struct st_file *f = NULL;
    snprintf(path, sizeof(path), "%s/model.safetensors", model_dir);
    ok(st_open(&f, path));
    const struct st_tensor *t = st_find(f, "model.layers.1.mlp.down_proj.weight");
    const size_t at =
        (size_t)(st_bytes(f) - (size_t)(st_at(f, st_count(f) - 1)->data +
                                        st_at(f, st_count(f) - 1)->bytes - t->data));
    ok(file_read_all(&bytes, &n, path, 1 << 20));
    memset(bytes + at + 2 * 53 * 4, 0xff, 2); /* row 4 of width 53, bf16 */
    st_close(&f);
    ok(file_write_all(path, bytes, n));
    mem_free(bytes);
    refused(try_write(out_dir, &s, NULL), ERR_FORMAT, "down_proj.weight: row 4");
    assert_false(file_exists(out_dir));
}

static void test_measure(void **state)
{
    const struct artifact_settings s = settings(4, 16);
    struct artifact_sizes m;
    struct artifact *a = NULL;
    make(&tiny_default, out_dir, &s);
    ok(artifact_open(&a, out_dir, ARTIFACT_CHECK));
    artifact_measure(&m, a);
    /* per layer, rows x (code bytes + scale bytes + zero bytes): widths 36 and 53 in groups
     * of 16 */
    const uint64_t w36 = 18 + 2 * 3 + 2, w53 = 27 + 2 * 4 + 2;
    const uint64_t rows36 = 36 + 12 + 12 + 36 + 53 + 53;
    assert_int_equal(m.quantized_bytes, 2 * (rows36 * w36 + 36 * w53));
    assert_int_equal(m.quantized_weights, 2 * (rows36 * 36 + 36 * 53));
    const double bits = 8.0 * (double)m.quantized_bytes / (double)m.quantized_weights;
    assert_true(fabs(m.weight_bits - bits) <= 1e-12);
    /* 12 channels: 6 bytes of codes; heads of 6 in groups of 4 and 2: 4 pairs of 4 bytes */
    assert_true(fabs(m.kv_bits - 8.0 * 22 / 12) <= 1e-12);
    assert_int_equal(artifact_kv_bytes(a, 3, 10), 3 * 10 * 2 * 2 * 22);
    uint64_t total = 0;
    struct dirent **e = NULL;
    const int n = scandir(out_dir, &e, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char path[400];
        snprintf(path, sizeof(path), "%s/%s", out_dir, e[i]->d_name);
        total += file_is_dir(path) ? 0 : (uint64_t)file_size(path);
        free(e[i]);
    }
    free(e);
    assert_int_equal(m.total_bytes, total);
    artifact_close(&a);
    /* every head starts on a byte: 6 codes of 3 bits take 3 */
    const struct arch arch = {.n_layers = 2, .n_kv = 2, .head_dim = 6};
    const struct kv_format three = {.bits = 3, .group_size = 0}, none = {.bits = 16};
    assert_int_equal(kv_row_bytes(&arch, three), 2 * (3 + 4));
    assert_int_equal(kv_row_bytes(&arch, none), 24);
    struct mix *mixed;
    ok(mix_parse(&mixed, MIX_KV, "0.k=3, 1.v=16", ERR_USAGE, "test"));
    struct kv_spec kv = {.method = KV_TOKEN, .bits = 4, .group_size = 4, .mixed = mixed};
    assert_int_equal(kv_token_bytes(&arch, &kv), 2 * (3 + 8) + 22 + 22 + 24);
    assert_true(fabs(kv_mean_bits(&arch, &kv) - 8.0 * 90 / 48) <= 1e-12);
    kv.method = KV_CHANNEL; /* keys by 4 tokens */
    const double by_channel = (3 + 8.0 + 8.0 * 22 / 12 + 4 + 8.0 + 16) / 4;
    assert_true(fabs(kv_mean_bits(&arch, &kv) - by_channel) <= 1e-12);
    mix_free(mixed);
}

static void test_source(void **state)
{
    const struct artifact_settings s = settings(4, 16);
    struct artifact *a = NULL;
    make(&tiny_default, out_dir, &s);
    ok(artifact_open(&a, out_dir, 0));
    const struct model_source *src = artifact_source(a);
    struct block_src b0, b1;
    ok(src->block(src->ctx, 0, &b0));
    ok(src->block(src->ctx, 1, &b1)); /* both stay valid */
    src->release(src->ctx, 1);
    ok(src->block(src->ctx, 1, &b1));
    for (int64_t i = 0; i < 2; i++)
        for (int l = 0; l < N_LIN; l++) {
            const struct packed_linear *p = &artifact_block(a, i)->lin[l];
            const struct host_mat *m = i ? &b1.lin[l] : &b0.lin[l];
            float w[53 * 53];
            packed_linear_unpack(w, p);
            assert_int_equal(m->dtype, DT_F32);
            assert_int_equal(m->rows, p->out);
            assert_int_equal(m->cols, p->in);
            assert_memory_equal(m->data, w, (size_t)(p->out * p->in) * sizeof(*w));
        }
    refused(src->block(src->ctx, 2, &b0), ERR_SHAPE, "block 2");
    artifact_close(&a);
}

static void test_config(void **state)
{
    const struct artifact_settings s = settings(4, 16);
    char path[160];
    json_t *have = NULL, *had = NULL, *v;
    const char *key;
    make(&tiny_default, out_dir, &s);
    snprintf(path, sizeof(path), "%s/config.json", out_dir);
    ok(json_load_file_strict(&have, path, 1 << 20));
    snprintf(path, sizeof(path), "%s/config.json", model_dir);
    ok(json_load_file_strict(&had, path, 1 << 20));
    json_object_foreach(had, key, v) assert_true(json_equal(v, json_object_get(have, key)));
    assert_int_equal(json_object_size(have), json_object_size(had) + 1);
    const json_t *q = json_object_get(have, "quantization_config");
    assert_string_equal(json_string_value(json_object_get(q, "format")), "wkvq");
    assert_null(json_object_get(q, "quant_method")); /* transformers must refuse it */
    json_decref(have);
    json_decref(had);
    bool is;
    ok(artifact_is(&is, model_dir));
    assert_false(is);
    ok(artifact_is(&is, dir));
    assert_false(is);
    assert_string_equal(err_text(), "");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),      TEST(test_mixed),    TEST(test_families),
        TEST(test_same_bytes),      TEST(test_shards),   TEST(test_calibrated),
        TEST(test_bad_calibration), TEST(test_existing), TEST(test_disk_full),
        TEST(test_not_finite),      TEST(test_measure),  TEST(test_source),
        TEST(test_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
