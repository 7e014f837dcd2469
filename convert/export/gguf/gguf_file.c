/* SPDX-License-Identifier: MIT */
#include "convert/export/gguf/gguf_file.h"

#include "data/tokenizer/tok_text.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <string.h>

#define VERSION 3
#define ALIGNMENT 32 /* general.alignment is written where it differs from this default */

/* Types of values, with GGUF's numbers. */
enum value {
    VALUE_U32 = 4,
    VALUE_I32 = 5,
    VALUE_F32 = 6,
    VALUE_BOOL = 7,
    VALUE_STRING = 8,
    VALUE_ARRAY = 9
};

struct gguf_writer {
    struct text keys, infos; /* the two parts of the header, as they are stored */
    uint64_t n_keys, n_tensors;
    enum value item; /* type of the items that the open list lacks */
    uint64_t items;  /* their number */
    uint64_t *bytes; /* [n_tensors] owned */
    uint64_t data;   /* bytes of all tensors, padding included */

    struct file_writer *file; /* NULL before gguf_begin() */
    uint64_t tensor, left;    /* the tensor that is written, and what it lacks */
};

static const struct {
    enum gguf_type type;
    const char *name;
    int columns; /* of a block */
    int bytes;   /* of it */
} types[] = {
    {GGUF_F32, "F32", 1, 4},     {GGUF_F16, "F16", 1, 2},     {GGUF_Q4_1, "Q4_1", 32, 20},
    {GGUF_Q5_1, "Q5_1", 32, 24}, {GGUF_Q8_0, "Q8_0", 32, 34}, {GGUF_BF16, "BF16", 1, 2},
};

static size_t row_of(enum gguf_type t)
{
    size_t i = 0;
    while (i + 1 < ARRAY_LEN(types) && types[i].type != t)
        i++;
    return i;
}

const char *gguf_type_name(enum gguf_type t)
{
    return types[row_of(t)].name;
}

bool gguf_type_is_blocks(enum gguf_type t)
{
    return types[row_of(t)].columns > 1;
}

uint64_t gguf_row_bytes(enum gguf_type t, int64_t n)
{
    const size_t i = row_of(t);
    return (uint64_t)(n / types[i].columns) * (uint64_t)types[i].bytes;
}

static uint64_t padded(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* --- values ------------------------------------------------------------------------- */

static enum err put_int(struct text *t, uint64_t v, size_t bytes)
{
    char b[8];
    for (size_t i = 0; i < bytes; i++)
        b[i] = (char)(v >> 8 * i & 0xff);
    return text_add(t, b, bytes);
}

static enum err put_f32(struct text *t, float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof(u));
    return put_int(t, u, 4);
}

static enum err put_string(struct text *t, const char *s, size_t n)
{
    TRY(put_int(t, n, 8));
    return text_add(t, s, n);
}

static enum err begin_key(struct gguf_writer *w, const char *key)
{
    FAIL_IF(w->file, ERR_SHAPE, "key %s after the header was written", key);
    FAIL_IF(w->items, ERR_SHAPE, "key %s while a list lacks %" PRIu64 " items", key,
            w->items);
    w->n_keys++;
    return OK;
}

enum err gguf_key_stored(struct gguf_writer *w, const void *bytes, size_t n)
{
    TRY(begin_key(w, "of a file"));
    return text_add(&w->keys, bytes, n);
}

static enum err put_key(struct gguf_writer *w, const char *key, enum value type)
{
    TRY(begin_key(w, key));
    TRY(put_string(&w->keys, key, strlen(key)));
    return put_int(&w->keys, type, 4);
}

enum err gguf_key_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    TRY(put_key(w, key, VALUE_U32));
    return put_int(&w->keys, v, 4);
}

enum err gguf_key_f32(struct gguf_writer *w, const char *key, float v)
{
    TRY(put_key(w, key, VALUE_F32));
    return put_f32(&w->keys, v);
}

enum err gguf_key_bool(struct gguf_writer *w, const char *key, bool v)
{
    TRY(put_key(w, key, VALUE_BOOL));
    return put_int(&w->keys, v, 1);
}

enum err gguf_key_string(struct gguf_writer *w, const char *key, const char *s, size_t n)
{
    TRY(put_key(w, key, VALUE_STRING));
    return put_string(&w->keys, s, n);
}

static enum err put_list(struct gguf_writer *w, const char *key, enum value type,
                         uint64_t n)
{
    TRY(put_key(w, key, VALUE_ARRAY));
    TRY(put_int(&w->keys, type, 4));
    w->item = type;
    w->items = n;
    return put_int(&w->keys, n, 8);
}

enum err gguf_list_i32(struct gguf_writer *w, const char *key, uint64_t n)
{
    return put_list(w, key, VALUE_I32, n);
}

enum err gguf_list_f32(struct gguf_writer *w, const char *key, uint64_t n)
{
    return put_list(w, key, VALUE_F32, n);
}

enum err gguf_list_string(struct gguf_writer *w, const char *key, uint64_t n)
{
    return put_list(w, key, VALUE_STRING, n);
}

static enum err take_item(struct gguf_writer *w, enum value type)
{
    FAIL_IF(!w->items || w->item != type, ERR_SHAPE, "an item of type %d has no list",
            (int)type);
    w->items--;
    return OK;
}

enum err gguf_item_i32(struct gguf_writer *w, int32_t v)
{
    TRY(take_item(w, VALUE_I32));
    return put_int(&w->keys, (uint32_t)v, 4);
}

enum err gguf_item_f32(struct gguf_writer *w, float v)
{
    TRY(take_item(w, VALUE_F32));
    return put_f32(&w->keys, v);
}

enum err gguf_item_string(struct gguf_writer *w, const char *s, size_t n)
{
    TRY(take_item(w, VALUE_STRING));
    return put_string(&w->keys, s, n);
}

/* --- tensors ------------------------------------------------------------------------ */

enum err gguf_tensor(struct gguf_writer *w, const char *name, enum gguf_type t, int n_dims,
                     const int64_t *dim)
{
    const uint64_t k = w->n_tensors;
    uint64_t rows = 1;
    FAIL_IF(w->file || w->items, ERR_SHAPE, "tensor %s is announced too late", name);
    FAIL_IF(!*name || strlen(name) >= GGUF_NAME_BYTES, ERR_SHAPE,
            "tensor %.80s: a name has 1 to %d bytes", name, GGUF_NAME_BYTES - 1);
    FAIL_IF(n_dims < 1 || n_dims > GGUF_MAX_DIMS, ERR_SHAPE,
            "tensor %s: %d dimensions, want 1 to %d", name, n_dims, GGUF_MAX_DIMS);
    if ((k & (k - 1)) == 0) /* a power of two: the table is full */
        TRY(mem_resize(&w->bytes, k, k ? 2 * k : 1, sizeof(*w->bytes)));
    TRY(put_string(&w->infos, name, strlen(name)));
    TRY(put_int(&w->infos, (uint64_t)n_dims, 4));
    for (int i = n_dims - 1; i >= 0; i--) /* columns first */
        TRY(put_int(&w->infos, (uint64_t)dim[i], 8));
    TRY(put_int(&w->infos, t, 4));
    TRY(put_int(&w->infos, w->data, 8));
    for (int i = 0; i < n_dims - 1; i++)
        rows *= (uint64_t)dim[i];
    w->bytes[k] = rows * gguf_row_bytes(t, dim[n_dims - 1]);
    w->data += padded(w->bytes[k]);
    w->n_tensors++;
    return OK;
}

/* magic, version, and the numbers of tensors and keys */
#define FIXED_BYTES 24

static uint64_t header_bytes(const struct gguf_writer *w)
{
    return FIXED_BYTES + w->keys.n + w->infos.n;
}

uint64_t gguf_bytes(const struct gguf_writer *w)
{
    return padded(header_bytes(w)) + w->data;
}

/* --- writing ------------------------------------------------------------------------ */

enum err gguf_open(struct gguf_writer **out)
{
    return mem_calloc(out, 1, sizeof(**out));
}

/* Writes zeros up to the next multiple of the alignment after n bytes. */
static enum err pad(struct gguf_writer *w, uint64_t n)
{
    static const char zeros[ALIGNMENT];
    return file_write(w->file, zeros, (size_t)(padded(n) - n));
}

/* Goes to the next tensor, and to those after it while they are empty. */
static enum err next_tensor(struct gguf_writer *w)
{
    while (!w->left && w->tensor < w->n_tensors) {
        TRY(pad(w, w->bytes[w->tensor]));
        if (++w->tensor < w->n_tensors)
            w->left = w->bytes[w->tensor];
    }
    return OK;
}

static enum err write_header(struct gguf_writer *w)
{
    struct text fixed = {0};
    enum err err = OK;
    TRY_OUT(text_add(&fixed, "GGUF", 4));
    TRY_OUT(put_int(&fixed, VERSION, 4));
    TRY_OUT(put_int(&fixed, w->n_tensors, 8));
    TRY_OUT(put_int(&fixed, w->n_keys, 8));
    TRY_OUT(file_write(w->file, fixed.p, fixed.n));
    TRY_OUT(file_write(w->file, w->keys.p, w->keys.n));
    TRY_OUT(file_write(w->file, w->infos.p, w->infos.n));
    TRY_OUT(pad(w, header_bytes(w)));
out:
    text_free(&fixed);
    return err;
}

enum err gguf_begin(struct gguf_writer *w, const char *path)
{
    FAIL_IF(w->file || w->items, ERR_SHAPE, "%s: the header is not complete", path);
    TRY(file_writer_open(&w->file, path));
    TRY(write_header(w));
    if (!w->n_tensors)
        return OK;
    w->left = w->bytes[0];
    return w->left ? OK : next_tensor(w);
}

enum err gguf_write(struct gguf_writer *w, const void *data, size_t bytes)
{
    FAIL_IF(bytes > w->left, ERR_SHAPE,
            "%zu bytes for tensor %" PRIu64 ", which lacks %" PRIu64, bytes, w->tensor,
            w->left);
    TRY(file_write(w->file, data, bytes));
    w->left -= bytes;
    return next_tensor(w);
}

enum err gguf_commit(struct gguf_writer **pw)
{
    struct gguf_writer *w = *pw;
    enum err err = OK;
    if (!w->file || w->tensor < w->n_tensors)
        FAIL_OUT(ERR_SHAPE, "tensor %" PRIu64 " lacks %" PRIu64 " bytes", w->tensor,
                 w->left);
    TRY_OUT(file_writer_commit(&w->file));
out:
    gguf_abort(pw);
    return err;
}

void gguf_abort(struct gguf_writer **pw)
{
    struct gguf_writer *w = *pw;
    if (!w)
        return;
    file_writer_abort(&w->file);
    text_free(&w->keys);
    text_free(&w->infos);
    mem_free(w->bytes);
    mem_free(w);
    *pw = NULL;
}
