/* SPDX-License-Identifier: MIT
 *
 * Overflow-checked sizes and aligned allocation. Every allocation of the tree goes through
 * mem_alloc or mem_calloc, or belongs to a library. */
#ifndef WKVQ_MEM_H
#define WKVQ_MEM_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define MEM_ALIGN 64

/* *out = a * b or a + b; false on overflow (*out untouched). */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Product of n dims (each >= 0) times unit bytes, checked. ERR_FORMAT on overflow or a
 * negative dim. */
enum err size_product(size_t *out, const int64_t *dim, int n, size_t unit);

/* 64-byte aligned memory, contents undefined (mem_alloc) or zero (mem_calloc). n * unit is
 * checked. n * unit == 0 gives a valid pointer. Release with mem_free. */
enum err mem_alloc(void *out, size_t n, size_t unit);
enum err mem_calloc(void *out, size_t n, size_t unit);
/* Grow or shrink an allocation of mem_alloc, keeping min(old_n, n) items. On error *p is
 * untouched and still owned. */
enum err mem_resize(void *p, size_t old_n, size_t n, size_t unit);
void mem_free(void *p); /* p may be NULL */
enum err mem_strdup(char **out, const char *s);

/* Ask for huge pages, before [p, p + bytes) is first written: memory that is read from end
 * to end is read faster, since the hardware looks ahead within a page only. Whether the
 * system grants it changes nothing else. */
void mem_want_huge(void *p, size_t bytes);

/* Bytes of memory that the system could give now (MemAvailable). 0 if unknown. */
uint64_t mem_available_bytes(void);
/* Peak resident set of this process in bytes. */
uint64_t mem_peak_bytes(void);

#endif
