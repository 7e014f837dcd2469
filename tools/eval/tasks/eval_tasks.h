/* SPDX-License-Identifier: MIT
 *
 * The evaluations beside plain perplexity: run, and print the result. */
#ifndef WKVQ_EVAL_TASKS_H
#define WKVQ_EVAL_TASKS_H

#include "tools/eval/eval.h"

/* Multiple choice on every file of e->job->recipe.data. */
enum err eval_choices(struct eval *e);
/* LongBench on every file of e->job->recipe.data: e->decode with an artifact. */
enum err eval_longbench(struct eval *e);
/* Perplexity of e->job->ids beside that of --against, paired over windows. The device is
 * open. */
enum err eval_against(struct eval *e);

#endif
