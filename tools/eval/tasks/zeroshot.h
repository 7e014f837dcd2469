/* SPDX-License-Identifier: MIT
 *
 * Multiple choice without examples. Each choice is scored by its log-likelihood after its
 * context, in simulation or with the packed runtime. */
#ifndef WKVQ_ZEROSHOT_H
#define WKVQ_ZEROSHOT_H

#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file/file.h"
#include "tools/eval/eval.h"
#include "tools/eval/tasks/choice.h"

/* A choice in tokens. Ids [ctx, n) are scored; the last one is never input. */
struct request {
    int32_t *ids;
    int64_t n, ctx;
    int64_t question;
    int choice;
    int64_t longest; /* n of the question's longest choice */
    double ll;       /* sum of log p over the scored ids, in nats */
};

struct zeroshot_result {
    int64_t n;
    double acc, acc_stderr, norm, norm_stderr; /* standard errors; NAN for one question */
    double seconds;
};

/* Makes context and continuation as tokens of the joined text, split where the context's
 * own tokens end. White space at the context's end belongs to the continuation. At most
 * limit + 1 tokens are kept, the last ones. ERR_FORMAT without a context or a continuation.
 * ids are released with mem_free. */
enum err request_encode(struct request *out, const struct tokenizer *t,
                        const struct choice *c, enum bos_rule bos, int64_t limit);
/* Counts the right answers by plain and by length-normalized log-likelihood; the first
 * choice wins if equal. requests are in the order of the set's choices. */
void zeroshot_reduce(struct zeroshot_result *out, const struct question_set *s,
                     const struct request *r);

/* Loads, scores and reduces one file. lines: NULL, or the file for one JSON line per
 * question. e->chunk 0: token by token in simulation; with the packed runtime the context
 * as one chunk, then token by token. */
enum err zeroshot_run(struct zeroshot_result *out, struct question_set *set, struct eval *e,
                      const char *path, struct file_writer *lines);

#endif
