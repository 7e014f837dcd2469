/* SPDX-License-Identifier: MIT
 *
 * The refined part of a state. The calibrated blocks stay beside it:
 *
 *   "refined": {"start": .., "best": .., "best_step": .., "steps": ..,
 *               "blocks": [{"file": "refined-0000.safetensors", "crc32": .., "bytes": ..}, ..]}
 *
 * It enters the manifest at once, when all its files are written. Files that no manifest names
 * are leftovers of a killed run. */
#include "data/json.h"
#include "kernels/base/mem.h"
#include "tools/state/state_block.h"
#include "tools/state/state_diff.h"
#include "tools/state/state_priv.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

void state_refined_name(char out[40], int64_t block)
{
    snprintf(out, 40, "refined-%04" PRId64 ".safetensors", block);
}

static const json_t *refined(const struct state *s)
{
    return json_object_get(s->manifest, "refined");
}

const json_t *state_refined_list(const struct state *s)
{
    return json_object_get(refined(s), "blocks");
}

bool state_refined(const struct state *s)
{
    return refined(s) != NULL;
}

enum err state_check_refined(const struct state *s)
{
    char where[512];
    if (!state_refined(s))
        return OK;
    snprintf(where, sizeof(where), "%.400s/" STATE_MANIFEST, s->dir);
    const size_t n = json_array_size(state_refined_list(s));
    FAIL_IF((int64_t)n != s->blocks || state_done(s) != s->blocks, ERR_FORMAT,
            "%s: refined: %zu entries for %" PRId64 " blocks", where, n, s->blocks);
    for (int64_t i = 0; i < s->blocks; i++) {
        char name[40];
        state_refined_name(name, i);
        TRY(state_check_entry(s, json_array_get(state_refined_list(s), (size_t)i), name));
    }
    return OK;
}

enum err state_refinement(struct state_refinement *out, const struct state *s)
{
    char where[512];
    struct state_refinement r = {0};
    snprintf(where, sizeof(where), "%.400s/" STATE_MANIFEST ": refined", s->dir);
    TRY(json_need_real(&r.start, refined(s), "start", 0, HUGE_VAL, where));
    TRY(json_need_real(&r.best, refined(s), "best", 0, HUGE_VAL, where));
    TRY(json_need_int(&r.best_step, refined(s), "best_step", 0, INT32_MAX, where));
    TRY(json_need_int(&r.steps, refined(s), "steps", 0, INT32_MAX, where));
    *out = r;
    return OK;
}

json_t *state_refinement_json(const struct state_refinement *r)
{
    return json_pack("{s:f, s:f, s:I, s:I}", "start", r->start, "best", r->best,
                     "best_step", (json_int_t)r->best_step, "steps", (json_int_t)r->steps);
}

enum err state_load_refined(struct block_quant *out, const struct state *s, int64_t i)
{
    char name[40], *path = NULL;
    struct weight_spec w = s->weights;
    FAIL_IF(!s->arch.n_layers || i < 0 || i >= s->blocks, ERR_SHAPE,
            "%s: no block %" PRId64, s->dir, i);
    w.refined = true;
    state_refined_name(name, i);
    TRY(state_check_entry(s, json_array_get(state_refined_list(s), (size_t)i), name));
    TRY(state_path(&path, s, name));
    const enum err err = state_block_load(out, path, &s->arch, i, &w, &s->kv);
    mem_free(path);
    return err;
}

/* --- saving ------------------------------------------------------------------------- */

static enum err save_file(json_t **entry, const struct state *s,
                          const struct block_quant *q, int64_t i)
{
    char name[40], *path = NULL;
    state_refined_name(name, i);
    TRY(state_path(&path, s, name));
    const enum err err = state_block_save(path, q, &s->arch, i, NULL);
    mem_free(path);
    TRY(err);
    return state_file_entry(entry, s, name);
}

enum err state_save_refined(struct state *s, const struct block_quant *layers,
                            const struct state_refinement *r)
{
    char partial[40];
    enum err err = OK;
    json_t *blocks = json_array();
    for (int64_t i = 0; i < s->blocks; i++) {
        json_t *entry = NULL;
        TRY_OUT(save_file(&entry, s, &layers[i], i));
        json_array_append_new(blocks, entry);
    }
    json_t *o = state_refinement_json(r);
    if (json_object_set(o, "blocks", blocks) ||
        json_object_set_new(s->manifest, "refined", o))
        FAIL_OUT(ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    state_detach_partial(s, partial);
    TRY_OUT(state_write_manifest(s));
    if (*partial)
        err = state_remove_partial(s, partial);
out:
    json_decref(blocks);
    return err;
}

enum err state_save_refining(void *ctx, const struct named_tensor *t, int n)
{
    const struct state *s = ctx;
    return state_save_partial(ctx, s->blocks, t, n);
}

enum err state_load_refining(void *ctx, const struct named_tensor **t, int *n)
{
    const struct state *s = ctx;
    return state_load_partial(ctx, s->blocks, t, n);
}

/* --- settings of refinement ------------------------------------------------------------ */

/* Makes a copy of an identity without its settings of refinement. NULL: out of memory. */
static json_t *without_refinement(const json_t *identity)
{
    json_t *o = json_deep_copy(identity);
    json_object_del(json_object_get(o, "config"), "refine");
    json_object_del(json_object_get(o, "text"), STATE_REFINE_WINDOWS);
    return o;
}

/* Returns whether a step of refinement is saved. */
static bool has_begun(const struct state *s)
{
    const json_t *partial = json_object_get(s->manifest, "partial");
    const json_t *block = json_object_get(partial, "block");
    return state_refined(s) || (block && json_integer_value(block) == s->blocks);
}

enum err state_adopt_refinement(struct state *s, const json_t *identity)
{
    enum err err = OK;
    json_t *mine = NULL, *theirs = NULL;
    if (has_begun(s) || state_removing(s) || json_equal(state_identity(s), identity))
        return OK;
    mine = without_refinement(state_identity(s));
    theirs = without_refinement(identity);
    if (!mine || !theirs)
        FAIL_OUT(ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    TRY_OUT(state_compare(s->dir, mine, theirs));
    if (json_object_set(s->manifest, "identity", (json_t *)(uintptr_t)identity))
        FAIL_OUT(ERR_MEMORY, "%s: out of memory for the manifest", s->dir);
    TRY_OUT(state_adopt_recipe(s, s->dir));
    TRY_OUT(state_write_manifest(s));
out:
    json_decref(mine);
    json_decref(theirs);
    return err;
}
