/* SPDX-License-Identifier: MIT
 *
 * Compressed files and archives: whole, joined as rows, and with the end of a member's
 * name. */
#include "data/corpus.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

/* The limits of data/corpus.h. */
#define RATIO_MAX 100
#define INFLATED_FREE ((size_t)16 << 20)
/* Two newlines separate rows. */
#define JOIN_FACTOR 4

void fuzz_setup(void)
{
}

static void load(const char *path, size_t packed)
{
    static const struct corpus_rules rules = {JOIN_ROWS, NULL};
    struct corpus c = {0};
    const enum err e = corpus_load(&c, &path, 1, &rules);
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
    fuzz_put("x", data, n);
    load(fuzz_path("x"), n);
    snprintf(member, sizeof(member), "%s:t", fuzz_path("x"));
    load(member, n);
    return 0;
}
