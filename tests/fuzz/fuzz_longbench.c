/* SPDX-License-Identifier: MIT
 *
 * LongBench: questions, and a file of prompts after the first NUL, if there is one. Loaded
 * questions are also scored. */
#include "tests/fuzz/fuzz.h"
#include "tools/eval/tasks/longbench.h"

#include <stdlib.h>
#include <string.h>

static const char prompts[] = "{\"qasper\": \"Read {context} and say {input}\"}";
static const char lengths[] = "{\"qasper\": 8, \"lcc\": 64, \"triviaqa\": 32}";
static struct tokenizer *tokenizer;

static void close_tokenizer(void)
{
    tokenizer_close(&tokenizer);
}

void fuzz_setup(void)
{
    fuzz_copy("model/tokenizer.json", "tokenizer.json");
    fuzz_put("maxlen.json", lengths, sizeof(lengths) - 1);
    if (tokenizer_open(&tokenizer, fuzz_path("")))
        abort();
    atexit(close_tokenizer);
}

static void score(const struct longbench_set *s)
{
    static const char answer[] = "The answer is\n`42` # code";
    const struct span span = {answer, sizeof(answer) - 1};
    for (int64_t i = 0; i < s->n; i++) {
        double x = 0;
        fuzz_check(longbench_score(&x, s->task, span, s->item[i].answers));
        if (!(x >= 0 && x <= 1))
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct longbench_config c = {0};
    struct longbench_set s = {0};
    const uint8_t *nul = n ? memchr(data, 0, n) : NULL;
    const size_t rows = nul ? (size_t)(nul - data) : n;
    fuzz_put("q.jsonl", data, rows);
    if (nul)
        fuzz_put("prompts.json", nul + 1, n - rows - 1);
    else
        fuzz_put("prompts.json", prompts, sizeof(prompts) - 1);
    const enum err e =
        longbench_config_open(&c, fuzz_path("prompts.json"), fuzz_path("maxlen.json"));
    fuzz_check(e);
    if (!e) {
        const enum err l =
            longbench_load(&s, fuzz_path("q.jsonl"), &c, tokenizer, BOS_AUTO, 64, 0);
        fuzz_check(l);
        if (!l)
            score(&s);
    }
    longbench_free(&s);
    longbench_config_close(&c);
    return 0;
}
