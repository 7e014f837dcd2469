/* SPDX-License-Identifier: MIT
 *
 * Reads the index of a sharded checkpoint. As in transformers, only its file names are
 * used; the files themselves tell their tensors. */
#include "convert/checkpoint/hf_files.h"

#include "data/json.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_LIMIT (1u << 28)
#define MAX_SHARDS 4096

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

/* Returns the distinct file names of the map, sorted; borrowed from the map. */
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

static enum err open_shards(struct hf_files *f, const char *dir, json_t *map,
                            const char *where)
{
    const char **name = NULL;
    int n = 0;
    TRY(shard_names(&name, &n, map, where));
    enum err err = mem_calloc(&f->file, (size_t)n, sizeof(*f->file));
    for (int i = 0; i < n && !err; i++)
        err = hf_files_add(f, dir, name[i]);
    mem_free(name);
    return err;
}

/* Finds a file by binary search: files were opened in name order. */
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

/* Logs differences between the index and the files. A tied head is not stored, and not
 * reported. */
static void report_map(const struct hf_files *f, json_t *map, const char *where)
{
    const char *tensor, *lost = NULL, *moved = NULL;
    json_t *v;
    int64_t n_lost = 0, n_moved = 0;
    json_object_foreach(map, tensor, v)
    {
        const struct st_file *file = find_file(f, json_string_value(v));
        const bool stored = hf_files_find(f, tensor) != NULL;
        if ((file && st_find(file, tensor)) ||
            (!stored && !strcmp(tensor, "lm_head.weight")))
            continue;
        const char **first = stored ? &moved : &lost;
        *first = *first ? *first : tensor;
        *(stored ? &n_moved : &n_lost) += 1;
    }
    if (moved)
        log_warn("%s: %" PRId64
                 " tensors are in other files than weight_map says, the first "
                 "is %.160s; they are read from where they are",
                 where, n_moved, moved);
    if (lost)
        log_warn("%s: %" PRId64
                 " tensors of weight_map are in none of its files, the first "
                 "is %.160s",
                 where, n_lost, lost);
}

enum err hf_index_open(struct hf_files *f, const char *dir, const char *path)
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
    TRY_OUT(hf_files_list(f));
    report_map(f, map, path);
out:
    json_decref(o);
    return err;
}
