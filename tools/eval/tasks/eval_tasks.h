/* SPDX-License-Identifier: MIT
 *
 * Evaluations other than plain perplexity. Each runs and prints its result. */
#ifndef WKVQ_EVAL_TASKS_H
#define WKVQ_EVAL_TASKS_H

#include "tools/eval/eval.h"
#include "tools/eval/tasks/longbench.h"
#include "tools/eval/tasks/zeroshot.h"

/* Runs multiple choice on every file of e->job->recipe.data. */
enum err eval_choices(struct eval *e);
/* Runs LongBench on every file of e->job->recipe.data. Requires e->decode and an
 * artifact. */
enum err eval_longbench(struct eval *e);
/* Score one loaded set and print nothing. e needs the model and its device (multiple choice),
 * or e->decode and an artifact (LongBench), and the job's tokenizer.
 * eval_choices_set fills the log-likelihoods of z; eval_longbench_set fills score [set->n]
 * with figures in [0,1]. path names the file in messages. Answers are kept in a file that a later
 * call continues; kept NULL: they are not. Errors: those of the model and of the file,
 * ERR_NUMERIC, ERR_STOPPED. */
enum err eval_choices_set(struct zeroshot_set *z, struct eval *e,
                          const struct task_kept *kept);
enum err eval_longbench_set(double *score, struct eval *e, const struct longbench_set *set,
                            const char *path, const struct task_kept *kept);
/* *crc = the CRC-32 of a set: prompts in tokens, lengths of answers, reference answers. */
enum err eval_longbench_crc(uint32_t *crc, const struct longbench_set *set);
/* Scores the answers in n files of LongBench's predictions, without a model. */
enum err eval_predictions(const char *const *path, int n, bool json);
/* Compares the perplexity of e->job->ids with that of --against, paired over windows.
 * Requires an open device. */
enum err eval_against(struct eval *e);

#endif
