/* SPDX-License-Identifier: MIT
 *
 * Text files to one string: joining, rows, encodings, and what is no text. */
#include "data/tokenizer/tok_text.h"
#include "tests/data/text_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_join(void **state)
{
    static const char raw[] = " \n = A = \n \n text \nmore\n";
    static const char rows[] = "\n\n = A = \n\n\n\n\n text \n\n\nmore\n";
    put_text("a.raw", raw);
    put_text("a.txt", raw);
    put_text("a.tokens", raw);
    want("a.raw", JOIN_AUTO, rows, 1);
    want("a.tokens", JOIN_AUTO, rows, 1);
    want("a.txt", JOIN_AUTO, raw, 1);
    want("a.txt", JOIN_ROWS, rows, 1);
    want("a.raw", JOIN_FILE, raw, 1);
    put_text("b.raw",
             "x\n\xc2\xa0\xe3\x80\x80\t\n\xe2\x80\xa8!\nlast"); /* no newline at the end */
    want("b.raw", JOIN_AUTO, "x\n\n\n\n\n\xe2\x80\xa8!\n\n\nlast", 1);
    put_text("c.raw", "");
    want("c.raw", JOIN_AUTO, "", 1);
    put_text("c.raw", "\n\n");
    want("c.raw", JOIN_AUTO, "\n\n", 1);
}

/* Penn Treebank: " ".join(line.strip() for line in file), and the rows of the hub's form. */
static void test_join_by_space(void **state)
{
    put_text("ptb.txt", " no it was n't \n he <unk> N \r\n\xc2\xa0 last\t\n");
    want("ptb.txt", JOIN_SPACE, "no it was n't he <unk> N last", 1);
    want("ptb.txt", JOIN_AUTO, " no it was n't \n he <unk> N \r\n\xc2\xa0 last\t\n", 1);
    put_text("ptb.txt", "a\n\n b");
    want("ptb.txt", JOIN_SPACE, "a  b", 1);
    put_text("ptb.txt", "");
    want("ptb.txt", JOIN_SPACE, "", 1);
    put_text("ptb.jsonl", "{\"text\": \"no it\"}\n{\"text\": \"he\"}\n");
    want("ptb.jsonl", JOIN_SPACE, "no it he", 2);
}

static void test_files(void **state)
{
    static const struct corpus_rules rules = {JOIN_AUTO, NULL};
    put_text("1.txt", "one\n");
    put_text("2.txt", "two");
    char a[128], b[128];
    strcpy(a, in_dir("1.txt"));
    strcpy(b, in_dir("2.txt"));
    const char *const p[] = {a, b};
    struct corpus c = {0};
    assert_int_equal(corpus_load(&c, p, 2, &rules), OK);
    assert_string_equal(c.text, "one\n\n\ntwo");
    assert_int_equal(c.n_documents, 2);
    corpus_free(&c);
    const char *const twice[] = {"-", "-"};
    err_clear();
    assert_int_equal(corpus_load(&c, twice, 2, &rules), ERR_USAGE);
    assert_non_null(strstr(err_text(), "standard input is given 2 times"));
    refuse("none.txt", ERR_NOT_FOUND, "none.txt");
    refuse("none.zip", ERR_NOT_FOUND, "none.zip");
    refuse("none.gz", ERR_NOT_FOUND, "none.gz");
    put_text("empty.jsonl.gz", "");
    want("empty.jsonl.gz", JOIN_AUTO, "", 1);
}

/* --- rows --------------------------------------------------------------------------- */

static void test_rows(void **state)
{
    put_text("a", "{\"text\":\"one\"}\n \t\n\n{\"id\":3,\"text\":\"two\\u00e9\\n\"}\r\n");
    want("a", JOIN_AUTO, "one\n\ntwo\xc3\xa9\n", 2);
    want("a", JOIN_ROWS, "one\n\ntwo\xc3\xa9\n", 2); /* joins lines of plain text */
    put_text("a", "[\n{\"text\":\"one\"},\n {\"text\": \"two\"} ]\n");
    want("a", JOIN_AUTO, "one\n\ntwo", 2);
    put_text("a", "{\n\"text\":\"one\"\n}\n{\n\"text\": \"two\"}{\"text\":\"\"}");
    want("a", JOIN_AUTO, "one\n\ntwo\n\n", 3);
    put_text("a", "{\"version\":[1],\"data\":[{\"text\":\"one\"},{\"text\":\"two\"}]}");
    want("a", JOIN_AUTO, "one\n\ntwo", 2);
    put_text("a", "{\"text\":\"one\"}\n\n{\"txt\":\"two\"}\n");
    refuse("a", ERR_FORMAT,
           "1 of 2 rows cannot be read, more than 1 %; the first is line 3: "
           "no field text");
    put_text("a", "{\"text\":5}\n");
    refuse("a", ERR_FORMAT, "line 1: text is a number");
    put_text("a", "{\"name\":\"x\",\"body\":\"y\"}\n{\"name\":\"z\"}\n");
    refuse("a", ERR_FORMAT,
           "no field text, content or messages; the first row has name, body; "
           "choose with --text-field NAME");
    put_text("a", "[1]\n");
    refuse("a", ERR_FORMAT, "line 1: a number, not an object");
    put_text("a", "[]");
    refuse("a", ERR_FORMAT, "this JSON has no rows");
    put_text("a", "{\"text\":\"a\"}\n{\"text\":\"b\n");
    refuse("a", ERR_FORMAT, "line 2: begins as JSON, but is broken: a control character");
    put_text("a", "[{\"text\":\"a\"},\n{\"text\":\"b\"");
    refuse("a", ERR_FORMAT, "line 2: begins as JSON, but is broken: the text ends");
    put_text("a", "{\"text\":\"a\"} {\"text\":\"b\"}\n");
    want("a", JOIN_AUTO, "a\n\nb", 2);
}

static void test_fields(void **state)
{
    static const char chat[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[1]},"
        "{\"content\":\"Hello\\nyou\",\"role\":\"assistant\"}]}\n";
    put_text("a", "{\"text\":\"t\",\"content\":\"c\",\"body\":\"b\"}\n");
    want_field("a", JOIN_AUTO, "", "t", 1);
    want_field("a", JOIN_AUTO, "content", "c", 1);
    want_field("a", JOIN_AUTO, "body", "b", 1);
    refuse_field(
        "a", "none", ERR_FORMAT,
        "no row has a text in the field none; line 1: no field none; the first row "
        "has text, content, body");
    put_text("a", "{\"content\":\"c\",\"messages\":[]}\n{\"content\":\"d\"}\n");
    want("a", JOIN_AUTO, "c\n\nd", 2);
    put_text("a", chat);
    want("a", JOIN_AUTO, "user: Hi\nassistant: Hello\nyou", 1);
    want_field("a", JOIN_AUTO, "messages", "user: Hi\nassistant: Hello\nyou", 1);
    put_text("a", "{\"messages\":[{\"from\":\"user\",\"value\":\"Hi\"}]}\n");
    refuse("a", ERR_FORMAT, "a message has no role");
    put_text("a", "{\"messages\":[]}\n");
    refuse("a", ERR_FORMAT, "its messages have no content");
}

/* 200 valid rows and `odd`: its text is read, or it is skipped. */
static void check_odd(const char *odd, const char *text)
{
    static const struct corpus_rules rules = {JOIN_AUTO, NULL};
    struct corpus c = {0};
    struct text file = {0};
    for (int i = 0; i < 200; i++) {
        const char *row = i == 50 ? odd : "{\"text\":\"x\"}";
        assert_int_equal(text_add(&file, row, strlen(row)), OK);
        assert_int_equal(text_add(&file, "\n", 1), OK);
    }
    put("odd", file.p, file.n);
    text_free(&file);
    const char *const p = in_dir("odd");
    err_clear();
    if (corpus_load(&c, &p, 1, &rules))
        fail_msg("%s: %s", odd, err_text());
    const size_t before = 50 * 3, n = text ? strlen(text) : 0;
    assert_int_equal(c.n_skipped, text ? 0 : 1);
    assert_int_equal(c.n_documents, text ? 200 : 199);
    assert_int_equal(c.bytes, 199 * 3 - 2 + (text ? n + 2 : 0));
    if (text)
        assert_memory_equal(c.text + before, text, n);
    corpus_free(&c);
}

static void test_odd_rows(void **state)
{
    check_odd("{\"text\":null}", NULL);
    check_odd("{\"text\":[1]}", NULL);
    check_odd("{\"text\":\"a\",}", NULL);
    check_odd("{\"text\":\"a\"", NULL);
    check_odd("{\"text\":\"a\"}x", NULL);
    check_odd("not JSON", NULL);
    check_odd("[]", NULL);
    check_odd("{\"score\":NaN,\"text\":\"a\"}", "a");
    check_odd("{\"n\":123456789012345678901234567890,\"text\":\"a\"}", "a");
    check_odd("{\"n\":1e999,\"text\":\"a\"}", "a");
    check_odd("{\"text\":\"a\\ud800b\"}", "a\xef\xbf\xbd"
                                          "b");
    check_odd("{\"text\":\"a\",\"text\":\"b\"}", "b");
    check_odd("\xef\xbb\xbf{\"text\":\"a\"}", "a");
}

/* Three bad rows are 1 % of 300, but more of 299. */
static void test_bad_share(void **state)
{
    struct text file = {0};
    for (int i = 0; i < 299; i++) {
        const char *row = i < 3 ? "{\"text\":null}\n" : "{\"text\":\"\"}\n";
        assert_int_equal(text_add(&file, row, strlen(row)), OK);
    }
    put("share", file.p, file.n);
    refuse("share", ERR_FORMAT,
           "3 of 299 rows cannot be read, more than 1 %; the first is "
           "line 1: text is null");
    assert_int_equal(text_add(&file, "{\"text\":\"\"}", 11), OK);
    put("share", file.p, file.n);
    text_free(&file);
    struct corpus c = {0};
    const char *const p = in_dir("share");
    err_clear();
    assert_int_equal(corpus_load(&c, &p, 1, &(struct corpus_rules){JOIN_AUTO, NULL}), OK);
    assert_int_equal(c.n_skipped, 3);
    assert_int_equal(c.n_documents, 297);
    corpus_free(&c);
}

/* --- bytes decide ------------------------------------------------------------------- */

/* Text may start like JSON and still be text. */
static void test_plain(void **state)
{
    static const char *const texts[] = {
        "{curly} braces\n",
        "[1] A footnote.\n[2] Another.\n",
        "{}\nand so on\n",
        "{\"a\": 1} is an object, and this is a sentence.\n",
        "[ ] a list\n[x] of tasks\n",
        "{\n  not JSON\n}\n",
        "text\n",
        "Text, Content\nof a poem\n",
        "\"quoted\"\n",
        "version https://example.org\n",
        "[\"a\", he said]\n"};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        put_text("p.txt", texts[i]);
        want("p.txt", JOIN_AUTO, texts[i], 1);
    }
    put_text("p.jsonl", "{curly} braces\n");
    refuse("p.jsonl", ERR_FORMAT,
           "line 1: begins as JSON, but is broken: a key is missing");
}

static void test_encodings(void **state)
{
    static const char want_text[] = "h\xc3\xa9\xf0\x9f\x98\x80\n";
    put("e.txt", "\xef\xbb\xbfh\xc3\xa9\xf0\x9f\x98\x80\n", 11);
    want("e.txt", JOIN_AUTO, want_text, 1);
    put("e.txt", "\xff\xfeh\0\xe9\0\x3d\xd8\0\xde\n\0", 12);
    want("e.txt", JOIN_AUTO, want_text, 1);
    put("e.txt", "\xfe\xff\0h\0\xe9\xd8\x3d\xde\0\0\n", 12);
    want("e.txt", JOIN_AUTO, want_text, 1);
    put("e.txt", "\xff\xfe\0\0h\0\0\0\xe9\0\0\0\0\xf6\x01\0\n\0\0\0", 20);
    want("e.txt", JOIN_AUTO, want_text, 1);
    put("e.txt", "\0\0\xfe\xff\0\0\0h\0\0\0\xe9\0\x01\xf6\0\0\0\0\n", 20);
    want("e.txt", JOIN_AUTO, want_text, 1);
    put("e.txt", "\xff\xfe", 2);
    want("e.txt", JOIN_AUTO, "", 1);
    put("e.txt", "\xff\xfeh\0\x3d\xd8x\0", 8);
    refuse("e.txt", ERR_FORMAT, "is UTF-16LE, but not valid at byte 4");
    put("e.txt", "\xff\xfeh\0\xe9", 5);
    refuse("e.txt", ERR_FORMAT, "is UTF-16LE, but not valid at byte 4");
}

/* 0.1 % of 3000 bytes are three. */
static void test_invalid(void **state)
{
    char b[3001];
    memset(b, 'a', sizeof(b) - 1);
    b[3000] = '\0';
    memset(b + 1000, '\xff', 3);
    put("i.txt", b, 3000);
    want("i.txt", JOIN_AUTO, b, 1);
    b[999] = '\xe9';
    put("i.txt", b, 3000);
    refuse("i.txt", ERR_FORMAT,
           "is not UTF-8: 0.133 % of its bytes, the first in line 1; "
           "convert it, as with iconv -f WINDOWS-1252 -t UTF-8");
    memset(b + 999, 1, 4);
    put("i.txt", b, 3000);
    refuse("i.txt", ERR_FORMAT, "is not text: 0.133 % of its bytes are control characters");
    memset(b, 'a', 3000);
    b[1] = '\0';
    put("i.txt", b, 3000);
    struct corpus c = {0};
    const char *const p = in_dir("i.txt");
    assert_int_equal(corpus_load(&c, &p, 1, &(struct corpus_rules){JOIN_AUTO, NULL}), OK);
    assert_int_equal(c.bytes, 3000);
    assert_memory_equal(c.text, b, 3001);
    corpus_free(&c);
}

static void test_other_formats(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *word;
    } cases[] = {
        {"PAR1\x15\x04\x15", 7,
         "is a Parquet file; to get text: python3 -c \"import pandas"},
        {"ARROW1\0\0\xff", 9, "is an Arrow file"},
        {"\xff\xff\xff\xff\x18\1\0\0\x10\0\0\0", 12, "is an Arrow stream"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", 57, "git lfs pull"},
        {"/annex/objects/MD5-s3--a\n", 25, "git annex get FILE"},
        {"\x40\0\0\0\0\0\0\0{\"a\":", 13, "is a safetensors file"},
        {"\0\xe1\xf5\5\0\0\0\0{\"a\":", 13, "is a safetensors file"}, /* 100000000 */
        {"\1\xe1\xf5\5\0\0\0\0{\"a\":", 13, "is not text"}, /* beyond the format's limit */
        {"GGUF\3\0\0\0", 8, "is a GGUF model"},
        {"%PDF-1.7\n", 9, "is a PDF document"},
        {"%PDF-1.7 \1", 10, "is a PDF document"},
        {"{\\rtf1\\ansi", 11, "is an RTF document"},
        {"PAREab\3", 7, "is an encrypted Parquet file"},
        {"FEA1\0\0\0\0", 8, "is a Feather file"},
        {"SQLite format 3\0", 16, "is an SQLite database"},
        {"\n<!DOCTYPE HTML><html>", 22, "is an HTML page"},
        {"\x04\x22\x4d\x18", 4, "lz4 -d FILE"},
        {"7z\xbc\xaf\x27\x1c", 6, "7z x FILE"},
        {"id,text\n1,one\n", 14, "is CSV; make JSON lines of it: python3"},
        {"\"id\"\t\"text\"\n1\tone\n", 18, "is CSV"},
        {"\x80\4\x95\0\0\0\0\0\0\0", 10, "is not text"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        put("o.txt", cases[i].bytes, cases[i].n);
        refuse("o.txt", ERR_FORMAT, cases[i].word);
    }
    put_text("o.csv", "a,b\n1,2\n");
    refuse("o.csv", ERR_FORMAT, "is CSV");
    put_stream("o.gz", ARCHIVE_FILTER_GZIP, "PAR1\x15\x04 and so on");
    refuse("o.gz", ERR_FORMAT, "is a Parquet file");
}

/* Texts about formats begin with their names. */
static void test_letters_of_formats(void **state)
{
    static const char *const texts[] = {
        "PARENTS: read this letter.\n",
        "PAR1 is a gene.",
        "GGUF is a file format for models.",
        "FEA1\tand\fFEA2\v\x1b[0m",
        "%PDF-1.7 begins a file.",
        "%PDF- begins a file.\n",
        "{\\rtf1 is the beginning of an RTF file.",
        "<html-like> is no tag",
        "<htmlx",
    };
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        put_text("l.txt", texts[i]);
        want("l.txt", JOIN_AUTO, texts[i], 1);
    }
    /* A pointer is short. */
    static const char *const pointers[] = {"version https://git-lfs.github.com/spec/v1\n",
                                           "/annex/objects/MD5-s3--a\n"};
    static char b[40001];
    for (size_t i = 0; i < ARRAY_LEN(pointers); i++) {
        memset(b, 'x', sizeof(b) - 1);
        memcpy(b, pointers[i], strlen(pointers[i]));
        put_text("l.txt", b);
        want("l.txt", JOIN_AUTO, b, 1);
    }
    memset(b, 'x', 1000);
    memcpy(b + 257, "ustar", 5); /* where a tar archive has it */
    b[1000] = '\0';
    put_text("l.txt", b);
    want("l.txt", JOIN_AUTO, b, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),          cmocka_unit_test(test_join_by_space),
        cmocka_unit_test(test_files),         cmocka_unit_test(test_rows),
        cmocka_unit_test(test_fields),        cmocka_unit_test(test_odd_rows),
        cmocka_unit_test(test_bad_share),     cmocka_unit_test(test_plain),
        cmocka_unit_test(test_encodings),     cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_other_formats), cmocka_unit_test(test_letters_of_formats),
    };
    return cmocka_run_group_tests(tests, text_make_dir, text_drop_dir);
}
