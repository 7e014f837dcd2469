/* SPDX-License-Identifier: MIT
 *
 * Converts a command's options to the inputs of recipes and jobs. Lower layers do not use
 * struct args. */
#ifndef WKVQ_COMMAND_JOB_H
#define WKVQ_COMMAND_JOB_H

#include "convert/artifact/reader.h"
#include "tools/cli/opt.h"
#include "tools/pipeline/finish.h"
#include "tools/pipeline/job.h"

/* Returns --config, --set and the shortcuts. Borrows from a. */
struct recipe_input command_recipe_input(const struct args *a);
/* Makes the recipe of a's options. Errors and ownership are those of recipe_from_input. */
enum err command_recipe(struct recipe *r, const struct args *a);
/* Returns the options of a job besides its recipe. Borrows from a. */
struct job_options command_job_options(const struct args *a, const char *model_dir);
/* Opens a job with a's options (job_open). Call job_close() whatever the result. */
enum err command_job_open(struct job *j, const struct args *a, const char *model_dir);
/* Returns the output of a job that starts now, for output_check. Borrows from a. */
struct output command_output(const struct args *a);

/* Returns ERR_USAGE if --device names another device than the CPU. what: "convert", which
 * runs there only. */
enum err command_check_cpu(const struct args *a, const char *what);
/* Returns ERR_USAGE if --config or --set has a key of the quantization that differs from the
 * artifact's own. simulated: activations.bits and kv.target still have an effect. */
enum err command_check_artifact(const struct args *a, const struct artifact *art,
                                bool simulated);

#endif
