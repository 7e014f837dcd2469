/* SPDX-License-Identifier: MIT
 *
 * What the files beside a tokenizer say: tokenizer_config.json, special_tokens_map.json,
 * added_tokens.json and generation_config.json. Each of them may be missing. */
#ifndef WKVQ_TOK_BESIDE_H
#define WKVQ_TOK_BESIDE_H

#include "data/tokenizer/tok_added.h"

/* A flag that a file need not have. */
enum said { SAID_NOTHING, SAID_NO, SAID_YES };

struct tok_beside {
    char *class_name; /* tokenizer_class without "Fast"; owned; NULL: not said */
    char *bos, *eos;  /* names; owned; NULL: not said */
    enum said add_bos, add_eos, legacy, prefix_space;
    /* added_tokens_decoder or else added_tokens.json, then the special tokens that are known
     * by name alone, whose id is -1. Contents differ from each other and are not empty. */
    struct added_token *added; /* owned */
    size_t n_added;
    struct dict contents; /* numbered as in added */
    struct id_list ends;  /* eos_token_id of generation_config.json */
};

/* Errors: ERR_FORMAT and what reading a file gives. */
enum err tok_beside_read(struct tok_beside *out, const char *dir);
void tok_beside_free(struct tok_beside *b); /* accepts a zeroed one */

#endif
