/* SPDX-License-Identifier: MIT */
#include "convert/export/gguf/gguf_vocab.h"

#include "data/tokenizer/files/tok_model.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_MODEL_BYTES ((size_t)64 << 20)
#define MAX_TEMPLATE_BYTES ((size_t)16 << 20)
#define SPACE "\xe2\x96\x81"   /* U+2581, SentencePiece's space */
#define ADDED_SCORE (-1000.0f) /* of an added token, which is never merged */

/* What is read, and where it goes. */
struct reading {
    struct gguf_vocab *v;
    const char *dir;
    const struct arch *arch;
    const char *pre;     /* of the user; may be NULL */
    struct tokenizer *t; /* owned */
    struct tokenizer_parts parts;
    char where[512]; /* the tokenizer's file */
    int32_t unknown; /* the id of the unknown piece, -1: none */
    int64_t next;    /* id of the next piece */
};

static enum err note(struct gguf_vocab *v, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static enum err note(struct gguf_vocab *v, const char *fmt, ...)
{
    va_list ap;
    FAIL_IF(v->n_notes == GGUF_NOTES_MAX, ERR_SHAPE, "more than %d notes of a vocabulary",
            GGUF_NOTES_MAX);
    va_start(ap, fmt);
    vsnprintf(v->note[v->n_notes++], sizeof(v->note[0]), fmt, ap);
    va_end(ap);
    return OK;
}

/* --- tokens ------------------------------------------------------------------------- */

/* Sets token id, which is ignored beyond the embedding's rows. */
static enum err set_token(struct gguf_vocab *v, int64_t id, const char *s, size_t n,
                          float score, enum piece_type type)
{
    if (id >= v->n)
        return OK;
    v->token[id] = (struct gguf_token){v->bytes.n, n, score, type};
    return text_add(&v->bytes, s, n);
}

static bool starts(const char *s, const char *with)
{
    return !strncmp(s, with, strlen(with));
}

static bool ends(const char *s, const char *with)
{
    const size_t n = strlen(s), k = strlen(with);
    return n >= k && !strcmp(s + n - k, with);
}

/* Returns true for added tokens that published files forgot to mark as special. llama.cpp's
 * own converter has the same rule. */
static bool looks_special(const char *s)
{
    return (starts(s, "<|") && ends(s, "|>")) || !strcmp(s, "<pad>") ||
           !strcmp(s, "<mask>");
}

/* Sets an added token. llama.cpp finds tokens in text whose spaces it has not replaced. */
static enum err set_added(struct reading *r, const struct added_token *a)
{
    enum err err = OK;
    struct text s = {0};
    const bool special = a->special || looks_special(a->content);
    const bool spaces = !special && !strcmp(r->v->model, "llama");
    TRY_OUT(
        text_add_replaced(&s, a->content, strlen(a->content), SPACE, spaces ? " " : SPACE));
    TRY_OUT(set_token(r->v, a->id, s.p, s.n, ADDED_SCORE,
                      a->id == r->unknown ? PIECE_UNKNOWN
                      : special           ? PIECE_CONTROL
                                          : PIECE_USER));
out:
    text_free(&s);
    return err;
}

static enum err set_all_added(struct reading *r, const struct added_token *a, size_t n)
{
    size_t n_around = 0;
    for (size_t i = 0; i < n; i++) {
        TRY(set_added(r, &a[i]));
        n_around += a[i].lstrip || a[i].rstrip || a[i].single_word;
    }
    return n_around ? note(r->v,
                           "%zu added tokens that take in spaces around them or match only "
                           "whole words: llama.cpp matches the bare token",
                           n_around)
                    : OK;
}

/* Rows of the embedding without a token. */
static enum err set_unused(struct gguf_vocab *v)
{
    for (int64_t id = 0; id < v->n; id++) {
        char name[40];
        if (v->token[id].n)
            continue;
        const int n = snprintf(name, sizeof(name), "[PAD%" PRId64 "]", id);
        TRY(set_token(v, id, name, (size_t)n, ADDED_SCORE, PIECE_UNUSED));
    }
    return OK;
}

/* llama.cpp stops at a file in which two ids have the same text. */
static enum err check_distinct(const struct reading *r)
{
    enum err err = OK;
    const struct gguf_vocab *v = r->v;
    struct dict seen = {0};
    for (int64_t id = 0; id < v->n && !err; id++) {
        uint32_t index;
        const struct gguf_token *t = &v->token[id];
        TRY_OUT(dict_add(&index, &seen, v->bytes.p + t->at, t->n));
        if (index != id)
            FAIL_OUT(ERR_SUPPORT,
                     "%s: tokens %u and %" PRId64 " are both \"%.*s\"; a GGUF file needs "
                     "distinct ones",
                     r->where, index, id, (int)(t->n < 80 ? t->n : 80), v->bytes.p + t->at);
    }
out:
    dict_free(&seen);
    return err;
}

/* --- tokenizer.json and its like ---------------------------------------------------- */

static enum err add_merge_line(struct gguf_vocab *v, const struct bpe *b,
                               const struct gguf_merge *m, const char *where)
{
    size_t n_left, n_right;
    const char *left = bpe_token(&n_left, b, m->left),
               *right = bpe_token(&n_right, b, m->right);
    FAIL_IF(memchr(left, ' ', n_left) || memchr(right, ' ', n_right) ||
                memchr(left, '\n', n_left) || memchr(right, '\n', n_right),
            ERR_SUPPORT,
            "%s: merge \"%.*s\" \"%.*s\" holds a space, which GGUF cannot hold", where,
            (int)n_left, left, (int)n_right, right);
    TRY(text_add(&v->merges, left, n_left));
    TRY(text_add(&v->merges, " ", 1));
    TRY(text_add(&v->merges, right, n_right));
    return text_add(&v->merges, "\n", 1);
}

static enum err add_merges(struct gguf_vocab *v, const struct bpe *b, const char *where)
{
    enum err err = OK;
    struct gguf_merge *list = NULL;
    TRY(gguf_merges(&list, &v->n_merges, b));
    for (size_t i = 0; i < v->n_merges && !err; i++)
        err = add_merge_line(v, b, &list[i], where);
    mem_free(list);
    return err;
}

static enum err choose_pre(struct reading *r)
{
    const struct json_tokenizer *t = r->parts.json;
    const char *name = r->pre ? r->pre : gguf_pre_of(t);
    FAIL_IF(
        !name, ERR_SUPPORT,
        "%s: how it splits text into words is not recognized (recognized: GPT-2, GPT-4, "
        "SmolLM, Llama 3, Qwen2, DeepSeek-V3 and Viking, without add_prefix_space); if llama.cpp "
        "has a name for it, give --gguf-pre NAME, as gpt-4o or tekken, which find the same words "
        "in ASCII and others in most other alphabets",
        r->where);
    FAIL_IF(strlen(name) >= sizeof(r->v->pre), ERR_USAGE, "--gguf-pre %.80s is too long",
            name);
    strcpy(r->v->pre, name);
    if (t->normal.n == 1 && t->normal.step[0].kind == NORMAL_FORM &&
        t->normal.step[0].form == FORM_NFC)
        return note(r->v, "The normalization of text to NFC: llama.cpp does not normalize, "
                          "so text in another form gets other ids");
    FAIL_IF(t->normal.n, ERR_SUPPORT,
            "%s: a normalizer other than NFC has no counterpart in a GGUF file", r->where);
    return OK;
}

/* Byte-level BPE. */
static enum err read_bytes(struct reading *r)
{
    const struct bpe *b = &r->parts.json->bpe;
    r->v->model = "gpt2";
    TRY(choose_pre(r));
    for (int32_t id = 0; id < b->n_ids; id++) {
        size_t n;
        const char *s = bpe_token(&n, b, id);
        if (s)
            TRY(set_token(r->v, id, s, n, 0, PIECE_NORMAL));
    }
    return add_merges(r->v, b, r->where);
}

static enum err set_pieces(struct reading *r, const float *scores)
{
    const struct bpe *b = &r->parts.json->bpe;
    for (int i = 0; i < 256; i++)
        FAIL_IF(b->byte_id[i] < 0 || !b->byte_fallback, ERR_SUPPORT,
                "%s: without byte_fallback and a token for every byte, llama.cpp stops at "
                "unknown characters",
                r->where);
    for (int32_t id = 0; id < b->n_ids; id++) {
        size_t n;
        const char *s = bpe_token(&n, b, id);
        if (s)
            TRY(set_token(r->v, id, s, n, scores[id],
                          id == b->unk_id ? PIECE_UNKNOWN : PIECE_NORMAL));
    }
    for (int i = 0; i < 256; i++)
        if (b->byte_id[i] < r->v->n)
            r->v->token[b->byte_id[i]].type = PIECE_BYTE;
    return OK;
}

/* Pieces of a tokenizer.model beside a tokenizer.json. */
struct comparing {
    const struct bpe *b;
    float *scores; /* [b->n_ids] */
    int32_t next;
    bool same; /* so far, ids and names are those of b */
};

static enum err compare_piece(void *ctx, const struct spm_piece *p)
{
    struct comparing *c = ctx;
    size_t n = 0;
    const char *s = bpe_token(&n, c->b, c->next);
    c->same = c->same && s && n == p->n && !memcmp(s, p->name, n);
    if (c->same)
        c->scores[c->next++] = p->score;
    return OK;
}

/* Takes the scores of a tokenizer.model in the same directory. *found = there is one, of
 * the same tokens. A damaged one is not used, as by the tokenizer's reader. */
static enum err model_scores(bool *found, float *scores, const struct reading *r)
{
    enum err err = OK;
    char *data = NULL, *path = NULL;
    size_t n;
    struct spm_info info;
    struct comparing c = {.b = &r->parts.json->bpe, .scores = scores, .same = true};
    *found = false;
    TRY_OUT(file_join(&path, r->dir, "tokenizer.model"));
    if (!file_is_regular(path))
        goto out;
    TRY_OUT(file_read_all(&data, &n, path, MAX_MODEL_BYTES));
    err = spm_check(&info, data, n, path);
    if (err && err != ERR_MEMORY)
        err_clear();
    if (err) {
        err = err == ERR_MEMORY ? err : OK;
        goto out;
    }
    TRY_OUT(spm_pieces(data, n, compare_piece, &c));
    *found = info.is_bpe && c.same;
out:
    mem_free(data);
    mem_free(path);
    return err;
}

/* once: the tokenizer adds a space only in front of the whole text. */
static enum err note_prefix(struct reading *r, bool once)
{
    return once && r->v->add_space_prefix
               ? note(r->v, "A text after an added token has no space in front of it: "
                            "llama.cpp adds one there, too")
               : OK;
}

/* SentencePiece-like BPE. */
static enum err read_chars(struct reading *r)
{
    const struct json_tokenizer *t = r->parts.json;
    float *scores = NULL;
    bool found;
    enum err err = OK;
    r->v->model = "llama";
    r->unknown = t->bpe.unk_id;
    FAIL_IF(
        r->pre, ERR_USAGE,
        "--gguf-pre %s: %s is not a byte-level tokenizer; only those have a pre-tokenizer",
        r->pre, r->where);
    strcpy(r->v->pre, "default");
    TRY(gguf_check_chars(&r->v->add_space_prefix, t, r->where));
    TRY(mem_calloc(&scores, (size_t)t->bpe.n_ids, sizeof(*scores)));
    TRY_OUT(model_scores(&found, scores, r));
    if (!found)
        TRY_OUT(gguf_scores(scores, t, r->where));
    TRY_OUT(set_pieces(r, scores));
    TRY_OUT(note_prefix(r, t->pre.n && t->pre.step[0].prepend == PREPEND_FIRST));
out:
    mem_free(scores);
    return err;
}

/* GGUF can add BOS and EOS, and nothing else. */
static enum err read_around(struct reading *r)
{
    const struct json_tokenizer *t = r->parts.json;
    struct gguf_vocab *v = r->v;
    FAIL_IF(t->before.n > 1 || t->after.n > 1 || (t->after.n && t->after.id[0] != v->eos),
            ERR_SUPPORT,
            "%s: its post_processor adds %zu tokens before and %zu after a text; a GGUF "
            "file can add BOS and EOS only",
            r->where, t->before.n, t->after.n);
    v->add_bos = t->before.n > 0;
    v->add_eos = t->after.n > 0;
    return OK;
}

static enum err read_json(struct reading *r)
{
    const struct json_tokenizer *t = r->parts.json;
    FAIL_IF(t->unigram.score, ERR_SUPPORT,
            "%s: a Unigram model; llama.cpp has it only for T5, not for this architecture "
            "(supported: BPE)",
            r->where);
    TRY(t->pre.byte_level ? read_bytes(r) : read_chars(r));
    TRY(set_all_added(r, t->added, t->n_added));
    return read_around(r);
}

/* --- tokenizer.model ---------------------------------------------------------------- */

static enum err set_piece(void *ctx, const struct spm_piece *p)
{
    struct reading *r = ctx;
    if (p->type == PIECE_UNKNOWN)
        r->unknown = (int32_t)r->next;
    return set_token(r->v, r->next++, p->name, p->n, p->score, p->type);
}

static enum err read_pieces(struct reading *r)
{
    char *data = NULL, *path = NULL;
    size_t n;
    enum err err = OK;
    TRY_OUT(file_join(&path, r->dir, tokenizer_file(r->t)));
    TRY_OUT(file_read_all(&data, &n, path, MAX_MODEL_BYTES));
    TRY_OUT(spm_pieces(data, n, set_piece, r));
out:
    mem_free(data);
    mem_free(path);
    return err;
}

static enum err read_model(struct reading *r)
{
    const struct model_tokenizer *m = r->parts.model;
    r->v->model = "llama";
    FAIL_IF(
        r->pre, ERR_USAGE,
        "--gguf-pre %s: %s is not a byte-level tokenizer; only those have a pre-tokenizer",
        r->pre, r->where);
    FAIL_IF(!m->info.is_bpe, ERR_SUPPORT,
            "%s: a SentencePiece unigram model; llama.cpp has it only for T5, not for this "
            "architecture (supported: BPE)",
            r->where);
    FAIL_IF(m->info.normalizes, ERR_SUPPORT,
            "%s: its normalization has no counterpart in GGUF's llama tokenizer", r->where);
    FAIL_IF(!m->info.keeps_spaces, ERR_SUPPORT,
            "%s: remove_extra_whitespaces has no counterpart in GGUF's llama tokenizer",
            r->where);
    strcpy(r->v->pre, "default");
    r->v->add_space_prefix = m->info.prefix_space;
    r->v->add_bos = r->parts.model_bos && tokenizer_bos(r->t) >= 0;
    r->v->add_eos = r->parts.model_eos && tokenizer_eos(r->t) >= 0;
    TRY(read_pieces(r));
    TRY(note_prefix(r, m->bare != NULL));
    return set_all_added(r, m->added, m->n_added);
}

/* --- special tokens and the chat template ------------------------------------------- */

/* Returns id if the embedding has its row, else -1. */
static int32_t in_range(const struct reading *r, int64_t id)
{
    return id >= 0 && id < r->v->n ? (int32_t)id : -1;
}

static void read_specials(struct reading *r)
{
    const struct arch *a = r->arch;
    r->v->bos = in_range(r, tokenizer_bos(r->t));
    r->v->eos = in_range(r, tokenizer_eos(r->t));
    if (r->v->bos < 0)
        r->v->bos = in_range(r, a->bos);
    if (r->v->eos < 0 && a->n_eos)
        r->v->eos = in_range(r, a->eos[0]);
    r->v->pad = in_range(r, r->parts.pad);
}

/* Takes the template of chat_template.jinja, which has precedence in transformers, too. */
static enum err read_template_file(struct gguf_vocab *v, const char *path)
{
    size_t n;
    TRY(file_read_all(&v->chat_template, &n, path, MAX_TEMPLATE_BYTES));
    FAIL_IF(strlen(v->chat_template) != n || !utf8_valid(v->chat_template, n), ERR_FORMAT,
            "%s: not UTF-8 text", path);
    return OK;
}

/* tokenizer_config.json has one template, or a list of {"name", "template"}. */
static enum err read_template_member(struct gguf_vocab *v, const char *path)
{
    json_t *root = NULL;
    const char *s = NULL;
    TRY(json_load_file_lenient(&root, path, MAX_TEMPLATE_BYTES, JSON_REPEATS_LAST));
    const json_t *t = json_object_get(root, "chat_template");
    s = json_string_value(t);
    for (size_t i = 0; i < json_array_size(t) && !s; i++) {
        const json_t *entry = json_array_get(t, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name && !strcmp(name, "default"))
            s = json_string_value(json_object_get(entry, "template"));
    }
    const enum err err = s ? mem_strdup(&v->chat_template, s) : OK;
    json_decref(root);
    return err;
}

static enum err read_template(struct reading *r)
{
    static const struct {
        const char *name;
        enum err (*read)(struct gguf_vocab *v, const char *path);
    } files[] = {{"chat_template.jinja", read_template_file},
                 {"tokenizer_config.json", read_template_member}};
    enum err err = OK;
    for (size_t i = 0; i < ARRAY_LEN(files) && !err && !r->v->chat_template; i++) {
        char *path = NULL;
        TRY(file_join(&path, r->dir, files[i].name));
        if (file_exists(path))
            err = files[i].read(r->v, path);
        mem_free(path);
    }
    return err;
}

/* --- all of it ---------------------------------------------------------------------- */

static enum err read_all(struct reading *r)
{
    struct gguf_vocab *v = r->v;
    const int64_t have = tokenizer_vocab(r->t);
    r->parts = tokenizer_parts(r->t);
    snprintf(r->where, sizeof(r->where), "%.400s/%s", r->dir, tokenizer_file(r->t));
    v->n = r->arch->vocab;
    TRY(mem_calloc(&v->token, (size_t)v->n, sizeof(*v->token)));
    read_specials(r);
    TRY(r->parts.json ? read_json(r) : read_model(r));
    v->unk = in_range(r, r->parts.unk >= 0 ? r->parts.unk : r->unknown);
    FAIL_IF(v->add_bos && v->bos != tokenizer_bos(r->t), ERR_SUPPORT,
            "%s: its BOS token has no row in the embedding of %" PRId64, r->where, v->n);
    if (have > v->n)
        TRY(note(v, "%" PRId64 " tokens beyond the %" PRId64 " rows of the embedding",
                 have - v->n, v->n));
    TRY(set_unused(v));
    TRY(check_distinct(r));
    return read_template(r);
}

enum err gguf_vocab_read(struct gguf_vocab *out, const char *dir, const struct arch *a,
                         const char *pre)
{
    struct reading r = {.v = out, .dir = dir, .arch = a, .pre = pre, .unknown = -1};
    *out = (struct gguf_vocab){.bos = -1, .eos = -1, .unk = -1, .pad = -1};
    TRY(tokenizer_open(&r.t, dir));
    const enum err err = read_all(&r);
    tokenizer_close(&r.t);
    if (err)
        gguf_vocab_free(out);
    return err;
}

void gguf_vocab_free(struct gguf_vocab *v)
{
    text_free(&v->bytes);
    text_free(&v->merges);
    mem_free(v->token);
    mem_free(v->chat_template);
    *v = (struct gguf_vocab){0};
}

/* --- keys --------------------------------------------------------------------------- */

#define KEY "tokenizer.ggml."

static enum err put_string(struct gguf_writer *w, const char *key, const char *s)
{
    return gguf_key_string(w, key, s, strlen(s));
}

static enum err put_tokens(struct gguf_writer *w, const struct gguf_vocab *v)
{
    const uint64_t n = (uint64_t)v->n;
    TRY(gguf_list_string(w, KEY "tokens", n));
    for (int64_t i = 0; i < v->n; i++)
        TRY(gguf_item_string(w, v->bytes.p + v->token[i].at, v->token[i].n));
    if (!strcmp(v->model, "llama")) {
        TRY(gguf_list_f32(w, KEY "scores", n));
        for (int64_t i = 0; i < v->n; i++)
            TRY(gguf_item_f32(w, v->token[i].score));
    }
    TRY(gguf_list_i32(w, KEY "token_type", n));
    for (int64_t i = 0; i < v->n; i++)
        TRY(gguf_item_i32(w, (int32_t)v->token[i].type));
    return OK;
}

static enum err put_merges(struct gguf_writer *w, const struct gguf_vocab *v)
{
    TRY(gguf_list_string(w, KEY "merges", v->n_merges));
    for (size_t at = 0, n; at < v->merges.n; at += n + 1) {
        const char *s = v->merges.p + at;
        n = (size_t)((const char *)memchr(s, '\n', v->merges.n - at) - s);
        TRY(gguf_item_string(w, s, n));
    }
    return OK;
}

static enum err put_ids(struct gguf_writer *w, const struct gguf_vocab *v)
{
    const struct {
        const char *key;
        int32_t id;
    } ids[] = {{KEY "bos_token_id", v->bos},
               {KEY "eos_token_id", v->eos},
               {KEY "unknown_token_id", v->unk},
               {KEY "padding_token_id", v->pad}};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++)
        if (ids[i].id >= 0)
            TRY(gguf_key_u32(w, ids[i].key, (uint32_t)ids[i].id));
    return OK;
}

enum err gguf_vocab_keys(struct gguf_writer *w, const struct gguf_vocab *v)
{
    TRY(put_string(w, KEY "model", v->model));
    TRY(put_string(w, KEY "pre", v->pre));
    TRY(put_tokens(w, v));
    if (!strcmp(v->model, "gpt2"))
        TRY(put_merges(w, v));
    TRY(put_ids(w, v));
    TRY(gguf_key_bool(w, KEY "add_bos_token", v->add_bos));
    TRY(gguf_key_bool(w, KEY "add_eos_token", v->add_eos));
    TRY(gguf_key_bool(w, KEY "add_space_prefix", v->add_space_prefix));
    return v->chat_template ? put_string(w, "tokenizer.chat_template", v->chat_template)
                            : OK;
}
