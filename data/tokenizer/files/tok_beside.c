/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/files/tok_beside.h"

#include "data/json.h"
#include "data/tokenizer/tok_bpe.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define MAX_ADDED 65536

/* One of the files while it is read. */
struct reader {
    struct tok_beside *b;
    const char *path;
    json_t *root; /* an object */
};

/* --- tokens ------------------------------------------------------------------------- */

/* Keeps a token, unless an earlier one has the same content. */
static enum err keep_token(const struct reader *r, const char *content,
                           struct added_token a)
{
    struct tok_beside *b = r->b;
    uint32_t index;
    const size_t n = strlen(content), k = b->n_added;
    FAIL_IF(n > TOKEN_BYTES_MAX || k == MAX_ADDED, ERR_FORMAT,
            "%s: more than %d added tokens, or one of more than %d bytes", r->path,
            MAX_ADDED, TOKEN_BYTES_MAX);
    if (!n || dict_find(&b->contents, content, n) >= 0)
        return OK;
    if ((k & (k - 1)) == 0) /* a power of two: the table is full */
        TRY(mem_resize(&b->added, k, k ? 2 * k : 1, sizeof(*b->added)));
    TRY(dict_add(&index, &b->contents, content, n));
    TRY(mem_strdup(&a.content, content));
    b->added[b->n_added++] = a;
    return OK;
}

/* Reads a token: a string, or an object with the string as content and with flags. *content
 * is borrowed, and NULL if v is null or missing. */
static enum err read_token(const char **content, struct added_token *a, const json_t *v,
                           const char *key, const struct reader *r)
{
    *content = NULL;
    if (!v || json_is_null(v))
        return OK;
    if (json_is_object(v)) {
        TRY(json_get_string(content, v, "content", r->path));
        TRY(json_get_bool(&a->lstrip, v, "lstrip", r->path));
        TRY(json_get_bool(&a->rstrip, v, "rstrip", r->path));
        TRY(json_get_bool(&a->single_word, v, "single_word", r->path));
        TRY(json_get_bool(&a->normalized, v, "normalized", r->path));
        return json_get_bool(&a->special, v, "special", r->path);
    }
    FAIL_IF(!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v),
            ERR_FORMAT, "%s: %s holds %s, want a string or an object with content", r->path,
            key, json_kind(v));
    *content = json_string_value(v);
    return OK;
}

static enum err read_special(const struct reader *r, const json_t *v, const char *key)
{
    const char *content;
    struct added_token a = {.id = -1};
    TRY(read_token(&content, &a, v, key, r));
    a.special = true;
    const int64_t known =
        content ? dict_find(&r->b->contents, content, strlen(content)) : -1;
    if (known >= 0) {
        r->b->added[known].special = true;
        return OK;
    }
    return content ? keep_token(r, content, a) : OK;
}

/* Reads the name of a special token, if no earlier file has it. */
static enum err read_name(char **name, const struct reader *r, const char *key)
{
    const char *content;
    struct added_token a = {0};
    TRY(read_token(&content, &a, json_object_get(r->root, key), key, r));
    return content && !*name ? mem_strdup(name, content) : OK;
}

static enum err read_specials(const struct reader *r)
{
    static const char *const single[] = {"bos_token", "eos_token", "unk_token", "pad_token",
                                         "sep_token", "cls_token", "mask_token"};
    static const char *const lists[] = {"additional_special_tokens",
                                        "extra_special_tokens"};
    const char *name;
    json_t *v;
    TRY(read_name(&r->b->bos, r, "bos_token"));
    TRY(read_name(&r->b->eos, r, "eos_token"));
    TRY(read_name(&r->b->unk, r, "unk_token"));
    TRY(read_name(&r->b->pad, r, "pad_token"));
    for (size_t i = 0; i < ARRAY_LEN(single); i++)
        TRY(read_special(r, json_object_get(r->root, single[i]), single[i]));
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        json_t *list = json_object_get(r->root, lists[i]);
        for (size_t k = 0; k < json_array_size(list); k++)
            TRY(read_special(r, json_array_get(list, k), lists[i]));
        json_object_foreach(list, name, v) TRY(read_special(r, v, lists[i]));
    }
    return OK;
}

/* Reads {"32000": {"content": "<|im_end|>", ...}, ...}. */
static enum err read_decoder(const struct reader *r)
{
    json_t *decoder = NULL, *v;
    const char *key, *content;
    TRY(json_get_object(&decoder, r->root, "added_tokens_decoder", r->path));
    json_object_foreach(decoder, key, v)
    {
        struct added_token a = {.decides = json_is_object(v)};
        const size_t n = strlen(key);
        FAIL_IF(!n || n > 7 || strspn(key, "0123456789") != n, ERR_FORMAT,
                "%s: added_tokens_decoder has the key \"%.40s\", want an id", r->path, key);
        sscanf(key, "%d", &a.id);
        FAIL_IF(a.id > BPE_MAX_ID, ERR_FORMAT,
                "%s: added_tokens_decoder has id %d, want 0 to %d", r->path, a.id,
                BPE_MAX_ID);
        TRY(read_token(&content, &a, v, "added_tokens_decoder", r));
        if (content)
            TRY(keep_token(r, content, a));
    }
    return OK;
}

/* Reads {"<|im_end|>": 32000, ...}. */
static enum err read_added(const struct reader *r)
{
    json_t *v;
    const char *content;
    json_object_foreach(r->root, content, v)
    {
        const json_int_t id = json_integer_value(v);
        FAIL_IF(!json_is_integer(v) || id < 0 || id > BPE_MAX_ID, ERR_FORMAT,
                "%s: the id of \"%.80s\" is not an integer of 0 to %d", r->path, content,
                BPE_MAX_ID);
        TRY(keep_token(r, content, (struct added_token){.id = (int32_t)id}));
    }
    return OK;
}

/* --- settings ----------------------------------------------------------------------- */

static enum err read_flag(enum said *out, const struct reader *r, const char *key)
{
    bool value = false;
    const json_t *v = json_object_get(r->root, key);
    if (!v || json_is_null(v))
        return OK;
    TRY(json_get_bool(&value, r->root, key, r->path));
    *out = value ? SAID_YES : SAID_NO;
    return OK;
}

static enum err read_class(const struct reader *r)
{
    static const char fast[] = "Fast";
    const char *name = NULL;
    TRY(json_get_string(&name, r->root, "tokenizer_class", r->path));
    if (!name)
        return OK;
    TRY(mem_strdup(&r->b->class_name, name));
    const size_t n = strlen(name), k = sizeof(fast) - 1;
    if (n > k && !strcmp(name + n - k, fast))
        r->b->class_name[n - k] = '\0';
    return OK;
}

static enum err read_config(const struct reader *r)
{
    struct tok_beside *b = r->b;
    TRY(read_class(r));
    TRY(read_flag(&b->add_bos, r, "add_bos_token"));
    TRY(read_flag(&b->add_eos, r, "add_eos_token"));
    TRY(read_flag(&b->legacy, r, "legacy"));
    TRY(read_flag(&b->prefix_space, r, "add_prefix_space"));
    return read_decoder(r);
}

static enum err read_ends(const struct reader *r)
{
    const json_t *v = json_object_get(r->root, "eos_token_id");
    if (!v || json_is_null(v))
        return OK;
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_is_array(v) ? json_array_get(v, i) : v;
        FAIL_IF(!json_is_integer(x) || json_integer_value(x) > BPE_MAX_ID, ERR_FORMAT,
                "%s: eos_token_id is or holds %s, want token ids up to %d", r->path,
                json_kind(x), BPE_MAX_ID);
        if (json_integer_value(x) >= 0) /* -1: none */
            TRY(id_list_add(&r->b->ends, (int32_t)json_integer_value(x)));
    }
    return OK;
}

/* --- files -------------------------------------------------------------------------- */

static enum err read_file(struct tok_beside *b, const char *dir, const char *name,
                          enum err (*read)(const struct reader *r))
{
    enum err err = OK;
    char *path = NULL;
    json_t *root = NULL;
    TRY(file_join(&path, dir, name));
    TRY_OUT(file_check_link(path));
    if (!file_exists(path))
        goto out;
    TRY_OUT(json_load_file_lenient(&root, path, JSON_CONFIG_MAX, JSON_REPEATS_LAST));
    if (!json_is_object(root))
        FAIL_OUT(ERR_FORMAT, "%s: holds %s, want an object", path, json_kind(root));
    TRY_OUT(read(&(struct reader){b, path, root}));
out:
    json_decref(root);
    mem_free(path);
    return err;
}

enum err tok_beside_read(struct tok_beside *out, const char *dir)
{
    static const char config[] = "tokenizer_config.json";
    struct tok_beside b = {0};
    enum err err = OK;
    TRY_OUT(read_file(&b, dir, config, read_config));
    if (!b.n_added)
        TRY_OUT(read_file(&b, dir, "added_tokens.json", read_added));
    TRY_OUT(read_file(&b, dir, config, read_specials));
    TRY_OUT(read_file(&b, dir, "special_tokens_map.json", read_specials));
    TRY_OUT(read_file(&b, dir, "generation_config.json", read_ends));
    *out = b;
    return OK;
out:
    tok_beside_free(&b);
    return err;
}

void tok_beside_free(struct tok_beside *b)
{
    for (size_t i = 0; i < b->n_added; i++)
        mem_free(b->added[i].content);
    mem_free(b->added);
    mem_free(b->class_name);
    mem_free(b->bos);
    mem_free(b->eos);
    mem_free(b->unk);
    mem_free(b->pad);
    dict_free(&b->contents);
    id_list_free(&b->ends);
    *b = (struct tok_beside){0};
}
