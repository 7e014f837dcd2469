/* SPDX-License-Identifier: MIT
 *
 * Parses untrusted YAML (libyaml) to a tree of mappings, sequences and scalars that keeps
 * line numbers for messages. Anchors, aliases, tags, a second document, duplicate keys and
 * nesting beyond 64 are errors. A tree is read-only and may be shared between threads. */
#ifndef WKVQ_YAML_H
#define WKVQ_YAML_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stddef.h>

enum yaml_kind { YAML_MAP, YAML_LIST, YAML_TEXT };

struct yaml {
    enum yaml_kind kind;
    int line;           /* 1-based, where the node starts */
    bool quoted;        /* a scalar in quotes, which is always a string */
    char *text;         /* YAML_TEXT: the scalar, owned */
    char **key;         /* YAML_MAP: n keys, owned */
    struct yaml *child; /* n children, owned */
    size_t n;
};

/* Parses n bytes; where starts the messages ("w4.yaml: line 3: ..."). An empty text gives
 * an empty map. The caller frees *out with yaml_free(). Errors: ERR_FORMAT, ERR_MEMORY. */
enum err yaml_parse_text(struct yaml **out, const char *text, size_t n, const char *where);
/* Does the same with a file that a person typed, and is to correct: ERR_USAGE for ERR_FORMAT, also
 * for one of more than 1 MiB. Also the other errors of file_read_all(). */
enum err yaml_load_file(struct yaml **out, const char *path);
void yaml_tree_free(struct yaml **y); /* accepts NULL */
/* An inline function, because libyaml exports an internal function of this name and would
 * call a global one. */
static inline void yaml_free(struct yaml **y)
{
    yaml_tree_free(y);
}
/* Returns the child named key, or NULL if it is missing. Borrowed from map. */
const struct yaml *yaml_child(const struct yaml *map, const char *key);

#endif
