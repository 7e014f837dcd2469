/* SPDX-License-Identifier: MIT
 *
 * Multiple choice without examples: each choice's log-likelihood after its context, by the
 * simulation or by the packed runtime. */
#ifndef WKVQ_ZEROSHOT_H
#define WKVQ_ZEROSHOT_H

#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file.h"
#include "tools/eval/eval.h"
#include "tools/eval/tasks/choice.h"

/* A choice in tokens. Of n ids, those from ctx on are scored; the last is never input. */
struct request {
    int32_t *ids;
    int64_t n, ctx;
    int64_t question;
    int choice;
    int64_t longest; /* n of the question's longest choice */
    double ll;       /* sum of log p over the scored ones, nats */
};

struct zeroshot_result {
    int64_t n;
    double acc, acc_stderr, norm, norm_stderr; /* standard errors NAN for one question */
    double seconds;
};

/* Context and continuation as tokens of the whole text, split where the context's own
 * tokens end; white space at the context's end counts to the continuation. At most
 * limit + 1 tokens, cut off in front. Errors: ERR_FORMAT without a context or a
 * continuation. ids released with mem_free. */
enum err request_encode(struct request *out, const struct tokenizer *t,
                        const struct choice *c, enum bos_rule bos, int64_t limit);
/* Questions right, by plain and by length-normalized log-likelihood; the first choice wins
 * among equals. requests are in the order of the set's choices. */
void zeroshot_reduce(struct zeroshot_result *out, const struct question_set *s,
                     const struct request *r);

/* Load, score and reduce one file. lines: NULL, or where a JSON line for each question
 * goes. e->chunk 0: every token by itself in simulation; in the packed runtime the context
 * as one chunk, what follows token by token. */
enum err zeroshot_run(struct zeroshot_result *out, struct question_set *set, struct eval *e,
                      const char *path, struct file_writer *lines);

#endif
