/* SPDX-License-Identifier: MIT */
#include "convert/artifact/artifact_files.h"

#include "convert/format/artifact_names.h"
#include "convert/format/artifact_spec.h"
#include "data/json.h"
#include "kernels/base/bytes.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Writes a file and describes it in *file. name must outlive the manifest, as a literal
 * does. */
static enum err put(struct manifest_file *file, const char *dir, const char *name,
                    const void *data, size_t n)
{
    char *path = NULL;
    if (!dir) {
        *file = (struct manifest_file){name, n, 0};
        return OK;
    }
    TRY(file_join(&path, dir, name));
    const enum err err = file_write_all(path, data, n);
    mem_free(path);
    if (!err)
        *file = (struct manifest_file){name, n, bytes_crc32(0, data, n)};
    return err;
}

static enum err put_json(struct manifest_file *file, const char *dir, const char *name,
                         const json_t *o)
{
    char *text = json_text_restored(o, JSON_INDENT(2));
    FAIL_IF(!text, ERR_MEMORY, "%s: out of memory", name);
    const size_t n = strlen(text);
    text[n] = '\n'; /* replaces the NUL */
    const enum err err = put(file, dir, name, text, n + 1);
    free(text);
    return err;
}

static enum err copy(struct manifest_file *file, size_t *n, const char *dir,
                     const char *model_dir, const char *name)
{
    char *path = NULL;
    struct file_map m = {0};
    TRY(file_join(&path, model_dir, name));
    enum err err = OK;
    if (file_exists(path)) {
        TRY_OUT(file_map_open(&m, path));
        TRY_OUT(put(&file[*n], dir, name, m.data, m.size));
        ++*n;
    }
out:
    file_map_close(&m);
    mem_free(path);
    return err;
}

/* Says the dtype of a Gemma, of which hf_open() then took that of the weights. */
static bool say_dtype(json_t *o, const struct arch *a)
{
    const char *name = a->family == ARCH_GEMMA3 ? hf_dtype_name(a) : NULL;
    return !name || json_is_string(json_object_get(o, "dtype")) ||
           json_is_string(json_object_get(o, "torch_dtype")) ||
           !json_object_set_new(o, "torch_dtype", json_string(name));
}

bool artifact_config_truth(json_t *o, const struct arch *a)
{
    static const char tie[] = "tie_word_embeddings", classes[] = "architectures";
    const char *name = hf_architecture(a);
    const char *said = json_string_value(json_array_get(json_object_get(o, classes), 0));
    const json_t *tied = json_object_get(o, tie);
    /* without a value, a reader takes the family's */
    const bool unsaid = !json_is_boolean(tied) && hf_ties_by_default(a) != a->tied;
    if ((unsaid || json_is_true(tied) != a->tied) &&
        json_object_set_new(o, tie, json_boolean(a->tied)))
        return false;
    if (!say_dtype(o, a))
        return false;
    return !said || !strcasecmp(said, name) ||
           !json_object_set_new(o, classes, json_pack("[s]", name));
}

static enum err write_config(struct manifest_file *file, const char *dir,
                             const char *model_dir, const struct arch *a,
                             const struct artifact_settings *s)
{
    enum err err = OK;
    char *path = NULL;
    json_t *o = NULL;
    TRY(file_join(&path, model_dir, "config.json"));
    TRY_OUT(json_load_file_lenient(&o, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    if (!json_is_object(o))
        FAIL_OUT(ERR_FORMAT, "%s: is %s, want an object", path, json_kind(o));
    json_object_del(o, "compression_config"); /* of a checkpoint with given weights */
    if (!artifact_config_truth(o, a) ||
        json_object_set_new(o, "quantization_config", spec_to_json(&s->weights, &s->kv)))
        FAIL_OUT(ERR_MEMORY, "%s: out of memory", path);
    TRY_OUT(put_json(file, dir, "config.json", o));
out:
    json_decref(o);
    mem_free(path);
    return err;
}

enum err artifact_write_files(const char *dir, const char *model_dir, const struct arch *a,
                              const struct artifact_settings *s, struct manifest_file *file,
                              size_t *n)
{
    size_t copies = 0;
    TRY(write_config(file, dir, model_dir, a, s));
    TRY(artifact_copy_tokenizer(dir, model_dir, file + 1, &copies));
    *n = 1 + copies;
    return OK;
}

enum err artifact_copy_tokenizer(const char *dir, const char *model_dir,
                                 struct manifest_file *file, size_t *n)
{
    *n = 0;
    for (size_t i = 0; artifact_copied_name(i); i++)
        TRY(copy(file, n, dir, model_dir, artifact_copied_name(i)));
    return OK;
}

enum err artifact_write_index(const char *dir, const struct out_plan *p,
                              struct manifest_file *file)
{
    enum err err = OK;
    json_t *map = json_object(), *root = NULL;
    uint64_t total = 0;
    for (size_t i = 0; i < p->n; i++) {
        const char *shard = p->shard[p->tensor[i].shard].name;
        if (json_object_set_new(map, p->tensor[i].name, json_string(shard)))
            FAIL_OUT(ERR_MEMORY, "out of memory for the index");
        total += p->tensor[i].bytes;
    }
    root = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total,
                     "weight_map", map);
    if (!root)
        FAIL_OUT(ERR_MEMORY, "out of memory for the index");
    TRY_OUT(put_json(file, dir, ARTIFACT_INDEX_NAME, root));
out:
    json_decref(map);
    json_decref(root);
    return err;
}
