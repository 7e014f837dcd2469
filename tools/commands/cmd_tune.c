/* SPDX-License-Identifier: MIT */
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/tune/tune_mix.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Tuning:"},
    {OPT_REAL, .name = "max-bits", .arg = "BITS", .offset = offsetof(struct args, max_bits),
     .lo = 0, .hi = 16,
     .help = "Minimize perplexity with at most BITS effective bits per weight, as in 4.3; "
             "this goal or the one of --max-ppl-increase is required"},
    {OPT_REAL, .name = "max-kv-bits", .arg = "BITS",
     .offset = offsetof(struct args, max_kv_bits), .lo = 0, .hi = 16,
     .help = "The same bound for a cache element (default: that of --max-bits, or the "
             "least that the heads allow)"},
    {OPT_TEXT, .name = "max-ppl-increase", .arg = "PERCENT",
     .offset = offsetof(struct args, max_increase),
     .help = "Minimize bits with at most this much more perplexity than full precision, "
             "as in 2%; the other goal"},
    {OPT_FLAG, .name = "per-kind", .offset = offsetof(struct args, per_kind),
     .help = "With --max-bits: mixes use one format for a kind of projection or cache in "
             "all layers, instead of one per layer"},
    {OPT_FLAG, .name = "uniform", .offset = offsetof(struct args, uniform),
     .help = "With --max-bits: use one group size for all weights and one for the cache, "
             "without mixes"},
    {OPT_FLAG, .name = "no-trials", .offset = offsetof(struct args, no_trials),
     .help = "With --max-bits: take the mixes that have the least estimated loss, and calibrate "
             "nothing"},
    {OPT_TEXT, 'o', "output", "FILE.yaml", offsetof(struct args, out), .value = "best.yaml",
     .help = "File for the recommended configuration"},
    {OPT_TEXT, .name = "work", .arg = "DIR", .offset = offsetof(struct args, work),
     .help = "Directory for the trials; it is kept, for `wkvq report` and to resume "
             "(default: FILE.yaml.work)"},
    {OPT_LIST, 'e', "eval", "FILE", offsetof(struct args, eval_data),
     .help = "Text to evaluate on; repeatable (default: the text of the calibration)"},
    {OPT_INT, 'w', "windows", "N", offsetof(struct args, windows), "8", 0, 1 << 30,
     .help = "Evaluate each trial on the first N windows; 0 = all"},
    {OPT_INT, .name = "ctx", .arg = "N", .offset = offsetof(struct args, ctx), .value = "512",
     .lo = 2, .hi = 1 << 24, .help = "Tokens per evaluation window"},
    {OPT_INT, .name = "samples", .arg = "N", .offset = offsetof(struct args, samples),
     .value = "8", .lo = 1, .hi = 1 << 20, .help = "Calibration windows of a trial"},
    {OPT_INT, .name = "seqlen", .arg = "N", .offset = offsetof(struct args, seqlen),
     .value = "512", .lo = 2, .hi = 1 << 20, .help = "Tokens of a trial's window"},
    {OPT_INT, .name = "epochs", .arg = "N", .offset = offsetof(struct args, epochs),
     .value = "2", .lo = 0, .hi = CALIB_EPOCHS_MAX, .help = "Epochs of a trial"},
    {OPT_INT, 'p', "parallel", "N", offsetof(struct args, parallel), "1", 1, SWEEP_PARALLEL_MAX,
     .help = "Trials at the same time; they share cores and memory budget"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

/* Below 1, a number may be meant as a share: 0.05 for 5%. */
static enum err read_increase(double *out, const char *text)
{
    char *end;
    const double percent = strtod(text, &end);
    const bool sign = *end == '%';
    FAIL_IF(end == text || end[sign] || !(percent >= 0 && percent <= 1e6), ERR_USAGE,
            "--max-ppl-increase=%s: want a percentage, as in 2%%", text);
    FAIL_IF(!sign && percent > 0 && percent < 1, ERR_USAGE,
            "--max-ppl-increase=%s: write %s%% if that many percent are meant, or %g%% if "
            "it is a share",
            text, text, 100 * percent);
    *out = percent / 100;
    return OK;
}

static enum err read_goal(struct tune_settings *t, const struct args *a)
{
    FAIL_IF((a->max_bits > 0) == (a->max_increase != NULL), ERR_USAGE,
            "want exactly one goal: --max-bits BITS or --max-ppl-increase PERCENT");
    FAIL_IF(a->max_increase && a->max_kv_bits > 0, ERR_USAGE,
            "--max-kv-bits needs --max-bits");
    FAIL_IF((a->max_increase || a->uniform) && a->per_kind, ERR_USAGE,
            "--per-kind needs --max-bits and excludes --uniform");
    FAIL_IF(
        (a->max_increase || a->uniform) && a->no_trials, ERR_USAGE,
        "--no-trials needs --max-bits and excludes --uniform, as only mixes are estimated");
    t->max_bits = a->max_bits;
    t->max_kv_bits = a->max_kv_bits;
    return a->max_increase ? read_increase(&t->max_increase, a->max_increase) : OK;
}

static enum err add_number(struct set_list *l, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof(text), "%" PRId64, value);
    return set_list_add(l, key, text);
}

/* Adds one side of a pair, weights or cache: its name and its key. */
static enum err add_choice(struct set_list *l, char *name, size_t n,
                           const struct tune_sizes *s, int i, const char *group,
                           const char *mixed)
{
    if (i == s->n) {
        snprintf(name, n, "mixed");
        return set_list_add(l, mixed, s->mix.text);
    }
    snprintf(name, n, "%" PRId64, s->size[i].group);
    return add_number(l, group, s->size[i].group);
}

static enum err add_pair(struct sweep_plan *p, const struct tune *t, int w, int k)
{
    struct sweep_cell *c = &p->cell[p->n_cells++];
    char weights[32], kv[32], name[96];
    TRY(add_choice(&c->set, weights, sizeof(weights), &t->weights, w, "weights.group_size",
                   "weights.mixed"));
    TRY(add_choice(&c->set, kv, sizeof(kv), &t->kv, k, "kv.group_size", "kv.mixed"));
    snprintf(name, sizeof(name), "weights %s, cache %s", weights, kv);
    return mem_strdup(&c->name, name);
}

/* All keys that quantize anything. */
static const char *const plain_key[] = {"weights.bits", "head.bits", "kv.bits",
                                        "activations.bits"};

static enum err add_cells(struct sweep_plan *p, const struct tune *t)
{
    const int n_w = tune_choices(&t->weights), n_k = tune_choices(&t->kv);
    TRY(mem_calloc(&p->cell, (size_t)(1 + n_w * n_k), sizeof(*p->cell)));
    struct sweep_cell *plain = &p->cell[p->n_cells++];
    TRY(mem_strdup(&plain->name, "full precision"));
    for (size_t i = 0; i < ARRAY_LEN(plain_key); i++)
        TRY(add_number(&plain->set, plain_key[i], 16));
    for (int w = 0; w < n_w; w++)
        for (int k = 0; k < n_k; k++)
            TRY(add_pair(p, t, w, k));
    return OK;
}

/* Adds the evaluation text: --eval, or the calibration text. */
static enum err add_eval(struct sweep_plan *p, const struct args *a, const struct recipe *r)
{
    if (a->eval_data.n)
        return OK;
    if (!a->no_trials)
        log_warn("no --eval: trials are evaluated on their calibration text");
    for (int i = 0; i < r->data.n; i++)
        TRY(recipe_files_add(&p->eval_data, r->data.path[i]));
    return OK;
}

static enum err check_recipe(const struct recipe *r)
{
    FAIL_IF(r->weight_bits == 16 || r->kv_bits == 16, ERR_USAGE,
            "weights.bits %" PRId64 ", kv.bits %" PRId64 ": tuning group sizes needs both "
            "below 16",
            r->weight_bits, r->kv_bits);
    FAIL_IF(
        r->target, ERR_SUPPORT,
        "kv.target is %s, whose cache has one format; tuning is for wkvq's: set kv.target "
        "to wkvq",
        kv_target_name[r->target]);
    FAIL_IF(r->weight_mix || r->kv_mix, ERR_USAGE,
            "%s is chosen by the search; remove it from the configuration",
            r->weight_mix ? "weights.mixed" : "kv.mixed");
    return OK;
}

/* Reads the checkpoint's shapes and its identity, which all trials share. */
static enum err read_model(struct arch *a, uint32_t *crc, const char *model_dir)
{
    struct hf_model *m = NULL;
    TRY(hf_open(&m, model_dir));
    *a = *hf_arch(m);
    const enum err err = hf_identity(crc, m, true);
    hf_close(&m);
    return err;
}

/* Refuses a bound that no group size keeps, before anything is written. */
static enum err find_mixes(struct tune *t, const struct recipe *r, const struct arch *a)
{
    int w, k;
    if (!(t->settings.max_bits > 0))
        return OK;
    TRY(tune_bounds(&w, &k, t));
    if (t->settings.uniform)
        return OK;
    FAIL_IF(a->n_experts, ERR_SUPPORT,
            "--max-bits looks for mixes, but the loss of formats is not estimated for a "
            "mixture of experts; give --uniform");
    return tune_find_mixes(t, r, a, w, k);
}

/* Makes the candidates, and a sweep of all their pairs; runs nothing. */
static enum err make_plan(struct sweep_plan *p, struct tune *t, const struct recipe *r,
                          const struct args *a)
{
    const struct tune_settings *s = &t->settings;
    const struct kv_spec kv = recipe_kv_spec(r);
    struct arch arch;
    TRY(check_recipe(r));
    TRY(read_model(&arch, &t->model_crc, s->model_dir));
    tune_weight_sizes(&t->weights, &arch, (int)r->weight_bits);
    tune_kv_sizes(&t->kv, &arch, &kv);
    TRY(find_mixes(t, r, &arch));
    TRY(add_number(&p->budget, "calibration.samples", s->samples));
    TRY(add_number(&p->budget, "calibration.seqlen", s->seqlen));
    TRY(add_number(&p->budget, "calibration.epochs", s->epochs));
    /* Trials only rank formats; refinement would take most of their time. */
    TRY(add_number(&p->budget, "refine.samples", 0));
    TRY(add_eval(p, a, r));
    return add_cells(p, t);
}

static enum err print_trials(FILE *f, const struct tune *t)
{
    fprintf(f, "%-28s %7s %7s %10s %9s %8s\n", "group sizes (0: whole row)", "W bits",
            "KV bits", "perplexity", "increase", "stderr");
    for (int i = 0; i < t->n_tried; i++) {
        struct tune_outcome o;
        const int cell = t->tried[i];
        TRY(tune_outcome(&o, t, cell));
        fprintf(f, "%-28s %7.3f %7.3f ", t->sweep.plan.cell[cell].name, o.weight_bits,
                o.kv_bits);
        if (isfinite(o.ppl))
            fprintf(f, "%10.4f %+8.2f%% ", o.ppl, 100 * o.increase);
        else
            fprintf(f, "%10s %9s ", "-", "-");
        if (isfinite(o.increase_stderr))
            fprintf(f, "%7.2f%%", 100 * o.increase_stderr);
        fprintf(f, "%s\n", cell == t->best ? "  <- recommended" : "");
    }
    return OK;
}

/* Returns a side's group size, or null and the mix. */
static json_t *group_json(const struct tune_sizes *s, int i)
{
    return i < s->n ? json_integer((json_int_t)s->size[i].group) : json_null();
}

static json_t *mix_json(const struct tune_sizes *s, int i)
{
    return i < s->n ? json_null() : json_string(s->mix.text);
}

static enum err print_json(const struct tune *t)
{
    json_t *list = json_array();
    for (int i = 0; list && i < t->n_tried; i++) {
        struct tune_outcome o;
        const int cell = t->tried[i];
        const enum err err = tune_outcome(&o, t, cell);
        if (err) {
            json_decref(list);
            return err;
        }
        int w, k;
        tune_pair(&w, &k, t, cell);
        json_array_append_new(
            list,
            json_pack("{s:s, s:o, s:o, s:o, s:o, s:f, s:f, s:o, s:o, s:o, s:b}", "name",
                      t->sweep.plan.cell[cell].name, "weight_group",
                      group_json(&t->weights, w), "kv_group", group_json(&t->kv, k),
                      "weights_mixed", mix_json(&t->weights, w), "kv_mixed",
                      mix_json(&t->kv, k), "weight_bits", o.weight_bits, "kv_bits",
                      o.kv_bits, "ppl", json_finite(o.ppl), "increase",
                      json_finite(o.increase), "increase_stderr",
                      json_finite(o.increase_stderr), "recommended", cell == t->best));
    }
    const enum err err = json_print(list, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(list);
    return err;
}

/* Writes every key that affects the result, as a file for --config. */
static enum err put_config(struct file_writer *w, const struct recipe *r)
{
    const char *last = "";
    for (int i = 0; i < recipe_n_keys; i++) {
        const struct recipe_key *k = &recipe_key[i];
        const int n = (int)strcspn(k->name, ".");
        char *value;
        if (k->affects_speed_only)
            continue;
        if (strncmp(last, k->name, (size_t)n + 1))
            TRY(file_printf(w, "%.*s:\n", n, k->name));
        last = k->name;
        TRY(recipe_text(&value, r, k));
        const char *quote = k->kind == KEY_MIX ? "\"" : "";
        const enum err err =
            file_printf(w, "  %s: %s%s%s\n", k->name + n + 1, quote, value, quote);
        mem_free(value);
        TRY(err);
    }
    return OK;
}

/* Sets the recommended formats. The group size of a mixed side has no effect. */
static enum err set_choices(struct recipe *r, const struct tune *t)
{
    int w, k;
    tune_pair(&w, &k, t, t->best);
    if (w < t->weights.n)
        r->weight_group = t->weights.size[w].group;
    else
        TRY(recipe_set(r, "weights.mixed", t->weights.mix.text, "tune"));
    if (k < t->kv.n)
        r->kv_group = t->kv.size[k].group;
    else
        TRY(recipe_set(r, "kv.mixed", t->kv.mix.text, "tune"));
    return OK;
}

/* Makes a name for what comes of a configuration: FILE.yaml with this ending instead. */
static enum err name_result(char **out, const char *path, const char *ending)
{
    const size_t n = strlen(path);
    TRY(mem_alloc(out, n + strlen(ending) + 1, 1));
    const size_t keep = n > 5 && !strcmp(path + n - 5, ".yaml") ? n - 5 : n;
    sprintf(*out, "%.*s%s", (int)keep, path, ending);
    return OK;
}

/* Writes a command that quantizes by the recommended configuration; what no artifact can hold is
 * calibrated, and simulated from the state. Release *out with free(). */
static enum err next_command(char **out, const struct tune *t, const struct recipe *r,
                             const char *path)
{
    size_t n;
    enum err err;
    char *name = NULL;
    FILE *f = open_memstream(out, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for the command");
    const bool packs = recipe_makes_artifact(r);
    fputs(packs ? "wkvq quantize" : "wkvq calibrate", f);
    sweep_put_word(f, t->sweep.model_dir);
    fputs(" --config", f);
    sweep_put_word(f, path);
    err = sweep_put_text(f, &t->sweep, &r->data);
    if (!err)
        err = name_result(&name, path, packs ? "-wkvq" : ".state");
    if (!err) {
        fputs(" -o", f);
        sweep_put_word(f, name);
    }
    mem_free(name);
    if (fclose(f) && !err)
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for the command");
    return err;
}

/* Writes what a configuration's formats come from, as a comment. */
static enum err put_origin(struct file_writer *w, const struct tune *t)
{
    struct tune_outcome o;
    TRY(tune_outcome(&o, t, t->best));
    TRY(file_printf(w,
                    "# Formats found by `wkvq tune`: %.3f bits per weight, %.3f bits per "
                    "cache element;\n",
                    o.weight_bits, o.kv_bits));
    if (t->settings.no_trials)
        return file_printf(w, "# the least estimated loss, without a trial.\n");
    return file_printf(
        w,
        "# %+.2f%% of perplexity against full precision, calibrated on %" PRId64
        " windows in a trial.\n",
        100 * o.increase, t->settings.samples);
}

static enum err write_config(struct tune *t, struct recipe *r, const char *path)
{
    struct file_writer *w = NULL;
    TRY(set_choices(r, t));
    TRY(file_writer_open(&w, path));
    enum err err = put_origin(w, t);
    if (!err)
        err = put_config(w, r);
    if (!err)
        err = file_writer_commit(&w);
    file_writer_abort(&w);
    TRY(err);
    char *command = NULL;
    err = next_command(&command, t, r, path);
    if (!err)
        log_info("%s: written; next, run `%s`", path, command);
    free(command);
    return err;
}

static enum err work_dir(char **out, const struct args *a)
{
    if (a->work)
        return mem_strdup(out, a->work);
    const size_t n = strlen(a->out) + sizeof(".work");
    TRY(mem_alloc(out, n, 1));
    snprintf(*out, n, "%s.work", a->out);
    return OK;
}

static struct tune_settings settings_of(const struct args *a, const char *work)
{
    return (struct tune_settings){.model_dir = a->pos.item[0],
                                  .work_dir = work,
                                  .recipe = command_recipe_input(a),
                                  .uniform = a->uniform,
                                  .per_kind = a->per_kind,
                                  .no_trials = a->no_trials,
                                  .samples = a->samples,
                                  .seqlen = a->seqlen,
                                  .epochs = a->epochs,
                                  .quiet = a->quiet,
                                  .log_json = a->log_json};
}

/* Runs the trials. */
static enum err open_sweep(struct tune *t, struct sweep_plan *plan, const struct args *a)
{
    const struct tune_settings *s = &t->settings;
    const struct sweep_settings settings = {.model_dir = s->model_dir,
                                            .out_dir = s->work_dir,
                                            .recipe = s->recipe,
                                            .eval_data = a->eval_data.item,
                                            .n_eval_data = a->eval_data.n,
                                            .eval_windows = a->windows,
                                            .eval_ctx = a->ctx,
                                            .parallel = a->parallel,
                                            .keep = a->keep,
                                            .quiet = s->quiet,
                                            .log_json = s->log_json,
                                            .model_crc = &t->model_crc};
    return sweep_open(&t->sweep, &settings, plan);
}

static enum err search(struct tune *t)
{
    if (t->settings.no_trials)
        return tune_by_estimate(t);
    return t->settings.max_bits > 0 ? tune_by_bits(t) : tune_by_increase(t);
}

static enum err run(struct args *a)
{
    enum err err = OK;
    struct tune t = {.best = -1, .sweep = {.lock.fd = -1}};
    struct sweep_plan plan = {.eval_ctx = a->ctx};
    struct recipe r = {0};
    char *work = NULL;
    TRY_OUT(file_writer_probe(a->out));
    TRY_OUT(work_dir(&work, a));
    t.settings = settings_of(a, work);
    TRY_OUT(read_goal(&t.settings, a));
    TRY_OUT(recipe_from_input(&r, &t.settings.recipe));
    TRY_OUT(make_plan(&plan, &t, &r, a));
    TRY_OUT(open_sweep(&t, &plan, a));
    TRY_OUT(search(&t));
    if (t.best < 0) {
        TRY_OUT(print_trials(stderr, &t)); /* on error, nothing goes to standard output */
        FAIL_OUT(ERR_USAGE,
                 "--max-ppl-increase=%s: no group sizes meet this bound; allow a larger "
                 "increase, or more weights.bits or kv.bits",
                 a->max_increase);
    }
    TRY_OUT(a->json ? print_json(&t) : print_trials(stdout, &t));
    TRY_OUT(write_config(&t, &r, a->out));
out:
    sweep_plan_free(&plan);
    sweep_close(&t.sweep);
    recipe_free(&r);
    mem_free(t.weights.mix.text);
    mem_free(t.kv.mix.text);
    mem_free(work);
    return err;
}

const struct command cmd_tune = {
    .name = "tune",
    .operands = "MODEL_DIR",
    .summary = "Search bits and group sizes of weights and cache within a bound",
    .details =
        "Tries a few formats with short calibrations, prints the results, and writes the "
        "recommended configuration, with the budget of --config and --set. With "
        "--max-bits it tries the finest group sizes within the bound, the next coarser of "
        "each, and mixes. For the mixes, one pass over the text estimates the loss of "
        "every format in every projection and cache. Then the choice with the least "
        "estimate within the bound is tried, with one format per layer's projection or "
        "cache (--per-kind: per kind). With --max-ppl-increase it starts from the "
        "coarsest group sizes. It repeatedly refines the side with the larger gain per "
        "bit.\n\n"
        "  wkvq tune SmolLM2-135M --max-bits 4.3 --data wiki.train.raw \\\n"
        "      --eval wiki.valid.raw -o smol.yaml\n"
        "  wkvq tune SmolLM2-135M --max-ppl-increase 10% --data wiki.train.raw\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = 1,
    .run = run,
};
