/* SPDX-License-Identifier: MIT */
#include "tools/state/state_priv.h"

#include "data/json.h"
#include "data/json_seal.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/state/state_block.h"
#include "tools/state/state_diff.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_NAME "wkvq-state"
#define FORMAT_VERSION 1
#define MANIFEST STATE_MANIFEST
#define MANIFEST_LIMIT (256u << 20)

enum err state_path(char **out, const struct state *s, const char *name)
{
    return file_join(out, s->dir, name);
}

void state_block_name(char out[40], int64_t block)
{
    snprintf(out, 40, "block-%04" PRId64 ".safetensors", block);
}

/* --- the manifest ------------------------------------------------------------------- */

static enum err write_sealed(const char *path, const char *text, size_t n)
{
    struct file_writer *w = NULL;
    char seal[JSON_SEAL_BYTES + 1];
    TRY(file_writer_open(&w, path));
    enum err err = file_write(w, text, n);
    if (!err)
        err = file_write(w, ",\n", 2);
    json_seal(seal, file_writer_crc(w));
    if (!err)
        err = file_write(w, seal, JSON_SEAL_BYTES);
    if (!err)
        return file_writer_commit(&w);
    file_writer_abort(&w);
    return err;
}

/* Reads a manifest. *whole: its checksum is present and correct. */
static enum err read_sealed(json_t **out, bool *whole, const char *path)
{
    char *text = NULL;
    size_t n;
    TRY(file_read_all(&text, &n, path, MANIFEST_LIMIT));
    const enum err err = json_parse(out, text, n, path);
    *whole = !err && !json_check_seal(text, n, path);
    if (!err)
        err_clear();
    mem_free(text);
    return err;
}

enum err state_write_manifest(const struct state *s)
{
    enum err err = OK;
    char *path = NULL;
    char *text = json_text(s->manifest, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    FAIL_IF(!text, ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    TRY_OUT(state_path(&path, s, MANIFEST));
    TRY_OUT(write_sealed(path, text, strlen(text) - strlen("\n}")));
out:
    mem_free(path);
    free(text);
    return err;
}

enum err state_file_entry(json_t **out, const struct state *s, const char *name)
{
    char *path = NULL, crc_text[16];
    uint32_t crc;
    uint64_t bytes;
    TRY(state_path(&path, s, name));
    const enum err err = file_crc32(&crc, &bytes, path);
    mem_free(path);
    TRY(err);
    snprintf(crc_text, sizeof(crc_text), "%08" PRIx32, crc);
    json_t *o = json_pack("{s:s, s:s, s:I}", "file", name, "crc32", crc_text, "bytes",
                          (json_int_t)bytes);
    FAIL_IF(!o, ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    *out = o;
    return OK;
}

enum err state_check_entry(const struct state *s, const json_t *entry, const char *name)
{
    char *path = NULL, where[512], crc_text[16];
    const char *want_crc, *want_name;
    uint32_t crc;
    uint64_t bytes;
    snprintf(where, sizeof(where), "%.400s/%s: %s", s->dir, MANIFEST, name);
    TRY(json_need_string(&want_name, entry, "file", where));
    TRY(json_need_string(&want_crc, entry, "crc32", where));
    FAIL_IF(strcmp(want_name, name), ERR_FORMAT, "%s/%s: file '%s', want '%s'", s->dir,
            MANIFEST, want_name, name);
    TRY(state_path(&path, s, name));
    const bool missing = !file_exists(path);
    const enum err err = missing ? OK : file_crc32(&crc, &bytes, path);
    mem_free(path);
    FAIL_IF(missing, ERR_FORMAT,
            "%s/%s: the file is missing, and the manifest lists it; put it back, or remove "
            "%s to start over",
            s->dir, name, s->dir);
    TRY(err);
    snprintf(crc_text, sizeof(crc_text), "%08" PRIx32, crc);
    FAIL_IF(strcmp(want_crc, crc_text), ERR_FORMAT,
            "%s/%s: CRC-32 is %s, but the manifest says %s, so the file is damaged; "
            "remove %s to start over",
            s->dir, name, crc_text, want_crc, s->dir);
    return OK;
}

static const json_t *done_list(const struct state *s)
{
    return json_object_get(s->manifest, "done");
}

int64_t state_done(const struct state *s)
{
    return (int64_t)json_array_size(done_list(s));
}

static enum err check_done(const struct state *s)
{
    for (int64_t i = 0; i < state_done(s); i++) {
        char name[40];
        state_block_name(name, i);
        TRY(state_check_entry(s, json_array_get(done_list(s), (size_t)i), name));
    }
    return OK;
}

enum err state_adopt_recipe(struct state *s, const char *path)
{
    json_t *config;
    TRY(json_get_object(&config, state_identity(s), "config", path));
    FAIL_IF(!config, ERR_FORMAT, "%s: identity.config is missing", path);
    recipe_free(&s->recipe);
    recipe_init(&s->recipe);
    TRY(recipe_load_json(&s->recipe, config, path));
    s->weights = recipe_weight_spec(&s->recipe);
    s->kv = recipe_kv_spec(&s->recipe);
    return OK;
}

/* Checks members and types of a parsed manifest, and derives the formats from its
 * config. */
static enum err adopt_manifest(struct state *s, const char *path, bool whole)
{
    const char *format = NULL;
    json_t *identity, *done;
    int64_t version;
    TRY(json_get_string(&format, s->manifest, "format", path));
    FAIL_IF(!format || strcmp(format, FORMAT_NAME), ERR_FORMAT,
            "%s: not the manifest of a calibration state (want format \"" FORMAT_NAME "\")",
            path);
    TRY(json_need_int(&version, s->manifest, "version", 1, 1000, path));
    FAIL_IF(version != FORMAT_VERSION, ERR_SUPPORT,
            "%s: version is %" PRId64 ", this program knows %d", path, version,
            FORMAT_VERSION);
    FAIL_IF(!whole, ERR_FORMAT,
            "%s: its checksum is missing or wrong, so the file is damaged; remove %s to "
            "start over",
            path, s->dir);
    json_object_del(s->manifest, JSON_SEAL_KEY);
    TRY(json_need_int(&s->blocks, s->manifest, "blocks", 1, 100000, path));
    TRY(json_get_object(&identity, s->manifest, "identity", path));
    TRY(json_get_array(&done, s->manifest, "done", path));
    FAIL_IF(!identity || !done, ERR_FORMAT, "%s: identity or done is missing", path);
    FAIL_IF((int64_t)json_array_size(done) > s->blocks, ERR_FORMAT,
            "%s: done: %zu entries for %" PRId64 " blocks", path, json_array_size(done),
            s->blocks);
    return state_adopt_recipe(s, path);
}

static enum err load_manifest(struct state *s)
{
    char *path = NULL;
    bool whole = false;
    enum err err = OK;
    TRY(state_path(&path, s, MANIFEST));
    TRY_OUT(read_sealed(&s->manifest, &whole, path));
    TRY_OUT(adopt_manifest(s, path, whole));
    if (s->arch.n_layers && s->arch.n_layers != s->blocks)
        FAIL_OUT(ERR_MISMATCH,
                 "%s: the state is of a model with %" PRId64 " blocks, this "
                 "one has %" PRId64,
                 path, s->blocks, s->arch.n_layers);
    if (!state_removing(s)) {
        TRY_OUT(check_done(s));
        TRY_OUT(state_check_refined(s));
    }
out:
    mem_free(path);
    return err;
}

static enum err new_manifest(struct state *s, const json_t *identity)
{
    s->manifest = json_pack(
        "{s:s, s:i, s:I, s:O, s:[], s:n}", "format", FORMAT_NAME, "version", FORMAT_VERSION,
        "blocks", (json_int_t)s->arch.n_layers, "identity", identity, "done", "partial");
    FAIL_IF(!s->manifest, ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    TRY(adopt_manifest(s, s->dir, true));
    return state_write_manifest(s);
}

/* --- opening ------------------------------------------------------------------------ */

static enum err state_alloc(struct state **out, const char *dir, const struct arch *a)
{
    struct state *s = NULL;
    TRY(mem_calloc(&s, 1, sizeof(*s)));
    s->lock.fd = -1;
    if (a)
        s->arch = *a;
    recipe_init(&s->recipe);
    const enum err err = mem_strdup(&s->dir, dir);
    if (err)
        state_close(&s);
    *out = s;
    return err;
}

static enum err has_manifest(bool *out, const struct state *s)
{
    char *path = NULL;
    TRY(state_path(&path, s, MANIFEST));
    *out = file_exists(path);
    mem_free(path);
    return OK;
}

/* Refuses a manifest.json that is not ours, before the lock file is created. */
static enum err need_manifest_of_ours(const struct state *s)
{
    bool is, whole;
    json_t *m = NULL;
    char *path = NULL;
    TRY(state_is(&is, s->dir));
    if (is)
        return OK;
    TRY(state_path(&path, s, MANIFEST));
    const enum err err = read_sealed(&m, &whole, path); /* says where it is damaged */
    mem_free(path);
    json_decref(m);
    TRY(err);
    FAIL(ERR_FORMAT,
         "%s/" MANIFEST ": not the manifest of a calibration state (want format "
         "\"" FORMAT_NAME "\"); name an empty or new directory",
         s->dir);
}

static enum err take_lock(struct state *s)
{
    char *path = NULL;
    TRY(state_path(&path, s, "lock"));
    const enum err err = lock_take(&s->lock, path, "this state", 0);
    mem_free(path);
    return err;
}

enum err state_open(struct state **out, const char *dir, const struct arch *a,
                    const json_t *identity)
{
    enum err err = OK;
    struct state *s = NULL;
    bool old = false;
    TRY(state_alloc(&s, dir, a));
    TRY_OUT(file_make_dir(dir));
    TRY_OUT(state_check_names(s));
    TRY_OUT(has_manifest(&old, s));
    if (old)
        TRY_OUT(need_manifest_of_ours(s));
    TRY_OUT(take_lock(s));
    TRY_OUT(has_manifest(&old, s));
    if (old) {
        TRY_OUT(load_manifest(s));
        TRY_OUT(state_adopt_refinement(s, identity));
        TRY_OUT(state_compare(dir, state_identity(s), identity));
    } else {
        TRY_OUT(new_manifest(s, identity));
    }
    TRY_OUT(state_check_names(s));
    TRY_OUT(state_remove_leftovers(s));
    *out = s;
    return OK;
out:
    state_close(&s);
    return err;
}

enum err state_open_read(struct state **out, const char *dir, const struct arch *a)
{
    enum err err = OK;
    struct state *s = NULL;
    TRY(file_check_link(dir));
    FAIL_IF(!file_is_dir(dir), ERR_NOT_FOUND,
            "%s: no such directory; make a state with `wkvq calibrate`", dir);
    TRY(state_alloc(&s, dir, a));
    TRY_OUT(load_manifest(s));
    if (state_removing(s))
        FAIL_OUT(ERR_USAGE,
                 "%s: its artifact is finished, and the state is partly removed; run the "
                 "same `wkvq quantize` or `wkvq refine` to remove the rest",
                 dir);
    *out = s;
    return OK;
out:
    state_close(&s);
    return err;
}

void state_close(struct state **ps)
{
    struct state *s = *ps;
    if (!s)
        return;
    state_drop_partial(s);
    block_quant_free(&s->current);
    recipe_free(&s->recipe);
    json_decref(s->manifest);
    lock_release(&s->lock);
    mem_free(s->stream);
    mem_free(s->dir);
    mem_free(s);
    *ps = NULL;
}

bool state_removing(const struct state *s)
{
    return json_is_true(json_object_get(s->manifest, "removing"));
}

/* Adds the checksum of a file to that of a list. */
static uint32_t add_crc(uint32_t crc, const json_t *entry)
{
    const char *text = json_string_value(json_object_get(entry, "crc32"));
    return bytes_crc32(crc, text ? text : "", text ? strlen(text) : 0);
}

static bool must_refine(const struct state *s)
{
    return recipe_refines(&s->recipe) && !state_refined(s);
}

enum err state_check_finished(const struct state *s)
{
    FAIL_IF(state_done(s) < state_blocks(s), ERR_USAGE,
            "%s: %" PRId64 " of %" PRId64
            " blocks are calibrated; let `wkvq calibrate` finish",
            s->dir, state_done(s), state_blocks(s));
    FAIL_IF(must_refine(s), ERR_USAGE,
            "%s: all blocks are calibrated, but not refined; let `wkvq calibrate` or "
            "`wkvq refine` finish",
            s->dir);
    return OK;
}

void state_mark(char out[STATE_MARK], const struct state *s)
{
    uint32_t crc = 0;
    size_t i;
    json_t *entry;
    out[0] = '\0';
    char *text = json_text(state_identity(s),
                           JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    if (!text || state_done(s) < state_blocks(s) || must_refine(s)) {
        free(text);
        return;
    }
    crc = bytes_crc32(crc, text, strlen(text));
    free(text);
    json_array_foreach(done_list(s), i, entry) crc = add_crc(crc, entry);
    json_array_foreach(state_refined_list(s), i, entry) crc = add_crc(crc, entry);
    snprintf(out, STATE_MARK, "%08" PRIx32, crc);
}

enum err state_progress_crc(uint32_t *crc, const struct state *s)
{
    json_t *o =
        json_pack("{s:O, s:O, s:O}", "done", done_list(s), "partial",
                  json_object_get(s->manifest, "partial"), "identity", state_identity(s));
    char *text = o ? json_text(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(o);
    FAIL_IF(!text, ERR_MEMORY, "%s: out of memory for a checksum", s->dir);
    *crc = bytes_crc32(0, text, strlen(text));
    free(text);
    return OK;
}

/* Opens a state's manifest without reading its other files. */
static enum err open_manifest(struct state **out, const char *dir)
{
    enum err err = OK;
    struct state *s = NULL;
    char *path = NULL;
    bool whole;
    TRY(state_alloc(&s, dir, NULL));
    TRY_OUT(state_path(&path, s, MANIFEST));
    TRY_OUT(read_sealed(&s->manifest, &whole, path));
    TRY_OUT(adopt_manifest(s, path, whole));
    *out = s;
    s = NULL;
out:
    mem_free(path);
    state_close(&s);
    return err;
}

enum err state_look(struct state_look *out, const char *dir)
{
    struct state *s = NULL;
    struct state_look look = {0};
    *out = look;
    if (!dir)
        return OK;
    TRY(state_is(&look.is, dir));
    if (look.is) {
        TRY(open_manifest(&s, dir));
        look.removing = state_removing(s);
        look.compute = s->recipe.compute;
        look.eval_samples = s->recipe.eval_samples;
        state_mark(look.mark, s);
        state_close(&s);
    } else {
        TRY(state_is_empty(&look.empty, dir));
    }
    *out = look;
    return OK;
}

enum err state_discard(const char *dir)
{
    struct state *s = NULL;
    struct state_look look;
    TRY(state_look(&look, dir));
    if (look.empty)
        return state_remove_empty(dir);
    FAIL_IF(!look.is && file_exists(dir), ERR_USAGE,
            "%s: not a calibration state; it is kept", dir);
    if (!look.is)
        return OK;
    TRY(open_manifest(&s, dir));
    const enum err err = take_lock(s);
    if (!err)
        return state_remove(&s);
    state_close(&s);
    return err;
}

enum err state_is(bool *yes, const char *dir)
{
    char *path = NULL;
    json_t *m = NULL;
    *yes = false;
    TRY(file_join(&path, dir, MANIFEST));
    enum err err = file_exists(path) ? json_load_file_strict(&m, path, MANIFEST_LIMIT) : OK;
    if (!err) {
        const char *format = json_string_value(json_object_get(m, "format"));
        *yes = format && !strcmp(format, FORMAT_NAME);
        json_decref(m);
    }
    mem_free(path);
    if (err && err != ERR_FORMAT && err != ERR_NOT_FOUND)
        return err;
    err_clear();
    return OK;
}

/* --- what it holds ------------------------------------------------------------------ */

const char *state_dir(const struct state *s)
{
    return s->dir;
}

int64_t state_blocks(const struct state *s)
{
    return s->blocks;
}

const struct recipe *state_recipe(const struct state *s)
{
    return &s->recipe;
}

const json_t *state_identity(const struct state *s)
{
    return json_object_get(s->manifest, "identity");
}

uint64_t state_bytes(const struct state *s)
{
    uint64_t sum = 0;
    size_t i;
    json_t *entry;
    json_array_foreach(done_list(s), i, entry) sum +=
        (uint64_t)json_integer_value(json_object_get(entry, "bytes"));
    json_array_foreach(state_refined_list(s), i, entry) sum +=
        (uint64_t)json_integer_value(json_object_get(entry, "bytes"));
    entry = json_object_get(s->manifest, "partial");
    return sum + (uint64_t)json_integer_value(json_object_get(entry, "bytes"));
}

/* Reads the experts that calibration did not reach; missing: none. */
static enum err read_unreached(struct calib_block_stats *st, const json_t *entry,
                               const char *where)
{
    json_t *list = NULL;
    TRY(json_get_array(&list, entry, STATE_UNREACHED, where));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        const json_int_t e = json_integer_value(v);
        FAIL_IF(!json_is_integer(v) || e < 0 || e >= ARCH_MAX_EXPERTS, ERR_FORMAT,
                "%s: " STATE_UNREACHED "[%zu] is not the number of an expert", where, i);
        st->unreached[e] = true;
    }
    return OK;
}

enum err state_stats(struct calib_block_stats *out, const struct state *s, int64_t i)
{
    struct calib_block_stats st = {.block = i};
    char where[300];
    json_t *losses;
    const json_t *entry = json_array_get(done_list(s), (size_t)i);
    snprintf(where, sizeof(where), "%s/" MANIFEST ": done[%" PRId64 "]", s->dir, i);
    TRY(json_need_real(&st.start_loss, entry, "start_loss", 0, HUGE_VAL, where));
    TRY(json_need_real(&st.best_loss, entry, "best_loss", 0, HUGE_VAL, where));
    TRY(json_need_int(&st.best_epoch, entry, "best_epoch", 0, 256, where));
    TRY(json_get_array(&losses, entry, "epoch_loss", where));
    const size_t n = json_array_size(losses);
    FAIL_IF(n > ARRAY_LEN(st.epoch_loss), ERR_FORMAT, "%s: epoch_loss: %zu entries", where,
            n);
    for (size_t e = 0; e < n; e++)
        st.epoch_loss[e] = json_number_value(json_array_get(losses, e));
    st.n_epochs = (int64_t)n;
    TRY(read_unreached(&st, entry, where));
    *out = st;
    return OK;
}

enum err state_load_calibrated(struct block_quant *out, const struct state *s, int64_t i)
{
    char name[40], *path = NULL;
    FAIL_IF(!s->arch.n_layers || i < 0 || i >= s->blocks, ERR_SHAPE,
            "%s: no block %" PRId64, s->dir, i);
    FAIL_IF(i >= state_done(s), ERR_USAGE,
            "%s: block %" PRId64 " is not calibrated yet (%" PRId64 " of %" PRId64
            " are); let "
            "`wkvq calibrate` finish",
            s->dir, i, state_done(s), s->blocks);
    state_block_name(name, i);
    TRY(state_check_entry(s, json_array_get(done_list(s), (size_t)i), name));
    TRY(state_path(&path, s, name));
    const enum err err = state_block_load(out, path, &s->arch, i, &s->weights, &s->kv);
    mem_free(path);
    return err;
}

enum err state_load_block(struct block_quant *out, const struct state *s, int64_t i)
{
    if (!recipe_refines(&s->recipe))
        return state_load_calibrated(out, s, i);
    TRY(state_check_finished(s));
    return state_load_refined(out, s, i);
}

static enum err source_block(void *ctx, int64_t i, const struct block_quant **q)
{
    struct state *s = ctx;
    block_quant_free(&s->current);
    TRY(state_load_block(&s->current, s, i));
    *q = &s->current;
    return OK;
}

const struct quant_source *state_source(struct state *s)
{
    s->source = (struct quant_source){.ctx = s, .block = source_block};
    return &s->source;
}
