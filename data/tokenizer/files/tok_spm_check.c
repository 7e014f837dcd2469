/* SPDX-License-Identifier: MIT
 *
 * A SentencePiece model is a protobuf message:
 *   ModelProto:      1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
 *   pieces:          1 piece (string), 2 score (float), 3 type
 *   trainer_spec:    3 model_type (1 unigram, 2 BPE), 35 byte_fallback
 *   normalizer_spec: 2 precompiled_charsmap (empty: identity), 3 add_dummy_prefix,
 *                    4 remove_extra_whitespaces
 *   ModelProto also has 5 denormalizer_spec, which is like a normalizer_spec.
 * Other fields are skipped and left to the library. */
#include "data/tokenizer/tok_charsmap.h"
#include "data/tokenizer/tok_map.h"
#include "data/tokenizer/tok_spm.h"

#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define MAX_PIECES ((size_t)1 << 21)

struct field {
    uint32_t number;
    int wire;            /* 0 varint, 1 64 bits, 2 bytes, 5 32 bits */
    uint64_t value;      /* wire 0 */
    const uint8_t *data; /* wire 1, 2, 5 */
    uint64_t n;
};

static enum err next_field(struct field *f, struct bytes *b)
{
    uint64_t key;
    TRY(bytes_varint(b, &key));
    f->wire = (int)(key & 7);
    FAIL_IF(key >> 3 == 0 || key >> 3 > 0x1FFFFFFF, ERR_FORMAT, "field number %" PRIu64,
            key >> 3);
    f->number = (uint32_t)(key >> 3);
    f->n = f->wire == 1 ? 8 : 4;
    f->data = NULL;
    f->value = 0;
    switch (f->wire) {
    case 0:
        return bytes_varint(b, &f->value);
    case 2:
        TRY(bytes_varint(b, &f->n));
        return bytes_view(b, f->n, &f->data);
    case 1:
    case 5:
        return bytes_view(b, f->n, &f->data);
    default:
        FAIL(ERR_FORMAT, "field %" PRIu32 " has wire type %d", f->number, f->wire);
    }
}

struct check {
    struct dict pieces;
    size_t n_pieces, n_unknown, n_bytes;
    uint64_t model_type; /* 1 if missing */
    uint64_t byte_fallback;
    bool prefix_space, keeps_spaces, normalizes;
};

/* Returns true for "<0x0A>", in upper case, as the library reads it. */
static bool is_byte_name(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    return n == 6 && !memcmp(s, "<0x", 3) && s[5] == '>' && s[3] && strchr(digits, s[3]) &&
           s[4] && strchr(digits, s[4]);
}

static enum err check_name(struct check *c, const char *s, size_t n, uint64_t type)
{
    uint32_t index;
    const size_t k = c->n_pieces;
    FAIL_IF(!n || n > TOKEN_BYTES_MAX, ERR_FORMAT, "piece %zu: %zu bytes, want 1 to %d", k,
            n, TOKEN_BYTES_MAX);
    FAIL_IF(memchr(s, 0, n) || !utf8_valid(s, n), ERR_FORMAT, "piece %zu: not UTF-8 text",
            k);
    TRY(dict_add(&index, &c->pieces, s, n));
    FAIL_IF(index != k, ERR_FORMAT, "piece %zu: \"%.*s\" appears twice", k,
            (int)(n < 80 ? n : 80), s);
    FAIL_IF(type < PIECE_NORMAL || type > PIECE_BYTE, ERR_FORMAT,
            "piece %zu: type %" PRIu64 ", want 1 to 6", k, type);
    FAIL_IF(type == PIECE_BYTE && !is_byte_name(s, n), ERR_FORMAT,
            "piece %zu: type is byte, but its name is \"%.*s\"", k, (int)(n < 80 ? n : 80),
            s);
    return OK;
}

/* Reads a piece; *type is as stored. */
static enum err read_piece(struct spm_piece *p, uint64_t *type, struct bytes b)
{
    struct field f;
    *p = (struct spm_piece){.name = ""};
    *type = PIECE_NORMAL;
    while (b.pos < b.size) {
        TRY(next_field(&f, &b));
        if (f.number == 1 && f.wire == 2) {
            p->name = (const char *)f.data;
            p->n = (size_t)f.n;
        } else if (f.number == 2 && f.wire == 5)
            memcpy(&p->score, f.data, sizeof(p->score));
        else if (f.number == 3 && f.wire == 0)
            *type = f.value;
    }
    return OK;
}

static enum err check_piece(struct check *c, struct bytes b)
{
    struct spm_piece p;
    uint64_t type;
    FAIL_IF(c->n_pieces == MAX_PIECES, ERR_FORMAT, "more than %zu pieces", MAX_PIECES);
    TRY(read_piece(&p, &type, b));
    TRY(check_name(c, p.name, p.n, type));
    /* A score that is not a number would break the library's ordering. */
    FAIL_IF(!isfinite(p.score), ERR_FORMAT, "piece %zu: its score is not finite",
            c->n_pieces);
    c->n_unknown += type == PIECE_UNKNOWN;
    c->n_bytes += type == PIECE_BYTE;
    c->n_pieces++;
    return OK;
}

static enum err check_trainer(struct check *c, struct bytes b)
{
    struct field f;
    while (b.pos < b.size) {
        TRY(next_field(&f, &b));
        if (f.number == 3 && f.wire == 0)
            c->model_type = f.value;
        else if (f.number == 35 && f.wire == 0)
            c->byte_fallback = f.value;
    }
    return OK;
}

/* The library follows the offsets of a table without a check. */
static enum err check_charsmap(const struct field *f)
{
    struct charsmap m = {0};
    const enum err err = charsmap_open(&m, (const char *)f->data, (size_t)f->n);
    charsmap_free(&m);
    return err;
}

static enum err check_denormalizer(struct bytes b)
{
    struct field f;
    while (b.pos < b.size) {
        TRY(next_field(&f, &b));
        if (f.number == 2 && f.wire == 2 && f.n)
            TRY(check_charsmap(&f));
    }
    return OK;
}

static enum err check_normalizer(struct check *c, struct bytes b)
{
    struct field f;
    while (b.pos < b.size) {
        TRY(next_field(&f, &b));
        if (f.number == 2 && f.wire == 2) {
            c->normalizes = f.n > 0;
            if (f.n)
                TRY(check_charsmap(&f));
        } else if (f.number == 3 && f.wire == 0)
            c->prefix_space = f.value != 0;
        else if (f.number == 4 && f.wire == 0)
            c->keeps_spaces = f.value == 0;
    }
    return OK;
}

static enum err check_model(struct check *c, struct bytes b)
{
    struct field f;
    while (b.pos < b.size) {
        TRY(next_field(&f, &b));
        const struct bytes part = {.data = f.data, .size = (size_t)f.n};
        if (f.wire != 2)
            continue;
        if (f.number == 1)
            TRY(check_piece(c, part));
        else if (f.number == 2)
            TRY(check_trainer(c, part));
        else if (f.number == 3)
            TRY(check_normalizer(c, part));
        else if (f.number == 5)
            TRY(check_denormalizer(part));
    }
    FAIL_IF(!c->n_pieces, ERR_FORMAT, "no pieces: not a SentencePiece model");
    FAIL_IF(c->n_unknown != 1, ERR_FORMAT, "%zu unknown pieces, want 1", c->n_unknown);
    FAIL_IF(c->byte_fallback && c->n_bytes != 256, ERR_FORMAT,
            "byte_fallback with %zu byte pieces, want 256", c->n_bytes);
    FAIL_IF(c->model_type != 1 && c->model_type != 2, ERR_SUPPORT,
            "model type %" PRIu64 " is not supported (supported: 1 unigram, 2 BPE)",
            c->model_type);
    return OK;
}

enum err spm_check(struct spm_info *out, const char *data, size_t n, const char *path)
{
    struct check c = {.model_type = 1, .prefix_space = true};
    const struct bytes b = {.data = (const uint8_t *)data, .size = n};
    const enum err err = check_model(&c, b);
    dict_free(&c.pieces);
    if (err)
        return err_add(err, "%s: ", path);
    *out = (struct spm_info){(int64_t)c.n_pieces, c.model_type == 2, c.prefix_space,
                             c.normalizes, c.keeps_spaces};
    return OK;
}

enum err spm_pieces(const char *data, size_t n,
                    enum err (*each)(void *ctx, const struct spm_piece *p), void *ctx)
{
    struct field f;
    struct bytes b = {.data = (const uint8_t *)data, .size = n};
    while (b.pos < b.size) {
        struct spm_piece p;
        uint64_t type;
        TRY(next_field(&f, &b));
        if (f.number != 1 || f.wire != 2)
            continue;
        TRY(read_piece(&p, &type, (struct bytes){.data = f.data, .size = (size_t)f.n}));
        p.type = (enum piece_type)type;
        TRY(each(ctx, &p));
    }
    return OK;
}
