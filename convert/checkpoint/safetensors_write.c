/* SPDX-License-Identifier: MIT
 *
 * Writes safetensors: compact JSON padded with spaces to a multiple of 8, then the tensors
 * without gaps in the order of their announcement. The same input gives the same bytes. */
#include "convert/checkpoint/safetensors.h"

#include "data/json.h"
#include "data/sniff.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct st_writer {
    struct file_writer *file;
    char *path;
    size_t *left;  /* [n] bytes not yet written */
    uint32_t *crc; /* [n] */
    char (*name)[128];
    int64_t n, next; /* index of the current tensor */
};

/* Returns {"dtype":..,"shape":[..],"data_offsets":[begin,end]}, a new reference; NULL if
 * out of memory. */
static json_t *entry_json(const struct st_entry *e, size_t begin, size_t end)
{
    json_t *shape = json_array();
    for (int i = 0; i < e->n_dims; i++)
        if (json_array_append_new(shape, json_integer(e->dim[i]))) {
            json_decref(shape);
            return NULL;
        }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(e->dtype), "shape", shape,
                     "data_offsets", (json_int_t)begin, (json_int_t)end);
}

static enum err metadata_json(json_t *header, const char *const *metadata, int n_meta)
{
    json_t *m = json_pack("{s:s}", "format", "pt");
    for (int i = 0; m && i < n_meta; i++)
        if (json_object_set_new(m, metadata[2 * i], json_string(metadata[2 * i + 1]))) {
            json_decref(m);
            FAIL_IF(json_out_of_memory(), ERR_MEMORY, "out of memory for metadata");
            FAIL(ERR_USAGE, "metadata %.100s is not UTF-8", metadata[2 * i]);
        }
    FAIL_IF(json_object_set_new(header, "__metadata__", m), ERR_MEMORY, "out of memory");
    return OK;
}

/* Adds every entry to the header, and its size to left. */
static enum err entries_json(json_t *header, const struct st_entry *e, struct st_writer *w)
{
    size_t begin = 0;
    for (int64_t i = 0; i < w->n; i++) {
        size_t bytes, end;
        FAIL_IF(!dtype_bytes(e[i].dtype), ERR_SUPPORT,
                "tensor %.100s: dtype cannot be written", e[i].name);
        TRY(size_product(&bytes, e[i].dim, e[i].n_dims, dtype_bytes(e[i].dtype)));
        FAIL_IF(!size_add(begin, bytes, &end) || end > INT64_MAX, ERR_FORMAT,
                "tensor %.100s: sizes overflow", e[i].name);
        FAIL_IF(json_object_get(header, e[i].name), ERR_FORMAT,
                "tensor %.100s appears twice", e[i].name);
        const int failed =
            json_object_set_new(header, e[i].name, entry_json(&e[i], begin, end));
        FAIL_IF(json_out_of_memory(), ERR_MEMORY, "out of memory for the header");
        FAIL_IF(failed, ERR_FORMAT, "tensor name \"%.100s\" is not UTF-8", e[i].name);
        w->left[i] = bytes;
        snprintf(w->name[i], sizeof(w->name[i]), "%s", e[i].name);
        begin = end;
    }
    return OK;
}

static enum err write_header(struct st_writer *w, const json_t *header)
{
    enum err err = OK;
    static const char spaces[8] = "        ";
    char *text = json_text(header, JSON_COMPACT);
    FAIL_IF(!text, ERR_MEMORY, "out of memory for a header");
    const size_t len = strlen(text), padded = (len + 7) / 8 * 8;
    uint8_t size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    if (padded > SAFETENSORS_HEADER_MAX)
        FAIL_OUT(ERR_FORMAT, "%s: header of %zu bytes, the format's limit is %u", w->path,
                 padded, SAFETENSORS_HEADER_MAX);
    TRY_OUT(file_write(w->file, size, sizeof(size)));
    TRY_OUT(file_write(w->file, text, len));
    TRY_OUT(file_write(w->file, spaces, padded - len));
out:
    free(text);
    return err;
}

/* Skips empty tensors, which are complete at once. */
static void skip_complete(struct st_writer *w)
{
    while (w->next < w->n && !w->left[w->next])
        w->next++;
}

enum err st_writer_open(struct st_writer **out, const char *path, const struct st_entry *e,
                        int64_t n, const char *const *metadata, int n_meta)
{
    enum err err = OK;
    struct st_writer *w = NULL;
    json_t *header = json_object();
    FAIL_IF(!header, ERR_MEMORY, "out of memory");
    TRY_OUT(mem_calloc(&w, 1, sizeof(*w)));
    w->n = n;
    TRY_OUT(mem_strdup(&w->path, path ? path : "a file"));
    TRY_OUT(mem_calloc(&w->left, (size_t)n, sizeof(*w->left)));
    TRY_OUT(mem_calloc(&w->crc, (size_t)n, sizeof(*w->crc)));
    TRY_OUT(mem_calloc(&w->name, (size_t)n, sizeof(*w->name)));
    TRY_OUT(metadata_json(header, metadata, n_meta));
    TRY_OUT(entries_json(header, e, w));
    TRY_OUT(file_writer_open(&w->file, path));
    TRY_OUT(write_header(w, header));
    skip_complete(w);
    *out = w;
    w = NULL;
out:
    json_decref(header);
    st_writer_abort(&w);
    return err;
}

enum err st_write(struct st_writer *w, const void *data, size_t bytes)
{
    if (!bytes)
        return OK;
    FAIL_IF(w->next >= w->n, ERR_SHAPE, "%s: %zu bytes beyond the last tensor", w->path,
            bytes);
    size_t *left = &w->left[w->next];
    FAIL_IF(bytes > *left, ERR_SHAPE, "%s: %zu bytes for tensor %s, which has room for %zu",
            w->path, bytes, w->name[w->next], *left);
    TRY(file_write(w->file, data, bytes));
    w->crc[w->next] = bytes_crc32(w->crc[w->next], data, bytes);
    *left -= bytes;
    skip_complete(w);
    return OK;
}

uint32_t st_writer_crc(const struct st_writer *w, int64_t i)
{
    return w->crc[i];
}

uint64_t st_writer_file_bytes(const struct st_writer *w)
{
    return file_writer_bytes(w->file);
}

uint32_t st_writer_file_crc(const struct st_writer *w)
{
    return file_writer_crc(w->file);
}

enum err st_writer_commit(struct st_writer **pw)
{
    struct st_writer *w = *pw;
    enum err err = OK;
    if (w->next < w->n)
        FAIL_OUT(ERR_SHAPE, "%s: tensor %s lacks %zu bytes", w->path, w->name[w->next],
                 w->left[w->next]);
    TRY_OUT(file_writer_commit(&w->file));
out:
    st_writer_abort(pw);
    return err;
}

void st_writer_abort(struct st_writer **pw)
{
    struct st_writer *w = *pw;
    if (!w)
        return;
    file_writer_abort(&w->file);
    mem_free(w->path);
    mem_free(w->left);
    mem_free(w->crc);
    mem_free(w->name);
    mem_free(w);
    *pw = NULL;
}

static enum err save_tensors(struct st_writer *w, const struct named_tensor *t, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        TRY(st_write(w, t[i].t.data,
                     (size_t)tensor_count(&t[i].t) * dtype_bytes(t[i].t.dtype)));
    return OK;
}

enum err st_save(const char *path, const struct named_tensor *t, int64_t n,
                 const char *const *metadata, int n_meta)
{
    enum err err = OK;
    struct st_entry *e = NULL;
    struct st_writer *w = NULL;
    TRY(mem_calloc(&e, (size_t)n, sizeof(*e)));
    for (int64_t i = 0; i < n; i++) {
        e[i] = (struct st_entry){t[i].name, t[i].t.dtype, t[i].t.n_dims, {0}};
        memcpy(e[i].dim, t[i].t.dim, sizeof(e[i].dim));
    }
    TRY_OUT(st_writer_open(&w, path, e, n, metadata, n_meta));
    TRY_OUT(save_tensors(w, t, n));
    TRY_OUT(st_writer_commit(&w));
out:
    st_writer_abort(&w);
    mem_free(e);
    return err;
}
