/* SPDX-License-Identifier: MIT */
#include "convert/checkpoint/hf_window.h"

#include <inttypes.h>
#include <string.h>

/* Reads a list that must have an entry for each layer. *list is NULL if it is missing. */
static enum err read_per_layer(json_t **list, const struct arch *a, const json_t *o,
                               const char *where, const char *key)
{
    TRY(json_get_array(list, o, key, where));
    FAIL_IF(*list && (int64_t)json_array_size(*list) < a->n_layers, ERR_FORMAT,
            "%s: %s has %zu entries, num_hidden_layers is %" PRId64, where, key,
            json_array_size(*list), a->n_layers);
    return OK;
}

enum err hf_read_no_rope(struct arch *a, const json_t *o, const char *where)
{
    int64_t interval = 4;
    json_t *list;
    TRY(read_per_layer(&list, a, o, where, "no_rope_layers"));
    TRY(json_get_int(&interval, o, "no_rope_layer_interval", 1, ANY_HI, where));
    for (int64_t i = 0; i < a->n_layers; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        const json_int_t has = list ? json_integer_value(v) : (i + 1) % interval;
        FAIL_IF(list && (!json_is_integer(v) || has < 0 || has > 1), ERR_FORMAT,
                "%s: no_rope_layers[%" PRId64 "] is not 1 (with a rope) or 0 (without)",
                where, i);
        if (!has)
            layer_set_add(&a->no_rope, i);
    }
    return OK;
}

/* Adds the layers that layer_types calls sliding. */
static enum err read_layer_types(struct arch *a, const json_t *types, const char *where)
{
    for (int64_t i = 0; i < a->n_layers; i++) {
        const char *kind = json_string_value(json_array_get(types, (size_t)i));
        FAIL_IF(!kind, ERR_FORMAT, "%s: layer_types[%" PRId64 "] is not a string", where,
                i);
        if (!strcmp(kind, "sliding_attention"))
            layer_set_add(&a->sliding, i);
        else
            FAIL_IF(strcmp(kind, "full_attention"), ERR_SUPPORT,
                    "%s: layer_types[%" PRId64
                    "] \"%.60s\" is not supported; supported are "
                    "full_attention and sliding_attention",
                    where, i, kind);
    }
    return OK;
}

/* Every layer of so many is not a sliding one. */
static enum err read_pattern(struct arch *a, const json_t *o, const char *where)
{
    int64_t step = 6;
    TRY(json_get_int(&step, o, "sliding_window_pattern", 1, ANY_HI, where));
    for (int64_t i = 0; i < a->n_layers; i++)
        if ((i + 1) % step)
            layer_set_add(&a->sliding, i);
    return OK;
}

static enum err read_sliding_layers(struct arch *a, const json_t *o, const char *where,
                                    enum window_rule rule)
{
    int64_t from = rule == WINDOW_FROM ? 28 : 0;
    json_t *types = NULL;
    if (rule == WINDOW_FROM)
        TRY(json_get_int(&from, o, "max_window_layers", 0, ANY_HI, where));
    if (rule != WINDOW_ALL && rule != WINDOW_USED)
        TRY(read_per_layer(&types, a, o, where, "layer_types"));
    if (types)
        return read_layer_types(a, types, where);
    if (rule == WINDOW_PATTERN)
        return read_pattern(a, o, where);
    for (int64_t i = from; a->sliding_window && i < a->n_layers; i++)
        if (rule != WINDOW_NO_ROPE || layer_set_has(&a->no_rope, i))
            layer_set_add(&a->sliding, i);
    return OK;
}

/* Refuses layers that layer_types calls sliding without use_sliding_window: transformers
 * then gives them a window or not, depending on its implementation of attention. */
static enum err check_unused(const struct arch *a, const json_t *o, const char *where)
{
    struct arch given = *a;
    json_t *types;
    TRY(read_per_layer(&types, a, o, where, "layer_types"));
    if (!types)
        return OK;
    TRY(read_layer_types(&given, types, where));
    for (int64_t i = 0; i < a->n_layers; i++)
        FAIL_IF(layer_set_has(&given.sliding, i), ERR_SUPPORT,
                "%s: layer_types[%" PRId64 "] is sliding_attention, but use_sliding_window "
                "is not true",
                where, i);
    return OK;
}

enum err hf_read_window(struct arch *a, const json_t *o, const char *where,
                        enum window_rule rule, int64_t otherwise)
{
    bool used = rule == WINDOW_ALL || rule == WINDOW_LISTED || rule == WINDOW_PATTERN;
    if (rule == WINDOW_NONE)
        return OK;
    if (!used)
        TRY(json_get_bool(&used, o, "use_sliding_window", where));
    if (!used)
        return rule == WINDOW_NO_ROPE ? check_unused(a, o, where) : OK;
    /* missing: the class's default; null: none */
    a->sliding_window = json_object_get(o, "sliding_window") ? 0 : otherwise;
    TRY(json_get_int(&a->sliding_window, o, "sliding_window", ANY_LO, ANY_HI, where));
    FAIL_IF(hf_is_given(o, "sliding_window") && a->sliding_window < 1, ERR_FORMAT,
            "%s: sliding_window is %" PRId64
            ", with which a query sees no token; want at least 1, or null for none",
            where, a->sliding_window);
    return read_sliding_layers(a, o, where, rule);
}
