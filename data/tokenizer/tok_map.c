/* SPDX-License-Identifier: MIT */
#include "data/tokenizer/tok_map.h"

#include "kernels/base/mem.h"

#include <string.h>
#include <sys/random.h>

static uint64_t random_seed(void)
{
    uint64_t seed = 0;
    /* Results do not depend on the seed, so the tables also work without randomness. */
    if (getrandom(&seed, sizeof(seed), GRND_NONBLOCK) != sizeof(seed))
        seed = 0x9E3779B97F4A7C15u;
    return seed | 1;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static uint64_t hash_bytes(const char *s, size_t n, uint64_t seed)
{
    uint64_t h = seed ^ n, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = mix(h ^ word) + seed;
    }
    word = 0;
    if (n)
        memcpy(&word, s, n);
    return mix(h ^ word);
}

/* Returns the slot of s, or the free slot for it. n_slots > 0. */
static size_t dict_slot(const struct dict *d, const char *s, size_t n, uint64_t hash)
{
    size_t i = hash & (d->n_slots - 1);
    for (; d->slot[i]; i = (i + 1) & (d->n_slots - 1)) {
        const struct dict_entry *e = &d->entry[d->slot[i] - 1];
        if (e->hash == hash && e->length == n && !memcmp(d->bytes.p + e->offset, s, n))
            break;
    }
    return i;
}

int64_t dict_find(const struct dict *d, const char *s, size_t n)
{
    if (!d->n)
        return -1;
    return (int64_t)d->slot[dict_slot(d, s, n, hash_bytes(s, n, d->seed))] - 1;
}

static enum err dict_rehash(struct dict *d)
{
    const size_t n_slots = d->n_slots ? d->n_slots * 2 : 256;
    uint32_t *slot = NULL;
    TRY(mem_calloc(&slot, n_slots, sizeof(*slot)));
    for (size_t k = 0; k < d->n; k++) {
        size_t i = d->entry[k].hash & (n_slots - 1);
        while (slot[i])
            i = (i + 1) & (n_slots - 1);
        slot[i] = (uint32_t)k + 1;
    }
    mem_free(d->slot);
    d->slot = slot;
    d->n_slots = n_slots;
    return OK;
}

enum err dict_add(uint32_t *index, struct dict *d, const char *s, size_t n)
{
    if (!d->seed)
        d->seed = random_seed();
    if (d->n * 2 >= d->n_slots)
        TRY(dict_rehash(d));
    const uint64_t hash = hash_bytes(s, n, d->seed);
    const size_t i = dict_slot(d, s, n, hash);
    if (!d->slot[i]) {
        FAIL_IF(n > UINT32_MAX - d->bytes.n || d->n >= INT32_MAX, ERR_FORMAT,
                "strings of more than 4 GiB");
        if (d->n == d->cap) {
            const size_t cap = d->cap ? d->cap * 2 : 128;
            TRY(mem_resize(&d->entry, d->n, cap, sizeof(*d->entry)));
            d->cap = cap;
        }
        d->entry[d->n] = (struct dict_entry){(uint32_t)d->bytes.n, (uint32_t)n, hash};
        TRY(text_reserve(&d->bytes, n + 1));
        TRY(text_add(&d->bytes, s, n));
        d->slot[i] = (uint32_t)++d->n;
    }
    *index = d->slot[i] - 1;
    return OK;
}

const char *dict_string(size_t *n, const struct dict *d, uint32_t index)
{
    *n = d->entry[index].length;
    return d->bytes.p + d->entry[index].offset;
}

void dict_free(struct dict *d)
{
    text_free(&d->bytes);
    mem_free(d->entry);
    mem_free(d->slot);
    *d = (struct dict){0};
}

static uint64_t pair_key(int32_t a, int32_t b)
{
    return (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
}

static size_t pair_slot(const struct pair_map *m, uint64_t key)
{
    size_t i = mix(key ^ m->seed) & (m->n_slots - 1);
    while (m->key[i] != UINT64_MAX && m->key[i] != key)
        i = (i + 1) & (m->n_slots - 1);
    return i;
}

int32_t pair_map_get(const struct pair_map *m, int32_t a, int32_t b)
{
    if (!m->n)
        return -1;
    const uint64_t key = pair_key(a, b);
    const size_t i = pair_slot(m, key);
    return m->key[i] == key ? m->value[i] : -1;
}

static enum err pair_map_rehash(struct pair_map *m)
{
    enum err err = OK;
    struct pair_map fresh = {.n = m->n, .seed = m->seed};
    fresh.n_slots = m->n_slots ? m->n_slots * 2 : 256;
    TRY(mem_alloc(&fresh.key, fresh.n_slots, sizeof(*fresh.key)));
    TRY_OUT(mem_alloc(&fresh.value, fresh.n_slots, sizeof(*fresh.value)));
    memset(fresh.key, 0xFF, fresh.n_slots * sizeof(*fresh.key));
    for (size_t k = 0; k < m->n_slots; k++) {
        if (m->key[k] == UINT64_MAX)
            continue;
        const size_t i = pair_slot(&fresh, m->key[k]);
        fresh.key[i] = m->key[k];
        fresh.value[i] = m->value[k];
    }
    pair_map_free(m);
    *m = fresh;
    return OK;
out:
    pair_map_free(&fresh);
    return err;
}

enum err pair_map_put(struct pair_map *m, int32_t a, int32_t b, int32_t value)
{
    if (!m->seed)
        m->seed = random_seed();
    if (m->n * 2 >= m->n_slots)
        TRY(pair_map_rehash(m));
    const uint64_t key = pair_key(a, b);
    const size_t i = pair_slot(m, key);
    m->n += m->key[i] != key;
    m->key[i] = key;
    m->value[i] = value;
    return OK;
}

void pair_map_free(struct pair_map *m)
{
    mem_free(m->key);
    mem_free(m->value);
    *m = (struct pair_map){0};
}
