/* SPDX-License-Identifier: MIT
 *
 * Published tokenizers on the whole of WikiText-2's test text, whose ids the reference
 * implementations gave (sentencepiece 0.2, tokenizers 0.23). Neither is part of the tree:
 *   WKVQ_DATA     holds wikitext2/wiki.test.raw and llama2/tokenizer.model
 *   WKVQ_SMOLLM2  is a directory with SmolLM2's tokenizer.json
 *   WKVQ_LLAMA3   is a directory with Llama 3's tokenizer.json
 *   WKVQ_DEEPSEEK is a directory with DeepSeek-V3's tokenizer.json
 * Skipped without WKVQ_DATA. */
#include "data/corpus.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct known {
    const char *name, *variable; /* its directory; NULL: WKVQ_DATA/llama2 */
    enum bos_rule bos;
    size_t n_ids;
    uint32_t crc; /* of the ids as little-endian int32 */
};

/* Published counts are 341,469 and, with BOS, 289,077. Llama 3's files differ in whether a
 * template adds BOS, so it is omitted. */
static const struct known known[] = {
    {"LLaMA-2", NULL, BOS_AUTO, 341469, 0x494f3725},
    {"SmolLM2", "WKVQ_SMOLLM2", BOS_AUTO, 304978, 0xc5eeb539},
    {"Llama 3", "WKVQ_LLAMA3", BOS_NEVER, 289076, 0xc8082d4a},
    {"DeepSeek-V3", "WKVQ_DEEPSEEK", BOS_NEVER, 288924, 0x3412a1a2},
};

#define MAX_SECONDS_PER_MB 2.0

/* Encodes as the literature does and compares; 0 if all results are the known ones. */
static int check(const struct known *k, const char *dir, const struct corpus *c)
{
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    if (tokenizer_open(&t, dir)) {
        fprintf(stderr, "%s: %s\n", k->name, err_text());
        return 1;
    }
    const clock_t start = clock();
    const enum err e = tokenizer_encode(&ids, t, c->text, c->bytes, k->bos);
    const double s = (double)(clock() - start) / CLOCKS_PER_SEC / ((double)c->bytes * 1e-6);
    if (e)
        fprintf(stderr, "%s: %s\n", k->name, err_text());
    const uint32_t crc = e ? 0 : bytes_crc32(0, ids.id, ids.n * sizeof(*ids.id));
    const bool same = !e && ids.n == k->n_ids && crc == k->crc;
    const bool fast = s <= MAX_SECONDS_PER_MB;
    printf("%s: %zu ids, CRC-32 %08x, %.3f s/MB (%s)\n", k->name, ids.n, (unsigned)crc, s,
           tokenizer_about(t));
    if (!same)
        printf("  want %zu ids, CRC-32 %08x\n", k->n_ids, (unsigned)k->crc);
    if (!fast)
        printf("  want at most %g s/MB\n", MAX_SECONDS_PER_MB);
    token_ids_free(&ids);
    tokenizer_close(&t);
    return same && fast ? 0 : 1;
}

static int run(const char *data)
{
    int failed = 1;
    struct corpus c = {0};
    char *text = NULL, *llama2 = NULL;
    if (file_join(&text, data, "wikitext2/wiki.test.raw") ||
        file_join(&llama2, data, "llama2") ||
        corpus_load(&c, (const char *const *)&text, 1,
                    &(struct corpus_rules){JOIN_ROWS, NULL})) {
        fprintf(stderr, "%s\n", err_text());
        goto out;
    }
    failed = 0;
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        const struct known *k = &known[i];
        const char *dir = k->variable ? getenv(k->variable) : llama2;
        if (dir && *dir)
            failed += check(k, dir, &c);
        else
            printf("%s: %s is not set\n", k->name, k->variable);
    }
out:
    corpus_free(&c);
    mem_free(text);
    mem_free(llama2);
    return failed ? 1 : 0;
}

int main(void)
{
    const char *data = getenv("WKVQ_DATA");
    if (!data || !*data) {
        printf("skipped: WKVQ_DATA is not set\n");
        return 77;
    }
    return run(data);
}
