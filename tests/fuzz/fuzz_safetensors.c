/* SPDX-License-Identifier: MIT
 *
 * A safetensors file: whatever opens has tensors whose every byte can be read. */
#include "convert/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>

void fuzz_setup(void)
{
}

static void read_tensor(const struct st_file *f, const struct st_tensor *t)
{
    fuzz_use(t->data, t->bytes);
    if (!st_find(f, t->name))
        abort();
    st_release(f, t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct st_file *f = NULL;
    fuzz_put("x.safetensors", data, n);
    const enum err e = st_open(&f, fuzz_path("x.safetensors"));
    fuzz_check(e);
    for (int64_t i = 0; !e && i < st_count(f); i++)
        read_tensor(f, st_at(f, i));
    if (!e && st_bytes(f) != n)
        abort();
    st_close(&f);
    return 0;
}
