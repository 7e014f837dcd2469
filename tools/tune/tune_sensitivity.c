/* SPDX-License-Identifier: MIT */
#include "tools/tune/tune_sensitivity.h"

#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "tools/cli/child.h"
#include "tools/cli/stop.h"
#include "tools/pipeline/job.h"
#include "tools/sweep/sweep_results.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FILE_LIMIT ((size_t)256 << 20)

/* Arguments of the child process. */
struct order {
    struct sensitivity *s;
    const struct tune_settings *settings;
    const uint32_t *model_crc;
    const char *path;
};

/* --- the file ----------------------------------------------------------------------- */

static json_t *formats_json(const struct mix_format *f, int n)
{
    json_t *list = json_array();
    for (int i = 0; list && i < n; i++)
        json_array_append_new(list,
                              json_pack("[i, I]", f[i].bits, (json_int_t)f[i].group_size));
    return list;
}

static enum err identify(json_t **out, struct job *j, const struct sensitivity *s)
{
    json_t *own;
    TRY(job_identity(&own, j));
    *out = json_pack("{s:o, s:o, s:o}", "run", own, "weight_formats",
                     formats_json(s->weight_format, s->n_weight), "kv_formats",
                     formats_json(s->kv_format, s->n_kv));
    if (*out &&
        j->recipe.kv_method == KV_CHANNEL) /* files from before have keys by token */
        json_object_set_new(*out, "keys", json_string("by channel"));
    FAIL_IF(!*out || json_out_of_memory(), ERR_MEMORY, "out of memory for an identity");
    return OK;
}

/* Returns whether the file has this identity. Any other file is replaced. */
static bool is_there(const char *path, const json_t *identity)
{
    json_t *have = NULL;
    if (!file_exists(path))
        return false;
    if (json_load_file_strict(&have, path, FILE_LIMIT)) {
        log_warn("%s: is measured again: %s", path, err_text());
        err_clear();
        return false;
    }
    const bool same = json_equal(json_object_get(have, "identity"), identity);
    json_decref(have);
    return same;
}

static enum err write_file(const struct order *o, const struct arch *a, json_t *identity)
{
    const struct sensitivity *s = o->s;
    json_t *v =
        json_pack("{s:O, s:f, s:o, s:o}", "identity", identity, "nll", s->nll,
                  "weight_loss", json_reals(s->weight, a->n_layers * N_LIN * s->n_weight),
                  "kv_loss", json_reals(s->kv, a->n_layers * 2 * s->n_kv));
    char *text = v ? json_text(v, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(v);
    FAIL_IF(!text, ERR_MEMORY, "out of memory for the estimates");
    const enum err err = file_write_all(o->path, text, strlen(text));
    free(text);
    return err;
}

static enum err read_losses(double **out, const json_t *v, const char *key, int64_t n,
                            const char *path)
{
    size_t i;
    json_t *x, *list;
    TRY(json_get_array(&list, v, key, path));
    FAIL_IF((int64_t)json_array_size(list) != n, ERR_FORMAT,
            "%s: %s: want %lld figures; remove the file to compute it again", path, key,
            (long long)n);
    TRY(mem_alloc(out, (size_t)n, sizeof(**out)));
    json_array_foreach(list, i, x)
    {
        (*out)[i] = json_number_value(x);
        FAIL_IF(!json_is_number(x) || !((*out)[i] >= 0), ERR_FORMAT,
                "%s: %s: want figures of at least 0; remove the file to compute it again",
                path, key);
    }
    return OK;
}

static enum err read_file(struct sensitivity *s, const struct arch *a, const char *path)
{
    json_t *v;
    TRY(json_load_file_strict(&v, path, FILE_LIMIT));
    enum err err = json_need_real(&s->nll, v, "nll", 0, 1e6, path);
    if (!err)
        err = read_losses(&s->weight, v, "weight_loss", a->n_layers * N_LIN * s->n_weight,
                          path);
    if (!err)
        err = read_losses(&s->kv, v, "kv_loss", a->n_layers * 2 * s->n_kv, path);
    json_decref(v);
    return err;
}

/* --- the process -------------------------------------------------------------------- */

static enum err open_job(struct job *j, const struct order *o)
{
    const struct tune_settings *t = o->settings;
    const struct job_options options = {.model_dir = t->model_dir,
                                        .quiet = t->quiet,
                                        .log_json = t->log_json,
                                        .model_crc = o->model_crc};
    TRY(job_open(j, &t->recipe, &options));
    j->recipe.samples = t->samples < TUNE_WINDOWS ? t->samples : TUNE_WINDOWS;
    j->recipe.seqlen = t->seqlen;
    TRY(job_open_model(j));
    TRY(job_check_text(j, "tuning"));
    TRY(job_read_text(j));
    return job_draw_windows(j);
}

static enum err measure(const struct order *o, struct job *j, json_t *identity)
{
    const struct kv_spec kv = recipe_kv_spec(&j->recipe);
    TRY(hf_rotate_values(j->model, &kv));
    TRY(job_open_device(j));
    log_info("estimating the loss of each format: one pass over %lld windows of %lld "
             "tokens",
             (long long)j->recipe.samples, (long long)j->recipe.seqlen);
    const struct model_windows text = {j->windows, j->recipe.samples, j->recipe.seqlen};
    o->s->spec = kv;
    o->s->stop = stop_asked;
    TRY(sensitivity_measure(o->s, j->dev, &j->arch, hf_source(j->model), &text));
    return write_file(o, &j->arch, identity);
}

static enum err process(void *ctx)
{
    enum err err = OK;
    const struct order *o = ctx;
    struct job j = {0};
    json_t *identity = NULL;
    TRY_OUT(open_job(&j, o));
    TRY_OUT(identify(&identity, &j, o->s));
    if (!is_there(o->path, identity))
        TRY_OUT(measure(o, &j, identity));
out:
    json_decref(identity);
    job_close(&j);
    return err;
}

enum err tune_sensitivity(struct sensitivity *s, const struct tune_settings *settings,
                          const uint32_t *model_crc, const struct arch *arch)
{
    char *path = NULL;
    TRY(sweep_place_make(settings->work_dir));
    TRY(file_join(&path, settings->work_dir, "sensitivity.json"));
    struct order o = {s, settings, model_crc, path};
    enum err err = child_run(process, &o);
    if (err == ERR_STOPPED)
        err = err_set(err, __FILE__, __LINE__, "interrupted before the trials");
    else if (err && *err_text())
        err = err_add(err, "the pass over the text failed: ");
    else if (err)
        err = err_set(err, __FILE__, __LINE__,
                      "the pass over the text failed: its message is above");
    else
        err = read_file(s, arch, path);
    mem_free(path);
    return err;
}
