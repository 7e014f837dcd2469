/* SPDX-License-Identifier: MIT
 *
 * A state's manifest beside valid blocks, unchanged and with a correct CRC-32. It is opened
 * for reading and for resuming. The writer's bytes come first, because opening for work may
 * remove files that the manifest does not list. */
#include "tests/fuzz/fuzz.h"
#include "tools/state/state.h"

#include "convert/checkpoint/hf.h"

#include <string.h>

static struct arch arch;

void fuzz_setup(void)
{
    fuzz_copy("model/config.json", "config.json");
    fuzz_check(hf_read_config(&arch, fuzz_path("")));
}

static void read_state(const struct arch *a)
{
    struct state *s = NULL;
    struct calib_block_stats st;
    struct block_quant q = {0};
    const enum err e = state_open_read(&s, fuzz_path(""), a);
    fuzz_check(e);
    for (int64_t i = 0; !e && i < state_done(s); i++) {
        fuzz_check(state_stats(&st, s, i));
        if (a)
            fuzz_check(state_load_block(&q, s, i));
        block_quant_free(&q);
    }
    if (!e)
        (void)state_bytes(s);
    state_close(&s);
}

static void load_partial(void)
{
    struct state *s = NULL;
    struct calib_io io;
    const struct named_tensor *t = NULL;
    int n = 0;
    if (!state_open_read(&s, fuzz_path(""), &arch)) {
        state_calib_io(&io, s, NULL, NULL, NULL);
        fuzz_check(io.load_partial(io.ctx, 1, &t, &n));
        for (int i = 0; i < n; i++)
            fuzz_use(t[i].t.data, 0);
    }
    err_clear();
    state_close(&s);
}

static void open_state(const void *manifest, size_t n)
{
    bool is;
    fuzz_put("manifest.json", manifest, n);
    if (state_is(&is, fuzz_path("")))
        abort();
    read_state(NULL);
    read_state(&arch);
    load_partial();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static bool ready;
    if (!ready) {
        fuzz_copy("state/block-0000.safetensors", "block-0000.safetensors");
        fuzz_copy("state/block-0001.safetensors", "block-0001.safetensors");
        fuzz_copy("state/block-0001.safetensors", "partial-a.safetensors");
        ready = true;
    }
    fuzz_sealed(data, n, open_state);
    return 0;
}
