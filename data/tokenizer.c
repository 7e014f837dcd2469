/* SPDX-License-Identifier: MIT */
#include "data/tokenizer.h"

#include "data/tok_json.h"
#include "data/tok_spm.h"
#include "kernels/base/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define MAX_MODEL_BYTES ((size_t)64 << 20)
#define MAX_CONFIG_BYTES ((size_t)16 << 20)

struct tokenizer {
    struct json_tokenizer *json; /* one of the two */
    struct spm *spm;
    int64_t vocab;
    int32_t bos, eos;
    const char *file;
    char about[96];
};

/* bos_token and eos_token are a string, or an object with the string as content. */
static enum err named_token(int32_t *id, const struct json_tokenizer *t, const json_t *root,
                            const char *key, const char *path)
{
    const json_t *v = json_object_get(root, key);
    const char *content = NULL;
    if (json_is_object(v))
        TRY(json_get_string(&content, v, "content", path));
    else
        TRY(json_get_string(&content, root, key, path));
    if (content && *id < 0)
        *id = json_tokenizer_id(t, content);
    return OK;
}

/* BOS and EOS by name, from a file beside tokenizer.json that may be missing. */
static enum err read_names(struct tokenizer *t, const char *dir, const char *name)
{
    enum err err = OK;
    char *path = NULL;
    json_t *root = NULL;
    TRY(file_join(&path, dir, name));
    if (!file_exists(path))
        goto out;
    TRY_OUT(json_load_file_strict(&root, path, MAX_CONFIG_BYTES));
    if (!json_is_object(root))
        FAIL_OUT(ERR_FORMAT, "%s: holds %s, want an object", path, json_kind(root));
    TRY_OUT(named_token(&t->bos, t->json, root, "bos_token", path));
    TRY_OUT(named_token(&t->eos, t->json, root, "eos_token", path));
out:
    json_decref(root);
    mem_free(path);
    return err;
}

static enum err open_json(struct tokenizer *t, const char *dir, const char *path)
{
    TRY(json_tokenizer_open(&t->json, path));
    const struct json_tokenizer *j = t->json;
    t->file = "tokenizer.json";
    t->vocab = j->n_ids;
    t->bos = j->before.n ? j->before.id[0] : -1;
    t->eos = -1;
    TRY(read_names(t, dir, "tokenizer_config.json"));
    TRY(read_names(t, dir, "special_tokens_map.json"));
    snprintf(t->about, sizeof(t->about), "tokenizer.json: %s BPE (%s)",
             j->pre.byte_level ? "byte-level" : "SentencePiece-like",
             j->family                 ? j->family
             : j->pre.n || j->normal.n ? "Llama-2"
                                       : "no pre-tokenizer");
    return OK;
}

static enum err open_spm(struct tokenizer *t, const char *path)
{
    char *data = NULL;
    size_t n;
    struct spm_info info = {0};
    TRY(file_read_all(&data, &n, path, MAX_MODEL_BYTES));
    enum err err = spm_check(&info, data, n, path);
    if (!err)
        err = spm_open(&t->spm, data, n, path);
    mem_free(data);
    TRY(err);
    t->file = "tokenizer.model";
    t->vocab = info.n_pieces;
    t->bos = spm_bos(t->spm);
    t->eos = spm_eos(t->spm);
    snprintf(t->about, sizeof(t->about), "tokenizer.model: SentencePiece %s",
             info.is_bpe ? "BPE" : "unigram");
    return OK;
}

enum err tokenizer_open(struct tokenizer **out, const char *model_dir)
{
    enum err err = OK;
    struct tokenizer *t = NULL;
    char *json = NULL, *model = NULL;
    TRY_OUT(mem_calloc(&t, 1, sizeof(*t)));
    TRY_OUT(file_join(&json, model_dir, "tokenizer.json"));
    TRY_OUT(file_join(&model, model_dir, "tokenizer.model"));
    if (file_exists(json))
        TRY_OUT(open_json(t, model_dir, json));
    else if (file_exists(model))
        TRY_OUT(open_spm(t, model));
    else
        FAIL_OUT(ERR_NOT_FOUND, "%s: no tokenizer.json and no tokenizer.model", model_dir);
    *out = t;
    t = NULL;
out:
    tokenizer_close(&t);
    mem_free(json);
    mem_free(model);
    return err;
}

void tokenizer_close(struct tokenizer **pt)
{
    struct tokenizer *t = *pt;
    if (!t)
        return;
    json_tokenizer_close(&t->json);
    spm_close(&t->spm);
    mem_free(t);
    *pt = NULL;
}

static enum err encode_valid(struct id_list *out, const struct tokenizer *t, const char *s,
                             size_t n, enum bos_rule bos)
{
    const bool by_template = t->json && bos == BOS_AUTO;
    FAIL_IF(bos == BOS_ALWAYS && t->bos < 0, ERR_USAGE,
            "%s names no BOS token: use --bos auto or never", t->file);
    if (by_template)
        TRY(id_list_add_n(out, t->json->before.id, t->json->before.n));
    else if (bos != BOS_NEVER && t->bos >= 0)
        TRY(id_list_add(out, t->bos));
    if (t->spm)
        TRY(spm_encode(out, t->spm, s, n));
    else
        TRY(json_tokenizer_encode(out, t->json, s, n));
    return by_template ? id_list_add_n(out, t->json->after.id, t->json->after.n) : OK;
}

enum err tokenizer_encode(struct token_ids *out, const struct tokenizer *t,
                          const char *text, size_t bytes, enum bos_rule bos)
{
    enum err err = OK;
    struct text repaired = {0};
    struct id_list ids = {0};
    if (!utf8_valid(text, bytes)) {
        TRY_OUT(utf8_repair(&repaired, text, bytes));
        text = repaired.p;
        bytes = repaired.n;
    }
    TRY_OUT(encode_valid(&ids, t, text, bytes, bos));
    *out = (struct token_ids){ids.id, ids.n};
    ids = (struct id_list){0};
out:
    id_list_free(&ids);
    text_free(&repaired);
    return err;
}

void token_ids_free(struct token_ids *ids)
{
    mem_free(ids->id);
    *ids = (struct token_ids){0};
}

enum err tokenizer_decode(char **out, size_t *bytes, const struct tokenizer *t,
                          const int32_t *ids, size_t n, bool keep_special)
{
    enum err err = OK;
    struct text s = {0};
    if (t->spm)
        TRY_OUT(spm_decode(&s, t->spm, ids, n, keep_special));
    else
        TRY_OUT(json_tokenizer_decode(&s, t->json, ids, n, keep_special));
    TRY_OUT(text_add(&s, "", 1));
    *out = s.p;
    *bytes = s.n - 1;
    s = (struct text){0};
out:
    text_free(&s);
    return err;
}

int64_t tokenizer_vocab(const struct tokenizer *t)
{
    return t->vocab;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

const char *tokenizer_about(const struct tokenizer *t)
{
    return t->about;
}

const char *tokenizer_file(const struct tokenizer *t)
{
    return t->file;
}
