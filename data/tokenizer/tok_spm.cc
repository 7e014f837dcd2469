/* SPDX-License-Identifier: MIT
 *
 * Wraps the SentencePiece library. No exception leaves this file. */
#include <stdbool.h>

extern "C" {
#include "data/tokenizer/tok_spm.h"
}

#include <climits>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

struct spm {
    sentencepiece::SentencePieceProcessor processor;
};

/* Returns the error for an exception of the library. */
static enum err thrown()
{
    try {
        throw;
    } catch (const std::bad_alloc &) {
        FAIL(ERR_MEMORY, "out of memory in SentencePiece");
    } catch (const std::exception &e) {
        FAIL(ERR_FORMAT, "SentencePiece: %s", e.what());
    } catch (...) {
        FAIL(ERR_FORMAT, "SentencePiece failed");
    }
}

static enum err checked(const sentencepiece::util::Status &status)
{
    FAIL_IF(!status.ok(), ERR_FORMAT, "SentencePiece: %s", status.error_message());
    return OK;
}

enum err spm_open(struct spm **out, const char *data, size_t n, const char *path)
{
    struct spm *s = nullptr;
    enum err err;
    try {
        s = new spm;
        err = checked(s->processor.LoadFromSerializedProto(absl::string_view(data, n)));
    } catch (...) {
        err = thrown();
    }
    if (err) {
        spm_close(&s);
        return err_add(err, "%s: ", path);
    }
    *out = s;
    return OK;
}

void spm_close(struct spm **s)
{
    delete *s;
    *s = nullptr;
}

enum err spm_encode(struct id_list *out, const struct spm *s, const char *text, size_t n)
{
    /* The library counts in int, and its escaping triples the length of spaces. */
    FAIL_IF(n > INT_MAX / 4, ERR_SUPPORT, "text of %zu bytes for SentencePiece, limit %d",
            n, INT_MAX / 4);
    try {
        std::vector<int> ids;
        TRY(checked(s->processor.Encode(absl::string_view(text, n), &ids)));
        return id_list_add_n(out, ids.data(), ids.size());
    } catch (...) {
        return thrown();
    }
}

static enum err decode_run(std::string *out, const struct spm *s, std::vector<int> *run)
{
    std::string part;
    if (run->empty())
        return OK;
    TRY(checked(s->processor.Decode(*run, &part)));
    *out += part;
    run->clear();
    return OK;
}

static enum err decode(std::string *out, const struct spm *s, const int32_t *ids, size_t n,
                       bool keep_special)
{
    std::vector<int> run;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= s->processor.GetPieceSize())
            continue;
        if (!s->processor.IsControl(ids[i])) {
            run.push_back(ids[i]);
        } else if (keep_special) {
            TRY(decode_run(out, s, &run));
            *out += s->processor.IdToPiece(ids[i]);
        }
    }
    return decode_run(out, s, &run);
}

enum err spm_decode(struct text *out, const struct spm *s, const int32_t *ids, size_t n,
                    bool keep_special)
{
    try {
        std::string text;
        TRY(decode(&text, s, ids, n, keep_special));
        return text_add(out, text.data(), text.size());
    } catch (...) {
        return thrown();
    }
}

int32_t spm_bos(const struct spm *s)
{
    return s->processor.bos_id();
}

int32_t spm_eos(const struct spm *s)
{
    return s->processor.eos_id();
}

int32_t spm_id(const struct spm *s, const char *piece)
{
    /* the id of the unknown piece if the name is unknown */
    const int id = s->processor.PieceToId(piece);
    return s->processor.IdToPiece(id) == piece ? id : -1;
}
