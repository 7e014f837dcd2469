/* SPDX-License-Identifier: MIT
 *
 * Prepares a sweep before work starts: configurations, texts and identities of its
 * cells. */
#include "tools/sweep/sweep.h"

#include "data/batch.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/limits.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/opt.h"
#include "tools/pipeline/device_compute.h"
#include "tools/sweep/sweep_gpus.h"
#include "tools/sweep/sweep_measures.h"
#include "tools/sweep/sweep_results.h"
#include "tools/sweep/sweep_share.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum sweep_way sweep_way(const struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    if (!weight_quantizes(&w) && !weight_quantizes_head(&w) && !recipe_quantizes_kv(r))
        return SWEEP_PLAIN;
    const bool by_channel = recipe_quantizes_kv(r) && r->kv_method == KV_CHANNEL;
    return by_channel ? SWEEP_SIMULATED : SWEEP_PACKED;
}

bool sweep_needs_calibration(const struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    const struct kv_spec kv = recipe_kv_spec(r);
    return (weight_quantizes(&w) &&
            (r->weight_method != WEIGHT_RTN || r->weight_round == ROUND_LEARNED)) ||
           kv_needs_ranges(&kv);
}

bool sweep_calibrates(const struct recipe *r)
{
    return sweep_way(r) != SWEEP_PLAIN && sweep_needs_calibration(r);
}

enum err sweep_path(char **out, const struct sweep *s, const struct sweep_run *run,
                    const char *suffix)
{
    const size_t n = strlen(s->out_dir) + strlen(run->hash) + strlen(suffix) + 16;
    TRY(mem_alloc(out, n, 1));
    snprintf(*out, n, "%s/cells/%s%s", s->out_dir, run->hash, suffix);
    return OK;
}

static enum err add_key(struct sweep_run *run, const char *pair, const char *from)
{
    const size_t had = (size_t)run->n_set;
    TRY(mem_resize(&run->set, had, had + 1, sizeof(*run->set)));
    TRY(mem_resize(&run->from, had, had + 1, sizeof(*run->from)));
    run->set[had] = pair;
    run->from[had] = from;
    run->n_set++;
    return OK;
}

/* Ends the mixes of earlier layers that the layer set [n] ends (recipe_ends_mix). The list says so
 * by an empty mix, because on a cell's command line all keys are one layer. */
static enum err end_mixes(struct sweep_run *run, const struct sweep *s,
                          const char *const *set, int n, const char *from)
{
    static const char *const none[] = {
        [MIX_WEIGHTS] = "weights.mixed=", [MIX_KV] = "kv.mixed="};
    struct recipe_input in = s->settings.recipe;
    struct recipe before;
    in.set = run->set;
    in.n_set = run->n_set;
    in.set_from = s->plan.path ? run->from : NULL;
    recipe_init(&before);
    enum err err = recipe_apply_typed(&before, &in);
    for (int of = 0; of < 2 && !err; of++) {
        if (!recipe_has_mix(&before, of) || !recipe_ends_mix(of, set, n))
            continue;
        run->ends[of] = true;
        err = add_key(run, none[of], from);
    }
    recipe_free(&before);
    return err;
}

static enum err add_layer(struct sweep_run *run, const struct sweep *s,
                          const char *const *set, int n, const char *from)
{
    if (recipe_ends_mix(MIX_WEIGHTS, set, n) || recipe_ends_mix(MIX_KV, set, n))
        TRY(end_mixes(run, s, set, n, from));
    for (int i = 0; i < n; i++)
        TRY(add_key(run, set[i], from));
    return OK;
}

static enum err add_list(struct sweep_run *run, const struct sweep *s,
                         const struct set_list *l, const char *from)
{
    return add_layer(run, s, (const char *const *)l->item, l->n, from);
}

/* Applies --config, the base, the command line's keys and the cell's keys, in this order.
 * The last value of a key wins. */
static enum err read_recipe(struct sweep_run *run, const struct sweep *s,
                            const struct sweep_cell *cell)
{
    struct recipe_input in = s->settings.recipe;
    TRY(add_list(run, s, &s->plan.base, "base"));
    TRY(add_layer(run, s, in.set, in.n_set, "--set"));
    TRY(add_list(run, s, &s->plan.budget, "set"));
    TRY(add_list(run, s, &cell->set, "set"));
    in.set = run->set;
    in.n_set = run->n_set;
    in.set_from = s->plan.path && run->n_set ? run->from : NULL;
    return recipe_from_input(&run->recipe, &in);
}

/* Determines the device's preferred type once for all cells. A cell without calibration is
 * only evaluated, in f32. */
static enum err resolve_compute(struct sweep_run *run, struct sweep *s)
{
    const struct recipe *r = &run->recipe;
    enum recipe_compute *preferred = &s->preferred[r->device];
    run->compute = run->eval_compute =
        r->compute == COMPUTE_AUTO ? COMPUTE_F32 : (enum recipe_compute)r->compute;
    if (r->compute != COMPUTE_AUTO || !sweep_calibrates(r))
        return OK;
    if (*preferred == COMPUTE_AUTO)
        TRY(device_auto_compute(preferred, (enum recipe_device)r->device));
    run->compute = *preferred;
    return OK;
}

enum err sweep_find_text(int *out, struct sweep *s, const struct recipe_files *files,
                         const struct recipe *r)
{
    for (int i = 0; i < s->n_texts; i++) {
        struct sweep_text *t = &s->text[i];
        *out = i;
        if (t->join == r->join && t->bos == r->bos &&
            !strcmp(t->text_field, r->text_field) && recipe_files_same(&t->files, files))
            return OK;
    }
    TRY(mem_resize(&s->text, (size_t)s->n_texts, (size_t)s->n_texts + 1, sizeof(*s->text)));
    struct sweep_text *t = &s->text[s->n_texts];
    *t = (struct sweep_text){.join = r->join, .bos = r->bos};
    strcpy(t->text_field, r->text_field);
    *out = s->n_texts++;
    TRY(recipe_files_copy(&t->files, files));
    return sweep_share_text(t, s, r);
}

enum err sweep_check_text(const struct sweep *s, int text, const char *name)
{
    const size_t n = s->text[text].texts.ids.n;
    FAIL_IF(batch_windows((int64_t)n, s->eval_ctx) < 1, ERR_USAGE,
            "%s: the text has %zu tokens, fewer than one window of --ctx %" PRId64
            "; give more text or a smaller --ctx",
            name, n, s->eval_ctx);
    return OK;
}

/* FNV-1a */
void sweep_hash(char out[SWEEP_HASH_MAX], const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *p = text; *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    snprintf(out, SWEEP_HASH_MAX, "%016" PRIx64, h);
}

/* Writes the hash of the identity, which names the cell's files. Equality is decided by
 * comparing the identities themselves. */
static void hash_name(char out[SWEEP_HASH_MAX], const json_t *identity)
{
    char *text = json_text(identity, JSON_SORT_KEYS | JSON_COMPACT);
    sweep_hash(out, text ? text : "");
    free(text);
}

/* The machine decides what run.compute is resolved to, so another one may give the cell another
 * identity. */
static void hash_spec(struct sweep_run *run)
{
    json_t *spec = json_deep_copy(run->identity);
    json_t *own = json_object_get(json_object_get(spec, "config"), "run");
    json_object_set_new(own, "compute",
                        json_string(opt_choice_name(CHOICES_COMPUTE, run->recipe.compute)));
    hash_name(run->spec, spec);
    json_decref(spec);
}

/* Adds what decides which windows are drawn from which of the texts. */
static void add_shares(struct sweep_run *run, struct texts *t)
{
    texts_set_shares(t->text, t->n, &run->recipe.data);
    json_object_set_new(json_object_get(run->identity, "text"), "texts",
                        texts_json(&t->ids, t->text, t->n));
}

/* Stores the resolved run.compute in the identity, so that results of machines with and
 * without bf16 are not confused. */
static enum err identify(struct sweep_run *run, const struct sweep *s)
{
    char model[16], text[16] = "none", eval[16];
    json_t *config;
    const struct sweep_text *e = &s->text[run->eval_text];
    struct recipe as_run = run->recipe; /* borrows from run->recipe, so it is never freed */
    as_run.compute = (int)run->compute;
    TRY(recipe_json(&config, &as_run, true));
    snprintf(model, sizeof(model), "%08" PRIx32, s->model_crc);
    if (run->text >= 0)
        snprintf(text, sizeof(text), "%08" PRIx32, s->text[run->text].texts.crc);
    snprintf(eval, sizeof(eval), "%08" PRIx32, e->texts.crc);
    run->identity = json_pack(
        "{s:o, s:{s:s, s:I}, s:{s:s}, s:{s:s, s:I, s:I, s:I, s:s}}", "config", config,
        "checkpoint", "crc32", model, "bytes", (json_int_t)s->model_bytes, "text", "crc32",
        text, "eval", "crc32", eval, "tokens", (json_int_t)e->texts.ids.n, "windows",
        (json_int_t)s->eval_windows, "ctx", (json_int_t)s->eval_ctx, "compute",
        opt_choice_name(CHOICES_COMPUTE, (int)run->eval_compute));
    if (run->text >= 0 && recipe_files_shared(&run->recipe.data))
        add_shares(run, &s->text[run->text].texts);
    hash_spec(run);
    FAIL_IF(!run->identity || json_out_of_memory(), ERR_MEMORY,
            "out of memory for a cell's identity");
    hash_name(run->hash, run->identity);
    return OK;
}

/* Reads the texts of a cell. *common: an error is that of all cells, not of this one. */
static enum err find_texts(struct sweep *s, struct sweep_run *run, bool *common)
{
    const struct recipe *r = &run->recipe;
    const bool plain = sweep_way(r) == SWEEP_PLAIN;
    *common = !r->data.n || s->settings.recipe.n_data;
    FAIL_IF(!r->data.n && !plain, ERR_USAGE,
            "no text to calibrate on: give --data FILE or calibration.data");
    run->text = -1;
    if (!plain)
        TRY(sweep_find_text(&run->text, s, &r->data, r));
    *common = true;
    TRY(sweep_find_text(&run->eval_text, s, &s->eval_data, r));
    TRY(sweep_check_text(s, run->eval_text, s->eval_data.path[0]));
    *common = false;
    return OK;
}

static enum err prepare_cell(struct sweep *s, int i, bool *common)
{
    struct sweep_run *run = &s->run[i];
    struct recipe *r = &run->recipe;
    TRY(read_recipe(run, s, &s->plan.cell[i]));
    FAIL_IF(r->weight_method == WEIGHT_GIVEN, ERR_USAGE,
            "weights.method is given, but a sweep takes no --weights-from; quantize these "
            "weights with `wkvq quantize`");
    TRY(resolve_compute(run, s));
    TRY(find_texts(s, run, common));
    TRY(identify(run, s));
    TRY(sweep_measures_ask(s, run));
    run->done = sweep_results_has(s, run);
    return sweep_command(&run->command, s, run);
}

int sweep_twin(const struct sweep *s, int i)
{
    for (int k = 0; k < i; k++)
        if (!strcmp(s->run[k].hash, s->run[i].hash))
            return k;
    return -1;
}

bool sweep_is_open(const struct sweep *s, int i)
{
    return !s->run[i].done && sweep_twin(s, i) < 0;
}

void sweep_set_done(struct sweep *s, int i)
{
    for (int k = 0; k < s->plan.n_cells; k++)
        s->run[k].done |= !strcmp(s->run[k].hash, s->run[i].hash);
}

/* Two cells of one identity share a state, so the second is not run. Equal hashes of different
 * identities are an error for the same reason. */
static enum err check_twin(const struct sweep *s, int i)
{
    const int k = sweep_twin(s, i);
    if (k < 0)
        return OK;
    FAIL_IF(!json_equal(s->run[k].identity, s->run[i].identity), ERR_SUPPORT,
            "its directory would have the same name as that of cell '%s', %s; give "
            "one of them another calibration.seed, or use another sweep for it",
            s->plan.cell[k].name, s->run[k].hash);
    log_warn("cell '%s' has the same configuration as '%s' and shares its result",
             s->plan.cell[i].name, s->plan.cell[k].name);
    return OK;
}

/* Adds where a cell is defined to the message of err. */
static enum err at_cell(enum err err, const struct sweep *s, int i)
{
    const struct sweep_cell *c = &s->plan.cell[i];
    if (!s->plan.path)
        return err_add(err, "cell '%s': ", c->name);
    return err_add(err, "%s: line %d: cell '%s': ", s->plan.path, c->line, c->name);
}

/* Says where a mix of --config, base or --set does not apply. A search has said so before. */
static void say_ended(const struct sweep *s, enum mix_of of)
{
    const char *first = NULL;
    int n = 0;
    for (int i = 0; i < s->plan.n_cells; i++)
        if (s->run[i].ends[of] && !n++)
            first = s->plan.cell[i].name;
    if (n && s->plan.path)
        log_info(
            "the rules of %s end in %d of %d cells, from '%s' on: bits or a group size "
            "set after them are those of all layers",
            recipe_mix_key(of), n, s->plan.n_cells, first);
}

/* Refuses a key of --config or --set before a cell would be blamed for it. */
static enum err check_typed(const struct sweep *s)
{
    struct recipe r;
    recipe_init(&r);
    const enum err err = recipe_apply_typed(&r, &s->settings.recipe);
    recipe_free(&r);
    return err;
}

static enum err prepare_cells(struct sweep *s)
{
    TRY(check_typed(s));
    for (int i = 0; i < s->plan.n_cells; i++) {
        bool common = false;
        enum err err = prepare_cell(s, i, &common);
        if (!err)
            err = check_twin(s, i);
        if (err)
            return common ? err : at_cell(err, s, i);
    }
    say_ended(s, MIX_WEIGHTS);
    say_ended(s, MIX_KV);
    return OK;
}

/* Opens OUT once the model is known to be one, and before its checksum may be written. */
static enum err open_out(struct sweep *s, const struct hf_model *m)
{
    const enum err err = arch_check_length(&s->arch, s->eval_ctx);
    if (err)
        return err_add(err, "--ctx: ");
    TRY(tokenizer_open(&s->tokenizer, s->model_dir));
    TRY(sweep_measures_open(s));
    TRY(sweep_results_open(s));
    if (!s->settings.model_crc)
        return sweep_share_checkpoint(s, m);
    s->model_crc = *s->settings.model_crc;
    return OK;
}

static enum err open_model(struct sweep *s)
{
    struct hf_model *m = NULL;
    TRY(hf_open(&m, s->model_dir));
    s->arch = *hf_arch(m);
    s->model_bytes = hf_bytes(m);
    const enum err err = open_out(s, m);
    hf_close(&m);
    return err;
}

/* Chooses the evaluation text and windows. Settings of the command line win over the
 * plan. */
static enum err settle_eval(struct sweep *s)
{
    const struct sweep_settings *own = &s->settings;
    s->eval_data = s->plan.eval_data;
    if (own->n_eval_data)
        s->eval_data = (struct recipe_files){.path = (char **)(uintptr_t)own->eval_data,
                                             .n = own->n_eval_data};
    s->eval_windows = own->eval_windows >= 0 ? own->eval_windows : s->plan.eval_windows;
    s->eval_ctx = own->eval_ctx ? own->eval_ctx : s->plan.eval_ctx;
    FAIL_IF(!s->eval_data.n, ERR_USAGE,
            "no text to evaluate on: give --eval FILE or eval.data");
    return OK;
}

/* A process of a shared sweep runs one cell, and the batch system has given it its share of the
 * machine. */
static int64_t cells_here(const struct sweep_settings *own)
{
    return own->parallel && !own->share ? own->parallel : 1;
}

enum err sweep_open(struct sweep *s, const struct sweep_settings *settings,
                    struct sweep_plan *plan)
{
    *s = (struct sweep){.settings = *settings,
                        .model_dir = settings->model_dir,
                        .out_dir = settings->out_dir,
                        .plan = *plan,
                        .parallel = cells_here(settings),
                        .cores = cpus_available(),
                        .lock.fd = -1};
    s->gpu_cells = sweep_gpu_cells(s->parallel); /* before a cell sees one GPU alone */
    *plan = (struct sweep_plan){0};
    if (settings->log_json && !settings->plan_only)
        TRY(progress_open_file(&s->log, settings->log_json));
    TRY(settle_eval(s));
    enum err err = open_model(s);
    if (!err)
        err = mem_calloc(&s->run, (size_t)s->plan.n_cells, sizeof(*s->run));
    if (!err)
        err = prepare_cells(s);
    if (err)
        sweep_results_undo(s);
    return err;
}

static void free_texts(struct sweep *s)
{
    for (int i = 0; i < s->n_texts; i++) {
        texts_free(&s->text[i].texts);
        recipe_files_clear(&s->text[i].files);
    }
    mem_free(s->text);
}

void sweep_close(struct sweep *s)
{
    for (int i = 0; s->run && i < s->plan.n_cells; i++) {
        recipe_free(&s->run[i].recipe);
        mem_free(s->run[i].set);
        mem_free(s->run[i].from);
        sweep_measures_forget(&s->run[i]);
        json_decref(s->run[i].identity);
        mem_free(s->run[i].command);
    }
    mem_free(s->run);
    free_texts(s);
    if (s->log)
        fclose(s->log);
    sweep_measures_close(s);
    tokenizer_close(&s->tokenizer);
    sweep_results_close(s);
    sweep_plan_free(&s->plan);
    *s = (struct sweep){.lock.fd = -1};
}
