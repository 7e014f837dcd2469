/* SPDX-License-Identifier: MIT
 *
 * Mixes of formats, of weights and of a cache. An accepted mix has a canonical text with
 * the same meaning. */
#include "kernels/base/mem.h"
#include "kernels/tensor/mix.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

void fuzz_setup(void)
{
}

static void same(const struct mix *a, const struct mix *b)
{
    char *text_a = NULL, *text_b = NULL;
    if (mix_text(&text_a, a) || mix_text(&text_b, b) || strcmp(text_a, text_b))
        abort();
    mem_free(text_a);
    mem_free(text_b);
}

static void read(enum mix_of of, const char *text)
{
    struct mix *m = NULL, *again = NULL;
    char *printed = NULL;
    const enum err e = mix_parse(&m, of, text, ERR_FORMAT, "mix");
    fuzz_check(e);
    if (e)
        return;
    if (mix_text(&printed, m) || mix_parse(&again, of, printed, ERR_FORMAT, "mix"))
        abort();
    same(m, again);
    fuzz_check(mix_check_layers(m, 30, ERR_FORMAT, "mix"));
    mem_free(printed);
    mix_free(again);
    mix_free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    char *text = calloc(n + 1, 1);
    if (!text)
        abort();
    memcpy(text, data, n);
    read(MIX_WEIGHTS, text);
    read(MIX_KV, text);
    free(text);
    return 0;
}
