/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/files/tok_files.h"

#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define MAX_FILE_BYTES ((size_t)128 << 20)
/* The longest token of the published files has 128 bytes. Every byte of a token is tried as
 * the place of a merge. */
#define MAX_RANK_BYTES 256
#define N_SPECIAL 256

/* --- what both have in common ------------------------------------------------------- */

/* Splits words by scan, then into bytes. */
static void set_byte_level(struct json_tokenizer *t, const char *family, scan_fn *scan)
{
    t->family = family;
    t->pre.step[0] = (struct pre_step){.kind = PRE_SCAN, .scan = scan};
    t->pre.step[1] = (struct pre_step){.kind = PRE_BYTE_LEVEL};
    t->pre.n = 2;
    t->pre.byte_level = true;
    t->decoder.step[0].kind = DECODE_BYTE_LEVEL;
    t->decoder.n = 1;
}

/* --- vocab.json and merges.txt ------------------------------------------------------ */

static enum err set_words(struct json_tokenizer *t, const struct tok_beside *beside,
                          const char *path)
{
    const char *name = beside->class_name;
    FAIL_IF(!name, ERR_SUPPORT,
            "%s: no tokenizer_class in tokenizer_config.json says how text is split into "
            "words (supported: GPT2Tokenizer, Qwen2Tokenizer)",
            path);
    if (!strcmp(name, "GPT2Tokenizer")) {
        set_byte_level(t, "GPT-2", scan_gpt2);
        /* The space is added to each part between added tokens, before it is split. */
        t->pre.step[0].kind = PRE_BYTE_LEVEL;
        t->pre.step[0].prefix_space = beside->prefix_space == SAID_YES;
        t->pre.n = 1;
        return OK;
    }
    FAIL_IF(strcmp(name, "Qwen2Tokenizer") != 0, ERR_SUPPORT,
            "%s: tokenizer_class %.60s is not supported without a tokenizer.json "
            "(supported: GPT2Tokenizer, Qwen2Tokenizer)",
            path, name);
    FAIL_IF(beside->prefix_space == SAID_YES, ERR_SUPPORT,
            "%s: Qwen2Tokenizer with add_prefix_space is not supported", path);
    set_byte_level(t, "Qwen2", scan_qwen2);
    t->normal.step[t->normal.n++].kind = NORMAL_FORM;
    return OK;
}

static enum err read_vocab(struct bpe *b, const char *path)
{
    json_t *root = NULL;
    bool lost_keys;
    TRY(json_load_table(&root, &lost_keys, path, MAX_FILE_BYTES));
    const enum err err = tok_parse_vocab(b, root, lost_keys, path);
    json_decref(root);
    return err;
}

/* Reads a line "left right"; the first may be "#version: 0.2". */
static enum err read_merge(struct bpe *b, const char *s, size_t n, bool first)
{
    static const char version[] = "#version";
    const size_t k = sizeof(version) - 1;
    if (n && s[n - 1] == '\r')
        n--;
    if (!n || (first && n >= k && !memcmp(s, version, k)))
        return OK;
    const char *gap = memchr(s, ' ', n);
    FAIL_IF(!gap, ERR_FORMAT, "\"%.*s\" has no space", (int)(n < 80 ? n : 80), s);
    return bpe_add_merge(b, s, (size_t)(gap - s), gap + 1, n - (size_t)(gap + 1 - s));
}

static enum err read_merges(struct bpe *b, const char *path)
{
    char *data = NULL;
    size_t n, line = 1;
    enum err err = OK;
    TRY(file_read_all(&data, &n, path, MAX_FILE_BYTES));
    if (file_is_lfs_pointer(data, n))
        FAIL_OUT(ERR_FORMAT, "%s: " FILE_LFS_ADVICE, path);
    for (size_t at = 0, end; at < n && !err; at = end + 1, line++) {
        const char *stop = memchr(data + at, '\n', n - at);
        end = stop ? (size_t)(stop - data) : n;
        err = read_merge(b, data + at, end - at, !at);
        if (err)
            err_add(err, "%s: line %zu: ", path, line);
    }
out:
    mem_free(data);
    return err;
}

enum err tok_open_vocab_merges(struct json_tokenizer **out, const char *dir,
                               const struct tok_beside *beside)
{
    enum err err = OK;
    struct json_tokenizer *t = NULL;
    char *vocab = NULL, *merges = NULL;
    TRY_OUT(mem_calloc(&t, 1, sizeof(*t)));
    TRY_OUT(file_join(&vocab, dir, "vocab.json"));
    TRY_OUT(file_join(&merges, dir, "merges.txt"));
    TRY_OUT(set_words(t, beside, vocab));
    TRY_OUT(read_vocab(&t->bpe, vocab));
    TRY_OUT(read_merges(&t->bpe, merges));
    t->n_ids = t->bpe.n_ids;
    err = json_tokenizer_add(t, beside->added, beside->n_added);
    if (err) {
        err_add(err, "%s: ", vocab);
        goto out;
    }
    *out = t;
    t = NULL;
out:
    json_tokenizer_close(&t);
    mem_free(vocab);
    mem_free(merges);
    return err;
}

/* --- ranks -------------------------------------------------------------------------- */

/* Splits a line BASE64 RANK of n bytes. Returns false for any other line. */
static bool split_rank(size_t *token_bytes, int64_t *rank, const char *s, size_t n)
{
    const char *gap = memchr(s, ' ', n);
    if (!gap || gap == s)
        return false;
    *token_bytes = (size_t)(gap - s);
    const size_t digits = n - *token_bytes - 1;
    *rank = 0;
    if (digits < 1 || digits > 9)
        return false;
    for (size_t i = 0; i < digits; i++) {
        if (gap[1 + i] < '0' || gap[1 + i] > '9')
            return false;
        *rank = 10 * *rank + (gap[1 + i] - '0');
    }
    return true;
}

/* Returns the length of the line at s without its end; *next is the start of the next
 * one. */
static size_t line_at(size_t *next, const char *s, size_t n)
{
    const char *stop = memchr(s, '\n', n);
    const size_t end = stop ? (size_t)(stop - s) : n;
    *next = stop ? end + 1 : n;
    return end && s[end - 1] == '\r' ? end - 1 : end;
}

bool tok_is_ranks(const char *data, size_t n)
{
    char token[3 * MAX_RANK_BYTES];
    size_t next, k;
    int64_t rank;
    const size_t line = line_at(&next, data, n < 512 ? n : 512);
    return split_rank(&k, &rank, data, line) && k <= 512 &&
           base64_decode(token, data, k) > 0;
}

static enum err read_rank(struct bpe *b, struct text *mapped, const char *s, size_t n)
{
    char token[3 * MAX_RANK_BYTES];
    size_t k;
    int64_t rank;
    FAIL_IF(!split_rank(&k, &rank, s, n), ERR_FORMAT,
            "\"%.*s\" is not a token in base64, a space and its rank",
            (int)(n < 80 ? n : 80), s);
    const int64_t bytes = k <= sizeof(token) ? base64_decode(token, s, k) : 0;
    FAIL_IF(bytes < 1 || bytes > MAX_RANK_BYTES, ERR_FORMAT,
            "the token of rank %lld is not base64 of 1 to %d bytes", (long long)rank,
            MAX_RANK_BYTES);
    TRY(byte_level_map(mapped, token, (size_t)bytes));
    return bpe_add_token(b, mapped->p, mapped->n, rank);
}

static enum err read_ranks(struct bpe *b, const char *data, size_t n)
{
    struct text mapped = {0};
    enum err err = OK;
    size_t line = 1;
    for (size_t at = 0, next; at < n && !err; at += next, line++) {
        const size_t end = line_at(&next, data + at, n - at);
        if (!end)
            continue;
        err = read_rank(b, &mapped, data + at, end);
        if (err)
            err_add(err, "line %zu: ", line);
    }
    text_free(&mapped);
    return err;
}

/* Adds the merges. tiktoken merges the pair whose token has the lowest rank, so every split
 * of a token into two tokens is a merge of that rank. */
static enum err add_merges(struct bpe *b)
{
    TRY(mem_alloc(&b->merged, (size_t)b->n_ids, sizeof(*b->merged)));
    b->n_merges = (size_t)b->n_ids;
    for (int32_t id = 0; id < b->n_ids; id++) {
        size_t n, k;
        int32_t c;
        const char *s = bpe_token(&n, b, id);
        b->merged[id] = id;
        for (size_t at = 0; at < n; at += k) {
            k = utf8_next(&c, s + at, n - at);
            const int32_t left = at ? bpe_id(b, s, at) : -1,
                          right = left < 0 ? -1 : bpe_id(b, s + at, n - at);
            if (right >= 0)
                TRY(pair_map_put(&b->rank, left, right, id));
        }
    }
    return OK;
}

static enum err check_ranks(const struct bpe *b)
{
    char s[4];
    FAIL_IF((size_t)b->n_ids != b->token.n, ERR_FORMAT,
            "the highest rank is %d, but there are %zu tokens: a rank is missing",
            b->n_ids - 1, b->token.n);
    for (int i = 0; i < 256; i++)
        FAIL_IF(bpe_id(b, s, utf8_put(s, byte_level_char((uint8_t)i))) < 0, ERR_FORMAT,
                "no token stands for the byte 0x%02X", (unsigned)i);
    return OK;
}

/* Writes the name of special token i, as in Meta's reference code for Llama 3. */
static void special_name(char name[64], int i)
{
    static const char *const names[10] = {[0] = "<|begin_of_text|>",
                                          [1] = "<|end_of_text|>",
                                          [6] = "<|start_header_id|>",
                                          [7] = "<|end_header_id|>",
                                          [9] = "<|eot_id|>"};
    /* The reserved tokens are numbered consecutively, without those that have a name. */
    const int reserved = i < 6 ? i - 2 : i < 9 ? i - 4 : i - 5;
    if (i < 10 && names[i])
        snprintf(name, 64, "%s", names[i]);
    else
        snprintf(name, 64, "<|reserved_special_token_%d|>", reserved);
}

static enum err add_specials(struct json_tokenizer *t)
{
    const int32_t first = t->bpe.n_ids;
    for (int i = 0; i < N_SPECIAL; i++) {
        char name[64];
        struct added_token a = {name, first + i, .special = true};
        special_name(name, i);
        if (pair_map_get(&t->added_of, a.id, 0) < 0)
            TRY(json_tokenizer_add(t, &a, 1));
    }
    return id_list_add(&t->before, first);
}

static enum err build_ranks(struct json_tokenizer *t, const char *data, size_t n,
                            const struct tok_beside *beside)
{
    TRY(read_ranks(&t->bpe, data, n));
    TRY(bpe_index(&t->bpe));
    TRY(check_ranks(&t->bpe));
    TRY(add_merges(&t->bpe));
    /* A word that is a token itself is not split and merged. */
    t->bpe.ignore_merges = true;
    t->n_ids = t->bpe.n_ids;
    set_byte_level(t, "Llama 3", scan_llama3);
    TRY(json_tokenizer_add(t, beside->added, beside->n_added));
    return add_specials(t);
}

enum err tok_open_ranks(struct json_tokenizer **out, const char *data, size_t n,
                        const char *path, const struct tok_beside *beside)
{
    struct json_tokenizer *t = NULL;
    TRY(mem_calloc(&t, 1, sizeof(*t)));
    const enum err err = build_ranks(t, data, n, beside);
    if (!err) {
        *out = t;
        return OK;
    }
    json_tokenizer_close(&t);
    return err_add(err, "%s: ", path);
}
