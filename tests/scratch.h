/* SPDX-License-Identifier: MIT
 *
 * A fresh directory for a test: in $TMPDIR, else in memory where the system has /dev/shm
 * (the product fsyncs every file, which a busy disk makes slow), else in /tmp. */
#ifndef WKVQ_SCRATCH_H
#define WKVQ_SCRATCH_H

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline bool scratch_dir(char *out, size_t n)
{
    const char *base = getenv("TMPDIR");
    if (!base || !*base)
        base = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
    const int len = snprintf(out, n, "%s/wkvq-test.XXXXXX", base);
    return len > 0 && (size_t)len < n && mkdtemp(out);
}

/* Removes a test's directory with the plain files in it; it may be missing. */
static inline bool scratch_remove(const char *path)
{
    DIR *d = opendir(path);
    if (!d)
        return true;
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            unlinkat(dirfd(d), e->d_name, 0);
    closedir(d);
    return !rmdir(path);
}

#endif
