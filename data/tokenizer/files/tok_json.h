/* SPDX-License-Identifier: MIT
 *
 * Reads tokenizer.json, and encodes and decodes with it. truncation and padding are
 * ignored: whole texts are encoded. An open tokenizer is read-only. */
#ifndef WKVQ_TOK_JSON_H
#define WKVQ_TOK_JSON_H

#include "data/json.h"
#include "data/tokenizer/files/tok_added.h"
#include "data/tokenizer/tok_bpe.h"
#include "data/tokenizer/tok_decode.h"
#include "data/tokenizer/tok_pre.h"
#include "data/tokenizer/tok_unigram.h"

struct json_tokenizer {
    struct bpe bpe;         /* of a Unigram: its vocabulary and flags, without merges */
    struct unigram unigram; /* empty for BPE */
    struct normalizer normal;
    struct pre_tokenizer pre;
    const char *family; /* of the pre-tokenizer, for reports */
    struct added_token *added;
    size_t n_added, added_cap;
    struct dict added_content;            /* numbered as in added */
    int32_t next_added;                   /* highest id in added + 1 */
    struct pair_map added_of;             /* (id, 0) -> index in added */
    struct added_matcher raw, normalized; /* before and after the normalizer */
    int32_t n_ids;                        /* highest id + 1, added tokens included */
    struct id_list before, after; /* ids that the post-processor adds around a text */
    struct decoder decoder;
};

/* Adds those of n tokens that are missing to one without a tokenizer.json; the first one of a
 * content is kept. A token without an id (-1) takes that of the vocabulary, and is ignored if
 * there is none. Contents are copied. ERR_FORMAT with a message without a file name; ERR_SUPPORT
 * beyond the limits of the steps; ERR_MEMORY. */
enum err json_tokenizer_add(struct json_tokenizer *t, const struct added_token *a,
                            size_t n);

/* Opens the file at path, which starts every message, with the n tokens of the files beside
 * it, as json_tokenizer_add() adds them; the flags of one that decides replace those of
 * its content here. Errors: ERR_FORMAT, ERR_SUPPORT, ERR_MEMORY. */
enum err json_tokenizer_open(struct json_tokenizer **out, const char *path,
                             const struct added_token *beside, size_t n);
void json_tokenizer_close(struct json_tokenizer **t);

/* Appends the ids of s, which is valid UTF-8, without those that the post-processor
 * adds. */
enum err json_tokenizer_encode(struct id_list *out, const struct json_tokenizer *t,
                               const char *s, size_t n);
/* Appends the text of n ids; unknown ids are skipped. */
enum err json_tokenizer_decode(struct text *out, const struct json_tokenizer *t,
                               const int32_t *ids, size_t n, bool keep_special);
/* Returns the id of a token, or -1 if it is missing. */
int32_t json_tokenizer_id(const struct json_tokenizer *t, const char *content);

/* Adds an object {"token": id, ...} to b, which is empty, and indexes it. lost_keys: that of
 * json_load_table(). ERR_FORMAT for anything else; ERR_SUPPORT for a token with a character
 * that was lost. */
enum err tok_parse_vocab(struct bpe *b, json_t *vocab, bool lost_keys, const char *where);

/* tok_steps.c: parse a component's description to its steps. v may be NULL (null).
 * ERR_FORMAT, ERR_SUPPORT. */
enum err normalizer_parse(struct normalizer *out, const json_t *v, const char *where);
enum err pre_tokenizer_parse(struct pre_tokenizer *out, const char **family,
                             const json_t *v, const char *where);
enum err decoder_parse(struct decoder *out, const json_t *v, const char *where);

/* tok_post.c: the same for the post-processor. */
enum err post_processor_parse(struct id_list *before, struct id_list *after,
                              const json_t *v, const char *where);

#endif
