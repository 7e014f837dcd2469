/* SPDX-License-Identifier: MIT
 *
 * Text files. The first byte selects the name of the file and the field that is read. */
#include "data/corpus.h"
#include "tests/fuzz/fuzz.h"

void fuzz_setup(void)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const name[] = {"x.jsonl", "x.txt", "x.raw", "x.csv"};
    static const char *const field[] = {NULL, "body"};
    struct corpus c = {0};
    if (!n)
        return 0;
    const struct corpus_rules rules = {JOIN_AUTO, field[data[0] / 4 % ARRAY_LEN(field)]};
    const char *file = name[data[0] % ARRAY_LEN(name)];
    fuzz_put(file, data + 1, n - 1);
    const char *path = fuzz_path(file);
    const enum err e = corpus_load(&c, &path, 1, &rules);
    fuzz_check(e);
    if (!e)
        fuzz_use(c.text, c.bytes + 1);
    corpus_free(&c);
    return 0;
}
