/* SPDX-License-Identifier: MIT
 *
 * Writes the shell commands that reproduce a cell. */
#include "kernels/base/mem.h"
#include "tools/cli/opt.h"
#include "tools/sweep/sweep.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOINED " && "

void sweep_put_word(FILE *f, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                "0123456789_-./=:,+@%";
    fputc(' ', f);
    if (*word && word[strspn(word, plain)] == '\0') {
        fputs(word, f);
        return;
    }
    fputc('\'', f);
    for (const char *p = word; *p; p++) {
        if (*p == '\'')
            fputs("'\\''", f);
        else
            fputc(*p, f);
    }
    fputc('\'', f);
}

static void put_option(FILE *f, const char *name, const char *value)
{
    fprintf(f, " --%s", name);
    sweep_put_word(f, value);
}

static void put_recipe(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    if (s->settings.recipe.config)
        put_option(f, "config", s->settings.recipe.config);
    for (int i = 0; i < run->n_set; i++)
        put_option(f, "set", run->set[i]);
}

static enum err put_files(FILE *f, const struct recipe_files *files)
{
    for (int i = 0; i < files->n; i++) {
        char *text;
        TRY(recipe_files_typed(&text, files, i));
        put_option(f, "data", text);
        mem_free(text);
    }
    return OK;
}

enum err sweep_put_text(FILE *f, const struct sweep *s, const struct recipe_files *files)
{
    TRY(put_files(f, files));
    if (s->settings.recipe.text_field)
        put_option(f, "text-field", s->settings.recipe.text_field);
    if (s->settings.recipe.join)
        put_option(f, "join", s->settings.recipe.join);
    if (s->settings.recipe.bos)
        put_option(f, "bos", s->settings.recipe.bos);
    return OK;
}

/* Writes a key of the cell's configuration as an option, unless it has its default: an artifact
 * and a state do not tell `wkvq eval` how to read a text. */
static void put_choice(FILE *f, const char *option, const char *choices, int value)
{
    if (value)
        put_option(f, option, opt_choice_name(choices, value));
}

/* Writes the command that makes the artifact or state, followed by JOINED. Writes nothing
 * where `wkvq eval` alone suffices. */
static enum err put_making(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    const struct recipe *r = &run->recipe;
    const bool calibrated = sweep_needs_calibration(r);
    const bool packed = sweep_way(r) == SWEEP_PACKED;
    if (!packed && (!calibrated || sweep_way(r) == SWEEP_PLAIN))
        return OK;
    fprintf(f, "wkvq %s", !packed ? "calibrate" : calibrated ? "quantize" : "convert");
    sweep_put_word(f, s->model_dir);
    if (calibrated)
        TRY(sweep_put_text(f, s, &r->data));
    put_recipe(f, s, run);
    /* stored because another machine may prefer another type */
    if (calibrated && r->compute == COMPUTE_AUTO)
        fprintf(f, " --set run.compute=%s",
                opt_choice_name(CHOICES_COMPUTE, (int)run->compute));
    fprintf(f, " -o %s" JOINED, run->hash);
    return OK;
}

/* Writes the operand of `wkvq eval`. run.compute of an artifact or a state is not that of their
 * evaluation. */
static void put_subject(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    const struct recipe *r = &run->recipe;
    const char *compute =
        run->eval_compute == COMPUTE_BF16 ? " --set run.compute=bf16" : "";
    fprintf(f, "wkvq eval");
    if (sweep_way(r) == SWEEP_PACKED) {
        sweep_put_word(f, run->hash);
        fputs(compute, f);
        return;
    }
    sweep_put_word(f, s->model_dir);
    if (sweep_way(r) == SWEEP_SIMULATED && sweep_needs_calibration(r)) {
        fprintf(f, " --state %s%s", run->hash, compute);
        return;
    }
    if (sweep_way(r) == SWEEP_SIMULATED)
        fprintf(f, " --simulate rtn");
    put_recipe(f, s, run);
}

/* Writes the options of a task's questions. */
static void put_questions(FILE *f, const struct sweep *s, const struct sweep_run *run,
                          const struct sweep_asked *a)
{
    const struct sweep_settings *own = &s->settings;
    const struct sweep_questions *q = &s->questions[a->from];
    const bool choices = a->kind == SWEEP_ZEROSHOT;
    put_option(f, "task", choices ? "zeroshot" : "longbench");
    put_option(f, "data", choices ? own->zeroshot[a->index] : own->longbench[a->index]);
    if (choices && q->labels[a->index] >= 0)
        put_option(f, "labels", own->labels[q->labels[a->index]]);
    if (!choices) {
        put_option(f, "prompts", own->prompts);
        put_option(f, "max-gen", own->max_gen);
    }
    put_choice(f, "bos", CHOICES_BOS, run->recipe.bos);
    fprintf(f, " --limit %" PRId64 " --ctx %" PRId64, own->limit, own->task_ctx);
}

/* join NULL: as the cell's text */
static enum err put_windows(FILE *f, const struct sweep *s, const struct sweep_run *run,
                            const struct recipe_files *files, const char *join)
{
    const struct recipe *r = &run->recipe;
    TRY(put_files(f, files));
    if (*r->text_field)
        put_option(f, "text-field", r->text_field);
    if (join)
        put_option(f, "join", join);
    else
        put_choice(f, "join", CHOICES_JOIN, r->join);
    put_choice(f, "bos", CHOICES_BOS, r->bos);
    fprintf(f, " --windows %" PRId64 " --ctx %" PRId64, s->eval_windows, s->eval_ctx);
    return OK;
}

/* Writes the command of measure i of those asked. */
static enum err put_measure(FILE *f, const struct sweep *s, const struct sweep_run *run,
                            int i)
{
    const struct sweep_asked *a = &run->asked[i];
    put_subject(f, s, run);
    if (a->kind == SWEEP_TEXT)
        return put_windows(f, s, run, &s->text[a->from].files, s->settings.eval_join);
    put_questions(f, s, run, a);
    return OK;
}

static enum err put_command(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    TRY(put_making(f, s, run));
    put_subject(f, s, run);
    TRY(put_windows(f, s, run, &s->eval_data, NULL));
    for (int i = 0; i < run->n_asked; i++) {
        fputs(JOINED, f);
        TRY(put_measure(f, s, run, i));
    }
    return OK;
}

/* i: of a measure; -1: all commands. */
static enum err command_text(char **out, const struct sweep *s, const struct sweep_run *run,
                             int i)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for a command");
    enum err err = i < 0 ? put_command(f, s, run) : put_measure(f, s, run, i);
    const bool failed = ferror(f);
    if (fclose(f) || failed)
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for a command");
    if (!err)
        err = mem_strdup(out, text);
    free(text);
    return err;
}

enum err sweep_command(char **out, const struct sweep *s, const struct sweep_run *run)
{
    return command_text(out, s, run, -1);
}

enum err sweep_command_measure(char **out, const struct sweep *s,
                               const struct sweep_run *run, int i)
{
    return command_text(out, s, run, i);
}

/* Returns one of the commands of a result, or NULL if it is not among them. */
static const char *find_command(const char *all, const char *one)
{
    const size_t n = strlen(one);
    for (const char *at = all; (at = strstr(at, one)); at++)
        if (at[n] == '\0' || !strncmp(at + n, JOINED, strlen(JOINED)))
            return at;
    return NULL;
}

enum err sweep_command_replace(json_t *row, const char *old, const char *one)
{
    const char *had = json_string_value(json_object_get(row, "command"));
    const char *at = had && old ? find_command(had, old) : NULL;
    json_t *now;
    if (!had || find_command(had, one))
        return OK;
    if (at)
        now = json_sprintf("%.*s%s%s", (int)(at - had), had, one, at + strlen(old));
    else
        now = json_sprintf("%s" JOINED "%s", had, one);
    FAIL_IF(json_object_set_new(row, "command", now), ERR_MEMORY,
            "out of memory for a command");
    return OK;
}
