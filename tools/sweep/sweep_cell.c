/* SPDX-License-Identifier: MIT
 *
 * Runs one cell of a sweep: calibrate, convert, verify, evaluate. Its result is one JSON
 * object. */
#include "convert/artifact/reader.h"
#include "convert/format/sizes.h"
#include "data/json.h"
#include "kernels/base/clock.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/stop.h"
#include "tools/eval/eval.h"
#include "tools/eval/tasks/task_run.h"
#include "tools/pipeline/stages.h"
#include "tools/pipeline/verify_report.h"
#include "tools/sweep/sweep.h"
#include "tools/sweep/sweep_measures.h"
#include "tools/sweep/sweep_record.h"
#include "tools/sweep/sweep_results.h"

struct cell {
    struct sweep *s;
    struct sweep_run *run;
    enum sweep_way way;
    bool calibrated;
    struct weight_spec weights;
    struct kv_spec kv;
    char *artifact, *state; /* paths of state and artifact, owned */
    double *cosine[2];      /* [layers] */
    struct verify_report report;
    struct eval_result eval;
    double *nll; /* [eval.windows] */
    json_t *blocks;
    json_t *row; /* the result, as far as it is known; owned */
    double calibrate_s, start;
};

/* Lends the sweep's text and tokenizer to the job. take_text() returns them before another
 * job needs them. */
static void give_text(struct job *j, struct sweep *s, int text)
{
    struct texts *t = &s->text[text].texts;
    j->ids = t->ids;
    j->ids_crc = t->crc;
    j->text = t->text;
    j->n_texts = t->n;
    *t = (struct texts){0};
    j->tokenizer = s->tokenizer;
    s->tokenizer = NULL;
}

static void take_text(struct job *j, struct sweep *s, int text)
{
    s->text[text].texts = (struct texts){j->ids, j->ids_crc, j->text, j->n_texts};
    s->tokenizer = j->tokenizer;
    j->ids = (struct token_ids){0};
    j->text = NULL;
    j->n_texts = 0;
    j->tokenizer = NULL;
}

int64_t sweep_cell_threads(const struct sweep *s, const struct recipe *r)
{
    const int64_t threads = (r->threads ? r->threads : s->cores) / s->parallel;
    return threads > 1 ? threads : 1;
}

/* Divides threads and memory among the cells that run at the same time. A GPU is divided
 * when its memory is known. */
static void share_machine(struct job *j, const struct sweep *s)
{
    if (s->parallel < 2)
        return;
    j->recipe.threads = sweep_cell_threads(s, &j->recipe);
    j->recipe.memory = recipe_memory(&j->recipe) / (uint64_t)s->parallel;
    j->cells = s->gpu_cells;
}

static enum err open_job(struct job *j, struct cell *c, int text)
{
    const struct sweep_settings *s = &c->s->settings;
    const struct job_options options = {.model_dir = c->s->model_dir,
                                        .quiet = s->quiet || c->s->parallel > 1,
                                        .log_json = s->log_json,
                                        .cell = c->s->plan.cell[c->run - c->s->run].name,
                                        .model_crc = &c->s->model_crc};
    TRY(job_open_recipe(j, &c->run->recipe, &options));
    share_machine(j, c->s);
    give_text(j, c->s, text);
    return OK;
}

static void close_job(struct job *j, struct cell *c, int text)
{
    if (j->tokenizer)
        take_text(j, c->s, text);
    job_close(j);
}

static enum err block_json(json_t **out, const struct calib_block_stats *st)
{
    json_t *epochs = json_array();
    for (int64_t i = 0; i < st->n_epochs; i++)
        json_array_append_new(epochs, json_real(st->epoch_loss[i]));
    *out = json_pack("{s:I, s:f, s:f, s:I, s:o}", "block", (json_int_t)st->block, "start",
                     st->start_loss, "best", st->best_loss, "best_epoch",
                     (json_int_t)st->best_epoch, "epochs", epochs);
    FAIL_IF(!*out, ERR_MEMORY, "out of memory for the result");
    return OK;
}

static enum err collect_blocks(struct cell *c, const struct state *s)
{
    struct calib_block_stats st;
    json_t *one;
    for (int64_t i = 0; i < state_done(s); i++) {
        TRY(state_stats(&st, s, i));
        TRY(block_json(&one, &st));
        json_array_append_new(c->blocks, one);
    }
    return OK;
}

static enum err convert(struct cell *c, struct job *j, struct state *s)
{
    TRY(stage_convert(j, s, c->artifact, true));
    TRY(stop_check());
    TRY(stage_verify(&c->report, j, s, c->artifact, c->cosine));
    if (!c->report.passed)
        log_warn("%s: verification failed: %s", c->artifact, c->report.first_difference);
    return OK;
}

/* Runs the stages up to the artifact, or up to the state if it is only simulated. The state
 * is kept until the result is written. */
static enum err quantize(struct cell *c)
{
    enum err err = OK;
    struct job j = {0};
    struct state *s = NULL;
    bool planned;
    const double start = clock_s();
    TRY_OUT(open_job(&j, c, c->run->text));
    j.recipe.compute = (int)c->run->compute;
    j.only_converts = !c->calibrated;
    TRY_OUT(stage_prepare(&planned, &j, c->state));
    if (c->calibrated)
        TRY_OUT(stage_calibrate(&s, &j, c->state));
    c->calibrate_s = clock_s() - start;
    if (s)
        TRY_OUT(collect_blocks(c, s));
    if (c->way == SWEEP_PACKED)
        TRY_OUT(convert(c, &j, s));
out:
    state_close(&s);
    close_job(&j, c, c->run->text);
    return err;
}

static enum err open_evaluated(struct eval *e, const struct cell *c)
{
    struct job *j = e->job;
    if (c->way == SWEEP_PACKED) {
        /* Parallel cells that each copied the artifact could exceed the memory, so it is
         * mapped. */
        TRY(artifact_open(&e->artifact, c->artifact,
                          c->s->parallel > 1 ? 0 : ARTIFACT_LOAD));
        j->arch = *artifact_arch(e->artifact);
    } else {
        TRY(job_open_model(j));
    }
    if (c->way == SWEEP_SIMULATED && c->calibrated)
        TRY(state_open_read(&e->state, c->state, &j->arch));
    e->rtn = c->way == SWEEP_SIMULATED && !c->calibrated;
    TRY(job_read_text(j));
    j->recipe.compute = (int)c->run->eval_compute;
    return job_open_device(j);
}

/* Returns the figures that only an artifact has. */
static enum err add_artifact(json_t *o, const struct cell *c)
{
    const struct verify_report *r = &c->report;
    const int64_t n = r->logits == VERIFY_SKIP ? 0 : c->s->arch.n_layers;
    json_t *verify = verify_report_json(c->run->hash, r);
    json_t *more =
        json_pack("{s:f, s:f, s:I, s:b, s:o, s:o, s:o}", "weight_bits", r->weight_bits,
                  "kv_bits", r->kv_bits, "bytes", (json_int_t)r->total_bytes, "verified",
                  r->passed, "k_cosine", json_reals(c->cosine[0], n), "v_cosine",
                  json_reals(c->cosine[1], n), "verify", verify);
    const bool whole = more && !json_object_update(o, more);
    json_decref(more);
    FAIL_IF(!whole, ERR_MEMORY, "out of memory for the result");
    return OK;
}

/* Returns the bytes of the weights, and of a token's cache, from shapes alone. The paper
 * counts projections and cache without scales. */
static json_t *memory_json(const struct cell *c)
{
    const struct arch *a = &c->s->arch;
    const struct memory_terms t = memory_terms_of(a, &c->weights, &c->kv, 1, 1);
    const double elements = 2.0 * (double)(a->n_layers * a->n_kv * a->head_dim);
    return json_pack("{s:I, s:f, s:I, s:I}", "weights",
                     (json_int_t)(t.projections + t.weight_scales + t.rest), "cache_token",
                     kv_mean_bits(a, &c->kv) * elements / 8, "paper_weights",
                     (json_int_t)t.projections, "paper_cache_token", (json_int_t)t.cache);
}

static enum err result_json(json_t **out, struct cell *c)
{
    const struct eval_result *r = &c->eval;
    const struct sweep_cell *cell = &c->s->plan.cell[c->run - c->s->run];
    json_t *o = json_pack(
        "{s:s, s:I, s:s, s:s, s:o, s:O, s:s, s:f, s:o, s:f, s:I, s:I, s:I, s:o, s:O, s:f, "
        "s:f, s:f, s:f, s:o, s:o, s:o}",
        "name", cell->name, "cell", (json_int_t)(c->run - c->s->run) + 1, "hash",
        c->run->hash, "spec", c->run->spec, "set", sweep_record_set(&cell->set), "identity",
        c->run->identity, "command", c->run->command, "ppl", r->ppl, "stderr",
        json_finite(r->ppl_stderr), "nll", r->nll, "tokens", (json_int_t)r->tokens,
        "windows", (json_int_t)r->windows, "ctx", (json_int_t)c->s->eval_ctx, "window_nll",
        json_reals(c->nll, r->windows), "blocks", c->blocks, "seconds",
        clock_s() - c->start, "calibrate_seconds", c->calibrate_s, "weight_bits",
        shape_weight_bits(&c->s->arch, &c->weights), "kv_bits",
        kv_mean_bits(&c->s->arch, &c->kv), "bytes",
        c->way == SWEEP_PLAIN ? json_integer((json_int_t)c->s->model_bytes) : json_null(),
        "memory", memory_json(c), "run", sweep_record_cell(c->s, c->run));
    FAIL_IF(!o, ERR_MEMORY, "out of memory for the result");
    const enum err err = c->way == SWEEP_PACKED ? add_artifact(o, c) : OK;
    if (err)
        json_decref(o);
    else
        *out = o;
    return err;
}

/* Computes the perplexity, with which a result begins. */
static enum err begin_row(struct cell *c, struct eval *e)
{
    TRY(eval_count_windows(e));
    TRY(mem_calloc(&c->nll, (size_t)e->windows, sizeof(*c->nll)));
    e->window_nll = c->nll;
    TRY(eval_ppl(&c->eval, e));
    TRY(result_json(&c->row, c));
    return c->run->n_asked ? sweep_results_keep(c->s, c->run, c->row) : OK;
}

/* Lends another text to the open job. */
static void change_text(struct job *j, struct sweep *s, int *text, int to)
{
    take_text(j, s, *text);
    give_text(j, s, to);
    *text = to;
}

/* Makes measure i and adds it to the result. */
static enum err add_measure(struct cell *c, struct eval *e, int i)
{
    char *command = NULL;
    json_t *one;
    TRY(sweep_command_measure(&command, c->s, c->run, i));
    enum err err = sweep_measure(&one, c->s, c->run, i, e);
    if (!err)
        err = sweep_measures_add(c->row, one, command);
    mem_free(command);
    if (!err)
        err = sweep_results_keep(c->s, c->run, c->row);
    if (!err)
        sweep_measure_done(c->s, c->run);
    return err;
}

/* Adds the measures that the result lacks. *text is the one that the job has. */
static enum err add_measures(struct cell *c, struct eval *e, int *text)
{
    for (int i = 0; i < c->run->n_asked; i++) {
        const struct sweep_asked *asked = &c->run->asked[i];
        if (sweep_measures_has(c->row, c->run, i))
            continue;
        TRY(task_check_stop());
        e->windows = c->s->eval_windows;
        if (asked->kind == SWEEP_TEXT)
            change_text(e->job, c->s, text, asked->from);
        TRY(add_measure(c, e, i));
    }
    return OK;
}

static enum err evaluate(struct cell *c)
{
    enum err err = OK;
    struct job j = {0};
    char who[160];
    struct eval e = {.job = &j,
                     .windows = c->s->eval_windows,
                     .ctx = c->s->eval_ctx,
                     .chunk = 1,
                     .who = who};
    int text = c->run->eval_text;
    snprintf(who, sizeof(who), "cell '%s': ", c->s->plan.cell[c->run - c->s->run].name);
    TRY_OUT(open_job(&j, c, text));
    TRY_OUT(open_evaluated(&e, c));
    if (!c->row)
        TRY_OUT(begin_row(c, &e));
    TRY_OUT(add_measures(c, &e, &text));
out:
    artifact_close(&e.artifact);
    state_close(&e.state);
    close_job(&j, c, text);
    return err;
}

static enum err room(struct cell *c)
{
    const size_t n = (size_t)c->s->arch.n_layers;
    TRY(sweep_path(&c->artifact, c->s, c->run, ""));
    TRY(sweep_path(&c->state, c->s, c->run, ".state"));
    for (int w = 0; w < 2; w++)
        TRY(mem_calloc(&c->cosine[w], n, sizeof(double)));
    c->blocks = json_array();
    FAIL_IF(!c->blocks, ERR_MEMORY, "out of memory for the result");
    return OK;
}

/* Returns whether an earlier run left the artifact of a result that only lacks measures. */
static bool has_model(const struct cell *c)
{
    return c->row && c->way == SWEEP_PACKED && file_is_dir(c->artifact);
}

enum err sweep_cell_run(json_t **out, struct sweep *s, int i)
{
    enum err err = OK;
    struct cell c = {.s = s, .run = &s->run[i], .start = clock_s()};
    const struct recipe *r = &c.run->recipe;
    TRY_OUT(room(&c));
    c.way = sweep_way(r);
    c.calibrated = sweep_calibrates(r);
    c.weights = recipe_weight_spec(r);
    c.kv = recipe_kv_spec(r);
    TRY_OUT(sweep_results_begun(&c.row, s, c.run));
    if ((c.calibrated || c.way == SWEEP_PACKED) && !has_model(&c))
        TRY_OUT(quantize(&c));
    TRY_OUT(evaluate(&c));
    *out = c.row;
    c.row = NULL;
out:
    mem_free(c.artifact);
    mem_free(c.state);
    mem_free(c.cosine[0]);
    mem_free(c.cosine[1]);
    mem_free(c.nll);
    json_decref(c.blocks);
    json_decref(c.row);
    return err;
}
