/* SPDX-License-Identifier: MIT
 *
 * Untrusted YAML (libyaml) as a tree that keeps line numbers for messages: mappings,
 * sequences, scalars. Anchors and aliases, tags, several documents, duplicate keys and
 * nesting beyond 64 are errors. */
#ifndef WKVQ_YAML_H
#define WKVQ_YAML_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stddef.h>

enum yaml_kind { YAML_MAP, YAML_LIST, YAML_TEXT };

struct yaml {
    enum yaml_kind kind;
    int line;           /* 1-based, where the node starts */
    bool quoted;        /* a scalar in quotes: a string, whatever it looks like */
    char *text;         /* YAML_TEXT: the scalar, owned */
    char **key;         /* YAML_MAP: n keys, owned */
    struct yaml *child; /* n children, owned */
    size_t n;
};

/* Parse n bytes; where starts the messages ("w4.yaml: line 3: ..."). An empty text gives an
 * empty map. Errors: ERR_FORMAT. */
enum err yaml_parse_text(struct yaml **out, const char *text, size_t n, const char *where);
enum err yaml_load_file(struct yaml **out, const char *path);
void yaml_tree_free(struct yaml **y); /* accepts NULL */
/* Inline because libyaml exports an internal function of this name and would call ours. */
static inline void yaml_free(struct yaml **y)
{
    yaml_tree_free(y);
}
/* NULL if absent. Borrowed. */
const struct yaml *yaml_child(const struct yaml *map, const char *key);

#endif
