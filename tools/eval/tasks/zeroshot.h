/* SPDX-License-Identifier: MIT
 *
 * Multiple choice without examples. Each choice is scored by its log-likelihood after its
 * context, in simulation or with the packed runtime. */
#ifndef WKVQ_ZEROSHOT_H
#define WKVQ_ZEROSHOT_H

#include "data/tokenizer/tokenizer.h"
#include "tools/eval/eval.h"
#include "tools/eval/tasks/choice.h"
#include "tools/eval/tasks/task_lines.h"
#include "tools/eval/tasks/task_run.h"

/* A choice in tokens. Ids [ctx, n) are scored; the last one is never input. */
struct request {
    int32_t *ids;
    int64_t n, ctx;
    int64_t question;
    int choice;
    int64_t longest; /* n of the question's longest choice */
    bool cut;        /* tokens were dropped at the front */
    double ll;       /* sum of log p over the scored ids, in nats */
};

/* The questions of one file, as tokens. */
struct zeroshot_set {
    const char *path; /* borrowed */
    struct question_set set;
    struct request *request; /* of all choices, in the order of the questions */
    int64_t n;               /* of requests */
    int64_t *first;          /* [set.n + 1] the first request of each question */
    bool *done;              /* [set.n] all choices of the question are scored */
    int64_t line;            /* number of question 0 in the output */
};

struct zeroshot_result {
    int64_t n, cut; /* questions; those of which a choice lost its beginning */
    double acc, acc_stderr, norm, norm_stderr; /* standard errors; NAN for one question */
};

/* What scoring needs besides the questions. */
struct zeroshot_run {
    struct eval *e;
    struct task_lines *lines; /* receives a line for each question */
    struct task_progress progress;
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

/* Returns whether the right choice of a question has the largest log-likelihood, or the
 * largest per character. The first choice wins if equal. r: requests of its choices. */
bool zeroshot_is_right(const struct question *q, const struct request *r, bool per_char);

/* Bounds of a batch in simulation, in tokens with padding. A batch is written to the output
 * when it is complete, so the first one bounds what a kill can lose. Reading and rounding
 * the weights once more costs about as much as 1000 tokens. */
#define ZEROSHOT_BATCH_TOKENS 32768
#define ZEROSHOT_BATCH_PADDING 1024
/* Returns where the batch ends that starts at `first` of an order by falling length. A batch
 * has whole questions, and windows as long as its first. It ends before its padding or its
 * tokens exceed their bound, but has at least one question. It depends on lengths alone, so
 * that a resumed run computes the same batches. */
int64_t zeroshot_batch_end(struct request *const *order, int64_t n, int64_t first);

/* Loads and tokenizes one file. Release z with zeroshot_free() after an error as well.
 * Requires the job's tokenizer. */
enum err zeroshot_load(struct zeroshot_set *z, const struct eval *e, const char *path,
                       struct label_files *labels);
void zeroshot_free(struct zeroshot_set *z);
/* Returns the CRC-32 of all questions: their tokens and right choices. */
uint32_t zeroshot_crc(const struct zeroshot_set *z);
/* Adds the questions to the output, and takes the likelihoods that it holds already. */
enum err zeroshot_expect(struct zeroshot_set *z, struct task_lines *lines);
/* Writes the line of a question, whose choices are scored now. */
enum err zeroshot_put(struct zeroshot_set *z, struct task_lines *lines, int64_t question);
/* *out = how many tokens are still to be computed, as progress counts them. ERR_MEMORY. */
enum err zeroshot_tokens(double *out, struct zeroshot_set *z, const struct eval *e);

/* Scores what is not done. e->chunk 0, for the packed runtime: the context as one chunk,
 * then token by token. ERR_NUMERIC for a likelihood that is not finite. */
enum err zeroshot_score(struct zeroshot_set *z, struct zeroshot_run *run);

#endif
