/* SPDX-License-Identifier: MIT
 *
 * Wrong tokenizer files: each is refused with a message, and thousands of mutations of
 * valid files do no harm. */
#include "data/tokenizer/tok_text.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"
#include "kernels/base/rng.h"
#include "tests/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[] = "/tmp/wkvq_hostile_XXXXXX";

static int make_dir(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    return scratch_remove(dir) ? 0 : -1;
}

/* The product's writer is not used, because it would sync thousands of files. */
static void put(const char *name, const char *data, size_t n)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path); /* some file systems write out a file that is truncated */
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void drop(const char *name)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
}

#define MODEL(more)                                                                        \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}," more "}"
#define MERGES "\"merges\":[\"a b\"]"
#define UNIGRAM(part) "{\"model\":{\"type\":\"Unigram\"," part "}}"
#define WITH(part) "{" part "," MODEL(MERGES) "}"
#define PRE(part) WITH("\"pre_tokenizer\":" part)
#define NORMAL(part) WITH("\"normalizer\":" part)
#define POST(part) WITH("\"post_processor\":" part)

static const struct {
    const char *json;
    enum err err;
    const char *word;
} refused[] = {
    {"", ERR_FORMAT, "not valid JSON"},
    {"[]", ERR_FORMAT, "an array"},
    {"{}", ERR_FORMAT, "model is missing"},
    {"{\"model\":3}", ERR_FORMAT, "model is an integer"},
    {"{\"model\":{\"type\":\"BPE\"}}", ERR_FORMAT, "vocab"},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", ERR_SUPPORT, "WordPiece"},
    {UNIGRAM("\"vocab\":[]"), ERR_FORMAT, "vocab is missing or empty"},
    {UNIGRAM("\"vocab\":{\"a\":0}"), ERR_FORMAT, "vocab is an object"},
    {UNIGRAM("\"vocab\":[[\"a\"]]"), ERR_FORMAT, "token 0 is not a string with a score"},
    {UNIGRAM("\"vocab\":[[\"a\",1e400]]"), ERR_FORMAT, "token 0 is not a string"},
    {UNIGRAM("\"vocab\":[[\"a\",0],[\"a\",0]]"), ERR_FORMAT, "appears twice"},
    {UNIGRAM("\"vocab\":[[\"\\u0000\",0]]"), ERR_SUPPORT, "token 0 holds a NUL"},
    {UNIGRAM("\"unk_id\":1,\"vocab\":[[\"a\",0]]"), ERR_FORMAT, "unk_id"},
    {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", ERR_FORMAT, "has id -1"},
    {"{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", ERR_FORMAT, "4000000000"},
    {"{\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", ERR_FORMAT, "a string"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", ERR_FORMAT,
     "another token"},
    {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", ERR_FORMAT, "JSON"},
    {"{\"model\":{\"vocab\":{\"a\":0}}}", ERR_FORMAT, "merges is missing"},
    {"{" MODEL("\"merges\":[\"a c\"]") "}", ERR_FORMAT, "\"c\" is not in the vocabulary"},
    {"{" MODEL("\"merges\":[\"b a\"]") "}", ERR_FORMAT, "\"ba\" is not in the vocabulary"},
    {"{" MODEL("\"merges\":[\"ab\"]") "}", ERR_FORMAT, "no space"},
    {"{" MODEL("\"merges\":[[\"a\"]]") "}", ERR_FORMAT, "merge 0"},
    {"{" MODEL("\"merges\":[7]") "}", ERR_FORMAT, "an integer"},
    {"{" MODEL(MERGES ",\"dropout\":0.1") "}", ERR_SUPPORT, "dropout"},
    {"{" MODEL(MERGES ",\"continuing_subword_prefix\":\"##\"") "}", ERR_SUPPORT, "##"},
    {"{" MODEL(MERGES ",\"end_of_word_suffix\":\"</w>\"") "}", ERR_SUPPORT, "</w>"},
    {"{" MODEL(MERGES ",\"fuse_unk\":1") "}", ERR_FORMAT, "fuse_unk"},
    {NORMAL("{\"type\":\"Lowercase\"}"), ERR_SUPPORT, "normalizer: Lowercase"},
    {NORMAL("{\"type\":\"Nmt\"}"), ERR_SUPPORT, "supported: NFC"},
    {NORMAL("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}"),
     ERR_FORMAT, "normalizer: the pattern ("},
    {NORMAL("{\"type\":\"Precompiled\"}"), ERR_FORMAT, "precompiled_charsmap is missing"},
    {NORMAL("{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA\"}"), ERR_FORMAT,
     "not base64"},
    {NORMAL("{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAAAA\"}"),
     ERR_FORMAT, "charsmap: 9 bytes with an array of 4"},
    {NORMAL("{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}"),
     ERR_SUPPORT, "empty pattern"},
    {NORMAL("{\"type\":\"Prepend\"}"), ERR_FORMAT, "prepend is missing"},
    {NORMAL("{\"type\":\"Sequence\"}"), ERR_FORMAT, "normalizers is missing"},
    {NORMAL("\"NFC\""), ERR_FORMAT, "a string"},
    {PRE("{\"type\":\"BertPreTokenizer\"}"), ERR_SUPPORT,
     "pre_tokenizer: BertPreTokenizer"},
    {PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a-z\"},\"behavior\":"
         "\"Isolated\"}"),
     ERR_FORMAT, "the pattern [a-z is not a regular expression"},
    {PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Merged\"}"),
     ERR_FORMAT, "behavior is \"Merged\""},
    {PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},"
         "{\"type\":\"ByteLevel\"}]}"),
     ERR_SUPPORT, "after ByteLevel"},
    {PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}"),
     ERR_FORMAT, "last"},
    {PRE("{\"type\":\"Metaspace\",\"replacement\":\"\"}"), ERR_FORMAT,
     "replacement is \"\", want one character"},
    {PRE("{\"type\":\"Metaspace\",\"replacement\":\"__\"}"), ERR_FORMAT, "one character"},
    {POST("{\"type\":\"RobertaProcessing\"}"), ERR_SUPPORT, "RobertaProcessing"},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[]}"), ERR_SUPPORT, "0 times"},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
          "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{}}"),
     ERR_FORMAT, "\"a\""},
    {POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
          "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"a\":{\"ids\":[9]}}}"),
     ERR_FORMAT, "outside the vocabulary"},
    {WITH("\"decoder\":{\"type\":\"CTC\"}"), ERR_SUPPORT, "decoder: CTC"},
    {WITH("\"added_tokens\":[3]"), ERR_FORMAT, "added_tokens"},
    {WITH("\"added_tokens\":[{\"id\":3}]"), ERR_FORMAT, "content is missing"},
};

static void test_refused(void **state)
{
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        struct tokenizer *t = NULL;
        err_clear();
        put("tokenizer.json", refused[i].json, strlen(refused[i].json));
        const enum err e = tokenizer_open(&t, dir);
        if (e != refused[i].err || !strstr(err_text(), "tokenizer.json: ") ||
            !strstr(err_text(), refused[i].word))
            fail_msg("%s: want %s with \"%s\", have %s: %s", refused[i].json,
                     err_name(refused[i].err), refused[i].word, err_name(e), err_text());
        assert_null(t);
    }
    drop("tokenizer.json");
}

/* The same document without the mistake is accepted, so the mistake causes the error. */
static void test_accepted(void **state)
{
    static const char *const good[] = {
        "{" MODEL(MERGES) "}",
        "{" MODEL("\"merges\":[[\"a\",\"b\"]],\"dropout\":0.0") "}",
        PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Removed\"}"),
        NORMAL("{\"type\":\"Sequence\",\"normalizers\":[]}"),
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct tokenizer *t = NULL;
        struct token_ids ids = {0};
        err_clear();
        put("tokenizer.json", good[i], strlen(good[i]));
        if (tokenizer_open(&t, dir) || tokenizer_encode(&ids, t, "abxa", 4, BOS_AUTO))
            fail_msg("%s: %s", good[i], err_text());
        assert_int_equal(ids.n, 2);
        assert_int_equal(ids.id[0], 2);
        token_ids_free(&ids);
        tokenizer_close(&t);
    }
    drop("tokenizer.json");
}

/* U+FDD0 stands for lost characters of keys, but is a character like any other where none
 * was lost. */
static void test_token_like_the_mark(void **state)
{
    static const char *const good[] = {
        "{\"model\":{\"vocab\":{\"a\":0,\"\xEF\xB7\x90\":1},\"merges\":[]}}",
        UNIGRAM("\"unk_id\":0,\"vocab\":[[\"a\",0],[\"\\ufdd0\",0]]"),
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct tokenizer *t = NULL;
        struct token_ids ids = {0};
        err_clear();
        put("tokenizer.json", good[i], strlen(good[i]));
        if (tokenizer_open(&t, dir) ||
            tokenizer_encode(&ids, t, "a\xEF\xB7\x90", 4, BOS_AUTO))
            fail_msg("%s: %s", good[i], err_text());
        assert_int_equal(ids.n, 2);
        assert_int_equal(ids.id[1], 1);
        token_ids_free(&ids);
        tokenizer_close(&t);
    }
    drop("tokenizer.json");
}

static void add(struct text *t, const char *s)
{
    assert_int_equal(text_add(t, s, strlen(s)), OK);
}

static void add_times(struct text *t, const char *s, int times)
{
    for (int i = 0; i < times; i++)
        add(t, s);
}

#define GROWS "make a text of"
#define BACKTRACKS "backtracks too much"
#define TOKEN(content) "{\"id\":3,\"content\":\"" content "\",\"normalized\":"
/* Takes some 20 ms for the 19 letters, and finds nothing. */
#define LETTERS "aaaaaaaaaaaaaaaaaaa"
#define SLOW                                                                               \
    "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(a|a)*(?!a)(?<=z)\"},\"content\":\"x\"}"

/* A file that opens, or encodes or decodes its text, only if a limit of the whole text has
 * been taken for one of each part. */
struct bomb {
    struct text json, text;
};

static void bomb_free(struct bomb *b)
{
    text_free(&b->json);
    text_free(&b->text);
}

static void refuse_use(struct bomb *b, const char *word)
{
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    char *back = NULL;
    size_t n;
    err_clear();
    put("tokenizer.json", b->json.p, b->json.n);
    enum err e = tokenizer_open(&t, dir);
    if (!e)
        e = tokenizer_encode(&ids, t, b->text.p, b->text.n, BOS_AUTO);
    if (!e)
        e = tokenizer_decode(&back, &n, t, ids.id, ids.n, true);
    if (e != ERR_SUPPORT || !strstr(err_text(), word))
        fail_msg("%.80s: have %s: %s", b->json.p, err_name(e), err_text());
    mem_free(back);
    token_ids_free(&ids);
    tokenizer_close(&t);
    bomb_free(b);
    drop("tokenizer.json");
}

static void test_growth(void **state)
{
    struct bomb b = {0};
    add(&b.json, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 3; i++) { /* a thousandfold three times */
        add(&b.json, i ? "," : "");
        add(&b.json, "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"");
        add_times(&b.json, "a", 1000);
        add(&b.json, "\"}");
    }
    add(&b.json, "]}," MODEL(MERGES) "}");
    add(&b.text, "ab");
    refuse_use(&b, GROWS);
    /* each of many parts */
    add(&b.json,
        "{\"added_tokens\":[" TOKEN("<s>") "false}],\"normalizer\":{\"type\":\"Prepend\","
                                           "\"prepend\":\"");
    add_times(&b.json, "b", 3000);
    add(&b.json, "\"}," MODEL(MERGES) "}");
    add_times(&b.text, "a<s>", 1000);
    refuse_use(&b, GROWS);
    /* twice as long with each pair of steps, in which no expression takes time */
    add(&b.json, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (int i = 0; i < 8; i++) {
        char meta[64];
        snprintf(meta, sizeof(meta), "{\"type\":\"Metaspace\",\"replacement\":\"%d\"}", i);
        add(&b.json, i ? "," : "");
        add(&b.json, "{\"type\":\"Digits\",\"individual_digits\":true},");
        add(&b.json, meta);
    }
    add(&b.json, "]}," MODEL(MERGES) "}");
    add_times(&b.text, "89", 10000);
    refuse_use(&b, GROWS);
    /* while decoding */
    add(&b.json,
        "{\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"b\"},\"content\":\"");
    add_times(&b.json, "a", 3000);
    add(&b.json, "\"}," MODEL(MERGES) "}");
    add_times(&b.text, "b", 1000);
    refuse_use(&b, GROWS);
}

static void test_one_account_of_backtracks(void **state)
{
    struct bomb b = {0};
    add(&b.json, "{\"added_tokens\":[" TOKEN("<s>") "false}],\"normalizer\":" SLOW
                                                    "," MODEL(MERGES) "}");
    add_times(&b.text, LETTERS "<s>", 40);
    refuse_use(&b, BACKTRACKS);
    /* added tokens, which are normalized when the file is opened */
    add(&b.json, "{\"added_tokens\":[");
    for (char c[] = "A"; c[0] < 'A' + 40; c[0]++) {
        add(&b.json, c[0] > 'A' ? "," TOKEN(LETTERS) : TOKEN(LETTERS));
        b.json.n -= strlen("\",\"normalized\":");
        if (c[0] == '\\')
            add(&b.json, "\\");
        add(&b.json, c);
        add(&b.json, "\",\"normalized\":true}");
    }
    add(&b.json, "],\"normalizer\":" SLOW "," MODEL(MERGES) "}");
    add(&b.text, "b");
    refuse_use(&b, BACKTRACKS);
    /* pieces of a decoder */
    add(&b.json, "{\"added_tokens\":[" TOKEN(LETTERS) "false}],\"decoder\":" SLOW
                                                      "," MODEL(MERGES) "}");
    add_times(&b.text, LETTERS, 40);
    refuse_use(&b, BACKTRACKS);
}

/* Every place of a text is compared with an added token, so that a normalizer must not make
 * it long. */
static void test_long_normalized_token(void **state)
{
    struct bomb b = {0};
    struct tokenizer *t = NULL;
    add(&b.json, "{\"added_tokens\":[" TOKEN(
                     "a") "true}],\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"");
    add_times(&b.json, "b", TOKEN_BYTES_MAX);
    add(&b.json, "\"}," MODEL(MERGES) "}");
    put("tokenizer.json", b.json.p, b.json.n);
    err_clear();
    assert_int_equal(tokenizer_open(&t, dir), ERR_FORMAT);
    assert_non_null(
        strstr(err_text(), "tokenizer.json: added token \"a\" has 4097 bytes once"));
    bomb_free(&b);
    drop("tokenizer.json");
}

/* Uses a tokenizer of a mutated file, if it opens. */
static bool use(void)
{
    static const char text[] =
        " The n\xC3\xA9w king's  river 123 \xE6\x97\xA5\xE6\x9C\xAC\n\n"
        "[MASK] [LEFT]  <s> e\xCC\x81 \xFF the";
    struct tokenizer *t = NULL;
    struct token_ids ids = {0};
    char *s = NULL;
    size_t n;
    err_clear();
    if (tokenizer_open(&t, dir)) {
        assert_true(strlen(err_text()) > 0);
        return false;
    }
    if (!tokenizer_encode(&ids, t, text, sizeof(text) - 1, BOS_AUTO)) {
        for (size_t i = 0; i < ids.n; i++)
            assert_true(ids.id[i] >= 0 && ids.id[i] < tokenizer_vocab(t));
        if (!tokenizer_decode(&s, &n, t, ids.id, ids.n, true))
            mem_free(s);
        token_ids_free(&ids);
    }
    tokenizer_close(&t);
    return true;
}

static size_t mutate(char *p, size_t n, struct rng *rng)
{
    static const char spice[] = "\"{}[]:,0-\\\x00\xFF\x7F\x80\x01";
    const int rounds = 1 + (int)rng_below(rng, 3);
    for (int i = 0; i < rounds && n > 8; i++) {
        const size_t at = rng_below(rng, n),
                     k = 1 + rng_below(rng, n - at < 40 ? n - at : 40);
        switch (rng_below(rng, 6)) {
        case 0:
            p[at] = (char)rng_below(rng, 256);
            break;
        case 1:
            p[at] = spice[rng_below(rng, sizeof(spice) - 1)];
            break;
        case 2:
            p[at] = (char)('0' + rng_below(rng, 10));
            break;
        case 3: /* cut something out */
            memmove(p + at, p + at + k, n - at - k);
            n -= k;
            break;
        case 4: /* copy something over something else */
            memmove(p + rng_below(rng, n - k + 1), p + at, k);
            break;
        default:
            if (rng_below(rng, 8) == 0)
                n = at + 1;
            else
                p[at] ^= (char)(1 << rng_below(rng, 8));
        }
    }
    return n;
}

static void mutate_file(const char *kind, const char *name, int rounds)
{
    char path[1024], *data = NULL, *copy = NULL;
    size_t n;
    struct rng rng;
    int opened = 0;
    rng_seed(&rng, 11);
    snprintf(path, sizeof(path), "%s/%s/%s", getenv("GOLDEN_TOK"), kind, name);
    assert_int_equal(file_read_all(&data, &n, path, 1 << 20), OK);
    assert_int_equal(mem_alloc(&copy, n, 1), OK);
    for (int i = 0; i < rounds; i++) {
        memcpy(copy, data, n);
        put(name, copy, mutate(copy, n, &rng));
        opened += use();
    }
    drop(name);
    print_message("%s/%s: %d of %d mutations open\n", kind, name, opened, rounds);
    assert_true(opened > 0 && opened < rounds);
    mem_free(data);
    mem_free(copy);
}

static void test_mutations(void **state)
{
    mutate_file("flags", "tokenizer.json", 600);
    mutate_file("llama3", "tokenizer.json", 500);
    mutate_file("llama2", "tokenizer.json", 300);
    mutate_file("spm", "tokenizer.model", 800);
    mutate_file("unigram", "tokenizer.model", 800);
    mutate_file("rules", "tokenizer.model", 800);
    mutate_file("unigram_rules", "tokenizer.json", 400);
}

/* The components are at the start and end of the file, where random places rarely are. */
static void test_mutated_components(void **state)
{
    char *copy = NULL;
    struct rng rng;
    rng_seed(&rng, 5);
    assert_int_equal(mem_alloc(&copy, 4096, 1), OK);
    for (int i = 0; i < 2000; i++) {
        static const char *const good[] = {
            PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},"
                "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"split\":false}]}"),
            NORMAL("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":"
                   "\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"b\"}]}"),
            POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}"
                 "},"
                 "{\"SpecialToken\":{\"id\":\"a\"}}],\"special_tokens\":{\"a\":{\"ids\":[1]"
                 "}}}"),
            WITH("\"added_tokens\":[{\"id\":3,\"content\":\"the\",\"lstrip\":true}],"
                 "\"decoder\":{\"type\":\"Strip\",\"content\":\" "
                 "\",\"start\":1,\"stop\":0}"),
        };
        const char *g = good[i % (int)ARRAY_LEN(good)];
        memcpy(copy, g, strlen(g));
        put("tokenizer.json", copy, mutate(copy, strlen(g), &rng));
        use();
    }
    drop("tokenizer.json");
    mem_free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_token_like_the_mark),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_one_account_of_backtracks),
        cmocka_unit_test(test_long_normalized_token),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_mutated_components),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
