/* SPDX-License-Identifier: MIT */
#include "tools/eval/tasks/zeroshot.h"

#include "kernels/base/bytes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"
#include "tools/eval/tasks/choice_text.h"

#include <inttypes.h>
#include <string.h>

/* --- requests ----------------------------------------------------------------------- */

/* Drops tokens at the front, so that limit of them are input. */
static void cut_front(struct request *r, int64_t limit)
{
    const int64_t drop = r->n - (limit + 1);
    if (drop <= 0)
        return;
    memmove(r->ids, r->ids + drop, (size_t)(r->n - drop) * sizeof(*r->ids));
    r->n -= drop;
    r->ctx -= drop;
    r->cut = true;
}

enum err request_encode(struct request *out, const struct tokenizer *t,
                        const struct choice *c, enum bos_rule bos, int64_t limit)
{
    enum err err = OK;
    char *text = NULL;
    struct token_ids whole = {0}, context = {0};
    TRY(choice_join(&text, (const char *const[]){c->context, c->continuation, NULL}));
    TRY_OUT(tokenizer_encode(&whole, t, text, strlen(text), bos));
    TRY_OUT(tokenizer_encode(&context, t, text, choice_bare_bytes(c->context), bos));
    if (context.n == 0 || context.n >= whole.n)
        FAIL_OUT(ERR_FORMAT, "\"%.60s\" + \"%.60s\": %zu tokens of context, %zu in total",
                 c->context, c->continuation, context.n, whole.n);
    struct request r = {.ids = whole.id, .n = (int64_t)whole.n, .ctx = (int64_t)context.n};
    cut_front(&r, limit);
    if (r.ctx < 1)
        FAIL_OUT(ERR_USAGE, "\"%.60s\": its tokens leave no room for a context in %" PRId64,
                 c->continuation, limit);
    *out = r;
    whole = (struct token_ids){0};
out:
    mem_free(text);
    token_ids_free(&whole);
    token_ids_free(&context);
    return err;
}

static enum err check_ids(const struct request *r, const struct eval *e)
{
    for (int64_t i = 0; i < r->n; i++)
        FAIL_IF(r->ids[i] < 0 || r->ids[i] >= e->job->arch.vocab, ERR_MISMATCH,
                "%s: a question has token %" PRId32 ", the model's vocabulary has %" PRId64
                ": the tokenizer is another model's",
                e->job->model_dir, r->ids[i], e->job->arch.vocab);
    return OK;
}

/* Makes the requests of question i's choices. */
static enum err encode_question(struct request *r, const struct question_set *s, int64_t i,
                                const struct eval *e)
{
    const enum bos_rule bos = (enum bos_rule)e->job->recipe.bos;
    const struct question *q = &s->item[i];
    for (int c = 0; c < q->n; c++) {
        TRY(request_encode(&r[c], e->job->tokenizer, &q->choice[c], bos, e->ctx - 1));
        TRY(check_ids(&r[c], e));
        r[c].question = i;
        r[c].choice = c;
    }
    return OK;
}

static enum err encode_all(struct zeroshot_set *z, const struct eval *e)
{
    for (int64_t i = 0; i < z->set.n; i++) {
        const enum err err = encode_question(z->request + z->first[i], &z->set, i, e);
        if (err)
            return err_add(err, "question %" PRId64 ": ", z->set.item[i].row + 1);
    }
    return OK;
}

static enum err encode_set(struct zeroshot_set *z, const struct eval *e)
{
    const size_t questions = (size_t)z->set.n;
    TRY(mem_calloc(&z->first, questions + 1, sizeof(*z->first)));
    TRY(mem_calloc(&z->done, questions, sizeof(*z->done)));
    for (int64_t i = 0; i < z->set.n; i++)
        z->first[i + 1] = z->first[i] + z->set.item[i].n;
    TRY(mem_calloc(&z->request, (size_t)z->first[z->set.n], sizeof(*z->request)));
    z->n = z->first[z->set.n];
    return encode_all(z, e);
}

enum err zeroshot_load(struct zeroshot_set *z, const struct eval *e, const char *path,
                       struct label_files *labels)
{
    *z = (struct zeroshot_set){.path = path};
    TRY(question_set_load(&z->set, path, labels, e->settings->limit));
    const enum err err = encode_set(z, e);
    return err ? err_add(err, "%s: ", path) : OK;
}

void zeroshot_free(struct zeroshot_set *z)
{
    for (int64_t i = 0; i < z->n; i++)
        mem_free(z->request[i].ids);
    mem_free(z->request);
    mem_free(z->first);
    mem_free(z->done);
    question_set_free(&z->set);
    *z = (struct zeroshot_set){0};
}

/* --- lines of the output ------------------------------------------------------------ */

static uint32_t add_number(uint32_t crc, int64_t number)
{
    uint8_t bytes[4];
    for (int i = 0; i < 4; i++)
        bytes[i] = (uint8_t)(number >> 8 * i);
    return bytes_crc32(crc, bytes, sizeof(bytes));
}

/* Returns the CRC-32 of a question as the model gets it, in 32-bit little-endian numbers:
 * of each choice the numbers of tokens and of the context's tokens, and the ids; then the
 * right choice. */
static uint32_t question_crc(const struct zeroshot_set *z, int64_t i)
{
    uint32_t crc = 0;
    for (int64_t k = z->first[i]; k < z->first[i + 1]; k++) {
        const struct request *r = &z->request[k];
        crc = add_number(add_number(crc, r->n), r->ctx);
        for (int64_t t = 0; t < r->n; t++)
            crc = add_number(crc, r->ids[t]);
    }
    return add_number(crc, z->set.item[i].gold);
}

uint32_t zeroshot_crc(const struct zeroshot_set *z)
{
    uint32_t crc = 0;
    for (int64_t i = 0; i < z->set.n; i++)
        crc = add_number(crc, question_crc(z, i));
    return crc;
}

/* Takes the likelihoods of question i from its line. */
static enum err take_line(struct zeroshot_set *z, int64_t i, const json_t *line)
{
    const json_t *ll = json_object_get(line, "ll");
    struct request *r = z->request + z->first[i];
    FAIL_IF((int64_t)json_array_size(ll) != z->set.item[i].n, ERR_FORMAT,
            "-o: question %" PRId64 " of %s: ll is not a number for each choice",
            z->set.item[i].row, z->set.name);
    for (int c = 0; c < z->set.item[i].n; c++) {
        const json_t *x = json_array_get(ll, (size_t)c);
        FAIL_IF(!json_is_number(x), ERR_FORMAT,
                "-o: question %" PRId64 " of %s: ll is not a number for each choice",
                z->set.item[i].row, z->set.name);
        r[c].ll = json_number_value(x);
    }
    z->done[i] = true;
    return OK;
}

enum err zeroshot_expect(struct zeroshot_set *z, struct task_lines *lines)
{
    z->line = task_lines_count(lines);
    for (int64_t i = 0; i < z->set.n; i++) {
        const json_t *line;
        TRY(task_lines_expect(&line, lines, z->set.name, z->set.item[i].row,
                              question_crc(z, i)));
        if (line)
            TRY(take_line(z, i, line));
    }
    return OK;
}

enum err zeroshot_put(struct zeroshot_set *z, struct task_lines *lines, int64_t question)
{
    const struct question *q = &z->set.item[question];
    const struct request *r = z->request + z->first[question];
    json_t *ll = json_array(), *chars = json_array(), *tokens = json_array();
    for (int c = 0; c < q->n; c++) {
        json_array_append_new(ll, json_real(r[c].ll));
        json_array_append_new(chars, json_integer(q->choice[c].chars));
        json_array_append_new(tokens, json_integer(r[c].n - r[c].ctx));
    }
    z->done[question] = true;
    return task_lines_put(lines, z->line + question,
                          json_pack("{s:s, s:I, s:i, s:o, s:o, s:o}", "set", z->set.name,
                                    "question", (json_int_t)q->row, "gold", q->gold, "ll",
                                    ll, "chars", chars, "tokens", tokens));
}

/* --- results ------------------------------------------------------------------------ */

bool zeroshot_is_right(const struct question *q, const struct request *r, bool per_char)
{
    int best = 0;
    for (int c = 1; c < q->n; c++) {
        const double one = per_char ? (double)q->choice[c].chars : 1;
        const double other = per_char ? (double)q->choice[best].chars : 1;
        best = r[c].ll / one > r[best].ll / other ? c : best;
    }
    return best == q->gold;
}

static bool is_cut(const struct question *q, const struct request *r)
{
    bool cut = false;
    for (int c = 0; c < q->n; c++)
        cut = cut || r[c].cut;
    return cut;
}

static int64_t count_cut(const struct question_set *s, const struct request *r)
{
    int64_t cut = 0;
    for (int64_t i = 0; i < s->n; r += s->item[i].n, i++)
        cut += is_cut(&s->item[i], r);
    return cut;
}

void zeroshot_warn_cut(const struct zeroshot_set *z, const char *option, int64_t ctx)
{
    const int64_t cut = count_cut(&z->set, z->request);
    if (cut)
        log_warn("%s: of %" PRId64 " question%s, %" PRId64
                 " lost the beginning to fit %s %" PRId64 "; give a larger %s",
                 z->path, z->set.n, plural(z->set.n), cut, option, ctx, option);
}

/* Returns whether no choice of a question has so many inputs. */
static bool is_short(const struct question *q, const struct request *r, int64_t inputs)
{
    for (int c = 0; c < q->n; c++)
        if (r[c].n - 1 >= inputs)
            return false;
    return true;
}

void zeroshot_warn_cache(const struct zeroshot_set *z, const struct eval *e)
{
    /* the packed runtime reads what it scores token by token */
    const int64_t from = eval_cache_from(e, e->decode ? 1 : e->chunk);
    int64_t few = 0;
    for (int64_t i = 0; i < z->set.n; i++)
        few += is_short(&z->set.item[i], z->request + z->first[i], from);
    task_warn_cache(e, z->path, few, z->set.n, from);
}

void zeroshot_reduce(struct zeroshot_result *out, const struct question_set *s,
                     const struct request *r)
{
    const int64_t cut = count_cut(s, r);
    int64_t right = 0, right_norm = 0;
    for (int64_t i = 0; i < s->n; r += s->item[i].n, i++) {
        right += zeroshot_is_right(&s->item[i], r, false);
        right_norm += zeroshot_is_right(&s->item[i], r, true);
    }
    const double p = (double)right / (double)s->n, norm = (double)right_norm / (double)s->n;
    *out = (struct zeroshot_result){.n = s->n,
                                    .cut = cut,
                                    .acc = p,
                                    .acc_stderr = share_stderr(p, s->n),
                                    .norm = norm,
                                    .norm_stderr = share_stderr(norm, s->n)};
}
