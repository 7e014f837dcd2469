/* SPDX-License-Identifier: MIT
 *
 * A whole artifact with one hostile file. The first byte selects it: config.json or the
 * weights, with a manifest that agrees, or the manifest itself. */
#include "convert/artifact/reader.h"
#include "convert/format/artifact_names.h"
#include "convert/format/manifest.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS "model.safetensors"

static const char *const sound[] = {"config.json", WEIGHTS, MANIFEST_NAME,
                                    "tokenizer.json"};

static char *content[ARRAY_LEN(sound)];
static size_t size[ARRAY_LEN(sound)];

static void free_content(void)
{
    for (size_t i = 0; i < ARRAY_LEN(sound); i++)
        mem_free(content[i]);
}

void fuzz_setup(void)
{
    for (size_t i = 0; i < ARRAY_LEN(sound); i++) {
        char from[64];
        snprintf(from, sizeof(from), "artifact/%s", sound[i]);
        fuzz_copy(from, sound[i]);
        if (file_read_all(&content[i], &size[i], fuzz_path(sound[i]), 1u << 24))
            abort();
    }
    atexit(free_content);
}

/* Restores the files that an input changed. */
static void restore(int which)
{
    fuzz_put(sound[which], content[which], size[which]);
    if (which < 2)
        fuzz_put(MANIFEST_NAME, content[2], size[2]);
}

/* The entries of the weights' tensors as they are. */
static struct manifest_tensor *list_tensors(size_t *n, const struct st_file *f)
{
    struct manifest_tensor *list = NULL;
    *n = (size_t)st_count(f);
    if (mem_calloc(&list, *n, sizeof(*list)))
        abort();
    for (size_t i = 0; i < *n; i++) {
        const struct st_tensor *t = st_at(f, (int64_t)i);
        list[i] = (struct manifest_tensor){
            .name = t->name,
            .file = WEIGHTS,
            .dtype = t->dtype_name,
            .n_dims = t->n_dims,
            .bytes = t->bytes,
        };
        memcpy(list[i].dim, t->dim, sizeof(t->dim));
    }
    return list;
}

/* Makes the manifest agree with the files. */
static void agree(void)
{
    struct manifest *m = NULL;
    struct st_file *f = NULL;
    struct manifest_input in = {0};
    struct manifest_tensor *list = NULL;
    if (manifest_open(&m, fuzz_path("")))
        abort();
    for (size_t i = 0; i < m->n_files; i++)
        if (file_crc32(&m->file[i].crc, &m->file[i].bytes, fuzz_path(m->file[i].name)))
            abort();
    in = (struct manifest_input){NULL, NULL, m->tensor, m->n_tensors, m->file, m->n_files};
    if (!st_open(&f, fuzz_path(WEIGHTS)))
        in.tensor = list = list_tensors(&in.n_tensors, f);
    uint64_t bytes = 0;
    fuzz_check(manifest_write(&bytes, fuzz_path(""), &in));
    mem_free(list);
    st_close(&f);
    manifest_close(&m);
}

/* Reads all data that runtime and simulation use. */
static void read_all(struct artifact *a)
{
    struct artifact_sizes sizes;
    const struct model_source *src = artifact_source(a);
    artifact_measure(&sizes, a);
    struct host_mat embed, norm, head;
    if (!src->ends(src->ctx, &embed, &norm, &head)) {
        fuzz_use(embed.data, 1);
        fuzz_use(head.data, 1);
    }
    for (int64_t i = 0; i < artifact_arch(a)->n_layers; i++) {
        struct block_quant q = {0};
        struct block_src b;
        fuzz_check(artifact_block_quant(&q, a, i));
        block_quant_free(&q);
        fuzz_check(src->block(src->ctx, i, &b));
        src->release(src->ctx, i);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct artifact *a = NULL;
    if (!n)
        return 0;
    const int which = data[0] % 3;
    char *text = malloc(n);
    if (!text)
        abort();
    memcpy(text, data + 1, n - 1);
    if (which == 2)
        fuzz_seal(text, n - 1);
    fuzz_put(sound[which], text, n - 1);
    free(text);
    if (which < 2)
        agree();
    bool is;
    if (artifact_is(&is, fuzz_path("")))
        abort();
    const enum err e = artifact_open(&a, fuzz_path(""), which == 2 ? ARTIFACT_CHECK : 0);
    fuzz_check(e);
    if (!e)
        read_all(a);
    artifact_close(&a);
    restore(which);
    return 0;
}
