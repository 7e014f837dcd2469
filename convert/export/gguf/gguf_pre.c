/* SPDX-License-Identifier: MIT
 *
 * Which of llama.cpp's tokenizers gives the ids of a tokenizer.json. */
#include "convert/export/gguf/gguf_vocab.h"

#include "kernels/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's space */
/* Every byte of a token is tried as the place of a split. Published ones have 48 bytes. */
#define MAX_SPLIT_BYTES 256

/* --- byte-level --------------------------------------------------------------------- */

/* A step in front of ByteLevel: one of the two. */
struct known_step {
    scan_fn *scan;
    const char *pattern; /* splits at its matches and at the gaps between them */
};

/* The steps whose words llama.cpp finds by a name. Where the steps are the same, names differ in
 * ignore_merges: a word that is a token is then not split. Not among them: "gpt-4o" and "tekken",
 * which take upper and lower case to be that of ASCII and divide words before a combining mark,
 * and "falcon", "deepseek-llm" and "deepseek-coder", which find other words than the tokenizers of
 * these names. */
static const struct {
    struct known_step step[3];
    scan_fn *bytes; /* the expression of ByteLevel, or NULL */
    bool ignore_merges;
    const char *name;
} known[] = {
    {{{0}}, scan_gpt2, false, "gpt-2"},
    {{{scan_gpt2}}, NULL, false, "gpt-2"},
    {{{scan_digit}}, scan_gpt2, false, "smollm"},
    {{{scan_llama3}}, NULL, true, "llama-bpe"},
    {{{scan_llama3}}, NULL, false, "dbrx"},
    {{{scan_qwen2}}, NULL, false, "qwen2"},
    {{{.pattern = "\\p{N}{1,3}"},
      {.pattern = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"},
      {.pattern = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                  "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
                  "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
     NULL,
     false,
     "deepseek-v3"},
    {{{.pattern = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"},
      {scan_digit}},
     NULL,
     false,
     "viking"},
    {{{.pattern = " ?[^(\\s|[.,!?\\u2026\\u3002\\uff0c\\u3001\\u0964\\u06d4\\u060c])]+"},
      {scan_digit}},
     NULL,
     false,
     "viking"}, /* the same characters by their numbers */
};

/* clang-format off */
/* The names of tokenizer.ggml.pre that llama.cpp loads; it refuses all others. */
static const char *const names[] = {
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon",
    "chatglm-bpe", "codeshell", "cohere2moe", "command-r", "dbrx", "deepseek-coder",
    "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "default", "exaone",
    "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gemma4",
    "gigachat", "glm4", "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling",
    "granite-embed-multi-311m", "granite-embed-multi-97m", "grok-2", "hunyuan",
    "hunyuan-dense", "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en",
    "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm",
    "kanana2", "kimi-k2", "kormo", "laguna", "lfm2", "llada-moe", "llama-bpe",
    "llama-v3", "llama3", "llama4", "megrez", "mellum", "mellum2", "midm-2.0",
    "minerva-7b", "minicpm5", "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2",
    "pixtral", "poro-chat", "qwen2", "qwen35", "refact", "roberta-bpe",
    "sarvam-moe", "seed-coder", "smaug-bpe", "smollm", "solar-open", "stablelm2",
    "starcoder", "superbpe", "talkie", "tekken", "tiny_aya", "trillion", "viking",
    "whitespace", "youtu",
};
/* clang-format on */

const char *gguf_pre_name(size_t i)
{
    return i < ARRAY_LEN(names) ? names[i] : NULL;
}

static bool is_step(const struct pre_step *s, const struct known_step *k)
{
    if (s->kind == PRE_SCAN)
        return k->scan && s->scan == k->scan;
    return s->kind == PRE_SPLIT && s->regex && k->pattern && !s->invert &&
           s->behavior == SPLIT_ISOLATED && !strcmp(regex_pattern(s->regex), k->pattern);
}

/* Returns whether these are the steps in front of the last. Rows that are not used are zero. */
static bool has_steps(const struct pre_tokenizer *p, const struct known_step *k, int room)
{
    int n = 0;
    while (n < room && (k[n].scan || k[n].pattern))
        n++;
    if (n != p->n - 1)
        return false;
    for (int i = 0; i < n; i++)
        if (!is_step(&p->step[i], &k[i]))
            return false;
    return true;
}

const char *gguf_pre_of(const struct json_tokenizer *t)
{
    const struct pre_tokenizer *p = &t->pre;
    const struct pre_step *last = p->n ? &p->step[p->n - 1] : NULL;
    if (!last || last->kind != PRE_BYTE_LEVEL || last->prefix_space || p->mapped)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (has_steps(p, known[i].step, ARRAY_LEN(known[i].step)) &&
            known[i].bytes == last->scan && known[i].ignore_merges == t->bpe.ignore_merges)
            return known[i].name;
    return NULL;
}

/* --- merges ------------------------------------------------------------------------- */

static int by_rank(const void *a, const void *b)
{
    const struct gguf_merge *x = a, *y = b;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    if (x->left != y->left)
        return x->left < y->left ? -1 : 1;
    return x->right < y->right ? -1 : x->right > y->right;
}

enum err gguf_merges(struct gguf_merge **out, size_t *n, const struct bpe *b)
{
    struct gguf_merge *list = NULL;
    size_t k = 0;
    TRY(mem_alloc(&list, b->rank.n, sizeof(*list)));
    for (size_t i = 0; i < b->rank.n_slots; i++)
        if (b->rank.key[i] != UINT64_MAX)
            list[k++] =
                (struct gguf_merge){b->rank.value[i], (int32_t)(b->rank.key[i] >> 32),
                                    (int32_t)(b->rank.key[i] & UINT32_MAX)};
    qsort(list, k, sizeof(*list), by_rank);
    *out = list;
    *n = k;
    return OK;
}

/* --- SentencePiece's ---------------------------------------------------------------- */

static bool is_space(const char *s)
{
    return s && !strcmp(s, SPACE);
}

/* Returns whether the steps divide no text: one that splits at spaces finds none where the
 * normalizer has replaced them all. Gemma's tokenizers have that step. */
static bool divides_nothing(const struct pre_tokenizer *p)
{
    const struct pre_step *s = p->step;
    return !p->n || (p->n == 1 && s->kind == PRE_SPLIT && s->literal && !s->invert &&
                     !strcmp(s->literal, " "));
}

enum err gguf_check_chars(bool *prefix, const struct json_tokenizer *t, const char *where)
{
    const struct normalizer *m = &t->normal;
    const struct pre_step *pre = t->pre.step;
    const bool prepends =
        m->n == 2 && m->step[0].kind == NORMAL_PREPEND && is_space(m->step[0].to);
    const struct normal_step *last = m->n ? &m->step[m->n - 1] : NULL;
    const bool replaces = last && (m->n == 1 || prepends) && last->kind == NORMAL_REPLACE &&
                          last->from && !strcmp(last->from, " ") && is_space(last->to);
    const bool metaspace = !m->n && t->pre.n == 1 && pre->kind == PRE_METASPACE &&
                           is_space(pre->literal) && !pre->split;
    FAIL_IF(
        !metaspace && !(replaces && divides_nothing(&t->pre)), ERR_SUPPORT,
        "%s: its normalizer and pre_tokenizer have no counterpart in GGUF, which knows "
        "those of Llama-2, Mistral and Gemma; use the tokenizer.model, or --gguf-pre none",
        where);
    FAIL_IF(t->bpe.ignore_merges, ERR_SUPPORT,
            "%s: ignore_merges has no counterpart in GGUF's llama tokenizer", where);
    *prefix = metaspace ? pre->prepend != PREPEND_NEVER : prepends;
    return OK;
}

/* True for tokens that are found before the model runs, or stand for a byte or for unknown
 * text: their names do not come from merges. */
static bool is_apart(const struct json_tokenizer *t, int32_t id, const char *s, size_t n)
{
    return pair_map_get(&t->added_of, id, 0) >= 0 || id == t->bpe.unk_id ||
           (n == 6 && !memcmp(s, "<0x", 3));
}

/* "llama" merges any two neighbours that form a token. So each split of a token into two
 * tokens must be a merge. */
static enum err check_splits(const struct json_tokenizer *t, int32_t id, const char *where)
{
    const struct bpe *b = &t->bpe;
    size_t n, k;
    int32_t c;
    const char *s = bpe_token(&n, b, id);
    if (!s || is_apart(t, id, s, n))
        return OK;
    FAIL_IF(n > MAX_SPLIT_BYTES, ERR_SUPPORT,
            "%s: token %d has %zu bytes; a GGUF file's scores are made of merges for at "
            "most %d; put the model's tokenizer.model beside it, if there is one",
            where, id, n, MAX_SPLIT_BYTES);
    for (size_t at = utf8_next(&c, s, n); at < n; at += k) {
        k = utf8_next(&c, s + at, n - at);
        const int32_t l = bpe_id(b, s, at), r = l < 0 ? -1 : bpe_id(b, s + at, n - at);
        FAIL_IF(r >= 0 && !is_apart(t, l, s, at) && !is_apart(t, r, s + at, n - at) &&
                    pair_map_get(&b->rank, l, r) < 0,
                ERR_SUPPORT,
                "%s: \"%.*s\" and \"%.*s\" form a token but are no merge; a GGUF file has "
                "scores instead of merges and would merge them; put the model's "
                "tokenizer.model beside it, if there is one",
                where, (int)at, s, (int)(n - at), s + at);
    }
    return OK;
}

enum err gguf_scores(float *scores, const struct json_tokenizer *t, const char *where)
{
    enum err err = OK;
    const struct bpe *b = &t->bpe;
    struct gguf_merge *merge = NULL;
    size_t n;
    int32_t last = -1, order = 0;
    for (int32_t id = 0; id < b->n_ids; id++) {
        TRY(check_splits(t, id, where));
        scores[id] = 0;
    }
    TRY(gguf_merges(&merge, &n, b));
    for (size_t i = 0; i < n; i++) {
        const int32_t id = b->merged[merge[i].rank];
        if (id == last)
            continue;
        if (scores[id] != 0) {
            size_t length;
            const char *s = bpe_token(&length, b, id);
            FAIL_OUT(ERR_SUPPORT,
                     "%s: merges of other tokens stand between those of \"%.*s\"; a GGUF "
                     "file has one score per token and would merge in another order; put "
                     "the model's tokenizer.model beside it, if there is one",
                     where, (int)(length < 80 ? length : 80), s);
        }
        scores[id] = -(float)++order;
        last = id;
    }
out:
    mem_free(merge);
    return err;
}
