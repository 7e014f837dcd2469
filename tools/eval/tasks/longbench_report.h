/* SPDX-License-Identifier: MIT
 *
 * The result of LongBench: a line for each set, and their average. It is printed as text
 * while it grows, or as one JSON object at the end. */
#ifndef WKVQ_LONGBENCH_REPORT_H
#define WKVQ_LONGBENCH_REPORT_H

#include "data/json.h"
#include "tools/eval/eval.h"
#include "tools/eval/statistics.h"
#include "tools/eval/tasks/longbench.h"

struct longbench_figures {
    const struct longbench_task *task;
    const char *file;
    int64_t n, rows;       /* questions, and those in the file */
    int64_t cut;           /* prompts without their middle */
    int64_t max_gen;       /* 0: the answers were given */
    struct estimate score; /* of n questions, in [0,1] */
    double seconds;
};

struct longbench_report {
    json_t *sets; /* owned */
    int n;        /* sets to come */
    bool json;
    struct estimate mean; /* of all sets */
};

/* Opens the report on n sets. */
enum err longbench_report_open(struct longbench_report *r, int n, bool json);
void longbench_report_close(struct longbench_report *r); /* accepts a zeroed one */
enum err longbench_report_add(struct longbench_report *r,
                              const struct longbench_figures *f);
/* Prints what stands at the end. e NULL: the answers were given, so there is no model. */
enum err longbench_report_print(const struct longbench_report *r, const struct eval *e,
                                bool bos);

#endif
