/* SPDX-License-Identifier: MIT
 *
 * tokenizer.json, or tokenizer.model with -DFUZZ_FILE: what opens must encode any text, and
 * decode what it encoded. It becomes the keys of a GGUF file, or is refused. */
#include "convert/export/gguf/gguf_vocab.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

static const char text[] = "Two  words, <s> 3.14159 it's \xc3\xa9\xcc\x81 \xe2\x96\x81x "
                           "\xf0\x9f\x99\x82\n\n\ttab <0x0A> aaaaaaaaaaaaaaaa\xff\xc3(";

void fuzz_setup(void)
{
}

/* The fixed text, and the file itself as one. */
static void encode(const struct tokenizer *t, const char *s, size_t n)
{
    struct token_ids ids = {0};
    char *back = NULL;
    size_t bytes = 0;
    if (!tokenizer_encode(&ids, t, s, n, BOS_AUTO)) {
        const enum err e = tokenizer_decode(&back, &bytes, t, ids.id, ids.n, true);
        fuzz_check(e);
        if (!e)
            fuzz_use(back, bytes);
    }
    err_clear();
    mem_free(back);
    token_ids_free(&ids);
}

static void export_keys(void)
{
    const struct arch a = {.vocab = 700, .bos = 1, .n_eos = 1, .eos = {2}};
    struct gguf_vocab v = {0};
    struct gguf_writer *w = NULL;
    enum err e = gguf_vocab_read(&v, fuzz_path(""), &a, NULL);
    if (!e)
        e = gguf_open(&w);
    if (!e)
        e = gguf_vocab_keys(w, &v);
    fuzz_check(e);
    err_clear();
    gguf_abort(&w);
    gguf_vocab_free(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tokenizer *t = NULL;
    fuzz_put(FUZZ_FILE, data, n);
    const enum err e = tokenizer_open(&t, fuzz_path(""));
    fuzz_check(e);
    if (!e) {
        encode(t, text, sizeof(text) - 1);
        encode(t, (const char *)data, n < 4096 ? n : 4096);
        export_keys();
    }
    tokenizer_close(&t);
    return 0;
}
