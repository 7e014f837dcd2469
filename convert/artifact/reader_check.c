/* SPDX-License-Identifier: MIT
 *
 * Compares the files of an artifact with its manifest. */
#include "convert/artifact/reader_check.h"

#include "convert/format/artifact_names.h"
#include "kernels/base/bytes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/tensor/host_finite.h"

#include <inttypes.h>
#include <string.h>
#include <zlib.h>

static enum err check_size(const struct artifact *a, const struct manifest_file *f)
{
    char *path = NULL;
    TRY(file_join(&path, a->dir, f->name));
    const int64_t have = file_size(path);
    enum err err = OK;
    if (have < 0)
        FAIL_OUT(ERR_NOT_FOUND, "%s: missing; the manifest lists it", path);
    if ((uint64_t)have != f->bytes)
        FAIL_OUT(ERR_FORMAT, "%s: %" PRId64 " bytes, the manifest says %" PRIu64, path,
                 have, f->bytes);
out:
    mem_free(path);
    return err;
}

static enum err check_file_crc(const struct artifact *a, const struct manifest_file *f)
{
    char *path = NULL;
    uint32_t crc = 0;
    uint64_t bytes;
    TRY(file_join(&path, a->dir, f->name));
    enum err err = file_crc32(&crc, &bytes, path);
    if (!err && crc != f->crc)
        err = err_set(ERR_FORMAT, __FILE__, __LINE__,
                      "%s: damaged: CRC-32 is %08" PRIx32 ", the manifest says %08" PRIx32,
                      path, crc, f->crc);
    mem_free(path);
    return err;
}

static enum err compare_tensor(const struct st_tensor *t, const struct manifest_tensor *m,
                               const char *path)
{
    FAIL_IF(strcmp(t->dtype_name, m->dtype) != 0, ERR_FORMAT,
            "%s: tensor %s is %s, the manifest says %.20s", path, t->name, t->dtype_name,
            m->dtype);
    FAIL_IF(t->bytes != m->bytes, ERR_FORMAT,
            "%s: tensor %s has %zu bytes, the manifest says %" PRIu64, path, t->name,
            t->bytes, m->bytes);
    FAIL_IF(t->n_dims != m->n_dims ||
                memcmp(t->dim, m->dim, (size_t)t->n_dims * sizeof(*t->dim)) != 0,
            ERR_FORMAT, "%s: tensor %s has another shape than the manifest says", path,
            t->name);
    return OK;
}

static size_t file_index(const struct artifact *a, const char *name)
{
    return (size_t)(manifest_find_file(a->manifest, name) - a->manifest->file);
}

static enum err check_tensors(const struct artifact *a, int64_t *in_file)
{
    const struct manifest *m = a->manifest;
    for (size_t i = 0; i < m->n_tensors; i++) {
        const size_t k = file_index(a, m->tensor[i].file);
        const struct st_file *f = a->file[k];
        FAIL_IF(!f, ERR_FORMAT,
                "%s/%s: tensor %.200s is listed in %.100s, which is not a tensor file",
                a->dir, MANIFEST_NAME, m->tensor[i].name, m->tensor[i].file);
        const struct st_tensor *t = st_find(f, m->tensor[i].name);
        FAIL_IF(!t, ERR_FORMAT, "%s: tensor %.200s is missing; the manifest lists it",
                st_path(f), m->tensor[i].name);
        TRY(compare_tensor(t, &m->tensor[i], st_path(f)));
        in_file[k]++;
    }
    for (size_t k = 0; k < m->n_files; k++)
        FAIL_IF(a->file[k] && st_count(a->file[k]) != in_file[k], ERR_FORMAT,
                "%s: %" PRId64 " tensors, the manifest lists %" PRId64, st_path(a->file[k]),
                st_count(a->file[k]), in_file[k]);
    return OK;
}

/* Checks the CRC of every tensor, so that a message names the damaged one. The CRC of the
 * file is combined from those of header and tensors, so data is read once. */
static enum err check_tensor_file(const struct artifact *a, size_t k)
{
    const struct st_file *f = a->file[k];
    const struct manifest_file *want = &a->manifest->file[k];
    size_t header = (size_t)st_bytes(f);
    for (int64_t i = 0; i < st_count(f); i++)
        header -= st_at(f, i)->bytes;
    if (!st_count(f))
        return check_file_crc(a, want);
    uint32_t crc = bytes_crc32(0, st_at(f, 0)->data - header, header);
    for (int64_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_at(f, i);
        const uint32_t have = bytes_crc32(0, t->data, t->bytes);
        const struct manifest_tensor *m = manifest_find_tensor(a->manifest, t->name);
        FAIL_IF(!m || have != m->crc, ERR_FORMAT,
                "%s: tensor %s is damaged: CRC-32 is %08" PRIx32
                ", the manifest says %08" PRIx32,
                st_path(f), t->name, have, m ? m->crc : 0);
        crc = (uint32_t)crc32_combine(crc, have, (z_off_t)t->bytes);
        st_release(f, t);
    }
    FAIL_IF(crc != want->crc, ERR_FORMAT,
            "%s: its header is damaged: CRC-32 of the file is %08" PRIx32
            ", the manifest says %08" PRIx32,
            st_path(f), crc, want->crc);
    return OK;
}

enum err reader_check_config(const struct artifact *a)
{
    const struct manifest_file *f = manifest_find_file(a->manifest, "config.json");
    FAIL_IF(!f, ERR_FORMAT, "%s/%s: config.json is not listed", a->dir, MANIFEST_NAME);
    TRY(check_size(a, f));
    return check_file_crc(a, f);
}

/* Names files of a tokenizer that somebody has put there: they are read and exported like those of
 * the manifest, but no size or checksum tells whether they are the model's. */
static enum err warn_unlisted(const struct artifact *a)
{
    const char *name;
    for (size_t i = 0; (name = artifact_copied_name(i)); i++) {
        char *path = NULL;
        TRY(file_join(&path, a->dir, name));
        if (file_exists(path) && !manifest_knows_file(a->manifest, name))
            log_warn(
                "%s: is used, but the manifest does not list it, so that nothing tells "
                "whether it is the model's; to have it checked, put it beside the "
                "checkpoint and make the artifact again",
                path);
        mem_free(path);
    }
    return OK;
}

enum err reader_check_manifest(const struct artifact *a, bool check_crc)
{
    const struct manifest *m = a->manifest;
    int64_t *in_file = NULL;
    for (size_t k = 0; k < m->n_files; k++) {
        TRY(check_size(a, &m->file[k]));
        if (!a->file[k] && check_crc)
            TRY(check_file_crc(a, &m->file[k]));
    }
    TRY(mem_calloc(&in_file, m->n_files, sizeof(*in_file)));
    enum err err = check_tensors(a, in_file);
    mem_free(in_file);
    for (size_t k = 0; k < m->n_files && !err && check_crc; k++)
        if (a->file[k])
            err = check_tensor_file(a, k);
    return err ? err : warn_unlisted(a);
}

static enum err check_finite(const struct st_file *f, const struct st_tensor *t)
{
    const size_t unit = dtype_bytes(t->dtype);
    const enum err err =
        host_check_finite(t->name, t->data, t->dtype, unit ? (int64_t)(t->bytes / unit) : 0,
                          t->n_dims == 2 ? t->dim[1] : 1);
    st_release(f, t);
    return err ? err_add(err, "%s: ", st_path(f)) : OK;
}

enum err reader_check_finite(const struct artifact *a)
{
    for (size_t k = 0; k < a->manifest->n_files; k++)
        for (int64_t i = 0; a->file[k] && i < st_count(a->file[k]); i++)
            TRY(check_finite(a->file[k], st_at(a->file[k], i)));
    return OK;
}
