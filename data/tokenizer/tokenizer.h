/* SPDX-License-Identifier: MIT
 *
 * Tokenizers of Hugging Face model directories: tokenizer.json (byte-level BPE with any
 * pattern for words; the SentencePiece-like BPE of Llama-2 and Mistral; Unigram), or else
 * tokenizer.model (SentencePiece, or Llama 3's ranks of tiktoken), or else vocab.json with
 * merges.txt (GPT-2, Qwen2). Ids equal the reference implementations'. Read-only after
 * opening; one thread. */
#ifndef WKVQ_TOKENIZER_H
#define WKVQ_TOKENIZER_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer; /* opaque */

enum bos_rule {
    /* Adds BOS as the model's own tokenizer does: by the template of tokenizer.json, or
     * always for tokenizer.model (the literature's default), unless tokenizer_config.json
     * has add_bos_token: false. */
    BOS_AUTO,
    BOS_NEVER,
    BOS_ALWAYS
};

struct token_ids {
    int32_t *id; /* owned */
    size_t n;
};

/* Opens the tokenizer of a directory, preferably tokenizer.json. BOS and EOS are those of
 * the template, or else of tokenizer_config.json or special_tokens_map.json. Added tokens
 * of the file itself come first, then those of tokenizer_config.json or added_tokens.json.
 * Errors: ERR_NOT_FOUND (no such file), ERR_FORMAT, ERR_SUPPORT with the component and what
 * is supported, ERR_MEMORY. */
enum err tokenizer_open(struct tokenizer **out, const char *model_dir);
void tokenizer_close(struct tokenizer **t);

/* Encodes text of any bytes; invalid UTF-8 is treated as U+FFFD per maximal invalid part.
 * Added and special tokens in the text are recognized as in the reference. BOS is added
 * once, before the whole text. The caller frees *out with token_ids_free(). ERR_USAGE for
 * BOS_ALWAYS without a BOS token. */
enum err tokenizer_encode(struct token_ids *out, const struct tokenizer *t,
                          const char *text, size_t bytes, enum bos_rule bos);
void token_ids_free(struct token_ids *ids);

/* Decodes n ids to NUL-terminated UTF-8, which the caller frees with mem_free(). Special
 * tokens are omitted unless keep_special; unknown ids are skipped. */
enum err tokenizer_decode(char **out, size_t *bytes, const struct tokenizer *t,
                          const int32_t *ids, size_t n, bool keep_special);

/* What an open tokenizer is made of, for exports to other formats. Borrowed. */
struct json_tokenizer;  /* data/tokenizer/files/tok_json.h */
struct model_tokenizer; /* data/tokenizer/files/tok_model.h */
struct tokenizer_parts {
    /* One of the two is set. A json_tokenizer knows itself what it adds around a text. */
    const struct json_tokenizer *json;
    const struct model_tokenizer *model;
    bool model_bos, model_eos; /* what BOS_AUTO adds around a text, with model */
    int32_t unk, pad;          /* -1 if unknown */
};
struct tokenizer_parts tokenizer_parts(const struct tokenizer *t);

int64_t tokenizer_vocab(const struct tokenizer *t); /* highest id + 1 */
int32_t tokenizer_bos(const struct tokenizer *t);   /* -1 if there is none */
int32_t tokenizer_eos(const struct tokenizer *t);   /* -1 if unknown */
/* Returns true if id ends a text: EOS, or an eos_token_id of generation_config.json. */
bool tokenizer_ends(const struct tokenizer *t, int32_t id);
/* Returns a description for reports, "tokenizer.json: byte-level BPE (Llama 3)".
 * Borrowed. */
const char *tokenizer_about(const struct tokenizer *t);
/* Returns the name of the tokenizer's file, "tokenizer.json". Borrowed. */
const char *tokenizer_file(const struct tokenizer *t);

#endif
