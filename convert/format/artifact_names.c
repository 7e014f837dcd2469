/* SPDX-License-Identifier: MIT */
#include "convert/format/artifact_names.h"

#include "convert/format/artifact_spec.h"
#include "convert/format/manifest.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

/* Files of the tokenizer and of generation. */
static const char *const copied[] = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
};

enum err artifact_is(bool *yes, const char *dir)
{
    enum err err = OK;
    char *config = NULL;
    *yes = false;
    TRY_OUT(file_join(&config, dir, "config.json"));
    if (file_size(config) > 0 && (uint64_t)file_size(config) <= JSON_CONFIG_MAX) {
        json_t *o = NULL;
        err = json_load_file_lenient(&o, config, JSON_CONFIG_MAX, JSON_REPEATS_LAST);
        if (err && err != ERR_FORMAT && err != ERR_NOT_FOUND)
            goto out;
        err = OK;
        err_clear(); /* not an artifact: no error */
        *yes = spec_is_ours(json_object_get(o, "quantization_config"));
        json_decref(o);
    }
out:
    mem_free(config);
    return err;
}

void artifact_shard_name(char out[64], int shard, int n_shards)
{
    if (n_shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, n_shards);
}

/* Returns true for the name of a shard. The name is parsed and written again, and must be
 * the same. */
static bool is_shard_name(const char *name)
{
    char again[64];
    int shard, n;
    if (!strcmp(name, "model.safetensors"))
        return true;
    if (sscanf(name, "model-%d-of-%d.safetensors", &shard, &n) != 2 || shard < 1 || n < 2 ||
        shard > n)
        return false;
    artifact_shard_name(again, shard - 1, n);
    return !strcmp(name, again);
}

const char *artifact_copied_name(size_t i)
{
    return i < ARRAY_LEN(copied) ? copied[i] : NULL;
}

bool artifact_file_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(copied); i++)
        if (!strcmp(name, copied[i]))
            return true;
    return !strcmp(name, MANIFEST_NAME) || !strcmp(name, "config.json") ||
           !strcmp(name, ARTIFACT_INDEX_NAME) || is_shard_name(name);
}
