/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/files/tok_model.h"

#include "kernels/base/mem.h"

#include <string.h>

/* --- opening ------------------------------------------------------------------------ */

static enum err add_token(struct model_tokenizer *t, const struct added_token *from)
{
    struct added_token a = *from;
    const int32_t piece = spm_id(t->spm, a.content);
    if (a.id < 0)
        a.id = piece;
    if (a.id < 0)
        return OK;
    FAIL_IF(pair_map_get(&t->added_of, a.id, 0) >= 0, ERR_FORMAT,
            "added token \"%.80s\" has id %d, which another token has too", a.content,
            a.id);
    TRY(mem_strdup(&a.content, from->content));
    const size_t k = t->n_added;
    t->added[t->n_added++] = a;
    if (a.id >= t->n_ids)
        t->n_ids = (int64_t)a.id + 1;
    TRY(pair_map_put(&t->added_of, a.id, 0, (int32_t)k));
    return added_matcher_add(&t->matcher, a.content, strlen(a.content), (int32_t)k);
}

static enum err add_tokens(struct model_tokenizer *t, const struct tok_beside *beside)
{
    TRY(mem_calloc(&t->added, beside->n_added, sizeof(*t->added)));
    for (size_t i = 0; i < beside->n_added; i++)
        TRY(add_token(t, &beside->added[i]));
    return OK;
}

/* Opens the same model without a space in front. Concatenated protobuf messages of one kind
 * merge, so the appended bytes only set normalizer_spec.add_dummy_prefix to false. */
static enum err open_bare(struct model_tokenizer *t, const char *data, size_t n,
                          const char *path)
{
    static const char no_prefix[] = "\x1A\x02\x18\x00";
    struct text whole = {0};
    enum err err = text_add(&whole, data, n);
    if (!err)
        err = text_add(&whole, no_prefix, sizeof(no_prefix) - 1);
    if (!err)
        err = spm_open(&t->bare, whole.p, whole.n, path);
    text_free(&whole);
    return err;
}

enum err model_tokenizer_open(struct model_tokenizer **out, const char *data, size_t n,
                              const char *path, const struct tok_beside *beside)
{
    enum err err = OK;
    struct model_tokenizer *t = NULL;
    TRY(mem_calloc(&t, 1, sizeof(*t)));
    TRY_OUT(spm_check(&t->info, data, n, path));
    TRY_OUT(spm_open(&t->spm, data, n, path));
    t->n_ids = t->info.n_pieces;
    err = add_tokens(t, beside);
    if (err) {
        err_add(err, "%s: ", path);
        goto out;
    }
    /* By default a space is added to every part, as in older models. */
    if (t->n_added && beside->legacy == SAID_NO)
        TRY_OUT(open_bare(t, data, n, path));
    *out = t;
    t = NULL;
out:
    model_tokenizer_close(&t);
    return err;
}

void model_tokenizer_close(struct model_tokenizer **pt)
{
    struct model_tokenizer *t = *pt;
    if (!t)
        return;
    spm_close(&t->spm);
    spm_close(&t->bare);
    for (size_t i = 0; i < t->n_added; i++)
        mem_free(t->added[i].content);
    mem_free(t->added);
    added_matcher_free(&t->matcher);
    pair_map_free(&t->added_of);
    mem_free(t);
    *pt = NULL;
}

int32_t model_tokenizer_id(const struct model_tokenizer *t, const char *content)
{
    for (size_t i = 0; i < t->n_added; i++)
        if (!strcmp(t->added[i].content, content))
            return t->added[i].id;
    return spm_id(t->spm, content);
}

/* --- encoding and decoding ---------------------------------------------------------- */

struct encoder {
    struct id_list *out;
    const struct model_tokenizer *t;
};

static enum err encode_part(void *ctx, const char *s, struct added_part p)
{
    const struct encoder *e = ctx;
    const struct model_tokenizer *t = e->t;
    if (p.token >= 0)
        return id_list_add(e->out, t->added[p.token].id);
    return spm_encode(e->out, p.start && t->bare ? t->bare : t->spm, s + p.start,
                      p.end - p.start);
}

enum err model_tokenizer_encode(struct id_list *out, const struct model_tokenizer *t,
                                const char *s, size_t n)
{
    struct encoder e = {out, t};
    if (!t->n_added)
        return spm_encode(out, t->spm, s, n);
    return added_matcher_run(&t->matcher, t->added, s, n, encode_part, &e);
}

enum err model_tokenizer_decode(struct text *out, const struct model_tokenizer *t,
                                const int32_t *ids, size_t n, bool keep_special)
{
    for (size_t at = 0, end; at < n; at = end) {
        int32_t k = -1;
        end = at;
        while (end < n &&
               (k = ids[end] < 0 ? -1 : pair_map_get(&t->added_of, ids[end], 0)) < 0)
            end++;
        if (end > at)
            TRY(spm_decode(out, at && t->bare ? t->bare : t->spm, ids + at, end - at,
                           keep_special));
        if (end == n)
            break;
        if (keep_special || !t->added[k].special)
            TRY(text_add(out, t->added[k].content, strlen(t->added[k].content)));
        end++;
    }
    return OK;
}
