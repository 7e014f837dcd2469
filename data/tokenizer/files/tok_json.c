/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/files/tok_json.h"

#include "data/json_soften.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)128 << 20)
#define MAX_ADDED 65536

/* Returns "PATH: part", written to out. */
static const char *where_of(char out[512], const char *path, const char *part)
{
    snprintf(out, 512, "%s: %s", path, part);
    return out;
}

enum err tok_parse_vocab(struct bpe *b, json_t *vocab, bool lost_keys, const char *where)
{
    json_t *v;
    const char *key;
    FAIL_IF(!json_object_size(vocab), ERR_FORMAT, "%s: vocab is missing or empty", where);
    json_object_foreach(vocab, key, v)
    {
        FAIL_IF(!json_is_integer(v), ERR_FORMAT, "%s: id of token \"%.80s\" is %s", where,
                key, json_kind(v));
        FAIL_IF(lost_keys && strstr(key, JSON_LOST_CHAR), ERR_SUPPORT,
                "%s: token %" JSON_INTEGER_FORMAT " holds a NUL character or half a "
                "surrogate pair, which is not supported",
                where, json_integer_value(v));
        const enum err err = bpe_add_token(b, key, strlen(key), json_integer_value(v));
        if (err)
            return err_add(err, "%s: ", where);
    }
    const enum err err = bpe_index(b);
    return err ? err_add(err, "%s: ", where) : OK;
}

static enum err parse_vocab(struct bpe *b, json_t *model, bool lost_keys, const char *where)
{
    json_t *vocab = NULL;
    TRY(json_get_object(&vocab, model, "vocab", where));
    return tok_parse_vocab(b, vocab, lost_keys, where);
}

/* Reads a merge: "left right" (older files) or ["left", "right"]. */
static enum err parse_merge(struct bpe *b, const json_t *v)
{
    if (json_is_string(v)) {
        const char *s = json_string_value(v), *gap = strchr(s, ' ');
        FAIL_IF(!gap, ERR_FORMAT, "merge %zu: \"%.80s\" has no space", b->n_merges, s);
        return bpe_add_merge(b, s, (size_t)(gap - s), gap + 1, strlen(gap + 1));
    }
    const json_t *left = json_array_get(v, 0), *right = json_array_get(v, 1);
    FAIL_IF(json_array_size(v) != 2 || !json_is_string(left) || !json_is_string(right),
            ERR_FORMAT, "merge %zu is %s, want a string or two strings", b->n_merges,
            json_kind(v));
    return bpe_add_merge(b, json_string_value(left), json_string_length(left),
                         json_string_value(right), json_string_length(right));
}

static enum err parse_merges(struct bpe *b, const json_t *model, const char *where)
{
    json_t *merges = NULL;
    TRY(json_get_array(&merges, model, "merges", where));
    FAIL_IF(!merges, ERR_FORMAT, "%s: merges is missing", where);
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const enum err err = parse_merge(b, json_array_get(merges, i));
        if (err)
            return err_add(err, "%s: ", where);
    }
    return OK;
}

static enum err refuse_affix(const json_t *model, const char *key, const char *where)
{
    const char *value = NULL;
    TRY(json_get_string(&value, model, key, where));
    FAIL_IF(value && *value, ERR_SUPPORT,
            "%s: %s \"%.40s\" is not supported, only an empty one", where, key, value);
    return OK;
}

static enum err parse_model_flags(struct bpe *b, const json_t *model, const char *where)
{
    double dropout = 0;
    const char *unk = NULL;
    TRY(json_get_real(&dropout, model, "dropout", 0, 1, where));
    FAIL_IF(dropout != 0, ERR_SUPPORT,
            "%s: dropout %g is not supported, because ids would be random", where, dropout);
    TRY(refuse_affix(model, "continuing_subword_prefix", where));
    TRY(refuse_affix(model, "end_of_word_suffix", where));
    TRY(json_get_bool(&b->fuse_unk, model, "fuse_unk", where));
    TRY(json_get_bool(&b->byte_fallback, model, "byte_fallback", where));
    TRY(json_get_bool(&b->ignore_merges, model, "ignore_merges", where));
    TRY(json_get_string(&unk, model, "unk_token", where));
    return unk ? mem_strdup(&b->unk_token, unk) : OK;
}

/* Reads a vocabulary [[token, score], ...], whose order gives the ids. */
static enum err parse_scored(struct bpe *b, double *score, const json_t *vocab,
                             const char *where)
{
    enum err err = OK;
    for (size_t i = 0; i < json_array_size(vocab) && !err; i++) {
        const json_t *v = json_array_get(vocab, i), *token = json_array_get(v, 0),
                     *value = json_array_get(v, 1);
        FAIL_IF(json_array_size(v) != 2 || !json_is_string(token) || !json_is_number(value),
                ERR_FORMAT, "%s: token %zu is not a string with a score", where, i);
        const char *s = json_string_value(token);
        FAIL_IF(
            strlen(s) != json_string_length(token), ERR_SUPPORT,
            "%s: token %zu holds a NUL character or half a surrogate pair, which is not "
            "supported",
            where, i);
        FAIL_IF(strlen(s) > TOKEN_BYTES_MAX, ERR_FORMAT,
                "%s: token %zu has %zu bytes, the limit is %d", where, i, strlen(s),
                TOKEN_BYTES_MAX);
        score[i] = json_number_value(value);
        err = bpe_add_token(b, s, strlen(s), (int64_t)i);
    }
    if (!err)
        err = bpe_index(b);
    return err ? err_add(err, "%s: ", where) : OK;
}

static enum err parse_unigram(struct json_tokenizer *t, json_t *model, const char *where)
{
    json_t *vocab = NULL;
    double *score = NULL;
    int64_t unk = -1;
    TRY(json_get_array(&vocab, model, "vocab", where));
    const size_t n = json_array_size(vocab);
    FAIL_IF(!n, ERR_FORMAT, "%s: vocab is missing or empty", where);
    TRY(json_get_int(&unk, model, "unk_id", 0, (int64_t)n - 1, where));
    TRY(json_get_bool(&t->bpe.byte_fallback, model, "byte_fallback", where));
    TRY(mem_alloc(&score, n, sizeof(*score)));
    t->unigram.score = score;
    TRY(parse_scored(&t->bpe, score, vocab, where));
    t->bpe.unk_id = (int32_t)unk;
    const enum err err = unigram_build(&t->unigram, &t->bpe, score);
    return err ? err_add(err, "%s: ", where) : OK;
}

static enum err parse_model(struct json_tokenizer *t, json_t *root, bool lost_keys,
                            const char *path)
{
    struct bpe *b = &t->bpe;
    char buffer[512];
    const char *where = where_of(buffer, path, "model"), *type = "BPE";
    json_t *model = NULL;
    TRY(json_get_object(&model, root, "model", path));
    FAIL_IF(!model, ERR_FORMAT, "%s: model is missing", path);
    TRY(json_get_string(&type, model, "type", where)); /* old files have none */
    if (!strcmp(type, "Unigram"))
        return parse_unigram(t, model, where);
    FAIL_IF(strcmp(type, "BPE") != 0, ERR_SUPPORT,
            "%s: %s is not supported (supported: BPE, Unigram)", where, type);
    TRY(parse_model_flags(b, model, where));
    TRY(parse_vocab(b, model, lost_keys, where));
    return parse_merges(b, model, where);
}

static struct added_token *find_added(const struct json_tokenizer *t, const char *content)
{
    const int64_t i = dict_find(&t->added_content, content, strlen(content));
    return i < 0 ? NULL : &t->added[i];
}

/* Returns the id of an added token: that of the vocabulary, or else the next one after its
 * end, as in the reference. The id in added_tokens is not used. */
static int32_t added_id(const struct json_tokenizer *t, const char *content)
{
    const int32_t size = (int32_t)t->bpe.token.n,
                  id = bpe_id(&t->bpe, content, strlen(content));
    if (id >= 0)
        return id;
    return t->next_added > size ? t->next_added : size;
}

static enum err push_added(struct json_tokenizer *t, const char *content,
                           struct added_token a)
{
    uint32_t index;
    const size_t k = t->n_added;
    if (k == t->added_cap) {
        const size_t cap = k ? 2 * k : 16;
        TRY(mem_resize(&t->added, k, cap, sizeof(*t->added)));
        t->added_cap = cap;
    }
    TRY(dict_add(&index, &t->added_content, content, strlen(content)));
    TRY(mem_strdup(&a.content, content));
    t->added[t->n_added++] = a;
    if (a.id >= t->next_added)
        t->next_added = a.id + 1;
    if (a.id >= t->n_ids)
        t->n_ids = a.id + 1;
    return pair_map_put(&t->added_of, a.id, 0, (int32_t)k);
}

static enum err parse_added_token(struct json_tokenizer *t, const json_t *v,
                                  const char *where)
{
    const char *content = NULL;
    struct added_token a = {0};
    FAIL_IF(!json_is_object(v), ERR_FORMAT, "%s holds %s, want objects", where,
            json_kind(v));
    TRY(json_need_string(&content, v, "content", where));
    TRY(json_get_bool(&a.single_word, v, "single_word", where));
    TRY(json_get_bool(&a.lstrip, v, "lstrip", where));
    TRY(json_get_bool(&a.rstrip, v, "rstrip", where));
    TRY(json_get_bool(&a.normalized, v, "normalized", where));
    TRY(json_get_bool(&a.special, v, "special", where));
    FAIL_IF(strlen(content) > TOKEN_BYTES_MAX, ERR_FORMAT,
            "%s: a token of %zu bytes, the limit is %d", where, strlen(content),
            TOKEN_BYTES_MAX);
    if (!*content)
        return OK;
    struct added_token *known = find_added(t, content);
    a.id = known ? known->id : added_id(t, content);
    if (!known)
        return push_added(t, content, a);
    a.content = known->content;
    *known = a;
    return OK;
}

static enum err parse_added(struct json_tokenizer *t, const json_t *root, const char *path)
{
    char buffer[512];
    const char *where = where_of(buffer, path, "added_tokens");
    json_t *list = NULL;
    t->n_ids = t->bpe.n_ids;
    TRY(json_get_array(&list, root, "added_tokens", path));
    const size_t n = json_array_size(list);
    FAIL_IF(n > MAX_ADDED, ERR_FORMAT, "%s: %zu tokens, the limit is %d", where, n,
            MAX_ADDED);
    for (size_t i = 0; i < n; i++)
        TRY(parse_added_token(t, json_array_get(list, i), where));
    return OK;
}

/* Tokens with `normalized` are found in normalized text, so they are normalized as well. */
static enum err match_token(struct json_tokenizer *t, struct step_work *work, size_t i)
{
    enum err err = OK;
    struct text content = {0}, spare = {0};
    const struct added_token *a = &t->added[i];
    const size_t n = strlen(a->content);
    if (!a->normalized)
        return added_matcher_add(&t->raw, a->content, n, (int32_t)i);
    TRY_OUT(normalizer_run(&content, &spare, work, &t->normal, a->content, n));
    if (content.n > TOKEN_BYTES_MAX)
        FAIL_OUT(
            ERR_FORMAT,
            "added token \"%.80s\" has %zu bytes once it is normalized, the limit is %d",
            a->content, content.n, TOKEN_BYTES_MAX);
    TRY_OUT(added_matcher_add(&t->normalized, content.p, content.n, (int32_t)i));
out:
    text_free(&content);
    text_free(&spare);
    return err;
}

/* Adds the tokens from number `first` on to their matchers, special tokens first: of two
 * tokens with the same normalized content the later one is found. All contents together
 * are one text to the limits of the steps. */
static enum err match_added(struct json_tokenizer *t, size_t first)
{
    enum err err = OK;
    struct step_work work = {0};
    for (size_t i = first; i < t->n_added; i++)
        work.growth.bytes += strlen(t->added[i].content);
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = first; i < t->n_added && !err; i++)
            if (t->added[i].special == !pass)
                err = match_token(t, &work, i);
    step_work_free(&work);
    return err;
}

static void take_flags(struct added_token *to, const struct added_token *from)
{
    to->single_word = from->single_word;
    to->lstrip = from->lstrip;
    to->rstrip = from->rstrip;
    to->normalized = from->normalized;
    to->special = from->special;
}

/* Adds a token of a file beside this one. A known token keeps its id, and takes the flags of one
 * that decides: the reference adds a known token again if a flag differs. */
static enum err add_token(struct json_tokenizer *t, const struct added_token *a)
{
    struct added_token own = *a, *known = find_added(t, a->content);
    const int32_t id = bpe_id(&t->bpe, a->content, strlen(a->content));
    if (known) {
        if (a->decides)
            take_flags(known, a);
        return OK;
    }
    own.id = id >= 0 ? id : a->id;
    if (own.id < 0)
        return OK;
    FAIL_IF(id < 0 && (bpe_token(&(size_t){0}, &t->bpe, own.id) ||
                       pair_map_get(&t->added_of, own.id, 0) >= 0),
            ERR_FORMAT, "added token \"%.80s\" has id %d, which another token has too",
            a->content, own.id);
    return push_added(t, a->content, own);
}

static enum err add_tokens(struct json_tokenizer *t, const struct added_token *a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        TRY(add_token(t, &a[i]));
    return OK;
}

enum err json_tokenizer_add(struct json_tokenizer *t, const struct added_token *a, size_t n)
{
    const size_t first = t->n_added;
    TRY(add_tokens(t, a, n));
    return match_added(t, first);
}

static enum err check_post_ids(const struct json_tokenizer *t, const struct id_list *l,
                               const char *path)
{
    for (size_t i = 0; i < l->n; i++)
        FAIL_IF(l->id[i] >= t->n_ids, ERR_FORMAT,
                "%s: post_processor: id %d is outside the vocabulary of %d", path, l->id[i],
                t->n_ids);
    return OK;
}

/* Returns a component by its key; NULL for null. */
static const json_t *component(const json_t *root, const char *key)
{
    const json_t *v = json_object_get(root, key);
    return json_is_null(v) ? NULL : v;
}

static enum err parse_steps(struct json_tokenizer *t, json_t *root, bool lost_keys,
                            const char *path)
{
    char where[512];
    FAIL_IF(!json_is_object(root), ERR_FORMAT, "%s: holds %s, want an object", path,
            json_kind(root));
    TRY(parse_model(t, root, lost_keys, path));
    TRY(normalizer_parse(&t->normal, component(root, "normalizer"),
                         where_of(where, path, "normalizer")));
    TRY(pre_tokenizer_parse(&t->pre, &t->family, component(root, "pre_tokenizer"),
                            where_of(where, path, "pre_tokenizer")));
    TRY(decoder_parse(&t->decoder, component(root, "decoder"),
                      where_of(where, path, "decoder")));
    return parse_added(t, root, path);
}

/* Adds the tokens of the files beside, and makes the matchers of all. */
static enum err complete_added(struct json_tokenizer *t, const struct added_token *a,
                               size_t n, const char *path)
{
    enum err err = add_tokens(t, a, n);
    if (!err)
        err = match_added(t, 0);
    /* messages about a step have the path already */
    return err == ERR_FORMAT ? err_add(err, "%s: ", path) : err;
}

static enum err parse_ends(struct json_tokenizer *t, json_t *root, const char *path)
{
    char where[512];
    TRY(post_processor_parse(&t->before, &t->after, component(root, "post_processor"),
                             where_of(where, path, "post_processor")));
    TRY(check_post_ids(t, &t->before, path));
    return check_post_ids(t, &t->after, path);
}

enum err json_tokenizer_open(struct json_tokenizer **out, const char *path,
                             const struct added_token *beside, size_t n)
{
    struct json_tokenizer *t = NULL;
    json_t *root = NULL;
    bool lost_keys;
    TRY(json_load_table(&root, &lost_keys, path, MAX_FILE_BYTES));
    enum err err = mem_calloc(&t, 1, sizeof(*t));
    if (!err)
        err = parse_steps(t, root, lost_keys, path);
    if (!err)
        err = complete_added(t, beside, n, path);
    if (!err)
        err = parse_ends(t, root, path);
    json_decref(root);
    if (err)
        json_tokenizer_close(&t);
    else
        *out = t;
    return err;
}

void json_tokenizer_close(struct json_tokenizer **pt)
{
    struct json_tokenizer *t = *pt;
    if (!t)
        return;
    bpe_free(&t->bpe);
    unigram_free(&t->unigram);
    normalizer_free(&t->normal);
    pre_tokenizer_free(&t->pre);
    for (size_t i = 0; i < t->n_added; i++)
        mem_free(t->added[i].content);
    mem_free(t->added);
    dict_free(&t->added_content);
    pair_map_free(&t->added_of);
    added_matcher_free(&t->raw);
    added_matcher_free(&t->normalized);
    id_list_free(&t->before);
    id_list_free(&t->after);
    decoder_free(&t->decoder);
    mem_free(t);
    *pt = NULL;
}

int32_t json_tokenizer_id(const struct json_tokenizer *t, const char *content)
{
    const struct added_token *a = find_added(t, content);
    return a ? a->id : bpe_id(&t->bpe, content, strlen(content));
}
