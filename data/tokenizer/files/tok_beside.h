/* SPDX-License-Identifier: MIT
 *
 * Reads the files beside a tokenizer: tokenizer_config.json, special_tokens_map.json,
 * added_tokens.json and generation_config.json. Each of them may be missing. */
#ifndef WKVQ_TOK_BESIDE_H
#define WKVQ_TOK_BESIDE_H

#include "data/tokenizer/files/tok_added.h"

/* A flag that a file may leave out. */
enum said { SAID_NOTHING, SAID_NO, SAID_YES };

struct tok_beside {
    char *class_name; /* tokenizer_class without "Fast"; owned; NULL if missing */
    char *bos, *eos, *unk, *pad; /* names; owned; NULL if missing */
    enum said add_bos, add_eos, legacy, prefix_space;
    /* Tokens of added_tokens_decoder or else of added_tokens.json, then the special tokens
     * with a name but no id (-1). Contents are unique and not empty. */
    struct added_token *added; /* owned */
    size_t n_added;
    struct dict contents; /* numbered as in added */
    struct id_list ends;  /* eos_token_id of generation_config.json */
};

/* Reads the files of dir. Errors: ERR_FORMAT, and those of reading a file. */
enum err tok_beside_read(struct tok_beside *out, const char *dir);
void tok_beside_free(struct tok_beside *b); /* accepts a zeroed one */

#endif
