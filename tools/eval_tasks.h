/* SPDX-License-Identifier: MIT
 *
 * The evaluations that read their own data files: run, and print the result. */
#ifndef WKVQ_EVAL_TASKS_H
#define WKVQ_EVAL_TASKS_H

#include "tools/eval.h"

/* Multiple choice on every file of e->job->recipe.data. */
enum err eval_choices(struct eval *e);

#endif
