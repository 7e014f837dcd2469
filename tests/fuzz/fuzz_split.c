/* SPDX-License-Identifier: MIT
 *
 * Splits by regular expressions: a byte for behavior and inversion, a pattern, a NUL, and
 * the text. Pieces come in order, and isolated ones make up the text. */
#include "data/tokenizer/tok_pre.h"
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

void fuzz_setup(void)
{
}

struct pieces {
    const char *s;
    size_t n, end, bytes; /* the end of the last piece, the bytes of all */
};

static enum err take(void *ctx, size_t start, size_t end)
{
    struct pieces *p = ctx;
    if (start < p->end || end < start || end > p->n)
        abort();
    fuzz_use(p->s + start, end - start);
    p->end = end;
    p->bytes += end - start;
    return OK;
}

static void split(struct pre_step *step, const char *s, size_t n)
{
    struct regex_work *work = NULL;
    struct pieces p = {.s = s, .n = n};
    enum err e = regex_work_open(&work, n);
    if (!e)
        e = split_text(step, work, s, n, take, &p);
    fuzz_check(e);
    if (!e && step->behavior != SPLIT_REMOVED && p.bytes != n)
        abort();
    regex_work_close(&work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct pre_step step = {.kind = PRE_SPLIT};
    struct text text = {0};
    const uint8_t *gap = n ? memchr(data + 1, 0, n - 1) : NULL;
    if (!gap)
        return 0;
    step.behavior = (enum split_behavior)(data[0] % (SPLIT_WITH_NEXT + 1));
    step.invert = data[0] & 0x80;
    if (!utf8_valid((const char *)data + 1, (size_t)(gap - data) - 1))
        return 0; /* no JSON string */
    const enum err e = regex_open(&step.regex, (const char *)data + 1, "fuzz");
    fuzz_check(e);
    if (!e) {
        if (utf8_repair(&text, (const char *)gap + 1, n - 1 - (size_t)(gap - data)))
            abort();
        split(&step, text.p ? text.p : "", text.n);
    }
    regex_close(&step.regex);
    text_free(&text);
    return 0;
}
