/* SPDX-License-Identifier: MIT
 *
 * Byte-level BPE from files older than tokenizer.json, or beside it: vocab.json with
 * merges.txt, and the ranks of tiktoken, which Meta ships as tokenizer.model. */
#ifndef WKVQ_TOK_FILES_H
#define WKVQ_TOK_FILES_H

#include "data/tokenizer/tok_beside.h"
#include "data/tokenizer/tok_json.h"

/* vocab.json and merges.txt in dir. How a text is cut into words follows tokenizer_class:
 * GPT2Tokenizer or Qwen2Tokenizer; any other is ERR_SUPPORT. */
enum err tok_open_vocab_merges(struct json_tokenizer **out, const char *dir,
                               const struct tok_beside *beside);

/* Do these n bytes start like a file of ranks: base64, a space, a number, a line end? */
bool tok_is_ranks(const char *data, size_t n);
/* The n bytes of the file at path, with Llama 3's way to cut words and Meta's names for the
 * 256 special tokens after the ranks, unless beside names them otherwise. */
enum err tok_open_ranks(struct json_tokenizer **out, const char *data, size_t n,
                        const char *path, const struct tok_beside *beside);

#endif
