/* SPDX-License-Identifier: MIT
 *
 * A sweep before work starts: its cells' configurations, texts and identities. */
#include "tools/sweep.h"

#include "data/batch.h"
#include "data/json.h"
#include "kernels/base/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/sweep_results.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum sweep_way sweep_way(const struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    if (!weight_quantizes(&w) && !recipe_quantizes_kv(r))
        return SWEEP_PLAIN;
    const bool by_channel = recipe_quantizes_kv(r) && r->kv_method == KV_CHANNEL;
    return r->activation_bits < 16 || by_channel ? SWEEP_SIMULATED : SWEEP_PACKED;
}

bool sweep_needs_calibration(const struct recipe *r)
{
    const struct weight_spec w = recipe_weight_spec(r);
    return (weight_quantizes(&w) &&
            (r->weight_method != WEIGHT_RTN || r->weight_round == ROUND_LEARNED)) ||
           (recipe_quantizes_kv(r) && r->kv_method == KV_CHANNEL_TOKEN);
}

enum err sweep_path(char **out, const struct sweep *s, const struct sweep_run *run,
                    const char *suffix)
{
    const size_t n = strlen(s->out_dir) + strlen(run->hash) + strlen(suffix) + 16;
    TRY(mem_alloc(out, n, 1));
    snprintf(*out, n, "%s/cells/%s%s", s->out_dir, run->hash, suffix);
    return OK;
}

static enum err add_set(struct text_list *l, const char *item)
{
    FAIL_IF(l->n == TEXT_LIST_MAX, ERR_USAGE, "more than %d overrides for one cell",
            TEXT_LIST_MAX);
    l->item[l->n++] = item;
    return OK;
}

/* The base, what the command line sets, what the cell sets: the last wins. */
static enum err cell_args(struct args *out, const struct sweep *s,
                          const struct sweep_cell *cell)
{
    const struct args *a = s->args;
    *out = *a;
    out->set = (struct text_list){0};
    out->quiet = a->quiet || s->parallel > 1;
    for (int i = 0; i < s->plan.base.n; i++)
        TRY(add_set(&out->set, s->plan.base.item[i]));
    for (int i = 0; i < a->set.n; i++)
        TRY(add_set(&out->set, a->set.item[i]));
    for (int i = 0; i < cell->set.n; i++)
        TRY(add_set(&out->set, cell->set.item[i]));
    return OK;
}

static bool same_files(const struct recipe_files *a, const struct recipe_files *b)
{
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = !strcmp(a->path[i], b->path[i]);
    return same;
}

static enum err copy_files(struct recipe_files *out, const struct recipe_files *from)
{
    for (int i = 0; i < from->n; i++) {
        TRY(mem_strdup(&out->path[i], from->path[i]));
        out->n++;
    }
    return OK;
}

static enum err read_text(struct sweep_text *t, struct sweep *s)
{
    struct corpus text = {0};
    const struct corpus_rules rules = {(enum corpus_join)t->join, t->text_field};
    TRY(corpus_load(&text, (const char *const *)t->files.path, t->files.n, &rules));
    const enum err err = tokenizer_encode(&t->ids, s->tokenizer, text.text, text.bytes,
                                          (enum bos_rule)t->bos);
    if (!err) {
        t->crc = batch_crc(t->ids.id, t->ids.n);
        log_info("text: %.1f MB, %zu tokens by %s", 1e-6 * (double)text.bytes, t->ids.n,
                 tokenizer_about(s->tokenizer));
    }
    corpus_free(&text);
    return err;
}

/* The text with these files and rules, read if no cell before asked for it. */
static enum err find_text(int *out, struct sweep *s, const struct recipe_files *files,
                          const struct recipe *r)
{
    for (int i = 0; i < s->n_texts; i++) {
        struct sweep_text *t = &s->text[i];
        *out = i;
        if (t->join == r->join && t->bos == r->bos &&
            !strcmp(t->text_field, r->text_field) && same_files(&t->files, files))
            return OK;
    }
    TRY(mem_resize(&s->text, (size_t)s->n_texts, (size_t)s->n_texts + 1, sizeof(*s->text)));
    struct sweep_text *t = &s->text[s->n_texts];
    *t = (struct sweep_text){.join = r->join, .bos = r->bos};
    strcpy(t->text_field, r->text_field);
    *out = s->n_texts++;
    TRY(copy_files(&t->files, files));
    return read_text(t, s);
}

/* FNV-1a: a name for files; equality is decided by the identity itself. */
static void hash_name(char *out, size_t n, const json_t *identity)
{
    uint64_t h = 0xcbf29ce484222325u;
    char *text = json_text(identity, JSON_SORT_KEYS | JSON_COMPACT);
    for (const char *p = text; p && *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001b3u;
    free(text);
    snprintf(out, n, "%016" PRIx64, h);
}

static enum err identify(struct sweep_run *run, const struct sweep *s,
                         const struct recipe *r)
{
    char model[16], text[16] = "none", eval[16];
    json_t *config;
    const struct sweep_text *e = &s->text[run->eval_text];
    TRY(recipe_json(&config, r, true));
    snprintf(model, sizeof(model), "%08" PRIx32, s->model_crc);
    if (run->text >= 0)
        snprintf(text, sizeof(text), "%08" PRIx32, s->text[run->text].crc);
    snprintf(eval, sizeof(eval), "%08" PRIx32, e->crc);
    run->identity =
        json_pack("{s:o, s:{s:s, s:I}, s:{s:s}, s:{s:s, s:I, s:I, s:I}}", "config", config,
                  "checkpoint", "crc32", model, "bytes", (json_int_t)s->model_bytes, "text",
                  "crc32", text, "eval", "crc32", eval, "tokens", (json_int_t)e->ids.n,
                  "windows", (json_int_t)s->eval_windows, "ctx", (json_int_t)s->eval_ctx);
    FAIL_IF(!run->identity, ERR_MEMORY, "out of memory for a cell's identity");
    hash_name(run->hash, sizeof(run->hash), run->identity);
    return OK;
}

static enum err prepare_cell(struct sweep *s, int i, struct recipe *r)
{
    struct sweep_run *run = &s->run[i];
    TRY(cell_args(&run->args, s, &s->plan.cell[i]));
    TRY(recipe_from_args(r, &run->args));
    const bool plain = sweep_way(r) == SWEEP_PLAIN;
    FAIL_IF(!r->data.n && !plain, ERR_USAGE,
            "no text to calibrate on: give --data FILE or calibration.data");
    run->text = -1;
    if (!plain)
        TRY(find_text(&run->text, s, &r->data, r));
    TRY(find_text(&run->eval_text, s, &s->eval_data, r));
    TRY(identify(run, s, r));
    run->done = sweep_results_has(s, run);
    return sweep_command(&run->command, s, run, r);
}

/* Two cells of one configuration would work on one state. */
static void drop_twin(struct sweep *s, int i)
{
    for (int k = 0; k < i; k++) {
        if (!strcmp(s->run[k].hash, s->run[i].hash)) {
            log_warn("cell '%s' is the same as '%s': left out", s->plan.cell[i].name,
                     s->plan.cell[k].name);
            s->run[i].done = true;
            return;
        }
    }
}

static enum err prepare_cells(struct sweep *s)
{
    for (int i = 0; i < s->plan.n_cells; i++) {
        struct recipe r = {0};
        const enum err err = prepare_cell(s, i, &r);
        recipe_free(&r);
        if (err)
            return err_add(err, "cell '%s': ", s->plan.cell[i].name);
        drop_twin(s, i);
    }
    return OK;
}

static enum err open_model(struct sweep *s)
{
    struct hf_model *m = NULL;
    FAIL_IF(!file_is_dir(s->model_dir), ERR_NOT_FOUND, "%s: no such directory",
            s->model_dir);
    TRY(hf_open(&m, s->model_dir));
    s->arch = *hf_arch(m);
    s->model_bytes = hf_bytes(m);
    enum err err = hf_identity(&s->model_crc, m, true);
    hf_close(&m);
    TRY(err);
    err = arch_check_length(&s->arch, s->eval_ctx);
    return err ? err_add(err, "--ctx: ") : tokenizer_open(&s->tokenizer, s->model_dir);
}

/* The options go before the file. */
static enum err settle_eval(struct sweep *s)
{
    const struct args *a = s->args;
    s->eval_data = s->plan.eval_data;
    if (a->eval_data.n)
        s->eval_data.n = 0;
    for (int i = 0; i < a->eval_data.n && i < RECIPE_FILES_MAX; i++)
        s->eval_data.path[s->eval_data.n++] = (char *)(uintptr_t)a->eval_data.item[i];
    s->eval_windows = a->windows >= 0 ? a->windows : s->plan.eval_windows;
    s->eval_ctx = a->ctx ? a->ctx : s->plan.eval_ctx;
    FAIL_IF(!s->eval_data.n, ERR_USAGE,
            "no text to evaluate on: give --eval FILE or eval.data");
    return OK;
}

enum err sweep_open(struct sweep *s, const struct args *a, struct sweep_plan *plan,
                    const char *model_dir, const char *out_dir)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    *s = (struct sweep){.args = a,
                        .model_dir = model_dir,
                        .out_dir = out_dir,
                        .plan = *plan,
                        .parallel = a->parallel > 1 ? a->parallel : 1,
                        .cores = cores > 0 ? cores : 1,
                        .lock = -1};
    *plan = (struct sweep_plan){0};
    TRY(settle_eval(s));
    TRY(open_model(s));
    TRY(mem_calloc(&s->run, (size_t)s->plan.n_cells, sizeof(*s->run)));
    TRY(sweep_results_open(s));
    return prepare_cells(s);
}

static void free_texts(struct sweep *s)
{
    for (int i = 0; i < s->n_texts; i++) {
        token_ids_free(&s->text[i].ids);
        for (int k = 0; k < s->text[i].files.n; k++)
            mem_free(s->text[i].files.path[k]);
    }
    mem_free(s->text);
}

void sweep_close(struct sweep *s)
{
    for (int i = 0; s->run && i < s->plan.n_cells; i++) {
        json_decref(s->run[i].identity);
        mem_free(s->run[i].command);
    }
    mem_free(s->run);
    free_texts(s);
    tokenizer_close(&s->tokenizer);
    sweep_results_close(s);
    sweep_plan_free(&s->plan);
    *s = (struct sweep){.lock = -1};
}
