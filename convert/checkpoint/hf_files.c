/* SPDX-License-Identifier: MIT
 *
 * Opens one safetensors file, or the shards that an index names. */
#include "convert/checkpoint/hf_files.h"

#include "kernels/base/bytes.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SINGLE "model.safetensors"
#define INDEX "model.safetensors.index.json"

/* --- what else may lie there -------------------------------------------------------- */

static bool has_suffix(const char *name, const char *end)
{
    const size_t n = strlen(name), m = strlen(end);
    return n > m && !strcmp(name + n - m, end);
}

/* Copies the name of a file of the directory that ends so, of several the first by name. Returns
 * how many there are. */
static int find_suffix(char *out, size_t n, const char *dir, const char *end)
{
    int found = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d));)
        if (has_suffix(e->d_name, end) && (!found++ || strcmp(e->d_name, out) < 0))
            snprintf(out, n, "%s", e->d_name);
    if (d)
        closedir(d);
    return found;
}

/* Returns the error for a directory with neither the one file nor the index; the message names the
 * weights that it has. */
static enum err no_weights(const char *dir)
{
    static const char *const other[] = {".bin", ".pth", ".pt", ".gguf", ".h5"};
    char found[256] = "";
    const int n = find_suffix(found, sizeof(found), dir, ".safetensors");
    FAIL_IF(n > 1, ERR_NOT_FOUND,
            "%s: has %d files of weights, such as %s, but not " INDEX
            ", which names them; download it as well",
            dir, n, found);
    FAIL_IF(n == 1, ERR_NOT_FOUND,
            "%s: has neither " SINGLE " nor " INDEX
            "; if %s is the whole model, rename it " SINGLE,
            dir, found);
    for (size_t i = 0; i < ARRAY_LEN(other); i++)
        FAIL_IF(find_suffix(found, sizeof(found), dir, other[i]), ERR_SUPPORT,
                "%s: neither " SINGLE " nor " INDEX
                "; %s cannot be read: save the model as safetensors (save_pretrained does)",
                dir, found);
    FAIL(ERR_NOT_FOUND, "%s: neither " SINGLE " nor " INDEX, dir);
}

/* --- the list of tensors ------------------------------------------------------------ */

/* Compares two places of the same name by file. */
static int compare_place(const void *pa, const void *pb)
{
    const struct hf_place *a = pa, *b = pb;
    const int c = strcmp(a->t->name, b->t->name);
    return c ? c : (a->file > b->file) - (a->file < b->file);
}

static int compare_name(const void *key, const void *place)
{
    return strcmp(key, ((const struct hf_place *)place)->t->name);
}

static void sort_names(struct hf_files *f)
{
    qsort(f->by_name, (size_t)f->n_places, sizeof(*f->by_name), compare_place);
}

bool hf_files_same(const struct hf_files *f, const struct hf_place *a,
                   const struct hf_place *b)
{
    const struct st_tensor *x = a->t, *y = b->t;
    const bool alike = !strcmp(x->dtype_name, y->dtype_name) && x->n_dims == y->n_dims &&
                       !memcmp(x->dim, y->dim, (size_t)x->n_dims * sizeof(x->dim[0])) &&
                       x->bytes == y->bytes;
    if (!alike)
        return false;
    const bool same = !x->bytes || !memcmp(x->data, y->data, x->bytes);
    st_release(f->file[a->file], x);
    st_release(f->file[b->file], y);
    return same;
}

enum err hf_files_list(struct hf_files *f)
{
    for (int i = 0; i < f->n_files; i++)
        f->n_places += st_count(f->file[i]);
    TRY(mem_alloc(&f->tensor, (size_t)f->n_places, sizeof(*f->tensor)));
    TRY(mem_alloc(&f->place, (size_t)f->n_places, sizeof(*f->place)));
    TRY(mem_alloc(&f->by_name, (size_t)f->n_places, sizeof(*f->by_name)));
    int64_t n = 0;
    for (int i = 0; i < f->n_files; i++)
        for (int64_t j = 0; j < st_count(f->file[i]); j++, n++) {
            f->tensor[n] = *st_at(f->file[i], j);
            f->place[n] = (struct hf_place){&f->tensor[n], i};
        }
    if (n)
        memcpy(f->by_name, f->place, (size_t)n * sizeof(*f->place));
    sort_names(f);
    return OK;
}

void hf_files_compact(struct hf_files *f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < f->n_places; i++)
        if (f->place[i].t->name)
            f->place[n++] = f->place[i];
    f->n_places = n;
    if (n)
        memcpy(f->by_name, f->place, (size_t)n * sizeof(*f->place));
    sort_names(f);
}

const struct st_tensor *hf_files_stored(const struct hf_files *f, int64_t i)
{
    return i < f->n_stored ? f->stored[i] : NULL;
}

/* Keeps the later of two places with the same tensor, as transformers does. */
static enum err drop_copies(struct hf_files *f)
{
    int64_t copies = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < f->n_places; i++) {
        const struct hf_place *a = &f->by_name[i], *b = a + 1;
        if (i + 1 == f->n_places || strcmp(a->t->name, b->t->name))
            continue;
        FAIL_IF(
            !hf_files_same(f, a, b), ERR_FORMAT,
            "tensor %s is in both %s and %s, and differs: delete the file that does not "
            "belong to this checkpoint",
            a->t->name, st_path(f->file[a->file]), st_path(f->file[b->file]));
        first = first ? first : a->t->name;
        f->tensor[a->t - f->tensor].name = NULL;
        copies++;
    }
    if (!copies)
        return OK;
    log_warn("%s: %" PRId64
             " tensors are in two files, with the same bytes; the first is %s",
             st_path(f->file[0]), copies, first);
    hf_files_compact(f);
    return OK;
}

/* Notes the tensors before any is renamed, split or joined. */
static enum err list_stored(struct hf_files *f)
{
    TRY(mem_alloc(&f->stored, (size_t)f->n_places, sizeof(*f->stored)));
    for (int64_t i = 0; i < f->n_places; i++)
        f->stored[i] = st_find(f->file[f->place[i].file], f->place[i].t->name);
    f->n_stored = f->n_places;
    return OK;
}

/* --- their names -------------------------------------------------------------------- */

static bool starts(const char *text, const char *with)
{
    return !strncmp(text, with, strlen(with));
}

/* Refuses names that a wrapper of training leaves: such tensors are incomplete, or not
 * those of the model. */
static enum err refuse_wrapped(const struct hf_files *f)
{
    static const struct {
        const char *part, *whose, *advice;
    } wrapper[] = {
        {"_orig_mod.", "torch.compile", "save the model inside it (model._orig_mod)"},
        {".lora_", "a PEFT adapter",
         "merge the adapter into the weights (merge_and_unload), and save that model"},
        {"base_model.", "a PEFT adapter",
         "merge the adapter into the weights (merge_and_unload), and save that model"},
        {"module.", "a data-parallel wrapper", "save the model inside it (model.module)"},
    };
    for (size_t k = 0; k < ARRAY_LEN(wrapper); k++)
        for (int64_t i = 0; i < f->n_places; i++) {
            const char *name = f->place[i].t->name;
            const bool inside = *wrapper[k].part == '.' || *wrapper[k].part == '_';
            FAIL_IF(inside ? strstr(name, wrapper[k].part) != NULL
                           : starts(name, wrapper[k].part),
                    ERR_SUPPORT, "%s: the name of tensor %.160s is that of %s: %s",
                    st_path(f->file[f->place[i].file]), name, wrapper[k].whose,
                    wrapper[k].advice);
        }
    return OK;
}

/* Returns true for the files of LlamaModel.save_pretrained(), which lack the prefix
 * "model.". */
static bool lacks_prefix(const struct hf_files *f)
{
    bool found = false;
    for (int64_t i = 0; i < f->n_places; i++) {
        const char *name = f->place[i].t->name;
        if (starts(name, "model."))
            return false;
        found |= starts(name, "layers.") || !strcmp(name, "embed_tokens.weight");
    }
    return found;
}

static enum err add_prefix(struct hf_files *f)
{
    static const char prefix[] = "model.";
    size_t room = 0;
    for (int64_t i = 0; i < f->n_places; i++)
        room += strlen(f->place[i].t->name) + sizeof(prefix);
    TRY(mem_alloc(&f->names, room, 1));
    char *at = f->names;
    for (int64_t i = 0; i < f->n_places; i++) {
        struct st_tensor *t = &f->tensor[f->place[i].t - f->tensor];
        if (starts(t->name, "lm_head."))
            continue;
        const int n = sprintf(at, "%s%s", prefix, t->name);
        t->name = at;
        at += n + 1;
    }
    f->base_model = true;
    sort_names(f);
    return OK;
}

enum err hf_files_need(const struct hf_place **out, const struct hf_files *f,
                       const char *name, const char *dir, const struct arch *a)
{
    *out = hf_files_find(f, name);
    FAIL_IF(!*out, ERR_NOT_FOUND,
            "%s/%s: tensor %s is missing; a \"%s\" model of %" PRId64
            " layers needs it (config.json: num_hidden_layers)",
            dir, f->entry, name, a->model_type, a->n_layers);
    return OK;
}

void hf_files_rename(struct hf_files *f, const char *from, const char *to)
{
    const struct hf_place *p = hf_files_find(f, from);
    f->tensor[p->t - f->tensor].name = (char *)(uintptr_t)to;
    sort_names(f);
}

/* --- opening ------------------------------------------------------------------------ */

enum err hf_files_add(struct hf_files *f, const char *dir, const char *name)
{
    char *path = NULL;
    TRY(file_join(&path, dir, name));
    const enum err err = st_open(&f->file[f->n_files], path);
    mem_free(path);
    TRY(err);
    f->n_files++;
    return OK;
}

static enum err open_found(struct hf_files *f, const char *dir, const char *single,
                           const char *index)
{
    f->entry = SINGLE;
    TRY(file_check_link(single));
    if (file_exists(single)) {
        TRY(mem_calloc(&f->file, 1, sizeof(*f->file)));
        TRY(hf_files_add(f, dir, SINGLE));
        return hf_files_list(f);
    }
    TRY(file_check_link(index));
    if (!file_exists(index))
        return no_weights(dir);
    f->entry = INDEX;
    return hf_index_open(f, dir, index);
}

enum err hf_files_open(struct hf_files *out, const char *dir)
{
    enum err err = OK;
    struct hf_files f = {0};
    char *single = NULL, *index = NULL;
    TRY_OUT(file_join(&single, dir, SINGLE));
    TRY_OUT(file_join(&index, dir, INDEX));
    TRY_OUT(open_found(&f, dir, single, index));
    TRY_OUT(drop_copies(&f));
    TRY_OUT(list_stored(&f));
    TRY_OUT(refuse_wrapped(&f));
    TRY_OUT(lacks_prefix(&f) ? add_prefix(&f) : OK);
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
    mem_free(f->stored);
    mem_free(f->by_name);
    mem_free(f->tensor);
    mem_free(f->names);
    mem_free(f->part_names);
    *f = (struct hf_files){0};
}

const struct hf_place *hf_files_find(const struct hf_files *f, const char *name)
{
    if (f->n_places == 0)
        return NULL;
    return bsearch(name, f->by_name, (size_t)f->n_places, sizeof(*f->by_name),
                   compare_name);
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
