/* SPDX-License-Identifier: MIT
 *
 * What the runs of all tasks share: how a run is named, its BOS, its progress over all
 * files, and averages over data sets. */
#ifndef WKVQ_TASK_RUN_H
#define WKVQ_TASK_RUN_H

#include "tools/eval/eval.h"
#include "tools/eval/statistics.h"

/* Makes the text that names the run in its output file: the model's CRC-32, its bits and
 * method, and the settings that decide the result. ends: longbench_ends_crc(), or 0 where no
 * answer is generated. Reads the whole checkpoint once. The caller releases *out with
 * mem_free(). */
enum err task_run_text(char **out, const struct eval *e, uint32_t ends);
/* Returns whether texts get a BOS token in front. Requires the job's tokenizer. */
enum err task_has_bos(bool *yes, const struct eval *e);
/* Prints bits, method, cache, chunk and BOS as one line. name: "model", padded by the caller. */
void task_print_model(const struct eval *e, const char *name, bool bos);
/* Adds the same to a result. ERR_MEMORY. */
enum err task_add_model(json_t *o, const struct eval *e, bool bos);

/* ERR_USAGE if the file at path holds the same set as another: a set has one column and one weight
 * in the average, and its error is independent of that of other sets alone. */
enum err task_refuse_twins(const char *option, const char *path, const char *name,
                           const char *other);
/* Warns if `few` of n questions of a file have fewer inputs than the `from` tokens at which
 * anything of their cache is quantized. */
void task_warn_cache(const struct eval *e, const char *path, int64_t few, int64_t n,
                     int64_t from);

/* Progress in tokens over all files of a run. */
struct task_progress {
    struct progress *p;
    double done, total; /* tokens */
};
/* Counts tokens as done, and shows the share. */
void task_progress_add(struct task_progress *t, double tokens);

/* ERR_STOPPED if a stop was requested by a signal. Called between questions or batches of them. */
enum err task_check_stop(void);

/* Adds one of n data sets to their mean, which starts as {0, 0}. Each set has the same
 * weight. Their errors are independent; one that is NAN makes the mean's NAN. */
void task_average_add(struct estimate *mean, struct estimate set, int64_t n);

#endif
