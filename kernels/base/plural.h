/* SPDX-License-Identifier: MIT
 *
 * The ending of a noun behind a number. */
#ifndef WKVQ_PLURAL_H
#define WKVQ_PLURAL_H

#include <stdint.h>

/* Returns "" for one, else "s": "%" PRId64 " window%s", n, plural(n). Of "1 of 9 windows", the
 * noun goes with the 9. */
static inline const char *plural(int64_t n)
{
    return n == 1 ? "" : "s";
}

#endif
