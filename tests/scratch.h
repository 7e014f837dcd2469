/* SPDX-License-Identifier: MIT
 *
 * A fresh directory for a test: in $TMPDIR, else in memory where the system has /dev/shm
 * (the product fsyncs every file, which a busy disk makes slow), else in /tmp. */
#ifndef WKVQ_SCRATCH_H
#define WKVQ_SCRATCH_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline bool scratch_dir(char *out, size_t n)
{
    const char *base = getenv("TMPDIR");
    if (!base || !*base)
        base = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    const int len = snprintf(out, n, "%s/wkvq-test.XXXXXX", base);
    return len > 0 && (size_t)len < n && mkdtemp(out);
}

#endif
