/* SPDX-License-Identifier: MIT
 *
 * Evaluations other than plain perplexity. Each runs and prints its result. */
#ifndef WKVQ_EVAL_TASKS_H
#define WKVQ_EVAL_TASKS_H

#include "tools/eval/eval.h"

/* Runs multiple choice on every file of e->job->recipe.data. */
enum err eval_choices(struct eval *e);
/* Runs LongBench on every file of e->job->recipe.data. Requires e->decode and an
 * artifact. */
enum err eval_longbench(struct eval *e);
/* Scores the answers in n files of LongBench's predictions, without a model. */
enum err eval_predictions(const char *const *path, int n, bool json);
/* Compares the perplexity of e->job->ids with that of --against, paired over windows.
 * Requires an open device. */
enum err eval_against(struct eval *e);

#endif
