/* SPDX-License-Identifier: MIT
 *
 * Builds a tree from libyaml's events. */
#include "data/yaml.h"

#include "kernels/base/file/file.h"
#include "kernels/base/mem.h"

#include <stdint.h>
#include <string.h>
#include <yaml.h>

#define DEPTH_MAX 64
#define KEYS_MAX 4096 /* keys of one mapping; the search for duplicates is quadratic */
#define FILE_MAX ((size_t)1 << 20)

struct reader {
    yaml_parser_t parser;
    const char *where;
};

static enum err next_event(yaml_event_t *ev, struct reader *r)
{
    yaml_parser_t *p = &r->parser;
    if (yaml_parser_parse(p, ev))
        return OK;
    const size_t line = p->error == YAML_READER_ERROR ? p->mark.line : p->problem_mark.line;
    FAIL(p->error == YAML_MEMORY_ERROR ? ERR_MEMORY : ERR_FORMAT, "%s: line %zu: %s%s%s",
         r->where, line + 1, p->problem ? p->problem : "cannot be parsed",
         p->context ? " " : "", p->context ? p->context : "");
}

static bool marked(const yaml_event_t *ev)
{
    switch (ev->type) {
    case YAML_SCALAR_EVENT:
        return ev->data.scalar.anchor || ev->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT:
        return ev->data.sequence_start.anchor || ev->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT:
        return ev->data.mapping_start.anchor || ev->data.mapping_start.tag;
    default:
        return ev->type == YAML_ALIAS_EVENT;
    }
}

static enum err copy_text(char **out, const yaml_event_t *ev, const char *where)
{
    const size_t n = ev->data.scalar.length;
    const char *s = (const char *)ev->data.scalar.value;
    FAIL_IF(memchr(s, '\0', n), ERR_FORMAT, "%s: line %zu: a value holds a NUL character",
            where, ev->start_mark.line + 1);
    return mem_strdup(out, s);
}

static void free_node(struct yaml *y)
{
    for (size_t i = 0; i < y->n; i++) {
        free_node(&y->child[i]);
        if (y->key)
            mem_free(y->key[i]);
    }
    mem_free(y->child);
    mem_free(y->key);
    mem_free(y->text);
}

/* Adds a zeroed child, with a place for its key in a mapping. */
static enum err grow(struct yaml *y)
{
    if (!(y->n & (y->n + 1)) || !y->child) { /* n + 1 a power of two: 0, 1, 3, 7 */
        const size_t room = 2 * (y->n + 1);
        TRY(mem_resize(&y->child, y->n, room, sizeof(*y->child)));
        if (y->kind == YAML_MAP)
            TRY(mem_resize(&y->key, y->n, room, sizeof(*y->key)));
    }
    y->child[y->n] = (struct yaml){0};
    if (y->key)
        y->key[y->n] = NULL;
    y->n++;
    return OK;
}

static enum err add_key(struct yaml *map, const yaml_event_t *ev, const char *where)
{
    const size_t line = ev->start_mark.line + 1;
    FAIL_IF(marked(ev), ERR_FORMAT,
            "%s: line %zu: anchors, aliases and tags are not supported", where, line);
    FAIL_IF(ev->type != YAML_SCALAR_EVENT, ERR_FORMAT,
            "%s: line %zu: a key must be plain text", where, line);
    FAIL_IF(map->n >= KEYS_MAX, ERR_FORMAT, "%s: line %zu: more than %d keys in a mapping",
            where, line, KEYS_MAX);
    char *key = NULL;
    TRY(copy_text(&key, ev, where));
    enum err err = OK;
    if (yaml_child(map, key))
        err = err_set(ERR_FORMAT, __FILE__, __LINE__,
                      "%s: line %zu: key \"%.100s\" appears twice", where, line, key);
    else
        err = grow(map);
    if (err)
        mem_free(key);
    else
        map->key[map->n - 1] = key;
    return err;
}

static enum err read_node(struct yaml *y, struct reader *r, const yaml_event_t *first,
                          int depth);

static enum err read_children(struct yaml *y, struct reader *r, int depth)
{
    for (;;) {
        yaml_event_t ev;
        TRY(next_event(&ev, r));
        enum err err = OK;
        const bool end =
            ev.type == YAML_MAPPING_END_EVENT || ev.type == YAML_SEQUENCE_END_EVENT;
        if (!end && y->kind == YAML_MAP) {
            err = add_key(y, &ev, r->where);
            yaml_event_delete(&ev);
            if (!err)
                err = next_event(&ev, r);
            if (err)
                return err;
        } else if (!end)
            err = grow(y);
        if (!end && !err)
            err = read_node(&y->child[y->n - 1], r, &ev, depth + 1);
        yaml_event_delete(&ev);
        if (end || err)
            return err;
    }
}

static enum err read_node(struct yaml *y, struct reader *r, const yaml_event_t *first,
                          int depth)
{
    y->line = (int)first->start_mark.line + 1;
    FAIL_IF(depth > DEPTH_MAX, ERR_FORMAT, "%s: line %d: nested deeper than %d", r->where,
            y->line, DEPTH_MAX);
    FAIL_IF(marked(first), ERR_FORMAT,
            "%s: line %d: anchors, aliases and tags are not supported", r->where, y->line);
    switch (first->type) {
    case YAML_SCALAR_EVENT:
        y->kind = YAML_TEXT;
        y->quoted = first->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        return copy_text(&y->text, first, r->where);
    case YAML_MAPPING_START_EVENT:
        y->kind = YAML_MAP;
        return read_children(y, r, depth);
    default: /* a sequence; all other kinds of nodes are handled above */
        y->kind = YAML_LIST;
        return read_children(y, r, depth);
    }
}

/* Reads at most one document. */
static enum err read_stream(struct yaml *root, struct reader *r)
{
    bool seen = false;
    for (;;) {
        yaml_event_t ev;
        TRY(next_event(&ev, r));
        const yaml_event_type_t type = ev.type;
        const size_t line = ev.start_mark.line + 1;
        enum err err = OK;
        if (type == YAML_DOCUMENT_START_EVENT && seen)
            err = err_set(ERR_FORMAT, __FILE__, __LINE__,
                          "%s: line %zu: a second document starts; only one is read",
                          r->where, line);
        else if (type == YAML_DOCUMENT_START_EVENT)
            seen = true;
        else if (type != YAML_STREAM_START_EVENT && type != YAML_STREAM_END_EVENT &&
                 type != YAML_DOCUMENT_END_EVENT)
            err = read_node(root, r, &ev, 0);
        yaml_event_delete(&ev);
        if (err || type == YAML_STREAM_END_EVENT)
            return err;
    }
}

/* Treats "---" and comments alone like an empty file. */
static void normalize_empty(struct yaml *root)
{
    if (root->kind == YAML_TEXT && !root->quoted && !*root->text) {
        mem_free(root->text);
        *root = (struct yaml){.kind = YAML_MAP, .line = 1};
    }
}

enum err yaml_parse_text(struct yaml **out, const char *text, size_t n, const char *where)
{
    struct reader r = {.where = where};
    struct yaml *root = NULL;
    TRY(mem_calloc(&root, 1, sizeof(*root)));
    root->line = 1;
    enum err err = OK;
    if (!yaml_parser_initialize(&r.parser))
        err = err_set(ERR_MEMORY, __FILE__, __LINE__, "out of memory for a YAML parser");
    else {
        yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
        yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
        err = read_stream(root, &r);
        yaml_parser_delete(&r.parser);
    }
    if (err) {
        yaml_tree_free(&root);
        return err;
    }
    normalize_empty(root);
    *out = root;
    return OK;
}

enum err yaml_load_file(struct yaml **out, const char *path)
{
    char *text = NULL;
    size_t n = 0;
    enum err err = file_read_all(&text, &n, path, FILE_MAX);
    if (!err)
        err = yaml_parse_text(out, text, n, path);
    mem_free(text);
    return err == ERR_FORMAT ? ERR_USAGE : err;
}

void yaml_tree_free(struct yaml **y)
{
    if (!*y)
        return;
    free_node(*y);
    mem_free(*y);
    *y = NULL;
}

const struct yaml *yaml_child(const struct yaml *map, const char *key)
{
    for (size_t i = 0; map->kind == YAML_MAP && i < map->n; i++)
        if (map->key[i] && !strcmp(map->key[i], key))
            return &map->child[i];
    return NULL;
}
