/* SPDX-License-Identifier: MIT
 *
 * SentencePiece's tokenizer.model, with the added tokens of the files beside it. */
#ifndef WKVQ_TOK_MODEL_H
#define WKVQ_TOK_MODEL_H

#include "data/tokenizer/files/tok_beside.h"
#include "data/tokenizer/tok_spm.h"

struct model_tokenizer {
    struct spm *spm;  /* adds a space in front of a text */
    struct spm *bare; /* adds none; NULL: spm encodes all parts of a text */
    struct spm_info info;
    struct added_token *added; /* owned, the contents too */
    size_t n_added;
    struct added_matcher matcher;
    struct pair_map added_of; /* (id, 0) -> index in added */
    int64_t n_ids;            /* highest id + 1 */
};

/* Opens the n bytes of the file at path, which starts every message. Errors: those of
 * spm_check(); ERR_FORMAT for an added token whose id is used by another. */
enum err model_tokenizer_open(struct model_tokenizer **out, const char *data, size_t n,
                              const char *path, const struct tok_beside *beside);
void model_tokenizer_close(struct model_tokenizer **t);

/* As spm_encode() and spm_decode(), with added tokens. */
enum err model_tokenizer_encode(struct id_list *out, const struct model_tokenizer *t,
                                const char *s, size_t n);
enum err model_tokenizer_decode(struct text *out, const struct model_tokenizer *t,
                                const int32_t *ids, size_t n, bool keep_special);
/* Returns the id of a token, or -1 if it is missing. */
int32_t model_tokenizer_id(const struct model_tokenizer *t, const char *content);

#endif
