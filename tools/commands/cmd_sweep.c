/* SPDX-License-Identifier: MIT */
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/cli/choices.h"
#include "tools/commands/command_job.h"
#include "tools/commands/commands.h"
#include "tools/report/report.h"
#include "tools/sweep/sweep.h"
#include "tools/sweep/sweep_columns.h"
#include "tools/sweep/sweep_record.h"
#include "tools/sweep/sweep_results.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct opt options[] = {
    {OPT_HEADING, .help = "Sweep:"},
    {OPT_TEXT, 'm', "model", "MODEL_DIR", offsetof(struct args, model),
     .help = "Checkpoint of all cells (default: none, required)"},
    {OPT_TEXT, 'o', "output", "OUT", offsetof(struct args, out),
     .help = "Directory for report.html, results.jsonl, results.csv and unfinished states "
             "(default: none, required)"},
    {OPT_LIST, 'e', "eval", "FILE", offsetof(struct args, eval_data),
     .help = "Text to evaluate on; repeatable (default: the sweep's eval.data)"},
    {OPT_INT, 'w', "windows", "N", offsetof(struct args, windows), "-1", -1, 1 << 30,
     .help = "Evaluate the first N windows; 0 = all; -1 keeps the sweep's eval.windows"},
    {OPT_INT, .name = "ctx", .arg = "N", .offset = offsetof(struct args, ctx), .value = "0",
     .lo = 0, .hi = 1 << 24,
     .help = "Tokens per evaluation window; 0 keeps the sweep's eval.ctx"},
    {OPT_LIST, .name = "eval-text", .arg = "NAME=FILE", .offset = offsetof(struct args, eval_text),
     .help = "Further text with a perplexity of its own, as in PTB=ptb.test.txt; repeatable"},
    {OPT_TEXT, .name = "eval-join", .arg = "HOW", .offset = offsetof(struct args, eval_join),
     .choices = CHOICES_JOIN,
     .help = "How the lines of --eval-text become one text, as --join says it of the other "
             "texts; space: Penn Treebank's sentences (default: as --join)"},
    {OPT_LIST, .name = "zeroshot", .arg = "FILE", .offset = offsetof(struct args, zeroshot),
     .help = "Questions of PIQA, ARC, HellaSwag or WinoGrande for every cell, as those of `wkvq "
             "eval --task zeroshot`, in simulation; repeatable"},
    {OPT_LIST, .name = "labels", .arg = "FILE", .offset = offsetof(struct args, labels),
     .help = "File of right answers, one number per line, for a --zeroshot file without them "
             "(PIQA's dev.jsonl)"},
    {OPT_LIST, .name = "longbench", .arg = "FILE", .offset = offsetof(struct args, longbench),
     .help = "Questions of LongBench for every cell that the packed runtime can run; repeatable"},
    {OPT_TEXT, .name = "prompts", .arg = "FILE", .offset = offsetof(struct args, prompts),
     .help = "LongBench's dataset2prompt.json"},
    {OPT_TEXT, .name = "max-gen", .arg = "FILE", .offset = offsetof(struct args, max_gen),
     .help = "LongBench's dataset2maxlen.json"},
    {OPT_INT, .name = "limit", .arg = "N", .offset = offsetof(struct args, limit), .value = "0",
     .lo = 0, .hi = 1 << 30,
     .help = "Use N questions of each file, taken evenly from the whole file; 0 = all"},
    {OPT_INT, .name = "task-ctx", .arg = "N", .offset = offsetof(struct args, task_ctx),
     .value = "0", .lo = 0, .hi = 1 << 24,
     .help = "Tokens of a question; longer ones lose their beginning (--zeroshot) or their "
             "middle (--longbench). 0 = as --ctx"},
    {OPT_INT, 'p', "parallel", "N", offsetof(struct args, parallel), "0", 0, SWEEP_CELLS_MAX,
     .help = "Cells at the same time, at most 64; they share cores and memory budget, and each "
             "has a GPU of its own where there are several. With --slurm, the array's limit. 0 "
             "means 1 here and no limit under Slurm"},
    {OPT_FLAG, 'k', "keep", .offset = offsetof(struct args, keep),
     .help = "Keep every cell's artifact, or else its state, in OUT/cells, so that more "
             "measures can be added without calibrating again"},
    {OPT_FLAG, .name = "plan", .offset = offsetof(struct args, plan),
     .help = "Print the cells and how far each of them is, and stop"},
    {OPT_HEADING, .help = "Batch systems:"},
    {OPT_MAYBE, .name = "slurm", .arg = "SBATCH_OPTIONS", .offset = offsetof(struct args, slurm),
     .help = "Submit the cells that are to be run as one array job of Slurm, and stop. "
             "SBATCH_OPTIONS are separated by blanks, as in --slurm=\"--mem=64G --time=8:00:00\""},
    {OPT_FLAG, .name = "print-cells", .offset = offsetof(struct args, print_cells),
     .help = "Print number, hash and name of the cells that are to be run, for --cell, and stop"},
    {OPT_INT, .name = "cell", .arg = "N", .offset = offsetof(struct args, cell), .value = "0",
     .lo = 0, .hi = SWEEP_CELLS_MAX,
     .help = "Run cell N alone; others may run at the same time, also on other machines. "
             "--slurm and --print-cells then have no effect, and --json prints the cell's "
             "result. 0 = all cells"},
    {OPT_TEXT, .name = "expect", .arg = "HASH", .offset = offsetof(struct args, expect),
     .help = "With --cell: refuse a cell N of another hash than this one of --print-cells, as "
             "after a change of the sweep's file. --slurm does so (default: any cell)"},
    {0},
};
/* clang-format on */
static const struct opt *const groups[] = {options,      opt_data,   opt_recipe,
                                           opt_progress, opt_report, NULL};

static void print_row(const json_t *row)
{
    const json_t *e = json_object_get(row, "stderr");
    const json_t *bytes = json_object_get(row, "bytes");
    printf("%-32s %10.4f", json_string_value(json_object_get(row, "name")),
           json_number_value(json_object_get(row, "ppl")));
    if (json_is_number(e))
        printf(" +- %-8.4f", json_number_value(e));
    else
        printf("    %-8s", "");
    printf(" %7.3f %7.3f", json_number_value(json_object_get(row, "weight_bits")),
           json_number_value(json_object_get(row, "kv_bits")));
    if (json_is_number(bytes))
        printf(" %9.1f", 1e-6 * json_number_value(bytes));
    else
        printf(" %9s", "simulated");
    puts(sweep_fault_of(row) ? "  verification FAILED" : "");
}

static void print_table(const json_t *rows)
{
    size_t i;
    json_t *row;
    printf("%-32s %10s    %-8s %7s %7s %9s\n", "cell", "perplexity", "stderr", "W bits",
           "KV bits", "MB");
    json_array_foreach(rows, i, row) print_row(row);
}

static void print_figure(const struct sweep_columns *c, int i, const json_t *row)
{
    const struct estimate x = sweep_column_value(c, i, row);
    const double scale = strncmp(c->item[i].key, "acc", 3) ? 1 : 100;
    const int width = (int)strlen(c->item[i].head);
    if (isfinite(x.mean))
        printf("  %*.2f", width, scale * x.mean);
    else
        printf("  %*s", width, "-");
}

/* Prints accuracies and scores in percent. */
static enum err print_measures(const json_t *rows)
{
    size_t i;
    json_t *row;
    struct sweep_columns c;
    const enum err err = sweep_columns_of(&c, rows);
    if (!err && c.n) {
        printf("\n%-32s", "cell");
        for (int k = 0; k < c.n; k++)
            printf("  %s", c.item[k].head);
        printf("\n");
        json_array_foreach(rows, i, row)
        {
            printf("%-32s", json_string_value(json_object_get(row, "name")));
            for (int k = 0; k < c.n; k++)
                print_figure(&c, k, row);
            printf("\n");
        }
    }
    sweep_columns_free(&c);
    return err;
}

static enum err print_rows(const json_t *rows, const struct args *a)
{
    if (a->json)
        return json_print(rows, JSON_COMPACT | JSON_REAL_PRECISION(9));
    print_table(rows);
    return print_measures(rows);
}

/* Prints the results of this run's cells. OUT may have those of others. */
static enum err print_results(const struct sweep *s, const struct args *a)
{
    json_t *now, *earlier, *cells = sweep_record_cells(s);
    enum err err = sweep_record_split(&now, &earlier, cells, s->results);
    const size_t n = json_array_size(earlier);
    if (!err)
        err = print_rows(now, a);
    if (!err && n)
        log_info("%s also has %zu result%s of earlier runs, which are not listed here",
                 s->out_dir, n, plural((int64_t)n));
    json_decref(now);
    json_decref(earlier);
    json_decref(cells);
    return err;
}

/* Prints the result of cell i under its name; null: a twin whose first cell has none yet. */
static enum err print_cell(const struct sweep *s, int i)
{
    size_t k;
    json_t *now, *earlier, *row, *cells = sweep_record_cells(s), *found = NULL;
    enum err err = sweep_record_split(&now, &earlier, cells, s->results);
    json_array_foreach(now, k, row)
    {
        if (json_integer_value(json_object_get(row, "cell")) == i + 1)
            found = row;
    }
    json_t *out = found ? json_incref(found) : json_null();
    if (!err)
        err = json_print(out, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(out);
    json_decref(now);
    json_decref(earlier);
    json_decref(cells);
    return err;
}

/* Writes OUT/report.html. */
static enum err put_page(const struct sweep *s)
{
    char *path = NULL;
    struct report r = {0};
    enum err err = file_join(&path, s->out_dir, "report.html");
    if (!err)
        err = report_open(&r, s->out_dir, NULL);
    if (!err)
        err = report_write(path, &r, NULL, s->out_dir);
    if (!err)
        log_info("%s: the page of this sweep", path);
    report_close(&r);
    mem_free(path);
    return err;
}

/* The machine that prints or submits cells may resolve run.compute otherwise than this one, so the
 * hash without it counts as well. */
static bool is_expected(const struct sweep *s, const struct args *a)
{
    if (!a->expect)
        return true;
    if (a->cell > s->plan.n_cells)
        return false;
    const struct sweep_run *run = &s->run[a->cell - 1];
    return !strcmp(a->expect, run->hash) || !strcmp(a->expect, run->spec);
}

static enum err run_cell(struct sweep *s, const struct args *a)
{
    FAIL_IF(!is_expected(s, a), ERR_USAGE,
            "--cell %" PRId64 ": not the cell that was submitted, %s: the sweep's file, an "
            "option, a text or the model has changed since; submit it again",
            a->cell, a->expect);
    FAIL_IF(a->cell > s->plan.n_cells, ERR_USAGE, "--cell %" PRId64 ": %s has %d cells",
            a->cell, a->pos.item[0], s->plan.n_cells);
    TRY(sweep_record_write(s, false));
    const enum err err = sweep_execute_cell(s, (int)a->cell - 1);
    if (a->json && (!err || err == ERR_VERIFY)) /* such a cell has a result, too */
        TRY(print_cell(s, (int)a->cell - 1));
    return err;
}

/* Does what the options want of an open sweep. */
static enum err act(struct sweep *s, const struct args *a)
{
    if (a->plan)
        return a->json ? sweep_print_json(s, false) : sweep_print_plan(s);
    if (a->cell)
        return run_cell(s, a);
    if (a->print_cells) {
        if (a->json)
            return sweep_print_json(s, true);
        sweep_print_cells(s);
        return OK;
    }
    if (a->slurm) {
        TRY(sweep_record_write(s, true));
        return sweep_submit(s, a->slurm, a->argc, a->argv);
    }
    TRY(sweep_execute(s));
    sweep_place_say_others(s);
    TRY(print_results(s, a)); /* first, as the page may fail */
    TRY(put_page(s));
    return sweep_check_verified(s);
}

/* Writes the user's command as a shell reads it. Release *out with free(). */
static enum err command_text(char **out, const struct args *a)
{
    size_t n;
    FILE *f = open_memstream(out, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for the command");
    fputs(a->argv[0], f);
    for (int i = 1; i < a->argc; i++)
        sweep_put_word(f, a->argv[i]);
    FAIL_IF(fclose(f), ERR_MEMORY, "out of memory for the command");
    return OK;
}

static enum err run(struct args *a)
{
    enum err err = OK;
    char *command = NULL;
    struct sweep s = {.lock.fd = -1};
    struct sweep_plan plan = {0};
    FAIL_IF(!a->model, ERR_USAGE, "no model: give --model MODEL_DIR");
    FAIL_IF(!a->out, ERR_USAGE, "no directory for the results: give -o OUT");
    FAIL_IF(a->expect && !a->cell, ERR_USAGE, "--expect is about --cell; give --cell N");
    TRY_OUT(opt_need_utf8(a, "a sweep's record"));
    TRY_OUT(sweep_plan_load(&plan, a->pos.item[0]));
    TRY_OUT(command_text(&command, a));
    const struct sweep_settings settings = {
        .model_dir = a->model,
        .out_dir = a->out,
        .recipe = command_recipe_input(a),
        .eval_data = a->eval_data.item,
        .n_eval_data = a->eval_data.n,
        .eval_texts = a->eval_text.item,
        .n_eval_texts = a->eval_text.n,
        .eval_join = a->eval_join,
        .zeroshot = a->zeroshot.item,
        .n_zeroshot = a->zeroshot.n,
        .labels = a->labels.item,
        .n_labels = a->labels.n,
        .longbench = a->longbench.item,
        .n_longbench = a->longbench.n,
        .prompts = a->prompts,
        .max_gen = a->max_gen,
        .limit = a->limit,
        .task_ctx = a->task_ctx,
        .eval_windows = a->windows,
        .eval_ctx = a->ctx,
        .parallel = a->parallel,
        .keep = a->keep,
        .quiet = a->quiet,
        .log_json = a->log_json,
        .plan_only = a->plan,
        .command = command,
        .share = !a->plan && (a->cell || a->slurm || a->print_cells)};
    if (!settings.share && !settings.plan_only && a->parallel > SWEEP_PARALLEL_MAX)
        FAIL_OUT(ERR_USAGE,
                 "--parallel=%" PRId64 ": want at most %d cells at the same time on this "
                 "machine; only --slurm takes more",
                 a->parallel, SWEEP_PARALLEL_MAX);
    TRY_OUT(sweep_open(&s, &settings, &plan));
    err = act(&s, a);
out:
    free(command);
    sweep_plan_free(&plan);
    sweep_close(&s);
    return err;
}

const struct command cmd_sweep = {
    .name = "sweep",
    .operands = "FILE.yaml",
    .summary = "Calibrate and evaluate many configurations of one model",
    .details =
        "Calibrates, converts, verifies and evaluates every cell of the sweep. The text "
        "is tokenized once. A cell's configuration is --config, then the sweep's base, "
        "then --set, then the cell's own keys. After an interruption or a kill the same "
        "command resumes: finished cells are skipped, and an unfinished one resumes from "
        "its state. At the end, OUT/report.html is a page of the results; `wkvq report` "
        "makes it again, with another base or title, also while cells run. "
        "configs/sweeps has examples.\n\n"
        "  wkvq sweep configs/sweeps/ablation.yaml --model SmolLM2-135M \\\n"
        "      --data wiki.train.raw --eval wiki.test.raw --windows 12 -o ablation\n"
        "  wkvq sweep configs/sweeps/k.yaml --model SmolLM2-135M \\\n"
        "      --data wiki.train.raw --eval wiki.test.raw \\\n"
        "      --set calibration.samples=16 -o k\n"
        "  wkvq sweep configs/sweeps/paper.yaml --model SmolLM2-135M -o paper \\\n"
        "      --data wiki.train.raw --eval wiki.test.raw --limit 500 \\\n"
        "      --zeroshot piqa/dev.jsonl --labels piqa/dev-labels.lst \\\n"
        "      --zeroshot ARC-Challenge-Test.jsonl\n"
        "  wkvq sweep configs/sweeps/k.yaml --model SmolLM2-135M \\\n"
        "      --data wiki.train.raw --eval wiki.test.raw -o k \\\n"
        "      --slurm=\"--cpus-per-task=16 --mem=32G\" --parallel 4\n",
    .groups = groups,
    .min_pos = 1,
    .max_pos = 1,
    .model = -1,
    .run = run,
};
