/* SPDX-License-Identifier: MIT
 *
 * Passes a text through the steps of tokenizer.json, and decodes ids. Texts repeat their
 * words, so the ids of short words are cached for the duration of a call. */
#include "data/tokenizer/files/tok_json.h"

#include <string.h>

#define CACHED_WORD_BYTES 128
#define CACHED_WORDS ((size_t)1 << 18)

struct encoder {
    const struct json_tokenizer *t;
    struct id_list *out;
    struct bpe_work work;
    struct unigram_work paths;
    struct step_work steps;
    struct pre_run run;
    struct text normal, spare, mapped;
    bool first; /* the current part is at the start of the text */
    struct dict words;
    struct id_list word_ids;  /* ids of all cached words, concatenated */
    struct id_list word_ends; /* end of a word's ids, by its number */
};

static enum err encode_fresh(struct encoder *e, struct id_list *out, const char *s,
                             size_t n)
{
    if (e->t->pre.byte_level && !e->t->pre.mapped) {
        TRY(byte_level_map(&e->mapped, s, n));
        s = e->mapped.p;
        n = e->mapped.n;
    }
    if (e->t->unigram.score)
        return unigram_encode(out, &e->t->unigram, &e->t->bpe, &e->paths, s, n);
    return bpe_encode(out, &e->t->bpe, &e->work, s, n);
}

static enum err emit_cached(struct encoder *e, size_t k)
{
    const size_t start = k ? (size_t)e->word_ends.id[k - 1] : 0;
    if (start == e->word_ids.n) /* a word without ids; the list may not exist yet */
        return OK;
    return id_list_add_n(e->out, e->word_ids.id + start,
                         (size_t)e->word_ends.id[k] - start);
}

static enum err encode_word(void *ctx, const char *s, size_t n)
{
    struct encoder *e = ctx;
    uint32_t k;
    if (n > CACHED_WORD_BYTES)
        return encode_fresh(e, e->out, s, n);
    const int64_t known = dict_find(&e->words, s, n);
    if (known >= 0)
        return emit_cached(e, (size_t)known);
    if (e->words.n >= CACHED_WORDS)
        return encode_fresh(e, e->out, s, n);
    TRY(dict_add(&k, &e->words, s, n));
    TRY(encode_fresh(e, &e->word_ids, s, n));
    TRY(id_list_add(&e->word_ends, (int32_t)e->word_ids.n));
    return emit_cached(e, k);
}

static enum err encode_normal_part(void *ctx, const char *s, struct added_part p)
{
    struct encoder *e = ctx;
    if (p.token >= 0)
        return id_list_add(e->out, e->t->added[p.token].id);
    return pre_run_text(&e->run, s + p.start, p.end - p.start, e->first && p.start == 0);
}

static enum err encode_raw_part(void *ctx, const char *s, struct added_part p)
{
    struct encoder *e = ctx;
    const struct json_tokenizer *t = e->t;
    if (p.token >= 0)
        return id_list_add(e->out, t->added[p.token].id);
    const char *part = s + p.start;
    size_t n = p.end - p.start;
    e->first = p.start == 0;
    if (t->normal.n) {
        TRY(normalizer_run(&e->normal, &e->spare, &e->steps, &t->normal, part, n));
        part = e->normal.p;
        n = e->normal.n;
    }
    return added_matcher_run(&t->normalized, t->added, part, n, encode_normal_part, e);
}

enum err json_tokenizer_encode(struct id_list *out, const struct json_tokenizer *t,
                               const char *s, size_t n)
{
    struct encoder e = {.t = t, .out = out, .steps.growth.bytes = n};
    e.run =
        (struct pre_run){.pre = &t->pre, .work = &e.steps, .word = encode_word, .ctx = &e};
    const enum err err = added_matcher_run(&t->raw, t->added, s, n, encode_raw_part, &e);
    bpe_work_free(&e.work);
    unigram_work_free(&e.paths);
    pre_run_free(&e.run);
    step_work_free(&e.steps);
    text_free(&e.normal);
    text_free(&e.spare);
    text_free(&e.mapped);
    dict_free(&e.words);
    id_list_free(&e.word_ids);
    id_list_free(&e.word_ends);
    return err;
}

enum err json_tokenizer_decode(struct text *out, const struct json_tokenizer *t,
                               const int32_t *ids, size_t n, bool keep_special)
{
    enum err err = OK;
    struct pieces p = {0};
    for (size_t i = 0; i < n; i++) {
        const int32_t k = ids[i] < 0 ? -1 : pair_map_get(&t->added_of, ids[i], 0);
        size_t length = 0;
        if (k >= 0 && t->added[k].special && !keep_special)
            continue;
        const char *s = k >= 0 ? t->added[k].content : bpe_token(&length, &t->bpe, ids[i]);
        if (!s)
            continue;
        TRY_OUT(text_add(&p.text, s, k >= 0 ? strlen(s) : length));
        TRY_OUT(pieces_close(&p));
    }
    TRY_OUT(decoder_run(out, &t->decoder, &p));
out:
    pieces_free(&p);
    return err;
}
