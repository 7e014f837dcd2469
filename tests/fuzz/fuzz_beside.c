/* SPDX-License-Identifier: MIT
 *
 * The files beside a tokenizer, and its older forms. The first byte selects the file that
 * the rest is written to. A tokenizer that opens must encode and decode. */
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {
    "tokenizer_config.json",  "added_tokens.json", "special_tokens_map.json",
    "generation_config.json", "vocab.json",        "merges.txt"};
enum { VOCAB = 4, MERGES };

/* The valid files beside the hostile one. */
static const char config[] = "{\"tokenizer_class\": \"GPT2Tokenizer\"}",
                  vocab[] = "{\"a\": 0, \"b\": 1, \"\xC4\xA0\": 2, \"ab\": 3}",
                  merges[] = "#version: 0.2\na b\n",
                  text[] = "ab <|im_start|>a b<s>\xff aaab  ab";

void fuzz_setup(void)
{
    fuzz_copy("tokenizer.model", "model");
}

/* The number of the hostile file, and the other files of the directory. */
static void lay_out(size_t which)
{
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        unlink(fuzz_path(names[i]));
    unlink(fuzz_path("tokenizer.model"));
    if (which < VOCAB) {
        if (link(fuzz_path("model"), fuzz_path("tokenizer.model")))
            fuzz_copy("tokenizer.model", "tokenizer.model");
        return;
    }
    fuzz_put("tokenizer_config.json", config, sizeof(config) - 1);
    if (which == VOCAB)
        fuzz_put("merges.txt", merges, sizeof(merges) - 1);
    else
        fuzz_put("vocab.json", vocab, sizeof(vocab) - 1);
}

static void encode(const struct tokenizer *t)
{
    struct token_ids ids = {0};
    char *back = NULL;
    size_t bytes = 0;
    const enum err e = tokenizer_encode(&ids, t, text, sizeof(text) - 1, BOS_AUTO);
    fuzz_check(e);
    for (size_t i = 0; i < ids.n; i++)
        (void)tokenizer_ends(t, ids.id[i]);
    fuzz_check(tokenizer_decode(&back, &bytes, t, ids.id, ids.n, ids.n % 2));
    if (back)
        fuzz_use(back, bytes);
    mem_free(back);
    token_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tokenizer *t = NULL;
    if (!n || data[0] >= ARRAY_LEN(names))
        return 0;
    lay_out(data[0]);
    fuzz_put(names[data[0]], data + 1, n - 1);
    const enum err e = tokenizer_open(&t, fuzz_path(""));
    fuzz_check(e);
    if (!e)
        encode(t);
    tokenizer_close(&t);
    return 0;
}
