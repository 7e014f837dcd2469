/* SPDX-License-Identifier: MIT */
#include "tools/commands/command_job.h"

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
                           .start = (double)time(NULL)};
}
