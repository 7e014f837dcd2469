/* SPDX-License-Identifier: MIT
 *
 * A command's options as what recipes and jobs are made of: below this struct args is not
 * needed. */
#ifndef WKVQ_COMMAND_JOB_H
#define WKVQ_COMMAND_JOB_H

#include "tools/cli/opt.h"
#include "tools/pipeline/job.h"

/* --config, --set and what is short for keys. Borrows from a. */
struct recipe_input command_recipe_input(const struct args *a);
/* The recipe of a's options. Errors and ownership as recipe_from_input has them. */
enum err command_recipe(struct recipe *r, const struct args *a);
/* job_open with a's options. Close the job whatever the result. */
enum err command_job_open(struct job *j, const struct args *a, const char *model_dir);

#endif
