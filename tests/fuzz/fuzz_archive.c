/* SPDX-License-Identifier: MIT
 *
 * Archives: zip, plain and with the end of a member's name, when the bytes start like one,
 * else gzip of text and of JSONL. */
#include "data/corpus.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

/* What the loader promises: data/corpus.h. */
#define RATIO_MAX 100
#define INFLATED_FREE ((size_t)16 << 20)
/* Between rows go two newlines. */
#define JOIN_FACTOR 4

void fuzz_setup(void)
{
}

static void load(const char *path, size_t packed)
{
    struct corpus c = {0};
    const enum err e = corpus_load(&c, &path, 1, JOIN_AUTO);
    fuzz_check(e);
    if (!e)
        fuzz_use(c.text, c.bytes);
    if (!e && c.bytes > (packed * RATIO_MAX + INFLATED_FREE) * JOIN_FACTOR)
        abort();
    corpus_free(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char member[600];
    if (n > 2 && !memcmp(data, "PK", 2)) {
        fuzz_put("x.zip", data, n);
        load(fuzz_path("x.zip"), n);
        strcpy(member, fuzz_path("x.zip"));
        strcat(member, ":t");
        load(member, n);
    } else {
        fuzz_put("x.raw.gz", data, n);
        load(fuzz_path("x.raw.gz"), n);
        fuzz_put("x.jsonl.gz", data, n);
        load(fuzz_path("x.jsonl.gz"), n);
    }
    return 0;
}
