/* SPDX-License-Identifier: MIT
 *
 * What a sweep measures besides the perplexity of its main text: further texts, zero-shot
 * sets and LongBench. Each has a member of "measures" in the result of a cell:
 *
 *   {"task": "ppl", "name", "identity", "ppl", "stderr", "nll", "tokens", "windows", "ctx",
 *    "window_nll"}
 *   {"task": "zeroshot", "name", "identity", "n", "rows", "chance", "acc", "acc_stderr",
 *    "acc_norm", "acc_norm_stderr", "right", "right_norm"}
 *   {"task": "longbench", "name", "identity", "metric", "n", "rows", "cut", "score",
 *    "stderr", "scores"}
 *
 * and "seconds". Accuracies and chance, that of a
 * guess, are in [0,1], scores in percent. right and right_norm hold 0 or
 * 1 for each question, scores a percentage, so that two cells can be compared in pairs.
 * Members are null where a set has no acc_norm. identity is all that was asked; a result
 * with another one is not this measure. */
#ifndef WKVQ_SWEEP_MEASURES_H
#define WKVQ_SWEEP_MEASURES_H

#include "tools/sweep/sweep.h"

/* Loads the files of s->settings that questions come from, and checks the names of its
 * further texts. Requires s->arch and the tokenizer. ERR_USAGE for options that do not fit
 * together, and for two files of one data set; the errors of the files. */
enum err sweep_measures_open(struct sweep *s);
void sweep_measures_close(struct sweep *s);
/* Sets run->asked. Requires run->recipe and its texts. A cell that only a simulation can
 * run has no LongBench, which needs the packed runtime. */
enum err sweep_measures_ask(struct sweep *s, struct sweep_run *run);
void sweep_measures_forget(struct sweep_run *run); /* frees run->asked */

/* Returns whether a result has measure i of those asked, or how many of them it has. row may
 * be NULL. */
bool sweep_measures_has(const json_t *row, const struct sweep_run *run, int i);
int sweep_measures_count(const json_t *row, const struct sweep_run *run);
/* Measures number i of those asked with the open model e, whose job has the text of a further
 * text. The caller releases *out with json_decref(). Errors: those of eval_ppl() and of
 * eval_tasks.h. */
enum err sweep_measure(json_t **out, const struct sweep *s, const struct sweep_run *run,
                       int i, struct eval *e);
/* Removes the answers that sweep_measure() kept. Call it when the result is on the disk. */
void sweep_measure_done(const struct sweep *s, const struct sweep_run *run);
/* Adds a measure to a result, and the command that reproduces it to the result's; both in place of
 * one with the same task and name. Takes the measure. */
enum err sweep_measures_add(json_t *row, json_t *measure, const char *command);

#endif
