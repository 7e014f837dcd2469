/* SPDX-License-Identifier: MIT
 *
 * The output file of a task: one JSON object per question. A line is appended as soon as it
 * is known, so that a run that is killed keeps what it has and the same command continues.
 * At the end the lines are put into the order of the questions.
 *
 * Every line ends with two fields by which a later run recognizes it:
 *   crc32   8 hexadecimal digits, of what was asked
 *   run     a text that names the model and the settings
 *
 * A pipe or a device receives all lines at the end. One thread. */
#ifndef WKVQ_TASK_LINES_H
#define WKVQ_TASK_LINES_H

#include "data/json.h"

struct task_lines; /* opaque */

/* Opens the output at path, which may hold lines of the same run, and locks it. path NULL:
 * lines are only counted. digits: of the lines' numbers, 1..17; 17 hold a double. Errors:
 * ERR_MISMATCH if path holds lines of another run, or anything else; ERR_USAGE, ERR_IO. */
enum err task_lines_open(struct task_lines **out, const char *path, const char *run,
                         int digits);
/* A file that keeps the answers of a measure in work, for a sweep. The caller removes it once the
 * measure's result is on the disk. */
struct task_kept {
    const char *path, *run; /* borrowed; as task_lines_open() has them */
};
/* Opens such a file. One that holds lines of another run, or anything else, is removed first. kept
 * NULL: lines are only counted. Errors as task_lines_open(), but for ERR_MISMATCH. */
enum err task_lines_open_kept(struct task_lines **out, const struct task_kept *kept,
                              int digits);
/* Releases the file with the lines that it has. Accepts NULL. */
void task_lines_close(struct task_lines **l);

/* Adds a question, in the order of the result. Returns the line that path held for it, or
 * NULL; borrowed until the next call for l. Numbers count from 0. */
enum err task_lines_expect(const json_t **line, struct task_lines *l, const char *set,
                           int64_t question, uint32_t crc);
/* Call it after all questions. ERR_MISMATCH if path holds a line of another question. */
enum err task_lines_check(const struct task_lines *l);
/* Returns the number of questions, and of those that path had lines for. */
int64_t task_lines_count(const struct task_lines *l);
int64_t task_lines_kept(const struct task_lines *l);

/* Appends the line of question `number`, to which it adds crc32 and run. Takes o, which may
 * be NULL after a failed allocation. ERR_MEMORY, ERR_IO. */
enum err task_lines_put(struct task_lines *l, int64_t number, json_t *o);
/* Writes the file again with all lines in order, under another name, and renames it. */
enum err task_lines_finish(struct task_lines *l);

#endif
