/* SPDX-License-Identifier: MIT
 *
 * The calibration state on disk: round trip, resume, refusals, and the remains of a
 * kill. */
#include "convert/checkpoint/safetensors.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tests/base/dead.h"
#include "tests/scratch.h"
#include "tools/state/state.h"
#include "tools/state/state_block.h"
#include "tools/state/state_diff.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const char dir[] = "test_state.tmp";

static struct arch tiny(void)
{
    return (struct arch){.n_layers = 2,
                         .d_model = 8,
                         .d_ff = 12,
                         .n_heads = 2,
                         .n_kv = 1,
                         .head_dim = 4,
                         .vocab = 16};
}

static json_t *identity(const char *set)
{
    struct recipe r;
    json_t *config;
    recipe_init(&r);
    assert_int_equal(recipe_set(&r, "weights.group_size", "5", ""), OK);
    if (set)
        assert_int_equal(recipe_set(&r, set, "3", ""), OK);
    assert_int_equal(recipe_json(&config, &r, true), OK);
    recipe_free(&r);
    return json_pack("{s:o, s:{s:s}, s:{s:I, s:[i,i]}}", "config", config, "checkpoint",
                     "crc32", "00000001", "text", "tokens", (json_int_t)100, "windows", 7,
                     9);
}

static enum err open_as(struct state **s, const char *set)
{
    const struct arch a = tiny();
    json_t *id = identity(set);
    err_clear();
    const enum err err = state_open(s, dir, &a, id);
    json_decref(id);
    return err;
}

static void fill(struct block_quant *q, int seed)
{
    const struct arch a = tiny();
    assert_int_equal(block_quant_alloc(q, 4), OK);
    for (int l = 0; l < N_LIN; l++) {
        assert_int_equal(qlinear_alloc(&q->lin[l], arch_out(&a, l), arch_in(&a, l),
                                       (struct lin_format){4, 5}),
                         OK);
        for (int64_t i = 0; i < q->lin[l].out * q->lin[l].groups; i++) {
            q->lin[l].scales[i] = (uint16_t)(seed * 100 + l * 10 + i);
            q->lin[l].zeros[i] = (uint8_t)((seed + i) & 15);
        }
    }
    for (int c = 0; c < 4; c++)
        q->k_scale[c] = q->v_shift[c] = (float)(seed + c);
}

static void save(struct calib_io *io, int64_t block)
{
    struct block_quant q;
    struct calib_block_stats st = {.block = block,
                                   .start_loss = 2,
                                   .best_loss = 1.0 / 3,
                                   .best_epoch = 1,
                                   .n_epochs = 1,
                                   .epoch_loss = {1.0 / 3}};
    fill(&q, (int)block + 1);
    assert_int_equal(io->save_block(io->ctx, block, &q, &st), OK);
    block_quant_free(&q);
}

static int clean(void **ignored)
{
    return scratch_remove(dir) ? 0 : -1;
}

static void saves_and_loads(void **ignored)
{
    struct state *s;
    struct calib_io io;
    struct block_quant q, want;
    struct calib_block_stats st;
    assert_int_equal(open_as(&s, NULL), OK);
    assert_int_equal(state_done(s), 0);
    bool is;
    assert_int_equal(state_is(&is, dir), OK);
    assert_true(is);
    state_calib_io(&io, s, NULL, NULL, NULL);
    save(&io, 0);
    state_close(&s);

    assert_int_equal(open_as(&s, NULL), OK);
    assert_int_equal(state_done(s), 1);
    assert_int_equal(state_stats(&st, s, 0), OK);
    assert_true(st.best_loss == 1.0 / 3 && st.n_epochs == 1);
    assert_int_equal(state_load_block(&q, s, 0), OK);
    fill(&want, 1);
    for (int l = 0; l < N_LIN; l++) {
        const size_t n = (size_t)(want.lin[l].out * want.lin[l].groups);
        assert_int_equal(q.lin[l].groups, want.lin[l].groups);
        assert_memory_equal(q.lin[l].scales, want.lin[l].scales, 2 * n);
        assert_memory_equal(q.lin[l].zeros, want.lin[l].zeros, n);
    }
    assert_memory_equal(q.k_scale, want.k_scale, 4 * sizeof(float));
    assert_memory_equal(q.v_shift, want.v_shift, 4 * sizeof(float));
    block_quant_free(&q);
    block_quant_free(&want);
    assert_int_equal(state_load_block(&q, s, 1), ERR_USAGE);
    state_close(&s);
}

static void another_run_is_refused(void **ignored)
{
    struct state *s;
    assert_int_equal(open_as(&s, NULL), OK);
    state_close(&s);
    assert_int_equal(open_as(&s, "weights.bits"), ERR_MISMATCH);
    assert_non_null(
        strstr(err_text(), "config.weights.bits is 4 in the state and 3 in this run"));
    assert_int_equal(open_as(&s, "weights.scale_bits"), ERR_MISMATCH);
    assert_non_null(strstr(
        err_text(), "config.weights.scale_bits is 11 in the state and 3 in this run"));
    assert_int_equal(open_as(&s, "run.threads"), OK); /* speed only */
    state_close(&s);
}

/* An object without members is no difference, and does not hide one behind it. */
static void every_member_is_compared(void **ignored)
{
    json_t *have = json_pack("{s:{}, s:i}", "text", "blocks", 1), *run = json_object();
    err_clear();
    assert_int_equal(state_compare(dir, have, run), ERR_MISMATCH);
    assert_non_null(strstr(err_text(), "blocks is 1 in the state"));
    json_object_del(have, "blocks");
    assert_int_equal(state_compare(dir, have, run), OK);
    json_decref(have);
    json_decref(run);
}

static void damage_is_named(void **ignored)
{
    struct state *s;
    struct calib_io io;
    char byte;
    assert_int_equal(open_as(&s, NULL), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    save(&io, 0);
    state_close(&s);
    FILE *f = fopen("test_state.tmp/block-0000.safetensors", "r+b");
    assert_non_null(f);
    fseek(f, -1, SEEK_END);
    assert_int_equal(fread(&byte, 1, 1, f), 1);
    byte ^= 1;
    fseek(f, -1, SEEK_END);
    fwrite(&byte, 1, 1, f);
    fclose(f);
    assert_int_equal(open_as(&s, NULL), ERR_FORMAT);
    assert_non_null(strstr(err_text(), "block-0000.safetensors: CRC-32"));
}

/* Adds codes and gains, as w has them. */
static void fill_refined(struct block_quant *q, const struct arch *a, int64_t layer,
                         const struct weight_spec *w)
{
    fill(q, 1);
    for (int l = 0; l < N_LIN && weight_chooses_codes(w); l++) {
        assert_int_equal(qlinear_alloc_codes(&q->lin[l]), OK);
        memset(q->lin[l].codes, 1, (size_t)(q->lin[l].out * q->lin[l].in));
    }
    for (int g = 0; g < N_GAINS && w->refined; g++) {
        const size_t n = (size_t)arch_gain(a, layer, (enum norm_gain)g);
        if (n)
            assert_int_equal(mem_calloc(&q->gain[g], n, sizeof(float)), OK);
    }
}

static void a_block_has_the_bytes_that_are_planned(void **ignored)
{
    static const struct weight_spec all[] = {{WEIGHT_LWC, 4, 5},
                                             {WEIGHT_GPTQ, 4, 5},
                                             {WEIGHT_LWC, 4, 5, .round = ROUND_LEARNED},
                                             {WEIGHT_LWC, 4, 5, .refined = true},
                                             {WEIGHT_RTN, 16, 5, .refined = true},
                                             {WEIGHT_RTN, 16, 5}};
    const char path[] = "test_state.block";
    const struct arch a = tiny();
    for (size_t i = 0; i < 2 * ARRAY_LEN(all); i++) {
        const struct weight_spec *w = &all[i / 2];
        const int64_t layer = (int64_t)(i % 2);
        uint64_t bytes = 0;
        struct block_quant q = {0};
        struct st_file *f;
        fill_refined(&q, &a, layer, w);
        for (int l = 0; l < N_LIN && w->bits == 16; l++)
            qlinear_free(&q.lin[l]);
        assert_int_equal(state_block_save(path, &q, &a, layer, NULL), OK);
        assert_int_equal(st_open(&f, path), OK);
        for (int64_t k = 0; k < st_count(f); k++)
            bytes += st_at(f, k)->bytes;
        assert_int_equal(bytes, state_block_bytes(&a, layer, w));
        assert_in_range(st_bytes(f) - bytes, 8, STATE_TEXT_BYTES);
        st_close(&f);
        block_quant_free(&q);
    }
    assert_int_equal(unlink(path), 0);
}

static void two_processes_are_one_too_many(void **ignored)
{
    struct state *s, *second;
    assert_int_equal(open_as(&s, NULL), OK);
    assert_int_equal(open_as(&second, NULL), ERR_USAGE);
    assert_non_null(strstr(err_text(), "another process"));
    state_close(&s);
    assert_int_equal(open_as(&s, NULL), OK);
    state_close(&s);
}

static void partial_survives_and_leftovers_do_not(void **ignored)
{
    struct state *s;
    struct calib_io io;
    float values[3] = {1, 2, 3};
    const struct named_tensor *back;
    struct named_tensor t = {.name = "clip.q", .t = tensor_1d(values, DT_F32, 3)};
    char tag[OWNER_TAG_MAX], temp[120];
    int n;
    assert_int_equal(dead_tag(tag), 0);
    assert_int_equal(open_as(&s, NULL), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        values[0] = (float)i;
        assert_int_equal(io.save_partial(io.ctx, 0, &t, 1), OK);
    }
    state_close(&s);
    assert_int_equal(file_write_all("test_state.tmp/partial-b.safetensors", "x", 1), OK);
    assert_int_equal(file_write_all("test_state.tmp/block-0001.safetensors", "x", 1), OK);
    snprintf(temp, sizeof(temp), "test_state.tmp/manifest.json.tmp.%s", tag);
    assert_int_equal(file_write_all(temp, "x", 1), OK);

    assert_int_equal(open_as(&s, NULL), OK);
    assert_false(file_exists("test_state.tmp/partial-b.safetensors"));
    assert_false(file_exists("test_state.tmp/block-0001.safetensors"));
    assert_false(file_exists(temp));
    state_calib_io(&io, s, NULL, NULL, NULL);
    assert_int_equal(io.load_partial(io.ctx, 1, &back, &n), OK);
    assert_int_equal(n, 0);
    assert_int_equal(io.load_partial(io.ctx, 0, &back, &n), OK);
    assert_int_equal(n, 1);
    assert_string_equal(back->name, "clip.q");
    assert_int_equal(back->t.dim[0], 3);
    assert_true(((const float *)back->t.data)[0] == 2);
    save(&io, 0);
    assert_int_equal(io.load_partial(io.ctx, 0, &back, &n), OK);
    assert_int_equal(n, 0);
    assert_false(file_exists("test_state.tmp/partial-a.safetensors"));
    state_close(&s);
}

static void streams_are_zero_and_writable(void **ignored)
{
    struct state *s;
    struct calib_io io;
    unsigned char *p;
    assert_int_equal(open_as(&s, NULL), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        assert_int_equal(io.stream_open(io.ctx, "target-0", 10000, on_disk, (void **)&p),
                         OK);
        assert_true(p[0] == 0 && p[9999] == 0);
        p[9999] = 1;
        io.stream_close(io.ctx, p);
    }
    state_close(&s);
}

static void other_directories_are_left_alone(void **ignored)
{
    struct state *s;
    assert_int_equal(file_make_dir(dir), OK);
    assert_int_equal(file_write_all("test_state.tmp/thesis.tex", "x", 1), OK);
    assert_int_equal(open_as(&s, NULL), ERR_USAGE);
    assert_non_null(strstr(err_text(), "thesis.tex"));
    bool is;
    assert_int_equal(state_is(&is, dir), OK);
    assert_false(is);
    assert_true(file_exists("test_state.tmp/thesis.tex"));
}

/* Names that begin like a state's or are spelled almost like one, and a directory of a
 * state's name. */
static void look_alikes_are_refused_and_stay(void **ignored)
{
    static const char *const name[] = {"partial-results.csv",
                                       "block-notes.txt",
                                       "block-0001.safetensors~",
                                       "block-001.safetensors",
                                       "block-00001.safetensors",
                                       "Block-0001.safetensors",
                                       "block-0002.safetensors",
                                       "block--001.safetensors",
                                       "partial-c.safetensors",
                                       "partial-a.safetensors.bak",
                                       "stream-quantized",
                                       "stream-a.tmp.123",
                                       "manifest.json~",
                                       "manifest.json.tmp.123",
                                       "manifest.json.old",
                                       "lock.bak",
                                       "LOCK",
                                       "manifest.jsonl"};
    struct state *s;
    assert_int_equal(open_as(&s, NULL), OK);
    state_close(&s);
    for (size_t i = 0; i < ARRAY_LEN(name); i++) {
        char path[100];
        snprintf(path, sizeof(path), "%s/%s", dir, name[i]);
        assert_int_equal(file_write_all(path, "x", 1), OK);
        assert_int_equal(open_as(&s, NULL), ERR_USAGE);
        assert_non_null(strstr(err_text(), name[i]));
        assert_true(file_exists(path));
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(mkdir("test_state.tmp/block-0001.safetensors", 0755), 0);
    assert_int_equal(open_as(&s, NULL), ERR_USAGE);
    assert_int_equal(rmdir("test_state.tmp/block-0001.safetensors"), 0);
    assert_int_equal(symlink("manifest.json", "test_state.tmp/partial-a.safetensors"), 0);
    assert_int_equal(open_as(&s, NULL), ERR_USAGE);
    assert_int_equal(unlink("test_state.tmp/partial-a.safetensors"), 0);
    assert_int_equal(open_as(&s, NULL), OK);
    state_close(&s);
}

/* Without a manifest no file belongs to a state, and a lock must be empty. */
static void a_new_state_takes_nothing_for_its_own(void **ignored)
{
    static const char *const name[] = {"block-0000.safetensors", "partial-a.safetensors",
                                       "stream-a", "lock", "lock.owner"};
    struct state *s;
    assert_int_equal(file_make_dir(dir), OK);
    for (size_t i = 0; i < ARRAY_LEN(name); i++) {
        char path[100];
        snprintf(path, sizeof(path), "%s/%s", dir, name[i]);
        assert_int_equal(file_write_all(path, "x", 1), OK);
        assert_int_equal(open_as(&s, NULL), ERR_USAGE);
        assert_int_equal(state_probe(dir), ERR_USAGE);
        assert_int_equal(file_size(path), 1);
        assert_int_equal(unlink(path), 0);
    }
}

/* Ranks that are started together try one place at the same time. */
static void two_processes_may_try_a_state_at_once(void **ignored)
{
    struct state *s;
    assert_int_equal(open_as(&s, NULL), OK);
    state_close(&s);
    const pid_t parent = getpid(), other = fork();
    assert_true(other >= 0);
    while (!other) /* until it is killed */
        if (state_probe(dir) || getppid() != parent)
            _exit(1);
    for (int i = 0; i < 3000; i++)
        assert_int_equal(state_probe(dir), OK);
    assert_int_equal(waitpid(other, NULL, WNOHANG), 0);
    assert_int_equal(kill(other, SIGKILL), 0);
    assert_int_equal(waitpid(other, NULL, 0), other);
}

static void removal_keeps_what_is_not_its_own(void **ignored)
{
    struct state *s;
    struct calib_io io;
    assert_int_equal(open_as(&s, NULL), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    save(&io, 0);
    assert_int_equal(file_write_all("test_state.tmp/block-notes.txt", "x", 1), OK);
    assert_int_equal(state_remove(&s), OK);
    assert_true(file_exists("test_state.tmp/block-notes.txt"));
    assert_false(file_exists("test_state.tmp/block-0000.safetensors"));
    assert_false(file_exists("test_state.tmp/manifest.json"));
    assert_false(file_exists("test_state.tmp/lock"));
    assert_int_equal(state_discard(dir), ERR_USAGE); /* no state */
    assert_true(file_exists("test_state.tmp/block-notes.txt"));
}

/* How a state is recognized by its name, also if it is half removed, or only its lock
 * remains. */
static void discarded_by_name(void **ignored)
{
    struct state *s;
    assert_int_equal(state_discard(dir), OK); /* missing */
    assert_int_equal(open_as(&s, NULL), OK);
    assert_int_equal(state_discard(dir), ERR_USAGE); /* in use */
    state_close(&s);
    assert_int_equal(state_discard(dir), OK);
    assert_false(file_exists(dir));
    assert_int_equal(file_make_dir(dir), OK);
    assert_int_equal(file_write_all("test_state.tmp/lock", "", 0), OK);
    assert_int_equal(state_discard(dir), OK);
    assert_false(file_exists(dir));
}

static void an_artifact_names_its_state(void **ignored)
{
    struct state *s;
    struct calib_io io;
    struct state_look look;
    char mark[STATE_MARK];
    assert_int_equal(open_as(&s, NULL), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    save(&io, 0);
    state_mark(mark, s);
    assert_string_equal(mark, ""); /* a block is missing */
    save(&io, 1);
    state_mark(mark, s);
    assert_int_equal(strlen(mark), 8);
    state_close(&s);
    assert_int_equal(state_look(&look, dir), OK);
    assert_true(look.is && !look.removing && !look.empty);
    assert_string_equal(look.mark, mark);
    assert_int_equal(clean(NULL), 0);
    assert_int_equal(open_as(&s, "weights.bits"), OK);
    state_calib_io(&io, s, NULL, NULL, NULL);
    save(&io, 0);
    save(&io, 1);
    state_mark(look.mark, s);
    assert_string_not_equal(look.mark, mark); /* the manifest contains the configuration */
    state_close(&s);
}

static void removes_itself(void **ignored)
{
    struct state *s;
    assert_int_equal(open_as(&s, NULL), OK);
    assert_int_equal(state_remove(&s), OK);
    assert_false(file_is_dir(dir));
}

static void a_foreign_manifest_is_refused(void **ignored)
{
    struct state *s;
    const char *const bad[] = {
        "{",
        "[]",
        "{\"format\": \"other\"}",
        "{\"format\": \"wkvq-state\", \"version\": 2, \"blocks\": 2}",
        "{\"format\": \"wkvq-state\", \"version\": 1, \"blocks\": 2}",
        "{\"format\": \"wkvq-state\", \"version\": 1, \"blocks\": 3, \"done\": [], "
        "\"identity\": {\"config\": {}}}",
        "{\"format\": \"wkvq-state\", \"version\": 1, \"blocks\": 2, \"done\": [7], "
        "\"identity\": {\"config\": {}}}",
        "{\"format\": \"wkvq-state\", \"version\": 1, \"blocks\": 2, \"done\": [{\"file\": "
        "\"../x\", \"crc32\": \"0\"}], \"identity\": {\"config\": {}}}",
    };
    assert_int_equal(file_make_dir(dir), OK);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(
            file_write_all("test_state.tmp/manifest.json", bad[i], strlen(bad[i])), OK);
        assert_int_not_equal(open_as(&s, NULL), OK);
        assert_non_null(strstr(err_text(), "manifest.json"));
        assert_int_equal(err_exit_status(open_as(&s, NULL)), 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(saves_and_loads, clean, clean),
        cmocka_unit_test(every_member_is_compared),
        cmocka_unit_test_setup_teardown(another_run_is_refused, clean, clean),
        cmocka_unit_test_setup_teardown(damage_is_named, clean, clean),
        cmocka_unit_test(a_block_has_the_bytes_that_are_planned),
        cmocka_unit_test_setup_teardown(two_processes_are_one_too_many, clean, clean),
        cmocka_unit_test_setup_teardown(partial_survives_and_leftovers_do_not, clean,
                                        clean),
        cmocka_unit_test_setup_teardown(streams_are_zero_and_writable, clean, clean),
        cmocka_unit_test_setup_teardown(other_directories_are_left_alone, clean, clean),
        cmocka_unit_test_setup_teardown(look_alikes_are_refused_and_stay, clean, clean),
        cmocka_unit_test_setup_teardown(two_processes_may_try_a_state_at_once, clean,
                                        clean),
        cmocka_unit_test_setup_teardown(a_new_state_takes_nothing_for_its_own, clean,
                                        clean),
        cmocka_unit_test_setup_teardown(removal_keeps_what_is_not_its_own, clean, clean),
        cmocka_unit_test_setup_teardown(discarded_by_name, clean, clean),
        cmocka_unit_test_setup_teardown(an_artifact_names_its_state, clean, clean),
        cmocka_unit_test_setup_teardown(removes_itself, clean, clean),
        cmocka_unit_test_setup_teardown(a_foreign_manifest_is_refused, clean, clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
