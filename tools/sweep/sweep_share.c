/* SPDX-License-Identifier: MIT */
#include "tools/sweep/sweep_share.h"

#include "config.h"
#include "data/json.h"
#include "kernels/base/file/file.h"
#include "kernels/base/log.h"
#include "kernels/base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Adds {"name", "bytes", "modified", "changed"} of a file; nothing else changes with every
 * write on every machine that mounts the file system. false: not a regular file. */
static bool add_stamp(json_t *list, const char *path, const char *name)
{
    struct stat st;
    if (stat(path, &st) || !S_ISREG(st.st_mode))
        return false;
    json_t *o = json_pack("{s:s, s:I, s:[I,I], s:[I,I]}", "name", name, "bytes",
                          (json_int_t)st.st_size, "modified", (json_int_t)st.st_mtim.tv_sec,
                          (json_int_t)st.st_mtim.tv_nsec, "changed",
                          (json_int_t)st.st_ctim.tv_sec, (json_int_t)st.st_ctim.tv_nsec);
    return !json_array_append_new(list, o);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Makes the stamps of all files of the model: weights, configuration and tokenizer. */
static enum err stamp_model(json_t **out, const char *dir)
{
    struct dirent **name = NULL;
    enum err err = OK;
    const int n = scandir(dir, &name, NULL, by_name);
    FAIL_IF(n < 0, ERR_IO, "%s: cannot read: %s", dir, strerror(errno));
    *out = json_array();
    for (int i = 0; i < n; i++) {
        char *path = NULL;
        if (!err)
            err = file_join(&path, dir, name[i]->d_name);
        if (!err)
            add_stamp(*out, path, name[i]->d_name);
        mem_free(path);
        free(name[i]);
    }
    free(name);
    return err;
}

/* Makes a key from an object, which it takes. Release *out with free(). */
static enum err key_text(char **out, json_t *o)
{
    json_object_set_new(o, "program", json_string(WKVQ_VERSION));
    *out = json_text(o, JSON_SORT_KEYS | JSON_COMPACT);
    json_decref(o);
    FAIL_IF(!*out, ERR_MEMORY, "out of memory for a key");
    return OK;
}

/* Makes OUT/shared/NAME. Release *out with mem_free(). */
static enum err shared_path(char **out, const struct sweep *s, const char *name)
{
    char *dir = NULL;
    TRY(file_join(&dir, s->out_dir, "shared"));
    enum err err = s->settings.share ? file_make_dir(dir) : OK;
    if (!err)
        err = file_join(out, dir, name);
    mem_free(dir);
    return err;
}

/* Returns what follows the key's line in a file, or NULL if its key is another one. */
static const uint8_t *after_key(const struct file_map *m, const char *key, size_t *left)
{
    const size_t n = strlen(key);
    if (m->size <= n || memcmp(m->data, key, n) || m->data[n] != '\n')
        return NULL;
    *left = m->size - n - 1;
    return m->data + n + 1;
}

/* --- checkpoint --------------------------------------------------------------------- */

static bool read_checkpoint(uint32_t *crc, const char *path, const char *key)
{
    struct file_map m = {0};
    char text[9] = "", *end = text;
    size_t left = 0;
    if (!file_is_plain(path) || file_map_open(&m, path)) {
        err_clear();
        return false;
    }
    const uint8_t *value = after_key(&m, key, &left);
    if (value && left == sizeof(text)) { /* eight digits and a newline */
        memcpy(text, value, sizeof(text) - 1);
        *crc = (uint32_t)strtoul(text, &end, 16);
    }
    file_map_close(&m);
    return end == text + 8;
}

static enum err write_checkpoint(const char *path, const char *key, uint32_t crc)
{
    char *text = NULL;
    const size_t n = strlen(key) + 16;
    TRY(mem_alloc(&text, n, 1));
    snprintf(text, n, "%s\n%08" PRIx32 "\n", key, crc);
    const enum err err = file_write_all(path, text, strlen(text));
    mem_free(text);
    return err;
}

enum err sweep_share_checkpoint(struct sweep *s, const struct hf_model *m)
{
    enum err err = OK;
    json_t *files = NULL;
    char *path = NULL, *key = NULL;
    TRY(stamp_model(&files, s->model_dir));
    TRY(key_text(&key, json_pack("{s:o}", "checkpoint", files)));
    TRY_OUT(shared_path(&path, s, "checkpoint"));
    if (read_checkpoint(&s->model_crc, path, key))
        goto out;
    TRY_OUT(hf_identity(&s->model_crc, m, true));
    if (s->settings.share)
        TRY_OUT(write_checkpoint(path, key, s->model_crc));
out:
    mem_free(path);
    free(key);
    return err;
}

/* --- texts -------------------------------------------------------------------------- */

/* After the key's line: this head, the first token and the number of tokens of each text as
 * int64, and the tokens as int32, all little-endian. */
struct tokens_head {
    uint64_t n_ids;
    uint32_t crc, n_texts;
};

/* *out NULL: a file is not a regular one, or missing. Release *out with free(). */
static enum err text_key(char **out, const struct sweep_text *t, const struct sweep *s)
{
    json_t *files = json_array(), *model = NULL;
    bool regular = true;
    *out = NULL;
    for (int i = 0; i < t->files.n; i++)
        regular = regular && add_stamp(files, t->files.path[i], t->files.path[i]);
    const enum err err = regular ? stamp_model(&model, s->model_dir) : OK;
    if (err || !regular) {
        json_decref(model);
        json_decref(files);
        return err;
    }
    return key_text(out, json_pack("{s:o, s:o, s:b, s:i, s:i, s:s}", "text", files, "model",
                                   model, "apart", recipe_files_shared(&t->files), "join",
                                   t->join, "bos", t->bos, "field", t->text_field));
}

static enum err tokens_path(char **out, const struct sweep *s, const char *key)
{
    char name[SWEEP_HASH_MAX + 8];
    sweep_hash(name, key);
    strcat(name, ".tokens");
    return shared_path(out, s, name);
}

/* Copies the texts and the tokens that follow h. Names are set as texts_read() does. */
static enum err copy_texts(struct texts *out, const struct recipe_files *files,
                           const struct tokens_head *h, const uint8_t *p)
{
    const bool apart = recipe_files_shared(files);
    TRY(mem_calloc(&out->text, h->n_texts, sizeof(*out->text)));
    out->n = (int)h->n_texts;
    for (int i = 0; i < out->n; i++, p += 2 * sizeof(int64_t)) {
        struct batch_text *t = &out->text[i];
        *t = (struct batch_text){.name = apart ? files->path[i] : "the text", .share = 1};
        memcpy(&t->begin, p, sizeof(t->begin));
        memcpy(&t->n, p + sizeof(t->begin), sizeof(t->n));
    }
    texts_set_shares(out->text, out->n, files);
    if (h->n_ids)
        TRY(mem_alloc(&out->ids.id, h->n_ids, sizeof(*out->ids.id)));
    if (h->n_ids)
        memcpy(out->ids.id, p, h->n_ids * sizeof(*out->ids.id));
    out->ids.n = h->n_ids;
    out->crc = batch_crc(out->ids.id, out->ids.n);
    return OK;
}

/* Returns whether the texts follow each other and cover all tokens. */
static bool texts_fit(const struct texts *t)
{
    int64_t at = 0;
    for (int i = 0; i < t->n; i++) {
        if (t->text[i].begin != at || t->text[i].n < 0 ||
            t->text[i].n > (int64_t)t->ids.n - at)
            return false;
        at += t->text[i].n;
    }
    return at == (int64_t)t->ids.n;
}

/* *found: out has the tokens of the file. A file that does not add up is ignored. */
static enum err read_tokens(struct texts *out, bool *found, const struct sweep_text *t,
                            const char *path, const char *key)
{
    struct file_map m = {0};
    struct tokens_head h = {0};
    enum err err = OK;
    size_t left = 0;
    const uint32_t want = recipe_files_shared(&t->files) ? (uint32_t)t->files.n : 1;
    *found = false;
    if (!file_is_plain(path) || file_map_open(&m, path)) {
        err_clear();
        return OK;
    }
    const uint8_t *p = after_key(&m, key, &left);
    if (p && left >= sizeof(h))
        memcpy(&h, p, sizeof(h));
    if (h.n_texts == want && h.n_ids < SIZE_MAX / 8 &&
        left == sizeof(h) + h.n_texts * 2 * sizeof(int64_t) + h.n_ids * sizeof(int32_t)) {
        err = copy_texts(out, &t->files, &h, p + sizeof(h));
        *found = !err && out->crc == h.crc && texts_fit(out);
    }
    if (!*found)
        texts_free(out);
    file_map_close(&m);
    return err;
}

static enum err put_tokens(struct file_writer *w, const struct texts *t, const char *key)
{
    const struct tokens_head h = {t->ids.n, t->crc, (uint32_t)t->n};
    TRY(file_printf(w, "%s\n", key));
    TRY(file_write(w, &h, sizeof(h)));
    for (int i = 0; i < t->n; i++) {
        TRY(file_write(w, &t->text[i].begin, sizeof(t->text[i].begin)));
        TRY(file_write(w, &t->text[i].n, sizeof(t->text[i].n)));
    }
    return file_write(w, t->ids.id, t->ids.n * sizeof(*t->ids.id));
}

static enum err write_tokens(const struct texts *t, const char *path, const char *key)
{
    struct file_writer *w = NULL;
    TRY(file_writer_open(&w, path));
    enum err err = put_tokens(w, t, key);
    if (!err)
        err = file_writer_commit(&w);
    file_writer_abort(&w);
    return err;
}

/* ERR_USAGE for a text that the sweep's other processes cannot read again. */
static enum err check_readable(const struct sweep_text *t)
{
    for (int i = 0; i < t->files.n; i++) {
        const char *path = t->files.path[i];
        FAIL_IF(!strcmp(path, "-") || (file_exists(path) && !file_is_regular(path)),
                ERR_USAGE,
                "%s: several processes read the text, so it must be a regular file", path);
    }
    return OK;
}

enum err sweep_share_text(struct sweep_text *t, const struct sweep *s,
                          const struct recipe *r)
{
    enum err err = OK;
    char *key = NULL, *path = NULL;
    bool found = false;
    if (s->settings.share)
        TRY(check_readable(t));
    TRY(text_key(&key, t, s));
    if (!key)
        return texts_read(&t->texts, s->tokenizer, &t->files, r);
    TRY_OUT(tokens_path(&path, s, key));
    TRY_OUT(read_tokens(&t->texts, &found, t, path, key));
    if (found) {
        log_info("text: %zu tokens from %s", t->texts.ids.n, path);
        goto out;
    }
    TRY_OUT(texts_read(&t->texts, s->tokenizer, &t->files, r));
    if (s->settings.share)
        TRY_OUT(write_tokens(&t->texts, path, key));
out:
    mem_free(path);
    free(key);
    return err;
}
