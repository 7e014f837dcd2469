/* SPDX-License-Identifier: MIT
 *
 * tokenizer.json: what the file says, and encoding and decoding by it. truncation and
 * padding are left aside: whole texts are encoded. */
#ifndef WKVQ_TOK_JSON_H
#define WKVQ_TOK_JSON_H

#include "data/json.h"
#include "data/tokenizer/tok_added.h"
#include "data/tokenizer/tok_bpe.h"
#include "data/tokenizer/tok_decode.h"
#include "data/tokenizer/tok_pre.h"

struct json_tokenizer {
    struct bpe bpe;
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
    struct id_list before, after;         /* what the post-processor puts around a text */
    struct decoder decoder;
};

/* Add a token that is not in tokenizer.json; of one content the first counts. A token
 * without an id (-1) takes that of the vocabulary, or is left out. The content is copied.
 * Errors: ERR_FORMAT, the sentence without a file name. */
enum err json_tokenizer_add(struct json_tokenizer *t, const struct added_token *a);

/* path names the file, and starts every message. Errors: ERR_FORMAT, ERR_SUPPORT. */
enum err json_tokenizer_open(struct json_tokenizer **out, const char *path);
void json_tokenizer_close(struct json_tokenizer **t);

/* Append the ids of valid UTF-8 s, without what the post-processor adds. */
enum err json_tokenizer_encode(struct id_list *out, const struct json_tokenizer *t,
                               const char *s, size_t n);
/* Append the text of n ids; ids that are not there are skipped. */
enum err json_tokenizer_decode(struct text *out, const struct json_tokenizer *t,
                               const int32_t *ids, size_t n, bool keep_special);
/* -1 if there is no such token. */
int32_t json_tokenizer_id(const struct json_tokenizer *t, const char *content);

/* An object {"token": id, ...} into an empty b, which is then indexed. Anything else is
 * ERR_FORMAT. */
enum err tok_parse_vocab(struct bpe *b, json_t *vocab, const char *where);

/* data/tok_steps.c: a component's description to its steps. v may be NULL (null). */
enum err normalizer_parse(struct normalizer *out, const json_t *v, const char *where);
enum err pre_tokenizer_parse(struct pre_tokenizer *out, const char **family,
                             const json_t *v, const char *where);
enum err decoder_parse(struct decoder *out, const json_t *v, const char *where);

/* data/tok_post.c. */
enum err post_processor_parse(struct id_list *before, struct id_list *after,
                              const json_t *v, const char *where);

#endif
