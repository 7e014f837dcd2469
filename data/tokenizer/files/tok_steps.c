/* SPDX-License-Identifier: MIT
 *
 * Parses the components of tokenizer.json that are chains of steps. A Sequence is
 * flattened. Unknown parts are refused by name, because ignoring them would give other
 * ids. */
#include "data/tokenizer/files/tok_json.h"

#include "kernels/base/mem.h"

#include <string.h>

#define MAX_DEPTH 8
#define KNOWN_NORMALIZERS                                                                  \
    "NFC, NFD, NFKC, NFKD, Precompiled, Prepend, Replace, Strip, Sequence"
#define KNOWN_PRE                                                                          \
    "Split, ByteLevel, Digits, Punctuation, WhitespaceSplit, Metaspace, Sequence"
#define KNOWN_DECODERS "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence"

/* Calls parse for a component, or for each part of a Sequence, whose list is named
 * `list`. */
static enum err each_part(const json_t *v, const char *list, const char *where, int depth,
                          enum err (*parse)(void *out, const json_t *v, const char *type,
                                            const char *where),
                          void *out)
{
    const char *type = NULL;
    json_t *parts = NULL;
    FAIL_IF(!json_is_object(v), ERR_FORMAT, "%s is %s, want an object", where,
            json_kind(v));
    TRY(json_need_string(&type, v, "type", where));
    if (strcmp(type, "Sequence"))
        return parse(out, v, type, where);
    FAIL_IF(depth == MAX_DEPTH, ERR_FORMAT, "%s: Sequence inside Sequence, %d deep", where,
            depth);
    TRY(json_get_array(&parts, v, list, where));
    FAIL_IF(!parts, ERR_FORMAT, "%s: %s is missing", where, list);
    for (size_t i = 0; i < json_array_size(parts); i++)
        TRY(each_part(json_array_get(parts, i), list, where, depth + 1, parse, out));
    return OK;
}

static enum err check_room(int n, const char *where)
{
    FAIL_IF(n == TOK_MAX_STEPS, ERR_SUPPORT, "%s: more than %d steps", where,
            TOK_MAX_STEPS);
    return OK;
}

/* Parses pattern: {"String": S}, not empty, or else {"Regex": R}. */
static enum err parse_pattern(const char **string, const char **regex, const json_t *v,
                              const char *where)
{
    json_t *pattern = NULL;
    TRY(json_get_object(&pattern, v, "pattern", where));
    FAIL_IF(!pattern, ERR_FORMAT, "%s: pattern is missing", where);
    if (json_object_get(pattern, "Regex"))
        return json_need_string(regex, pattern, "Regex", where);
    TRY(json_need_string(string, pattern, "String", where));
    FAIL_IF(!**string, ERR_SUPPORT, "%s: an empty pattern is not supported", where);
    return OK;
}

static enum err parse_replace(char **from, struct regex **regex, char **to, const json_t *v,
                              const char *where)
{
    const char *string = NULL, *pattern = NULL, *content = NULL;
    TRY(parse_pattern(&string, &pattern, v, where));
    TRY(json_need_string(&content, v, "content", where));
    TRY(mem_strdup(to, content));
    return pattern ? regex_open(regex, pattern, where) : mem_strdup(from, string);
}

/* precompiled_charsmap is base64. */
static enum err parse_charsmap(struct charsmap *out, const json_t *v, const char *where)
{
    const char *text = NULL;
    char *data = NULL;
    TRY(json_need_string(&text, v, "precompiled_charsmap", where));
    const size_t n = strlen(text);
    TRY(mem_alloc(&data, n / 4 * 3 + 4, 1));
    const int64_t k = base64_decode(data, text, n);
    const enum err err = k < 0 ? OK : charsmap_open(out, data, (size_t)k);
    mem_free(data);
    FAIL_IF(k < 0, ERR_FORMAT, "%s: precompiled_charsmap is not base64", where);
    return err ? err_add(err, "%s: ", where) : OK;
}

static enum err parse_normalizer(void *out, const json_t *v, const char *type,
                                 const char *where)
{
    struct normalizer *m = out;
    const char *prepend = NULL;
    TRY(check_room(m->n, where));
    struct normal_step *step = &m->step[m->n++];
    static const char *const forms[] = {
        [FORM_NFC] = "NFC", [FORM_NFD] = "NFD", [FORM_NFKC] = "NFKC", [FORM_NFKD] = "NFKD"};
    for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
        if (strcmp(type, forms[i]) != 0)
            continue;
        step->kind = NORMAL_FORM;
        step->form = (enum normal_form)i;
        return OK;
    }
    if (!strcmp(type, "Strip")) {
        step->kind = NORMAL_STRIP;
        step->left = step->right = true;
        TRY(json_get_bool(&step->left, v, "strip_left", where));
        return json_get_bool(&step->right, v, "strip_right", where);
    }
    if (!strcmp(type, "Precompiled")) {
        step->kind = NORMAL_CHARSMAP;
        return parse_charsmap(&step->map, v, where);
    }
    if (!strcmp(type, "Prepend")) {
        step->kind = NORMAL_PREPEND;
        TRY(json_need_string(&prepend, v, "prepend", where));
        return mem_strdup(&step->to, prepend);
    }
    FAIL_IF(strcmp(type, "Replace") != 0, ERR_SUPPORT,
            "%s: %s is not supported (supported: " KNOWN_NORMALIZERS ")", where, type);
    step->kind = NORMAL_REPLACE;
    return parse_replace(&step->from, &step->regex, &step->to, v, where);
}

enum err normalizer_parse(struct normalizer *out, const json_t *v, const char *where)
{
    return v ? each_part(v, "normalizers", where, 0, parse_normalizer, out) : OK;
}

struct pre_parse {
    struct pre_tokenizer *pre;
    const char *family;
    bool digits;
};

static enum err parse_behavior(enum split_behavior *out, const char *behavior,
                               const char *where)
{
    static const char *const names[] = {
        [SPLIT_ISOLATED] = "Isolated",        [SPLIT_REMOVED] = "Removed",
        [SPLIT_CONTIGUOUS] = "Contiguous",    [SPLIT_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_WITH_NEXT] = "MergedWithNext",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(behavior, names[i]) != 0)
            continue;
        *out = (enum split_behavior)i;
        return OK;
    }
    FAIL(ERR_FORMAT,
         "%s: behavior is \"%.40s\", want Isolated, Removed, Contiguous, "
         "MergedWithPrevious or MergedWithNext",
         where, behavior);
}

static enum err parse_split(struct pre_parse *p, struct pre_step *step, const json_t *v,
                            const char *where)
{
    const char *string = NULL, *regex = NULL, *behavior = NULL;
    TRY(parse_pattern(&string, &regex, v, where));
    TRY(json_need_string(&behavior, v, "behavior", where));
    TRY(json_get_bool(&step->invert, v, "invert", where));
    TRY(parse_behavior(&step->behavior, behavior, where));
    step->kind = PRE_SPLIT;
    if (!regex)
        return mem_strdup(&step->literal, string);
    step->scan = scan_of_regex(&p->family, regex);
    if (!step->scan) {
        p->family = "Split by a pattern";
        return regex_open(&step->regex, regex, where);
    }
    /* The known expressions leave no gaps, so every match is a piece. */
    if (step->behavior == SPLIT_ISOLATED ||
        (step->behavior == SPLIT_REMOVED && step->invert))
        step->kind = PRE_SCAN;
    return OK;
}

static enum err parse_punctuation(struct pre_step *step, const json_t *v, const char *where)
{
    const char *behavior = "Isolated";
    step->kind = PRE_SPLIT;
    step->is = char_is_punctuation;
    TRY(json_get_string(&behavior, v, "behavior", where));
    return parse_behavior(&step->behavior, behavior, where);
}

static enum err parse_metaspace(struct pre_step *step, const json_t *v, const char *where)
{
    const char *replacement = NULL, *scheme = NULL;
    bool prefix = true;
    TRY(json_need_string(&replacement, v, "replacement", where));
    TRY(json_get_bool(&prefix, v, "add_prefix_space", where));
    TRY(json_get_string(&scheme, v, "prepend_scheme", where));
    step->kind = PRE_METASPACE;
    step->behavior = SPLIT_WITH_NEXT;
    step->split = true;
    TRY(json_get_bool(&step->split, v, "split", where));
    const size_t n = strlen(replacement);
    FAIL_IF(!n || utf8_next(&(int32_t){0}, replacement, n) != n, ERR_FORMAT,
            "%s: replacement is \"%.40s\", want one character", where, replacement);
    if (!scheme)
        step->prepend = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    else if (!strcmp(scheme, "always"))
        step->prepend = PREPEND_ALWAYS;
    else if (!strcmp(scheme, "first"))
        step->prepend = PREPEND_FIRST;
    else if (!strcmp(scheme, "never"))
        step->prepend = PREPEND_NEVER;
    else
        FAIL(ERR_FORMAT, "%s: prepend_scheme is \"%s\", want always, first or never", where,
             scheme);
    FAIL_IF(scheme && !prefix && step->prepend != PREPEND_NEVER, ERR_FORMAT,
            "%s: add_prefix_space is false, but prepend_scheme is \"%s\"", where, scheme);
    return mem_strdup(&step->literal, replacement);
}

static enum err parse_byte_level(struct pre_parse *p, struct pre_step *step,
                                 const json_t *v, const char *where)
{
    bool use_regex = true;
    step->kind = PRE_BYTE_LEVEL;
    step->prefix_space = true;
    TRY(json_get_bool(&step->prefix_space, v, "add_prefix_space", where));
    TRY(json_get_bool(&use_regex, v, "use_regex", where));
    if (use_regex) {
        step->scan = scan_gpt2;
        p->family = p->digits ? "SmolLM" : "GPT-2";
    }
    p->pre->byte_level = true;
    return OK;
}

static enum err parse_pre(void *out, const json_t *v, const char *type, const char *where)
{
    struct pre_parse *p = out;
    bool individual = false;
    TRY(check_room(p->pre->n, where));
    FAIL_IF(p->pre->byte_level && !strcmp(type, "ByteLevel"), ERR_SUPPORT,
            "%s: ByteLevel after ByteLevel is not supported", where);
    p->pre->mapped = p->pre->byte_level;
    struct pre_step *step = &p->pre->step[p->pre->n++];
    if (!strcmp(type, "Split"))
        return parse_split(p, step, v, where);
    if (!strcmp(type, "ByteLevel"))
        return parse_byte_level(p, step, v, where);
    if (!strcmp(type, "Metaspace")) {
        p->family = "Metaspace";
        return parse_metaspace(step, v, where);
    }
    if (!strcmp(type, "Punctuation"))
        return parse_punctuation(step, v, where);
    if (!strcmp(type, "WhitespaceSplit")) {
        step->kind = PRE_SPLIT;
        step->behavior = SPLIT_REMOVED;
        step->is = char_is_space;
        return OK;
    }
    FAIL_IF(strcmp(type, "Digits") != 0, ERR_SUPPORT,
            "%s: %s is not supported (supported: " KNOWN_PRE ")", where, type);
    step->kind = PRE_SCAN;
    p->digits = true;
    TRY(json_get_bool(&individual, v, "individual_digits", where));
    step->scan = individual ? scan_digit : scan_digit_run;
    return OK;
}

enum err pre_tokenizer_parse(struct pre_tokenizer *out, const char **family,
                             const json_t *v, const char *where)
{
    struct pre_parse p = {.pre = out};
    if (v)
        TRY(each_part(v, "pretokenizers", where, 0, parse_pre, &p));
    *family = p.family;
    return OK;
}

static enum err parse_strip(struct decode_step *step, const json_t *v, const char *where)
{
    const char *content = NULL;
    step->kind = DECODE_STRIP;
    TRY(json_need_string(&content, v, "content", where));
    FAIL_IF(!*content, ERR_FORMAT, "%s: content of Strip is empty", where);
    TRY(json_need_int(&step->start, v, "start", 0, INT32_MAX, where));
    TRY(json_need_int(&step->stop, v, "stop", 0, INT32_MAX, where));
    return mem_strdup(&step->from, content);
}

static enum err parse_metaspace_decoder(struct decode_step *step, const json_t *v,
                                        const char *where)
{
    struct pre_step pre = {0};
    step->kind = DECODE_METASPACE;
    TRY(parse_metaspace(&pre, v, where));
    step->from = pre.literal;
    step->drop_first = pre.prepend != PREPEND_NEVER;
    return OK;
}

static enum err parse_decoder(void *out, const json_t *v, const char *type,
                              const char *where)
{
    struct decoder *d = out;
    TRY(check_room(d->n, where));
    struct decode_step *step = &d->step[d->n++];
    if (!strcmp(type, "Strip"))
        return parse_strip(step, v, where);
    if (!strcmp(type, "Metaspace"))
        return parse_metaspace_decoder(step, v, where);
    if (!strcmp(type, "Replace")) {
        step->kind = DECODE_REPLACE;
        return parse_replace(&step->from, &step->regex, &step->to, v, where);
    }
    if (!strcmp(type, "ByteLevel"))
        step->kind = DECODE_BYTE_LEVEL;
    else if (!strcmp(type, "ByteFallback"))
        step->kind = DECODE_BYTE_FALLBACK;
    else if (!strcmp(type, "Fuse"))
        step->kind = DECODE_FUSE;
    else
        FAIL(ERR_SUPPORT, "%s: %s is not supported (supported: " KNOWN_DECODERS ")", where,
             type);
    return OK;
}

enum err decoder_parse(struct decoder *out, const json_t *v, const char *where)
{
    out->is_null = !v;
    return v ? each_part(v, "decoders", where, 0, parse_decoder, out) : OK;
}
