/* SPDX-License-Identifier: MIT */
#include "convert/export/gguf/gguf_copy.h"

#include "data/tokenizer/files/tok_json.h"
#include "data/tokenizer/files/tok_model.h"
#include "data/tokenizer/tok_spm.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <string.h>

#define MAX_MODEL_BYTES ((size_t)64 << 20)
#define TYPE_STRING 8
#define TYPE_ARRAY 9

struct span {
    const uint8_t *p;
    uint64_t n;
};

static bool is(struct span s, const char *text)
{
    return s.n == strlen(text) && !memcmp(s.p, text, s.n);
}

/* --- values ------------------------------------------------------------------------- */

static enum err take_u32(struct bytes *b, uint32_t *out)
{
    const uint8_t *p;
    TRY(bytes_view(b, 4, &p));
    *out =
        (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    return OK;
}

static enum err take_string(struct bytes *b, struct span *out)
{
    TRY(bytes_u64(b, &out->n));
    return bytes_view(b, out->n, &out->p);
}

/* Returns the bytes of a number of this type, 0 for any other type. */
static uint64_t number_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < ARRAY_LEN(bytes) ? bytes[type] : 0;
}

static enum err skip_array(struct bytes *b)
{
    uint32_t type;
    uint64_t n;
    struct span s;
    TRY(take_u32(b, &type));
    TRY(bytes_u64(b, &n));
    if (type == TYPE_STRING) {
        for (uint64_t i = 0; i < n; i++)
            TRY(take_string(b, &s));
        return OK;
    }
    const uint64_t unit = number_bytes(type);
    FAIL_IF(!unit, ERR_FORMAT, "offset %zu: an array of type %" PRIu32, b->pos, type);
    FAIL_IF(n > b->size / unit, ERR_FORMAT, "offset %zu: an array of %" PRIu64 " items",
            b->pos, n);
    return bytes_view(b, n * unit, &s.p);
}

static enum err skip_value(struct bytes *b, uint32_t type)
{
    struct span s;
    if (type == TYPE_STRING)
        return take_string(b, &s);
    if (type == TYPE_ARRAY)
        return skip_array(b);
    const uint64_t n = number_bytes(type);
    FAIL_IF(!n, ERR_FORMAT, "offset %zu: a value of type %" PRIu32, b->pos, type);
    return bytes_view(b, n, &s.p);
}

/* --- the file ----------------------------------------------------------------------- */

/* What is needed of the tokenizer's keys. */
struct found {
    struct span model;
    struct bytes tokens; /* at the first of them */
    uint64_t n_tokens;
};

static enum err note_tokens(struct found *f, struct bytes b)
{
    uint32_t item;
    TRY(take_u32(&b, &item));
    TRY(bytes_u64(&b, &f->n_tokens));
    FAIL_IF(item != TYPE_STRING, ERR_FORMAT,
            "tokenizer.ggml.tokens has items of type %" PRIu32 ", want strings", item);
    f->tokens = b;
    return OK;
}

static enum err keep(struct gguf_copy *c, struct found *f, struct span name, uint32_t type,
                     struct bytes value, size_t from, size_t to)
{
    FAIL_IF(c->n_keys == GGUF_COPY_KEYS, ERR_SUPPORT, "more than %d keys of a tokenizer",
            GGUF_COPY_KEYS);
    for (int i = 0; i < c->n_keys; i++)
        FAIL_IF(!memcmp(c->map.data + c->key[i].at, name.p - 8, 8) &&
                    !memcmp(c->map.data + c->key[i].at + 8, name.p, name.n),
                ERR_FORMAT, "%.*s stands there twice", (int)name.n, (const char *)name.p);
    if (is(name, "tokenizer.ggml.model") && type == TYPE_STRING)
        TRY(take_string(&value, &f->model));
    if (is(name, "tokenizer.ggml.tokens") && type == TYPE_ARRAY)
        TRY(note_tokens(f, value));
    c->key[c->n_keys].at = from;
    c->key[c->n_keys++].n = to - from;
    return OK;
}

static enum err read_key(struct gguf_copy *c, struct found *f, struct bytes *b)
{
    static const char prefix[] = "tokenizer.";
    const size_t from = b->pos, n = strlen(prefix);
    struct span name;
    uint32_t type;
    TRY(take_string(b, &name));
    TRY(take_u32(b, &type));
    const struct bytes value = *b;
    TRY(skip_value(b, type));
    return name.n < n || memcmp(name.p, prefix, n) != 0
               ? OK
               : keep(c, f, name, type, value, from, b->pos);
}

static enum err read_header(struct gguf_copy *c, struct found *f)
{
    struct bytes b = {.data = c->map.data, .size = c->map.size};
    const uint8_t *magic;
    uint32_t version;
    uint64_t n_tensors, n_keys;
    TRY(bytes_view(&b, 4, &magic));
    FAIL_IF(memcmp(magic, "GGUF", 4) != 0, ERR_FORMAT, "it is not a GGUF file");
    TRY(take_u32(&b, &version));
    FAIL_IF(version != 2 && version != 3, ERR_SUPPORT,
            "GGUF of version %" PRIu32 ", want 2 or 3", version);
    TRY(bytes_u64(&b, &n_tensors));
    TRY(bytes_u64(&b, &n_keys));
    for (uint64_t i = 0; i < n_keys; i++)
        TRY(read_key(c, f, &b));
    return OK;
}

/* --- the artifact's own tokens ------------------------------------------------------ */

static enum err compare(struct bytes *b, int64_t id, const char *want, size_t n)
{
    struct span have;
    TRY(take_string(b, &have));
    FAIL_IF(want && (have.n != n || memcmp(have.p, want, n) != 0), ERR_SUPPORT,
            "token %" PRId64 " is \"%.*s\", and \"%.*s\" in the artifact's tokenizer; give "
            "the vocabulary of this model",
            id, (int)(have.n < 80 ? have.n : 80), (const char *)have.p,
            (int)(n < 80 ? n : 80), want);
    return OK;
}

static enum err compare_json(struct found *f, const struct json_tokenizer *t)
{
    for (int64_t id = 0; id < t->bpe.n_ids && (uint64_t)id < f->n_tokens; id++) {
        size_t n = 0;
        const bool added = pair_map_get(&t->added_of, (int32_t)id, 0) >= 0;
        const char *s = added ? NULL : bpe_token(&n, &t->bpe, (int32_t)id);
        TRY(compare(&f->tokens, id, s, n));
    }
    return OK;
}

struct comparing {
    struct found *f;
    int64_t next;
};

static enum err compare_piece(void *ctx, const struct spm_piece *p)
{
    struct comparing *c = ctx;
    if ((uint64_t)c->next >= c->f->n_tokens)
        return OK;
    return compare(&c->f->tokens, c->next++, p->type == PIECE_NORMAL ? p->name : NULL,
                   p->n);
}

static enum err compare_model(struct found *f, const char *dir, const char *file)
{
    struct comparing c = {f, 0};
    char *data = NULL, *path = NULL;
    size_t n;
    enum err err = OK;
    TRY_OUT(file_join(&path, dir, file));
    TRY_OUT(file_read_all(&data, &n, path, MAX_MODEL_BYTES));
    TRY_OUT(spm_pieces(data, n, compare_piece, &c));
out:
    mem_free(data);
    mem_free(path);
    return err;
}

/* Compares the tokens with those of the artifact's tokenizer, if that can be read. */
static enum err compare_tokens(struct gguf_copy *c, struct found *f, const char *dir)
{
    struct tokenizer *t = NULL;
    enum err err = tokenizer_open(&t, dir);
    if (err == ERR_MEMORY || err == ERR_IO)
        return err;
    if (err) { /* the reason to give another file */
        err_clear();
        return OK;
    }
    const struct tokenizer_parts parts = tokenizer_parts(t);
    c->compared = true;
    err =
        parts.json ? compare_json(f, parts.json) : compare_model(f, dir, tokenizer_file(t));
    tokenizer_close(&t);
    return err;
}

/* --- all of it ---------------------------------------------------------------------- */

static enum err check(struct gguf_copy *c, const struct export_source *s)
{
    struct found f = {0};
    TRY(read_header(c, &f));
    FAIL_IF(!f.model.n || is(f.model, "none") || is(f.model, "no_vocab") || !f.n_tokens,
            ERR_SUPPORT, "it has no tokenizer");
    FAIL_IF(f.n_tokens != (uint64_t)s->arch->vocab, ERR_SUPPORT,
            "%" PRIu64 " tokens, and the model's embedding has %" PRId64 " rows",
            f.n_tokens, s->arch->vocab);
    return compare_tokens(c, &f, s->dir);
}

enum err gguf_copy_open(struct gguf_copy *out, const char *path,
                        const struct export_source *s)
{
    TRY(file_map_open(&out->map, path));
    const enum err err = check(out, s);
    return err ? err_add(err, "--gguf-vocab %s: ", path) : OK;
}

enum err gguf_copy_keys(struct gguf_writer *w, const struct gguf_copy *c)
{
    for (int i = 0; i < c->n_keys; i++)
        TRY(gguf_key_stored(w, c->map.data + c->key[i].at, c->key[i].n));
    return OK;
}

void gguf_copy_free(struct gguf_copy *c)
{
    file_map_close(&c->map);
    *c = (struct gguf_copy){0};
}
