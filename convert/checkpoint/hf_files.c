/* SPDX-License-Identifier: MIT
 *
 * One safetensors file, or the shards that an index names. */
#include "convert/checkpoint/hf_files.h"

#include "data/json.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"
#define INDEX_LIMIT (1u << 28)
#define MAX_SHARDS 4096

/* --- the index ---------------------------------------------------------------------- */

static enum err check_file_name(const char *name, const char *tensor, const char *where)
{
    const size_t n = strlen(name);
    FAIL_IF(
        strchr(name, '/') || strstr(name, "..") || n < 13 || n > 255 ||
            strcmp(name + n - 12, ".safetensors"),
        ERR_FORMAT,
        "%s: weight_map maps tensor %.120s to \"%.120s\", want the name of a .safetensors "
        "file in the same directory",
        where, tensor, name);
    return OK;
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of the map, sorted; borrowed from it. */
static enum err shard_names(const char ***out, int *n, json_t *map, const char *where)
{
    const size_t total = json_object_size(map);
    const char **name = NULL, *tensor;
    json_t *v;
    size_t used = 0;
    FAIL_IF(total == 0, ERR_FORMAT, "%s: weight_map is empty", where);
    TRY(mem_alloc(&name, total, sizeof(*name)));
    enum err err = OK;
    json_object_foreach(map, tensor, v)
    {
        if (!json_is_string(v))
            FAIL_OUT(ERR_FORMAT,
                     "%s: weight_map: tensor %.120s maps to %s, want a file name", where,
                     tensor, json_kind(v));
        TRY_OUT(check_file_name(json_string_value(v), tensor, where));
        name[used++] = json_string_value(v);
    }
    qsort(name, used, sizeof(*name), compare_text);
    *n = 0;
    for (size_t i = 0; i < used; i++)
        if (i == 0 || strcmp(name[i], name[i - 1]))
            name[(*n)++] = name[i];
    if (*n > MAX_SHARDS)
        FAIL_OUT(ERR_SUPPORT, "%s: weight_map names %d files, at most %d are supported",
                 where, *n, MAX_SHARDS);
    *out = name;
    return OK;
out:
    mem_free(name);
    return err;
}

static enum err open_file(struct hf_files *f, const char *dir, const char *name)
{
    char *path = NULL;
    TRY(file_join(&path, dir, name));
    const enum err err = st_open(&f->file[f->n_files], path);
    mem_free(path);
    TRY(err);
    f->n_files++;
    return OK;
}

static enum err open_shards(struct hf_files *f, const char *dir, json_t *map,
                            const char *where)
{
    const char **name = NULL;
    int n = 0;
    TRY(shard_names(&name, &n, map, where));
    enum err err = mem_calloc(&f->file, (size_t)n, sizeof(*f->file));
    for (int i = 0; i < n && !err; i++)
        err = open_file(f, dir, name[i]);
    mem_free(name);
    return err;
}

/* They were opened in name order. */
static const struct st_file *find_file(const struct hf_files *f, const char *name)
{
    int lo = 0, hi = f->n_files;
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        const int c = strcmp(name, file_base_name(st_path(f->file[mid])));
        if (!c)
            return f->file[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

static enum err check_map(const struct hf_files *f, json_t *map, const char *where)
{
    const char *tensor;
    json_t *v;
    json_object_foreach(map, tensor, v)
    {
        const char *name = json_string_value(v);
        const struct st_file *file = find_file(f, name);
        FAIL_IF(
            !file || !st_find(file, tensor), ERR_FORMAT,
            "%s: weight_map says tensor %.160s is in %s, but that file does not have it",
            where, tensor, name);
    }
    return OK;
}

static enum err open_index(struct hf_files *f, const char *dir, const char *path)
{
    enum err err = OK;
    json_t *o = NULL, *map;
    TRY(json_load_file_lenient(&o, path, INDEX_LIMIT, JSON_REPEATS_NONE));
    if (!json_is_object(o))
        FAIL_OUT(ERR_FORMAT, "%s: the file holds %s, want an object", path, json_kind(o));
    TRY_OUT(json_get_object(&map, o, "weight_map", path));
    if (!map)
        FAIL_OUT(ERR_FORMAT, "%s: weight_map is missing", path);
    TRY_OUT(open_shards(f, dir, map, path));
    TRY_OUT(check_map(f, map, path));
out:
    json_decref(o);
    return err;
}

/* --- what else may lie there -------------------------------------------------------- */

static bool has_suffix(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n > m && !strcmp(name + n - m, end);
}

/* Say what there is instead of safetensors. */
static enum err no_weights(const char *dir)
{
    static const char *const other[] = {".bin",  ".pth",         ".pt",
                                        ".gguf", ".safetensors", ".h5"};
    char found[256] = "";
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && !*found && (e = readdir(d));)
        for (size_t i = 0; i < ARRAY_LEN(other); i++)
            if (has_suffix(e->d_name, other[i]))
                snprintf(found, sizeof(found), "%s", e->d_name);
    if (d)
        closedir(d);
    FAIL_IF(*found, ERR_SUPPORT,
            "%s: neither " SINGLE " nor " INDEX
            "; there is %s, which is not read: save the "
            "model as safetensors (save_pretrained does)",
            dir, found);
    FAIL(ERR_NOT_FOUND, "%s: neither " SINGLE " nor " INDEX, dir);
}

/* --- the list of tensors ------------------------------------------------------------ */

static int compare_place(const void *pa, const void *pb)
{
    const struct hf_place *a = pa, *b = pb;
    return strcmp(a->t->name, b->t->name);
}

static enum err list_tensors(struct hf_files *f)
{
    for (int i = 0; i < f->n_files; i++)
        f->n_places += st_count(f->file[i]);
    TRY(mem_alloc(&f->place, (size_t)f->n_places, sizeof(*f->place)));
    TRY(mem_alloc(&f->by_name, (size_t)f->n_places, sizeof(*f->by_name)));
    int64_t n = 0;
    for (int i = 0; i < f->n_files; i++)
        for (int64_t j = 0; j < st_count(f->file[i]); j++)
            f->place[n++] = (struct hf_place){st_at(f->file[i], j), i};
    if (n)
        memcpy(f->by_name, f->place, (size_t)n * sizeof(*f->place));
    qsort(f->by_name, (size_t)n, sizeof(*f->by_name), compare_place);
    for (int64_t i = 1; i < n; i++)
        FAIL_IF(!compare_place(&f->by_name[i - 1], &f->by_name[i]), ERR_FORMAT,
                "tensor %s is in both %s and %s", f->by_name[i].t->name,
                st_path(f->file[f->by_name[i - 1].file]),
                st_path(f->file[f->by_name[i].file]));
    return OK;
}

static enum err open_found(struct hf_files *f, const char *dir, const char *single,
                           const char *index)
{
    f->entry = SINGLE;
    if (file_exists(single)) {
        TRY(mem_calloc(&f->file, 1, sizeof(*f->file)));
        return open_file(f, dir, SINGLE);
    }
    if (!file_exists(index))
        return no_weights(dir);
    f->entry = INDEX;
    return open_index(f, dir, index);
}

enum err hf_files_open(struct hf_files *out, const char *dir)
{
    enum err err = OK;
    struct hf_files f = {0};
    char *single = NULL, *index = NULL;
    TRY_OUT(file_join(&single, dir, SINGLE));
    TRY_OUT(file_join(&index, dir, INDEX));
    TRY_OUT(open_found(&f, dir, single, index));
    TRY_OUT(list_tensors(&f));
    *out = f;
    f = (struct hf_files){0};
out:
    hf_files_close(&f);
    mem_free(single);
    mem_free(index);
    return err;
}

void hf_files_close(struct hf_files *f)
{
    for (int i = 0; i < f->n_files; i++)
        st_close(&f->file[i]);
    mem_free(f->file);
    mem_free(f->place);
    mem_free(f->by_name);
    *f = (struct hf_files){0};
}

const struct hf_place *hf_files_find(const struct hf_files *f, const char *name)
{
    const struct st_tensor probe = {.name = (char *)name};
    const struct hf_place key = {.t = &probe};
    if (f->n_places == 0)
        return NULL;
    return bsearch(&key, f->by_name, (size_t)f->n_places, sizeof(key), compare_place);
}

static enum err file_identity(uint32_t *crc, const char *path, bool deep)
{
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    struct bytes b = {.data = map.data, .size = map.size};
    const uint64_t size = map.size;
    uint8_t le[8];
    for (int i = 0; i < 8; i++)
        le[i] = (uint8_t)(size >> 8 * i);
    uint64_t header;
    const uint8_t *text;
    enum err err = bytes_u64(&b, &header);
    if (!err)
        err = bytes_view(&b, header, &text);
    if (!err) {
        *crc = bytes_crc32(*crc, le, sizeof(le));
        *crc = bytes_crc32(*crc, map.data, deep ? map.size : b.pos);
    }
    file_map_close(&map);
    return err ? err_add(err, "%s: ", path) : OK;
}

enum err hf_files_crc(uint32_t *crc, const struct hf_files *f, bool deep)
{
    for (int i = 0; i < f->n_files; i++)
        TRY(file_identity(crc, st_path(f->file[i]), deep));
    return OK;
}
