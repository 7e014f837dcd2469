/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tokenizer.h"

#include "data/tokenizer/files/tok_files.h"
#include "data/tokenizer/files/tok_model.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdio.h>
#include <string.h>

#define MAX_MODEL_BYTES ((size_t)64 << 20)

struct tokenizer {
    struct json_tokenizer *json; /* one of the two is set */
    struct model_tokenizer *model;
    int64_t vocab;
    int32_t bos, eos, unk, pad;
    bool model_bos, model_eos; /* tokens around a text, if there is no template */
    struct id_list ends;
    const char *file;
    char about[96];
};

/* --- opening ------------------------------------------------------------------------ */

static int32_t id_of(const struct tokenizer *t, const char *content)
{
    return t->json ? json_tokenizer_id(t->json, content)
                   : model_tokenizer_id(t->model, content);
}

/* Takes the names of special tokens in the files beside the tokenizer. A name that is not a
 * token is ignored. */
static enum err take_names(struct tokenizer *t, const struct tok_beside *beside)
{
    const int32_t bos = beside->bos ? id_of(t, beside->bos) : -1,
                  eos = beside->eos ? id_of(t, beside->eos) : -1;
    if (bos >= 0 && !(t->json && t->json->before.n)) /* the template has precedence */
        t->bos = bos;
    if (eos >= 0)
        t->eos = eos;
    t->unk = beside->unk ? id_of(t, beside->unk) : -1;
    t->pad = beside->pad ? id_of(t, beside->pad) : -1;
    return id_list_add_n(&t->ends, beside->ends.id, beside->ends.n);
}

static void take_json(struct tokenizer *t, const char *file, const char *kind)
{
    const struct json_tokenizer *j = t->json;
    t->file = file;
    t->vocab = j->n_ids;
    t->bos = j->before.n ? j->before.id[0] : -1;
    t->eos = -1;
    snprintf(t->about, sizeof(t->about), "%s: %s (%s)", file, kind,
             j->family                 ? j->family
             : j->pre.n || j->normal.n ? "Llama-2"
                                       : "no pre-tokenizer");
}

static enum err open_json(struct tokenizer *t, const char *dir, const char *path,
                          const struct tok_beside *beside)
{
    TRY(json_tokenizer_open(&t->json, path, beside->added, beside->n_added));
    take_json(t, "tokenizer.json",
              t->json->unigram.score    ? "Unigram"
              : t->json->pre.byte_level ? "byte-level BPE"
                                        : "SentencePiece-like BPE");
    return OK;
}

static enum err open_vocab(struct tokenizer *t, const char *dir, const char *path,
                           const struct tok_beside *beside)
{
    TRY(tok_open_vocab_merges(&t->json, dir, beside));
    take_json(t, "vocab.json", "byte-level BPE with merges.txt");
    return OK;
}

/* Llama 3 ends an answer with another token than a text. */
static enum err open_ranks(struct tokenizer *t, const char *data, size_t n,
                           const char *path, const struct tok_beside *beside)
{
    TRY(tok_open_ranks(&t->json, data, n, path, beside));
    take_json(t, "tokenizer.model", "byte-level BPE by ranks");
    t->eos = json_tokenizer_id(t->json, "<|end_of_text|>");
    const int32_t turn = json_tokenizer_id(t->json, "<|eot_id|>");
    return turn >= 0 ? id_list_add(&t->ends, turn) : OK;
}

static enum err open_spm(struct tokenizer *t, const char *data, size_t n, const char *path,
                         const struct tok_beside *beside)
{
    TRY(model_tokenizer_open(&t->model, data, n, path, beside));
    t->file = "tokenizer.model";
    t->vocab = t->model->n_ids;
    t->bos = spm_bos(t->model->spm);
    t->eos = spm_eos(t->model->spm);
    t->model_bos = beside->add_bos != SAID_NO;
    t->model_eos = beside->add_eos == SAID_YES;
    snprintf(t->about, sizeof(t->about), "tokenizer.model: SentencePiece %s",
             t->model->info.is_bpe ? "BPE" : "unigram");
    return OK;
}

static enum err open_model(struct tokenizer *t, const char *dir, const char *path,
                           const struct tok_beside *beside)
{
    char *data = NULL;
    size_t n;
    enum err err = OK;
    TRY(file_read_all(&data, &n, path, MAX_MODEL_BYTES));
    if (file_is_lfs_pointer(data, n))
        FAIL_OUT(ERR_FORMAT, "%s: " FILE_LFS_ADVICE, path);
    err = tok_is_ranks(data, n) ? open_ranks(t, data, n, path, beside)
                                : open_spm(t, data, n, path, beside);
out:
    mem_free(data);
    return err;
}

static enum err refuse_tekken(struct tokenizer *t, const char *dir, const char *path,
                              const struct tok_beside *beside)
{
    FAIL(ERR_SUPPORT,
         "%s: Mistral's Tekken format is not supported; take the model in its Hugging Face "
         "form, which has a tokenizer.json",
         path);
}

/* The first file that exists is used. */
static const struct {
    const char *name;
    enum err (*open)(struct tokenizer *t, const char *dir, const char *path,
                     const struct tok_beside *beside);
} formats[] = {{"tokenizer.json", open_json},
               {"tokenizer.model", open_model},
               {"vocab.json", open_vocab},
               {"tekken.json", refuse_tekken}};

static enum err open_any(struct tokenizer *t, const char *dir,
                         const struct tok_beside *beside)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        char *path = NULL;
        TRY(file_join(&path, dir, formats[i].name));
        enum err err = file_check_link(path);
        const bool found = file_exists(path);
        if (!err && found)
            err = formats[i].open(t, dir, path, beside);
        mem_free(path);
        if (err || found)
            return err;
    }
    FAIL(ERR_NOT_FOUND,
         "%s: no tokenizer.json and no tokenizer.model, nor vocab.json with merges.txt",
         dir);
}

enum err tokenizer_open(struct tokenizer **out, const char *model_dir)
{
    enum err err = OK;
    struct tokenizer *t = NULL;
    struct tok_beside beside = {0};
    TRY_OUT(mem_calloc(&t, 1, sizeof(*t)));
    TRY_OUT(tok_beside_read(&beside, model_dir));
    TRY_OUT(open_any(t, model_dir, &beside));
    TRY_OUT(take_names(t, &beside));
    *out = t;
    t = NULL;
out:
    tokenizer_close(&t);
    tok_beside_free(&beside);
    return err;
}

void tokenizer_close(struct tokenizer **pt)
{
    struct tokenizer *t = *pt;
    if (!t)
        return;
    json_tokenizer_close(&t->json);
    model_tokenizer_close(&t->model);
    id_list_free(&t->ends);
    mem_free(t);
    *pt = NULL;
}

/* --- use ---------------------------------------------------------------------------- */

static enum err add_before(struct id_list *out, const struct tokenizer *t,
                           enum bos_rule bos)
{
    FAIL_IF(bos == BOS_ALWAYS && t->bos < 0, ERR_USAGE,
            "%s names no BOS token: use --bos auto or never", t->file);
    if (bos == BOS_NEVER)
        return OK;
    if (bos == BOS_AUTO && t->json)
        return id_list_add_n(out, t->json->before.id, t->json->before.n);
    if (t->bos < 0 || (bos == BOS_AUTO && !t->model_bos))
        return OK;
    return id_list_add(out, t->bos);
}

static enum err add_after(struct id_list *out, const struct tokenizer *t, enum bos_rule bos)
{
    if (bos != BOS_AUTO)
        return OK;
    if (t->json)
        return id_list_add_n(out, t->json->after.id, t->json->after.n);
    return t->model_eos && t->eos >= 0 ? id_list_add(out, t->eos) : OK;
}

static enum err encode_valid(struct id_list *out, const struct tokenizer *t, const char *s,
                             size_t n, enum bos_rule bos)
{
    TRY(add_before(out, t, bos));
    if (t->model)
        TRY(model_tokenizer_encode(out, t->model, s, n));
    else
        TRY(json_tokenizer_encode(out, t->json, s, n));
    return add_after(out, t, bos);
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
    if (t->model)
        TRY_OUT(model_tokenizer_decode(&s, t->model, ids, n, keep_special));
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

struct tokenizer_parts tokenizer_parts(const struct tokenizer *t)
{
    return (struct tokenizer_parts){t->json,      t->model, t->model_bos,
                                    t->model_eos, t->unk,   t->pad};
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

bool tokenizer_ends(const struct tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->ends.n; i++)
        if (t->ends.id[i] == id)
            return true;
    return id >= 0 && id == t->eos;
}

const char *tokenizer_about(const struct tokenizer *t)
{
    return t->about;
}

const char *tokenizer_file(const struct tokenizer *t)
{
    return t->file;
}
