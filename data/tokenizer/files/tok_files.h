/* SPDX-License-Identifier: MIT
 *
 * Byte-level BPE from other files than tokenizer.json: vocab.json with merges.txt, and the
 * ranks of tiktoken, which Meta ships as tokenizer.model. */
#ifndef WKVQ_TOK_FILES_H
#define WKVQ_TOK_FILES_H

#include "data/tokenizer/files/tok_beside.h"
#include "data/tokenizer/files/tok_json.h"

/* Opens vocab.json and merges.txt in dir. tokenizer_class selects how a text is split into
 * words: GPT2Tokenizer or Qwen2Tokenizer. ERR_SUPPORT for any other; ERR_FORMAT,
 * ERR_MEMORY. */
enum err tok_open_vocab_merges(struct json_tokenizer **out, const char *dir,
                               const struct tok_beside *beside);

/* Returns true if these n bytes start like a file of ranks: base64, a space, a number, a
 * line end. */
bool tok_is_ranks(const char *data, size_t n);
/* Opens the n bytes of the file at path. Words are split as in Llama 3. The 256 special
 * tokens after the ranks have Meta's names, unless beside gives others. Errors: ERR_FORMAT,
 * ERR_MEMORY. */
enum err tok_open_ranks(struct json_tokenizer **out, const char *data, size_t n,
                        const char *path, const struct tok_beside *beside);

#endif
