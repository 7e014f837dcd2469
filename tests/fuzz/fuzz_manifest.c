/* SPDX-License-Identifier: MIT
 *
 * An artifact's manifest: unchanged, and with a correct CRC-32, which an attacker can
 * compute. */
#include "convert/format/manifest.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

void fuzz_setup(void)
{
}

static void open_manifest(const void *data, size_t n)
{
    struct manifest *m = NULL;
    fuzz_put(MANIFEST_NAME, data, n);
    const enum err e = manifest_open(&m, fuzz_path(""));
    fuzz_check(e);
    for (size_t i = 0; !e && i < m->n_tensors; i++)
        if (!manifest_find_file(m, m->tensor[i].file))
            abort();
    for (size_t i = 0; !e && i < m->n_files; i++)
        if (strchr(m->file[i].name, '/'))
            abort();
    manifest_close(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    fuzz_sealed(data, n, open_manifest);
    return 0;
}
