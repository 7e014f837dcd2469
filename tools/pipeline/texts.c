/* SPDX-License-Identifier: MIT */
#include "tools/pipeline/texts.h"

#include "kernels/base/log.h"
#include "kernels/base/mem.h"
#include "kernels/base/plural.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static enum err append(struct token_ids *to, const struct token_ids *from)
{
    if (!from->n) /* its list may be NULL */
        return OK;
    TRY(mem_resize(&to->id, to->n, to->n + from->n, sizeof(*to->id)));
    memcpy(to->id + to->n, from->id, from->n * sizeof(*to->id));
    to->n += from->n;
    return OK;
}

/* Appends one text made of n files. */
static enum err read_one(struct texts *out, const struct tokenizer *t,
                         const char *const *path, int n, const struct recipe *r)
{
    struct corpus text = {0};
    struct token_ids ids = {0};
    enum err err = OK;
    const struct corpus_rules rules = {(enum corpus_join)r->join, r->text_field};
    TRY(corpus_load(&text, path, n, &rules));
    TRY_OUT(tokenizer_encode(&ids, t, text.text, text.bytes, (enum bos_rule)r->bos));
    log_info("text: %.1f MB, %zu token%s (%s)", 1e-6 * (double)text.bytes, ids.n,
             plural((int64_t)ids.n), tokenizer_about(t));
    out->text[out->n] = (struct batch_text){
        .name = path[0], .begin = (int64_t)out->ids.n, .n = (int64_t)ids.n, .share = 1};
    TRY_OUT(append(&out->ids, &ids));
    out->n++;
out:
    corpus_free(&text);
    token_ids_free(&ids);
    return err;
}

enum err texts_read(struct texts *out, const struct tokenizer *t,
                    const struct recipe_files *files, const struct recipe *r)
{
    const bool apart = recipe_files_shared(files);
    const char *const *path = (const char *const *)files->path;
    *out = (struct texts){0};
    TRY(mem_calloc(&out->text, apart ? (size_t)files->n : 1, sizeof(*out->text)));
    for (int i = 0; apart && i < files->n; i++)
        TRY(read_one(out, t, path + i, 1, r));
    if (!apart) {
        TRY(read_one(out, t, path, files->n, r));
        out->text[0].name = "the text";
    }
    texts_set_shares(out->text, out->n, files);
    out->crc = batch_crc(out->ids.id, out->ids.n);
    return OK;
}

void texts_free(struct texts *t)
{
    token_ids_free(&t->ids);
    mem_free(t->text);
    *t = (struct texts){0};
}

void texts_set_shares(struct batch_text *text, int n, const struct recipe_files *files)
{
    for (int i = 0; recipe_files_shared(files) && i < n; i++)
        text[i].share = recipe_files_share(files, i);
}

json_t *texts_json(const struct token_ids *ids, const struct batch_text *text, int n)
{
    json_t *list = json_array();
    for (int i = 0; list && i < n; i++) {
        char crc[16];
        snprintf(crc, sizeof(crc), "%08" PRIx32,
                 batch_crc(ids->id + text[i].begin, (size_t)text[i].n));
        json_array_append_new(list,
                              json_pack("{s:I, s:s, s:f}", "tokens", (json_int_t)text[i].n,
                                        "crc32", crc, "share", text[i].share));
    }
    return list;
}
