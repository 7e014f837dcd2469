/* SPDX-License-Identifier: MIT */
#include "data/sniff.h"

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

#define TAR_MAGIC_AT 257
#define ARROW_HEADER_MAX ((uint32_t)1 << 24)

struct magic {
    const char *bytes;
    size_t n;
    struct sniffed is;
};

#define PYTHON "python3 -c \""
#define TO_JSONL ".to_json('FILE.jsonl', orient='records', lines=True)\""
#define EXTRACT "extract the text from it and give that file"

/* clang-format off */
#define MAGIC(text, kind, name, advice) {text, sizeof(text) - 1, {kind, 0, name, advice}}
#define MARK(text, kind, name) {text, sizeof(text) - 1, {kind, sizeof(text) - 1, name, ""}}
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
    MAGIC("PAR1", CONTENT_OTHER, "a Parquet file",
          PYTHON "import pandas; pandas.read_parquet('FILE')" TO_JSONL),
    MAGIC("PARE", CONTENT_OTHER, "an encrypted Parquet file", EXTRACT),
    MAGIC("ARROW1\0\0", CONTENT_OTHER, "an Arrow file",
          PYTHON "import pandas; pandas.read_feather('FILE')" TO_JSONL),
    MAGIC("FEA1", CONTENT_OTHER, "a Feather file",
          PYTHON "import pandas; pandas.read_feather('FILE')" TO_JSONL),
    MAGIC("version https://git-lfs.github.com/spec", CONTENT_OTHER,
          "a Git LFS pointer, not the file that it stands for", "git lfs pull"),
    MAGIC("/annex/objects/", CONTENT_OTHER,
          "a git-annex pointer, not the file that it stands for", "git annex get FILE"),
    MAGIC("\x04\x22\x4d\x18", CONTENT_OTHER, "LZ4 data", "lz4 -d FILE"),
    MAGIC("7z\xbc\xaf\x27\x1c", CONTENT_OTHER, "a 7z archive", "7z x FILE"),
    MAGIC("Rar!\x1a\x07", CONTENT_OTHER, "a RAR archive", "unrar x FILE"),
    MAGIC("GGUF", CONTENT_OTHER, "a GGUF model", "give a text file instead"),
    MAGIC("%PDF-", CONTENT_OTHER, "a PDF document", "pdftotext FILE"),
    MAGIC("{\\rtf", CONTENT_OTHER, "an RTF document", EXTRACT),
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
    return n >= 512 && !memcmp(s + TAR_MAGIC_AT, "ustar", 5);
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
        if (n >= k && !strncasecmp(s, starts[i], k))
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
        if (n >= magics[i].n && !memcmp(s, magics[i].bytes, magics[i].n))
            return magics[i].is;
    n = n < 512 ? n : 512;
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
