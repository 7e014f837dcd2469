/* SPDX-License-Identifier: MIT
 *
 * tokenizer.model through the SentencePiece library. The file is checked here before the
 * library sees it, which trusts some of what it reads. */
#ifndef WKVQ_TOK_SPM_H
#define WKVQ_TOK_SPM_H

#include "data/tokenizer/tok_text.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct spm_info {
    int64_t n_pieces;
    bool is_bpe; /* or unigram */
};

/* data/tok_spm_check.c: the model file's n bytes. Messages start with path. Errors:
 * ERR_FORMAT; ERR_SUPPORT for model types other than BPE and unigram, and for a
 * normalization other than identity. */
enum err spm_check(struct spm_info *out, const char *data, size_t n, const char *path);

struct spm; /* opaque */

/* data/tok_spm.cc. The bytes must have passed spm_check. */
enum err spm_open(struct spm **out, const char *data, size_t n, const char *path);
void spm_close(struct spm **s);
/* Append the ids of valid UTF-8; symbols like <s> in the text are plain text. */
enum err spm_encode(struct id_list *out, const struct spm *s, const char *text, size_t n);
/* Append the text of n ids; ids that are not there are skipped. With keep_special control
 * symbols appear as their names, and what lies between them is decoded on its own. */
enum err spm_decode(struct text *out, const struct spm *s, const int32_t *ids, size_t n,
                    bool keep_special);
int32_t spm_bos(const struct spm *s); /* -1: none */
int32_t spm_eos(const struct spm *s);
/* Of a piece by its name, -1 if there is none. */
int32_t spm_id(const struct spm *s, const char *piece);

#ifdef __cplusplus
}
#endif

#endif
