/* SPDX-License-Identifier: MIT
 *
 * model.safetensors.index.json beside two valid shards. */
#include "convert/checkpoint/hf_files.h"
#include "tests/fuzz/fuzz.h"

void fuzz_setup(void)
{
    fuzz_copy("shards/a.safetensors", "a.safetensors");
    fuzz_copy("shards/b.safetensors", "b.safetensors");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hf_files f = {0};
    uint32_t crc = 0;
    fuzz_put("model.safetensors.index.json", data, n);
    const enum err e = hf_files_open(&f, fuzz_path(""));
    fuzz_check(e);
    if (!e)
        fuzz_check(hf_files_crc(&crc, &f, true));
    hf_files_close(&f);
    return 0;
}
