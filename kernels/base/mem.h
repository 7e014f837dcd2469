/* SPDX-License-Identifier: MIT
 *
 * Overflow-checked sizes and aligned allocation. All allocations of the tree go through
 * mem_alloc() or mem_calloc(), except those of libraries. All functions are thread-safe. */
#ifndef WKVQ_MEM_H
#define WKVQ_MEM_H

#include "kernels/base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define MEM_ALIGN 64

/* *out = a * b or a + b; false on overflow (*out untouched). */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* *out = unit times the product of n dims. ERR_FORMAT on overflow or a negative dim. */
enum err size_product(size_t *out, const int64_t *dim, int n, size_t unit);

/* Allocate n * unit bytes, 64-byte aligned; undefined (mem_alloc) or zero (mem_calloc).
 * out is the address of a pointer of any type. 0 bytes give a valid pointer. The caller
 * frees it with mem_free(). ERR_MEMORY, also if n * unit overflows. */
enum err mem_alloc(void *out, size_t n, size_t unit);
enum err mem_calloc(void *out, size_t n, size_t unit);
/* Grows or shrinks an allocation and keeps min(old_n, n) items. p is the address of the
 * pointer. On ERR_MEMORY *p is unchanged and still owned by the caller. */
enum err mem_resize(void *p, size_t old_n, size_t n, size_t unit);
void mem_free(void *p); /* p may be NULL */
enum err mem_strdup(char **out, const char *s);

/* Requests huge pages for [p, p + bytes), before they are first written. Sequential reads
 * get faster, because the hardware prefetches only within a page. The system may ignore
 * it. */
void mem_want_huge(void *p, size_t bytes);

/* The largest resident size of this process so far, in bytes. What it was before it executed this
 * program does not count, where /proc says so. */
uint64_t mem_peak_bytes(void);

#endif
