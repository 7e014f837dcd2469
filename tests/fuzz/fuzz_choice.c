/* SPDX-License-Identifier: MIT
 *
 * Multiple-choice questions, and the labels that one of the sets stores in a separate file.
 * The labels follow the first NUL. */
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"
#include "tools/eval/tasks/choice.h"
#include "tools/eval/tasks/zeroshot.h"

#include <stdlib.h>
#include <string.h>

static struct tokenizer *tokenizer;

static void close_tokenizer(void)
{
    tokenizer_close(&tokenizer);
}

void fuzz_setup(void)
{
    fuzz_copy("model/tokenizer.json", "tokenizer.json");
    if (tokenizer_open(&tokenizer, fuzz_path("")))
        abort();
    atexit(close_tokenizer);
}

static void encode(const struct question_set *s)
{
    for (int64_t i = 0; i < s->n; i++)
        for (int k = 0; k < s->item[i].n; k++) {
            struct request r = {0};
            fuzz_check(request_encode(&r, tokenizer, &s->item[i].choice[k], BOS_AUTO, 64));
            mem_free(r.ids);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct question_set s = {0};
    const uint8_t *nul = n ? memchr(data, 0, n) : NULL;
    const size_t questions = nul ? (size_t)(nul - data) : n;
    fuzz_put("q.jsonl", data, questions);
    if (nul)
        fuzz_put("labels", nul + 1, n - questions - 1);
    const char *path[] = {fuzz_path("labels")};
    struct label_files labels = {.path = path, .n = nul != NULL};
    const int64_t limit = (int64_t)(n % 3); /* 0: all */
    const enum err e = question_set_load(&s, fuzz_path("q.jsonl"), &labels, limit);
    fuzz_check(e);
    if (!e)
        encode(&s);
    question_set_free(&s);
    return 0;
}
