/* SPDX-License-Identifier: MIT
 *
 * Sizes in bytes, as people type and read them. */
#ifndef WKVQ_SIZE_H
#define WKVQ_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A smaller budget of memory is a number whose unit was forgotten. */
#define SIZE_BUDGET_MIN 1e5

/* Parses a size: "4096" bytes; "500kB", "1.5MB", "5GB", "1TB" in powers of 1000; "8KiB", "512MiB",
 * "8GiB" and, as memory is sold, "8K", "512M", "8G" in powers of 1024. The unit's first letter may
 * be small. false: not a size. */
bool size_parse(uint64_t *out, const char *text);
/* Writes what is wanted in place of text, which is no size or less than `least`: "want a size of at
 * least 100.0 kB; did you mean 8G?". also: other words that are allowed, as in "auto, or ". */
void size_wanted(char *out, size_t n, const char *text, double least, const char *also);

enum { SIZE_TEXT = 24 };
/* Writes and returns a size for people, such as "8 B", "57.4 kB", "61.9 MB", "13.50 GB" (powers of
 * 1000). */
const char *size_text(char out[SIZE_TEXT], double bytes);

#endif
