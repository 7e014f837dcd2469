/* SPDX-License-Identifier: MIT
 *
 * Texts of a recipe as tokens. Files without shares are joined to one text. Files with
 * shares are tokenized by themselves, and no window crosses from one to another. */
#ifndef WKVQ_TEXTS_H
#define WKVQ_TEXTS_H

#include "data/batch.h"
#include "tools/recipe/recipe.h"

struct texts {
    struct token_ids ids; /* of all texts one after another, owned */
    uint32_t crc;         /* of ids */
    /* [n] owned; names are borrowed from the files. Without shares the only text is "the
     * text". */
    struct batch_text *text;
    int n;
};

/* Tokenizes files by the rules of r. A text with BOS has its own. Free *out whatever the
 * result. Errors: those of corpus_load() and tokenizer_encode(). */
enum err texts_read(struct texts *out, const struct tokenizer *t,
                    const struct recipe_files *files, const struct recipe *r);
void texts_free(struct texts *t); /* accepts a zeroed one */
/* Gives the n texts the shares of files, if there are any. They were read from these
 * files, maybe with other shares. */
void texts_set_shares(struct batch_text *text, int n, const struct recipe_files *files);
/* Makes [{"tokens", "crc32", "share"}, ...] for the identity of what is drawn from them.
 * NULL: out of memory. */
json_t *texts_json(const struct token_ids *ids, const struct batch_text *text, int n);

#endif
