/* SPDX-License-Identifier: MIT
 *
 * `wkvq tokenize`: prints the ids of a text file, for comparison with other tokenizers. */
#include "data/corpus.h"
#include "data/tokenizer/tokenizer.h"
#include "tools/commands/commands.h"

#include <stdio.h>

static const struct opt *const groups[] = {opt_report, NULL};

static void print_ids(const struct token_ids *ids, const char *separator)
{
    for (size_t i = 0; i < ids->n; i++)
        printf("%s%d", i ? separator : "", ids->id[i]);
}

static enum err print_tokens(const struct args *a, const struct tokenizer *t,
                             const struct corpus *c)
{
    struct token_ids ids = {0};
    TRY(tokenizer_encode(&ids, t, c->text, c->bytes, BOS_NEVER));
    if (a->json)
        printf("{\"tokenizer\": \"%s\", \"bytes\": %zu, \"tokens\": %zu, \"ids\": [",
               tokenizer_about(t), c->bytes, ids.n);
    print_ids(&ids, a->json ? ", " : " ");
    printf(a->json ? "]}\n" : "\n");
    token_ids_free(&ids);
    return OK;
}

static enum err cmd_tokenize_run(struct args *a)
{
    struct tokenizer *t = NULL;
    struct corpus c = {0};
    TRY(tokenizer_open(&t, a->pos.item[0]));
    const struct corpus_rules rules = {JOIN_FILE, NULL};
    enum err err = corpus_load(&c, &a->pos.item[1], 1, &rules);
    if (!err)
        err = print_tokens(a, t, &c);
    corpus_free(&c);
    tokenizer_close(&t);
    return err;
}

const struct command cmd_tokenize = {
    .name = "tokenize",
    .operands = "MODEL_DIR FILE",
    .summary = "Print the token ids of a text file",
    .details =
        "MODEL_DIR contains tokenizer.json, tokenizer.model (SentencePiece or Llama 3's "
        "ranks), or vocab.json with merges.txt. The text is used unchanged, without a BOS "
        "token. Archives are unpacked, and the texts of JSON rows are joined. FILE - is "
        "standard input.\n\n"
        "  wkvq tokenize Llama-2-7b prompt.txt\n",
    .groups = groups,
    .min_pos = 2,
    .max_pos = 2,
    .model = 1,
    .run = cmd_tokenize_run,
};
