/* SPDX-License-Identifier: MIT */
#include "convert/format/manifest.h"

#include "convert/format/artifact_spec.h"
#include "data/json.h"
#include "data/json_seal.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MANIFEST_VERSION 1
#define FORMAT_NAME "wkvq-artifact"
#define TEXT_MAX ((size_t)256 << 20)

static bool parse_crc(uint32_t *out, const char *hex)
{
    uint32_t v = 0;
    for (int i = 0; i < 8; i++) {
        const char c = hex[i];
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
            return false;
        v = v << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    *out = v;
    return true;
}

static enum err need_crc(uint32_t *out, const json_t *o, const char *where)
{
    const char *hex = NULL;
    TRY(json_need_string(&hex, o, "crc32", where));
    FAIL_IF(strlen(hex) != 8 || !parse_crc(out, hex), ERR_FORMAT,
            "%s: crc32 is \"%.40s\", want 8 hexadecimal digits", where, hex);
    return OK;
}

static enum err need_bytes(uint64_t *out, const json_t *o, const char *where)
{
    int64_t n = 0;
    TRY(json_need_int(&n, o, "bytes", 0, INT64_MAX, where));
    *out = (uint64_t)n;
    return OK;
}

static enum err check_name(const char *name, const char *where)
{
    FAIL_IF(!*name || strchr(name, '/') || file_is_dot(name), ERR_FORMAT,
            "%s: \"%.100s\" is not a plain file name", where, name);
    return OK;
}

static enum err parse_file(struct manifest_file *f, const char *name, const json_t *o,
                           const char *where)
{
    FAIL_IF(!json_is_object(o), ERR_FORMAT, "%s is %s, want an object", where,
            json_kind(o));
    f->name = name;
    TRY(check_name(name, where));
    TRY(need_bytes(&f->bytes, o, where));
    return need_crc(&f->crc, o, where);
}

static enum err parse_tensor(struct manifest_tensor *t, const char *name, const json_t *o,
                             const char *where)
{
    json_t *shape = NULL;
    FAIL_IF(!json_is_object(o), ERR_FORMAT, "%s is %s, want an object", where,
            json_kind(o));
    t->name = name;
    TRY(json_need_string(&t->file, o, "file", where));
    TRY(json_need_string(&t->dtype, o, "dtype", where));
    TRY(json_get_array(&shape, o, "shape", where));
    FAIL_IF(!shape || json_array_size(shape) > MANIFEST_DIMS, ERR_FORMAT,
            "%s: shape is missing or has more than %d dimensions", where, MANIFEST_DIMS);
    t->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *v = json_array_get(shape, (size_t)i);
        FAIL_IF(!json_is_integer(v) || json_integer_value(v) < 0, ERR_FORMAT,
                "%s: shape[%d] is not a non-negative integer", where, i);
        t->dim[i] = (int64_t)json_integer_value(v);
    }
    TRY(need_bytes(&t->bytes, o, where));
    return need_crc(&t->crc, o, where);
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct manifest_file *)a)->name,
                  ((const struct manifest_file *)b)->name);
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const struct manifest_tensor *)a)->name,
                  ((const struct manifest_tensor *)b)->name);
}

static enum err parse_lists(struct manifest *m, const char *path)
{
    json_t *files = NULL, *tensors = NULL, *v;
    const char *key;
    char where[800];
    TRY(json_get_object(&files, m->root, "files", path));
    TRY(json_get_object(&tensors, m->root, "tensors", path));
    FAIL_IF(!files || !tensors, ERR_FORMAT, "%s: %s is missing", path,
            files ? "tensors" : "files");
    TRY(mem_calloc(&m->file, json_object_size(files), sizeof(*m->file)));
    TRY(mem_calloc(&m->tensor, json_object_size(tensors), sizeof(*m->tensor)));
    json_object_foreach(files, key, v)
    {
        snprintf(where, sizeof(where), "%.500s: file %.200s", path, key);
        TRY(parse_file(&m->file[m->n_files++], key, v, where));
    }
    qsort(m->file, m->n_files, sizeof(*m->file), compare_files);
    json_object_foreach(tensors, key, v)
    {
        snprintf(where, sizeof(where), "%.500s: tensor %.200s", path, key);
        struct manifest_tensor *t = &m->tensor[m->n_tensors++];
        TRY(parse_tensor(t, key, v, where));
        FAIL_IF(!manifest_find_file(m, t->file), ERR_FORMAT,
                "%s: its file %.100s is not listed", where, t->file);
    }
    qsort(m->tensor, m->n_tensors, sizeof(*m->tensor), compare_tensors);
    return OK;
}

static enum err parse_root(struct manifest *m, const char *path)
{
    const char *format = NULL;
    int64_t version = 0;
    FAIL_IF(!json_is_object(m->root), ERR_FORMAT, "%s: is %s, want an object", path,
            json_kind(m->root));
    TRY(json_need_string(&format, m->root, "format", path));
    FAIL_IF(strcmp(format, FORMAT_NAME) != 0, ERR_FORMAT,
            "%s: format is \"%.40s\", want \"" FORMAT_NAME "\"", path, format);
    TRY(json_need_int(&version, m->root, "format_version", 1, INT32_MAX, path));
    FAIL_IF(version > MANIFEST_VERSION, ERR_SUPPORT,
            "%s: format_version is %" PRId64 ", this program reads up to %d", path, version,
            MANIFEST_VERSION);
    return parse_lists(m, path);
}

enum err manifest_open(struct manifest **out, const char *dir)
{
    enum err err = OK;
    struct manifest *m = NULL;
    char *path = NULL;
    TRY(file_join(&path, dir, MANIFEST_NAME));
    TRY_OUT(file_check_link(path));
    if (!file_exists(path))
        FAIL_OUT(ERR_NOT_FOUND,
                 "%s: no such file, so the directory is not an artifact, or an incomplete "
                 "one; create one with `wkvq quantize`",
                 path);
    TRY_OUT(mem_calloc(&m, 1, sizeof(*m)));
    TRY_OUT(file_read_all(&m->text, &m->bytes, path, TEXT_MAX));
    TRY_OUT(json_check_seal(m->text, m->bytes, path));
    TRY_OUT(json_parse(&m->root, m->text, m->bytes, path));
    TRY_OUT(parse_root(m, path));
    *out = m;
    m = NULL;
out:
    manifest_close(&m);
    mem_free(path);
    return err;
}

void manifest_close(struct manifest **pm)
{
    struct manifest *m = *pm;
    if (!m)
        return;
    json_decref(m->root);
    mem_free(m->text);
    mem_free(m->tensor);
    mem_free(m->file);
    mem_free(m);
    *pm = NULL;
}

static int compare_to_file(const void *name, const void *f)
{
    return strcmp(name, ((const struct manifest_file *)f)->name);
}

static int compare_to_tensor(const void *name, const void *t)
{
    return strcmp(name, ((const struct manifest_tensor *)t)->name);
}

const struct manifest_file *manifest_find_file(const struct manifest *m, const char *name)
{
    return bsearch(name, m->file, m->n_files, sizeof(*m->file), compare_to_file);
}

const struct manifest_tensor *manifest_find_tensor(const struct manifest *m,
                                                   const char *name)
{
    return bsearch(name, m->tensor, m->n_tensors, sizeof(*m->tensor), compare_to_tensor);
}

bool manifest_knows_file(const struct manifest *m, const char *name)
{
    return !strcmp(name, MANIFEST_NAME) || manifest_find_file(m, name);
}

/* Writes "KEY":{...}, a caller's JSON object, in one line. */
static enum err write_object(struct file_writer *w, const char *key, const char *text)
{
    json_t *o = NULL;
    char *line = NULL;
    enum err err = json_parse(&o, text ? text : "{}", text ? strlen(text) : 2, key);
    if (!err && !json_is_object(o))
        err = err_set(ERR_USAGE, __FILE__, __LINE__, "manifest: %s must be a JSON object",
                      key);
    if (!err && !(line = json_text(o, JSON_COMPACT)))
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory");
    if (!err)
        err = file_printf(w, "\"%s\":%s,\n", key, line);
    free(line);
    json_decref(o);
    return err;
}

/* Writes one "NAME":{...} line, and releases o. */
static enum err write_entry(struct file_writer *w, const char *name, json_t *o, bool last)
{
    char *value = o ? json_text(o, JSON_COMPACT) : NULL;
    json_t *s = json_string(name);
    char *key = s ? json_text(s, JSON_ENCODE_ANY) : NULL;
    enum err err = OK;
    if (json_out_of_memory())
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "manifest: out of memory");
    else if (!key || !value)
        err = err_set(ERR_FORMAT, __FILE__, __LINE__,
                      "manifest: %.100s cannot be written as JSON", name);
    else
        err = file_printf(w, "%s:%s%s\n", key, value, last ? "" : ",");
    free(key);
    free(value);
    json_decref(s);
    json_decref(o);
    return err;
}

static json_t *tensor_json(const struct manifest_tensor *t)
{
    char crc[16];
    snprintf(crc, sizeof(crc), "%08" PRIx32, t->crc);
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++)
        json_array_append_new(shape, json_integer(t->dim[i]));
    return json_pack("{s:s, s:s, s:o, s:I, s:s}", "file", t->file, "dtype", t->dtype,
                     "shape", shape, "bytes", (json_int_t)t->bytes, "crc32", crc);
}

static json_t *file_json(const struct manifest_file *f)
{
    char crc[16];
    snprintf(crc, sizeof(crc), "%08" PRIx32, f->crc);
    return json_pack("{s:I, s:s}", "bytes", (json_int_t)f->bytes, "crc32", crc);
}

static enum err write_text(struct file_writer *w, const struct manifest_input *in)
{
    TRY(file_printf(w,
                    "{\n\"format\":\"" FORMAT_NAME "\",\n\"format_version\":%d,\n"
                    "\"product\":\"wkvq " WKVQ_VERSION "\",\n",
                    MANIFEST_VERSION));
    TRY(write_object(w, "config", in->config_json));
    TRY(write_object(w, "provenance", in->provenance_json));
    TRY(file_printf(w, "\"tensors\":{\n"));
    for (size_t i = 0; i < in->n_tensors; i++)
        TRY(write_entry(w, in->tensor[i].name, tensor_json(&in->tensor[i]),
                        i + 1 == in->n_tensors));
    TRY(file_printf(w, "},\n\"files\":{\n"));
    for (size_t i = 0; i < in->n_files; i++)
        TRY(write_entry(w, in->file[i].name, file_json(&in->file[i]),
                        i + 1 == in->n_files));
    char seal[JSON_SEAL_BYTES + 1];
    TRY(file_printf(w, "},\n"));
    json_seal(seal, file_writer_crc(w));
    return file_printf(w, "%s", seal);
}

enum err manifest_write(uint64_t *bytes, const char *dir, const struct manifest_input *in)
{
    enum err err = OK;
    struct file_writer *w = NULL;
    char *path = NULL;
    if (dir)
        TRY(file_join(&path, dir, MANIFEST_NAME));
    TRY_OUT(file_writer_open(&w, path));
    TRY_OUT(write_text(w, in));
    *bytes = file_writer_bytes(w);
    if (dir)
        TRY_OUT(file_writer_commit(&w));
out:
    file_writer_abort(&w);
    mem_free(path);
    return err;
}
