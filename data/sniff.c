/* SPDX-License-Identifier: MIT */
#include "data/sniff.h"

#include "kernels/base/error.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#define HEAD_BYTES 512u
#define TAR_MAGIC_AT 257
#define ARROW_HEADER_MAX ((uint32_t)1 << 24)

#define LFS_POINTER_MAX 1024
#define ANNEX_POINTER_MAX 32768

/* A text may begin with a magic of letters. Such a magic counts only if `also`, unless it
 * is NULL, finds that the whole file s [n] fits the format, too. */
struct magic {
    const char *bytes;
    size_t n;
    struct sniffed is;
    bool (*also)(const char *s, size_t n);
};

/* Returns true if one of the first 512 bytes is a control character that no text has. The
 * integers of a binary header always leave some. */
static bool is_binary(const char *s, size_t n)
{
    for (size_t i = 0; i < n && i < HEAD_BYTES; i++)
        if ((uint8_t)s[i] < 0x20 && !(s[i] && strchr("\t\n\v\f\r\x1b", s[i])))
            return true;
    return false;
}

/* Returns true for "%PDF-1.7" as a whole line, or with binary data behind it. */
static bool is_pdf(const char *s, size_t n)
{
    const bool version =
        n > 8 && isdigit((uint8_t)s[5]) && s[6] == '.' && isdigit((uint8_t)s[7]);
    return is_binary(s, n) || (version && (s[8] == '\n' || s[8] == '\r'));
}

/* Returns true if a version and another control word or a group follow "{\rtf". */
static bool is_rtf(const char *s, size_t n)
{
    size_t at = strlen("{\\rtf");
    while (at < n && isdigit((uint8_t)s[at]))
        at++;
    return at < n && (s[at] == '\\' || s[at] == '{' || s[at] == '\r' || s[at] == '\n');
}

static bool is_lfs_pointer(const char *s, size_t n)
{
    return n < LFS_POINTER_MAX;
}

static bool is_annex_pointer(const char *s, size_t n)
{
    return n <= ANNEX_POINTER_MAX;
}

#define PYTHON "python3 -c \""
#define TO_JSONL ".to_json('FILE.jsonl', orient='records', lines=True)\""
#define EXTRACT "extract the text from it and give that file"

/* clang-format off */
#define MAGIC(text, kind, name, advice) {text, sizeof(text) - 1, {kind, 0, name, advice}, NULL}
#define MARK(text, kind, name) {text, sizeof(text) - 1, {kind, sizeof(text) - 1, name, ""}, NULL}
#define LETTERS(text, also, name, advice) \
    {text, sizeof(text) - 1, {CONTENT_OTHER, 0, name, advice}, also}
static const struct magic magics[] = {
    MAGIC("\x1f\x8b", CONTENT_GZIP, "gzip", ""),
    MAGIC("\xfd" "7zXZ\0", CONTENT_XZ, "xz", ""),
    MAGIC("\x28\xb5\x2f\xfd", CONTENT_ZSTD, "zstd", ""),
    MAGIC("PK\3\4", CONTENT_ZIP, "zip", ""),
    MAGIC("PK\5\6", CONTENT_ZIP, "zip", ""),
    MARK("\xef\xbb\xbf", CONTENT_UTF8, "UTF-8 with a byte order mark"),
    MARK("\xff\xfe\0\0", CONTENT_UTF32LE, "UTF-32LE"),
    MARK("\0\0\xfe\xff", CONTENT_UTF32BE, "UTF-32BE"),
    MARK("\xff\xfe", CONTENT_UTF16LE, "UTF-16LE"),
    MARK("\xfe\xff", CONTENT_UTF16BE, "UTF-16BE"),
    LETTERS("PAR1", is_binary, "a Parquet file",
          PYTHON "import pandas; pandas.read_parquet('FILE')" TO_JSONL),
    LETTERS("PARE", is_binary, "an encrypted Parquet file", EXTRACT),
    MAGIC("ARROW1\0\0", CONTENT_OTHER, "an Arrow file",
          PYTHON "import pandas; pandas.read_feather('FILE')" TO_JSONL),
    LETTERS("FEA1", is_binary, "a Feather file",
          PYTHON "import pandas; pandas.read_feather('FILE')" TO_JSONL),
    LETTERS("version https://git-lfs.github.com/spec", is_lfs_pointer,
          "a Git LFS pointer, not the file that it stands for", "git lfs pull"),
    LETTERS("/annex/objects/", is_annex_pointer,
          "a git-annex pointer, not the file that it stands for", "git annex get FILE"),
    MAGIC("\x04\x22\x4d\x18", CONTENT_OTHER, "LZ4 data", "lz4 -d FILE"),
    MAGIC("7z\xbc\xaf\x27\x1c", CONTENT_OTHER, "a 7z archive", "7z x FILE"),
    MAGIC("Rar!\x1a\x07", CONTENT_OTHER, "a RAR archive", "unrar x FILE"),
    LETTERS("GGUF", is_binary, "a GGUF model", "give a text file instead"),
    LETTERS("%PDF-", is_pdf, "a PDF document", "pdftotext FILE"),
    LETTERS("{\\rtf", is_rtf, "an RTF document", EXTRACT),
    MAGIC("\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", CONTENT_OTHER, "an Office document", EXTRACT),
    MAGIC("SQLite format 3\0", CONTENT_OTHER, "an SQLite database",
          "sqlite3 -json FILE 'SELECT text FROM TABLE' > FILE.json"),
    MAGIC("\x93NUMPY", CONTENT_OTHER, "a NumPy array", "give the text it was made from"),
    MAGIC("\x89HDF\r\n\x1a\n", CONTENT_OTHER, "an HDF5 file", EXTRACT),
    MAGIC("Obj\x01", CONTENT_OTHER, "an Avro file", EXTRACT),
    MAGIC("\x89PNG\r\n\x1a\n", CONTENT_OTHER, "a PNG image", "give a text file instead"),
    MAGIC("\xff\xd8\xff", CONTENT_OTHER, "a JPEG image", "give a text file instead"),
    MAGIC("\x7f" "ELF", CONTENT_OTHER, "a program", "give a text file instead"),
};
/* clang-format on */

/* Returns true for bzip2: "BZh", a level, and the first mark of a block or of the end. */
static bool is_bzip2(const char *s, size_t n)
{
    return n >= 10 && !memcmp(s, "BZh", 3) && s[3] >= '1' && s[3] <= '9' &&
           (!memcmp(s + 4, "1AY&SY", 6) || !memcmp(s + 4, "\x17\x72\x45\x38\x50\x90", 6));
}

static bool is_tar(const char *s, size_t n)
{
    return n >= HEAD_BYTES && !memcmp(s + TAR_MAGIC_AT, "ustar", 5) && is_binary(s, n);
}

static uint64_t little_endian(const char *s, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | (uint8_t)s[i];
    return value;
}

/* Returns true for a header length followed by a JSON object of that length. */
static bool is_safetensors(const char *s, size_t n)
{
    return n > 9 && s[8] == '{' && little_endian(s, 8) <= SAFETENSORS_HEADER_MAX;
}

/* Returns true for a continuation mark followed by the length of the schema. */
static bool is_arrow_stream(const char *s, size_t n)
{
    return n > 8 && !memcmp(s, "\xff\xff\xff\xff", 4) &&
           little_endian(s + 4, 4) < ARROW_HEADER_MAX;
}

static bool is_html(const char *s, size_t n)
{
    static const char *const starts[] = {"<!doctype html", "<html"};
    while (n && memchr(" \t\r\n", *s, 4)) {
        s++;
        n--;
    }
    for (size_t i = 0; i < ARRAY_LEN(starts); i++) {
        const size_t k = strlen(starts[i]);
        if (n > k && !strncasecmp(s, starts[i], k) && memchr(" \t\r\n>", s[k], 5))
            return true;
    }
    return false;
}

static struct sniffed other(const char *name, const char *advice)
{
    return (struct sniffed){CONTENT_OTHER, 0, name, advice};
}

struct sniffed sniff(const char *s, size_t n)
{
    for (size_t i = 0; i < ARRAY_LEN(magics); i++)
        if (n >= magics[i].n && !memcmp(s, magics[i].bytes, magics[i].n) &&
            (!magics[i].also || magics[i].also(s, n)))
            return magics[i].is;
    n = n < HEAD_BYTES ? n : HEAD_BYTES;
    if (is_bzip2(s, n))
        return (struct sniffed){CONTENT_BZIP2, 0, "bzip2", ""};
    if (is_tar(s, n))
        return (struct sniffed){CONTENT_TAR, 0, "tar", ""};
    if (is_safetensors(s, n))
        return other("a safetensors file", "give a text file instead");
    if (is_arrow_stream(s, n))
        return other("an Arrow stream", PYTHON "from datasets import Dataset; "
                                               "Dataset.from_file('FILE')"
                                               ".to_json('FILE.jsonl')\"");
    if (is_html(s, n))
        return other("an HTML page, which a failed download leaves, too",
                     "download the file again, or extract the page's text");
    return (struct sniffed){CONTENT_TEXT, 0, "", ""};
}
