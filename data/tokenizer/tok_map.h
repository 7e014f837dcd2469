/* SPDX-License-Identifier: MIT
 *
 * Two hash tables for the tokenizers. Hashes have a random seed, because the keys come from
 * untrusted files and texts that may provoke collisions. */
#ifndef WKVQ_TOK_MAP_H
#define WKVQ_TOK_MAP_H

#include "data/tokenizer/tok_text.h"

/* Set of byte strings, numbered in order of insertion. A zeroed one is empty. */
struct dict {
    struct text bytes;
    struct dict_entry {
        uint32_t offset, length;
        uint64_t hash;
    } * entry;
    size_t n, cap;
    uint32_t *slot; /* index + 1; 0 if free */
    size_t n_slots; /* 0 or a power of two */
    uint64_t seed;
};

/* Returns the number of s, or -1 if it is missing. */
int64_t dict_find(const struct dict *d, const char *s, size_t n);
/* Adds s unless it is present; *index is its number. ERR_FORMAT above 4 GiB of strings;
 * ERR_MEMORY. */
enum err dict_add(uint32_t *index, struct dict *d, const char *s, size_t n);
/* Returns string number index; borrowed until the next dict_add(). */
const char *dict_string(size_t *n, const struct dict *d, uint32_t index);
void dict_free(struct dict *d);

/* Map from a pair of ids (not both negative) to a number. A zeroed one is empty. */
struct pair_map {
    uint64_t *key; /* UINT64_MAX if free */
    int32_t *value;
    size_t n, n_slots;
    uint64_t seed;
};

/* Returns the value, or -1 if it is missing. */
int32_t pair_map_get(const struct pair_map *m, int32_t a, int32_t b);
/* Sets the value, which is >= 0. ERR_MEMORY. */
enum err pair_map_put(struct pair_map *m, int32_t a, int32_t b, int32_t value);
void pair_map_free(struct pair_map *m);

#endif
