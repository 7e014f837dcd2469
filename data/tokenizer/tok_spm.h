/* SPDX-License-Identifier: MIT
 *
 * tokenizer.model through the SentencePiece library. spm_check() validates the file first,
 * because the library trusts parts of its input. */
#ifndef WKVQ_TOK_SPM_H
#define WKVQ_TOK_SPM_H

#include "data/tokenizer/tok_text.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct spm_info {
    int64_t n_pieces;
    bool is_bpe;       /* false: unigram */
    bool prefix_space; /* a space is added in front of a text */
    bool normalizes;   /* characters are replaced by a table of the file */
    bool keeps_spaces; /* false: runs of spaces become one, and those at the ends none */
};

enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN,
    PIECE_CONTROL,
    PIECE_USER,
    PIECE_UNUSED,
    PIECE_BYTE
};

struct spm_piece {
    const char *name; /* borrowed, not NUL-terminated */
    size_t n;
    float score;
    enum piece_type type;
};

/* files/tok_spm_check.c: checks the n bytes of a model file. Messages start with path. Errors:
 * ERR_FORMAT; ERR_SUPPORT for model types other than BPE and unigram. */
enum err spm_check(struct spm_info *out, const char *data, size_t n, const char *path);

/* Passes the pieces of a model that has passed spm_check(), in the order of their ids.
 * Returns the first error of each. */
enum err spm_pieces(const char *data, size_t n,
                    enum err (*each)(void *ctx, const struct spm_piece *p), void *ctx);

struct spm; /* opaque */

/* tok_spm.cc: opens a model whose bytes have passed spm_check(). */
enum err spm_open(struct spm **out, const char *data, size_t n, const char *path);
void spm_close(struct spm **s);
/* Appends the ids of valid UTF-8. Symbols such as <s> in the text are plain text. */
enum err spm_encode(struct id_list *out, const struct spm *s, const char *text, size_t n);
/* Appends the text of n ids; unknown ids are skipped. With keep_special, control symbols
 * appear as their names, and the ids between them are decoded separately. */
enum err spm_decode(struct text *out, const struct spm *s, const int32_t *ids, size_t n,
                    bool keep_special);
int32_t spm_bos(const struct spm *s); /* -1 if there is none */
int32_t spm_eos(const struct spm *s);
/* Returns the id of a piece by its name, or -1 if it is missing. */
int32_t spm_id(const struct spm *s, const char *piece);

#ifdef __cplusplus
}
#endif

#endif
