/* SPDX-License-Identifier: MIT
 *
 * Multiple choice without examples. Each choice is scored by its log-likelihood after its
 * context, in simulation or with the packed runtime. */
#ifndef WKVQ_ZEROSHOT_H
#define WKVQ_ZEROSHOT_H

#include "calib/model/model.h"
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
    bool cut;  /* tokens were dropped at the front */
    double ll; /* sum of log p over the scored ids, in nats */
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

/* Loads and tokenizes one file. Release z with zeroshot_free() after an error as well.
 * Requires the job's tokenizer. */
enum err zeroshot_load(struct zeroshot_set *z, const struct eval *e, const char *path,
                       struct label_files *labels);
void zeroshot_free(struct zeroshot_set *z);
/* Warns if questions of a loaded file were longer than ctx. option: what a user gave as ctx. */
void zeroshot_warn_cut(const struct zeroshot_set *z, const char *option, int64_t ctx);
/* Warns if questions are too short for anything of the cache to be quantized. */
void zeroshot_warn_cache(const struct zeroshot_set *z, const struct eval *e);
/* Returns the CRC-32 of all questions: their tokens and right choices. */
uint32_t zeroshot_crc(const struct zeroshot_set *z);
/* Adds the questions to the output, and takes the likelihoods that it holds already. */
enum err zeroshot_expect(struct zeroshot_set *z, struct task_lines *lines);
/* Writes the line of a question, whose choices are scored now. */
enum err zeroshot_put(struct zeroshot_set *z, struct task_lines *lines, int64_t question);
/* Returns how many tokens are still to be computed, as progress counts them. */
double zeroshot_tokens(const struct zeroshot_set *z, const struct eval *e);

/* Scores what is not done. e->chunk 0, for the packed runtime: the context as one chunk,
 * then token by token. ERR_NUMERIC for a likelihood that is not finite. */
enum err zeroshot_score(struct zeroshot_set *z, struct zeroshot_run *run);

/* --- packed windows ----------------------------------------------------------------- */

/* Rows of a window, unless a text is longer. Products of that many rows run at full speed. */
#define ZEROSHOT_WINDOW_ROWS 1024
/* Rows of a batch at which it ends. A batch is written to the output when it is complete, so
 * this bounds what a kill can lose; reading and rounding the weights once more costs about as
 * much as 1000 rows. */
#define ZEROSHOT_BATCH_ROWS 32768

/* Requests as sequences. Inputs of request i are its ids [0, n - 1); the last id is only
 * predicted. */
struct zeroshot_windows {
    struct packed_windows w;   /* its arrays are those below */
    struct sequence *sequence; /* [n requests] */
    int64_t *start;            /* [w.n + 1] */
    int32_t *ids, *target;     /* [w.n][w.rows] */
    int64_t *window;           /* [n requests] the window of each */
};

/* Returns how many tokens at the start of both are equal, at most `most`. */
int64_t zeroshot_shared(const struct request *a, const struct request *b, int64_t most);
/* Returns the rows that the n choices r of a question take in one window. */
int64_t zeroshot_question_rows(const struct request *r, int64_t n);
/* Packs the requests r [n], whole questions one after the other, in this order. Release out with
 * zeroshot_windows_free() after an error as well. ERR_MEMORY. */
enum err zeroshot_pack(struct zeroshot_windows *out, const struct request *r, int64_t n);
void zeroshot_windows_free(struct zeroshot_windows *w);
/* Sets ll of the requests that were packed, from nll [w.n][w.rows] of the windows. */
void zeroshot_unpack(const struct zeroshot_windows *w, struct request *r, int64_t n,
                     const float *nll);

#endif
