/* SPDX-License-Identifier: MIT
 *
 * Tokenizers of Hugging Face model directories: tokenizer.json (byte-level BPE with the
 * pre-tokenizers of GPT-2, SmolLM, Llama 3 and Qwen2; the SentencePiece-like BPE of Llama-2
 * and Mistral), or else tokenizer.model (SentencePiece, or Llama 3's ranks of tiktoken), or
 * else vocab.json with merges.txt (GPT-2, Qwen2). Ids equal the reference implementations'.
 * Read-only after opening; one thread. */
#ifndef WKVQ_TOKENIZER_H
#define WKVQ_TOKENIZER_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer; /* opaque */

enum bos_rule {
    BOS_AUTO, /* as the model's own tokenizer does it: the template of tokenizer.json, or
                 always for tokenizer.model (the literature's default), unless
                 tokenizer_config.json says add_bos_token: false */
    BOS_NEVER,
    BOS_ALWAYS
};

struct token_ids {
    int32_t *id; /* owned */
    size_t n;
};

/* Prefers tokenizer.json. BOS and EOS are the template's, or else those of
 * tokenizer_config.json or special_tokens_map.json beside it. Added tokens are the file's,
 * then those of tokenizer_config.json or added_tokens.json. Errors: ERR_NOT_FOUND (no such
 * file), ERR_FORMAT, ERR_SUPPORT naming the component and what is supported. */
enum err tokenizer_open(struct tokenizer **out, const char *model_dir);
void tokenizer_close(struct tokenizer **t);

/* Added and special tokens in the text are recognized as the reference does. BOS goes once
 * in front of the whole. text: any bytes, invalid UTF-8 is treated as U+FFFD per maximal
 * invalid part. Release with token_ids_free. BOS_ALWAYS without a BOS token is ERR_USAGE.
 */
enum err tokenizer_encode(struct token_ids *out, const struct tokenizer *t,
                          const char *text, size_t bytes, enum bos_rule bos);
void token_ids_free(struct token_ids *ids);

/* UTF-8 text of n ids, NUL-terminated, released with mem_free; special tokens are left out
 * unless keep_special, and ids that are not there are skipped. */
enum err tokenizer_decode(char **out, size_t *bytes, const struct tokenizer *t,
                          const int32_t *ids, size_t n, bool keep_special);

int64_t tokenizer_vocab(const struct tokenizer *t); /* highest id + 1 */
int32_t tokenizer_bos(const struct tokenizer *t);   /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t);   /* -1: unknown here */
/* Does id end a text: as EOS, or as one of generation_config.json's eos_token_id? */
bool tokenizer_ends(const struct tokenizer *t, int32_t id);
/* "tokenizer.json: byte-level BPE (Llama 3)", for reports. Borrowed. */
const char *tokenizer_about(const struct tokenizer *t);
/* File the tokenizer was read from, "tokenizer.json". Borrowed. */
const char *tokenizer_file(const struct tokenizer *t);

#endif
