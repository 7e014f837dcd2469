/* SPDX-License-Identifier: MIT
 *
 * Reads safetensors. The header is untrusted JSON. All rules of the format are checked
 * before a tensor is returned: offsets have no gap or overlap, sizes follow from shape and
 * dtype, and the file ends with the last tensor. */
#include "convert/checkpoint/safetensors.h"

#include "data/json.h"
#include "data/sniff.h"
#include "kernels/base/bytes.h"
#include "kernels/base/mem.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct st_file {
    char *path;
    struct file_map map;
    size_t data_start;
    struct st_tensor *tensor;
    struct st_tensor **by_name; /* sorted */
    size_t n;
};

struct type {
    char name[12];
    unsigned bits;
    enum dtype dtype;
};

static const struct type types[] = {
    {"F32", 32, DT_F32},
    {"F16", 16, DT_F16},
    {"BF16", 16, DT_BF16},
    {"I32", 32, DT_I32},
    {"I64", 64, DT_I64},
    {"U8", 8, DT_U8},
    {"I8", 8, DT_I8},
    {"BOOL", 8, DT_BOOL},
    {"F64", 64, DT_OTHER},
    {"U64", 64, DT_OTHER},
    {"U32", 32, DT_OTHER},
    {"I16", 16, DT_OTHER},
    {"U16", 16, DT_OTHER},
    {"C64", 64, DT_OTHER},
    {"F4", 4, DT_OTHER},
    {"F6_E2M3", 6, DT_OTHER},
    {"F6_E3M2", 6, DT_OTHER},
    {"F8_E5M2", 8, DT_OTHER},
    {"F8_E4M3", 8, DT_OTHER},
    {"F8_E8M0", 8, DT_OTHER},
    {"F8_E4M3FNUZ", 8, DT_OTHER},
    {"F8_E5M2FNUZ", 8, DT_OTHER},
};

static const struct type *find_type(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(types); i++)
        if (!strcmp(types[i].name, name))
            return &types[i];
    return NULL;
}

/* Reads the two offsets, which are relative to the data section. */
static enum err parse_offsets(uint64_t off[2], const json_t *info, const char *where)
{
    json_t *a;
    TRY(json_get_array(&a, info, "data_offsets", where));
    FAIL_IF(!a || json_array_size(a) != 2, ERR_FORMAT,
            "%s: data_offsets must be an array of two integers", where);
    for (size_t i = 0; i < 2; i++) {
        const json_t *v = json_array_get(a, i);
        FAIL_IF(!json_is_integer(v) || json_integer_value(v) < 0, ERR_FORMAT,
                "%s: data_offsets[%zu] is not a non-negative integer", where, i);
        off[i] = (uint64_t)json_integer_value(v);
    }
    FAIL_IF(off[0] > off[1], ERR_FORMAT,
            "%s: data_offsets run backwards: %" PRIu64 " to %" PRIu64, where, off[0],
            off[1]);
    return OK;
}

static enum err parse_shape(struct st_tensor *t, const json_t *info, const char *where)
{
    json_t *a;
    TRY(json_get_array(&a, info, "shape", where));
    FAIL_IF(!a, ERR_FORMAT, "%s: shape is missing", where);
    const size_t n = json_array_size(a);
    FAIL_IF(n > ARRAY_LEN(t->dim), ERR_SUPPORT,
            "%s: %zu dimensions, at most %zu are supported", where, n, ARRAY_LEN(t->dim));
    t->n_dims = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(a, i);
        FAIL_IF(!json_is_integer(v) || json_integer_value(v) < 0, ERR_FORMAT,
                "%s: shape[%zu] is not a non-negative integer", where, i);
        t->dim[i] = (int64_t)json_integer_value(v);
    }
    return OK;
}

/* Compares the bytes that shape and type need with the bytes of the offsets. */
static enum err check_size(const struct st_tensor *t, unsigned bits, const char *where)
{
    size_t total;
    enum err err = size_product(&total, t->dim, t->n_dims, bits);
    if (err)
        return err_add(err, "%s: ", where);
    FAIL_IF(total % 8, ERR_FORMAT, "%s: %zu bits of %s do not end on a byte", where, total,
            t->dtype_name);
    FAIL_IF(total / 8 != t->bytes, ERR_FORMAT,
            "%s: shape and dtype %s need %zu bytes, data_offsets give %zu", where,
            t->dtype_name, total / 8, t->bytes);
    return OK;
}

static enum err parse_tensor(const struct st_file *f, struct st_tensor *t, const char *name,
                             const json_t *info)
{
    char where[800];
    snprintf(where, sizeof(where), "%.500s: tensor %.200s", f->path, name);
    FAIL_IF(!json_is_object(info), ERR_FORMAT, "%s: is %s, want an object", where,
            json_kind(info));
    const char *dtype;
    TRY(json_need_string(&dtype, info, "dtype", where));
    const struct type *type = find_type(dtype);
    FAIL_IF(!type, ERR_FORMAT, "%s: unknown dtype \"%.40s\"", where, dtype);
    memcpy(t->dtype_name, type->name, sizeof(t->dtype_name));
    t->dtype = type->dtype;
    TRY(parse_shape(t, info, where));
    uint64_t off[2];
    TRY(parse_offsets(off, info, where));
    const size_t room = f->map.size - f->data_start;
    FAIL_IF(off[1] > room, ERR_FORMAT,
            "%s: data ends at byte %" PRIu64
            " of the data section, which has %zu (is the file "
            "complete?)",
            where, off[1], room);
    t->data = f->map.data + f->data_start + off[0];
    t->bytes = (size_t)(off[1] - off[0]);
    TRY(check_size(t, type->bits, where));
    return mem_strdup(&t->name, name);
}

static enum err check_metadata(const struct st_file *f, const json_t *m)
{
    const char *name = f->path, *key;
    json_t *v;
    FAIL_IF(!json_is_object(m), ERR_FORMAT, "%s: __metadata__ is %s, want an object", name,
            json_kind(m));
    json_object_foreach((json_t *)(uintptr_t)m, key, v)
        FAIL_IF(!json_is_string(v), ERR_FORMAT,
                "%s: __metadata__.%.100s is %s, want a string", name, key, json_kind(v));
    return OK;
}

/* Returns true for a name without control characters, which tables and messages can
 * show. */
static bool is_name(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            return false;
    return true;
}

static enum err parse_entries(struct st_file *f, json_t *header)
{
    const char *key;
    size_t len;
    json_t *v;
    json_object_keylen_foreach(header, key, len, v)
    {
        FAIL_IF(!is_name(key, len), ERR_FORMAT,
                "%s: tensor name %.200s holds a control character", f->path, key);
        if (!strcmp(key, "__metadata__")) {
            TRY(check_metadata(f, v));
            continue;
        }
        TRY(parse_tensor(f, &f->tensor[f->n], key, v));
        f->n++;
    }
    return OK;
}

static int compare_place(const void *pa, const void *pb)
{
    const struct st_tensor *a = pa, *b = pb;
    if (a->data != b->data)
        return a->data < b->data ? -1 : 1;
    /* an empty tensor precedes the one that starts at the same byte */
    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int compare_name(const void *pa, const void *pb)
{
    const struct st_tensor *const *a = pa, *const *b = pb;
    return strcmp((*a)->name, (*b)->name);
}

/* Checks that there is no gap, no overlap, and nothing after the last tensor. */
static enum err check_layout(struct st_file *f)
{
    const char *name = f->path;
    qsort(f->tensor, f->n, sizeof(*f->tensor), compare_place);
    size_t end = f->data_start;
    for (size_t i = 0; i < f->n; i++) {
        const struct st_tensor *t = &f->tensor[i];
        const size_t at = (size_t)(t->data - f->map.data);
        FAIL_IF(at != end, ERR_FORMAT, "%s: tensor %.200s starts at byte %zu, %s byte %zu",
                name, t->name, at,
                at < end ? "overlapping the one before it, which ends at"
                         : "leaving a gap after",
                end);
        end = at + t->bytes;
    }
    FAIL_IF(end != f->map.size, ERR_FORMAT, "%s: %zu bytes follow the last tensor", name,
            f->map.size - end);
    return OK;
}

static enum err find_header(struct st_file *f, struct bytes *b, const char **text,
                            size_t *size)
{
    const char *name = f->path;
    const uint8_t *p;
    uint64_t n;
    FAIL_IF(file_is_lfs_pointer(b->data, b->size), ERR_FORMAT, "%s: " FILE_LFS_ADVICE,
            name);
    FAIL_IF(b->size < 8, ERR_FORMAT, "%s: %zu bytes, too short for a safetensors file",
            name, b->size);
    TRY(bytes_u64(b, &n));
    FAIL_IF(n > SAFETENSORS_HEADER_MAX, ERR_FORMAT,
            "%s: header of %" PRIu64
            " bytes, the limit is %u (is this a safetensors file?)",
            name, n, SAFETENSORS_HEADER_MAX);
    FAIL_IF(n > b->size - b->pos, ERR_FORMAT,
            "%s: header of %" PRIu64 " bytes, but only %zu follow (is the file complete?)",
            name, n, b->size - b->pos);
    TRY(bytes_view(b, n, &p));
    *text = (const char *)p;
    *size = (size_t)n;
    return OK;
}

static enum err parse(struct st_file *f)
{
    enum err err = OK;
    struct bytes b = {.data = f->map.data, .size = f->map.size};
    json_t *header = NULL;
    const char *text = NULL;
    size_t size = 0;
    char where[600];
    TRY(find_header(f, &b, &text, &size));
    f->data_start = b.pos;
    snprintf(where, sizeof(where), "%.500s: header", f->path);
    TRY(json_parse(&header, text, size, where));
    if (!json_is_object(header))
        FAIL_OUT(ERR_FORMAT, "%s is %s, want an object", where, json_kind(header));
    TRY_OUT(mem_calloc(&f->tensor, json_object_size(header), sizeof(*f->tensor)));
    TRY_OUT(parse_entries(f, header));
    TRY_OUT(check_layout(f));
    TRY_OUT(mem_alloc(&f->by_name, f->n, sizeof(struct st_tensor *)));
    for (size_t i = 0; i < f->n; i++)
        f->by_name[i] = &f->tensor[i];
    qsort(f->by_name, f->n, sizeof(struct st_tensor *), compare_name);
out:
    json_decref(header);
    return err;
}

static enum err open_by(struct st_file **out, const char *path,
                        enum err (*map)(struct file_map *out, const char *path))
{
    enum err err = OK;
    struct st_file *f = NULL;
    TRY(mem_calloc(&f, 1, sizeof(*f)));
    TRY_OUT(mem_strdup(&f->path, path));
    TRY_OUT(map(&f->map, path));
    TRY_OUT(parse(f));
    *out = f;
    return OK;
out:
    st_close(&f);
    return err;
}

enum err st_open(struct st_file **out, const char *path)
{
    return open_by(out, path, file_map_open);
}

enum err st_load(struct st_file **out, const char *path)
{
    return open_by(out, path, file_map_load);
}

void st_close(struct st_file **pf)
{
    struct st_file *f = *pf;
    if (!f)
        return;
    for (size_t i = 0; i < f->n; i++)
        mem_free(f->tensor[i].name);
    mem_free(f->tensor);
    mem_free(f->by_name);
    file_map_close(&f->map);
    mem_free(f->path);
    mem_free(f);
    *pf = NULL;
}

const char *st_path(const struct st_file *f)
{
    return f->path;
}

int64_t st_count(const struct st_file *f)
{
    return (int64_t)f->n;
}

const struct st_tensor *st_at(const struct st_file *f, int64_t i)
{
    return &f->tensor[i];
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
    size_t lo = 0, hi = f->n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        const int c = strcmp(name, f->by_name[mid]->name);
        if (!c)
            return f->by_name[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

uint64_t st_bytes(const struct st_file *f)
{
    return f->map.size;
}

/* Advises the kernel about whole pages inside the tensor; its neighbours may be in use. A
 * loaded file is skipped, because its pages have no other copy. */
static void advise(const struct st_file *f, const struct st_tensor *t, int advice)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t at = (size_t)(t->data - f->map.data);
    const size_t first = (at + page - 1) / page * page, end = (at + t->bytes) / page * page;
    if (first < end && !f->map.loaded)
        (void)madvise((void *)(uintptr_t)(f->map.data + first), end - first, advice);
}

void st_release(const struct st_file *f, const struct st_tensor *t)
{
    advise(f, t, MADV_DONTNEED);
}

void st_prefetch(const struct st_file *f, const struct st_tensor *t)
{
    advise(f, t, MADV_WILLNEED);
}
