/* SPDX-License-Identifier: MIT
 *
 * A checkpoint that another tool quantized, with one hostile file. The first byte selects it:
 * config.json or the weights. */
#include "convert/checkpoint/hf.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const form[] = {"compressed", "gptq", "awq", "experts"};
static const char *const file[] = {"config.json", "model.safetensors"};

#define N_FILES ARRAY_LEN(file)

static char *content[ARRAY_LEN(form)][N_FILES];
static size_t size[ARRAY_LEN(form)][N_FILES];

static void free_content(void)
{
    for (size_t i = 0; i < ARRAY_LEN(form); i++)
        for (size_t k = 0; k < N_FILES; k++)
            mem_free(content[i][k]);
}

void fuzz_setup(void)
{
    for (size_t i = 0; i < ARRAY_LEN(form); i++)
        for (size_t k = 0; k < N_FILES; k++) {
            char from[64];
            snprintf(from, sizeof(from), "packed-%s/%s", form[i], file[k]);
            fuzz_copy(from, file[k]);
            if (file_read_all(&content[i][k], &size[i][k], fuzz_path(file[k]), 1u << 24))
                abort();
        }
    atexit(free_content);
}

/* Reads the values, scales and zeros of all projections. */
static void read_all(struct hf_model *m)
{
    const struct model_source *src = hf_source(m);
    for (int64_t i = 0; i < hf_arch(m)->n_layers; i++) {
        struct block_src b;
        const enum err e = src->block(src->ctx, i, &b);
        fuzz_check(e);
        for (int l = 0; l < N_LIN && !e; l++) {
            const struct host_mat *w = &b.lin[l];
            for (int64_t r = 0; r < w->rows; r++)
                fuzz_use(host_mat_row(w, r), (size_t)w->cols * dtype_bytes(w->dtype));
            if (b.given[l])
                fuzz_use(b.given[l]->zeros, (size_t)(b.given[l]->out * b.given[l]->groups));
        }
        src->release(src->ctx, i);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct hf_model *m = NULL;
    if (!n)
        return 0;
    const size_t which = data[0] % N_FILES, of = data[0] / N_FILES % ARRAY_LEN(form);
    for (size_t k = 0; k < N_FILES; k++)
        fuzz_put(file[k], content[of][k], size[of][k]);
    fuzz_put(file[which], data + 1, n - 1);
    const enum err e = hf_open_packed(&m, fuzz_path(""), "the fuzzer wants others");
    fuzz_check(e);
    if (!e)
        read_all(m);
    hf_close(&m);
    return 0;
}
