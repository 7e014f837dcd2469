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

/* join NULL: as configured */
static enum err put_text(FILE *f, const struct sweep *s, const struct recipe_files *files,
                         const char *join)
{
    for (int i = 0; i < files->n; i++) {
        char *text;
        TRY(recipe_files_typed(&text, files, i));
        put_option(f, "data", text);
        mem_free(text);
    }
    if (s->settings.recipe.text_field)
        put_option(f, "text-field", s->settings.recipe.text_field);
    if (join || s->settings.recipe.join)
        put_option(f, "join", join ? join : s->settings.recipe.join);
    if (s->settings.recipe.bos)
        put_option(f, "bos", s->settings.recipe.bos);
    return OK;
}

/* Writes the command that makes the artifact or state, followed by "&&". Writes nothing
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
        TRY(put_text(f, s, &r->data, NULL));
    put_recipe(f, s, run);
    /* stored because another machine may prefer another type */
    if (calibrated && r->compute == COMPUTE_AUTO)
        fprintf(f, " --set run.compute=%s",
                opt_choice_name(CHOICES_COMPUTE, (int)run->compute));
    fprintf(f, " -o %s && ", run->hash);
    return OK;
}

/* Writes the operand of `wkvq eval`. */
static void put_subject(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    const struct recipe *r = &run->recipe;
    fprintf(f, "wkvq eval");
    if (sweep_way(r) == SWEEP_PACKED) {
        sweep_put_word(f, run->hash);
        return;
    }
    sweep_put_word(f, s->model_dir);
    if (sweep_way(r) == SWEEP_SIMULATED && sweep_needs_calibration(r)) {
        fprintf(f, " --state %s", run->hash);
        return;
    }
    if (sweep_way(r) == SWEEP_SIMULATED)
        fprintf(f, " --simulate rtn");
    put_recipe(f, s, run);
}

/* Writes the options of a task's questions. */
static void put_questions(FILE *f, const struct sweep *s, const struct sweep_asked *a)
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
    if (own->recipe.bos)
        put_option(f, "bos", own->recipe.bos);
    fprintf(f, " --limit %" PRId64 " --ctx %" PRId64, own->limit, own->task_ctx);
}

static enum err put_windows(FILE *f, const struct sweep *s,
                            const struct recipe_files *files, const char *join)
{
    TRY(put_text(f, s, files, join));
    fprintf(f, " --windows %" PRId64 " --ctx %" PRId64, s->eval_windows, s->eval_ctx);
    return OK;
}

static enum err put_measures(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    for (int i = 0; i < run->n_asked; i++) {
        const struct sweep_asked *a = &run->asked[i];
        fprintf(f, " && ");
        put_subject(f, s, run);
        if (a->kind == SWEEP_TEXT)
            TRY(put_windows(f, s, &s->text[a->from].files, s->settings.eval_join));
        else
            put_questions(f, s, a);
    }
    return OK;
}

static enum err put_command(FILE *f, const struct sweep *s, const struct sweep_run *run)
{
    TRY(put_making(f, s, run));
    put_subject(f, s, run);
    TRY(put_windows(f, s, &s->eval_data, NULL));
    return put_measures(f, s, run);
}

enum err sweep_command(char **out, const struct sweep *s, const struct sweep_run *run)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    FAIL_IF(!f, ERR_MEMORY, "out of memory for a command");
    enum err err = put_command(f, s, run);
    const bool failed = ferror(f);
    if (fclose(f) || failed)
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for a command");
    if (!err)
        err = mem_strdup(out, text);
    free(text);
    return err;
}
