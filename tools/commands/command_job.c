/* SPDX-License-Identifier: MIT */
#include "tools/commands/command_job.h"

#include "data/json.h"

#include <string.h>
#include <time.h>

struct recipe_input command_recipe_input(const struct args *a)
{
    return (struct recipe_input){.config = a->config,
                                 .set = a->set.item,
                                 .n_set = a->set.n,
                                 .threads = a->threads,
                                 .memory = a->memory,
                                 .device = a->device,
                                 .join = a->join,
                                 .bos = a->bos,
                                 .text_field = a->text_field,
                                 .data = a->data.item,
                                 .n_data = a->data.n};
}

enum err command_recipe(struct recipe *r, const struct args *a)
{
    const struct recipe_input in = command_recipe_input(a);
    return recipe_from_input(r, &in);
}

struct job_options command_job_options(const struct args *a, const char *model_dir)
{
    return (struct job_options){.model_dir = model_dir,
                                .weights_from = a->weights_from,
                                .quiet = a->quiet,
                                .log_json = a->log_json,
                                .plan = a->plan,
                                .json = a->json,
                                .shard_bytes = a->shard_bytes};
}

enum err command_job_open(struct job *j, const struct args *a, const char *model_dir)
{
    const struct recipe_input in = command_recipe_input(a);
    const struct job_options options = command_job_options(a, model_dir);
    return job_open(j, &in, &options);
}

enum err command_check_cpu(const struct args *a, const char *what)
{
    FAIL_IF(a->device && strcmp(a->device, "cpu"), ERR_USAGE,
            "--device %s: `wkvq %s` runs on the CPU; leave the option out", a->device,
            what);
    return OK;
}

struct output command_output(const struct args *a)
{
    return (struct output){.dir = a->out,
                           .given_state = a->state,
                           .force = a->force,
                           .keep_state = a->keep_state,
                           .json = a->json,
                           .plan = a->plan,
                           .start = (double)time(NULL)};
}

/* Initializes r; free it whatever the result. */
static enum err manifest_recipe(struct recipe *r, const struct artifact *art)
{
    const char *text = artifact_manifest(art);
    json_t *root = NULL;
    recipe_init(r);
    TRY(json_parse(&root, text, strlen(text), "manifest.json"));
    const enum err err =
        recipe_load_json(r, json_object_get(root, "config"), "manifest.json");
    json_decref(root);
    return err;
}

enum err command_check_artifact(const struct args *a, const struct artifact *art,
                                bool simulated)
{
    const struct recipe_input in = command_recipe_input(a);
    struct recipe own = {0};
    const struct recipe_fixed f = {
        .recipe = &own,
        .name = a->pos.item[0],
        .rounds_inputs = simulated && !weight_rounds_inputs(artifact_weight_spec(art)),
        .takes_target = simulated,
        .advice = "leave the key out, or try it on the checkpoint by `wkvq eval MODEL "
                  "--simulate rtn`"};
    if (!a->config && !a->set.n)
        return OK;
    enum err err = manifest_recipe(&own, art);
    if (!err)
        err = recipe_check_fixed(&f, &in);
    recipe_free(&own);
    return err;
}
