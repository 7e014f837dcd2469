/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/task_rows.h"

#include "data/sniff.h"

#include <string.h>

static bool is_csv(const struct jsonl *f)
{
    const char *name = f->content.name, *end = strrchr(name, '.');
    return end && (!strcmp(end, ".csv") || !strcmp(end, ".tsv"));
}

enum err task_rows_open(struct task_rows *r, const char *path, int64_t limit)
{
    *r = (struct task_rows){.row = -1};
    TRY(jsonl_open(&r->f, path));
    FAIL_IF(is_csv(&r->f), ERR_FORMAT, "%s: " CSV_ADVICE, r->f.path);
    r->rows = jsonl_count(&r->f);
    FAIL_IF(!r->rows, ERR_FORMAT, "%s: no question in it", r->f.path);
    r->taken = limit && limit < r->rows ? limit : r->rows;
    return OK;
}

void task_rows_close(struct task_rows *r)
{
    jsonl_close(&r->f);
}

enum err task_rows_next(json_t **row, struct task_rows *r)
{
    *row = NULL;
    if (r->at == r->taken)
        return OK;
    const int64_t next = r->at * r->rows / r->taken;
    for (; r->row + 1 < next; r->row++)
        (void)jsonl_skip(&r->f);
    r->row = next;
    r->at++;
    return jsonl_next(row, &r->f);
}
