/* SPDX-License-Identifier: MIT
 *
 * LongBench's questions over long texts. They are read from its JSON lines, worded by its
 * own prompt files, and scored as there. */
#ifndef WKVQ_LONGBENCH_H
#define WKVQ_LONGBENCH_H

#include "calib/model/arch.h"
#include "data/json.h"
#include "data/tokenizer/tokenizer.h"
#include "tools/eval/tasks/text_score.h"

struct longbench_task {
    const char *name;   /* "qasper" */
    const char *metric; /* "F1" or "similarity" */
    enum err (*score)(double *out, struct span answer, struct span want);
    bool first_line; /* only the answer's first line counts */
};

struct longbench_item {
    struct token_ids prompt;
    bool cut;        /* its middle was removed */
    int64_t row;     /* index in the file, from 0 */
    json_t *answers; /* array of strings, owned */
    /* as in the file, for the benchmark's eval.py; owned, null if missing */
    json_t *classes, *length;
};

struct longbench_set {
    const struct longbench_task *task;
    int64_t max_gen; /* maximum number of tokens of an answer */
    struct longbench_item *item;
    int64_t n, rows; /* questions loaded, and in the file */
};

/* Returns the data set called name [n bytes]; NULL: not supported. */
const struct longbench_task *longbench_find(const char *name, size_t n);

/* The benchmark's dataset2prompt.json and dataset2maxlen.json. */
struct longbench_config {
    const char *prompts_path, *max_gen_path;
    json_t *prompts, *max_gen;
};

/* Errors: ERR_USAGE for a missing path, ERR_NOT_FOUND, ERR_FORMAT. */
enum err longbench_config_open(struct longbench_config *c, const char *prompts,
                               const char *max_gen);
void longbench_config_close(struct longbench_config *c);

/* Loads the questions of one file, all of one data set, as tokens; limit 0: all, else that
 * many, evenly from the file. Prompts of more than ctx tokens lose their middle. ERR_FORMAT
 * and ERR_SUPPORT name file and line. */
enum err longbench_load(struct longbench_set *out, const char *path,
                        const struct longbench_config *c, const struct tokenizer *t,
                        enum bos_rule bos, int64_t ctx, int64_t limit);
void longbench_free(struct longbench_set *s); /* accepts a zeroed one */

/* Finds the data set of a row: its field dataset (or set), else the file's name without
 * ".jsonl", ".json.gz" and the like.
 * ERR_SUPPORT for another one. */
enum err longbench_row_task(const struct longbench_task **out, const json_t *row,
                            const char *name, const char *where);
/* Returns the row's answers, an array of strings; borrowed. ERR_FORMAT. */
enum err longbench_answers(json_t **out, const json_t *row, const char *where);

/* Returns the row's answer, its field pred, which may hold NULs; borrowed. ERR_FORMAT. */
enum err longbench_pred(struct span *out, const json_t *row, const char *where);

/* Makes format with each {name} replaced by row's string, and "{{" and "}}" by one brace.
 * Release *out with mem_free. */
enum err longbench_prompt(char **out, const char *format, const json_t *row,
                          const char *where);
/* Returns the best score of answer against any of answers, in [0,1]. */
enum err longbench_score(double *out, const struct longbench_task *task, struct span answer,
                         const json_t *answers);

/* Returns whether id ends an answer: by the model's configuration or by its tokenizer's files. */
bool longbench_ends(const struct arch *a, const struct tokenizer *t, int32_t id);
/* Returns the CRC-32 of the ids that end an answer by the tokenizer's files alone, such as those
 * of generation_config.json, as 32-bit little-endian numbers; 0: none. The configuration's are
 * covered by the checksum of the model. */
uint32_t longbench_ends_crc(const struct arch *a, const struct tokenizer *t);

#endif
