/* SPDX-License-Identifier: MIT */
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "tools/cli/opt.h"
#include "tools/eval/tasks/eval_tasks.h"
#include "tools/eval/tasks/zeroshot.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static json_t *real_or_null(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static enum err add_json(json_t *sets, const char *path, const struct question_set *s,
                         const struct zeroshot_result *r)
{
    json_t *o = json_pack(
        "{s:s, s:s, s:I, s:f, s:o, s:o, s:o, s:f}", "set", s->name, "file", path, "n",
        (json_int_t)r->n, "acc", r->acc, "acc_stderr", real_or_null(r->acc_stderr),
        "acc_norm", s->normalized ? json_real(r->norm) : json_null(), "acc_norm_stderr",
        s->normalized ? real_or_null(r->norm_stderr) : json_null(), "seconds", r->seconds);
    FAIL_IF(!o || json_array_append_new(sets, o), ERR_MEMORY,
            "out of memory for the result");
    return OK;
}

static void print_share(const char *name, double share, double error)
{
    printf("  %s %6.2f %%", name, 100 * share);
    if (isfinite(error))
        printf(" +- %.2f", 100 * error);
}

static void print_line(const char *path, const struct question_set *s,
                       const struct zeroshot_result *r)
{
    printf("%-11s %6" PRId64 " questions", s->name, r->n);
    print_share("acc", r->acc, r->acc_stderr);
    if (s->normalized)
        print_share("acc_norm", r->norm, r->norm_stderr);
    printf("  %.1f s  %s\n", r->seconds, file_base_name(path));
    fflush(stdout);
}

static enum err measure(struct eval *e, json_t *sets, struct file_writer *lines)
{
    const struct recipe_files *files = &e->job->recipe.data;
    for (int i = 0; i < files->n; i++) {
        struct question_set set = {0};
        struct zeroshot_result r;
        enum err err = zeroshot_run(&r, &set, e, files->path[i], lines);
        if (!err && e->settings->json)
            err = add_json(sets, files->path[i], &set, &r);
        else if (!err)
            print_line(files->path[i], &set, &r);
        question_set_free(&set);
        TRY(err);
    }
    return OK;
}

static enum err print_all(const struct eval *e, json_t *sets)
{
    double weight_bits, kv_bits;
    eval_bits(&weight_bits, &kv_bits, e);
    if (!e->settings->json) {
        printf("model       %s by %s\n", eval_bits_text(e), eval_method(e));
        return OK;
    }
    json_t *o = json_pack("{s:s, s:s, s:s, s:o, s:o, s:i, s:I, s:I, s:b, s:O}", "task",
                          "zeroshot", "model", e->job->model_dir, "method", eval_method(e),
                          "weight_bits", eval_bits_json(weight_bits), "kv_bits",
                          eval_bits_json(kv_bits), "activation_bits", eval_act_bits(e),
                          "ctx", (json_int_t)e->ctx, "chunk", (json_int_t)e->chunk, "bos",
                          e->job->recipe.bos == BOS_ALWAYS, "sets", sets);
    const enum err err = json_print(o, JSON_REAL_PRECISION(9));
    json_decref(o);
    return err;
}

enum err eval_choices(struct eval *e)
{
    struct file_writer *lines = NULL;
    json_t *sets = json_array();
    enum err err = tokenizer_open(&e->job->tokenizer, e->job->model_dir);
    if (!err && e->settings->out)
        err = file_writer_open(&lines, e->settings->out);
    if (!err)
        err = measure(e, sets, lines);
    if (!err && lines)
        err = file_writer_commit(&lines);
    file_writer_abort(&lines);
    if (!err)
        err = print_all(e, sets);
    json_decref(sets);
    return err;
}
