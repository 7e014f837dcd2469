/* SPDX-License-Identifier: MIT
 *
 * The post-processor of tokenizer.json: ids that are added before and after a text. */
#include "data/tokenizer/files/tok_json.h"

#include <string.h>

#define KNOWN_POST "TemplateProcessing, ByteLevel, Sequence"
#define MAX_TEMPLATE_IDS 64
#define MAX_DEPTH 8

/* Appends the ids of special token `name` in the template's own table. */
static enum err add_special(struct id_list *out, const json_t *table, const char *name,
                            const char *where)
{
    json_t *entry = NULL, *ids = NULL;
    TRY(json_get_object(&entry, table, name, where));
    FAIL_IF(!entry, ERR_FORMAT, "%s: special_tokens has no \"%s\"", where, name);
    TRY(json_get_array(&ids, entry, "ids", where));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        FAIL_IF(!json_is_integer(v) || json_integer_value(v) < 0 ||
                    json_integer_value(v) > BPE_MAX_ID,
                ERR_FORMAT, "%s: special token \"%s\" has an id that is not one", where,
                name);
        FAIL_IF(out->n == MAX_TEMPLATE_IDS, ERR_FORMAT,
                "%s: more than %d ids around a text", where, MAX_TEMPLATE_IDS);
        TRY(id_list_add(out, (int32_t)json_integer_value(v)));
    }
    return OK;
}

static enum err parse_template(struct id_list *before, struct id_list *after,
                               const json_t *v, const char *where)
{
    json_t *single = NULL, *table = NULL;
    const char *name = NULL;
    int n_texts = 0;
    TRY(json_get_array(&single, v, "single", where));
    TRY(json_get_object(&table, v, "special_tokens", where));
    for (size_t i = 0; i < json_array_size(single); i++) {
        json_t *special = NULL, *text = NULL;
        const json_t *part = json_array_get(single, i);
        FAIL_IF(!json_is_object(part), ERR_FORMAT, "%s: single holds %s, want objects",
                where, json_kind(part));
        TRY(json_get_object(&special, part, "SpecialToken", where));
        TRY(json_get_object(&text, part, "Sequence", where));
        FAIL_IF(!special == !text, ERR_FORMAT,
                "%s: a part of single is neither SpecialToken nor Sequence", where);
        TRY(json_need_string(&name, special ? special : text, "id", where));
        if (special)
            TRY(add_special(n_texts ? after : before, table, name, where));
        else
            n_texts++;
        FAIL_IF(text && strcmp(name, "A") != 0, ERR_SUPPORT,
                "%s: sequence \"%s\" in single is not supported, only A", where, name);
    }
    FAIL_IF(n_texts != 1, ERR_SUPPORT, "%s: single takes the text %d times, want once",
            where, n_texts);
    return OK;
}

static enum err parse_post(struct id_list *before, struct id_list *after, const json_t *v,
                           const char *where, int depth)
{
    const char *type = NULL;
    json_t *parts = NULL;
    FAIL_IF(!json_is_object(v), ERR_FORMAT, "%s is %s, want an object", where,
            json_kind(v));
    TRY(json_need_string(&type, v, "type", where));
    if (!strcmp(type, "ByteLevel")) /* changes offsets only */
        return OK;
    if (!strcmp(type, "TemplateProcessing")) {
        FAIL_IF(before->n || after->n, ERR_SUPPORT, "%s: more than one TemplateProcessing",
                where);
        return parse_template(before, after, v, where);
    }
    FAIL_IF(strcmp(type, "Sequence") != 0, ERR_SUPPORT,
            "%s: %s is not supported (supported: " KNOWN_POST ")", where, type);
    FAIL_IF(depth == MAX_DEPTH, ERR_FORMAT, "%s: Sequence inside Sequence, %d deep", where,
            depth);
    TRY(json_get_array(&parts, v, "processors", where));
    for (size_t i = 0; i < json_array_size(parts); i++)
        TRY(parse_post(before, after, json_array_get(parts, i), where, depth + 1));
    return OK;
}

enum err post_processor_parse(struct id_list *before, struct id_list *after,
                              const json_t *v, const char *where)
{
    return v ? parse_post(before, after, v, where, 0) : OK;
}
